"""What makes the scores of a report hard to compare; `docs/report.md` explains each problem."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pronk.errors import counted
from pronk.report.grouping import Groups
from pronk.report.runs import Run
from pronk.report.scoring import AUC, Rule, Scored

_MEMBER = re.compile(r"(^|[/\\])members[/\\][0-9]{2,}$")
_TOLERANCE = 0.05  # of steps; the last batch of a run goes beyond its end


class Problem(NamedTuple):
    """A reason for caution."""

    kind: str
    text: str


def find(groups: Groups, left_out: Sequence[tuple[Run, str]], rule: Rule) -> list[Problem]:
    """All problems, most serious ones first."""
    scored = [one for tasks in groups.values() for scores in tasks.values() for one in scores]
    return [
        *_left_out(left_out),
        *_unfinished(scored),
        *_missing_tasks(groups),
        *_per_task(scored, rule),
        *_numbers_of_runs(groups),
        *_duplicates(groups),
        *_mixed_settings(groups),
        *_software(scored),
        *_episodes(scored, rule),
        *_members(scored),
    ]


def _listed(items: Iterable[str], most: int = 4, separator: str = ", ") -> str:
    """The first of some items, and how many more there are."""
    items = list(items)
    more = f"{separator.rstrip(', ')} and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + more


def _left_out(left_out: Sequence[tuple[Run, str]]) -> Iterator[Problem]:
    for reason in dict.fromkeys(reason for _, reason in left_out):
        names = [f"'{run.name}'" for run, why in left_out if why == reason]
        yield Problem("left out", f"{_listed(dict.fromkeys(names))}: {reason}")


def _unfinished(scored: Sequence[Scored]) -> Iterator[Problem]:
    found = {
        f"'{one.run.name}' ({one.run.status})"
        for one in scored
        if one.run.status not in ("", "finished")
    }
    if found:
        text = f"{_listed(sorted(found))}; the scores so far count"
        yield Problem("unfinished", text)


def _missing_tasks(groups: Groups) -> Iterator[Problem]:
    every = sorted({task for tasks in groups.values() for task in tasks})
    lacking = [
        f"{name} has no score for {_listed(missing)}"
        for name, tasks in groups.items()
        if (missing := [task for task in every if task not in tasks])
    ]
    if lacking:
        yield Problem(
            "missing tasks",
            f"{_listed(lacking, separator='; ')}; aggregates are over the tasks that all groups"
            " have",
        )


def _per_task(scored: Sequence[Scored], rule: Rule) -> Iterator[Problem]:
    """Versions, metrics and steps that differ between the runs of a task."""
    by_task: dict[str, list[Scored]] = {}
    for one in scored:
        by_task.setdefault(one.run.env, []).append(one)
    for task, runs in sorted(by_task.items()):
        versions = sorted({one.run.version or "without" for one in runs})
        if len(versions) > 1:
            yield Problem(
                "environment versions",
                f"the runs of {task} are of {len(versions)} versions, {_listed(versions)}, whose"
                " returns may not be comparable (--by version tells them apart)",
            )
    if rule.at is None:
        yield from _steps(by_task)
    metrics = Counter(one.metric for one in scored)
    if len(metrics) > 1:
        counts = ", ".join(f"{count} of {metric}" for metric, count in sorted(metrics.items()))
        yield Problem(
            "metrics",
            f"scores are of evaluations and of training ({counts}), in which agents explore;"
            " --metric chooses one",
        )


def _steps(by_task: dict[str, list[Scored]]) -> Iterator[Problem]:
    for task, runs in sorted(by_task.items()):
        first, last = min(one.step for one in runs), max(one.step for one in runs)
        if last - first > _TOLERANCE * last:
            yield Problem(
                "steps",
                f"the scores of {task} are after {first:,} to {last:,} steps; --at STEP compares at"
                " the same step",
            )


def _numbers_of_runs(groups: Groups) -> Iterator[Problem]:
    counts = {
        (name, task): len(runs) for name, tasks in groups.items() for task, runs in tasks.items()
    }
    single = [f"{name} on {task}" for (name, task), count in counts.items() if count == 1]
    if single:
        yield Problem(
            "single seed",
            f"{_listed(single)}: one run, so that nothing is known of its variation between seeds:"
            " there is no interval, or one that is too narrow",
        )
    if len(set(counts.values())) > 1:
        least, most = (f(counts, key=lambda key: counts[key]) for f in (min, max))
        yield Problem(
            "seeds",
            f"numbers of runs differ, from {counts[least]} ({' on '.join(least)}) to"
            f" {counts[most]} ({' on '.join(most)}); every task has the same weight",
        )


def _duplicates(groups: Groups) -> Iterator[Problem]:
    found = []
    for name, tasks in groups.items():
        for task, runs in tasks.items():
            seeds = Counter((one.run.seed, one.run.version, one.run.config_hash) for one in runs)
            repeated = sorted({seed for (seed, _, _), count in seeds.items() if count > 1})
            if repeated:
                found.append(f"{name} on {task} (seed {_listed(repeated)})")
    if found:
        yield Problem(
            "duplicate seeds",
            f"{_listed(found)}: more than one run with the same settings and seed, which may not be"
            " independent",
        )


def _mixed_settings(groups: Groups) -> Iterator[Problem]:
    found = [
        f"{name} on {task}"
        for name, tasks in groups.items()
        for task, runs in tasks.items()
        if len({(one.run.version, one.run.config_hash) for one in runs})
        > len({one.run.version for one in runs})
    ]
    if found:
        yield Problem(
            "settings",
            f"{_listed(found)}: runs of one group differ in settings other than the seed; --by"
            " SETTING tells them apart",
        )


def _software(scored: Sequence[Scored]) -> Iterator[Problem]:
    found = sorted({one.run.software or "(unknown)" for one in scored})
    if len(found) > 1:
        yield Problem("software", f"the runs were trained by {_listed(found)}")


def _episodes(scored: Sequence[Scored], rule: Rule) -> Iterator[Problem]:
    if rule.metric == AUC:
        return
    for metric in sorted({one.metric for one in scored}):
        counts = {one.episodes for one in scored if one.metric == metric}
        known = sorted(count for count in counts if count is not None)
        if rule.last is not None and known and known[0] < rule.last:
            yield Problem(
                "episodes",
                f"some scores of {metric} average {counted(known[0], 'episode')}, fewer than --last"
                f" {rule.last}: there are no more",
            )
        elif rule.last is None and known and known[0] < known[-1]:
            yield Problem(
                "episodes",
                f"scores of {metric} average {known[0]} to {known[-1]} episodes",
            )


def _members(scored: Sequence[Scored]) -> Iterator[Problem]:
    found = sorted({f"'{one.run.name}'" for one in scored if _MEMBER.search(one.run.name)})
    if found:
        yield Problem(
            "populations",
            f"{_listed(found)}: members of populations, which copy one another and of which the"
            " best was chosen by its score; they are no independent runs",
        )
