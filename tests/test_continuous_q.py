"""DDPG and SAC against their formulas; what every agent promises is tested in test_agents.py."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import pronk
from pronk import agents
from pronk.agents import ddpg, sac
from pronk.agents.continuous_q import Behaviour, ContinuousQ
from pronk.config.registry import agent_module
from pronk.errors import UserError
from pronk.maths import squashed
from pronk.run.evaluate import Evaluation
from pronk.run.inspect import inspect
from pronk.run.policy import export
from pronk.types import Batch, EnvSpec, LearnerState, TimeStep, Trajectory

KEY = jax.random.key(0)
OBSERVATIONS = spaces.Box(-1, 1, (2,))
ACTIONS = spaces.Box(np.array([-2.0, 1.0], np.float32), np.array([2.0, 5.0], np.float32))
SPEC = EnvSpec("test", OBSERVATIONS, ACTIONS)
BUILD: dict[str, Any] = {"ddpg": ddpg.build, "sac": sac.build}
both = pytest.mark.parametrize("name", BUILD)
# A function of an agent is compiled once, also where it is a method, which is another object each
# time it is looked up.
jit = functools.cache(jax.jit)


@functools.cache
def linear(name: str, **settings: Any) -> tuple[Any, LearnerState]:
    """An agent whose networks are linear, with parameters and targets that all differ."""
    config = agent_module(name).config(hidden_sizes=(), **settings)
    agent = BUILD[name](config, SPEC)
    state = jit(agent.init)(KEY)
    rng = np.random.default_rng(0)

    def moved(tree: Any) -> Any:
        return jax.tree.map(lambda x: np.asarray(x) + np.float32(rng.normal(size=x.shape)), tree)

    target = moved(state.extra["target"])
    return agent, state._replace(
        params=moved(state.params), extra={"target": target, "uniform": jnp.bool_(False)}
    )


action_of = jax.jit(squashed.bounds("x", SPEC).action)


def batch_of(rows: int = 6, columns: int = 3, seed: int = 1) -> Batch:
    """Random rows with every kind of boundary."""
    rng = np.random.default_rng(seed)
    shape = (rows, columns)
    flags = rng.uniform(size=(3, *shape)) < 0.3
    timestep = TimeStep(
        rng.normal(size=(*shape, 2)).astype(np.float32),
        rng.normal(size=shape).astype(np.float32),
        flags[0],
        flags[1],
        flags[2],
        np.zeros(shape, np.int32),
    )
    unit = rng.uniform(-1, 1, (*shape, 2)).astype(np.float32)
    action = np.asarray(action_of(unit))
    version = np.zeros(columns, np.int32)
    return Batch(Trajectory(timestep, action, {"unit_action": unit}, (), version))


def layer(params: Any) -> tuple[np.ndarray, np.ndarray]:
    last = jax.tree.map(np.float64, params["params"]["last"])
    return last["kernel"], last["bias"]


def q_of(critic: Any, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
    kernel, bias = layer(critic)
    return (np.concatenate([observation, action], -1) @ kernel + bias)[..., 0]


# The squashed Gaussian.


def test_the_squashed_density_integrates_to_its_distribution() -> None:
    """On the scale where ±1 are the bounds: its integral up to c is Φ((atanh c − μ) / σ), and the
    mean of −log p is the entropy of that density."""
    mean, log_std = 0.4, np.log(0.7)
    grid = np.tanh(np.linspace(-9, 9, 40_001))  # fine near the bounds
    middle = 0.5 * (grid[1:] + grid[:-1])
    noise = (np.arctanh(middle) - mean) / np.exp(log_std)
    params = np.broadcast_to(np.array([mean, log_std]), (len(noise), 2))
    with jax.enable_x64(True):
        unit, log_prob = map(np.asarray, jit(squashed.sample)(params, noise[:, None]))
    np.testing.assert_allclose(unit[:, 0], middle, atol=1e-9)
    mass = np.exp(log_prob) * np.diff(grid)
    normal = np.vectorize(lambda z: 0.5 * (1 + math.erf(z / 2**0.5)))
    for c in (-0.9, 0.0, 0.6, 0.99):
        expected = normal((np.arctanh(c) - mean) / np.exp(log_std))
        np.testing.assert_allclose(mass[middle < c].sum(), expected, atol=2e-4)
    np.testing.assert_allclose(mass.sum(), 1.0, atol=1e-5)
    drawn = np.random.default_rng(0).normal(size=(200_000, 1)).astype(np.float32)
    first = np.broadcast_to(np.array([mean, log_std], np.float32), (len(drawn), 2))
    estimate = -np.mean(jit(squashed.sample)(first, drawn)[1])
    np.testing.assert_allclose(estimate, -np.sum(mass * log_prob), atol=5e-3)


def test_log_probabilities_add_up_over_dimensions() -> None:
    params = np.array([[0.3, -1.0, 0.2, -0.5]], np.float32)
    noise = np.array([[0.4, -1.3]], np.float32)
    sample = jit(squashed.sample)
    whole = sample(params, noise)[1]
    parts = [sample(params[:, i::2], noise[:, i : i + 1])[1] for i in (0, 1)]
    np.testing.assert_allclose(whole, sum(parts), rtol=1e-6)


@jax.jit
@jax.value_and_grad
def far_out_log_prob(params: Any) -> Any:
    return squashed.sample(params, jnp.array([[3.0]]))[1][0]


@pytest.mark.parametrize(("mean", "log_std"), [(30.0, 5.0), (-30.0, -100.0), (0.0, 50.0)])
def test_far_out_log_probabilities_and_gradients_are_finite(mean: float, log_std: float) -> None:
    value, gradient = far_out_log_prob(np.array([[mean, log_std]], np.float32))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_actions_are_scaled_to_their_bounds_exactly() -> None:
    bounds = squashed.bounds("x", SPEC)
    unit = np.array([[-1, -1], [0, 0], [1, 1], [1.5, -1.5]], np.float32)
    np.testing.assert_array_equal(jit(bounds.action)(unit), [[-2, 1], [0, 3], [2, 5], [2, 1]])
    huge = squashed.Bounds((-3e38,), (3e38,))
    np.testing.assert_array_equal(jit(huge.action)(np.zeros((1, 1), np.float32)), 0.0)


# Refused actions.


@both
@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Discrete(3), r"are Discrete\(3\); expected a Box: use another agent, such as ppo"),
        (spaces.MultiBinary(2), "expected a Box"),
        (spaces.Box(-np.inf, np.inf, (2,)), "dimension 0 .* goes from -inf to inf; expected two"),
        (
            spaces.Box(np.array([-1, 0], np.float32), np.array([1, np.inf], np.float32)),
            "dimension 1 of the actions of 'test', .* goes from 0 to inf; expected two finite",
        ),
        (spaces.Box(-3e38, 3e38, (1,)), "goes from -inf to inf"),
        (spaces.Box(0, 3, (1,), np.int32), "expected a Box of floats"),
        (spaces.Box(-1, 1, (2, 2)), "one-dimensional Box"),
        (
            spaces.Box(np.array([-1, 0.5], np.float32), np.array([1, 0.5], np.float32)),
            "dimension 1 of the action space .* has two equal bounds, 0.5",
        ),
    ],
)
def test_other_actions_are_refused(name: str, space: gym.Space, message: str) -> None:
    with pytest.raises(UserError, match=message):
        agents.make(name, agent_module(name).config(), spec_of(space), horizon=1)


def spec_of(space: gym.Space) -> EnvSpec:
    return EnvSpec("test", OBSERVATIONS, space)


@both
def test_a_replay_without_room_is_refused(name: str) -> None:
    config = agent_module(name).config(replay_capacity=100, replay_minimum=101)
    with pytest.raises(UserError, match="`--replay-minimum` is 101 transitions"):
        agents.make(name, config, SPEC, horizon=1)


# Targets and losses by their formulas.


def expected_target(name: str, agent: Any, state: LearnerState, batch: Batch, key: Any) -> Any:
    """`[T, B]`, one transition at a time, in float64."""
    timestep = batch.trajectory.timestep
    part = state.params if name == "sac" else state.extra["target"]
    kernel, bias = layer(part["actor"])
    following = timestep.observation[1:].reshape(-1, 2)
    outputs = following @ kernel + bias
    critics = state.extra["target"]["critic"]
    if name == "sac":
        draw = jax.jit(jax.random.normal, static_argnums=1)
        noise = np.float64(draw(key, (len(outputs), 2)))
        mean, log_std = np.split(outputs, 2, -1)
        raw = mean + np.exp(np.clip(log_std, -20, 2)) * noise
        density = -0.5 * noise**2 - np.clip(log_std, -20, 2) - 0.5 * np.log(2 * np.pi)
        log_prob = np.sum(density - np.log1p(-(np.tanh(raw) ** 2)), -1)
        q = [q_of(c, following, np.tanh(raw)) for c in critics]
        assert len(q) == 2
        assert (q[0] < q[1]).any()
        assert (q[1] < q[0]).any()
        value = np.minimum(*q) - np.exp(float(state.params["log_temperature"])) * log_prob
    else:
        (critic,) = critics
        value = q_of(critic, following, np.tanh(outputs))
    reward = timestep.reward[1:].ravel() * agent.config.reward_scale
    return reward + 0.99 * np.where(timestep.terminated[1:].ravel(), 0.0, value)


@both
def test_the_target_is_the_papers(name: str) -> None:
    """r + γ (min Q̄ − α log π) for SAC, r + γ Q̄(x', μ̄(x')) for DDPG; a terminated transition
    does not bootstrap, a truncated one does, from its own last observation."""
    agent, state = linear(name, reward_scale=0.5)
    batch = batch_of()
    samples = jit(agent.samples)(state.hyper, batch)
    key = jax.random.key(3)
    target = jit(agent.target)(state, samples, *([key] if name == "sac" else []))
    weight = 1.0 - batch.trajectory.timestep.first[1:].ravel()
    assert 0 < weight.sum() < weight.size
    np.testing.assert_array_equal(samples.weight, weight)
    expected = expected_target(name, agent, state, batch, key)
    np.testing.assert_allclose(np.where(weight, target - expected, 0), 0.0, atol=1e-4)


@both
def test_ends(name: str) -> None:
    """Learning ignores what a terminated transition leads to, and not what a truncated one does."""
    agent, state = linear(name)
    learn = jit(agent.learn)

    def updated(observation: float, **ends: bool) -> Any:
        batch = batch_of(2, 1)
        rows = batch.trajectory.timestep
        flags = {n: np.array([[False], [ends.get(n, False)]]) for n in ("terminated", "truncated")}
        rows = rows._replace(first=np.zeros((2, 1), bool), **flags)
        rows.observation[1] = observation
        learnt = learn(state, Batch(batch.trajectory._replace(timestep=rows)))
        return learnt.metrics["td_error"], learnt.metrics["loss/value"]

    for end, reaches in (("terminated", False), ("truncated", True)):
        one, other = (updated(x, **{end: True}) for x in (0.0, 5.0))
        assert (not same(one, other)) == reaches
    assert same(updated(5.0, truncated=True), updated(5.0))  # as within an episode


def same(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


@both
def test_the_gradient_of_the_values(name: str) -> None:
    """The mean over real transitions of (Q − y) ∂Q, for each critic; DDPG adds λ times weights."""
    agent, state = linear(name)
    batch = batch_of()
    samples = jax.tree.map(np.asarray, jit(agent.samples)(state.hyper, batch))
    rng = np.random.default_rng(2)
    target = rng.normal(size=samples.weight.shape).astype(np.float32)
    decay = 0.0
    if name == "ddpg":
        decay = agent.config.critic_weight_decay
        assert decay > 0
        loss, more = agent.critic_loss, (state.hyper,)
    else:
        loss, more = agent.value_loss, ()
    gradients = jax.jit(jax.grad(lambda c: loss(c, samples, target, *more)[0]))(
        state.params["critic"]
    )
    inputs = np.concatenate([samples.observation, samples.action], -1)
    count = np.sum(samples.weight)
    for critic, gradient in zip(state.params["critic"], gradients, strict=True):
        q = q_of(critic, np.asarray(samples.observation), np.asarray(samples.action))
        error = samples.weight * (q - target)
        kernel, bias = layer(gradient)
        expected = inputs.T @ error / count + decay * layer(critic)[0][:, 0]
        np.testing.assert_allclose(kernel[:, 0], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(bias, [error.sum() / count], rtol=1e-4, atol=1e-5)


def test_the_policy_climbs_the_smaller_of_the_values() -> None:
    """SAC's loss, sampled: the mean of α log π − min Q."""
    agent, state = linear("sac")
    samples = jax.tree.map(np.asarray, jit(agent.samples)(state.hyper, batch_of()))
    log_temperature = state.params["log_temperature"]
    args = state.params["critic"], log_temperature, samples, KEY
    loss, entropy = jit(agent.policy_loss)(state.params["actor"], *args)
    kernel, bias = layer(state.params["actor"])
    outputs = samples.observation @ kernel + bias
    action, log_prob = map(np.asarray, jit(agent.sample)(np.float32(outputs), KEY))
    q = [q_of(c, np.asarray(samples.observation), np.asarray(action)) for c in args[0]]
    each = np.exp(log_temperature) * log_prob - np.minimum(*q)
    weight = np.asarray(samples.weight)
    np.testing.assert_allclose(loss, (weight * each).sum() / weight.sum(), rtol=1e-4)
    np.testing.assert_allclose(entropy, -(weight * log_prob).sum() / weight.sum(), rtol=1e-4)


def test_the_deterministic_policy_gradient() -> None:
    """∂Q/∂a · ∂μ/∂θ, averaged (Lillicrap et al. 2016, eq. 6)."""
    agent, state = linear("ddpg")
    samples = jit(agent.samples)(state.hyper, batch_of())
    critic = state.params["critic"]
    gradient = jax.jit(jax.grad(agent.policy_loss))(state.params["actor"], critic, samples)
    observation, weight = np.asarray(samples.observation), np.asarray(samples.weight)
    kernel, bias = layer(state.params["actor"])
    slope = 1 - np.tanh(observation @ kernel + bias) ** 2
    climb = layer(critic[0])[0][2:, 0] * slope * weight[:, None] / weight.sum()
    np.testing.assert_allclose(layer(gradient)[0], -observation.T @ climb, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(layer(gradient)[1], -climb.sum(0), rtol=1e-4, atol=1e-6)


@both
def test_neither_part_moves_the_other(name: str) -> None:
    """The policy's step changes no critic, and the critics' step no policy."""
    agent, state = linear(name)
    learn = jit(agent.learn)

    def parts(**rates: float) -> Any:
        hyper = state.hyper | {k: np.float32(v) for k, v in rates.items()}
        return learn(state._replace(hyper=hyper), batch_of()).state.params

    usual = parts()
    no_policy, no_critic = parts(learning_rate=0.0), parts(critic_learning_rate=0.0)
    assert same(no_policy["actor"], state.params["actor"])
    assert same(no_policy["critic"], usual["critic"])
    assert same(no_critic["critic"], state.params["critic"])
    assert not same(no_critic["actor"], state.params["actor"])
    assert not same(usual["critic"], state.params["critic"])


@both
def test_targets_move_by_tau(name: str) -> None:
    agent, state = linear(name)
    after = jit(agent.learn)(state, batch_of()).state
    rate = agent.config.target_rate
    for part, target in after.extra["target"].items():
        before = state.extra["target"][part]
        expected = jax.tree.map(lambda t, p: (1 - rate) * t + rate * p, before, after.params[part])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), target, expected)
        assert not same(target, before)
    assert set(after.extra["target"]) == {"critic"} | ({"actor"} if name == "ddpg" else set())


@pytest.mark.parametrize(("target_entropy", "sign"), [(-50.0, -1), (50.0, 1)])
def test_the_temperature_moves_towards_the_target_entropy(target_entropy: float, sign: int) -> None:
    """It falls while there is more entropy than that, and rises while there is less."""
    agent, state = linear("sac")
    hyper = state.hyper | {"target_entropy": jnp.float32(target_entropy)}
    state = state._replace(hyper=hyper)
    after, metrics, _ = jit(agent.learn)(state, batch_of())
    moved = after.params["log_temperature"] - state.params["log_temperature"]
    np.testing.assert_allclose(moved, sign * 3e-4, rtol=1e-2)  # Adam's first step
    np.testing.assert_allclose(metrics["temperature"], np.exp(state.params["log_temperature"]))
    still = hyper | {"temperature_learning_rate": jnp.float32(0.0)}
    after = jit(agent.learn)(state._replace(hyper=still), batch_of()).state
    assert same(after.params["log_temperature"], state.params["log_temperature"])


def test_the_target_entropy_is_per_dimension() -> None:
    """−dim(A), at the default: the loss has no slope where the entropy is just that."""
    agent, state = linear("sac")
    slope = jax.grad(agent.temperature_loss)
    assert slope(jnp.float32(0.3), jnp.float32(-2.0), state.hyper) == 0
    assert slope(jnp.float32(0.3), jnp.float32(-1.0), state.hyper) == 1


@both
def test_dummies_do_not_count(name: str) -> None:
    """A mean is over the real transitions, and a batch of dummies changes no value."""
    agent, state = linear(name)
    learn = jit(agent.learn)
    batch = batch_of(2, 4)
    first = np.array([[False] * 4, [False, False, False, True]])
    rows = batch.trajectory.timestep._replace(first=first)
    whole = Batch(batch.trajectory._replace(timestep=rows))
    columns = jax.tree.map(lambda x: x[:, :3], batch.trajectory._replace(timestep=rows, version=()))
    real = Batch(columns._replace(version=np.zeros(3, np.int32)))
    (after, metrics, _), (expected, others, _) = learn(state, whole), learn(state, real)
    assert metrics["steps"] == others["steps"] == 3
    if name == "ddpg":  # SAC samples other actions for a batch of another width
        np.testing.assert_allclose(metrics["gradient_norm"], others["gradient_norm"], rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            after.params,
            expected.params,
        )
    np.testing.assert_allclose(metrics["q_mean"], others["q_mean"], rtol=1e-5)
    nothing = Batch(batch.trajectory._replace(timestep=rows._replace(first=np.ones((2, 4), bool))))
    if name == "ddpg":
        state = state._replace(hyper=state.hyper | {"critic_weight_decay": jnp.float32(0)})
    after, metrics, _ = learn(state, nothing)
    assert same(after.params, state.params)
    assert metrics["gradient_norm"] == metrics["steps"] == after.skipped == 0


@both
def test_nan_leaves_everything_as_it_was(name: str) -> None:
    agent, state = linear(name)
    batch = batch_of()
    timestep = batch.trajectory.timestep
    timestep = timestep._replace(reward=np.full_like(timestep.reward, np.nan))
    bad = Batch(batch.trajectory._replace(timestep=timestep))
    after = jit(agent.learn)(state, bad).state
    for part in ("params", "opt_state", "extra"):
        assert same(getattr(after, part), getattr(state, part))
    assert (after.skipped, after.updates) == (1, 1)


# Acting.


def acted(
    agent: ContinuousQ, state: LearnerState, carry: Any, key: Any, first: bool = False
) -> Any:
    zeros = np.zeros(4000, np.float32)
    timestep = TimeStep(
        np.zeros((4000, 2), np.float32),
        zeros,
        zeros > 0,
        zeros > 0,
        np.full(4000, first),
        np.zeros(4000, np.int32),
    )
    return jit(agent.act)(agent.behaviour(state), carry, timestep, key)


@both
def test_actions_are_uniform_until_the_first_update(name: str) -> None:
    agent, _state = linear(name)
    fresh = jit(agent.init)(KEY)
    carry = agent.initial_carry(KEY, np.arange(4000), 4000, False)
    action, _, extras = acted(agent, fresh, carry, KEY)
    share = np.histogram(action[:, 1], 4, (1, 5))[0] / 4000
    np.testing.assert_allclose(share, 0.25, atol=0.03)
    np.testing.assert_allclose(agent.bounds.action(extras["unit_action"]), action)
    learnt = jit(agent.learn)(fresh, batch_of()).state
    assert not learnt.extra["uniform"]
    action = acted(agent, learnt, carry, KEY)[0]
    assert np.ptp(np.histogram(action[:, 1], 4, (1, 5))[0] / 4000) > 0.06
    # Another run that begins with this one's parameters acts by them at once.
    started = agent.warm_start(fresh, agent.behaviour(learnt))
    assert isinstance(agent.behaviour(started), Behaviour)
    np.testing.assert_array_equal(acted(agent, started, carry, KEY)[0], action)
    greedy = agent.initial_carry(KEY, np.arange(4000), 4000, True)
    assert np.ptp(acted(agent, fresh, greedy, KEY)[0], axis=0).max() == 0


@pytest.mark.parametrize("correlation", [0.0, 0.85])
def test_noise_has_its_deviation_and_correlation(correlation: float) -> None:
    agent, state = linear("ddpg", noise_std=0.1, noise_correlation=correlation)
    still = jax.tree.map(jnp.zeros_like, state.params)  # acts at 0
    state = state._replace(params=still)
    carry = agent.initial_carry(KEY, np.arange(4000), 4000, False)
    noises = []
    for i in range(4):
        _, carry, extras = acted(agent, state, carry, jax.random.key(i), first=i in (0, 3))
        noises.append(np.ravel(extras["unit_action"]))
    np.testing.assert_allclose(np.std(noises, axis=1), 0.1, rtol=0.05)
    found = [np.corrcoef(a, b)[0, 1] for a, b in itertools.pairwise(noises)]
    np.testing.assert_allclose(found, [correlation, correlation, 0.0], atol=0.05)


def test_the_papers_noise_is_its_ornstein_uhlenbeck_process() -> None:
    """x ← x − θ x + σ ξ, once it is stationary."""
    config = agent_module("ddpg").preset("paper")
    theta, sigma = 0.15, 0.2
    np.testing.assert_allclose(config.noise_correlation, 1 - theta)
    innovation = config.noise_std * np.sqrt(1 - config.noise_correlation**2)
    np.testing.assert_allclose(innovation, sigma, rtol=2e-3)


def test_noisy_actions_stay_within_their_bounds() -> None:
    agent, state = linear("ddpg", noise_std=3.0)
    carry = agent.initial_carry(KEY, np.arange(4000), 4000, False)
    action = acted(agent, state, carry, KEY)[0]
    assert (action.min(0).tolist(), action.max(0).tolist()) == ([-2, 1], [2, 5])


@pytest.mark.parametrize("scale", [0.0, 3e-3])
def test_last_layers_begin_within_their_scale(scale: float) -> None:
    config = agent_module("ddpg").config(last_scale=scale, hidden_sizes=(64,))
    params = jax.jit(ddpg.build(config, SPEC).init)(KEY).params
    for part in (params["actor"], *params["critic"]):
        kernel, bias = layer(part)
        assert (np.abs(kernel).max() <= 3e-3) == bool(scale)
        assert (np.abs(bias).max() > 0) == bool(scale)
        if scale:
            assert kernel.min() < -1e-3
            assert kernel.max() > 1e-3


@both
def test_critics_differ_and_targets_begin_as_copies(name: str) -> None:
    agent = BUILD[name](agent_module(name).config(hidden_sizes=(4,)), SPEC)
    state = jax.jit(agent.init)(KEY)
    for part, target in state.extra["target"].items():
        assert same(target, state.params[part])
    if name == "sac":
        assert not same(*state.params["critic"])


# As it is run.


TINY: dict[str, Any] = {
    "hidden_sizes": (8,),
    "batch_size": 4,
    "replay_minimum": 20,
    "replay_capacity": 200,
    "quiet": True,
}


RUNS: dict[str, dict[str, Any]] = {
    "fused": {"runtime": "fused", "envs_per_actor": 2},
    "rounds": {"runtime": "local", "envs_per_actor": 2, "deterministic": True},
    "local": {"runtime": "local", "actors": 2, "envs_per_actor": 3, "unroll": 4},
}


@pytest.mark.parametrize(
    ("ratio", "run"),
    [
        *((0.5, "fused"), (1.0, "rounds"), (0.5, "local")),
        *(pytest.param(1.0, name, marks=pytest.mark.extended) for name in ("fused", "local")),
        pytest.param(0.5, "rounds", marks=pytest.mark.extended),
    ],
)
def test_there_are_as_many_updates_for_each_step_as_was_asked(
    ratio: float, run: str, tmp_path: Path
) -> None:
    """But for the first transitions, and what is under way."""
    env = "pronk/CartPoleSwingUp-v0"
    tiny = {**TINY, **RUNS[run], "updates_per_step": ratio}
    pronk.train("sac", env, steps=400, run_dir=tmp_path, **tiny)
    updates, steps = (inspect(tmp_path)[name] for name in ("updates", "agent_steps"))
    assert abs(updates - ratio * (steps - 20)) <= 60


@both
def test_an_exported_policy_acts_alike_and_learns_on(name: str, tmp_path: Path) -> None:
    env, run, file = "pronk/CartPoleBalance-v0", tmp_path / "run", tmp_path / "p.safetensors"
    pronk.train(name, env, steps=200, run_dir=run, **TINY)
    export(run, file)
    observation, actions = np.full(4, 0.1, np.float32), []
    for source in (run, file):
        policy = pronk.load(source)
        actions.append(policy.act(observation, policy.initial_carry())[0])
    np.testing.assert_array_equal(*actions)
    assert -10 < actions[0] < 10
    frozen = {**TINY, "learning_rate": 1e-12, "critic_learning_rate": 1e-12}
    if name == "sac":
        frozen["temperature_learning_rate"] = 0.0
    else:
        frozen["noise_std"] = 0.0
    pronk.train(name, env, steps=100, run_dir=tmp_path / "on", init_from=file, **frozen)
    begun, had = (pronk.load(path).behaviour for path in (tmp_path / "on", file))
    assert not had.uniform
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), begun, had)


@both
def test_a_fused_run_whose_ratio_is_no_number_of_batches_is_refused(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"`--updates-per-step` 0.3 make 1.2 updates"):
        pronk.train(
            name,
            "pronk/CartPoleBalance-v0",
            run_dir=tmp_path,
            runtime="fused",
            updates_per_step=0.3,
            envs_per_actor=4,
        )


@both
def test_a_fused_run_has_unrolls_of_one_step(name: str, tmp_path: Path) -> None:
    fused = {"runtime": "fused", "unroll": 8, "run_dir": tmp_path}
    with pytest.raises(UserError, match="`--unroll` is 8; expected 1"):
        pronk.train(name, "pronk/CartPoleBalance-v0", **fused)


def test_discrete_actions_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sac is for actions that are numbers between bounds"):
        pronk.train("sac", "CartPole-v1", run_dir=tmp_path / "run", steps=100)
    assert not (tmp_path / "run").exists()


@both
def test_schedules_end_with_the_run(name: str) -> None:
    """In agent steps, of which each is followed by two updates of eight transitions here."""
    settings: dict[str, Any] = {"updates_per_step": 2.0, "batch_size": 8, "replay_minimum": 100}
    schedules = {"learning_rate": "linear:1:0", "discount": "piecewise:0.5@0,0.9@600"}
    config = agent_module(name).config(hidden_sizes=(2,), **settings, **schedules)
    agent = agents.make(name, config, SPEC, horizon=1100)
    state, learn = jit(agent.init)(KEY), jit(agent.learn)
    for agent_steps, rate, discount in ((100, 1.0, 0.5), (599, 0.501, 0.5), (600, 0.5, 0.9)):
        now = state._replace(steps=jnp.uint32((agent_steps - 100) * 16))
        metrics = learn(now, batch_of()).metrics
        found = metrics["learning_rate"], metrics["discount"]
        np.testing.assert_allclose(found, (rate, discount), rtol=1e-6)
    over = state._replace(steps=jnp.uint32(16_000))
    assert learn(over, batch_of()).metrics["learning_rate"] == 0
    # Counts beyond 32 bits: 10⁹ agent steps of 16 transitions.
    longer = agents.make(name, config, SPEC, horizon=10**9)
    assert jax.eval_shape(longer.init, KEY).steps.shape == (2,)


class Aim(gym.Env):
    """One step: minus the squared distance to an action that the observation tells."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Box(0, 4, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.aim = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.aim, {}

    def step(self, action: Any) -> Any:
        reward = -float((action[0] - 2 - self.aim[0]) ** 2)
        return self.aim, reward, True, False, {}


@pytest.mark.extended
@both
def test_learns_to_aim(name: str, tmp_path: Path) -> None:
    settings = {"hidden_sizes": (32, 32), "batch_size": 64, "replay_minimum": 100}
    if name == "sac":
        settings |= {"initial_temperature": 0.1}
    rates = {"learning_rate": 3e-3, "critic_learning_rate": 3e-3, "deterministic": True}
    pronk.train(name, Aim, steps=1500, run_dir=tmp_path, quiet=True, **settings, **rates)
    found = pronk.load(tmp_path, env=Aim).evaluate(episodes=50)
    assert isinstance(found, Evaluation)
    assert found.mean_return > -0.05  # always the middle: −1/3


def test_presets_are_settings() -> None:
    for name in BUILD:
        for preset in agent_module(name).presets:
            config = agent_module(name).preset(preset)
            assert config.source().samples_per_insert == config.batch_size
            assert set(config.hyper_names()) <= {f.name for f in dataclasses.fields(config)}
