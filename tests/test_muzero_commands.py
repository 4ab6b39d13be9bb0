"""MuZero at the command line: presets by environment, local and fused, and the search's size."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pronk
from pronk import cli
from pronk.config.spec import Plan
from pronk.errors import UserError
from pronk.run.policy import load_behaviour
from pronk.run.resolve import resolve

TINY = {
    "simulations": 2,
    "model-units": 8,
    "hidden-sizes": 8,
    "batch-size": 8,
    "replay-minimum": 10,
}


def flags(settings: dict[str, Any]) -> list[str]:
    return [str(x) for name, value in settings.items() for x in (f"--{name}", value)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tic-tac-toe by self-play, without a flag that says how, with a support that is too small;
    what it printed is beside it."""
    run_dir = tmp_path_factory.mktemp("runs") / "cells"
    settings = TINY | {"envs-per-actor": 8, "steps": 3000, "run-dir": run_dir}
    args = ["pronk/TicTacToe-v0", "--quiet", *flags(settings | {"support-limit": 0.5})]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        cli.main(["train", "muzero", *args])
    (run_dir.parent / "printed.txt").write_text(printed.getvalue())
    return run_dir


def test_presets_by_environment() -> None:
    presets = {
        "pronk/TicTacToe-v0": "board",
        "pronk/Catch-v0": "small",
        "ALE/Pong-v5": "atari-small",
    }
    for env, preset in presets.items():
        assert resolve("muzero", env).preset == preset


def test_it_learns_by_self_play(run: Path) -> None:
    assert Plan.load(run).preset == "board"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["updates"] > 50
    # Of both sides: rewards are learnt long before play is.
    assert records[-1]["loss/reward"] < 0.8 * max(r.get("loss/reward", 0) for r in records)


def test_clipped_targets_are_reported_once(run: Path) -> None:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum(r.get("clipped_targets", 0) > 0.01 for r in records) > 1
    warning = "warning: [0-9]+% of the targets of rewards and values"
    assert len(re.findall(warning, (run.parent / "printed.txt").read_text())) == 1


def test_the_search_may_be_of_another_size(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["eval", str(run), "--simulations", "0", "--episodes", "4", "--opponent", "random"])
    assert "greedy, 0 simulations" in capsys.readouterr().out
    file = tmp_path / "policy.safetensors"
    cli.main(["export", str(run), str(file), "--simulations", "3"])
    exported = pronk.load(file)
    assert exported.plan.agent_config.simulations == 3
    observation, mask = np.zeros((3, 3, 2), np.uint8), np.arange(9) == 4
    action, _ = exported.act(observation, exported.initial_carry(), action_mask=mask)
    assert action == 4


def test_a_run_starts_from_parameters_that_mean_the_same(run: Path, tmp_path: Path) -> None:
    file, plan = tmp_path / "policy.safetensors", Plan.load(run)
    cli.main(["export", str(run), str(file)])
    for path in (run, file):
        for name, other in (("support_limit", 2.0), ("rescaling", "sqrt")):
            config = dataclasses.replace(plan.agent_config, **{name: other})
            trained = getattr(plan.agent_config, name)
            with pytest.raises(UserError, match=f"was trained with {trained}, .*give `--"):
                load_behaviour(path, (), dataclasses.replace(plan, agent_config=config))
        with pytest.raises(UserError, match="does not fit"):  # past that check
            load_behaviour(path, (), plan)


def test_an_evaluation_may_have_a_number_of_simulations_of_its_own(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan.load(run)
    config = dataclasses.replace(plan.agent_config, evaluation_simulations=6)
    own = dataclasses.replace(plan, agent_config=config)
    monkeypatch.setattr(Plan, "load", lambda *_: own)
    policy = pronk.load(run)
    assert policy.words(sample=False) == "greedy, 6 simulations"
    assert policy.words(sample=True) == "sampled, 2 simulations"
    # A number that is asked for is that of all.
    assert pronk.load(run, simulations=3).words(sample=False) == "greedy, 3 simulations"


def test_agents_without_a_search_have_no_simulations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "catch"
    few = ["--envs-per-actor", "4", "--batch-size", "4", "--unroll", "5", "--hidden-sizes", "8"]
    cli.main(
        ["train", "impala", "pronk/Catch-v0", "--steps", "200", "--run-dir", str(run_dir), *few]
    )
    with pytest.raises(SystemExit) as caught:
        cli.main(["eval", str(run_dir), "--simulations", "3"])
    assert caught.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "agent 'impala' chooses its actions without a search; leave it out" in said


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["CartPole-v1", "--simulations", "-1"], "`--simulations` is -1; expected zero or more"),
        (["CartPole-v1", "--max-depth", "-1"], "`--max-depth` is -1; expected zero or more"),
        (["CartPole-v1", "--temperature", "0"], "`--temperature` is 0.0; expected a number above"),
        (["CartPole-v1", "--search", "alphazero"], "--search"),
        (["Pendulum-v1"], "search has a branch for each action"),
        (["pronk/TicTacToe-v0", "--discount", "0.9"], "expected 1, as in the preset board"),
        (["CartPole-v1", "--td-steps", "1001"], "expected a number above zero and at most 1000"),
        (["CartPole-v1", "--unroll-steps", "101"], "expected a number above zero and at most 100"),
        (["CartPole-v1", "--preset", "paper"], "expected images of one size, and nothing beside"),
        (["pronk/TicTacToe-v0", "--td-steps", "20"], "expected at least 24 starts"),
    ],
)
def test_bad_input(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "muzero", *args, "--run-dir", str(tmp_path / "run"), "--quiet"])
    assert caught.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
