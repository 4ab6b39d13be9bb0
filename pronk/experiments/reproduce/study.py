"""PPO with the recommendations of a large study, minus each of them in turn.

Andrychowicz et al. 2021, "What Matters for On-Policy Deep Actor-Critic Methods?", section 3, whose
advice is `--preset study`. As there, the score is over the whole of training: the mean return of
all its episodes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pronk import report
from pronk.experiments.reproduce import common, matrix
from pronk.experiments.reproduce.matrix import Scores, Variant
from pronk.experiments.reproduce.ppo_clip import known_tasks, name_of
from pronk.experiments.reproduce.settings import Study
from pronk.report import statistics
from pronk.run.setup import configure_jax

# Batches of 2,048 steps, of eight environments.
_STUDY = {"preset": "study", "unroll": 256, "batch_size": 8}
ALL = "study"
# What each line does instead of the advice.
WITHOUT: dict[str, dict[str, Any]] = {
    "policy head × 1": {"policy_gain": 1.0},
    "initial deviation 1": {"initial_std": 1.0},
    "clipped actions": {"squash_actions": False},
    "raw observations": {"observation_normalisation": False},
    "raw value targets": {"value_normalisation": "none"},
    "advantages once": {"recompute_advantages": False},
    "λ 0.95": {"gae_lambda": 0.95},
    "value clip 0.2": {"value_clip": 0.2},
    "value network 64-64": {"value_hidden_sizes": (64, 64)},
    "ratio in 1 ± 0.2": {"clip": 0.2, "reciprocal_clip": False},
    "relu": {"activation": "relu"},
}
# Where the study's advice was measured, of the MuJoCo tasks.
MUJOCO = ("HalfCheetah", "Hopper", "Walker2d")
QUICK = {False: ("CartPoleSwingUp",), True: ("HalfCheetah",)}
REPEATS = 10_000


def run(settings: Study, *, output: Path, results: Path) -> str:
    """Train the missing runs, then write the tables and the figure."""
    configure_jax()
    known, quick = known_tasks(settings), QUICK[settings.mujoco]
    settings, tasks = matrix.choose(settings, known, quick, seeds=2, share=10)
    if settings.mujoco and not (settings.tasks or settings.quick):
        tasks = {name: known[name] for name in MUJOCO}
    variants = {ALL: {}, **WITHOUT}
    done = matrix.train(
        output,
        tasks,
        {name: Variant("ppo", {**_STUDY, **changed}) for name, changed in variants.items()},
        seeds=settings.seeds,
        steps=settings.steps,
    )
    name = name_of(settings, "study")
    matrix.write(done, results, name, f"pronk reproduce study, {settings.steps:,} agent steps")
    return "\n\n".join([table(results, name), draw(results, name)])


def table(results: Path, name: str = "study") -> str:
    """What each change costs per task: the difference of its mean from the study's, with a 95 %
    bootstrap interval; negative is worse without the advice."""
    rows = common.read_csv(results / f"{name}-scores.csv")
    scores = matrix.scores_of(rows, "all_episodes")
    tasks = [task for task in common.unique(rows, "task") if task in scores.get(ALL, {})]
    lines = [[f"**{ALL}**", *(matrix.spread(scores[ALL][task]) for task in tasks)]]
    for variant in WITHOUT:
        cells = [
            difference(scores, variant, task) if task in scores.get(variant, {}) else "–"
            for task in tasks
        ]
        lines.append([variant, *cells])
    return common.markdown(["instead of the advice", *tasks], lines)


def difference(scores: Scores, variant: str, task: str) -> str:
    """The mean of a variant minus the study's, with its interval; bold if that excludes 0."""
    groups = [{task: scores[name][task]} for name in (variant, ALL)]

    def of(x: Any, y: Any) -> Any:
        return statistics.mean(x) - statistics.mean(y)

    value = float(of(*groups))
    low, high = report.interval(of, *groups, repeats=REPEATS)
    if not np.isfinite(low):  # of one run each
        return f"{value:+.1f}"
    text = f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def draw(results: Path, name: str = "study") -> str:
    """Draw the learning curves from the table in `results`."""
    return matrix.draw_curves(results, name)
