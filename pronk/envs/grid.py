"""Worlds of square cells seen from above: moves in four directions, planes and pictures."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from pronk.types import Array

MOVES = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)], np.int32)  # up, right, down, left
UP, RIGHT, DOWN, LEFT = range(4)
# Of pictures.
FLOOR, WALL, AGENT = (30, 30, 30), (110, 110, 110), (240, 140, 40)


def moved(position: Array, action: Array) -> Array:
    """The cell next to `position`, int32 [2]: its row and column."""
    # Comparisons rather than an indexed read: a vmapped gather is slow on the CPU.
    chosen = jnp.arange(4, dtype=jnp.int32) == action.astype(jnp.int32)
    return position + (chosen[:, None] * MOVES).sum(0, dtype=jnp.int32)


def at(position: Array, shape: tuple[int, int]) -> Array:
    """bool `shape`, true at the one cell `position`; false everywhere if it is outside."""
    rows, columns = shape
    row, column = jnp.arange(rows)[:, None], jnp.arange(columns)
    return (row == position[0]) & (column == position[1])


def planes(*masks: Array) -> Array:
    """uint8 `[rows, columns, C]`, 255 where the mask of a channel is true."""
    return jnp.stack([jnp.where(mask, jnp.uint8(255), jnp.uint8(0)) for mask in masks], -1)


def enlarged(cells: np.ndarray) -> np.ndarray:
    """A picture, uint8 `[H, W, 3]`, of one colour per cell: uint8 `[rows, columns, 3]`."""
    return cells.repeat(16, axis=0).repeat(16, axis=1)
