"""Stable-Baselines3's A2C on Breakout with the shallow IMPALA network; see run.py.

Tries the settings that matter on few cores, and prints JSON of the fastest.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import ale_py
import gymnasium as gym
import stable_baselines3
import torch
from gymnasium.wrappers import AtariPreprocessing
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecTransposeImage,
)
from torch import nn

WARM_STEPS = 3_000


class Shallow(BaseFeaturesExtractor):
    """Figure 3, left, of the IMPALA paper."""

    def __init__(self, observation_space: gym.spaces.Box):
        super().__init__(observation_space, 256)
        self.layers = nn.Sequential(
            *(nn.Conv2d(4, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(9 * 9 * 32, 256), nn.ReLU()),
        )

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.layers(observations)


def make_env() -> gym.Env:
    """Breakout with pronk's default preprocessing."""
    gym.register_envs(ale_py)
    env = gym.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=0.0)
    env = AtariPreprocessing(env, grayscale_newaxis=True)
    return gym.wrappers.TransformReward(env, lambda r: float(max(-1.0, min(1.0, r))))


class Clock(BaseCallback):
    """Measures steps per second after a warm-up, then ends the training."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds, self.start, self.steps, self.rate = seconds, 0.0, 0, 0.0

    def _on_step(self) -> bool:
        now = time.perf_counter()
        if not self.start and self.num_timesteps >= WARM_STEPS:
            self.start, self.steps = now, self.num_timesteps
        if self.start and now - self.start >= self.seconds:
            self.rate = (self.num_timesteps - self.steps) / (now - self.start)
            return False
        return True


def steps_per_second(vector: Any, envs: int, threads: int, seconds: float) -> float:
    """The speed of one setting."""
    torch.set_num_threads(threads)
    env = VecTransposeImage(VecFrameStack(vector([make_env] * envs), 4))
    model = A2C(
        "CnnPolicy",
        env,
        n_steps=20,
        policy_kwargs={"features_extractor_class": Shallow, "net_arch": []},
    )
    clock = Clock(seconds)
    model.learn(10**9, callback=clock)
    env.close()
    return clock.rate


def main() -> None:
    """Measure every setting for a share of the time, the fastest for all of it."""
    parser = argparse.ArgumentParser(description="Stable-Baselines3 A2C on Breakout.")
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    settings = {
        f"{vector.__name__}, {envs} envs, {threads} torch threads": (vector, envs, threads)
        for vector, envs, threads in [
            (SubprocVecEnv, 8, 2),
            (SubprocVecEnv, 16, 2),
            (SubprocVecEnv, 16, 1),
            (DummyVecEnv, 16, 2),
        ]
    }
    tried = {k: steps_per_second(*v, seconds / 4) for k, v in settings.items()}
    best = max(tried, key=lambda k: tried[k])
    print(
        json.dumps(
            {
                "system": "Stable-Baselines3 A2C",
                "version": f"{stable_baselines3.__version__}, torch {torch.__version__}",
                "setting": best,
                "steps_per_second": steps_per_second(*settings[best], seconds),
                "tried": tried,
            }
        )
    )


if __name__ == "__main__":
    main()
