"""Population based training against fixed random draws: the claim of the PBT papers, small.

Jaderberg et al. 2017, section 4.1; Espeholt et al. 2018, section 5.3. On each task a population
adapts what it was drawn with, once copying whom it has seen to be better (about the t-test of the
former), once whoever's score is 5 % better (the latter); beside them the same members, with the
same seeds and first hyperparameters, keep theirs. All are trained for the same agent steps, and
what they have learnt is then played without learning.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pronk import pbt
from pronk.config.pbt import PBTConfig
from pronk.config.spec import Plan
from pronk.experiments.reproduce.common import band, chosen, digest, once
from pronk.experiments.reproduce.settings import PBT
from pronk.pbt.vmapped import final_returns
from pronk.run import plot_population as lineage
from pronk.run.resolve import resolve
from pronk.run.setup import configure_jax
from pronk.storage.journal import events_of
from pronk.types import Array

TUNE = (
    "learning_rate=1e-5:1e-1",
    "entropy_cost=1e-5:1e-1",
    "optimiser_epsilon",
    "max_gradient_norm",
)
# What a score must be better by to be copied. The fixed ones copy nobody and perturb nothing.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "pbt": ("PBT", {"copy_sigmas": 2.0}),
    "threshold": ("PBT, 5 % alone", {"copy_sigmas": 0.0}),
    "fixed": ("fixed", {"copy_margin": math.inf, "perturb_probability": 0.0}),
}
FIRST_SEED = 100  # tasks, budgets and the rules of copying were chosen on seeds below 8
NEAR = 0.9  # of the maximum: where a fixed member comes so far, the budget says nothing


class Task(NamedTuple):
    """An environment, what of IMPALA's settings it needs, and what can be won."""

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
        preset="small",
        env_args=task.env_args,
        runtime="fused",
        steps=round(task.steps * scale),
        seed=seed,
        run_dir=directory,
        **task.settings,
    )


def config_for(kind: str, population: int) -> PBTConfig:
    """A population of one of `KINDS`."""
    return PBTConfig(population=population, tune=TUNE, execution="vmapped", **KINDS[kind][1])


def run(settings: PBT) -> str:
    """Train what is missing, then write the table and the pictures."""
    configure_jax()
    names = chosen(settings.tasks, TASKS)
    if settings.quick:
        settings = dataclasses.replace(settings, seeds=1, population=min(12, settings.population))
    settings.results.mkdir(parents=True, exist_ok=True)
    found = []
    for name in names:
        for seed in range(FIRST_SEED, FIRST_SEED + settings.seeds):
            for kind in KINDS:
                cell = f"{name}-{kind}-{seed}".replace(" ", "-")
                what = {
                    "task": TASKS[name]._asdict(),
                    "seed": seed,
                    "scale": settings.scale,
                    "pbt": dataclasses.asdict(config_for(kind, settings.population)),
                }
                done = once(
                    settings.output,
                    cell,
                    what,
                    lambda name=name, seed=seed, kind=kind: _cell(settings, name, seed, kind),
                )
                found.append({"task": name, "seed": seed, "kind": kind, **done})
    return _write(found, settings)


def _directory(settings: PBT, name: str, seed: int, kind: str) -> Path:
    what = [TASKS[name]._asdict(), settings.scale, settings.population]
    cell = f"{name}-{kind}-{seed}-{digest({'what': what})}".replace(" ", "-")
    return settings.output / "populations" / cell


def _cell(settings: PBT, name: str, seed: int, kind: str) -> dict[str, Any]:
    """One population."""
    directory = _directory(settings, name, seed, kind)
    plan = plan_for(TASKS[name], seed, directory, settings.scale)
    plan = dataclasses.replace(plan, run=dataclasses.replace(plan.run, quiet=True))
    config = config_for(kind, settings.population)
    summary = pbt.run(plan, config)
    if summary["status"] != "finished":
        raise KeyboardInterrupt  # it is saved; the same command goes on
    events = events_of(directory)
    starts = [e["hyper"] for e in events if e["event"] == "start"]
    ends = [e["hyper"] for e in events if e["event"] == "end"]
    return {
        "scores": final_returns(pbt.set_up(plan, config)).tolist(),
        "first": starts,
        "last": ends,
        "copies": summary["copies"],
        "curves": _curves(events),
    }


def _curves(events: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Best and median of the members' scores each time that they were ready, all together, and in
    the end."""
    lines = lineage.lines_of(events).values()
    scores = np.array([line.scores for line in lines])
    steps = np.array([line.steps for line in lines]).mean(axis=0)
    ranked = np.nan_to_num(scores, nan=-np.inf)
    return {
        "steps": steps.tolist(),
        "best": ranked.max(axis=0).tolist(),
        "median": np.median(ranked, axis=0).tolist(),
    }


def _write(found: list[dict[str, Any]], settings: PBT) -> str:
    """The CSV, the pictures, and the table as text."""
    results = settings.results
    with (results / "pbt.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        names = sorted(found[0]["first"][0])
        fields = ["task", "seed", "kind", "member", "score"]
        writer.writerow(
            [*fields, *(f"first_{name}" for name in names), *(f"last_{name}" for name in names)]
        )
        for cell in found:
            for i, score in enumerate(cell["scores"]):
                values = [cell[when][i][name] for when in ("first", "last") for name in names]
                row = [cell["task"], cell["seed"], cell["kind"], i, score, *values]
                writer.writerow([f"{x:.6g}" if isinstance(x, float) else x for x in row])
    _draw(found, results / "pbt.png")
    pictures = [results / "pbt.png"]
    for name in dict.fromkeys(cell["task"] for cell in found):
        picture = results / f"pbt-lineage-{name.replace(' ', '-')}.png"
        directory = _directory(settings, name, FIRST_SEED, "pbt")
        title = f"PBT on {name}, seed {FIRST_SEED}"
        pictures.append(lineage.draw(directory, picture, title=title))
    return "\n\n".join([table(found), verdict(found), "\n".join(map(str, pictures))])


def figures(found: list[dict[str, Any]], task: str, seed: int) -> dict[str, float]:
    """What is compared, by kind and what: the best member, the one at the top quarter (75th
    percentile), and the median one. A member of which no game ended counts as the worst."""
    scores: dict[str, Array] = {}
    for cell in found:
        if (cell["task"], cell["seed"]) == (task, seed):
            values = np.array(cell["scores"], float)
            scores[cell["kind"]] = np.where(np.isnan(values), np.nanmin(values), values)
    return {
        f"{kind}_{name}": float(np.quantile(values, q))
        for kind, values in scores.items()
        for name, q in (("best", 1.0), ("quarter", 0.75), ("median", 0.5))
    }


def _by_seed(found: list[dict[str, Any]], task: str) -> list[dict[str, float]]:
    seeds = sorted({cell["seed"] for cell in found if cell["task"] == task})
    return [figures(found, task, seed) for seed in seeds]


def table(found: list[dict[str, Any]]) -> str:
    """A row for each task, means over seeds and their range, in Markdown."""
    columns = {
        "PBT, best": "pbt_best",
        "5 % alone, best": "threshold_best",
        "fixed, best": "fixed_best",
        "PBT, median": "pbt_median",
        "5 % alone, median": "threshold_median",
        "fixed, top quarter": "fixed_quarter",
        "fixed, median": "fixed_median",
    }
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for task in dict.fromkeys(cell["task"] for cell in found):
        rows = _by_seed(found, task)
        cells = []
        for name in columns.values():
            values = [row[name] for row in rows]
            cells.append(f"{np.mean(values):.3g} ({min(values):.3g} to {max(values):.3g})")
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(found: list[dict[str, Any]]) -> str:
    """For each task, whether the budget leaves something to win, and whether the best member of a
    population is at least as good as the best fixed one, and its median one as the top quarter: of
    the mean over seeds, and on how many of them."""
    lines = []
    for task in dict.fromkeys(cell["task"] for cell in found):
        rows = _by_seed(found, task)
        mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        near = mean["fixed_best"] / TASKS[task].maximum
        told = f"{task}: the best fixed member is at {near:.0%} of the maximum"
        lines.append(told + (" (too near to tell)" if near >= NEAR else ""))
        for kind, (words, _) in KINDS.items():
            if kind == "fixed":
                continue
            told = []
            for ours, theirs in (("best", "best"), ("median", "quarter")):
                ours, theirs = f"{kind}_{ours}", f"fixed_{theirs}"
                wins = sum(row[ours] >= row[theirs] for row in rows)
                sign = "≥" if mean[ours] >= mean[theirs] else "<"
                names = f"{ours.removeprefix(kind + '_')} {sign} {theirs.replace('_', ' ')}"
                told.append(f"{names} in the mean, on {wins} of {len(rows)} seeds")
            lines.append(f"- {words}: {'; '.join(told)}")
    return "\n".join(lines)


def _draw(found: list[dict[str, Any]], path: Path) -> None:
    """Above, the best (solid) and the median member (dashed) over time, means over seeds with 95 %
    bootstrap bands; below, each member's return in the end, from the worst to the best, a line for
    each seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(cell["task"] for cell in found))
    figure, axes = plt.subplots(
        2, len(tasks), figsize=(4.0 * len(tasks), 6.4), constrained_layout=True, squeeze=False
    )
    colours = {"pbt": "#D55E00", "threshold": "#009E73", "fixed": "#0072B2"}
    for column, task in enumerate(tasks):
        above, below = axes[:, column]
        for kind, colour in colours.items():
            cells = [cell for cell in found if (cell["task"], cell["kind"]) == (task, kind)]
            for which, dashes in (("best", "-"), ("median", "--")):
                steps, curves = _resampled([cell["curves"] for cell in cells], which)
                mean, low, high = band(curves)
                label = f"{KINDS[kind][0]}, {which}"
                above.plot(steps / 1000, mean, dashes, color=colour, linewidth=1.4, label=label)
                above.fill_between(steps / 1000, low, high, color=colour, alpha=0.12, linewidth=0)
            for i, cell in enumerate(cells):
                scores = np.sort(cell["scores"])
                below.plot(
                    np.linspace(0, 100, len(scores)),
                    scores,
                    color=colour,
                    linewidth=0.9,
                    alpha=0.8,
                    label=KINDS[kind][0] if i == 0 else None,
                )
        above.set_title(task)
        above.set_xlabel("thousand agent steps of a member")
        below.set_xlabel("members, from the worst to the best [%]")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("mean return since last ready")
    axes[1, 0].set_ylabel("mean return in the end")
    axes[0, 0].legend(fontsize=7, frameon=False)
    axes[1, 0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _resampled(curves: list[dict[str, list[float]]], which: str) -> tuple[Array, list[Any]]:
    """Steps that all seeds have been at, `[points]`, and the seeds' curves there: episodes end
    where they will, so that no two seeds are ready at the same step."""
    steps = np.linspace(
        max(of["steps"][0] for of in curves), min(of["steps"][-1] for of in curves), 40
    )
    values = [np.array(of[which], float) for of in curves]
    values = [np.where(np.isfinite(of), of, np.nan) for of in values]
    return steps, [
        np.interp(steps, of["steps"], v).tolist() for of, v in zip(curves, values, strict=True)
    ]
