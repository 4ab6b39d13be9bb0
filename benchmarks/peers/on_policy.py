"""PPO and TRPO beside other libraries: the same networks, batches and passes, on all cores.

    pip install -e '.[mujoco]'
    python -m venv build/peers/sb3-on-policy
    build/peers/sb3-on-policy/bin/pip install torch==2.13.0
    build/peers/sb3-on-policy/bin/pip install -r benchmarks/peers/requirements-sb3-on-policy.txt
    python benchmarks/peers/on_policy.py [--seconds 30] [--rounds 3] [CASE ...]

The systems of a case take turns, round by round, so that a noisy machine affects all. Writes
`docs/results/peers_on_policy.csv`: agent steps per second while training, per round, with versions;
prints the ratios of each round. Stable-Baselines3 gets the fastest of several settings; pronk has
one.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PEER = ROOT / "build" / "peers" / "sb3-on-policy" / "bin" / "python"
RESULTS = ROOT / "docs" / "results" / "peers_on_policy.csv"


class Case(NamedTuple):
    """A comparison: pronk's settings, and the peer's script, which has its own by case name."""

    agent: str
    env: str
    settings: dict[str, Any]
    peer: str  # script beside this file


# Networks of policy and value are 64-64 tanh each. On MuJoCo, observations are standardised.
SHARED: dict[str, Any] = {"preset": "paper", "value_normalisation": "none"}
CASES = {
    # Batches of 2,048 transitions in minibatches of 64, ten passes [PPO paper, table 3].
    "ppo-halfcheetah": Case(
        "ppo", "HalfCheetah-v4", {**SHARED, "unroll": 256, "batch_size": 8}, "sb3_on_policy.py"
    ),
    # Stable-Baselines3's defaults: batches of 2,048, 15 iterations of conjugate gradients, ten
    # passes of the value function in minibatches of 128.
    "trpo-hopper": Case(
        "trpo",
        "Hopper-v4",
        {
            **SHARED,
            "unroll": 256,
            "batch_size": 8,
            "cg_iterations": 15,
            "value_passes": 10,
            "value_minibatch_size": 128,
        },
        "sb3_on_policy.py",
    ),
    # RL Baselines3 Zoo's setting: 8 environments, batches of 256 in one minibatch, 20 passes.
    "ppo-cartpole": Case(
        "ppo",
        "pronk/CartPole-v1",
        {
            **SHARED,
            "runtime": "fused",
            "unroll": 32,
            "batch_size": 8,
            "minibatch_size": 256,
            "passes": 20,
            "observation_normalisation": False,
            "reward_normalisation": False,
        },
        "sb3_on_policy.py",
    ),
    # PureJaxRL's setting: batches of 512 in four minibatches, four passes; a hand-written script.
    "ppo-cartpole-jax": Case(
        "ppo",
        "pronk/CartPole-v1",
        {
            **SHARED,
            "runtime": "fused",
            "unroll": 128,
            "batch_size": 4,
            "minibatch_size": 128,
            "passes": 4,
            "observation_normalisation": False,
            "reward_normalisation": False,
            "value_clip": 0.2,
            "entropy_cost": 0.01,
            "learning_rate": "linear:2.5e-4:0",
        },
        "jax_ppo.py",
    ),
}


def measure_pronk(name: str, seconds: float) -> dict[str, Any]:
    """A row for pronk, measured in this process."""
    from pronk.experiments.bench.training import train_for
    from pronk.run.resolve import resolve

    case = CASES[name]
    plan = resolve(case.agent, case.env, steps=10**9, **case.settings)
    result = train_for(plan, seconds)
    runtime = case.settings.get("runtime", "local")
    return {
        "system": f"pronk {case.agent.upper()}",
        "version": f"{version('pronk')}, jax {version('jax')}",
        "setting": f"{case.settings['batch_size']} environments, {runtime} runtime",
        "steps_per_second": result["end_to_end_steps_per_second"],
    }


def last_json(command: list[Any]) -> dict[str, Any]:
    """The JSON object on the last line that a command prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.strip().splitlines()[-1])


FIELDS = ("case", "round", "system", "version", "setting", "steps_per_second")


def write(rows: list[dict[str, Any]]) -> None:
    """Write the rows, and keep those of other cases."""
    kept: list[dict[str, Any]] = []
    if RESULTS.exists():
        measured = {row["case"] for row in rows}
        with RESULTS.open() as file:
            kept = [row for row in csv.DictReader(file) if row["case"] not in measured]
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows([*kept, *rows])


def main() -> None:
    """Measure, write, and print the ratios."""
    parser = argparse.ArgumentParser(description="PPO and TRPO beside other libraries.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} [all]")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", type=Path, default=PEER, help="of the peers' environment")
    parser.add_argument("--pronk-alone", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pronk_alone:
        print(json.dumps(measure_pronk(args.pronk_alone, args.seconds)))
        return
    if unknown := set(args.cases) - {*CASES}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    rows: list[dict[str, Any]] = []
    for i in range(1, args.rounds + 1):
        for name in args.cases or CASES:
            case, seconds = CASES[name], ["--seconds", str(args.seconds)]
            python = sys.executable if case.peer == "jax_ppo.py" else args.python
            ours = last_json([sys.executable, __file__, "--pronk-alone", name, *seconds])
            theirs = last_json([python, HERE / case.peer, "--case", name, *seconds])
            for row in (ours, theirs):
                rows.append({"case": name, "round": i} | {k: row[k] for k in FIELDS if k in row})
            ratio = ours["steps_per_second"] / theirs["steps_per_second"]
            print(f"{i} {name}: {ratio:.2f} × {theirs['system']}", json.dumps([ours, theirs]))
            sys.stdout.flush()
            write(rows)
    for name in args.cases or CASES:
        pairs = [row["steps_per_second"] for row in rows if row["case"] == name]
        ratios = [a / b for a, b in zip(pairs[::2], pairs[1::2], strict=True)]
        print(f"{name}: median ratio {statistics.median(ratios):.2f}, {min(ratios):.2f} at least")


if __name__ == "__main__":
    main()
