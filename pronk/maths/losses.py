"""Loss terms of the actor-critic agents, one per transition; callers weigh and sum them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pronk.maths.shapes import assert_same_shape
from pronk.types import Array


def policy_gradient(log_prob: Array, advantage: Array) -> Array:
    """−log π(a_t|x_t) A_t, `[...]` as both arguments; no gradient flows through the advantage.

    Espeholt et al. 2018, section 4.2.
    """
    assert_same_shape(log_prob=log_prob, advantage=advantage)
    return -log_prob * jax.lax.stop_gradient(advantage)


def importance_weighted(log_ratio: Array, advantage: Array) -> Array:
    """−(π/μ) A_t, `[...]` as both arguments: the surrogate whose gradient at π = μ is the policy
    gradient (Schulman et al. 2015, eq. 14). The ratio is at most e²⁰, so that it stays finite."""
    assert_same_shape(log_ratio=log_ratio, advantage=advantage)
    return -_ratio(log_ratio) * jax.lax.stop_gradient(advantage)


def clipped_surrogate(
    log_ratio: Array, advantage: Array, clip: Array | float, *, reciprocal: bool = False
) -> Array:
    """−min(r A, clip(r, 1 − ε, 1 + ε) A), `[...]`, with r = π/μ (Schulman et al. 2017, eq. 7).

    reciprocal: clip to [1 / (1 + ε), 1 + ε], which is symmetric in log r (Andrychowicz et al. 2021,
    appendix B.1). The gradient is zero where the clipped term is the smaller one, also for ratios
    beyond the range of float32.
    """
    assert_same_shape(log_ratio=log_ratio, advantage=advantage)
    advantage = jax.lax.stop_gradient(advantage)
    ratio = _ratio(log_ratio)
    low = 1.0 / (1.0 + clip) if reciprocal else 1.0 - clip
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, low, 1.0 + clip) * advantage)


def _ratio(log_ratio: Array) -> Array:
    """e^log_ratio, within e^±20, beyond which it is constant."""
    return jnp.exp(jnp.clip(log_ratio, -20.0, 20.0))


def squared_error(value: Array, target: Array) -> Array:
    """½ (target − value)², `[...]` as both arguments; no gradient flows through the target.

    Espeholt et al. 2018, section 4.2.
    """
    assert_same_shape(value=value, target=target)
    return 0.5 * jnp.square(jax.lax.stop_gradient(target) - value)
