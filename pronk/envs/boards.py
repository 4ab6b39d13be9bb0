"""Board games for two players: tic-tac-toe and Connect Four."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from pronk.envs.board_rules import Board
from pronk.envs.grid import planes
from pronk.envs.jax_env import JaxEnv
from pronk.types import Array, EnvSpec, Key

_FIRST, _SECOND, _FREE, _BOARD = (250, 210, 60), (210, 60, 60), (20, 20, 30), (50, 80, 160)


class State(NamedTuple):
    """Stones are bool [H, W]; the others are scalars."""

    own: Array  # of the side that moves
    other: Array
    first: Array  # bool, `own` are the stones of the side that began
    over: Array  # bool, the episode has ended
    outcome: Array  # float32, of the episode: 1 if the side that began has won, -1 if it has lost


def make_tic_tac_toe() -> JaxEnv:
    """Two sides put their stones on a board of 3 × 3 cells in turn; three in a row win.

    Actions: the cells from left to right and from top to bottom. For all else, see `make`. With
    best play on both sides the outcome is a draw. Of uniformly random games the side that begins
    wins 58.5 % and loses 28.8 %.
    """
    return make("pronk/TicTacToe-v0", Board(3, 3, 3, gravity=False))


def make_connect_four(width: int = 7, height: int = 6, in_a_row: int = 4) -> JaxEnv:
    """Two sides drop stones into the columns of a board in turn; `in_a_row` of them in a line win.

    Actions: the columns from left to right; a stone falls to the lowest free cell. For all else,
    see `make`. On the default board, with best play on both sides, the side that begins wins (Allis
    1988); of uniformly random games it wins 55 % and loses 44 %. On a board of width 5 and height 4
    best play is a draw.

    Raises UserError unless the sizes are whole numbers of at least 1, and `in_a_row` is at most the
    larger of `width` and `height`.
    """
    return make("pronk/ConnectFour-v0", Board(height, width, in_a_row, gravity=True))


def make(name: str, board: Board) -> JaxEnv:
    """An environment in which an agent plays both sides of `board` in turn.

    Lines are rows, columns and diagonals. The side that makes a line wins, which terminates the
    episode; so does a full board, a draw. The reward of a transition is that of the side that has
    just moved: 1 if it has won, else 0. The episode's return is reported as the outcome for the
    side that began: 1, 0 or -1.

    Observation: uint8 `[height, width, 2]`, 255 at the stones of the side that moves next, then at
    the other side's; also the terminal one, in which the loser would move next. The action mask
    allows free cells, or columns that are not full, and everything once the episode has ended. A
    side that takes an illegal action loses: a reward of -1 and the end, without a stone.
    """
    board.check(name)
    spec = EnvSpec(
        name,
        spaces.Box(0, 255, (*board.shape, 2), np.uint8),
        spaces.Discrete(board.actions),
        has_action_mask=True,
        players=2,
    )

    def reset(key: Key) -> tuple[State, Array]:
        del key
        empty = jnp.zeros(board.shape, bool)
        state = State(empty, empty, jnp.bool_(True), jnp.bool_(False), jnp.float32(0))
        return state, _observe(state)

    def step(state: State, action: Array, key: Key) -> tuple[State, Array, Array, Array, Array]:
        del key
        state, reward = _move(board, state, action)
        return state, _observe(state), reward, state.over, jnp.zeros_like(state.over)

    return JaxEnv(
        spec,
        reset,
        step,
        action_mask=lambda state: board.legal(state.own | state.other) | state.over,
        render=lambda state: _picture(np.asarray(state.own), np.asarray(state.other), state.first),
        frames_per_second=1,
        score=lambda state: state.outcome,
    )


def _observe(state: State) -> Array:
    return planes(state.own, state.other)


def _move(board: Board, state: State, action: Array) -> tuple[State, Array]:
    """The state before the other side moves, and the reward of the side that has moved."""
    occupied = state.own | state.other
    stone = board.stone(occupied, action)
    own = state.own | stone
    legal, won = stone.any(), board.has_line(own)
    reward = jnp.where(legal, won.astype(jnp.float32), -1.0)
    over = ~legal | won | jnp.all(occupied | stone)
    outcome = jnp.where(state.first, reward, -reward)
    return State(state.other, own, ~state.first, over, outcome), reward


def _picture(own: np.ndarray, other: np.ndarray, first: bool) -> np.ndarray:
    """Discs of 32 pixels; those of the side that began are yellow."""
    colours = np.full((*own.shape, 3), _FREE, np.uint8)
    colours[own] = _FIRST if first else _SECOND
    colours[other] = _SECOND if first else _FIRST
    picture = colours.repeat(32, axis=0).repeat(32, axis=1)
    y, x = np.ogrid[-15.5:16, -15.5:16]
    disc = np.tile(x**2 + y**2 < 13**2, own.shape)
    return np.where(disc[..., None], picture, np.array(_BOARD, np.uint8))
