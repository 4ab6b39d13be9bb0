"""Throughput against the number of actors, the unroll length and the batch size.

    python benchmarks/scaling.py [--seconds 4]

IMPALA on environments that sleep (`pronk/Waiting-v0`, even: 10 ms per step), one actor per
environment, the shallow network. Appends each row to `docs/results/scaling.csv`, skipping rows that
are there, then draws `docs/results/scaling.png`.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pronk.experiments.bench.training import train_for
from pronk.run.resolve import resolve

RESULTS = Path(__file__).parent.parent / "docs" / "results"
ROWS = RESULTS / "scaling.csv"
FIELDS = (
    *("varied", "actors", "unroll", "batch", "steps_per_second"),
    *("policy_lag", "learner_waits_share", "actor_waits_share", "bound_by"),
)
STANDARD = {"actors": 128, "unroll": 20, "batch": 48}
VARIED = {
    "unroll": (1, 5, 10, 20, 40, 80),
    "batch": (1, 4, 16, 48, 96),
    "actors": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
}
PANELS = {  # title, x label
    "unroll": ("128 actors, batch 48", "unroll length (agent steps)"),
    "batch": ("128 actors, unroll 20", "batch size (trajectories)"),
    "actors": ("unroll 20, batch 48 or the number of actors", "actors (one environment each)"),
}
STEPS_PER_ENV = 100  # per second: each step sleeps 10 ms


def measure(actors: int, unroll: int, batch: int, seconds: float) -> dict[str, Any]:
    """The measured columns of one row."""
    plan = resolve(
        "impala",
        "pronk/Waiting-v0",
        env_args={"task": "even"},
        preset="atari",
        torso="shallow",
        actors=actors,
        envs_per_actor=1,
        actor_cores=1,
        unroll=unroll,
        batch_size=batch,
    )
    result = train_for(plan, seconds, warm_seconds=seconds / 3)
    result["steps_per_second"] = result["end_to_end_steps_per_second"]
    return {name: result[name] for name in FIELDS if name in result}


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """One panel for each number that was varied; both axes logarithmic and alike in all panels."""
    figure = Figure(figsize=(12, 3.9), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(VARIED), sharey=True)
    for axis, name in zip(axes, VARIED, strict=True):
        own = [row for row in rows if row["varied"] == name]
        points = sorted((int(row[name]), float(row["steps_per_second"])) for row in own)
        x, y = zip(*points, strict=True)
        axis.plot(x, y, "o-", label="measured, 3 to 4 s for each point")
        if name == "actors":
            limit = [n for n in x if STEPS_PER_ENV * n <= 1.5 * max(y)]
            label = f"limit of the environments: {STEPS_PER_ENV} steps/s each"
            axis.plot(limit, [STEPS_PER_ENV * n for n in limit], ":", color="black", label=label)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(x, [str(n) for n in x], fontsize=8)
        axis.xaxis.set_minor_locator(NullLocator())
        title, label = PANELS[name]
        axis.set_title(title, fontsize="medium")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    ticks = (100, 200, 500, 1000, 2000, 3000)
    axes[0].set_yticks(ticks, [f"{n:,}" for n in ticks])
    axes[0].yaxis.set_minor_locator(NullLocator())
    axes[0].set_ylabel("agent steps per second")
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path)


def main() -> None:
    """Measure the missing rows, then draw."""
    parser = argparse.ArgumentParser(description="Throughput and its limits.")
    parser.add_argument("--seconds", type=float, default=4.0, help="per row, after a warm-up")
    seconds = parser.parse_args().seconds
    if not ROWS.exists():
        with ROWS.open("w", newline="") as file:
            csv.writer(file).writerow(FIELDS)
    with ROWS.open() as file:
        rows = list(csv.DictReader(file))
    header = list(rows[0]) if rows else FIELDS
    done = {(row["varied"], int(row[row["varied"]])) for row in rows}
    for varied, values in VARIED.items():
        for value in values:
            if (varied, value) in done:
                continue
            numbers = STANDARD | {varied: value}
            if varied == "actors":  # an update needs no more trajectories than there are actors
                numbers["batch"] = min(STANDARD["batch"], value)
            row = {"varied": varied, **numbers} | measure(**numbers, seconds=seconds)
            print(json.dumps(row), flush=True)
            with ROWS.open("a", newline="") as file:
                csv.DictWriter(file, header, extrasaction="ignore").writerow(row)
    with ROWS.open() as file:
        draw(list(csv.DictReader(file)), RESULTS / "scaling.png")


if __name__ == "__main__":
    main()
