"""NGU's parts on small tasks with one reward per episode: its mixtures, and both kinds of novelty.

As in table 3 of Badia et al. 2020, "Never Give Up" (arXiv:2002.06038), with R2D2 beside it. The
score is the share of episodes in which the policy with i = 0 succeeds.
"""

from __future__ import annotations

from pathlib import Path

from pronk.experiments.reproduce import exploration, matrix
from pronk.experiments.reproduce.exploration import TASKS, Task, with_novelty
from pronk.experiments.reproduce.matrix import Variant
from pronk.experiments.reproduce.settings import NGUAblations
from pronk.report.runs import EVALUATION
from pronk.run.setup import configure_jax

NAME = "ngu-ablations"
QUICK = ("Catch",)


def variants(task: Task) -> dict[str, Variant]:
    """What is trained on a task."""
    return {
        "N = 8": with_novelty(task, "ngu", mixtures=8),
        "N = 32": with_novelty(task, "ngu", mixtures=32),
        "N = 1": with_novelty(task, "ngu", mixtures=1),
        "N = 1, without rewards": with_novelty(task, "ngu", mixtures=1, extrinsic=False),
        "N = 8, without RND": with_novelty(task, "ngu", mixtures=8, lifelong=False),
        "N = 8, RND alone": with_novelty(task, "ngu", mixtures=8, episodic=False),
        "R2D2": Variant("r2d2"),
    }


def run(settings: NGUAblations, *, output: Path, results: Path) -> str:
    """Train the missing runs, then write the tables and the figure."""
    configure_jax()
    known = {name: task.env for name, task in TASKS.items()}
    settings, chosen = matrix.choose(settings, known, QUICK, seeds=1, share=4)
    tasks = {name: TASKS[name] for name in chosen}
    done = exploration.train(settings, output, tasks, variants)
    head = f"pronk reproduce {NAME}, {settings.steps:,} agent steps"
    matrix.write(done, results, NAME, head)
    label = "mean return (evaluation)"
    figure = matrix.draw_curves(results, NAME, metric=EVALUATION, label=label)
    table = exploration.table(exploration.rates(results, NAME, TASKS), TASKS)
    return "\n\n".join([*filter(None, [table]), figure])
