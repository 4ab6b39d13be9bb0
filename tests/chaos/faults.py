"""What a run loses, and how soon it recovers, when a part of it dies, stalls or returns NaN.

    python -m tests.chaos.faults [--only learner,ray] [--json FILE]

Each scenario trains in a process of its own on `Fragile-v0` (`tests/chaos/fragile.py`), harms the
run one or more times, and reads the consequences from the run's directory. Environments sleep, so
the speed says how many of them are at work rather than how busy the machine is.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pronk.errors import UserError
from tests.chaos import harm
from tests.chaos.fragile import strike
from tests.chaos.harm import (
    RunWatcher,
    children,
    counters_increase,
    descendants,
    find_processes,
    paused,
    stop,
    training,
)

ENV = "tests.chaos.fragile:Fragile-v0"
LOG_EVERY = 0.25  # seconds; the resolution of the measurements
AVERAGED = 6  # records over which a speed is taken
HANG_AFTER = 2.0  # seconds
CHECKPOINT_EVERY = 1.0  # seconds
RECOVERY = 90.0  # seconds to wait for a recovery
RECOVERED = 0.9  # of the expected speed counts as recovered

# fmt: off
SMALL = (
    "impala", ENV, "--envs-per-actor", "4", "--unroll", "10", "--batch-size", "4",
    "--torso", "mlp", "--hidden-sizes", "16",
)
FLAGS = (
    *SMALL, "--checkpoint-every", str(CHECKPOINT_EVERY), "--hang-after", str(HANG_AFTER),
    "--max-restarts", "100", "--max-env-faults", "100",
)
# fmt: on
THREADS = ("--env-workers", "0")  # environments in the actors' threads
WORKERS = ("--env-workers", "1")  # a process of environments for each actor

Row = dict[str, Any]
Run = tuple[subprocess.Popen[bytes], RunWatcher]


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What is lost, and how soon a run recovers, when a part of it dies, stalls or returns NaN."""

    only: str | None = None
    """Scenarios, separated by commas: environment, ray, node, learner, inference, sigterm,
    environments, disk, checkpoint. [all]"""
    first: bool = False
    """Only the first fault of each scenario."""
    json: str | None = None
    """Write JSON to this file; - for standard output."""


class Target(NamedTuple):
    """A kind of process to kill."""

    flags: tuple[str, ...]  # of a run that has such processes
    find: Callable[[int], list[int]]  # the processes, given the run's
    log: str  # the file of the run that records their deaths


def _ray_actors(pid: int) -> list[int]:
    return sorted({*find_processes("ray::Host")} & {*descendants(pid)})


TARGETS = {
    "environments' process": Target(
        (*FLAGS, "--actors", "1", "--env-workers", "2"), children, "env_faults.log"
    ),
    "actor on Ray": Target(
        (*FLAGS, "--actors", "2", "--ray", "local"), _ray_actors, "actor_faults.log"
    ),
}
PHASES = ("in a step", "idle", "in a write")


def _running(directory: Path, *flags: str) -> contextlib.AbstractContextManager[Run]:
    """A run that has reached its usual speed."""
    return _started(directory, flags, 2 + AVERAGED)


@contextlib.contextmanager
def _started(directory: Path, flags: tuple[str, ...], records: int) -> Iterator[Run]:
    """A run that has written so many records since its start."""
    own = ("--env-arg", f"directory={directory}")
    # A resumed run removes records that are newer than its checkpoint.
    old = set(RunWatcher(directory / "run").lines())
    with training(directory / "run", *flags, *own, log_every=LOG_EVERY) as (process, run):
        try:
            run.wait_for(lambda: len(set(run.lines()) - old) >= records)
        except TimeoutError:
            process.kill()
            raise RuntimeError(f"the run did not start:\n{run.output()}") from None
        yield process, run


def _resume(directory: Path, flags: tuple[str, ...]) -> tuple[str, Row]:
    """Give the same command again until it has learnt something; its output, and part of a row."""
    start = time.perf_counter()
    with _started(directory, flags, 1) as (process, run):
        seconds = time.perf_counter() - start
        output = stop(process, run)
    increase = counters_increase(run.records())
    return output, {"seconds_to_recover": seconds, "counters_go_back": not increase}


def _resumed_steps(output: str) -> int:
    """The agent steps at which a run resumed, according to its output."""
    return int(output.partition("resumed at ")[2].partition(" steps")[0].replace(",", "") or 0)


def _speed(records: list[Row]) -> float:
    """Agent steps per second over the last of these records."""
    first, last = records[-AVERAGED - 1], records[-1]
    return (last["steps"] - first["steps"]) / (last["wall_seconds"] - first["wall_seconds"])


def _recovery(run: RunWatcher, expected: float, since: float) -> float:
    """Seconds until the speed is nearly `expected`; NaN if that takes longer than RECOVERY.

    since: the run's `wall_seconds` when it was harmed.
    """

    def recovered() -> float:
        records = run.records()
        for i in range(AVERAGED, len(records)):
            start = records[i - AVERAGED]["wall_seconds"]
            if start >= since and _speed(records[: i + 1]) >= RECOVERED * expected:
                return max(start - since, 1e-3)
        return 0.0

    with contextlib.suppress(TimeoutError):
        return run.wait_for(recovered, RECOVERY)
    return math.nan


def _consequences(run: RunWatcher, before: float, allowed: float, since: float) -> Row:
    """The recovery to `allowed` times the speed `before`, and the share of that speed kept."""
    seconds = _recovery(run, before * allowed, since)
    run.wait_for_records(AVERAGED)
    return {"seconds_to_recover": seconds, "speed_kept": _speed(run.records()) / before}


def _now(run: RunWatcher) -> float:
    return run.records()[-1]["wall_seconds"]


def _finish(
    rows: list[Row],
    process: subprocess.Popen[bytes],
    run: RunWatcher,
    number: int = signal.SIGINT,
) -> list[Row]:
    """Stop a run; its rows, with the agent steps that its last checkpoint lacks."""
    stop(process, run, number)
    records = run.records()
    end = {
        "lost_steps": max(0, records[-1]["steps"] - run.saved_steps()),
        "counters_go_back": not counters_increase(records),
    }
    return [{**row, **end} for row in rows]


def kill(name: str, directory: Path, limit: int | None) -> list[Row]:
    """kill −9 of a process of a target in a step, while idle and in a write; SIGSTOP of another."""
    target, rows = TARGETS[name], []
    with _running(directory, *target.flags) as (process, run):
        before = _speed(run.records())
        for phase in (*PHASES, "hangs")[:limit]:
            logged, since = len(run.lines(target.log)), _now(run)
            if phase == "idle":
                with paused(process.pid):
                    os.kill(target.find(process.pid)[0], signal.SIGKILL)
            elif phase == "hangs":
                os.kill(target.find(process.pid)[0], signal.SIGSTOP)
            else:
                strike(directory, "step" if phase == "in a step" else "write")
            run.wait_for(lambda logged=logged: len(run.lines(target.log)) > logged)
            fault = f"{'SIGSTOP' if phase == 'hangs' else 'kill −9'}: {name}"
            after = _consequences(run, before, 1.0, since)
            rows.append({"fault": fault, "phase": phase, **after})
        return _finish(rows, process, run)


def node(directory: Path, limit: int | None) -> list[Row]:
    """kill −9 of all processes of a machine of a Ray cluster, while idle and under load.

    The other machine's share of the speed should remain; then another machine joins.
    """
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    assert cluster.address is not None
    fault, rows = "kill −9: machine of a Ray cluster", []
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        flags = (*FLAGS, "--actors", "2", "--ray", cluster.address)
        with _running(directory, *flags) as (process, run):
            before = _speed(run.records())
            for phase in ("idle", "under load")[:limit]:
                since = _now(run)
                with paused(process.pid) if phase == "idle" else contextlib.nullcontext():
                    cluster.remove_node(nodes.pop(), allow_graceful=False)
                # One of two actors is left.
                after = _consequences(run, before, 0.5, since)
                rows.append({"fault": fault, "phase": phase, **after})
                since = _now(run)
                nodes.append(cluster.add_node(num_cpus=1))
                after = _consequences(run, before, 1.0, since)
                rows.append({"fault": fault, "phase": "another joins", **after})
            return _finish(rows, process, run)
    finally:
        cluster.shutdown()


def learner(
    directory: Path,
    limit: int | None,
    name: str = "learner",
    flags: tuple[str, ...] = (*FLAGS, *WORKERS, "--actors", "1"),
    phases: tuple[str, ...] = PHASES,
) -> list[Row]:
    """kill −9 of the learner's process; each time the same command resumes.

    idle: its workers are stopped, so that it waits for them. In a write: of a checkpoint.
    """
    rows: list[Row] = []
    saved, steps, speed = 0, 0, 1.0
    for phase in (*phases[:limit], "stop"):
        start = time.perf_counter()
        with _started(directory, flags, 1) as (process, run):
            if rows:
                resumed = _resumed_steps(run.output())
                rows[-1] |= {
                    "lost_steps": max(0, saved - resumed),
                    "repeated_seconds": max(0, steps - resumed) / speed,
                    "seconds_to_recover": time.perf_counter() - start,
                    "counters_go_back": not counters_increase(run.records()),
                }
            if phase == "stop":
                stop(process, run)
                break
            run.wait_for_records(2 + AVERAGED)
            started = _kill_all(process, run, phase)
            records = run.records()
            saved, steps, speed = run.saved_steps(), records[-1]["steps"], _speed(records)
            rows.append({"fault": f"kill −9: {name}", "phase": phase})
            run.wait_for(lambda pids=started: not any(map(_exists, pids)))
    return rows


def _kill_all(process: subprocess.Popen[bytes], run: RunWatcher, phase: str) -> list[int]:
    """Kill a run's process in this phase; returns its descendants, which must end with it."""
    started = descendants(process.pid)
    if phase == "idle":
        for pid in started:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(1.0)
    elif phase == "in a write":
        run.wait_for(lambda: any((run.run_dir / "checkpoints").glob(".tmp-*")))
    process.kill()
    process.wait()
    for pid in started:  # a stopped process can't notice that its parent is gone
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return started


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def inference_server(directory: Path, limit: int | None) -> list[Row]:
    """kill −9 of the inference server's process, which is the learner's."""
    flags = (*FLAGS, *THREADS, "--actors", "2", "--architecture", "async-batched")
    return learner(directory, limit, "inference server", flags, ("in a step",))


def terminate(directory: Path, limit: int | None) -> list[Row]:
    """SIGTERM, as from a cluster's scheduler."""
    del limit  # one fault only
    with _running(directory, *FLAGS, *WORKERS, "--actors", "2") as (process, run):
        start = time.perf_counter()
        rows = _finish([{"fault": "SIGTERM"}], process, run, signal.SIGTERM)
        return [{**row, "seconds_to_stop": time.perf_counter() - start} for row in rows]


def environments(directory: Path, limit: int | None) -> list[Row]:
    """Environments that stall, return NaN or become slow, in four actors' threads."""
    flags = (*FLAGS, *THREADS, "--actors", "4", "--unroll", "5")
    faults = (
        ("stall", "an environment stalls", "actor_faults.log", 1.0),
        ("nan", "NaN in an observation", "env_faults.log", 1.0),
        ("nan-reward", "NaN in a reward", "env_faults.log", 1.0),
        # A quarter of the actors waits for it.
        ("slow", "an environment becomes 100 × slower", "", 0.75),
    )
    rows = []
    with _running(directory, *flags) as (process, run):
        before = _speed(run.records())
        for what, fault, log, allowed in faults[:limit]:
            logged, since = len(run.lines(log)) if log else 0, _now(run)
            strike(directory, what)
            if log:
                run.wait_for(lambda log=log, logged=logged: len(run.lines(log)) > logged)
            rows.append({"fault": fault, **_consequences(run, before, allowed, since)})
        return _finish(rows, process, run)


def full_disk(directory: Path, limit: int | None) -> list[Row]:
    """The disk is full when the run saves; then there is room again, and the command resumes."""
    del limit  # one fault only
    small = directory / "run"
    small.mkdir()
    # Room for ten checkpoints of 1.6 MB: a run keeps several and writes one beside them.
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        return [{"fault": "the disk is full", "phase": "a small disk can't be mounted here"}]
    flags = (*FLAGS, *THREADS, "--actors", "2")
    try:
        with _running(directory, *flags) as (process, run):
            run.wait_for(run.saved_steps)
            filler = small / "filler"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(1 << 12)):
                    pass
            process.wait(timeout=60)
            printed, saved = run.output(), run.saved_steps()
            filler.unlink()
            explained = (
                process.returncode == 2
                and "free some space" in printed
                and "Traceback" not in printed
            )
        output, after = _resume(directory, flags)
    finally:
        subprocess.run(["umount", str(small)], check=True)
    row = {
        "fault": "the disk is full",
        "phase": "explained" if explained else "NOT explained",
        "lost_steps": max(0, saved - _resumed_steps(output)),
    }
    return [{**row, **after}]


def checkpoints(directory: Path, limit: int | None) -> list[Row]:
    """The newest checkpoint is cut short, has a bit flipped, or claims other shapes."""
    flags = (*FLAGS, *THREADS, "--actors", "2", "--keep-checkpoints", "6")
    with _running(directory, *flags) as (process, run):
        run.wait_for(lambda: len(list((run.run_dir / "checkpoints").glob("[0-9]*"))) >= 5)
        stop(process, run)
    damaged: dict[Path, bytes] = {}  # a run may write a checkpoint of the same name again

    def intact() -> list[Path]:
        paths = sorted((run.run_dir / "checkpoints").glob("[0-9]*"))
        return [p for p in paths if p.read_bytes() != damaged.get(p)]

    rows = []
    for fault in ("a bit flipped", "cut short", "other shapes claimed")[:limit]:
        newest, before = intact()[:-3:-1]
        data = bytearray(newest.read_bytes())
        if fault == "cut short":
            del data[-100:]
        elif fault == "a bit flipped":
            data[len(data) // 2] ^= 1
        else:
            at = data.index(b'"shape":[') + len(b'"shape":[')
            data[at : at + 1] = b"9"
        newest.write_bytes(data)
        damaged[newest] = bytes(data)
        output, after = _resume(directory, flags)
        named = f"checkpoints/{newest.name}" in "".join(output.split())  # lines may be wrapped
        row = {
            "fault": f"newest checkpoint: {fault}",
            "phase": "named" if named else "NOT named",
            "lost_steps": max(0, int(before.stem) - _resumed_steps(output)),
        }
        rows.append({**row, **after})
    return rows


# Each takes an empty directory and how many of its faults to do, None for all.
SCENARIOS: dict[str, Callable[[Path, int | None], list[Row]]] = {
    "environment": partial(kill, "environments' process"),
    "ray": partial(kill, "actor on Ray"),
    "node": node,
    "learner": learner,
    "inference": inference_server,
    "sigterm": terminate,
    "environments": environments,
    "disk": full_disk,
    "checkpoint": checkpoints,
}


def measure(settings: Faults) -> dict[str, Any]:
    """A row for each fault: agent steps lost of those saved, and the recovery."""
    # For the Ray clusters that scenarios start.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.update(harm.importing_this())
    chosen = settings.only.split(",") if settings.only else list(SCENARIOS)
    if unknown := [name for name in chosen if name not in SCENARIOS]:
        raise UserError(f"`--only` has {unknown[0]!r}; known are {', '.join(SCENARIOS)}.")
    rows: list[Row] = []
    for name in chosen:
        with tempfile.TemporaryDirectory() as directory:
            rows += SCENARIOS[name](Path(directory), 1 if settings.first else None)
    return {"cores": os.cpu_count(), "rows": rows}


if __name__ == "__main__":
    harm.main(Faults, measure)
