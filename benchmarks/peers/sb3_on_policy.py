"""Stable-Baselines3's PPO and sb3-contrib's TRPO; see on_policy.py.

Tries several numbers of environments, processes and threads, and prints JSON of the fastest.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import sb3_contrib
import stable_baselines3
import torch
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

# Of a case: algorithm, environment, transitions per batch, whether to standardise, settings.
CASES: dict[str, tuple[Any, str, int, bool, dict[str, Any]]] = {
    "ppo-halfcheetah": (PPO, "HalfCheetah-v4", 2048, True, {"batch_size": 64, "n_epochs": 10}),
    "trpo-hopper": (TRPO, "Hopper-v4", 2048, True, {"batch_size": 128}),
    "ppo-cartpole": (PPO, "CartPole-v1", 256, False, {"batch_size": 256, "n_epochs": 20}),
}


class Clock(BaseCallback):
    """Measures steps per second over whole iterations after the first, then ends the training."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds, self.start, self.steps, self.rate = seconds, 0.0, 0, 0.0

    def _on_rollout_start(self) -> None:
        now = time.perf_counter()
        if not self.num_timesteps:
            return
        if not self.start:
            self.start, self.steps = now, self.num_timesteps
        elif now - self.start >= self.seconds:
            self.rate = (self.num_timesteps - self.steps) / (now - self.start)

    def _on_step(self) -> bool:
        return not self.rate


def steps_per_second(case: str, vector: Any, envs: int, threads: int, seconds: float) -> float:
    """The speed of one setting."""
    torch.set_num_threads(threads)
    algorithm, name, batch, normalise, settings = CASES[case]
    env = make_vec_env(name, n_envs=envs, vec_env_cls=vector)
    if normalise:
        env = VecNormalize(env)
    model = algorithm("MlpPolicy", env, n_steps=batch // envs, device="cpu", **settings)
    clock = Clock(seconds)
    model.learn(10**9, callback=clock)
    env.close()
    return clock.rate


def main() -> None:
    """Measure every setting for a share of the time, the fastest for all of it."""
    parser = argparse.ArgumentParser(description="Stable-Baselines3's PPO and TRPO.")
    parser.add_argument("--case", choices=sorted(CASES), required=True)
    parser.add_argument("--seconds", type=float, default=30.0)
    args = parser.parse_args()
    settings = {
        f"{vector.__name__}, {envs} environments, {threads} torch threads": (vector, envs, threads)
        for vector, envs, threads in [
            *((DummyVecEnv, 1, 1), (DummyVecEnv, 8, 1), (DummyVecEnv, 8, 2)),
            (SubprocVecEnv, 8, 1),
        ]
        if args.case != "ppo-cartpole" or envs == 8
    }
    tried = {k: steps_per_second(args.case, *v, args.seconds / 4) for k, v in settings.items()}
    best = max(tried, key=lambda k: tried[k])
    packages = f"{stable_baselines3.__version__}, torch {torch.__version__}"
    system = "Stable-Baselines3 PPO"
    if args.case.startswith("trpo"):
        system, packages = "sb3-contrib TRPO", f"{sb3_contrib.__version__}, {packages}"
    rate = steps_per_second(args.case, *settings[best], args.seconds)
    row = {"system": system, "version": packages, "setting": best, "steps_per_second": rate}
    print(json.dumps(row | {"tried": tried}))


if __name__ == "__main__":
    main()
