"""Sample Factory's asynchronous APPO on Breakout with the shallow IMPALA network; see run.py.

Tries the settings that matter on few cores, and prints JSON of the fastest. V-trace is
off: with it, version 2.1.1 fails in its first update (its summaries miss the advantages).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from ale_py.registration import register_v5_envs
from gymnasium.wrappers import AtariPreprocessing, FrameStack, TransformReward
from sample_factory.algo.runners.runner import AlgoObserver, Runner
from sample_factory.algo.utils.context import global_model_factory
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.envs.env_wrappers import NumpyObsWrapper
from sample_factory.model.encoder import Encoder
from sample_factory.train import make_runner
from torch import nn

WARM_SECONDS = 10.0
START_SECONDS = 60.0  # at most, to start
SETTINGS = {
    "2 workers × 16 envs": (2, 16),
    "2 workers × 8 envs": (2, 8),
}


class Shallow(Encoder):
    """Figure 3, left, of the IMPALA paper."""

    def __init__(self, cfg, obs_space):
        super().__init__(cfg)
        self.layers = nn.Sequential(
            *(nn.Conv2d(4, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(9 * 9 * 32, 256), nn.ReLU()),
        )

    def forward(self, observations):
        return self.layers(observations["obs"])

    def get_out_size(self) -> int:
        return 256


class Squeeze(gym.ObservationWrapper):
    """The stack's frames as channels, uint8, as Sample Factory expects."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)

    def observation(self, observation):
        return np.asarray(observation)


def make_env(name, cfg, env_config, render_mode=None) -> gym.Env:
    """Breakout with pronk's default preprocessing."""
    # Sample Factory needs a Gymnasium older than the one ale-py registers itself with.
    register_v5_envs()
    env = gym.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=0.0)
    env = AtariPreprocessing(env)
    env = TransformReward(env, lambda r: float(max(-1.0, min(1.0, r))))
    return NumpyObsWrapper(Squeeze(FrameStack(env, 4)))


class Clock(AlgoObserver):
    """Prints the steps per second over `seconds`, after a warm-up."""

    def __init__(self, seconds: float) -> None:
        self.end = WARM_SECONDS + seconds
        self.points: list[tuple[float, int]] = []

    def on_training_step(self, runner: Runner, training_iteration_since_resume: int) -> None:
        self.points.append((time.perf_counter(), runner.total_env_steps_since_resume or 0))
        first = self.points[0][0]
        if self.points[-1][0] - first >= self.end:
            counted = [entry for entry in self.points if entry[0] - first >= WARM_SECONDS]
            (start, before), (end, after) = counted[0], counted[-1]
            print("rate", (after - before) / (end - start), flush=True)
            self.end = float("inf")


def run(workers: int, envs: int, seconds: float) -> None:
    """Train until killed by `rate_of`: Sample Factory ignores --train_for_seconds."""
    with tempfile.TemporaryDirectory() as directory:
        argv = [
            *("--env=breakout", "--experiment=bench", f"--train_dir={directory}", "--device=cpu"),
            *(f"--num_workers={workers}", f"--num_envs_per_worker={envs}"),
            *("--worker_num_splits=2", "--async_rl=True", "--with_vtrace=False", "--use_rnn=False"),
            *("--rollout=20", "--recurrence=1", "--batch_size=640", "--num_epochs=1"),
            *("--num_batches_per_epoch=1", "--normalize_input=False"),
            *("--normalize_returns=False", "--obs_scale=255.0"),
            *("--summaries_use_frameskip=False", "--env_frameskip=1", "--save_every_sec=100000"),
        ]
        parser, _ = parse_sf_args(argv=argv)
        _, runner = make_runner(parse_full_cfg(parser, argv))
        runner.register_observer(Clock(seconds))
        runner.init()
        runner.run()


def rate_of(setting: str, seconds: float) -> float:
    """Steps per second of one setting, in a process group that is killed afterwards."""
    command = [sys.executable, __file__, "--setting", setting, "--seconds", str(seconds)]
    deadline = time.monotonic() + START_SECONDS + WARM_SECONDS + 2 * seconds
    with tempfile.NamedTemporaryFile("w") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            while time.monotonic() < deadline and child.poll() is None:
                time.sleep(0.2)
                for line in Path(log.name).read_text().splitlines():
                    if line.startswith("rate "):
                        return float(line.split()[1])
        finally:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    raise SystemExit(f"Sample Factory printed no rate with {setting}.")


def main() -> None:
    """Measure every setting for a share of the time, the fastest for all of it."""
    parser = argparse.ArgumentParser(description="Sample Factory APPO on Breakout.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--setting", choices=SETTINGS)
    args = parser.parse_args()
    sys.argv = sys.argv[:1]
    if args.setting:
        register_env("breakout", make_env)
        global_model_factory().register_encoder_factory(Shallow)
        run(*SETTINGS[args.setting], args.seconds)
        return
    tried = {name: rate_of(name, args.seconds / 3) for name in SETTINGS}
    best = max(tried, key=lambda name: tried[name])
    print(
        json.dumps(
            {
                "system": "Sample Factory APPO",
                "version": f"{version('sample-factory')}, torch {torch.__version__}",
                "setting": best,
                "steps_per_second": rate_of(best, args.seconds),
                "tried": tried,
            }
        )
    )


if __name__ == "__main__":
    main()
