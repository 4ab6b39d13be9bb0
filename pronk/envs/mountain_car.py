"""Mountain car with a continuous force on a cosine track (Duan et al. 2016, rllab)."""

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

# rllab/envs/box2d/models/mountain_car.xml.mako, SI units; the engine's gravity is its default.
GRAVITY = 10.0
LENGTH, WIDTH, DENSITY = 0.4, 0.2, 5.0
MASS = LENGTH * WIDTH * DENSITY
FRICTION = math.sqrt(0.0005 * 0.2)  # car and, by the engine's default, track: the geometric mean
# The path of the car's centre. rllab's car has its two lower corners on a track 1 − cos(πx/2), and
# the engine keeps them about 1 cm above it: this is within 6 mm of that for |x| < 0.6.
REST, WAVES = 0.166, 1.64
FORCE = 1.0
GOAL = 0.6
X_LIMIT = 2.0
TAU = 0.05
SUBSTEPS = 2
LOSS = TAU / 2  # s; ½ δ of the engine's loss
SLOW = 0.02  # m/s, below which friction is viscous, so that a car can come to rest


class State(NamedTuple):
    """Position of the car's centre (m), its rate (m/s), both float32 [], and the steps taken."""

    x: Array
    x_dot: Array
    t: Array  # int32 []


def make(max_steps: int = 500) -> JaxEnv:
    """A car in a valley swings until it reaches x = 0.6 m, with a force of up to ±1 N.

    The car, m = 0.4 kg, is a point on the path y = h(x) = 0.166 + 1 − cos(1.64 x), that of the
    centre of rllab's car, which is a box. With its speed v = √(1 + h'²) ẋ along the path, a force F
    along the path, Coulomb friction μ = 0.01, g = 10 m/s² and the curvature κ = h'' / (1 +
    h'²)^(3/2):

        (1 + h'²) ẍ = −h' (g + h'' ẋ²) + √(1 + h'²) (F / m − μ N / m sign v − ½ κ² v³ δ)
        N / m = max(0, g + h'' ẋ²) / √(1 + h'²)

    by two Runge-Kutta steps per step of 0.05 s. The last term is what rllab's engine loses: at each
    of its steps of δ = 0.05 s, it stops the motion into the track, so that v becomes v cos(κ v δ).
    Without that term the car would be much easier to drive. Action: float32 `[1]`, F in N, clipped
    to ±1. Observation: float32 `[2]` x, ẋ. Reward −1 + y. Starts at x = 0, ẋ uniform within ±1 m/s.
    Terminated where x ≥ 0.6 or x ≤ −2, truncated after `max_steps`. Bang-bang control, with the
    force along the velocity, returns −41 on average; uniform actions return −412 (a normal
    distribution, clipped: −410; Duan et al.: −415.4). Raises UserError if `max_steps` < 1. Source:
    MountainCarEnv of rllab.
    """
    mechanics.check("MountainCar", max_steps)
    spec = EnvSpec(
        "pronk/MountainCar-v0",
        spaces.Box(-np.inf, np.inf, (2,), np.float32),
        spaces.Box(-FORCE, FORCE, (1,), np.float32),
    )

    def reset(key: Key) -> tuple[State, Array]:
        x_dot = jax.random.uniform(key, (), jnp.float32, -1, 1)
        x = jnp.zeros_like(x_dot)
        return State(x, x_dot, jnp.int32(0)), jnp.stack([x, x_dot])

    def step(state: State, action: Array, key: Key) -> tuple[State, Array, Array, Array, Array]:
        del key
        force = mechanics.clipped(action, FORCE)
        x, x_dot = mechanics.runge_kutta(
            lambda moving: _rate(*moving, force), (state.x, state.x_dot), TAU, SUBSTEPS
        )
        state = State(x, x_dot, state.t + 1)
        terminated = (x >= GOAL) | (jnp.abs(x) >= X_LIMIT)
        truncated = (state.t >= max_steps) & ~terminated
        return state, jnp.stack([x, x_dot]), height(x) - 1, terminated, truncated

    return JaxEnv(spec, reset, step, render=_render, frames_per_second=1 / TAU)


def height(x: Array) -> Array:
    """Of the car's centre at x, in metres."""
    return REST + 1 - jnp.cos(WAVES * x)


def _rate(x: Array, x_dot: Array, force: Array) -> tuple[Array, Array]:
    slope, bend = WAVES * jnp.sin(WAVES * x), WAVES**2 * jnp.cos(WAVES * x)
    stretch = jnp.sqrt(1 + slope**2)
    weight = GRAVITY + bend * x_dot**2
    friction = FRICTION * jnp.maximum(weight, 0) / stretch
    speed, curvature = stretch * x_dot, bend / stretch**3
    lost = friction * jnp.clip(speed / SLOW, -1, 1) + LOSS * curvature**2 * speed**3
    push = stretch * (force / MASS - lost)
    return x_dot, (push - slope * weight) / stretch**2


def _render(state: State) -> np.ndarray:
    """The car on its track, 100 pixels per metre, and a flag at the goal."""
    x = float(state.x)
    angle = math.atan(WAVES * math.sin(WAVES * x))
    along = np.array([math.cos(angle), math.sin(angle)])
    centre = np.array([x, REST + 1 - math.cos(WAVES * x)])
    picture = mechanics.canvas()
    track = np.linspace(-X_LIMIT, X_LIMIT, 100)
    path = np.stack([track, 1 - np.cos(WAVES * track)], 1)
    mechanics.draw(picture, path, 100, (0, 0.95), mechanics.TRACK)
    top = 1 - math.cos(WAVES * GOAL)
    flag = [(GOAL, top), (GOAL, top + 0.6), (GOAL + 0.2, top + 0.5), (GOAL, top + 0.4)]
    mechanics.draw(picture, flag, 100, (0, 0.95), mechanics.RED)
    # The brush is square, so that the ends of a line reach half its width further.
    ends = [centre - along * WIDTH / 2, centre + along * WIDTH / 2]
    mechanics.draw(picture, ends, 100, (0, 0.95), mechanics.ORANGE, int(100 * WIDTH))
    return picture
