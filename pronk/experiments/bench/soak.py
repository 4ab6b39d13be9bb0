"""A run with a fault every few seconds, watched for whatever grows.

Sampled are the learner's process (memory, descriptors, threads) and what a run could leave behind:
its processes, and its blocks of shared memory. `growth` decides; a leak made on purpose is found by
the same call (`tests/test_faults.py`).
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
from pathlib import Path
from typing import Any

import numpy as np

from pronk.experiments.bench.faults import ENV
from pronk.experiments.bench.fragile import strike
from pronk.experiments.bench.harm import children, descendants, never_go_back, stopped, training
from pronk.experiments.bench.settings import Soak

SAMPLE_EVERY = 1.0  # seconds
WARM = 0.25  # the share of a run in which it is allowed to grow
# By how much each may be larger at the end than after that: a share of it, and absolutely.
ALLOWED = {
    "memory_mib": (0.05, 20.0),
    "descriptors": (0.0, 8.0),
    "threads": (0.0, 4.0),
    "processes": (0.0, 1.0),
    "blocks": (0.0, 1.0),
}
# Faults of environments and of their processes, and what is done to those from outside.
STRIKES = ("step", "write", "nan", "nan-reward", "stall")
SIGNALS = (signal.SIGKILL, signal.SIGSTOP)


def sample(pid: int) -> dict[str, float]:
    """What a run's process has now, and what it has started and not yet taken away."""
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
    """By name: how much there was after warming up and at the end, as medians of a quarter of the
    samples that follow, and whether it was flat."""
    found: dict[str, dict[str, float | bool]] = {}
    after = samples[int(len(samples) * WARM) :]
    quarter = max(1, len(after) // 4)
    for name, (share, most) in ALLOWED.items():
        values = [s[name] for s in after]
        first, last = (float(np.median(part)) for part in (values[:quarter], values[-quarter:]))
        flat = last - first <= max(share * first, most)
        found[name] = {"after_warming_up": first, "at_the_end": last, "flat": flat}
    return found


def _longest_silence(records: Sequence[dict[str, Any]]) -> float:
    """Seconds between two records, in which nothing was learnt."""
    walls = [record["wall_seconds"] for record in records]
    return max(b - a for a, b in itertools.pairwise(walls))


def measure(settings: Soak) -> dict[str, Any]:
    """Rows of what was watched, and what was left behind when the run had been interrupted."""
    rng = random.Random(0)
    flags = (
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
        *("--torso", "mlp", "--actors", "3", "--actor-kind", "process", "--hang-after", "3"),
        *("--max-restarts", "100000", "--max-env-faults", "100000", "--checkpoint-every", "2"),
        *("--steps", "1_000_000_000"),
    )
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        mine = ("--env-arg", f"directory={directory}")
        process, run = stack.enter_context(training(directory / "run", *flags, *mine))
        run.goes_on(5)
        samples, faults = [], 0
        begin = time.monotonic()
        due = begin + settings.every
        while (now := time.monotonic()) - begin < settings.seconds:
            if process.poll() is not None:
                raise RuntimeError(f"the run ended:\n{run.said()}")
            samples.append(sample(process.pid))
            if now >= due:
                due += settings.every
                faults += 1
                if rng.random() < 0.5:
                    strike(directory, rng.choice(STRIKES))
                else:
                    with contextlib.suppress(ProcessLookupError, IndexError):
                        os.kill(rng.choice(children(process.pid)), rng.choice(SIGNALS))
            time.sleep(SAMPLE_EVERY)
        started = descendants(process.pid)
        run.goes_on(1)
        records = run.records()
        stopped(process, run)
        orphans = sum(Path(f"/proc/{pid}").exists() for pid in started)
        blocks = len(list(Path("/dev/shm").glob(f"pronk-{process.pid}-*")))
        lost = len(run.lines("actor_faults.log")), len(run.lines("env_faults.log"))
    found = growth(samples)
    return {
        "seconds": settings.seconds,
        "faults": faults,
        "lines_in_actor_faults_log": lost[0],
        "lines_in_env_faults_log": lost[1],
        "agent_steps": records[-1]["steps"],
        "counters_go_back": not never_go_back(records),
        "longest_silence_seconds": _longest_silence(records),
        "orphans": orphans,
        "blocks_left": blocks,
        "flat": all(bool(x["flat"]) for x in found.values()),
        "rows": [{"what": what, **values} for what, values in found.items()],
    }
