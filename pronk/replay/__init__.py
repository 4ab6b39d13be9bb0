"""Replay: prioritised sequences of transitions, each frame of which is stored once."""

from pronk.replay.limiter import Limiter
from pronk.replay.replay import Replay
from pronk.replay.segment_log import SegmentLog
from pronk.replay.sum_tree import SumTree

__all__ = ["Limiter", "Replay", "SegmentLog", "SumTree"]
