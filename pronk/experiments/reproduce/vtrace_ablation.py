"""V-trace against the other corrections, with and without replay: IMPALA's table 2, small.

Espeholt et al. 2018, section 5.2.2: five tasks, each of which needs credit over time in its own
way. Actors act with parameters ten updates old, so that data are off-policy even without replay.
Each correction has the same grid of learning rates and entropy costs on each task; the best point
of it on two seeds is then run on five others, which the table shows.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pronk.config.spec import Plan
from pronk.experiments.hyperparameters import SMALL
from pronk.experiments.reproduce import common, side_by_side
from pronk.experiments.reproduce.common import Interval, interval, select, unique
from pronk.experiments.reproduce.settings import VTraceAblation
from pronk.experiments.reproduce.side_by_side import FIRST_SEED, POINTS
from pronk.run.resolve import resolve
from pronk.run.setup import configure_jax

CORRECTIONS = {
    "vtrace": "V-trace",
    "one-step": "1-step",
    "epsilon": "ε-correction",
    "none": "no-correction",
}
REPLAY = {False: "without replay", True: "with replay"}
GRID = {"learning_rate": (3e-4, 1e-3, 3e-3), "entropy_cost": (1e-3, 1e-2)}
LAG = 10  # updates
NEAR = 0.01
FRESH = 160  # transitions just acted, per update; with replay as many again


class Task(NamedTuple):
    """An environment and the IMPALA settings that it needs."""

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
    """A run's plan, without the members' own learning rates and entropy costs."""
    settings = {**SMALL, "unroll": 20, "activation": "relu", "reward_scale": 1.0, **task.settings}
    fresh = FRESH // settings["unroll"]
    return resolve(
        "impala",
        task.env,
        preset="paper",
        env_args=task.env_args,
        runtime="fused",
        steps=steps,
        correction=correction,
        policy_lag=lag,
        replay_fraction=0.5 if replay else 0.0,
        replay_capacity=50_000,
        **{**settings, "batch_size": 2 * fresh if replay else fresh},
    )


def run(settings: VTraceAblation, *, output: Path, results: Path) -> str:
    """Train the missing runs, then write the tables and the figure."""
    configure_jax()
    names = common.choose_tasks(settings.tasks, QUICK if settings.quick else TASKS)
    if settings.quick:
        settings = dataclasses.replace(settings, seeds=min(3, settings.seeds), scale=0.5)
    cells = []
    for name in names:
        for replay in REPLAY:
            for correction in CORRECTIONS:
                steps = round(TASKS[name].steps * settings.scale)
                plan = plan_for(TASKS[name], correction, replay=replay, lag=LAG, steps=steps)
                result = common.cached(
                    output,
                    f"{name}-{'replay-' if replay else ''}{correction}".replace(" ", "-"),
                    {"plan": common.plan_identity(plan), "seeds": settings.seeds},
                    lambda plan=plan: train(plan, settings.seeds),
                )
                cells.append({"task": name, "replay": replay, "correction": correction, **result})
    _write(cells, results)
    return "\n\n".join([table(cells), verdict(cells), str(draw(results))])


def train(plan: Plan, seeds: int) -> dict[str, Any]:
    """Tune learning rate and entropy cost, and train the best on other seeds."""
    tuned = side_by_side.tune(plan, GRID, seeds, rank=lambda scores: scores[:, 0])
    curves = tuned.curves
    grid = [{**point, "scores": np.ravel(point["scores"]).tolist()} for point in tuned.grid]
    return {
        "grid": grid,
        "best": tuned.best,
        "scores": curves.scores()[:, 0].tolist(),
        "steps": curves.steps.mean(0).tolist(),
        "curves": curves.mean_return.tolist(),
    }


def _write(cells: list[dict[str, Any]], results: Path) -> None:
    rows, curves = [], []
    for cell in cells:
        name = [cell["task"], cell["replay"], cell["correction"]]
        for point in cell["grid"]:
            hyper = [point["learning_rate"], point["entropy_cost"]]
            for seed, value in enumerate(point["scores"]):
                rows.append([*name, *hyper, "selection", seed, f"{value:.12g}"])
        hyper = [cell["best"]["learning_rate"], cell["best"]["entropy_cost"]]
        for i, (value, curve) in enumerate(zip(cell["scores"], cell["curves"], strict=True)):
            rows.append([*name, *hyper, "shown", FIRST_SEED + i, f"{value:.12g}"])
            points = [f"{value:.4g}" for value in curve]
            curves.append([*name, FIRST_SEED + i, int(cell["steps"][-1]), *points])
    name = ["task", "replay", "correction"]
    header = [*name, "learning_rate", "entropy_cost", "part", "seed", "score"]
    common.write_csv(results / "vtrace-ablation.csv", header, rows)
    # One row per curve, whose points are equally far apart.
    points = [f"return{i}" for i in range(1, POINTS + 1)]
    header = [*name, "seed", "steps_to_the_last", *points]
    common.write_csv(results / "vtrace-ablation-curves.csv", header, curves)


def _intervals(cells: list[dict[str, Any]]) -> dict[tuple[str, bool, str], Interval]:
    return {(c["task"], c["replay"], c["correction"]): interval(c["scores"]) for c in cells}


def table(cells: list[dict[str, Any]]) -> str:
    """A table of corrections by tasks, without and with replay; the best of a column is bold."""
    tasks, values, lines = unique(cells, "task"), _intervals(cells), []
    for replay, words in REPLAY.items():
        lines.append([f"**{words}**", *[""] * len(tasks)])
        for correction, name in CORRECTIONS.items():
            line = [name]
            for task in tasks:
                value = values[task, replay, correction]
                best = max(values[task, replay, c].mean for c in CORRECTIONS)
                mean, rest = value.short().split(" ", 1)
                line.append(f"**{mean}** {rest}" if value.mean == best else value.short())
            lines.append(line)
    return common.markdown(["", *tasks], lines)


def verdict(cells: list[dict[str, Any]]) -> str:
    """For each correction, on how many tasks it is the best or within the best one's interval.

    In brackets also counted: not further from the best than NEAR of the distance between the best
    and the worst, since intervals can be narrower than any difference that matters.
    """
    tasks, values, lines = unique(cells, "task"), _intervals(cells), []
    for replay, words in REPLAY.items():
        counts = []
        for correction, name in CORRECTIONS.items():
            within = near = 0
            for task in tasks:
                column = [values[task, replay, c] for c in CORRECTIONS]
                best = max(column, key=lambda value: value.mean)
                spread = best.mean - min(value.mean for value in column)
                mean = values[task, replay, correction].mean
                within += mean >= best.low
                near += mean >= min(best.low, best.mean - NEAR * spread)
            counts.append(f"{name} {within} ({near}) of {len(tasks)}")
        lines.append(
            f"best, or within the interval of the best (or {NEAR:.0%} of the spread), {words}:"
            f" {', '.join(counts)}"
        )
    return "\n".join(lines)


def draw(results: Path) -> Path:
    """Draw the learning curves from the table in `results`."""
    rows = common.read_csv(results / "vtrace-ablation-curves.csv")
    tasks = unique(rows, "task")
    figure, axes = common.panels(2, len(tasks), 3.1, 2.8, sharex="col", sharey="col")
    for i, (correction, label) in enumerate(CORRECTIONS.items()):
        for axis, (replay, task) in zip(
            axes.flat, [(replay, task) for replay in REPLAY for task in tasks], strict=True
        ):
            where = {"task": task, "replay": str(replay), "correction": correction}
            curves = [
                [row[f"return{k}"] for k in range(1, POINTS + 1)]
                for row in rows
                if where.items() <= row.items()
            ]
            last = select(rows, "steps_to_the_last", **where)[0]
            steps = np.linspace(last / POINTS, last, POINTS) / 1000
            common.draw_band(axis, steps, common.band(curves), i, label)
    for axis, task in zip(axes[0], tasks, strict=True):
        axis.set_title(task)
    for axis in axes[-1]:
        axis.set_xlabel("agent steps (thousands)")
    for row, words in zip(axes, REPLAY.values(), strict=True):
        row[0].set_ylabel(f"mean return\n{words}")
    return common.save(figure, results / "vtrace-ablation.png", common.BAND)
