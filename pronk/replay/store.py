"""Rows of trajectories, each stored once and reference-counted, as are the frames they show."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from pronk.replay.frames import Stacks
from pronk.replay.places import Places
from pronk.types import Array, PyTree


class Reservation(NamedTuple):
    """Places for the rows of an unroll that are not held yet, and what they will show."""

    rows: Array  # int32 [T, B]
    continues: dict[int, Array]  # by stack: bool [T, B], see `Stacks.continues`
    frames: dict[int, Array]  # by stack: places of the new frames, int32 [n]


class Rows:
    """Timestep, action and extras of each row, by place.

    example: these three for one row of one environment, trees of anything with a shape and a
    dtype.
    """

    def __init__(self, capacity: int, example: PyTree, compress: bool):
        self.places = Places(capacity)
        leaves, self._structure = jax.tree.flatten(example)
        observations = len(jax.tree.leaves(example[0].observation))  # the first leaves
        self.columns: list[np.ndarray | Stacks] = []
        for i, x in enumerate(leaves):
            if i < observations and np.dtype(x.dtype) == np.uint8 and len(x.shape) == 3:
                self.columns.append(Stacks(capacity, x.shape, compress))
            else:
                self.columns.append(np.empty((capacity, *x.shape), x.dtype))
        self.stacks = {i: c for i, c in enumerate(self.columns) if isinstance(c, Stacks)}
        self._extras = jax.tree.unflatten(self._structure, self.columns)[2]

    def compare(self, leaves: list[Array], last: dict[int, Array]) -> dict[int, Array]:
        """By stack, whether each row `[T, B]` continues the one before; last: those of row −1."""
        return {i: stack.continues(leaves[i], last.get(i)) for i, stack in self.stacks.items()}

    def shortage(self, rows: int, continues: dict[int, Array], per_sequence: int) -> int:
        """The number of sequences of `per_sequence` rows that must be evicted at least to make
        room; 0 if nothing must be."""
        missing = [(rows - self.places.free, per_sequence)]
        for i, stack in self.stacks.items():
            frames = stack.num_new(continues[i]) - stack.places.free
            missing.append((frames, per_sequence * stack.depth))
        return max(0, *(-(-count // each) for count, each in missing))

    def reserve(self, steps: int, width: int, continues: dict[int, Array]) -> Reservation:
        """Take places that nobody else will get; the caller makes room before."""
        rows = self.places.take(steps * width).reshape(steps, width)
        frames = {i: s.places.take(s.num_new(continues[i])) for i, s in self.stacks.items()}
        return Reservation(rows, continues, frames)

    def cancel(self, reserved: Reservation) -> None:
        """Give reserved places back."""
        self.places.give_back(reserved.rows.reshape(-1))
        for i, stack in self.stacks.items():
            stack.places.give_back(reserved.frames[i])

    def write(self, reserved: Reservation, leaves: list[Array], before: Array) -> None:
        """Store leaves `[T, B, ...]`; before: the place of row −1, int32 `[B]`."""
        for i, (column, leaf) in enumerate(zip(self.columns, leaves, strict=True)):
            if isinstance(column, Stacks):
                column.write(reserved.rows, leaf, reserved.continues[i], reserved.frames[i], before)
            else:
                column[reserved.rows] = leaf

    def hold(self, reserved: Reservation) -> None:
        """Count reserved rows and their frames as held once."""
        self.places.hold(reserved.rows.reshape(-1))
        for stack in self.stacks.values():
            stack.places.hold(stack.of_row[reserved.rows].reshape(-1))

    def release(self, rows: Array) -> None:
        """Hold rows once less; frames that no row shows any more are freed."""
        freed = self.places.release(rows)
        if not len(freed):
            return
        for stack in self.stacks.values():
            stack.places.release(stack.of_row[freed].reshape(-1))

    def read(self, rows: Array) -> tuple[PyTree, PyTree]:
        """Timestep and action at places `[T, B]`, leaves `[T, B, ...]`, copied."""
        columns = jax.tree.unflatten(self._structure, self.columns)[:2]
        return jax.tree.map(lambda c: c.read(rows) if isinstance(c, Stacks) else c[rows], columns)

    def read_extras(self, rows: Array) -> dict[str, PyTree]:
        """Extras at places `[T, B]`, leaves `[T, B, ...]`, copied."""
        return jax.tree.map(lambda column: column[rows], self._extras)

    def priorities(self, rows: Array) -> Array | None:
        """`extras["priority"]`, if the agent has it."""
        return self._extras["priority"][rows] if "priority" in self._extras else None

    def revise(self, rows: Array, extras: dict[str, Array]) -> None:
        """Overwrite these extras at places `[n]` with leaves `[n, ...]`; of a place that occurs
        several times the last value counts. Raises ValueError for extras that rows do not have."""
        unknown = extras.keys() - self._extras.keys()
        if unknown:
            raise ValueError(
                f"feedback has extras {sorted(unknown)}; expected some of those that"
                f" `act` returns: {sorted(self._extras)}."
            )
        for name, value in extras.items():
            self._extras[name][rows] = value
        self.places.revised(rows)

    def restore(self, held: Array) -> None:
        """Set how often each row is held; the contents have been loaded."""
        self.places.restore(held)
        for stack in self.stacks.values():
            frames = np.zeros(stack.places.capacity, np.int32)
            np.add.at(frames, stack.of_row[held > 0].reshape(-1), 1)
            stack.places.restore(frames)

    def contents(self, rows: Array) -> dict[str, Array]:
        """The arrays to save, without the frames."""
        return {str(i): x[rows] for i, x in enumerate(self._arrays())}

    def load(self, rows: Array, contents: dict[str, Array]) -> None:
        """The inverse of `contents`."""
        for i, x in enumerate(self._arrays()):
            x[rows] = contents[str(i)]

    def _arrays(self) -> list[Array]:
        return [c.of_row if isinstance(c, Stacks) else c for c in self.columns]
