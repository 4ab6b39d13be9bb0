"""What R2D2's parts are good for: its ablations (Kapturowski et al. 2019, section 5), small.

The task is Orchard, which has what they are about: rewards of different sizes, episodes long enough
for the discount to matter, something to remember, and lives. All variants are scored alike, by the
raw rewards of whole episodes.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pronk.experiments.reproduce import common
from pronk.experiments.reproduce.common import interval, select, unique
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
EPISODES = 100  # of the greedy evaluation


def run(settings: Ablations, *, output: Path, results: Path) -> str:
    """Train the missing runs, then write the tables and the figure."""
    if settings.quick:
        settings = dataclasses.replace(settings, seeds=1, steps=settings.steps // 3)
    curves, greedy = [], []
    for seed in range(settings.seeds):
        for variant in VARIANTS:
            name = f"{variant}-{seed}-{settings.steps}"
            work = partial(_train, output / name, variant, seed, settings.steps)
            result = common.cached(output, name, {**COMMON, **VARIANTS[variant]}, work)
            curves += [[variant, seed, *point] for point in result["curve"]]
            greedy.append([variant, seed, result["greedy"]])
    header = ["variant", "seed", "steps", "mean_return"]
    common.write_csv(results / "r2d2-ablations.csv", header, curves)
    header = ["variant", "seed", "greedy_return"]
    common.write_csv(results / "r2d2-ablations-greedy.csv", header, greedy)
    lines = ["variant        greedy return (mean over seeds, 95 % interval)"]
    lines += [f"{v:14} {interval([x for w, _, x in greedy if w == v])}" for v in VARIANTS]
    return "\n".join([*lines, str(draw(results))])


def _train(run_dir: Path, variant: str, seed: int, steps: int) -> dict[str, Any]:
    settings = {**COMMON, **VARIANTS[variant]}
    summary = train(
        "r2d2", ENV, steps=steps, seed=seed, run_dir=run_dir, replay_saved=False, **settings
    )
    if summary["status"] != "finished":
        raise KeyboardInterrupt
    curve = [
        (record["steps"], record["mean_return"])
        for _, record in read_lines(run_dir / "metrics.jsonl")
        if record.get("mean_return") is not None
    ]
    greedy = load(run_dir).evaluate(episodes=EPISODES)
    assert isinstance(greedy, Evaluation)
    return {"variant": variant, "seed": seed, "greedy": greedy.mean_return, "curve": curve}


def draw(results: Path) -> Path:
    """Draw the figure from the tables in `results`."""
    rows = common.read_csv(results / "r2d2-ablations.csv")
    greedy = common.read_csv(results / "r2d2-ablations-greedy.csv")
    variants = unique(rows, "variant")
    figure, ((left, right),) = common.panels(1, 2, 5.4, 4.0, sharey=True)
    for i, variant in enumerate(variants):
        curves = []
        for seed in unique(rows, "seed"):
            own = {"variant": variant, "seed": seed}
            curves.append([select(rows, k, **own) for k in ("steps", "mean_return")])
        grid = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), 200)
        bands = common.band([np.interp(grid, *curve) for curve in curves])
        common.draw_band(left, grid / 1000, bands, i, variant, linewidth=1.6)
        values = select(greedy, "greedy_return", variant=variant)
        style = {"color": common.COLOURS[i], "marker": "o"}
        common.draw_points(right, [i], [interval(values)], **style)
        right.plot([i + 0.15] * len(values), values, ".", color=common.COLOURS[i], alpha=0.5)
    left.set_xlabel("agent steps (thousands)")
    left.set_ylabel("mean return")
    left.set_title("while training, with exploration")
    right.set_xticks(range(len(variants)), [name.replace("-", "-\n") for name in variants])
    right.set_title("of the final greedy policy (small dots: seeds)")
    note = "mean over seeds; band and bars: 95 % bootstrap interval of the mean"
    return common.save(figure, results / "r2d2-ablations.png", note, columns=6)
