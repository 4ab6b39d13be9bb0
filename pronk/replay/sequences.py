"""Cutting the rows of an environment into sequences of one length."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from pronk.types import Array, PyTree, Sequences, Starts, Trajectory


class Cut(NamedTuple):
    """How an episode is cut: sequences of `length` transitions start at rows 0, stride, 2 stride …
    of it, each behind up to `burn_in` rows that only warm up the recurrent state.

    What remains at the episode's end is one shorter sequence, if it has a transition that no other
    has; with `tails`, one for every remaining start that has a transition.
    """

    burn_in: int
    length: int
    stride: int
    tails: bool = False

    @property
    def rows(self) -> int:
        """The number of rows of a sequence."""
        return self.burn_in + self.length + 1


class CutSequences(NamedTuple):
    """n complete sequences."""

    # int32 [n, Cut.rows], places of rows; the episode's first and last row are repeated where it
    # is shorter.
    rows: Array
    transitions: Array  # int32 [n], from row `burn_in` on
    states: list[Array]  # leaves [n, ...], recurrent states before the first rows


def is_padding(rows: Array, transitions: Array, burn_in: int) -> tuple[Array, Array]:
    """Which rows, `[n, Cut.rows]`, repeat an episode's first row, and which its last; bool."""
    index = np.arange(rows.shape[1])
    before = np.zeros(rows.shape, np.bool_)
    before[:, :burn_in] = rows[:, :burn_in] == rows[:, 1 : burn_in + 1]
    return before, index > burn_in + transitions[:, None]


class Stream:
    """The running episode of one environment, or all its episodes if sequences cross them.

    states: the leaves of a recurrent state, anything with a shape and a dtype. in_episode: whether
    the first row begins an episode. Otherwise rows are dropped until one does, because the states
    where sequences would start are not known.
    """

    def __init__(self, cut: Cut, states: list[Array], *, in_episode: bool):
        self.cut, self.in_episode = cut, in_episode
        self._no_states = [np.empty((0, *x.shape), x.dtype) for x in states]
        self._begin_episode()

    def _begin_episode(self) -> None:
        self.rows = np.empty(0, np.int32)  # places, from row `begin` of the episode on
        self.begin = 0
        self.start = 0  # the row where the next sequence begins
        self.state_rows = np.empty(0, np.int64)  # rows before which the recurrent state is known
        self.states = self._no_states  # leaves [len(state_rows), ...]

    @property
    def end(self) -> int:
        """The number of rows of the episode so far."""
        return self.begin + len(self.rows)

    def extend(
        self, rows: Array, state_rows: Array, states: list[Array]
    ) -> tuple[CutSequences, Array]:
        """Append rows, int32 `[n]`; returns complete sequences, and rows no longer needed.

        state_rows, states: recurrent states before rows where sequences start, `[m]` and leaves
        `[m, ...]`, in ascending order.
        """
        self.rows = np.concatenate([self.rows, rows])
        if not self.in_episode:
            # The newest row stays, because the next one may share frames with it.
            unused, self.rows = self.rows[:-1], self.rows[-1:]
            return self._sequences(np.empty(0, np.int64), self.end), unused
        if len(state_rows):
            self.state_rows = np.concatenate([self.state_rows, state_rows])
            self.states = [np.concatenate(x) for x in zip(self.states, states, strict=True)]
        stop = self.end - self.cut.length  # starts before it have all their rows
        starts = np.arange(self.start, stop, self.cut.stride)
        found = self._sequences(starts, self.end)
        self.start += len(starts) * self.cut.stride
        self.begin, begin = max(0, self.start - self.cut.burn_in), self.begin
        unused, self.rows = np.split(self.rows, [self.begin - begin])
        known = np.searchsorted(self.state_rows, self.begin)
        if known:
            self.state_rows = self.state_rows[known:]
            self.states = [x[known:] for x in self.states]
        return found, unused

    def close(self) -> tuple[CutSequences, Array]:
        """End the episode, after which a new one may begin; returns what `extend` does."""
        last = self.end - 1
        # The transitions before it are in earlier sequences.
        covered = self.start - self.cut.stride + self.cut.length if self.start else 0
        if not self.in_episode or (last <= covered and not self.cut.tails):
            starts = np.empty(0, np.int64)
        elif self.cut.tails:
            starts = np.arange(self.start, last, self.cut.stride)
        else:
            starts = np.array([self.start])
        found, unused = self._sequences(starts, self.end), self.rows
        self._begin_episode()
        self.in_episode = True
        return found, unused

    def _sequences(self, starts: Array, end: int) -> CutSequences:
        """The sequences from rows `starts` `[n]`, which end `length` rows later or at `end`."""
        if not len(starts):
            rows = np.empty((0, self.cut.rows), np.int32)
            return CutSequences(rows, np.empty(0, np.int32), self._no_states)
        last = np.minimum(starts + self.cut.length, end - 1)
        wanted = starts[:, None] + np.arange(-self.cut.burn_in, self.cut.length + 1)
        rows = self.rows[np.clip(wanted, 0, last[:, None]) - self.begin]
        return CutSequences(rows, (last - starts).astype(np.int32), self._states_before(starts))

    def _states_before(self, starts: Array) -> list[Array]:
        """The states before the burn-ins of sequences; zeros before an episode's first row, where
        agents reset them."""
        wanted = np.maximum(starts - self.cut.burn_in, 0)
        at = np.searchsorted(self.state_rows, wanted)
        known = np.isin(wanted, self.state_rows)
        if self._no_states and not (known | (wanted == 0)).all():
            raise ValueError(
                f"the trajectories have no recurrent state before rows {wanted[~known]} of an"
                " episode, where sequences start; record them with a StartRecorder."
            )
        found = [np.zeros((len(starts), *x.shape[1:]), x.dtype) for x in self.states]
        for x, states in zip(found, self.states, strict=True):
            x[known] = states[at[known]]
        return found

    def save(self) -> PyTree:
        """The state as a dict of arrays."""
        return {
            "rows": self.rows,
            "numbers": np.array([self.begin, self.start, self.in_episode], np.int64),
            "state_rows": self.state_rows,
            "states": {str(i): x for i, x in enumerate(self.states)},
        }

    def restore(self, saved: PyTree) -> None:
        """Set the state that `save` returned."""
        self.rows, self.state_rows = saved["rows"], saved["state_rows"]
        self.begin, self.start, in_episode = saved["numbers"].tolist()
        self.in_episode = bool(in_episode)
        self.states = [saved["states"][str(i)] for i in range(len(self.states))]


class Source:
    """The running episodes of one actor's environments, which its next trajectory continues."""

    def __init__(self, sequences: Sequences, cut: Cut, core: PyTree, first: Array):
        self._cross_episodes = sequences.cross_episodes
        states = jax.tree.leaves(core)
        self.streams = [
            Stream(cut, states, in_episode=bool(begins) or sequences.cross_episodes)
            for begins in first
        ]
        self.last: dict[int, Array] = {}  # by stack: the last row's observations [B, k, H, W]
        self.last_rows: Array = np.zeros(len(first), np.int32)  # its places

    def cut(
        self, trajectory: Trajectory, places: Array
    ) -> Iterator[tuple[int, CutSequences, Array]]:
        """Append rows at places `[T, B]` to the streams; yields (column, complete sequences, rows
        that its stream no longer needs)."""
        begins = np.asarray(trajectory.timestep.first)[:-1]
        starts = trajectory.starts
        if self._cross_episodes:  # sequences are unrolls
            begins = np.zeros_like(begins)
            zeros, columns = np.zeros(len(self.streams), np.int32), np.arange(len(self.streams))
            starts = Starts(zeros, columns, trajectory.core)
        rows, columns = (np.empty(0, np.int32),) * 2
        states: list[Array] = []
        if starts is not None:
            rows, columns = np.asarray(starts.row), np.asarray(starts.slot)
            states = [np.asarray(x) for x in jax.tree.leaves(starts.core)]
        for b, stream in enumerate(self.streams):
            inner = (np.flatnonzero(begins[1:, b]) + 1).tolist()
            here = np.flatnonzero(columns == b)
            for start, stop in itertools.pairwise([0, *inner, len(places)]):
                if begins[start, b]:
                    yield b, *stream.close()
                at = here[(rows[here] >= start) & (rows[here] < stop)]
                state_rows = rows[at] + (stream.end - start)
                yield b, *stream.extend(places[start:stop, b], state_rows, [x[at] for x in states])

    def rows(self) -> Array:
        """The rows that the streams hold, int32 `[n]`."""
        return np.concatenate([stream.rows for stream in self.streams])

    def save(self) -> PyTree:
        """The state as dicts of arrays."""
        return {
            "last": {str(i): x for i, x in self.last.items()},
            "last_rows": self.last_rows,
            "streams": {str(b): stream.save() for b, stream in enumerate(self.streams)},
        }

    def restore(self, saved: PyTree) -> None:
        """Set the state that `save` returned."""
        self.last = {int(i): x for i, x in saved["last"].items()}
        self.last_rows = saved["last_rows"]
        for b, stream in enumerate(self.streams):
            stream.restore(saved["streams"][str(b)])
