"""KeyDoor: a task with one reward, at the end of a long way: a key, a door, a goal."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from pronk.envs.grid import (
    AGENT,
    DOWN,
    FLOOR,
    LEFT,
    RIGHT,
    UP,
    WALL,
    at,
    enlarged,
    moved,
    planes,
)
from pronk.envs.jax_env import JaxEnv
from pronk.errors import UserError
from pronk.types import Array, EnvSpec, Key

_KEY, _DOOR, _GOAL = (250, 210, 60), (150, 90, 50), (90, 200, 90)


class State(NamedTuple):
    """Cells are int32 [2], row and column."""

    position: Array
    key: Array
    doorway: Array  # between the left and the middle room, always open
    door: Array  # between the middle and the right room
    goal: Array
    has_key: Array  # bool: the key was collected, and the door is open
    reached: Array  # bool: the goal was entered
    t: Array  # int32 [], steps taken


def make(
    size: int = 5, max_steps: int = 150, random_layout: bool = False, goal_ends: bool = True
) -> JaxEnv:
    """An agent fetches the key from the left of three rooms, to reach the goal in the right one.

    The rooms are of `size` × `size` cells. The agent starts in the centre of the middle room. It
    collects the key by entering its cell, which opens the door between the middle and the right
    room. Entering the goal has a reward of 1 and terminates the episode; all other rewards are 0.
    The episode is truncated after `max_steps`. Actions: 0 up, 1 right, 2 down, 3 left; walls and
    the closed door stop the agent.

    The key is in the top left corner of its room, the goal in the bottom right corner of its own,
    the doorway to the left in the bottom row and the door in the top row. With `random_layout`,
    these four are drawn anew in each episode: key and goal from all cells of their rooms, doorway
    and door from all rows. Observation: uint8 `[size + 2, 3 size + 4, 5]`, 255 at walls, agent,
    key, closed door and goal; a collected key and an open door are not shown.

    An agent that is paid for novelty at every step loses that pay at the goal, and may learn to
    stay away. Without `goal_ends` all episodes are equally long: the goal pays once, is no longer
    shown, and the agent moves on until the episode is truncated.

    The optimum is a return of 1, after 42 steps by default; `expert` takes the shortest way.
    Uniformly random actions reach the goal in 0.0024 % of the episodes.

    Raises UserError if `size` < 3, or if `max_steps` is less than the longest of all shortest ways.
    """
    least = _longest_way(size) if size >= 3 else 1
    if size < 3 or max_steps < least:
        raise UserError(
            f"KeyDoor has size={size} and max_steps={max_steps}; expected a size of at least 3, and"
            f" at least as many steps as the longest way from start to goal has ({least} with this"
            " size)."
        )
    rows, columns = shape = (size + 2, 3 * size + 4)
    spec = EnvSpec(
        "pronk/KeyDoor-v0", spaces.Box(0, 255, (*shape, 5), np.uint8), spaces.Discrete(4)
    )
    left_wall, right_wall = size + 1, 2 * size + 2
    fixed = np.array([(1, 1), (size, left_wall), (1, right_wall), (size, columns - 2)], np.int32)
    walls = np.ones(shape, bool)
    for first in (1, size + 2, 2 * size + 3):
        walls[1:-1, first : first + size] = False

    def solid(state: State) -> Array:
        return walls & ~at(state.doorway, shape) & ~at(state.door, shape)

    def observe(state: State) -> Array:
        return planes(
            solid(state),
            at(state.position, shape),
            at(state.key, shape) & ~state.has_key,
            at(state.door, shape) & ~state.has_key,
            at(state.goal, shape) & (goal_ends | ~state.reached),
        )

    def reset(key: Key) -> tuple[State, Array]:
        layout = _draw_layout(key, size) if random_layout else jnp.asarray(fixed)
        start = jnp.array([rows // 2, columns // 2], jnp.int32)
        objects = layout[0], layout[1], layout[2], layout[3]
        state = State(start, *objects, jnp.bool_(False), jnp.bool_(False), jnp.int32(0))
        return state, observe(state)

    def step(state: State, action: Array, key: Key) -> tuple[State, Array, Array, Array, Array]:
        del key
        to = moved(state.position, action)
        stopped = (at(to, shape) & solid(state)).any()
        stopped |= (to == state.door).all() & ~state.has_key
        position = jnp.where(stopped, state.position, to)
        has_key = state.has_key | (position == state.key).all()
        t = state.t + 1
        at_goal = (position == state.goal).all()
        reward = (at_goal & ~state.reached).astype(jnp.float32)
        reached = state.reached | at_goal
        state = state._replace(position=position, has_key=has_key, reached=reached, t=t)
        terminated = at_goal & goal_ends
        return state, observe(state), reward, terminated, (t >= max_steps) & ~terminated

    return JaxEnv(spec, reset, step, render=lambda state: _picture(np.asarray(observe(state))))


def _draw_layout(key: Key, size: int) -> Array:
    """Random cells of key, doorway, door and goal, int32 [4, 2]."""
    left_wall, right_wall = size + 1, 2 * size + 2
    drawn = jax.random.randint(key, (6,), 1, size + 1, jnp.int32)
    across = jnp.stack(
        [drawn[4], jnp.int32(left_wall), jnp.int32(right_wall), drawn[5] + right_wall]
    )
    return jnp.stack([drawn[:4], across], -1)


def _picture(observation: np.ndarray) -> np.ndarray:
    picture = np.full((*observation.shape[:2], 3), FLOOR, np.uint8)
    for i, colour in ((0, WALL), (2, _KEY), (3, _DOOR), (4, _GOAL), (1, AGENT)):
        picture[observation[..., i] > 0] = colour
    return enlarged(picture)


def _longest_way(size: int) -> int:
    """The most steps that the shortest way from start to goal takes, over all layouts."""
    row, column, end = (size + 2) // 2, (3 * size + 4) // 2, size - 1
    # Each room is crossed from its first row to its last, or the other way round.
    to_doorway = column - (size + 1) + max(row - 1, size - row)
    return to_doorway + 2 * (size + end) + (size + 1 + end) + (size + end)


def expert(state: State) -> Array:
    """The first action of a shortest way, int32 []: to the key, then to the goal."""
    target = jnp.where(state.has_key, state.goal, state.key)
    row, column = state.position
    # Doorway and door are in walls: the agent gets into their row first, and stays in it on them.
    passages = [state.doorway, state.door]
    between = [(column - p[1]) * (target[1] - p[1]) < 0 for p in passages]
    rightward = target[1] > column
    nearest = jnp.where(rightward, between[0], ~between[1])
    passage = jnp.where(nearest, state.doorway, state.door)
    crossing = between[0] | between[1]
    inside = (column == state.doorway[1]) | (column == state.door[1])
    vertical = jnp.where(crossing, row != passage[0], column == target[1]) & ~inside
    down = jnp.where(crossing, passage[0], target[0]) > row
    return jnp.where(vertical, jnp.where(down, DOWN, UP), jnp.where(rightward, RIGHT, LEFT)).astype(
        jnp.int32
    )
