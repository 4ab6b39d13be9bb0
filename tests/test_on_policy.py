"""The on-policy agents' parts: statistics, baselines, minibatches, surrogates, and updates."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from pronk import agents, cli, envs
from pronk.agents import normalisation, on_policy, reinforce, rollout, step
from pronk.agents.exploration import correlated_noise
from pronk.agents.minibatches import Minibatches
from pronk.config.registry import agent_module
from pronk.errors import UserError
from pronk.maths import linear_baseline, losses, returns, running, weighted
from pronk.run.resolve import resolve
from pronk.runtime import fused
from pronk.runtime.actor import Actor, Player
from pronk.types import Agent, Batch, EnvSpec, Learnt, TimeStep, Trajectory

KEY = jax.random.key(0)
ON_POLICY = ("reinforce", "npg", "tnpg", "trpo", "ppo")
UNROLL, ENVS = 16, 4
SMALL = {"unroll": UNROLL, "batch_size": ENVS, "hidden_sizes": (8,), "value_hidden_sizes": (8,)}


def config(agent: str, **settings: Any) -> Any:
    size = "minibatch_size" if agent == "ppo" else "value_minibatch_size"
    return agent_module(agent).config(**(SMALL | {size: UNROLL} | settings))


def batch_of(agent: Agent, env: str = "pronk/CartPole-v1", unrolls: int = 1, **args: Any) -> list:
    """Trajectories of an agent's first behaviour in a real environment."""
    vector = envs.make(env, ENVS, seed=1, env_args=args)
    player = Player(agent, KEY, np.arange(ENVS, dtype=np.int32), ENVS)
    actor = Actor(player, vector, unroll=UNROLL, on_policy=True)
    behaviour = agent.behaviour(jax.jit(agent.init)(KEY))
    trajectories = [actor.unroll(behaviour, 0).trajectory for _ in range(unrolls)]
    actor.close()
    return trajectories


# Running statistics.


CHUNKS = st.sampled_from([1, 2, 7, 30])  # each size is compiled anew
update, normalize = jax.jit(running.update), jax.jit(running.normalize)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.lists(CHUNKS, min_size=1, max_size=6))
def test_merged_statistics_are_those_of_all_data_at_once(seed, sizes):
    rng = np.random.default_rng(seed)
    chunks = [rng.normal(rng.normal() * 100, 3, size=(n, 2)) for n in sizes]
    seen = running.init((2,))
    for chunk in chunks:
        seen = update(seen, chunk.astype(np.float32))
    whole = np.concatenate(chunks)
    assert seen.count == len(whole)
    np.testing.assert_allclose(seen.mean, whole.mean(0), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(seen.variance, whole.var(0), rtol=1e-3, atol=1e-2)


def test_elements_of_weight_0_and_infinite_ones_leave_the_statistics_alone():
    x = np.array([[1.0, 2.0], [np.nan, 7.0], [3.0, np.inf]], np.float32)
    seen = update(running.init((2,)), x, np.array([1.0, 0.0, 1.0], np.float32))
    np.testing.assert_allclose(seen.mean, [2.0, 0.0])  # the second feature met infinity
    np.testing.assert_allclose(seen.variance, [1.0, 1.0])
    empty = update(seen, x, np.zeros(3, np.float32))
    np.testing.assert_array_equal(empty.mean, seen.mean)
    assert empty.count == seen.count


def test_a_constant_feature_does_not_blow_up():
    seen = update(running.init((1,)), np.full((100, 1), 5, np.float32))
    np.testing.assert_allclose(normalize(seen, np.array([5], np.float32), clip=10.0), 0.0)
    np.testing.assert_array_equal(normalize(seen, np.array([6], np.float32), clip=10.0), 10.0)


def test_only_numbers_are_standardised():
    """Not one-hot inputs, and not images; each leaf by its own statistics."""
    space = spaces.Dict(
        {
            "a": spaces.Box(-np.inf, np.inf, (2,)),
            "b": spaces.Discrete(3),
            "c": spaces.Box(0, 255, (8, 8, 3), np.uint8),
        }
    )
    statistics = normalisation.init(config("ppo"), space)
    rng = np.random.default_rng(0)
    rows = {
        "a": rng.normal([5, -3], [2, 0.1], (50, 2)).astype(np.float32),
        "b": rng.integers(0, 3, 50, np.int32),
        "c": rng.integers(0, 255, (50, 8, 8, 3)).astype(np.uint8),
    }
    statistics = jax.jit(normalisation.observe)(statistics, rows)
    standardised = jax.jit(normalisation.standardise)(statistics, rows, 10.0)
    seen = jax.tree.map(np.asarray, standardised)
    np.testing.assert_allclose(seen["a"].mean(0), 0.0, atol=1e-4)
    np.testing.assert_allclose(seen["a"].std(0), 1.0, rtol=1e-3)
    for name in "bc":
        assert seen[name].dtype == rows[name].dtype
        np.testing.assert_array_equal(seen[name], rows[name])


def test_row_T_is_not_counted_twice():
    """It is row 0 of the next batch."""
    agent = agents.make("ppo", config("ppo"), envs.spec_of("pronk/CartPole-v1", {}), horizon=100)
    state, learn = jax.jit(agent.init)(KEY), jax.jit(agent.learn)
    for trajectory in batch_of(agent, unrolls=2):
        state = learn(state, Batch(trajectory)).state
    (seen,) = state.extra["statistics"]["observation"]
    assert seen.count == 2 * UNROLL * ENVS


# Rewards.


def test_rewards_are_scaled_by_the_deviation_of_their_discounted_sum():
    """Computed by hand over ends of both kinds; the sum begins at 0 in every episode."""
    gamma = 0.5
    settings = config("reinforce", reward_normalisation=True, discount=gamma, unroll=7)
    settings = dataclasses.replace(settings, batch_size=1, value_minibatch_size=7)
    spec = EnvSpec("test", spaces.Box(-1, 1, (1,)), spaces.Discrete(2))
    shared = on_policy.make(settings, spec, horizon=100)
    reward = np.array([0, 1, 2, 0, -4, 3, 0, 5], np.float32)
    first = np.array([1, 0, 0, 1, 0, 0, 1, 0], bool)
    terminated = np.array([0, 0, 1, 0, 0, 0, 0, 0], bool)
    truncated = np.array([0, 0, 0, 0, 0, 1, 0, 0], bool)
    timestep = TimeStep(
        np.zeros((8, 1, 1), np.float32),
        *(x[:, None] for x in (reward, terminated, truncated, first)),
        np.zeros((8, 1), np.int32),
    )
    state, act = jax.jit(shared.init)(KEY), jax.jit(shared.act)
    carry = shared.initial_carry(KEY, np.arange(1), 1, False)
    rows = []
    for t in range(8):
        row = jax.tree.map(lambda x, t=t: x[t], timestep)
        action, carry, extras = act(shared.behaviour(state), carry, row, KEY)
        rows.append((action, extras))
    action, extras = jax.tree.map(lambda *x: np.stack(x), *rows)
    trajectory = Trajectory(timestep, action, extras, carry.core, np.zeros(1, np.int32))
    statistics = jax.jit(shared.before)(state, Batch(trajectory)).extra["statistics"]
    sums = [1, 0.5 * 1 + 2, -4, 0.5 * -4 + 3, 5]  # real transitions only
    assert statistics["reward"].count == 5
    np.testing.assert_allclose(statistics["reward"].variance, np.var(sums), rtol=1e-6)
    data = jax.jit(shared.data)(statistics, state.hyper, Batch(trajectory))
    expected = reward[1:] / np.std(sums)  # not centred: signs stay
    np.testing.assert_allclose(data.transitions.reward[:, 0], expected, rtol=1e-5)


# Baselines and advantages.


def test_the_linear_baseline_is_ridge_regression():
    rng = np.random.default_rng(0)
    observation = rng.normal(size=(200, 3)) * [1, 5, 0.01]
    age = rng.integers(0, 500, 200)
    features = jax.jit(linear_baseline.features)
    x = np.asarray(features(observation.astype(np.float32), age))
    assert x.shape[1] == linear_baseline.num_features(3)
    clipped, t = np.clip(observation, -10, 10), age[:, None] / 100
    by_hand = np.concatenate([clipped, clipped**2, t, t**2, t**3, np.ones_like(t)], 1)
    np.testing.assert_allclose(x, by_hand, rtol=1e-4, atol=1e-6)
    target, weight = rng.normal(size=200) + 3 * t[:, 0], rng.integers(0, 2, 200).astype(float)
    target[weight == 0] = np.nan  # of dummies
    used = weight > 0
    gram = by_hand[used].T @ by_hand[used] + 1e-5 * np.eye(10)
    expected = by_hand @ np.linalg.solve(gram, by_hand[used].T @ target[used])
    fit = jax.jit(linear_baseline.fit)
    found = fit(*(np.asarray(a, np.float32) for a in (x, target, weight)))
    np.testing.assert_allclose(by_hand @ np.asarray(found), expected, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("agent", ["reinforce", "trpo"])
def test_the_baseline_of_a_batch_does_not_know_its_returns(agent):
    """It is fitted after the advantages are estimated, and fits the batch afterwards."""
    settings = config(agent, baseline="linear", gae_lambda=1.0)
    made = agents.make(agent, settings, envs.spec_of("pronk/CartPole-v1", {}), horizon=100)
    (trajectory,) = batch_of(made)
    learn = jax.jit(made.learn)
    state, first, _ = learn(jax.jit(made.init)(KEY), Batch(trajectory))
    assert first["value_mean"] == 0.0
    np.testing.assert_allclose(first["explained_variance"], 0.0, atol=1e-6)
    assert learn(state, Batch(trajectory)).metrics["explained_variance"] > 0.5


def test_normalised_values_are_estimated_in_units_of_reward():
    """Targets are advantages plus values, and a constant of the units moves all values alike."""
    settings = config("trpo", value_normalisation="running", advantage_normalisation="none")
    spec = envs.spec_of("pronk/CartPole-v1", {})
    shared = on_policy.make(settings, spec, horizon=100)
    agent = agents.make("trpo", settings, spec, horizon=100)
    (trajectory,) = batch_of(agent)
    state = jax.jit(agent.init)(KEY)
    data = jax.jit(shared.data)(state.extra["statistics"], state.hyper, Batch(trajectory))
    units = running.Running(*map(np.float32, (1, 20, 9)))
    estimate = jax.jit(shared.estimate)
    plain = estimate(state.params, state.extra, state.hyper, data)
    extra = state.extra | {"statistics": state.extra["statistics"] | {"value": units}}
    scaled = estimate(state.params, extra, state.hyper, data)
    np.testing.assert_allclose(scaled.value, 3.0 * np.asarray(plain.value) + 20.0, rtol=1e-5)
    for found in jax.tree.map(np.asarray, (plain, scaled)):
        np.testing.assert_allclose(
            found.target - found.advantage, found.value, rtol=1e-4, atol=1e-4
        )


gae = jax.jit(returns.gae)


@pytest.mark.parametrize("lambda_", [0.0, 0.9, 1.0])
def test_a_time_limit_is_not_the_end_of_the_rewards(lambda_):
    """One state, reward 1, cut every third step: with V = 1 / (1 − γ) all advantages are 0."""
    gamma, rows = 0.9, 13
    first = np.arange(rows) % 4 == 0
    timestep = TimeStep(
        np.zeros((rows, 1)),
        np.where(first, 0.0, 1.0)[:, None],
        np.zeros((rows, 1), bool),
        (np.arange(rows) % 4 == 3)[:, None],
        first[:, None],
        np.zeros((rows, 1), np.int32),
    )
    t = returns.transitions(timestep, gamma)
    values = np.full((rows, 1), 1 / (1 - gamma), np.float32)
    advantage = gae(values, t.reward, t.discount, t.continuation, lambda_)
    np.testing.assert_allclose(np.asarray(advantage) * t.weight, 0.0, atol=1e-4)


def test_equal_advantages_are_standardised_to_zero():
    standardise = jax.jit(lambda *x: weighted.standardise(*x))
    weight = np.array([1, 1, 0], np.float32)
    x = np.array([3, 3, np.nan], np.float32)
    np.testing.assert_array_equal(np.asarray(standardise(x, weight))[:2], 0.0)
    np.testing.assert_array_equal(
        standardise(np.array([7], np.float32), np.ones(1, np.float32)), 0.0
    )
    some = np.asarray(standardise(np.array([1, 3, 100], np.float32), weight))
    np.testing.assert_allclose(some[:2], [-1.0, 1.0], rtol=1e-5)
    assert jax.jit(weighted.mean)(x, np.zeros(3, np.float32)) == 0.0


def test_of_complete_episodes_the_cut_part_is_left_out():
    """Time goes down: columns with an end and an unfinished rest, without an end, and with a
    dummy between two episodes that both end."""
    continuation = np.array([[1, 1, 0], [0, 1, 0], [1, 1, 1], [1, 1, 0]], np.float32)
    weight = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]], np.float32)
    transitions = returns.Transitions(weight, weight, continuation, weight)
    samples = rollout.Samples(*[weight] * 8)._replace(weight=weight)
    data = rollout.Data(None, None, None, transitions, samples, None)  # type: ignore[arg-type]
    complete = reinforce._completed(data)
    expected = [[1, 0, 1], [1, 0, 0], [0, 0, 1], [0, 0, 1]]
    np.testing.assert_array_equal(complete.samples.weight, expected)
    np.testing.assert_array_equal(complete.transitions.weight, expected)


def test_the_score_gradient_is_unbiased_with_cut_batches():
    """A chain of two choices whose exact gradient is known, in batches that cut it anywhere: the
    mean over many batches is the gradient, within four standard errors.

    Rewards are 1 for action 1 in state 0 and 2 for action 1 in state 1; the return of both counts.
    """
    theta, gamma, count = np.array([0.3, -0.4]), 1.0, 100_000
    p = 1 / (1 + np.exp(-theta))
    value = np.array([p[0] + 2 * p[1], 2 * p[1]])
    exact = np.array([p[0] * (1 - p[0]), 2 * p[1] * (1 - p[1])])
    rng = np.random.default_rng(0)
    # Half of the columns begin in state 1: there are two transitions, and a dummy between.
    begin = rng.integers(0, 2, count)
    state = np.where(begin == 0, [[0], [1], [0], [0]], [[1], [0], [0], [1]])
    first = np.where(begin == 0, [[1], [0], [0], [1]], [[0], [0], [1], [0]]).astype(bool)
    terminated = np.where(begin == 0, [[0], [0], [1], [0]], [[0], [1], [0], [0]]).astype(bool)
    action = rng.uniform(size=state.shape) < p[state]
    gained = np.where(terminated[1:], 2.0, 1.0) * action[:-1]
    reward = np.concatenate([np.zeros((1, count)), np.where(first[1:], 0, gained)])
    timestep = TimeStep(state, reward, terminated, np.zeros_like(first), first, state)
    t = jax.jit(returns.transitions)(timestep, gamma)
    values = np.where(terminated, 0.0, value[state]).astype(np.float32)
    advantage = np.asarray(gae(values, t.reward, t.discount, t.continuation, 1.0))
    score = (action[:-1] - p[state[:-1]]) * np.asarray(t.weight)
    for s in (0, 1):
        visits = (state[:-1] == s) & (np.asarray(t.weight) > 0)
        estimates = (score * advantage)[visits]
        error = estimates.std() / np.sqrt(visits.sum())
        assert abs(estimates.mean() - exact[s]) < 4 * error


# Minibatches.


@pytest.mark.parametrize("core", ["none", "lstm"])
def test_a_pass_takes_every_transition_once(core):
    settings = config("ppo", recurrent_core=core, minibatch_size=2 * UNROLL)
    numbers = np.arange(UNROLL * ENVS).reshape(UNROLL, ENVS)
    samples = rollout.Samples(*[numbers] * 7, core=np.arange(ENVS))

    @jax.jit
    def draw(samples):
        drawn = Minibatches(settings, samples, rollout.Estimates(*[samples.log_prob] * 3))
        order = drawn.order(KEY, settings.minibatch_size)
        return [drawn.take(index) for index in order]

    taken = draw(samples)
    assert len(taken) == 2
    seen = np.concatenate([np.ravel(minibatch.log_prob) for minibatch, _ in taken])
    np.testing.assert_array_equal(np.sort(seen), np.arange(UNROLL * ENVS))
    assert not np.array_equal(seen, np.arange(UNROLL * ENVS))
    for minibatch, estimates in taken:
        np.testing.assert_array_equal(minibatch.log_prob, estimates.target)
        if core == "lstm":  # whole trajectories, each with its own state before row 0
            assert minibatch.log_prob.shape == (UNROLL, 2)
            np.testing.assert_array_equal(minibatch.log_prob[0], minibatch.core)
            np.testing.assert_array_equal(np.diff(minibatch.log_prob, axis=0), ENVS)


# Surrogates.


@pytest.mark.parametrize("reciprocal", [False, True])
def test_the_clipped_surrogate_by_hand(reciprocal):
    ratio = np.array([0.5, 0.9, 1.0, 1.1, 1.5])
    low = 1 / 1.25 if reciprocal else 0.75

    @jax.jit
    def surrogate(log_ratio, advantage):
        def total(x):
            loss = losses.clipped_surrogate(x, advantage, clip=0.25, reciprocal=reciprocal)
            return loss.sum(), loss

        gradient, loss = jax.grad(total, has_aux=True)(log_ratio)
        return loss, gradient

    for advantage in (2.0, -2.0):
        expected = -np.minimum(ratio * advantage, np.clip(ratio, low, 1.25) * advantage)
        log_ratio = np.log(ratio).astype(np.float32)
        loss, gradient = surrogate(log_ratio, np.full(5, advantage, np.float32))
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        clipped = [False, False, False, False, True] if advantage > 0 else [True] + [False] * 4
        np.testing.assert_allclose(
            gradient, np.where(clipped, 0.0, -ratio * advantage), rtol=1e-5, atol=1e-7
        )


SURROGATES = [
    jax.jit(jax.value_and_grad(loss))
    for loss in (
        functools.partial(losses.clipped_surrogate, clip=0.2),
        losses.importance_weighted,
    )
]


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("log_ratio", [-200.0, 200.0])
def test_enormous_ratios_are_finite(log_ratio, advantage):
    for surrogate in SURROGATES:
        value, gradient = surrogate(np.float32(log_ratio), np.float32(advantage))
        assert np.isfinite(value)
        assert gradient == 0.0


def ppo(**settings: Any) -> Agent:
    settings = {"reward_normalisation": False} | settings
    return agents.make(
        "ppo", config("ppo", **settings), envs.spec_of("pronk/CartPole-v1", {}), horizon=1000
    )


@pytest.fixture(scope="module")
def acted() -> Trajectory:
    """Acted by PPO's first behaviour, which does not depend on how it learns."""
    return batch_of(ppo())[0]


def test_steps_end_once_the_policy_is_too_far(acted):
    """The minibatch that shows it takes no step, nor any after it."""
    agent = ppo(learning_rate=0.05, stop_early=1.0, target_kl=0.01, passes=3)
    state, learn = jax.jit(agent.init)(KEY), jax.jit(agent.learn)
    learnt = learn(state, Batch(acted))
    assert 1 <= learnt.metrics["gradient_steps"] < 12
    everything = ppo(learning_rate=0.05, stop_early=0.0, passes=3)
    whole = jax.jit(everything.learn)(state, Batch(acted))
    assert whole.metrics["gradient_steps"] == 12
    tiny = state._replace(hyper=state.hyper | {"target_kl": jnp.float32(1e-12)})
    metrics = learn(tiny, Batch(acted)).metrics
    assert metrics["gradient_steps"] == 1  # the first minibatch's KL is 0 before it


@functools.cache
def adaptive() -> Agent:
    return ppo(objective="adaptive-kl", passes=2)


@pytest.mark.parametrize(("target", "factor"), [(1e-9, 2.0), (1e3, 0.5)])
def test_the_penalty_follows_its_target(target, factor, acted):
    agent = adaptive()
    state = jax.jit(agent.init)(KEY)
    state = state._replace(hyper=state.hyper | {"target_kl": np.float32(target)})
    after = jax.jit(agent.learn)(state, Batch(acted)).state
    assert after.extra["kl_cost"] == factor * state.extra["kl_cost"]


def test_a_penalty_keeps_the_policy_closer(acted):
    kl = []
    for cost in (0.0, 100.0):
        agent = ppo(objective="fixed-kl", kl_cost=cost, passes=5)
        learnt = jax.jit(agent.learn)(jax.jit(agent.init)(KEY), Batch(acted))
        kl.append(learnt.metrics["kl"])
    assert kl[1] < 0.5 * kl[0]


def test_accepted_steps_stay_in_the_trust_region():
    """Every update's KL, measured anew with the parameters before and after it."""
    settings = config("trpo", max_kl=0.01)
    spec = envs.spec_of("pronk/CartPole-v1", {})
    agent = agents.make("trpo", settings, spec, horizon=1000)
    shared = on_policy.make(settings, spec, horizon=1000)
    vector = envs.make("pronk/CartPole-v1", ENVS, seed=1)
    player = Player(agent, KEY, np.arange(ENVS, dtype=np.int32), ENVS)
    actor = Actor(player, vector, unroll=UNROLL, on_policy=True)
    learn, state = jax.jit(agent.learn), jax.jit(agent.init)(KEY)

    @jax.jit
    def divergence(params, after, statistics, hyper, batch):
        samples = shared.data(statistics, hyper, batch).samples
        rows = samples.rows, samples.last_action, samples.core
        policies = [shared.model.forward(x, *rows).policy for x in (params, after)]
        return weighted.mean(shared.model.distribution.kl(*policies), samples.weight)

    accepted = 0
    for _ in range(12):
        batch = Batch(actor.unroll(agent.behaviour(state), 0).trajectory)
        learnt = learn(state, batch)
        fixed = state.extra["statistics"], state.hyper, batch
        kl = divergence(state.params, learnt.state.params, *fixed)
        np.testing.assert_allclose(kl, learnt.metrics["kl"], atol=1e-5)
        assert kl <= 0.01 + 1e-6
        accepted += int(learnt.metrics["accepted"])
        state = learnt.state
    actor.close()
    assert accepted > 6


@pytest.mark.parametrize(
    ("name", "changed"), [("ppo", {"passes": 2}), ("reinforce", {"episodes": "complete"})]
)
def test_the_kl_of_an_update_is_that_of_its_whole_batch(name, changed):
    """Measured after the update, from the policy that acted; also where parts are not learnt."""
    settings = config(name, **changed)
    spec = envs.spec_of("pronk/CartPole-v1", {})
    agent = agents.make(name, settings, spec, horizon=1000)
    shared = on_policy.make(settings, spec, horizon=1000)
    (trajectory,) = batch_of(agent)
    state = jax.jit(agent.init)(KEY)
    learnt = jax.jit(agent.learn)(state, Batch(trajectory))

    @jax.jit
    def divergence(state, after):
        samples = shared.data(state.extra["statistics"], state.hyper, Batch(trajectory)).samples
        rows = samples.rows, samples.last_action, samples.core
        policies = [shared.model.forward(x.params, *rows).policy for x in (state, after)]
        return shared.model.distribution.kl(*policies), samples.weight

    kl, weight = map(np.asarray, divergence(state, learnt.state))
    kl = kl[weight > 0].mean()
    assert kl > 1e-6
    np.testing.assert_allclose(learnt.metrics["kl"], kl, rtol=0.01)


# Acting.


def test_correlated_noise_is_standard_normal_and_begins_anew():
    none = np.zeros(50, bool)
    draw = jax.jit(correlated_noise)

    @jax.jit
    def many(key, start_key):
        def body(noise, key):
            noise = correlated_noise(noise, none, key, 0.9)
            return noise, noise

        start = jax.random.normal(start_key, (50, 2))
        return jax.lax.scan(body, start, jax.random.split(key, 400))[1]

    x = np.asarray(many(KEY, jax.random.key(1)))
    np.testing.assert_allclose([x.mean(), x.std()], [0, 1], atol=0.05)
    np.testing.assert_allclose((x[1:] * x[:-1]).mean(), 0.9, atol=0.05)
    first = np.arange(50) == 7
    drawn, again = (draw(noise, first, KEY, 0.9) for noise in (x[-1], np.zeros_like(x[-1])))
    drawn, again = np.asarray(drawn), np.asarray(again)
    np.testing.assert_array_equal(drawn[7], again[7])
    assert not np.array_equal(drawn[8], again[8])


@pytest.mark.parametrize("core", ["lstm", pytest.param("none", marks=pytest.mark.extended)])
def test_one_behaviour_decides_a_whole_fused_batch(core):
    """The first ratio is 1 in row 0, too, whose observation is the last one of the batch before."""
    settings = config("ppo", recurrent_core=core)
    spec = envs.spec_of("pronk/CartPole-v1", {})
    agent = agents.make("ppo", settings, spec, horizon=1000)
    shared = on_policy.make(settings, spec, horizon=1000)

    def learn(state, batch):
        data = shared.data(state.extra["statistics"], state.hyper, batch)
        samples = data.samples
        output = shared.model.forward(state.params, samples.rows, samples.last_action, samples.core)
        deviation = jnp.abs(shared.log_ratio(samples, output.policy)).max()
        learnt = agent.learn(state, batch)
        return Learnt(learnt.state, {"deviation": deviation, "kl": learnt.metrics["kl"]})

    env = envs.jax_env_of("pronk/CartPole-v1", {})
    assert env is not None
    init, update = fused.build(agent._replace(learn=learn), env, unroll=UNROLL, num_envs=ENVS)
    run = jax.jit(init)(jax.jit(agent.init)(KEY), KEY)
    _, outcome = jax.jit(lambda run: jax.lax.scan(lambda r, _: update(r), run, length=6))(run)
    np.testing.assert_allclose(outcome.metrics["deviation"], 0.0, atol=1e-5)
    assert outcome.metrics["kl"].min() > 1e-6  # the policy does move
    assert outcome.ended.any()
    assert outcome.ended.shape == (6, UNROLL, ENVS)


# Bad input.


@pytest.mark.parametrize(
    ("agent", "wrong", "message"),
    [
        ("ppo", {"minibatch_size": 60}, "--minibatch-size` is 60; expected a divisor of 64"),
        ("ppo", {"minibatch_size": 1}, "the only advantage of each zero"),
        (
            "ppo",
            {"minibatch_size": 8, "recurrent_core": "lstm"},
            "a multiple of `--unroll`, because a recurrent core needs whole trajectories",
        ),
        ("trpo", {"separate_value": False}, "`--no-separate-value` is given"),
        ("npg", {"value_minibatch_size": 7}, "--value-minibatch-size` is 7; expected a divisor"),
        ("tnpg", {"max_kl": 0.0}, "`--max-kl` is 0.0; expected a number above zero"),
        ("trpo", {"damping": -1.0}, "`--damping` is -1.0; expected zero or more"),
        ("trpo", {"fisher_every": 2, "recurrent_core": "gru"}, "`--fisher-every` is 2"),
        ("trpo", {"fisher_every": 65}, "`--fisher-every` is 65, and a batch has 64 transitions"),
        ("reinforce", {"advantage_normalisation": "minibatch"}, "expected batch or none"),
        ("ppo", {"squash_actions": True}, "are Discrete(2); expected `--no-squash-actions`"),
        ("npg", {"state_dependent_std": True}, "expected `--no-state-dependent-std`, or another"),
        ("reinforce", {"noise_correlation": 0.5}, "expected `--noise-correlation 0`, or another"),
        ("cem", {"squash_actions": True}, "`--squash-actions` is for continuous actions"),
        ("impala", {"squash_actions": True}, "`--squash-actions` is for continuous actions"),
    ],
)
def test_settings_that_do_not_fit(agent, wrong, message):
    size = "minibatch_size" if agent == "ppo" else "value_minibatch_size"
    common = {"unroll": UNROLL, "batch_size": ENVS, size: UNROLL} if agent in ON_POLICY else {}
    settings = common | wrong
    spec = envs.spec_of("pronk/CartPole-v1", {})

    def make():
        plan = resolve(agent, "pronk/CartPole-v1", preset="paper", **settings)
        agents.make(agent, plan.agent_config, spec, horizon=100)

    with pytest.raises(UserError, match=re.escape(message)):
        make()


def test_a_wrong_minibatch_on_the_command_line(capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        cli.main(
            ["train", "ppo", "CartPole-v1", "--minibatch-size", "100", "--run-dir", str(tmp_path)]
        )
    assert caught.value.code
    shown = capsys.readouterr().err
    assert "--minibatch-size` is 100; expected a divisor of 1024" in shown
    assert "Traceback" not in shown


def test_adam_on_one_vector_is_adam_on_every_array():
    rng = np.random.default_rng(0)
    params = {"a": {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=2)}, "c": rng.normal(size=1)}
    params = jax.tree.map(np.float32, params)
    hyper = {"optimiser_epsilon": np.float32(1e-5), "max_gradient_norm": np.float32(1)}

    @jax.jit
    def both(params):
        plain = params, step.optimiser("adam", hyper).init(params)
        flat = step.flatten(*plain)
        joined = flat.params, flat.opt_state
        for _ in range(3):
            grads = jax.tree.map(lambda x: 2.0 * x, plain[0])
            vector = 2.0 * joined[0]
            plain = step.adam(*plain, hyper, grads, jnp.float32(0.1))
            joined = step.adam(*joined, hyper, vector, jnp.float32(0.1))
        return plain, (flat.unravel(joined[0]), flat.unflatten(joined[1]))

    plain, after = both(params)
    assert jax.tree.structure(after) == jax.tree.structure(plain)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), after, plain)
