"""What is lost, and how soon a run is itself again, when something of it dies, hangs or lies.

Each scenario trains in a process of its own on environments that wait (`bench/fragile.py`), harms
it one or more times, and reads from the run's directory what came of it. Speeds are of waiting
environments, so that they say how much of a run is at work and not how busy the machine is.
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
from pathlib import Path
from typing import Any, NamedTuple

from pronk.errors import UserError
from pronk.experiments.bench.fragile import strike
from pronk.experiments.bench.harm import (
    Progress,
    children,
    descendants,
    frozen,
    never_go_back,
    processes,
    stopped,
    training,
)
from pronk.experiments.bench.settings import Faults

ENV = "pronk.experiments.bench.fragile:Fragile-v0"
LOG_EVERY = 0.25  # seconds; the resolution of what is measured
AVERAGED = 6  # records, over which a speed is taken
HANG_AFTER = 2.0  # seconds
CHECKPOINT_EVERY = 1.0
RECOVERY = 90.0  # seconds after which it is said that it never was
ITSELF = 0.9  # of the speed that it should have, from which on a run is itself again

Row = dict[str, Any]
Run = tuple[subprocess.Popen[bytes], Progress]


class Target(NamedTuple):
    """What is killed, and how a run is started that has one."""

    flags: tuple[str, ...]
    victims: Callable[[int], list[int]]  # processes, of the run's
    log: str  # where its deaths are told


def _flags(*more: str) -> tuple[str, ...]:
    return (
        *(
            "impala",
            ENV,
            "--envs-per-actor",
            "4",
            "--unroll",
            "10",
            "--batch-size",
            "4",
            "--hidden-sizes",
            "16",
        ),
        *("--checkpoint-every", str(CHECKPOINT_EVERY), "--hang-after", str(HANG_AFTER)),
        *("--torso", "mlp", "--max-restarts", "100", "--max-env-faults", "100", *more),
    )


def _hosts(pid: int) -> list[int]:
    return sorted({*processes("ray::Host")} & {*descendants(pid)})


TARGETS = {
    "environments' process": Target(
        _flags("--actors", "1", "--env-workers", "2"), children, "env_faults.log"
    ),
    "actor's process": Target(
        _flags("--actors", "2", "--actor-kind", "process"), children, "actor_faults.log"
    ),
    "actor on Ray": Target(_flags("--actors", "2", "--ray", "local"), _hosts, "actor_faults.log"),
}
PHASES = ("idle", "in a step", "in a write")


def _running(directory: Path, *flags: str) -> contextlib.AbstractContextManager[Run]:
    """A run that has come to its usual speed."""
    return _started(directory, flags, 2 + AVERAGED)


@contextlib.contextmanager
def _started(directory: Path, flags: tuple[str, ...], records: int) -> Iterator[Run]:
    """A run from when it has made so many records."""
    mine = ("--env-arg", f"directory={directory}")
    # A run that is resumed takes back those of its past that were not committed.
    old = set(Progress(directory / "run").lines())
    with training(directory / "run", *flags, *mine, log_every=LOG_EVERY) as (process, run):
        try:
            run.until(lambda: len(set(run.lines()) - old) >= records)
        except TimeoutError:
            process.kill()
            raise RuntimeError(f"the run did not start:\n{run.said()}") from None
        yield process, run


def _again(directory: Path, flags: tuple[str, ...]) -> tuple[str, int, float]:
    """The same command once more, until it has learnt something: what it said, the agent steps from
    which it went on, and how many seconds that took."""
    began = time.perf_counter()
    with _started(directory, flags, 1) as (process, run):
        seconds = time.perf_counter() - began
        out = stopped(process, run)
    return out, _resumed(out), seconds


def _resumed(out: str) -> int:
    """The agent steps from which a run went on, by what it said."""
    return int(out.partition("resumed at ")[2].partition(" steps")[0].replace(",", "") or 0)


def _speed(records: list[Row]) -> float:
    """Agent steps per second over the last of these records."""
    first, last = records[-AVERAGED - 1], records[-1]
    return (last["steps"] - first["steps"]) / (last["wall_seconds"] - first["wall_seconds"])


def _recovery(run: Progress, expected: float, since: float) -> float:
    """Seconds until the speed, over a few records, is what is expected, or near it; NaN if that was
    waited for too long.

    since: `wall_seconds` of the run when the harm was done.
    """

    def itself() -> float:
        records = run.records()
        for i in range(AVERAGED, len(records)):
            began = records[i - AVERAGED]["wall_seconds"]
            if began >= since and _speed(records[: i + 1]) >= ITSELF * expected:
                return max(began - since, 1e-3)
        return 0.0

    with contextlib.suppress(TimeoutError):
        return run.until(itself, RECOVERY)
    return math.nan


def _afterwards(run: Progress, before: float, allowed: float, since: float) -> Row:
    """How soon the speed was what it should be, `allowed` × that before, and what was kept."""
    seconds = _recovery(run, before * allowed, since)
    run.goes_on(AVERAGED)
    return {"seconds_to_recover": seconds, "speed_kept": _speed(run.records()) / before}


def _now(run: Progress) -> float:
    return run.records()[-1]["wall_seconds"]


def _ended(process: subprocess.Popen[bytes], run: Progress) -> Row:
    """What a run has lost that was asked to stop: nothing, if it has saved its last step."""
    stopped(process, run)
    records = run.records()
    return {
        "lost_steps": max(0, records[-1]["steps"] - run.committed()),
        "counters_go_back": not never_go_back(records),
    }


def killed(name: str, directory: Path) -> Iterator[Row]:
    """kill −9 of one of the processes of a target, while it is idle, in a step and in a write; and
    one that hangs."""
    target = TARGETS[name]
    with _running(directory, *target.flags) as (process, run):
        before = _speed(run.records())
        rows = []
        for phase in (*PHASES, "hangs"):
            told, since = len(run.lines(target.log)), _now(run)
            if phase == "idle":
                with frozen(process.pid):
                    os.kill(target.victims(process.pid)[0], signal.SIGKILL)
            elif phase == "hangs":
                os.kill(target.victims(process.pid)[0], signal.SIGSTOP)
            else:
                strike(directory, "step" if phase == "in a step" else "write")
            run.until(lambda told=told: len(run.lines(target.log)) > told)
            fault = f"{'SIGSTOP' if phase == 'hangs' else 'kill −9'}: {name}"
            after = _afterwards(run, before, 1.0, since)
            rows.append({"fault": fault, "phase": phase, **after})
        ended = _ended(process, run)
    for row in rows:
        yield {**row, **ended}


def node(directory: Path) -> Iterator[Row]:
    """kill −9 of all processes of a machine of a Ray cluster, while idle, in steps, in transfers.

    The others' share of the speed is what it should keep; another machine then takes its place.
    """
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    assert cluster.address is not None
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        flags = _flags("--actors", "2", "--ray", cluster.address)
        with _running(directory, *flags) as (process, run):
            before = _speed(run.records())
            rows = []
            for phase in ("idle", "under load"):
                since = _now(run)
                with frozen(process.pid) if phase == "idle" else contextlib.nullcontext():
                    cluster.remove_node(nodes.pop(), allow_graceful=False)
                # One of two actors is left.
                rows.append({"phase": phase, **_afterwards(run, before, 0.5, since)})
                since = _now(run)
                nodes.append(cluster.add_node(num_cpus=1))
                rows.append({"phase": "another joins", **_afterwards(run, before, 1.0, since)})
            ended = _ended(process, run)
    finally:
        cluster.shutdown()
    for row in rows:
        yield {"fault": "kill −9: machine of a Ray cluster", **row, **ended}


def learner(
    directory: Path,
    name: str = "learner",
    flags: tuple[str, ...] = _flags("--actors", "1", "--actor-kind", "process"),
    phases: tuple[str, ...] = PHASES,
) -> Iterator[Row]:
    """kill −9 of the learner's process; then the same command again, to which the next is done.

    idle: its actors are stopped, so that it waits for them. In a write: of a checkpoint.
    """
    row: Row = {}
    committed = last = 0
    speed = 1.0
    for phase in (*phases, ""):
        began = time.perf_counter()
        with _started(directory, flags, 1) as (process, run):
            seconds = time.perf_counter() - began
            started = []
            if phase:
                run.goes_on(2 + AVERAGED)
                started = _kill_all(process, run, phase)
            else:
                process.send_signal(signal.SIGINT)
            process.wait()
            if row:
                resumed = _resumed(run.said())
                yield {
                    **row,
                    "lost_steps": max(0, committed - resumed),
                    "repeated_seconds": max(0, last - resumed) / speed,
                    "seconds_to_recover": seconds,
                    "counters_go_back": not never_go_back(run.records()),
                }
            if phase:
                row = {"fault": f"kill −9: {name}", "phase": phase}
                committed, last = run.committed(), run.records()[-1]["steps"]
                speed = _speed(run.records())
                run.until(lambda pids=started: not any(map(_exists, pids)))


def _kill_all(process: subprocess.Popen[bytes], run: Progress, phase: str) -> list[int]:
    """Kill a run's process in this phase; what it had started, and what must end with it."""
    started = descendants(process.pid)
    if phase == "idle":
        for pid in started:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(1.0)
    elif phase == "in a write":
        run.until(lambda: any((run.run_dir / "checkpoints").glob(".tmp-*")))
    process.kill()
    process.wait()
    for pid in started:  # those that were stopped can't see that their parent is gone
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return started


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def inference_server(directory: Path) -> Iterator[Row]:
    """The process of the inference server, which is the learner's."""
    flags = _flags("--actors", "2", "--architecture", "async-batched")
    yield from learner(directory, "inference server", flags, ("in a step",))


def terminated(directory: Path) -> Iterator[Row]:
    """SIGTERM, as from a cluster's scheduler."""
    with _running(directory, *_flags("--actors", "2", "--actor-kind", "process")) as (process, run):
        began = time.perf_counter()
        stopped(process, run, signal.SIGTERM)
        seconds = time.perf_counter() - began
        last = run.records()[-1]["steps"]
    yield {
        "fault": "SIGTERM",
        "lost_steps": max(0, last - run.committed()),
        "seconds_to_stop": seconds,
    }


def environments(directory: Path) -> Iterator[Row]:
    """Environments that stall, lie, or become slow, of four actors in processes."""
    flags = _flags("--actors", "4", "--actor-kind", "process", "--unroll", "5")
    with _running(directory, *flags) as (process, run):
        before = _speed(run.records())
        rows = []
        for what, fault, log, allowed in (
            ("nan", "NaN in an observation", "env_faults.log", 1.0),
            ("nan-reward", "NaN in a reward", "env_faults.log", 1.0),
            ("stall", "an environment stalls", "actor_faults.log", 1.0),
            # A quarter of the actors waits for it.
            ("slow", "an environment becomes 100 × slower", "", 0.75),
        ):
            told, since = len(run.lines(log)) if log else 0, _now(run)
            strike(directory, what)
            if log:
                run.until(lambda log=log, told=told: len(run.lines(log)) > told)
            rows.append({"fault": fault, **_afterwards(run, before, allowed, since)})
        ended = _ended(process, run)
    for row in rows:
        yield {**row, **ended}


def full_disk(directory: Path) -> Iterator[Row]:
    """The disk is full when the run saves; then there is room again, and the same command."""
    small = directory / "run"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield {"fault": "the disk is full", "phase": "a small disk can't be mounted here"}
        return
    flags = _flags("--actors", "2")
    try:
        with _running(directory, *flags) as (process, run):
            run.until(lambda: run.committed())
            filler = small / "filler"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(1 << 12)):
                    pass
            process.wait(timeout=60)
            out = run.said()
            committed = run.committed()
            filler.unlink()
            told = process.returncode == 2 and "free some space" in out and "Traceback" not in out
        _, resumed, seconds = _again(directory, flags)
    finally:
        subprocess.run(["umount", str(small)], check=True)
    yield {
        "fault": "the disk is full",
        "phase": "told in a paragraph" if told else "NOT told",
        "lost_steps": max(0, committed - resumed),
        "seconds_to_recover": seconds,
    }


def checkpoints(directory: Path) -> Iterator[Row]:
    """The newest checkpoint is cut short, has a bit flipped, or claims other shapes."""
    flags = _flags("--actors", "2", "--keep-checkpoints", "6")
    with _running(directory, *flags) as (process, run):
        run.until(lambda: len(list((run.run_dir / "checkpoints").glob("[0-9]*"))) >= 5)
        stopped(process, run)
    damaged: dict[Path, bytes] = {}  # what was made of them; a run may write them anew

    def whole() -> list[Path]:
        found = sorted((run.run_dir / "checkpoints").glob("[0-9]*"))
        return [p for p in found if p.read_bytes() != damaged.get(p)]

    for fault in ("cut short", "a bit flipped", "other shapes claimed"):
        newest, before = whole()[:-3:-1]
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
        out, resumed, seconds = _again(directory, flags)
        named = f"checkpoints/{newest.name}" in "".join(out.split())  # lines may break anywhere
        yield {
            "fault": f"newest checkpoint: {fault}",
            "phase": "named" if named else "NOT named",
            "lost_steps": max(0, int(before.stem) - resumed),
            "seconds_to_recover": seconds,
        }


SCENARIOS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "environment": lambda directory: killed("environments' process", directory),
    "actor": lambda directory: killed("actor's process", directory),
    "ray": lambda directory: killed("actor on Ray", directory),
    "node": node,
    "learner": learner,
    "inference": inference_server,
    "sigterm": terminated,
    "environments": environments,
    "disk": full_disk,
    "checkpoint": checkpoints,
}


def measure(settings: Faults) -> dict[str, Any]:
    """A row per fault: what was lost of what was committed, and how it went on."""
    # Of the Ray clusters that are started here.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    chosen = settings.only.split(",") if settings.only else list(SCENARIOS)
    if unknown := [name for name in chosen if name not in SCENARIOS]:
        raise UserError(f"`--only` has {unknown[0]!r}; known are {', '.join(SCENARIOS)}.")
    rows = []
    for name in chosen:
        with tempfile.TemporaryDirectory() as directory:
            rows += list(SCENARIOS[name](Path(directory)))
    return {"cores": os.cpu_count(), "rows": rows}
