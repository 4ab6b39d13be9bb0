"""The sequences that can be drawn, and their priorities."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import jax
import numpy as np

from pronk.replay.places import Places
from pronk.replay.sequences import Cut, CutSequences
from pronk.replay.sum_tree import SumTree
from pronk.types import Array, PyTree, Sequences


class Drawn(NamedTuple):
    """Sequences drawn, `[B]`."""

    keys: Array  # int64
    rows: Array  # int32 [B, Cut.rows], places
    transitions: Array  # int32
    version: Array  # int32
    core: PyTree  # leaves [B, ...], recurrent states before the first rows
    probabilities: Array  # float32, of the draw


class Items:
    """Sequences by slot, each with a key and a priority."""

    def __init__(self, sequences: Sequences, cut: Cut, core: PyTree):
        # There are more sequences than one per stride while episodes are shorter than that; but
        # each starts at a row of its own.
        slots = max(1, min(sequences.capacity, 1 + 4 * sequences.capacity // cut.stride))
        self.places = Places(slots)
        self.tree = SumTree(slots)
        self.key = np.full(slots, -1, np.int64)  # -1: the slot is free
        self.rows = np.zeros((slots, cut.rows), np.int32)
        self._transitions = np.zeros(slots, np.int32)
        self._version = np.zeros(slots, np.int32)
        self._core = jax.tree.map(lambda x: np.empty((slots, *x.shape), x.dtype), core)
        self._exponent = sequences.priority_exponent
        # With this eviction, the slots of the sequences, oldest first.
        self._order: deque[int] | None = deque() if sequences.eviction == "fifo" else None
        self.next = 0  # serial number of the next sequence

    def __len__(self) -> int:
        return self.places.capacity - self.places.free

    def insert(self, new: CutSequences, version: int, priorities: Array | None) -> Array:
        """Add n sequences; returns the rows of those that were evicted for them, `[m, Cut.rows]`.

        priorities: `[n]`. Without them, and where they are not finite or below 0, a sequence gets
        the highest priority in the replay.
        """
        count, highest = len(new.rows), self.tree.highest or 1.0
        powers = np.full(count, highest)
        if priorities is not None:
            valid = np.isfinite(priorities) & (priorities >= 0)
            powers[valid] = priorities[valid].astype(np.float64) ** self._exponent
        free = min(self.places.free, count)
        slots = self.places.take(free)[::-1]
        evicted = self.evict(count - free) if count > free else self.rows[:0]
        slots = np.concatenate([slots, self.places.take(count - free)])
        self.places.hold(slots)
        self.key[slots] = (self.next + np.arange(count)) * len(self.key) + slots
        self.rows[slots] = new.rows
        self._transitions[slots] = new.transitions
        self._version[slots] = version
        for x, states in zip(jax.tree.leaves(self._core), new.states, strict=True):
            x[slots] = states
        self.tree.insert(slots, powers)
        if self._order is not None:
            self._order.extend(slots.tolist())
        self.next += count
        return evicted

    def evict(self, count: int) -> Array:
        """Remove the `count` oldest sequences, or those of lowest priority; returns their rows."""
        slots = np.empty(count, np.int32)
        for i in range(count):
            if self._order is not None:
                slots[i] = self._order.popleft()
            else:
                slots[i] = self.tree.lowest()
                self.tree.remove(slots[i : i + 1])
        if self._order is not None:
            self.tree.remove(slots)
        self.key[slots] = -1
        self.places.held[slots] = 0
        self.places.give_back(slots)
        return self.rows[slots]

    def draw(self, size: int, rng: np.random.Generator) -> Drawn:
        """Draw with replacement. Raises ValueError if there are no sequences."""
        if len(self) and not self.tree.total > 0:  # no sequence has a positive priority
            self.tree.set(np.flatnonzero(self.key >= 0), 1.0)
        slots = self.tree.sample(size, rng)
        probabilities = self.tree.priorities()[slots] / self.tree.total
        return Drawn(
            self.key[slots],
            self.rows[slots],
            self._transitions[slots],
            self._version[slots],
            jax.tree.map(lambda x: x[slots], self._core),
            probabilities.astype(np.float32),
        )

    def find(self, keys: Array) -> tuple[Array, Array]:
        """The slots that `keys` `[B]` had when drawn, and whether they have them still, bool."""
        slots = keys % len(self.key)
        return slots, self.key[slots] == keys

    def transitions(self, slots: Array) -> Array:
        """The number of transitions of sequences, int32."""
        return self._transitions[slots]

    def prioritise(self, slots: Array, priorities: Array) -> None:
        """Set priorities `[n]`; those that are not finite change nothing."""
        powers = np.asarray(priorities, np.float64) ** self._exponent
        finite = np.isfinite(powers)
        self.tree.set(slots[finite], powers[finite])

    def save(self) -> dict[str, Array]:
        """The slots in use, their keys and priorities, and the order of the free ones."""
        slots = np.flatnonzero(self.key >= 0)
        return {
            "slots": slots,
            "keys": self.key[slots],
            "priorities": self.tree.priorities()[slots],
            "free": self.places.free_order(),
        }

    def restore(self, saved: PyTree) -> None:
        """Set the state that `save` returned; the contents have been loaded."""
        slots = saved["slots"]
        self.key[slots] = saved["keys"]
        self.tree.insert(slots, saved["priorities"])
        self.places.restore((self.key >= 0).astype(np.int32), saved["free"])
        if self._order is not None:
            self._order.extend(slots[np.argsort(saved["keys"])].tolist())

    def contents(self, slots: Array) -> dict[str, Array]:
        """The arrays to save."""
        return {str(i): x[slots] for i, x in enumerate(self._arrays())}

    def load(self, slots: Array, contents: dict[str, Array]) -> None:
        """The inverse of `contents`."""
        for i, x in enumerate(self._arrays()):
            x[slots] = contents[str(i)]

    def _arrays(self) -> list[Array]:
        return [self.rows, self._transitions, self._version, *jax.tree.leaves(self._core)]
