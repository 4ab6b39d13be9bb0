"""One network for both rewards or two: what happens to the exploitative policy as β grows.

Badia et al. 2020, "Agent57" (arXiv:2003.13350), section 3.1 and figure 5. The coin ends the
episode, and with it the intrinsic rewards.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from pronk.experiments.reproduce import common, exploration, matrix
from pronk.experiments.reproduce.exploration import Task, with_novelty
from pronk.experiments.reproduce.matrix import Variant
from pronk.experiments.reproduce.settings import RandomCoin
from pronk.run.setup import configure_jax

NAME = "random-coin"
ENV, STEPS = "pronk/RandomCoin-v0", 60
SCALES = (0.1, 0.3, 1.0, 3.0, 10.0)
KINDS = ("single network", "separate networks")
# Agent57 as NGU with a network for each reward: mixtures are drawn uniformly, with NGU's discounts.
SEPARATE = {"bandit_epsilon": 1.0, "discount": 0.99, "sequence_length": 20}


def tasks(size: int) -> dict[str, Task]:
    """The task with each of SCALES, by name."""
    args = {"size": size, "max_steps": STEPS}
    return {f"β = {scale:g}": Task(ENV, args, 0.0, 1.0, scale, STEPS) for scale in SCALES}


def variants(task: Task) -> dict[str, Variant]:
    """What is trained with a scale."""
    single = with_novelty(task, "ngu", mixtures=4)
    separate = with_novelty(task, "agent57", mixtures=4, **SEPARATE)
    return dict(zip(KINDS, (single, separate), strict=True))


def run(settings: RandomCoin, *, output: Path, results: Path) -> str:
    """Train the missing runs, then write the table and the figure."""
    configure_jax()
    if settings.quick:
        settings = dataclasses.replace(settings, seeds=1, steps=max(1, settings.steps // 4))
    known = tasks(settings.size)
    done = exploration.train(settings, output, known, variants)
    matrix.write(done, results, NAME, f"pronk reproduce {NAME}, {settings.steps:,} agent steps")
    found = exploration.rates(results, NAME, known)
    return "\n\n".join([*filter(None, [exploration.table(found, known)]), draw(results, known)])


def draw(results: Path, known: dict[str, Task]) -> str:
    """Draw the success rate of the policy that exploits over the scale, from the table in
    `results`. Returns the figure's path, or a sentence where no run has a score."""
    rates, picture = exploration.rates(results, NAME, known), results / f"{NAME}.png"
    if not rates:
        picture.unlink(missing_ok=True)  # of earlier runs
        return matrix.NO_EVALUATION
    figure, axes = common.panels(1, 1, 5.0, 3.4)
    axis, count = axes[0, 0], 0
    for i, (kind, own) in enumerate(rates.items()):
        scales = [known[name].scale for name in own]
        values = [common.interval(list(scores)) for scores in own.values()]
        count = max(count, *(len(scores) for scores in own.values()))
        style = {"color": common.COLOURS[i], "marker": "o", "label": kind}
        common.draw_points(axis, np.array(scales) * (1 + 0.03 * i), values, **style)
    axis.set_xscale("log")
    axis.set_ylim(-0.05, 1.05)
    axis.set_xlabel("β, the largest scale of the intrinsic reward")
    axis.set_ylabel("episodes that find the coin")
    return str(common.save(figure, picture, common.band_note(count, count)))
