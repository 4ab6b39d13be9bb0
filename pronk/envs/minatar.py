"""The 10 × 10 screen and sticky actions of the MinAtar games (Young & Tian 2019)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pronk.errors import UserError
from pronk.types import Array, Key

# A set of cells is int32 [10], one element per column, whose bit r is row r. This keeps the state
# small and avoids indexed reads and writes: a vmapped gather or scatter is slow on the CPU.
SIZE = 10
COLUMNS = np.arange(SIZE, dtype=np.int32)
ROW_BITS = 1 << COLUMNS


def check(name: str, sticky: float, max_steps: int) -> None:
    """Raise UserError for arguments that no game accepts."""
    if not 0 <= sticky <= 1 or max_steps < 1:
        raise UserError(
            f"{name} has sticky={sticky} and max_steps={max_steps}; expected a probability and at"
            " least 1 step."
        )


def sticky_action(action: Array, last: Array, sticky: float, key: Key) -> Array:
    """`action`, or with probability `sticky` the `last` one; int32 []."""
    action = action.astype(jnp.int32)
    return jnp.where(jax.random.uniform(key) < sticky, last, action) if sticky else action


def cell(row: Array | int, column: Array) -> Array:
    """The set with one cell, int32 [10]."""
    return jnp.where(column == COLUMNS, jnp.int32(1) << row, 0)


def screen(*channels: Array) -> Array:
    """uint8 `[10, 10, C]`, 255 in each channel's set of cells."""
    # One fused loop per channel is twice as fast on the CPU as one over all channels.
    bits = ROW_BITS[:, None]
    return jnp.stack([jnp.where(c & bits != 0, jnp.uint8(255), jnp.uint8(0)) for c in channels], -1)


def picture(observation: Array, colours: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    """uint8 `[240, 240, 3]` in one colour per channel; later channels hide earlier ones."""
    image = np.full((SIZE, SIZE, 3), 30, np.uint8)
    for channel, colour in zip(np.moveaxis(np.asarray(observation), -1, 0), colours, strict=True):
        image[channel > 0] = colour
    return image.repeat(24, axis=0).repeat(24, axis=1)
