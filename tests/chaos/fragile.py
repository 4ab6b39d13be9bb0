"""`Fragile-v0`: an environment that harms its own process when told to by a file.

`strike(directory, what)` writes the file. The first step to find it removes it, so that each strike
hits one process, and does what it says.
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
SLOWDOWN = 100

STRIKE = "strike"


def die(*_: Any) -> Any:
    """Kill this process as `kill -9` would."""
    os.kill(os.getpid(), signal.SIGKILL)


class _Deadly:
    """Kills the process that serialises it, into an array of observations or a pipe."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        die()

    def __reduce__(self) -> Any:
        die()


class Fragile(gym.Env):
    """Steps of `seconds`, episodes of 50 steps, reward 1 whatever the action.

    A strike is one of `step` (kill the process in a step), `write` (kill it while it writes the
    result of a step or an unroll), `stall`, `slow` (100 times slower from then on), `nan` and
    `nan-reward`, and `leak` (memory and a descriptor per step from then on).
    """

    def __init__(self, directory: str, seconds: float = 0.002):
        self.observation_space = gym.spaces.Box(0.0, 1.0, SHAPE, np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self._strike, self._seconds, self._steps = Path(directory) / STRIKE, seconds, 0
        self._leaks: list[Any] | None = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        time.sleep(self._seconds)
        self._steps += 1
        observation, reward = self._harm(self._observation())
        if self._leaks is not None:
            self._leaks.append((bytearray(1 << 16), os.open(os.devnull, os.O_RDONLY)))
        return observation, reward, self._steps >= EPISODE_STEPS, False, {}

    def _observation(self) -> Any:
        return np.full(SHAPE, self._steps / EPISODE_STEPS, np.float32)

    def _harm(self, observation: Any) -> tuple[Any, float]:
        """Carry out a strike, if there is one; the step's observation and reward."""
        what = self._take_strike()
        if what == "step":
            die()
        elif what == "stall":
            time.sleep(STALL)
        elif what == "slow":
            self._seconds *= SLOWDOWN
        elif what == "leak":
            self._leaks = []
        elif what == "nan":
            observation[0] = np.nan
        elif what == "nan-reward":
            return observation, float("nan")
        elif what == "write":
            module = sys.modules.get("pronk.runtime.actor")
            if module is None:
                return _Deadly(), 1.0  # in a worker process of environments
            unroll = module.Actor.unroll  # an actor sends the trajectory first
            module.Actor.unroll = lambda *args: unroll(*args)._replace(warnings=[_Deadly()])
        return observation, 1.0

    def _take_strike(self) -> str:
        taken = self._strike.with_name(f"struck-{secrets.token_hex(4)}")
        try:
            self._strike.rename(taken)
        except FileNotFoundError:
            return ""
        what = taken.read_text()
        taken.unlink()
        return what


def strike(directory: Path, what: str) -> None:
    """Have the next step of any environment of this directory carry out `what`."""
    ready = directory / f"ready-{random.getrandbits(32):x}"
    ready.write_text(what)
    ready.rename(directory / STRIKE)


gym.register("Fragile-v0", f"{__name__}:Fragile")
