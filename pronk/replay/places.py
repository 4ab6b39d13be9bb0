"""Reference-counted places of a store of fixed capacity."""

from __future__ import annotations

import numpy as np

from pronk.types import Array

# Values of `Places.segment` for places that no segment of the log has: `UNSAVED` has never been
# saved; `REVISED` was saved, and has changed since.
UNSAVED, REVISED = -1, -2


class Places:
    """Places 0 … capacity − 1, each with a reference count; those with count 0 are free.

    Places are reserved with `take`, counted with `hold` and `release`.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.held = np.zeros(capacity, np.int32)  # reference counts
        self.segment = np.full(capacity, UNSAVED, np.int32)  # of the log, or one of the above
        self._stack = np.arange(capacity, dtype=np.int32)[::-1].copy()  # the free ones come first
        self.free = capacity

    def take(self, count: int) -> Array:
        """Reserve free places, int32 `[count]`, not held yet; the caller checks `free` before."""
        self.free -= count
        taken = self._stack[self.free : self.free + count].copy()
        self.segment[taken] = UNSAVED
        return taken

    def give_back(self, places: Array) -> None:
        """Free places, reserved by `take`, that are not held."""
        self._stack[self.free : self.free + len(places)] = places
        self.free += len(places)

    def hold(self, places: Array) -> None:
        """Increase the count of each place, once for each time that it occurs."""
        np.add.at(self.held, places, 1)

    def release(self, places: Array) -> Array:
        """Decrease the counts likewise; returns the places that are free now."""
        if not len(places):
            return places
        np.subtract.at(self.held, places, 1)
        freed = np.unique(places[self.held[places] == 0])
        self.give_back(freed)
        return freed

    def revised(self, places: Array) -> None:
        """Mark saved places whose contents have changed."""
        saved = places[self.segment[places] >= 0]
        self.segment[saved] = REVISED

    def unsaved(self, *, revised: bool) -> Array:
        """Held places that are in no segment, int32 `[n]`, with or without revised ones."""
        new = self.segment < 0 if revised else self.segment == UNSAVED
        return np.flatnonzero((self.held > 0) & new).astype(np.int32)

    def free_order(self) -> Array:
        """The free places; `take` takes them from the end."""
        return self._stack[: self.free].copy()

    def restore(self, held: Array, free_order: Array | None = None) -> None:
        """Set the counts, and the order in which free places are taken, if it matters."""
        self.held[:] = held
        if free_order is None:
            free_order = np.flatnonzero(held == 0)[::-1]
        self.free = len(free_order)
        self._stack[: self.free] = free_order
