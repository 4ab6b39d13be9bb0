"""The control tasks in JAX: equations of motion, conserved quantities, and the rules of rllab's."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pronk.envs import acrobot, cartpole_force, double_pendulum, mechanics, mountain_car
from pronk.envs.jax_env import JaxEnv, advance, start
from pronk.types import Array

KEY = jax.random.key(0)


class System(NamedTuple):
    """A task, with its mechanics written anew: from where the bodies are."""

    module: Any
    env: JaxEnv
    n: int  # degrees of freedom
    rate: Callable[[Any, Any], Any]  # (coordinates and velocities, force) -> their derivatives
    energies: Callable[[Any, Any], tuple[Array, Array]]  # (q, q̇) -> kinetic, potential
    force: Callable[[Any, Any, Any], Any]  # (q, q̇, force) -> generalised forces
    limit: float


@functools.cache
def built(make: Callable[..., JaxEnv], **arguments: Any) -> JaxEnv:
    """The environment, with functions that are compiled as a whole, once."""
    env = make(**arguments)
    return env._replace(reset=jax.jit(env.reset), step=jax.jit(env.step))


def body(place: Callable, q: Array, v: Array, mass: float) -> tuple[Array, Array]:
    """The kinetic energy of a point, and its height times its mass."""
    point, velocity = jax.jvp(place, (q,), (v,))
    return mass / 2 * (velocity @ velocity), mass * point[1]


def rod(mass: float, length: float, width: float) -> float:
    return mass * (length**2 + width**2) / 12


def cart_pole_energies(q, v):
    def centre(q):
        return jnp.array([q[0] - 0.5 * jnp.sin(q[1]), 0.5 * jnp.cos(q[1])])

    kinetic, weight = body(centre, q, v, 0.1)
    return kinetic + v[0] ** 2 / 2 + rod(0.1, 1, 0.1) / 2 * v[1] ** 2, 10 * weight


def acrobot_energies(q, v):
    def end(angle, length):
        return length * jnp.array([jnp.sin(angle), -jnp.cos(angle)])

    a, b = body(lambda q: end(q[0], 0.5), q, v, 0.5)
    c, d = body(lambda q: end(q[0], 1) + end(q[1], 0.5), q, v, 0.5)
    return a + c + rod(0.5, 1, 0.1) / 2 * (v @ v), 10 * (b + d)


# Measured of the model with MuJoCo: mass of the cart, mass and inertia of a pole.
CART, POLE, TURNING = 10.47197551, 4.19873858, 0.15497067


def double_pendulum_energies(q, v):
    def end(angle, length):
        return length * jnp.array([jnp.sin(angle), jnp.cos(angle)])

    x = jnp.array([1.0, 0])
    a, b = body(lambda q: q[0] * x + end(q[1], 0.3), q, v, POLE)
    c, d = body(lambda q: q[0] * x + end(q[1], 0.6) + end(q[2], 0.3), q, v, POLE)
    turning = TURNING / 2 * (v[1:] @ v[1:])
    return a + c + CART / 2 * v[0] ** 2 + turning, 9.81 * (b + d)


def double_pendulum_force(q, v, force):
    """Each joint's damping acts on the two bodies that it connects."""
    lower, upper = -0.05 * v[1], -0.05 * (v[2] - v[1])
    return jnp.array([500 * force - 0.05 * v[0], lower - upper, upper])


def car_path(q):
    return jnp.array([q[0], 0.166 + 1 - jnp.cos(1.64 * q[0])])


def car_force(q, v, force):
    """F along the path; friction on the load; what the engine's steps lose."""
    along, velocity = jax.jvp(car_path, (q,), (jnp.ones(1),))[1], jax.jvp(car_path, (q,), (v,))[1]
    stretch = jnp.linalg.norm(along)
    tangent = along / stretch
    normal = jnp.array([-tangent[1], tangent[0]])
    bend = jax.jvp(lambda q: jax.jvp(car_path, (q,), (jnp.ones(1),))[1], (q,), (jnp.ones(1),))[1]
    curvature = bend @ normal / stretch**2
    speed = velocity @ tangent
    load = jnp.maximum(10 * normal[1] + curvature * speed**2, 0)
    loss = 0.01 * load * jnp.clip(speed / 0.02, -1, 1) + curvature**2 * 0.05 / 2 * speed**3
    return jnp.array([stretch * (force - 0.4 * loss)])


def car_energies(q, v):
    kinetic, weight = body(car_path, q, v, 0.4)
    return kinetic, 10 * weight


def flat(rate, kind) -> Callable[[Any, Any], Any]:
    return lambda s, force: jnp.stack(rate(kind(*s), force))


def car_rate(s, force):
    return jnp.stack(mountain_car._rate(*s, force))


SYSTEMS = {
    "cart_pole": System(
        cartpole_force,
        built(cartpole_force.make_swing_up),
        2,
        # The module's states are x, ẋ, θ, θ̇.
        lambda s, force: flat(cartpole_force._rate, cartpole_force.Physics)(
            s[jnp.array([0, 2, 1, 3])], force
        )[jnp.array([0, 2, 1, 3])],
        cart_pole_energies,
        lambda q, v, force: jnp.array([force, 0.0 * force]),
        10,
    ),
    "acrobot": System(
        acrobot,
        built(acrobot.make),
        2,
        flat(acrobot._rate, acrobot.Physics),
        acrobot_energies,
        lambda q, v, torque: jnp.array([-torque, torque]),
        50,
    ),
    "double_pendulum": System(
        double_pendulum,
        built(double_pendulum.make),
        3,
        lambda s, force: flat(double_pendulum._rate, double_pendulum.Physics)(s, 500 * force),
        double_pendulum_energies,
        double_pendulum_force,
        1,
    ),
    "mountain_car": System(
        mountain_car, built(mountain_car.make), 1, car_rate, car_energies, car_force, 1
    ),
}
every_system = pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)


def lagrange(system: System, s: Array, force: Any) -> Array:
    """The derivative of a state by Lagrange's equations, of the energies, by autodiff."""
    q, v = s[: system.n], s[system.n :]

    def lagrangian(q, v):
        kinetic, potential = system.energies(q, v)
        return kinetic - potential

    momentum = jax.grad(lagrangian, 1)
    inertia = jax.jacobian(momentum, 1)(q, v)
    right = jax.grad(lagrangian)(q, v) - jax.jacobian(momentum)(q, v) @ v
    return jnp.concatenate([v, jnp.linalg.solve(inertia, right + system.force(q, v, force))])


def states(system: System, number: int) -> np.ndarray:
    """Random coordinates and velocities; the car is where its track bends upward."""
    rng = np.random.default_rng(3)
    spread = np.repeat([0.9 if system.n == 1 else 2.5, 3.0], system.n)
    return rng.uniform(-spread, spread, (number, 2 * system.n))


@every_system
def test_accelerations_are_lagranges(system: System):
    forces = np.random.default_rng(4).uniform(-system.limit, system.limit, 50)
    with jax.enable_x64(True):
        both = jax.jit(
            jax.vmap(lambda s, force: (lagrange(system, s, force), system.rate(s, force)))
        )
        expected, actual = both(states(system, 50), forces)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


@every_system
def test_energy_is_conserved_without_force_and_friction(system: System, monkeypatch):
    for name in ("DAMPING", "FRICTION", "LOSS"):
        if hasattr(system.module, name):
            monkeypatch.setattr(system.module, name, 0.0)
    monkeypatch.setattr(system.module, "TRACK", 1e6, raising=False)
    s = np.asarray(states(system, 20) * 0.5, np.float32)
    seconds = system.module.TAU

    @jax.jit
    @jax.vmap
    def energy(s):
        return sum(system.energies(s[: system.n], s[system.n :]))

    @jax.jit
    @jax.vmap
    def run(s):
        def step(s, _):
            after = mechanics.runge_kutta(
                lambda s: system.rate(s, jnp.float32(0)), s, seconds, system.module.SUBSTEPS
            )
            return after, None

        return jax.lax.scan(step, s, None, round(10 / seconds))[0]

    after = run(s)
    assert np.abs(after - s).max() > 1
    after, before, still = (np.asarray(energy(x)) for x in (after, s, np.zeros_like(s)))
    drift, scale = np.abs(after - before), np.abs(still) + 1
    assert (drift / scale).max() < 0.01, drift


def state_of(system: System, s: Any) -> Any:
    """The task's state with these coordinates and velocities."""
    s = [np.asarray(x, np.float32) for x in s]
    t = np.zeros(np.shape(s[0]), np.int32)
    if system.module is mountain_car:
        return mountain_car.State(*s, t)
    if system.module is cartpole_force:
        s = [s[0], s[2], s[1], s[3]]
    return system.module.State(system.module.Physics(*s), t)


def coordinates(system: System, state: Any) -> np.ndarray:
    s = np.stack(state[:2] if system.module is mountain_car else state.physics, -1)
    return s[..., [0, 2, 1, 3]] if system.module is cartpole_force else s


def angle_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs((a - b + math.pi) % (2 * math.pi) - math.pi)


@every_system
def test_steps_are_those_of_a_finer_integration(system: System):
    """Against Lagrange's equations in NumPy's float64 with a hundred times as many steps."""
    rng = np.random.default_rng(5)
    s = states(system, 4) * 0.3
    with jax.enable_x64(True):
        rate = jax.jit(jax.vmap(lambda s, force: lagrange(system, s, force)))
        step = jax.jit(jax.vmap(system.env.step, (0, 0, None)))
        state = state_of(system, s.T)
        h = system.module.TAU / 100
        for _ in range(12):
            force = rng.uniform(-1.5, 1.5, 4) * system.limit  # also beyond the bounds
            applied = np.clip(force, -system.limit, system.limit)
            for _ in range(100):
                k1 = np.asarray(rate(s, applied))
                k2 = np.asarray(rate(s + h / 2 * k1, applied))
                k3 = np.asarray(rate(s + h / 2 * k2, applied))
                k4 = np.asarray(rate(s + h * k3, applied))
                s = s + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            with jax.enable_x64(False):
                state = step(state, np.asarray(force, np.float32)[:, None], KEY)[0]
    actual = coordinates(system, state)
    n = system.n
    assert angle_difference(actual[:, :n], s[:, :n]).max() < 2e-3
    np.testing.assert_allclose(actual[:, n:], s[:, n:], rtol=5e-3, atol=5e-3)


@every_system
def test_equilibria_stay(system: System):
    state = state_of(system, np.zeros(2 * system.n))
    for _ in range(50):
        state, *_ = system.env.step(state, np.zeros(1, np.float32), KEY)
    np.testing.assert_array_equal(coordinates(system, state), 0)


@every_system
def test_mirrored_states_have_mirrored_steps(system: System):
    for s, force in zip(states(system, 6) * 0.3, np.linspace(-2, 2, 6), strict=True):
        action = np.array([force * system.limit], np.float32)
        a, _, reward, *ends = system.env.step(state_of(system, s), action, KEY)
        b, _, other, *others = system.env.step(state_of(system, -s), -action, KEY)
        np.testing.assert_allclose(coordinates(system, a), -coordinates(system, b), atol=1e-6)
        np.testing.assert_allclose(reward, other, atol=1e-6)
        assert ends == others or system.module is mountain_car


@every_system
def test_actions_are_clipped(system: System):
    at = state_of(system, states(system, 1)[0] * 0.3)
    space: Any = system.env.spec.action_space
    for sign in (-1, 1):
        bound = sign * np.array([system.limit], np.float32)
        np.testing.assert_array_equal(bound, space.high if sign > 0 else space.low)
        inside, at_bound, outside = (
            system.env.step(at, bound * np.float32(factor), KEY) for factor in (0.9, 1, 3)
        )
        jax.tree.map(np.testing.assert_array_equal, at_bound, outside)
        assert (np.asarray(inside[1]) != np.asarray(at_bound[1])).any()


MAKE = {
    "balance": cartpole_force.make_balance,
    "swing_up": cartpole_force.make_swing_up,
    "car": mountain_car.make,
    "acrobot": acrobot.make,
    "double_pendulum": double_pendulum.make,
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_the_horizon_truncates(make):
    env = built(make, max_steps=3)
    state, _ = env.reset(KEY)
    ends = []
    for _ in range(3):
        state, _, _, *end = env.step(state, np.zeros(1, np.float32), KEY)
        ends.append([bool(e) for e in end])
    assert ends == [[False, False], [False, False], [False, True]]


def run(name: str, num_steps: int = 501, num_envs: int = 512):
    """Returns of the finished episodes of uniform actions; the first rows; the last slots."""
    env = MAKE[name]()
    space: Any = env.spec.action_space

    @jax.jit
    def play(key):
        slots, rows = start(env, key, jnp.arange(num_envs))

        def body(carry, key):
            slots, total, count = carry
            action = jax.random.uniform(key, (num_envs, 1), minval=space.low, maxval=space.high)
            slots, _ = advance(env, slots, action)
            total += jnp.where(slots.done, slots.episode_return, 0).sum()
            return (slots, total, count + slots.done.sum()), None

        begin = slots, jnp.float32(0), jnp.int32(0)
        end, _ = jax.lax.scan(body, begin, jax.random.split(key, num_steps))
        return rows.observation, end

    observation, (_, total, count) = play(jax.random.key(1))
    return np.asarray(observation), float(total) / int(count)


@pytest.mark.parametrize(
    ("name", "ours", "published", "within"),
    [  # Duan et al. 2016, table 1, "Random"; acrobot's is not that of such torques
        ("balance", 79.4, 77.1, 5),
        ("swing_up", -150.8, -153.4, 5),
        ("car", -412.4, -415.4, 5),
        ("acrobot", -1229, None, 0),
        ("double_pendulum", 155.3, 149.7, 8),
    ],
)
def test_random_returns_are_those_of_the_docstrings(name, ours, published, within):
    starts, mean = run(name)
    assert mean == pytest.approx(ours, rel=0.02)
    assert published is None or abs(mean - published) < within
    values = starts
    if name == "double_pendulum":
        values = np.column_stack([np.arcsin(starts[:, 1]), starts[:, 4]])
    assert START[name].keys() <= set(range(values.shape[1]))
    for column, (middle, spread) in START[name].items():
        assert np.abs(values[:, column] - middle).max() <= spread * (1 + 1e-6)
        assert np.abs(values[:, column] - middle).max() >= spread * 0.97
        assert np.abs(values[:, column].mean() - middle) <= spread * 0.15
    if name == "acrobot":
        np.testing.assert_allclose(values.std(0)[[0, 2, 3, 5]], [0.1, 0.01, 0.1, 0.01], rtol=0.15)


# Middle and half-width of what is uniform, by column.
START: dict[str, dict[int, tuple[float, float]]] = {
    "balance": {0: (0, 0.12), 1: (0, 0.2), 2: (0, 0.01), 3: (0, 0.2)},
    "swing_up": {0: (0, 1), 1: (0, 2), 2: (math.pi, 1), 3: (0, 3)},
    "car": {0: (0, 0), 1: (0, 1)},
    "acrobot": {},
    "double_pendulum": {0: (0, math.pi / 9), 1: (1, 0)},
}


# Rewards and ends by hand


def outcome(make, state, action=0.0):
    """State after one step, reward, terminated, truncated."""
    after, _, *rest = built(make).step(state, np.array([action], np.float32), KEY)
    return after, *(np.asarray(value).item() for value in rest)


def cart_pole(x=0.0, x_dot=0.0, theta=0.0, theta_dot=0.0, t=0):
    values = map(np.float32, (x, x_dot, theta, theta_dot))
    return cartpole_force.State(cartpole_force.Physics(*values), np.int32(t))


def test_balancing_by_hand():
    make = cartpole_force.make_balance
    assert outcome(make, cart_pole())[1:] == (10, False, False)
    after, reward, *ends = outcome(make, cart_pole(theta=0.1), 20)  # clipped to 10 N
    theta = float(after.physics.theta)
    assert reward == pytest.approx(10 - (1 - math.cos(theta)) - 1e-5 * 100, abs=1e-6)
    assert ends == [False, False]
    for left in (cart_pole(x=2.39, x_dot=1), cart_pole(theta=-0.19, theta_dot=-1)):
        assert outcome(make, left)[1:] == (0, True, False)
        assert outcome(make, left._replace(t=np.int32(499)))[1:] == (0, True, False)
    inside = cart_pole(x=2.3, theta=0.19, theta_dot=-1)
    assert outcome(make, inside)[2:] == (False, False)


def test_swinging_up_by_hand():
    make = cartpole_force.make_swing_up
    assert outcome(make, cart_pole(theta=math.pi))[1] == pytest.approx(-1)
    assert outcome(make, cart_pole())[1:] == (1, False, False)
    after, reward, *ends = outcome(make, cart_pole(theta=2.0, theta_dot=7.0))
    assert reward == pytest.approx(math.cos(float(after.physics.theta)), abs=1e-6)
    assert ends == [False, False]
    assert outcome(make, cart_pole(x=-2.99, x_dot=-1))[1:] == (-100, True, False)
    assert outcome(make, cart_pole(x=2.9))[2:] == (False, False)


def test_a_push_to_the_right_moves_the_cart_right_and_leans_the_pole_left():
    after, *_ = outcome(cartpole_force.make_balance, cart_pole(), 10)
    assert after.physics.x > 0
    assert after.physics.theta > 0  # counter-clockwise: the tip stays behind


def car(x=0.0, x_dot=0.0, t=0):
    return mountain_car.State(np.float32(x), np.float32(x_dot), np.int32(t))


def test_mountain_car_by_hand():
    make = mountain_car.make
    assert outcome(make, car())[1] == pytest.approx(-1 + 0.166)
    after, reward, terminated, _ = outcome(make, car(x=0.58, x_dot=1))
    x = float(after.x)
    assert reward == pytest.approx(0.166 - math.cos(1.64 * x), abs=1e-6)
    assert (terminated, x >= 0.6) == (True, True)
    assert outcome(make, car(x=0.58, x_dot=1, t=499))[2:] == (True, False)
    assert outcome(make, car(x=-0.7, x_dot=-1))[2:] == (False, False)
    assert outcome(make, car(x=-1.99, x_dot=-1))[2:] == (True, False)


def test_a_car_at_rest_needs_a_push():
    """Friction, 0.04 N, slows it down, and a force of 1 N cannot lift it to the goal at once."""
    env, state = built(mountain_car.make), car(x_dot=0.3)
    for _ in range(200):
        state, *_ = env.step(state, np.zeros(1, np.float32), KEY)
    assert abs(float(state.x_dot)) < 0.01
    assert abs(float(state.x)) < 0.02
    furthest = 0.0
    for _ in range(200):
        state, *_ = env.step(state, np.ones(1, np.float32), KEY)
        furthest = max(furthest, float(state.x))
    assert 0.1 < furthest < 0.4


def links(upper=0.0, lower=0.0, upper_dot=0.0, lower_dot=0.0):
    values = map(np.float32, (upper, lower, upper_dot, lower_dot))
    return acrobot.State(acrobot.Physics(*values), np.int32(0))


def test_acrobot_by_hand():
    make = acrobot.make
    assert outcome(make, links())[1:] == (-4, False, False)
    assert outcome(make, links(math.pi, math.pi))[1] == pytest.approx(0, abs=1e-5)
    after, reward, *_ = outcome(make, links(math.pi / 2, -math.pi / 2))
    a, b = (float(angle) for angle in after.physics[:2])
    tip = np.array([math.sin(a) - math.sin(b), -math.cos(a) - math.cos(b)])
    assert reward == pytest.approx(-np.linalg.norm(tip - [0, 2]), abs=1e-5)
    assert reward == pytest.approx(-math.hypot(2, 2), abs=0.02)
    after, *_ = outcome(make, links(), 50)
    assert after.physics.lower > 0 > after.physics.upper
    observation = built(make).step(links(0.3, -0.4), np.zeros(1, np.float32), KEY)[1]
    np.testing.assert_allclose(
        np.asarray(observation)[[0, 1, 3, 4]],
        [math.sin(0.3), math.cos(0.3), math.sin(-0.4), math.cos(-0.4)],
        atol=0.01,
    )


def test_acrobots_speeds_have_the_engines_limit():
    env, state = built(acrobot.make), links(upper_dot=157, lower_dot=-157)
    for _ in range(5):
        state, observation, reward, *_ = env.step(state, np.array([50], np.float32), KEY)
        assert np.abs(state.physics.upper_dot) <= acrobot.MAX_SPEED
        assert np.abs(state.physics.lower_dot) <= acrobot.MAX_SPEED
        assert np.abs(np.asarray(state.physics[:2])).max() <= math.pi + 1e-6
        assert np.isfinite(observation).all()
        assert np.isfinite(reward)
    state = links()
    for _ in range(500):  # the torque that turns them fastest
        state, observation, *_ = env.step(state, np.array([50], np.float32), KEY)
    assert np.isfinite(observation).all()


def poles(x=0.0, lower=0.0, upper=0.0, x_dot=0.0, lower_dot=0.0, upper_dot=0.0):
    values = map(np.float32, (x, lower, upper, x_dot, lower_dot, upper_dot))
    return double_pendulum.State(double_pendulum.Physics(*values), np.int32(0))


def test_double_pendulum_by_hand():
    make = double_pendulum.make
    assert outcome(make, poles())[1] == pytest.approx(10 - 0.8**2)
    before = poles(0.5, 0.1, -0.2, 0.3, 0.4, -0.6)
    after, reward, *ends = outcome(make, before, 0.3)
    x, a, b, _, a_dot, b_dot = (float(value) for value in after.physics)
    tip = x + 0.6 * (math.sin(a) + math.sin(b)), 0.6 * (math.cos(a) + math.cos(b))
    expected = 10 - 0.01 * tip[0] ** 2 - (tip[1] - 2) ** 2
    expected -= 1e-3 * a_dot**2 + 5e-3 * (b_dot - a_dot) ** 2
    assert reward == pytest.approx(expected, abs=1e-5)
    assert ends == [False, False]
    lean = math.acos(1 / 1.2)
    assert outcome(make, poles(lower=lean + 0.01, upper=lean + 0.01))[2:] == (True, False)
    assert outcome(make, poles(lower=lean - 0.05, upper=lean - 0.05))[2:] == (False, False)


def test_double_pendulum_is_mujocos():
    """The observations of MuJoCo 4.0.0 with rllab's model, without its horizontal gravity."""
    env = built(double_pendulum.make)
    state = poles(0.5, 0.1, -0.2, 0.3, 0.4, -0.6)
    for action, expected in zip((0.3, -1.0, 0.05), MUJOCO, strict=True):
        state, observation, *_ = env.step(state, np.array([action], np.float32), KEY)
        np.testing.assert_allclose(observation, expected, atol=2e-4)


MUJOCO = [
    [0.508382, 0.104447, -0.31316, 0.99453, 0.9497, 0.538031, 0.065358, -0.856854, 0, 0, 0],
    [0.510636, 0.123446, -0.351053, 0.992351, 0.936356, -0.311816, 1.83857, -3.134201, 0, 0, 0],
    [0.504695, 0.160467, -0.411605, 0.987041, 0.911362, -0.282653, 1.905113, -3.424879, 0, 0, 0],
]


def test_the_track_of_the_double_pendulum_ends():
    env, state = built(double_pendulum.make), poles(x=9.5, x_dot=5)
    seen = []
    for _ in range(100):
        state, observation, *_ = env.step(state, np.array([1], np.float32), KEY)
        seen.append(np.asarray(observation)[[0, 8]])
    places, stops = np.array(seen).T
    assert 10 < places.max() < 10.2
    assert set(np.round(stops)) <= {0, -10}
    assert (stops[places > 10.01] < 0).any()
    assert not stops[places < 10].any()


def test_runge_kutta_is_of_fourth_order():
    def error(steps):
        def integrate(*begin):
            return mechanics.runge_kutta(lambda s: (s[1], -s[0]), begin, 1.0, steps)

        with jax.enable_x64(True):
            x, v = jax.jit(integrate)(np.float64(1), np.float64(0))
            return abs(float(x) - math.cos(1)) + abs(float(v) + math.sin(1))

    assert error(4) / error(8) == pytest.approx(16, rel=0.1)


def test_solving_two_equations():
    x, y = mechanics.solve(2.0, jnp.float32(-1), 3.0, (jnp.float32(1), jnp.float32(4)))
    np.testing.assert_allclose([2 * x - y, -x + 3 * y], [1, 4], rtol=1e-6)


# Pictures


@pytest.mark.parametrize(
    ("make", "state", "at"),
    [  # row and column of the pole's or car's middle, or of the tip
        (cartpole_force.make_balance, cart_pole(x=1, theta=math.pi / 2), (143, 240)),
        (mountain_car.make, car(x=0.5), (164, 290)),
        (acrobot.make, links(math.pi / 2, 0), (165, 175)),
        (double_pendulum.make, poles(x=3, lower=0.0, upper=math.pi / 2), (99, 261)),
    ],
)
def test_bodies_are_drawn_where_they_are(make, state, at):
    env = make()
    assert env.frames_per_second in (20, 50)
    assert env.render is not None
    picture = np.asarray(env.render(jax.tree.map(np.asarray, state)))
    row, column = at
    patch = picture[row - 2 : row + 3, column - 2 : column + 3].reshape(-1, 3)
    bright = {mechanics.WHITE, mechanics.ORANGE, mechanics.RED}
    assert {tuple(pixel) for pixel in patch.tolist()} & bright


def test_what_leaves_the_picture_is_left_out():
    picture = mechanics.canvas(20, 30)
    mechanics.draw(picture, [(-100, 0), (100, 0)], 1, (0, 0), mechanics.RED, 2)
    assert (picture == mechanics.RED).all(-1).any(1).sum() == 2
    before = picture.copy()
    mechanics.draw(picture, [(50, 50), (60, 60)], 1, (0, 0), mechanics.WHITE)
    np.testing.assert_array_equal(picture, before)
