"""Train for long with a fault every few seconds, and check that nothing grows.

    python -m tests.chaos.soak [--seconds 1800] [--every 10] [--json FILE]

Sampled are the learner's process (memory, descriptors, threads) and what a run could leave behind:
processes and blocks of shared memory. `growth` decides; the tests check that it finds a leak.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.chaos import harm
from tests.chaos.faults import SMALL, WORKERS
from tests.chaos.fragile import strike
from tests.chaos.harm import children, counters_increase, descendants, stop, training

SAMPLE_EVERY = 1.0  # seconds
WARM_UP = 0.25  # share of the run during which growth is allowed
# How much larger each may be at the end than after the warm-up: relatively, absolutely.
ALLOWED = {
    "memory_mib": (0.05, 20.0),
    "descriptors": (0.0, 8.0),
    "threads": (0.0, 4.0),
    "processes": (0.0, 1.0),
    "blocks": (0.0, 1.0),
}
# Faults inside environments' processes, and signals that they get from outside.
STRIKES = ("step", "write", "nan", "nan-reward", "stall")
SIGNALS = (signal.SIGKILL, signal.SIGSTOP)
# fmt: off
FLAGS = (
    *SMALL, *WORKERS, "--actors", "3", "--hang-after", "6", "--checkpoint-every", "2",
    "--max-restarts", "100000", "--max-env-faults", "100000", "--steps", "1_000_000_000",
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Soak:
    """A run with a fault every few seconds: do memory, descriptors, threads or processes grow?"""

    seconds: float = 1800.0
    """How long to train."""
    every: float = 10.0
    """Seconds between faults."""
    json: str | None = None
    """Write JSON to this file; - for standard output."""


def sample(pid: int) -> dict[str, float]:
    """What a run's process holds now, its child processes and shared memory."""
    process = Path(f"/proc/{pid}")
    status = dict(
        line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line
    )
    return {
        "memory_mib": int(status["VmRSS"].split()[0]) / 1024,
        "descriptors": len(list((process / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "processes": len(children(pid)),
        "blocks": len(list(Path("/dev/shm").glob(f"pronk-{pid}-*"))),
    }


def growth(samples: Sequence[dict[str, float]]) -> dict[str, dict[str, float | bool]]:
    """For each quantity its level after the warm-up and at the end, and whether that is flat.

    Levels are medians of a quarter of the samples after the warm-up.
    """
    result: dict[str, dict[str, float | bool]] = {}
    after = samples[int(len(samples) * WARM_UP) :]
    quarter = max(1, len(after) // 4)
    for name, (share, most) in ALLOWED.items():
        values = [s[name] for s in after]
        first, last = (float(np.median(part)) for part in (values[:quarter], values[-quarter:]))
        flat = last - first <= max(share * first, most)
        result[name] = {"after_warming_up": first, "at_the_end": last, "flat": flat}
    return result


def _longest_silence(records: Sequence[dict[str, Any]]) -> float:
    """The most seconds between two records."""
    walls = [record["wall_seconds"] for record in records]
    return max(b - a for a, b in itertools.pairwise(walls))


def _harm(rng: random.Random, directory: Path, pid: int) -> None:
    """One fault: inside an environment's process, or a signal to one."""
    if rng.random() < 0.5:
        strike(directory, rng.choice(STRIKES))
    else:
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(rng.choice(children(pid)), rng.choice(SIGNALS))


def measure(settings: Soak) -> dict[str, Any]:
    """A row for each sampled quantity, and what remains after the run is interrupted."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        flags = (*FLAGS, "--env-arg", f"directory={directory}")
        process, run = stack.enter_context(training(directory / "run", *flags))
        run.wait_for_records(5)
        samples, faults = [], 0
        start = time.monotonic()
        due = start + settings.every
        while (now := time.monotonic()) - start < settings.seconds:
            if process.poll() is not None:
                raise RuntimeError(f"the run ended:\n{run.output()}")
            samples.append(sample(process.pid))
            if now >= due:
                due += settings.every
                faults += 1
                _harm(rng, directory, process.pid)
            time.sleep(SAMPLE_EVERY)
        started = descendants(process.pid)
        run.wait_for_records(1)
        records = run.records()
        stop(process, run)
        orphans = sum(Path(f"/proc/{pid}").exists() for pid in started)
        blocks = len(list(Path("/dev/shm").glob(f"pronk-{process.pid}-*")))
        logged = len(run.lines("actor_faults.log")), len(run.lines("env_faults.log"))
    grown = growth(samples)
    return {
        "seconds": settings.seconds,
        "faults": faults,
        "lines_in_actor_faults_log": logged[0],
        "lines_in_env_faults_log": logged[1],
        "agent_steps": records[-1]["steps"],
        "counters_go_back": not counters_increase(records),
        "longest_silence_seconds": _longest_silence(records),
        "orphans": orphans,
        "blocks_left": blocks,
        "flat": all(bool(x["flat"]) for x in grown.values()),
        "rows": [{"what": what, **values} for what, values in grown.items()],
    }


if __name__ == "__main__":
    harm.main(Soak, measure)
