"""Four Atari games, one agent, raw rewards: Hessel et al. 2018's Atari-57 (unclipped), very small.

PopArt-IMPALA beside IMPALA with raw rewards and with clipped rewards, the same in all else. Points
differ between the games: Pong 1, Breakout 1 to 7, Space Invaders 5 to 200, Crazy Climber 100 and
more. A run is an ordinary one, and resumes where it was interrupted.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pronk.experiments.reproduce import common
from pronk.experiments.reproduce.common import select
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


def run(settings: PopArtAtari, *, output: Path, results: Path) -> str:
    """Train the missing runs, then write the tables and the figure."""
    if settings.quick:
        steps, episodes = max(1, settings.steps // 25), min(2, settings.episodes)
        settings = dataclasses.replace(settings, steps=steps, episodes=episodes)
    curves, evaluated = [], {}
    for name, (_, overrides) in AGENTS.items():
        agent = {**COMMON, **overrides}
        identity = {**agent, "env": ENV, "seed": settings.seed, "episodes": settings.episodes}
        cell = f"{name}-{settings.seed}-{settings.steps}"
        work = partial(_train, output / cell, agent, settings)
        result = common.cached(output, cell, identity, work)
        for steps, *returns in result["curve"]:
            curves.append([name, settings.seed, steps, *(f"{x:.6g}" for x in returns)])
        evaluated[name] = [result["played"][f"ALE/{game}-v5"] for game in GAMES]
    header = ["agent", "seed", "steps", *GAMES]
    common.write_csv(results / "popart-atari.csv", header, curves)
    rows = [
        [name, settings.seed, game, f"{value:.6g}", f"{_human(game, value):.4g}"]
        for name, returns in evaluated.items()
        for game, value in zip(GAMES, returns, strict=True)
    ]
    header = ["agent", "seed", "game", "mean_return", "human_normalised"]
    common.write_csv(results / "popart-atari-played.csv", header, rows)
    return f"{table(evaluated)}\n\n{draw(results)}"


def _train(run_dir: Path, agent: dict[str, Any], settings: PopArtAtari) -> dict[str, Any]:
    summary = train(
        "impala", ENV, steps=settings.steps, seed=settings.seed, run_dir=run_dir, **agent
    )
    if summary["status"] != "finished":
        raise KeyboardInterrupt
    names = [f"return/ALE/{game}-v5" for game in GAMES]
    curve = [
        [record["steps"], *(record[name] for name in names)]
        for _, record in read_lines(run_dir / "metrics.jsonl")
        if all(record.get(name) is not None for name in names)
    ]
    evaluation = load(run_dir).evaluate(episodes=settings.episodes, sample=True)
    assert isinstance(evaluation, SuiteEvaluation)
    returns = {name: task.mean_return for name, task in evaluation.tasks.items()}
    return {"curve": curve, "played": returns, "seconds": summary["wall_seconds"]}


def _human(game: str, value: Any) -> Any:
    return scores.normalize(value, scores.ATARI[game])


def table(evaluated: dict[str, list[float]]) -> str:
    """A table of agents by games, human-normalised in brackets, and the aggregates."""
    lines = []
    for name, (words, _) in AGENTS.items():
        human = [_human(game, value) for game, value in zip(GAMES, evaluated[name], strict=True)]
        aggregates = scores.aggregates(human)
        cells = [f"{v:,.1f} ({h:.1%})" for v, h in zip(evaluated[name], human, strict=True)]
        cells += [f"{aggregates[k]:.1%}" for k in ("median", "mean", "mean_capped")]
        lines.append([words, *cells])
    return common.markdown(["", *GAMES, "median", "mean", "mean capped"], lines)


def draw(results: Path) -> Path:
    """Draw the learning curves from the table in `results`."""
    rows = common.read_csv(results / "popart-atari.csv")
    figure, (axes,) = common.panels(1, len(GAMES), 3.4, 3.2)
    for game, axis in zip(GAMES, axes, strict=True):
        for i, (name, (words, _)) in enumerate(AGENTS.items()):
            steps, returns = (np.array(select(rows, k, agent=name)) for k in ("steps", game))
            axis.plot(steps / 1e6, _human(game, returns), color=common.COLOURS[i], label=words)
        axis.set_title(game)
        axis.set_xlabel("agent steps of all games\n(millions)")
    axes[0].set_ylabel("human-normalised return\n(0: random, 1: human)")
    note = "one seed; mean return of the last 100 episodes while training"
    return common.save(figure, results / "popart-atari.png", note)
