"""A value function that is linear in features of the observation and of the time in the episode.

Duan et al. 2016, "Benchmarking Deep Reinforcement Learning for Continuous Control", section 6, and
its public code.
"""

from __future__ import annotations

import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np

from pronk.maths.shapes import assert_rank, assert_shape
from pronk.types import Array

BOUND = 10.0  # of observations
RIDGE = 1e-5


def num_features(observation_size: int) -> int:
    """The number of features of an observation of this many numbers."""
    return 2 * observation_size + 4


def features(observation: Array, age: Array) -> Array:
    """[o, o², t/100, (t/100)², (t/100)³, 1], with o within ± 10.

    observation: `[..., D]`. age: `[...]`, t, steps since the episode began. Returns `[..., 2 D +
    4]`.
    """
    assert_shape(np.shape(observation)[:-1], "one per observation", age=age)
    o = jnp.clip(observation, -BOUND, BOUND)
    t = (age.astype(jnp.float32) / 100.0)[..., None]
    return jnp.concatenate([o, o**2, t, t**2, t**3, jnp.ones_like(t)], axis=-1)


def fit(x: Array, target: Array, weight: Array) -> Array:
    """The coefficients `[F]` that minimise Σ w (target − xᵀc)² + 1e-5 ‖c‖².

    x: `[N, F]`. target, weight: `[N]`. Solved by a QR decomposition of scaled columns, because the
    normal equations would square the condition number, and float32 has seven digits.
    """
    assert_rank(2, x=x)
    assert_shape(np.shape(x)[:1], "one per row of `x`", target=target, weight=weight)
    root = jnp.sqrt(weight)
    rows, goal = x * root[:, None], jnp.where(weight > 0, target, 0.0) * root
    scale = jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(rows), axis=0)), 1e-6)
    penalty = jnp.diag(jnp.sqrt(RIDGE) / scale)
    q, r = jnp.linalg.qr(jnp.concatenate([rows / scale, penalty]))
    projected = q.T @ jnp.concatenate([goal, jnp.zeros(x.shape[1])])
    return jax.scipy.linalg.solve_triangular(r, projected) / scale
