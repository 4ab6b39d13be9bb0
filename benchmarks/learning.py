"""Learning results on the small problems, with several seeds each; prints the worst.

    python benchmarks/learning.py [NAME ...] [--runs DIR] [--seeds 5]

The same command resumes an interrupted benchmark. Writes `docs/results/NAME.csv` (the
curves), `docs/results/NAME.png` and `docs/results/learning.csv` (one line per seed).
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pronk
from pronk.experiments.hyperparameters import SMALL
from pronk.run.plot import plot

RESULTS = Path(__file__).parent.parent / "docs" / "results"


@dataclass(frozen=True)
class Claim:
    """A problem, its training settings, and the score to reach."""

    env: str
    steps: int
    target: str
    settings: dict[str, Any] = field(default_factory=dict)
    episodes: int = 100
    agent: str = "impala"
    variant: str = ""  # in the figure's title


# The hyperparameters of the committed results, spelled out: the presets may change.
FIRST = {"preset": "paper", **SMALL}
MEMORY = {**FIRST, "env_args": {"delay": 20}, "unroll": 44}
# R2D2 with few environments: it learns from the replay, however many environments fill it.
FEW = {"actors": 1, "envs_per_actor": 8}
HIDDEN = {"env_args": {"hide_velocities": True}}
CUE = {
    "env_args": {"delay": 40},
    "actors": 1,
    "envs_per_actor": 32,
    "sequence_length": 42,
    "overlap": 20,
    "target_every": 200,
    "learning_rate": 1e-3,
    "replay_capacity": 100_000,
}
NONE = {**CUE, "recurrent_core": "none"}
CLAIMS = {
    "cartpole": Claim("CartPole-v1", 290_000, "≥ 475", FIRST),
    "catch-fused": Claim(
        "pronk/Catch-v0", 300_000, "≥ 0.98", {**FIRST, "runtime": "fused"}, 1000,
        variant="fused runtime",
    ),
    "catch-local": Claim(
        "pronk/Catch-v0", 300_000, "≥ 0.98", {**FIRST, "runtime": "local"}, 1000,
        variant="local runtime",
    ),
    "memory-lstm": Claim(
        "pronk/MemoryCue-v0", 4_000_000, "≥ 0.95", {**MEMORY, "recurrent_core": "lstm"}, 1000,
        variant="with an LSTM",
    ),
    "memory-none": Claim(
        "pronk/MemoryCue-v0", 4_000_000, "chance, 0.25", MEMORY, 1000, variant="feed-forward"
    ),
    "pendulum": Claim("Pendulum-v1", 1_000_000, "≥ −250"),
    "muzero-cartpole": Claim("CartPole-v1", 30_000, "≥ 475", FEW, agent="muzero"),
    "r2d2-cartpole": Claim("CartPole-v1", 200_000, "≥ 475", FEW, agent="r2d2"),
    "r2d2-hidden": Claim(
        "pronk/CartPole-v1", 200_000, "≥ 400", {**HIDDEN, **FEW}, agent="r2d2",
        variant="velocities hidden",
    ),
    "r2d2-memory-lstm": Claim(
        "pronk/MemoryCue-v0", 400_000, "≥ 0.95", CUE, 1000, agent="r2d2", variant="with an LSTM"
    ),
    "r2d2-memory-none": Claim(
        "pronk/MemoryCue-v0", 400_000, "chance, 0.25", NONE, 1000, agent="r2d2",
        variant="feed-forward",
    ),
    **{
        f"{agent}-pendulum": Claim("Pendulum-v1", 10_000, "≥ −170", agent=agent)
        for agent in ("ddpg", "sac")
    },
    "ppo-cartpole": Claim("CartPole-v1", 100_000, "≥ 475", agent="ppo"),
    "ppo-acrobot": Claim("Acrobot-v1", 300_000, "≥ −80", agent="ppo"),
    "ppo-pendulum": Claim("Pendulum-v1", 300_000, "≥ −170", agent="ppo"),
    "ppo-mountain-car": Claim("MountainCarContinuous-v0", 200_000, "≥ 90", agent="ppo"),
    **{
        f"{agent}-cartpole": Claim("pronk/CartPole-v1", 200_000, "≥ 475", agent=agent)
        for agent in ("reinforce", "npg", "tnpg", "trpo")
    },
    **{
        f"{agent}-pendulum": Claim("Pendulum-v1", 300_000, "≥ −250", agent=agent)
        for agent in ("reinforce", "npg", "tnpg", "trpo")
    },
    "rwr-cartpole": Claim("pronk/CartPole-v1", 200_000, "≥ 475", agent="rwr"),
    "rwr-balance": Claim("pronk/CartPoleBalance-v0", 200_000, "≥ 4500", agent="rwr"),
    "reps-cartpole": Claim("pronk/CartPole-v1", 200_000, "none", agent="reps"),
    "reps-balance": Claim("pronk/CartPoleBalance-v0", 200_000, "none", agent="reps"),
    **{
        f"{agent}-cartpole": Claim("pronk/CartPole-v1", 200_000, "≥ 475", agent=agent)
        for agent in ("cem", "cma_es")
    },
    **{
        f"{agent}-balance": Claim("pronk/CartPoleBalance-v0", 300_000, "≥ 4900", agent=agent)
        for agent in ("cem", "cma_es")
    },
}  # fmt: skip


def run(name: str, seed: int, runs: Path) -> dict[str, Any]:
    """Train and evaluate one seed, unless its result exists."""
    claim, run_dir = CLAIMS[name], runs / name / str(seed)
    result_file = run_dir / "result.json"
    if result_file.exists():
        return json.loads(result_file.read_text())
    summary = pronk.train(
        claim.agent,
        claim.env,
        steps=claim.steps,
        seed=seed,
        run_dir=run_dir,
        log_every=1.0,
        **claim.settings,
    )
    if summary["status"] != "finished":
        raise SystemExit("interrupted; the same command resumes")
    greedy = pronk.load(run_dir).evaluate(episodes=claim.episodes)
    result = {
        "problem": name,
        "env": claim.env,
        "seed": seed,
        "target": claim.target,
        "agent_steps": summary["agent_steps"],
        "wall_seconds": round(summary["wall_seconds"], 1),
        "training_return": round(summary["mean_return"], 4),
        "evaluation_return": round(greedy.mean_return, 4),
        "standard_error": round(greedy.standard_error, 4),
        "evaluation_episodes": greedy.episodes,
    }
    result_file.write_text(json.dumps(result, indent=2))
    return result


def title(name: str) -> str:
    """Of a problem's figure."""
    return ", ".join(filter(None, [CLAIMS[name].env, CLAIMS[name].variant]))


def main() -> None:
    """Run the missing seeds, then write the tables and the plots."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {list(CLAIMS)}")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "learning")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in CLAIMS]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(CLAIMS)}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in args.names or CLAIMS:
        results = [run(name, seed, args.runs) for seed in range(args.seeds)]
        plot(
            [args.runs / name / str(seed) for seed in range(args.seeds)],
            RESULTS / f"{name}.png",
            title=title(name),
            csv=RESULTS / f"{name}.csv",
        )
        worst = min(r["evaluation_return"] for r in results)
        print(f"{name}: worst of {args.seeds} seeds {worst} (target {CLAIMS[name].target})")
    paths = sorted(args.runs.glob("*/*/result.json"))
    rows = [json.loads(path.read_text()) for path in paths]
    measured = {row["problem"] for row in rows}
    table = RESULTS / "learning.csv"
    if table.exists():  # keep the rows of other problems
        with table.open() as file:
            rows += [row for row in csv.DictReader(file) if row["problem"] not in measured]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (row["problem"], int(row["seed"]))))


if __name__ == "__main__":
    main()
