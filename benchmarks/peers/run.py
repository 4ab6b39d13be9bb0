"""pronk beside other libraries: Breakout, the shallow network, unroll 20, two cores.

    python benchmarks/peers/run.py setup            # a virtual environment for each peer
    python benchmarks/peers/run.py [--seconds 60] [--rounds 3] [NAME ...]

Each peer runs in a virtual environment of its own under `build/peers`. They take turns, round by
round, so that a noisy machine affects all. Writes `docs/results/peers.csv`: agent steps per second
while training, per round, with versions. `torch` is the learner's update alone, in milliseconds;
`cpprb` sampling and updating 64 of 100,000 priorities, in microseconds.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pronk.experiments.bench.timing import median_seconds
from pronk.replay import SumTree

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ENVIRONMENTS = ROOT / "build" / "peers"
RESULTS = ROOT / "docs" / "results" / "peers.csv"
SCRIPTS = {
    "sb3": "sb3_a2c.py",
    "sample-factory": "sample_factory_appo.py",
    "rllib": "rllib_impala.py",
}


def setup(names: list[str]) -> None:
    """Create the missing virtual environments."""
    for name in names:
        directory = ENVIRONMENTS / name
        done = directory / ".done"
        if done.exists():
            continue
        requirements = HERE / f"requirements-{name}.txt"
        subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
        pip = [directory / "bin" / "python", "-m", "pip", "install", "-q"]
        # torch first and alone: other requirements must not replace its CPU build.
        lines = requirements.read_text().split()
        for torch in [line for line in lines if line.startswith("torch")]:
            subprocess.run([*pip, torch], check=True)
        subprocess.run([*pip, "-r", requirements], check=True)
        done.touch()


def last_json(command: list[Any]) -> dict[str, Any]:
    """The JSON that a command prints last."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    lines = done.stdout.strip().splitlines()
    start = max(i for i, line in enumerate(lines) if line.startswith("{"))
    return json.loads("\n".join(lines[start:]))


def pronk_rows(seconds: float) -> list[dict[str, Any]]:
    """Training with pronk."""
    bench = [sys.executable, "-m", "pronk.cli", "bench"]
    flags = ["--seconds", str(seconds), "--json", "-"]
    result = last_json([*bench, "throughput", *flags])
    envs, batch = result["envs_per_actor"], result["batch_size"]
    setting = f"{result['actors']} actors × {envs} envs, batch {batch}"
    rate = result["end_to_end_steps_per_second"]
    versions = f"{version('pronk')}, jax {version('jax')}"
    row = {"system": "pronk IMPALA", "version": versions, "setting": setting}
    return [row | {"steps_per_second": rate, "limit": result["limit_steps_per_second"]}]


def learner_rows(network: str, seconds: float) -> list[dict[str, Any]]:
    """The update alone, pronk's and then PyTorch's."""
    size = ["--network", network, "--unroll", "20", "--batch-size", "32", "--seconds", str(seconds)]
    bench = [sys.executable, "-m", "pronk.cli", "bench", "learner"]
    ours = last_json([*bench, *size, "--json", "-"])
    python = ENVIRONMENTS / "torch" / "bin" / "python"
    theirs = last_json([python, HERE / "torch_update.py", *size])
    pairs = [
        ("pronk", f"jax {version('jax')}", ours),
        ("PyTorch", theirs["torch"], theirs),
    ]
    return [
        {
            "system": f"{name} update, {network}",
            "version": packages,
            "setting": "unroll 20, batch 32",
            "milliseconds_per_update": result["milliseconds_per_update"],
        }
        for name, packages, result in pairs
    ]


def tree_rows(seconds: float) -> list[dict[str, Any]]:
    """The sum-tree alone, pronk's and then cpprb's."""
    python, items, batch = ENVIRONMENTS / "cpprb" / "bin" / "python", 100_000, 64
    tree, rng = SumTree(items), np.random.default_rng(0)
    tree.set(np.arange(items), rng.random(items))
    index, priority = rng.integers(items, size=batch), rng.random(batch)
    ours = {
        "system": "pronk",
        "version": version("pronk"),
        "sample_microseconds": 1e6 * median_seconds(lambda: tree.sample(batch, rng), seconds),
        "update_microseconds": 1e6 * median_seconds(lambda: tree.set(index, priority), seconds),
    }
    size = ["--items", str(items), "--batch-size", str(batch), "--seconds", str(seconds)]
    theirs = last_json([python, HERE / "cpprb_tree.py", *size])
    setting = f"{batch} of {items:,} priorities"
    return [
        row | {"system": f"{row['system']} sum-tree", "setting": setting} for row in (ours, theirs)
    ]


FIELDS = (
    *("round", "system", "version", "setting", "steps_per_second", "limit"),
    *("milliseconds_per_update", "sample_microseconds", "update_microseconds"),
)


def main() -> None:
    """Set up, or measure and write."""
    parser = argparse.ArgumentParser(description="pronk beside its peers.")
    names = ["pronk", *SCRIPTS, "torch", "cpprb"]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"setup, or of {names}")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    unknown = set(args.names) - {*names, "setup"}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: setup, {', '.join(names)}")
    if "setup" in args.names:
        chosen = [name for name in args.names if name != "setup"] or [*SCRIPTS, "torch", "cpprb"]
        setup(chosen)
        return
    chosen = args.names or names
    kept = []
    if RESULTS.exists():  # keep the rows of other systems
        with RESULTS.open() as file:
            kept = [r for r in csv.DictReader(file) if not is_chosen(r["system"], chosen)]
    rows: list[dict[str, Any]] = []
    for i in range(args.rounds):
        measured: list[dict[str, Any]] = []
        if "pronk" in chosen:
            measured += pronk_rows(args.seconds)
        for name in [name for name in chosen if name in SCRIPTS]:
            python = ENVIRONMENTS / name / "bin" / "python"
            measured.append(
                last_json([python, HERE / SCRIPTS[name], "--seconds", str(args.seconds)])
            )
        if "torch" in chosen:
            for network in ("shallow", "deep"):
                measured += learner_rows(network, args.seconds / 2)
        if "cpprb" in chosen:
            measured += tree_rows(args.seconds / 10)
        for row in measured:
            print(i + 1, json.dumps(row), flush=True)
            rows.append({"round": i + 1} | {k: row[k] for k in FIELDS if k in row})
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows([*kept, *rows])


def is_chosen(system: str, chosen: list[str]) -> bool:
    """Whether a row's system is one of the chosen peers."""
    kinds = {
        "pronk": system == "pronk IMPALA",
        "torch": "update" in system,
        "sb3": system.startswith("Stable"),
        "sample-factory": system.startswith("Sample"),
        "rllib": system.startswith("RLlib"),
        "cpprb": "sum-tree" in system,
    }
    return any(kinds[name] for name in chosen)


if __name__ == "__main__":
    main()
