"""Scalars as distributions over evenly spaced values, learnt by cross-entropy.

Schrittwieser et al. 2020, "Mastering Atari, Go, chess and shogi by planning with a learned model"
(arXiv:1911.08265), appendix F: a scalar is transformed by h, then shared between the two values
beside it, in proportion to how near they are.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pronk.maths.shapes import assert_shape
from pronk.maths.transforms import Transform
from pronk.types import Array


class Support(NamedTuple):
    """Values from −`limit` to `limit`, after h, of which there are `bins`, an odd number, so that 0
    is one of them."""

    limit: float
    bins: int
    transform: Transform  # h

    def encode(self, x: Array) -> Array:
        """Probabilities `[..., bins]` whose mean is h of the scalars `x` `[...]`, each over two
        neighbours; what is beyond the limit counts as the limit."""
        position = (self._clipped(x) + self.limit) / self._gap
        distance = jnp.abs(position[..., None] - jnp.arange(self.bins))
        return jnp.maximum(1.0 - distance, 0.0)

    def decode(self, logits: Array) -> Array:
        """The scalars `[...]` of logits `[..., bins]`: h⁻¹ of the distribution's mean."""
        assert_shape((*logits.shape[:-1], self.bins), "one logit per value", logits=logits)
        values = jnp.linspace(-self.limit, self.limit, self.bins)
        return self.transform.inverse(jnp.sum(jax.nn.softmax(logits) * values, axis=-1))

    def cross_entropy(self, logits: Array, x: Array) -> Array:
        """−Σ p log q `[...]` of the scalars `x` `[...]`, encoded, and logits `[..., bins]`."""
        return -jnp.sum(self.encode(x) * jax.nn.log_softmax(logits), axis=-1)

    def is_clipped(self, x: Array) -> Array:
        """Whether the scalars `x` are beyond the limit, bool `[...]`."""
        return jnp.abs(self.transform.apply(x)) > self.limit * (1 + 1e-5)

    @property
    def _gap(self) -> float:
        return 2 * self.limit / (self.bins - 1)

    def _clipped(self, x: Array) -> Array:
        return jnp.clip(self.transform.apply(x), -self.limit, self.limit)
