"""ToyBox-v0: the smallest task with continuous actions whose bounds are not symmetric."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class ToyBox(gym.Env[np.ndarray, np.ndarray]):
    """Each of the 20 steps shows a number in [−2, 5]; the reward is −(action − number)²."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-2.0, 5.0, (1,), np.float32)
        self.action_space = gym.spaces.Box(-2.0, 5.0, (1,), np.float32)
        self.number, self.steps = np.zeros(1, np.float32), 0

    def _draw(self) -> np.ndarray:
        self.number = self.np_random.uniform(-2.0, 5.0, (1,)).astype(np.float32)
        return self.number

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._draw(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = -float(np.square(action - self.number)[0])
        self.steps += 1
        return self._draw(), reward, False, self.steps == 20, {}


gym.register("ToyBox-v0", entry_point=ToyBox)
