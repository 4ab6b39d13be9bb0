"""Cutting the stream of an environment's rows into sequences of one length."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from pronk.types import PyTree


class Cut(NamedTuple):
    """How sequences are cut: `length` transitions each, which begin `stride` rows apart, behind
    up to `burn_in` rows that only bring the recurrent state up to date."""

    burn_in: int
    length: int
    stride: int

    @property
    def rows(self) -> int:
        """Of a sequence: before, within, and the one that the last transition leads to."""
        return self.burn_in + self.length + 1


class Sequence(NamedTuple):
    """One sequence of an episode, which it never leaves."""

    rows: list[int]  # places of `Cut.rows` rows; before the episode its first, behind it its last
    transitions: int  # real ones, from row `burn_in` on
    core: PyTree  # recurrent state before the first row; None where that begins an episode


class Stream:
    """The running episode of one environment, or all of them where sequences go across episodes.

    Sequences begin at rows 0, stride, 2 stride … of the episode. The last one is shorter, and is
    left out where it would bring no new transition.
    """

    def __init__(self, cut: Cut):
        self.cut = cut
        self._begin_episode()

    def _begin_episode(self) -> None:
        self.rows: list[int] = []  # places, from row `begin` of the episode on
        self.begin = 0
        self.start = 0  # the row where the next sequence begins
        self.covered = 0  # transitions of the episode that are in sequences
        self.cores: dict[int, PyTree] = {}  # by row: before those where sequences start

    @property
    def end(self) -> int:
        """How many rows the episode has had."""
        return self.begin + len(self.rows)

    def extend(self, rows: list[int], cores: dict[int, PyTree]) -> tuple[list[Sequence], list[int]]:
        """Go on with these rows; returns complete sequences, and rows not needed any more.

        cores: the recurrent states before those of the new rows where sequences start, by row.
        """
        self.rows += rows
        self.cores |= cores
        found = []
        while self.end > self.start + self.cut.length:
            found.append(self._sequence(self.start + self.cut.length))
            self.start += self.cut.stride
        keep = max(0, self.start - self.cut.burn_in)
        done = self.rows[: keep - self.begin]
        self.rows, self.begin = self.rows[keep - self.begin :], keep
        self.cores = {row: core for row, core in self.cores.items() if row >= keep}
        return found, done

    def close(self) -> tuple[list[Sequence], list[int]]:
        """The episode is over; as `extend`. A new one may begin."""
        last = self.end - 1
        found = [self._sequence(last)] if last > self.covered else []
        done = self.rows
        self._begin_episode()
        return found, done

    def save(self) -> PyTree:
        """As a dict of arrays."""
        cores = [jax.tree.leaves(core) for core in self.cores.values()]
        return {
            "rows": np.array(self.rows, np.int32),
            "numbers": np.array([self.begin, self.start, self.covered], np.int64),
            "core_rows": np.array(list(self.cores), np.int64),
            "cores": {str(i): np.stack(x) for i, x in enumerate(zip(*cores, strict=True))},
        }

    def restore(self, saved: PyTree, structure: Any) -> None:
        """Be what `save` told; `structure` is that of the recurrent states."""
        self.rows = saved["rows"].tolist()
        self.begin, self.start, self.covered = saved["numbers"].tolist()
        columns = [saved["cores"][str(i)] for i in range(len(saved["cores"]))]
        self.cores = {
            row: jax.tree.unflatten(structure, [x[k] for x in columns])
            for k, row in enumerate(saved["core_rows"].tolist())
        }

    def _sequence(self, last: int) -> Sequence:
        """From row `start` to row `last`, which is at most `length` further."""
        burn_in = self.cut.burn_in
        before = max(0, self.start - burn_in)
        rows = self.rows[before - self.begin : last + 1 - self.begin]
        missing = burn_in - (self.start - before)
        rows = [rows[0]] * missing + rows
        rows += [rows[-1]] * (self.cut.rows - len(rows))
        self.covered = last
        return Sequence(rows, last - self.start, self.cores.get(before))
