"""MuZero's Elo against the number of simulations with which it plays, on a small board.

Schrittwieser et al. 2020, "MuZero" (arXiv:1911.08265), figure 3A. One policy plays itself: each
pair of numbers of simulations plays every opening with both sides. Beside the policy at the end of
training stands that of a run of a quarter of the steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pronk.experiments.reproduce import board_play, common, matrix, planning
from pronk.experiments.reproduce.common import COLOURS, Interval, Row, select, unique
from pronk.experiments.reproduce.matrix import Done
from pronk.experiments.reproduce.planning import BOARDS
from pronk.experiments.reproduce.settings import ThinkingTime
from pronk.maths import elo
from pronk.run.setup import configure_jax

NAME = "muzero-thinking-time"
SIMULATIONS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
QUARTER = 4
OPENINGS, QUICK_OPENINGS = 200, 40
REPEATS = 1000
PAIRS = ["task", "steps", "seed", "first", "second", "wins", "draws", "losses"]
ELO = ["task", "steps", "simulations", "seeds", "elo", "low", "high"]


def run(settings: ThinkingTime, *, output: Path, results: Path) -> str:
    """Train the missing runs, play the games, then write the tables and the figure."""
    configure_jax()
    settings, names = planning.choose(settings, share=100)
    count = QUICK_OPENINGS if settings.quick else OPENINGS
    groups = {
        (name, steps): planning.train(
            output, name, {f"{steps:,} steps": {}}, seeds=settings.seeds, steps=steps
        )
        for name in names
        for steps in sorted({settings.steps, max(1, settings.steps // QUARTER)})
    }
    done = [one for group in groups.values() for one in group]
    matrix.write(done, results, NAME, f"pronk reproduce {NAME}, {settings.steps:,} agent steps")
    pairs, rows = [], []
    for (name, steps), group in groups.items():
        played = [outcomes(output, one, count) for one in group]
        for one, games in zip(group, played, strict=True):
            pairs += [[name, steps, one.seed, *row] for row in counts(games)]
        for simulations, rating in zip(SIMULATIONS, estimate(played), strict=True):
            rows.append([name, steps, simulations, len(group), *(f"{x:.6g}" for x in rating)])
    common.write_csv(results / f"{NAME}-pairs.csv", PAIRS, pairs)
    common.write_csv(results / f"{NAME}-elo.csv", ELO, rows)
    read = common.read_csv(results / f"{NAME}-elo.csv")
    return "\n\n".join([table(read), draw(results, read)])


def outcomes(output: Path, one: Done, count: int) -> np.ndarray:
    """The outcomes of `board_play.tournament` of a run's policy with SIMULATIONS, from `count`
    openings; kept in `output`."""

    def play() -> dict[str, Any]:
        task = BOARDS[one.task]
        movers = [planning.mover(output, one, simulations) for simulations in SIMULATIONS]
        openings = planning.openings(task, count)
        return {"outcomes": board_play.tournament(task.board, movers, openings).tolist()}

    identity = {"run": one.run.name, "simulations": SIMULATIONS, "openings": count}
    return np.array(common.cached(output, f"games-{one.run.name}", identity, play)["outcomes"])


def points(games: np.ndarray) -> np.ndarray:
    """What each player scores against each other one, `[players, players, openings]` from 0 to 2,
    in the two games from an opening; games: outcomes of a tournament, of the same shape."""
    of_both = (2 + games - games.swapaxes(0, 1)) / 2
    return of_both * ~np.eye(len(games), dtype=bool)[..., None]


def counts(games: np.ndarray) -> list[list[int]]:
    """Rows of simulations of both players, and the first one's wins, draws and losses."""
    rows = []
    for i, first in enumerate(SIMULATIONS):
        for j, second in enumerate(SIMULATIONS[:i]):
            both = np.concatenate([games[i, j], -games[j, i]])
            rows.append([first, second, *(int(np.sum(both == x)) for x in (1, 0, -1))])
    return rows


def estimate(played: Sequence[np.ndarray]) -> list[Interval]:
    """The Elo of each player, 0 for the first one: the mean over runs, with a 95 % bootstrap
    interval over runs and openings. played: the outcomes of each run's tournament."""
    rng = np.random.default_rng(0)
    found, drawn = [], []
    for games in played:
        of_openings = points(games)
        count = of_openings.shape[-1]
        times = rng.multinomial(count, np.full(count, 1 / count), REPEATS)
        found.append(elo.ratings(of_openings.sum(axis=-1)))
        drawn.append(elo.ratings(np.einsum("ro,ijo->rij", times, of_openings)))
    which = rng.integers(0, len(played), (REPEATS, len(played)))
    repeats = np.stack(drawn)[which, np.arange(REPEATS)[:, None]].mean(axis=1)
    low, high = np.percentile(repeats, [2.5, 97.5], axis=0)
    mean = np.mean(found, axis=0)
    return [Interval(*(float(x) for x in one)) for one in zip(mean, low, high, strict=True)]


def _groups(rows: Sequence[Row]) -> Mapping[tuple[str, float], list[Row]]:
    """Rows by task and steps of training."""
    keys = dict.fromkeys((row["task"], row["steps"]) for row in rows)
    return {key: [row for row in rows if (row["task"], row["steps"]) == key] for key in keys}


def table(rows: Sequence[Row]) -> str:
    """The Elo by number of simulations; a column per task and steps of training."""
    groups = _groups(rows)
    lines = []
    for simulations in unique(rows, "simulations"):
        cells = []
        for group in groups.values():
            (row,) = (row for row in group if row["simulations"] == simulations)
            # `round`, because a format has a minus for what it rounds to 0.
            found, low, high = (round(row[name]) for name in ("elo", "low", "high"))
            cells.append(f"{found} [{low}, {high}]")
        lines.append([f"{simulations:.0f}", *cells])
    header = [f"{task}, {steps:,.0f} steps" for task, steps in groups]
    return common.markdown(["simulations", *header], lines)


def draw(results: Path, rows: Sequence[Row]) -> str:
    """Draw the Elo over simulations, a panel per task and a line per length of training."""
    groups, tasks = _groups(rows), unique(rows, "task")
    figure, axes = common.panels(1, len(tasks), 4.6, 3.4)
    for axis, task in zip(axes[0], tasks, strict=True):
        own = {steps: group for (name, steps), group in groups.items() if name == task}
        for i, (steps, group) in enumerate(own.items()):
            x = select(group, "simulations")
            intervals = [Interval(row["elo"], row["low"], row["high"]) for row in group]
            style = {"color": COLOURS[i], "marker": "o", "markersize": 4}
            common.draw_points(axis, x, intervals, label=f"{steps:,.0f} steps", **style)
        # Logarithmic from 1 on; 0 is beside it.
        axis.set_xscale("symlog", base=2, linthresh=1)
        axis.set_xticks(SIMULATIONS, [f"{x}" for x in SIMULATIONS])
        axis.minorticks_off()
        axis.axhline(0, color="#8c8c8c", linewidth=0.8)
        axis.set_title(task)
        axis.set_xlabel("simulations per move")
    axes[0, 0].set_ylabel("Elo (0 simulations: 0)")
    seeds = [int(n) for n in unique(rows, "seeds")]
    over = f"mean over {max(seeds)} seeds" if max(seeds) > 1 else "one seed"
    note = f"{over}, and a 95 % bootstrap interval"
    return str(common.save(figure, results / f"{NAME}.png", note))
