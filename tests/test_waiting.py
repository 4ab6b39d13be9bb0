"""Environments that wait, and the queueing model of runtimes that wait for them."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from pronk import envs
from pronk.envs.waiting import Pace
from pronk.errors import UserError
from pronk.experiments.bench.queueing import Costs, Get, Put, Simulation, Store, Wait, Work, predict

FREE = Costs(*[0.0] * 6, 1.0, 0.0, 0.0)


def paces(task: str, count: int, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pace = Pace(task, count, 0)
    seconds, begins, ends = zip(*[pace.next() for _ in range(steps)], strict=True)
    return np.stack(seconds), np.stack(begins), np.stack(ends)


def test_even_steps_take_ten_milliseconds():
    seconds, begins, ends = paces("even", 50, 400)
    assert seconds.mean() == pytest.approx(0.01, rel=0.01)
    assert seconds.std() == pytest.approx(0.0005, rel=0.05)
    assert not begins.any()
    assert not ends.any()


def test_uneven_steps_vary_and_resets_are_long():
    seconds, begins, ends = paces("uneven", 50, 2000)
    steps, resets = seconds[~begins], seconds[begins]
    assert steps.mean() == pytest.approx(0.01, rel=0.02)
    assert steps.std() == pytest.approx(0.005, rel=0.05)
    assert resets.min() >= 0.5
    assert resets.max() <= 3.0
    assert resets.mean() == pytest.approx(1.75, rel=0.1)
    np.testing.assert_array_equal(begins[1:], ends[:-1])  # a reset follows every end
    # From a reset to the next, both counted: 100 to 300 steps between.
    lengths = np.concatenate([np.diff(np.flatnonzero(column)) for column in begins.T]) - 1
    assert lengths.min() >= 100
    assert lengths.max() <= 300
    assert lengths.mean() == pytest.approx(200, rel=0.05)


def test_a_step_takes_as_long_as_its_slowest_slot():
    env = envs.make("pronk/Waiting-v0", 4, seed=1, env_args={"scale": 3.0})
    pace = Pace("even", 4, [1, 0])
    timestep = env.reset()
    assert timestep.first.all()
    assert timestep.observation.shape == (4, 84, 84, 4)
    expected = 3.0 * sum(pace.next()[0].max() for _ in range(10))
    start = time.perf_counter()
    for _ in range(10):
        before = timestep.observation
        timestep = env.step(np.zeros(4, int))
        assert (timestep.observation != before).any()
    assert time.perf_counter() - start >= expected
    np.testing.assert_array_equal(timestep.reward, 1.0)
    assert env.state() is None


def test_episodes_of_the_uneven_task():
    env = envs.make("pronk/Waiting-v0", 8, env_args={"task": "uneven", "scale": 0.0})
    env.reset()
    seen = 0
    for _ in range(700):
        timestep = env.step(np.zeros(8, int))
        seen += int(timestep.terminated.sum())
        np.testing.assert_array_equal(timestep.reward, 1.0 - timestep.first)
    episodes = env.episodes()
    assert len(episodes) == seen
    later = [e for e in episodes if e.length > 0][8:]
    assert all(100 <= e.length <= 300 and e.episode_return == e.length for e in later)


@pytest.mark.parametrize(
    ("env_args", "message"),
    [
        ({"task": "evn"}, "did you mean 'even'"),
        ({"scale": -1.0}, "expected at least 0"),
        ({"speed": 2}, "does not accept"),
    ],
)
def test_invalid_arguments_are_errors(env_args, message):
    for make in (lambda: envs.spec_of("pronk/Waiting-v0", env_args), lambda: envs.make(
        "pronk/Waiting-v0", 1, env_args=env_args
    )):  # fmt: skip
        with pytest.raises(UserError, match=message):
            make()


def test_processors_are_shared_fairly():
    simulation, done = Simulation(2), {}

    def job(name: str, work: Work):
        yield work
        done[name] = simulation.now

    for name in "abc":
        simulation.start(job(name, Work(1.0)))
    simulation.start(job("wide", Work(1.0, 2.0)))
    simulation.run(10.0)
    # Four jobs on two cores: half a core each, all done together.
    assert done == pytest.approx({"a": 2.0, "b": 2.0, "c": 2.0, "wide": 2.0})
    simulation, done = Simulation(2), {}
    simulation.start(job("narrow", Work(1.0)))
    simulation.start(job("wide", Work(4.0, 2.0)))
    simulation.run(10.0)
    # One core each; when the narrow one is done, the wide one has both.
    assert done == pytest.approx({"narrow": 1.0, "wide": 2.5})


def test_what_acts_has_the_cores_of_actors_only():
    simulation, done = Simulation(2, actor_cores=1), {}

    def job(name: str, work: Work):
        yield work
        done[name] = simulation.now

    for name in "ab":
        simulation.start(job(name, Work(1.0, acts=True)))
    simulation.start(job("learner", Work(3.0, 2.0)))
    simulation.run(10.0)
    # One core is the actors' and one the learner's, which has both when the actors are done.
    assert done == pytest.approx({"a": 2.0, "b": 2.0, "learner": 2.5})


def test_queues_are_bounded():
    simulation, log = Simulation(1), []
    store = Store(1)

    def producer():
        for i in range(3):
            yield Put(store, i)
            log.append(("put", i, simulation.now))

    def consumer():
        for _ in range(3):
            yield Wait(1.0)
            item = yield Get(store)
            log.append(("got", item, simulation.now))

    simulation.start(producer())
    simulation.start(consumer())
    simulation.run(5.0)
    assert [entry for entry in log if entry[0] == "got"] == [("got", i, 1.0 + i) for i in range(3)]
    assert [entry for entry in log if entry[0] == "put"] == [
        ("put", 0, 0.0),
        ("put", 1, 1.0),
        ("put", 2, 2.0),
    ]


N, T = 12, 20


def model(architecture: str, task: str = "even", costs: Costs = FREE, cores: int = 2) -> float:
    return predict(architecture, task, costs, cores=cores, envs=N, unroll=T)


@pytest.mark.parametrize("architecture", ["impala", "async-batched", "a3c"])
def test_actors_that_wait_for_nobody_wait_for_their_environments_only(architecture):
    assert model(architecture) == pytest.approx(N / 0.01, rel=0.02)
    # Of an episode's 200 steps and 1.75 s of reset.
    assert model(architecture, "uneven") == pytest.approx(N * 200 / (2.0 + 1.75), rel=0.1)


def test_steps_together_wait_for_the_slowest():
    largest = np.random.default_rng(0).normal(0.01, 0.0005, (10_000, N)).max(1).mean()
    assert model("sync-step") == pytest.approx(N / largest, rel=0.01)
    sums = np.random.default_rng(0).normal(0.01 * T, 0.0005 * math.sqrt(T), (10_000, N))
    expected = N * T / sums.max(1).mean()
    for name in ("sync-unroll", "sync-batched"):
        assert model(name) == pytest.approx(expected, rel=0.01)


def test_the_processors_limit_what_computes():
    costs = FREE._replace(step=0.004)
    assert model("impala", costs=costs) == pytest.approx(2 / 0.004, rel=0.05)
    costs = FREE._replace(gradient=0.8)
    assert model("a3c", costs=costs) == pytest.approx(2 * T / 0.8, rel=0.1)


def test_the_learner_limits_what_is_learnt():
    """One update at a time, on as many cores as it can use."""
    costs = FREE._replace(update=0.9, speedup=1.5)
    expected = N * T / 0.6
    assert model("impala", costs=costs) == pytest.approx(expected, rel=0.03)
    waited = N * T / (0.6 + 0.2)  # acting and learning in turns
    assert model("sync-step", costs=costs) == pytest.approx(waited, rel=0.05)


def test_the_server_takes_all_who_wait():
    """Per batch 20 ms, whoever is in it: everybody is, from the second batch on."""
    costs = FREE._replace(batch=0.02)
    assert model("async-batched", costs=costs) > 0.6 * N / 0.03


@pytest.mark.parametrize(
    ("architecture", "costs", "limit"),
    [
        ("impala", {"step": 0.004}, 1 / 0.004),
        ("async-batched", {"request": 0.004}, 1 / 0.004),
        ("sync-step", {"step_all": 1.0}, N / 1.01),
    ],
)
def test_the_actors_cores_limit_what_acts(architecture, costs, limit):
    costs = FREE._replace(**costs)
    rate = predict(
        architecture, "even", costs, cores=2, actor_cores=1, envs=N, unroll=T, seconds=60.0
    )
    assert rate == pytest.approx(limit, rel=0.15)


def test_an_update_learns_from_its_batch_only():
    """Half the trajectories per update: twice the updates, at most one at a time."""
    costs = FREE._replace(update=1.0)
    whole, half = (
        predict("impala", "even", costs, cores=2, envs=N, unroll=T, batch=batch)
        for batch in (N, N // 2)
    )
    assert whole == pytest.approx(N * T, rel=0.05)
    assert half == pytest.approx(N * T / 2, rel=0.05)
