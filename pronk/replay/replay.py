"""The replay memory: what actors saw goes in, batches of sequences come out.

A row, and a frame, is stored once however many sequences contain it; it stays while a sequence or
a running episode holds it. All methods may be called from several threads: large copies are made
outside the lock, from rows that are held meanwhile.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from pronk.errors import UserError
from pronk.replay.sequences import Cut, Sequence, Stream
from pronk.replay.store import CompressedFrames, Places, RawFrames, Rows
from pronk.replay.sum_tree import SumTree
from pronk.types import Array, Batch, PyTree, Sequences, TimeStep, Trajectory

# Contents are saved in parts of so many places, so that no large copy of them is made.
PLACES_PER_PART = 1 << 12


class Part(NamedTuple):
    """Contents of a replay for one segment of its log."""

    segment: int
    store: str
    places: Array  # int32 [n]
    contents: dict[str, Array]


class _Source:
    """What an actor's trajectories are continued from."""

    def __init__(self, cut: Cut, width: int):
        self.streams = [Stream(cut) for _ in range(width)]
        self.last: dict[int, Array] = {}  # by stack: the last row's observations [B, k, H, W]
        self.last_rows: Array = np.zeros(width, np.int32)  # and its places

    def save(self) -> PyTree:
        """As dicts of arrays."""
        return {
            "last": {str(i): x for i, x in self.last.items()},
            "last_rows": self.last_rows,
            "streams": {str(b): stream.save() for b, stream in enumerate(self.streams)},
        }

    @staticmethod
    def restored(cut: Cut, saved: PyTree, core: PyTree) -> _Source:
        """Of what `save` gave; `core` has the recurrent states' structure."""
        source = _Source(cut, len(saved["streams"]))
        source.last = {int(i): x for i, x in saved["last"].items()}
        source.last_rows = saved["last_rows"]
        for b, stream in enumerate(source.streams):
            stream.restore(saved["streams"][str(b)], jax.tree.structure(core))
        return source


class _Items:
    """The sequences, by slot."""

    def __init__(self, capacity: int, cut: Cut, core: PyTree):
        self.places = Places(capacity)
        self.key = np.full(capacity, -1, np.int64)
        self.rows = np.zeros((capacity, cut.rows), np.int32)
        self.transitions = np.zeros(capacity, np.int32)
        self.version = np.zeros(capacity, np.int32)
        self.core = jax.tree.map(lambda x: np.empty((capacity, *x.shape), x.dtype), core)

    def put(self, slot: int, sequence: Sequence, version: int) -> None:
        self.rows[slot] = sequence.rows
        self.transitions[slot] = sequence.transitions
        self.version[slot] = version
        for i, x in enumerate(jax.tree.leaves(self.core)):
            # What is reset at an episode's first row may be anything.
            x[slot] = 0 if sequence.core is None else jax.tree.leaves(sequence.core)[i]

    def contents(self, slots: Array) -> dict[str, Array]:
        """For a file; `take_up` is the reverse."""
        return {str(i): x[slots] for i, x in enumerate(self._columns())}

    def take_up(self, slots: Array, contents: dict[str, Array]) -> None:
        """Put what `contents` gave."""
        for i, x in enumerate(self._columns()):
            x[slots] = contents[str(i)]

    def _columns(self) -> list[Array]:
        return [self.rows, self.transitions, self.version, *jax.tree.leaves(self.core)]


_Holder = Rows | _Items | RawFrames | CompressedFrames


class Replay:
    """Sequences of `spec`, drawn in proportion to (their priority) ^ `spec.priority_exponent`.

    New sequences have the highest priority there is. A sequence's key, int64, is never used again,
    so that a priority that comes late cannot touch what has taken its place.

    example: timestep, action and extras of one row of one environment, and the recurrent state
    before it, as trees of anything with a shape and a dtype.
    """

    def __init__(
        self, spec: Sequences, example: tuple[TimeStep, PyTree, dict[str, PyTree]], core: PyTree
    ):
        self.spec = spec
        self.cut = Cut(spec.burn_in, spec.length, spec.length - spec.overlap)
        self._lock = threading.Lock()
        # Episodes shorter than a sequence make more of them than one per stride.
        slots = 1 + 4 * spec.capacity // self.cut.stride
        self._tree = SumTree(slots)
        observations = len(jax.tree.leaves(example[0].observation))
        self._rows = Rows(spec.capacity, example, observations, spec.compress)
        self._items = _Items(slots, self.cut, core)
        self._order: deque[int] = deque()  # the slots of sequences, oldest first, if that matters
        self._sources: dict[int, _Source] = {}
        self._ended: set[int] = set()  # sources that were forgotten
        self._segments = 0  # parts saved
        self._next = 0  # serial number of the next sequence
        self.inserted = 0  # sequences, in all
        self.sampled = 0
        self.stale = 0  # priorities that came too late
        self.transitions = 0  # agent steps seen

    def __len__(self) -> int:
        """Sequences that can be drawn."""
        return self._items.places.capacity - self._items.places.free

    # In: one thread per source.

    def add(self, source: int, trajectory: Trajectory) -> int:
        """Go on with what `source`, one actor, saw; returns how many sequences that completed.

        trajectory: leaves `[T + 1, B, ...]`, NumPy; row T comes again as row 0 of the next one of
        this source. Raises UserError if the running episodes alone fill the memory.
        """
        leaves = [x[:-1] for x in jax.tree.leaves(trajectory[:3])]
        first = np.asarray(trajectory.timestep.first)
        steps, width = first.shape[0] - 1, first.shape[1]
        with self._lock:
            if source in self._ended:
                return 0
            if source not in self._sources:
                self._sources[source] = _Source(self.cut, width)
        store, state = self._rows, self._sources[source]
        shared = {
            i: stack.shared(leaves[i], state.last.get(i)) for i, stack in store.stacks.items()
        }
        frames = {i: stack.wanted(shared[i]) for i, stack in store.stacks.items()}
        with self._lock:
            self._make_room(steps * width, frames)
            places = store.places.take(steps * width).reshape(steps, width)
            new = {i: store.stacks[i].places.take(n) for i, n in frames.items()}
        store.write(places, leaves)
        for i, stack in store.stacks.items():
            before = stack.of_row[state.last_rows]
            stack.frames.put(new[i], leaves[i][stack.link(places, shared[i], new[i], before)])
            state.last[i] = leaves[i][-1].copy()
        state.last_rows = places[-1]
        with self._lock:
            if source in self._ended:  # meanwhile; what the new rows share may be gone already
                store.places.give_back(places.reshape(-1))
                for i, stack in store.stacks.items():
                    stack.places.give_back(new[i])
                return 0
            store.places.hold(places.reshape(-1))
            for stack in store.stacks.values():
                stack.places.hold(stack.of_row[places].reshape(-1))
            count, cores = 0, self._start_cores(trajectory)
            for b, stream in enumerate(state.streams):
                for sequences, done in self._cut(stream, places[:, b], first[:-1, b], cores[b]):
                    self._take_up(sequences, int(trajectory.version[b]))
                    if done:
                        store.release(np.array(done, np.int32))
                    count += len(sequences)
            self.inserted += count
            self.transitions += int(first[1:].size - first[1:].sum())
        return count

    def forget(self, source: int) -> None:
        """What `source` had begun is dropped, and what it may still bring is not taken up."""
        with self._lock:
            self._ended.add(source)
            if source in self._sources:
                for stream in self._sources.pop(source).streams:
                    self._rows.release(np.array(stream.rows, np.int32))

    def _cut(
        self, stream: Stream, places: Array, first: Array, cores: dict[int, PyTree]
    ) -> Iterator[tuple[list[Sequence], list[int]]]:
        """Extend a column's stream, cut where episodes begin unless sequences cross them; yields
        complete sequences, and rows that the stream needs no more. cores: by row of the unroll."""
        begin = np.zeros_like(first) if self.spec.cross_episodes else first
        for start, stop in itertools.pairwise(
            [0, *(np.flatnonzero(begin[1:]) + 1).tolist(), len(places)]
        ):
            if begin[start]:
                yield stream.close()
            begun = stream.end - start
            here = {begun + t: core for t, core in cores.items() if start <= t < stop}
            yield stream.extend(places[start:stop].tolist(), here)

    def _start_cores(self, trajectory: Trajectory) -> list[dict[int, PyTree]]:
        """For each column the recurrent states where sequences start, by row of the unroll."""
        width = trajectory.version.shape[0]

        def at(tree: PyTree, i: int) -> PyTree:
            return jax.tree.map(lambda x: np.asarray(x[i]).copy(), tree)

        if self.spec.cross_episodes:  # sequences are unrolls
            return [{0: at(trajectory.core, b)} for b in range(width)]
        cores: list[dict[int, PyTree]] = [{} for _ in range(width)]
        if trajectory.starts is not None:
            rows, slots, states = trajectory.starts
            for i, (row, slot) in enumerate(zip(rows.tolist(), slots.tolist(), strict=True)):
                cores[slot][row] = at(states, i)
        return cores

    def _take_up(self, sequences: list[Sequence], version: int) -> None:
        """Store sequences, with the highest priority there is."""
        items = self._items
        top = self._tree.priorities().max() if sequences else 0.0
        for sequence in sequences:
            if items.places.free == 0:
                self._evict()
            places = items.places.take(1)
            slot = int(places[0])
            items.places.hold(places)
            items.key[slot] = self._next * self._tree.capacity + slot
            items.put(slot, sequence, version)
            self._rows.places.hold(items.rows[slot])
            self._tree.set(places, np.array([top or 1.0]))
            if self.spec.eviction == "fifo":
                self._order.append(slot)
            self._next += 1

    def _make_room(self, rows: int, frames: dict[int, int]) -> None:
        store = self._rows
        while store.places.free < rows or any(
            store.stacks[i].places.free < n for i, n in frames.items()
        ):
            if len(self) == 0:
                raise UserError(
                    f"`--replay-capacity` is {self.spec.capacity}, which the running episodes of"
                    " all environments fill alone; give a larger one, or fewer environments."
                )
            self._evict()

    def _evict(self) -> None:
        """Forget the oldest sequence, or the one of lowest priority."""
        items = self._items
        if self.spec.eviction == "fifo":
            slot = self._order.popleft()
        else:
            slot = int(np.where(items.key >= 0, self._tree.priorities(), np.inf).argmin())
        items.key[slot] = -1
        one = np.array([slot], np.int32)
        self._tree.set(one, np.zeros(1))
        items.places.release(one)
        self._rows.release(items.rows[slot])

    # Out.

    def sample(self, size: int, rng: np.random.Generator) -> tuple[Batch, Array]:
        """`size` sequences as one trajectory `[burn_in + length + 1, size, ...]`, and their keys.

        Rows behind an episode's end are `first`, so that they weigh nothing, and repeat its last
        row; rows before its beginning repeat its first one, which resets what came before.
        `core` is the recurrent state before row 0; `probabilities` are those of the draw. Raises
        ValueError if there is nothing to draw.
        """
        with self._lock:
            items, store = self._items, self._rows
            if len(self) and not self._tree.total > 0:  # nothing is surprising any more
                self._tree.set(np.flatnonzero(items.key >= 0), np.ones(len(self)))
            slots = self._tree.sample(size, rng)
            probabilities = self._tree.priorities()[slots] / self._tree.total
            keys, rows = items.key[slots], items.rows[slots]
            transitions, version = items.transitions[slots], items.version[slots]
            core = jax.tree.map(lambda x: x[slots], items.core)
            store.places.hold(rows.reshape(-1))
            self.sampled += size
        try:
            timestep, action, extras = store.get(rows.T)
        finally:
            with self._lock:
                store.release(rows.reshape(-1))
        behind = np.arange(self.cut.rows)[:, None] > self.cut.burn_in + transitions
        timestep = timestep._replace(
            first=timestep.first | behind,
            terminated=timestep.terminated & ~behind,
            truncated=timestep.truncated & ~behind,
            reward=np.where(behind, 0, timestep.reward),
        )
        trajectory = Trajectory(timestep, action, extras, core, version)
        return Batch(trajectory, probabilities.astype(np.float32)), keys

    def update(self, keys: Array, priorities: Array) -> None:
        """New priorities, at least 0, of the sequences `keys`, int64 `[B]`.

        Those of sequences that are gone, and those that are not finite, change nothing.
        """
        priorities = np.asarray(priorities, np.float64) ** self.spec.priority_exponent
        slots = np.asarray(keys) % self._tree.capacity
        with self._lock:
            here = self._items.key[slots] == keys
            self.stale += int((~here).sum())
            here &= np.isfinite(priorities)
            self._tree.set(slots[here], priorities[here])

    # Saved and restored: contents once, when they are new, and a little that says what counts.

    def full_part(self) -> Part | None:
        """Contents that are in no segment yet, if there are enough of one kind for a whole one."""
        with self._lock:
            for name, places, holder in self._stores():
                new = places.unsaved()
                if len(new) >= PLACES_PER_PART:
                    return self._part(name, places, holder, new[:PLACES_PER_PART])
        return None

    def save(self) -> tuple[PyTree, list[Part], set[int]]:
        """What is here, without the contents; those contents that are in no segment yet; and the
        numbers of the segments that are still needed."""
        with self._lock:
            parts = []
            needed: set[int] = set()
            for name, places, holder in self._stores():
                new = places.unsaved()
                for begin in range(0, len(new), PLACES_PER_PART):
                    some = new[begin : begin + PLACES_PER_PART]
                    parts.append(self._part(name, places, holder, some))
                needed |= set(np.unique(places.segment[places.held > 0]).tolist())
            slots = np.flatnonzero(self._items.key >= 0)
            counts = [self._next, self.inserted, self.sampled, self.stale, self.transitions]
            tree = {
                "next_segment": np.int64(self._segments),
                "counts": np.array(counts, np.int64),
                "slots": slots,
                "keys": self._items.key[slots],
                "priorities": self._tree.priorities()[slots],
                "free": self._items.places.order(),
                "sources": {str(i): source.save() for i, source in self._sources.items()},
            }
        return tree, parts, needed

    def _part(self, name: str, places: Places, holder: _Holder, some: Array) -> Part:
        part = Part(self._segments, name, some, holder.contents(some))
        places.segment[some] = part.segment
        self._segments += 1
        return part

    def restore(self, tree: PyTree, parts: Iterable[Part], *, episodes: bool) -> None:
        """Be what `save` told; `parts` in the order of their segments. Call it before anything
        else.

        episodes: whether the running episodes go on; otherwise what they had is dropped, but for
        the sequences that were complete.
        """
        stores = {name: (places, holder) for name, places, holder in self._stores()}
        for part in parts:
            places, holder = stores[part.store]
            holder.take_up(part.places, part.contents)
            places.segment[part.places] = part.segment
        items, slots = self._items, tree["slots"]
        items.key[slots] = tree["keys"]
        self._tree.set(slots, tree["priorities"])
        items.places.restore((items.key >= 0).astype(np.int32), tree["free"])
        if self.spec.eviction == "fifo":
            self._order.extend(slots[np.argsort(tree["keys"])].tolist())
        self._segments = int(tree["next_segment"])
        self._next, self.inserted, self.sampled, self.stale, self.transitions = (
            int(x) for x in tree["counts"]
        )
        if episodes:
            for name, saved in tree["sources"].items():
                self._sources[int(name)] = _Source.restored(self.cut, saved, items.core)
        held = np.zeros(self._rows.places.capacity, np.int32)
        np.add.at(held, items.rows[slots].reshape(-1), 1)
        for source in self._sources.values():
            for stream in source.streams:
                np.add.at(held, np.array(stream.rows, np.int32), 1)
        self._rows.places.restore(held)
        for stack in self._rows.stacks.values():
            shown = np.zeros(stack.places.capacity, np.int32)
            np.add.at(shown, stack.of_row[held > 0].reshape(-1), 1)
            stack.places.restore(shown)

    def _stores(self) -> list[tuple[str, Places, _Holder]]:
        stacks = self._rows.stacks.items()
        return [
            ("rows", self._rows.places, self._rows),
            ("items", self._items.places, self._items),
            *((f"frames{i}", stack.places, stack.frames) for i, stack in stacks),
        ]
