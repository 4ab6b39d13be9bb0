"""IMPALA's off-policy corrections, its trust region, what it learns from replay, and policy lag."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
import reference
from gymnasium import spaces

import pronk
from pronk import agents
from pronk.agents.impala_config import Config
from pronk.envs import jax_env_of
from pronk.errors import UserError
from pronk.maths import returns
from pronk.replay import Replay
from pronk.run.actors import ActorFactory
from pronk.run.resolve import resolve
from pronk.run.setup import build, core_spec, initial_state, row_spec
from pronk.runtime import fused
from pronk.runtime.learner import Learner
from pronk.runtime.replay_source import Memory, MixedSource
from pronk.types import Batch, EnvSpec, Mixed, TimeStep, Trajectory

STATES, ACTIONS, LENGTH, WIDTH = 4, 3, 6, 5
SPEC = EnvSpec("test", spaces.Discrete(STATES), spaces.Discrete(ACTIONS))
# A table: logits and values are a linear function of which state it is.
TABLE = Config(
    hidden_sizes=(),
    entropy_cost=0.0,
    reward_clip=0.0,
    discount=0.9,
    unroll=LENGTH,
    batch_size=WIDTH,
    rho_bar=1.2,
    c_bar=1.1,
    trace_lambda=0.9,
)
KEY = jax.random.key(0)


@functools.cache
def made(**settings: Any):
    """The agent, and a state whose tables are far from their first values."""
    agent = agents.make("impala", dataclasses.replace(TABLE, **settings), SPEC, horizon=1)
    state, rng = jax.jit(agent.init)(KEY), np.random.default_rng(0)

    def spread(x: Any) -> Any:
        return np.asarray(x) + np.float32(rng.normal(size=x.shape))

    params, aux = (jax.tree.map(spread, x) for x in (state.params, state.extra))
    return agent, state._replace(params=params, extra=aux)


def batch(seed: int = 0) -> Batch:
    """Boundaries of every kind, and a behaviour that has nothing to do with the policy."""
    rng = np.random.default_rng(seed)
    shape = (LENGTH + 1, WIDTH)
    first, terminated, truncated = (rng.uniform(size=shape) < 0.15 for _ in range(3))
    timestep = TimeStep(
        rng.integers(STATES, size=shape),
        rng.normal(size=shape).astype(np.float32) * ~first,
        terminated & ~first,
        truncated & ~first,
        first,
        np.zeros(shape, np.int32),
    )
    logits = rng.normal(size=(*shape, ACTIONS)).astype(np.float32)
    action = rng.integers(ACTIONS, size=shape)
    log_prob = np.log(np.take_along_axis(reference.softmax(logits), action[..., None], -1)[..., 0])
    agent, _ = made()
    core = agent.initial_carry(KEY, np.arange(WIDTH), WIDTH, False).core
    extras = {"log_prob": log_prob.astype(np.float32), "policy": logits}
    return Batch(Trajectory(timestep, action, extras, core, np.zeros(WIDTH, np.int32)))


def expected(state: Any, seen: Batch, correction: str, used: Any = 1.0) -> tuple[Any, Any]:
    """The gradients of the policy's and of the value's table, `[S, A]` and `[S]`, in NumPy."""
    table = jax.tree.map(np.float64, state.params["params"])
    rows = seen.trajectory.timestep
    states, action = rows.observation, seen.trajectory.action[:-1]
    logits = (table["policy"]["kernel"] + table["policy"]["bias"])[states]
    pi = reference.softmax(logits)[:-1]
    values = (table["value"]["kernel"][:, 0] + table["value"]["bias"])[states]
    taken = np.take_along_axis(pi, action[..., None], -1)[..., 0]
    reward, discount, continuation, weight = map(np.float64, returns.transitions(rows, 0.9))
    ratio = taken / np.exp(seen.trajectory.extras["log_prob"][:-1]) * weight * used
    policy, value = np.zeros((STATES, ACTIONS)), np.zeros(STATES)
    for b in range(WIDTH):
        column = [x[:, b] for x in (values, reward, discount, continuation)]
        if correction == "vtrace":
            found = reference.vtrace(*column, ratio[:, b], rho_bar=1.2, c_bar=1.1, lambda_=0.9)
        else:
            all_alike = (weight * used)[:, b]
            found = reference.vtrace(*column, all_alike, lambda_=0.9)
        targets, advantages = found.targets, found.advantages
        if correction == "one-step":
            error = column[1] + column[2] * column[0][1:] - column[0][:-1]
            targets = column[0][:-1] + error * (weight * used)[:, b]
            advantages = np.minimum(1.2, ratio[:, b]) * error
        for t in range(LENGTH):
            p = taken[t, b]
            score = np.eye(ACTIONS)[action[t, b]] - pi[t, b]
            if correction == "epsilon":
                score = score * p / (p + 1e-6)
            if weight[t, b]:
                policy[states[t, b]] -= advantages[t] * score
                value[states[t, b]] += 0.5 * (column[0][t] - targets[t])
    return policy, value


@functools.cache
def gradients_of(agent: Any) -> Any:
    return jax.jit(agent.halves.gradients)


def gradients(agent: Any, state: Any, seen: Batch) -> tuple[Any, Any]:
    found, _ = gradients_of(agent)(state, seen)
    return found["params"]["policy"]["kernel"], found["params"]["value"]["kernel"][:, 0]


@pytest.mark.parametrize("correction", ["vtrace", "none", "epsilon", "one-step"])
@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_each_correction_is_that_of_its_formula(correction, seed):
    agent, state = made(correction=correction)
    for ours, theirs in zip(
        gradients(agent, state, batch(seed)), expected(state, batch(seed), correction), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)


def test_corrections_differ_off_policy_and_agree_on_policy():
    agents_of = {c: made(correction=c) for c in ("vtrace", "none", "one-step")}
    found = {c: gradients(*made_, batch())[0] for c, made_ in agents_of.items()}
    assert np.abs(found["vtrace"] - found["none"]).max() > 0.1
    assert np.abs(found["vtrace"] - found["one-step"]).max() > 0.1
    # On-policy and with levels of at least 1, V-trace and no correction are one.
    seen = batch()
    rows = seen.trajectory.timestep
    state = agents_of["vtrace"][1]
    table = state.params["params"]["policy"]
    pi = reference.softmax((table["kernel"] + table["bias"])[rows.observation])
    taken = np.take_along_axis(pi, seen.trajectory.action[..., None], -1)
    log_prob = np.log(taken).astype(np.float32)
    extras = {**seen.trajectory.extras, "log_prob": log_prob[..., 0]}
    on_policy = Batch(seen.trajectory._replace(extras=extras))
    on = {c: gradients(made_[0], state, on_policy)[0] for c, made_ in agents_of.items()}
    np.testing.assert_allclose(on["vtrace"], on["none"], rtol=1e-4, atol=1e-5)


def test_epsilon_bounds_the_gradient_of_an_impossible_action():
    """∇ log(π + ε) vanishes with π, where ∇ log π does not."""
    seen = batch()
    found = {}
    for correction in ("none", "epsilon"):
        agent, state = made(correction=correction)
        # One action is all but impossible, in all states.
        params = jax.tree.map(np.array, state.params)
        params["params"]["policy"]["kernel"][:, 0] = -40.0
        found[correction] = gradients(agent, state._replace(params=params), seen)[0]
    assert np.abs(found["epsilon"] - found["none"]).max() > 0.1
    assert np.isfinite(found["epsilon"]).all()


@pytest.mark.parametrize("correction", ["vtrace", "none", "one-step"])
def test_the_trust_region_leaves_out_transitions(correction):
    """Those whose KL(average policy ‖ behaviour) is too large; traces end there, too."""
    seen = batch()
    _, state = made(trust_region=1.0)
    table = jax.tree.map(np.float64, state.extra["target"]["params"]["policy"])
    average = reference.softmax(
        (table["kernel"] + table["bias"])[seen.trajectory.timestep.observation]
    )
    behaviour = reference.softmax(seen.trajectory.extras["policy"])
    implied = np.minimum(1.2 * behaviour, average)
    implied /= implied.sum(-1, keepdims=True)
    divergence = (average * np.log(average / implied)).sum(-1)[:-1]
    level = float(np.median(divergence))
    agent, _ = made(trust_region=1.0, correction=correction)
    hyper = {**state.hyper, "trust_region": np.float32(level)}
    state = state._replace(hyper=hyper)
    used = divergence < level
    for ours, theirs in zip(
        gradients(agent, state, seen), expected(state, seen, correction, used), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)
    _, aux = gradients_of(agent)(state, seen)
    weight = 1 - seen.trajectory.timestep.first[1:]
    assert float(aux["trusted"]) == (weight * used).sum()


def test_the_entropy_is_of_fresh_trusted_transitions():
    """Neither of those outside the trust region nor of replayed ones (LASER)."""
    seen = batch()
    agent, state = made(trust_region=0.3, entropy_cost=0.1)
    replayed = np.arange(WIDTH) >= 2
    measure = gradients_of(agent)
    _, alone = measure(state, Batch(_some(seen.trajectory, slice(0, 2))))
    _, both = measure(state, seen._replace(replayed=replayed))
    _, all_ = measure(state, seen)
    np.testing.assert_allclose(both["loss/entropy"], alone["loss/entropy"], rtol=1e-5)
    assert both["loss/entropy"] < all_["loss/entropy"]
    assert both["loss/value"] == all_["loss/value"]
    hyper = {**state.hyper, "trust_region": np.float32(1e6)}
    _, everything = measure(state._replace(hyper=hyper), seen)
    assert 0 < all_["trusted"] < everything["trusted"] == everything["steps"]
    assert all_["loss/entropy"] < everything["loss/entropy"]


def test_without_decay_the_average_policy_is_the_newest():
    agent, state = made(trust_region=1.0, average_decay=0.0)
    after, _, _ = jax.jit(agent.learn)(state, batch())
    for new, mean in zip(*map(jax.tree.leaves, (after.params, after.extra["target"])), strict=True):
        np.testing.assert_array_equal(new, mean)


def test_the_average_policy_is_an_exponential_average():
    agent, state = made(trust_region=1.0, average_decay=0.75)
    after, _, _ = jax.jit(agent.learn)(state, batch())
    for new, old, mean in zip(
        *map(jax.tree.leaves, (after.params, state.extra["target"], after.extra["target"])),
        strict=True,
    ):
        np.testing.assert_allclose(mean, 0.25 * new + 0.75 * old, rtol=1e-5, atol=1e-6)


# Replay beside what was just acted.

SETTINGS = {
    "replay_fraction": 0.75,
    "batch_size": 8,
    "unroll": 5,
    "hidden_sizes": (8,),
    "recurrent_core": "lstm",
    "recurrent_units": 4,
    "replay_capacity": 100,
}


def captured(draws: int, num_envs: int, lag: int = 0, updates: int = 6, **settings: Any):
    """Batches that a fused run learnt from, and the learner's parameters before each."""
    plan = resolve("impala", "pronk/Catch-v0", **{**SETTINGS, **settings})
    _, agent = build(plan, plan.env)
    env = jax_env_of(plan.env)
    assert env is not None
    batches: list[Batch] = []
    learn = jax.jit(agent.learn)

    def spy(state: Any, seen: Batch) -> Any:
        batches.append(jax.tree.map(np.asarray, seen))
        return learn(state, seen)

    init, update = fused.build(
        agent._replace(learn=spy), env, unroll=5, num_envs=num_envs, draws=draws, policy_lag=lag
    )
    run = jax.jit(init)(initial_state(plan, agent), jax.random.key(1))
    params = []
    for _ in range(updates):
        params.append(run.learner.params)
        run, outcome = update(run)
    return agent, batches, params, run, outcome


def column(trajectory: Trajectory, b: int) -> tuple[np.ndarray, ...]:
    rows = jax.tree.leaves((trajectory.timestep, trajectory.action, trajectory.extras["log_prob"]))
    return (
        *(x[:, b] for x in rows),
        *(x[b] for x in jax.tree.leaves((trajectory.core, trajectory.version))),
    )


def same(a: tuple, b: tuple) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_fused_batches_are_mixed():
    """Two fresh trajectories, and six drawn from all so far, as they were stored."""
    _, batches, _, run, outcome = captured(draws=6, num_envs=2)
    before: list[tuple] = []
    replayed = []
    for i, seen in enumerate(batches):
        assert seen.replayed is not None
        assert seen.replayed.tolist() == [False] * 2 + [True] * 6
        fresh, drawn = ([column(seen.trajectory, b) for b in r] for r in (range(2), range(2, 8)))
        assert all(seen.trajectory.version[:2] == i)
        before += fresh
        for found in drawn:
            index = [k for k, b in enumerate(before) if same(found, b)]
            assert index
            replayed.append(index[0])
    assert len(set(replayed)) > 5
    # What is replayed is not counted as learnt from again.
    real = sum(int((~b.trajectory.timestep.first[1:, :2]).sum()) for b in batches)
    assert int(run.learner.steps) == real
    assert int(outcome.steps) == int((~batches[-1].trajectory.timestep.first[1:, :2]).sum())


def test_local_batches_are_mixed():
    """Each part of a batch has its share of replayed columns, which continue across episodes."""
    plan = resolve("impala", "pronk/Catch-v0", runtime="local", **SETTINGS)
    spec, agent = build(plan, plan.env)
    assert isinstance(agent.source, Mixed)
    replay = Replay(agent.source.sequences, row_spec(agent, spec), core_spec(agent))
    source = MixedSource(agent.source, Memory(replay, None, seed=0), batch_size=4)
    actor = ActorFactory(plan, plan.env, 0, 1, 4, 0)(agent)
    behaviour = agent.behaviour(initial_state(plan, agent))
    known: list[tuple] = []
    for version in range(12):
        trajectory = actor.unroll(behaviour, version).trajectory
        source.add(0, trajectory)
        assert source.ready()
        known += [column(trajectory, b) for b in range(4)]
        parts = [Batch(_some(trajectory, slice(0, 2))), Batch(_some(trajectory, slice(2, 4)))]
        for part, got in zip(parts, source.take(2).parts, strict=True):
            assert got.replayed is not None
            assert got.replayed.tolist() == [False] * 2 + [True] * 6
            for b in range(2):
                assert same(column(got.trajectory, b), column(part.trajectory, b))
            for b in range(2, 8):
                # But for the version: a last row comes with the next unroll.
                assert any(same(column(got.trajectory, b)[:-1], k[:-1]) for k in known)
    assert len(replay) == 100 // 5 - 4  # the newest unroll's last row is the next one's first
    # A recurrent state in the middle of things was stored, as the actor had it.
    assert np.abs(jax.tree.leaves(got.trajectory.core)[0][2:]).max() > 0


def _some(trajectory: Trajectory, which: slice) -> Trajectory:
    rows = jax.tree.map(lambda x: x[:, which], trajectory[:3])
    core = jax.tree.map(lambda x: x[which], trajectory.core)
    return Trajectory(*rows, core=core, version=trajectory.version[which])


@pytest.mark.parametrize("lag", [0, pytest.param(1, marks=pytest.mark.extended), 3])
def test_fused_policy_lag_is_exact(lag):
    """Actions are those of the parameters `lag` updates ago, and of the first ones until then."""
    agent, batches, params, _, outcome = captured(
        draws=0,
        num_envs=2,
        lag=lag,
        updates=6,
        replay_fraction=0.0,
        recurrent_core="none",
        learning_rate=0.1,
    )
    assert int(outcome.lag) == lag
    act = jax.jit(agent.act)
    compared = 0
    for i, seen in enumerate(batches):
        version = max(0, i - lag)
        assert all(seen.trajectory.version == version)
        for t in (1, 4):  # row 0 was acted in the unroll before
            rows = jax.tree.map(lambda x, t=t: x[t], seen.trajectory.timestep)
            carry = agent.initial_carry(KEY, np.arange(2), 2, False)
            action, _, extras = act(agent.behaviour(_with(params[version])), carry, rows, KEY)
            agree = np.asarray(action) == seen.trajectory.action[t]
            compared += int(agree.sum())
            stored = seen.trajectory.extras["log_prob"][t]
            # Where the same action comes up, with the same probability.
            np.testing.assert_allclose(extras["log_prob"][agree], stored[agree], atol=1e-5)
    assert compared > 2
    if lag:
        assert not same(*(tuple(jax.tree.leaves(p)) for p in (params[-1], params[-1 - lag])))


def _with(params: Any) -> Any:
    class State:
        pass

    state = State()
    state.params = params  # type: ignore[attr-defined]
    return state


def test_the_policy_lag_of_a_learner_is_exact():
    plan = resolve("impala", "pronk/Catch-v0", hidden_sizes=(8,), batch_size=4, unroll=5)
    _, agent = build(plan, plan.env)
    learner = Learner(agent, initial_state(plan, agent), batch_size=4, policy_lag=2)
    actor = ActorFactory(plan, plan.env, 0, 1, 4, 0)(agent)
    params = [jax.tree.map(np.array, learner.state.params)]
    for i in range(6):
        version, behaviour = learner.latest
        assert version == max(0, i - 2)
        for ours, theirs in zip(*map(jax.tree.leaves, (behaviour, params[version])), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        trajectory = actor.unroll(behaviour, version).trajectory
        batch = learner.prepare([Batch(trajectory)])
        assert learner.updates - batch.version[0] == min(i, 2)
        learner.update(batch)
        learner.publish()
        learner.publish()  # a second time changes nothing
        params.append(jax.tree.map(np.array, learner.state.params))
    learner.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"replay_fraction": 0.3},
            "`--replay-fraction` 0.3 of `--batch-size` 8 is 2.4 trajectories",
        ),
        (
            {"replay_fraction": 1.0},
            "is 8 trajectories; expected a whole number of them, and at least one that is not",
        ),
        ({"replay_fraction": 1.5}, "`--replay-fraction` is 1.5; expected a number from 0 to 1"),
        (
            {"replay_fraction": 0.5, "envs_per_actor": 8},
            "so that 4 environments have to make the others",
        ),
        ({"policy_lag": 2, "runtime": "local"}, "`--policy-lag` is 2, and the actors wait for"),
        ({"policy_lag": -1}, "`--policy-lag` is -1; expected zero or more"),
        (
            {"policy_lag": 2, "runtime": "local", "deterministic": True, "envs_per_actor": 8},
            "`--policy-lag` is 2, which is exact where a round makes one update: `--actors` 2 ×",
        ),
        (
            {"replay_fraction": 0.5, "replay_capacity": 60},
            "expected room for what 4 environments do",
        ),
        (
            {"replay_fraction": 0.5, "architecture": "async-gradients"},
            "learns from what actors have just done, and this agent from replay",
        ),
        (
            {"replay_fraction": 0.5, "architecture": "sync-unroll", "envs_per_actor": 4},
            "`--envs-per-actor` 4 must equal 4, which is `--batch-size` 8 without what is replayed",
        ),
        (
            {"correction": "v-trace"},
            "expected one of vtrace, none, epsilon, one-step; did you mean 'vtrace'",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message, tmp_path):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        pronk.train(
            "impala", "pronk/Catch-v0", run_dir=tmp_path, steps=100, batch_size=8, quiet=True,
            **settings,
        )  # fmt: skip


def test_a_replay_agent_has_no_exact_policy_lag(tmp_path):
    drawn: dict[str, Any] = {"priority_exponent": 0.0, "overlap": 0}
    for settings in ({"runtime": "fused", **drawn}, {"deterministic": True, "runtime": "local"}):
        with pytest.raises(UserError, match="`--policy-lag` is 1, and this agent learns from"):
            pronk.train("r2d2", "pronk/Catch-v0", run_dir=tmp_path, policy_lag=1, **settings)
