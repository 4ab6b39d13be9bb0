"""IMPALA without flags on common environments, beside Stable-Baselines3's A2C; three seeds each.

    pip install 'gymnasium[box2d,classic-control,toy-text]'
    python -m venv build/peers/sb3-defaults
    build/peers/sb3-defaults/bin/pip install torch==2.13.0
    build/peers/sb3-defaults/bin/pip install -r benchmarks/peers/requirements-sb3-defaults.txt
    python benchmarks/defaults.py [ENV ...] [--systems impala a2c] [--seeds 3] [--runs DIR]

Run again, it trains only the runs that have no result yet. Writes `docs/results/defaults.csv` (one
line per point of a curve, training end and evaluation) and `docs/results/defaults.png`; prints the
table.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import pronk
from pronk.experiments.reproduce import common

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
PEER = ROOT / "build" / "peers" / "sb3-defaults" / "bin" / "python"
STEPS = 300_000
POINTS = 20  # of a curve
EPISODES = 100
# Agent steps of an evaluation's episode: CliffWalking has no time limit, and a greedy policy that
# has not learnt it stays where it is.
MAX_STEPS = 1000
ENVS = (
    *("CartPole-v1", "Acrobot-v1", "LunarLander-v3", "MountainCar-v0", "FrozenLake-v1"),
    *("CliffWalking-v1", "Taxi-v4", "Pendulum-v1", "toy_box:ToyBox-v0"),
)
SYSTEMS = {"impala": "pronk IMPALA", "a2c": "Stable-Baselines3 A2C"}


def impala(env: str, seed: int, directory: Path) -> dict[str, Any]:
    """Train and evaluate one seed of IMPALA with its defaults."""
    run_dir = directory / "run"
    summary = pronk.train("impala", env, steps=STEPS, seed=seed, run_dir=run_dir, quiet=True)
    if summary["status"] != "finished":
        raise SystemExit("interrupted; the same command resumes")
    greedy = pronk.load(run_dir).evaluate(episodes=EPISODES, max_steps=MAX_STEPS)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if "mean_return" in record]
    curve = []
    for at in np.linspace(STEPS / POINTS, STEPS, POINTS):
        before = [r for r in records if r["steps"] <= at] or records[:1]
        curve.append((before[-1]["steps"], _number(before[-1]["mean_return"])))
    return {
        "curve": curve,
        "final": _number(summary["mean_return"]),
        "greedy": greedy.mean_return,
        "wall_seconds": round(summary["wall_seconds"], 1),
        "version": version("pronk"),
    }


def _number(value: float | None) -> float:
    """NaN where no episode has ended yet."""
    return math.nan if value is None else value


def a2c(python: Path, env: str, seed: int, directory: Path) -> dict[str, Any]:
    """Train and evaluate one seed of A2C."""
    output = directory / "measured.json"
    script = Path(__file__).parent / "peers" / "sb3_defaults.py"
    sizes = [f"--steps={STEPS}", f"--seed={seed}", f"--max-steps={MAX_STEPS}"]
    if not output.exists():
        subprocess.run([python, script, env, output, *sizes], check=True)
    return json.loads(output.read_text())


def measure(system: str, env: str, seed: int, args: argparse.Namespace) -> None:
    """One run, unless its result exists."""
    directory = args.runs / system / short(env) / str(seed)
    if (directory / "result.json").exists():
        return
    if system == "impala":
        result = impala(env, seed, directory)
    else:
        result = a2c(args.python, env, seed, directory)
    result |= {"system": SYSTEMS[system], "env": short(env), "seed": seed}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "result.json").write_text(json.dumps(result))
    print(*(f"{k} {result[k]}" for k in ("system", "env", "seed", "final", "greedy")), flush=True)


def short(env: str) -> str:
    """The environment's name without its module."""
    return env.split(":")[-1]


def write(results: list[dict[str, Any]]) -> None:
    """The table of all points, in long form."""
    rows = []
    for result in results:
        head = [result["system"], result["env"], result["seed"]]
        rows += [[*head, "training", int(at), f"{value:.6g}"] for at, value in result["curve"]]
        rows += [[*head, kind, STEPS, f"{result[kind]:.6g}"] for kind in ("final", "greedy")]
    header = ["system", "env", "seed", "kind", "steps", "mean_return"]
    common.write_csv(RESULTS / "defaults.csv", header, rows)


def curve_of(result: dict[str, Any]) -> np.ndarray:
    """A curve's mean returns, `[POINTS]`, of which the last is that of the end."""
    return np.array([value for _, value in result["curve"][:-1]] + [result["final"]], float)


def best_and_end(result: dict[str, Any]) -> tuple[float, float]:
    """The largest mean return of a curve, and the one at its end."""
    curve = curve_of(result)
    return float(np.nanmax(curve)), float(curve[-1])


def table(results: list[dict[str, Any]]) -> str:
    """A row per environment: final and greedy returns of each seed, and the largest fall from a
    seed's best point to its end."""
    lines = []
    for env in map(short, ENVS):
        cells = [f"`{env}`"]
        for system in SYSTEMS.values():
            own = [r for r in results if (r["env"], r["system"]) == (env, system)]
            for kind in ("final", "greedy"):
                cells.append(", ".join(f"{r[kind]:.4g}" for r in own))
            falls = sorted(map(best_and_end, own), key=lambda pair: pair[1] - pair[0])
            cells.append("{:.4g} → {:.4g}".format(*falls[0]) if own else "")
        lines.append(cells)
    heads = [f"{system}, {what}" for system in ("IMPALA", "A2C") for what in HEADS]
    return common.markdown(["environment", *heads], lines)


HEADS = ("training", "greedy", "largest fall")


def draw(results: list[dict[str, Any]]) -> Path:
    """One panel per environment: each seed's curve, thin, and their mean."""
    figure, axes = common.panels(3, 3, 4.0, 2.8)
    for axis, env in zip(axes.flat, map(short, ENVS), strict=True):
        for i, system in enumerate(SYSTEMS.values()):
            own = [r for r in results if (r["env"], r["system"]) == (env, system)]
            curves = np.array([curve_of(r) for r in own])
            if not len(curves):
                continue
            x = np.linspace(STEPS / POINTS, STEPS, POINTS) / 1000
            style = {"color": common.COLOURS[i]}
            axis.plot(x, curves.T, linewidth=0.7, alpha=0.6, **style)
            axis.plot(x, curves.mean(axis=0), linewidth=2, label=system, **style)
        axis.set_title(env, fontsize="medium")
    for axis in axes[-1]:
        axis.set_xlabel("agent steps (thousands)")
    figure.supylabel("mean return of the last 100 episodes")
    note = "thin: seeds; thick: their mean"
    return common.save(figure, RESULTS / "defaults.png", note)


def main() -> None:
    """Train the runs that have no result yet, then write the table and figure of all results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("envs", nargs="*", metavar="ENV", help=f"of {list(map(short, ENVS))}")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "defaults")
    parser.add_argument("--python", type=Path, default=PEER, help="with Stable-Baselines3")
    args = parser.parse_args()
    known = {short(env): env for env in ENVS}
    if unknown := [name for name in args.envs if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    for name in args.envs or known:
        for seed in range(args.seeds):
            for system in args.systems:
                measure(system, known[name], seed, args)
    paths = sorted(args.runs.glob("*/*/*/result.json"))
    results = [json.loads(path.read_text()) for path in paths]
    results.sort(key=lambda r: (list(known).index(r["env"]), r["system"], r["seed"]))
    write(results)
    print(table(results), draw(results), sep="\n\n")


if __name__ == "__main__":
    main()
