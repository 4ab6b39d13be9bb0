"""Batches from a replay, and batches of which a part is from a replay."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from pronk.errors import UserError
from pronk.replay import Limiter, Replay, SegmentLog
from pronk.runtime.columns import columns, concatenate, mix
from pronk.runtime.source import Queue, Taken
from pronk.runtime.threads import POLL, Closed
from pronk.storage.checkpoint import Loaded
from pronk.types import Array, Batch, Feedback, Mixed, PyTree, Replayed, Trajectory


class Memory:
    """A replay, the random numbers of its draws, and its log if it is saved."""

    def __init__(self, replay: Replay, log: SegmentLog | None, seed: int):
        self.replay, self._log = replay, log
        self.rng = np.random.default_rng(seed)

    def forget(self, actors: list[int]) -> None:
        """Drop what these actors had begun; empties the list."""
        while actors:
            self.replay.forget(actors.pop())

    def state(self) -> dict[str, PyTree]:
        """What to save, having written what is new to the log."""
        if self._log is None:
            return {}
        return {"replay": self._log.save() | {"rng": _rng_state(self.rng)}}

    def restore(self, loaded: Loaded, *, episodes: bool) -> list[str]:
        """Continue from `state()`, with or without the running episodes."""
        tree = loaded.tree("replay")
        if tree is None or self._log is None:
            return ["the replay starts empty, because it was not saved."]
        try:
            self._log.restore(tree, episodes=episodes)
        except UserError as error:
            return [f"warning: the replay starts empty, because {error}."]
        _set_rng_state(self.rng, tree["rng"])
        return []

    def close(self) -> None:
        """Write no more to the log."""
        if self._log is not None:
            self._log.close()


class ReplaySource:
    """Batches drawn from a replay; actors and learner wait for one another as its limiter says."""

    drained = True

    def __init__(self, source: Replayed, memory: Memory, batch_size: int):
        self._memory, self._batch_size = memory, batch_size
        self._limiter = Limiter(
            memory.replay,
            samples_per_insert=source.samples_per_insert,
            minimum=source.min_size,
            batch_size=batch_size,
        )
        self._stopped = threading.Event()
        self.forget, self.state, self.restore = memory.forget, memory.state, memory.restore
        self.close = memory.close

    def wait_to_act(self) -> None:
        """Wait until enough has been drawn of what is here."""
        self._wait_until(self._limiter.may_insert)

    def add(self, actor: int, trajectory: Trajectory) -> None:
        """Cut the unroll into sequences."""
        self._memory.replay.add(actor, trajectory)
        self._limiter.changed()

    def ready(self) -> bool:
        """Whether a batch may be drawn."""
        return self._limiter.may_sample()

    def wait_until_ready(self) -> None:
        """Wait until enough has been inserted."""
        self._wait_until(self._limiter.may_sample)

    def _wait_until(self, allowed: Callable[[], bool]) -> None:
        while not allowed():
            if self._stopped.is_set():
                raise Closed
            self._limiter.wait(POLL)

    def take(self, parts: int) -> Taken:
        """Draw a batch, which comes whole."""
        del parts
        batch, keys = self._memory.replay.sample(self._batch_size, self._memory.rng)
        self._limiter.changed()
        return Taken([batch], keys)

    def feedback(self, keys: Array | None, feedback: Feedback) -> None:
        """Revise the sequences drawn: their priorities, and extras of their rows."""
        assert keys is not None
        self._memory.replay.revise(keys, feedback)

    def stop(self) -> None:
        """Let whatever waits here raise Closed."""
        self._stopped.set()


class MixedSource(Queue):
    """What actors have just done and, beside it, `fraction` of each batch drawn from a replay.

    batch_size: of the fresh columns.
    """

    def __init__(self, source: Mixed, memory: Memory, batch_size: int, *, bounded: bool = False):
        super().__init__(batch_size, bounded=bounded)
        self._memory, self._fraction = memory, source.fraction

    def add(self, actor: int, trajectory: Trajectory) -> None:
        """Keep the unroll in the replay, too."""
        self._memory.replay.add(actor, trajectory)
        super().add(actor, trajectory)

    def forget(self, actors: list[int]) -> None:
        """Drop what these actors had begun."""
        self._memory.forget(actors)

    def take(self, parts: int) -> Taken:
        """Fresh columns, and replayed ones beside them; fresh ones again while there are none."""
        return Taken([self._mix(part.trajectory) for part in super().take(parts).parts])

    def _mix(self, fresh: Trajectory) -> Batch:
        width, replay = fresh.version.shape[0], self._memory.replay
        count = round(width * self._fraction / (1.0 - self._fraction))
        if len(replay):
            replayed = replay.sample(count, self._memory.rng)[0].trajectory
        else:
            replayed = columns(concatenate([fresh] * (1 + count // width)), 0, count)
        return mix(fresh, replayed)

    def state(self) -> dict[str, PyTree]:
        """The replay's."""
        return self._memory.state()

    def restore(self, loaded: Loaded, *, episodes: bool) -> list[str]:
        """Continue from `state()`."""
        return self._memory.restore(loaded, episodes=episodes)

    def close(self) -> None:
        """Write no more to the log."""
        self._memory.close()


def _rng_state(rng: np.random.Generator) -> Array:
    """The state of a PCG64, uint64 `[6]`."""
    state: Any = rng.bit_generator.state
    numbers = [
        state["state"][k] >> shift & (1 << 64) - 1 for k in ("state", "inc") for shift in (64, 0)
    ]
    return np.array([*numbers, state["has_uint32"], state["uinteger"]], np.uint64)


def _set_rng_state(rng: np.random.Generator, saved: Array) -> None:
    high, low, high_inc, low_inc, has_uint32, uinteger = (int(x) for x in saved)
    rng.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": high << 64 | low, "inc": high_inc << 64 | low_inc},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
