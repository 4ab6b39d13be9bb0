"""MuZero trained with different numbers of simulations, and evaluated with the same, on a small
board.

Schrittwieser et al. 2020, "MuZero" (arXiv:1911.08265), figure 3D.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pronk.experiments.reproduce import common, matrix, planning
from pronk.experiments.reproduce.common import Row, select, unique
from pronk.experiments.reproduce.planning import AGAINST_PERFECT, MOVES_KEPT
from pronk.experiments.reproduce.settings import Simulations
from pronk.report.runs import EVALUATION
from pronk.run.setup import configure_jax

NAME = "muzero-simulations"
TRAINED, EVALUATED = (2, 4, 8, 16, 32), 32
QUICK = (2, 8, 32)
PLAYED = (0, EVALUATED)  # simulations with which moves are compared with the solution
HEADER = ["task", "variant", "seed", "simulations", "moves_kept"]


def variants(trained: Sequence[int]) -> dict[str, dict[str, int]]:
    """What differs between the runs, by name."""
    return {
        f"{count} simulations": {"simulations": count, "evaluation_simulations": EVALUATED}
        for count in trained
    }


def run(settings: Simulations, *, output: Path, results: Path) -> str:
    """Train the missing runs, measure their play, then write the tables and the figure."""
    configure_jax()
    settings, names = planning.choose(settings, share=100)
    trained = variants(QUICK if settings.quick else TRAINED)
    given = {"seeds": settings.seeds, "steps": settings.steps}
    done = [one for name in names for one in planning.train(output, name, trained, **given)]
    matrix.write(done, results, NAME, f"pronk reproduce {NAME}, {settings.steps:,} agent steps")
    rows = [
        [one.task, one.variant, one.seed, simulations, f"{value:.6g}"]
        for simulations in PLAYED
        for one, value in zip(done, planning.moves_kept(output, done, simulations), strict=True)
    ]
    common.write_csv(results / f"{NAME}-play.csv", HEADER, rows)
    figure = matrix.draw_curves(results, NAME, metric=EVALUATION, label=AGAINST_PERFECT)
    scores, played = (common.read_csv(results / f"{NAME}-{x}.csv") for x in ("scores", "play"))
    return "\n\n".join([table(scores, played), figure])


def table(scores: Sequence[Row], played: Sequence[Row]) -> str:
    """By the number of simulations in training: the last evaluations' return, and the share of
    moves that keep the value, means over seeds with 95 % intervals."""
    lines = []
    for task in unique(scores, "task"):
        for variant in unique(scores, "variant"):
            key = {"task": task, "variant": variant}
            returns = [x for x in select(scores, "last_evaluations", **key) if np.isfinite(x)]
            cells = [common.interval(returns).short() if returns else "–"]
            for simulations in PLAYED:
                kept = select(played, "moves_kept", simulations=simulations, **key)
                cells.append(common.interval(kept).short())
            lines.append([task, variant, *cells])
    kept = [f"{MOVES_KEPT}, {n} simulations" for n in PLAYED]
    return common.markdown(["task", "trained with", AGAINST_PERFECT, *kept], lines)
