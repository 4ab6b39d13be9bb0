"""Films games: what the environment renders, one frame per agent step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import imageio.v2 as imageio
import jax
import numpy as np

from pronk.envs import film
from pronk.errors import UserError
from pronk.files import cannot_write
from pronk.policy import Policy
from pronk.runtime.actor import Actor
from pronk.types import Array


def record(
    policy: Policy,
    output: Path,
    *,
    episodes: int = 1,
    max_steps: int = 10_000,
    seed: int = 0,
    sample: bool = False,
) -> list[float]:
    """Play `episodes` games, at most `max_steps` in all, and write them to `output`, .mp4 or .gif.

    Returns the returns of the games that ended. Raises UserError for another file type, or an
    environment that can't be rendered.
    """
    if output.suffix not in (".mp4", ".gif"):
        raise UserError(f"`--output` is '{output}'; expected a name ending in .mp4 or .gif.")
    game = film.make(policy.env, seed=seed, env_args=policy.plan.env_args)
    with contextlib.closing(game.env):
        player = Actor(
            policy.agent,
            game.env,
            unroll=1,
            key=jax.random.key(seed),
            env_ids=np.zeros(1, np.int32),
            num_envs=1,
            evaluate=not sample,
        )
        timestep = game.env.reset()
        frames, returns = [game.picture()], []
        while len(returns) < episodes and len(frames) <= max_steps:
            timestep = game.env.step(player.act(policy.behaviour, timestep).action)
            frames.append(game.picture())
            returns.extend(e.episode_return for e in game.env.episodes())
    _write(output, frames, game.frames_per_second)
    return returns


def _write(output: Path, frames: Iterable[Array], fps: float) -> None:
    def sized(frame: Array) -> Array:
        # Small pictures are enlarged so that one can see something; encoders want even sizes.
        scale = max(1, 240 // frame.shape[0])
        frame = frame.repeat(scale, axis=0).repeat(scale, axis=1)
        height, width = (n - n % 2 for n in frame.shape[:2])
        return frame[:height, :width]

    frames = [sized(f) for f in frames]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.suffix == ".gif":
            imageio.mimsave(output, frames, duration=1000 / fps, loop=0)
        else:
            imageio.mimsave(output, frames, fps=fps, macro_block_size=2)
    except OSError as error:
        raise cannot_write(output, error) from None
