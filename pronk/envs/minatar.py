"""What the games of MinAtar share: a screen of 10 × 10 and sticky actions (Young & Tian 2019)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pronk.errors import UserError
from pronk.types import Array, Key

# A set of cells is int32 [10], one element per column, whose bit r is row r. So the state is small
# and no cell is read or written by its index: a vmapped gather or scatter is slow on the CPU.
SIZE = 10
COLUMNS = np.arange(SIZE, dtype=np.int32)
ROW_BITS = 1 << COLUMNS


def check(name: str, sticky: float, max_steps: int) -> None:
    """Raises UserError for arguments that no game accepts."""
    if not 0 <= sticky <= 1 or max_steps < 1:
        raise UserError(
            f"{name} was given sticky={sticky} and max_steps={max_steps}; it needs a probability"
            " and at least 1 step."
        )


def executed(action: Array, last: Array, sticky: float, key: Key) -> Array:
    """`action`, or with probability `sticky` the `last` one; int32 []."""
    action = action.astype(jnp.int32)
    return jnp.where(jax.random.uniform(key) < sticky, last, action) if sticky else action


def cell(row: Array | int, column: Array) -> Array:
    """The set of one cell, int32 [10]."""
    return jnp.where(column == COLUMNS, jnp.int32(1) << row, 0)


def screen(*channels: Array) -> Array:
    """uint8 `[10, 10, C]`, 255 in each channel's set of cells."""
    # One loop for each channel, twice as fast on the CPU as one loop over all of them.
    bits = ROW_BITS[:, None]
    return jnp.stack([jnp.where(c & bits != 0, jnp.uint8(255), jnp.uint8(0)) for c in channels], -1)


def picture(observation: Array, colours: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    """uint8 `[240, 240, 3]` in one colour per channel; later channels hide earlier ones."""
    shown = np.full((SIZE, SIZE, 3), 30, np.uint8)
    for channel, colour in zip(np.moveaxis(np.asarray(observation), -1, 0), colours, strict=True):
        shown[channel > 0] = colour
    return shown.repeat(24, axis=0).repeat(24, axis=1)
