"""How well policies play solved boards, with movers whose play is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pronk import cli
from pronk.envs import board_solver
from pronk.envs.board_rules import Board
from pronk.envs.board_solver import Solution
from pronk.experiments.reproduce import board_play, common, planning
from pronk.experiments.reproduce.board_play import Positions

TIC_TAC_TOE = Board(3, 3, 3, gravity=False)
SMALL = Board(3, 4, 3, gravity=True)


def legal(board: Board, positions: Positions) -> np.ndarray:
    return board_play._legal(positions.own | positions.other, board.actions)


def perfect(board: Board, solution: Solution) -> board_play.Mover:
    def move(positions: Positions) -> np.ndarray:
        mistakes = solution.look_up(*positions)[1]
        good = mistakes[:, None] >> np.arange(board.actions) & 1 == 0
        return (legal(board, positions) & good).argmax(axis=-1)

    return move


def careless(board: Board) -> board_play.Mover:
    return lambda positions: legal(board, positions).argmax(axis=-1)


@pytest.mark.parametrize("begins", [True, False])
def test_perfect_play_loses_no_line_and_keeps_every_win(begins: bool):
    solution = board_solver.solve(TIC_TAC_TOE)
    move = perfect(TIC_TAC_TOE, solution)
    found = board_play.exhaustive(TIC_TAC_TOE, solution, move, begins=begins)
    assert found.lost == 0
    assert found.drawn > 0
    assert found.wins_kept == found.wins_offered > 0


def test_lines_are_counted_as_by_a_recursion():
    solution, move = board_solver.solve(TIC_TAC_TOE), careless(TIC_TAC_TOE)

    def lines(own: frozenset[int], other: frozenset[int], is_policy: bool) -> np.ndarray:
        """Lines won, drawn and lost by the policy."""
        if any(set(line) <= other for line in TIC_TAC_TOE.lines().tolist()):
            return np.array([0, 0, 1] if is_policy else [1, 0, 0])
        free = sorted(set(range(9)) - own - other)
        if not free:
            return np.array([0, 1, 0])
        chosen = free[:1] if is_policy else free
        return np.sum([lines(other, own | {a}, not is_policy) for a in chosen], axis=0)

    for begins in (True, False):
        found = board_play.exhaustive(TIC_TAC_TOE, solution, move, begins=begins)
        expected = lines(frozenset(), frozenset(), begins)
        assert [found.won, found.drawn, found.lost] == expected.tolist()
        assert found.lost > 0
        assert 0 < found.wins_kept < found.wins_offered


@pytest.mark.parametrize("board", [TIC_TAC_TOE, SMALL])
def test_perfect_play_keeps_values_and_reaches_them(board: Board):
    solution, rng = board_solver.solve(board), np.random.default_rng(0)
    positions = board_play.random_positions(board, 300, rng)
    rows = np.stack(positions, axis=1).reshape(300, -1)
    assert len(np.unique(rows, axis=0)) == 300
    assert not board_play.outcomes(board, positions)[0].any()
    assert len(set(rows.sum(axis=1))) > 5
    best, poor = perfect(board, solution), careless(board)
    assert board_play.keeps_value(solution, best, positions) == 1
    assert board_play.keeps_value(solution, poor, positions) < 0.9
    assert board_play.against_perfect(board, solution, best, positions, rng) == 1
    assert board_play.against_perfect(board, solution, poor, positions, rng) < 0.9


@pytest.mark.extended
def test_the_experiment_trains_measures_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    small: dict[str, Any] = {"simulations": 2, "model_units": 8, "hidden_sizes": (8,)}
    tasks = {
        name: task._replace(
            args={"width": 4, "height": 3, "in_a_row": 3} if task.args else {},
            steps=3000,
            settings={"envs_per_actor": 8, "batch_size": 8, "replay_minimum": 10, **small},
        )
        for name, task in planning.BOARDS.items()
    }
    monkeypatch.setitem(planning.BOARDS, "TicTacToe", tasks["TicTacToe"])
    monkeypatch.setitem(planning.BOARDS, "ConnectFour", tasks["ConnectFour"])
    monkeypatch.setattr(planning, "POSITIONS", 50)
    monkeypatch.setattr(planning, "OPENINGS", 10)
    monkeypatch.setattr(planning, "EVALUATIONS", 2)
    args = ["reproduce", "muzero-boards", "--seeds", "1", "--output", str(tmp_path / "runs")]
    cli.main([*args, "--results", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "| TicTacToe | lines lost as second | 0: " in shown.replace("2: ", "0: ")
    assert "games with the opening's value" in shown
    rows = common.read_csv(tmp_path / "muzero-boards-play.csv")
    assert {row["simulations"] for row in rows} == {0, 2}
    assert (tmp_path / "muzero-boards.png").exists()
    cli.main([*args, "--results", str(tmp_path / "again")])
    assert common.read_csv(tmp_path / "again" / "muzero-boards-play.csv") == rows
