"""Invertible scalings of action values, and the reward clipping that they replace.

A value network that learns h(q) is less sensitive to the scale of rewards (Pohlen et al. 2018,
"Observe and Look Further", section 3.2): its targets are h of a return of h⁻¹ of its own values.
All functions are elementwise: any shape is allowed, and shape and dtype are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from pronk.types import Array


class Transform(NamedTuple):
    """h and h⁻¹, strictly increasing and odd."""

    apply: Callable[[Array], Array]
    inverse: Callable[[Array], Array]


IDENTITY = Transform(lambda x: x, lambda y: y)


def signed_sqrt(epsilon: float) -> Transform:
    """h(x) = sign(x) (√(|x| + 1) − 1) + ε x (Pohlen et al. 2018, eq. 8), for any ε ≥ 0.

    ε is 1e-2 in that paper and 1e-3 in R2D2's and MuZero's. The inverse is exact. Both are written
    without the differences of the papers' forms, in which float32 loses all digits for small |x|
    and, in the inverse, for small ε.
    """

    def apply(x: Array) -> Array:
        return x / (jnp.sqrt(jnp.abs(x) + 1) + 1) + epsilon * x

    def inverse(y: Array) -> Array:
        # With w = √(|x| + 1) − 1, |y| is w + ε w (w + 2): the root of a quadratic in w ≥ 0.
        b = 1 + 2 * epsilon
        w_over_y = 2 / (b + jnp.sqrt(b * b + 4 * epsilon * jnp.abs(y)))
        return y * w_over_y * (jnp.abs(y) * w_over_y + 2)

    return Transform(apply, inverse)


def signed_log() -> Transform:
    """h(x) = sign(x) log(|x| + 1): flatter than the root, for values of many magnitudes."""

    # A factor sign(x) instead would make the gradient at 0 zero.
    def apply(x: Array) -> Array:
        return jnp.where(x < 0, -1, 1) * jnp.log1p(jnp.where(x < 0, -x, x))

    def inverse(y: Array) -> Array:
        return jnp.where(y < 0, -1, 1) * jnp.expm1(jnp.where(y < 0, -y, y))

    return Transform(apply, inverse)


def clip_reward(reward: Array, limit: float) -> Array:
    """`reward` clipped to ± `limit`, as DQN and IMPALA do on Atari; 0 means no clipping."""
    return jnp.clip(reward, -limit, limit) if limit else reward


def by_name(name: str, epsilon: float) -> Transform:
    """The transform called `sqrt`, `log` or `none`; epsilon: of `sqrt`."""
    return {"sqrt": signed_sqrt(epsilon), "log": signed_log(), "none": IDENTITY}[name]
