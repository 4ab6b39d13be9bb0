"""The cross-entropy method and CMA-ES: the mathematics, and scores of whole episodes."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pronk.maths import evolution

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that only its plots use
    import cma


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
    chi = cma.utilities.math.Mh.chiN(n)  # an approximation
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
    rng = np.random.default_rng(n)
    mean, shape = jnp.asarray(mean), evolution.adapted_start(n, jnp.float64(0.3), separable)
    stalled = 0
    for _ in range(40):
        normals = rng.normal(size=(members, n))
        x = np.asarray(mean + evolution.adapted_offset(shape, normals))
        fitness = ellipsoid(x)
        other.ask()
        other.tell(list(x), list(fitness), check_points=False)
        best = evolution.ranking(jnp.asarray(-fitness))[: len(c.weights)]
        before = shape.covariance_path
        mean, shape = evolution.adapted_next(mean, shape, normals[best], c, jnp.float64(1.0))
        stalled += np.allclose(shape.covariance_path, (1 - c.c_c) * before)
        np.testing.assert_allclose(mean, other.mean, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(shape.step_size, other.sigma, rtol=1e-9)
        np.testing.assert_allclose(shape.step_path, other.adapt_sigma.ps, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(shape.covariance_path, other.pc, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(shape.covariance, other.sm.C, rtol=1e-6, atol=1e-8)
    assert (stalled > 0) == (far > 1)
