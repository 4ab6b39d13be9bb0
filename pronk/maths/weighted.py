"""Statistics of the elements whose weight is 1, among others whose weight is 0."""

from __future__ import annotations

import jax.numpy as jnp

from pronk.maths.shapes import assert_same_shape
from pronk.types import Array


def mean(x: Array, weight: Array) -> Array:
    """The mean; 0 without any element."""
    assert_same_shape(x=x, weight=weight)
    return jnp.sum(jnp.where(weight > 0, x, 0.0)) / jnp.maximum(jnp.sum(weight), 1.0)


def deviation(x: Array, weight: Array) -> Array:
    """The standard deviation; 0 without any element."""
    return jnp.sqrt(mean(jnp.square(x - mean(x, weight)), weight))


def standardise(x: Array, weight: Array) -> Array:
    """(x − mean) / deviation; zeros where all elements are equal."""
    return (x - mean(x, weight)) / (deviation(x, weight) + 1e-8)
