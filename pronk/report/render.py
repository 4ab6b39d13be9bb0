"""A report as text for a terminal, and as Markdown."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pronk.errors import counted, printable
from pronk.report import statistics
from pronk.report.bootstrap import LEVEL
from pronk.report.build import Estimate, Report
from pronk.report.scoring import AUC

_NONE = "–"
_WIDTH = 100  # of a terminal
_TASKS = 8  # that are listed there


@dataclass(frozen=True)
class Table:
    """A table. The first `words` columns are text, the others numbers."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    words: int = 1


def heading(report: Report, most: int = 10**6) -> list[tuple[str, str]]:
    """What every output of a report begins with: how its numbers came about.

    most: the number of tasks that are listed.
    """
    scored = report.scored()
    metrics = sorted({one.metric for one in scored})
    used = report.references
    versions = [
        _with_versions(task, {one.run.version for one in scored if one.run.env == task})
        for task in report.tasks[:most]
    ]
    if (more := len(report.tasks) - most) > 0:
        versions.append(f"and {more} more")
    counts = [len(runs) for tasks in report.groups.values() for runs in tasks.values()]
    runs = {(one.run.name, one.run.seed, one.run.config_hash) for one in scored}
    return [
        (
            "runs",
            f"{len(runs)} in {counted(len(report.groups), 'group')}, by {', '.join(report.by)}",
        ),
        ("score", "; ".join(report.rule.words(metric) for metric in metrics)),
        ("episodes", f"{_range([one.episodes for one in scored])} for each score"),
        ("references", "none" if used is None else f"{used.name}: {used.about}"),
        ("tasks", ", ".join(versions)),
        (
            "seeds",
            f"{_range(counts)} for each group and task: {_seeds({one.run.seed for one in scored})}",
        ),
        (
            "intervals",
            f"{LEVEL:.0%}, stratified bootstrap of {report.repeats:,} repeats, seed {report.seed}",
        ),
        ("software", ", ".join(sorted({one.run.software or "(unknown)" for one in scored}))),
    ]


def _with_versions(task: str, versions: set[str]) -> str:
    """A task's name with its versions, such as `Hopper v4/v5`."""
    if not any(versions):
        return task
    return f"{task} {'/'.join(version or '(no version)' for version in sorted(versions))}"


def _range(values: Iterable[int | None]) -> str:
    values = list(values)
    known = sorted({value for value in values if value is not None})
    if not known:
        return "unknown number"
    text = f"{known[0]:,}" if len(known) == 1 else f"{known[0]:,} to {known[-1]:,}"
    return f"{text}, or an unknown number" if None in values else text


def _seeds(seeds: Iterable[str]) -> str:
    """The seeds in order, the first ones only if they are many."""
    ordered = sorted(seeds, key=lambda seed: (not seed.isdecimal(), len(seed), seed))
    return ", ".join(ordered[:10]) + (f" and {len(ordered) - 10} more" if len(ordered) > 10 else "")


def plain_head(report: Report) -> str:
    """`heading`, problems and notes, one a line."""
    lines = [f"{name}: {value}" for name, value in heading(report)]
    lines += [f"warning ({one.kind}): {one.text}" for one in report.problems]
    return "\n".join(printable(line) for line in [*lines, *(f"note: {n}" for n in report.notes)])


def tables(report: Report) -> list[Table]:
    """All tables of a report."""
    made = [_scores(report)]
    if report.aggregates:
        made.append(_aggregates(report))
    if report.comparison is not None:
        made.append(_comparison(report))
    return made


def _scores(report: Report) -> Table:
    """A row for each task and group."""
    rows = []
    normalised = report.pairs is not None
    for task in report.tasks:
        shown = task
        for group, tasks in report.groups.items():
            if task not in tasks:
                rows.append((shown, group, *_empty(normalised)))
                shown = ""
                continue
            found = statistics.summary([one.score for one in tasks[task]])
            cells = (
                *(number(found.mean), number(found.deviation), str(found.count)),
                *(number(found.minimum), number(found.maximum)),
            )
            if normalised:
                score = report.scores(group, [task])[task].mean()
                cells = (*cells, percent(float(score)))
            rows.append((shown, group, *cells))
            shown = ""
    last = ("score",) if normalised else ()
    title = "Scores" if report.rule.metric != AUC else "Scores (area under the curve)"
    header = ("task", "group", "mean", "± s.d.", "n", "min", "max", *last)
    return Table(title, header, rows, 2)


def _empty(normalised: bool) -> tuple[str, ...]:
    return (_NONE, _NONE, "0", _NONE, _NONE, *((_NONE,) if normalised else ()))


def _aggregates(report: Report) -> Table:
    """A row for each aggregate and group."""
    count = len(report.common_tasks)
    rows = []
    for name in next(iter(report.aggregates.values())):
        aggregate = statistics.AGGREGATES[name]
        shown = aggregate.title
        for group, found in report.aggregates.items():
            cells = _estimate(found[name], report, is_count=aggregate.is_count)
            rows.append((shown, group, *cells))
            shown = ""
    of = "normalised scores" if report.pairs is not None else "returns"
    header = ("aggregate", "group", "value", f"{LEVEL:.0%} interval")
    return Table(f"Aggregates of {of} over {counted(count, 'task')}", header, rows, 2)


def _estimate(found: Estimate, report: Report, *, is_count: bool = False) -> tuple[str, str]:
    shown = percent if report.pairs is not None else number
    if is_count:
        shown = _count
    return shown(found.value), interval(found, shown)


def _count(value: float) -> str:
    return f"{value:.0f}"


def _comparison(report: Report) -> Table:
    """A row for each task, and for all of them."""
    found = report.comparison
    assert found is not None
    rows = []
    for task, one in found.tasks.items():
        rows.append(
            (
                *(task, number(one.difference.value), interval(one.difference, number)),
                *(p_value(one.welch.p_value), f"{one.improvement:.2f}"),
            )
        )
    for name, one in found.differences.items():
        value, ends = _estimate(one, report)
        rows.append((f"all: {statistics.AGGREGATES[name].title}", value, ends, "", ""))
    probability = f"{found.improvement.value:.2f}"
    ends = interval(found.improvement, lambda value: f"{value:.2f}")
    rows.append(("all: mean P(better)", "", ends, "", probability))
    title = f"{found.first} compared with {found.second}"
    header = ("task", "difference", f"{LEVEL:.0%} interval", "Welch's p", "P(better)")
    return Table(title, header, rows)


def number(value: float) -> str:
    """A number in about four significant digits, without an exponent where possible."""
    if not math.isfinite(value):
        return _NONE
    if abs(value) >= 1e9:
        return f"{value:.4g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(value: float) -> str:
    """A fraction as a percentage."""
    return f"{100 * value:,.1f}%" if math.isfinite(value) else _NONE


def p_value(value: float) -> str:
    """A probability, with a bound instead of very small ones."""
    if not math.isfinite(value):
        return _NONE
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def interval(found: Estimate, shown: Callable[[float], str]) -> str:
    """The ends of an interval, each as `shown` writes it."""
    if not math.isfinite(found.low):
        return _NONE
    return f"[{shown(found.low)}, {shown(found.high)}]"


def text(report: Report) -> str:
    """The report for a terminal."""
    head = heading(report, _TASKS)
    width = max(len(name) for name, _ in head) + 2
    lines = [line for name, value in head for line in _wrapped(f"{name:{width}}", value)]
    for table in tables(report):
        lines += ["", printable(table.title), *_aligned(table)]
    if report.problems or report.notes:
        lines.append("")
    for one in report.problems:
        lines += _wrapped("  ", f"warning ({one.kind}): {one.text}")
    for note in report.notes:
        lines += _wrapped("  ", f"note: {note}")
    return "\n".join(lines)


def _wrapped(begin: str, value: str) -> list[str]:
    """Lines of a terminal's usual width, the first with `begin`, the others indented."""
    wrapped = textwrap.wrap(
        printable(value),
        _WIDTH - len(begin),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [(" " * len(begin) if i else begin) + line for i, line in enumerate(wrapped)]


def _aligned(table: Table) -> list[str]:
    columns = list(zip(table.header, *table.rows, strict=True))
    widths = [max(map(len, map(printable, column))) for column in columns]
    return [
        "  ".join(
            printable(cell).ljust(width) if i < table.words else printable(cell).rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (table.header, *table.rows)
    ]


def markdown(report: Report) -> str:
    """The report as a page."""
    lines = ["# Report", ""]
    lines += [f"- {name}: {_cell(value)}" for name, value in heading(report)]
    for table in tables(report):
        lines += ["", f"## {_cell(table.title)}", ""]
        rule = ["---" if i < table.words else "---:" for i in range(len(table.header))]
        for row in (table.header, rule, *table.rows):
            lines.append(f"| {' | '.join(map(_cell, row))} |")
    if report.problems or report.notes:
        lines += ["", "## Warnings", ""]
    lines += [f"- {one.kind}: {_cell(one.text)}" for one in report.problems]
    lines += [f"- {_cell(note)}" for note in report.notes]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text that cannot be read as markup."""
    text = printable(text)
    for sign in ("\\", "|", "`", "<", "*", "_", "["):
        text = text.replace(sign, f"\\{sign}")
    return text
