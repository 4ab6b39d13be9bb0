"""Watch a training run from outside: its directory and its processes; stop, pause or harm it."""

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

import tyro

from pronk.errors import UserError
from pronk.experiments.bench import table
from pronk.storage.files import write_json_atomically

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds


def main(settings_class: Any, measure: Callable[[Any], dict[str, Any]]) -> None:
    """The command line of a module of this package: measure, then print a table or JSON."""
    settings = tyro.cli(settings_class)
    try:
        result = measure(settings)
    except UserError as error:
        sys.exit(str(error))
    if settings.json not in (None, "-"):
        write_json_atomically(Path(settings.json), result)
    print(json.dumps(result, indent=2) if settings.json == "-" else table(result))


class RunWatcher:
    """Reads a run's directory while the run goes on."""

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self.output_path = run_dir.with_name(f"{run_dir.name}.out")  # written by `training`

    def output(self) -> str:
        """What the run's process has printed so far."""
        return self.output_path.read_text()

    def wait_for(self, condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        """Wait until `condition()` is true and return its value; raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"the run in {self.run_dir} did not reach the expected state within"
                    f" {seconds:g} s. Its output ends:\n{self.output()[-2000:]}"
                )
            time.sleep(0.02)
        return value

    def lines(self, name: str = "metrics.jsonl") -> list[str]:
        """The complete lines of a file of the run."""
        path = self.run_dir / name
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def records(self) -> list[dict[str, Any]]:
        """The metrics recorded so far."""
        return [json.loads(line) for line in self.lines()]

    def wait_for_records(self, count: int = 3) -> None:
        """Wait for `count` more records."""
        before = len(self.lines())
        self.wait_for(lambda: len(self.lines()) >= before + count)

    def saved_steps(self) -> int:
        """Agent steps of the newest checkpoint; 0 if there is none."""
        names = [p.stem for p in (self.run_dir / "checkpoints").glob("[0-9]*")]
        return max(map(int, names), default=0)


def counters_increase(records: list[dict[str, Any]]) -> bool:
    """Whether steps, updates and episodes never decrease."""
    names = ("steps", "updates", "episodes")
    return all(a[name] <= b[name] for a, b in itertools.pairwise(records) for name in names)


@contextlib.contextmanager
def training(
    run_dir: Path, *args: str, log_every: float = 0.2
) -> Iterator[tuple[subprocess.Popen[bytes], RunWatcher]]:
    """Run `pronk train *args` in a process of its own; kill it on leaving."""
    command = [sys.executable, "-m", "pronk", "train", *args, "--run-dir", str(run_dir)]
    command += ["--log-every", str(log_every), "--quiet"]
    run = RunWatcher(run_dir)
    with run.output_path.open("w") as output:  # an unread pipe would block the run once full
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=importing_this()
        )
    try:
        yield process, run
    finally:
        process.kill()
        process.wait()


def importing_this() -> dict[str, str]:
    """The environment variables with which a process can import this package."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


def stop(process: subprocess.Popen[bytes], run: RunWatcher, number: int = signal.SIGINT) -> str:
    """Signal a run to stop, wait for it, and return its output; raises RuntimeError if it fails."""
    process.send_signal(number)
    if process.wait(timeout=PATIENCE):
        raise RuntimeError(f"the run stopped with status {process.returncode}:\n{run.output()}")
    return run.output()


@contextlib.contextmanager
def harming(
    run_dir: Path, harm: Callable[[RunWatcher], None], *, survives: bool = True
) -> Iterator[None]:
    """Run `harm` in a thread while the body trains; afterwards interrupt a run that survives it."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            run = RunWatcher(run_dir)
            harm(run)
            if survives:
                run.wait_for_records()
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
def paused(pid: int) -> Iterator[None]:
    """Pause a process, and wait a second so that those that depend on it come to rest."""
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(1.0)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def find_processes(word: str) -> list[int]:
    """Processes whose command line contains `word`."""
    pids = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if word in (path / "cmdline").read_text(errors="replace"):
                pids.append(int(path.name))
    return pids


def children(pid: int) -> list[int]:
    """The child processes of a process, without multiprocessing's resource tracker."""
    pids = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and "resource_tracker" not in (path / "cmdline").read_text():
                pids.append(int(path.name))
    return pids


def descendants(pid: int) -> list[int]:
    """A process's children, their children, and so on."""
    pids = children(pid)
    return pids + [below for child in pids for below in descendants(child)]
