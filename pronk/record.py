"""Films a game: what the environment renders, one frame per agent step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np

from pronk import envs
from pronk.errors import UserError
from pronk.files import cannot_write
from pronk.policy import Policy


def record(
    policy: Policy,
    output: Path,
    *,
    episodes: int = 1,
    max_steps: int = 10_000,
    seed: int = 0,
    sample: bool = False,
) -> list[float]:
    """Play `episodes` games and write them to `output` (.mp4 or .gif); returns their returns.

    Raises UserError for another file type, or an environment that can't be rendered.
    """
    if output.suffix not in (".mp4", ".gif"):
        raise UserError(f"`--output` is '{output}'; expected a name ending in .mp4 or .gif.")
    returns, frames = [], []
    game = envs.renderable(policy.plan.env, policy.plan.env_args)
    for episode in range(episodes):
        total, steps = 0.0, 0
        observation, frame = game.reset(seed + episode)
        carry = policy.initial_carry(seed=seed + episode, sample=sample)
        reward, done = 0.0, False
        frames.append(frame)
        while not done and steps < max_steps:
            action, carry = policy.act(observation, carry, reward=reward)
            observation, reward, done, frame = game.step(action)
            frames.append(frame)
            total += reward
            steps += 1
        returns.append(total)
    game.close()
    _write(output, frames, fps=15 if game.frames_per_step > 1 else 30)
    return returns


def _write(output: Path, frames: list[Any], fps: int) -> None:
    # Video encoders want even sizes; small images are enlarged so that one can see something.
    scale = max(1, 240 // frames[0].shape[0])
    frames = [np.repeat(np.repeat(f, scale, axis=0), scale, axis=1) for f in frames]
    height, width = (n - n % 2 for n in frames[0].shape[:2])
    frames = [f[:height, :width] for f in frames]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.suffix == ".gif":
            imageio.mimsave(output, frames, duration=1000 / fps, loop=0)
        else:
            imageio.mimsave(output, frames, fps=fps, macro_block_size=2)
    except OSError as error:
        raise cannot_write(output, error) from None


__all__ = ["gym", "record"]
