"""The tree search against a slow one in Python, and against mctx's."""

from __future__ import annotations

import functools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest

from pronk.maths import search_rules
from pronk.maths.search import Prediction, Root, SearchResult, Settings, search
from pronk.types import Array

STATES, ACTIONS = 40, 4


class Table(NamedTuple):
    """A random model with few states; a state is its number."""

    after: np.ndarray  # [S, A]
    reward: np.ndarray  # [S, A]
    logits: np.ndarray  # [S, A]
    value: np.ndarray  # [S]

    def step(self, state: Array, action: Array) -> Prediction:
        after = jnp.asarray(self.after)[state, action]
        reward = jnp.asarray(self.reward)[state, action]
        return Prediction(after, reward, *self.predict(after))

    def predict(self, state: Array) -> tuple[Array, Array]:
        return jnp.asarray(self.logits)[state], jnp.asarray(self.value)[state]

    def root(self, states: Array) -> Root:
        return Root(states, *self.predict(states))


def table(seed: int) -> Table:
    rng = np.random.default_rng(seed)
    return Table(
        rng.integers(0, STATES, (STATES, ACTIONS)).astype(np.int32),
        rng.normal(size=(STATES, ACTIONS)).astype(np.float32),
        rng.normal(size=(STATES, ACTIONS)).astype(np.float32) * 2,
        rng.normal(size=STATES).astype(np.float32) * 3,
    )


class Node:
    """A node as in the pseudocode of Schrittwieser et al. 2020."""

    def __init__(self, model: Table, state: int, reward: float, allowed: np.ndarray):
        self.state, self.reward, self.value = state, reward, float(model.value[state])
        prior = np.where(allowed, np.exp(model.logits[state].astype(float)), 0)
        self.prior = prior / prior.sum()
        self.allowed = allowed
        self.children: dict[int, Node] = {}
        self.visits, self.total = np.zeros(ACTIONS), np.zeros(ACTIONS)


def slow_puct(
    model: Table,
    state: int,
    discount: float,
    simulations: int,
    depth: int,
    allowed: np.ndarray,
    bound: float,
) -> tuple[np.ndarray, float, int]:
    """Visits of the root's actions, its value, and the tree's depth."""
    root = Node(model, state, 0.0, allowed)
    low, high, deepest = -(bound or -math.inf), bound or -math.inf, 0
    everything = np.ones(ACTIONS, bool)
    for _ in range(simulations):
        path, node = [], root
        while True:
            count = 1 + node.visits.sum()
            factor = 1.25 + math.log((count + 19652 + 1) / 19652)
            scores = np.full(ACTIONS, -np.inf)
            for a in np.flatnonzero(node.allowed):
                q = 0.0
                if node.visits[a] and high > low:
                    q = (node.total[a] / node.visits[a] - low) / (high - low)
                bound = node.prior[a] * math.sqrt(count) / (1 + node.visits[a])
                scores[a] = q + bound * factor
            action = int(scores.argmax())
            path.append((node, action))
            if action not in node.children or len(path) == depth:
                break
            node = node.children[action]
        if action not in node.children:
            after = int(model.after[node.state, action])
            reward = float(model.reward[node.state, action])
            node.children[action] = Node(model, after, reward, everything)
        value = node.children[action].value
        for node, action in reversed(path):
            value = node.children[action].reward + discount * value
            node.visits[action] += 1
            node.total[action] += value
            mean = node.total[action] / node.visits[action]
            low, high = min(low, mean), max(high, mean)
        deepest = max(deepest, len(path))
    return root.visits, (root.value + root.total.sum()) / (1 + simulations), deepest


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def run(
    settings: Settings,
    model: Table,
    discount: float,
    explores: bool,
    states: Array,
    mask: Array,
    key: Array,
    temperature: Array,
) -> SearchResult:
    return search(
        settings,
        model.step,
        model.root(states),
        discount,
        key,
        mask=mask,
        explores=jnp.full(states.shape, explores),
        temperature=temperature,
    )


def found(settings: Settings, model: Table, discount: float, explores: bool = False, **given):
    """Of roots in all states."""
    states = given.get("states", np.arange(STATES, dtype=np.int32))
    mask = given.get("mask", np.ones((len(states), ACTIONS), bool))
    key = jax.random.key(given.get("seed", 0))
    temperature = jnp.float32(given.get("temperature", 1.0))
    return jax.tree.map(
        np.asarray, run(settings, model, discount, explores, states, mask, key, temperature)
    )


@pytest.mark.parametrize("discount", [0.9, -1.0])
@pytest.mark.parametrize(
    ("simulations", "depth", "bound"), [(1, 0, 0.0), (30, 0, 0.0), (30, 3, 0.0), (30, 3, 9.0)]
)
def test_puct_is_that_of_the_pseudocode(
    discount: float, simulations: int, depth: int, bound: float
):
    model = table(simulations)
    mask = np.random.default_rng(0).random((STATES, ACTIONS)) < 0.7
    mask[:, 0] |= ~mask.any(axis=1)
    settings = Settings("puct", simulations, depth, value_bound=bound)
    got = found(settings, model, discount, mask=mask)
    for state in range(STATES):
        visits, value, deepest = slow_puct(
            model, state, discount, simulations, depth or simulations, mask[state], bound
        )
        np.testing.assert_array_equal(got.visits[state], visits)
        np.testing.assert_allclose(got.policy[state], visits / simulations, rtol=1e-6)
        assert got.value[state] == pytest.approx(value, rel=1e-4, abs=1e-5)
        assert (got.depth[state], got.action[state]) == (deepest, visits.argmax())


@pytest.mark.parametrize(("simulations", "considered"), [(2, 16), (16, 4), (33, 3), (50, 16)])
@pytest.mark.parametrize("discount", [0.9, -1.0])
def test_gumbel_is_that_of_mctx(simulations: int, considered: int, discount: float):
    model = table(simulations + considered)
    mask = np.random.default_rng(1).random((STATES, ACTIONS)) < 0.7
    mask[:, 0] |= ~mask.any(axis=1)
    states = np.arange(STATES, dtype=np.int32)

    def recurrent(params, key, action, state):
        del params, key
        step = model.step(state, action)
        output = mctx.RecurrentFnOutput(
            reward=step.reward,
            discount=jnp.full_like(step.reward, discount),
            prior_logits=step.logits,
            value=step.value,
        )
        return output, step.state

    logits, value = model.predict(states)
    expected = jax.jit(
        lambda: mctx.gumbel_muzero_policy(
            (),
            jax.random.key(0),
            mctx.RootFnOutput(prior_logits=logits, value=value, embedding=jnp.asarray(states)),
            recurrent,
            simulations,
            invalid_actions=~mask,
            max_num_considered_actions=considered,
            gumbel_scale=0.0,
        )
    )()
    settings = Settings("gumbel", simulations, considered=considered)
    got = found(settings, model, discount, mask=mask)
    summary = expected.search_tree.summary()
    np.testing.assert_array_equal(got.visits, summary.visit_counts)
    np.testing.assert_array_equal(got.action, expected.action)
    np.testing.assert_allclose(got.policy, expected.action_weights, atol=2e-5)
    np.testing.assert_allclose(got.value, summary.value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["puct", "gumbel"])
def test_trees_do_not_depend_on_those_beside_them(algorithm: str):
    model, settings = table(5), Settings(algorithm, 20)
    together = found(settings, model, 0.9)
    for state in (0, 7, STATES - 1):
        alone = found(settings, model, 0.9, states=np.array([state], np.int32))
        np.testing.assert_array_equal(alone.visits[0], together.visits[state])
        np.testing.assert_allclose(alone.policy[0], together.policy[state], rtol=1e-6)
        assert alone.value[0] == pytest.approx(together.value[state], rel=1e-6)


@pytest.mark.parametrize("algorithm", ["puct", "gumbel"])
def test_an_evaluation_draws_nothing(algorithm: str):
    model, settings = table(6), Settings(algorithm, 12)
    still = [found(settings, model, 0.9, seed=seed) for seed in (0, 1)]
    np.testing.assert_array_equal(still[0].visits, still[1].visits)
    np.testing.assert_array_equal(still[0].action, still[1].action)
    moving = [found(settings, model, 0.9, True, seed=seed) for seed in (0, 1)]
    assert (moving[0].visits != moving[1].visits).any()
    assert (moving[0].action != moving[1].action).any()


@pytest.mark.parametrize("algorithm", ["puct", "gumbel"])
@pytest.mark.parametrize("simulations", [0, 1, 9])
@pytest.mark.parametrize("explores", [False, True])
def test_forbidden_actions_are_never_taken(algorithm: str, simulations: int, explores: bool):
    mask = np.zeros((STATES, ACTIONS), bool)
    mask[np.arange(STATES), np.arange(STATES) % ACTIONS] = True
    mask[::2, 1] = True
    got = found(Settings(algorithm, simulations), table(7), 1.0, explores, mask=mask)
    assert mask[np.arange(STATES), got.action].all()
    assert not got.policy[~mask].any()
    assert not got.visits[~mask].any()
    np.testing.assert_allclose(got.policy.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(("algorithm", "simulations"), [("puct", 0), ("puct", 9), ("gumbel", 9)])
def test_a_model_that_has_diverged_leads_to_no_forbidden_action(algorithm: str, simulations: int):
    mask = np.arange(ACTIONS) > np.arange(STATES)[:, None] % 3
    usual = table(9)
    nothing = {k: np.full_like(getattr(usual, k), np.nan) for k in ("reward", "logits", "value")}
    logits = np.where(np.arange(ACTIONS) % 2, -np.inf, usual.logits)
    for changed in (nothing, {"logits": logits}, {"logits": -logits}, {"value": nothing["value"]}):
        settings, model = Settings(algorithm, simulations), usual._replace(**changed)
        got = found(settings, model, 1.0, True, mask=mask)
        assert mask[np.arange(STATES), got.action].all()
        assert not got.visits[~mask].any()


def test_the_smallest_temperatures_draw_no_forbidden_action():
    policy = jnp.array([[0.0, *[1 / 200] * 200]])
    for temperature in (1e-30, 1.2e-38, 1e-38):
        action = search_rules.draw(policy, jnp.array([True]), temperature, jax.random.key(0))
        assert action[0] > 0


def test_temperature_changes_what_is_drawn_and_not_the_policy():
    model, settings = table(8), Settings("puct", 24, dirichlet_fraction=0.0)
    cold, warm, hot = (found(settings, model, 0.9, True, temperature=t) for t in (0.0, 1.0, 100.0))
    np.testing.assert_array_equal(cold.policy, warm.policy)
    np.testing.assert_array_equal(cold.policy, hot.policy)
    rows = np.arange(STATES)
    np.testing.assert_array_equal(cold.action, cold.policy.argmax(axis=1))
    likely = [x.policy[rows, x.action].mean() for x in (cold, warm, hot)]
    assert likely == sorted(likely, reverse=True)
    assert likely[0] > likely[2] + 0.1


def test_noise_is_dirichlets_over_the_allowed_actions():
    mask = jnp.array([[True, False, True, True], [False, True, False, False]])
    prior = jnp.array([[0.2, 0.0, 0.5, 0.3], [0.0, 1.0, 0.0, 0.0]])
    keys = jax.random.split(jax.random.key(0), 4000)
    alpha, fraction = 0.3, jnp.array([1.0, 0.25])
    noisy = jax.vmap(lambda k: search_rules.add_noise(prior, mask, fraction, alpha, k))(keys)
    noisy = np.asarray(noisy)
    np.testing.assert_allclose(noisy.sum(axis=-1), 1, rtol=1e-5)
    assert not noisy[:, ~mask].any()
    drawn = noisy[:, 0, [0, 2, 3]]
    np.testing.assert_allclose(drawn.mean(axis=0), 1 / 3, atol=0.02)
    variance = (1 / 3) * (2 / 3) / (3 * alpha + 1)
    np.testing.assert_allclose(drawn.var(axis=0), variance, rtol=0.06)
    mixed = search_rules.add_noise(prior, mask, jnp.array([0.25, 0.0]), alpha, keys[0])
    np.testing.assert_allclose(mixed[0], 0.75 * prior[0] + 0.25 * noisy[0, 0], rtol=1e-5)
    tiny = search_rules.add_noise(prior, mask, jnp.ones(2), 1e-6, keys[0])
    assert np.isfinite(tiny).all()
    np.testing.assert_allclose(tiny.sum(axis=-1), 1, rtol=1e-5)


def test_halving_visits_each_considered_action_and_then_the_better_half():
    turns = search_rules.considered_visits(8, 24)
    assert turns.shape == (9, 24)
    expected = [0] * 8 + [1] * 4 + [2] * 4 + [3] * 2 + [4] * 2 + [5] * 2 + [6] * 2
    assert turns[8].tolist() == expected
    assert turns[1].tolist() == turns[0].tolist() == list(range(24))


def test_the_states_of_nodes_are_written_in_place():
    """A simulation writes one row of them; some releases of jaxlib copy the whole array."""
    model, roots, width, simulations = table(0), np.arange(STATES, dtype=np.int32), 65, 6

    def step(state: tuple[Array, Array], action: Array) -> Prediction:
        after = model.step(state[0], action)
        features = 0.5 * state[1] + after.value[:, None]  # as in a network: of the state before
        return after._replace(state=(after.state, features), reward=features.sum(axis=-1))

    def run(key: Array) -> SearchResult:
        root = model.root(roots)._replace(state=(jnp.asarray(roots), jnp.zeros((STATES, width))))
        return search(Settings("puct", simulations), step, root, 0.9, key)

    nodes = f"[{simulations + 1},{STATES},{width}]"
    text = jax.jit(run).lower(jax.random.key(0)).compile().as_text()
    loop = text.partition("ENTRY")[0]
    assert f"f32{nodes}" in loop
    assert not [x for x in loop.splitlines() if re.search(rf"= f32{re.escape(nodes)}.* copy\(", x)]
