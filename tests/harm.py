"""Doing harm to a run while it trains: a thread that follows its metrics and strikes in between."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class Progress:
    """Of a run, as its directory shows it."""

    def __init__(self, run_dir: Path, seconds: float = 200.0):
        self._run_dir = run_dir
        self._deadline = time.monotonic() + seconds

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait for `condition`, and return what it does; AssertionError after too long."""
        while not (found := condition()):
            assert time.monotonic() < self._deadline, "waited too long"
            time.sleep(0.02)
        return found

    def lines(self, name: str = "metrics.jsonl") -> list[str]:
        """Whole lines of a file of the run."""
        path = self._run_dir / name
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def goes_on(self, records: int = 3) -> None:
        """Wait for so many records more."""
        seen = len(self.lines())
        self.until(lambda: len(self.lines()) >= seen + records)


def counters(run_dir: Path) -> list[dict[str, int]]:
    """Steps, updates and episodes of each record."""
    records = [json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: r[k] for k in ("steps", "updates", "episodes")} for r in records]


def never_go_back(records: list[dict[str, int]]) -> bool:
    """Whether every counter only ever grows."""
    pairs = itertools.pairwise(records)
    return all(a[name] <= b[name] for a, b in pairs for name in a)


@contextlib.contextmanager
def harmed(
    run_dir: Path, harm: Callable[[Progress], None], *, survives: bool = True
) -> Iterator[None]:
    """Have a thread do `harm` to what trains within; a run that survives is then interrupted."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            progress = Progress(run_dir)
            harm(progress)
            if survives:
                progress.goes_on()
        except BaseException as error:
            errors.append(error)
        if survives or errors:
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()
    assert not errors, errors


@contextlib.contextmanager
def training(run_dir: Path, *args: str) -> Iterator[tuple[subprocess.Popen[str], Progress]]:
    """`pronk train` of these arguments in a process of its own; killed if it is still there."""
    command = [sys.executable, "-m", "pronk", "train", *args, "--run-dir", str(run_dir)]
    process = subprocess.Popen(
        [*command, "--log-every", "0.2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process, Progress(run_dir)
    finally:
        process.kill()
        process.wait()


def processes(word: str) -> list[int]:
    """Those whose command line begins with, or names, `word`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if word in (path / "cmdline").read_text():
                found.append(int(path.name))
    return found
