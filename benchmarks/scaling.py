"""Throughput against the number of actors, the unroll length and the batch size.

    python benchmarks/scaling.py [--seconds 4]

IMPALA on environments that wait (`pronk/Waiting-v0`, even: 10 ms per step), an actor for each, the
shallow network. Writes `docs/results/scaling.csv` row by row, and continues with what is missing;
then draws `docs/results/scaling.png`. `model` is the queueing model of `pronk bench architectures`,
with the costs of the parts measured at the beginning.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pronk.experiments.bench.architectures import waiting_costs
from pronk.experiments.bench.queueing import Costs, predict
from pronk.experiments.bench.settings import Architectures
from pronk.experiments.bench.training import train_for
from pronk.run.resolve import resolve

RESULTS = Path(__file__).parent.parent / "docs" / "results"
COSTS = RESULTS / "scaling-costs.json"
ROWS = RESULTS / "scaling.csv"
FIELDS = (
    *("varied", "actors", "unroll", "batch", "steps_per_second", "model"),
    *("policy_lag", "learner_waits_share", "actor_waits_share", "bound_by"),
)
ACTORS, UNROLL, BATCH = 128, 20, 48
VARIED = {
    "unroll": (1, 5, 10, 20, 40, 80),
    "batch": (1, 4, 16, 48, 96),
    "actors": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
}


def costs_of(seconds: float) -> Costs:
    """Of the parts, measured once."""
    if not COSTS.exists():
        costs = waiting_costs(Architectures(envs_per_actor=BATCH, unroll=UNROLL, seconds=seconds))
        COSTS.write_text(json.dumps(costs._asdict(), indent=1) + "\n")
    return Costs(**json.loads(COSTS.read_text()))


def measured(actors: int, unroll: int, batch: int, costs: Costs, seconds: float) -> dict[str, Any]:
    """One row."""
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
    row = {
        "steps_per_second": result["end_to_end_steps_per_second"],
        "model": modelled(actors, unroll, batch, costs),
    }
    return row | {k: result[k] for k in FIELDS if k in result}


def modelled(actors: int, unroll: int, batch: int, costs: Costs) -> float:
    """What the queueing model says."""
    # An update's work is proportional to its steps; what is made for each trajectory, to those.
    share = batch / BATCH
    scaled = costs._replace(
        assemble=costs.assemble * share,
        update=costs.update * share * (unroll + 1) / (UNROLL + 1),
    )
    return predict(
        "impala",
        "even",
        scaled,
        cores=os.cpu_count() or 1,
        actor_cores=1,
        envs_per_actor=actors,
        unroll=unroll,
        batch=batch,
    )


def draw(rows: list[dict[str, str]]) -> None:
    """A panel for each number that was varied."""
    figure, axes = plt.subplots(1, len(VARIED), figsize=(12, 3.6), constrained_layout=True)
    for axis, name in zip(axes, VARIED, strict=True):
        own = sorted((r for r in rows if r["varied"] == name), key=lambda r: int(r[name]))
        x = [int(r[name]) for r in own]
        axis.plot(x, [float(r["steps_per_second"]) for r in own], "o-", label="measured")
        axis.plot(x, [float(r["model"]) for r in own], "s--", label="model")
        if name == "actors":
            axis.plot(x[:8], [100 * n for n in x[:8]], ":", color="grey", label="waiting alone")
            axis.set_yscale("log")
        axis.set_xscale("log", base=2)
        axis.set_xlabel({"unroll": "unroll length", "batch": "batch size"}.get(name, name))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("agent steps per second")
    axes[-1].legend()
    figure.savefig(RESULTS / "scaling.png", dpi=120)


def main() -> None:
    """Measure what is missing, then draw."""
    parser = argparse.ArgumentParser(description="Throughput and its limits.")
    parser.add_argument("--seconds", type=float, default=4.0)
    seconds = parser.parse_args().seconds
    costs = costs_of(seconds)
    if not ROWS.exists():
        with ROWS.open("w", newline="") as file:
            csv.DictWriter(file, FIELDS).writeheader()
    standard = {"actors": ACTORS, "unroll": UNROLL, "batch": BATCH}
    for varied, values in VARIED.items():
        for value in values:
            numbers = standard | {varied: value}
            if varied == "actors":  # an update needs no more trajectories than there are actors
                numbers["batch"] = min(BATCH, value)
            with ROWS.open() as file:
                done = [(r["varied"], int(r[r["varied"]])) for r in csv.DictReader(file)]
            if (varied, value) in done:
                continue
            row = {"varied": varied, **numbers} | measured(**numbers, costs=costs, seconds=seconds)
            print(json.dumps(row), flush=True)
            with ROWS.open("a", newline="") as file:
                csv.DictWriter(file, FIELDS).writerow(row)
    with ROWS.open() as file:
        draw(list(csv.DictReader(file)))


if __name__ == "__main__":
    main()
