"""What the experiments share: cached runs, intervals over seeds, tables, and figures."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pronk.config.json_files import UnreadableJSON, read_object
from pronk.config.spec import Plan
from pronk.errors import UserError, nearest
from pronk.storage.files import write_atomically, write_json_atomically
from pronk.types import Array

Row = dict[str, Any]

# Okabe and Ito's colours, which colour-blind readers can distinguish, without the pale yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8c8c8c")
BAND = "mean over seeds; band: 95 % bootstrap interval of the mean"


def digest(settings: Mapping[str, Any]) -> str:
    """Eight characters that identify settings in a file's name."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[
        :8
    ]


def choose_tasks(wanted: Sequence[str], known: Iterable[str]) -> list[str]:
    """The tasks in `--tasks`, all if there are none; raises UserError for an unknown one."""
    return choose("tasks", wanted, known)


def choose(flag: str, wanted: Sequence[str], known: Iterable[str]) -> list[str]:
    """The names in `--FLAG`, all if there are none; raises UserError for an unknown one."""
    names = list(known)
    for name in wanted:
        if name not in names:
            raise UserError(
                f"`--{flag}` has '{name}'{nearest(name, names) or ';'} known are"
                f" {', '.join(map(repr, names))}."
            )
    return list(dict.fromkeys(wanted)) or names


def plan_identity(plan: Plan) -> dict[str, Any]:
    """The part of a plan that decides what is learnt, but for the seed."""
    return {k: v for k, v in plan.as_json().items() if k not in ("run", "preset")} | {
        k: plan.as_json()["run"][k] for k in ("steps", "policy_lag")
    }


def cached(
    folder: Path, name: str, settings: Mapping[str, Any], compute: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The JSON result of `compute`, computed once and kept in `folder`.

    settings: all that the result depends on; other settings have another file. Raises UserError
    where the file is damaged.
    """
    path = folder / f"{name}-{digest(settings)}.json"
    if not path.exists():
        start = time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        write_json_atomically(path, compute())
        print(f"{path.stem}: {time.perf_counter() - start:.0f} s", flush=True)
    try:
        return read_object(path)
    except UnreadableJSON as error:
        why = str(error).removesuffix(": put back a copy of it.")
        raise UserError(
            f"{why}. Delete the file and repeat the command, which then computes it again."
        ) from None


# Statistics


class Interval(NamedTuple):
    """A mean with a 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def short(self) -> str:
        """With three digits, as in the Markdown tables."""
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def interval(values: Sequence[float]) -> Interval:
    """The mean of one value per seed."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, size=(10_000, len(values))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(np.mean(values)), float(low), float(high))


def band_note(fewest: int, most: int) -> str:
    """What a figure says of its lines, means over `fewest` to `most` runs; one run has no band."""
    if most == 1:
        return "one seed"
    seeds = f"{most}" if fewest == most else f"{fewest} to {most}"
    return f"mean over {seeds} seeds and its 95 % bootstrap interval"


def band(curves: Any) -> tuple[Array, Array, Array]:
    """Mean and 95 % bootstrap band `[points]` of curves `[seeds, points]`, NaN ignored."""
    values = np.array(curves, float)
    drawn = np.random.default_rng(0).integers(len(values), size=(500, len(values)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where no episode has ended yet
        means = np.array([np.nanmean(values[rows], axis=0) for rows in drawn])
        low, high = np.nanpercentile(means, [2.5, 97.5], axis=0)
        return np.nanmean(values, axis=0), low, high


# Tables


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, atomically; raises UserError where the write fails."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, buffer.getvalue().encode(), flag="--results")


def read_csv(path: Path) -> list[Row]:
    """The rows of a table, numbers as floats."""
    with path.open(newline="") as file:
        return [{k: _parse(v) for k, v in row.items()} for row in csv.DictReader(file)]


def _parse(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def unique(rows: Iterable[Row], key: str) -> list[Any]:
    """The values of a column, in order of appearance."""
    return list(dict.fromkeys(row[key] for row in rows))


def select(rows: Iterable[Row], column: str, **where: Any) -> list[Any]:
    """The values of `column` in the rows that equal `where`."""
    return [row[column] for row in rows if all(row[k] == v for k, v in where.items())]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    # An empty cell is one space.
    lines = ["".join(f"| {c} " if c else "| " for c in cells) + "|" for cells in [header, *rows]]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


# Figures


def panels(
    rows: int, columns: int, width: float, height: float, **options: Any
) -> tuple[Any, Array]:
    """A matplotlib figure and its axes `[rows, columns]`; the size in inches is that of a panel."""
    from matplotlib.figure import Figure  # slow to import; without pyplot there is no display

    figure = Figure((columns * width, rows * height + 0.5), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_band(axis: Any, x: Any, values: Any, i: int, label: str, **style: Any) -> None:
    """The i-th curve of a panel, with a band; `values` are mean, low and high `[3, points]`.

    Later curves are thinner and above, so that curves that coincide can be told apart.
    """
    mean, low, high = values
    style = {"color": COLOURS[i], "linewidth": max(1.0, 3.0 - 0.6 * i), **style}
    axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axis.plot(x, mean, label=label, zorder=2 + i / 100, **style)


def draw_points(axis: Any, x: Any, values: Sequence[Interval], **style: Any) -> None:
    """Points with error bars."""
    mean, low, high = np.array(values, float).T
    axis.errorbar(x, mean, [mean - low, high - mean], capsize=3, **style)


def save(figure: Any, path: Path, note: str, columns: int = 4) -> Path:
    """Write a figure with one legend below all panels, titled with `note`; returns its path.

    Atomically; raises UserError where the write fails.
    """
    entries = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            if label:
                entries.setdefault(label, handle)
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        title=note,
        title_fontsize="medium",
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:])
    write_atomically(path, buffer.getvalue(), flag="--results")
    return path
