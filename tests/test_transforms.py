"""Value transforms: exact in float32, the papers' in float64, and what Bellman makes of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from pronk.maths import transforms
from pronk.maths.transforms import Transform

EPSILONS = [0.0, 1e-6, 1e-3, 1e-2, 1.0]
PAIRS = {
    "identity": transforms.IDENTITY,
    "log": transforms.signed_log(),
    **{f"sqrt {epsilon}": transforms.signed_sqrt(epsilon) for epsilon in EPSILONS},
}
MAGNITUDES = np.geomspace(1e-7, 1e6, 400)
X = np.concatenate([-MAGNITUDES[::-1], [0.0], MAGNITUDES])


@pytest.mark.parametrize("name", PAIRS)
def test_the_inverse_is_exact_in_float32(name):
    pair, x = PAIRS[name], jnp.asarray(X, jnp.float32)
    y = pair.apply(x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(pair.inverse(y), x, rtol=3e-6)
    y = y if name == "log" else x  # its inverse grows beyond float32
    np.testing.assert_allclose(pair.apply(pair.inverse(y)), y, rtol=3e-6)
    np.testing.assert_array_equal(pair.apply(-x), -pair.apply(x))
    assert np.all(np.diff(np.asarray(pair.apply(x))) > 0)


@pytest.mark.parametrize("name", PAIRS)
def test_gradients_are_finite_everywhere(name):
    pair = PAIRS[name]
    x = jnp.asarray(X, jnp.float32)
    for function, at in zip(pair, (x, pair.apply(x)), strict=True):
        slope = jax.vmap(jax.grad(function))(at)
        assert np.isfinite(slope).all()
        assert (slope > 0).all()


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_signed_sqrt_is_the_papers(epsilon):
    with jax.enable_x64(True):
        pair = transforms.signed_sqrt(epsilon)
        expected = np.sign(X) * (np.sqrt(np.abs(X) + 1) - 1) + epsilon * X
        np.testing.assert_allclose(pair.apply(jnp.asarray(X)), expected, rtol=1e-9, atol=1e-15)
        if epsilon >= 1e-3:  # with a smaller one the paper's form of the inverse cancels
            root = np.sqrt(1 + 4 * epsilon * (np.abs(X) + 1 + epsilon)) - 1
            inverse = np.sign(X) * ((root / (2 * epsilon)) ** 2 - 1)
            np.testing.assert_allclose(pair.inverse(jnp.asarray(X)), inverse, rtol=1e-8, atol=1e-9)
            theirs = rlax.signed_hyperbolic(jnp.asarray(X), epsilon)
            np.testing.assert_allclose(pair.apply(jnp.asarray(X)), theirs, rtol=1e-8, atol=1e-12)


def test_signed_log_is_rlaxs():
    with jax.enable_x64(True):
        pair, x = transforms.signed_log(), jnp.asarray(X)
        np.testing.assert_allclose(pair.apply(x), rlax.signed_logp1(x), rtol=1e-9, atol=1e-15)


def test_rewards_are_clipped_unless_the_limit_is_zero():
    reward = jnp.array([-3.0, -0.5, 0.0, 0.2, 7.0])
    np.testing.assert_allclose(transforms.clip_reward(reward, 1.0), [-1, -0.5, 0, 0.2, 1])
    np.testing.assert_allclose(transforms.clip_reward(reward, 0.0), reward)


# Propositions of Pohlen et al. 2018, section 3.2 and appendix A, on random tabular MDPs.

STATES, ACTIONS = 4, 3


def mdp(seed: int, deterministic: bool) -> tuple[np.ndarray, np.ndarray]:
    """P(s'|s, a) `[S, A, S]` and r(s, a, s') of the same shape, some of them large."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(0.5 * np.ones(STATES), size=(STATES, ACTIONS))
    if deterministic:
        p = np.eye(STATES)[p.argmax(-1)]
    return p, rng.normal(size=p.shape) * 10.0 ** rng.integers(-1, 3, size=p.shape)


def iterate(p, r, gamma: float, h: Transform, times: int = 3000) -> np.ndarray:
    """T_h^k q: (T_h q)(s, a) = E h(r + γ max h⁻¹(q(s', ·)))."""
    with jax.enable_x64(True):

        def operator(q: jnp.ndarray) -> jnp.ndarray:
            best = jnp.max(h.inverse(q), axis=-1)
            return jnp.sum(p * h.apply(r + gamma * best), axis=-1)

        start = jnp.zeros((STATES, ACTIONS))
        return np.asarray(
            jax.jit(lambda q: jax.lax.fori_loop(0, times, lambda _, q: operator(q), q))(start)
        )


@pytest.mark.parametrize("seed", range(3))
def test_a_linear_transform_scales_the_fixed_point(seed):
    p, r = mdp(seed, deterministic=False)
    scaled = iterate(p, r, 0.95, Transform(lambda x: 0.1 * x, lambda y: 10.0 * y))
    np.testing.assert_allclose(scaled, 0.1 * iterate(p, r, 0.95, transforms.IDENTITY), rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["log", "sqrt 0.01", "sqrt 0.001"])
def test_deterministic_mdps_keep_their_optimum(seed, name):
    p, r = mdp(seed, deterministic=True)
    best = iterate(p, r, 0.9, transforms.IDENTITY)
    np.testing.assert_allclose(
        iterate(p, r, 0.9, PAIRS[name]), np.asarray(PAIRS[name].apply(best)), rtol=1e-4
    )


@pytest.mark.parametrize("seed", range(3))
def test_stochastic_ones_do_not_but_it_is_a_contraction(seed):
    """For γ < 1 / (L_h L_h⁻¹): with ε = 0.5, L_h = 1/2 + ε and L_h⁻¹ = 1/ε, so γ < 1/2."""
    epsilon, gamma = 0.5, 0.49
    h = transforms.signed_sqrt(epsilon)
    p, r = mdp(seed, deterministic=False)
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        for scale in (1.0, 100.0, 1e4):
            a, b = (jnp.asarray(rng.normal(size=(STATES, ACTIONS)) * scale) for _ in range(2))
            after = [
                jnp.sum(p * h.apply(r + gamma * jnp.max(h.inverse(q), -1)), -1) for q in (a, b)
            ]
            modulus = gamma * (0.5 + epsilon) / epsilon
            assert jnp.abs(after[0] - after[1]).max() <= modulus * jnp.abs(a - b).max()
    fixed = iterate(p, r, gamma, h)
    np.testing.assert_allclose(iterate(p, r, gamma, h, times=400), fixed, rtol=1e-9)
    best = np.asarray(h.apply(iterate(p, r, gamma, transforms.IDENTITY)))
    assert np.abs(fixed - best).max() > 1e-2
