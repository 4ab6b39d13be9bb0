"""An on-policy batch, as it is learnt from."""

from __future__ import annotations

from typing import NamedTuple

from pronk.maths.returns import Transitions
from pronk.types import Array, PyTree, TimeStep


class Samples(NamedTuple):
    """The T transitions of a batch, leaves `[T, B, ...]`, and the memory before them."""

    rows: TimeStep  # standardised, of the states where the actions were taken
    last_action: Array  # [T, B, A]
    raw_action: Array
    log_prob: Array  # of the behaviour
    policy: Array  # [T, B, P], the behaviour's distribution
    weight: Array  # 0 for dummies
    task: Array  # int32, whose value function
    core: PyTree  # [B, ...], recurrent state before the first row


class Data(NamedTuple):
    """A batch as the network sees it."""

    rows: TimeStep  # [T + 1, B, ...], standardised
    last_action: Array  # [T + 1, B, A]
    core: PyTree  # [B, ...]
    transitions: Transitions  # [T, B], rewards scaled
    samples: Samples
    features: Array | None  # [T + 1, B, F], of the linear baseline


class Estimates(NamedTuple):
    """Of the value function, `[T, B]`, without gradients."""

    value: Array  # in units of scaled rewards
    target: Array  # of the value, in these units
    advantage: Array  # standardised over the batch if the configuration says so
