"""Catch: the smallest task with pixels and a delayed reward (Mnih et al. 2014; bsuite's rules)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from pronk.envs.jax_env import JaxEnv
from pronk.errors import UserError
from pronk.types import Array, EnvSpec, Key, PyTree


class State(NamedTuple):
    """Positions of ball and paddle, int32 []; the paddle is always in the bottom row."""

    ball_row: Array  # keeps counting below the screen once the ball has landed
    ball_column: Array
    paddle: Array
    caught: PyTree = ()  # bool, with a delay only: whether the landed ball was caught


def make(rows: int = 10, columns: int = 5, delay: int = 0) -> JaxEnv:
    """A ball falls one row per step from a random column of the top row; catch it at the bottom.

    Actions: 0 left, 1 stay, 2 right; the paddle starts in the middle of the bottom row. Reward +1
    (caught) or -1 at the last of the `rows - 1` steps, 0 before. Observation: float32
    `[rows, columns]`, 1 at ball and paddle.

    With a `delay` the reward and the end come that many steps after the ball has landed. The ball
    is invisible from the observation in which it lands, and later actions do not affect the reward:
    the environment is partially observed, because nothing shows whether the ball was caught.

    Raises UserError if `rows` < 2, `columns` < 1 or `delay` < 0. Source: `Catch` in
    deepmind/bsuite; the delay is ours.
    """
    if rows < 2 or columns < 1 or delay < 0:
        raise UserError(
            f"Catch has rows={rows}, columns={columns} and delay={delay}; expected at least 2 rows,"
            " 1 column and a delay of 0."
        )
    spec = EnvSpec(
        "pronk/Catch-v0", spaces.Box(0, 1, (rows, columns), np.float32), spaces.Discrete(3)
    )

    def observe(state: State) -> Array:
        # Comparisons rather than indexed writes: a vmapped scatter is slow on the CPU.
        row, column = jnp.arange(rows)[:, None], jnp.arange(columns)
        ball = (row == state.ball_row) & (column == state.ball_column)
        if delay:
            ball &= row < rows - 1
        paddle = (row == rows - 1) & (column == state.paddle)
        return (ball | paddle).astype(jnp.float32)

    def reset(key: Key) -> tuple[State, Array]:
        ball = jax.random.randint(key, (), 0, columns, jnp.int32)
        caught = jnp.bool_(False) if delay else ()
        state = State(jnp.int32(0), ball, jnp.int32(columns // 2), caught)
        return state, observe(state)

    def step(state: State, action: Array, key: Key) -> tuple[State, Array, Array, Array, Array]:
        del key
        paddle = jnp.clip(state.paddle + action.astype(jnp.int32) - 1, 0, columns - 1)
        row = state.ball_row + 1
        caught = paddle == state.ball_column
        if delay:
            caught = jnp.where(row == rows - 1, caught, state.caught)
        state = State(row, state.ball_column, paddle, caught if delay else ())
        ended = row == rows - 1 + delay
        reward = jnp.where(ended, jnp.where(caught, 1.0, -1.0), 0.0)
        return state, observe(state), reward, ended, jnp.zeros_like(ended)

    def render(state: State) -> np.ndarray:
        picture = np.full((rows, columns, 3), 30, np.uint8)
        if state.ball_row < rows - (delay > 0):
            picture[state.ball_row, state.ball_column] = (240, 240, 240)
        picture[rows - 1, state.paddle] = (240, 140, 40)
        return picture.repeat(24, axis=0).repeat(24, axis=1)

    return JaxEnv(spec, reset, step, render=render)
