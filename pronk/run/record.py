"""Videos of episodes as the environment renders them, one frame per agent step.

Where the agent computes an intrinsic reward, a strip below each frame shows it
(`pronk.run.novelty_strip`).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import jax
import numpy as np

from pronk.envs import film
from pronk.errors import UserError
from pronk.maths.keys import key_of
from pronk.run.novelty_strip import NoveltyStrip
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
    """Play `episodes` episodes, `max_steps` agent steps at most, and write them to `output`, a
    .mp4 or .gif.

    task: the name of the task to play, for a suite. Returns the returns of the episodes that ended.
    Raises UserError for another file type, or an environment that cannot be rendered.
    """
    if output.suffix not in (".mp4", ".gif"):
        raise UserError(f"`--output` is '{output}'; expected a name ending in .mp4 or .gif.")
    # So that the encoder is started without a fork, which what JAX computes may not survive.
    os.environ.setdefault("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT", "1")
    filmed = film.make(policy.env, seed=seed, env_args=policy.plan.env_args, task=task)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        rate: dict[str, Any] = {"duration": 1000 / filmed.frames_per_second, "loop": 0}
        if output.suffix == ".mp4":
            rate = {"fps": filmed.frames_per_second, "macro_block_size": 2}
        writer: Any = imageio.get_writer(output, **rate)
        with contextlib.closing(filmed.env), writer as video:
            player = Player(
                policy.agent, key_of(seed), np.zeros(1, np.int32), 1, evaluate=not sample
            )
            timestep = filmed.env.reset()
            frame = first = _resized(filmed.picture())
            strip = NoveltyStrip(first.shape[1])
            returns: list[float] = []
            for step in range(max_steps + 1):
                # What it says of this observation belongs to this frame, the last one's too.
                row = player.act(policy.behaviour, timestep)
                jax.block_until_ready((policy.behaviour, player.carry, row.extras))
                video.append_data(strip.below(frame, row.extras))
                if step == max_steps or len(returns) >= episodes:
                    break
                timestep = filmed.env.step(row.action)
                frame = _fitted(_resized(filmed.picture()), first.shape)
                returns.extend(e.episode_return for e in filmed.env.episodes())
    except OSError as error:
        raise cannot_write(output, error, "--output") from None
    return returns


def _resized(frame: Array) -> Array:
    """A frame `[height, width, 3]`, enlarged if small, and cut to even sizes as encoders need."""
    scale = max(1, 240 // frame.shape[0])
    if frame.shape[1] * scale < 2:
        scale = 2
    frame = frame.repeat(scale, axis=0).repeat(scale, axis=1)
    height, width = (n - n % 2 for n in frame.shape[:2])
    return frame[:height, :width]


def _fitted(frame: Array, shape: tuple[int, ...]) -> Array:
    """A frame scaled to the film's `[height, width]`, if the environment's pictures change."""
    if frame.shape == shape:
        return frame
    rows, columns = (
        np.arange(new) * old // new for new, old in zip(shape[:2], frame.shape[:2], strict=True)
    )
    return frame[rows][:, columns]
