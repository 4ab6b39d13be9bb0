"""V-trace against the other corrections, with and without replay: IMPALA's table 2, small.

Espeholt et al. 2018, section 5.2.2: five tasks, of which each needs credit over time in its own
way. Actors act with parameters ten updates old, so that data are off-policy even without replay.
Each correction has the same grid of learning rates and entropy costs on each task; the best of it
on two seeds is then run on five other ones, which the table shows.
"""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pronk.config.spec import Plan
from pronk.experiments.reproduce.common import Interval, band, chosen, interval, once, plan_identity
from pronk.experiments.reproduce.settings import VTraceAblation
from pronk.experiments.reproduce.side_by_side import Curves, Member, train
from pronk.run.resolve import resolve
from pronk.run.setup import configure_jax
from pronk.types import Array

CORRECTIONS = {
    "vtrace": "V-trace",
    "one-step": "1-step",
    "epsilon": "ε-correction",
    "none": "no-correction",
}
REPLAY = {False: "without replay", True: "with replay"}
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
ENTROPY_COSTS = (1e-3, 1e-2)
LAG = 10  # updates
SELECTION_SEEDS, FIRST_SEED = 2, 100  # those that are shown begin at the latter
POINTS = 40  # of a curve; the score is the mean of the last quarter
NEAR = 0.01
FRESH = 160  # transitions just acted, per update; with replay as many again


class Task(NamedTuple):
    """An environment, and what of IMPALA's settings it needs."""

    env: str
    env_args: dict[str, Any]
    steps: int  # agent steps of a run
    settings: dict[str, Any]


_PIXELS = {"torso": "minatar", "hidden_sizes": (128,), "unroll": 10}
TASKS = {
    "delayed catch": Task("pronk/Catch-v0", {"delay": 10}, 400_000, {"hidden_sizes": (64,)}),
    "memory cue": Task(
        "pronk/MemoryCue-v0", {"delay": 10}, 400_000,
        {"hidden_sizes": (32,), "recurrent_core": "lstm", "recurrent_units": 32},
    ),
    "deep sea": Task("pronk/DeepSea-v0", {"size": 10}, 400_000, {"hidden_sizes": (64,)}),
    "breakout": Task("pronk/Breakout-v0", {}, 300_000, _PIXELS),
    "space invaders": Task("pronk/SpaceInvaders-v0", {}, 300_000, _PIXELS),
}  # fmt: skip
QUICK = ("delayed catch", "memory cue", "deep sea")


def plan_for(task: Task, correction: str, *, replay: bool, lag: int, steps: int) -> Plan:
    """A run's plan, of which learning rate and entropy cost are the members' own."""
    settings = {"unroll": 20, "activation": "relu", "reward_scale": 1.0, **task.settings}
    fresh = FRESH // settings["unroll"]
    return resolve(
        "impala",
        task.env,
        preset="small",
        env_args=task.env_args,
        runtime="fused",
        steps=steps,
        correction=correction,
        policy_lag=lag,
        batch_size=2 * fresh if replay else fresh,
        replay_fraction=0.5 if replay else 0.0,
        replay_capacity=50_000,
        **settings,
    )


def run(settings: VTraceAblation) -> str:
    """Train what is missing, then write the tables and the picture."""
    configure_jax()
    tasks = {
        name: TASKS[name] for name in chosen(settings.tasks, QUICK if settings.quick else TASKS)
    }
    if settings.quick:
        settings = dataclasses.replace(settings, seeds=min(3, settings.seeds), scale=0.5)
    settings.results.mkdir(parents=True, exist_ok=True)
    found = []
    for name, task in tasks.items():
        for replay in REPLAY:
            for correction in CORRECTIONS:
                steps = round(task.steps * settings.scale)
                plan = plan_for(task, correction, replay=replay, lag=LAG, steps=steps)
                cell = f"{name}-{'replay-' if replay else ''}{correction}".replace(" ", "-")
                done = once(
                    settings.output,
                    cell,
                    {"plan": plan_identity(plan), "seeds": settings.seeds},
                    lambda plan=plan: _cell(plan, settings.seeds),
                )
                found.append({"task": name, "replay": replay, "correction": correction, **done})
    return _write(found, settings.results)


def _cell(plan: Plan, seeds: int) -> dict[str, Any]:
    """The whole grid on few seeds, and its best point on others."""
    grid = [
        {"learning_rate": rate, "entropy_cost": cost}
        for rate in LEARNING_RATES
        for cost in ENTROPY_COSTS
    ]
    members = [Member(seed, hyper) for hyper in grid for seed in range(SELECTION_SEEDS)]
    tried = score(train(plan, members, points=POINTS)).reshape(len(grid), SELECTION_SEEDS)
    best = grid[int(np.nan_to_num(tried.mean(axis=1), nan=-np.inf).argmax())]
    members = [Member(FIRST_SEED + i, best) for i in range(seeds)]
    curves = train(plan, members, points=POINTS)
    return {
        "grid": [{**hyper, "scores": row.tolist()} for hyper, row in zip(grid, tried, strict=True)],
        "best": best,
        "scores": score(curves).tolist(),
        "steps": curves.steps.mean(0).tolist(),
        "curves": curves.mean_return.tolist(),
    }


def score(curves: Curves) -> Array:
    """The mean return of the last quarter of training, `[N]`."""
    return np.nanmean(curves.mean_return[:, -(POINTS // 4) :], axis=1)


def _write(found: list[dict[str, Any]], results: Path) -> str:
    """The CSVs, the picture, and the table as text."""
    with (results / "vtrace-ablation.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        fields = ["task", "replay", "correction", "learning_rate", "entropy_cost", "part", "seed"]
        writer.writerow([*fields, "score"])
        for cell in found:
            name = [cell["task"], cell["replay"], cell["correction"]]
            for point in cell["grid"]:
                hyper = [point["learning_rate"], point["entropy_cost"]]
                for seed, value in enumerate(point["scores"]):
                    writer.writerow([*name, *hyper, "selection", seed, f"{value:.12g}"])
            hyper = [cell["best"]["learning_rate"], cell["best"]["entropy_cost"]]
            for i, value in enumerate(cell["scores"]):
                writer.writerow([*name, *hyper, "shown", FIRST_SEED + i, f"{value:.12g}"])
    with (results / "vtrace-ablation-curves.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        # A row for each curve, whose points are equally far apart.
        points = [f"return{i}" for i in range(1, POINTS + 1)]
        writer.writerow(["task", "replay", "correction", "seed", "steps_to_the_last", *points])
        for cell in found:
            name = [cell["task"], cell["replay"], cell["correction"]]
            for i, curve in enumerate(cell["curves"]):
                values = [f"{value:.4g}" for value in curve]
                writer.writerow([*name, FIRST_SEED + i, int(cell["steps"][-1]), *values])
    picture = results / "vtrace-ablation.png"
    _draw(found, picture)
    return "\n\n".join([table(found), verdict(found), str(picture)])


def _intervals(found: list[dict[str, Any]]) -> dict[tuple[str, bool, str], Interval]:
    return {(c["task"], c["replay"], c["correction"]): interval(c["scores"]) for c in found}


def table(found: list[dict[str, Any]]) -> str:
    """Corrections by tasks, without and with replay, in Markdown; the best of a column is bold."""
    tasks = list(dict.fromkeys(cell["task"] for cell in found))
    values = _intervals(found)
    lines = ["| | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|"]
    for replay, words in REPLAY.items():
        lines.append(f"| **{words}** |" + " |" * len(tasks))
        for correction, name in CORRECTIONS.items():
            cells = []
            for task in tasks:
                value = values[task, replay, correction]
                best = max(values[task, replay, c].mean for c in CORRECTIONS)
                mean = f"{value.mean:.3g}"
                mean = f"**{mean}**" if value.mean == best else mean
                cells.append(f"{mean} [{value.low:.3g}, {value.high:.3g}]")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(found: list[dict[str, Any]]) -> str:
    """For each correction, on how many tasks it is the best or within the best one's interval; and,
    where intervals are narrower than what anyone would care for, how often it is not further from
    the best than NEAR of what lies between the best and the worst."""
    tasks = list(dict.fromkeys(cell["task"] for cell in found))
    values = _intervals(found)
    lines = []
    for replay, words in REPLAY.items():
        told = []
        for correction, name in CORRECTIONS.items():
            within = near = 0
            for task in tasks:
                column = [values[task, replay, c] for c in CORRECTIONS]
                best = max(column, key=lambda value: value.mean)
                spread = best.mean - min(value.mean for value in column)
                mean = values[task, replay, correction].mean
                within += mean >= best.low
                near += mean >= min(best.low, best.mean - NEAR * spread)
            told.append(f"{name} {within} ({near}) of {len(tasks)}")
        lines.append(
            f"best, or within the interval of the best (or {NEAR:.0%} of the spread), {words}:"
            f" {', '.join(told)}"
        )
    return "\n".join(lines)


def _draw(found: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(cell["task"] for cell in found))
    figure, axes = plt.subplots(
        2, len(tasks), figsize=(3.3 * len(tasks), 5.6), constrained_layout=True, squeeze=False
    )
    for cell in found:
        axis = axes[int(cell["replay"]), tasks.index(cell["task"])]
        i = list(CORRECTIONS).index(cell["correction"])
        mean, low, high = band(cell["curves"])
        steps = np.array(cell["steps"]) / 1000
        axis.plot(steps, mean, color=f"C{i}", label=CORRECTIONS[cell["correction"]])
        axis.fill_between(steps, low, high, color=f"C{i}", alpha=0.15)
        axis.set_title(f"{cell['task']}, {REPLAY[cell['replay']]}", fontsize=9)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("thousand agent steps")
    for row in axes:
        row[0].set_ylabel("return")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
