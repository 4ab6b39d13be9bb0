"""The pictures of a report: learning curves, performance profiles, and aggregates."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pronk.errors import counted
from pronk.report import bootstrap, statistics
from pronk.report.bootstrap import LEVEL
from pronk.report.build import Report
from pronk.report.render import heading, plain_head
from pronk.report.runs import EVALUATION, TRAINING
from pronk.run.plot import COLOURS, DASHES, drawable, finish_axes, on_common_grid, shortened
from pronk.storage.files import write_atomically

_REPEATS = 2_000  # of the bootstrap of a curve or a profile, as in rliable
_POINTS = 100  # of a curve with a band
_THRESHOLDS = 401
_WIDE = 5.0  # normalised scores
_TICKS = (-100, -10, -1, 0, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000, 100_000)
_CURVES = {EVALUATION: "evaluations", TRAINING: "the last 100 episodes of training"}
_PANELS = 60  # of the curves' picture, at most
_SHOWN = ("iqm", "median", "mean", "optimality_gap")  # in the picture of aggregates


def draw(report: Report, directory: Path) -> list[Path]:
    """Write the pictures of a report to `directory` and return their paths.

    `curves.png`, and where scores are aggregated also `iqm.png`, `profiles.png` and
    `intervals.png`. Raises UserError where a file cannot be written.
    """
    figures: dict[str, Callable[[Report], Any]] = {"curves": _curves}
    if report.aggregates:
        figures |= {"iqm": _iqm, "profiles": _profiles, "intervals": _intervals}
    paths = []
    for name, make in figures.items():
        figure = make(report)
        if figure is None:
            continue
        buffer = io.BytesIO()
        # Latin-1 is all that this field of a PNG can hold.
        about = plain_head(report).encode("latin-1", "replace").decode("latin-1")
        figure.savefig(buffer, format="png", metadata={"Description": about})
        path = directory / f"{name}.png"
        write_atomically(path, buffer.getvalue(), flag="--png")
        paths.append(path)
    return paths


def _figure(report: Report, width: float, height: float, facts: Sequence[str]) -> Any:
    """A figure with these facts of the report's heading below; `curves` and `bands` are others."""
    from matplotlib.figure import Figure  # slow to import
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    figure = Figure(figsize=(width, height), dpi=150, layout=layout)
    found = dict(heading(report))
    found["bands"] = f"{LEVEL:.0%}, bootstrap of {_repeats(report):,} repeats, seed {report.seed}"
    metrics = sorted({one.metric for one in report.scored()})
    found["curves"] = f"mean returns of {' and '.join(_CURVES[metric] for metric in metrics)}"
    text = "; ".join(f"{name}: {found[name]}" for name in facts)
    lines = textwrap.wrap(shortened(text, 600), int(width * 19))
    note = "\n".join(drawable(line) for line in lines)
    figure.supxlabel(note, x=0.01, ha="left", fontsize=6.5, color="#555555")
    return figure


def _label(group: str) -> str:
    text = drawable(shortened(group, 60))
    return f" {text}" if text.startswith("_") else text  # which matplotlib would leave out


def _style(i: int) -> dict[str, Any]:
    """The colour and the dashes of group `i`."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": DASHES[i // len(COLOURS) % len(DASHES)],
    }


def _legend(figure: Any, axes: Any, report: Report) -> None:
    """One legend above all panels, unless there is only one group."""
    handles, labels = axes.get_legend_handles_labels()
    if len(report.groups) > 1 and handles:
        needed = 0.8 + 0.085 * max(map(len, labels))  # inches for a line and its label
        columns = max(1, min(len(labels), int(figure.get_figwidth() / needed)))
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)


def _band(axes: Any, x: np.ndarray, ends: np.ndarray, i: int) -> None:
    if not np.isnan(ends).all():
        colour = COLOURS[i % len(COLOURS)]
        axes.fill_between(x, ends[0], ends[1], color=colour, alpha=0.2, linewidth=0)


def _short(value: float, _: int) -> str:
    """A tick's number, without an offset or an exponent elsewhere on the axis."""
    for least, unit, name in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / unit:.6g}{name}"
    return f"{value:.6g}"


def _curves(report: Report) -> Any:
    """A panel for each task: the mean over the runs of each group, with its interval; None where
    every run has one score only."""
    if all(len(report.rule.curve(one.run)[0]) < 2 for one in report.scored()):
        return None
    tasks = report.tasks[:_PANELS]
    columns = min(len(tasks), max(3, math.ceil(math.sqrt(len(tasks)))))
    columns = 2 if len(tasks) == 4 else columns
    rows = math.ceil(len(tasks) / columns)
    width = 7.0 if columns == 1 else min(3.6 * columns, 20.0)
    height = 4.6 if rows == columns == 1 else 0.8 + 2.5 * rows
    figure = _figure(report, width, height, ("curves", "seeds", "bands"))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    drawn = {}  # a panel with every group, for the legend
    for axes, task in zip(panels, tasks, strict=False):
        largest = 0.0
        for i, (label, group) in enumerate(report.groups.items()):
            if task not in group:
                continue
            curves = [report.rule.curve(one.run) for one in group[task]]
            largest = max(largest, *(float(x[-1]) for x, _ in curves))
            _curve(axes, curves, _label(label), i, report)
        finish_axes(axes, "agent steps", largest, intervals=9 if columns == 1 else 5)
        axes.yaxis.set_major_formatter(_short)
        axes.set_title(drawable(shortened(task, 40)), fontsize="medium")
        drawn[len(axes.get_legend_handles_labels()[0])] = axes
    for axes in panels[len(tasks) :]:
        axes.set_axis_off()
    for axes in panels[::columns]:
        axes.set_ylabel("mean return")
    _legend(figure, drawn[max(drawn)], report)
    return figure


def _chosen(grid: np.ndarray, curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The indices of as many points of a grid as the curves need, the first and last among them."""
    count = min(len(grid), _POINTS, 4 * max(len(x) for x, _ in curves))
    return np.unique(np.linspace(0, len(grid) - 1, count).astype(int))


def _interval(report: Report, statistic: Callable[..., Any], scores: Any) -> np.ndarray:
    """The interval at each point of a curve."""
    return bootstrap.interval(statistic, scores, repeats=_repeats(report), seed=report.seed)


def _repeats(report: Report) -> int:
    return min(report.repeats, _REPEATS)


def _curve(
    axes: Any,
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
    label: str,
    i: int,
    report: Report,
) -> None:
    """The mean of a group's runs in one task, its interval, and thin lines for the runs."""
    style = _style(i) | {"label": label, "linewidth": 1.8}
    if len(curves) == 1:
        marker = "o" if len(curves[0][0]) == 1 else None
        axes.plot(*curves[0], marker=marker, **style)
        return
    for x, y in curves:
        axes.plot(x, y, color=style["color"], linewidth=0.5, alpha=0.35)
    grid, values = on_common_grid(curves)
    if not len(grid):
        axes.plot([], [], **style)  # no steps in common; the legend names the colour
        return
    chosen = _chosen(grid, curves)
    grid, values = grid[chosen], values[:, chosen]
    ends = _interval(report, lambda drawn: drawn[0].mean(1), [values])
    axes.plot(grid, values.mean(0), marker="o" if grid[0] == grid[-1] else None, **style)
    _band(axes, grid, ends, i)


def _iqm(report: Report) -> Any:
    """The interquartile mean of all tasks and runs over steps; None where no group's runs have
    steps in common."""
    figure = _figure(report, 7.0, 4.8, ("curves", "references", "seeds", "bands"))
    axes = figure.subplots()
    largest = 0.0
    for i, (label, grid, tasks) in enumerate(_grids(report)):
        if not len(grid) or grid[0] == grid[-1]:
            continue  # one point is no curve
        largest = max(largest, float(grid[-1]))
        ends = _interval(
            report,
            lambda drawn: statistics.iqm([np.moveaxis(one, 1, -1) for one in drawn]),
            tasks,
        )
        middle = statistics.iqm([one.T for one in tasks])
        axes.plot(grid, middle, label=_label(label), linewidth=1.8, **_style(i))
        _band(axes, grid, ends, i)
    if not axes.lines:
        return None
    finish_axes(axes, "agent steps", largest)
    count = len(report.common_tasks)
    axes.set_ylabel(f"interquartile mean of {_kind(report)}")
    axes.set_title(counted(count, "task"), fontsize="medium")
    _legend(figure, axes, report)
    return figure


def _grids(report: Report) -> Iterator[tuple[str, np.ndarray, list[np.ndarray]]]:
    """Groups with the steps `[N]` that all of their runs cover, and each task's scores there,
    `[runs, N]`."""
    tasks = report.common_tasks
    for label, group in report.groups.items():
        curves = [report.rule.curve(one.run) for task in tasks for one in group[task]]
        grid, values = on_common_grid(curves)
        chosen = _chosen(grid, curves)
        parts = np.split(values[:, chosen], np.cumsum([len(group[task]) for task in tasks])[:-1])
        if report.pairs is not None:
            scores = statistics.normalised(dict(zip(tasks, parts, strict=True)), report.pairs)
            parts = list(scores.values())
        yield label, grid[chosen], parts


def _kind(report: Report) -> str:
    return "returns" if report.references is None else f"normalised scores\n({_name(report)})"


def _name(report: Report) -> str:
    used = report.references
    return "" if used is None else drawable(shortened(Path(used.name).name, 40))


def _profiles(report: Report) -> Any:
    """The fraction of runs above each score."""
    tasks = report.common_tasks
    scores = {label: report.scores(label, tasks) for label in report.groups}
    every = np.concatenate([one for group in scores.values() for one in group.values()])
    low, high = float(every.min()), float(np.quantile(every, 0.98))
    # Scores of many times the reference need an axis that is logarithmic above 1.
    wide = report.references is not None and high > _WIDE
    to_axis, from_axis = (_symlog, _inverse_symlog) if wide else (float, np.asarray)
    ends = to_axis(low), to_axis(high)
    margin = 0.05 * (ends[1] - ends[0]) or 1.0
    thresholds = from_axis(np.linspace(ends[0] - margin, ends[1] + margin, _THRESHOLDS))
    facts = ("score", "references", "seeds", "bands")
    figure = _figure(report, 7.0, 4.8, facts)
    axes = figure.subplots()
    for i, (label, group) in enumerate(scores.items()):
        ends = _interval(report, lambda drawn: statistics.profile(drawn, thresholds), group)
        middle = statistics.profile(group, thresholds)
        axes.plot(thresholds, middle, label=_label(label), linewidth=1.8, **_style(i))
        _band(axes, thresholds, ends, i)
    if wide:
        axes.set_xscale("function", functions=(_symlog, _inverse_symlog))
        ticks = [value for value in _TICKS if thresholds[0] <= value <= thresholds[-1]]
        axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.set_ylim(-0.03, 1.03)
    axes.margins(x=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"{'return' if report.references is None else 'normalised score'} τ")
    axes.set_ylabel("fraction of runs with a score above τ")
    _legend(figure, axes, report)
    return figure


def _symlog(values: Any) -> Any:
    """Linear to ±1, logarithmic beyond; its inverse is below."""
    values = np.asarray(values, float)
    beyond = np.sign(values) * (1 + np.log10(np.maximum(np.abs(values), 1.0)))
    return np.where(np.abs(values) <= 1, values, beyond)


def _inverse_symlog(values: Any) -> Any:
    values = np.asarray(values, float)
    beyond = np.sign(values) * 10 ** (np.abs(values) - 1)
    return np.where(np.abs(values) <= 1, values, beyond)


def _intervals(report: Report) -> Any:
    """A panel for each aggregate, with a row for each group."""
    labels = list(report.aggregates)
    names = [name for name in _SHOWN if name in report.aggregates[labels[0]]]
    height = 1.5 + 0.34 * len(labels)
    longest = min(max(map(len, labels)), 40)
    figure = _figure(
        report,
        1.2 + 0.07 * longest + 2.3 * len(names),
        height,
        ("score", "references", "seeds", "intervals"),
    )
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for i, label in enumerate(labels):
            found = report.aggregates[label][name]
            colour = COLOURS[i % len(COLOURS)]
            if math.isfinite(found.low):
                ends = [found.low, found.high]
                axes.plot(
                    ends, [i, i], color=colour, linewidth=7, alpha=0.35, solid_capstyle="butt"
                )
            axes.plot([found.value], [i], marker="|", markersize=13, color=colour, mew=2.5)
        better = "\n(lower is better)" if name == "optimality_gap" else ""
        axes.set_title(f"{statistics.AGGREGATES[name].title}{better}", fontsize="medium")
        axes.set_xlabel("return" if report.references is None else "normalised score")
        shown = labels if axes is panels[0] else [""] * len(labels)
        axes.set_yticks(range(len(labels)), [drawable(shortened(label, 40)) for label in shown])
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
        axes.locator_params(axis="x", nbins=4)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    return figure
