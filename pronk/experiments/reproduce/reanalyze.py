"""Reanalyze: what many draws of each position are worth, with the targets that were stored, and
with new ones.

Schrittwieser et al. 2020, "MuZero" (arXiv:1911.08265), section 4 and appendix H.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pronk.config.spec import Plan
from pronk.experiments.bench.timing import median_seconds, random_batch
from pronk.experiments.reproduce import common, matrix, planning
from pronk.experiments.reproduce.common import Row, select, unique
from pronk.experiments.reproduce.matrix import LAST, Done, Variant
from pronk.experiments.reproduce.settings import Reanalyze
from pronk.report.runs import EVALUATION
from pronk.run.setup import build, configure_jax, initial_state

NAME = "reanalyze"


class Task(NamedTuple):
    """An environment, and MuZero's settings in it."""

    env: str
    args: dict[str, Any]
    settings: dict[str, Any]


_BOARD = planning.BOARDS["ConnectFour"]
TASKS = {
    "ConnectFour": Task(_BOARD.env, _BOARD.args, {"preset": "board", **_BOARD.settings}),
    "Breakout": Task("pronk/Breakout-v0", {}, {"preset": "minatar"}),
}
QUICK = ("ConnectFour",)
LOW = "low reuse"
VARIANTS: dict[str, dict[str, Any]] = {
    # Appendix H: 0.1 samples per state without Reanalyze and 2 with it; here, too, 20 times as
    # many, but as many of each as a small machine's runs need.
    LOW: {"samples_per_insert": 1.0, "bootstrap": "search"},
    "high reuse": {"samples_per_insert": 20.0, "bootstrap": "search"},
    "high reuse, Reanalyze": {
        "samples_per_insert": 20.0,
        "bootstrap": "target",
        "reanalyze": 0.8,
    },
}
EVALUATIONS, EPISODES = 20, 32
SECONDS = 5.0  # of measuring an update
HEADER = ["task", "variant", "seed", "area", "last", "steps_to_level", "milliseconds_per_update"]


def run(settings: Reanalyze, *, output: Path, results: Path) -> str:
    """Train the missing runs, measure their updates, then write the tables and the figure."""
    configure_jax()
    known = {name: task.env for name, task in TASKS.items()}
    settings, names = matrix.choose(settings, known, QUICK, seeds=1, share=10)
    done = [one for name in names for one in _train(output, name, settings)]
    matrix.write(done, results, NAME, f"pronk reproduce {NAME}, {settings.steps:,} agent steps")
    rows = efficiency(done, {one.run.name: update_milliseconds(output, one) for one in done})
    common.write_csv(results / f"{NAME}-efficiency.csv", HEADER, rows)
    label = "mean return (evaluation)"
    figure = matrix.draw_curves(results, NAME, metric=EVALUATION, label=label)
    return "\n\n".join([table(common.read_csv(results / f"{NAME}-efficiency.csv")), figure])


def _train(output: Path, name: str, settings: Reanalyze) -> list[Done]:
    task = TASKS[name]
    return matrix.train(
        output,
        {name: task.env},
        {
            variant: Variant("muzero", {**task.settings, **changed})
            for variant, changed in VARIANTS.items()
        },
        seeds=settings.seeds,
        steps=settings.steps,
        env_args={name: task.args},
        eval_every=max(1, settings.steps // EVALUATIONS),
        eval_episodes=EPISODES,
        runtime="fused",
    )


def update_milliseconds(output: Path, one: Done) -> float:
    """What an update of a run's variant takes, kept in `output`: the median on random data."""

    def measure() -> dict[str, Any]:
        plan = Plan.load(output / one.run.name)
        spec, agent = build(plan, plan.env)
        state, config = initial_state(plan, agent), plan.agent_config
        steps = config.starts + config.unroll_steps + config.td_steps - 1
        batch = jax.device_put(random_batch(agent, spec, state, steps, config.batch_size))
        learn = jax.jit(agent.learn)
        seconds = median_seconds(lambda: jax.block_until_ready(learn(state, batch)), SECONDS)
        return {"milliseconds": 1e3 * seconds}

    name = f"update-{one.variant}-{one.task}".replace(" ", "-").replace(",", "")
    config = Plan.load(output / one.run.name).as_json()["agent_config"]
    return common.cached(output, name, {"task": one.task, **config}, measure)["milliseconds"]


def efficiency(done: Sequence[Done], milliseconds: dict[str, float]) -> list[list[Any]]:
    """Rows of HEADER; milliseconds: of an update, by the run's name. The level is the mean of the
    last evaluations of LOW, over its runs of the task; its steps are NaN for a run that does not
    reach it."""
    rows = []
    for one in done:
        low = [x.last_evaluations for x in done if (x.task, x.variant) == (one.task, LOW)]
        evaluations = one.run.of(EVALUATION)
        scores = np.array([row.score for row in evaluations])
        steps = [row.step for row in evaluations]
        area = scores.mean() if len(scores) else math.nan
        reached = steps_to(steps, scores, float(np.mean(low)))
        measures = (area, one.last_evaluations, reached, milliseconds[one.run.name])
        rows.append([one.task, one.variant, one.seed, *(f"{x:.6g}" for x in measures)])
    return rows


def steps_to(steps: Sequence[int], scores: np.ndarray, level: float) -> float:
    """The agent steps of the first evaluation up to which the mean of LAST ones is at `level` or
    above; NaN if there is none. steps, scores: of the evaluations `[n]`."""
    for i in range(LAST, len(scores) + 1):
        if scores[i - LAST : i].mean() >= level:
            return float(steps[i - 1])
    return math.nan


def table(rows: Sequence[Row]) -> str:
    """Means over seeds with 95 % intervals; the median of the steps to the level of LOW's end over
    all runs, and how many reach it; and what an update costs, in units of LOW's."""
    lines = []
    for task in unique(rows, "task"):
        unit = select(rows, "milliseconds_per_update", task=task, variant=LOW)[0]
        for variant in unique(rows, "variant"):
            own = {"task": task, "variant": variant}
            cells = []
            for score in ("area", "last"):
                values = [x for x in select(rows, score, **own) if math.isfinite(x)]
                cells.append(common.interval(values).short() if values else "–")
            reached = np.array(select(rows, "steps_to_level", **own))
            of = f"{np.isfinite(reached).sum()} of {len(reached)}"
            median = float(np.median(np.where(np.isnan(reached), math.inf, reached)))
            cells.append(f"{median:,.0f}; {of}" if math.isfinite(median) else f"–; {of}")
            cost = select(rows, "milliseconds_per_update", **own)[0]
            lines.append([task, variant, *cells, f"{cost / unit:.2f} ({cost:.0f} ms)"])
    header = ["task", "variant", "mean of all evaluations", f"mean of the last {LAST}"]
    header += [f"steps to the end of {LOW}; runs that reach it", "cost of an update"]
    return common.markdown(header, lines)
