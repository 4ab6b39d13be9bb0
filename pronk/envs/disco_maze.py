"""Random Disco Maze: exploration without rewards among walls that change their colours at random.

Badia et al. 2020, Never Give Up, section 4.1: https://arxiv.org/abs/2002.06038
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from pronk.envs import maze
from pronk.envs.grid import MOVES, at, enlarged, moved
from pronk.envs.jax_env import JaxEnv
from pronk.errors import UserError
from pronk.types import Array, EnvSpec, Key

# Sums of the primary colours: bit k says whether wall colour k has that one. The colours are red,
# blue, yellow, magenta and white; the agent is green, and free cells are black.
COLOURS = 5
_RED, _GREEN, _BLUE = 0b11101, 0b10100, 0b11010


class State(NamedTuple):
    """The maze and what the agent has seen of it."""

    free: Array  # bool [size, size]
    colours: Array  # int32 [size, size], 0 to 4, used of the walls
    position: Array  # int32 [2], row and column; a wall's at the end of an episode
    visited: Array  # bool [size, size], free cells that the agent was in
    t: Array  # int32 [], steps taken


def make(size: int = 21, max_steps: int = 500) -> JaxEnv:
    """An agent walks through a maze that is new in every episode; all rewards are 0.

    Actions: 0 up, 1 right, 2 down, 3 left. The agent starts in the top left corner. Walking into a
    wall terminates the episode, and it is truncated after `max_steps`, a limit that the paper does
    not give. Every wall cell has one of five colours, drawn anew at every step. The maze has one
    way between any two free cells (`maze.generate`). Observation: uint8 `[size, size, 3]`, one
    pixel per cell, the agent green and free cells black; the terminal one shows the agent in the
    wall.

    The return that runs report is not the sum of the rewards but `visited_share`, the share of the
    free cells that the agent has been in. At most it is 1: `depth_first` visits all 199 free cells
    of a maze of the default size in 385 steps on average and at most 396. Uniformly random actions
    visit 0.0075 of the cells in 1.7 steps, and random actions that avoid walls (`free_moves`) 0.21
    in 500 steps.

    Raises UserError if `size` is not an odd number within 5 and 63, or `max_steps` < 1.
    """
    if not 5 <= size <= 63 or size % 2 == 0 or max_steps < 1:
        raise UserError(
            f"RandomDiscoMaze has size={size} and max_steps={max_steps}; expected an odd size from"
            " 5 to 63, because walls and rooms alternate, and at least 1 step."
        )
    spec = EnvSpec(
        "pronk/RandomDiscoMaze-v0",
        spaces.Box(0, 255, (size, size, 3), np.uint8),
        spaces.Discrete(4),
    )
    shape = (size, size)

    def reset(key: Key) -> tuple[State, Array]:
        maze_key, colour_key = jax.random.split(key)
        start = jnp.array([1, 1], jnp.int32)
        free = maze.generate(maze_key, size // 2)
        colours = _colours(colour_key, shape)
        state = State(free, colours, start, at(start, shape), jnp.int32(0))
        return state, _observe(state)

    def step(state: State, action: Array, key: Key) -> tuple[State, Array, Array, Array, Array]:
        position = moved(state.position, action)
        entered = at(position, shape) & state.free
        ended = ~entered.any()
        t = state.t + 1
        state = State(state.free, _colours(key, shape), position, state.visited | entered, t)
        return state, _observe(state), jnp.float32(0), ended, (t >= max_steps) & ~ended

    return JaxEnv(
        spec,
        reset,
        step,
        stochastic=True,
        render=lambda state: enlarged(np.asarray(_observe(state))),
        score=visited_share,
    )


def visited_share(state: State) -> Array:
    """The share of the free cells that the agent has been in, float32 [], the first included."""
    return state.visited.sum(dtype=jnp.float32) / state.free.sum(dtype=jnp.float32)


def free_moves(state: State) -> Array:
    """bool [4]: the actions that don't end the episode."""
    to = [at(state.position + move, state.free.shape) & state.free for move in MOVES]
    return jnp.stack([entered.any() for entered in to])


def depth_first(free: np.ndarray, position: tuple[int, int] = (1, 1)) -> list[int]:
    """The actions that visit all free cells depth first, until the last one is reached.

    free: bool `[size, size]`, `State.free`. Tries up, right, down and left in this order, and goes
    back where a way ends.
    """
    seen, way, actions, needed = {position}, [], [], 0
    while True:
        for action, (down, right) in enumerate(MOVES):
            cell = (position[0] + int(down), position[1] + int(right))
            if free[cell] and cell not in seen:
                seen.add(cell)
                way.append(action)
                actions.append(action)
                position, needed = cell, len(actions)
                break
        else:
            if not way:
                return actions[:needed]
            back = (way.pop() + 2) % 4
            actions.append(back)
            position = (position[0] + int(MOVES[back][0]), position[1] + int(MOVES[back][1]))


def _colours(key: Key, shape: tuple[int, int]) -> Array:
    """A colour for each cell, int32 `shape`, uniform up to 0.04 %."""
    # Four colours from each random number: drawing these is the most expensive part of a step.
    count = shape[0] * shape[1]
    bits = jax.random.bits(key, (-(-count // 4),), jnp.uint32)
    pairs = jnp.concatenate([bits & 0xFFFF, bits >> 16]) * COLOURS**2 >> 16
    colours = jnp.concatenate([pairs // COLOURS, pairs % COLOURS])[:count]
    return colours.astype(jnp.int32).reshape(shape)


def _observe(state: State) -> Array:
    agent = at(state.position, state.free.shape)
    walls = ~state.free & ~agent

    def channel(bits: int) -> Array:
        return walls & ((jnp.int32(bits) >> state.colours) & 1 == 1)

    lit = jnp.stack([channel(_RED), channel(_GREEN) | agent, channel(_BLUE)], -1)
    return jnp.where(lit, jnp.uint8(255), jnp.uint8(0))
