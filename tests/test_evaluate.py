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
