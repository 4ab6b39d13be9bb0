"""`pronk/Waiting-v0`: environments that sleep instead of computing.

They measure how actors and learner work together without the CPU cores that real environments
would need. The two tasks model those of IMPALA's throughput table (Espeholt et al. 2018, table 1):
"even" has steps of one duration, "uneven" has varying steps and a long reset before each episode.
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np

from pronk.envs.episodes import EpisodeCounter
from pronk.errors import UserError, nearest
from pronk.types import Array, EnvSpec, Episode, PyTree, TimeStep

STEP_SECONDS = 0.01  # mean
# Standard deviation of a step, as a share of its mean.
DEVIATION = {"even": 0.05, "uneven": 0.5}
EPISODE_STEPS = (100, 300)  # uneven, uniform
RESET_SECONDS = (0.5, 3.0)  # uneven, uniform
SHAPE = (84, 84, 4)
ACTIONS = 4
FRAMES = 8  # different observations

NAME = "pronk/Waiting-v0"


class Pace:
    """Durations and episode ends of `count` slots.

    The step after an episode's end is the reset of the next one. "even" episodes never end.
    """

    def __init__(self, task: str, count: int, seed: Any):
        self._task, self._count = task, count
        self._rng = np.random.default_rng(seed)
        self._over = np.zeros(count, bool)
        # The first episodes start at random points, so that they do not all end together.
        self._left = np.ceil(self._lengths() * self._rng.uniform(size=count)).astype(np.int64)

    def next(self) -> tuple[Array, Array, Array]:
        """Of the next step, `[B]` each: seconds, whether it is a reset, whether it ends an
        episode."""
        rng, count = self._rng, self._count
        deviation = DEVIATION[self._task]
        resets = self._over
        if self._task == "even":
            seconds = rng.normal(STEP_SECONDS, STEP_SECONDS * deviation, count)
            return np.maximum(seconds, 0.0), resets, self._over
        # Lognormal of that mean and deviation.
        sigma = np.sqrt(np.log(1 + deviation**2))
        seconds = rng.lognormal(np.log(STEP_SECONDS) - sigma**2 / 2, sigma, count)
        seconds = np.where(resets, rng.uniform(*RESET_SECONDS, count), seconds)
        self._left = np.where(resets, self._lengths(), self._left - 1)
        self._over = self._left <= 0
        return seconds, resets, self._over

    def _lengths(self) -> Array:
        return self._rng.integers(*EPISODE_STEPS, self._count, endpoint=True)


class WaitingEnvs:
    """`num_envs` environments that sleep together: a step takes as long as its slowest slot.

    Observations are random pixels `[B, 84, 84, 4]`, rewards 1 per step. task: "even" or "uneven".
    scale multiplies all times. Raises UserError for another task or a negative scale.
    """

    placement = "waiting in the actor's thread"

    def __init__(self, num_envs: int, seed: int, first_env_id: int, task: str, scale: float):
        self.spec = spec(task, scale)
        self.num_envs = num_envs
        self._scale = scale
        self._pace = Pace(task, num_envs, [seed, first_env_id])
        frames = np.random.default_rng(0).integers(0, 256, (FRAMES, *SHAPE), np.uint8)
        # Any num_envs consecutive frames are a view, which costs no CPU time.
        self._frames = frames[np.arange(FRAMES + num_envs) % FRAMES]
        self._first = first_env_id
        self._time = 0
        self._counter = EpisodeCounter(num_envs, first_env_id)

    def reset(self) -> TimeStep:
        """The first observations, without sleeping."""
        false = np.zeros(self.num_envs, bool)
        return self._timestep(false, ~false)

    def step(self, action: Array) -> TimeStep:
        """Sleep; `action` is ignored."""
        seconds, resets, over = self._pace.next()
        if self._scale:
            time.sleep(self._scale * float(np.max(seconds)))
        self._time += 1
        self._counter.update(np.where(resets, 0.0, 1.0), resets, over)
        return self._timestep(over, resets)

    def _timestep(self, over: Array, first: Array) -> TimeStep:
        frame = (self._time + self._first) % FRAMES
        observation = self._frames[frame : frame + self.num_envs]
        reward = np.where(first, 0, 1).astype(np.float32)
        zeros = np.zeros(self.num_envs, np.int32)
        return TimeStep(observation, reward, over, zeros > 0, first, zeros)

    def episodes(self) -> list[Episode]:
        """The episodes finished since the last call."""
        return self._counter.episodes()

    def state(self) -> PyTree | None:
        """None: durations cannot be replayed."""
        return None

    def restore(self, state: PyTree) -> None:
        """Never called, because `state` returns None."""

    def warnings(self) -> list[str]:
        """None."""
        return []

    def close(self) -> None:
        """Nothing to release."""


def spec(task: str = "even", scale: float = 1.0) -> EnvSpec:
    """The spec; raises UserError for an unknown task or a negative scale."""
    if task not in DEVIATION:
        raise UserError(
            f"`task` of {NAME} is {task!r}{nearest(str(task), DEVIATION) or ';'} expected one of:"
            f" {', '.join(DEVIATION)}."
        )
    if not scale >= 0:
        raise UserError(f"`scale` of {NAME} is {scale}; expected at least 0.")
    return EnvSpec(NAME, gym.spaces.Box(0, 255, SHAPE, np.uint8), gym.spaces.Discrete(ACTIONS))


def make(
    num_envs: int, seed: int, first_env_id: int, task: str = "even", scale: float = 1.0
) -> WaitingEnvs:
    """The environments; raises as `spec`."""
    return WaitingEnvs(num_envs, seed, first_env_id, task, scale)
