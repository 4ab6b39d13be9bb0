"""Evaluation: which episodes count."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from pronk.maths import scores
from pronk.run.evaluate import evaluate
from pronk.storage.files import without_nan
from pronk.types import Agent, Carry, EnvSpec, Episode, TimeStep

NOTHING: Any = None
AGENT = Agent(
    init=NOTHING,
    behaviour=NOTHING,
    initial_carry=lambda key, env_ids, num_envs, evaluate: Carry(()),
    act=lambda behaviour, carry, timestep, key: (jnp.zeros(2, int), carry, {}),
    learn=NOTHING,
    adopt=NOTHING,
    warm_start=NOTHING,
)


class ShortAndLong:
    """Episodes of slot 0 take one step and return 1; those of slot 1 take five and return 0."""

    spec = EnvSpec("test", gym.spaces.Discrete(2), gym.spaces.Discrete(2))
    num_envs = 2
    placement = ""

    def __init__(self) -> None:
        self.steps, self.ended = 0, []

    def reset(self) -> TimeStep:
        flags = np.zeros(2, bool)
        zeros = np.zeros(2, np.int32)
        return TimeStep(zeros, np.zeros(2, np.float32), flags, flags, flags, zeros)

    def step(self, action: Any) -> TimeStep:
        self.steps += 1
        self.ended.append(Episode(1.0, 1, 6))  # numbered from 6: the slot is the remainder
        if self.steps % 5 == 0:
            self.ended.append(Episode(0.0, 5, 7))
        return self.reset()

    def episodes(self) -> list[Episode]:
        ended, self.ended = self.ended, []
        return ended

    def state(self) -> None: ...
    def restore(self, state: Any) -> None: ...
    def warnings(self) -> list[str]: ...  # type: ignore[empty-body]
    def close(self) -> None: ...


def test_short_episodes_are_not_favoured() -> None:
    """Every slot plays the same number of episodes, however soon they end."""
    env = ShortAndLong()
    result = evaluate(AGENT, (), env, episodes=5, key=jax.random.key(0))
    assert result is not None
    assert (result.episodes, result.mean_return, result.mean_length) == (5, 3 / 5, 13 / 5)
    assert env.steps == 10


def test_nan_becomes_none_however_deep() -> None:
    cleaned = without_nan({"a": math.nan, "tasks": {"b": {"error": math.inf, "mean": 1.0}}})
    assert cleaned == {"a": None, "tasks": {"b": {"error": None, "mean": 1.0}}}
    assert scores.game("ALE/Pong-v5") == "Pong"
    assert scores.game("ALE/Pong-v5?reward_scale=100") is None  # its returns are no longer points


class Endless:
    """Slot 0 never ends an episode; those of slot 1 take 7 steps. Each step's reward is 1."""

    spec = EnvSpec("endless", gym.spaces.Discrete(2), gym.spaces.Discrete(2))
    num_envs = 2
    placement = ""

    def __init__(self) -> None:
        self.steps, self.ended = 0, []

    def reset(self) -> TimeStep:
        return self._row(np.ones(2, bool), np.zeros(2, bool))

    def step(self, action: Any) -> TimeStep:
        self.steps += 1
        first, ended = np.zeros(2, bool), np.zeros(2, bool)
        first[1], ended[1] = self.steps % 8 == 0, self.steps % 8 == 7
        if ended[1]:
            self.ended.append(Episode(7.0, 7, 1))
        return self._row(first, ended)

    def _row(self, first: Any, ended: Any) -> TimeStep:
        reward, zeros = (~first).astype(np.float32), np.zeros(2, np.int32)
        return TimeStep(zeros, reward, ended, ~ended & ended, first, zeros)

    episodes = ShortAndLong.episodes
    state, restore, warnings, close = (
        ShortAndLong.state,
        ShortAndLong.restore,
        ShortAndLong.warnings,
        ShortAndLong.close,
    )


def test_an_episode_that_does_not_end_is_cut_off() -> None:
    told: list[str] = []
    options: dict[str, Any] = {"episodes": 4, "key": jax.random.key(0), "log": told.append}
    result = evaluate(AGENT, (), Endless(), max_steps=10, **options)
    assert result is not None
    assert (result.mean_return, result.maximum, result.mean_length) == (8.5, 10, 8.5)
    assert result.cut_off == result.metrics()["cut_off"] == 2
    assert len(told) == 1
    assert "has not ended after 10 steps" in told[0]


class Faulty(Endless):
    """As Endless, but a fault of slot 0 ends every other episode after 11 steps, without a flag,
    and the others take 7 steps."""

    def step(self, action: Any) -> TimeStep:
        row, phase = super().step(action), self.steps % 20
        row.first[0], row.terminated[0] = phase in (0, 12), phase == 19
        row.reward[0] = not row.first[0]
        if row.terminated[0]:
            self.ended.append(Episode(7.0, 7, 0))
        return row


def test_the_episode_after_a_fault_counts() -> None:
    """Also where the one before the fault was cut off."""
    options: dict[str, Any] = {"episodes": 4, "key": jax.random.key(0)}
    result = evaluate(AGENT, (), Faulty(), max_steps=10, **options)
    assert result is not None
    assert (result.cut_off, result.mean_return, result.maximum) == (1, 31 / 4, 10)
    result = evaluate(AGENT, (), Faulty(), max_steps=20, **options)
    assert result is not None
    assert (result.cut_off, result.minimum, result.maximum) == (0, 7, 7)


def test_the_rest_of_an_episode_that_was_cut_off_does_not_count() -> None:
    result = evaluate(AGENT, (), Endless(), max_steps=5, episodes=4, key=jax.random.key(0))
    assert result is not None
    assert (result.cut_off, result.maximum, result.minimum) == (4, 5, 5)
    ended = evaluate(AGENT, (), ShortAndLong(), max_steps=10**6, episodes=4, key=jax.random.key(0))
    assert ended is not None
    assert "cut_off" not in ended.metrics()
