"""Environments that sleep: how long, and what they return."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pronk import envs
from pronk.envs.waiting import Pace
from pronk.errors import UserError


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
    ended = 0
    for _ in range(700):
        timestep = env.step(np.zeros(8, int))
        ended += int(timestep.terminated.sum())
        np.testing.assert_array_equal(timestep.reward, 1.0 - timestep.first)
    episodes = env.episodes()
    assert len(episodes) == ended
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
