"""Columns of trajectories, first in first out, regrouped into batches of the learner's size."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pronk.types import Array, Batch, Trajectory


def columns(trajectory: Trajectory, start: int, stop: int) -> Trajectory:
    """Environments `start:stop` of a trajectory, as views."""
    return _per_axis(lambda x: x[:, start:stop], lambda x: x[start:stop], trajectory)


def concatenate(parts: list[Trajectory], xp: Any = np) -> Trajectory:
    """Trajectories side by side, along their environments; of `xp`, numpy or jax.numpy, arrays."""
    if len(parts) == 1:
        return parts[0]
    return _per_axis(
        lambda *x: xp.concatenate(x, axis=1), lambda *x: xp.concatenate(x, axis=0), *parts
    )


def mixed(fresh: Trajectory, drawn: Trajectory, xp: Any = np) -> Batch:
    """A batch of what was just acted, and beside it what was drawn from replay."""
    trajectory = concatenate([fresh, drawn], xp)
    widths = [x.version.shape[0] for x in (fresh, drawn)]
    return Batch(trajectory, replayed=np.repeat([False, True], widths))


def over_axes(rows: Any, slots: Any, batch: Batch) -> Batch:
    """`rows` in the place of each array of `batch` that is `[T + 1, B, ...]`, and `slots` of each
    that is `[B, ...]`."""
    trajectory = _per_axis(lambda _: rows, lambda _: slots, batch.trajectory)
    others = jax.tree.map(lambda _: slots, batch._replace(trajectory=()))  # type: ignore[arg-type]
    return others._replace(trajectory=trajectory)


def _per_axis(
    rows: Callable[..., Array], slots: Callable[..., Array], *trajectories: Trajectory
) -> Trajectory:
    """Map `rows` over what is `[T + 1, B, ...]` and `slots` over what is `[B, ...]`."""

    def of(function: Callable[..., Array], field: str) -> Any:
        return jax.tree.map(function, *[getattr(t, field) for t in trajectories])

    return Trajectory(
        timestep=of(rows, "timestep"),
        action=of(rows, "action"),
        extras=of(rows, "extras"),
        core=of(slots, "core"),
        version=of(slots, "version"),
    )


class Batcher:
    """Takes trajectories of any width, gives batches of `batch_size` columns, in order."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._held: deque[Trajectory] = deque()
        self.waiting = 0  # columns held

    @property
    def ready(self) -> bool:
        """Whether a whole batch is here."""
        return self.waiting >= self._batch_size

    def add(self, trajectory: Trajectory) -> None:
        """Append a trajectory's columns."""
        self._held.append(trajectory)
        self.waiting += trajectory.version.shape[0]

    def take(self, parts: int = 1) -> list[Batch]:
        """The oldest `batch_size` columns, in so many parts of one width; only when `ready`."""
        self.waiting -= self._batch_size
        return [self._part(self._batch_size // parts) for _ in range(parts)]

    def _part(self, missing: int) -> Batch:
        found = []
        while missing:
            trajectory = self._held.popleft()
            width = trajectory.version.shape[0]
            if width > missing:
                self._held.appendleft(columns(trajectory, missing, width))
                trajectory = columns(trajectory, 0, missing)
                width = missing
            found.append(trajectory)
            missing -= width
        return Batch(concatenate(found))
