"""The values of all positions of a small board, by retrograde analysis: layers of positions with
the same number of stones are enumerated forwards and evaluated backwards."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from pronk.envs.board_rules import Board
from pronk.errors import UserError
from pronk.types import Array

_MAX_CELLS = 20  # with gravity; 3^20 is the last power of 3 whose keys fit into 32 bits
_MAX_CELLS_WITHOUT_GRAVITY = 9
_MAX_FILLINGS = 30_000_000  # of columns, where stones lie on each other; some 5 % are reachable


class Solution(NamedTuple):
    """Every reachable position of a board, as the side that moves sees it.

    A position's key is the number to the base 3 whose digit `i` is 1 if the cell `i` (`row * width
    + column`) holds a stone of the side that moves, 2 if it holds one of the other side.
    """

    keys: np.ndarray  # uint32 [N], sorted
    values: np.ndarray  # int8 [N], of best play for the side that moves: 1, 0 or -1
    # uint16 [N], bit a is set if action a is legal and leads to a worse result than the best one.
    mistakes: np.ndarray

    def look_up(self, own: Array, other: Array) -> tuple[np.ndarray, np.ndarray]:
        """The values and mistakes `[...]` of positions: stones are bool `[..., H, W]`. Raises
        ValueError for a position that cannot be reached."""
        digits = np.where(own, 1, np.where(other, 2, 0)).astype(np.uint32)
        digits = digits.reshape(*digits.shape[:-2], -1)
        keys = (digits * powers(digits.shape[-1])).sum(-1, dtype=np.uint32)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        if (self.keys[places] != keys).any():
            raise ValueError("a position cannot be reached")
        return self.values[places], self.mistakes[places]


def powers(cells: int) -> np.ndarray:
    """uint32 `[cells]`: the weights of a key's digits."""
    return 3 ** np.arange(cells, dtype=np.uint32)


def can_solve(board: Board) -> bool:
    """Whether `solve` takes the board."""
    if not board.gravity:
        return board.cells <= _MAX_CELLS_WITHOUT_GRAVITY
    fillings = (2 ** (board.height + 1) - 1) ** board.width
    return board.cells <= _MAX_CELLS and fillings <= _MAX_FILLINGS


@functools.lru_cache(8)
def solve(board: Board) -> Solution:
    """The solution of a board, computed once in a process.

    The 3.9 million positions of a board of width 5 and height 4 take 5 seconds and 300 MB.

    Raises UserError for a board with more than 20 cells or, without gravity, 9, and for one with
    too many columns.
    """
    if not can_solve(board):
        kind = "with" if board.gravity else "without"
        raise UserError(
            f"a board of width {board.width} and height {board.height} {kind} gravity has too many"
            f" positions to be solved; expected at most {_MAX_CELLS} cells and 8 columns with"
            f" gravity, such as width 5 and height 4, or {_MAX_CELLS_WITHOUT_GRAVITY} cells"
            " without."
        )
    layers, children = _enumerate(board)
    values, mistakes = _evaluate(board, layers, children)
    positions = np.concatenate(layers)
    digits = _ternary(board.cells)
    own, other = _unpack(board, positions)
    keys = digits[own] + 2 * digits[other]
    order = np.argsort(keys)
    return Solution(keys[order], values[order], mistakes[order])


# A position is an int64: a bit for each cell with a stone of the side that moves, above as many
# bits for the other side.


def _unpack(board: Board, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return positions >> board.cells, positions & ((1 << board.cells) - 1)


def _enumerate(board: Board) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The positions of each layer, sorted int64 `[n]`, and for each action the place of the
    following position in the next layer, int32 `[n, actions]`, -1 where there is none."""
    layers, children = [np.zeros(1, np.int64)], []
    for _ in range(board.cells + 1):
        own, other = _unpack(board, layers[-1])
        stones = _stones(board, own | other)
        stones[_has_line(board, other)] = 0
        following = (other[:, None] << board.cells) | own[:, None] | stones
        legal = stones > 0
        layer, places = np.unique(following[legal], return_inverse=True)
        child = np.full(stones.shape, -1, np.int32)
        child[legal] = places
        children.append(child)
        if not layer.size:
            break
        layers.append(layer)
    return layers, children


def _stones(board: Board, occupied: np.ndarray) -> np.ndarray:
    """int64 `[n, actions]`: the bit of the stone that each action adds, 0 if it is illegal."""
    if not board.gravity:
        bits = 1 << np.arange(board.cells)
        return np.where(occupied[:, None] & bits, 0, bits)
    stones = np.zeros((len(occupied), board.width), np.int64)
    for row in range(board.height):  # downwards: the lowest free cell counts
        bits = 1 << np.arange(row * board.width, (row + 1) * board.width)
        stones = np.where(occupied[:, None] & bits, stones, bits)
    return stones


def _has_line(board: Board, stones: np.ndarray) -> np.ndarray:
    made = np.zeros(stones.shape, bool)
    for mask in (1 << board.lines()).sum(-1):
        made |= stones & mask == mask
    return made


def _evaluate(
    board: Board, layers: list[np.ndarray], children: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Values and mistakes of all layers, one after the other."""
    values, mistakes = [], []
    below = np.zeros(1, np.int8)
    bits = 1 << np.arange(board.actions, dtype=np.uint16)
    for layer, child in zip(reversed(layers), reversed(children), strict=True):
        legal = child >= 0
        results = np.where(legal, -below[child], np.int8(-2))
        lost = _has_line(board, _unpack(board, layer)[1])
        value = np.where(legal.any(-1), results.max(-1), np.where(lost, -1, 0)).astype(np.int8)
        worse = legal & (results < value[:, None])
        mistakes.append((worse * bits).sum(-1, dtype=np.uint16))
        values.append(value)
        below = value
    return np.concatenate(values[::-1]), np.concatenate(mistakes[::-1])


def _ternary(cells: int) -> np.ndarray:
    """uint32 `[2^cells]`: binary digits read as digits to the base 3."""
    digits = np.zeros(1, np.uint32)
    for weight in powers(cells):
        digits = np.concatenate([digits, digits + weight])
    return digits
