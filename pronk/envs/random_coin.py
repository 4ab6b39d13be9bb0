"""RandomCoin: an empty room in which exploring on and on costs the only reward.

Badia et al. 2020, Agent57, section 3.1: https://arxiv.org/abs/2003.13350
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from pronk.envs.grid import AGENT, DOWN, FLOOR, LEFT, RIGHT, UP, at, enlarged, moved, planes
from pronk.envs.jax_env import JaxEnv
from pronk.errors import UserError
from pronk.types import Array, EnvSpec, Key


class State(NamedTuple):
    """Cells are int32 [2], row and column."""

    position: Array
    coin: Array
    t: Array  # int32 [], steps taken


def make(size: int = 15, max_steps: int = 200) -> JaxEnv:
    """An agent looks for a coin in an empty room of `size` × `size` cells.

    Agent and coin start in two different cells, drawn uniformly. Actions: 0 up, 1 right, 2 down, 3
    left; the agent stays in its cell if it moves against a wall. Entering the coin's cell has a
    reward of 1 and terminates the episode; all other rewards are 0. The episode is truncated after
    `max_steps`. Observation: uint8 `[size, size, 2]`, 255 at the agent and at the coin.

    The optimum is a return of 1, after 2/3 · `size` steps on average; `expert` takes the shortest
    way. Uniformly random actions find the coin in 0.295 of the episodes by default. The rules are
    the paper's.

    Raises UserError if `size` < 5, or if `max_steps` is less than the longest of all shortest ways,
    `2 (size - 1)`.
    """
    if size < 5 or max_steps < 2 * (size - 1):
        raise UserError(
            f"RandomCoin has size={size} and max_steps={max_steps}; expected a size of at least 5,"
            " and at least 2 (size - 1) steps, the longest way to a coin."
        )
    shape = (size, size)
    spec = EnvSpec(
        "pronk/RandomCoin-v0", spaces.Box(0, 255, (*shape, 2), np.uint8), spaces.Discrete(4)
    )

    def observe(state: State) -> Array:
        return planes(at(state.position, shape), at(state.coin, shape))

    def reset(key: Key) -> tuple[State, Array]:
        cells = size * size
        first, apart = jax.random.randint(key, (2,), jnp.array([0, 1]), cells, jnp.int32)
        agent, coin = (
            jnp.stack([cell // size, cell % size]) for cell in (first, (first + apart) % cells)
        )
        state = State(agent, coin, jnp.int32(0))
        return state, observe(state)

    def step(state: State, action: Array, key: Key) -> tuple[State, Array, Array, Array, Array]:
        del key
        position = jnp.clip(moved(state.position, action), 0, size - 1)
        state = State(position, state.coin, state.t + 1)
        ended = (position == state.coin).all()
        truncated = (state.t >= max_steps) & ~ended
        return state, observe(state), ended.astype(jnp.float32), ended, truncated

    def render(state: State) -> np.ndarray:
        picture = np.full((*shape, 3), FLOOR, np.uint8)
        picture[tuple(state.coin)] = (250, 210, 60)
        picture[tuple(state.position)] = AGENT
        return enlarged(picture)

    return JaxEnv(spec, reset, step, render=render)


def expert(state: State) -> Array:
    """The first action of a shortest way to the coin, int32 []."""
    down, right = state.coin - state.position
    return jnp.where(
        down != 0, jnp.where(down > 0, DOWN, UP), jnp.where(right > 0, RIGHT, LEFT)
    ).astype(jnp.int32)
