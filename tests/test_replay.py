"""The replay: cutting, storing, drawing, revising, evicting and saving sequences."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pronk.errors import UserError
from pronk.replay import Limiter, Replay, SegmentLog, SumTree, parts, segment_log
from pronk.replay.items import Items
from pronk.runtime.actor import StartRecorder
from pronk.types import Feedback, Sequences, TimeStep, Trajectory

# The sum-tree.


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 5, 64, 65, 5000, 300_000]))
def test_the_tree_agrees_with_the_cumulative_sum(seed, capacity):
    rng = np.random.default_rng(seed)
    tree, naive = SumTree(capacity), np.zeros(capacity)
    for _ in range(4):
        index = rng.integers(capacity, size=50)
        priority = rng.exponential(size=50) * (rng.random(50) > 0.3) * 10.0 ** rng.integers(-9, 9)
        tree.set(index, priority)
        for i, p in zip(index, priority, strict=True):
            naive[i] = p
        np.testing.assert_array_equal(tree.priorities(), naive)
    assert tree.total == pytest.approx(naive.sum(), rel=1e-12)
    if naive.sum() == 0:
        return
    mass = np.append(rng.random(64) * tree.total, [0.0, tree.total])
    leaves = tree.find(mass)
    assert np.all(naive[leaves] > 0)
    sums = np.cumsum(naive)
    slack = 1e-9 * tree.total
    assert np.all(sums[leaves] >= mass - slack)
    assert np.all(sums[leaves] - naive[leaves] <= mass + slack)


def test_draws_are_in_proportion_to_priorities():
    tree, rng = SumTree(1000), np.random.default_rng(0)
    priorities = rng.exponential(size=1000) * (rng.random(1000) > 0.5)
    tree.set(np.arange(1000), priorities)
    drawn = np.concatenate([tree.sample(500, rng) for _ in range(400)])
    counts = np.bincount(drawn, minlength=1000)
    expected = priorities / priorities.sum() * len(drawn)
    assert not counts[priorities == 0].any()
    np.testing.assert_allclose(counts, expected, atol=5 * np.sqrt(expected.max()))


def test_sums_accumulate_no_rounding_errors():
    tree, rng = SumTree(200), np.random.default_rng(1)
    for _ in range(3000):
        tree.set(rng.integers(200, size=8), rng.random(8) * 10.0 ** rng.integers(-12, 12))
    tree.set(np.arange(200), np.zeros(200))
    assert tree.total == 0
    with pytest.raises(ValueError, match="nothing to sample"):
        tree.sample(1, rng)
    tree.set(np.array([77]), np.array([1e-30]))
    assert set(tree.sample(20, rng)) == {77}


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_invalid_priorities_raise(bad):
    with pytest.raises(ValueError, match="finite and at least 0"):
        SumTree(4).set(np.array([0]), np.array([bad]))


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 5, 64, 65, 5000, 300_000]))
@settings(max_examples=30)
def test_highest_and_lowest_priority(seed, capacity):
    rng = np.random.default_rng(seed)
    tree, naive = SumTree(capacity), np.full(capacity, np.nan)
    for _ in range(6):
        index = np.unique(rng.integers(capacity, size=20))
        if rng.random() < 0.3:
            tree.remove(index)
            naive[index] = np.nan
        else:
            priority = rng.integers(0, 4, len(index)).astype(np.float64)
            tree.insert(index, priority)
            naive[index] = priority
        assert tree.highest == np.nanmax(np.append(naive, 0.0))
        if not np.isnan(naive).all():
            assert tree.lowest() == np.nanargmin(naive)


# Sequences. Each row has a number that identifies its column, its episode and its place in it.


def row_number(column: int, episode: int, t: int) -> int:
    return (column * 1000 + episode) * 1000 + t


def frame(number: int) -> np.ndarray:
    column, episode, t = number // 1_000_000, number // 1000 % 1000, number % 1000
    return np.full((6, 5), (column * 7 + episode * 13 + t * 3) % 251, np.uint8)


class Episodes:
    """The endless rows of one column, in episodes of random lengths, with stacked frames."""

    def __init__(self, column: int, rng: np.random.Generator, longest: int, stack: int):
        self.column, self.rng, self.longest, self.stack = column, rng, longest, stack
        self.episode, self.row, self.length = -1, 0, -1

    def next(self) -> dict[str, Any]:
        if self.row > self.length:
            self.episode, self.row = self.episode + 1, 0
            self.length = int(self.rng.integers(1, self.longest + 1))
        t, self.row = self.row, self.row + 1
        ended = t == self.length
        number = row_number(self.column, self.episode, t)
        return {
            "number": np.int64(number),
            "frames": np.stack([frame(number - min(t, k)) for k in reversed(range(self.stack))]),
            "first": np.bool_(t == 0),
            "terminated": np.bool_(ended and self.episode % 2 == 0),
            "truncated": np.bool_(ended and self.episode % 2 == 1),
        }


class FakeActor:
    """Trajectories of several columns, with the recurrent states recorded by a `StartRecorder`.

    The state before a row is its number + 0.5. `extras["target"]` is `[T + 1, B, 2]`, all zeros.
    """

    def __init__(
        self,
        seed: int,
        *,
        columns: int,
        longest: int,
        spec: Sequences | None = None,
        stack: int = 3,
        first_column: int = 0,
        priority: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        rng = np.random.default_rng(seed)
        self.columns = [Episodes(first_column + i, rng, longest, stack) for i in range(columns)]
        self.last: list[dict[str, Any]] | None = None
        self.version = 0
        self.recorder = StartRecorder(make_spec() if spec is None else spec, columns)
        self.priority = priority

    def _next(self) -> list[dict[str, Any]]:
        row = [column.next() for column in self.columns]
        self.recorder.advance(np.stack([x["first"] for x in row]))
        return row

    def trajectory(self, steps: int) -> Trajectory:
        rows = [self._next() if self.last is None else self.last]
        for t in range(steps):
            numbers = np.array([x["number"] for x in rows[-1]])
            self.recorder.record(t, state_before(numbers))
            rows.append(self._next())
        self.last = rows[-1]
        x = {k: np.stack([np.stack([r[k] for r in row]) for row in rows]) for k in rows[0][0]}
        number = x["number"].astype(np.float32)
        timestep = TimeStep(
            {"frames": x["frames"], "number": x["number"]},
            number,
            x["terminated"],
            x["truncated"],
            x["first"],
            x["number"].astype(np.int32),
        )
        extras = {"probability": number + 0.25, "target": np.zeros((*number.shape, 2), np.float32)}
        if self.priority is not None:
            extras["priority"] = self.priority(x["number"])
        self.version += 1
        version = np.full(len(self.columns), self.version, np.int32)
        core = state_before(x["number"][0])
        action = x["number"].astype(np.int32)
        return Trajectory(timestep, action, extras, core, version, self.recorder.take())


def state_before(numbers: np.ndarray) -> dict[str, np.ndarray]:
    return {"state": numbers.astype(np.float64)[..., None] + 0.5}


def make_spec(**changes: Any) -> Sequences:
    common = {"capacity": 5000, "burn_in": 3, "length": 6, "overlap": 3, "priority_exponent": 1.0}
    return Sequences(**common | changes)


def make(*, stack: int = 3, priority: bool = False, **changes: Any) -> Replay:
    """A replay for the rows of a `FakeActor`."""
    one = (lambda numbers: np.ones(numbers.shape, np.float32)) if priority else None
    t = FakeActor(0, columns=1, longest=3, stack=stack, priority=one).trajectory(1)
    example = jax.tree.map(lambda x: x[0, 0], (t.timestep, t.action, t.extras))
    return Replay(make_spec(**changes), example, jax.tree.map(lambda x: x[0], t.core))


def make_both(
    seed: int = 0, *, columns: int, longest: int, **changes: Any
) -> tuple[Replay, FakeActor]:
    """A replay, and an actor for it."""
    spec = make_spec(**changes)
    return make(**changes), FakeActor(seed, columns=columns, longest=longest, spec=spec)


def items(replay: Replay) -> Items:
    return replay._contents.items


def priorities(replay: Replay, keys: np.ndarray) -> np.ndarray:
    return items(replay).tree.priorities()[keys % len(items(replay).key)]


def held_keys(replay: Replay) -> np.ndarray:
    """The keys of all sequences, oldest first."""
    return np.sort(items(replay).key[items(replay).key >= 0])


def all_sequences(replay: Replay) -> list[dict[str, Any]]:
    """Each sequence once, in order of insertion."""
    tree = items(replay).tree
    kept = tree.priorities().copy()
    sequences = []
    for key in held_keys(replay):
        slot = key % len(kept)
        tree.set(np.arange(len(kept)), np.where(np.arange(len(kept)) == slot, 1.0, 0.0))
        batch, drawn = replay.sample(1, np.random.default_rng(0))
        assert drawn[0] == key
        t = batch.trajectory
        sequences.append(
            {
                "number": t.timestep.observation["number"][:, 0],
                "frames": t.timestep.observation["frames"][:, 0],
                "first": t.timestep.first[:, 0],
                "ended": (t.timestep.terminated | t.timestep.truncated)[:, 0],
                "reward": t.timestep.reward[:, 0],
                "action": t.action[:, 0],
                "probability": t.extras["probability"][:, 0],
                "target": t.extras["target"][:, 0],
                "core": t.core["state"][0, 0],
                "version": t.version[0],
                "transitions": items(replay).transitions(np.array([slot]))[0],
            }
        )
    tree.set(np.arange(len(kept)), kept)
    return sequences


cuts = st.sampled_from(
    [(3, 6, 3), (0, 5, 0), (4, 8, 4), (7, 4, 3), (2, 5, 2), (0, 5, 4), (3, 4, 3), (9, 3, 1)]
)


def check_sequence(item: dict[str, Any], burn_in: int, length: int, overlap: int) -> None:
    """It is a piece of an episode, in order, with the recurrent state that the actor had there."""
    n, row = item["transitions"], item["number"]
    begin = row[burn_in] % 1000
    inside = row[burn_in : burn_in + n + 1]
    np.testing.assert_array_equal(inside, row[burn_in] + np.arange(n + 1))
    assert 1 <= n <= length
    assert begin % (length - overlap) == 0
    # The rows before it in the episode, and before these the episode's first row repeated.
    before = np.maximum(row[burn_in] - np.arange(burn_in, 0, -1), row[burn_in] - begin)
    np.testing.assert_array_equal(row[:burn_in], before)
    first = row[: burn_in + n + 1] % 1000 == 0
    np.testing.assert_array_equal(item["first"][: burn_in + n + 1], first)
    # Rows after the episode's end have no weight.
    assert item["first"][burn_in + n + 1 :].all()
    assert not item["ended"][burn_in + n + 1 :].any()
    assert not item["reward"][burn_in + n + 1 :].any()
    assert not item["ended"][burn_in : burn_in + n].any()
    reward = row[: burn_in + n + 1].astype(np.float32)
    np.testing.assert_array_equal(item["reward"][: burn_in + n + 1], reward)
    np.testing.assert_array_equal(item["action"], row)
    np.testing.assert_array_equal(item["probability"], row.astype(np.float32) + 0.25)
    assert item["core"] == (0.0 if first[0] else row[0] + 0.5)
    for number, frames in zip(row, item["frames"], strict=True):
        expected = [frame(number - min(number % 1000, k)) for k in (2, 1, 0)]
        np.testing.assert_array_equal(frames, expected)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    cuts,
    st.sampled_from([2, 9, 40]),
    st.booleans(),
    st.booleans(),
)
def test_sequences_are_pieces_of_episodes(seed, cut, longest, compress, tails):
    """No transition is left out, and with `tails` each start has a sequence."""
    burn_in, length, overlap = cut
    changes = {"burn_in": burn_in, "length": length, "overlap": overlap}
    changes |= {"compress": compress, "tails": tails, "capacity": 3000}
    replay, spec = make(**changes), make_spec(**changes)
    rng = np.random.default_rng(seed)
    actors = [
        FakeActor(seed + i, columns=2, longest=longest, spec=spec, first_column=2 * i)
        for i in range(2)
    ]
    acted: list[int] = []  # rows with a transition
    for _ in range(8):
        for source in range(2):
            t = actors[source].trajectory(int(rng.integers(1, 12)))
            numbers = t.timestep.observation["number"]
            acted += numbers[:-1][~t.timestep.first[1:]].tolist()
            replay.add(source, t)
    assert replay.transitions == len(acted)
    covered: list[int] = []
    starts: list[int] = []
    ends: list[int] = []
    for item in all_sequences(replay):
        check_sequence(item, burn_in, length, overlap)
        row = item["number"][burn_in]
        starts.append(row)
        ends.append(row + item["transitions"])
        covered += range(row, ends[-1])
    assert len(set(starts)) == len(starts)
    # What is missing belongs to running episodes, and to the one of which the last row came last.
    running = {column.column: column.episode for a in actors for column in a.columns}
    finished = [n for n in acted if n // 1000 % 1000 < running[n // 1_000_000] - 1]
    assert set(finished) <= set(covered)
    if tails:
        wanted = {n for n in finished if n % 1000 % (length - overlap) == 0}
        assert wanted <= set(starts)
    else:
        assert len(set(ends)) == len(ends)  # each has a transition that no earlier one has
    check_counts(replay)


def test_tails():
    """An episode of 7 transitions, cut into sequences of 5 that start at each row."""
    replay, actor = make_both(columns=1, longest=7, burn_in=0, length=5, overlap=4, tails=True)
    actor.columns[0].rng = np.random.default_rng(0)
    column = actor.columns[0]
    column.longest = 1
    replay.add(0, actor.trajectory(2))  # an episode of one transition
    column.row, column.length, column.episode = 0, 7, column.episode + 1
    actor.last = None
    replay.add(1, actor.trajectory(8))
    replay.add(1, actor.trajectory(1))
    sequences = [
        (int(x["number"][0] % 1000), int(x["transitions"]))
        for x in all_sequences(replay)
        if x["number"][0] // 1000 == column.episode - 1
    ]
    assert sequences == [(0, 5), (1, 5), (2, 5), (3, 4), (4, 3), (5, 2), (6, 1)]


def test_a_source_that_begins_within_an_episode():
    """Its rows are dropped until an episode begins: where sequences start is not known before."""
    replay, actor = make_both(columns=3, longest=40)
    actor.trajectory(17)  # which the replay does not get
    seen = []
    for _ in range(20):
        t = actor.trajectory(7)
        seen.append(t.timestep)
        replay.add(0, t)
        check_counts(replay)
    begun = np.concatenate([x.first[:-1] for x in seen]).argmax(axis=0)
    assert begun.all()
    sequences = all_sequences(replay)
    for item in sequences:
        check_sequence(item, 3, 6, 3)
    numbers = np.concatenate([x.observation["number"][:-1] for x in seen])
    earliest = {int(numbers[t, b]) for b, t in enumerate(begun)}
    assert earliest <= {int(item["number"][3]) for item in sequences}


def test_recurrent_states_are_required():
    replay, actor = make_both(columns=1, longest=500)
    trajectory = actor.trajectory(30)._replace(starts=None)
    with pytest.raises(ValueError, match="StartRecorder"):
        replay.add(0, trajectory)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(0, 9), st.integers(1, 7), st.integers(0, 6),
    st.sampled_from([1, 5, 30]),
)  # fmt: skip
def test_the_recorder_has_the_states_where_sequences_start(seed, burn_in, length, overlap, longest):
    """Unroll by unroll, also where it continues from a saved position."""
    spec = make_spec(burn_in=burn_in, length=length, overlap=min(overlap, length - 1))
    actor = FakeActor(seed, columns=3, longest=longest, spec=spec)
    rng = np.random.default_rng(seed)
    for _ in range(6):
        if rng.random() < 0.3:
            position = actor.recorder.position
            actor.recorder = StartRecorder(spec, 3)
            actor.recorder.position = position
        t = actor.trajectory(int(rng.integers(1, 10)))
        assert t.starts is not None
        numbers = t.timestep.observation["number"]
        at = numbers % 1000
        stride = spec.length - spec.overlap
        wanted = (at[:-1] > 0) & ((at[:-1] + burn_in) % stride == 0)
        np.testing.assert_array_equal(np.stack([t.starts.row, t.starts.slot]), wanted.nonzero())
        assert t.starts.row.dtype == t.starts.slot.dtype == np.int32
        states = numbers[t.starts.row, t.starts.slot][:, None] + 0.5
        np.testing.assert_array_equal(t.starts.core["state"], states)


def test_sequences_across_episodes_are_unrolls():
    spec = make_spec(burn_in=0, length=6, overlap=0, cross_episodes=True)
    replay = make(**spec._asdict())
    actor = FakeActor(0, columns=2, longest=5, spec=spec)
    trajectories = [actor.trajectory(6) for _ in range(9)]
    for trajectory in trajectories:
        replay.add(0, trajectory._replace(starts=None))
    sequences = all_sequences(replay)
    assert len(sequences) == 2 * 8  # the newest unroll's last row comes with the next one
    for trajectory in trajectories[:-1]:
        for b in range(2):
            item = sequences.pop(0)
            numbers = trajectory.timestep.observation["number"][:, b]
            np.testing.assert_array_equal(item["number"], numbers)
            np.testing.assert_array_equal(item["first"], trajectory.timestep.first[:, b])
            assert item["core"] == numbers[0] + 0.5


def check_counts(replay: Replay) -> None:
    """Every place is held as often as something refers to it, and is free otherwise."""
    rows = replay._contents.rows
    held = np.zeros(rows.places.capacity, int)
    np.add.at(held, items(replay).rows[items(replay).key >= 0].reshape(-1), 1)
    for source in replay._sources.values():
        np.add.at(held, source.rows(), 1)
    np.testing.assert_array_equal(rows.places.held, held)
    assert rows.places.free == (held == 0).sum()
    for stack in rows.stacks.values():
        shown = np.zeros(stack.places.capacity, int)
        np.add.at(shown, stack.of_row[held > 0].reshape(-1), 1)
        np.testing.assert_array_equal(stack.places.held, shown)
        assert stack.places.free == (shown == 0).sum()
        assert set(stack.places.free_order()) == set(np.flatnonzero(shown == 0))
    assert set(np.flatnonzero(items(replay).tree.priorities())) <= set(
        np.flatnonzero(items(replay).key >= 0)
    )


@pytest.mark.parametrize("eviction", ["fifo", "lowest-priority"])
@pytest.mark.parametrize("longest", [3, 60])
@pytest.mark.parametrize("overlap", [3, 5])
def test_memory_is_given_back(eviction, longest, overlap):
    changes = {"capacity": 150, "eviction": eviction, "overlap": overlap}
    replay, actor = make_both(columns=2, longest=longest, **changes)
    rng = np.random.default_rng(0)
    for _ in range(60):
        replay.add(0, actor.trajectory(7))
        if len(replay):
            batch, keys = replay.sample(4, rng)
            numbers = batch.trajectory.timestep.observation["number"]
            assert np.all(numbers[3] < numbers[4])
            replay.revise(keys, Feedback(rng.random(4) + 0.1))
        check_counts(replay)
    assert replay.inserted > 2 * len(replay)
    if eviction == "fifo":
        serial = held_keys(replay) // len(items(replay).key)
        assert list(serial) == list(range(replay.inserted - len(replay), replay.inserted))
        assert len(replay) * (6 - overlap) <= 150


@pytest.mark.parametrize("eviction", ["fifo", "lowest-priority"])
def test_no_sequence_is_evicted_while_there_is_room(eviction):
    """All rows can be in use at stride 1: there is a slot for each row where a sequence starts."""
    changes = {"capacity": 200, "length": 5, "overlap": 4, "tails": True, "eviction": eviction}
    replay, actor = make_both(columns=2, longest=2, **changes)
    while replay._contents.rows.places.free > 14:
        replay.add(0, actor.trajectory(7))
    assert len(replay) == replay.inserted > 100
    assert len(items(replay).key) == 200


def test_the_lowest_priority_is_evicted_first():
    replay, actor = make_both(columns=1, longest=500, capacity=120, eviction="lowest-priority")
    while not replay.inserted > 10:
        replay.add(0, actor.trajectory(10))
    important = held_keys(replay)[:3]
    replay.revise(held_keys(replay), Feedback(np.full(len(replay), 0.1)))
    replay.revise(important, Feedback(np.full(3, 5.0)))
    for _ in range(30):
        replay.add(0, actor.trajectory(10))
        new = held_keys(replay)[held_keys(replay) > important.max()]
        replay.revise(new, Feedback(np.full(len(new), 0.2)))
    assert set(important) <= set(held_keys(replay))


def test_late_feedback_changes_no_newer_sequence():
    replay, actor = make_both(columns=1, longest=500, capacity=60)
    rng = np.random.default_rng(0)
    while not len(replay):
        replay.add(0, actor.trajectory(5))
    _, old = replay.sample(2, rng)
    while old[0] in held_keys(replay):
        replay.add(0, actor.trajectory(5))
    before, sequences = items(replay).tree.priorities().copy(), all_sequences(replay)
    target = {"target": np.ones((10, 2, 2), np.float32)}
    replay.revise(old, Feedback(np.array([1e9, 1e9]), target))
    np.testing.assert_array_equal(items(replay).tree.priorities(), before)
    jax.tree.map(np.testing.assert_array_equal, all_sequences(replay), sequences)
    assert replay.stale == 2
    slots = len(items(replay).key)
    assert set(old % slots) & set(held_keys(replay) % slots)


def test_keys_of_a_long_run():
    """They exceed 32 bits."""
    replay, actor = make_both(columns=1, longest=500)
    items(replay).next = 10**12
    while not len(replay):
        replay.add(0, actor.trajectory(6))
    _, keys = replay.sample(1, np.random.default_rng(0))
    assert keys.dtype == np.int64
    assert keys[0] // len(items(replay).key) >= 10**12
    replay.revise(keys, Feedback(np.array([3.0])))
    assert priorities(replay, keys) == 3.0


def test_priorities():
    """New sequences get the highest; the exponent applies; non-finite ones are ignored;
    `probabilities` are those of the draw."""
    replay, actor = make_both(columns=2, longest=500, priority_exponent=0.5)
    for _ in range(10):
        replay.add(0, actor.trajectory(6))
    keys = held_keys(replay)
    assert set(priorities(replay, keys)) == {1.0}
    wanted = np.linspace(0, 9, len(keys))
    replay.revise(keys, Feedback(wanted))
    replay.revise(keys[:2], Feedback(np.array([np.nan, np.inf])))
    np.testing.assert_allclose(priorities(replay, keys), np.sqrt(wanted))
    batch, drawn = replay.sample(64, np.random.default_rng(0))
    odds = dict(zip(keys, np.sqrt(wanted) / np.sqrt(wanted).sum(), strict=True))
    np.testing.assert_allclose(batch.probabilities, [odds[k] for k in drawn], rtol=1e-5)
    assert keys[0] not in drawn
    replay.add(0, actor.trajectory(6))
    assert priorities(replay, held_keys(replay)[-1:]) == 3.0
    # The highest of those held: an evicted or revised one does not count.
    replay.revise(held_keys(replay), Feedback(np.full(len(replay), 0.25)))
    replay.add(0, actor.trajectory(6))
    assert priorities(replay, held_keys(replay)[-1:]) == 0.5


@pytest.mark.parametrize("overlap", [3, 5])
def test_first_priorities_from_the_actor(overlap):
    """That of the first row after the burn-in; if it is not valid, the highest in the replay."""
    spec = make_spec(priority_exponent=0.5, overlap=overlap)

    def priority(numbers: np.ndarray) -> np.ndarray:
        values = (numbers % 17).astype(np.float32)
        return np.where(values == 5, np.nan, np.where(values == 7, -1, values))

    replay = make(priority=True, **spec._asdict())
    actor = FakeActor(0, columns=2, longest=40, spec=spec, priority=priority)
    invalid = 0
    for _ in range(30):
        highest = items(replay).tree.highest or 1.0
        known = set(held_keys(replay))
        replay.add(0, actor.trajectory(4))
        keys = np.array([k for k in held_keys(replay) if k not in known], np.int64)
        rows = items(replay).rows[keys % len(items(replay).key)][:, 3]
        own = replay._contents.rows.priorities(rows)
        assert own is not None
        valid = own >= 0
        np.testing.assert_array_equal(
            priorities(replay, keys)[valid], np.float64(own[valid]) ** 0.5
        )
        assert (priorities(replay, keys)[~valid] >= highest).all()
        invalid += (~valid).sum()
    assert invalid > 3
    batch, _ = replay.sample(8, np.random.default_rng(0))
    assert "priority" in batch.trajectory.extras


def test_sequences_without_priority_are_drawn_uniformly():
    replay, actor = make_both(columns=2, longest=500)
    for _ in range(10):
        replay.add(0, actor.trajectory(6))
    replay.revise(held_keys(replay), Feedback(np.zeros(len(replay))))
    batch, _ = replay.sample(4, np.random.default_rng(0))
    np.testing.assert_allclose(batch.probabilities, 1 / len(replay), rtol=1e-6)


# Rewritten extras.


class Revisions:
    """Revises targets of drawn sequences at random, and remembers what each row should have."""

    def __init__(self, seed: int):
        self.rng, self.value = np.random.default_rng(seed), 0
        self.expected: dict[int, np.ndarray] = {}  # by row number

    def revise(self, replay: Replay, size: int) -> None:
        batch, keys = replay.sample(size, self.rng)
        numbers = batch.trajectory.timestep.observation["number"]
        self.value += 1
        # By (revision, row number): of a row that two columns share the value is the same.
        target = np.stack([np.full(numbers.shape, self.value), numbers], -1).astype(np.float32)
        rows = items(replay).rows[keys % len(items(replay).key)].T
        transitions = items(replay).transitions(keys % len(items(replay).key))
        burn_in = replay.spec.burn_in
        for b in range(size):
            for t in range(len(rows)):
                repeats_first = t < burn_in and rows[t, b] == rows[t + 1, b]
                if repeats_first or t > burn_in + transitions[b]:
                    target[t, b] = -1  # must not be written
                else:
                    self.expected[int(numbers[t, b])] = target[t, b].copy()
        replay.revise(keys, Feedback(None, {"target": target}))

    def check(self, replay: Replay) -> None:
        for item in all_sequences(replay):
            for number, target in zip(item["number"], item["target"], strict=True):
                expected = self.expected.get(int(number), np.zeros(2))
                np.testing.assert_array_equal(target, expected)
            np.testing.assert_array_equal(
                item["probability"], item["number"].astype(np.float32) + 0.25
            )


@pytest.mark.parametrize(
    "cut",
    [
        {"burn_in": 3, "length": 6, "overlap": 3},
        {"burn_in": 0, "length": 5, "overlap": 4, "tails": True},
    ],
)
def test_revised_extras(cut):
    """Shared rows have the newest value in all sequences; padding and new rows are untouched."""
    replay, actor = make_both(columns=2, longest=20, capacity=400, **cut)
    revisions = Revisions(0)
    for _ in range(60):
        replay.add(0, actor.trajectory(7))
        if len(replay):
            before = items(replay).tree.priorities().copy()
            revisions.revise(replay, 6)
            np.testing.assert_array_equal(items(replay).tree.priorities(), before)
    assert replay.inserted > 1.5 * len(replay)
    revisions.check(replay)


def test_feedback_for_unknown_extras_raises():
    replay, actor = make_both(columns=2, longest=20)
    for _ in range(3):
        replay.add(0, actor.trajectory(9))
    _, keys = replay.sample(2, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"'tarjet'.*'target'"):
        replay.revise(keys, Feedback(None, {"tarjet": np.zeros((10, 2, 2))}))
    with pytest.raises(ValueError, match=r"'target'.*\(9, 2, 2\).*\(10, 2"):
        replay.revise(keys, Feedback(None, {"target": np.zeros((9, 2, 2))}))


def test_each_frame_is_stored_once():
    replay = make(capacity=2000, stack=4)
    actor = FakeActor(0, columns=2, longest=100, stack=4)
    for _ in range(20):
        replay.add(0, actor.trajectory(20))
    rows = replay._contents.rows
    stack = next(iter(rows.stacks.values()))
    used = stack.places.capacity - stack.places.free
    used_rows = rows.places.capacity - rows.places.free
    episodes = sum(column.episode + 1 for column in actor.columns)
    assert used_rows <= used <= used_rows + 3 * episodes


def test_running_episodes_that_fill_the_replay_are_an_error():
    replay, actor = make_both(columns=8, longest=500, capacity=40)
    trajectories = [actor.trajectory(5) for _ in range(30)]
    with pytest.raises(UserError, match="`--replay-capacity` is 40"):
        sum(replay.add(0, trajectory) for trajectory in trajectories)


def test_many_threads():
    """Actors, and samplers that revise: nothing is torn, nothing is lost."""
    replay, spec = make(capacity=800), make_spec()
    actors = [FakeActor(i, columns=2, longest=30, spec=spec, first_column=2 * i) for i in range(3)]
    errors: list[BaseException] = []
    done = threading.Event()

    def act(i: int) -> None:
        for _ in range(150):
            replay.add(i, actors[i].trajectory(9))

    def draw(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not done.is_set():
            if not len(replay):
                continue
            batch, keys = replay.sample(8, rng)
            t = batch.trajectory
            number, frames = (t.timestep.observation[k] for k in ("number", "frames"))
            value = (number // 10**6 * 7 + number // 1000 % 1000 * 13 + number % 1000 * 3) % 251
            assert (frames[:, :, -1] == value[..., None, None]).all()
            assert (t.extras["probability"] == number.astype(np.float32) + 0.25).all()
            state = np.where(t.timestep.first[0], 0.0, number[0] + 0.5)
            assert (t.core["state"][:, 0] == state).all()
            assert (t.extras["target"][..., 0] == t.extras["target"][..., 1]).all()
            target = np.full((*number.shape, 2), rng.random(), np.float32)
            replay.revise(keys, Feedback(rng.random(8), {"target": target}))

    def guarded(function, *args) -> None:
        try:
            function(*args)
        except BaseException as error:
            errors.append(error)

    actor_threads = [threading.Thread(target=guarded, args=(act, i)) for i in range(3)]
    samplers = [threading.Thread(target=guarded, args=(draw, i)) for i in range(2)]
    for thread in actor_threads + samplers:
        thread.start()
    for thread in actor_threads:
        thread.join()
    done.set()
    for thread in samplers:
        thread.join()
    assert not errors
    check_counts(replay)
    assert replay.sampled > 0


def test_a_source_can_be_forgotten():
    replay, actor = make_both(columns=2, longest=100, capacity=3000)
    for _ in range(4):
        replay.add(7, actor.trajectory(9))
    before = all_sequences(replay)
    assert before
    replay.forget(7)
    check_counts(replay)
    jax.tree.map(np.testing.assert_array_equal, all_sequences(replay), before)
    held = replay._contents.rows.places.held.sum()
    assert replay.add(7, actor.trajectory(9)) == 0  # too late
    assert replay._contents.rows.places.held.sum() == held
    replay.add(8, FakeActor(1, columns=2, longest=100).trajectory(9))
    check_counts(replay)
    assert len(all_sequences(replay)) > len(before)


def test_a_source_can_be_forgotten_while_it_adds(monkeypatch):
    replay, actor = make_both(columns=2, longest=100, capacity=3000)
    for _ in range(4):
        replay.add(7, actor.trajectory(9))
    write = replay._contents.rows.write

    def forget_after_writing(*args: Any) -> None:
        write(*args)
        replay.forget(7)

    monkeypatch.setattr(replay._contents.rows, "write", forget_after_writing)
    assert replay.add(7, actor.trajectory(9)) == 0
    check_counts(replay)


# The log.


@pytest.fixture
def small_segments(monkeypatch):
    monkeypatch.setattr(parts, "PLACES_PER_PART", 24)
    monkeypatch.setattr(segment_log, "_POLL", 0.001)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def filled(directory: Path) -> tuple[SegmentLog, Replay]:
    """A replay that has sequences, with its log."""
    replay, actor = make_both(columns=2, longest=30, capacity=3000)
    log = SegmentLog(replay, directory, keep=2)
    for _ in range(20):
        replay.add(0, actor.trajectory(7))
    return log, replay


@pytest.mark.parametrize(
    ("eviction", "compress", "tails"),
    [
        ("fifo", False, False),
        ("fifo", True, True),
        ("lowest-priority", True, False),
        ("lowest-priority", False, True),
    ],
)
def test_restoring(tmp_path, small_segments, eviction, compress, tails):
    """At any save, with running episodes, and with most earlier sequences evicted or revised."""
    changes = {"capacity": 300, "eviction": eviction, "compress": compress, "tails": tails}
    replay, actor = make_both(columns=2, longest=30, **changes)
    log = SegmentLog(replay, tmp_path, keep=2)
    rng, revisions = np.random.default_rng(0), Revisions(1)
    for _ in range(6):
        for _ in range(rng.integers(1, 30)):
            replay.add(0, actor.trajectory(7))
            keys = held_keys(replay)
            replay.revise(keys, Feedback(rng.random(len(keys)) + 0.01))
            if len(keys):
                revisions.revise(replay, 3)
        tree = log.save()
        again = make(**changes)
        restored = SegmentLog(again, tmp_path, keep=2)
        restored.restore(tree, episodes=True)
        restored.close()
        check_counts(again)
        revisions.check(again)
        jax.tree.map(np.testing.assert_array_equal, all_sequences(again), all_sequences(replay))
        np.testing.assert_array_equal(held_keys(again), held_keys(replay))
        assert items(again).tree.total == pytest.approx(items(replay).tree.total)
        following = actor.trajectory(7)
        for each in (replay, again):
            each.add(0, following)
        check_counts(again)
        jax.tree.map(np.testing.assert_array_equal, all_sequences(again), all_sequences(replay))
    log.close()


def test_segments_are_written_between_checkpoints(tmp_path, small_segments):
    log, replay = filled(tmp_path)
    stores = replay._contents.parts._stores.values()
    wait_until(lambda: all(len(s.places.unsaved(revised=False)) < 24 for s in stores))
    with log._lock:
        written = len(list(tmp_path.iterdir()))
    assert written > 8
    tree = log.save()
    assert len(tree["segments"]) - written <= 4  # one for the rest of each store
    log.close()


def test_revised_rows_wait_for_the_checkpoint(tmp_path, small_segments):
    log, replay = filled(tmp_path)
    log.save()
    written = len(list(tmp_path.iterdir()))
    revisions = Revisions(0)
    for _ in range(20):
        revisions.revise(replay, 8)
    time.sleep(0.05)
    assert len(list(tmp_path.iterdir())) == written
    tree = log.save()
    assert len(tree["segments"]) > written
    log.close()
    again = make(capacity=3000)
    restored = SegmentLog(again, tmp_path, keep=2)
    restored.restore(tree, episodes=False)
    restored.close()
    revisions.check(again)


def test_a_failed_write_raises_at_the_next_save(tmp_path, small_segments):
    (tmp_path / "file").write_text("")
    log, _ = filled(tmp_path / "file")
    wait_until(lambda: not log._writer.is_alive())
    (tmp_path / "file").unlink()  # writing would succeed now, but a part is lost
    with pytest.raises(UserError, match="file"):
        log.save()
    log.close()


def test_nothing_is_saved_after_a_part_was_lost(tmp_path, monkeypatch):
    """The replay counts it as saved: a checkpoint would name a segment that does not exist."""
    log, _ = filled(tmp_path)
    write = segment_log.write_and_sync

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segment_log, "write_and_sync", full)
    with pytest.raises(UserError, match="No space left"):
        log.save()
    monkeypatch.setattr(segment_log, "write_and_sync", write)
    with pytest.raises(UserError, match=r"an earlier part .*No space left"):
        log.save()
    log.close()


@pytest.mark.parametrize("tree", [{"epoch": np.int64(3)}, {"next_segment": np.int64(1)}])
def test_a_log_of_another_version_is_refused(tmp_path, tree):
    replay = make()
    log = SegmentLog(replay, tmp_path, keep=2)
    with pytest.raises(UserError, match="another version"):
        log.restore(tree | {"segments": {}}, episodes=True)
    assert len(replay) == 0
    log.close()


class Counts:
    """The counts that a limiter reads."""

    inserted = sampled = 0

    def __len__(self) -> int:
        return self.inserted


@pytest.mark.parametrize("ratio", [0.1, 1.0, 7.5])
@pytest.mark.parametrize("chunk", [1, 5, 40])
def test_the_limiter_keeps_the_ratio(ratio, chunk):
    """Actors and learner in turns, each for as long as it may."""
    counts = Counts()
    limiter = Limiter(counts, samples_per_insert=ratio, minimum=50, batch_size=16)
    rng = np.random.default_rng(0)
    while counts.inserted < 4000:
        assert limiter.may_insert() or limiter.may_sample()
        for _ in range(rng.integers(1, 50)):
            if limiter.may_insert():
                counts.inserted += chunk
        for _ in range(rng.integers(1, 50)):
            if limiter.may_sample():
                assert counts.inserted >= 50
                counts.sampled += 16
    assert counts.sampled / (counts.inserted - 50) == pytest.approx(ratio, rel=0.1)
