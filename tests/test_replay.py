"""The replay: what is cut, kept, drawn and forgotten."""

from __future__ import annotations

import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pronk.errors import UserError
from pronk.replay import Limiter, Replay, SegmentLog, SumTree, log
from pronk.replay import replay as memory
from pronk.types import ReplaySpec, TimeStep, Trajectory

# The sum-tree.


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 5, 64, 65, 5000, 300_000]))
def test_the_tree_finds_what_the_running_sum_says(seed, capacity):
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
    found = tree.find(mass)
    assert np.all(naive[found] > 0)
    sums = np.cumsum(naive)
    slack = 1e-9 * tree.total
    assert np.all(sums[found] >= mass - slack)
    assert np.all(sums[found] - naive[found] <= mass + slack)


def test_draws_are_in_proportion():
    tree, rng = SumTree(1000), np.random.default_rng(0)
    priorities = rng.exponential(size=1000) * (rng.random(1000) > 0.5)
    tree.set(np.arange(1000), priorities)
    drawn = np.concatenate([tree.sample(500, rng) for _ in range(400)])
    counts = np.bincount(drawn, minlength=1000)
    expected = priorities / priorities.sum() * len(drawn)
    assert not counts[priorities == 0].any()
    np.testing.assert_allclose(counts, expected, atol=5 * np.sqrt(expected.max()))


def test_sums_do_not_drift():
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
def test_bad_priorities_are_refused(bad):
    with pytest.raises(ValueError, match="finite and at least 0"):
        SumTree(4).set(np.array([0]), np.array([bad]))


# Sequences. Every number of a row says which row of which episode of which column it is.


class Game:
    """A column's endless rows, in episodes of random lengths; frames are stacked when asked."""

    def __init__(self, column: int, rng: np.random.Generator, longest: int, stack: int):
        self.column, self.rng, self.longest, self.stack = column, rng, longest, stack
        self.episode, self.row, self.length = -1, 0, -1

    def next(self) -> dict[str, np.ndarray]:
        if self.row > self.length:
            self.episode, self.row = self.episode + 1, 0
            self.length = int(self.rng.integers(1, self.longest + 1))
        t, self.row = self.row, self.row + 1
        ended = t == self.length
        name = (self.column * 1000 + self.episode) * 1000 + t
        frames = [self.frame(max(t - k, 0)) for k in reversed(range(self.stack))]
        return {
            "name": np.int64(name),
            "frames": np.stack(frames),
            "first": np.bool_(t == 0),
            "terminated": np.bool_(ended and self.episode % 2 == 0),
            "truncated": np.bool_(ended and self.episode % 2 == 1),
        }

    def frame(self, t: int) -> np.ndarray:
        return np.full((6, 5), (self.column * 7 + self.episode * 13 + t * 3) % 251, np.uint8)


class Games:
    """Trajectories of several columns, whose last row comes again."""

    def __init__(self, seed: int, columns: int, longest: int, *, stack: int = 3):
        rng = np.random.default_rng(seed)
        self.games = [Game(i, rng, longest, stack) for i in range(columns)]
        self.last: list[dict[str, np.ndarray]] | None = None
        self.version = 0

    def trajectory(self, steps: int) -> Trajectory:
        rows = [self.last or [game.next() for game in self.games]]
        rows += [[game.next() for game in self.games] for _ in range(steps)]
        self.last = rows[-1]
        x = {k: np.stack([np.stack([r[k] for r in row]) for row in rows]) for k in rows[0][0]}
        name = x["name"].astype(np.float64)
        timestep = TimeStep(
            {"frames": x["frames"], "name": x["name"]},
            name, x["terminated"], x["truncated"], x["first"], x["name"].astype(np.int32),
        )  # fmt: skip
        core = {"state": name[..., None] + 0.5}
        self.version += 1
        version = np.full(len(self.games), self.version, np.int32)
        extras = {"probability": name + 0.25, "core": core}
        return Trajectory(timestep, x["name"].astype(np.int32), extras, (), version)


def spec(**changes) -> ReplaySpec:
    return ReplaySpec(
        **{
            "capacity": 5000, "burn_in": 3, "length": 6, "overlap": 3, "minimum": 1,
            "samples_per_insert": 1.0, "priority_exponent": 1.0,
        }
        | changes
    )  # fmt: skip


def make(*, stack: int = 3, **changes) -> Replay:
    """A replay for the games' rows."""
    t = Games(0, columns=1, longest=3, stack=stack).trajectory(1)
    example = (t.timestep, t.action, t.extras)
    return Replay(spec(**changes), jax.tree.map(lambda x: x[0, 0], example))


def everything(replay: Replay) -> list[dict[str, np.ndarray]]:
    """Each sequence once, in order of insertion."""
    order = np.argsort(np.where(replay._items.key >= 0, replay._items.key, 2**62))[: len(replay)]
    priorities = replay._tree.priorities()
    found = []
    for slot in order:
        kept = priorities.copy()
        replay._tree.set(np.arange(len(kept)), np.where(np.arange(len(kept)) == slot, 1.0, 0.0))
        batch, key = replay.sample(1, np.random.default_rng(0))
        replay._tree.set(np.arange(len(kept)), kept)
        assert key[0] == replay._items.key[slot]
        t = batch.trajectory
        found.append(
            {
                "name": t.timestep.observation["name"][:, 0],
                "frames": t.timestep.observation["frames"][:, 0],
                "first": t.timestep.first[:, 0],
                "ended": (t.timestep.terminated | t.timestep.truncated)[:, 0],
                "reward": t.timestep.reward[:, 0],
                "action": t.action[:, 0],
                "probability": t.extras["probability"][:, 0],
                "first_core": t.core["state"][0, 0],
                "core": batch.core["state"][0, 0],
                "transitions": replay._items.transitions[slot],
            }
        )
    return found


cuts = st.sampled_from([(3, 6, 3), (0, 5, 0), (4, 8, 4), (7, 4, 3), (2, 5, 2)])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), cuts, st.sampled_from([2, 9, 40]), st.booleans())
def test_sequences_are_pieces_of_episodes(seed, cut, longest, compress):
    """Whole, in order, with the state that was there; and no transition is left out."""
    burn_in, length, overlap = cut
    replay = make(burn_in=burn_in, length=length, overlap=overlap, compress=compress)
    rng = np.random.default_rng(seed)
    games = [Games(seed + i, columns=2, longest=longest) for i in range(2)]
    for game in games[1].games:
        game.column += 2
    seen: list[int] = []
    for _ in range(8):
        for source in range(2):
            t = games[source].trajectory(int(rng.integers(1, 12)))
            names = t.timestep.observation["name"]
            seen += names[:-1][~t.timestep.first[1:]].tolist()
            replay.add(source, t)
    assert replay.transitions == len(seen)
    covered: list[int] = []
    ends: list[int] = []
    for item in everything(replay) if len(replay) else ():
        n, row = item["transitions"], item["name"]
        begin = row[burn_in] % 1000
        inside = row[burn_in : burn_in + n + 1]
        np.testing.assert_array_equal(inside, row[burn_in] + np.arange(n + 1))
        assert 1 <= n <= length
        assert begin % (length - overlap) == 0
        # Before the sequence its episode, and before that its first row, which resets the state.
        before = np.maximum(row[burn_in] - np.arange(burn_in, 0, -1), row[burn_in] - begin)
        np.testing.assert_array_equal(row[:burn_in], before)
        np.testing.assert_array_equal(item["first"][: burn_in + n + 1],
                                      row[: burn_in + n + 1] % 1000 == 0)  # fmt: skip
        # Behind the episode nothing has weight.
        assert item["first"][burn_in + n + 1 :].all()
        assert not item["ended"][burn_in + n + 1 :].any()
        assert not item["reward"][burn_in + n + 1 :].any()
        assert not item["ended"][burn_in : burn_in + n].any()
        np.testing.assert_array_equal(item["reward"][: burn_in + n + 1], row[: burn_in + n + 1])
        np.testing.assert_array_equal(item["action"], row)
        np.testing.assert_array_equal(item["probability"], row + 0.25)
        assert item["first_core"] == row[0] + 0.5
        assert item["core"] == row[burn_in] + 0.5
        for name, frames in zip(row, item["frames"], strict=True):
            column, episode, at = name // 1_000_000, name // 1000 % 1000, name % 1000
            game = Game(int(column), rng, 1, 3)
            game.episode = int(episode)
            expected = [game.frame(max(int(at) - k, 0)) for k in (2, 1, 0)]
            np.testing.assert_array_equal(frames, expected)
        covered += inside[:-1].tolist()
        ends.append(inside[-1])
    assert len(set(ends)) == len(ends)  # each brings something new
    # What is missing belongs to the last episodes, which are running.
    running = {game.column: game.episode for source in games for game in source.games}
    finished = [n for n in seen if n // 1000 % 1000 < running[n // 1_000_000] - 1]
    assert set(finished) <= set(covered)


def check_counts(replay: Replay) -> None:
    """Every place is held as often as something shows it, and is free where nothing does."""
    items, rows = replay._items, replay._rows
    held = np.zeros(rows.places.capacity, int)
    np.add.at(held, items.rows[items.key >= 0].reshape(-1), 1)
    for source in replay._sources.values():
        for stream in source.streams:
            np.add.at(held, np.array(stream.rows, int), 1)
    np.testing.assert_array_equal(rows.places.held, held)
    assert rows.places.free == (held == 0).sum()
    for stack in rows.stacks.values():
        shown = np.zeros(stack.places.capacity, int)
        np.add.at(shown, stack.of_row[held > 0].reshape(-1), 1)
        np.testing.assert_array_equal(stack.places.held, shown)
        assert stack.places.free == (shown == 0).sum()
        free = stack.places._stack[: stack.places.free]
        assert set(free) == set(np.flatnonzero(shown == 0))
    assert (replay._tree.priorities() > 0).sum() <= len(replay)


@pytest.mark.parametrize("eviction", ["fifo", "lowest-priority"])
@pytest.mark.parametrize("longest", [3, 60])
def test_memory_is_given_back(eviction, longest):
    replay = make(capacity=150, eviction=eviction)
    games, rng = Games(0, columns=2, longest=longest), np.random.default_rng(0)
    keys: list[int] = []
    for _ in range(60):
        replay.add(0, games.trajectory(7))
        if len(replay):
            batch, key = replay.sample(4, rng)
            names = batch.trajectory.timestep.observation["name"]
            assert np.all(names[3] < names[4])
            replay.update(key, rng.random(4) + 0.1)
            keys += key.tolist()
        check_counts(replay)
    assert replay.inserted > 2 * len(replay)
    if eviction == "fifo":
        left = replay._items.key[replay._items.key >= 0] // replay._tree.capacity
        assert sorted(left) == list(range(replay.inserted - len(replay), replay.inserted))
        assert len(replay) * 3 <= 150


def test_the_least_important_goes_first():
    replay = make(capacity=120, eviction="lowest-priority")
    games = Games(0, columns=1, longest=500)
    while not replay.inserted > 10:
        replay.add(0, games.trajectory(10))
    kept = replay._items.key[np.flatnonzero(replay._items.key >= 0)[:3]]
    replay.update(replay._items.key[replay._items.key >= 0], np.full(len(replay), 0.1))
    replay.update(kept, np.full(3, 5.0))
    for _ in range(30):
        replay.add(0, games.trajectory(10))
        new = replay._items.key[replay._items.key > kept.max()]
        replay.update(new, np.full(len(new), 0.2))
    assert set(kept) <= set(replay._items.key)


def test_a_late_priority_touches_nothing_newer():
    replay, games = make(capacity=60), Games(0, columns=1, longest=500)
    rng = np.random.default_rng(0)
    while not len(replay):
        replay.add(0, games.trajectory(5))
    _, old = replay.sample(2, rng)
    while old[0] in replay._items.key:
        replay.add(0, games.trajectory(5))
    before = replay._tree.priorities().copy()
    replay.update(old, np.array([1e9, 1e9]))
    np.testing.assert_array_equal(replay._tree.priorities(), before)
    assert replay.stale == 2
    assert len(set(old % replay._tree.capacity) & set(replay._items.key % replay._tree.capacity))


def test_keys_of_a_long_run():
    """Which are larger than 32 bits hold."""
    replay, games = make(), Games(0, columns=1, longest=500)
    replay._next = 10**12
    while not len(replay):
        replay.add(0, games.trajectory(6))
    _, keys = replay.sample(1, np.random.default_rng(0))
    assert keys.dtype == np.int64
    assert keys[0] // replay._tree.capacity >= 10**12
    replay.update(keys, np.array([3.0]))
    assert replay._tree.priorities()[keys[0] % replay._tree.capacity] == 3.0


def test_priorities():
    """New ones are the highest there are; the exponent counts; what is not finite changes nothing;
    the odds are those of the draw."""
    replay, games = make(priority_exponent=0.5), Games(0, columns=2, longest=500)
    for _ in range(10):
        replay.add(0, games.trajectory(6))
    keys = np.sort(replay._items.key[replay._items.key >= 0])
    assert set(replay._tree.priorities()[keys % replay._tree.capacity]) == {1.0}
    wanted = np.linspace(0, 9, len(keys))
    replay.update(keys, wanted)
    replay.update(keys[:2], np.array([np.nan, np.inf]))
    np.testing.assert_allclose(
        replay._tree.priorities()[keys % replay._tree.capacity], np.sqrt(wanted)
    )
    batch, drawn = replay.sample(64, np.random.default_rng(0))
    odds = dict(zip(keys, np.sqrt(wanted) / np.sqrt(wanted).sum(), strict=True))
    np.testing.assert_allclose(batch.probabilities, [odds[k] for k in drawn], rtol=1e-5)
    assert keys[0] not in drawn
    replay.add(0, games.trajectory(6))
    newest = replay._items.key.max()
    assert replay._tree.priorities()[newest % replay._tree.capacity] == 3.0


def test_where_nothing_surprises_all_are_drawn_alike():
    replay, games = make(), Games(0, columns=2, longest=500)
    for _ in range(10):
        replay.add(0, games.trajectory(6))
    keys = replay._items.key[replay._items.key >= 0]
    replay.update(keys, np.zeros(len(keys)))
    batch, _ = replay.sample(4, np.random.default_rng(0))
    np.testing.assert_allclose(batch.probabilities, 1 / len(keys), rtol=1e-6)


def test_each_frame_is_stored_once():
    replay, games = make(capacity=2000, stack=4), Games(0, columns=2, longest=100, stack=4)
    for _ in range(20):
        replay.add(0, games.trajectory(20))
    stack = next(iter(replay._rows.stacks.values()))
    used = stack.places.capacity - stack.places.free
    rows = replay._rows.places.capacity - replay._rows.places.free
    episodes = sum(game.episode + 1 for game in games.games)
    assert rows <= used <= rows + 3 * episodes


def test_episodes_that_fill_the_memory_alone_are_an_error():
    replay, games = make(capacity=40), Games(0, columns=8, longest=500)
    trajectories = [games.trajectory(5) for _ in range(30)]
    with pytest.raises(UserError, match="`--replay-capacity` is 40"):
        sum(replay.add(0, trajectory) for trajectory in trajectories)


def test_many_threads_at_once():
    """Actors, a sampler and a writer of priorities: nothing torn, nothing lost."""
    replay = make(capacity=800)
    games = [Games(i, columns=2, longest=30) for i in range(3)]
    for i, source in enumerate(games):
        for game in source.games:
            game.column += 2 * i
    errors: list[BaseException] = []
    done = threading.Event()

    def act(i: int) -> None:
        for _ in range(150):
            replay.add(i, games[i].trajectory(9))

    def draw(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not done.is_set():
            if not len(replay):
                continue
            batch, keys = replay.sample(8, rng)
            t = batch.trajectory
            name, frames = (t.timestep.observation[k] for k in ("name", "frames"))
            value = (name // 10**6 * 7 + name // 1000 % 1000 * 13 + name % 1000 * 3) % 251
            assert (frames[:, :, -1] == value[..., None, None]).all()
            assert (t.extras["probability"] == name + 0.25).all()
            assert (batch.core["state"][:, 0] == name[3] + 0.5).all()
            replay.update(keys, rng.random(8))

    def guarded(function, *args) -> None:
        try:
            function(*args)
        except BaseException as error:
            errors.append(error)

    actors = [threading.Thread(target=guarded, args=(act, i)) for i in range(3)]
    samplers = [threading.Thread(target=guarded, args=(draw, i)) for i in range(2)]
    for thread in actors + samplers:
        thread.start()
    for thread in actors:
        thread.join()
    done.set()
    for thread in samplers:
        thread.join()
    assert not errors
    check_counts(replay)
    assert replay.sampled > 0


def test_what_a_source_had_begun_may_be_forgotten():
    replay, games = make(capacity=3000), Games(0, columns=2, longest=100)
    for _ in range(4):
        replay.add(7, games.trajectory(9))
    before = everything(replay)
    assert before
    replay.forget(7)
    check_counts(replay)
    jax.tree.map(np.testing.assert_array_equal, everything(replay), before)
    held = replay._rows.places.held.sum()
    assert replay.add(7, games.trajectory(9)) == 0  # it comes too late
    assert replay._rows.places.held.sum() == held
    replay.add(8, Games(1, columns=2, longest=100).trajectory(9))
    check_counts(replay)
    assert len(everything(replay)) > len(before)


# The log.


@pytest.fixture
def small_segments(monkeypatch):
    monkeypatch.setattr(memory, "PLACES_PER_PART", 24)
    monkeypatch.setattr(log, "_POLL", 0.001)


def until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def filled(directory) -> SegmentLog:
    """The log of a replay that holds something."""
    replay, games = make(capacity=3000), Games(0, columns=2, longest=30)
    kept = SegmentLog(replay, directory, keep=2)
    for _ in range(20):
        replay.add(0, games.trajectory(7))
    return kept


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("eviction", ["fifo", "lowest-priority"])
def test_what_was_saved_is_restored(tmp_path, small_segments, eviction, compress):
    """At any save, with episodes running and most of what was written earlier forgotten."""
    changes = {"capacity": 300, "eviction": eviction, "compress": compress}
    replay, games = make(**changes), Games(0, columns=2, longest=30)
    kept = SegmentLog(replay, tmp_path, keep=2)
    rng = np.random.default_rng(0)
    for _ in range(6):
        for _ in range(rng.integers(1, 30)):
            replay.add(0, games.trajectory(7))
            keys = replay._items.key[replay._items.key >= 0]
            replay.update(keys, rng.random(len(keys)))
        tree = kept.save()
        again = make(**changes)
        restored = SegmentLog(again, tmp_path, keep=2)
        restored.restore(tree, episodes=True)
        restored.close()
        check_counts(again)
        jax.tree.map(np.testing.assert_array_equal, everything(again), everything(replay))
        assert again._tree.total == pytest.approx(replay._tree.total)
        following = games.trajectory(7)
        for each in (replay, again):
            each.add(0, following)
        jax.tree.map(np.testing.assert_array_equal, everything(again), everything(replay))
    kept.close()


def test_segments_are_written_while_it_goes_on(tmp_path, small_segments):
    kept = filled(tmp_path)
    until(lambda: all(len(places.unsaved()) < 24 for _, places, _ in kept.replay._stores()))
    with kept._lock:
        written = len(list(tmp_path.iterdir()))
    assert written > 8
    tree = kept.save()
    assert len(tree["segments"]) - written <= 4  # one for what is left of each kind
    kept.close()


def test_a_segment_that_cannot_be_written_is_told_by_the_next_save(tmp_path, small_segments):
    (tmp_path / "file").write_text("")
    kept = filled(tmp_path / "file")
    until(lambda: not kept._writer.is_alive())
    (tmp_path / "file").unlink()  # it could be written now, but what was lost is lost
    with pytest.raises(UserError, match="file"):
        kept.save()
    kept.close()


def test_nothing_is_saved_after_a_part_was_lost(tmp_path, monkeypatch):
    """The replay counts it as saved: a checkpoint would name what is nowhere."""
    kept = filled(tmp_path)
    write = log.write_and_sync

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log, "write_and_sync", full)
    with pytest.raises(UserError, match="No space left"):
        kept.save()
    monkeypatch.setattr(log, "write_and_sync", write)
    with pytest.raises(UserError, match=r"an earlier part .*No space left"):
        kept.save()
    kept.close()


def test_an_older_log_is_refused_before_anything_is_changed(tmp_path):
    replay = make()
    kept = SegmentLog(replay, tmp_path, keep=2)
    with pytest.raises(UserError, match="another version"):
        kept.restore({"epoch": np.int64(3), "segments": {}}, episodes=True)
    assert len(replay) == 0
    kept.close()


def test_a_source_may_be_forgotten_while_it_adds(monkeypatch):
    replay, games = make(capacity=3000), Games(0, columns=2, longest=100)
    for _ in range(4):
        replay.add(7, games.trajectory(9))
    write = replay._rows.write

    def meanwhile(*given):
        write(*given)
        replay.forget(7)

    monkeypatch.setattr(replay._rows, "write", meanwhile)
    assert replay.add(7, games.trajectory(9)) == 0
    check_counts(replay)


class Counts:
    """What a limiter watches."""

    inserted = sampled = 0

    def __len__(self) -> int:
        return self.inserted


@pytest.mark.parametrize("ratio", [0.1, 1.0, 7.5])
@pytest.mark.parametrize("chunk", [1, 5, 40])
def test_the_limiter_keeps_the_ratio(ratio, chunk):
    """Whoever is faster: each in turn goes on for as long as it may."""
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
