"""Double inverted pendulum on a cart (Duan et al. 2016, rllab)."""

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


def _capsule(radius: float, length: float) -> tuple[float, float]:
    """Mass (kg), and inertia (kg m²) about a transverse axis through the centre, of a cylinder of
    this length with a half ball at each end, of 1,000 kg/m³ (MuJoCo's default).
    """
    cylinder = 1000 * math.pi * radius**2 * length
    balls = 1000 * 4 / 3 * math.pi * radius**3
    inertia = cylinder * (length**2 / 12 + radius**2 / 4)
    inertia += balls * (2 / 5 * radius**2 + length**2 / 4 + 3 / 8 * length * radius)
    return cylinder + balls, inertia


# rllab/vendor/mujoco_models/inverted_double_pendulum.xml, SI units
GRAVITY = 9.81
CART_MASS, _ = _capsule(0.1, 0.2)
LENGTH = 0.6  # of each pole
MASS, _inertia = _capsule(0.045, LENGTH)
INERTIA = _inertia + MASS * (LENGTH / 2) ** 2  # about the joint below
MOMENT = MASS * LENGTH / 2
DAMPING = 0.05  # of all joints, N s/m and N m s
FORCE = 500.0
TAU = 0.02
SUBSTEPS = 2
TRACK = 10.0
# A critically damped stop with MuJoCo's default time constant, 0.02 s, and impedance, 0.95.
STIFFNESS, STOP_DAMPING = 1 / (0.95 * 0.02) ** 2, 2 / (0.95 * 0.02)
MAX_ANGLE = math.radians(20)


class Physics(NamedTuple):
    """Position of the cart (m), angles of the lower and the upper pole (rad, 0 upright, clockwise,
    not relative to each other), and their rates; float32 [].
    """

    x: Array
    lower: Array
    upper: Array
    x_dot: Array
    lower_dot: Array
    upper_dot: Array


class State(NamedTuple):
    """The physics, and the steps taken (int32 [])."""

    physics: Physics
    t: Array


def make(max_steps: int = 500) -> JaxEnv:
    """Keep two poles, one on top of the other, upright on a cart by a force of up to ±500 N.

    A cart of M = 10.5 kg, and two poles of m = 4.20 kg and L = 0.6 m, with their centres at l = 0.3
    m and an inertia J = 0.533 kg m² about the joint below. With the cart at x, angles α and β of
    the poles from upright, Δ = α − β, a = (l + L) m, b = l m and g = 9.81 m/s², by Lagrange's
    equations:

        (M + 2 m) ẍ + a cos α α̈ + b cos β β̈ = F − d ẋ + S + a sin α α̇² + b sin β β̇²
        a cos α ẍ + (J + m L²) α̈ + b L cos Δ β̈ = a g sin α − b L sin Δ β̇² − d (2 α̇ − β̇)
        b cos β ẍ + b L cos Δ α̈ + J β̈ = b g sin β + b L sin Δ α̇² − d (β̇ − α̇)

    with damping d = 0.05 at each joint and S the force of a stop at each end of the track, ±10 m,
    by two Runge-Kutta steps per step of 0.02 s, as in rllab. Action: float32 `[1]`, F / 500 N,
    clipped to ±1. Observation: float32 `[11]` x, sin α, sin(β − α), cos α, cos(β − α); ẋ, α̇, β̇ −
    α̇ and S in N, each clipped to ±10; 0, 0. With the tip at (X, Y), the reward is 10 − 0.01 X² −
    (Y − 2)² − 0.001 α̇² − 0.005 (β̇ − α̇)². Starts at rest at x = 0, with both poles in line,
    uniform within ±20° from upright. Terminated where Y ≤ 1, truncated after `max_steps`. No return
    is above 9.36 `max_steps`, as Y ≤ 1.2; that of uniform actions is 155 (of a normal distribution,
    clipped: 146; Duan et al.: 149.7). Raises UserError if `max_steps` < 1. Source:
    InvertedDoublePendulumEnv of rllab, without its horizontal gravity of 10⁻⁵ m/s².
    """
    mechanics.check("DoublePendulum", max_steps)
    spec = EnvSpec(
        "pronk/DoublePendulum-v0",
        spaces.Box(-np.inf, np.inf, (11,), np.float32),
        spaces.Box(-1, 1, (1,), np.float32),
    )

    def reset(key: Key) -> tuple[State, Array]:
        angle = jax.random.uniform(key, (), jnp.float32, -MAX_ANGLE, MAX_ANGLE)
        zero = jnp.zeros_like(angle)
        physics = Physics(zero, angle, angle, zero, zero, zero)
        return State(physics, jnp.int32(0)), _observe(physics)

    def step(state: State, action: Array, key: Key) -> tuple[State, Array, Array, Array, Array]:
        del key
        force = FORCE * mechanics.clipped(action, 1)
        physics = mechanics.runge_kutta(
            lambda physics: _rate(physics, force), state.physics, TAU, SUBSTEPS
        )
        reward, terminated = _outcome(physics)
        state = State(physics, state.t + 1)
        truncated = (state.t >= max_steps) & ~terminated
        return state, _observe(physics), reward, terminated, truncated

    return JaxEnv(spec, reset, step, render=_render, frames_per_second=1 / TAU)


def _stop(x: Array, x_dot: Array) -> Array:
    """The force (N) of the stops at the ends of the track, which do not pull."""
    beyond = x - jnp.clip(x, -TRACK, TRACK)
    force = -(CART_MASS + 2 * MASS) * (STIFFNESS * beyond + STOP_DAMPING * x_dot)
    pushes = beyond * force < 0
    return jnp.where(pushes, force, 0)


def _rate(physics: Physics, force: Array) -> Physics:
    x, lower, upper, x_dot, lower_dot, upper_dot = physics
    a, b = (LENGTH / 2 + LENGTH) * MASS, MOMENT
    sin_a, cos_a, sin_b, cos_b = jnp.sin(lower), jnp.cos(lower), jnp.sin(upper), jnp.cos(upper)
    sin = b * LENGTH * (sin_a * cos_b - cos_a * sin_b)
    total = CART_MASS + 2 * MASS
    push = force - DAMPING * x_dot + _stop(x, x_dot)
    push += a * sin_a * lower_dot**2 + b * sin_b * upper_dot**2
    turn = (
        a * GRAVITY * sin_a - sin * upper_dot**2 - DAMPING * (2 * lower_dot - upper_dot),
        b * GRAVITY * sin_b + sin * lower_dot**2 - DAMPING * (upper_dot - lower_dot),
    )
    # ẍ from the first equation, put into the other two
    p, q = a * cos_a, b * cos_b
    lower_acc, upper_acc = mechanics.solve(
        INERTIA + MASS * LENGTH**2 - p * p / total,
        b * LENGTH * (cos_a * cos_b + sin_a * sin_b) - p * q / total,
        INERTIA - q * q / total,
        (turn[0] - p * push / total, turn[1] - q * push / total),
    )
    x_acc = (push - p * lower_acc - q * upper_acc) / total
    return Physics(x_dot, lower_dot, upper_dot, x_acc, lower_acc, upper_acc)


def _outcome(physics: Physics) -> tuple[Array, Array]:
    """Reward and termination."""
    x = physics.x + LENGTH * (jnp.sin(physics.lower) + jnp.sin(physics.upper))
    y = LENGTH * (jnp.cos(physics.lower) + jnp.cos(physics.upper))
    distance = 0.01 * x**2 + (y - 2) ** 2
    bend_dot = physics.upper_dot - physics.lower_dot
    return 10 - distance - 1e-3 * physics.lower_dot**2 - 5e-3 * bend_dot**2, y <= 1


def _observe(physics: Physics) -> Array:
    x, lower, upper, x_dot, lower_dot, upper_dot = physics
    bend = upper - lower
    clipped = (x_dot, lower_dot, upper_dot - lower_dot, _stop(x, x_dot))
    zero = jnp.zeros_like(x)
    return jnp.stack(
        [
            *(x, jnp.sin(lower), jnp.sin(bend), jnp.cos(lower), jnp.cos(bend)),
            *(jnp.clip(value, -10, 10) for value in clipped),
            *(zero, zero),
        ]
    )


def _render(state: State) -> np.ndarray:
    """Cart and poles, 70 pixels per metre; the picture follows the cart, the marks stay."""
    x, lower, upper = (float(value) for value in state.physics[:3])
    joint = np.array([x + LENGTH * math.sin(lower), LENGTH * math.cos(lower)])
    tip = joint + LENGTH * np.array([math.sin(upper), math.cos(upper)])
    picture = mechanics.canvas()
    lines: list[tuple[list, tuple[int, int, int], int]] = [
        ([(-TRACK, 0), (TRACK, 0)], mechanics.TRACK, 2),
        *(([(mark, -0.3), (mark, 0)], mechanics.TRACK, 2) for mark in range(-10, 11)),
        ([(x - 0.1, 0), (x + 0.1, 0)], mechanics.ORANGE, 14),
        ([(x, 0), joint], mechanics.WHITE, 6),
        ([joint, tip], mechanics.RED, 6),
    ]
    for points, colour, thickness in lines:
        mechanics.draw(picture, points, 70, (x, 0.3), colour, thickness)
    return picture
