"""Sampling in proportion to priorities that change."""

from __future__ import annotations

import numpy as np

from pronk.types import Array

# Children of a node. A binary tree does less arithmetic, but more calls of NumPy, which cost more.
FAN = 64


class SumTree:
    """Priorities, float64, and their sums by blocks of FAN, by blocks of these, and so on.

    A sum is always computed anew from its block, so that none drifts from what it sums.
    """

    def __init__(self, capacity: int):
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; a tree has at least one leaf")
        self.capacity = capacity
        self._levels: list[np.ndarray] = []  # leaves first, each [blocks, FAN]
        size = capacity
        while True:
            blocks = -(-size // FAN)
            self._levels.append(np.zeros((blocks, FAN)))
            if blocks == 1:
                break
            size = blocks

    @property
    def total(self) -> float:
        """The sum of all priorities."""
        return float(self._levels[-1].sum())

    def priorities(self) -> Array:
        """All of them, float64 `[capacity]`, a view."""
        return self._levels[0].reshape(-1)[: self.capacity]

    def set(self, index: Array, priority: Array) -> None:
        """Set the priorities, at least 0 and finite, at `index`, integers `[k]`.

        Where an index comes twice, the last one counts. Raises ValueError for other priorities.
        """
        priority = np.asarray(priority, np.float64)
        if not (np.isfinite(priority).all() and (priority >= 0).all()):
            raise ValueError(f"priorities must be finite and at least 0, not {priority}")
        self._levels[0].reshape(-1)[index] = priority
        for below, above in zip(self._levels, self._levels[1:], strict=False):
            index = index // FAN
            above.reshape(-1)[index] = below[index].sum(axis=1)

    def find(self, mass: Array) -> Array:
        """The leaves at which the running sum of the priorities first exceeds `mass`, `[k]`.

        mass: float64 in [0, total). A leaf of priority 0 is never found, whatever the rounding.
        """
        node = np.zeros(len(mass), np.int64)
        rows = np.arange(len(mass))
        for level in reversed(self._levels):
            sums = np.cumsum(level[node], axis=1)
            # What rounding has put beyond the end is within the last child that has any.
            mass = np.minimum(mass, np.nextafter(sums[:, -1], 0.0))
            child = (sums <= mass[:, None]).sum(axis=1)
            before = np.where(child > 0, sums[rows, child - 1], 0.0)
            mass = mass - before
            node = node * FAN + child
        return node

    def sample(self, size: int, rng: np.random.Generator) -> Array:
        """Indices `[size]` with probabilities priority / total, one from each of `size` equal
        parts of the sum (Schaul et al. 2016, appendix B.2.1). Raises ValueError if the total is 0.
        """
        total = self.total
        if not total > 0:
            raise ValueError("all priorities are 0: there is nothing to sample")
        return self.find((np.arange(size) + rng.random(size)) * (total / size))
