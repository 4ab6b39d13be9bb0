"""Columns of trajectories: one per environment, cut, joined and mixed into batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pronk.types import Array, Batch, Trajectory


def columns(trajectory: Trajectory, start: int, stop: int) -> Trajectory:
    """Environments `start:stop` of a trajectory, as views."""
    return _map_axes(lambda x: x[:, start:stop], lambda x: x[start:stop], trajectory)


def concatenate(parts: list[Trajectory], xp: Any = np) -> Trajectory:
    """Trajectories side by side, along their environments; xp: numpy or jax.numpy."""
    if len(parts) == 1:
        return parts[0]
    return _map_axes(
        lambda *x: xp.concatenate(x, axis=1), lambda *x: xp.concatenate(x, axis=0), *parts
    )


def mix(fresh: Trajectory, replayed: Trajectory, xp: Any = np) -> Batch:
    """A batch of what was just acted and, on its right, what was drawn from a replay."""
    widths = [x.version.shape[0] for x in (fresh, replayed)]
    return Batch(concatenate([fresh, replayed], xp), replayed=np.repeat([False, True], widths))


def fresh_columns(batch: Batch) -> Trajectory:
    """The columns of a batch that are not replayed."""
    width = batch.trajectory.version.shape[0]
    fresh = width if batch.replayed is None else width - int(batch.replayed.sum())
    return columns(batch.trajectory, 0, fresh)


def agent_steps(trajectory: Trajectory) -> int:
    """Transitions in a trajectory of NumPy arrays, without the dummies between episodes."""
    first = trajectory.timestep.first[1:]
    return int(first.size - first.sum())


def over_axes(rows: Any, slots: Any, batch: Batch) -> Batch:
    """`rows` in the place of each array of `batch` that is `[T + 1, B, ...]`, and `slots` of each
    that is `[B, ...]`."""
    trajectory = _map_axes(lambda _: rows, lambda _: slots, batch.trajectory)
    others = jax.tree.map(lambda _: slots, batch._replace(trajectory=()))  # type: ignore[arg-type]
    return others._replace(trajectory=trajectory)


def _map_axes(
    rows: Callable[..., Array], slots: Callable[..., Array], *trajectories: Trajectory
) -> Trajectory:
    """Map `rows` over what is `[T + 1, B, ...]` and `slots` over what is `[B, ...]`."""

    def field(function: Callable[..., Array], name: str) -> Any:
        return jax.tree.map(function, *[getattr(t, name) for t in trajectories])

    return Trajectory(
        timestep=field(rows, "timestep"),
        action=field(rows, "action"),
        extras=field(rows, "extras"),
        core=field(slots, "core"),
        version=field(slots, "version"),
    )
