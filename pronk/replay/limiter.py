"""Limits how often sequences are drawn for each that is inserted."""

from __future__ import annotations

import threading
from typing import Protocol


class Counted(Protocol):
    """The counts of a `Replay`."""

    inserted: int
    sampled: int

    def __len__(self) -> int: ...


class Limiter:
    """Blocks actors while too many draws are due, and the learner while too few are.

    Nothing is drawn before `minimum` sequences are held. From then on
    `samples_per_insert` × sequences inserted − sequences drawn stays within `batch_size` of zero,
    except for what a single insertion adds.
    """

    def __init__(
        self, replay: Counted, *, samples_per_insert: float, minimum: int, batch_size: int
    ):
        self._replay = replay
        self._ratio, self._minimum, self._batch_size = samples_per_insert, minimum, batch_size
        self._changed = threading.Condition()

    @property
    def balance(self) -> float:
        """The number of draws that are due."""
        inserted = self._replay.inserted - self._minimum
        return self._ratio * inserted - self._replay.sampled

    def may_insert(self) -> bool:
        """Whether actors may continue."""
        return len(self._replay) < self._minimum or self.balance <= self._batch_size

    def may_sample(self) -> bool:
        """Whether a batch may be drawn."""
        return len(self._replay) >= self._minimum and self.balance >= 0

    def changed(self) -> None:
        """Wake the waiting threads, after sequences were inserted or drawn."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait for `changed`, at most this long."""
        with self._changed:
            self._changed.wait(seconds)
