"""Keeping how often a sequence is drawn near what was asked for."""

from __future__ import annotations

import threading
from typing import Protocol


class Counted(Protocol):
    """What the limiter watches: see `Replay`."""

    inserted: int
    sampled: int

    def __len__(self) -> int: ...


class Limiter:
    """Makes whoever is ahead wait: actors while too much is undrawn, the learner while too little.

    Nothing is drawn before `minimum` sequences are there. From then on
    `samples_per_insert` × sequences inserted − sequences drawn stays within `batch_size` of zero,
    but for what is inserted at once.
    """

    def __init__(
        self, replay: Counted, *, samples_per_insert: float, minimum: int, batch_size: int
    ):
        self._replay = replay
        self._ratio, self._minimum, self._batch_size = samples_per_insert, minimum, batch_size
        self._changed = threading.Condition()

    @property
    def balance(self) -> float:
        """Draws that are due."""
        inserted = self._replay.inserted - self._minimum
        return self._ratio * inserted - self._replay.sampled

    def may_insert(self) -> bool:
        """Whether actors may go on."""
        return len(self._replay) < self._minimum or self.balance <= self._batch_size

    def may_sample(self) -> bool:
        """Whether a batch may be drawn."""
        return len(self._replay) >= self._minimum and self.balance >= 0

    def changed(self) -> None:
        """Somebody inserted or drew."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Until something changes, or so long."""
        with self._changed:
            self._changed.wait(seconds)
