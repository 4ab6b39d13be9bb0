"""What R2D2's parts are good for: its ablations (Kapturowski et al. 2019, section 5), small.

The task is Orchard, which has what they are about: rewards of unlike size, games long enough for
the discount to matter, something to remember, and lives. All variants are scored alike: by the raw
rewards of whole games.
"""

from __future__ import annotations

import csv
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pronk.experiments.reproduce.common import interval, once
from pronk.experiments.reproduce.settings import Ablations
from pronk.run.evaluate import Evaluation
from pronk.run.policy import load
from pronk.run.train import train
from pronk.storage.files import read_lines

ENV, ENV_ARGS = "pronk/Orchard-v0", {"rows": 6, "columns": 5}
COMMON = {
    "env_args": ENV_ARGS,
    "runtime": "local",
    "actors": 1,
    "envs_per_actor": 8,
    "samples_per_insert": 8.0,
    "learning_rate": 1e-3,
    "discount": 0.997,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "R2D2": {},
    "Clipped": {"reward_clip": 1.0, "rescaling": "none"},
    "Discount": {"discount": 0.99},
    "Feed-Forward": {"recurrent_core": "none"},
    "reset": {"env_args": {**ENV_ARGS, "life_loss": True}},
    "roll": {"env_args": {**ENV_ARGS, "life_loss": "roll"}},
}
GAMES = 100  # of the greedy evaluation


def run(settings: Ablations) -> str:
    """Train what is missing, then write the table and the picture."""
    if settings.quick:
        settings = dataclasses.replace(settings, seeds=1, steps=settings.steps // 3)
    settings.results.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in range(settings.seeds):
        for variant in VARIANTS:
            name = f"{variant}-{seed}-{settings.steps}"
            work = partial(_train, settings.output / name, variant, seed, settings.steps)
            found.append(once(settings.output, name, {**COMMON, **VARIANTS[variant]}, work))
    return _write(found, settings.results)


def _train(run_dir: Path, variant: str, seed: int, steps: int) -> dict[str, Any]:
    chosen = {**COMMON, **VARIANTS[variant]}
    summary = train(
        "r2d2", ENV, steps=steps, seed=seed, run_dir=run_dir, replay_saved=False, **chosen
    )
    if summary["status"] != "finished":
        raise KeyboardInterrupt
    curve = [
        (record["steps"], record["mean_return"])
        for _, record in read_lines(run_dir / "metrics.jsonl")
        if record.get("mean_return") is not None
    ]
    greedy = load(run_dir).evaluate(episodes=GAMES)
    assert isinstance(greedy, Evaluation)
    return {"variant": variant, "seed": seed, "greedy": greedy.mean_return, "curve": curve}


def _write(found: list[dict[str, Any]], results: Path) -> str:
    """The CSVs, the picture, and the table as text."""
    with (results / "r2d2-ablations.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "seed", "steps", "mean_return"])
        for run in found:
            writer.writerows([run["variant"], run["seed"], *point] for point in run["curve"])
    with (results / "r2d2-ablations-greedy.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "seed", "greedy_return"])
        writer.writerows([run["variant"], run["seed"], run["greedy"]] for run in found)
    picture = results / "r2d2-ablations.png"
    _draw(found, picture)
    lines = ["variant        greedy return (mean over seeds, 95 % interval)"]
    lines += [f"{v:14} {interval(_greedy(found, v))}" for v in VARIANTS]
    return "\n".join([*lines, str(picture)])


def _greedy(found: list[dict[str, Any]], variant: str) -> list[float]:
    return [run["greedy"] for run in found if run["variant"] == variant]


def _draw(found: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    for i, variant in enumerate(VARIANTS):
        curves = [np.array(run["curve"]).T for run in found if run["variant"] == variant]
        grid = np.linspace(max(c[0][0] for c in curves), min(c[0][-1] for c in curves), 200)
        values = np.array([np.interp(grid, *curve) for curve in curves])
        left.plot(grid, values.mean(0), color=f"C{i}", label=variant)
        left.fill_between(grid, values.min(0), values.max(0), color=f"C{i}", alpha=0.15)
        greedy = _greedy(found, variant)
        value = interval(greedy)
        error = [[value.mean - value.low], [value.high - value.mean]]
        right.bar(i, value.mean, color=f"C{i}", alpha=0.6, yerr=error, capsize=3)
        right.plot([i] * len(greedy), greedy, "k.", markersize=4)
    left.set_xlabel("agent steps")
    left.set_ylabel("return, exploring (band: all seeds)")
    left.legend(fontsize=8)
    right.set_xticks(range(len(VARIANTS)), [name.replace("-", "-\n") for name in VARIANTS])
    right.set_ylabel("greedy return after training (95 % intervals)")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
