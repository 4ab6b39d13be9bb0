"""The long CSV of scores, one row for each score of each run, which a report writes and reads.

`docs/report.md` says what the columns mean. Lines that begin with `#` are comments.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pronk.errors import UserError
from pronk.report.grouping import MISSING, setting
from pronk.report.references import split_version
from pronk.report.runs import EVALUATION, TRAINING, Row, Run
from pronk.report.tables import Table

COLUMNS = (
    *("agent", "env", "version", "seed", "step", "wall_seconds", "metric", "score"),
    *("episodes", "total_episodes", "config_hash", "software", "status", "run"),
)
REQUIRED = ("agent", "env", "seed", "step", "metric", "score")
# What tells one run from another.
_IDENTITY = ("agent", "env", "version", "seed", "config_hash", "software", "status", "run")


def read(path: Path) -> list[Run]:
    """The runs in a CSV; raises UserError where a column is missing or a value is wrong."""
    table = Table(path)
    columns = table.columns
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise UserError(
            f"'{path}' has no column {', '.join(missing)}; expected a long CSV with the columns"
            f" {', '.join(REQUIRED)}, and any of"
            f" {', '.join(name for name in COLUMNS if name not in REQUIRED)}."
            f" It has: {', '.join(columns) or 'nothing'}."
        )
    further = [name for name in columns if name not in COLUMNS and name]
    rows: dict[tuple[str, ...], list[Row]] = {}
    for where, cells in ((line.where, line.cells) for line in table.rows()):
        for name in ("agent", "env"):
            if not cells[name]:
                raise UserError(f"{where} has no {name}; expected its name, or no such line.")
        if not cells.get("version"):
            cells["env"], cells["version"] = split_version(cells["env"])
        key = tuple(cells.get(name, "") for name in (*_IDENTITY, *further))
        rows.setdefault(key, []).append(_row(cells, where))
    if not rows:
        raise UserError(f"'{path}' has no rows below its column names; expected scores of runs.")
    return [
        _run(dict(zip((*_IDENTITY, *further), key, strict=True)), further, scores, path)
        for key, scores in rows.items()
    ]


def _run(cells: Mapping[str, str], further: Sequence[str], rows: Iterable[Row], path: Path) -> Run:
    names = ("agent", "env", "version", "seed", "config_hash", "software", "status")
    ordered = sorted(rows, key=lambda row: row.step)
    steps = [row.step for row in ordered if row.metric == EVALUATION]
    twice = next((a for a, b in itertools.pairwise(steps) if a == b), None)
    if twice is not None:
        raise UserError(
            f"'{path}' has more than one evaluation at step {twice:,} of {cells['agent']} on"
            f" {cells['env']} with seed {cells['seed']}; expected one: tell runs apart by their"
            " seeds, or by a column `run`."
        )
    return Run(
        **{name: cells[name] for name in names},
        rows=tuple(ordered),
        name=cells["run"] or str(path),
        settings={name: cells[name] for name in ("agent", *further)},
    )


def _row(cells: Mapping[str, str], where: str) -> Row:
    metric = cells["metric"]
    if metric not in (EVALUATION, TRAINING):
        raise UserError(
            f"{where} has the metric '{metric}'; expected '{EVALUATION}' or '{TRAINING}': rename"
            " those of other programs."
        )
    score = _number(cells, "score", where)
    if score is None:
        raise UserError(f"{where} has no score; expected a number, or no such line.")
    seconds = _number(cells, "wall_seconds", where)
    if seconds is not None and seconds < 0:
        raise UserError(
            f"{where} has the wall_seconds {seconds:g}; expected at least 0, or nothing."
        )
    step, episodes, total = (
        _whole(cells, name, where, least)
        for name, least in (("step", 0), ("episodes", 1), ("total_episodes", 0))
    )
    return Row(step or 0, metric, score, seconds, episodes, total)


def _whole(cells: Mapping[str, str], name: str, where: str, least: int) -> int | None:
    """The whole number in a cell, at least `least`; None where it is empty."""
    value = _number(cells, name, where)
    if value is not None and (value < least or value != int(value)):
        raise UserError(
            f"{where} has the {name} '{cells[name]}'; expected a whole number, at least {least}, or"
            " nothing."
        )
    return None if value is None else int(value)


def _number(cells: Mapping[str, str], name: str, where: str) -> float | None:
    """The number in a cell; None where it is empty."""
    text = cells.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or abs(value) >= 1e100:
        raise UserError(
            f"{where} has the {name} '{text}'; expected a finite number, with a decimal point."
        )
    return value


def write(runs: Iterable[Run], by: Sequence[str], head: str) -> str:
    """The text of a CSV of the runs' scores.

    by: names of settings that become columns of their own. head: lines for the comment above.
    """
    further = [name for name in by if name not in COLUMNS]
    buffer = io.StringIO()
    for line in head.splitlines():
        buffer.write(f"# {line}\n")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*COLUMNS, *further])
    for run in runs:
        settings = [setting(run, name).replace(MISSING, "") for name in further]
        for row in run.rows:
            seconds = None if row.wall_seconds is None else round(row.wall_seconds, 3)
            writer.writerow(
                [
                    *(run.agent, run.env, run.version, run.seed, row.step, seconds),
                    *(row.metric, repr(row.score), row.episodes, row.total_episodes),
                    *(run.config_hash, run.software, run.status, run.name, *settings),
                ]
            )
    return buffer.getvalue()
