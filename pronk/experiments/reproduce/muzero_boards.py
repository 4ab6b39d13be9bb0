"""MuZero's play on solved boards after self-play: every line of tic-tac-toe, and Connect Four on a
board of width 5 and height 4 beside its solution.

Schrittwieser et al. 2020, "MuZero" (arXiv:1911.08265), section 4, at a size that can be checked
completely. The same checkpoint plays with the search that it was trained with, and with the policy
network alone (0 simulations).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pronk.envs import board_solver
from pronk.experiments.reproduce import board_play, common, matrix, planning
from pronk.experiments.reproduce.common import Row
from pronk.experiments.reproduce.matrix import Done
from pronk.experiments.reproduce.planning import AGAINST_PERFECT, BOARDS, MOVES_KEPT
from pronk.experiments.reproduce.settings import MuZeroBoards
from pronk.report.runs import EVALUATION
from pronk.run.policy import load
from pronk.run.setup import configure_jax

NAME = "muzero-boards"
HEADER = ["task", "seed", "simulations", "measure", "value"]


def run(settings: MuZeroBoards, *, output: Path, results: Path) -> str:
    """Train the missing runs, measure their play, then write the tables and the figure."""
    configure_jax()
    names = common.choose_tasks(settings.tasks, BOARDS)
    seeds, share = settings.seeds, 1
    if settings.quick:
        names, seeds, share = list(settings.tasks) or list(planning.QUICK), 1, 10
    done = [
        one
        for name in names
        for one in planning.train(
            output,
            name,
            {"MuZero": {}},
            seeds=seeds,
            steps=max(1, BOARDS[name].steps // share),
        )
    ]
    matrix.write(done, results, NAME, f"pronk reproduce {NAME}")
    rows = [row for one in done for row in _measured(output, one)]
    common.write_csv(results / f"{NAME}-play.csv", HEADER, rows)
    figure = matrix.draw_curves(results, NAME, metric=EVALUATION, label=AGAINST_PERFECT)
    return "\n\n".join([table(common.read_csv(results / f"{NAME}-play.csv")), figure])


def _measured(output: Path, one: Done) -> list[list[Any]]:
    """Rows of `HEADER` of a run, for its own number of simulations and for none."""
    trained = load(output / one.run.name).plan.agent_config.simulations
    rows = []
    for simulations in (trained, 0):
        measures = common.cached(
            output,
            f"play-{one.run.name}-{simulations}",
            {"run": one.run.name, "simulations": simulations},
            lambda simulations=simulations: measure(output, one, simulations),
        )
        rows += [[one.task, one.seed, simulations, *row] for row in measures.items()]
    return rows


def measure(output: Path, one: Done, simulations: int) -> dict[str, float]:
    """How well a run's policy plays, by name of the measure."""
    task = BOARDS[one.task]
    board, solution = task.board, board_solver.solve(task.board)
    move = planning.mover(output, one, simulations)
    positions = planning.random_positions(task)
    measured = {MOVES_KEPT: board_play.keeps_value(solution, move, positions)}
    if not board.gravity:
        for side, begins in (("first", True), ("second", False)):
            lines = board_play.exhaustive(board, solution, move, begins=begins)
            measured |= {
                f"lines as {side}": lines.won + lines.drawn + lines.lost,
                f"lines lost as {side}": lines.lost,
                f"wins kept as {side}": lines.wins_kept / max(lines.wins_offered, 1),
            }
        return measured
    openings = planning.openings(task, planning.OPENINGS)
    rng = np.random.default_rng(0)
    share = board_play.against_perfect(board, solution, move, openings, rng)
    return measured | {"games with the opening's value": share}


def table(rows: Sequence[Row]) -> str:
    """Measures by number of simulations: the mean over seeds, and the worst run."""
    lines = []
    for task in common.unique(rows, "task"):
        own = [row for row in rows if row["task"] == task]
        for measure in common.unique(own, "measure"):
            cells = []
            for simulations in common.unique(own, "simulations"):
                key = {"measure": measure, "simulations": simulations}
                values = common.select(own, "value", **key)
                shown = ", ".join(f"{value:.4g}" for value in values)
                cells.append(f"{simulations:.0f}: {shown}")
            lines.append([task, measure, "; ".join(cells)])
    return common.markdown(["task", "measure", "simulations: each seed"], lines)
