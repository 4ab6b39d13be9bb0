"""Breakout on a 10 × 10 screen (Young & Tian 2019, MinAtar: https://arxiv.org/abs/1903.03176)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from pronk.envs.jax_env import JaxEnv
from pronk.envs.minatar import ROW_BITS, SIZE, cell, check, picture, screen, sticky_action
from pronk.types import Array, EnvSpec, Key

WALL = np.full(SIZE, ROW_BITS[1:4].sum(), np.int32)
COLOURS = ((240, 140, 40), (240, 240, 240), (110, 110, 110), (200, 80, 80))


class State(NamedTuple):
    """int32 [] unless noted; the paddle is always in the bottom row."""

    paddle: Array
    row: Array  # of the ball
    column: Array
    down: Array  # the ball's direction, 1 or -1
    right: Array
    trail_row: Array  # where the ball was before
    trail_column: Array
    bricks: Array  # a set of cells, [10]
    struck: Array  # bool: the last step led the ball to a brick
    action: Array  # the last executed action
    t: Array  # steps taken


def make(sticky: float = 0.1, max_steps: int = 1000) -> JaxEnv:
    """A paddle returns a ball that moves along diagonals and breaks bricks.

    Actions: 0 no-op, 1 left, 2 right; with probability `sticky` the environment repeats the last
    executed action (a no-op at the start of an episode) instead. The ball starts in row 3 at the
    left or the right wall, moving down and inward. Walls and ceiling reflect it. A brick in the
    ball's way breaks for a reward of 1 and turns the ball back, unless the previous step also hit a
    brick: then the ball passes. At the bottom row the paddle turns the ball upward if it is in the
    column that the ball comes from, and back the way it came if it is only in the column that the
    ball moves to; otherwise the episode is terminated. Once all bricks are broken, three new rows
    appear when the ball reaches the bottom. The episode is truncated after `max_steps`, a limit
    that MinAtar does not have, so that evaluations end.

    Observation: uint8 `[10, 10, 4]`, 255 at paddle, ball, trail (the ball's last cell) and bricks.
    Raises UserError if `sticky` is not within 0 and 1 or `max_steps` < 1. Source: `breakout` in
    kenjyoung/MinAtar with its minimal action set.
    """
    check("Breakout", sticky, max_steps)
    spec = EnvSpec(
        "pronk/Breakout-v0", spaces.Box(0, 255, (SIZE, SIZE, 4), np.uint8), spaces.Discrete(3)
    )

    def reset(key: Key) -> tuple[State, Array]:
        right = jnp.where(jax.random.bernoulli(key), 1, -1)
        row, column = jnp.int32(3), jnp.where(right == 1, 0, SIZE - 1)
        state = State(
            paddle=jnp.int32(4),
            row=row,
            column=column,
            down=jnp.int32(1),
            right=right,
            trail_row=row,
            trail_column=column,
            bricks=jnp.asarray(WALL),
            struck=jnp.bool_(False),
            action=jnp.int32(0),
            t=jnp.int32(0),
        )
        return state, _observe(state)

    def step(state: State, action: Array, key: Key) -> tuple[State, Array, Array, Array, Array]:
        action = sticky_action(action, state.action, sticky, key)
        state, broken, terminated = _move(state, action)
        truncated = (state.t >= max_steps) & ~terminated
        return state, _observe(state), broken.astype(jnp.float32), terminated, truncated

    return JaxEnv(
        spec,
        reset,
        step,
        stochastic=sticky > 0,
        render=lambda state: picture(_observe(state), COLOURS),
    )


def _move(state: State, action: Array) -> tuple[State, Array, Array]:
    """One step: the next state, whether a brick broke, and whether the paddle missed the ball."""
    paddle = jnp.clip(state.paddle + (action == 2) - (action == 1), 0, SIZE - 1)
    row, column = state.row + state.down, state.column + state.right
    right = jnp.where((column < 0) | (column >= SIZE), -state.right, state.right)
    column = jnp.clip(column, 0, SIZE - 1)
    ceiling = row < 0
    row = jnp.maximum(row, 0)

    ball = cell(row, column)
    struck = ((state.bricks & ball) != 0).any()
    broken = struck & ~state.struck
    bricks = jnp.where(broken, state.bricks & ~ball, state.bricks)

    bottom = row == SIZE - 1
    bricks = jnp.where(bottom & (bricks == 0).all(), WALL, bricks)
    under, beside = state.column == paddle, column == paddle
    saved = bottom & (under | beside)
    terminated = bottom & ~saved
    right = jnp.where(saved & ~under, -right, right)
    down = jnp.where(ceiling | broken | saved, -state.down, state.down)
    row = jnp.where(broken | saved, state.row, row)

    t = state.t + 1
    state = State(
        paddle, row, column, down, right, state.row, state.column, bricks, struck, action, t
    )
    return state, broken, terminated


def _observe(state: State) -> Array:
    return screen(
        cell(SIZE - 1, state.paddle),
        cell(state.row, state.column),
        cell(state.trail_row, state.trail_column),
        state.bricks,
    )
