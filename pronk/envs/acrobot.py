"""Acrobot with a continuous torque (Duan et al. 2016, rllab's double pendulum)."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from pronk.envs import mechanics
from pronk.envs.jax_env import JaxEnv
from pronk.types import Array, EnvSpec, Key

# rllab/envs/box2d/models/double_pendulum.xml.mako, SI units; the engine's gravity is its default.
GRAVITY = 10.0
LENGTH, WIDTH, DENSITY = 1.0, 0.1, 5.0  # of each link
MASS = LENGTH * WIDTH * DENSITY
INERTIA = MASS * ((LENGTH**2 + WIDTH**2) / 12 + (LENGTH / 2) ** 2)  # about the joint above
MOMENT = MASS * LENGTH / 2
TORQUE = 50.0
TURN = 2 * math.pi
TAU = 0.02
SUBSTEPS = 4
MAX_SPEED = 0.5 * math.pi / 0.01  # rad/s; the engine turns nothing by more than π/2 per 0.01 s
START_DEVIATION = np.array([0.1, 0.1, 0.01, 0.01], np.float32)


class Physics(NamedTuple):
    """Angles of the upper and the lower link (rad, 0 hanging, counter-clockwise, not relative to
    each other), and their rates; float32 [].
    """

    upper: Array
    lower: Array
    upper_dot: Array
    lower_dot: Array


class State(NamedTuple):
    """The physics, and the steps taken (int32 [])."""

    physics: Physics
    t: Array


def make(max_steps: int = 500) -> JaxEnv:
    """Swing up two hanging links by a torque of up to ±50 N m between them.

    Each link has m = 0.5 kg, L = 1 m, its centre at l = 0.5 m, and an inertia J = 0.167 kg m² about
    the joint above. With angles α and β from hanging, Δ = α − β and g = 10 m/s², without friction,
    by Lagrange's equations:

        (J + m L²) α̈ + m L l cos Δ β̈ = −τ − m L l sin Δ β̇² − (l + L) m g sin α
        m L l cos Δ α̈ + J β̈ = τ + m L l sin Δ α̇² − l m g sin β

    by four Runge-Kutta steps per step of 0.02 s. Speeds are clipped to ±157 rad/s, as rllab's
    engine does. Action: float32 `[1]`, τ in N m, clipped to ±50. Observation: float32 `[6]` sin α,
    cos α, α̇, sin β, cos β, β̇. Reward −√((sin α − sin β)² + (2 + cos α + cos β)²): with a plus in
    the first bracket it would be the distance of the tip from its highest point. rllab computes it
    with a minus, and both are zero there only. Starts normal around hanging at rest, with
    deviations of 0.1 rad and 0.01 rad/s. Never terminated, truncated after `max_steps`. No return
    is above 0; that of uniform actions is about −1230 (a normal distribution, clipped: −1210; Duan
    et al.: −1904.5, which is close to that of no torque, −2000). Raises UserError if `max_steps` <
    1. Source: DoublePendulumEnv of rllab.
    """
    mechanics.check("Acrobot", max_steps)
    spec = EnvSpec(
        "pronk/Acrobot-v0",
        spaces.Box(-np.inf, np.inf, (6,), np.float32),
        spaces.Box(-TORQUE, TORQUE, (1,), np.float32),
    )

    def reset(key: Key) -> tuple[State, Array]:
        start = jax.random.normal(key, (4,), jnp.float32) * START_DEVIATION
        physics = Physics(*start)
        return State(physics, jnp.int32(0)), _observe(physics)

    def step(state: State, action: Array, key: Key) -> tuple[State, Array, Array, Array, Array]:
        del key
        torque = mechanics.clipped(action, TORQUE)
        physics = mechanics.runge_kutta(
            lambda physics: _rate(physics, torque), state.physics, TAU, SUBSTEPS
        )
        upper_dot, lower_dot = (jnp.clip(w, -MAX_SPEED, MAX_SPEED) for w in physics[2:])
        # Whole turns, which nothing depends on, would cost precision.
        upper, lower = (angle - TURN * jnp.round(angle / TURN) for angle in physics[:2])
        physics = Physics(upper, lower, upper_dot, lower_dot)
        state = State(physics, state.t + 1)
        return state, _observe(physics), _reward(physics), jnp.bool_(False), state.t >= max_steps

    return JaxEnv(spec, reset, step, render=_render, frames_per_second=1 / TAU)


def _rate(physics: Physics, torque: Array) -> Physics:
    upper, lower, upper_dot, lower_dot = physics
    coupling, difference = MOMENT * LENGTH, upper - lower
    sin = coupling * jnp.sin(difference)
    weight = MOMENT * GRAVITY
    right = (
        -torque - sin * lower_dot**2 - (weight + MASS * LENGTH * GRAVITY) * jnp.sin(upper),
        torque + sin * upper_dot**2 - weight * jnp.sin(lower),
    )
    total = INERTIA + MASS * LENGTH**2
    accelerations = mechanics.solve(total, coupling * jnp.cos(difference), INERTIA, right)
    return Physics(upper_dot, lower_dot, *accelerations)


def _observe(physics: Physics) -> Array:
    upper, lower, upper_dot, lower_dot = physics
    return jnp.stack(
        [jnp.sin(upper), jnp.cos(upper), upper_dot, jnp.sin(lower), jnp.cos(lower), lower_dot]
    )


def _reward(physics: Physics) -> Array:
    x = jnp.sin(physics.upper) - jnp.sin(physics.lower)
    y = jnp.cos(physics.upper) + jnp.cos(physics.lower)
    return -LENGTH * jnp.sqrt(x**2 + (2 + y) ** 2)


def _render(state: State) -> np.ndarray:
    """The links, 55 pixels per metre, and the tip's highest point."""
    upper, lower = float(state.physics.upper), float(state.physics.lower)
    elbow = np.array([math.sin(upper), -math.cos(upper)]) * LENGTH
    tip = elbow + np.array([math.sin(lower), -math.cos(lower)]) * LENGTH
    picture = mechanics.canvas(width=240)
    mechanics.draw(picture, [(-2, 0), (2, 0)], 55, (0, 0), mechanics.TRACK, 2)
    mechanics.draw(picture, [(-0.1, 2), (0.1, 2)], 55, (0, 0), mechanics.RED, 5)
    mechanics.draw(picture, [(0, 0), elbow], 55, (0, 0), mechanics.ORANGE, 6)
    mechanics.draw(picture, [elbow, tip], 55, (0, 0), mechanics.WHITE, 6)
    return picture
