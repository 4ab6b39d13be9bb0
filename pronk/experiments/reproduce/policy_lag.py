"""Return against policy lag for each correction: figure E.1 of Espeholt et al. 2018, small.

Actors act with parameters exactly k updates old. Learning rate and entropy cost are the same for
all corrections and lags. The final parameters are evaluated, not those of k updates before, so that
the figure shows what the lag does to learning.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pronk.experiments.reproduce import common, side_by_side
from pronk.experiments.reproduce.common import Row, interval, select, unique
from pronk.experiments.reproduce.settings import PolicyLag
from pronk.experiments.reproduce.side_by_side import FIRST_SEED, Member
from pronk.experiments.reproduce.vtrace_ablation import CORRECTIONS, TASKS, plan_for
from pronk.run.setup import configure_jax

LAGS = (0, 1, 5, 10, 50, 100, 500)
HYPER = {"learning_rate": 3e-3, "entropy_cost": 1e-2}  # chosen most often in the ablation
SHOWN = ("delayed catch", "memory cue", "breakout")


def run(settings: PolicyLag, *, output: Path, results: Path) -> str:
    """Train the missing runs, then write the table and the figure."""
    configure_jax()
    tasks = common.choose_tasks(settings.tasks, SHOWN[:1] if settings.quick else SHOWN)
    if settings.quick:
        settings = dataclasses.replace(settings, seeds=min(3, settings.seeds), scale=0.5)
    scores = [
        [name, correction, lag, FIRST_SEED + i, f"{score:.12g}"]
        for name in tasks
        for lag in LAGS
        for correction in CORRECTIONS
        for i, score in enumerate(_scores(settings, output, name, lag, correction))
    ]
    path = results / "policy-lag.csv"
    common.write_csv(path, ["task", "correction", "lag", "seed", "score"], scores)
    rows = common.read_csv(path)
    tables = [table(rows, task) for task in unique(rows, "task")]
    return "\n\n".join([*tables, str(draw(results))])


def _scores(settings: PolicyLag, output: Path, name: str, lag: int, correction: str) -> list[float]:
    """The final mean return of each seed."""
    task = TASKS[name]
    steps = round(task.steps * settings.scale)
    plan = plan_for(task, correction, replay=False, lag=lag, steps=steps)
    members = [Member(FIRST_SEED + i, HYPER) for i in range(settings.seeds)]

    def compute() -> dict[str, Any]:
        return {"scores": side_by_side.train(plan, members, points=1).final.tolist()}

    identity = {"plan": common.plan_identity(plan), "seeds": settings.seeds, **HYPER}
    cell = f"{name}-{correction}-{lag}".replace(" ", "-")
    return common.cached(output, cell, identity, compute)["scores"]


def table(rows: list[Row], task: str) -> str:
    """A table of corrections by lags."""
    lines = []
    for correction, name in CORRECTIONS.items():
        cells = [select(rows, "score", task=task, correction=correction, lag=k) for k in LAGS]
        lines.append([name, *(interval(scores).short() for scores in cells)])
    return common.markdown([task, *(f"k = {lag}" for lag in LAGS)], lines)


def draw(results: Path) -> Path:
    """Draw the figure from the table in `results`."""
    rows = common.read_csv(results / "policy-lag.csv")
    tasks = unique(rows, "task")
    figure, axes = common.panels(1, len(tasks), 4.6, 3.8)
    for axis, task in zip(axes[0], tasks, strict=True):
        for i, (correction, label) in enumerate(CORRECTIONS.items()):
            cells = [select(rows, "score", task=task, correction=correction, lag=k) for k in LAGS]
            values = zip(*map(interval, cells), strict=True)
            common.draw_band(axis, LAGS, values, i, label, marker=".")
        axis.set_xscale("symlog")
        axis.set_xticks(LAGS, [str(lag) for lag in LAGS])
        axis.minorticks_off()
        axis.set_title(task)
        axis.set_xlabel("policy lag k (updates)")
    axes[0, 0].set_ylabel("mean return of the final policy")
    return common.save(figure, results / "policy-lag.png", common.BAND)
