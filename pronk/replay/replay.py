"""The replay: actors insert trajectories, the learner draws batches of sequences.

Rows and frames are stored once, however many sequences contain them, for as long as a sequence or
a running episode does. All methods may be called from several threads: large copies are made
outside the lock, of rows whose reference counts keep them from being overwritten meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import jax
import numpy as np

from pronk.replay.contents import Contents
from pronk.replay.parts import Part
from pronk.replay.sequences import Source
from pronk.types import Array, Batch, Feedback, PyTree, Sequences, TimeStep, Trajectory


class Replay:
    """Sequences of `spec`, drawn in proportion to (their priority) ^ `spec.priority_exponent`.

    A sequence's key, int64, is never used again, so that feedback that arrives late cannot change
    the sequence that has taken its place.

    example: timestep, action and extras of one row of one environment, and core, the recurrent
    state before it, as trees of anything with a shape and a dtype.
    """

    def __init__(
        self, spec: Sequences, example: tuple[TimeStep, PyTree, dict[str, PyTree]], core: PyTree
    ):
        self.spec, self._core = spec, core
        self._lock = threading.Lock()
        self._contents = Contents(spec, example, core)
        self._sources: dict[int, Source] = {}
        self._forgotten: set[int] = set()  # sources
        self.inserted = 0  # sequences, in all
        self.sampled = 0
        self.stale = 0  # sequences that had been evicted when their feedback arrived
        self.transitions = 0  # agent steps inserted

    def __len__(self) -> int:
        """The number of sequences that can be drawn."""
        return len(self._contents.items)

    def add(self, source: int, trajectory: Trajectory) -> int:
        """Insert the next trajectory of `source`, one actor; returns the number of new sequences.

        trajectory: leaves `[T + 1, B, ...]`, NumPy; row T is row 0 of the next one. A source must
        be added to by one thread at a time. Raises UserError if the running episodes alone fill the
        replay.

        Actors compare and copy frames at the same time, because the lock is held only to reserve
        places for rows and frames, and, once these are written, to cut the rows into sequences.
        Between the two no sequence refers to the reserved places, and no other thread gets them.
        """
        leaves = [x[:-1] for x in jax.tree.leaves(trajectory[:3])]
        first = np.asarray(trajectory.timestep.first)
        steps, width = first.shape[0] - 1, first.shape[1]
        rows = self._contents.rows
        with self._lock:
            if source in self._forgotten:
                return 0
            if source not in self._sources:
                self._sources[source] = self._new_source(first[0])
            state = self._sources[source]
        continues = rows.compare(leaves, state.last)
        with self._lock:
            self._contents.make_room(steps * width, continues)
            reserved = rows.reserve(steps, width, continues)
        rows.write(reserved, leaves, state.last_rows)
        state.last = {i: leaves[i][-1].copy() for i in rows.stacks}
        state.last_rows = reserved.rows[-1]
        with self._lock:
            if source in self._forgotten:  # and frames shared with its earlier rows may be freed
                rows.cancel(reserved)
                return 0
            rows.hold(reserved)
            count = self._contents.insert(state, trajectory, reserved.rows)
            self.inserted += count
            self.transitions += int(first[1:].size - first[1:].sum())
        return count

    def _new_source(self, first: Array) -> Source:
        return Source(self.spec, self._contents.cut, self._core, first)

    def forget(self, source: int) -> None:
        """Drop the running episodes of `source`, and ignore what it adds from now on."""
        with self._lock:
            self._forgotten.add(source)
            if source in self._sources:
                self._contents.rows.release(self._sources.pop(source).rows())

    def sample(self, size: int, rng: np.random.Generator) -> tuple[Batch, Array]:
        """Draw `size` sequences as one trajectory `[burn_in + length + 1, size, ...]`, and their
        keys.

        Rows after an episode's end repeat its last row and are `first`, so that they have no
        weight; rows before its beginning repeat its first row, which resets the state before it.
        Raises ValueError if there is nothing to draw.
        """
        rows = self._contents.rows
        with self._lock:
            drawn = self._contents.items.draw(size, rng)
            extras = rows.read_extras(drawn.rows.T)  # which `revise` may change
            rows.places.hold(drawn.rows.reshape(-1))
            self.sampled += size
        try:
            timestep, action = rows.read(drawn.rows.T)
        finally:
            with self._lock:
                rows.release(drawn.rows.reshape(-1))
        timestep = self._contents.mask_padding(timestep, drawn)
        trajectory = Trajectory(timestep, action, extras, drawn.core, drawn.version)
        return Batch(trajectory, drawn.probabilities), drawn.keys

    def revise(self, keys: Array, feedback: Feedback) -> None:
        """Apply what `learn` returned for the sequences `keys`, int64 `[B]`, drawn by `sample`.

        Sequences that have been evicted, priorities that are not finite and rows that are padding
        are left out. A row that several sequences share is revised for all of them. Raises
        ValueError for extras that the rows do not have.
        """
        feedback = jax.tree.map(np.asarray, feedback)
        with self._lock:
            self.stale += self._contents.revise(np.asarray(keys), feedback)

    def full_part(self) -> Part | None:
        """Contents to save before the next checkpoint, if there are enough for a whole part."""
        with self._lock:
            return self._contents.parts.full()

    def save(self) -> tuple[PyTree, list[Part], set[int]]:
        """The state without the contents; the contents that are in no segment yet; and the numbers
        of the segments that are still needed."""
        with self._lock:
            tree, parts, needed = self._contents.save()
            counts = [self._contents.items.next, self.inserted, self.sampled, self.stale]
            tree["counts"] = np.array([*counts, self.transitions], np.int64)
            tree["sources"] = {str(i): source.save() for i, source in self._sources.items()}
        return tree, parts, needed

    def restore(self, tree: PyTree, parts: Iterable[Part], *, episodes: bool) -> None:
        """Set the state that `save` returned, of an empty replay; `parts` are in the order of their
        segments.

        episodes: whether the running episodes continue. Otherwise only their complete sequences are
        kept.
        """
        if episodes:
            for name, saved in tree["sources"].items():
                source = self._new_source(np.zeros(len(saved["streams"]), np.bool_))
                source.restore(saved)
                self._sources[int(name)] = source
        self._contents.restore(tree, parts, self._sources.values())
        counts = (int(x) for x in tree["counts"])
        items = self._contents.items
        items.next, self.inserted, self.sampled, self.stale, self.transitions = counts
