"""Sampling in proportion to priorities that change."""

from __future__ import annotations

import numpy as np

from pronk.types import Array

# The smallest number of leaves in a block, and the largest number of blocks. A deeper tree does
# less arithmetic, but makes more calls of NumPy, which cost more.
FAN, BLOCKS = 32, 8192


class SumTree:
    """Priorities, float64, in blocks, with each block's sum, maximum and minimum.

    A sum is always recomputed from its block, so that rounding errors do not accumulate. Maxima
    and minima of changed blocks are recomputed when they are next needed.
    """

    def __init__(self, capacity: int):
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; a tree has at least one leaf")
        self.capacity = capacity
        self._fan = max(FAN, -(-capacity // BLOCKS))
        blocks = -(-capacity // self._fan)
        self._leaves, self._sums = np.zeros((blocks, self._fan)), np.zeros(blocks)
        self._flat = self._leaves.reshape(-1)
        self._in_use = np.zeros((blocks, self._fan), np.bool_)
        self._maxima, self._minima = np.zeros(blocks), np.full(blocks, np.inf)
        self._changed = np.zeros(blocks, np.bool_)

    @property
    def total(self) -> float:
        """The sum of all priorities."""
        return float(self._sums.sum())

    @property
    def highest(self) -> float:
        """The highest priority; 0 if there is none."""
        self._update_extrema()
        return float(self._maxima.max())

    def lowest(self) -> int:
        """The inserted leaf of lowest priority, of several the one of the smallest index."""
        self._update_extrema()
        block = int(self._minima.argmin())
        leaves = np.where(self._in_use[block], self._leaves[block], np.inf)
        return block * self._fan + int(leaves.argmin())

    def priorities(self) -> Array:
        """All priorities, float64 `[capacity]`, a view."""
        return self._flat[: self.capacity]

    def insert(self, index: Array, priority: Array | float) -> None:
        """Begin to use these leaves, with these priorities; see `set`."""
        self.set(index, priority)
        self._in_use.reshape(-1)[index] = True

    def remove(self, index: Array) -> None:
        """Stop using these leaves; their priorities become 0."""
        self.set(index, 0.0)
        self._in_use.reshape(-1)[index] = False

    def set(self, index: Array, priority: Array | float) -> None:
        """Set the priorities, at least 0 and finite, at `index`, integers `[k]`.

        If an index occurs twice, the last priority counts. Raises ValueError for priorities that
        are negative or not finite.
        """
        priority = np.asarray(priority, np.float64)
        # Both comparisons are false for NaN.
        if not (np.min(priority, initial=0.0) >= 0 and np.max(priority, initial=0.0) < np.inf):
            raise ValueError(f"priorities must be finite and at least 0, not {priority}")
        self._flat[index] = priority
        block = index // self._fan
        self._sums[block] = self._leaves[block].sum(axis=1)
        self._changed[block] = True

    def find(self, mass: Array) -> Array:
        """The leaves at which the cumulative sum of the priorities first exceeds `mass`, `[k]`.

        mass: float64 in [0, total]. Never a leaf of priority 0, whatever the rounding.
        """
        ends = self._sums.cumsum()
        block = ends.searchsorted(np.minimum(mass, np.nextafter(ends[-1], 0.0)), side="right")
        mass = np.maximum(mass - (ends[block] - self._sums[block]), 0.0)
        within = self._leaves[block].cumsum(axis=1)
        # A mass that rounding has put beyond the block's end belongs to its last leaf above 0.
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

    def _update_extrema(self) -> None:
        blocks = np.flatnonzero(self._changed)
        leaves = self._leaves[blocks]
        self._maxima[blocks] = leaves.max(axis=1)
        self._minima[blocks] = np.where(self._in_use[blocks], leaves, np.inf).min(axis=1)
        self._changed[blocks] = False
