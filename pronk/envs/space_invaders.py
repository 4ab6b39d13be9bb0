"""Space Invaders on a 10 × 10 screen (Young & Tian 2019, https://arxiv.org/abs/1903.03176)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jax import lax

from pronk.envs.jax_env import JaxEnv
from pronk.envs.minatar import COLUMNS, ROW_BITS, SIZE, cell, check, picture, screen, sticky_action
from pronk.types import Array, EnvSpec, Key

COOL_DOWN = 5  # steps from shot to shot, the cannon's
BOMB_INTERVAL = 10  # steps, the aliens'
MOVE_INTERVAL = 12  # steps, of the first wave
FASTEST = 6  # of the last waves
EVERY_ROW = ROW_BITS.sum(dtype=np.int32)
WAVE = np.where((COLUMNS >= 2) & (COLUMNS < 8), ROW_BITS[:4].sum(), 0).astype(np.int32)
COLOURS = (
    (240, 140, 40),
    (90, 200, 90),
    (90, 200, 90),
    (80, 180, 220),
    (240, 240, 240),
    (240, 80, 80),
)


class State(NamedTuple):
    """int32 []; int32 [10] are sets of cells as in `minatar`. The cannon is in the bottom row."""

    cannon: Array
    aliens: Array  # [10]
    bullets: Array  # [10], the cannon's
    bombs: Array  # [10], the aliens'
    right: Array  # the aliens' direction, 1 or -1
    interval: Array  # between two moves of the wave, at most
    until_move: Array  # steps
    until_bomb: Array
    until_shot: Array
    action: Array  # the last executed action
    t: Array  # steps taken


def make(sticky: float = 0.1, ramping: bool = True, max_steps: int = 1000) -> JaxEnv:
    """A cannon at the bottom shoots at 24 aliens, which descend and drop bombs.

    Actions: 0 no-op, 1 left, 2 right, 3 fire; with probability `sticky` the environment repeats the
    last executed action (a no-op at the start of an episode) instead. Bullets rise and bombs fall
    one row per step. The cannon can fire every 5th step. Every 10th step the alien nearest to the
    cannon drops a bomb: the lowest in the nearest column, the left one of two. The aliens move one
    column every 12th step, more often if fewer than 12 are left; if one of them is at the wall
    ahead, they move one row down instead and turn round. An alien that meets a bullet dies, for a
    reward of 1. After the last one the next wave begins; with `ramping` its moves are one step
    closer together than the last wave's, down to 6. The episode is terminated when a bomb or an
    alien reaches the cannon or the aliens move down from the bottom row, and truncated after
    `max_steps`, a limit that MinAtar does not have, so that evaluations end.

    Observation: uint8 `[10, 10, 6]`, 255 at the cannon, aliens, aliens moving left, aliens moving
    right, bullets and bombs. Raises UserError if `sticky` is not within 0 and 1 or `max_steps` < 1.
    Source: `space_invaders` in kenjyoung/MinAtar with its minimal action set.
    """
    check("SpaceInvaders", sticky, max_steps)
    spec = EnvSpec(
        "pronk/SpaceInvaders-v0", spaces.Box(0, 255, (SIZE, SIZE, 6), np.uint8), spaces.Discrete(4)
    )

    def reset(key: Key) -> tuple[State, Array]:
        del key
        nothing, zero = jnp.zeros(SIZE, jnp.int32), jnp.int32(0)
        state = State(
            cannon=jnp.int32(5),
            aliens=jnp.asarray(WAVE),
            bullets=nothing,
            bombs=nothing,
            right=jnp.int32(-1),
            interval=jnp.int32(MOVE_INTERVAL),
            until_move=jnp.int32(MOVE_INTERVAL),
            until_bomb=jnp.int32(BOMB_INTERVAL),
            until_shot=zero,
            action=zero,
            t=zero,
        )
        return state, _observe(state)

    def step(state: State, action: Array, key: Key) -> tuple[State, Array, Array, Array, Array]:
        action = sticky_action(action, state.action, sticky, key)
        state, reward, terminated = _move(state, action, ramping)
        truncated = (state.t >= max_steps) & ~terminated
        return state, _observe(state), reward, terminated, truncated

    return JaxEnv(
        spec,
        reset,
        step,
        stochastic=sticky > 0,
        render=lambda state: picture(_observe(state), COLOURS),
    )


def _move(state: State, action: Array, ramping: bool) -> tuple[State, Array, Array]:
    """One step: the next state, the reward, and whether the cannon is lost."""
    cannon = jnp.clip(state.cannon + (action == 2) - (action == 1), 0, SIZE - 1)
    here = cell(SIZE - 1, cannon)
    fires = (action == 3) & (state.until_shot == 0)
    bullets = (state.bullets | jnp.where(fires, here, 0)) >> 1
    bombs = (state.bombs << 1) & EVERY_ROW

    moves = state.until_move == 0
    count = lax.population_count(state.aliens).sum(dtype=jnp.int32)
    moved, right, landed = _move_aliens(state.aliens, state.right, moves)
    terminated = landed | (((bombs | state.aliens | moved) & here) != 0).any()
    aliens = moved

    # The left one of two columns at the same distance is the nearer.
    distance = 2 * jnp.abs(COLUMNS - cannon) + (cannon < COLUMNS)
    distance = jnp.where(aliens != 0, distance, 2 * SIZE)
    nearest = distance == distance.min()
    drops = (state.until_bomb == 0) & nearest
    bombs = bombs | jnp.where(drops, _lowest(aliens), 0)

    killed = aliens & bullets
    aliens, bullets = aliens ^ killed, bullets ^ killed
    reward = lax.population_count(killed).sum().astype(jnp.float32)
    cleared = (aliens == 0).all()
    faster = cleared & (state.interval > FASTEST) & ramping

    state = State(
        cannon=cannon,
        aliens=jnp.where(cleared, WAVE, aliens),
        bullets=bullets,
        bombs=bombs,
        right=right,
        interval=state.interval - faster,
        until_move=jnp.where(moves, jnp.minimum(count, state.interval), state.until_move) - 1,
        until_bomb=jnp.where(state.until_bomb == 0, BOMB_INTERVAL, state.until_bomb) - 1,
        until_shot=jnp.maximum(jnp.where(fires, COOL_DOWN, state.until_shot) - 1, 0),
        action=action,
        t=state.t + 1,
    )
    return state, reward, terminated


def _move_aliens(aliens: Array, right: Array, moves: Array) -> tuple[Array, Array, Array]:
    """The aliens and their direction after a move, if it is time, and whether they have landed."""
    blocked = jnp.where(right < 0, aliens[0], aliens[-1]) != 0
    # As in MinAtar, aliens that leave the bottom row reappear at the top; the episode is over then.
    lowered = ((aliens << 1) & EVERY_ROW) | (aliens >> (SIZE - 1))
    aside = jnp.where(right < 0, jnp.roll(aliens, -1), jnp.roll(aliens, 1))
    moved = jnp.where(moves, jnp.where(blocked, lowered, aside), aliens)
    landed = moves & blocked & ((aliens & ROW_BITS[-1]) != 0).any()
    return moved, jnp.where(moves & blocked, -right, right), landed


def _observe(state: State) -> Array:
    return screen(
        cell(SIZE - 1, state.cannon),
        state.aliens,
        jnp.where(state.right < 0, state.aliens, 0),
        jnp.where(state.right > 0, state.aliens, 0),
        state.bullets,
        state.bombs,
    )


def _lowest(cells: Array) -> Array:
    """The lowest cell of each column: the highest bit, because rows are numbered downward."""
    for shift in (1, 2, 4, 8):
        cells = cells | (cells >> shift)
    return cells ^ (cells >> 1)
