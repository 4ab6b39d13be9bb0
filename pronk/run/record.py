"""Films games: what the environment renders, one frame per agent step."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import jax
import numpy as np

from pronk.envs import film
from pronk.errors import UserError
from pronk.run.policy import Policy
from pronk.runtime.actor import Player
from pronk.storage.files import cannot_write
from pronk.types import Array


def record(
    policy: Policy,
    output: Path,
    *,
    episodes: int = 1,
    max_steps: int = 10_000,
    seed: int = 0,
    sample: bool = False,
    task: str | None = None,
) -> list[float]:
    """Play `episodes` games, at most `max_steps` in all, and write them to `output`, .mp4 or .gif.

    task: which one of a suite. Returns the returns of the games that ended. Raises UserError for
    another file type, or an environment that can't be rendered.
    """
    if output.suffix not in (".mp4", ".gif"):
        raise UserError(f"`--output` is '{output}'; expected a name ending in .mp4 or .gif.")
    game = film.make(policy.env, seed=seed, env_args=policy.plan.env_args, task=task)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        rate: dict[str, Any] = {"duration": 1000 / game.frames_per_second, "loop": 0}
        if output.suffix == ".mp4":
            rate = {"fps": game.frames_per_second, "macro_block_size": 2}
        writer: Any = imageio.get_writer(output, **rate)
        with contextlib.closing(game.env), writer as film_file:
            player = Player(
                policy.agent, jax.random.key(seed), np.zeros(1, np.int32), 1, evaluate=not sample
            )
            timestep = game.env.reset()
            film_file.append_data(_sized(game.picture()))
            returns: list[float] = []
            for _ in range(max_steps):
                timestep = game.env.step(player.act(policy.behaviour, timestep).action)
                film_file.append_data(_sized(game.picture()))
                returns.extend(e.episode_return for e in game.env.episodes())
                if len(returns) >= episodes:
                    break
    except OSError as error:
        raise cannot_write(output, error) from None
    return returns


def _sized(frame: Array) -> Array:
    """Small pictures enlarged, so that one can see something; even sizes, as encoders want."""
    scale = max(1, 240 // frame.shape[0])
    frame = frame.repeat(scale, axis=0).repeat(scale, axis=1)
    height, width = (n - n % 2 for n in frame.shape[:2])
    return frame[:height, :width]
