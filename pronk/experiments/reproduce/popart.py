"""PopArt on tasks whose rewards differ by a factor of a million: Hessel et al. 2018, small.

The suite `suite/scales-v0` is learnt by one agent: with rewards clipped to ±1, as they are, with
values in adapted units (ART), and with outputs preserved besides (PopArt). Each has the same grid
of learning rates; what is best of it on two seeds is run on others, which the table shows. What
counts as 1 is what an agent of its own reaches in each task, with as many steps of that task, as
many updates and the same grid; as 0, what the first policy gets. The table is in the form of table
1 there, the statistics over time in that of figure 4.
"""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from pronk.config.spec import Plan
from pronk.envs.suite import SUITES, Task
from pronk.experiments.reproduce.common import Interval, band, interval, once, plan_identity
from pronk.experiments.reproduce.settings import PopArt
from pronk.experiments.reproduce.side_by_side import Curves, Member, train
from pronk.run.resolve import resolve
from pronk.run.setup import configure_jax
from pronk.types import Array, LearnerState

SUITE = "suite/scales-v0"
CONDITIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "clipped": ("IMPALA, clipped", {"reward_clip": 1.0}),
    "unclipped": ("IMPALA, unclipped", {}),
    "art": ("ART-IMPALA", {"value_normalisation": "art"}),
    "popart": ("PopArt-IMPALA", {"value_normalisation": "popart"}),
}
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
STEPS = 1_200_000  # rows of all tasks together: agent steps, and dummies between episodes
SLOTS = 3  # of each task
SELECTION_SEEDS, FIRST_SEED = 2, 100  # those that are shown begin at the latter
POINTS = 40  # of a curve; the score is the mean of the last quarter
COMMON: dict[str, Any] = {
    "torso": "minatar",
    "hidden_sizes": (128,),
    "activation": "relu",
    "unroll": 10,
    "reward_scale": 1.0,
    "entropy_cost": 0.02,
    "popart_beta": 0.01,
    "max_gradient_norm": 5.0,
}


def plan_for(condition: str, steps: int, *, debias: bool) -> Plan:
    """The whole suite's plan."""
    tasks = len(SUITES[SUITE])
    return _plan(SUITE, {}, steps, condition, debias, batch_size=SLOTS * tasks)


def alone(task: Task, steps: int, *, debias: bool) -> Plan:
    """One task's plan, by PopArt too, with rewards as its environment pays them."""
    tasks = len(SUITES[SUITE])
    return _plan(task.env, task.env_args, steps // tasks, "popart", debias, batch_size=SLOTS)


def _plan(
    env: str, env_args: Any, steps: int, condition: str, debias: bool, *, batch_size: int
) -> Plan:
    settings = {**COMMON, **CONDITIONS[condition][1], "batch_size": batch_size}
    settings["popart_debias"] = debias and "value_normalisation" in settings
    return resolve(
        "impala", env, preset="small", env_args=env_args, runtime="fused", steps=steps, **settings
    )


def run(settings: PopArt) -> str:
    """Train what is missing, then write the tables and the pictures."""
    configure_jax()
    if settings.quick:
        settings = dataclasses.replace(settings, seeds=min(2, settings.seeds), scale=0.15)
    settings.results.mkdir(parents=True, exist_ok=True)
    steps = round(STEPS * settings.scale)
    tasks = SUITES[SUITE]

    def cell(name: str, plan: Plan, *, statistics: bool = False) -> dict[str, Any]:
        what = {
            "plan": plan_identity(plan),
            "tasks": [dataclasses.asdict(task) for task in tasks],
            "grid": [LEARNING_RATES, SELECTION_SEEDS, FIRST_SEED, POINTS],
            "seeds": settings.seeds,
        }
        return once(settings.output, name, what, lambda: _cell(plan, settings.seeds, statistics))

    plans = {name: plan_for(name, steps, debias=settings.debias) for name in CONDITIONS}
    found = {name: cell(name, plan, statistics=name == "popart") for name, plan in plans.items()}
    singles = {
        task.name: cell(f"alone-{task.name}", alone(task, steps, debias=settings.debias))
        for task in tasks
    }
    beginning = plan_for("unclipped", steps // 10, debias=False)
    untrained = once(
        settings.output,
        "untrained",
        {"plan": plan_identity(beginning), "seeds": settings.seeds},
        lambda: _untrained(beginning, settings.seeds),
    )
    return _write(found, singles, untrained["scores"], settings.results)


def _cell(plan: Plan, seeds: int, statistics: bool) -> dict[str, Any]:
    """The learning rates on few seeds, and the best of them on others; scores of each task."""
    members = [
        Member(seed, {"learning_rate": rate})
        for rate in LEARNING_RATES
        for seed in range(SELECTION_SEEDS)
    ]
    tried = score(train(plan, members, points=POINTS))  # [rates × seeds, tasks]
    tried = tried.reshape(len(LEARNING_RATES), SELECTION_SEEDS, -1)
    best = LEARNING_RATES[_best(plan, tried)]
    members = [Member(FIRST_SEED + i, {"learning_rate": best}) for i in range(seeds)]
    look = _statistics if statistics else None
    curves = train(plan, members, points=POINTS, look=look)
    return {
        "grid": [
            {"learning_rate": rate, "scores": of.tolist()}
            for rate, of in zip(LEARNING_RATES, tried, strict=True)
        ],
        "learning_rate": best,
        "scores": score(curves).tolist(),  # [seeds, tasks]
        "steps": curves.steps.mean(0).tolist(),
        "curves": curves.task_return.tolist(),  # [seeds, points, tasks]
        # Each [points, seeds, tasks].
        "statistics": {k: np.stack([x[k] for x in curves.looked]).tolist() for k in ("μ", "σ")}
        if statistics
        else {},
    }


def _best(plan: Plan, tried: Array) -> int:
    """Which learning rate: by the mean over tasks of scores normalised by the tasks' references, so
    that no task's scale decides."""
    mean = tried.mean(axis=1)  # [rates, tasks]
    if plan.env != SUITE:
        return int(np.nan_to_num(mean[:, 0], nan=-np.inf).argmax())
    references = np.array([task.scaled_reference for task in SUITES[SUITE]])
    normalised = (mean - references[:, 0]) / (references[:, 1] - references[:, 0])
    return int(np.nan_to_num(normalised, nan=-1.0).mean(axis=1).argmax())


def _untrained(plan: Plan, seeds: int) -> dict[str, Any]:
    members = [Member(FIRST_SEED + i, {"learning_rate": 0.0}) for i in range(seeds)]
    return {"scores": np.nanmean(train(plan, members, points=1).task_return[:, 0], 0).tolist()}


def _statistics(learners: LearnerState) -> dict[str, Array]:
    """Of all members, `[N, tasks]` each."""
    statistics: Any = learners.extra["statistics"]
    return {"μ": np.asarray(statistics.mean), "σ": np.asarray(statistics.deviation)}


def score(curves: Curves) -> Array:
    """The mean return of the last quarter of training, `[N, tasks]`."""
    return np.nanmean(curves.task_return[:, -(POINTS // 4) :], axis=1)


class _Normalised:
    """What each condition is worth in each task, where 0 is the first policy and 1 an agent of its
    own."""

    def __init__(self, found: dict[str, Any], singles: dict[str, Any], untrained: list[float]):
        self.names = [task.name for task in SUITES[SUITE]]
        scales = np.array([task.reward_scale for task in SUITES[SUITE]])
        one = np.array([np.mean(singles[name]["scores"]) for name in self.names]) * scales
        zero = np.array(untrained)
        self.alone, self.untrained = one / scales, zero / scales  # in the environments' own rewards
        one = np.where(one > zero, one, np.nan)  # an agent of its own has learnt nothing, either
        self.of = {  # [seeds, tasks]
            condition: (np.array(cell["scores"]) - zero) / (one - zero)
            for condition, cell in found.items()
        }
        self.curves = {  # [seeds, points, tasks]
            condition: (np.array(cell["curves"], float) - zero) / (one - zero)
            for condition, cell in found.items()
        }


def _write(
    found: dict[str, Any], singles: dict[str, Any], untrained: list[float], results: Path
) -> str:
    tasks = SUITES[SUITE]
    normalised = _Normalised(found, singles, untrained)
    with (results / "popart.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["agent", "learning_rate", "part", "seed", "task", "score", "normalised"])
        for condition, cell in found.items():
            for point in cell["grid"]:
                for seed, row in enumerate(point["scores"]):
                    for task, value in zip(tasks, row, strict=True):
                        head = [condition, point["learning_rate"], "selection", seed, task.name]
                        writer.writerow([*head, f"{value:.6g}", ""])
            for i, row in enumerate(cell["scores"]):
                for k, task in enumerate(tasks):
                    head = [condition, cell["learning_rate"], "shown", FIRST_SEED + i, task.name]
                    share = normalised.of[condition][i, k]
                    writer.writerow([*head, f"{row[k]:.6g}", f"{share:.4g}"])
        for task in tasks:
            cell = singles[task.name]
            for part, rate, rows in [
                *(("selection", p["learning_rate"], p["scores"]) for p in cell["grid"]),
                ("shown", cell["learning_rate"], cell["scores"]),
            ]:
                for i, (value,) in enumerate(rows):
                    seed = i if part == "selection" else FIRST_SEED + i
                    head = [f"alone, {task.name}", rate, part, seed, task.name]
                    writer.writerow([*head, f"{value * task.reward_scale:.6g}", ""])
        for task, value in zip(tasks, untrained, strict=True):
            writer.writerow(["untrained", 0, "shown", "", task.name, f"{value:.6g}", 0])
    statistics = found["popart"]["statistics"]
    steps = found["popart"]["steps"]
    with (results / "popart-statistics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["steps", "seed", "task", "mean", "deviation"])
        for at, means, deviations in zip(steps, statistics["μ"], statistics["σ"], strict=True):
            for i, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
                for k, task in enumerate(tasks):
                    row = [f"{mean[k]:.6g}", f"{deviation[k]:.6g}"]
                    writer.writerow([int(at), FIRST_SEED + i, task.name, *row])
    pictures = [results / "popart.png", results / "popart-statistics.png"]
    _draw_curves(found, normalised, pictures[0])
    _draw_statistics(found["popart"], pictures[1])
    return "\n\n".join([table(normalised), verdict(normalised), *map(str, pictures)])


def table(normalised: _Normalised) -> str:
    """Agents by tasks, and their mean, median and mean of what is cut off at 1; what these are
    shares of, in the environments' own rewards; in Markdown."""
    columns = [*normalised.names, "mean", "median", "mean capped"]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for condition, (words, _) in CONDITIONS.items():
        scores = normalised.of[condition]
        cells = [*scores.T, scores.mean(1), np.median(scores, 1), np.minimum(scores, 1).mean(1)]
        shown = [_percent(interval(list(cell))) for cell in cells]
        lines.append(f"| {words} | " + " | ".join(shown) + " |")
    for words, returns in (("100 %", normalised.alone), ("0 %", normalised.untrained)):
        shown = [f"{value:.3g}" for value in returns]
        lines.append(f"| return that is {words} | " + " | ".join([*shown, "", "", ""]) + " |")
    return "\n".join(lines)


def _percent(value: Interval) -> str:
    if np.isnan(value.mean):
        return "–"
    return f"{value.mean:.0%} [{value.low:.0%}, {value.high:.0%}]"


def verdict(normalised: _Normalised) -> str:
    """In how many tasks each agent reaches nine tenths of an agent of its own, and in how many it
    fails, that is, stays below a tenth."""
    lines = []
    for condition, (words, _) in CONDITIONS.items():
        means = normalised.of[condition].mean(0)
        reached, failed = int((means >= 0.9).sum()), int((means < 0.1).sum())
        lines.append(f"{words}: {reached} of {len(means)} at 90 % or more, {failed} below 10 %")
    return "\n".join(lines)


def _draw_curves(found: dict[str, Any], normalised: _Normalised, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = SUITES[SUITE]
    figure, axes = plt.subplots(2, -(-len(tasks) // 2), figsize=(11, 5.6), constrained_layout=True)
    for k, (task, axis) in enumerate(zip(tasks, axes.flat, strict=True)):
        for i, (condition, (words, _)) in enumerate(CONDITIONS.items()):
            mean, low, high = band(list(normalised.curves[condition][:, :, k]))
            steps = np.array(found[condition]["steps"]) / 1000
            axis.plot(steps, mean, color=f"C{i}", label=words)
            axis.fill_between(steps, low, high, color=f"C{i}", alpha=0.15)
        axis.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
        axis.set_title(f"{task.name}, rewards × {task.reward_scale:g}", fontsize=10)
        axis.set_ylim(-0.25, 1.25)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("thousand agent steps of all tasks")
    for row in axes:
        row[0].set_ylabel("of an agent of its own")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_statistics(cell: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    steps = np.array(cell["steps"]) / 1000
    for axis, (letter, words) in zip(axes, (("μ", "mean |μ|"), ("σ", "deviation σ")), strict=True):
        values = np.abs(np.array(cell["statistics"][letter]))  # [points, seeds, tasks]
        for k, task in enumerate(SUITES[SUITE]):
            of = values[:, :, k]
            label = f"{task.name} × {task.reward_scale:g}"
            axis.plot(steps, of.mean(1), color=f"C{k}", label=label)
            axis.fill_between(steps, of.min(1), of.max(1), color=f"C{k}", alpha=0.15)
        axis.set_yscale("log")
        axis.set_xlabel("thousand agent steps of all tasks")
        axis.set_ylabel(f"{words} of the value targets")
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
    plt.close(figure)
