"""Batches and runtimes: nothing lost, nothing mixed up, nothing that goes on after an error."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from pronk import agents, envs
from pronk.agents.impala_config import Config
from pronk.errors import UserError
from pronk.runtime import learner as learner_module
from pronk.runtime.actor import Actor, Player, Unroll
from pronk.runtime.asynchronous import AsynchronousLoop
from pronk.runtime.fused import FusedLoop
from pronk.runtime.learner import Learner
from pronk.runtime.places.supervise import Restarts, Supervised
from pronk.runtime.rounds import RoundsLoop
from pronk.runtime.source import Queue
from pronk.runtime.threads import WaitTimes
from pronk.storage.checkpoint import Checkpointer
from pronk.types import TimeStep, Trajectory

KEY = jax.random.key(0)
CONFIG = Config(
    unroll=12, batch_size=4, hidden_sizes=(8,), recurrent_core="lstm", recurrent_units=4
)
SPEC = envs.spec_of("pronk/Catch-v0")
AGENT = agents.make("impala", CONFIG, SPEC, horizon=1000)


def numbered(start: int, width: int) -> Trajectory:
    """A trajectory `[2, width]` whose every number says its column."""
    ids = np.arange(start, start + width)
    rows = np.stack([ids, ids + 0.5])
    flags = np.zeros(rows.shape, bool)
    timestep = TimeStep({"a": rows}, rows, flags, flags, flags, rows)
    return Trajectory(timestep, rows, {"log_prob": rows}, (ids, {"x": ids}), ids)


def test_a_queue_gives_batches_in_parts_of_one_width():
    queue = Queue(6)
    for i in range(3):
        queue.add(i, numbered(3 * i, 3))
    assert queue.ready()
    parts = queue.take(3).parts
    assert [list(part.trajectory.version) for part in parts] == [[0, 1], [2, 3], [4, 5]]
    for part in parts:
        np.testing.assert_array_equal(part.trajectory.action[0], part.trajectory.version)
    assert not queue.drained
    assert not queue.ready()
    queue.add(0, numbered(9, 3))
    assert queue.ready()
    assert list(queue.take(1).parts[0].trajectory.version) == [6, 7, 8, 9, 10, 11]
    assert queue.drained


@pytest.mark.parametrize("widths", [[5, 5, 5], [1] * 7, [2, 3, 7, 1, 2], [16], [4, 4]])
@pytest.mark.parametrize("size", [1, 3, 4, 5])
@pytest.mark.parametrize("together", [False, True])
def test_a_queue_keeps_the_order_of_columns(widths, size, together):
    queue, taken, start = Queue(size), [], 0
    for i, width in enumerate(widths):
        queue.add(0, numbered(start, width))
        start += width
        while (not together or i == len(widths) - 1) and queue.ready():
            (batch,) = queue.take(1).parts
            assert batch.probabilities is None
            t = batch.trajectory
            assert t.version.shape == (size,)
            for x in jax.tree.leaves(t.timestep._replace(terminated=0, truncated=0, first=0)):
                if np.ndim(x):
                    np.testing.assert_array_equal(x, np.stack([t.version, t.version + 0.5]))
            for x in (t.action, t.extras["log_prob"]):
                np.testing.assert_array_equal(x[0], t.version)
            for x in jax.tree.leaves(t.core):
                np.testing.assert_array_equal(x, t.version)
            taken.extend(t.version)
        assert queue.drained == (start == len(taken))
    assert taken == list(range(start - start % size))


def initial_state():
    return jax.jit(AGENT.init)(KEY)


def deterministic(
    actors: int = 2, num_envs: int = 4, seed: int = 0, in_turns: bool = True
) -> RoundsLoop:
    made = [
        Actor(
            Player(
                AGENT,
                jax.random.fold_in(KEY, i),
                np.arange(i * num_envs, (i + 1) * num_envs, dtype=np.int32),
                actors * num_envs,
            ),
            envs.make("pronk/Catch-v0", num_envs, seed=seed, first_env_id=i * num_envs),
            unroll=CONFIG.unroll,
        )
        for i in range(actors)
    ]
    learner = Learner(AGENT, initial_state(), batch_size=4)
    return RoundsLoop(learner, made, Queue(4), in_turns=in_turns)


def fused() -> FusedLoop:
    env = envs.jax_env_of("pronk/Catch-v0")
    assert env is not None
    return FusedLoop(
        AGENT, env, initial_state(), KEY, unroll=CONFIG.unroll, num_envs=4, max_steps=20 * 96
    )


def digest(runtime) -> list[np.ndarray]:
    state = runtime.learner_state
    return [np.asarray(x) for x in jax.tree.leaves((state.params, state.opt_state, state.steps))]


def catch_steps(start: int, stop: int, num_envs: int) -> int:
    """Transitions `start` to `stop` of Catch: 9 of a game, then a dummy."""
    return num_envs * sum(t % 10 != 9 for t in range(start, stop))


def test_rounds_count_real_steps_and_are_reproducible():
    one, other = deterministic(), deterministic()
    steps = []
    for _ in range(4):
        update = one.update()
        again = other.update()
        assert update.steps == again.steps
        assert update.policy_lag == again.policy_lag
        steps.append(update.steps)
    # Steps count when they are taken: with the first of two batches of 4 columns of every round.
    rounds = [catch_steps(0, 12, 8), catch_steps(12, 24, 8)]
    assert steps == [rounds[0], 0, rounds[1], 0]
    assert one.learner_state.steps == sum(steps)
    assert one.drained
    for a, b in zip(digest(one), digest(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_actors_do_the_same_in_threads_as_in_turns():
    one, other = deterministic(), deterministic(in_turns=False)
    for _ in range(4):
        assert one.update().episodes == other.update().episodes
    for a, b in zip(digest(one), digest(other), strict=True):
        np.testing.assert_array_equal(a, b)
    other.close()
    assert not any(t.name.startswith("actor") for t in threading.enumerate())


def test_policy_lag_and_episodes_of_rounds():
    runtime = deterministic()
    updates = [runtime.update() for _ in range(2)]
    assert [u.policy_lag for u in updates] == [0.0, 1.0]
    episodes = updates[0].episodes
    assert sorted(e.env_id for e in episodes) == list(range(8))
    assert all(e.length == 9 and abs(e.episode_return) == 1 for e in episodes)
    assert not updates[1].episodes


@pytest.mark.parametrize("make", [deterministic, fused])
def test_a_resumed_loop_equals_the_uninterrupted_one(make, tmp_path):
    runtime = make()
    while not (runtime.update() and runtime.drained):
        pass
    checkpointer = Checkpointer(tmp_path)
    trees = {"learner": runtime.learner_state, **runtime.state()}
    checkpointer.save(1, trees, {}, block=True)
    expected = [runtime.update() for _ in range(2)]
    loaded = checkpointer.load()
    assert loaded is not None
    resumed = make()
    state = loaded.restore("learner", initial_state())
    if make is fused:
        resumed.run = resumed.run._replace(learner=state)
    else:
        resumed.learner = Learner(AGENT, state, batch_size=4)
    assert resumed.restore(loaded) == []
    for update in expected:
        again = resumed.update()
        assert again.steps == update.steps
        assert again.episodes == update.episodes
    for a, b in zip(digest(runtime), digest(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_fused_loop_counts_real_steps():
    runtime = fused()
    updates = [runtime.update() for _ in range(2)]
    assert updates[0].steps == catch_steps(0, 24, 4)  # two updates per call
    assert updates[1].steps == catch_steps(24, 48, 4)
    state = runtime.learner_state
    assert state.updates == 4
    assert state.steps == updates[0].steps + updates[1].steps
    episodes = [e for u in updates for e in u.episodes]
    assert len(episodes) == 4 * 4
    assert all(e.length == 9 and abs(e.episode_return) == 1 for e in episodes)
    # Runtimes store cores by different paths: on the first update the policies agree in both.
    assert np.isfinite(updates[0].metrics["loss/policy"])


def test_equal_fused_runs_share_what_is_compiled():
    """Also of environments made anew; the runs themselves have nothing in common."""
    one, two = fused(), fused()
    assert one._many is two._many
    for _ in range(2):
        one.update()
    compiled = one._many._cache_size()
    two.update()
    assert two._many._cache_size() == compiled
    assert int(two.learner_state.updates) == int(one.learner_state.updates) // 2 > 0


def test_fused_data_is_on_policy():
    """At a learning rate of 0 the ratio stays 1, also where an unroll begins within an episode."""
    env = envs.jax_env_of("pronk/Catch-v0")
    assert env is not None
    state = initial_state()
    rng = np.random.default_rng(0)
    state = state._replace(
        params=jax.tree.map(lambda x: x + np.float32(rng.normal(size=x.shape)), state.params),
        hyper=state.hyper | {"learning_rate": np.float32(0)},
    )
    runtime = FusedLoop(AGENT, env, state, KEY, unroll=12, num_envs=4, max_steps=1)
    for _ in range(3):
        update = runtime.update()
        np.testing.assert_allclose(update.metrics["importance_ratio"], 1.0, atol=1e-5)
    assert update.metrics["loss/entropy"] < 1.0  # far from uniform: the test can fail


class _Scripted:
    """An actor that unrolls at once, and fails at its `fails`th time."""

    placement, rows_acted = "in the test", 0

    def __init__(self, fails: int | None = None):
        self.fails, self.count, self.closed = fails, 0, False
        runtime = deterministic(1)
        self.unrolled = runtime._actors[0].unroll(runtime.learner.latest[1], 0)

    def unroll(self, behaviour, version) -> Unroll:
        self.count += 1
        if self.count == self.fails:
            raise UserError("the actor broke")
        trajectory = self.unrolled.trajectory
        return self.unrolled._replace(
            trajectory=trajectory._replace(version=np.full_like(trajectory.version, version))
        )

    def close(self) -> None:
        self.closed = True


def asynchronous(*actors: _Scripted) -> AsynchronousLoop:
    restarts = Restarts(0, Path(os.devnull), hang_after=60.0)
    supervised = [Supervised(lambda _, a=a: a, "actor", restarts, a) for a in actors]
    learner = Learner(AGENT, initial_state(), batch_size=4)
    return AsynchronousLoop(learner, supervised, Queue(4, bounded=True))


def test_the_asynchronous_loop_learns_and_closes():
    actors = [_Scripted(), _Scripted()]
    runtime = asynchronous(*actors)
    steps = [runtime.update().steps for _ in range(3)]
    each = catch_steps(0, 12, 4)
    assert runtime.learner_state.steps == 3 * each
    runtime.close()
    assert all(n % each == 0 for n in steps)
    assert all(a.closed for a in actors)
    names = {t.name.split("-")[0] for t in threading.enumerate()}
    assert not names & {"actor", "loader", "learner", "watcher"}
    count = [a.count for a in actors]
    time.sleep(0.05)
    assert count == [a.count for a in actors]


@pytest.mark.parametrize("waits", ["learner", "actors"])
def test_batches_come_in_parts_while_actors_wait_for_the_learner(monkeypatch, waits):
    """And whole while the learner waits, which leaves the cores to the actors."""
    monkeypatch.setattr(learner_module, "available_cpus", lambda: 2)
    runtime = asynchronous(_Scripted())
    parts: list[int] = []
    update = Learner.update

    def spy(learner, prepared):
        parts.append(len(prepared.parts))
        return update(learner, prepared)

    monkeypatch.setattr(Learner, "update", spy)
    for _ in range(6):
        # Longer than either has really waited.
        runtime._waits.learner += 1e6 * (waits == "learner")
        runtime._waits.queue += 1e6 * (waits == "actors")
        runtime.update()
    runtime.close()
    assert parts[3:] == [2 if waits == "actors" else 1] * 3  # batches are made ahead


def test_old_waits_are_forgotten():
    """Such as those for compilations."""
    waits = WaitTimes(1)
    waits.queue += 10.0
    assert waits.on_learner()
    answers = []
    for _ in range(100):
        waits.learner += 0.01
        answers.append(waits.on_learner())
    assert answers[0]
    assert not answers[-1]
    assert answers == sorted(answers, reverse=True)
    assert waits.bound_by() == "learner"


def test_the_error_of_one_of_two_actors_is_raised():
    """Although the other one keeps the queue full."""
    runtime = asynchronous(_Scripted(), _Scripted(fails=2))

    def learn_on() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            runtime.update()

    try:
        with pytest.raises(UserError, match="the actor broke"):
            learn_on()
    finally:
        runtime.close()


def test_an_interrupted_round_is_not_drained():
    """A checkpoint taken then would continue row T in an environment that is ahead of it."""
    runtime = deterministic(1)
    runtime.update()
    assert runtime.drained
    env = runtime._actors[0].env
    step, calls = env.step, []

    def interrupted(action):
        calls.append(None)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step(action)

    env.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        runtime.update()
    assert not runtime.drained
