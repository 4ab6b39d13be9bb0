"""Finds the runs that a report is asked for, each once, and keeps its outputs off them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pronk.config.json_files import holds
from pronk.config.spec import run_of
from pronk.errors import UserError
from pronk.report import long_csv
from pronk.report.runs import Row, Run, directories, read_run
from pronk.storage.files import check_file_name

# Endings of files that a report writes, and `pronk train` does not.
_OURS = (".csv", ".md", ".png")
_Scores = dict[tuple[str, int], Counter[tuple[float, int | None, int | None]]]


def read(paths: Iterable[str | Path]) -> list[Run]:
    """The runs in directories, of one run or of many, and in long CSVs.

    A run that is found more than once counts once: in the same directory or file, or in a CSV that
    was written from it (`_same`). A directory whose files are damaged is a run without rows and
    with `damage`. Raises UserError where there is none, a CSV is damaged, or all directories are.
    """
    found: list[tuple[Run, str]] = []  # with what tells it from others: see `_identity`
    damaged: list[UserError] = []
    seen = set()
    for path in map(Path, paths):
        is_csv = path.is_file()
        for source in [path] if is_csv else directories(path):
            if (real := os.path.realpath(source)) in seen:
                continue
            seen.add(real)
            if is_csv:
                runs = long_csv.read(source)
                found += [(run, "" if run.name == str(source) else run.name) for run in runs]
                continue
            try:
                directory = run_of(source)
                if directory != source and os.path.realpath(directory) in seen:
                    continue
                seen.add(os.path.realpath(directory))
                found += [(run, run.name) for run in read_run(directory)]
            except UserError as error:
                damaged.append(error)
                reason = str(error).rstrip(".")
                found.append((Run("", "", "", "", (), name=str(source), damage=reason), ""))
    if damaged and len(damaged) == len(found):
        if len(damaged) == 1:
            raise damaged[0]
        raise UserError(f"all {len(damaged)} runs are damaged, one so: {damaged[0]}")
    return _once(found)


def _once(found: Iterable[tuple[Run, str]]) -> list[Run]:
    """The runs, with those that are the same one merged into the first of them."""
    kept: list[Run] = []
    places: dict[tuple[str, ...], list[int]] = {}
    scores: dict[int, _Scores] = {}
    for run, name in found:
        if run.damage:
            kept.append(run)
            continue
        mine = _scores(run.rows)
        alike = places.setdefault(_identity(run, name), [])
        for place in alike:
            if _same(kept[place], scores[place], run, mine, named=bool(name)):
                kept[place] = _merged(kept[place], run)
                scores[place] = _scores(kept[place].rows)
                break
        else:
            alike.append(len(kept))
            scores[len(kept)] = mine
            kept.append(run)
    return kept


def _identity(run: Run, name: str) -> tuple[str, ...]:
    """What is equal of one run's data from several sources. name: where the run is, or empty."""
    where = os.path.realpath(name) if name else f"status {run.status}"
    return run.agent, run.env, run.version, run.seed, run.config_hash, run.software, where


def _scores(rows: Sequence[Row]) -> _Scores:
    """The scores after each step, by metric and step."""
    found: _Scores = {}
    for row in rows:
        key = row.metric, row.step
        found.setdefault(key, Counter())[row.score, row.episodes, row.total_episodes] += 1
    return found


def _same(one: Run, first: _Scores, other: Run, second: _Scores, *, named: bool) -> bool:
    """Whether two runs of one identity are one: no setting and no score contradicts the other's.

    named: both say where the run is. Else all scores of one of them must be among the other's.
    """
    shared = one.settings.keys() & other.settings.keys()
    if any(one.settings[key] != other.settings[key] for key in shared):
        return False
    common = first.keys() & second.keys()
    if not named and len(common) < min(len(first), len(second)):
        return False
    return all(first[key] == second[key] for key in common)


def _merged(one: Run, other: Run) -> Run:
    """One run with the rows and settings of both; the rest is of the one that went further."""
    steps = {(row.metric, row.step) for row in one.rows}
    added = [row for row in other.rows if (row.metric, row.step) not in steps]
    last = [max((row.step for row in run.rows), default=-1) for run in (one, other)]
    base = other if last[1] > last[0] else one
    return replace(
        base,
        rows=tuple(sorted([*one.rows, *added], key=lambda row: row.step)),
        settings={**other.settings, **one.settings},
    )


def check_outputs(inputs: Sequence[Path], outputs: Mapping[str, Path | None]) -> None:
    """Raise UserError where an output would replace an input or another output, or is a directory.

    inputs: files and directories. outputs: by flag, None where it is not given; `--png` is a
    directory, in which pictures are written.
    """
    chosen = {flag: path for flag, path in outputs.items() if path is not None}
    for flag, path in chosen.items():
        if flag != "--png":
            check_file_name(path, flag)
        for given in inputs:
            if given.is_file() and _is_same_file(given, path):
                raise UserError(
                    f"`{flag}` is '{path}', which is the input '{given}' and would be overwritten;"
                    " choose another file."
                )
            if (run := _run_with(path, given)) is not None:
                raise UserError(
                    f"`{flag}` is '{path}', a file of the run '{run}', which is an input and would"
                    " be overwritten; choose another file."
                )
    flags = list(chosen)
    for i, flag in enumerate(flags):
        for other in flags[:i]:
            if _is_same_file(chosen[flag], chosen[other]):
                raise UserError(
                    f"`{other}` and `{flag}` are both '{chosen[flag]}'; expected two files."
                )


def _is_same_file(one: Path, other: Path) -> bool:
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)  # links, and names that differ in case
    except OSError:
        return False


def _run_with(path: Path, given: Path) -> Path | None:
    """The run, at or below the directory `given`, of which `path` is a file; None for others, and
    for tables and pictures."""
    file, root = Path(os.path.realpath(path)), Path(os.path.realpath(given))
    if not file.is_file() or file.suffix.lower() in _OURS or not file.is_relative_to(root):
        return None
    above = [parent for parent in file.parents if parent.is_relative_to(root)]
    runs = [one for one in above if holds(one, "config.json") or holds(one, "pbt.json")]
    return runs[0] if runs else None
