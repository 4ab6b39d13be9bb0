"""Return against policy lag for each correction: figure E.1 of Espeholt et al. 2018, small.

Actors act with parameters exactly k updates old. Learning rate and entropy cost are the same for
all corrections and lags. What was learnt in the end plays, and not what acted k updates before, so
that the lag is seen in what it does to learning.
"""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

from pronk.experiments.reproduce.common import chosen, interval, once, plan_identity
from pronk.experiments.reproduce.settings import PolicyLag
from pronk.experiments.reproduce.side_by_side import Member, train
from pronk.experiments.reproduce.vtrace_ablation import (
    CORRECTIONS,
    FIRST_SEED,
    TASKS,
    plan_for,
)
from pronk.run.setup import configure_jax

LAGS = (0, 1, 5, 10, 50, 100, 500)
HYPER = {"learning_rate": 3e-3, "entropy_cost": 1e-2}  # of the grid, what most chose
SHOWN = ("delayed catch", "memory cue", "breakout")


def run(settings: PolicyLag) -> str:
    """Train what is missing, then write the table and the picture."""
    configure_jax()
    tasks = chosen(settings.tasks, SHOWN[:1] if settings.quick else SHOWN)
    if settings.quick:
        settings = dataclasses.replace(settings, seeds=min(3, settings.seeds), scale=0.5)
    settings.results.mkdir(parents=True, exist_ok=True)
    found = []
    for name in tasks:
        for lag in LAGS:
            for correction in CORRECTIONS:
                task = TASKS[name]
                steps = round(task.steps * settings.scale)
                plan = plan_for(task, correction, replay=False, lag=lag, steps=steps)
                members = [Member(FIRST_SEED + i, HYPER) for i in range(settings.seeds)]
                done = once(
                    settings.output,
                    f"{name}-{correction}-{lag}".replace(" ", "-"),
                    {"plan": plan_identity(plan), "seeds": settings.seeds, **HYPER},
                    lambda plan=plan, members=members: {
                        "scores": train(plan, members, points=1).final.tolist()
                    },
                )
                found.append({"task": name, "lag": lag, "correction": correction, **done})
    return _write(found, settings.results)


def _write(found: list[dict[str, Any]], results: Path) -> str:
    """The CSV, the picture, and the table as text."""
    with (results / "policy-lag.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "correction", "lag", "seed", "score"])
        for cell in found:
            for i, value in enumerate(cell["scores"]):
                name = [cell["task"], cell["correction"], cell["lag"]]
                writer.writerow([*name, FIRST_SEED + i, f"{value:.12g}"])
    picture = results / "policy-lag.png"
    _draw(found, picture)
    return "\n\n".join([*(table(found, task) for task in _tasks(found)), str(picture)])


def _tasks(found: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(cell["task"] for cell in found))


def table(found: list[dict[str, Any]], task: str) -> str:
    """Corrections by lags, in Markdown."""
    lines = [
        f"| {task} | " + " | ".join(f"k = {lag}" for lag in LAGS) + " |",
        "|---" * (len(LAGS) + 1) + "|",
    ]
    for correction, name in CORRECTIONS.items():
        cells = []
        for lag in LAGS:
            (cell,) = (
                c for c in found
                if (c["task"], c["correction"], c["lag"]) == (task, correction, lag)
            )  # fmt: skip
            value = interval(cell["scores"])
            cells.append(f"{value.mean:.3g} [{value.low:.3g}, {value.high:.3g}]")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _draw(found: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = _tasks(found)
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(5.5 * len(tasks), 4), constrained_layout=True, squeeze=False
    )
    for axis, task in zip(axes[0], tasks, strict=True):
        for i, (correction, name) in enumerate(CORRECTIONS.items()):
            cells = [c for c in found if (c["task"], c["correction"]) == (task, correction)]
            values = [interval(cell["scores"]) for cell in cells]
            at = [cell["lag"] for cell in cells]
            axis.plot(at, [v.mean for v in values], ".-", color=f"C{i}", label=name)
            axis.fill_between(
                at, [v.low for v in values], [v.high for v in values], color=f"C{i}", alpha=0.15
            )
        axis.set_xscale("symlog")
        axis.set_xticks(LAGS, [str(lag) for lag in LAGS])
        axis.set_title(task)
        axis.set_xlabel("policy lag k, updates")
        axis.set_ylabel("return of what was learnt (95 % intervals)")
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
