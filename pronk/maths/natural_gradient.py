"""The natural gradient: Fisher-vector products, conjugate gradients, and a search along the step.

With g the gradient of an objective and F the Fisher information of a policy, the natural gradient
is F⁻¹ g (Kakade 2001). F is never formed. Near the policy, KL ≈ ½ Δᵀ F Δ, so that the step of mean
divergence δ along x = F⁻¹ g is √(2 δ / xᵀ F x) x (Schulman et al. 2015, "Trust Region Policy
Optimization", appendix C). A formula without the 2, or with F⁻¹ in place of F, appears in print and
in lectures; it is a slip: its step would depend on the units of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from pronk.maths.distributions import Distribution
from pronk.types import Array, PyTree

Product = Callable[[PyTree], PyTree]  # of a matrix with a vector, both as trees of parameters


def fisher_vector_product(
    policy: Callable[[PyTree], Array],
    params: PyTree,
    distribution: Distribution,
    weight: Array,
    damping: Array | float = 0.0,
) -> Product:
    """The product v -> (F + ζ I) v, where F is the mean Fisher information over rows.

    F = Σ w Jᵀ M J / Σ w, where J is the Jacobian of the distribution's parameters and M the
    distribution's own Fisher information (`Distribution.fisher_product`). It is the Hessian of the
    mean KL(π_old ‖ π) at π_old (Schulman et al. 2015, appendix C.1) in the Gauss-Newton form: no
    second derivative, and positive semidefinite by construction. J v is computed as the transpose
    of Jᵀ u, because functions with a gradient of their own, such as convolutions on CPUs, have no
    forward derivative. The network is evaluated once, not once per product.

    policy: parameters to the distribution's parameters `[..., P]`. weight: `[...]`. damping: ζ.
    """
    outputs, pullback = jax.vjp(policy, params)
    # Linear in u, so that its own pullback, wherever it is taken, is v -> J v.
    _, pushforward = jax.vjp(lambda u: pullback(u)[0], jnp.zeros_like(outputs))
    share = (weight / jnp.maximum(jnp.sum(weight), 1.0))[..., None]

    def product(vector: PyTree) -> PyTree:
        (tangent,) = pushforward(vector)
        (result,) = pullback(share * distribution.fisher_product(outputs, tangent))
        return jax.tree.map(lambda x, v: x + damping * v, result, vector)

    return product


def _dot(a: PyTree, b: PyTree) -> Array:
    """The inner product of two vectors."""
    return optax.tree.vdot(a, b)


class Solution(NamedTuple):
    """What `conjugate_gradient` found."""

    x: PyTree
    residual: Array  # ‖b − A x‖ / ‖b‖, float32 []; 0 where b is 0
    iterations: Array  # int32 []


def conjugate_gradient(
    product: Product, b: PyTree, *, iterations: int, tolerance: float = 1e-5
) -> Solution:
    """Solve A x = b for a positive semidefinite A, given by its product with a vector.

    Stops after `iterations`, once ‖b − A x‖ ≤ tolerance · ‖b‖, which does not depend on the units
    of b, or where A has no curvature along the next direction. b = 0 gives x = 0.
    """

    def going(carry: tuple[PyTree, ...]) -> Array:
        _, _, _, square, curved, i = carry
        return (i < iterations) & (square > tolerance**2 * total) & curved

    def step(carry: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        x, r, p, square, _, i = carry
        ap = product(p)
        curvature = _dot(p, ap)
        curved = curvature > 0.0
        alpha = jnp.where(curved, square / jnp.where(curved, curvature, 1.0), 0.0)
        x = jax.tree.map(lambda a, b: a + alpha * b, x, p)
        r = jax.tree.map(lambda a, b: a - alpha * b, r, ap)
        following = _dot(r, r)
        beta = following / square
        p = jax.tree.map(lambda a, b: a + beta * b, r, p)
        return x, r, p, following, curved, i + curved.astype(jnp.int32)

    total = _dot(b, b)
    begin = jax.tree.map(jnp.zeros_like, b), b, b, total, jnp.bool_(True), jnp.int32(0)
    x, _, _, square, _, count = jax.lax.while_loop(going, step, begin)
    scale = jnp.where(total > 0.0, total, 1.0)
    return Solution(x, jnp.sqrt(square / scale), count)


def trust_region_scale(x: PyTree, fisher_x: PyTree, delta: Array | float) -> Array:
    """√(2 δ / xᵀ F x), by which a direction x is multiplied for a mean divergence of δ (Schulman et
    al. 2015, appendix C); 0 where xᵀ F x is not positive."""
    curvature = _dot(x, fisher_x)
    positive = curvature > 0.0
    return jnp.where(positive, jnp.sqrt(2.0 * delta / jnp.where(positive, curvature, 1.0)), 0.0)


class Search(NamedTuple):
    """What `line_search` found."""

    params: PyTree
    accepted: Array  # bool []
    trials: Array  # int32 [], steps that were tried
    divergence: Array  # float32 [], mean KL(π_old ‖ π) at `params`
    improvement: Array  # float32 [], of the objective at `params`


def line_search(
    evaluate: Callable[[PyTree], tuple[Array, Array]],
    params: PyTree,
    step: PyTree,
    delta: Array | float,
    *,
    shrink: Array | float,
    trials: int,
) -> Search:
    """The first of params + shrink^i · step, i = 0, 1 …, with KL ≤ δ and a better objective.

    evaluate: parameters to (objective, mean KL from the policy of `params`), on the same data. If
    none of `trials` steps is accepted, NaN among their results included, the parameters are
    returned as they were, bit for bit (Schulman et al. 2015, appendix C).
    """
    before, _ = evaluate(params)

    def going(carry: tuple[Array, Search]) -> Array:
        _, found = carry
        return ~found.accepted & (found.trials < trials)

    def attempt(carry: tuple[Array, Search]) -> tuple[Array, Search]:
        scale, found = carry
        candidate = jax.tree.map(lambda p, s: p + (scale * s).astype(p.dtype), params, step)
        objective, divergence = evaluate(candidate)
        gained = objective - before
        good = (divergence <= delta) & (gained > 0.0)
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), candidate, found.params)
        zero = jnp.zeros_like(gained)
        return scale * shrink, Search(
            kept,
            good,
            found.trials + 1,
            jnp.where(good, divergence, zero),
            jnp.where(good, gained, zero),
        )

    zero = jnp.zeros_like(before)
    begin = Search(params, jnp.bool_(False), jnp.int32(0), zero, zero)
    return jax.lax.while_loop(going, attempt, (jnp.ones_like(before), begin))[1]
