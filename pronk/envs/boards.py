"""Board games for two players: tic-tac-toe and Connect Four."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from pronk.envs import board_opponents
from pronk.envs.board_opponents import SIDES, Opponent
from pronk.envs.board_rules import Board
from pronk.envs.grid import planes
from pronk.envs.jax_env import JaxEnv
from pronk.errors import UserError
from pronk.types import Array, EnvSpec, Key, PyTree

TIC_TAC_TOE, CONNECT_FOUR = NAMES = ("pronk/TicTacToe-v0", "pronk/ConnectFour-v0")

_FIRST, _SECOND, _FREE, _BOARD = (250, 210, 60), (210, 60, 60), (20, 20, 30), (50, 80, 160)


class State(NamedTuple):
    """Stones are bool [H, W]; the other arrays are scalars."""

    own: Array  # of the side that moves
    other: Array
    first: Array  # bool, `own` are the stones of the side that began
    over: Array  # bool, the episode has ended
    outcome: Array  # float32, of the episode: 1 if the side that began has won, -1 if it has lost
    memory: PyTree = ()  # the opponent's


def make_tic_tac_toe(opponent: Any = "none", side: str = "random") -> JaxEnv:
    """Two sides put their stones on a board of 3 × 3 cells in turn; three in a row win.

    Actions: the cells from left to right and from top to bottom. For all else, see `make`. With
    best play on both sides the outcome is a draw. Of uniformly random games the side that begins
    wins 58.5 % and loses 28.8 %.
    """
    return make(TIC_TAC_TOE, board_of(TIC_TAC_TOE), opponent, side)


def make_connect_four(
    width: int = 7,
    height: int = 6,
    in_a_row: int = 4,
    opponent: Any = "none",
    side: str = "random",
) -> JaxEnv:
    """Two sides drop stones into the columns of a board in turn; `in_a_row` of them in a line win.

    Actions: the columns from left to right; a stone falls to the lowest free cell. For all else,
    see `make`. On the default board, with best play on both sides, the side that begins wins (Allis
    1988); of uniformly random games it wins 55 % and loses 44 %. On a board of width 5 and height 4
    best play is a draw.

    Raises UserError unless the sizes are whole numbers from 1 to 100, and `in_a_row` is at most the
    larger of `width` and `height`.
    """
    sizes = {"width": width, "height": height, "in_a_row": in_a_row}
    return make(CONNECT_FOUR, board_of(CONNECT_FOUR, sizes), opponent, side)


def board_of(name: str, env_args: Mapping[str, Any] | None = None) -> Board:
    """The board of an environment with these arguments; raises UserError for wrong sizes."""
    if name == TIC_TAC_TOE:
        return Board(3, 3, 3, gravity=False)
    sizes = {"width": 7, "height": 6, "in_a_row": 4}
    sizes |= {k: v for k, v in (env_args or {}).items() if k in sizes}
    board = Board(**sizes, gravity=True)
    board.check(name)
    return board


def make(name: str, board: Board, opponent: Any = "none", side: str = "random") -> JaxEnv:
    """An environment in which an agent plays on `board`, against itself or against an opponent.

    Lines are rows, columns and diagonals. The side that makes a line wins, which terminates the
    episode; so does a full board, a draw. A side that takes an illegal action loses, without a
    stone. The action mask allows free cells, or columns that are not full, and everything once the
    episode has ended.

    Without an opponent, the agent plays both sides in turn (`EnvSpec.players` is 2). Observation:
    uint8 `[height, width, 2]`, 255 at the stones of the side that moves next, then at the other
    side's; also the terminal one, in which the loser would move next. The reward of a transition is
    that of the side that has just moved: 1 if it has won, -1 if its action was illegal, else 0. The
    episode's return is reported as the outcome for the side that began: 1, 0 or -1.

    With an opponent, the agent is one side, which `side` names: "first" begins, "random" draws one
    in each episode. A step is the agent's move and the opponent's reply, and the observation shows
    the agent's stones first. The reward is 1 if the agent has won, -1 if it has lost, else 0.
    opponent: "random" chooses uniformly among the legal actions, "perfect" among those that lead to
    the best result, which needs a board that `board_solver` takes; from Python also a function or
    an `Opponent` (`board_opponents`).

    Raises UserError for an unknown opponent or side, for a side without an opponent, and for
    "perfect" on a larger board.
    """
    player = board_opponents.opponent(name, board, opponent)
    _check_side(name, side, alone=player is None)
    spec = EnvSpec(
        name,
        spaces.Box(0, 255, (*board.shape, 2), np.uint8),
        spaces.Discrete(board.actions),
        has_action_mask=True,
        players=2 if player is None else 1,
    )
    reset, step = _self_play(board) if player is None else _against(board, player, side)
    return JaxEnv(
        spec,
        reset,
        step,
        action_mask=lambda state: board.legal(_occupied(state)) | state.over,
        stochastic=player is not None,
        render=lambda state: _picture(np.asarray(state.own), np.asarray(state.other), state.first),
        frames_per_second=1,
        score=(lambda state: state.outcome) if player is None else None,
    )


def _check_side(name: str, side: Any, *, alone: bool) -> None:
    if side not in SIDES:
        raise UserError(f"{name} has side={side!r}; expected {', '.join(SIDES[:-1])} or second.")
    if alone and side != "random":
        raise UserError(
            f"{name} has side={side!r} without an opponent, so that the agent plays both sides;"
            " leave it out, or give an opponent, random or perfect."
        )


def _self_play(board: Board) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`reset` and `step` of an agent that plays both sides."""

    def reset(key: Key) -> tuple[State, Array]:
        del key
        state = _start(board)
        return state, _observe(state)

    def step(state: State, action: Array, key: Key) -> tuple[State, Array, Array, Array, Array]:
        del key
        state, reward = _move(board, state, action)
        return state, _observe(state), reward, state.over, jnp.zeros_like(state.over)

    return reset, step


def _against(
    board: Board, opponent: Opponent, side: str
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`reset` and `step` of an agent that plays one side."""

    def reply(state: State, key: Key) -> tuple[State, Array]:
        action, memory = opponent.act(
            state.memory, _observe(state), board.legal(_occupied(state)), key
        )
        return _move(board, state._replace(memory=memory), action)

    def reset(key: Key) -> tuple[State, Array]:
        side_key, memory_key, key = jax.random.split(key, 3)
        state = _start(board, opponent.start(memory_key))
        if side != "first":
            second, _ = reply(state, key)
            is_second = side == "second" or jax.random.bernoulli(side_key)
            state = _select(is_second, second, state)
        return state, _observe(state)

    def step(state: State, action: Array, key: Key) -> tuple[State, Array, Array, Array, Array]:
        moved, reward = _move(board, state, action)
        replied, lost = reply(moved, key)
        reward = jnp.where(moved.over, reward, -lost)
        ended = moved._replace(own=moved.other, other=moved.own, first=~moved.first)
        state = _select(moved.over, ended, replied)
        return state, _observe(state), reward, state.over, jnp.zeros_like(state.over)

    return reset, step


def _start(board: Board, memory: PyTree = ()) -> State:
    empty = jnp.zeros(board.shape, bool)
    return State(empty, empty, jnp.bool_(True), jnp.bool_(False), jnp.float32(0), memory)


def _select(condition: Array | bool, yes: State, no: State) -> State:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _occupied(state: State) -> Array:
    return jnp.logical_or(state.own, state.other)


def _observe(state: State) -> Array:
    return planes(state.own, state.other)


def _move(board: Board, state: State, action: Array) -> tuple[State, Array]:
    """The state before the other side moves, and the reward of the side that has moved."""
    occupied = _occupied(state)
    stone = board.stone(occupied, action)
    own = state.own | stone
    legal, won = stone.any(), board.has_line(own)
    reward = jnp.where(legal, won.astype(jnp.float32), -1.0)
    over = ~legal | won | jnp.logical_or(occupied, stone).all()
    outcome = jnp.where(state.first, reward, -reward)
    return State(state.other, own, ~state.first, over, outcome, state.memory), reward


def _picture(own: np.ndarray, other: np.ndarray, first: bool) -> np.ndarray:
    """Discs of 32 pixels; those of the side that began are yellow."""
    colours = np.full((*own.shape, 3), _FREE, np.uint8)
    colours[own] = _FIRST if first else _SECOND
    colours[other] = _SECOND if first else _FIRST
    picture = colours.repeat(32, axis=0).repeat(32, axis=1)
    y, x = np.ogrid[-15.5:16, -15.5:16]
    disc = np.tile(x**2 + y**2 < 13**2, own.shape)
    return np.where(disc[..., None], picture, np.array(_BOARD, np.uint8))
