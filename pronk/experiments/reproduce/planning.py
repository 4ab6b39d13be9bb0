"""What the experiments with MuZero share: small boards and their solutions, and how it is trained
on them.

An evaluation in training is one against perfect play: 0 is the best mean return where best play is
a draw, as on these boards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from pronk.envs import board_solver, boards
from pronk.envs.board_rules import Board
from pronk.experiments.reproduce import board_play, common, matrix
from pronk.experiments.reproduce.board_play import Positions
from pronk.experiments.reproduce.matrix import Done, Variant
from pronk.experiments.reproduce.settings import Matrix
from pronk.run.policy import load


class Task(NamedTuple):
    """A board, and MuZero's settings on it."""

    env: str
    args: dict[str, Any]
    steps: int  # agent steps in which it is learnt
    settings: dict[str, Any]
    opening_moves: int  # random ones at most, where games begin with such

    @property
    def board(self) -> Board:
        """Its rules."""
        return boards.board_of(self.env, self.args)


BOARDS = {
    "TicTacToe": Task(
        *("pronk/TicTacToe-v0", {}, 200_000),
        {"envs_per_actor": 32, "samples_per_insert": 32.0},
        2,
    ),
    "ConnectFour": Task(
        *("pronk/ConnectFour-v0", {"width": 5, "height": 4}, 2_000_000),
        {"envs_per_actor": 64, "simulations": 32, "td_steps": 12},
        6,
    ),
}
QUICK, USUAL = ("TicTacToe",), ("ConnectFour",)
EVALUATIONS, EPISODES = 20, 64
POSITIONS, OPENINGS = 2000, 400
AGAINST_PERFECT = "mean return against perfect play"
MOVES_KEPT = "moves that keep the value"

_Settings = TypeVar("_Settings", bound=Matrix)


def choose(settings: _Settings, *, share: int) -> tuple[_Settings, list[str]]:
    """The settings, and the boards' names, after `--tasks` and `--quick`: USUAL, or QUICK and one
    seed, and the steps divided by `share`. Raises UserError for an unknown board."""
    if not (settings.tasks or settings.quick):
        settings = dataclasses.replace(settings, tasks=USUAL)
    known = {name: task.env for name, task in BOARDS.items()}
    settings, tasks = matrix.choose(settings, known, QUICK, seeds=1, share=share)
    return settings, list(tasks)


def train(
    output: Path, name: str, variants: Mapping[str, Mapping[str, Any]], *, seeds: int, steps: int
) -> list[Done]:
    """Train MuZero's runs on a board that are missing in `output`; returns all. variants: settings
    that take precedence over the board's, by name."""
    task = BOARDS[name]
    return matrix.train(
        output,
        {name: task.env},
        {
            variant: Variant("muzero", {"preset": "board", **task.settings, **changed})
            for variant, changed in variants.items()
        },
        seeds=seeds,
        steps=steps,
        env_args={name: task.args},
        eval_every=max(1, steps // EVALUATIONS),
        eval_episodes=EPISODES,
        runtime="fused",
    )


def mover(output: Path, one: Done, simulations: int) -> board_play.Mover:
    """The moves of a run's policy with so many simulations."""
    return board_play.mover(load(output / one.run.name, simulations=simulations))


def random_positions(task: Task) -> Positions:
    """The POSITIONS in which a policy's moves are compared with the solution."""
    return board_play.random_positions(task.board, POSITIONS, np.random.default_rng(0))


def openings(task: Task, count: int) -> Positions:
    """Different positions after `task.opening_moves` random moves at most; `count` of them, or
    fewer on a board that hardly has as many."""
    positions = board_play.random_positions(task.board, 20 * count, np.random.default_rng(1))
    stones = (positions.own | positions.other).sum(axis=(1, 2))
    return positions.take(np.flatnonzero(stones <= task.opening_moves)[:count])


def moves_kept(output: Path, done: Sequence[Done], simulations: int) -> list[float]:
    """The share of positions in which each run's move keeps the value, kept in `output`."""

    def measure(one: Done) -> dict[str, float]:
        task = BOARDS[one.task]
        solution, move = board_solver.solve(task.board), mover(output, one, simulations)
        return {MOVES_KEPT: board_play.keeps_value(solution, move, random_positions(task))}

    return [
        common.cached(
            output,
            f"moves-{one.run.name}-{simulations}",
            {"run": one.run.name, "simulations": simulations, "positions": POSITIONS},
            lambda one=one: measure(one),
        )[MOVES_KEPT]
        for one in done
    ]
