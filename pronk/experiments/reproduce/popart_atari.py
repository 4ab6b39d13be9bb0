"""Four Atari games, one agent, raw rewards: Hessel et al. 2018's Atari-57 (unclipped), very small.

PopArt-IMPALA beside IMPALA with rewards as they are and with rewards clipped, the same in all else.
Games whose points differ: Pong 1, Breakout 1 to 7, Space Invaders 5 to 200, Crazy Climber 100 and
more. A run is an ordinary one and goes on where it was interrupted.
"""

from __future__ import annotations

import csv
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pronk.experiments.reproduce.common import once
from pronk.experiments.reproduce.settings import PopArtAtari
from pronk.maths import scores
from pronk.run.evaluate import SuiteEvaluation
from pronk.run.policy import load
from pronk.run.train import train
from pronk.storage.files import read_lines

GAMES = ("Pong", "Breakout", "SpaceInvaders", "CrazyClimber")
ENV = ",".join(f"ALE/{game}-v5" for game in GAMES)
AGENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "popart": (
        "PopArt-IMPALA",
        {"reward_clip": 0.0, "value_normalisation": "popart", "popart_beta": 1e-3},
    ),
    "unclipped": ("IMPALA, unclipped", {"reward_clip": 0.0}),
    "clipped": ("IMPALA, clipped", {}),
}
COMMON: dict[str, Any] = {"actors": 2, "envs_per_actor": 16, "batch_size": 16, "log_every": 10.0}


def run(settings: PopArtAtari) -> str:
    """Train what is missing, then write the table and the picture."""
    if settings.quick:
        settings = dataclasses.replace(
            settings, steps=max(1, settings.steps // 25), episodes=min(2, settings.episodes)
        )
    settings.results.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, (_, chosen) in AGENTS.items():
        chosen = {**COMMON, **chosen}
        what = {**chosen, "env": ENV, "seed": settings.seed, "episodes": settings.episodes}
        cell = f"{name}-{settings.seed}-{settings.steps}"
        work = partial(_train, settings.output / cell, chosen, settings)
        found[name] = once(settings.output, cell, what, work)
    return _write(found, settings)


def _train(run_dir: Path, chosen: dict[str, Any], settings: PopArtAtari) -> dict[str, Any]:
    summary = train(
        "impala", ENV, steps=settings.steps, seed=settings.seed, run_dir=run_dir, **chosen
    )
    if summary["status"] != "finished":
        raise KeyboardInterrupt
    names = [f"return/ALE/{game}-v5" for game in GAMES]
    curve = [
        [record["steps"], *(record[name] for name in names)]
        for _, record in read_lines(run_dir / "metrics.jsonl")
        if all(record.get(name) is not None for name in names)
    ]
    played = load(run_dir).evaluate(episodes=settings.episodes, sample=True)
    assert isinstance(played, SuiteEvaluation)
    returns = {name: found.mean_return for name, found in played.tasks.items()}
    return {"curve": curve, "played": returns, "seconds": summary["wall_seconds"]}


def _human(game: str, value: Any) -> Any:
    return scores.normalize(value, scores.ATARI[game])


def _write(found: dict[str, Any], settings: PopArtAtari) -> str:
    results = settings.results
    with (results / "popart-atari.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["agent", "seed", "steps", *GAMES])
        for name, cell in found.items():
            for steps, *returns in cell["curve"]:
                writer.writerow([name, settings.seed, steps, *(f"{x:.6g}" for x in returns)])
    with (results / "popart-atari-played.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["agent", "seed", "game", "mean_return", "human_normalised"])
        for name, cell in found.items():
            for game in GAMES:
                value = cell["played"][f"ALE/{game}-v5"]
                human = _human(game, value)
                writer.writerow([name, settings.seed, game, f"{value:.6g}", f"{human:.4g}"])
    picture = results / "popart-atari.png"
    _draw(found, picture)
    return f"{table(found)}\n\n{picture}"


def table(found: dict[str, Any]) -> str:
    """Agents by games, human-normalised, and their aggregates, in Markdown."""
    columns = [*GAMES, "median", "mean", "mean capped"]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, (words, _) in AGENTS.items():
        played = [found[name]["played"][f"ALE/{game}-v5"] for game in GAMES]
        human = [_human(game, value) for game, value in zip(GAMES, played, strict=True)]
        of = scores.aggregates(human)
        cells = [f"{value:,.1f} ({h:.1%})" for value, h in zip(played, human, strict=True)]
        cells += [f"{of[k]:.1%}" for k in ("median", "mean", "mean_capped")]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _draw(found: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(GAMES), figsize=(13, 3.4), constrained_layout=True)
    for k, (game, axis) in enumerate(zip(GAMES, axes, strict=True)):
        for name, (words, _) in AGENTS.items():
            curve = np.array(found[name]["curve"])
            if len(curve):
                axis.plot(curve[:, 0] / 1e6, _human(game, curve[:, 1 + k]), label=words)
        axis.set_title(game)
        axis.set_xlabel("million agent steps of all games")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("human-normalised score (training)")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
