"""A matrix of runs, tasks × variants × seeds, each a run of `pronk train` in its own directory.

An experiment that was interrupted trains what is missing. `NAME.csv` has the learning curves, in
the format of `pronk report`; `NAME-scores.csv` has a row of scores per run.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from pronk import envs, report
from pronk.config.spec import Plan
from pronk.errors import UserError
from pronk.experiments.reproduce import common
from pronk.experiments.reproduce.common import COLOURS, Row
from pronk.experiments.reproduce.settings import Matrix
from pronk.report import long_csv
from pronk.report.runs import EVALUATION, TRAINING, Run
from pronk.run import train as training
from pronk.run.evaluate import Tally
from pronk.run.resolve import resolve
from pronk.storage.checkpoint import Checkpointer
from pronk.storage.files import write_atomically
from pronk.types import Array

# Continuous actions, in JAX: the basic tasks of Duan et al. 2016.
JAX_TASKS = {
    name: f"pronk/{name}-v0"
    for name in ("CartPoleBalance", "CartPoleSwingUp", "MountainCar", "Acrobot", "DoublePendulum")
}
CURVE = 25  # rows of a run in `NAME.csv`
SCORES = ("all_episodes", "last_100", "evaluation", "last_evaluations")
LAST = 5  # evaluations of `last_evaluations`
LEVELS = (":", "-.")  # styles of horizontal lines
_NO_FIGURE = "There is no figure, because no run recorded {}: more `--steps` are needed."
NO_EPISODE, NO_EVALUATION = (_NO_FIGURE.format(x) for x in ("an episode", "an evaluation"))
RANDOM = "random"
RANDOM_EPISODES = 100

_NONE: Mapping[str, Any] = MappingProxyType({})

Scores = dict[str, dict[str, Array]]  # variant, task, the scores of its runs
_Settings = TypeVar("_Settings", bound=Matrix)


class Variant(NamedTuple):
    """What a row of the matrix trains."""

    agent: str
    settings: Mapping[str, Any] = {}  # of the agent or of the run, the preset among them


class Done(NamedTuple):
    """A finished run and its scores, which are NaN where there is none."""

    task: str
    variant: str
    seed: int
    run: Run
    all_episodes: float  # mean return of all episodes of training: the metric of Duan et al. 2016
    last_100: float  # of the last 100 of them
    evaluation: float  # of the last evaluation
    last_evaluations: float  # mean of the last LAST of them


def choose(
    settings: _Settings, known: Mapping[str, str], quick: Sequence[str], *, seeds: int, share: int
) -> tuple[_Settings, dict[str, str]]:
    """The settings and the tasks, names and environments, after `--tasks` and `--quick`.

    known: all tasks. With `--quick`, `quick` are the tasks unless `--tasks` names some, `seeds` the
    seeds, and the steps are divided by `share`. Raises UserError for an unknown task.
    """
    names = common.choose_tasks(settings.tasks, known)
    if settings.quick:
        names = list(settings.tasks) or quick
        steps = max(1, settings.steps // share)
        settings = dataclasses.replace(settings, seeds=seeds, steps=steps)
    return settings, {name: known[name] for name in names}


def train(
    output: Path,
    tasks: Mapping[str, str],
    variants: Mapping[str, Variant],
    *,
    seeds: int,
    steps: int,
    env_args: Mapping[str, Mapping[str, Any]] = _NONE,
    **settings: Any,
) -> list[Done]:
    """Train the runs that are missing in `output`; returns all.

    tasks: names and environments. env_args: the environments' arguments, by task. settings: of all
    runs; a variant's own take precedence.
    Raises KeyboardInterrupt once a run is interrupted; the next call resumes it.
    """
    for env in tasks.values():
        envs.spec_of(env)  # raises where a package is missing, before anything is trained
    return [
        _one(output, task, env, name, variant, seed, _of(task, settings, steps, env_args))
        for task, env in tasks.items()
        for seed in range(seeds)
        for name, variant in variants.items()
    ]


def _of(
    task: str, settings: dict[str, Any], steps: int, env_args: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The settings of a task's runs."""
    return {**settings, "steps": steps, "env_args": env_args.get(task, {})}


def _one(
    output: Path,
    task: str,
    env: str,
    name: str,
    variant: Variant,
    seed: int,
    settings: dict[str, Any],
) -> Done:
    settings = {"preset": "auto", **settings, **variant.settings}
    plan = resolve(variant.agent, env, seed=seed, quiet=True, keep_checkpoints=1, **settings)
    words = f"{name}-{task}-{seed}-{common.digest(_identity(plan))}"
    directory = output / re.sub(r"[^A-Za-z0-9.]+", "-", words)
    plan = dataclasses.replace(plan, run=dataclasses.replace(plan.run, run_dir=directory))
    if not _is_finished(directory):
        start = time.perf_counter()
        if training.run(plan)["status"] != "finished":
            raise KeyboardInterrupt
        print(f"{directory.name}: {time.perf_counter() - start:.0f} s", flush=True)
    return read(directory, task, name, seed)


def _identity(plan: Plan) -> dict[str, Any]:
    """`common.plan_identity` and the settings of the run in which variants may differ."""
    run = plan.as_json()["run"]
    further = ("runtime", "architecture", "actors", "envs_per_actor", "eval_every", "eval_episodes")
    return common.plan_identity(plan) | {name: run[name] for name in further}


def _is_finished(directory: Path) -> bool:
    if not (directory / "summary.json").exists():
        return False
    return all(run.status == "finished" for run in report.read([directory]))


def read(directory: Path, task: str, variant: str, seed: int) -> Done:
    """The run in a directory, and its scores.

    Raises UserError without a usable checkpoint, unless the run is too short for an update: it
    then has no records and no checkpoint.
    """
    (run,) = report.read([directory])
    missing = "there is none"
    try:
        saved, why = Checkpointer(directory / "checkpoints").load(), missing
    except UserError as error:
        saved, why = None, str(error)
    if saved is None and (run.rows or why != missing):
        raise UserError(
            f"'{directory}' is a finished run, but the checkpoint with its scores can't be read"
            f" ({why}). Delete the directory and repeat the command, which then trains it again."
        )
    tally = Tally.from_json(saved.meta["tally"] if saved else {}, 1)
    mean = tally.total[0] / tally.count[0] if tally.count[0] else math.nan
    last, evaluation = (
        rows[-1].score if (rows := run.of(metric)) else math.nan
        for metric in (TRAINING, EVALUATION)
    )
    several = [row.score for row in run.of(EVALUATION)[-LAST:]]
    run = dataclasses.replace(
        run, name=directory.name, settings={**run.settings, "variant": variant}
    )
    of_several = float(np.mean(several)) if several else math.nan
    return Done(task, variant, seed, run, mean, last, evaluation, of_several)


def random_play(output: Path, env: str) -> float:
    """The mean return of RANDOM_EPISODES episodes of uniformly random actions, kept in `output`."""

    def play() -> dict[str, Any]:
        vector = envs.make(env, 10, seed=0, workers=0)
        space: Any = vector.spec.action_space
        rng, returns, quota = np.random.default_rng(0), [], {}
        low, high = np.asarray(space.low), np.asarray(space.high)
        try:
            vector.reset()
            while len(returns) < RANDOM_EPISODES:
                drawn = rng.uniform(low, high, (vector.num_envs, *low.shape))
                vector.step(drawn.astype(np.float32))
                for episode in vector.episodes():  # as many of each environment
                    quota[episode.env_id] = quota.get(episode.env_id, 0) + 1
                    if quota[episode.env_id] <= RANDOM_EPISODES // vector.num_envs:
                        returns.append(episode.episode_return)
        finally:
            vector.close()
        return {"mean_return": float(np.mean(returns))}

    name = f"random-{env}".replace("/", "-")
    identity = {"env": env, "episodes": RANDOM_EPISODES}
    return common.cached(output, name, identity, play)["mean_return"]


def play_randomly(output: Path, results: Path, name: str, tasks: Mapping[str, str]) -> None:
    """Write `NAME-random.csv`, the tasks' returns of `random_play`."""
    rows = [[task, random_play(output, env)] for task, env in tasks.items()]
    common.write_csv(results / f"{name}-random.csv", ["task", "mean_return"], rows)


# Tables


def write(done: Sequence[Done], results: Path, name: str, head: str) -> None:
    """Write the curves and the scores. head: a comment for the curves' file."""
    thin = [dataclasses.replace(one.run, rows=tuple(_thinned(one.run))) for one in done]
    text = long_csv.write(thin, ["variant"], head)
    write_atomically(results / f"{name}.csv", text.encode(), flag="--results")
    rows = [
        [one.task, one.variant, one.seed, max((row.step for row in one.run.rows), default=0)]
        + [f"{getattr(one, score):.6g}" for score in SCORES]
        for one in done
    ]
    header = ["task", "variant", "seed", "steps", *SCORES]
    common.write_csv(results / f"{name}-scores.csv", header, rows)


def _thinned(run: Run) -> Iterable[Any]:
    """CURVE rows of training, equally far apart or nearly so, and all evaluations."""
    rows = run.of(TRAINING)
    if len(rows) > CURVE:
        steps = np.array([row.step for row in rows])
        wanted = np.linspace(0, steps[-1], CURVE + 1)[1:]
        kept = {int(np.abs(steps - step).argmin()) for step in wanted}
        rows = [rows[i] for i in sorted(kept)]
    return sorted([*rows, *run.of(EVALUATION)], key=lambda row: row.step)


def scores_of(rows: Iterable[Row], score: str) -> Scores:
    """One of SCORES of the rows of `NAME-scores.csv`, by variant and task; runs without it are left
    out."""
    found: Scores = {}
    for row in rows:
        value = float(row[score])
        if math.isfinite(value):
            own = found.setdefault(row["variant"], {})
            own[row["task"]] = np.append(own.get(row["task"], []), value)
    return found


def complete(scores: Scores) -> list[str]:
    """The tasks that every variant has scores of."""
    tasks = list(dict.fromkeys(task for own in scores.values() for task in own))
    return [task for task in tasks if all(task in own for own in scores.values())]


def means(scores: Scores, tasks: Sequence[str]) -> Array:
    """Mean scores `[tasks, variants]`."""
    return np.array([[own[task].mean() for own in scores.values()] for task in tasks])


def above_random(
    scores: Scores, tasks: Sequence[str], random: Mapping[str, float]
) -> tuple[list[str], str]:
    """The tasks whose best mean is above random play, so that scores can be normalised, and a
    sentence that names the others, empty if there are none."""
    best = [max(own[task].mean() for own in scores.values()) for task in tasks]
    above = [task for task, one in zip(tasks, best, strict=True) if one > random[task]]
    others = [task for task in tasks if task not in above]
    words = "not in the normalised scores, as no mean there is above random play: "
    return above, words + ", ".join(others) if others else ""


def normalised_means(scores: Scores, tasks: Sequence[str], random: Mapping[str, float]) -> Array:
    """Mean scores `[tasks, variants]` in units where random play is 0 and a task's best mean 1.

    tasks: those of `above_random`.
    """
    found = means(scores, tasks)
    zero = np.array([[random[task]] for task in tasks])
    return (found - zero) / (found.max(1, keepdims=True) - zero)


def spread(values: Array, *, bold: bool = False) -> str:
    """`mean ± standard deviation` of runs, for a table."""
    mean = f"{values.mean():.1f}"
    rest = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"**{mean}{rest}**" if bold else mean + rest


# Figure


def draw_curves(
    results: Path,
    name: str,
    *,
    metric: str = TRAINING,
    label: str = "mean return (last 100 episodes)",
    levels: Mapping[str, float] = _NONE,
) -> str:
    """Draw the curves of `NAME.csv`: a panel per task, a line per variant.

    metric: TRAINING or EVALUATION. label: of the vertical axis. levels: horizontal lines to draw in
    every panel, by name. Returns the figure's path, or a sentence where no run has a curve and
    there is no figure.
    """
    table, picture = results / f"{name}.csv", results / f"{name}.png"
    lines = [line for line in table.read_text().splitlines() if not line.startswith("#")]
    runs = report.read([table]) if len(lines) > 1 else []  # an empty table is an error for `read`
    if not any(run.of(metric) for run in runs):
        picture.unlink(missing_ok=True)  # of earlier runs
        return NO_EPISODE if metric == TRAINING else NO_EVALUATION
    tasks = list(dict.fromkeys(run.env for run in runs))
    variants = list(dict.fromkeys(run.settings["variant"] for run in runs))
    columns = min(3, len(tasks))
    figure, axes = common.panels(math.ceil(len(tasks) / columns), columns, 4.2, 3.2)
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    for axis, task in zip(axes.flat, tasks, strict=False):
        axis.set_title(task.removeprefix("pronk/"))
        axis.set_xlabel("agent steps (thousands)")
        axis.set_ylabel(label)
        for i, variant in enumerate(variants):
            rows = [
                run.of(metric)
                for run in runs
                if run.env == task and run.settings["variant"] == variant and run.of(metric)
            ]
            if rows:
                line = "-" if i < len(COLOURS) else "--"
                style = {"color": COLOURS[i % len(COLOURS)], "linewidth": 1.5, "linestyle": line}
                common.draw_band(axis, *_on_a_grid(rows), i % len(COLOURS), variant, **style)
        for (words, level), dashes in zip(levels.items(), LEVELS, strict=False):
            axis.axhline(level, color="#8c8c8c", linewidth=1.2, linestyle=dashes, label=words)
    seeds = Counter((run.env, run.settings["variant"]) for run in runs).values()
    note = common.band_note(min(seeds), max(seeds))
    return str(common.save(figure, picture, note, columns=2 * columns))


def _on_a_grid(runs: Sequence[Sequence[Any]]) -> tuple[Array, Any]:
    """Steps in thousands `[points]`, and the mean with its band `[3, points]`."""
    curves = [np.array([(row.step, row.score) for row in rows], float).T for rows in runs]
    grid = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), 100)
    return grid / 1000, common.band([np.interp(grid, *curve) for curve in curves])
