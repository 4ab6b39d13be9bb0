"""Minibatches of an on-policy batch: of transitions or, for a recurrent core, of trajectories."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pronk.agents.rollout import Estimates, Samples
from pronk.types import Array, Key


class Minibatches:
    """A batch `[T, B]` to draw from. `order` names every transition once, and `take` gathers.

    config: of the agent; with a recurrent core, units are the B trajectories, because the core
    needs the rows in order from the state that is known.
    """

    def __init__(self, config: Any, samples: Samples, estimates: Estimates):
        self._recurrent = config.recurrent_core != "none"
        self._length = config.unroll if self._recurrent else 1  # transitions of a unit
        self._count = config.batch_size if self._recurrent else config.unroll * config.batch_size
        samples, estimates = jax.tree.map(jnp.asarray, (samples, estimates))
        self._core, parts = samples.core, (samples._replace(core=()), estimates)
        if not self._recurrent:
            parts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)
        self._parts = parts

    def order(self, key: Key, size: int) -> Array:
        """A permutation of the units as minibatches of `size` transitions each, int32 `[N, n]`."""
        return jax.random.permutation(key, self._count).reshape(-1, size // self._length)

    def take(self, index: Array) -> tuple[Samples, Estimates]:
        """The units of `index` `[n]`: leaves `[T, n, ...]` with a core, `[1, n, ...]` without."""
        if not self._recurrent:
            return jax.tree.map(lambda x: x[index][None], self._parts)
        samples, estimates = jax.tree.map(lambda x: x[:, index], self._parts)
        core = jax.tree.map(lambda x: x[index], self._core)
        return samples._replace(core=core), estimates
