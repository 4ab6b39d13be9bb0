"""Agent57 by its formulas: targets, separate networks, what the bandits are told, what evaluations
play, and settings that it refuses."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from gymnasium import spaces

import pronk
from pronk import cli
from pronk.agents import agent57
from pronk.agents.agent57_config import Config
from pronk.errors import UserError
from pronk.maths import bandit, returns
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
    target_every=2,
    batch_size=BATCH,
    mixtures=N,
    memory_size=6,
    neighbours=3,
    embedding_size=4,
    inverse_units=8,
    lifelong_size=4,
    intrinsic_steps=2,
    kernel_epsilon=0.01,
    importance_exponent=0.6,
    bandit_window=50,
    evaluator_decay=0.5,
)
KEY = jax.random.key(0)
BETA = np.array([0.0, 0.3 * 0.9999546, 0.3])
GAMMA = np.array([0.9999, 1 - np.sqrt(0.0001 * 0.01), 0.99])


@functools.cache
def make(**settings: Any):
    """The methods of an agent, a state whose networks are far from their first values, and `act`
    and `learn`, jitted."""
    agent = agent57.build(dataclasses.replace(SMALL, **settings), SPEC)
    state = jax.jit(agent.init)(KEY)
    rng = np.random.default_rng(0)

    def spread(x: Any) -> Any:
        return np.asarray(x) + np.float32(0.5 * rng.normal(size=x.shape))

    params, target = jax.tree.map(spread, (state.params, state.extra["target"]))
    state = state._replace(params=params, extra=state.extra | {"target": target})
    return agent, state, jax.jit(agent.act), jax.jit(agent.learn)


def random_batch(agent: Any, seed: int = 0) -> Batch:
    """A batch with boundaries of every kind; each episode has one mixture."""
    rng = np.random.default_rng(seed)
    shape = (BURN_IN + LENGTH + 1, BATCH)
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
        "episode_return": rng.normal(size=shape).astype(np.float32),
    }
    if agent.config.intrinsic:
        extras |= {
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


def table(params: Any, timestep: TimeStep, extras: Any, *, bonus: bool = True) -> np.ndarray:
    """One network's action values `[T, B, A]`, float64: it is linear in the state, h(r^i) and the
    mixture's one-hot."""
    p = jax.tree.map(np.float64, params["params"])
    inputs = [np.eye(STATES)[timestep.observation], np.eye(N)[extras["mixture"]]]
    if bonus:
        inputs.insert(1, h(np.float64(extras["intrinsic_reward"]))[..., None])
    seen = np.concatenate(inputs, axis=-1)
    value, advantage = (seen @ p[k]["kernel"] + p[k]["bias"] for k in ("value", "advantage"))
    return value + advantage - advantage.mean(axis=-1, keepdims=True)


@pytest.mark.parametrize("kind", ["transformed", "identity", "no intrinsic reward"])
def test_targets_of_both_networks_have_one_policy(kind: str) -> None:
    """h(Retrace of h⁻¹(q̄)) on r^e, and on r^i, with γ_j, for the policy that is ε-greedy for the
    mixed q. Priorities are of the mixed errors."""
    off = {"episodic": False, "lifelong": False}
    settings = {"transformed": {}, "identity": {"mixing": kind}, "no intrinsic reward": off}
    agent, state, _, learn = make(**settings[kind])
    batch = random_batch(agent)
    _, metrics, (priority, _) = learn(state, batch)
    timestep, action, extras = jax.tree.map(lambda x: x[BURN_IN:], batch.trajectory[:3])
    names = ("extrinsic", "intrinsic") if kind in ("transformed", "identity") else ("extrinsic",)
    online, target = (
        {k: table(p[k], timestep, extras, bonus=len(names) == 2) for k in names}
        for p in (state.params, state.extra["target"])
    )
    mixture = extras["mixture"]

    def mixed(q: Any, beta: Any) -> Any:
        if kind == "transformed":
            return h(inverse(q["extrinsic"]) + beta * inverse(q["intrinsic"]))
        return q["extrinsic"] + (beta * q["intrinsic"] if kind == "identity" else 0)

    best = mixed(online, BETA[mixture][..., None]).argmax(-1)
    steps, columns = np.indices(best.shape)
    policy = 0.99 * np.eye(ACTIONS)[best] + 0.01 / ACTIONS
    trace = 0.95 * np.minimum(1, policy[steps, columns, action] / extras["probability"])
    weight = 1.0 - timestep.first[1:]
    ended = timestep.terminated[1:] | timestep.truncated[1:]
    continuation = (1.0 - ended) * weight
    continuation[:-1] *= weight[1:]
    discount = GAMMA[mixture[:-1]] * (1.0 - timestep.terminated[1:])
    correction = np.float64(batch.probabilities) ** -0.6
    correction /= correction.max()
    goal, taken = {}, {}
    for name in names:
        reward = extras["intrinsic_reward"] if name == "intrinsic" else timestep.reward
        values = (policy * inverse(target[name])).sum(-1)
        q = inverse(target[name][steps, columns, action])
        taken[name] = online[name][steps, columns, action][:-1]
        goal[name] = np.zeros(weight.shape)
        for b in range(BATCH):
            common = ((reward[1:] * weight)[:, b], discount[:, b], continuation[:, b])
            found = reference.off_policy(q[:-1, b], values[:, b], *common, trace[:-1, b])
            goal[name][:, b] = h(found)
        error = (goal[name] - taken[name]) * weight
        loss = (correction * 0.5 * error**2).sum() / BATCH
        named = f"loss/{name}" if len(names) == 2 else "loss/value"
        np.testing.assert_allclose(metrics[named], loss, rtol=2e-3)
    beta = BETA[mixture[:-1]]
    size = np.abs((mixed(goal, beta) - mixed(taken, beta)) * weight)
    expected = 0.9 * size.max(0) + 0.1 * size.sum(0) / weight.sum(0)
    np.testing.assert_allclose(priority, expected, rtol=3e-3)
    np.testing.assert_allclose(
        metrics["mixture_scale"], (beta * weight).sum() / weight.sum(), rtol=1e-4
    )
    shown = (GAMMA[mixture[:-1]] * weight).sum() / weight.sum()
    np.testing.assert_allclose(metrics["mixture_discount"], shown, rtol=1e-5)


@pytest.mark.parametrize("policies", ["one", "two"])
def test_separate_values_add_up_to_joint_ones(policies: str) -> None:
    """Appendix B: with identities for h, tables and plain steps, Q_e + β Q_i is what one table
    learns from r^e + β r^i, if both have its policy, and is not, if each has its own."""
    agent = agent57.build(dataclasses.replace(SMALL, rescaling="none", mixing="identity"), SPEC)
    timestep, action, extras = rows = agent.learnt_rows(random_batch(agent, seed=1))
    timestep = timestep._replace(first=np.zeros_like(timestep.first))
    rows = (timestep, action, extras)
    beta, rng = 0.3, np.random.default_rng(0)
    e, i = (rng.normal(size=(STATES, ACTIONS)) for _ in range(2))
    joint = e + beta * i

    @jax.jit
    def retrace(policy: Any, values: Any, reward: Any) -> Any:
        transitions = returns.transitions(timestep._replace(reward=reward), 0.9)
        return agent.retrace(policy, values, transitions, rows, jnp.float32(0.95))

    def step(q: np.ndarray, policy: np.ndarray, reward: Any) -> np.ndarray:
        seen = timestep.observation
        goal = retrace(policy[seen], q[seen], reward)
        after = q.copy()
        at = (seen[:-1], action[:-1])
        np.add.at(after, at, 0.1 * (np.asarray(goal) - q[at]))
        return after

    def greedy(q: np.ndarray) -> np.ndarray:
        return 0.99 * np.eye(ACTIONS)[q.argmax(-1)] + 0.01 / ACTIONS

    bonus = extras["intrinsic_reward"]
    for _ in range(6):
        both = greedy(e + beta * i)
        of_e, of_i = (both, both) if policies == "one" else (greedy(e), greedy(i))
        of_joint = greedy(joint)
        e, i = step(e, of_e, timestep.reward), step(i, of_i, bonus)
        joint = step(joint, of_joint, timestep.reward + np.float32(beta) * bonus)
    close = np.allclose(e + beta * i, joint, rtol=1e-3, atol=1e-3)
    assert close == (policies == "one")


def differs(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(not np.array_equal(x, y) for x, y in pairs)


def test_each_network_has_its_own_optimiser() -> None:
    """Larger extrinsic rewards do not change the step of the intrinsic network, or its clipping."""
    agent, state, _, learn = make()
    state = state._replace(hyper=state.hyper | {"max_gradient_norm": jnp.float32(1e-3)})
    batch = random_batch(agent)
    timestep = batch.trajectory.timestep
    richer = batch.trajectory._replace(timestep=timestep._replace(reward=100 * timestep.reward))
    plain, other = (
        learn(state, batch._replace(trajectory=t)).state for t in (batch.trajectory, richer)
    )
    assert set(plain.opt_state) == {"extrinsic", "intrinsic", "embedding", "predictor"}
    for part in ("params", "opt_state"):
        found, had = getattr(other, part), getattr(plain, part)
        assert differs(found["extrinsic"], had["extrinsic"])
        assert not differs(found["intrinsic"], had["intrinsic"])
    for name in ("extrinsic", "intrinsic"):
        mean = jax.tree.leaves(optax.tree.get(plain.opt_state[name], "mu"))
        norm = np.sqrt(sum(float((np.float64(x) ** 2).sum()) for x in mean))
        np.testing.assert_allclose(norm, 0.1 * 1e-3, rtol=1e-3)  # of the clipped gradient


def played(
    agent: Any, act: Any, state: Any, rows: list[TimeStep], *, evaluate: bool = False
) -> Any:
    """The extras of rows, stacked, and the carry after them."""
    behaviour = agent.behaviour(state)
    slots = len(rows[0].reward)
    carry, extras = agent.initial_carry(KEY, np.arange(slots), slots, evaluate), []
    for t, row in enumerate(rows):
        _, carry, found = act(behaviour, carry, row, jax.random.key(t))
        extras.append(found)
    return jax.tree.map(lambda *x: np.stack(x), *extras), carry


def random_rows(steps: int, slots: int) -> list[TimeStep]:
    """Episodes that are terminated or truncated, and some that begin without an end before them."""
    rng, rows = np.random.default_rng(5), []
    ended = np.ones(slots, bool)
    for _ in range(steps):
        draw = rng.uniform(size=(3, slots))
        first = ended | (draw[0] < 0.05)
        reward = (10 * rng.normal(size=slots) * ~first).astype(np.float32)
        terminated, truncated = (draw[k] < 0.15 for k in (1, 2))
        observation = rng.integers(0, STATES, slots)
        rows.append(
            TimeStep(
                observation,
                reward,
                terminated & ~first,
                truncated & ~first,
                first,
                np.zeros(slots, np.int32),
            )
        )
        ended = rows[-1].terminated | rows[-1].truncated
    return rows


def test_bandits_are_told_raw_returns_of_whole_episodes() -> None:
    """Terminated or truncated; the mixture stays the same within an episode."""
    agent, state, act, _ = make()
    rows = random_rows(60, BATCH)
    extras, carry = played(agent, act, state, rows)
    window = carry.private["controller"]["bandit"]
    truncated = 0
    for b in range(BATCH):
        pulls, total, mixture = [], 0.0, -1
        for t, row in enumerate(rows):
            total = 0.0 if row.first[b] else total + float(row.reward[b])
            if not row.first[b]:
                assert extras["mixture"][t, b] == mixture
            mixture = extras["mixture"][t, b]
            np.testing.assert_allclose(extras["episode_return"][t, b], total, rtol=1e-4, atol=1e-4)
            if row.terminated[b] or row.truncated[b]:
                truncated += not row.terminated[b]
                pulls.append((mixture, total))
        count = int(window.count[b])
        assert count == len(pulls) > N
        np.testing.assert_array_equal(window.arm[b, :count], [a for a, _ in pulls])
        np.testing.assert_allclose(window.reward[b, :count], [r for _, r in pulls], rtol=1e-3)
        # An episode that ended nowhere counts for nothing, and its mixture is due again.
        assert sorted(a for a, _ in pulls[:N]) == list(range(N))
    assert truncated > 0


def test_evaluations_play_the_mixture_that_returned_most() -> None:
    """What the learner has seen, each sequence as if all were equally likely; first mixture 0."""
    agent, state, act, learn = make()
    rows = random_rows(12, BATCH)
    extras, _ = played(agent, act, state, rows, evaluate=True)
    assert (extras["mixture"] == 0).all()
    total, weights = np.zeros(N), np.zeros(N)
    for seed in range(3):
        batch = random_batch(agent, seed)
        timestep, _, seen = jax.tree.map(lambda x: x[BURN_IN + 1 :], batch.trajectory[:3])
        state, metrics, _ = learn(state, batch)
        total, weights = 0.5 * total, 0.5 * weights
        for t, b in np.argwhere((timestep.terminated | timestep.truncated) & ~timestep.first):
            share = 1 / float(batch.probabilities[b])  # type: ignore[index]
            total[seen["mixture"][t, b]] += share * seen["episode_return"][t, b]
            weights[seen["mixture"][t, b]] += share
    np.testing.assert_allclose(bandit.means(state.extra["tally"]), total / weights, rtol=1e-4)
    best = int(np.argmax(total / weights))
    assert metrics["best_mixture"] == best
    np.testing.assert_allclose(metrics["best_mixture_return"], (total / weights)[best], rtol=1e-4)
    for arm in range(N):
        tally = bandit.Tally(
            np.where(np.arange(N) == arm, np.float32(2), 1), np.ones(N, np.float32)
        )
        found = state._replace(extra=state.extra | {"tally": tally})
        extras, _ = played(agent, act, found, rows, evaluate=True)
        assert (extras["mixture"] == arm).all()
        # A run that begins with this behaviour evaluates with the same mixture.
        begun = agent.warm_start(state, agent.behaviour(found))
        assert bandit.best(begun.extra["tally"]) == arm


def test_without_intrinsic_reward_nothing_of_it_is_left() -> None:
    agent, state, act, _ = make(episodic=False, lifelong=False)
    assert set(state.params) == {"extrinsic"} == set(state.extra["target"])
    assert state.extra["fixed"] == {}
    extras, carry = played(agent, act, state, random_rows(2, BATCH))
    assert set(extras) == {"probability", "mixture", "episode_return"}
    assert set(carry.private) == {"epsilon", "controller"}


TINY: dict[str, Any] = {
    "preset": "r2d2-bandit",
    "sequence_length": 6,
    "overlap": 3,
    "burn_in": 2,
    "hidden_sizes": (8,),
    "recurrent_units": 4,
    "head_units": 4,
    "batch_size": 4,
    "replay_minimum": 5,
    "replay_capacity": 2000,
    "samples_per_insert": 1.0,
    "mixtures": 3,
    "envs_per_actor": 4,
    "actors": 1,
    "quiet": True,
}


@pytest.mark.extended
def test_an_exported_policy_has_its_mixture(tmp_path: Path) -> None:
    """Another number of mixtures does not fit."""
    run, path = tmp_path / "run", tmp_path / "policy.safetensors"
    pronk.train("agent57", "pronk/Catch-v0", run_dir=run, steps=400, **TINY)
    cli.main(["export", str(run), str(path)])
    ours, theirs = pronk.load(run), pronk.load(path)
    assert ours.behaviour["tally"].weight.sum() > 0
    jax.tree.map(np.testing.assert_array_equal, ours.behaviour, theirs.behaviour)
    _, carry = theirs.act(theirs.spec.observation_space.sample(), theirs.initial_carry())
    controller = carry[0].private["controller"]
    assert controller["mixture"] == bandit.best(theirs.behaviour["tally"])
    with pytest.raises(UserError, match="fit"):
        pronk.train(
            "agent57",
            "pronk/Catch-v0",
            run_dir=tmp_path / "other",
            steps=400,
            init_from=path,
            **TINY | {"mixtures": 4},
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env": "Pendulum-v1"}, "agent57 has a value for each action"),
        ({"mixtures": 1}, "`--mixtures` is 1; expected at least 2"),
        ({"bandit_window": 0}, "`--bandit-window` is 0; expected a number above zero"),
        ({"bandit_window": 7}, "`--bandit-window` is 7; expected at least `--mixtures`"),
        ({"bandit_epsilon": 1.1}, "`--bandit-epsilon` is 1.1; expected a number from 0 to 1"),
        ({"bandit_epsilon": -0.1}, "`--bandit-epsilon` is -0.1; expected a number from 0 to 1"),
        ({"bandit_bonus": -1.0}, "`--bandit-bonus` is -1.0; expected zero or more"),
        ({"discount": 0.9}, "`--exploratory-discount` is 0.97; expected at most `--discount`"),
        (
            {"mixtures": 10, "middle_discount": 0.9},
            "`--middle-discount` is 0.9; expected a number from `--exploratory-discount`, 0.97",
        ),
        ({"mixing": "sum"}, "`--mixing` is .*sum.*; expected .*transformed"),
    ],
)
def test_bad_settings(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    settings = {"env": "CartPole-v1"} | settings
    with pytest.raises(UserError, match=message):
        pronk.train("agent57", run_dir=tmp_path, steps=500, quiet=True, **settings)
