"""Search distributions of evolution strategies: the cross-entropy method and CMA-ES.

A search distribution is a Gaussian over parameter vectors `[n]`: a mean, and a *shape*, which is
all else. A member of a generation is mean + `…_offset(shape, z)`, where z is standard normal. The
functions `…_next` take the z of the generation's best members alone, best first, and return the
next mean and shape; they see no score. Arrays may be float32 or float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from pronk.maths.shapes import assert_rank, assert_shape
from pronk.types import Array


def ranking(scores: Array) -> Array:
    """The members `[P]` from the highest score to the lowest; scores `[P]`.

    Scores that are not finite come last. Of equal scores, the member with the lower number comes
    first.
    """
    assert_rank(1, scores=scores)
    return jnp.argsort(jnp.where(jnp.isfinite(scores), -scores, jnp.inf), stable=True)


class CrossEntropy(NamedTuple):
    """The shape of the cross-entropy method's distribution, whose parameters are independent."""

    deviation: Array  # [n], of the best members of the generation before
    sampled: Array  # [n], with the extra noise: what members are drawn with
    generation: Array  # int32 [], generations completed


def cross_entropy_start(size: int, initial_std: Array, extra_std: Array) -> CrossEntropy:
    """The shape of the first generation, of `size` parameters."""
    deviation = jnp.full((size,), initial_std)
    sampled = jnp.sqrt(jnp.square(deviation) + jnp.square(extra_std))
    return CrossEntropy(deviation, sampled, jnp.int32(0))


def cross_entropy_offset(shape: CrossEntropy, normals: Array) -> Array:
    """Members `[..., n]` minus the mean; normals `[..., n]`."""
    return shape.sampled * normals


def cross_entropy_next(
    mean: Array, shape: CrossEntropy, normals: Array, extra_std: Array, extra_generations: int
) -> tuple[Array, CrossEntropy]:
    """Mean and shape after a generation whose best members were drawn with `normals` `[E, n]`.

    Mean and deviation are the best members'. To the variance that the next members are drawn with,
    extra_std² max(0, 1 − g / extra_generations) is added in generation g (Szita and Lőrincz 2006;
    in this form in the code of Duan et al. 2016).
    """
    assert_shape((normals.shape[0], *mean.shape), "rows of parameters", normals=normals)
    generation = shape.generation + 1
    left = jnp.maximum(1.0 - generation.astype(mean.dtype) / extra_generations, 0.0)
    deviation = shape.sampled * jnp.std(normals, axis=0)
    sampled = jnp.sqrt(jnp.square(deviation) + jnp.square(extra_std) * left)
    mean = mean + shape.sampled * jnp.mean(normals, axis=0)
    return mean, CrossEntropy(deviation, sampled, generation)


class Constants(NamedTuple):
    """CMA-ES's constants for n parameters and λ members (Hansen 2016, table 1)."""

    weights: np.ndarray  # float64 [μ], positive, decreasing, of sum 1
    mu_eff: float  # variance effective selection mass, eq. 8
    c_sigma: float  # decay of the step-size path
    d_sigma: float  # damping of the step size
    c_c: float  # decay of the covariance's path
    c_1: float  # learning rate of the rank-one update
    c_mu: float  # learning rate of the rank-μ update
    chi: float  # the expected norm of n standard normals


def population_size(size: int) -> int:
    """CMA-ES's default number of members for `size` parameters, 4 + ⌊3 ln n⌋ (eq. 48)."""
    return 4 + math.floor(3 * math.log(size))


def constants(size: int, members: int, separable: bool) -> Constants:
    """The constants for `size` parameters and `members` a generation (Hansen 2016, table 1).

    The weights of the worse half are 0: there is no negative ("active") update. separable: for a
    diagonal covariance, the covariance is learnt (n + 2) / 3 times as fast (Ros and Hansen
    2008).
    """
    n, parents = float(size), members // 2
    weights = math.log((members + 1) / 2) - np.log(np.arange(1, parents + 1))  # eq. 49
    weights = weights / weights.sum()  # eq. 53
    mu_eff = float(1 / np.square(weights).sum())
    c_sigma = (mu_eff + 2) / (n + mu_eff + 5)  # eq. 55
    d_sigma = 1 + 2 * max(0.0, math.sqrt((mu_eff - 1) / (n + 1)) - 1) + c_sigma  # eq. 55
    c_c = (4 + mu_eff / n) / (n + 4 + 2 * mu_eff / n)  # eq. 56
    faster = (n + 2) / 3 if separable else 1.0
    c_1 = min(1.0, faster * 2 / ((n + 1.3) ** 2 + mu_eff))  # eq. 57
    c_mu = faster * 2 * (0.25 + mu_eff + 1 / mu_eff - 2) / ((n + 2) ** 2 + mu_eff)  # eq. 58
    chi = math.sqrt(2) * math.exp(math.lgamma((n + 1) / 2) - math.lgamma(n / 2))
    return Constants(weights, mu_eff, c_sigma, d_sigma, c_c, c_1, min(1 - c_1, c_mu), chi)


class Adapted(NamedTuple):
    """The shape of CMA-ES's distribution N(m, σ² C). A diagonal C is `[n]`, as is its root."""

    step_size: Array  # [], σ
    covariance: Array  # [n, n] or [n], C
    root: Array  # [n, n] or [n], the symmetric C^½
    step_path: Array  # [n], p_σ
    covariance_path: Array  # [n], p_c
    condition: Array  # [], the largest eigenvalue of C over the smallest
    generation: Array  # int32 [], generations completed


def adapted_start(size: int, initial_std: Array, separable: bool) -> Adapted:
    """The shape of the first generation: C is the identity, and the paths are 0."""
    step_size = jnp.asarray(initial_std)
    zeros = jnp.zeros((size,), step_size.dtype)
    identity = zeros + 1 if separable else jnp.eye(size, dtype=step_size.dtype)
    one = jnp.ones((), step_size.dtype)
    # Copies: no two leaves of a state share memory.
    return Adapted(step_size, identity, identity + 0, zeros, zeros + 0, one, jnp.int32(0))


def adapted_offset(shape: Adapted, normals: Array) -> Array:
    """Members `[..., n]` minus the mean; normals `[..., n]`.

    The symmetric root is used where the tutorial has B D: the members' distribution is the same,
    and C^-½ Σ w_i y_i = Σ w_i z_i needs no inverse.
    """
    return shape.step_size * _directions(shape, normals)


def _directions(shape: Adapted, normals: Array) -> Array:
    """y = C^½ z, `[..., n]`."""
    if shape.root.ndim == 1:
        return shape.root * normals
    return jnp.matmul(normals, shape.root, precision="highest")


def adapted_next(
    mean: Array, shape: Adapted, normals: Array, c: Constants, mean_rate: Array
) -> tuple[Array, Adapted]:
    """Mean and shape after a generation whose μ best members were drawn with `normals` `[μ, n]`.

    mean_rate: c_m, at which the mean moves (Hansen 2016, eq. 41 to 47).
    """
    assert_shape((len(c.weights), *mean.shape), "rows of parameters", normals=normals)
    weights = jnp.asarray(c.weights, mean.dtype)
    generation = shape.generation + 1
    y = _directions(shape, normals)
    direction = weights @ y  # ⟨y⟩_w, eq. 41
    mean = mean + mean_rate * shape.step_size * direction  # eq. 42
    gain = math.sqrt(c.c_sigma * (2 - c.c_sigma) * c.mu_eff)
    step_path = (1 - c.c_sigma) * shape.step_path + gain * (weights @ normals)  # eq. 43
    length = jnp.linalg.norm(step_path)
    step_size = shape.step_size * jnp.exp(c.c_sigma / c.d_sigma * (length / c.chi - 1))  # eq. 44
    # Stalls p_c while the step size grows fast: h_σ below table 1.
    begun = jnp.sqrt(1 - (1 - c.c_sigma) ** (2 * generation.astype(mean.dtype)))
    steady = length / begun < (1.4 + 2 / (mean.shape[0] + 1)) * c.chi
    h = steady.astype(mean.dtype)
    gain = math.sqrt(c.c_c * (2 - c.c_c) * c.mu_eff)
    path = (1 - c.c_c) * shape.covariance_path + h * gain * direction  # eq. 45
    kept = 1 - c.c_1 - c.c_mu + c.c_1 * (1 - h) * c.c_c * (2 - c.c_c)
    if shape.root.ndim == 1:  # the diagonal of the same
        rank_one, rank_mu = jnp.square(path), weights @ jnp.square(y)
    else:
        rank_one = jnp.outer(path, path)
        rank_mu = jnp.matmul(y.T * weights, y, precision="highest")
    covariance = kept * shape.covariance + c.c_1 * rank_one + c.c_mu * rank_mu  # eq. 47
    covariance, root, condition = _rooted(covariance)
    return mean, Adapted(step_size, covariance, root, step_path, path, condition, generation)


def _rooted(covariance: Array) -> tuple[Array, Array, Array]:
    """The covariance, made symmetric, its symmetric root, and its condition number.

    Eigenvalues that rounding has made too small or negative are raised to the machine epsilon times
    the largest.
    """
    if covariance.ndim == 1:
        least = jnp.finfo(covariance.dtype).eps * jnp.max(covariance)
        values = jnp.maximum(covariance, least)
        return covariance, jnp.sqrt(values), jnp.max(values) / jnp.min(values)
    covariance = (covariance + covariance.T) / 2
    values, vectors = jnp.linalg.eigh(covariance)
    values = jnp.maximum(values, jnp.finfo(covariance.dtype).eps * values[-1])
    root = jnp.matmul(vectors * jnp.sqrt(values), vectors.T, precision="highest")
    return covariance, (root + root.T) / 2, values[-1] / values[0]
