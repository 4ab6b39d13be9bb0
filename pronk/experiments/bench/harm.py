"""Following a run from outside, so as to do it harm: its directory, and its processes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PATIENCE = 120.0  # seconds


class Progress:
    """Of a run, as its directory shows it. What is waited for too long raises TimeoutError."""

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self.output = run_dir.with_name(f"{run_dir.name}.out")  # what `training` has it say

    def said(self) -> str:
        """What its process has said since it began."""
        return self.output.read_text()

    def until(self, condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        """Wait for `condition`, and return what it does."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > deadline:
                said = self.said()[-2000:]
                raise TimeoutError(
                    f"the run in {self.run_dir} did not do what it should. It said:\n{said}"
                )
            time.sleep(0.02)
        return found

    def lines(self, name: str = "metrics.jsonl") -> list[str]:
        """Whole lines of a file of the run."""
        path = self.run_dir / name
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def records(self) -> list[dict[str, Any]]:
        """What it has measured."""
        return [json.loads(line) for line in self.lines()]

    def goes_on(self, records: int = 3) -> None:
        """Wait for so many records more."""
        seen = len(self.lines())
        self.until(lambda: len(self.lines()) >= seen + records)

    def committed(self) -> int:
        """Agent steps of the newest checkpoint; 0 if there is none."""
        names = [p.stem for p in (self.run_dir / "checkpoints").glob("[0-9]*")]
        return max(map(int, names), default=0)


def never_go_back(records: list[dict[str, Any]]) -> bool:
    """Whether steps, updates and episodes only ever grow."""
    names = ("steps", "updates", "episodes")
    return all(a[name] <= b[name] for a, b in itertools.pairwise(records) for name in names)


@contextlib.contextmanager
def training(
    run_dir: Path, *args: str, log_every: float = 0.2
) -> Iterator[tuple[subprocess.Popen[bytes], Progress]]:
    """`pronk train` of these arguments in a process of its own; killed if it is still there."""
    command = [sys.executable, "-m", "pronk", "train", *args, "--run-dir", str(run_dir)]
    command += ["--log-every", str(log_every), "--quiet"]
    run = Progress(run_dir)
    with run.output.open("w") as output:  # a pipe that nobody reads would stop it in the end
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process, run
    finally:
        process.kill()
        process.wait()


def stopped(process: subprocess.Popen[bytes], run: Progress, number: int = signal.SIGINT) -> str:
    """What the run has said, after it was asked to stop and did."""
    process.send_signal(number)
    if process.wait(timeout=PATIENCE):
        raise RuntimeError(f"the run stopped with status {process.returncode}:\n{run.said()}")
    return run.said()


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A process does nothing meanwhile, so that those that wait for it come to rest."""
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(1.0)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def processes(word: str) -> list[int]:
    """Those whose command line has `word` in it."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if word in (path / "cmdline").read_text(errors="replace"):
                found.append(int(path.name))
    return found


def children(pid: int) -> list[int]:
    """The processes that a process has started, and that are not its resource tracker."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and "resource_tracker" not in (path / "cmdline").read_text():
                found.append(int(path.name))
    return found


def descendants(pid: int) -> list[int]:
    """A process's children, theirs, and so on."""
    found = children(pid)
    return found + [below for child in found for below in descendants(child)]
