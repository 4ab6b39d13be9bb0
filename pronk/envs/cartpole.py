"""CartPole: Gymnasium's CartPole-v1 in JAX, optionally without the velocities."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from pronk.envs.jax_env import JaxEnv
from pronk.errors import UserError
from pronk.types import Array, EnvSpec, Key

# gymnasium.envs.classic_control.cartpole, SI units
GRAVITY = 9.8
POLE_MASS = 0.1
TOTAL_MASS = 1.0 + POLE_MASS
HALF_LENGTH = 0.5
FORCE = 10.0
TAU = 0.02
X_LIMIT = 2.4
THETA_LIMIT = 12 * 2 * math.pi / 360


class State(NamedTuple):
    """Position (m), angle (rad) and their rates, and the steps taken."""

    physics: Array  # float32 [4]: x, ẋ, θ, θ̇
    t: Array  # int32 []


def make(hide_velocities: bool = False, max_steps: int = 500) -> JaxEnv:
    """Balance a pole on a cart that is pushed left (0) or right (1).

    Reward 1 at every step. Terminated when the cart leaves ±2.4 m or the pole ±12°, truncated after
    `max_steps`; both may be set at once, as in Gymnasium. Observation: float32 `[4]` `x, ẋ, θ, θ̇`,
    or `[2]` `x, θ` with `hide_velocities`, which makes a memory necessary. Raises UserError if
    `max_steps` < 1. Source: Gymnasium's CartPole-v1 (Euler), in float32.
    """
    if max_steps < 1:
        raise UserError(f"CartPole has max_steps={max_steps}; expected at least 1.")
    visible = slice(0, None, 2) if hide_velocities else slice(None)
    high = np.array([2 * X_LIMIT, np.inf, 2 * THETA_LIMIT, np.inf], np.float32)[visible]
    spec = EnvSpec(
        "pronk/CartPole-v1", spaces.Box(-high, high, dtype=np.float32), spaces.Discrete(2)
    )

    def reset(key: Key) -> tuple[State, Array]:
        physics = jax.random.uniform(key, (4,), jnp.float32, -0.05, 0.05)
        return State(physics, jnp.int32(0)), physics[visible]

    def step(state: State, action: Array, key: Key) -> tuple[State, Array, Array, Array, Array]:
        del key
        physics = _euler(state.physics, jnp.where(action == 1, FORCE, -FORCE))
        state = State(physics, state.t + 1)
        terminated = (jnp.abs(physics[0]) > X_LIMIT) | (jnp.abs(physics[2]) > THETA_LIMIT)
        return state, physics[visible], jnp.float32(1), terminated, state.t >= max_steps

    return JaxEnv(spec, reset, step, render=_render, frames_per_second=1 / TAU)


def _euler(physics: Array, force: Array) -> Array:
    """One step of `TAU` seconds; https://coneural.org/florian/papers/05_cart_pole.pdf"""
    _, x_dot, theta, theta_dot = physics
    sin, cos = jnp.sin(theta), jnp.cos(theta)
    pole = POLE_MASS * HALF_LENGTH
    push = (force + pole * theta_dot**2 * sin) / TOTAL_MASS
    theta_acc = (GRAVITY * sin - cos * push) / (
        HALF_LENGTH * (4 / 3 - POLE_MASS * cos**2 / TOTAL_MASS)
    )
    x_acc = push - pole * theta_acc * cos / TOTAL_MASS
    return physics + TAU * jnp.stack([x_dot, x_acc, theta_dot, theta_acc])


def _render(state: State) -> np.ndarray:
    """Cart and pole on a dark background, 120 pixels per metre."""
    picture = np.full((240, 600, 3), 30, np.uint8)
    x, _, theta, _ = state.physics
    centre = int(300 + 120 * x)
    picture[200:202] = 90
    picture[180:200, max(0, centre - 25) : max(0, centre + 25)] = (240, 140, 40)
    along = np.linspace(0, 120, 240)
    rows = np.clip(180 - along * np.cos(theta), 1, 238).astype(int)
    columns = np.clip(centre + along * np.sin(theta), 1, 598).astype(int)
    for i in (-1, 0, 1):
        picture[rows, columns + i] = (240, 240, 240)
    return picture
