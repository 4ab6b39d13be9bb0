"""NGU by its formulas: rewards, targets, what is trained on what, and settings that it refuses."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from gymnasium import spaces

import pronk
from pronk import agents
from pronk.agents import ngu
from pronk.agents.ngu_config import Config
from pronk.errors import UserError
from pronk.runtime.actor import act_in_place
from pronk.types import Batch, EnvSpec, TimeStep, Trajectory

STATES, ACTIONS, BURN_IN, LENGTH, BATCH, N = 4, 3, 3, 7, 5, 3
SPEC = EnvSpec("test", spaces.Discrete(STATES), spaces.Discrete(ACTIONS))
SMALL = Config(
    recurrent_core="none",
    hidden_sizes=(),
    head_units=0,
    burn_in=BURN_IN,
    sequence_length=LENGTH,
    overlap=3,
    target_every=3,
    batch_size=BATCH,
    mixtures=N,
    memory_size=6,
    neighbours=3,
    embedding_size=4,
    inverse_units=8,
    lifelong_size=4,
    intrinsic_steps=2,
    kernel_epsilon=0.01,
    inverse_weight_decay=0.5,
    evaluation_epsilon=0.3,
)
KEY = jax.random.key(0)


@functools.cache
def make(**settings: Any):
    """The methods of an agent, a state whose networks are far from their first values, and `learn`,
    jitted."""
    agent = ngu.build(dataclasses.replace(SMALL, **settings), SPEC)
    state = jax.jit(agent.init)(KEY)
    rng = np.random.default_rng(0)

    def spread(x: Any) -> Any:
        return np.asarray(x) + np.float32(0.5 * rng.normal(size=x.shape))

    params, target = jax.tree.map(spread, (state.params, state.extra["target"]))
    state = state._replace(params=params, extra=state.extra | {"target": target})
    return agent, state, jax.jit(agent.learn)


def random_batch(agent: Any, seed: int = 0, burn_in: int = BURN_IN) -> Batch:
    """A batch with boundaries of every kind; each episode has one mixture."""
    rng = np.random.default_rng(seed)
    shape = (burn_in + LENGTH + 1, BATCH)
    first, terminated, truncated = (rng.uniform(size=shape) < 0.15 for _ in range(3))
    timestep = TimeStep(
        rng.integers(0, STATES, shape),
        (5 * rng.normal(size=shape) * ~first).astype(np.float32),
        terminated,
        truncated,
        first,
        np.zeros(shape, np.int32),
    )
    mixture = rng.integers(0, N, shape).astype(np.int32)
    for t in range(1, shape[0]):
        mixture[t] = np.where(first[t], mixture[t], mixture[t - 1])
    extras = {
        "probability": rng.uniform(0.1, 1.0, shape).astype(np.float32),
        "mixture": mixture,
        "intrinsic_reward": (rng.uniform(0, 9, shape) * ~first).astype(np.float32),
        "alpha": rng.normal(2.0, 2.0, shape).astype(np.float32),
        "memory_filled": rng.uniform(size=shape).astype(np.float32),
    }
    core = agent.initial_carry(KEY, np.arange(BATCH), BATCH, False).core
    core = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), core)
    action = rng.integers(0, ACTIONS, shape).astype(np.int32)
    trajectory = Trajectory(timestep, action, extras, core, np.zeros(BATCH, np.int32))
    return Batch(trajectory, rng.uniform(0.01, 0.2, BATCH).astype(np.float32))


def h(x: Any) -> Any:
    return np.sign(x) * (np.sqrt(np.abs(x) + 1) - 1) + 1e-3 * x


def inverse(y: Any) -> Any:
    root = np.sqrt(1 + 4e-3 * (np.abs(y) + 1 + 1e-3)) - 1
    return np.sign(y) * ((root / 2e-3) ** 2 - 1)


def table(params: Any, timestep: TimeStep, extras: Any, mixtures: int) -> np.ndarray:
    """Action values `[T, B, A]`, float64: the network is linear in the state, h(r^i) and the
    mixture's one-hot."""
    p = jax.tree.map(np.float64, params["params"])
    bonus = h(np.float64(extras["intrinsic_reward"]))[..., None]
    inputs = [np.eye(STATES)[timestep.observation], bonus, np.eye(mixtures)[extras["mixture"]]]
    seen = np.concatenate(inputs, axis=-1)
    value, advantage = (seen @ p[k]["kernel"] + p[k]["bias"] for k in ("value", "advantage"))
    return value + advantage - advantage.mean(axis=-1, keepdims=True)


def with_extras(batch: Batch, **extras: Any) -> Batch:
    trajectory = batch.trajectory
    return batch._replace(trajectory=trajectory._replace(extras=trajectory.extras | extras))


@pytest.mark.parametrize(("mixtures", "extrinsic"), [(N, True), (1, True), (1, False)])
def test_targets_are_retrace_of_the_mixed_reward(mixtures: int, extrinsic: bool) -> None:
    """h(Retrace of h⁻¹(q̄)) on r^e + β_i r^i with γ_i, for a policy that is ε-greedy for q."""
    agent, state, learn = make(mixtures=mixtures, extrinsic=extrinsic)
    batch = random_batch(agent)
    if mixtures == 1:
        batch = with_extras(batch, mixture=np.zeros_like(batch.trajectory.extras["mixture"]))
    _, metrics, (priority, _) = learn(state, batch)
    timestep, action, extras = jax.tree.map(lambda x: x[BURN_IN:], batch.trajectory[:3])
    networks = state.params["q"], state.extra["target"]["q"]
    online, target = (table(x, timestep, extras, mixtures) for x in networks)
    halfway = 1 - np.sqrt(0.003 * 0.01)  # of log(1 − γ)
    beta = np.array({N: [0.0, 0.3 * 0.9999546, 0.3], 1: [0.3]}[mixtures])
    gamma = np.array({N: [0.997, halfway, 0.99], 1: [0.99]}[mixtures])
    weight = 1.0 - timestep.first[1:]
    ended = timestep.terminated[1:] | timestep.truncated[1:]
    i = extras["mixture"]
    # Both rewards are those of the row that a transition leads to.
    reward = extrinsic * timestep.reward[1:] + beta[i[1:]] * extras["intrinsic_reward"][1:]
    discount = gamma[i[:-1]] * (1.0 - timestep.terminated[1:])
    continuation = (1.0 - ended) * weight
    continuation[:-1] *= weight[1:]
    best = online.argmax(-1)
    steps, columns = np.indices(best.shape)
    policy = 0.99 * np.eye(ACTIONS)[best] + 0.01 / ACTIONS
    values = (policy * inverse(target)).sum(-1)
    trace = 0.95 * np.minimum(1, policy[steps, columns, action] / extras["probability"])
    q, taken = inverse(target[steps, columns, action]), online[steps, columns, action]
    error = np.zeros(weight.shape)
    for b in range(BATCH):
        common = (reward * weight)[:, b], discount[:, b], continuation[:, b]
        goal = reference.off_policy(q[:-1, b], values[:, b], *common, trace[:-1, b])
        error[:, b] = (h(goal) - taken[:-1, b]) * weight[:, b]
    size, count = np.abs(error), weight.sum(0)
    np.testing.assert_allclose(priority, 0.9 * size.max(0) + 0.1 * size.sum(0) / count, rtol=1e-3)
    correction = np.float64(batch.probabilities) ** -0.6
    loss = (correction / correction.max() * 0.5 * error**2).sum() / BATCH
    np.testing.assert_allclose(metrics["loss/value"], loss, rtol=1e-3)


def test_the_exploitative_mixture_learns_from_extrinsic_rewards_alone() -> None:
    """The stored reward is multiplied by β_i once, and is never computed again."""
    agent, state, learn = make()
    batch = random_batch(agent)
    zeros = np.zeros_like(batch.trajectory.extras["mixture"])
    agent_of = {i: with_extras(batch, mixture=zeros + i) for i in range(N)}
    # Of the reward only: as an input it counts for all.
    weights = jax.tree.map(np.array, state.params["q"]["params"])
    for name in ("value", "advantage"):
        weights[name]["kernel"][STATES] = 0
    params = state.params | {"q": {"params": weights}}
    extra = state.extra | {"target": {"q": {"params": weights}}}
    state = state._replace(params=params, extra=extra)
    for i, found in agent_of.items():
        more = with_extras(found, intrinsic_reward=2 * found.trajectory.extras["intrinsic_reward"])
        same = np.allclose(
            learn(state, found).feedback.priorities, learn(state, more).feedback.priorities
        )
        assert same == (i == 0)
    # Other networks of the intrinsic reward change nothing of what was stored.
    other = state._replace(
        params=jax.tree.map(lambda x: np.asarray(x) + np.float32(1), state.params)
        | {"q": params["q"]}
    )
    np.testing.assert_array_equal(
        learn(state, batch).feedback.priorities, learn(other, batch).feedback.priorities
    )


RECURRENT = {"recurrent_core": "lstm", "recurrent_units": 6, "hidden_sizes": (5,)}


@functools.cache
def recorded_act(agent: Any) -> Any:
    """`act`, jitted, which returns the values that decided as well."""
    values: list[Any] = []

    class Recorded(ngu.NGU):
        def values(self, *args: Any) -> Any:
            q, after = super().values(*args)
            values.append(q[0])
            return q, after

    recorded = Recorded(**{f.name: getattr(agent, f.name) for f in dataclasses.fields(agent)})

    @jax.jit
    def act(*args: Any) -> Any:
        values.clear()
        return *recorded.act(*args), values[0]

    return act


def acted(agent: Any, state: Any, steps: int, *, evaluate: bool = False, slots: int = BATCH) -> Any:
    """Rows acted on random observations: (time steps, actions, extras, the first core), and the
    values that decided."""
    rng, act = np.random.default_rng(3), recorded_act(agent)
    carry = agent.initial_carry(KEY, np.arange(slots), slots, evaluate)
    start, rows, seen, behaviour = carry.core, [], [], agent.behaviour(state)
    for t in range(steps):
        first = (rng.uniform(size=slots) < 0.2) | (t == 0)
        no, task = np.zeros(slots, bool), np.zeros(slots, np.int32)
        reward = (rng.normal(size=slots) * ~first).astype(np.float32)
        observation = rng.integers(0, STATES, slots)
        timestep = TimeStep(observation, reward, no, no, first, task)
        action, carry, extras, q = act(behaviour, carry, timestep, jax.random.key(t))
        rows.append((timestep, action, extras))
        seen.append(q)
    stacked = jax.tree.map(lambda *x: np.stack(x), *rows)
    return Trajectory(*stacked, start, np.zeros(slots, np.int32)), np.stack(seen)


@pytest.mark.parametrize("core", ["lstm", "gru", "none"])
def test_action_values_are_those_that_were_acted_on(core: str) -> None:
    """With the same rewards, actions and mixtures as inputs, from the stored extras."""
    agent, state, _ = make(**RECURRENT | {"recurrent_core": core})
    trajectory, q = acted(agent, state, BURN_IN + LENGTH + 1)
    action_values = jax.jit(agent.action_values)
    found = action_values(state.params["q"], Batch(trajectory))
    np.testing.assert_allclose(found, q[BURN_IN:], rtol=1e-4, atol=1e-5)
    # Each of the inputs counts.
    for name in ("intrinsic_reward", "mixture"):
        changed = {name: (trajectory.extras[name] + 1) % N}
        other = action_values(state.params["q"], with_extras(Batch(trajectory), **changed))
        assert np.abs(np.asarray(other) - np.asarray(found)).max() > 1e-3


def test_each_episode_has_a_mixture() -> None:
    agent, state, _ = make()
    trajectory, _ = acted(agent, state, 60, slots=40)
    mixture, first = trajectory.extras["mixture"], trajectory.timestep.first
    assert (mixture[1:] == mixture[:-1])[~first[1:]].all()
    share = np.bincount(mixture[first], minlength=N) / first.sum()
    np.testing.assert_allclose(share, 1 / N, atol=0.1)
    trajectory, _ = acted(agent, state, 30, evaluate=True)
    assert (trajectory.extras["mixture"] == 0).all()


def test_evaluations_have_a_small_epsilon() -> None:
    """The same in all environments; the actors' differ."""
    agent, state, _ = make()
    trajectory, q = acted(agent, state, 40, evaluate=True)
    best = trajectory.action == q.argmax(-1)
    expected = np.where(best, 0.7 + 0.3 / ACTIONS, 0.3 / ACTIONS)
    np.testing.assert_allclose(trajectory.extras["probability"], expected, rtol=1e-5)
    assert not best.all()
    trajectory, _ = acted(agent, state, 2)
    assert len(np.unique(trajectory.extras["probability"])) > 2


def test_rewards_are_computed_when_acting() -> None:
    """0 where an episode begins, else r^episodic · clip(α); the parts are in `extras`, too."""
    agent, state, _ = make()
    trajectory, _ = acted(agent, state, 60)
    extras, first = trajectory.extras, trajectory.timestep.first
    assert (extras["intrinsic_reward"][first] == 0).all()
    assert (extras["memory_filled"][first] == 0).all()
    assert (extras["intrinsic_reward"][~first] > 0).all()
    age = np.zeros(BATCH, int)
    for t in range(60):
        age = np.where(first[t], 0, age + 1)
        np.testing.assert_allclose(extras["memory_filled"][t], np.minimum(age, 6) / 6, rtol=1e-6)
    assert extras["alpha"].min() < 1
    for changes, expected in (
        ({"episodic": False}, np.clip(extras["alpha"], 1, 5)),
        ({"lifelong": False}, extras["intrinsic_reward"] / np.clip(extras["alpha"], 1, 5)),
    ):
        other, other_state, _ = make(**changes)
        shared = {k: state.params[k] for k in other_state.params if k != "q"}
        fixed = {k: state.extra["fixed"][k] for k in other_state.extra["fixed"]}
        other_state = other_state._replace(
            params=other_state.params | shared, extra=other_state.extra | {"fixed": fixed}
        )
        found = acted(other, other_state, 60)[0].extras["intrinsic_reward"]
        np.testing.assert_allclose(found, np.where(first, 0, expected), rtol=1e-4)


def test_the_last_real_transitions_train_the_networks() -> None:
    """Two of each column, none of them a dummy, fewer where there are fewer."""
    agent, _, _ = make()
    samples_of = jax.jit(agent.novelty.samples)
    for seed in range(20):
        batch = random_batch(agent, seed)
        timestep, action = jax.tree.map(lambda x: x[BURN_IN:], batch.trajectory[:2])
        timestep.first[3:, 0] = True  # padding
        timestep.first[:, 1] = True
        samples = samples_of(timestep, action)
        expected = []
        for b in range(BATCH):
            real = [t for t in range(LENGTH) if not timestep.first[t + 1, b]]
            expected += [(t, b) for t in real[-2:]]
        found = [
            tuple(map(int, x))
            for x in zip(samples.observation, samples.action, samples.following, strict=True)
        ]
        found = [x for x, w in zip(found, samples.weight, strict=True) if w]
        obs = timestep.observation
        assert sorted(found) == sorted(
            (obs[t, b], action[t, b], obs[t + 1, b]) for t, b in expected
        )


def test_the_losses_of_the_networks() -> None:
    agent, state, learn = make()
    batch = random_batch(agent)
    timestep, action = jax.tree.map(lambda x: x[BURN_IN:], batch.trajectory[:2])
    networks = agent.novelty

    @jax.jit
    def outputs(params: Any, fixed: Any) -> Any:
        samples = networks.samples(timestep, action)
        embedding = params["embedding"]
        before, after = (
            networks.embedding.apply(embedding["features"], x)
            for x in (samples.observation, samples.following)
        )
        logits = networks.inverse.apply(embedding["inverse"], before, after)
        lifelong = [
            networks.lifelong.apply(p, samples.following)
            for p in (fixed["random"], params["predictor"])
        ]
        return samples, logits, networks.inverse_loss(embedding, samples)[0], lifelong

    found = outputs(state.params, state.extra["fixed"])
    samples, logits, loss, lifelong = jax.tree.map(np.asarray, found)
    params, weight, logits = state.params["embedding"], samples.weight, np.float64(logits)
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -(log[np.arange(len(log)), samples.action] * weight).sum() / weight.sum()
    metrics = learn(state, batch).metrics
    np.testing.assert_allclose(metrics["loss/inverse"], expected, rtol=1e-5)
    squares = sum(float((np.float64(x) ** 2).sum()) for x in jax.tree.leaves(params))
    np.testing.assert_allclose(loss, expected + 0.5 * 0.5 * squares, rtol=1e-5)
    g, ghat = map(np.float64, lifelong)
    error = (((ghat - g) ** 2).sum(-1) * weight).sum() / weight.sum()
    np.testing.assert_allclose(metrics["loss/lifelong"], error, rtol=1e-5)


def differs(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(not np.array_equal(x, y) for x, y in pairs)


def test_actors_use_a_copy_of_the_embedding_that_seldom_changes() -> None:
    """It becomes the learnt one when the target network is copied; the random network never
    changes; the value loss trains neither embedding nor predictor."""
    agent, state, learn = make()
    random = state.extra["fixed"]["random"]
    for i in range(1, 7):
        before, state = state, learn(state, random_batch(agent, seed=i)).state
        source = state.params["embedding"]["features"]
        if i % 3:
            source = before.extra["fixed"]["embedding"]
        assert not differs(state.extra["fixed"]["embedding"], source)
        assert differs(state.params["embedding"], before.params["embedding"])
        assert differs(state.params["predictor"], before.params["predictor"])
        assert not differs(state.extra["fixed"]["random"], random)
    batch = random_batch(agent)
    timestep = batch.trajectory.timestep
    richer = batch.trajectory._replace(timestep=timestep._replace(reward=timestep.reward * 3))
    a, b = (learn(state, x).state.params for x in (batch, batch._replace(trajectory=richer)))
    assert differs(a["q"], b["q"])
    assert not differs((a["embedding"], a["predictor"]), (b["embedding"], b["predictor"]))


def test_a_random_embedding_stays_as_it_is() -> None:
    agent, state, learn = make(embedding="random", target_every=1)
    after = learn(state, random_batch(agent)).state
    assert set(after.params) == {"q", "predictor"}
    assert not differs(after.extra["fixed"], state.extra["fixed"])


def test_the_memory_of_an_actor_is_updated_in_place() -> None:
    agent = agents.make("ngu", dataclasses.replace(SMALL, memory_size=9999), SPEC, horizon=1)
    behaviour = agent.behaviour(jax.jit(agent.init)(KEY))
    carry = jax.tree.map(jnp.array, agent.initial_carry(KEY, np.arange(BATCH), BATCH, False))
    zeros = np.zeros(BATCH)
    row = TimeStep(zeros.astype(np.int64), zeros.astype(np.float32), *[zeros > 0] * 3,
                   zeros.astype(np.int32))  # fmt: skip
    for count in range(3):
        rows = carry.private["novelty"]["memory"].rows
        pointer = rows.unsafe_buffer_pointer()
        _, carry, _ = act_in_place(agent.act, behaviour, *carry, row, KEY, np.uint32(count))
        assert rows.is_deleted()
        assert carry.private["novelty"]["memory"].rows.unsafe_buffer_pointer() == pointer


class OneAction:
    """A space with a single action."""

    spec = EnvSpec("lonely", spaces.Discrete(STATES), spaces.Discrete(1))


def test_a_single_action_predicts_nothing() -> None:
    with pytest.raises(UserError, match=r"'lonely' has a single action.*--embedding random"):
        ngu.build(SMALL, OneAction.spec)
    ngu.build(dataclasses.replace(SMALL, embedding="random"), OneAction.spec)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env": "Pendulum-v1"}, "ngu has a value for each action"),
        ({"neighbours": 8, "memory_size": 7}, "`--neighbours` is 8; expected at most `--memory-"),
        ({"memory_size": 0}, "`--memory-size` is 0; expected a number above zero"),
        ({"mixtures": 0}, "`--mixtures` is 0; expected a number above zero"),
        ({"intrinsic_scale": -0.1}, "`--intrinsic-scale` is -0.1; expected zero or more"),
        ({"discount": 0.9}, "`--exploratory-discount` is 0.97; expected at most `--discount`"),
        ({"discount": 1.0}, "`--discount` is 1.0; expected .*below 1"),
        (
            {"intrinsic_steps": 30},
            "`--intrinsic-steps` is 30; expected at most `--sequence-length`",
        ),
        ({"episodic": False, "lifelong": False}, "leave no intrinsic reward"),
        ({"extrinsic": False, "mixtures": 2}, "`--no-extrinsic` has `--mixtures 2`; expected"),
        ({"overlap": 20}, "`--overlap` is 20; expected from 0 to less than"),
    ],
)
def test_bad_settings(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    settings = {"env": "CartPole-v1"} | settings
    with pytest.raises(UserError, match=message):
        pronk.train("ngu", run_dir=tmp_path, steps=500, quiet=True, **settings)


def test_episodes_shorter_than_what_is_trained_on(tmp_path: Path) -> None:
    """Of Catch with three rows, each episode has two transitions, of five."""
    settings: dict[str, Any] = {
        "hidden_sizes": (8,),
        "recurrent_core": "none",
        "head_units": 8,
        "memory_size": 50,
        "batch_size": 4,
        "replay_minimum": 10,
        "replay_capacity": 400,
        "samples_per_insert": 1.0,
        "envs_per_actor": 4,
        "actors": 1,
        "quiet": True,
        "env_args": {"rows": 3},
    }
    summary = pronk.train("ngu", "pronk/Catch-v0", run_dir=tmp_path, steps=300, **settings)
    assert summary["status"] == "finished"


def test_a_small_memory_has_a_size_in_the_notes() -> None:
    note = "episodic memory: 0.00171 MiB for each environment"
    assert ngu.build(SMALL, SPEC).novelty.notes() == (note,)
