"""PopArt on tasks whose rewards differ by a factor of a million: Hessel et al. 2018, small.

One agent learns the suite `suite/scales-v0`: with rewards clipped to ±1, with raw rewards, with
adaptive normalisation of values (ART), and with outputs preserved as well (PopArt). Each has the
same grid of learning rates; the best one on two seeds is run on others, which the table shows.
Returns are normalised: 1 is the return of a PopArt agent trained on this task alone, with as many
steps of the task, as many updates and the same grid; 0 is the return of the untrained policy. The
table has the form of table 1 there, the statistics over time that of figure 4.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from pronk.config.spec import Plan
from pronk.envs.suite import SUITES, Task
from pronk.experiments.hyperparameters import SMALL
from pronk.experiments.reproduce import common, side_by_side
from pronk.experiments.reproduce.common import Interval, interval, select
from pronk.experiments.reproduce.settings import PopArt
from pronk.experiments.reproduce.side_by_side import FIRST_SEED, POINTS, SELECTION_SEEDS, Member
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
    """The plan of a PopArt agent for one task, with its environment's own rewards."""
    tasks = len(SUITES[SUITE])
    return _plan(task.env, task.env_args, steps // tasks, "popart", debias, batch_size=SLOTS)


def _plan(
    env: str, env_args: Any, steps: int, condition: str, debias: bool, *, batch_size: int
) -> Plan:
    settings = {**SMALL, **COMMON, **CONDITIONS[condition][1], "batch_size": batch_size}
    settings["popart_debias"] = debias and "value_normalisation" in settings
    return resolve(
        "impala", env, preset="paper", env_args=env_args, runtime="fused", steps=steps, **settings
    )


def run(settings: PopArt, *, output: Path, results: Path) -> str:
    """Train the missing runs, then write the tables and the figures."""
    configure_jax()
    if settings.quick:
        settings = dataclasses.replace(settings, seeds=min(2, settings.seeds), scale=0.15)
    steps = round(STEPS * settings.scale)
    tasks = SUITES[SUITE]

    def cell(name: str, plan: Plan, *, statistics: bool = False) -> dict[str, Any]:
        identity = {
            "plan": common.plan_identity(plan),
            "tasks": [dataclasses.asdict(task) for task in tasks],
            "grid": [LEARNING_RATES, SELECTION_SEEDS, FIRST_SEED, POINTS],
            "seeds": settings.seeds,
        }
        return common.cached(
            output, name, identity, lambda: train(plan, settings.seeds, statistics)
        )

    plans = {name: plan_for(name, steps, debias=settings.debias) for name in CONDITIONS}
    cells = {name: cell(name, plan, statistics=name == "popart") for name, plan in plans.items()}
    singles = {
        task.name: cell(f"alone-{task.name}", alone(task, steps, debias=settings.debias))
        for task in tasks
    }
    beginning = plan_for("unclipped", steps // 10, debias=False)
    untrained = common.cached(
        output,
        "untrained",
        {"plan": common.plan_identity(beginning), "seeds": settings.seeds},
        lambda: _untrained(beginning, settings.seeds),
    )
    normalised = Normalised(cells, singles, untrained["scores"])
    _write(cells, singles, untrained["scores"], normalised, results)
    pictures = [str(draw(results)), str(draw_curves(results)), str(draw_statistics(results))]
    return "\n\n".join([table(normalised), verdict(normalised), *pictures])


def train(plan: Plan, seeds: int, statistics: bool) -> dict[str, Any]:
    """Tune the learning rate, and train with the best one on other seeds."""
    tuned = side_by_side.tune(
        plan,
        {"learning_rate": LEARNING_RATES},
        seeds,
        rank=lambda scores: _rank(plan, scores),
        observe=_statistics if statistics else None,
    )
    curves = tuned.curves
    names = ("μ", "σ") if statistics else ()
    observed = {k: np.stack([x[k] for x in curves.observed]).tolist() for k in names}
    return {
        "grid": tuned.grid,
        **tuned.best,
        "scores": curves.scores().tolist(),  # [seeds, tasks]
        "steps": curves.steps.mean(0).tolist(),
        "curves": curves.task_return.tolist(),  # [seeds, points, tasks]
        "statistics": observed,  # [points, seeds, tasks] each
    }


def _rank(plan: Plan, scores: Array) -> Array:
    """What chooses the learning rate: the mean over tasks of scores `[rates, tasks]` normalised by
    the tasks' references, so that no task's scale decides."""
    if plan.env != SUITE:
        return scores[:, 0]
    low, high = np.array([task.scaled_reference for task in SUITES[SUITE]]).T
    return np.nan_to_num((scores - low) / (high - low), nan=-1.0).mean(axis=1)


def _untrained(plan: Plan, seeds: int) -> dict[str, Any]:
    members = [Member(FIRST_SEED + i, {"learning_rate": 0.0}) for i in range(seeds)]
    returns = side_by_side.train(plan, members, points=1).task_return[:, 0]
    return {"scores": np.nanmean(returns, 0).tolist()}


def _statistics(learners: LearnerState) -> dict[str, Array]:
    """The statistics of all members, `[N, tasks]` each."""
    statistics: Any = learners.extra["statistics"]
    return {"μ": np.asarray(statistics.mean), "σ": np.asarray(statistics.deviation)}


class Normalised:
    """Normalised returns of each condition: 0 is the untrained policy, 1 an agent for this task
    alone; NaN in tasks that the latter did not learn."""

    def __init__(self, cells: dict[str, Any], singles: dict[str, Any], untrained: list[float]):
        self.names = [task.name for task in SUITES[SUITE]]
        scales = np.array([task.reward_scale for task in SUITES[SUITE]])
        one = np.array([np.mean(singles[name]["scores"]) for name in self.names]) * scales
        zero = np.array(untrained)
        self.alone, self.untrained = one / scales, zero / scales  # in the environments' own rewards
        one = np.where(one > zero, one, np.nan)
        self.scores = {  # [seeds, tasks]
            condition: (np.array(cell["scores"]) - zero) / (one - zero)
            for condition, cell in cells.items()
        }
        self.curves = {  # [seeds, points, tasks]
            condition: (np.array(cell["curves"], float) - zero) / (one - zero)
            for condition, cell in cells.items()
        }


def _write(
    cells: dict[str, Any],
    singles: dict[str, Any],
    untrained: list[float],
    normalised: Normalised,
    results: Path,
) -> None:
    tasks, rows = SUITES[SUITE], []

    def add(agent: str, cell: dict[str, Any], scale: float, names: list[str], shares: Any) -> None:
        for point in cell["grid"]:
            head = [agent, point["learning_rate"], "selection"]
            for seed, scores in enumerate(point["scores"]):
                for name, score in zip(names, scores, strict=True):
                    rows.append([*head, seed, name, f"{score * scale:.6g}", ""])
        head = [agent, cell["learning_rate"], "shown"]
        for i, scores in enumerate(cell["scores"]):
            for k, (name, score) in enumerate(zip(names, scores, strict=True)):
                share = "" if shares is None else f"{shares[i, k]:.4g}"
                rows.append([*head, FIRST_SEED + i, name, f"{score * scale:.6g}", share])

    for condition, cell in cells.items():
        add(condition, cell, 1.0, normalised.names, normalised.scores[condition])
    for task in tasks:
        add(f"alone, {task.name}", singles[task.name], task.reward_scale, [task.name], None)
    for task, value in zip(tasks, untrained, strict=True):
        rows.append(["untrained", 0, "shown", "", task.name, f"{value:.6g}", 0])
    header = ["agent", "learning_rate", "part", "seed", "task", "score", "normalised"]
    common.write_csv(results / "popart.csv", header, rows)

    rows = []
    for condition, curves in normalised.curves.items():
        for i, seed in enumerate(curves):
            for steps, values in zip(cells[condition]["steps"], seed, strict=True):
                rows.append([condition, FIRST_SEED + i, int(steps), *(f"{x:.4g}" for x in values)])
    header = ["agent", "seed", "steps", *normalised.names]
    common.write_csv(results / "popart-curves.csv", header, rows)

    rows, statistics = [], cells["popart"]["statistics"]
    for at, means, deviations in zip(
        cells["popart"]["steps"], statistics["μ"], statistics["σ"], strict=True
    ):
        for i, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
            for k, task in enumerate(tasks):
                row = [f"{mean[k]:.6g}", f"{deviation[k]:.6g}"]
                rows.append([int(at), FIRST_SEED + i, task.name, *row])
    header = ["steps", "seed", "task", "mean", "deviation"]
    common.write_csv(results / "popart-statistics.csv", header, rows)


def table(normalised: Normalised) -> str:
    """A table of agents by tasks, with mean, median and mean capped at 1; and what 1 and 0 are, in
    the environments' own rewards."""
    lines = []
    for condition, (words, _) in CONDITIONS.items():
        scores = normalised.scores[condition]
        cells = [*scores.T, scores.mean(1), np.median(scores, 1), np.minimum(scores, 1).mean(1)]
        lines.append([words, *(_percent(interval(list(cell))) for cell in cells)])
    for words, returns in (("100 %", normalised.alone), ("0 %", normalised.untrained)):
        cells = [f"{value:.3g}" for value in returns]
        lines.append([f"return that is {words}", *cells, "", "", ""])
    return common.markdown(["", *normalised.names, "mean", "median", "mean capped"], lines)


def _percent(value: Interval) -> str:
    if np.isnan(value.mean):
        return "–"
    return f"{value.mean:.0%} [{value.low:.0%}, {value.high:.0%}]"


def verdict(normalised: Normalised) -> str:
    """In how many tasks each agent reaches 0.9, and in how many it stays below 0.1."""
    lines = []
    for condition, (words, _) in CONDITIONS.items():
        means = normalised.scores[condition].mean(0)
        reached, failed = int((means >= 0.9).sum()), int((means < 0.1).sum())
        lines.append(f"{words}: {reached} of {len(means)} at 90 % or more, {failed} below 10 %")
    return "\n".join(lines)


NORMALISED = "normalised return\n(0: untrained, 1: trained on this task alone)"


def _titles() -> dict[str, str]:
    return {task.name: f"{task.name}, rewards × {task.reward_scale:,g}" for task in SUITES[SUITE]}


def draw(results: Path) -> Path:
    """Draw the normalised returns from the table in `results`."""
    rows = [row for row in common.read_csv(results / "popart.csv") if row["part"] == "shown"]
    figure, ((axis,),) = common.panels(1, 1, 10, 4.2)
    for i, (condition, (words, _)) in enumerate(CONDITIONS.items()):
        cells = [select(rows, "normalised", agent=condition, task=name) for name in _titles()]
        at, colour = np.arange(len(cells)) + 0.2 * (i - 1.5), common.COLOURS[i]
        for x, values in zip(at, cells, strict=True):
            axis.plot([x] * len(values), values, ".", color=colour, alpha=0.35, markersize=5)
        style = {"color": colour, "marker": "D", "linestyle": "none", "label": words}
        common.draw_points(axis, at, [interval(values) for values in cells], **style)
    axis.axhline(1.0, color="black", linestyle=":", label="an agent trained on this task alone")
    axis.set_xticks(range(len(_titles())), [x.replace(", ", "\n") for x in _titles().values()])
    axis.grid(visible=False, axis="x")
    axis.set_ylabel(NORMALISED)
    note = "last quarter of training; dots: seeds; bars: mean and its 95 % bootstrap interval"
    return common.save(figure, results / "popart.png", note, columns=5)


def draw_curves(results: Path) -> Path:
    """Draw the learning curves from the table in `results`."""
    rows = common.read_csv(results / "popart-curves.csv")
    figure, axes = common.panels(2, -(-len(_titles()) // 2), 3.8, 2.8, sharex=True, sharey=True)
    for axis, (name, title) in zip(axes.flat, _titles().items(), strict=True):
        for i, (condition, (words, _)) in enumerate(CONDITIONS.items()):
            seeds = dict.fromkeys(select(rows, "seed", agent=condition))
            curves = [select(rows, name, agent=condition, seed=seed) for seed in seeds]
            steps = select(rows, "steps", agent=condition, seed=next(iter(seeds)))
            common.draw_band(axis, np.array(steps) / 1000, common.band(curves), i, words)
        axis.axhline(1.0, color="black", linestyle=":", label="an agent trained on this task alone")
        axis.set_title(title, fontsize="medium")
        axis.set_ylim(-0.25, 1.25)
    for axis in axes[-1]:
        axis.set_xlabel("agent steps of all tasks (thousands)")
    figure.supylabel(NORMALISED)
    return common.save(figure, results / "popart-curves.png", common.BAND, columns=5)


def draw_statistics(results: Path) -> Path:
    """Draw the normalisation statistics from the table in `results`."""
    rows = common.read_csv(results / "popart-statistics.csv")
    figure, (axes,) = common.panels(1, 2, 5.2, 3.8)
    for column, axis, label in (
        ("mean", axes[0], "mean of the value targets,\nmagnitude |μ|"),
        ("deviation", axes[1], "standard deviation σ\nof the value targets"),
    ):
        for i, (name, title) in enumerate(_titles().items()):
            points = common.unique(rows, "steps")
            values = [np.abs(select(rows, column, steps=at, task=name)) for at in points]
            bands = np.array([[x.mean(), x.min(), x.max()] for x in values]).T
            steps = np.array(points) / 1000
            common.draw_band(axis, steps, bands, i, title, linewidth=1.6)
        axis.set_yscale("log")
        axis.set_xlabel("agent steps of all tasks (thousands)")
        axis.set_ylabel(label)
    note = "mean over seeds; band: from the least to the greatest seed"
    return common.save(figure, results / "popart-statistics.png", note, columns=3)
