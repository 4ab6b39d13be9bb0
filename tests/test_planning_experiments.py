"""The experiments with MuZero: games and ratings, what they train, their tables and figures."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pretended_runs
import pytest

from pronk import agents, cli, envs
from pronk.config import compatibility
from pronk.config.spec import Plan
from pronk.envs.board_rules import Board
from pronk.experiments.reproduce import (
    board_play,
    matrix,
    muzero_model_free,
    muzero_simulations,
    muzero_thinking_time,
    planning,
    reanalyze,
)
from pronk.experiments.reproduce.board_play import Positions
from pronk.maths import elo
from pronk.run.resolve import resolve

TIC_TAC_TOE = Board(3, 3, 3, gravity=False)

# Ratings.


def test_two_players_differ_by_their_odds():
    points = np.array([[0.0, 75.0], [25.0, 0.0]])
    np.testing.assert_allclose(elo.ratings(points, virtual=0), [0, -400 * np.log10(3)], atol=1e-6)
    np.testing.assert_allclose(elo.ratings(points, anchor=1, virtual=0)[0], 190.8485, atol=1e-3)
    # A drawn game more is half a point for both.
    expected = 400 * np.log10(75.5 / 25.5)
    np.testing.assert_allclose(elo.ratings(points)[1], -expected, atol=1e-6)


def test_ratings_are_those_that_made_the_scores():
    truth = np.array([0.0, 150.0, -80.0, 600.0])
    difference = truth[:, None] - truth
    games = np.random.default_rng(0).integers(1, 50, (4, 4))
    games = (games + games.T) * (1 - np.eye(4))
    games[0, 3] = games[3, 0] = 0  # who have not met
    points = games / (1 + 10 ** (-difference / 400))
    np.testing.assert_allclose(elo.ratings(points, virtual=0), truth, atol=1e-5)
    several = elo.ratings(np.stack([points, points.T]), virtual=0)
    np.testing.assert_allclose(several, [truth, -truth], atol=1e-5)
    assert (np.argsort(elo.ratings(points)) == np.argsort(truth)).all()


def test_equal_players_are_equal_and_a_shut_out_is_finite():
    np.testing.assert_allclose(elo.ratings(7 * (1 - np.eye(5))), np.zeros(5), atol=1e-9)
    shut_out = elo.ratings(np.array([[0.0, 400.0], [0.0, 0.0]]))
    np.testing.assert_allclose(shut_out, [0, -400 * np.log10(400.5 / 0.5)], atol=1e-6)
    few = elo.ratings(np.array([[0.0, 2.0], [0.0, 0.0]]))
    assert shut_out[1] < few[1] < 0


# Games.


def first_legal(positions: Positions) -> np.ndarray:
    return board_play._legal(positions.own | positions.other, 9).argmax(axis=-1)


def last_legal(positions: Positions) -> np.ndarray:
    return 8 - board_play._legal(positions.own | positions.other, 9)[:, ::-1].argmax(axis=-1)


def central(positions: Positions) -> np.ndarray:
    legal = board_play._legal(positions.own | positions.other, 9)
    return (legal * np.array([3, 2, 3, 2, 4, 2, 3, 2, 3])).argmax(axis=-1)


def test_a_tournament_plays_every_pair_from_every_opening_with_both_sides():
    openings = board_play.start(TIC_TAC_TOE).take(np.zeros(2, int))
    openings.own[1, 1, 1] = openings.other[1, 0, 0] = True
    found = board_play.tournament(TIC_TAC_TOE, [first_legal, last_legal, first_legal], openings)
    assert found.shape == (3, 3, 2)

    def game(first: Any, second: Any, opening: int) -> int:
        positions, movers, turn = openings.take([opening]), (first, second), 0
        while True:
            positions = board_play.play(TIC_TAC_TOE, positions, movers[turn](positions))
            ended, outcome = board_play.outcomes(TIC_TAC_TOE, positions)
            if ended[0]:
                return int(outcome[0] if turn else -outcome[0])
            turn = 1 - turn

    movers = [first_legal, last_legal, first_legal]
    for i, one in enumerate(movers):
        for j, other in enumerate(movers):
            expected = [game(one, other, k) if i != j else 0 for k in range(2)]
            assert found[i, j].tolist() == expected
    assert {1} < set(found.ravel().tolist())


def test_points_and_counts_are_of_both_sides():
    games = np.zeros((10, 10, 3), int)
    games[1, 0], games[0, 1] = [1, 0, -1], [-1, 0, -1]  # outcomes for the side that begins
    found = muzero_thinking_time.points(games)
    assert found[1, 0].tolist() == [2, 1, 1]
    assert found[0, 1].tolist() == [0, 1, 1]
    assert found[4, 4].tolist() == [0, 0, 0]
    assert (found + found.swapaxes(0, 1)).sum() == 90 * 2 * 3
    rows = muzero_thinking_time.counts(games)
    assert len(rows) == 45
    assert rows[0] == [1, 0, 3, 2, 1]
    assert {tuple(row[2:]) for row in rows[1:]} == {(0, 6, 0)}


def test_intervals_of_ratings_are_over_runs_and_openings():
    rng = np.random.default_rng(0)
    games = rng.integers(-1, 2, (10, 10, 30))
    games[3, :], games[:, 3] = 1, -1  # wins all
    (one,) = (muzero_thinking_time.estimate([games]),)
    assert one[0] == (0, 0, 0)
    assert one[3].mean > 200 + max(x.mean for i, x in enumerate(one) if i != 3)
    assert all(x.low < x.mean < x.high for x in one[1:])
    two = muzero_thinking_time.estimate([games, -games])
    assert abs(two[3].mean) < 30  # wins all in one run, and none in the other
    assert two[3].high - two[3].low > one[3].high - one[3].low + 200


# Runs that are pretended, so that an experiment takes no time.


def level(plan: Plan) -> float:
    config = plan.agent_config
    if plan.agent != "muzero":
        return 2.0 if plan.agent == "r2d2" else 1.0
    if plan.run.eval_episodes == reanalyze.EPISODES and config.samples_per_insert != 4:
        return 2.0 if config.reanalyze else 1.2 if config.samples_per_insert > 1 else 1.0
    return -1.0 / config.simulations if "board" in plan.preset else 4.0


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans that were carried out, in order. Policies take the first legal move or, with more
    than 4 simulations, a central one."""
    plans: list[Plan] = []

    def carried_out(plan: Plan) -> dict[str, Any]:
        plans.append(plan)
        return pretended_runs.write(plan, level(plan))

    monkeypatch.setattr(matrix.training, "run", carried_out)
    monkeypatch.setattr(planning, "mover", lambda *given: central if given[-1] > 4 else first_legal)
    monkeypatch.setattr(planning, "POSITIONS", 100)
    return plans


def arguments(name: str, tmp_path: Path, *further: str) -> list[str]:
    folders = ["--output", str(tmp_path / "runs"), "--results", str(tmp_path)]
    return ["reproduce", name, *folders, *further]


def rows_of(path: Path) -> list[dict[str, str]]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines))


def test_the_thinking_time_as_an_experiment(
    trained: list[Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    args = arguments("muzero-thinking-time", tmp_path, "--tasks", "TicTacToe", "--seeds", "2")
    args += ["--steps", "4000"]
    cli.main(args)
    shown = capsys.readouterr().out
    assert "| simulations | TicTacToe, 1,000 steps | TicTacToe, 4,000 steps |" in shown
    assert "| 0 | 0 [0, 0] | 0 [0, 0] |" in shown
    assert "| 4 | 0 [0, 0] |" in shown  # plays as 0 does
    assert [(plan.run.seed, plan.run.steps) for plan in trained] == [
        (0, 1000), (1, 1000), (0, 4000), (1, 4000)
    ]  # fmt: skip
    assert (tmp_path / "muzero-thinking-time.png").stat().st_size > 10_000
    pairs = rows_of(tmp_path / "muzero-thinking-time-pairs.csv")
    assert len(pairs) == 2 * 2 * 45
    openings = len(planning.openings(planning.BOARDS["TicTacToe"], 200).own)
    assert {sum(int(row[x]) for x in ("wins", "draws", "losses")) for row in pairs} == {
        2 * openings
    }
    ratings = {row["simulations"]: row["elo"] for row in rows_of(
        tmp_path / "muzero-thinking-time-elo.csv")}  # fmt: skip
    assert ratings["8"] == ratings["256"]
    assert float(ratings["8"]) > 50
    # Again: nothing is trained or played.
    kept = sorted((tmp_path / "runs").glob("games-*.json"))
    assert len(kept) == 4
    kept[0].write_text("[]")
    with pytest.raises(SystemExit):
        cli.main(args)
    assert f"`{kept[0]}` can't be read" in " ".join(capsys.readouterr().err.split())
    assert len(trained) == 4


def test_the_simulations_as_an_experiment(
    trained: list[Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cli.main(arguments("muzero-simulations", tmp_path, "--quick"))
    shown = capsys.readouterr().out
    assert "| task | trained with | mean return against perfect play |" in shown
    # Evaluations fall to their last value in ten equal parts: the mean of the last five is 0.8.
    assert "| TicTacToe | 2 simulations | -0.4 [-0.4, -0.4] | 0." in shown
    configs = [plan.agent_config for plan in trained]
    assert [x.simulations for x in configs] == [2, 8, 32]
    assert {x.evaluation_simulations for x in configs} == {32}
    assert {(plan.run.steps, plan.run.eval_every, plan.env) for plan in trained} == {
        (20_000, 1000, "pronk/TicTacToe-v0")
    }
    assert (tmp_path / "muzero-simulations.png").stat().st_size > 10_000
    rows = rows_of(tmp_path / "muzero-simulations-play.csv")
    assert [row["simulations"] for row in rows] == 3 * ["0"] + 3 * ["32"]
    assert rows[0]["moves_kept"] != rows[3]["moves_kept"]


def test_the_agents_without_a_model_as_an_experiment(
    trained: list[Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    args = arguments("muzero-model-free", tmp_path, "--seeds", "2", "--steps", "4000")
    cli.main(args)
    shown = capsys.readouterr().out
    header = "mean return in Breakout | last evaluations | all episodes of training | seeds |"
    assert f"| {header}" in shown
    assert "| MuZero | 3.2 [3.2, 3.2] | 0.01 [0.01, 0.01] | 2 |" in shown
    assert "| Q-learning | 1.6 [1.6, 1.6] |" in shown
    assert (tmp_path / "muzero-model-free.png").stat().st_size > 10_000
    muzero, q = (plan.agent_config for plan in trained[:2])
    for name in ("batch_size", "unroll", "samples_per_insert", "discount", "replay_capacity"):
        assert getattr(muzero, name) == getattr(q, name)
    trained.clear()
    cli.main([*args, "--agents", "IMPALA", "--quick"])
    assert [(plan.agent, plan.run.steps) for plan in trained] == [("impala", 80)]


def test_reanalyze_as_an_experiment(
    trained: list[Plan],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    costs = {reanalyze.LOW: 10.0, "high reuse": 11.0, "high reuse, Reanalyze": 25.0}
    monkeypatch.setattr(reanalyze, "update_milliseconds", lambda _, one: costs[one.variant])
    args = arguments("reanalyze", tmp_path, "--seeds", "2", "--steps", "4000")
    cli.main([*args, "--tasks", "Breakout"])
    shown = capsys.readouterr().out
    # Ten evaluations that rise in equal parts to 1, 1.2 and 2: their means are 0.55 of that.
    assert "| Breakout | low reuse | 0.55 [0.55, 0.55] | 0.8 [0.8, 0.8] | 4,000; 2 of 2 |" in shown
    high = "| Breakout | high reuse | 0.66 [0.66, 0.66] | 0.96 [0.96, 0.96] | 3,600; 2 of 2 |"
    assert f"{high} 1.10 (11 ms) |" in shown
    assert "| 2,400; 2 of 2 | 2.50 (25 ms) |" in shown
    assert (tmp_path / "reanalyze.png").stat().st_size > 10_000
    configs = [plan.agent_config for plan in trained[:3]]
    assert [(x.samples_per_insert, x.reanalyze, x.bootstrap) for x in configs] == [
        (1, 0, "search"), (20, 0, "search"), (20, 0.8, "target")
    ]  # fmt: skip


def test_a_level_that_no_run_reaches():
    scores = np.array([0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    assert reanalyze.steps_to(range(1, 8), scores, 1.0) == 6
    assert reanalyze.steps_to(range(1, 8), scores, 0.8) == 5
    assert np.isnan(reanalyze.steps_to(range(1, 8), scores, 1.1))
    assert np.isnan(reanalyze.steps_to([1, 2], scores[:2], 0.0))
    rows = [
        {"task": "x", "variant": variant, "area": 1.0, "last": 2.0, "steps_to_level": steps,
         "milliseconds_per_update": 4.0}
        for variant, steps in ((reanalyze.LOW, 7.0), ("a", float("nan")), ("a", 5.0), ("b", 5.0),
                               ("b", float("nan")), ("b", 6.0))
    ]  # fmt: skip
    shown = reanalyze.table(rows)
    assert "| –; 1 of 2 |" in shown  # of an even number, one beyond every step
    assert "| 6; 2 of 3 |" in shown


def test_every_variant_can_be_resolved():
    """Each experiment's settings are an agent's, and go together."""
    boards = planning.BOARDS.values()
    board = {"preset": "board"}
    cases: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
        ("muzero", task.env, task.args, board | task.settings | changed)
        for task in boards
        for changed in ({}, *muzero_simulations.variants(muzero_simulations.TRAINED).values())
    ]
    cases += [
        (variant.agent, muzero_model_free.ENV, {}, dict(variant.settings))
        for variant in muzero_model_free.VARIANTS.values()
    ]
    cases += [
        ("muzero", task.env, task.args, task.settings | changed)
        for task in reanalyze.TASKS.values()
        for changed in reanalyze.VARIANTS.values()
    ]
    for name, env, env_args, settings in cases:
        plan = resolve(name, env, env_args=env_args, runtime="fused", **settings)
        agent = agents.make(plan.agent, plan.agent_config, envs.spec_of(env, env_args), horizon=1)
        compatibility.check(plan, agent, jax_env=True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["muzero-thinking-time", "--tasks", "Connect4"], "did you mean 'ConnectFour'?"),
        (["muzero-simulations", "--seeds", "0"], "`--seeds` is 0; expected at least 1"),
        (["muzero-model-free", "--agents", "MuZeroo"], "did you mean 'MuZero'?"),
        (["reanalyze", "--steps", "0"], "`--steps` is 0; expected at least 1"),
    ],
)
def test_bad_input(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as caught:
        cli.main([*arguments(args[0], tmp_path), *args[1:]])
    assert caught.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.glob("runs/*"))
