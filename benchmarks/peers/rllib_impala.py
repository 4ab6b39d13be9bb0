"""RLlib's IMPALA on Breakout with the shallow IMPALA network; see run.py.

Tries the settings that matter on few cores, and prints JSON of the fastest.
"""

from __future__ import annotations

import argparse
import json
import time

import ale_py
import gymnasium as gym
import ray
import torch
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.wrappers.atari_wrappers import wrap_atari_for_new_api_stack
from ray.tune.registry import register_env

WARM_SECONDS = 15.0


def make_env(config) -> gym.Env:
    """Breakout with RLlib's own wrappers: 84 × 84, grey, four frames, rewards clipped."""
    gym.register_envs(ale_py)
    env = gym.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=0.0)
    return wrap_atari_for_new_api_stack(env, dim=84, framestack=4)


def steps_per_second(runners: int, envs: int, seconds: float) -> float:
    """The speed of one setting."""
    config = (
        IMPALAConfig()
        .environment("breakout")
        .env_runners(
            num_env_runners=runners, num_envs_per_env_runner=envs, rollout_fragment_length=20
        )
        .learners(num_learners=0)
        .training(train_batch_size_per_learner=640)
        .rl_module(
            model_config=DefaultModelConfig(
                conv_filters=[[16, 8, 4], [32, 4, 2]],
                conv_activation="relu",
                head_fcnet_hiddens=[256],
                head_fcnet_activation="relu",
                vf_share_layers=True,
            )
        )
        .reporting(min_time_s_per_iteration=1)
    )
    algo = config.build_algo()
    points: list[tuple[float, float]] = []
    start = time.perf_counter()
    while time.perf_counter() - start < WARM_SECONDS + seconds:
        learnt = algo.train().get("learners", {}).get("__all_modules__", {})
        if time.perf_counter() - start > WARM_SECONDS and learnt:
            points.append((time.perf_counter(), learnt["num_env_steps_trained_lifetime"]))
    algo.stop()
    (first, before), (last, after) = points[0], points[-1]
    return (after - before) / (last - first)


def main() -> None:
    """Measure every setting for a share of the time, the fastest for all of it."""
    parser = argparse.ArgumentParser(description="RLlib IMPALA on Breakout.")
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    # Two cores, and Ray asks for one per runner and one for the driver.
    ray.init(num_cpus=4, include_dashboard=False, logging_level="error")
    register_env("breakout", make_env)
    settings = {"1 runner × 8 envs": (1, 8), "1 runner × 16 envs": (1, 16), "2 × 8": (2, 8)}
    tried = {name: steps_per_second(*setting, seconds / 3) for name, setting in settings.items()}
    best = max(tried, key=lambda name: tried[name])
    rate = steps_per_second(*settings[best], seconds)
    ray.shutdown()
    print(
        json.dumps(
            {
                "system": "RLlib IMPALA",
                "version": f"{ray.__version__}, torch {torch.__version__}",
                "setting": best,
                "steps_per_second": rate,
                "tried": tried,
            }
        )
    )


if __name__ == "__main__":
    main()
