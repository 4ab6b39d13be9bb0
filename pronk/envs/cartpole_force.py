"""Cart-pole with a continuous force: balancing, and swinging up (Duan et al. 2016, rllab)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from pronk.envs import mechanics
from pronk.envs.jax_env import JaxEnv
from pronk.types import Array, EnvSpec, Key

# rllab/envs/box2d/models/cartpole.xml.mako, SI units; the engine's gravity is its default.
GRAVITY = 10.0
CART_WIDTH, CART_HEIGHT = 4 / math.sqrt(12), 3 / math.sqrt(12)
CART_MASS = CART_WIDTH * CART_HEIGHT  # 1
LENGTH, WIDTH = 1.0, 0.1  # of the pole, of density 1
POLE_MASS = LENGTH * WIDTH
POLE_INERTIA = POLE_MASS * ((LENGTH**2 + WIDTH**2) / 12 + (LENGTH / 2) ** 2)  # about the pivot
MOMENT = POLE_MASS * LENGTH / 2
FORCE = 10.0
TAU = 0.05
SUBSTEPS = 2


class Physics(NamedTuple):
    """Position of the cart (m) and angle of the pole (rad, 0 upright, counter-clockwise), and
    their rates; float32 [].
    """

    x: Array
    x_dot: Array
    theta: Array
    theta_dot: Array


class State(NamedTuple):
    """The physics, and the steps taken (int32 [])."""

    physics: Physics
    t: Array


def make_balance(max_steps: int = 500) -> JaxEnv:
    """Keep a pole upright on a cart that a force of up to ±10 N moves.

    Reward 10 − (1 − cos θ) − 10⁻⁵ F², and 0 at the end: terminated when the cart leaves ±2.4 m or
    the pole ±0.2 rad. Starts uniform within ±5 % of 2.4 m, 4 m/s, 0.2 rad and 4 rad/s. The best
    possible return is just below 10 `max_steps`; that of uniform actions is 79 (of a normal
    distribution, clipped: 71; Duan et al.: 77.1). Dynamics, observation and errors: `_make`.
    Source: CartpoleEnv of rllab.
    """

    def outcome(physics: Physics, force: Array) -> tuple[Array, Array]:
        terminated = (jnp.abs(physics.x) > 2.4) | (jnp.abs(physics.theta) > 0.2)
        reward = 10 - (1 - jnp.cos(physics.theta)) - 1e-5 * force**2
        return jnp.where(terminated, 0, reward), terminated

    start = 0.05 * np.array([2.4, 4, 0.2, 4])
    return _make("pronk/CartPoleBalance-v0", (-start, start), outcome, max_steps)


def make_swing_up(max_steps: int = 500) -> JaxEnv:
    """Swing up a hanging pole, and keep it upright, with a force of up to ±10 N on its cart.

    Reward cos θ, and −100 at the end: terminated when the cart leaves ±3 m. Starts uniform within x
    ± 1 m, ẋ ± 2 m/s, θ = π ± 1 rad and θ̇ ± 3 rad/s. A return above 0.8 `max_steps` is a pole that
    is soon up and stays there; that of uniform actions is −151 (of a normal distribution, clipped:
    −144; Duan et al., "inverted pendulum": −153.4). Dynamics, observation and errors: `_make`.
    Source: CartpoleSwingupEnv of rllab.
    """

    def outcome(physics: Physics, force: Array) -> tuple[Array, Array]:
        del force
        terminated = jnp.abs(physics.x) > 3
        return jnp.where(terminated, -100, jnp.cos(physics.theta)), terminated

    low, high = np.array([-1, -2, math.pi - 1, -3]), np.array([1, 2, math.pi + 1, 3])
    return _make("pronk/CartPoleSwingUp-v0", (low, high), outcome, max_steps)


def _make(
    name: str,
    start: tuple[np.ndarray, np.ndarray],
    outcome: Callable[[Physics, Array], tuple[Array, Array]],
    max_steps: int,
) -> JaxEnv:
    """A task with these physics. start: bounds of the uniform first state. outcome: reward and
    termination from the state after a step and the force.

    A cart of M = 1 kg carries a pole of m = 0.1 kg, which turns about its lower end, with its
    centre at l = 0.5 m and an inertia J = 0.0334 kg m² about that end. Without friction, by
    Lagrange's equations:

        (M + m) ẍ − m l cos θ θ̈ = F − m l sin θ θ̇²
        −m l cos θ ẍ + J θ̈ = m g l sin θ

    with g = 10 m/s², as in rllab's model, by two Runge-Kutta steps per step of 0.05 s. (rllab's
    engine makes one semi-implicit Euler step, and the first one moves the pole to its cart.)
    Action: float32 `[1]`, F in N, clipped to ±10. Observation: float32 `[4]` x, ẋ, θ, θ̇, where θ
    keeps whole turns. Truncated after `max_steps`. Raises UserError if `max_steps` < 1.
    """
    mechanics.check(name.removeprefix("pronk/").removesuffix("-v0"), max_steps)
    low, high = (np.asarray(bound, np.float32) for bound in start)
    spec = EnvSpec(
        name,
        spaces.Box(-np.inf, np.inf, (4,), np.float32),
        spaces.Box(-FORCE, FORCE, (1,), np.float32),
    )

    def reset(key: Key) -> tuple[State, Array]:
        first = jax.random.uniform(key, (4,), jnp.float32, low, high)
        return State(Physics(*first), jnp.int32(0)), first

    def step(state: State, action: Array, key: Key) -> tuple[State, Array, Array, Array, Array]:
        del key
        force = mechanics.clipped(action, FORCE)
        physics = mechanics.runge_kutta(
            lambda physics: _rate(physics, force), state.physics, TAU, SUBSTEPS
        )
        reward, terminated = outcome(physics, force)
        state = State(physics, state.t + 1)
        truncated = (state.t >= max_steps) & ~terminated
        return state, jnp.stack(physics), reward, terminated, truncated

    return JaxEnv(spec, reset, step, render=_render, frames_per_second=1 / TAU)


def _rate(physics: Physics, force: Array) -> Physics:
    _, x_dot, theta, theta_dot = physics
    sin, cos = jnp.sin(theta), jnp.cos(theta)
    push = force - MOMENT * sin * theta_dot**2, MOMENT * GRAVITY * sin
    x_acc, theta_acc = mechanics.solve(CART_MASS + POLE_MASS, -MOMENT * cos, POLE_INERTIA, push)
    return Physics(x_dot, x_acc, theta_dot, theta_acc)


def _render(state: State) -> np.ndarray:
    """Cart and pole, 60 pixels per metre."""
    x, _, theta, _ = (float(value) for value in state.physics)
    picture = mechanics.canvas()

    def line(points: list[tuple[float, float]], colour: tuple[int, int, int], width: int) -> None:
        mechanics.draw(picture, points, 60, (0, 0.4), colour, width)

    line([(-4, 0), (4, 0)], mechanics.TRACK, 2)
    half = CART_WIDTH / 2 - CART_HEIGHT / 4
    line([(x - half, 0), (x + half, 0)], mechanics.ORANGE, int(30 * CART_HEIGHT))
    tip = x - LENGTH * math.sin(theta), LENGTH * math.cos(theta)
    line([(x, 0), tip], mechanics.WHITE, 5)
    return picture
