"""Plots of learning curves, and their points as CSV."""

from __future__ import annotations

import csv as csv_format
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pronk.config.json_files import MissingJSON, read_object
from pronk.config.run import FREE
from pronk.errors import UserError, counted, nearest, printable
from pronk.run import plot_mixtures
from pronk.storage.files import is_number, read_lines, write_atomically

# Okabe and Ito's colours, distinguishable for colour-blind readers, without the pale yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
_FORMATS = (".png", ".pdf", ".svg")
_LABELS = {
    "steps": "agent steps",
    "frames": "environment frames",
    "wall_seconds": "wall-clock time",
    "updates": "learner updates",
    "episodes": "episodes",
    "mean_return": "mean return of the last 100 episodes",
    "mean_return_least_exploring": "mean return of the least exploring environments",
    "eval/mean_return": "mean return in evaluation",
    "steps_per_second": "agent steps per second",
    "policy_lag": "policy lag (updates)",
    "gradient_norm": "gradient norm",
}
_GRID = 500  # points of a mean curve
_LONGEST = 300  # characters of a label


@dataclass(frozen=True)
class _Run:
    """A run directory: its settings, and its records that have both metrics."""

    path: Path
    config: dict[str, Any]
    records: list[dict[str, Any]]
    x: np.ndarray
    y: np.ndarray

    @property
    def seed(self) -> Any:
        return self.config["run"].get("seed")

    @property
    def task(self) -> str:
        return f"{self.config.get('agent')} {self.config.get('env')}"


def plot(
    run_dirs: Sequence[Path],
    output: Path,
    *,
    x: str = "steps",
    y: str = "mean_return",
    smooth: int = 1,
    title: str | None = None,
    csv: Path | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> Path:
    """Plot metric `y` over metric `x` of the runs to `output` (PNG, PDF or SVG) and return it.

    Runs that differ only in the seed, and in settings that do not affect learning, become one line,
    their mean, within a band from minimum to maximum, over the range that all of them cover; thin
    lines show the seeds. A single run's mean return has a second panel, if the run has mixtures:
    which of them acted, and which one returned most. smooth: number of records that each point
    averages. csv: a file for the points before smoothing, one row each: run, seed, steps,
    wall_seconds, and `y`. log: receives a message about each run of which damaged lines are left
    out. Raises UserError where a run, a metric or data are missing.
    """
    if not run_dirs:
        raise UserError("no run directories were given; name at least one, such as runs/pong")
    if smooth < 1:
        raise UserError(
            f"`smooth` is {smooth}; expected the number of records to average, 1 or more"
        )
    file_format = picture_format(output)
    runs = [_read(Path(path), x, y, log) for path in run_dirs]
    picture = _draw(_by_settings(runs), x, y, smooth, title, file_format)
    write_atomically(output, picture, flag="--output")
    if csv is not None:
        write_atomically(csv, _as_csv(runs, y), flag="--csv")
    return output


def picture_format(output: Path) -> str:
    """`png`, `pdf` or `svg`, by the file's name; raises UserError for another one."""
    if output.suffix.lower() not in _FORMATS:
        raise UserError(f"`{output}` is no picture; expected a name ending {', '.join(_FORMATS)}")
    return output.suffix.lower()[1:]


def shortened(text: str, length: int) -> str:
    """`text`, cut to `length` characters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def drawable(text: str, *, formulas: bool = False) -> str:
    """`text` as matplotlib can draw it: short, printable and, unless `formulas` may be in it and
    can be read, without any."""
    from matplotlib.mathtext import MathTextParser  # slow to import

    lines = shortened(text, _LONGEST).split("\n") if formulas else [shortened(text, _LONGEST)]
    text = "\n".join(map(printable, lines))
    if formulas:
        try:
            MathTextParser("path").parse(text)
            return text
        except (ValueError, RecursionError):  # wrong, or nested too deep
            pass
    return text.replace("$", r"\$")


def finish_axes(
    axes: Any, label: str, largest: float, *, seconds: bool = False, intervals: int = 9
) -> None:
    """Label the horizontal axis of matplotlib `axes`, in a unit that suits values to `largest`.

    Call it when everything is plotted. seconds: the values are seconds. intervals: between ticks,
    at most.
    """
    from matplotlib.ticker import MaxNLocator  # slow to import

    unit, scale = _unit(largest, seconds)
    axes.set_xlabel(f"{label} ({unit})" if unit else label)
    axes.margins(x=0.02)
    left, right = axes.get_xlim()
    ticks = MaxNLocator(intervals, steps=[1, 2, 5, 10]).tick_values(left / scale, right / scale)
    axes.set_xticks([scale * tick for tick in ticks if left <= scale * tick <= right])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / scale:g}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _unit(largest: float, seconds: bool) -> tuple[str, float]:
    """The unit in which an axis up to `largest` has short numbers, and its size."""
    if seconds:
        units, smallest = (("hours", 3600.0), ("minutes", 60.0)), ("seconds", 1.0)
    else:
        units = (("billions", 1e9), ("millions", 1e6), ("thousands", 1e3))
        smallest = ("", 1.0)
    return next((unit for unit in units if largest >= 2 * unit[1]), smallest)


def _read(path: Path, x: str, y: str, log: Callable[[str], None] = lambda _: None) -> _Run:
    damage: list[str] = []
    try:
        config = read_object(path / "config.json")
        records = [record for _, record in read_lines(path / "metrics.jsonl", damage.append)]
    except MissingJSON as error:
        raise UserError(f"`{path}` is not the directory of a run: {error}") from None
    if not isinstance(config.setdefault("run", {}), dict):
        raise UserError(f"`{path / 'config.json'}` has no settings of a run; put back a copy.")
    if damage:
        more = f", and {counted(len(damage) - 1, 'further line')} too" if len(damage) > 1 else ""
        log(f"warning: {damage[0]}; it is left out{more}: the file was damaged")
    if not records:
        raise UserError(
            f"`{path}` has no records yet; wait for the run's first line of progress, or train it"
            " for longer if it has ended"
        )
    known = {name for record in records for name, value in record.items() if is_number(value)}
    for metric in (x, y):
        if not any(metric in record for record in records):
            raise UserError(
                f"`{path}` has no metric `{metric}`{nearest(metric, known)}; "
                f"it has {shortened(', '.join(sorted(known)), 1000)}"
            )
    both = [r for r in records if is_number(r.get(x)) and is_number(r.get(y))]
    if not both:
        _refuse_values(path, records, (x, y))
        raise UserError(f"`{path}` has no values of `{y}` yet; no episode may have ended so far")
    both.sort(key=lambda record: record[x])
    return _Run(path, config, both, *(np.array([r[m] for r in both], float) for m in (x, y)))


def _refuse_values(path: Path, records: Sequence[dict[str, Any]], metrics: Sequence[str]) -> None:
    """Raise UserError where the records have something else than finite numbers and null."""
    for metric in metrics:
        values = [record[metric] for record in records if record.get(metric) is not None]
        if values and not any(map(is_number, values)):
            found = list(dict.fromkeys(shortened(json.dumps(value), 40) for value in values))
            more = ", …" if len(found) > 3 else ""
            raise UserError(
                f"`{path}` has no finite number for `{metric}`, but {', '.join(found[:3])}{more} in"
                f" {counted(len(values), 'record')}; the environment's rewards were not finite,"
                " or the file was damaged"
            )


def _settings(run: _Run) -> dict[str, str]:
    """The settings that runs averaged as seeds share: dotted name -> JSON."""
    flat: dict[str, str] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                add(f"{prefix}.{name}" if prefix else name, inner)
        else:
            flat[prefix] = json.dumps(value)

    add("", run.config)
    free = ("pronk", "preset", "run.seed", *(f"run.{name}" for name in FREE))
    about = ("versions.", "sources.", "resolved.")  # not settings
    return {k: v for k, v in flat.items() if k not in free and not k.startswith(about)}


def _by_settings(runs: Sequence[_Run]) -> list[tuple[str, list[_Run]]]:
    """Groups of seeds with their labels: agent, environment, and the settings that differ."""
    groups: list[tuple[dict[str, str], list[_Run]]] = []
    for run in runs:
        settings = _settings(run)
        for known, members in groups:
            if known == settings:
                members.append(run)
                break
        else:
            groups.append((settings, [run]))
    result = []
    for settings, members in groups:
        task = members[0].task
        others = [s for s, m in groups if m[0].task == task]
        names = sorted({name for s in others for name in s})
        differing = [n for n in names if len({s.get(n) for s in others}) > 1]
        parts = [
            f"{name.rpartition('.')[2]}={settings[name].strip(chr(34))}"
            for name in differing
            if name in settings
        ]
        result.append((" ".join([task, *parts]), members))
    return result


def _draw(
    groups: list[tuple[str, list[_Run]]],
    x: str,
    y: str,
    smooth: int,
    title: str | None,
    file_format: str,
) -> bytes:
    # Slow to import; without pyplot there is no display and no global state.
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    padded = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1)
    mixtures = _mixtures(groups, x, y)
    if mixtures is None:
        figure = Figure(figsize=(8, 5), dpi=150, layout=padded)
        panels = [figure.add_subplot()]
    else:
        figure = Figure(figsize=(8, 7.5), dpi=150, layout=padded)
        panels = figure.subplots(2, sharex=True, height_ratios=(3, 2))
        plot_mixtures.draw(figure, panels[1], mixtures)
    axes = panels[0]
    for i, (name, members) in enumerate(groups):
        label = drawable(name)
        colour = COLOURS[i % len(COLOURS)]
        dashes = DASHES[i // len(COLOURS) % len(DASHES)]
        curves = [(run.x, _smoothed(run.y, smooth)) for run in members]
        if len(members) == 1:
            marker = "o" if len(curves[0][0]) == 1 else None
            axes.plot(*curves[0], dashes, color=colour, label=label, linewidth=1.8, marker=marker)
            continue
        for curve in curves:
            axes.plot(*curve, color=colour, linewidth=0.6, alpha=0.45)
        grid, values = on_common_grid(curves)
        label = f"{label}\nmean of {len(members)} seeds, band from minimum to maximum"
        axes.fill_between(grid, values.min(0), values.max(0), color=colour, alpha=0.18, linewidth=0)
        marker = "o" if len(grid) and grid[0] == grid[-1] else None  # one point is no line
        style = {"color": colour, "label": label, "linewidth": 1.8, "marker": marker}
        axes.plot(grid, values.mean(0), dashes, **style)
    averaged = f"\n(average over {smooth} records)" if smooth > 1 else ""
    largest = max(run.x[-1] for _, members in groups for run in members)
    for panel in panels:
        finish_axes(panel, drawable(_label(x)), largest, seconds=x == "wall_seconds")
        panel.label_outer()
    for panel in panels[1:]:
        panel.grid(False)  # of colours
    axes.set_ylabel(drawable(_label(y)) + averaged)
    axes.margins(x=0.02)
    if title is not None:
        axes.set_title(drawable(title, formulas=True))
    axes.legend(frameon=False, fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=file_format)
    return buffer.getvalue()


def _mixtures(
    groups: list[tuple[str, list[_Run]]], x: str, y: str
) -> plot_mixtures.Mixtures | None:
    """Those of the run, if it is the only one, it has any, and its mean return is drawn."""
    runs = [run for _, members in groups for run in members]
    if len(runs) > 1 or y != "mean_return":
        return None
    return plot_mixtures.read(runs[0].records, x)


def _smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of each value and the `window - 1` values before it, fewer at the beginning."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def on_common_grid(
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Points `[N]` in the range that all curves cover, and the curves interpolated there,
    `[curves, N]`.

    N is 0 where there is no such range: a mean over fewer and fewer seeds would jump as they end.
    """
    first = max(x[0] for x, _ in curves)
    last = min(x[-1] for x, _ in curves)
    grid = np.linspace(first, last, _GRID if last >= first else 0)
    return grid, np.stack([np.interp(grid, x, y) for x, y in curves])


def _label(metric: str) -> str:
    """A metric's name as a phrase: `loss/value` is "value loss"."""
    kind, _, name = metric.partition("/")
    if kind == "loss" and name:
        metric = f"{name} loss"
    elif kind == "return" and name:
        metric = f"mean return of the last 100 episodes of {name}"
    return _LABELS.get(metric, metric.replace("_", " "))


def _as_csv(runs: Sequence[_Run], y: str) -> bytes:
    buffer = io.StringIO()
    writer = csv_format.writer(buffer, lineterminator="\n")
    writer.writerow(["run", "seed", "steps", "wall_seconds", y])
    for run in runs:
        for record in run.records:
            values = (record.get(name) for name in ("steps", "wall_seconds", y))
            writer.writerow([run.path, run.seed, *values])
    return buffer.getvalue().encode(errors="backslashreplace")
