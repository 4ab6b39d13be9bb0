"""Columns of trajectories, first in first out, regrouped into batches of the learner's size."""

from __future__ import annotations

from collections import deque

import jax
import numpy as np

from pronk.types import Batch, Trajectory


def columns(trajectory: Trajectory, start: int, stop: int) -> Trajectory:
    """Environments `start:stop` of a trajectory, as views."""
    rows = jax.tree.map(
        lambda x: x[:, start:stop], (trajectory.timestep, trajectory.action, trajectory.extras)
    )
    core, version = jax.tree.map(lambda x: x[start:stop], (trajectory.core, trajectory.version))
    return Trajectory(*rows, core, version)


def concatenate(parts: list[Trajectory]) -> Trajectory:
    """Trajectories side by side, along their environments."""
    if len(parts) == 1:
        return parts[0]

    def join(axis: int, *trees: object) -> object:
        return jax.tree.map(lambda *x: np.concatenate(x, axis=axis), *trees)

    rows = join(1, *[(p.timestep, p.action, p.extras) for p in parts])
    core, version = join(0, *[(p.core, p.version) for p in parts])
    return Trajectory(*rows, core, version)  # type: ignore[misc]


class Batcher:
    """Takes trajectories of any width, gives batches of `batch_size` columns, in order."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._parts: deque[Trajectory] = deque()
        self.waiting = 0  # columns held

    @property
    def ready(self) -> bool:
        """Whether a whole batch is here."""
        return self.waiting >= self._batch_size

    def add(self, trajectory: Trajectory) -> None:
        """Append a trajectory's columns."""
        self._parts.append(trajectory)
        self.waiting += trajectory.version.shape[0]

    def take(self) -> Batch:
        """The oldest `batch_size` columns; call only when `ready`."""
        parts, missing = [], self._batch_size
        while missing:
            part = self._parts.popleft()
            width = part.version.shape[0]
            if width > missing:
                self._parts.appendleft(columns(part, missing, width))
                part = columns(part, 0, missing)
                width = missing
            parts.append(part)
            missing -= width
        self.waiting -= self._batch_size
        return Batch(concatenate(parts))
