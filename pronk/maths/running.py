"""Running mean and variance of everything seen so far, merged batch by batch.

Chan et al. 1983, "Algorithms for Computing the Sample Variance": a merge loses no digits, unlike a
sum of squares, and gives what all data at once would give.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from pronk.maths.shapes import assert_shape
from pronk.types import Array


class Running(NamedTuple):
    """Mean and variance of elements `[F]`."""

    count: Array  # float32 [], elements so far
    mean: Array  # float32 [F]
    variance: Array  # float32 [F], of the population; 1 before any element

    @property
    def deviation(self) -> Array:
        """The standard deviation, `[F]`."""
        return jnp.sqrt(self.variance)


def init(shape: tuple[int, ...] = ()) -> Running:
    """Before any element: mean 0 and variance 1, which leave what they normalise as it is."""
    return Running(jnp.zeros(()), jnp.zeros(shape), jnp.ones(shape))


def update(running: Running, x: Array, weight: Array | None = None) -> Running:
    """Merge elements `[..., F]`; weight: `[...]`, 0 for those to leave out, else 1.

    Elements that are not finite leave their feature's mean and variance as they were.
    """
    features = np.shape(running.mean)
    leading = np.shape(x)[: np.ndim(x) - len(features)]
    assert_shape((*leading, *features), "elements of the statistics' shape", x=x)
    share: Array = jnp.ones(leading) if weight is None else weight
    assert_shape(leading, "one per element", weight=share)
    axes = tuple(range(len(leading)))
    count = jnp.sum(share)
    share = share.reshape(leading + (1,) * len(features))
    mean = jnp.sum(jnp.where(share > 0, x, 0.0) * share, axes) / jnp.maximum(count, 1.0)
    square = jnp.square(jnp.where(share > 0, x - mean, 0.0))
    variance = jnp.sum(square * share, axes) / jnp.maximum(count, 1.0)
    total = running.count + count
    part = count / jnp.maximum(total, 1.0)
    rest = running.count / jnp.maximum(total, 1.0)
    shift = mean - running.mean
    merged = rest * running.variance + part * variance + rest * part * jnp.square(shift)
    valid = jnp.isfinite(merged) & (count > 0)
    return Running(
        total,
        jnp.where(valid, running.mean + part * shift, running.mean),
        jnp.where(valid, merged, running.variance),
    )


def normalize(running: Running, x: Array, *, clip: float) -> Array:
    """(x − mean) / deviation, within ± clip. A feature that has never changed is normalised to 0
    while it stays as it is, and to ± clip if it changes."""
    scaled = (x - running.mean) / jnp.sqrt(running.variance + 1e-8)
    return jnp.clip(scaled, -clip, clip)
