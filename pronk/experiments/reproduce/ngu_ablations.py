"""NGU's parts on small tasks with one reward per episode: its mixtures, and both kinds of novelty.

As in table 3 of Badia et al. 2020, "Never Give Up" (arXiv:2002.06038), with R2D2 beside it. The
score is the share of episodes in which the final policy succeeds: i = 0, without exploring.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pronk.experiments.reproduce import common, matrix
from pronk.experiments.reproduce.matrix import Variant
from pronk.experiments.reproduce.settings import NGUAblations
from pronk.report.runs import EVALUATION
from pronk.run.setup import configure_jax
from pronk.types import Array


class Task(NamedTuple):
    """A task that an episode solves or not."""

    env: str
    args: dict[str, Any]
    failure: float  # the return of an episode without success
    success: float


TASKS = {
    "KeyDoor": Task("pronk/KeyDoor-v0", {"size": 3}, 0.0, 1.0),
    "Catch": Task("pronk/Catch-v0", {}, -1.0, 1.0),
    # Moves in vain cost at most 0.01, which does not count.
    "DeepSea": Task("pronk/DeepSea-v0", {"size": 10}, 0.0, 0.99),
}
QUICK = ("Catch",)
# The preset of both agents, as the fused runtime needs it. What there is to remember, the stored
# recurrent states carry.
COMMON: dict[str, Any] = {
    "preset": "small",
    "runtime": "fused",
    "priority_exponent": 0.0,
    "overlap": 0,
    "burn_in": 0,
    "samples_per_insert": 8.0,
}
VARIANTS = {
    "N = 8": Variant("ngu", {"mixtures": 8}),
    "N = 32": Variant("ngu", {"mixtures": 32}),
    "N = 1": Variant("ngu", {"mixtures": 1}),
    "N = 8, without RND": Variant("ngu", {"mixtures": 8, "lifelong": False}),
    "N = 8, RND alone": Variant("ngu", {"mixtures": 8, "episodic": False}),
    "R2D2": Variant("r2d2"),
}
EVALUATIONS, EPISODES = 20, 32
SOLVED = 0.9  # of the episodes: the run counts as one that solved the task


def run(settings: NGUAblations, *, output: Path, results: Path) -> str:
    """Train the missing runs, then write the tables and the figure."""
    configure_jax()
    known = {name: task.env for name, task in TASKS.items()}
    settings, tasks = matrix.choose(settings, known, QUICK, seeds=1, share=4)
    done = matrix.train(
        output,
        tasks,
        VARIANTS,
        seeds=settings.seeds,
        steps=settings.steps,
        env_args={name: TASKS[name].args for name in tasks},
        eval_every=max(1, settings.steps // EVALUATIONS),
        eval_episodes=EPISODES,
        **COMMON,
    )
    head = f"pronk reproduce ngu-ablations, {settings.steps:,} agent steps"
    matrix.write(done, results, "ngu-ablations", head)
    return "\n\n".join([table(results), draw(results)])


def success(task: Task, mean_return: Array) -> Array:
    """The share of episodes that succeed, from the mean return of all."""
    return np.clip((mean_return - task.failure) / (task.success - task.failure), 0.0, 1.0)


def table(results: Path) -> str:
    """Variants by tasks, from the table in `results`: the success rate of the final policy, mean
    over seeds with a 95 % interval, and how many of the runs solved the task."""
    scores = matrix.scores_of(common.read_csv(results / "ngu-ablations-scores.csv"), "evaluation")
    tasks = [name for name in TASKS if any(name in own for own in scores.values())]
    lines = []
    for variant, own in scores.items():
        cells = []
        for name in tasks:
            if name not in own:
                cells.append("–")
                continue
            rates = success(TASKS[name], own[name])
            solved = f"{(rates >= SOLVED).sum()} of {len(rates)}"
            cells.append(f"{common.interval(list(rates)).short()}; {solved}")
        lines.append([variant, *cells])
    return common.markdown(["success rate; runs that solved it", *tasks], lines)


def draw(results: Path) -> str:
    """Draw the evaluations from the table in `results`."""
    label = "mean return (evaluation)"
    return matrix.draw_curves(results, "ngu-ablations", metric=EVALUATION, label=label)
