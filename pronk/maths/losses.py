"""Loss terms of the actor-critic agents: pure, `[T]` per transition; callers weigh and sum."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pronk.types import Array


def policy_gradient(log_prob: Array, advantage: Array) -> Array:
    """−log π(a_t|x_t) A_t per transition; no gradient flows through the advantage. `[...]`."""
    return -log_prob * jax.lax.stop_gradient(advantage)


def squared_error(value: Array, target: Array) -> Array:
    """½ (target − value)² per element; no gradient flows through the target. `[...]`."""
    return 0.5 * jnp.square(jax.lax.stop_gradient(target) - value)
