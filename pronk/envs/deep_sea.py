"""DeepSea: the smallest task that needs deep exploration (Osband et al. 2019; bsuite's rules)."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from pronk.envs.jax_env import JaxEnv
from pronk.errors import UserError
from pronk.types import Array, EnvSpec, Key


class State(NamedTuple):
    """The position of the diver, int32 []; the row is also the number of steps taken."""

    row: Array
    column: Array


def make(
    size: int = 8,
    unscaled_move_cost: float = 0.01,
    randomize_actions: bool = True,
    mapping_seed: int = 42,
) -> JaxEnv:
    """A diver sinks one row per step from the top left; the treasure is at the bottom right.

    Actions: 0 and 1, one of which moves a column to the left and the other to the right, never
    beyond the walls; which one moves right is drawn for each cell from `mapping_seed`, once for all
    episodes (always 1 without `randomize_actions`). Each move to the right costs
    `unscaled_move_cost / size`, and the one from the bottom right cell also has a reward of 1: it
    takes `size` moves to the right, the only way to a return above 0, by default 0.99. The episode
    ends after `size` steps; nothing is random. Observation: float32 `[size, size]`, 1 at the diver;
    the terminal one, below the last row, is all zeros.

    Raises UserError if `size` < 1, `unscaled_move_cost` is negative or not finite, or
    `mapping_seed` is not within 0 and 2³² − 1. Source: `DeepSea` in deepmind/bsuite, deterministic,
    with the same mapping for the same seed.
    """
    if size < 1 or not 0 <= unscaled_move_cost < math.inf or not 0 <= mapping_seed < 2**32:
        raise UserError(
            f"DeepSea has size={size}, unscaled_move_cost={unscaled_move_cost} and"
            f" mapping_seed={mapping_seed}; expected a size of at least 1, a finite cost of at"
            " least 0 and a seed within 0 and 2³² − 1."
        )
    spec = EnvSpec(
        "pronk/DeepSea-v0", spaces.Box(0, 1, (size, size), np.float32), spaces.Discrete(2)
    )
    rightward = np.ones((size, size), np.int64)
    if randomize_actions:
        # NumPy's old generator, because it is bsuite's.
        rightward = np.random.RandomState(mapping_seed).binomial(1, 0.5, (size, size))

    def at(state: State) -> Array:
        return (jnp.arange(size)[:, None] == state.row) & (jnp.arange(size) == state.column)

    def observe(state: State) -> Array:
        return at(state).astype(jnp.float32)

    def reset(key: Key) -> tuple[State, Array]:
        del key
        state = State(jnp.int32(0), jnp.int32(0))
        return state, observe(state)

    def step(state: State, action: Array, key: Key) -> tuple[State, Array, Array, Array, Array]:
        del key
        # Comparisons rather than an indexed read: a vmapped gather is slow on the CPU.
        right = (at(state) & (rightward == action)).any()
        cost = unscaled_move_cost / size
        treasure = state.column == size - 1
        reward = jnp.where(right, jnp.where(treasure, 1 - cost, -cost), 0.0)
        column = jnp.clip(state.column + jnp.where(right, 1, -1), 0, size - 1)
        state = State(state.row + 1, column)
        ended = state.row == size
        return state, observe(state), reward, ended, jnp.zeros_like(ended)

    def render(state: State) -> np.ndarray:
        picture = np.full((size, size, 3), 30, np.uint8)
        picture[-1, -1] = (250, 210, 60)
        if state.row < size:
            picture[state.row, state.column] = (240, 140, 40)
        return picture.repeat(24, axis=0).repeat(24, axis=1)

    return JaxEnv(spec, reset, step, render=render)
