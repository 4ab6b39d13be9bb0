"""The runs of a report: what their directories and long CSVs hold."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pronk.config.json_files import MissingJSON, holds, read_object
from pronk.config.spec import identity
from pronk.errors import UserError
from pronk.report.references import split_version
from pronk.storage.files import is_number, read_lines

EVALUATION, TRAINING = "evaluation", "training"
WINDOW = 100  # episodes that a training record averages


@dataclass(frozen=True)
class Row:
    """One score of a run: the mean return of `episodes` episodes that ended by `step`."""

    step: int  # agent steps
    metric: str  # EVALUATION or TRAINING
    score: float
    wall_seconds: float | None = None
    episodes: int | None = None  # None: not known
    # Of training: all episodes that have ended so far. None: the rows do not share episodes.
    total_episodes: int | None = None


@dataclass(frozen=True)
class Run:
    """One run, in one of its tasks if it has several."""

    agent: str
    env: str  # without its version
    version: str  # of the environment, such as v5; empty where there is none
    seed: str
    rows: tuple[Row, ...]  # in the order of steps
    name: str = ""  # where it was found
    config_hash: str = ""  # of the settings that decide what is learnt, without the seed
    software: str = ""  # what trained it
    status: str = ""  # "finished", "unfinished", …; empty where not known
    # Settings to group by: dotted names, or the further columns of a CSV.
    settings: Mapping[str, str] = field(default_factory=dict)
    damage: str = ""  # why nothing could be read of it; empty where it could

    def of(self, metric: str) -> list[Row]:
        """The rows of one metric."""
        return [row for row in self.rows if row.metric == metric]


def directories(path: Path) -> list[Path]:
    """The directories of the runs and populations at or below `path`.

    Raises UserError where there is none.
    """
    if not path.exists():
        raise UserError(f"there is no '{path}'; give directories of runs, or CSVs of a report.")
    found = list(_below(path))
    if not found:
        raise UserError(
            f"'{path}' holds no run: there is no config.json in it, nor in a directory below it."
            " Give the directory of a run made by `pronk train`, or one that holds such."
        )
    return found


def _below(path: Path) -> Iterator[Path]:
    if holds(path, "pbt.json") or holds(path, "config.json"):
        yield path
    else:
        for parent, names, _ in os.walk(path):
            names.sort()
            inner = [Path(parent, name) for name in names]
            runs = [one for one in inner if holds(one, "config.json") or holds(one, "pbt.json")]
            names[:] = [one.name for one in inner if one not in runs]
            for one in runs:
                yield from _below(one)


def read_run(path: Path) -> list[Run]:
    """The run in a directory: one `Run`, or one for each task of a suite.

    Raises UserError where a file is damaged, or a score is not a number.
    """
    config = read_object(path / "config.json")
    try:
        settings = _settings(config)
        seed, agent, env = settings["run.seed"], str(config["agent"]), str(config["env"])
        plain = {**identity(config), "seed": None}
        hashed = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]
    except (KeyError, TypeError, AttributeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"`{path / 'config.json'}` is not the configuration of a run ({why}); it was damaged,"
            " or written by another program: put back a copy of it."
        ) from None
    records = _records(path)
    keys = {key for record in records for key in record}
    tasks = sorted(
        key.removeprefix("eval/").removeprefix("return/")
        for key in keys
        if key.startswith(("return/", "eval/return/"))
    )
    arguments = "&".join(f"{k}={_text(v)}" for k, v in sorted(config["env_args"].items()))
    result = []
    for task in dict.fromkeys(tasks) or (None,):
        name, version = split_version(env if task is None else task)
        if arguments:
            name += ("&" if "?" in name else "?") + arguments
        result.append(
            Run(
                agent=agent,
                env=name,
                version=version,
                seed=seed,
                rows=tuple(_rows(path, records, task, config)),
                name=str(path),
                config_hash=hashed,
                software=f"pronk {config.get('pronk', '(unknown)')}",
                status=_status(path),
                settings=settings,
            )
        )
    return result


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """All settings by dotted names, as text."""
    found = {name: _text(config.get(name, "")) for name in ("agent", "env", "preset")}
    for part in ("run", "agent_config", "env_args"):
        found |= {f"{part}.{name}": _text(value) for name, value in config[part].items()}
    return found


def _records(path: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl`; empty where nothing was recorded yet."""
    try:
        records = [record for _, record in read_lines(path / "metrics.jsonl", _refuse)]
    except MissingJSON:
        return []
    return sorted(records, key=lambda record: record["steps"])


def _refuse(problem: str) -> None:
    raise UserError(
        f"{problem}; the file was damaged: put back a copy of it, or leave this run out."
    )


def _rows(
    path: Path, records: Sequence[Mapping[str, Any]], task: str | None, config: Mapping[str, Any]
) -> Iterator[Row]:
    """The scores in the records, of one task of a suite or of the only one."""
    suffix = "mean_return" if task is None else f"return/{task}"
    for record in records:
        step, total = int(record["steps"]), None if task else _whole(record, "episodes")
        seconds = _number(record, "wall_seconds")
        if (value := record.get(suffix)) is not None:
            window = None if total is None else min(total, WINDOW)
            score = _score(path, step, suffix, value)
            yield Row(step, TRAINING, score, seconds, window, total)
        if (key := f"eval/{suffix}") in record:
            episodes = _whole(record, "eval/episodes")
            if episodes is None:
                episodes = _whole(config["run"], "eval_episodes")
            yield Row(step, EVALUATION, _score(path, step, key, record[key]), seconds, episodes)


def _number(record: Mapping[str, Any], name: str) -> float | None:
    value: Any = record.get(name)
    return float(value) if is_number(value) else None


def _whole(record: Mapping[str, Any], name: str) -> int | None:
    """A number of episodes; None where there were none, or where it is not known."""
    value = _number(record, name)
    return int(value) if value is not None and value >= 1 else None


def _score(path: Path, step: int, key: str, value: Any) -> float:
    """A score; of an evaluation, null stands for NaN and infinities."""
    if not is_number(value):
        raise UserError(
            f"`{path / 'metrics.jsonl'}` has `{key}` {value} at {step:,} steps; expected a finite"
            " number: the environment's rewards were not finite, or the file was damaged. Leave"
            " this run out, or train it again."
        )
    return float(value)


def _status(path: Path) -> str:
    """How a run ended, or why it has not."""
    try:
        return str(read_object(path / "summary.json").get("status", "unfinished"))
    except MissingJSON:
        diverged = holds(path, "diverged.safetensors")
        return "diverged" if diverged else "unfinished"
