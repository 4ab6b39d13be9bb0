"""Frames of stacked pixels, each stored once."""

from __future__ import annotations

import zlib

import numpy as np

from pronk.replay.places import Places
from pronk.types import Array


class RawFrames:
    """Frames as they are."""

    def __init__(self, capacity: int, shape: tuple[int, ...]):
        # The system allocates the memory of an empty array when it is written.
        self._frames = np.empty((capacity, *shape), np.uint8)

    def write(self, places: Array, frames: Array) -> None:
        self._frames[places] = frames

    def read(self, places: Array) -> Array:
        """`[n, ...]` for places `[n]`."""
        return self._frames.take(places, axis=0)

    def contents(self, places: Array) -> dict[str, Array]:
        """The arrays to save."""
        return {"frames": self._frames[places]}

    def load(self, places: Array, contents: dict[str, Array]) -> None:
        """The inverse of `contents`."""
        self._frames[places] = contents["frames"]


class CompressedFrames:
    """Frames compressed by zlib at its fastest level: about a seventh of the size on Atari, at 50
    times the cost of copying."""

    def __init__(self, capacity: int, shape: tuple[int, ...]):
        self._shape = shape
        self._frames: list[bytes] = [b""] * capacity

    def write(self, places: Array, frames: Array) -> None:
        for place, frame in zip(places, frames, strict=True):
            self._frames[place] = zlib.compress(frame.tobytes(), 1)

    def read(self, places: Array) -> Array:
        """`[n, ...]` for places `[n]`."""
        result = np.empty((len(places), *self._shape), np.uint8)
        unique, inverse = np.unique(places, return_inverse=True)
        unpacked = [zlib.decompress(self._frames[place]) for place in unique]
        for i, j in enumerate(inverse):
            result[i] = np.frombuffer(unpacked[j], np.uint8).reshape(self._shape)
        return result

    def contents(self, places: Array) -> dict[str, Array]:
        """The arrays to save."""
        packed = [self._frames[place] for place in places]
        return {
            "packed": np.frombuffer(b"".join(packed), np.uint8),
            "sizes": np.array([len(x) for x in packed], np.int32),
        }

    def load(self, places: Array, contents: dict[str, Array]) -> None:
        """The inverse of `contents`."""
        packed, ends = contents["packed"].tobytes(), np.cumsum(contents["sizes"])
        for place, end, size in zip(places, ends, contents["sizes"], strict=True):
            self._frames[place] = packed[end - size : end]


class Stacks:
    """One leaf of the observations, uint8 `[k, H, W]`: the newest k frames, oldest first.

    If a row's stack continues that of the row before, only its newest frame is stored; otherwise
    (an episode begins, or the leaf is no stack) all k are. This is checked by comparing pixels.
    """

    def __init__(self, rows: int, shape: tuple[int, ...], compress: bool):
        self.depth = shape[0]
        # Each episode begins with a whole stack, so a little more than one frame per row.
        capacity = rows + rows // 16 + 64 * self.depth
        self.frames = (CompressedFrames if compress else RawFrames)(capacity, shape[1:])
        self.places = Places(capacity)  # of frames
        self.of_row = np.zeros((rows, self.depth), np.int32)  # the frames of each row

    def continues(self, x: Array, before: Array | None) -> Array:
        """Whether each row of x `[T, B, k, H, W]` continues the one before, bool `[T, B]`.

        before: row −1, `[B, k, H, W]`.
        """
        result = np.zeros(x.shape[:2], np.bool_)
        for t in range(len(x)):
            if before is not None:
                result[t] = (x[t, :, :-1] == before[:, 1:]).all(axis=(1, 2, 3))
            before = x[t]
        return result

    def num_new(self, continues: Array) -> int:
        """The number of frames that rows `[T, B]` add."""
        return int(np.where(continues, 1, self.depth).sum())

    def write(self, rows: Array, x: Array, continues: Array, new: Array, before: Array) -> None:
        """Store the new frames of x `[T, B, k, H, W]`, of `rows` `[T, B]`, at places `new`.

        before: the last row's place of the previous unroll, int32 `[B]`.
        """
        self.frames.write(new, x[self._link(rows, continues, new, self.of_row[before])])

    def _link(self, rows: Array, continues: Array, new: Array, before: Array) -> tuple[Array, ...]:
        """Set the frames of each row; returns the indices of the `new` frames in x, `[T, B, k]`.

        before: the frames of row −1, int32 `[B, k]`.
        """
        at: list[tuple[Array, Array, Array]] = []
        used = 0
        steps, width = continues.shape
        for t in range(steps):
            whole = np.flatnonzero(~continues[t])
            newest = np.flatnonzero(continues[t])
            now = np.empty((width, self.depth), np.int32)
            now[newest, :-1] = before[newest, 1:]
            now[newest, -1] = new[used : used + len(newest)]
            used += len(newest)
            now[whole] = new[used : used + len(whole) * self.depth].reshape(-1, self.depth)
            used += len(whole) * self.depth
            at.append((np.full(len(newest), t), newest, np.full(len(newest), self.depth - 1)))
            slots, planes = np.repeat(whole, self.depth), np.tile(np.arange(self.depth), len(whole))
            at.append((np.full(len(slots), t), slots, planes))
            self.of_row[rows[t]] = now
            before = now
        return tuple(np.concatenate(x) for x in zip(*at, strict=True))

    def read(self, rows: Array) -> Array:
        """Stacks `[*rows.shape, k, H, W]`."""
        places = self.of_row[rows]
        frames = self.frames.read(places.reshape(-1))
        return frames.reshape(*places.shape, *frames.shape[1:])

    def contents(self, places: Array) -> dict[str, Array]:
        """The arrays to save, of frames."""
        return self.frames.contents(places)

    def load(self, places: Array, contents: dict[str, Array]) -> None:
        """The inverse of `contents`."""
        self.frames.load(places, contents)
