"""Rows of experience, and the frames of stacked pixels, each kept once and counted."""

from __future__ import annotations

import zlib

import jax
import numpy as np

from pronk.types import Array, PyTree


class Places:
    """Numbered places, and how often each is held; those that nobody holds are free."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.held = np.zeros(capacity, np.int32)
        self.segment = np.full(capacity, -1, np.int32)  # of the log that has it; -1: none has
        self._stack = np.arange(capacity, dtype=np.int32)[::-1].copy()
        self.free = capacity

    def take(self, count: int) -> Array:
        """So many free places, int32 `[count]`, not held yet; the caller makes sure of `free`."""
        self.free -= count
        taken = self._stack[self.free : self.free + count].copy()
        self.segment[taken] = -1
        return taken

    def unsaved(self) -> Array:
        """What is held and in no segment, int32 `[n]`."""
        return np.flatnonzero((self.held > 0) & (self.segment < 0)).astype(np.int32)

    def hold(self, places: Array) -> None:
        """Once more, for each time that a place is named."""
        np.add.at(self.held, places, 1)

    def release(self, places: Array) -> Array:
        """Once less; returns those that are free now."""
        np.subtract.at(self.held, places, 1)
        gone = np.unique(places[self.held[places] == 0])
        self.give_back(gone)
        return gone

    def give_back(self, places: Array) -> None:
        """Free places that nobody holds: after `take`, if they are not needed."""
        self._stack[self.free : self.free + len(places)] = places
        self.free += len(places)

    def order(self) -> Array:
        """The free places in the order in which `take` would give them, the last first."""
        return self._stack[: self.free].copy()

    def restore(self, held: Array, order: Array | None = None) -> None:
        """Hold as `held` says, and give what is free in this `order`, or in any."""
        self.held[:] = held
        if order is None:
            order = np.flatnonzero(held == 0)[::-1]
        self.free = len(order)
        self._stack[: self.free] = order


class RawFrames:
    """Frames as they are."""

    def __init__(self, capacity: int, shape: tuple[int, ...]):
        # Not written until used: the system gives the memory then.
        self._frames = np.empty((capacity, *shape), np.uint8)

    def put(self, places: Array, frames: Array) -> None:
        self._frames[places] = frames

    def get(self, places: Array) -> Array:
        """`[n, ...]` for places `[n]`."""
        return self._frames.take(places, axis=0)

    def contents(self, places: Array) -> dict[str, Array]:
        """For a file; `take_up` is the reverse."""
        return {"frames": self._frames[places]}

    def take_up(self, places: Array, contents: dict[str, Array]) -> None:
        """Put what `contents` gave."""
        self._frames[places] = contents["frames"]


class CompressedFrames:
    """Frames packed by zlib's fastest level: about a seventh of the size on Atari, at 50 times
    the cost of copying."""

    def __init__(self, capacity: int, shape: tuple[int, ...]):
        self._shape = shape
        self._frames: list[bytes] = [b""] * capacity

    def put(self, places: Array, frames: Array) -> None:
        for place, frame in zip(places, frames, strict=True):
            self._frames[place] = zlib.compress(frame.tobytes(), 1)

    def get(self, places: Array) -> Array:
        """`[n, ...]` for places `[n]`."""
        result = np.empty((len(places), *self._shape), np.uint8)
        unique, inverse = np.unique(places, return_inverse=True)
        unpacked = [zlib.decompress(self._frames[place]) for place in unique]
        for i, j in enumerate(inverse):
            result[i] = np.frombuffer(unpacked[j], np.uint8).reshape(self._shape)
        return result

    def contents(self, places: Array) -> dict[str, Array]:
        """For a file; `take_up` is the reverse."""
        packed = [self._frames[place] for place in places]
        return {
            "packed": np.frombuffer(b"".join(packed), np.uint8),
            "sizes": np.array([len(x) for x in packed], np.int32),
        }

    def take_up(self, places: Array, contents: dict[str, Array]) -> None:
        """Put what `contents` gave."""
        packed, ends = contents["packed"].tobytes(), np.cumsum(contents["sizes"])
        for place, end, size in zip(places, ends, contents["sizes"], strict=True):
            self._frames[place] = packed[end - size : end]


class Stacks:
    """One leaf of the observations, uint8 `[k, H, W]`: the newest k frames, oldest first.

    A row's stack shares all but its newest frame with the row before, which is checked, not
    assumed; where it doesn't (an episode begins, the leaf is no stack) all k are stored.
    """

    def __init__(self, rows: int, shape: tuple[int, ...], compress: bool):
        self.depth = shape[0]
        # Each episode brings a whole stack, so a little more than one frame per row.
        capacity = rows + rows // 16 + 64 * self.depth
        self.frames = (CompressedFrames if compress else RawFrames)(capacity, shape[1:])
        self.places = Places(capacity)
        self.of_row = np.zeros((rows, self.depth), np.int32)

    def shared(self, x: Array, before: Array | None) -> Array:
        """Whether each row of x `[T, B, k, H, W]` continues the one before, bool `[T, B]`.

        before: row -1, `[B, k, H, W]`.
        """
        result = np.zeros(x.shape[:2], np.bool_)
        for t in range(len(x)):
            if before is not None:
                result[t] = (x[t, :, :-1] == before[:, 1:]).all(axis=(1, 2, 3))
            before = x[t]
        return result

    def wanted(self, shared: Array) -> int:
        """How many frames rows `[T, B]` bring."""
        return int(np.where(shared, 1, self.depth).sum())

    def link(self, rows: Array, shared: Array, new: Array, before: Array) -> tuple[Array, ...]:
        """Give each row of `[T, B]` its frames; returns where in x `[T, B, k, …]` the `new` are.

        before: the frames of row -1, int32 `[B, k]`.
        """
        at: list[tuple[Array, Array, Array]] = []
        used = 0
        steps, width = shared.shape
        for t in range(steps):
            fresh = np.flatnonzero(~shared[t])
            going = np.flatnonzero(shared[t])
            now = np.empty((width, self.depth), np.int32)
            now[going, :-1] = before[going, 1:]
            now[going, -1] = new[used : used + len(going)]
            used += len(going)
            now[fresh] = new[used : used + len(fresh) * self.depth].reshape(-1, self.depth)
            used += len(fresh) * self.depth
            at.append((np.full(len(going), t), going, np.full(len(going), self.depth - 1)))
            slots, planes = np.repeat(fresh, self.depth), np.tile(np.arange(self.depth), len(fresh))
            at.append((np.full(len(slots), t), slots, planes))
            self.of_row[rows[t]] = now
            before = now
        return tuple(np.concatenate(x) for x in zip(*at, strict=True))

    def get(self, rows: Array) -> Array:
        """Stacks `[*rows.shape, k, H, W]`."""
        places = self.of_row[rows]
        found = self.frames.get(places.reshape(-1))
        return found.reshape(*places.shape, *found.shape[1:])


class Rows:
    """Rows of trajectories by place: what was seen, decided, and noted.

    Made for rows like `example`, a tree of what has a shape and a dtype, of which the first
    `observations` leaves are observations.
    """

    def __init__(self, capacity: int, example: PyTree, observations: int, compress: bool):
        self.places = Places(capacity)
        self._structure = jax.tree.structure(example)
        self.columns: list[np.ndarray | Stacks] = []
        for i, x in enumerate(jax.tree.leaves(example)):
            if i < observations and np.dtype(x.dtype) == np.uint8 and len(x.shape) == 3:
                self.columns.append(Stacks(capacity, x.shape, compress))
            else:
                self.columns.append(np.empty((capacity, *x.shape), x.dtype))
        self.stacks = {i: c for i, c in enumerate(self.columns) if isinstance(c, Stacks)}

    def write(self, rows: Array, leaves: list[Array]) -> None:
        """Put leaves `[T, B, ...]` at places `[T, B]`, but for the stacks, which are linked."""
        for column, leaf in zip(self.columns, leaves, strict=True):
            if not isinstance(column, Stacks):
                column[rows] = leaf

    def release(self, rows: Array) -> None:
        """Hold these places once less; frames that no row shows any more are free then."""
        gone = self.places.release(rows)
        for stack in self.stacks.values():
            stack.places.release(stack.of_row[gone].reshape(-1))

    def contents(self, rows: Array) -> dict[str, Array]:
        """For a file; `take_up` is the reverse. The frames themselves are not among it."""
        return {
            str(i): (c.of_row if isinstance(c, Stacks) else c)[rows]
            for i, c in enumerate(self.columns)
        }

    def take_up(self, rows: Array, contents: dict[str, Array]) -> None:
        """Put what `contents` gave."""
        for i, c in enumerate(self.columns):
            (c.of_row if isinstance(c, Stacks) else c)[rows] = contents[str(i)]

    def get(self, rows: Array) -> PyTree:
        """What is at places `[T, B]`, leaves `[T, B, ...]`, copied."""
        leaves = [c.get(rows) if isinstance(c, Stacks) else c[rows] for c in self.columns]
        return jax.tree.unflatten(self._structure, leaves)
