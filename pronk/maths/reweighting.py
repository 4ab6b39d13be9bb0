"""Weights of samples by how good they were, and the dual of relative entropy policy search.

A batch's transitions are `[...]` in all arguments; `weight` is 0 for dummies and 1 for the others.
Sample weights are 0 for dummies, and 1 on average over the others.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pronk.maths import lbfgs
from pronk.maths.shapes import assert_same_shape, assert_shape
from pronk.types import Array


def shifted(advantage: Array, weight: Array) -> Array:
    """Weights in proportion to A − min A (Duan et al. 2016's code); zeros where all advantages are
    equal."""
    assert_same_shape(advantage=advantage, weight=weight)
    least = jnp.min(jnp.where(weight > 0, advantage, jnp.inf))
    return _normalised(jnp.where(weight > 0, advantage - least, 0.0), weight)


def exponential(advantage: Array, temperature: Array | float, weight: Array) -> Array:
    """Weights in proportion to exp(A / β), β the temperature (Peters and Schaal 2007)."""
    assert_same_shape(advantage=advantage, weight=weight)
    # Division by β comes last: it may be so small that its inverse overflows.
    # A schedule may end at 0, where all weight is that of the best.
    temperature = jnp.maximum(temperature, jnp.finfo(jnp.float32).tiny)
    best = jnp.max(jnp.where(weight > 0, advantage, -jnp.inf))
    return _normalised(
        jnp.where(weight > 0, jnp.exp((advantage - best) / temperature), 0.0), weight
    )


def _normalised(x: Array, weight: Array) -> Array:
    total = jnp.sum(x)
    # NaN stays NaN: it must show.
    return x * jnp.where(total == 0.0, 0.0, jnp.sum(weight) / jnp.where(total == 0.0, 1.0, total))


def effective_share(weights: Array) -> Array:
    """The effective sample size (Σ w)² / Σ w² of sample weights, divided by Σ w, which is the
    number of samples if their mean is 1; 0 where all are 0."""
    square = jnp.sum(jnp.square(weights))
    return jnp.where(square == 0.0, 0.0, jnp.sum(weights) / jnp.where(square == 0.0, 1.0, square))


def divergence(weights: Array, weight: Array) -> Array:
    """KL of the weighted samples from the equally weighted ones, mean of w log w, in nats."""
    terms = jnp.where(weights == 0.0, 0.0, weights * jnp.log(jnp.where(weights == 0.0, 1, weights)))
    return jnp.sum(jnp.where(weight > 0, terms, 0.0)) / jnp.maximum(jnp.sum(weight), 1.0)


class Multipliers(NamedTuple):
    """The dual's variables at its minimum."""

    eta: Array  # []
    nu: Array  # [F]
    value: Array  # [], of the dual
    gradient_norm: Array  # [], where the search began


class Dual(NamedTuple):
    """A problem of relative entropy policy search: max E_p[r] subject to KL(p ‖ batch) ≤ ε and the
    flow E_p[x] = 0, of which `value` is the dual."""

    reward: Array  # [...]
    flow: Array  # x, [..., F], change of the features in a transition
    weight: Array  # [...]
    epsilon: Array | float  # ε, in nats
    penalty: Array | float  # λ, of the coefficients of features scaled to a mean square flow of 1

    def errors(self, nu: Array) -> Array:
        """δ = r + νᵀx, `[...]`, 0 for dummies; nu: `[F]`."""
        assert_shape(np.shape(self.flow)[-1:], "one per feature", nu=nu)
        return jnp.where(self.weight > 0, self.reward, 0.0) + self._flow() @ nu

    def _flow(self) -> Array:
        """x, 0 for dummies: their numbers, NaN among them, would reach the gradient."""
        return jnp.where(self.weight[..., None] > 0, self.flow, 0.0)

    def value(self, eta: Array, nu: Array) -> Array:
        """η ε + η log mean exp(δ/η) + λ Σ s² ν², where s² is the mean square flow of a feature
        (Peters et al. 2010, with a penalty). It is convex, η > 0."""
        scaled = self.errors(nu) / eta
        count = jnp.maximum(jnp.sum(self.weight), 1.0)
        log_sum = jax.nn.logsumexp(jnp.where(self.weight > 0, scaled, -jnp.inf))
        penalty = self.penalty * jnp.sum(jnp.square(self._scale() * nu))
        return eta * (self.epsilon + log_sum - jnp.log(count)) + penalty

    def weights(self, eta: Array, nu: Array) -> Array:
        """Sample weights in proportion to exp(δ/η) (Peters et al. 2010)."""
        return exponential(self.errors(nu), eta, self.weight)

    def _scale(self) -> Array:
        """s `[F]`."""
        x = self._flow().reshape(-1, self.flow.shape[-1])
        count = jnp.maximum(jnp.sum(self.weight), 1.0)
        return jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(x), axis=0) / count), 1e-6)

    def minimise(self, eta: Array, nu: Array, *, iterations: int) -> Multipliers:
        """The minimum over η > 0 and ν, searched from these values by L-BFGS.

        The search is over log η, so that η is positive, and over s ν, because the scales s of the
        features differ by factors of thousands.
        """
        scale = self._scale()

        def value(x: tuple[Array, Array]) -> Array:
            return self.value(jnp.exp(x[0]), x[1] / scale)

        found = lbfgs.minimise(value, (jnp.log(eta), nu * scale), iterations=iterations)
        log_eta, scaled = found.params
        return Multipliers(jnp.exp(log_eta), scaled / scale, found.value, found.gradient_norm)
