"""Fisher-vector products, conjugate gradients, the search, and two facts about the natural gradient
that are exact: invariance under a linear change of parameters, and the greedy policy as its limit.
"""

from __future__ import annotations

import functools

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pronk.experiments.reproduce.natural_gradient import METHODS, greediness, invariance
from pronk.maths import distributions, tabular, tabular_policy
from pronk.maths.distributions import MASKED
from pronk.maths.natural_gradient import (
    conjugate_gradient,
    fisher_vector_product,
    line_search,
    trust_region_scale,
)

ROWS, INPUTS = 7, 3


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


KINDS = {
    "categorical": (gym.spaces.Discrete(4), {}),
    "multi_categorical": (gym.spaces.MultiDiscrete([2, 3, 2]), {}),
    "gaussian": (gym.spaces.Box(-1, 1, (2,)), {}),
    "squashed": (gym.spaces.Box(-1, 1, (2,)), {"squash": True, "initial_std": 0.5}),
}


WEIGHT = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0])


def policy_of(x, mask):
    """A policy of two layers: parameters to the distribution's, in rows of inputs `x`."""

    def policy(params):
        return jnp.where(mask, jnp.tanh(x @ params["hidden"]) @ params["head"], MASKED)

    return policy


def random_inputs(kind: str, seed: int, masked: bool = False):
    """The inputs and the mask of a policy, its parameters, and its distribution."""
    space, arguments = KINDS[kind]
    distribution = distributions.for_space(space, **arguments)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, INPUTS))
    params = {
        "hidden": rng.normal(size=(INPUTS, 3)),
        "head": 0.5 * rng.normal(size=(3, distribution.num_params)),
    }
    mask = np.ones((ROWS, distribution.num_params), bool)
    if masked:
        mask = rng.uniform(size=mask.shape) < 0.5
        mask[:, [0, -1]] = True
    return x, mask, params, distribution


def problem(kind: str, seed: int = 0, masked: bool = False):
    """A policy, its parameters, distribution and weights, some of them zero."""
    x, mask, params, distribution = random_inputs(kind, seed, masked)
    return policy_of(x, mask), params, distribution, WEIGHT


def dense(policy, flat, unravel, distribution, weight):
    """The Hessian of the mean KL from the policy, at the policy, as a matrix of flat parameters."""
    params = unravel(flat)
    before = policy(params)

    def mean_kl(flat):
        kl = distribution.kl(before, policy(unravel(flat)))
        return jnp.sum(weight * kl) / jnp.sum(weight)

    return jax.jacrev(jax.jacrev(mean_kl))(flat)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_fisher_products_are_those_of_the_dense_matrix(kind, masked):
    if masked and kind in ("gaussian", "squashed"):
        pytest.skip("continuous actions have no masks")
    policy, params, distribution, weight = problem(kind, masked=masked)

    @jax.jit
    def computed(params):
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        product = fisher_vector_product(policy, params, distribution, weight, damping=0.25)

        def column(unit):
            return jax.flatten_util.ravel_pytree(product(unravel(unit)))[0]

        columns = jax.lax.map(column, jnp.eye(flat.size))
        return policy(params), dense(policy, flat, unravel, distribution, weight), columns

    out, matrix, columns = jax.tree.map(np.asarray, computed(params))
    # Of means within the bound, beyond which a squashed one is clipped.
    assert kind != "squashed" or np.abs(out[:, :2]).max() < distributions.MEAN_BOUND
    expected = matrix + 0.25 * np.eye(len(matrix))
    np.testing.assert_allclose(columns, expected, rtol=1e-8, atol=1e-10)
    assert np.linalg.eigvalsh(matrix).min() > -1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_the_fisher_matrix_is_the_mean_square_of_the_scores(kind):
    """F = E[∇log π ∇log πᵀ] over the policy's own actions, here of many samples."""
    policy, params, distribution, _ = problem(kind, seed=3)
    many = 200_000

    @jax.jit
    def matrices(params):
        out = policy(params)[:1]
        raw = distribution.sample(jnp.repeat(out, many, 0), jax.random.key(0))
        score = jax.grad(lambda p, r: distribution.log_prob(p, r))
        gradient = jax.vmap(score, (None, 0))(out[0], raw)
        exact = [distribution.fisher_product(out[0], e) for e in np.eye(out.shape[-1])]
        return gradient.T @ gradient / many, jnp.stack(exact)

    sampled, exact = map(np.asarray, matrices(params))
    np.testing.assert_allclose(sampled, exact, atol=0.05 * np.abs(exact).max())


def test_a_dummy_has_no_part_in_the_product():
    policy, params, distribution, weight = problem("gaussian")
    vector = jax.tree.map(np.ones_like, params)

    @jax.jit
    def product(scale):
        def other(p):
            rows = policy(p)
            return jnp.where(weight[:, None] > 0, rows, scale * rows)

        return fisher_vector_product(other, params, distribution, weight)(vector)

    for a, b in zip(jax.tree.leaves(product(1.0)), jax.tree.leaves(product(3.0)), strict=True):
        np.testing.assert_allclose(a, b)


@functools.partial(jax.jit, static_argnames=("iterations", "tolerance"))
def solve(matrix, b, **limits):
    return conjugate_gradient(lambda v: matrix @ v, b, **limits)


@settings(max_examples=30)
@given(st.sampled_from([1, 2, 5, 8]), st.integers(0, 10_000))  # each size is compiled anew
def test_conjugate_gradients_solve_the_system(n, seed):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, n))
    matrix = a @ a.T + 0.1 * np.eye(n)
    b = rng.normal(size=n)
    found = solve(matrix, b, iterations=4 * n, tolerance=1e-10)
    np.testing.assert_allclose(found.x, np.linalg.solve(matrix, b), rtol=1e-5, atol=1e-7)
    assert found.residual < 1e-6
    # In other units of b it is the same computation.
    scaled = solve(matrix, 1024 * b, iterations=4 * n, tolerance=1e-10)
    assert scaled.iterations == found.iterations
    np.testing.assert_allclose(scaled.x, 1024 * np.asarray(found.x))


def test_conjugate_gradients_without_a_gradient_or_curvature():
    zero = solve(np.eye(2), np.zeros(2), iterations=5)
    np.testing.assert_array_equal(zero.x, 0.0)
    assert (zero.iterations, zero.residual) == (0, 0.0)
    singular = np.diag([1.0, 0.0])
    inside = solve(singular, np.array([2.0, 0.0]), iterations=5)
    np.testing.assert_allclose(inside.x, [2.0, 0.0])
    outside = solve(singular, np.array([0.0, 1.0]), iterations=5)
    assert np.isfinite(outside.x).all()
    assert jax.jit(trust_region_scale)(np.zeros(2), np.zeros(2), 0.01) == 0.0


@jax.jit
def step_along_the_natural_gradient(scale):
    """Its mean divergence δ, and the one of a policy that moved by it; parameters are divided by
    `scale`."""
    policy, params, distribution, weight = problem("gaussian", seed=5)
    params = jax.tree.map(lambda p: p / scale, params)

    def scaled(p):
        return policy(jax.tree.map(lambda x: x * scale, p))

    product = fisher_vector_product(scaled, params, distribution, weight)
    gradient = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)
    x = conjugate_gradient(lambda v: product(v), product(gradient), iterations=60).x
    delta = 1e-6
    step = trust_region_scale(x, product(x), delta)
    moved = jax.tree.map(lambda p, v: p + step * v, params, x)
    kl = distribution.kl(scaled(params), scaled(moved))
    return delta, jnp.sum(weight * kl) / jnp.sum(weight)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_the_step_has_the_divergence_that_was_asked_for(scale):
    """Whatever the units of the parameters: √(δ / xᵀ F x) would have half of it, and √(2 δ / xᵀ
    F⁻¹ x) another one for each scale."""
    delta, divergence = step_along_the_natural_gradient(scale)
    np.testing.assert_allclose(divergence, delta, rtol=0.01)


def test_the_search_takes_the_first_step_that_is_good_enough():
    def evaluate(p):
        return -((p - 1.0) ** 2), p**2 / 2.0  # objective, divergence from 0

    start, delta = np.float64(0.0), 0.02
    search = jax.jit(functools.partial(line_search, evaluate, shrink=0.5, trials=10))
    found = search(start, np.float64(1.0), delta)
    assert found.params == 0.125  # of 1, 0.5, 0.25, whose divergence is above 0.02
    assert found.accepted
    assert found.trials == 4
    assert found.divergence <= delta
    np.testing.assert_allclose(found.improvement, evaluate(0.125)[0] - evaluate(0.0)[0])


@pytest.mark.parametrize("what", ["worse", "far", "nan"])
def test_without_a_good_step_the_parameters_stay_bit_for_bit(what):
    def evaluate(p):
        objective = jnp.sum(p) if what != "worse" else -jnp.abs(jnp.sum(p - start))
        divergence = jnp.where(
            jnp.all(p == start), 0.0, {"far": 1.0, "worse": 0.0}.get(what, jnp.nan)
        )
        return objective, divergence

    start = np.array([0.1, -0.0, 3e-39])
    search = jax.jit(functools.partial(line_search, evaluate, shrink=0.5, trials=6))
    found = search(start, np.ones(3), 0.01)
    assert not found.accepted
    assert found.trials == 6
    assert np.asarray(found.params).tobytes() == start.tobytes()
    assert (found.divergence, found.improvement) == (0.0, 0.0)


def surrogate(distribution, policy, before, raw, advantage, params):
    """The objective, and the mean KL from the policy whose outputs are `before`."""
    after = policy(params)
    ratio = jnp.exp(distribution.log_prob(after, raw) - distribution.log_prob(before, raw))
    kl = jnp.sum(WEIGHT * distribution.kl(before, after)) / jnp.sum(WEIGHT)
    return jnp.sum(WEIGHT * ratio * advantage), kl


@functools.cache
def searched(distribution):
    """The search along a step, and the objective measured anew; jitted."""

    @jax.jit
    def search(x, mask, params, key, delta):
        policy = policy_of(x, mask)
        before = policy(params)
        raw = distribution.sample(before, key)
        advantage = jax.random.normal(jax.random.fold_in(key, 1), (ROWS,))
        fixed = before, raw, advantage
        evaluate = functools.partial(surrogate, distribution, policy, *fixed)
        gradient = jax.grad(lambda p: evaluate(p)[0])(params)
        product = fisher_vector_product(policy, params, distribution, WEIGHT, damping=1e-3)
        x = conjugate_gradient(product, gradient, iterations=10).x
        step = jax.tree.map(lambda v: trust_region_scale(x, product(x), delta) * v, x)
        return line_search(evaluate, params, step, delta, shrink=0.5, trials=10), fixed

    @jax.jit
    def measure(x, mask, params, fixed):
        return surrogate(distribution, policy_of(x, mask), *fixed, params)

    return search, measure


@settings(max_examples=25)
@given(st.sampled_from(sorted(KINDS)), st.integers(0, 1000))
def test_an_accepted_step_improves_and_stays_in_the_region(kind, seed):
    """Measured anew on the same data, for random policies and advantages."""
    x, mask, params, distribution = random_inputs(kind, seed)
    search, measure = searched(distribution)
    delta = 0.01
    found, fixed = search(x, mask, params, jax.random.key(seed), delta)
    objective, kl = measure(x, mask, found.params, fixed)
    if found.accepted:
        assert kl <= delta
        assert objective > measure(x, mask, params, fixed)[0]
    else:
        for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(params), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("seed", range(5))
def test_the_natural_gradient_makes_the_same_policies_in_other_coordinates(seed):
    plain, natural = (invariance(method, seed, updates=50) for method in METHODS)
    assert natural.distance.max() < 1e-9
    assert plain.distance[-1] > 1e-3
    assert natural.value[-1] > natural.value[0]


@pytest.mark.parametrize("seed", range(5))
def test_a_long_natural_step_of_a_tabular_policy_is_greedy(seed):
    """Kakade 2001, theorem 3: the policy after it takes the best action everywhere."""
    natural = METHODS[1]
    assert greediness(natural, seed, 3000.0) < 1e-6
    assert greediness(natural, seed, 1e-3) > 1e-2  # it is not greedy before


def test_the_natural_gradient_of_a_tabular_policy_is_its_advantages():
    """Up to a constant per state, which changes no softmax: F⁻¹ g = A / (1 − γ)."""
    rng = np.random.default_rng(0)
    mdp = tabular.random_mdp(rng, 4, 3, 0.8)
    features, theta = tabular_policy.indicators(4, 3), rng.normal(size=12)
    found = tabular_policy.policy_gradient(mdp, features, theta, np.full(4, 0.25))
    natural = found.natural.reshape(4, 3)
    policy = tabular_policy.softmax(features, theta)
    centred = natural - (policy * natural).sum(1, keepdims=True)
    np.testing.assert_allclose(centred, found.advantage / (1 - 0.8), rtol=1e-8, atol=1e-10)


def test_the_exact_policy_gradient_is_the_derivative_of_the_value():
    rng = np.random.default_rng(1)
    mdp, start = tabular.random_mdp(rng, 4, 3, 0.8), rng.dirichlet(np.ones(4))
    features, theta = rng.normal(size=(4, 3, 5)), rng.normal(size=5)
    found = tabular_policy.policy_gradient(mdp, features, theta, start)

    def value(params):
        return start @ mdp.value(tabular_policy.softmax(features, params))

    differences = [(value(theta + e) - value(theta - e)) / 2e-6 for e in 1e-6 * np.eye(5)]
    np.testing.assert_allclose(found.gradient, differences, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.value, value(theta))
