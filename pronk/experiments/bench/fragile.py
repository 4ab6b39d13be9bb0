"""`Fragile-v0`: an environment to which harm is done when a file says so.

A step waits; whoever then finds the file `strike` in the environment's directory takes it away, so
that it strikes one process only, and does to itself what it says.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

SHAPE = (32, 32, 4)
EPISODE_STEPS = 50
STALL = 3600.0  # seconds
SLOWER = 100

STRIKE = "strike"


def die(*_: Any) -> Any:
    """As by `kill -9`."""
    os.kill(os.getpid(), signal.SIGKILL)


class _Deadly:
    """Kills the process that would write it: as an array of an observation, or to a pipe."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        die()

    def __reduce__(self) -> Any:
        die()


class Fragile(gym.Env):
    """Steps of `seconds`, episodes of 50 of them, reward 1; what its action is doesn't matter.

    A strike is one of `step` (its process is killed in a step), `write` (while it writes what came
    of a step or an unroll), `stall`, `slow` (a hundred times slower, for good), `nan` and
    `nan-reward`, and `leak` (memory and a descriptor at each step, for good).
    """

    def __init__(self, directory: str, seconds: float = 0.002):
        self.observation_space = gym.spaces.Box(0.0, 1.0, SHAPE, np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self._strike, self._seconds, self._steps = Path(directory) / STRIKE, seconds, 0
        self._leaks: list[Any] | None = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """The first observation."""
        super().reset(seed=seed)
        self._steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """What the class says."""
        time.sleep(self._seconds)
        self._steps += 1
        observation, reward = self._struck(self._observation())
        if self._leaks is not None:
            self._leaks.append((bytearray(1 << 16), os.open(os.devnull, os.O_RDONLY)))
        return observation, reward, self._steps >= EPISODE_STEPS, False, {}

    def _observation(self) -> Any:
        return np.full(SHAPE, self._steps / EPISODE_STEPS, np.float32)

    def _struck(self, observation: Any) -> tuple[Any, float]:
        what = self._take()
        if what == "step":
            die()
        elif what == "stall":
            time.sleep(STALL)
        elif what == "slow":
            self._seconds *= SLOWER
        elif what == "leak":
            self._leaks = []
        elif what == "nan":
            observation[0] = np.nan
        elif what == "nan-reward":
            return observation, float("nan")
        elif what == "write":
            module = sys.modules.get("pronk.runtime.actor")
            if module is None:
                return _Deadly(), 1.0  # a worker of environments
            unroll = module.Actor.unroll  # what an actor sends begins with its trajectory
            module.Actor.unroll = lambda *args: unroll(*args)._replace(warnings=[_Deadly()])
        return observation, 1.0

    def _take(self) -> str:
        mine = self._strike.with_name(f"struck-{secrets.token_hex(4)}")
        try:
            self._strike.rename(mine)
        except FileNotFoundError:
            return ""
        what = mine.read_text()
        mine.unlink()
        return what


def strike(directory: Path, what: str) -> None:
    """Have the next step of any environment of this directory do `what` to itself."""
    ready = directory / f"ready-{random.getrandbits(32):x}"
    ready.write_text(what)
    ready.rename(directory / STRIKE)


gym.register("Fragile-v0", f"{__name__}:Fragile")
