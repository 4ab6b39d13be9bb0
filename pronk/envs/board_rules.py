"""Boards on which k stones in a row win: sizes, legal moves and lines, without players."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from pronk.errors import UserError
from pronk.types import Array

_LARGEST = 100  # side of a board; much larger ones have no room in memory
_DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))  # rows down and columns right from stone to stone


class Board(NamedTuple):
    """A board of `height` × `width` cells; row 0 is at the top.

    gravity: an action is a column, in which the stone falls to the lowest free cell. Otherwise it
    is a cell, `row * width + column`.
    """

    height: int
    width: int
    in_a_row: int
    gravity: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def cells(self) -> int:
        """The number of cells."""
        return self.height * self.width

    @property
    def actions(self) -> int:
        """The number of actions, the illegal ones included."""
        return self.width if self.gravity else self.cells

    def check(self, name: str) -> None:
        """Raise UserError unless the sizes are whole numbers from 1 to 100, and a line fits."""
        sizes = {"width": self.width, "height": self.height, "in_a_row": self.in_a_row}
        whole = all(type(n) is int and 1 <= n <= _LARGEST for n in sizes.values())
        if not whole or self.in_a_row > max(self.shape):
            given = ", ".join(f"{k}={v!r}" for k, v in sizes.items())
            raise UserError(
                f"{name} has {given}; expected whole numbers from 1 to {_LARGEST}, and lines of"
                " in_a_row stones that are no longer than the longer side of the board."
            )

    def landings(self, occupied: Array) -> Array:
        """bool `[H, W]`: the free cells that the next stone can be in; occupied: bool `[H, W]`."""
        if not self.gravity:
            return ~occupied
        floor = jnp.ones((1, self.width), bool)
        return ~occupied & jnp.concatenate([occupied[1:], floor])

    def legal(self, occupied: Array) -> Array:
        """bool `[actions]`: free cells, or columns that are not full; occupied: bool `[H, W]`."""
        return ~occupied[0] if self.gravity else ~occupied.reshape(-1)

    def stone(self, occupied: Array, action: Array) -> Array:
        """bool `[H, W]`, true at the cell that `action` puts a stone in; nowhere if it is illegal.

        occupied: bool `[H, W]`. action: an integer [].
        """
        # Comparisons rather than an indexed write: a vmapped scatter is slow on the CPU.
        numbers = np.arange(self.actions, dtype=np.int32)
        numbers = numbers if self.gravity else numbers.reshape(self.shape)
        return self.landings(occupied) & (numbers == action.astype(jnp.int32))

    def has_line(self, stones: Array) -> Array:
        """bool []: whether `in_a_row` of the stones, bool `[H, W]`, are in a line."""
        made = jnp.zeros((), bool)
        for first, *others in self._shifts():
            run = stones[first]
            for cells in others:
                run &= stones[cells]
            made |= run.any()
        return made

    def lines(self) -> np.ndarray:
        """The cells of every line, int64 `[lines, in_a_row]`."""
        numbers = np.arange(self.cells).reshape(self.shape)
        lines = [
            np.stack([numbers[cells] for cells in shifted], -1).reshape(-1, self.in_a_row)
            for shifted in self._shifts()
        ]
        return np.concatenate(lines)

    def _shifts(self) -> Iterator[list[tuple[slice, slice]]]:
        """For each direction, the cells that are first in a line, second, …: slices of a board."""
        reach = self.in_a_row - 1
        for down, right in _DIRECTIONS:
            rows, columns = self.height - reach * down, self.width - reach * abs(right)
            if rows < 1 or columns < 1:
                continue
            left = reach if right < 0 else 0
            corners = [(i * down, left + i * right) for i in range(self.in_a_row)]
            yield [(slice(r, r + rows), slice(c, c + columns)) for r, c in corners]
