"""Orchard: what R2D2's ablations are about, small: rewards of unlike size, lives, and a memory."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from pronk.envs.jax_env import JaxEnv
from pronk.errors import UserError
from pronk.types import Array, EnvSpec, Key

WORTH = (1.0, 10.0)  # of the common and of the precious fruit


class State(NamedTuple):
    """int32 []; the picker is always in the bottom row."""

    t: Array  # steps taken, `rows - 1` to a fall
    fruits: Array  # [2], the columns of the common and of the precious one
    picker: Array
    lives: Array
    lost: Array  # bool: the last step cost a life


def make(
    rows: int = 8,
    columns: int = 7,
    seen: int = 2,
    lives: int = 3,
    falls: int = 50,
    life_loss: bool | Literal["roll"] = False,
) -> JaxEnv:
    """Two fruits fall side by side, one row per step; the picker can catch one of them.

    Actions: 0 left, 1 stay, 2 right; the picker starts in the middle of the bottom row and stays
    where it is between falls. Reward at the last of a fall's `rows - 1` steps: 10 for the precious
    fruit, 1 for the common one; catching neither costs one of `lives`, and the last ends the game,
    as `falls` falls do (which is a truncation). So at most 10 · `falls`. Observation: float32
    `[rows, columns]`, 1 at the precious fruit and the picker, 0.5 at the common fruit; the fruits
    are seen in the first `seen` rows only. What a lost life ends, `life_loss`, is told there:
    `AtariEnvs`.

    Raises UserError if `rows` < 2, `columns` < 2, `seen` is not within 1 and `rows`, `lives` or
    `falls` < 1, or `life_loss` is none of its values.
    """
    if rows < 2 or columns < 2 or not 1 <= seen <= rows or lives < 1 or falls < 1:
        raise UserError(
            f"Orchard was given rows={rows}, columns={columns}, seen={seen}, lives={lives} and"
            f" falls={falls}; it needs at least 2 rows and columns, fruits seen in 1 to {rows}"
            " rows, a life and a fall."
        )
    if not isinstance(life_loss, bool) and life_loss != "roll":
        raise UserError(f"Orchard was given life_loss={life_loss!r}; expected true, false or roll.")
    spec = EnvSpec(
        "pronk/Orchard-v0", spaces.Box(0, 1, (rows, columns), np.float32), spaces.Discrete(3)
    )
    steps = rows - 1

    def place(key: Key) -> Array:
        first, apart = jax.random.randint(key, (2,), jnp.array([0, 1]), columns, jnp.int32)
        return jnp.stack([first, (first + apart) % columns])

    def observe(state: State) -> Array:
        row, column = jnp.arange(rows)[:, None], jnp.arange(columns)
        fallen = state.t % steps
        common, precious = (
            (row == fallen) & (column == state.fruits[i]) & (fallen < seen) for i in range(2)
        )
        picker = (row == rows - 1) & (column == state.picker)
        return jnp.maximum(precious | picker, 0.5 * common).astype(jnp.float32)

    def reset(key: Key) -> tuple[State, Array]:
        zero = jnp.int32(0)
        picker = jnp.int32(columns // 2)
        state = State(zero, place(key), picker, jnp.int32(lives), jnp.bool_(False))
        return state, observe(state)

    def step(state: State, action: Array, key: Key) -> tuple[State, Array, Array, Array, Array]:
        picker = jnp.clip(state.picker + action.astype(jnp.int32) - 1, 0, columns - 1)
        t = state.t + 1
        landed = t % steps == 0
        caught = (state.fruits == picker) & landed
        reward = jnp.dot(caught.astype(jnp.float32), jnp.array(WORTH))
        lost = landed & ~caught.any()
        left = state.lives - lost
        fruits = jnp.where(landed, place(key), state.fruits)
        state = State(t, fruits, picker, left, lost)
        return state, observe(state), reward, left == 0, (left > 0) & (t == falls * steps)

    def render(state: State) -> np.ndarray:
        picture = np.full((rows, columns, 3), 30, np.uint8)
        fallen = int(state.t) % steps
        if fallen < seen:
            for column, colour in zip(state.fruits, ((90, 200, 90), (250, 210, 60)), strict=True):
                picture[fallen, column] = colour
        picture[rows - 1, state.picker] = (240, 140, 40)
        return picture.repeat(24, axis=0).repeat(24, axis=1)

    return JaxEnv(
        spec,
        reset,
        step,
        stochastic=True,
        render=render,
        life_lost=lambda state: state.lost,
        life_loss=life_loss,
    )
