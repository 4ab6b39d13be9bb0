"""Actors on a Ray cluster of one machine beside actors in this process's threads, in turns.

    python benchmarks/cluster.py breakout --rounds 3 --seconds 20
    python benchmarks/cluster.py waiting --seconds 20

breakout writes docs/results/ray.csv: agent steps per second of each, and their ratio. waiting
writes docs/results/ray-waiting.csv: 8 actors with 1,024 environments that sleep, the share of the
speed that these allow, and the share of the time that the learner waits.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

from pronk.envs.waiting import STEP_SECONDS
from pronk.experiments.bench.training import train_for
from pronk.run.resolve import resolve

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PLACES: dict[str, dict[str, Any]] = {"threads": {}, "ray": {"ray": "local"}}
ACTORS, ENVS = 8, 128


def breakout(rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Train on Breakout with two actors of 16 environments."""
    rows = []
    for i in range(rounds):
        row: dict[str, Any] = {"round": i}
        for place, placement in PLACES.items():
            plan = resolve("impala", "ALE/Breakout-v5", actors=2, envs_per_actor=16, **placement)
            result = train_for(plan, seconds)
            row[f"{place}_steps_per_second"] = round(result["end_to_end_steps_per_second"])
            row[f"{place}_learner_waits"] = round(result["learner_waits_share"], 3)
            row[f"{place}_lag"] = round(result["policy_lag"], 2)
        row["ratio"] = round(row["ray_steps_per_second"] / row["threads_steps_per_second"], 3)
        print(row, flush=True)
        rows.append(row)
    return rows


def waiting(seconds: float) -> list[dict[str, Any]]:
    """1,024 environments of 84 × 84 × 4 pixels, a small network, steps of 0.3 s."""
    rows, scale = [], 30.0
    limit = ACTORS * ENVS / (STEP_SECONDS * scale)
    for place, placement in PLACES.items():
        plan = resolve(
            "impala",
            "pronk/Waiting-v0",
            env_args={"task": "even", "scale": scale},
            actors=ACTORS,
            envs_per_actor=ENVS,
            torso="mlp",
            hidden_sizes=(32,),
            batch_size=64,
            unroll=20,
            **placement,
        )
        result = train_for(plan, seconds, warm_seconds=20 * STEP_SECONDS * scale * 4)
        speed = result["end_to_end_steps_per_second"]
        rows.append(
            {
                "step_seconds": STEP_SECONDS * scale,
                "place": place,
                "environments_allow": round(limit),
                "steps_per_second": round(speed),
                "share": round(speed / limit, 3),
                "learner_waits": round(result["learner_waits_share"], 3),
                "actor_steps": round(result["actor_steps_share"], 3),
                "actor_infers": round(result["actor_infers_share"], 3),
                "actor_waits": round(result["actor_waits_share"], 3),
                "lag": round(result["policy_lag"], 2),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["breakout", "waiting"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    if args.what == "breakout":
        rows, name = breakout(args.rounds, args.seconds), "ray.csv"
    else:
        rows, name = waiting(args.seconds), "ray-waiting.csv"
    with (RESULTS / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
