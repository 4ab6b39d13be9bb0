"""Board games at the command line: training by self-play, evaluation, and play in a terminal."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pronk import cli, envs, load
from pronk.envs import boards
from pronk.envs.jax_env import advance, start
from pronk.run.evaluate import summarise
from pronk.run.opponents import as_opponent
from pronk.run.play import play
from pronk.types import Episode

TESTS = Path(__file__).parent
TINY = [
    "--envs-per-actor",
    "4",
    "--batch-size",
    "4",
    "--unroll",
    "5",
    "--hidden-sizes",
    "8",
    "--quiet",
]
SMALL = ["--env-arg", "width=4", "--env-arg", "height=3", "--env-arg", "in_a_row=3"]


def pronk(*args: object) -> None:
    cli.main([str(a) for a in args])


def train(run_dir: Path, *args: object) -> Path:
    pronk("train", *args, "--steps", 200, "--run-dir", run_dir, *TINY)
    return run_dir


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tic-tac-toe, trained by self-play and evaluated meanwhile."""
    flags = ["--eval-every", 100, "--eval-episodes", 4]
    run_dir = tmp_path_factory.mktemp("runs") / "cells"
    return train(run_dir, "both_sides", "pronk/TicTacToe-v0", *flags)


@pytest.fixture(scope="module")
def columns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Connect Four against an opponent, with an agent that has a recurrent state."""
    flags = [
        *SMALL,
        "--env-arg",
        "opponent=random",
        "--recurrent-core",
        "lstm",
        "--recurrent-units",
        4,
        "--actors",
        1,
        "--runtime",
        "local",
    ]
    run_dir = tmp_path_factory.mktemp("runs") / "columns"
    return train(run_dir, "impala", "pronk/ConnectFour-v0", *flags)


@pytest.fixture(scope="module")
def catch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No board game."""
    return train(tmp_path_factory.mktemp("runs") / "catch", "impala", "pronk/Catch-v0")


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The message of a command that fails."""
    with pytest.raises(SystemExit) as exit_:
        pronk(*args)
    assert exit_.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_one_player_agents_refuse_self_play(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "train", "ppo", "pronk/TicTacToe-v0", "--run-dir", tmp_path / "run")
    assert "agent 'ppo' learns from the rewards of one player" in said
    assert "use muzero" in said
    assert "`--env-arg opponent=random`" in said
    assert not (tmp_path / "run").exists()


# Evaluation


def test_arguments_of_evaluations() -> None:
    def opponent(env: str, **args: Any) -> Any:
        return envs.evaluation_args(env, args).get("opponent")

    assert opponent("pronk/TicTacToe-v0") == "perfect"
    assert opponent("pronk/TicTacToe-v0", opponent="none") == "perfect"
    assert opponent("pronk/TicTacToe-v0", opponent="random") == "random"
    assert opponent("pronk/ConnectFour-v0") == "random"
    assert opponent("pronk/ConnectFour-v0", width=4, height=4) == "perfect"
    assert opponent("pronk/Catch-v0") is None


def test_evaluations_while_training_have_an_opponent(cells: Path) -> None:
    records = [json.loads(line) for line in (cells / "metrics.jsonl").open()]
    evaluations = [r for r in records if "eval/wins" in r]
    assert evaluations
    for one in evaluations:
        assert one["eval/wins"] == 0
        assert one["eval/draws"] + one["eval/losses"] == 4
        assert one["eval/mean_return"] == -one["eval/losses"] / 4


def test_outcomes_are_counted() -> None:
    returns = [1.0, 1.0, 0.0, -1.0]
    episodes = [Episode(r, 5, i) for i, r in enumerate(returns)]
    board = summarise("pronk/TicTacToe-v0", episodes)
    assert (board.wins, board.draws, board.losses) == (2, 1, 1)
    assert "2 won, 1 drawn, 1 lost)" in board.lines("it", "greedy")[0]
    other = summarise("pronk/Catch-v0", episodes)
    assert (other.wins, other.draws, other.losses) == (None, None, None)
    assert "won" not in other.lines("it", "greedy")[0]
    assert not {"wins", "draws", "losses"} & other.metrics().keys()


def test_eval_names_the_opponent(cells: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pronk("eval", cells, "--episodes", 6)
    shown = capsys.readouterr().out
    counts = re.search(r"steps against perfect: .*, 0 won, ([0-9]) drawn, ([0-9]) lost\)", shown)
    assert counts
    assert int(counts[1]) + int(counts[2]) == 6
    pronk("eval", cells, "--episodes", 6, "--opponent", "random", "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["opponent"] == "random"
    assert result["wins"] + result["draws"] + result["losses"] == 6


@pytest.mark.parametrize("exported", [False, pytest.param(True, marks=pytest.mark.extended)])
def test_eval_against_another_run(
    exported: bool, columns: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rival = columns
    if exported:
        rival = tmp_path / "rival.safetensors"
        pronk("export", columns, rival)
        capsys.readouterr()
    pronk("eval", columns, "--episodes", 6, "--opponent", rival, "--json", "--sample")
    result = json.loads(capsys.readouterr().out)
    assert result["opponent"] == str(rival)
    assert result["wins"] + result["draws"] + result["losses"] == 6


def test_a_policy_as_an_opponent_keeps_its_recurrent_state(columns: Path) -> None:
    """Its moves are those that `Policy.act` chooses, in each of two episodes."""
    policy = load(columns)
    args = {k: v for k, v in policy.plan.env_args.items() if k != "opponent"}
    env = boards.make_connect_four(**args, opponent=as_opponent(policy), side="first")
    alone = boards.make_connect_four(**args)
    assert alone.action_mask is not None
    step, single = jax.jit(lambda s, a: advance(env, s, a)), jax.jit(alone.step)
    slots, row = start(env, jax.random.key(0), jnp.arange(1))
    for _ in range(2):
        carry = policy.initial_carry()
        state, _ = alone.reset(jax.random.key(0))
        while not row.terminated[0]:
            move = np.flatnonzero(row.action_mask[0])[-1]  # type: ignore[index]
            slots, row = step(slots, jnp.full(1, move))
            state, observation, _, over, _ = single(state, move, jax.random.key(0))
            if not over:
                mask = np.asarray(alone.action_mask(state))
                action, carry = policy.act(np.asarray(observation), carry, action_mask=mask)
                state, observation, *_ = single(state, action, jax.random.key(0))
                np.testing.assert_array_equal(observation, row.observation[0])
        slots, row = step(slots, jnp.zeros(1, int))


def test_wrong_opponents(
    cells: Path, columns: Path, catch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "eval", catch, "--opponent", "random")
    assert "'pronk/Catch-v0' is not a board game" in said
    said = refused(capsys, "eval", cells, "--opponent", "perfekt")
    assert "`--opponent` is 'perfekt', which does not exist; expected random, perfect" in said
    said = refused(capsys, "eval", cells, "--opponent", tmp_path)
    assert "config.json" in said or "no run" in said
    said = refused(capsys, "eval", columns, "--opponent", cells)
    assert "was trained on 'pronk/TicTacToe-v0', and the game is 'pronk/ConnectFour-v0'" in said
    assert "(width=4, height=3, in_a_row=3)" in said
    said = refused(capsys, "eval", cells, "--opponent", catch)
    assert "was trained on 'pronk/Catch-v0'" in said
    both = ("--opponent", "random", "--env-arg", "opponent=perfect")
    assert "leave one of them out" in refused(capsys, "eval", cells, *both)
    large = ("--env-arg", "width=9", "--opponent", "perfect")
    assert "too many positions" in refused(capsys, "eval", columns, *large)
    other = ("--env-arg", "width=5", "--opponent", "random")
    assert "has the observation space" in refused(capsys, "eval", columns, *other)


# Play


def answers(*lines: str) -> Callable[[str], str]:
    waiting = list(lines)

    def ask(prompt: str) -> str:
        asked.append(prompt)
        if not waiting:
            raise EOFError
        return waiting.pop(0)

    asked: list[str] = []
    return ask


def test_play_refuses_what_is_no_move(cells: Path) -> None:
    said: list[str] = []
    moves = ["1", "1", "", "x", "0", "10", "-2", "2.0", "²", *map(str, range(2, 10))]
    outcome = play(load(cells), begins=True, ask=answers(*moves), say=said.append)
    assert said[:5] == ["You are X, both_sides is O.", "", "1 2 3", "4 5 6", "7 8 9"]
    assert re.fullmatch("both_sides: cell [2-9]", said[5])
    assert said[7].startswith("X ")
    assert "The cell 1 is taken." in said
    for wrong in ("", "x", "0", "10", "-2", "2.0", "²"):
        assert f"'{wrong}' is not a whole number from 1 to 9." in said
    ends = {1: "You have won.", 0: "A draw.", -1: "You have lost."}
    assert said[-1] == ends[round(outcome)]


@pytest.mark.parametrize("begins", [True, False])
def test_play_ends_with_the_persons_outcome(cells: Path, begins: bool) -> None:
    """Against a person who knows the game by the solver's table."""
    from pronk.envs.board_rules import Board
    from pronk.envs.board_solver import solve

    said: list[str] = []
    solution = solve(Board(3, 3, 3, gravity=False))
    mine, theirs = ("X", "O") if begins else ("O", "X")

    def ask(prompt: str) -> str:
        assert prompt == "Your cell (1 to 9): "
        cells = np.array([line.split() for line in said[-3:]])
        _, mistakes = solution.look_up(cells == mine, cells == theirs)
        good = [a for a in range(9) if cells.flat[a].isdecimal() and not mistakes >> a & 1]
        return str(good[0] + 1)

    outcome = play(load(cells), begins=begins, ask=ask, say=said.append)
    assert outcome >= 0
    assert said[-1] == ("You have won." if outcome else "A draw.")
    assert (said[1] == "") == begins


def test_play_in_columns(columns: Path) -> None:
    said: list[str] = []
    moves = [str(column) for _ in range(12) for column in (1, 2, 3, 4)]
    play(load(columns), begins=False, ask=answers(*moves), say=said.append)
    assert said[0] == "You are O, impala is X."
    column = re.fullmatch("impala: column ([1-4])", said[1])
    assert column
    assert said[2:6] == ["", "1 2 3 4", ". . . .", ". . . ."]
    assert said[6].split().index("X") == int(column[1]) - 1


def test_play_needs_a_board_game(catch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "play", catch)
    assert "'pronk/Catch-v0' is not a board game for two players; give a run of" in said
    assert "give the one" in refused(capsys, "play", catch, "--first", "--second")


def test_play_ends_with_the_input(
    cells: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("10\n"))
    with pytest.raises(SystemExit) as exit_:
        pronk("play", cells, "--second")
    assert exit_.value.code == 1
    shown = capsys.readouterr()
    assert shown.err.strip() == "pronk: the input has ended before the game"
    assert shown.out.startswith("You are O, both_sides is X.")


def test_play_is_interrupted(cells: Path) -> None:
    """In a process of its own, with real input, and Ctrl-C after a move."""
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "pronk", "play", str(cells)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("5\n")
    process.stdin.flush()
    shown = ""
    while shown.count("Your cell (1 to 9): ") < 2:
        shown += (letter := process.stdout.read(1))
        assert letter, shown
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert said.strip().splitlines()[-1] == "pronk: interrupted"
    assert "Traceback" not in said
