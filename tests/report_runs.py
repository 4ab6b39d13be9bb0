"""Runs to report on, and `pronk report` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pronk import cli

FEW = ("--bootstrap", 200)


def make_run(
    path: Path,
    *,
    agent: str = "impala",
    env: str = "ALE/Pong-v5",
    seed: int = 0,
    returns: Sequence[float | None] = (1.0, 2.0, 3.0),
    evaluations: Sequence[float | None] | None = None,
    episodes: int = 20,
    every: int = 1000,
    rate: float = 0.01,
    pronk: str = "0.1.0",
    status: str | None = "finished",
    env_args: Mapping[str, Any] | None = None,
    extra: Callable[[int], Mapping[str, Any]] = lambda i: {},
) -> Path:
    """A run's directory, with a record after each `every` steps and as many evaluations."""
    path.mkdir(parents=True)
    config = {
        "format": 2,
        "pronk": pronk,
        "agent": agent,
        "env": env,
        "preset": "small",
        "run": {"steps": every * len(returns), "seed": seed, "eval_episodes": episodes},
        "agent_config": {"learning_rate": rate},
        "env_args": dict(env_args or {}),
    }
    (path / "config.json").write_text(json.dumps(config))
    records = []
    for i, value in enumerate(returns):
        record: dict[str, Any] = {
            "steps": every * (i + 1),
            "wall_seconds": 1.5 * i,
            "mean_return": value,
            "episodes": 150 * (i + 1),
            **extra(i),
        }
        records.append(record)
        if evaluations is not None:
            found = {"eval/mean_return": evaluations[i], "eval/episodes": episodes}
            records.append(record | found)
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    if status is not None:
        (path / "summary.json").write_text(json.dumps({"status": status}))
    return path


def run_report(*args: object) -> int:
    """The exit status of `pronk report`."""
    try:
        cli.main(["report", *map(str, args)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def printed(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    assert run_report(*args) == 0
    captured = capsys.readouterr()
    assert not captured.err
    return captured.out


def flat(text: str) -> str:
    """Text without the line ends of a terminal."""
    return " ".join(text.split())


def row(text: str, *begin: str) -> list[str]:
    """The cells of the table's line that begins with these cells."""
    lines = [line.split() for line in text.splitlines()]
    (found,) = [cells for cells in lines if cells[: len(begin)] == list(begin)]
    return found[len(begin) :]


def fails(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The paragraph of a user's mistake."""
    assert run_report(*args) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("pronk: ")
    return captured.err
