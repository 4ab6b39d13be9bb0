"""Actors on a one-machine Ray cluster beside actors in processes: Breakout, in turns.

    python benchmarks/cluster.py --rounds 3 --seconds 20

Writes docs/results/ray.csv, a row per round: agent steps per second of each, and their ratio.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

from pronk.bench.training import train_for
from pronk.plan import resolve

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "ray.csv"


def measure(seconds: float, **where: Any) -> dict[str, Any]:
    """Training on Breakout with two actors of 16 environments."""
    plan = resolve("impala", "ALE/Breakout-v5", actors=2, envs=16, **where)
    return train_for(plan, seconds)


def main() -> None:
    """Measure in turns, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    rows = []
    for i in range(args.rounds):
        found = {
            "processes": measure(args.seconds, actor_kind="process"),
            "ray": measure(args.seconds, ray="local"),
        }
        speed = {k: v["end_to_end_steps_per_second"] for k, v in found.items()}
        rows.append(
            {
                "round": i,
                **{f"{k}_steps_per_second": round(v) for k, v in speed.items()},
                "ratio": round(speed["ray"] / speed["processes"], 3),
                **{
                    f"{k}_learner_waits": round(v["learner_waits_share"], 3)
                    for k, v in found.items()
                },
                **{f"{k}_lag": round(v["policy_lag"], 2) for k, v in found.items()},
            }
        )
        print(rows[-1], flush=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
