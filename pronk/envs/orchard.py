"""Orchard: a small task for R2D2's ablations: unequal rewards, lives, and a need for memory."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from pronk.envs.jax_env import JaxEnv
from pronk.errors import UserError
from pronk.types import Array, EnvSpec, Key

REWARDS = (1.0, 10.0)  # of the common and of the precious fruit


class State(NamedTuple):
    """int32 []; the picker is always in the bottom row."""

    t: Array  # steps taken; a fall has `rows - 1`
    fruits: Array  # [2], the columns of the common and of the precious fruit
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

    Actions: 0 left, 1 stay, 2 right; the picker starts in the middle of the bottom row and keeps
    its position between falls. Reward at the last of a fall's `rows - 1` steps: 10 for the precious
    fruit, 1 for the common one; catching neither costs one of `lives`. The episode is terminated
    with the last life and truncated after `falls` falls, so the return is at most 10 · `falls`.
    Observation: float32 `[rows, columns]`, 1 at the precious fruit and the picker, 0.5 at the
    common fruit; the fruits are visible in the first `seen` rows only. `life_loss` is that of
    `AtariEnvs`.

    Raises UserError if `rows` < 2, `columns` < 2, `seen` is not within 1 and `rows`, `lives` or
    `falls` < 1, or for another `life_loss`.
    """
    if rows < 2 or columns < 2 or not 1 <= seen <= rows or lives < 1 or falls < 1:
        raise UserError(
            f"Orchard has rows={rows}, columns={columns}, seen={seen}, lives={lives} and"
            f" falls={falls}; expected at least 2 rows and columns, fruits seen in 1 to {rows}"
            " rows, a life and a fall."
        )
    if not isinstance(life_loss, bool) and life_loss != "roll":
        raise UserError(f"Orchard has life_loss={life_loss!r}; expected true, false or roll.")
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
        reward = jnp.dot(caught.astype(jnp.float32), jnp.array(REWARDS))
        lost = landed & ~caught.any()
        left = state.lives - lost
        fruits = jnp.where(landed, place(key), state.fruits)
        state = State(t, fruits, picker, left, lost)
        return state, observe(state), reward, left == 0, (left > 0) & (t == falls * steps)

    return JaxEnv(
        spec,
        reset,
        step,
        stochastic=True,
        render=lambda state: _render(state, rows, columns, seen),
        life_lost=lambda state: state.lost,
        life_loss=life_loss,
    )


def _render(state: State, rows: int, columns: int, seen: int) -> np.ndarray:
    picture = np.full((rows, columns, 3), 30, np.uint8)
    fallen = int(state.t) % (rows - 1)
    if fallen < seen:
        for column, colour in zip(state.fruits, ((90, 200, 90), (250, 210, 60)), strict=True):
            picture[fallen, column] = colour
    picture[rows - 1, state.picker] = (240, 140, 40)
    return picture.repeat(24, axis=0).repeat(24, axis=1)
