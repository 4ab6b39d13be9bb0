"""Sampling in proportion to priorities that change."""

from __future__ import annotations

import numpy as np

from pronk.types import Array

# Leaves of a block, at least, and blocks, at most. A deeper tree does less arithmetic, but more
# calls of NumPy, which cost more.
FAN, BLOCKS = 32, 8192


class SumTree:
    """Priorities, float64, in blocks, and the sum of each block.

    A sum is always computed anew from its block, so that none drifts from what it sums.
    """

    def __init__(self, capacity: int):
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; a tree has at least one leaf")
        self.capacity = capacity
        self._fan = max(FAN, -(-capacity // BLOCKS))
        blocks = -(-capacity // self._fan)
        self._leaves, self._sums = np.zeros((blocks, self._fan)), np.zeros(blocks)
        self._flat = self._leaves.reshape(-1)

    @property
    def total(self) -> float:
        """The sum of all priorities."""
        return float(self._sums.sum())

    def priorities(self) -> Array:
        """All of them, float64 `[capacity]`, a view."""
        return self._flat[: self.capacity]

    def set(self, index: Array, priority: Array) -> None:
        """Set the priorities, at least 0 and finite, at `index`, integers `[k]`.

        Where an index comes twice, the last one counts. Raises ValueError for other priorities.
        """
        priority = np.asarray(priority, np.float64)
        # What is not a number makes neither comparison true.
        if not (np.min(priority, initial=0.0) >= 0 and np.max(priority, initial=0.0) < np.inf):
            raise ValueError(f"priorities must be finite and at least 0, not {priority}")
        self._flat[index] = priority
        block = index // self._fan
        self._sums[block] = self._leaves[block].sum(axis=1)

    def find(self, mass: Array) -> Array:
        """The leaves at which the running sum of the priorities first exceeds `mass`, `[k]`.

        mass: float64 in [0, total]. A leaf of priority 0 is never found, whatever the rounding.
        """
        ends = self._sums.cumsum()
        block = ends.searchsorted(np.minimum(mass, np.nextafter(ends[-1], 0.0)), side="right")
        mass = np.maximum(mass - (ends[block] - self._sums[block]), 0.0)
        within = self._leaves[block].cumsum(axis=1)
        # What rounding has put beyond the block's end belongs to its last leaf that has any.
        mass = np.minimum(mass, np.nextafter(within[:, -1], 0.0))
        return block * self._fan + (within > mass[:, None]).argmax(axis=1)

    def sample(self, size: int, rng: np.random.Generator) -> Array:
        """Indices `[size]` with probabilities priority / total, one from each of `size` equal
        parts of the sum (Schaul et al. 2016, appendix B.2.1). Raises ValueError if the total is 0.
        """
        total = self.total
        if not total > 0:
            raise ValueError("all priorities are 0: there is nothing to sample")
        return self.find((np.arange(size) + rng.random(size)) * (total / size))
