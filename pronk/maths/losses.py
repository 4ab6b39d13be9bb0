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


def squared_error(value: Array, target: Array) -> Array:
    """½ (target − value)², `[...]` as both arguments; no gradient flows through the target.

    Espeholt et al. 2018, section 4.2.
    """
    assert_same_shape(value=value, target=target)
    return 0.5 * jnp.square(jax.lax.stop_gradient(target) - value)
