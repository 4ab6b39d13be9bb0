"""Opponents in board games: random play, perfect play, and any function that chooses an action."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pronk.envs.board_rules import Board
from pronk.envs.board_solver import can_solve, powers, solve
from pronk.errors import UserError
from pronk.types import Array, Key, PyTree

SIDES = ("random", "first", "second")

# (observation, action mask [A], key) -> action []: pure, as the side that moves sees the board.
Choice = Callable[[Array, Array, Key], Array]


class Opponent(NamedTuple):
    """A pure function that chooses actions, with a memory that lasts for an episode."""

    start: Callable[[Key], PyTree]  # (key) -> memory
    # (memory, observation [H, W, 2], action mask [A], key) -> action [], memory
    act: Callable[[PyTree, Array, Array, Key], tuple[Array, PyTree]]


def opponent(name: str, board: Board, choice: Any) -> Opponent | None:
    """The opponent that the argument `opponent` of an environment names; None for "none".

    choice: "none", "random", "perfect", a `Choice` or an `Opponent`. Raises UserError for anything
    else, and for "perfect" where the solver does not take the board.
    """
    if isinstance(choice, Opponent):
        return choice
    if callable(choice):
        return _forgetful(choice)
    if choice == "none":
        return None
    if choice == "random":
        return _forgetful(lambda observation, mask, key: choose(mask, key))
    if choice != "perfect":
        raise UserError(f"{name} has opponent={choice!r}; expected none, random or perfect.")
    if not can_solve(board):
        raise UserError(
            f"{name} has opponent='perfect' and a board of width {board.width} and height"
            f" {board.height}, which has too many positions to be solved; use a smaller board, such"
            " as width=5 and height=4, or opponent=random."
        )
    return _forgetful(perfect(board))


def choose(mask: Array, key: Key) -> Array:
    """One of the actions that `mask`, bool [A], allows, all with the same probability; int32 []."""
    count = jnp.maximum(mask.sum(dtype=jnp.uint32), 1)
    rank = jax.random.bits(key, (), jnp.uint32) % count
    return (jnp.cumsum(mask, dtype=jnp.uint32) <= rank).sum(dtype=jnp.int32)


def perfect(board: Board) -> Choice:
    """One of the actions that lead to the best result, all with the same probability.

    The board is solved when the function is traced; then a position is looked up by bisection.
    """
    weights = powers(board.cells)
    bits = 1 << np.arange(board.actions, dtype=np.uint16)

    def choice(observation: Array, mask: Array, key: Key) -> Array:
        solution = solve(board)
        # In most positions no action is a mistake.
        decisive = solution.mistakes > 0
        keys, mistakes = solution.keys[decisive], solution.mistakes[decisive]
        if keys.size:
            stones = (observation > 0).reshape(-1, 2).astype(jnp.uint32)
            position = ((stones[:, 0] + 2 * stones[:, 1]) * weights).sum(dtype=jnp.uint32)
            place = jnp.minimum(jnp.searchsorted(keys, position), keys.size - 1)
            wrong = jnp.where(jnp.asarray(keys)[place] == position, jnp.asarray(mistakes)[place], 0)
            mask &= wrong & bits == 0
        return choose(mask, key)

    return choice


def _forgetful(choice: Choice) -> Opponent:
    """An opponent without a memory."""
    return Opponent(lambda key: (), lambda memory, *seen: (choice(*seen), memory))
