"""MuZero's acting and learning; what it shares with every agent is in test_agents.py."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from pronk.agents import muzero
from pronk.agents.muzero_config import PRESETS, Config
from pronk.errors import UserError
from pronk.types import Batch, EnvSpec, LearnerState, TimeStep, Trajectory

ACTIONS, BATCH = 3, 5
SMALL = Config(
    unroll=4,
    batch_size=BATCH,
    simulations=4,
    unroll_steps=2,
    td_steps=3,
    hidden_sizes=(8,),
    model_units=6,
    planes=0,
    blocks=0,
    support_limit=5.0,
    support_bins=11,
    optimiser="adam",
    learning_rate=1e-2,
)
SPEC = EnvSpec("test", spaces.Box(-1, 1, (4,)), spaces.Discrete(ACTIONS))
KEY = jax.random.key(0)


@functools.cache
def build(players: int = 1, **changed: Any) -> muzero.MuZero:
    config = dataclasses.replace(SMALL, **changed)
    return muzero.build(config, dataclasses.replace(SPEC, players=players))


@functools.cache
def compiled(agent: muzero.MuZero, name: str) -> Any:
    """One of the agent's methods, jitted."""
    return jax.jit(getattr(agent, name))


@functools.cache
def first_state(seed: int = 0) -> LearnerState:
    """The same for all agents that differ only in how they learn."""
    return compiled(build(), "init")(jax.random.key(seed))


def targets_of(agent: muzero.MuZero, *, target: Any = None) -> Any:
    params = first_state().params
    target = params if target is None else target
    targets, _ = compiled(agent, "targets")(params, target, batch(agent), KEY)
    return jax.tree.map(np.asarray, targets)


def moved(params: Any) -> Any:
    """The last layers begin with zeros, which let no gradient pass."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.asarray(x + rng.normal(size=x.shape) * 0.3, x.dtype), params)


def batch(agent: muzero.MuZero, seed: int = 0) -> Batch:
    """Rows of a running episode, as many as the agent's targets need."""
    config = agent.config
    rows = config.starts + config.unroll_steps + config.td_steps
    rng = np.random.default_rng(seed)
    shape = (rows, BATCH)
    no = np.zeros(shape, bool)
    timestep = TimeStep(
        rng.normal(size=(*shape, 4)).astype(np.float32),
        rng.normal(size=shape).astype(np.float32),
        *(no, no, no, no.astype(np.int32)),
    )
    extras = {
        "search_policy": rng.dirichlet(np.ones(ACTIONS), shape).astype(np.float32),
        "search_value": rng.normal(size=shape).astype(np.float32),
        "priority": np.ones(shape, np.float32),
        "search_depth": np.ones(shape, np.int32),
    }
    action = rng.integers(0, ACTIONS, shape).astype(np.int32)
    version = np.zeros(BATCH, np.int32)
    return Batch(Trajectory(timestep, action, extras, (), version))


def test_half_of_the_gradient_passes_each_step_of_the_dynamics():
    # Of the last value's loss alone, and with respect to the representation.
    agent = build()
    state = first_state()
    params = moved(state.params)
    targets, _ = compiled(agent, "targets")(params, params, batch(agent), KEY)

    def representation(weights: Any, loss: Any) -> Any:
        return jax.jit(jax.grad(loss))(params, weights)["params"]["representation"]

    def of_agent(params: Any, weights: Any) -> Any:
        only = targets._replace(weight=weights, policy_weight=jnp.zeros_like(weights))
        return agent.loss(params, state.hyper | {"weight_decay": 0.0}, batch(agent), only)[0]

    def by_hand(params: Any, weights: Any) -> Any:
        x = agent.represent(params, batch(agent).trajectory.timestep.observation[0])
        for k in (1, 2):
            x, reward = agent.step(params, x, targets.action[k, 0])
        value = agent.predict(params, x)[1]
        losses = agent.support.cross_entropy(value, targets.value[2, 0])
        losses += agent.support.cross_entropy(reward, targets.reward[2, 0])
        return jnp.mean(losses)

    weights = np.zeros(targets.weight.shape, np.float32)
    weights[2] = 1.0
    got, full = representation(weights, of_agent), representation(weights, by_hand)
    # s_2 is 1/K = 1/2; the value passes two steps and the reward, made within the second, too.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b / 2 / 4, rtol=1e-3, atol=1e-7), got, full
    )
    assert max(np.abs(x).max() for x in jax.tree.leaves(full)) > 1e-5


def test_priorities_are_the_errors_of_the_searchs_values():
    agent = build()
    learnt = compiled(agent, "learn")(first_state(), batch(agent))
    rows = batch(agent).trajectory
    reward, value = rows.timestep.reward, rows.extras["search_value"]
    gamma = agent.config.discount
    z = reward[1] + gamma * reward[2] + gamma**2 * reward[3] + gamma**3 * value[3]
    np.testing.assert_allclose(learnt.feedback.priorities, np.abs(value[0] - z), rtol=1e-4)


def test_what_is_drawn_too_often_counts_less():
    agent, state = build(), first_state()
    targets = targets_of(agent)

    def loss(probabilities: Any, start: Any = targets.start) -> float:
        given = batch(agent)._replace(probabilities=probabilities)
        chosen = targets._replace(start=np.asarray(start, np.float32))
        return float(compiled(agent, "loss")(state.params, state.hyper, given, chosen)[0])

    each = [loss(None, np.eye(BATCH)[None, i]) for i in range(BATCH)]
    probabilities = np.array([0.1, 0.2, 0.4, 0.2, 0.1], np.float32)
    decay = loss(None, np.zeros((1, BATCH)))
    weights = np.array([1, 0.5, 0.25, 0.5, 1])
    expected = decay + np.mean(weights * (np.array(each) - decay))
    assert loss(probabilities) == pytest.approx(expected, rel=1e-4)


def test_reanalyze_searches_anew_and_bootstraps_from_the_target_network():
    agent = build(reanalyze=0.4, batch_size=BATCH)
    old = build()
    params, target = first_state().params, first_state(seed=1).params
    given = batch(agent)
    got, searched = jax.tree.map(np.asarray, compiled(agent, "targets")(params, target, given, KEY))
    stored = targets_of(old, target=target)
    root = compiled(agent, "root")

    @jax.jit
    def search(root: Any) -> Any:
        return agent.search(params, root, None, KEY, jnp.zeros(2, bool))

    fresh, rest = slice(0, 2), slice(2, BATCH)
    np.testing.assert_array_equal(searched, given.trajectory.extras["search_value"][:1])
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a[..., rest, :], b[..., rest, :]),
        got.policy,
        stored.policy,
    )
    np.testing.assert_array_equal(got.value[..., rest], stored.value[..., rest])
    np.testing.assert_array_equal(got.reward, stored.reward)
    for k in range(agent.config.unroll_steps + 1):
        found = search(root(params, given.trajectory.timestep.observation[k, fresh]))
        np.testing.assert_allclose(got.policy[k, 0, fresh], found.policy, atol=1e-6)
    reward, gamma = given.trajectory.timestep.reward[:, fresh], agent.config.discount
    bootstrap = root(target, given.trajectory.timestep.observation[3, fresh]).value
    z = reward[1] + gamma * reward[2] + gamma**2 * reward[3] + gamma**3 * bootstrap
    np.testing.assert_allclose(got.value[0, 0, fresh], z, rtol=1e-4, atol=1e-5)


def test_the_target_network_may_bootstrap_all_values():
    agent = build(bootstrap="target")
    target = first_state(seed=1).params
    networks = target, moved(target)
    rows = batch(agent).trajectory.timestep
    got = [targets_of(agent, target=t).value[0, 0] for t in networks]
    gamma = agent.config.discount
    for z, network in zip(got, networks, strict=True):
        value = compiled(agent, "root")(network, rows.observation[3]).value
        expected = rows.reward[1] + gamma * rows.reward[2] + gamma**2 * rows.reward[3]
        np.testing.assert_allclose(z, expected + gamma**3 * value, rtol=1e-4, atol=1e-5)
    assert np.abs(got[0] - got[1]).max() > 1e-3


def test_clipped_targets_are_counted():
    agent = build()
    state, learn = first_state(), compiled(agent, "learn")
    given = batch(agent)
    assert learn(state, given).metrics["clipped_targets"] == 0
    # It is in one z and one u of the 5 unrolls with 3 steps each.
    given.trajectory.timestep.reward[1, 0] = 1e4
    clipped = learn(state, given).metrics["clipped_targets"]
    assert clipped == pytest.approx(2 / 15)


def test_moves_are_drawn_until_the_limit_and_then_the_most_visited():
    agent = build(temperature_moves=2, simulations=16)
    behaviour = agent.behaviour(first_state())
    slots = 64
    carry = agent.initial_carry(KEY, np.arange(slots), slots, False)
    no = np.zeros(slots, bool)
    observation = np.zeros((slots, 4), np.float32)
    best = []
    for t in range(4):
        timestep = TimeStep(observation, no * 0.0, no, no, np.full(slots, t in (0, 3)), no * 0)
        key = jax.random.fold_in(KEY, t)
        action, carry, extras = compiled(agent, "act")(behaviour, carry, timestep, key)
        extras = jax.tree.map(np.asarray, extras)
        assert not carry.core
        np.testing.assert_allclose(extras["search_policy"].sum(axis=1), 1, rtol=1e-5)
        chosen = np.take_along_axis(
            np.asarray(extras["search_policy"]), np.asarray(action)[:, None], 1
        )
        best.append(bool((chosen[:, 0] == extras["search_policy"].max(axis=1)).all()))
    assert best == [False, False, True, False]  # the fourth row begins an episode


def test_in_a_game_the_sides_take_turns():
    agent = build(players=2, discount=1.0)
    assert agent.discount == -1
    targets = targets_of(agent)
    rows = batch(agent).trajectory
    reward, value = rows.timestep.reward, rows.extras["search_value"]
    np.testing.assert_allclose(
        targets.value[0, 0], reward[1] - reward[2] + reward[3] - value[3], rtol=1e-5, atol=1e-6
    )


def test_predicted_states_come_to_agree_with_later_ones():
    agent = build(consistency=2.0)
    state, given = compiled(agent, "init")(KEY), batch(agent)
    learn = compiled(agent, "learn")
    first = None
    for _ in range(60):
        state, metrics, _ = learn(state, given)
        first = metrics["loss/consistency"] if first is None else first
    assert metrics["loss/consistency"] < first - 0.1
    # A loss of −1 is the least: the mean over K steps of a cosine.
    assert metrics["loss/consistency"] >= -1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"support_bins": 10}, "--support-bins` is 10; expected an odd number"),
        ({"starts": 8}, "`--starts` is 8 and `--unroll` 4"),
        ({"starts": 4, "td_steps": 4}, "expected at least 5 starts"),
        ({"starts": 4}, "`--priority-exponent` 1.0; expected 0"),
    ],
)
def test_settings_that_do_not_go_together(changed: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, **changed).source()


def test_environments_that_it_does_not_take():
    for space in (spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 3])):
        with pytest.raises(UserError, match="search has a branch for each action"):
            muzero.build(SMALL, dataclasses.replace(SPEC, action_space=space))
    with pytest.raises(UserError, match="expected 1, as in the preset board"):
        muzero.build(SMALL, dataclasses.replace(SPEC, players=2))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_have_a_source(preset: str):
    sequences = Config(**PRESETS[preset]).source().sequences
    assert sequences.length + sequences.burn_in >= 8
    assert isinstance(SPEC.action_space, gym.spaces.Discrete)
