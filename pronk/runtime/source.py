"""Where batches come from: a source takes unrolls in and gives batches out.

`Queue` is the source of agents that learn from what actors have just done; those of agents that
learn from replay are in `replay_source`.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import NamedTuple, Protocol

from pronk.errors import UserError
from pronk.runtime.columns import columns, concatenate
from pronk.runtime.threads import POLL, Closed
from pronk.storage.checkpoint import Loaded
from pronk.types import Array, Batch, Feedback, PyTree, Replayed, Trajectory

# Unrolls that may wait for the learner: one more makes actors wait, so that policies lag little.
QUEUE_SIZE = 1


def check_feedback(agent_source: object, feedback: Feedback) -> None:
    """Raise UserError, when `learn` is first traced, for feedback that no source would use."""
    given = feedback.priorities is not None or feedback.extras is not None
    if given and not isinstance(agent_source, Replayed):
        raise UserError(
            "the agent's `learn` returns feedback (priorities or extras), and its source is"
            f" {type(agent_source).__name__}, which keeps nothing that it could be about; expected"
            " `Learnt(state, metrics)`, or `source=Replayed(…)`."
        )


class Taken(NamedTuple):
    """A batch, in parts of one width."""

    parts: list[Batch]
    keys: Array | None = None  # int64 [B], of replayed sequences


class Source(Protocol):
    """Takes unrolls in and gives batches out; all methods may be called from any thread.

    What waits raises Closed after `stop`.
    """

    @property
    def drained(self) -> bool:
        """Whether nothing waits here that must be learnt from."""
        ...

    def wait_to_act(self) -> None:
        """Wait until actors may act."""
        ...

    def add(self, actor: int, trajectory: Trajectory) -> None:
        """Take in the next unroll of an actor, `[T + 1, B, ...]` NumPy, waiting for room."""
        ...

    def forget(self, actors: list[int]) -> None:
        """Drop what these actors had begun; empties the list."""
        ...

    def ready(self) -> bool:
        """Whether a batch can be taken."""
        ...

    def wait_until_ready(self) -> None:
        """Wait for a batch."""
        ...

    def take(self, parts: int) -> Taken:
        """The next batch, in so many parts if it can be divided; only when `ready`."""
        ...

    def feedback(self, keys: Array | None, feedback: Feedback) -> None:
        """What `learn` returned for the batch with these keys."""
        ...

    def state(self) -> dict[str, PyTree]:
        """What to save, by name."""
        ...

    def restore(self, loaded: Loaded, *, episodes: bool) -> list[str]:
        """Continue from `state()`, with or without the running episodes; returns messages."""
        ...

    def stop(self) -> None:
        """Let whatever waits here raise Closed."""
        ...

    def close(self) -> None:
        """Release files."""
        ...


class Queue:
    """First in, first out: unrolls of any width, regrouped into batches of `batch_size` columns.

    bounded: `add` waits while QUEUE_SIZE unrolls are waiting.
    """

    def __init__(self, batch_size: int, *, bounded: bool = False):
        self._batch_size, self._bounded = batch_size, bounded
        self._changed = threading.Condition()
        self._stopped = False
        self._waiting: deque[Trajectory] = deque()
        self._batch: deque[Trajectory] = deque()  # of the next batch and, at the end, beyond
        self._columns = 0  # in `_batch`

    @property
    def drained(self) -> bool:
        """Whether everything was taken."""
        return not (self._columns or self._waiting)

    def wait_to_act(self) -> None:
        """Actors wait in `add`."""

    def add(self, actor: int, trajectory: Trajectory) -> None:
        """Append an unroll's columns."""
        del actor
        with self._changed:
            while self._bounded and len(self._waiting) >= QUEUE_SIZE:
                self._wait()
            self._waiting.append(trajectory)
            self._changed.notify_all()

    def forget(self, actors: list[int]) -> None:
        """Unrolls are whole."""
        actors.clear()

    def ready(self) -> bool:
        """Whether a whole batch is here."""
        with self._changed:
            while self._columns < self._batch_size and self._waiting:
                trajectory = self._waiting.popleft()
                self._batch.append(trajectory)
                self._columns += trajectory.version.shape[0]
                self._changed.notify_all()
            return self._columns >= self._batch_size

    def wait_until_ready(self) -> None:
        """Gather unrolls until there is a batch."""
        with self._changed:
            while not self.ready():
                self._wait()

    def _wait(self) -> None:
        if self._stopped:
            raise Closed
        self._changed.wait(POLL)

    def take(self, parts: int) -> Taken:
        """The oldest `batch_size` columns."""
        with self._changed:
            self._columns -= self._batch_size
            return Taken([self._take(self._batch_size // parts) for _ in range(parts)])

    def _take(self, missing: int) -> Batch:
        taken = []
        while missing:
            trajectory = self._batch.popleft()
            width = trajectory.version.shape[0]
            if width > missing:
                self._batch.appendleft(columns(trajectory, missing, width))
                trajectory = columns(trajectory, 0, missing)
                width = missing
            taken.append(trajectory)
            missing -= width
        return Batch(concatenate(taken))

    def feedback(self, keys: Array | None, feedback: Feedback) -> None:
        """Nothing is kept that it could be about."""

    def state(self) -> dict[str, PyTree]:
        """Nothing: what waits here is acted again."""
        return {}

    def restore(self, loaded: Loaded, *, episodes: bool) -> list[str]:
        """Begin empty."""
        return []

    def stop(self) -> None:
        """Let whatever waits here raise Closed."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing to release."""
