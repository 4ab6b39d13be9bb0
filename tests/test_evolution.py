"""The cross-entropy method and CMA-ES: the mathematics, and scores of whole episodes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import pronk
from pronk import agents, envs
from pronk.agents.evolution import Behaviour
from pronk.config import fields
from pronk.config.registry import agent_module
from pronk.errors import UserError
from pronk.maths import evolution
from pronk.run.resolve import resolve
from pronk.types import Agent, Batch, EnvSpec, LearnerState, TimeStep, Trajectory

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that only its plots use
    import cma
    from cma.utilities.math import Mh


@pytest.fixture
def _x64():
    with jax.enable_x64(True):
        yield


x64 = pytest.mark.usefixtures("_x64")


# CMA-ES.


def ellipsoid(x: np.ndarray) -> np.ndarray:
    """A function to minimise whose axes differ a thousandfold, and are turned."""
    n = x.shape[-1]
    turned, _ = np.linalg.qr(np.random.default_rng(7).normal(size=(n, n)))
    return np.square(x @ turned * 10 ** (3 * np.arange(n) / (n - 1) / 2)).sum(-1)


def other_cma(n: int, mean: np.ndarray, std: float, separable: bool) -> Any:
    """The package `cma`, without what the tutorial's algorithm of positive weights lacks."""
    options: dict[str, Any] = {
        "CMA_active": False,
        "CMA_diagonal_decoding": 0,
        "updatecovwait": 0,
        "CSA_clip_length_value": None,
        "verbose": -9,
        "seed": 1,
    }
    if separable:
        options["CMA_sampler"] = cma.sampler.GaussDiagonalSampler
    return cma.CMAEvolutionStrategy(mean, std, options)


@x64
@pytest.mark.parametrize("far", [0.5, 30.0])
@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("n", [5, 10])
def test_cma_es_is_that_of_the_package_cma(n: int, separable: bool, far: float) -> None:
    """The same members and fitness: mean, σ, C and both paths, for 40 generations. From far away
    the step size grows fast, and h_σ is 0 in some generations."""
    mean = np.full(n, far)
    other = other_cma(n, mean, 0.3, separable)
    members = other.popsize
    assert members == evolution.population_size(n)
    ours = evolution.constants(n, members, separable)
    sigma = other.adapt_sigma.initialize(other) or other.adapt_sigma
    np.testing.assert_allclose(ours.weights, other.sp.weights.positive_weights, rtol=1e-12)
    np.testing.assert_allclose(ours.mu_eff, other.sp.weights.mueff, rtol=1e-12)
    chi = Mh.chiN(n)  # an approximation
    np.testing.assert_allclose(ours.chi, chi, rtol=1e-4)
    # The package's constants have changed since the tutorial: the update is compared with them.
    c = ours._replace(c_sigma=sigma.cs, d_sigma=sigma.damps, c_c=other.sp.cc, chi=chi)
    c = c._replace(c_1=0.11, c_mu=0.07)
    other.sp.c1, other.sp.cmu = c.c_1, c.c_mu
    if not separable:  # its first matrix is not quite the identity, for the eigendecomposition
        other.sm.C = np.eye(n)
        other.sm.update_now(-1)
    other.sm.parameters = lambda *args, **kwargs: {"c1": c.c_1, "cmu": c.c_mu}

    def steady(es: Any) -> bool:
        """The tutorial's h_σ; the package compares squares, with another threshold."""
        sigma._update_ps(es)
        begun = np.sqrt(1 - (1 - c.c_sigma) ** (2 * es.countiter))
        return bool(np.linalg.norm(sigma.ps) / begun < (1.4 + 2 / (n + 1)) * chi)

    sigma.hsig = steady

    @jax.jit
    def drawn(mean: Any, shape: Any, normals: Any) -> Any:
        return mean + evolution.adapted_offset(shape, normals)

    @jax.jit
    def updated(mean: Any, shape: Any, normals: Any, fitness: Any) -> Any:
        best = evolution.ranking(-fitness)[: len(c.weights)]
        return evolution.adapted_next(mean, shape, normals[best], c, jnp.float64(1.0))

    rng = np.random.default_rng(n)
    start = jax.jit(functools.partial(evolution.adapted_start, n, separable=separable))
    shape = start(np.float64(0.3))
    stalled = 0
    for _ in range(40):
        normals = rng.normal(size=(members, n))
        x = np.asarray(drawn(mean, shape, normals))
        fitness = ellipsoid(x)
        other.ask()
        other.tell(list(x), list(fitness), check_points=False)
        before = np.asarray(shape.covariance_path)
        mean, shape = updated(mean, shape, normals, fitness)
        stalled += np.allclose(shape.covariance_path, (1 - c.c_c) * before)
        np.testing.assert_allclose(mean, other.mean, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(shape.step_size, other.sigma, rtol=1e-9)
        np.testing.assert_allclose(shape.step_path, other.adapt_sigma.ps, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(shape.covariance_path, other.pc, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(shape.covariance, other.sm.C, rtol=1e-6, atol=1e-8)
    assert (stalled > 0) == (far > 1)


def test_cma_es_constants_are_the_tutorials() -> None:
    """Table 1 for n = 10 and λ = 10, by hand."""
    c = evolution.constants(10, 10, separable=False)
    np.testing.assert_allclose(
        c.weights, [0.456273, 0.270753, 0.162231, 0.085234, 0.025510], atol=1e-6
    )
    found = (c.mu_eff, c.c_sigma, c.d_sigma, c.c_c, c.c_1, c.c_mu, c.chi)
    expected = (3.167299, 0.284429, 1.284429, 0.294990, 0.0152837, 0.0235516, 3.084237)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    faster = evolution.constants(10, 10, separable=True)
    np.testing.assert_allclose((faster.c_1, faster.c_mu), (4 * c.c_1, 4 * c.c_mu), rtol=1e-12)
    assert [evolution.population_size(n) for n in (1, 10, 114, 6851)] == [4, 10, 18, 30]
    assert len(evolution.constants(3, 7, separable=False).weights) == 3


@pytest.mark.parametrize("separable", [False, True])
def test_cma_es_minimises_in_float32(separable: bool) -> None:
    """Far down an ellipsoid, without losing the covariance to rounding."""
    n, members = 8, 12
    c = evolution.constants(n, members, separable)
    scales = np.float32(10 ** (2 * np.arange(n) / (n - 1)))

    def generation(carry, key):
        mean, shape = carry
        normals = jax.random.normal(key, (members, n))
        x = mean + evolution.adapted_offset(shape, normals)
        best = evolution.ranking(-jnp.sum(scales * jnp.square(x), axis=-1))[: len(c.weights)]
        carry = evolution.adapted_next(mean, shape, normals[best], c, jnp.float32(1.0))
        return carry, jnp.sum(scales * jnp.square(carry[0]))

    @jax.jit
    def run(key):
        start = jnp.full(n, 3.0), evolution.adapted_start(n, jnp.float32(1.0), separable)
        return jax.lax.scan(generation, start, jax.random.split(key, 400))

    (_, shape), values = jax.tree.map(np.asarray, run(jax.random.key(0)))
    assert values[0] > 100
    assert values[-1] < 1e-8
    assert 10 < shape.condition < 1e4
    np.testing.assert_allclose(
        shape.root @ shape.root if shape.root.ndim == 2 else shape.root**2,
        shape.covariance,
        rtol=1e-3,
        atol=1e-5,
    )


# The cross-entropy method.


@x64
def test_the_cross_entropy_method_is_its_sum() -> None:
    """Mean and deviation of the elite, and an extra variance that goes to 0 linearly, in NumPy."""
    n, members, elite, last, extra = 4, 20, 5, 6, 0.7
    rng = np.random.default_rng(0)
    mean, deviation = rng.normal(size=n), np.full(n, 1.3)

    @jax.jit
    def updated(ours: Any, shape: Any, normals: Any, fitness: Any) -> Any:
        chosen = evolution.ranking(-fitness)[:elite]
        following = evolution.cross_entropy_next(
            ours, shape, normals[chosen], jnp.float64(extra), last
        )
        return ours + evolution.cross_entropy_offset(shape, normals), chosen, following

    ours, shape = mean, evolution.cross_entropy_start(n, np.float64(1.3), np.float64(extra))
    for g in range(10):
        std = np.sqrt(deviation**2 + extra**2 * max(1 - g / last, 0))
        normals = rng.normal(size=(members, n))
        x = mean + std * normals
        fitness = np.square(x - 2).sum(-1)
        best = np.argsort(fitness)[:elite]
        mean, deviation = x[best].mean(0), x[best].std(0)
        sampled, chosen, (ours, shape) = updated(ours, shape, normals, fitness)
        np.testing.assert_allclose(sampled, x)
        assert chosen.tolist() == best.tolist()
        np.testing.assert_allclose(ours, mean, rtol=1e-9)
        np.testing.assert_allclose(shape.deviation, deviation, rtol=1e-9)
        assert shape.generation == g + 1
    np.testing.assert_allclose(shape.sampled, shape.deviation)  # no noise is left


def test_extra_noise_keeps_the_search_alive() -> None:
    """On a sphere far away, the method without it stops short."""

    @jax.jit
    def distance(extra: Any, normals: Any) -> Any:
        def generation(carry: Any, normals: Any) -> Any:
            mean, shape = carry
            x = mean + evolution.cross_entropy_offset(shape, normals)
            best = evolution.ranking(-jnp.sum(jnp.square(x), axis=-1))[:5]
            return evolution.cross_entropy_next(mean, shape, normals[best], extra, 40), ()

        start = jnp.full(10, 10.0), evolution.cross_entropy_start(10, jnp.float32(1.0), extra)
        return jnp.sum(jnp.square(jax.lax.scan(generation, start, normals)[0][0]))

    def reached(extra: float) -> float:
        normals = np.random.default_rng(0).normal(size=(60, 50, 10)).astype(np.float32)
        return float(distance(np.float32(extra), normals))

    assert reached(1.0) < 0.1 < 10 < reached(0.0)


def test_ranking() -> None:
    """From the highest; what is not finite last, and of equals the first."""
    scores = np.array([1.0, np.nan, 3.0, -np.inf, 1.0, 3.0, -2.0, np.inf], np.float32)
    assert jax.jit(evolution.ranking)(scores).tolist()[:5] == [2, 5, 0, 4, 6]


# The agent: which member plays, and what counts.


class Ends(NamedTuple):
    """Episodes of given lengths, one after the other; the reward of each step is the slot + 1."""

    lengths: list[list[int]]  # of each slot

    def rows(self, steps: int) -> TimeStep:
        """`[steps, B]` rows."""
        columns = []
        for slot, lengths in enumerate(self.lengths):
            column = []
            for i in itertools.count():
                length = lengths[i % len(lengths)]
                for t in range(length + 1):
                    end = t == length
                    reward = float(slot + 1) if t else 0.0
                    column.append((reward, end and i % 2 == 0, end and i % 2 == 1, t == 0))
                if len(column) >= steps:
                    break
            columns.append(column[:steps])
        reward, terminated, truncated, first = (
            np.stack([[row[k] for row in column] for column in columns], axis=1) for k in range(4)
        )
        shape = reward.shape
        observation = np.zeros((*shape, 2), np.float32)
        zeros = np.zeros(shape, np.int32)
        return TimeStep(observation, reward.astype(np.float32), terminated, truncated, first, zeros)


SPEC = EnvSpec("test", spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,)))
TINY = {"hidden_sizes": (3,), "unroll": 7, "batch_size": 2}


def build(agent: str, spec: EnvSpec, **settings: Any) -> Agent:
    usual = {"population_size": 4} | ({"elite_fraction": 0.5} if agent == "cem" else {})
    config = agent_module(agent).config(**(TINY | usual | settings))
    return agents.make(agent, config, spec, horizon=1000)


@functools.cache
def make(agent: str = "cem", **settings: Any) -> Agent:
    """The agent, with functions that are compiled once for all tests that use it."""
    made = build(agent, SPEC, **settings)
    return made._replace(**{k: jax.jit(getattr(made, k)) for k in ("init", "act", "learn")})


class Played(NamedTuple):
    """A run of `play`: what acted at each row, and the states after each update."""

    extras: dict[str, np.ndarray]  # [T, B]
    vectors: np.ndarray  # [T, B, n]
    behaviours: list[Behaviour]  # that acted in each unroll
    states: list[LearnerState]
    metrics: list[dict[str, Any]]


def play(agent: Agent, rows: TimeStep, unroll: int) -> Played:
    """Acts over rows that do not depend on actions, and learns from each unroll of them."""
    steps, batch = rows.reward.shape
    state, act, learn = agent.init(jax.random.key(0)), agent.act, agent.learn
    carry = agent.initial_carry(jax.random.key(1), np.arange(batch), batch, False)
    extras, vectors, behaviours, states, metrics = [], [], [], [state], []
    for start in range(0, steps - unroll, unroll):
        behaviours.append(agent.behaviour(state))
        part, core = [], carry.core
        for t in range(start, start + unroll + 1):
            row = jax.tree.map(lambda x, t=t: x[t], rows)
            if t > start or not extras:  # row 0 was decided at the end of the unroll before
                _, carry, extra = act(behaviours[-1], carry, row, jax.random.key(t))
                last = (jax.tree.map(np.asarray, extra), np.asarray(carry.private.vector))
                extras.append(last[0])
                vectors.append(last[1])
            part.append(extras[t])
        stacked = jax.tree.map(lambda *x: np.stack(x), *part)
        seen = jax.tree.map(lambda x, s=start: x[s : s + unroll + 1], rows)
        action = np.zeros((unroll + 1, batch, 1), np.float32)
        trajectory = Trajectory(seen, action, stacked, core, np.zeros(batch, np.int32))
        state, measured, _ = learn(state, Batch(trajectory))
        states.append(state)
        metrics.append(jax.device_get(measured))
    stacked = jax.tree.map(lambda *x: np.stack(x), *extras)
    return Played(stacked, np.stack(vectors), behaviours, states, metrics)


@pytest.mark.parametrize("unroll", [3, 7, 20])
@pytest.mark.parametrize("wanted", [1, 2])
def test_scores_are_of_whole_episodes_of_one_generation(unroll: int, wanted: int) -> None:
    """By a slow count over all rows: a generation ends with the update in which its last member
    has its last episode, and episodes begun in an earlier one count for nothing."""
    rows = Ends([[3, 5, 2], [9]]).rows(122)
    flags = rows.terminated.copy()
    flags[:, 1] |= rows.first[:, 1]  # of the row that begins an episode, they mean nothing
    rows = rows._replace(terminated=flags)
    agent = make(episodes_per_member=wanted, discount=0.9)
    played = play(agent, rows, unroll)
    key, sums, generations, dropped, spare = played.states[0].extra["key"], {}, 0, 0, 0
    for update, after in enumerate(played.states[1:]):
        for t in range(update * unroll, (update + 1) * unroll):
            for b in range(2):
                ends = (rows.terminated | rows.truncated)[t + 1, b]
                if not ends or rows.first[t + 1, b]:
                    continue
                begin = max(s for s in range(t + 1) if rows.first[s, b])
                acted = {k: v[begin : t + 1, b] for k, v in played.extras.items()}
                assert (
                    len(np.unique(acted["episode"]))
                    == len(np.unique(acted["generation"], axis=0))
                    == 1
                )
                assert len(np.unique(played.vectors[begin : t + 1, b], axis=0)) == 1
                episode = int(acted["episode"][0])
                if not np.array_equal(acted["generation"][0], key):
                    dropped += 1
                    continue
                if episode >= 4 * wanted:  # more than were wanted: begun while others were played
                    spare += 1
                    continue
                rewards = rows.reward[begin + 1 : t + 2, b]
                score = np.sum(rewards * 0.9 ** np.arange(len(rewards)))
                sums.setdefault(episode % 4, []).append(score)
        if len(sums) == 4 and min(map(len, sums.values())) >= wanted:
            means = [np.mean(sums[m]) for m in range(4)]
            np.testing.assert_allclose(after.extra["score_mean"], np.mean(means), rtol=1e-5)
            np.testing.assert_allclose(after.extra["score_best"], np.max(means), rtol=1e-5)
            assert not np.array_equal(after.extra["key"], key)
            key, sums, generations = after.extra["key"], {}, generations + 1
        counts = [len(sums.get(m, ())) for m in range(4)]
        assert after.extra["scores"].count.tolist() == counts
        np.testing.assert_allclose(
            after.extra["scores"].sum, [sum(sums.get(m, [0.0])) for m in range(4)], rtol=1e-5
        )
        assert played.metrics[update]["generation"] == generations
        np.testing.assert_array_equal(after.extra["key"], key)
    assert generations >= 2
    assert dropped > 0
    assert spare > 0


@pytest.mark.parametrize(
    ("agent", "covariance"), [("cem", {}), ("cma_es", {}), ("cma_es", {"covariance": "separable"})]
)
def test_the_member_that_acts_is_the_one_that_is_learnt_from(agent: str, covariance: Any) -> None:
    """The vectors that acted, ranked and weighted by hand, give the next mean."""
    rows = Ends([[3, 5, 2], [9]]).rows(64)
    made = make(agent, **covariance)
    played = play(made, rows, 7)
    keys = [np.asarray(s.extra["key"]) for s in played.states]
    update = next(i for i in range(len(keys) - 1) if not np.array_equal(keys[i], keys[i + 1]))
    before, after = played.states[update], played.states[update + 1]
    scores: dict[int, list[float]] = {}
    vectors: dict[int, np.ndarray] = {}
    for t in range((update + 1) * 7):
        for b in range(2):
            if (rows.terminated | rows.truncated)[t + 1, b]:
                member = int(played.extras["episode"][t, b])
                if member >= 4:
                    continue
                total = played.extras["score"][t, b] + rows.reward[t + 1, b]
                scores.setdefault(member, []).append(total)
                vectors[member] = played.vectors[t, b]
    assert sorted(vectors) == [0, 1, 2, 3]
    order = sorted(range(4), key=lambda m: (-np.mean(scores[m]), m))
    weights = [0.5, 0.5] if agent == "cem" else evolution.constants(9, 4, False).weights
    expected = sum(w * vectors[m] for w, m in zip(weights, order, strict=False))
    np.testing.assert_allclose(after.params, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(before.params, after.params)


def test_environments_share_the_episodes_and_repeat_what_was_cut() -> None:
    """Environment i of N plays the episodes i, i + N, …; one that begins anew without an end
    plays the same one again."""
    rows = Ends([[2], [2]]).rows(21)
    cut = rows.terminated.copy(), rows.truncated.copy()
    for flags in cut:
        flags[5, 0] = False  # the end of environment 0's second episode
    rows = rows._replace(terminated=cut[0], truncated=cut[1])
    played = play(make(population_size=6, episodes_per_member=1000), rows, 20)
    numbers = [
        [int(e) for e, f in zip(played.extras["episode"][:, b], rows.first[:, b], strict=True) if f]
        for b in range(2)
    ]
    assert numbers == [[0, 2, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11, 13]]
    first, again, later = (played.vectors[t, 0] for t in (3, 6, 9))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(again, later)
    np.testing.assert_array_equal(played.vectors[0, 0], played.vectors[12, 0])  # 0 and 6 of 6
    assert played.states[-1].extra["scores"].count.tolist() == [2, 3, 2, 2, 2, 2]


class Negative(gym.Env):
    """Episodes of three steps, each of reward −1; the third episode fails in its second step."""

    observation_space, action_space = SPEC.observation_space, SPEC.action_space
    begun = 0  # by all instances: a fault makes a new one

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        type(self).begun += 1
        self.count = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        if type(self).begun == 3 and self.count == 2:
            raise RuntimeError("out of fuel")
        return np.zeros(2, np.float32), -1.0, self.count == 3, False, {}


@pytest.mark.parametrize("agent", ["cem", "cma_es"])
def test_an_episode_that_a_fault_ended_is_played_again_and_does_not_count(agent: str) -> None:
    """The faulty episode would have the highest return of all."""
    env = envs.make(Negative, 1, workers=0)
    Negative.begun = 0
    rows = [env.reset()]
    rows = [jax.tree.map(np.copy, rows[0])]
    rows += [jax.tree.map(np.copy, env.step(np.zeros((1, 1)))) for _ in range(19)]
    played = play(make(agent), jax.tree.map(lambda *x: np.stack(x), *rows), 6)
    first = [t for t in range(19) if rows[t].first[0]]
    assert first == [0, 4, 8, 10, 14, 18]
    assert played.extras["episode"][first[:5], 0].tolist() == [0, 1, 2, 2, 3]
    np.testing.assert_array_equal(played.vectors[8, 0], played.vectors[10, 0])
    assert [s.extra["scores"].count.tolist() for s in played.states[1:3]] == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
    ]
    assert played.states[3].extra["score_best"] == -3


@pytest.mark.parametrize("failing", ["all", "one"])
def test_returns_that_are_not_finite_are_never_learnt_from(failing: str) -> None:
    """One such member comes last. Where too many are, the distribution stays, the update counts as
    skipped, and the next generation has other members."""
    rows = Ends([[3], [3]]).rows(29)
    reward = rows.reward.copy()
    reward[1:4, 0] = np.nan  # of member 0
    if failing == "all":
        reward[~rows.first] = np.nan
    agent = make(elite_fraction=0.75)
    played = play(agent, rows._replace(reward=reward), 14)
    before, after = played.states[0], played.states[1]
    assert not np.array_equal(before.extra["key"], after.extra["key"])
    assert np.isfinite(after.params).all()
    if failing == "all":
        np.testing.assert_array_equal(after.params, before.params)
        assert after.skipped == 1
        assert played.metrics[0]["generation"] == played.metrics[0]["gradient_norm"] == 0
    else:
        assert after.skipped == 0
        normals = [played.vectors[0, 1], played.vectors[4, 0], played.vectors[4, 1]]
        np.testing.assert_allclose(after.params, np.mean(normals, axis=0), rtol=1e-4, atol=1e-5)
        assert played.metrics[0]["gradient_norm"] > 0
        assert played.metrics[0]["score_best"] == 6


def test_evaluation_plays_the_mean() -> None:
    agent = make()
    state = agent.init(jax.random.key(0))
    carry = agent.initial_carry(jax.random.key(1), np.arange(2), 2, True)
    rows = Ends([[3], [3]]).rows(2)
    row = jax.tree.map(lambda x: x[0], rows)._replace(observation=np.ones((2, 2), np.float32))
    behaviour = agent.behaviour(state)._replace(mean=np.float32(np.arange(13) / 10))
    w = np.arange(13) / 10  # encoder/dense0/{bias,kernel}, policy/{bias,kernel}
    hidden = np.tanh(np.ones(2) @ w[3:9].reshape(2, 3) + w[:3])
    expected = np.clip(hidden @ w[10:13] + w[9], -1, 1)
    for _ in range(2):
        action, carry, _ = agent.act(behaviour, carry, row, jax.random.key(2))
        np.testing.assert_allclose(np.asarray(action)[:, 0], expected, rtol=1e-5)


def test_another_runs_generation_is_not_this_ones() -> None:
    """A population's heir has its donor's distribution and scores, and the episodes that its own
    environments had begun count for neither."""
    rows = Ends([[3], [9]]).rows(29)
    agent = make()
    played = play(agent, rows, 7)
    donor = agent.init(jax.random.key(9))
    heir = agent.adopt(played.states[1], donor)
    trajectory_extras = {k: v[7:15] for k, v in played.extras.items()}
    seen = jax.tree.map(lambda x: x[7:15], rows)
    action = np.zeros((8, 2, 1), np.float32)
    batch = Batch(Trajectory(seen, action, trajectory_extras, None, np.zeros(2, np.int32)))
    assert agent.learn(heir, batch).state.extra["scores"].count.sum() == 0
    assert agent.learn(played.states[1], batch).state.extra["scores"].count.sum() > 0


# Bad input, and runs.


@pytest.mark.parametrize(
    ("agent", "settings", "message"),
    [
        ("cem", {"population_size": 1}, "`--population-size` is 1; expected at least 2"),
        ("cma_es", {"population_size": 1}, "`--population-size` is 1; expected at least 2"),
        ("cem", {"elite_fraction": 0.1}, "so that the elite has 0 members; expected at least 1"),
        ("cem", {"elite_fraction": 1.0}, "so that the elite has 4 members; expected at least 1"),
        ("cem", {"elite_fraction": 1.5}, "`--elite-fraction` is 1.5"),
        ("cma_es", {"covariance": "full", "full_limit": 12}, "has 13 parameters, whose covariance"),
        ("cem", {"max_parameters": 12, "elite_fraction": 0.5}, "the policy has 13 parameters"),
    ],
)
def test_wrong_settings_are_refused(agent: str, settings: dict[str, Any], message: str) -> None:
    config = agent_module(agent).config(**({"population_size": 4} | TINY | settings))

    def checked_and_made() -> None:
        fields.check(config)
        agents.make(agent, config, SPEC, horizon=1000)

    with pytest.raises(UserError, match=re.escape(message)):
        checked_and_made()


@pytest.mark.parametrize(
    ("agent", "setting", "message"),
    [
        ("cem", "search_std", "reads it only once. It can have schedules of extra_std"),
        ("cma_es", "search_std", "reads it only once. It can have schedules of mean_rate"),
        ("cma_es", "full_limit", "expected int: it has no schedule"),
    ],
)
def test_schedules_of_what_is_read_once_are_refused(agent: str, setting: str, message: str) -> None:
    settings: dict[str, Any] = {setting: "linear:1:0"}
    with pytest.raises(UserError, match=re.escape(message)):
        resolve(agent, "pronk/Catch-v0", **settings)


def test_a_suite_is_refused() -> None:
    spec = dataclasses.replace(SPEC, tasks=("a", "b"), references=(None, None))
    with pytest.raises(UserError, match="a suite of 2 tasks"):
        build("cem", spec)


def test_auto_covariance_follows_the_limit() -> None:
    notes = [make("cma_es", full_limit=limit).notes[0] for limit in (13, 12)]
    assert "full: of all pairs" in notes[0]
    assert "separable" in notes[1]
    assert "13 parameters are searched, with 4 members" in notes[0]


def test_the_extra_noise_can_have_a_schedule() -> None:
    """Of agent steps; the distribution is drawn with the value at the generation's start."""
    rows = Ends([[3], [3]]).rows(85)
    played = play(make(extra_std="linear:1:0", extra_generations=1000), rows, 14)
    for before, after in itertools.pairwise(played.states):
        shape = after.extra["shape"]
        extra = 1.0 - float(before.steps) / 1000
        left = 1 - float(shape.generation) / 1000
        expected = np.sqrt(np.square(shape.deviation) + extra**2 * left)
        np.testing.assert_allclose(shape.sampled, expected, rtol=1e-4)
    assert played.states[-1].extra["shape"].generation >= 4


@pytest.mark.parametrize("agent", ["cem", "cma_es"])
def test_the_log_says_what_is_searched(agent: str, tmp_path: Path, capsys: Any) -> None:
    settings = {"hidden_sizes": (3,), "population_size": 4, "unroll": 5, "batch_size": 2}
    pronk.train(agent, "pronk/Catch-v0", steps=20, run_dir=tmp_path / "run", **settings)
    assert "parameters are searched, with 4 members" in capsys.readouterr().out
