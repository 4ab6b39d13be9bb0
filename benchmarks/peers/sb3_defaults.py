"""Stable-Baselines3's A2C with its default hyperparameters and 8 environments; see ../defaults.py.

Trains once, and writes JSON: the mean return of the last 100 episodes at POINTS points, that of the
end, and the mean return of 100 greedy episodes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import stable_baselines3
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

ENVS = 8  # as in RL Baselines3 Zoo; Stable-Baselines3's own default is 1
POINTS = 20
EPISODES = 100


class Curve(BaseCallback):
    """The mean return of the last 100 episodes, at POINTS points of the training."""

    def __init__(self, steps: int):
        super().__init__()
        self.every = steps / POINTS
        self.points: list[tuple[int, float]] = []

    def mean(self) -> float:
        returns = [info["r"] for info in self.model.ep_info_buffer or ()]
        return float(np.mean(returns)) if returns else float("nan")

    def _on_step(self) -> bool:
        if self.num_timesteps >= (len(self.points) + 1) * self.every:
            self.points.append((self.num_timesteps, self.mean()))
        return True


def greedy(model: A2C, env: str, max_steps: int) -> list[float]:
    """Returns of episodes with the likeliest actions, each cut off at `max_steps`."""
    vector = make_vec_env(env, n_envs=10, seed=1_000_000)
    returns: list[float] = []
    while len(returns) < EPISODES:
        observations = vector.reset()
        running, totals = np.ones(10, bool), np.zeros(10)
        for _ in range(max_steps):
            actions, _ = model.predict(observations, deterministic=True)
            observations, rewards, dones, _ = vector.step(actions)
            totals += rewards * running
            running &= ~dones
            if not running.any():
                break
        returns += totals.tolist()
    vector.close()
    return returns[:EPISODES]


def main() -> None:
    """Train and evaluate one seed."""
    parser = argparse.ArgumentParser(description="Stable-Baselines3 A2C with its defaults.")
    parser.add_argument("env")
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--max-steps", type=int, required=True)
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent.parent))  # for toy_box
    torch.set_num_threads(1)  # the networks are small
    start = time.perf_counter()
    env = make_vec_env(args.env, n_envs=ENVS, seed=args.seed)
    model = A2C("MlpPolicy", env, seed=args.seed, device="cpu")
    curve = Curve(args.steps)
    model.learn(args.steps, callback=curve)
    seconds = time.perf_counter() - start
    result = {
        "curve": curve.points,
        "final": curve.mean(),
        "greedy": float(np.mean(greedy(model, args.env, args.max_steps))),
        "wall_seconds": round(seconds, 1),
        "version": f"{stable_baselines3.__version__}, torch {torch.__version__}",
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
