"""Population based training against fixed random draws: the claim of the PBT papers, small.

Jaderberg et al. 2017, section 4.1; Espeholt et al. 2018, section 5.3. On each task one population
copies members whose score is significantly better (about the t-test of the former paper), one
copies members whose score is 5 % better (the latter), and one has the same members, with the same
seeds and initial hyperparameters, but neither copies nor perturbs. All are trained for the same
agent steps, and the final policies are then evaluated without learning.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pronk import pbt
from pronk.config.pbt import PBTConfig
from pronk.config.spec import Plan
from pronk.experiments.hyperparameters import SMALL
from pronk.experiments.reproduce import common
from pronk.experiments.reproduce.common import select, unique
from pronk.experiments.reproduce.settings import PBT
from pronk.experiments.reproduce.side_by_side import FIRST_SEED
from pronk.pbt.one_program import final_returns
from pronk.run import plot_population as lineage
from pronk.run.resolve import resolve
from pronk.run.setup import configure_jax
from pronk.storage.journal import read_events
from pronk.types import Array

TUNE = (
    "learning_rate=1e-5:1e-1",
    "entropy_cost=1e-5:1e-1",
    "optimiser_epsilon",
    "max_gradient_norm",
)
# By how much a score must be better to be copied. Fixed members neither copy nor perturb.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "pbt": ("PBT", {"copy_sigmas": 2.0}),
    "threshold": ("PBT, 5 % alone", {"copy_sigmas": 0.0}),
    "fixed": ("fixed", {"copy_margin": math.inf, "perturb_probability": 0.0}),
}
# Tasks, budgets and the rules of copying were chosen on seeds below 8; results begin at FIRST_SEED.
NEAR = 0.9  # of the maximum: if a fixed member gets as far, the budget can show no difference


class Task(NamedTuple):
    """An environment, the IMPALA settings that it needs, and the largest return."""

    env: str
    env_args: dict[str, Any]
    steps: int  # agent steps of a member
    maximum: float  # return
    settings: dict[str, Any]


# Budgets that leave the best of 24 fixed draws below NEAR.
TASKS = {
    "delayed catch": Task("pronk/Catch-v0", {"delay": 10}, 25_000, 1.0, {"hidden_sizes": (64,)}),
    "memory cue": Task(
        "pronk/MemoryCue-v0", {"delay": 10, "cues": 8}, 400_000, 1.0,
        {"hidden_sizes": (32,), "recurrent_core": "lstm", "recurrent_units": 32},
    ),
    "cart-pole": Task("pronk/CartPole-v1", {}, 30_000, 500.0, {"hidden_sizes": (64,)}),
}  # fmt: skip


def plan_for(task: Task, seed: int, directory: Path, scale: float) -> Plan:
    """A population's plan."""
    return resolve(
        "impala",
        task.env,
        preset="paper",
        env_args=task.env_args,
        runtime="fused",
        steps=round(task.steps * scale),
        seed=seed,
        run_dir=directory,
        **{**SMALL, **task.settings},
    )


def config_for(kind: str, population: int) -> PBTConfig:
    """A population of one of `KINDS`."""
    return PBTConfig(population=population, tune=TUNE, execution="vmapped", **KINDS[kind][1])


def run(settings: PBT, *, output: Path, results: Path) -> str:
    """Train the missing populations, then write the tables and the figures."""
    configure_jax()
    names = common.choose_tasks(settings.tasks, TASKS)
    if settings.quick:
        settings = dataclasses.replace(settings, seeds=1, population=min(12, settings.population))
    cells = []
    for name in names:
        for seed in range(FIRST_SEED, FIRST_SEED + settings.seeds):
            for kind in KINDS:
                identity = {
                    "task": TASKS[name]._asdict(),
                    "seed": seed,
                    "scale": settings.scale,
                    "pbt": dataclasses.asdict(config_for(kind, settings.population)),
                }
                result = common.cached(
                    output,
                    f"{name}-{kind}-{seed}".replace(" ", "-"),
                    identity,
                    lambda name=name, seed=seed, kind=kind: _train(
                        settings, output, name, seed, kind
                    ),
                )
                cells.append({"task": name, "seed": seed, "kind": kind, **result})
    _write(cells, results)
    pictures = [draw(results), draw_curves(results)]
    for name in names:
        picture = results / f"pbt-lineage-{name.replace(' ', '-')}.png"
        directory = _directory(settings, output, name, FIRST_SEED, "pbt")
        title = f"PBT on {name}, seed {FIRST_SEED}"
        pictures.append(lineage.draw(directory, picture, title=title))
    return "\n\n".join([table(cells), verdict(cells), "\n".join(map(str, pictures))])


def _directory(settings: PBT, output: Path, name: str, seed: int, kind: str) -> Path:
    key = common.digest({"what": [TASKS[name]._asdict(), settings.scale, settings.population]})
    return output / "populations" / f"{name}-{kind}-{seed}-{key}".replace(" ", "-")


def _train(settings: PBT, output: Path, name: str, seed: int, kind: str) -> dict[str, Any]:
    """One population."""
    directory = _directory(settings, output, name, seed, kind)
    plan = plan_for(TASKS[name], seed, directory, settings.scale)
    plan = dataclasses.replace(plan, run=dataclasses.replace(plan.run, quiet=True))
    config = config_for(kind, settings.population)
    summary = pbt.run(plan, config)
    if summary["status"] != "finished":
        raise KeyboardInterrupt  # it is saved; the same command resumes
    events = read_events(directory)
    return {
        "scores": final_returns(pbt.set_up(plan, config)).tolist(),
        "first": [e["hyper"] for e in events if e["event"] == "start"],
        "last": [e["hyper"] for e in events if e["event"] == "end"],
        "copies": summary["copies"],
        "curves": _curves(events),
    }


def _curves(events: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Best and median of the members' scores at each generation and at the end."""
    lines = lineage.member_lines(events).values()
    scores = np.array([line.scores for line in lines])
    steps = np.array([line.steps for line in lines]).mean(axis=0)
    ranked = np.nan_to_num(scores, nan=-np.inf)
    return {
        "steps": steps.tolist(),
        "best": ranked.max(axis=0).tolist(),
        "median": np.median(ranked, axis=0).tolist(),
    }


def _write(cells: list[dict[str, Any]], results: Path) -> None:
    names = sorted(cells[0]["first"][0])
    rows, curves = [], []
    for cell in cells:
        head = [cell["task"], cell["seed"], cell["kind"]]
        for i, score in enumerate(cell["scores"]):
            values = [cell[when][i][name] for when in ("first", "last") for name in names]
            row = [*head, i, score, *values]
            rows.append([f"{x:.6g}" if isinstance(x, float) else x for x in row])
        points = zip(*(cell["curves"][k] for k in ("steps", "best", "median")), strict=True)
        curves += [[*head, *(f"{x:.6g}" for x in point)] for point in points]
    columns = [f"{when}_{name}" for when in ("first", "last") for name in names]
    head = ["task", "seed", "kind"]
    common.write_csv(results / "pbt.csv", [*head, "member", "score", *columns], rows)
    common.write_csv(results / "pbt-curves.csv", [*head, "steps", "best", "median"], curves)


def figures(cells: list[dict[str, Any]], task: str, seed: int) -> dict[str, float]:
    """The compared returns, as `kind_which`: the best member, the 75th percentile, the median.

    A member that finished no episode counts as the worst.
    """
    scores: dict[str, Array] = {}
    for cell in cells:
        if (cell["task"], cell["seed"]) == (task, seed):
            values = np.array(cell["scores"], float)
            scores[cell["kind"]] = np.where(np.isnan(values), np.nanmin(values), values)
    return {
        f"{kind}_{name}": float(np.quantile(values, q))
        for kind, values in scores.items()
        for name, q in (("best", 1.0), ("quarter", 0.75), ("median", 0.5))
    }


def _by_seed(cells: list[dict[str, Any]], task: str) -> list[dict[str, float]]:
    seeds = sorted({cell["seed"] for cell in cells if cell["task"] == task})
    return [figures(cells, task, seed) for seed in seeds]


COLUMNS = {
    "PBT, best": "pbt_best",
    "5 % alone, best": "threshold_best",
    "fixed, best": "fixed_best",
    "PBT, median": "pbt_median",
    "5 % alone, median": "threshold_median",
    "fixed, top quarter": "fixed_quarter",
    "fixed, median": "fixed_median",
}


def table(cells: list[dict[str, Any]]) -> str:
    """A table with a row for each task: means over seeds and their range."""
    lines = []
    for task in unique(cells, "task"):
        rows, line = _by_seed(cells, task), [task]
        for name in COLUMNS.values():
            values = [row[name] for row in rows]
            line.append(f"{np.mean(values):.3g} ({min(values):.3g} to {max(values):.3g})")
        lines.append(line)
    return common.markdown(["", *COLUMNS], lines)


def verdict(cells: list[dict[str, Any]]) -> str:
    """For each task, whether the budget can show a difference; and for each kind of population
    whether its best member is at least as good as the best fixed one, and its median member as the
    fixed 75th percentile: in the mean over seeds, and on how many of them."""
    lines = []
    for task in unique(cells, "task"):
        rows = _by_seed(cells, task)
        mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        near = mean["fixed_best"] / TASKS[task].maximum
        line = f"{task}: the best fixed member is at {near:.0%} of the maximum"
        lines.append(line + (" (within the uncertainty)" if near >= NEAR else ""))
        for kind, (words, _) in KINDS.items():
            if kind == "fixed":
                continue
            parts = []
            for ours, theirs in (("best", "best"), ("median", "quarter")):
                mine, other = f"{kind}_{ours}", f"fixed_{theirs}"
                wins = sum(row[mine] >= row[other] for row in rows)
                sign = "≥" if mean[mine] >= mean[other] else "<"
                where = f"in the mean, on {wins} of {len(rows)} seeds"
                parts.append(f"{ours} {sign} fixed {theirs} {where}")
            lines.append(f"- {words}: {'; '.join(parts)}")
    return "\n".join(lines)


LEGEND = {"pbt": "PBT", "threshold": "PBT that copies any score 5 % better", "fixed": "fixed draws"}


def draw(results: Path) -> Path:
    """Draw the final returns of all members from the table in `results`."""
    rows = common.read_csv(results / "pbt.csv")
    tasks = unique(rows, "task")
    figure, (axes,) = common.panels(1, len(tasks), 4.2, 3.8)
    for axis, task in zip(axes, tasks, strict=True):
        for i, (kind, label) in enumerate(LEGEND.items()):
            own = [row for row in rows if (row["task"], row["kind"]) == (task, kind)]
            ranked = [np.sort(select(own, "score", seed=seed)) for seed in unique(own, "seed")]
            place = np.linspace(0, 100, len(ranked[0]))
            for scores in ranked:
                axis.plot(place, scores, color=common.COLOURS[i], linewidth=0.6, alpha=0.35)
            mean, style = np.mean(ranked, axis=0), {"color": common.COLOURS[i], "linewidth": 2.5}
            axis.plot(place, mean, label=label, **style)
        axis.set_title(task)
        axis.set_xlabel("members of a population, ranked (%)\n0: worst, 100: best")
    axes[0].set_ylabel("mean return after training")
    note = "thick: mean over populations of the members at each rank; thin: each population"
    return common.save(figure, results / "pbt.png", note)


def draw_curves(results: Path) -> Path:
    """Draw the best and the median member over time from the table in `results`."""
    rows = common.read_csv(results / "pbt-curves.csv")
    tasks, which = unique(rows, "task"), ("best", "median")
    figure, axes = common.panels(2, len(tasks), 4.2, 3.0, sharex="col", sharey="col")
    for (row, column), axis in np.ndenumerate(axes):
        for i, (kind, label) in enumerate(LEGEND.items()):
            own = [r for r in rows if (r["task"], r["kind"]) == (tasks[column], kind)]
            steps, curves = _resample(own, which[row])
            common.draw_band(axis, steps / 1000, common.band(curves), i, label)
    for axis, task in zip(axes[0], tasks, strict=True):
        axis.set_title(task)
    for axis in axes[-1]:
        axis.set_xlabel("agent steps of a member (thousands)")
    for axis, member in zip(axes[:, 0], which, strict=True):
        axis.set_ylabel(f"{member} member's mean return\nin the generation")
    return common.save(figure, results / "pbt-curves.png", common.BAND)


def _resample(rows: list[common.Row], which: str) -> tuple[Array, list[Array]]:
    """Steps that all seeds cover, `[points]`, and the seeds' curves there.

    Generations end with episodes, so that no two seeds have them at the same step.
    """
    curves = []
    for seed in unique(rows, "seed"):
        steps, values = (np.array(select(rows, k, seed=seed)) for k in ("steps", which))
        curves.append((steps, np.where(np.isfinite(values), values, np.nan)))
    grid = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), 40)
    return grid, [np.interp(grid, *curve) for curve in curves]
