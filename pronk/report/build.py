"""A report: the scores of runs in groups, their aggregates, and a comparison of two groups."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pronk.errors import UserError, nearest
from pronk.report import bootstrap, references, statistics
from pronk.report.grouping import Groups, grouped
from pronk.report.problems import Problem, find
from pronk.report.references import References
from pronk.report.runs import Run
from pronk.report.scoring import METRICS, Rule, Scored
from pronk.report.welch import Welch, welch

_FEW = 10  # tasks, below which percentiles over tasks say little
_OF_ONE_TASK = ("iqm", "mean", "optimality_gap")


class Estimate(NamedTuple):
    """A value with the ends of its interval, NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class TaskComparison:
    """Two groups in one task."""

    difference: Estimate  # of mean scores
    welch: Welch
    improvement: float  # P(A > B) + ½ P(A = B)


@dataclass(frozen=True)
class Comparison:
    """Group `first` against group `second`, in the tasks that both have."""

    first: str
    second: str
    tasks: dict[str, TaskComparison]
    improvement: Estimate  # mean over tasks
    differences: dict[str, Estimate]  # of aggregates, by their names


@dataclass(frozen=True)
class Report:
    """What a report says. Scores are raw returns, aggregates of normalised ones where `pairs` is
    not None."""

    rule: Rule
    by: tuple[str, ...]
    repeats: int
    seed: int
    groups: Groups
    left_out: list[tuple[Run, str]]  # runs without a score, and why
    references: References | None
    pairs: dict[str, tuple[float, float]] | None  # by task: the scores that count 0 and 1
    aggregates: dict[str, dict[str, Estimate]]  # group, name; empty where there are none
    comparison: Comparison | None
    problems: list[Problem]
    notes: list[str]

    @property
    def tasks(self) -> list[str]:
        """All tasks, sorted."""
        return sorted({task for tasks in self.groups.values() for task in tasks})

    @property
    def common_tasks(self) -> list[str]:
        """The tasks that all groups have."""
        return common_tasks(self.groups)

    def scored(self) -> list[Scored]:
        """The scores of all runs."""
        return [one for tasks in self.groups.values() for runs in tasks.values() for one in runs]

    def scores(self, group: str, tasks: Sequence[str]) -> dict[str, np.ndarray]:
        """A group's scores in these tasks, normalised if there are references."""
        return normalised(self.groups[group], tasks, self.pairs)


def common_tasks(groups: Groups) -> list[str]:
    """The tasks that all groups have, sorted."""
    every = [set(tasks) for tasks in groups.values()]
    return sorted(set.intersection(*every)) if every else []


def raw(group: Mapping[str, Sequence[Scored]], tasks: Iterable[str]) -> dict[str, np.ndarray]:
    """The scores of the runs of each task."""
    return {task: np.array([one.score for one in group[task]]) for task in tasks}


def normalised(
    group: Mapping[str, Sequence[Scored]],
    tasks: Iterable[str],
    pairs: Mapping[str, tuple[float, float]] | None,
) -> dict[str, np.ndarray]:
    """`raw`, normalised where there are references."""
    scores = raw(group, tasks)
    return scores if pairs is None else statistics.normalised(scores, pairs)


def make(
    runs: Iterable[Run],
    *,
    by: Sequence[str] = ("agent",),
    metric: str = "auto",
    last: int | None = None,
    at: int | None = None,
    normalise: str = "none",
    repeats: int = bootstrap.REPEATS,
    seed: int = 0,
    compare: tuple[str, str] | None = None,
) -> Report:
    """A report of runs.

    by: settings whose values name the groups. metric, last, at: which score of a run counts, see
    `scoring.Rule`. normalise: the name or the file of a table of references. repeats, seed: of the
    bootstrap. compare: two groups. Raises UserError where nothing can be reported.
    """
    if metric not in METRICS:
        raise UserError(
            f"`metric` is '{metric}'{nearest(metric, METRICS) or ';'} expected one of"
            f" {', '.join(METRICS)}."
        )
    table = references.load(normalise)
    rule = Rule(metric, last, at)
    found = [(run, rule.score(run)) for run in runs]
    scored = [score for _, score in found if isinstance(score, Scored)]
    left_out = [(run, score) for run, score in found if isinstance(score, str)]
    if not scored:
        raise _nothing(left_out)
    groups = grouped(scored, by)
    tasks = common_tasks(groups)
    pairs = _pairs(groups, table)
    aggregates = {}
    names = _names(len(tasks), pairs is not None)
    for label, group in groups.items() if names else ():
        scores = normalised(group, tasks, pairs)
        aggregates[label] = _estimates(
            lambda x: statistics.aggregates(x, names), [scores], names, repeats, [seed, _key(label)]
        )
    comparison = None
    if compare is not None:
        comparison = _compare(groups, compare, pairs, repeats, seed)
    return Report(
        rule=rule,
        by=tuple(by),
        repeats=repeats,
        seed=seed,
        groups=groups,
        left_out=left_out,
        references=table,
        pairs=pairs,
        aggregates=aggregates,
        comparison=comparison,
        problems=find(groups, left_out, rule),
        notes=_notes(groups, tasks, table),
    )


def _nothing(left_out: Sequence[tuple[Run, str]]) -> UserError:
    if not left_out:
        return UserError("there are no runs to report; give directories of runs, or long CSVs.")
    run, reason = next((one for one in left_out if not one[0].damage), left_out[0])
    if len(left_out) == 1:
        return UserError(
            f"the run '{run.name}' has no score: {reason}. Train it for longer, or choose another"
            " --metric or --at."
        )
    return UserError(
        f"none of the {len(left_out)} runs has a score: '{run.name}', for one: {reason}. Train them"
        " for longer, or choose another --metric or --at."
    )


def _pairs(groups: Groups, table: References | None) -> dict[str, tuple[float, float]] | None:
    if table is None:
        return None
    tasks = sorted({task for group in groups.values() for task in group})
    best = {
        task: max(
            float(np.mean([one.score for one in group[task]]))
            for group in groups.values()
            if task in group
        )
        for task in tasks
    }
    return table.of(tasks, best)


def _names(tasks: int, has_references: bool) -> list[str]:
    """The aggregates that make sense; none of raw scores of several tasks."""
    if not tasks or (tasks > 1 and not has_references):
        return []
    names = [
        name
        for name, one in statistics.AGGREGATES.items()
        if has_references or not one.needs_normalised
    ]
    if tasks == 1:
        return [name for name in names if name in _OF_ONE_TASK]
    return [n for n in names if tasks >= _FEW or not n.startswith("percentile")]


def _estimates(
    statistic: Callable[..., np.ndarray],
    groups: Sequence[statistics.Scores],
    names: Sequence[str],
    repeats: int,
    seed: Any,
) -> dict[str, Estimate]:
    """The values of a statistic `[..., names]` of groups, with intervals."""
    values = statistic(*(statistics.arrays(group) for group in groups))
    low, high = bootstrap.interval(statistic, *groups, repeats=repeats, seed=seed)
    return {
        name: Estimate(float(values[i]), float(low[i]), float(high[i]))
        for i, name in enumerate(names)
    }


def _key(label: str) -> int:
    """A number for a group's name, so that its interval does not depend on the other groups."""
    return zlib.crc32(label.encode(errors="surrogatepass"))


def _compare(
    groups: Groups,
    compare: tuple[str, str],
    pairs: dict[str, tuple[float, float]] | None,
    repeats: int,
    seed: int,
) -> Comparison:
    for name in compare:
        if name not in groups:
            listed = ", ".join(f"'{known}'" for known in groups)
            raise UserError(
                f"`--compare` names the group '{name}'{nearest(name, groups) or ';'} expected two"
                f" of the groups by which runs are reported: {listed}."
            )
    a, b = (groups[name] for name in compare)
    tasks = sorted(a.keys() & b.keys())
    if not tasks:
        raise UserError(
            f"`--compare` names '{compare[0]}' and '{compare[1]}', which have no task in common;"
            " expected two groups with scores of the same task."
        )
    keys = [seed, *map(_key, compare)]
    returns = raw(a, tasks), raw(b, tasks)
    differences = _estimates(
        lambda x, y: statistics.task_means(x) - statistics.task_means(y),
        returns,
        tasks,
        repeats,
        keys,
    )
    improvements = statistics.probabilities_of_improvement(*returns)
    per_task = {}
    for i, task in enumerate(tasks):
        x, y = (scores[task] for scores in returns)
        difference = differences[task]
        if len(x) < 2 and len(y) < 2:
            difference = Estimate(difference.value, np.nan, np.nan)
        per_task[task] = TaskComparison(difference, welch(x, y), float(improvements[i]))
    (improvement,) = _estimates(
        lambda x, y: statistics.probability_of_improvement(x, y)[..., None],
        returns,
        [""],
        repeats,
        keys,
    ).values()
    names = [n for n in _names(len(tasks), pairs is not None) if n in ("iqm", "median", "mean")]
    overall = {}
    if names and len(tasks) > 1:
        overall = _estimates(
            lambda x, y: statistics.aggregates(x, names) - statistics.aggregates(y, names),
            [normalised(group, tasks, pairs) for group in (a, b)],
            names,
            repeats,
            keys,
        )
    return Comparison(*compare, per_task, improvement, overall)


def _notes(groups: Groups, tasks: Sequence[str], table: References | None) -> list[str]:
    notes = []
    if not tasks:
        notes.append("no task is common to all groups, so nothing is aggregated over tasks")
    elif len(tasks) > 1 and table is None:
        notes.append(
            "returns of different tasks are not aggregated; --normalise makes them comparable"
        )
    if all(len(runs) < 2 for group in groups.values() for runs in group.values()):
        notes.append("there is one run of each group and task, so intervals can't be had")
    return notes
