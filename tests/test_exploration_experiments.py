"""The experiments with NGU and Agent57: what they train, their walkers, tables and figures."""

from __future__ import annotations

import csv
import inspect

import numpy as np
import pretended_runs
import pytest

from pronk import agents, cli, envs
from pronk.config import compatibility
from pronk.config.registry import agent_module
from pronk.envs import disco_maze
from pronk.experiments.reproduce import (
    agent57,
    exploration,
    matrix,
    ngu_ablations,
    ngu_maze,
    random_coin,
)
from pronk.run.resolve import resolve

# The walkers.


def test_walkers_visit_what_they_should():
    found = ngu_maze.walk(9, 80, 50)
    # All 31 cells are reached by at most twice as many moves as there are others.
    assert found[ngu_maze.DEPTH_FIRST]["share"] == 1
    assert 30 <= found[ngu_maze.DEPTH_FIRST]["steps"] <= 60
    assert found[ngu_maze.AVOIDING]["steps"] == 80
    assert 0.2 < found[ngu_maze.AVOIDING]["share"] < 0.8
    # Random actions that do not avoid walls end nearly at once, at about two cells.
    assert found[ngu_maze.AVOIDING]["share"] > 3 * 2 / 31


def test_a_walk_ends_at_the_limit_of_steps():
    # From a corner, depth first never goes back within 1 step.
    found = ngu_maze.walk(9, 1, 20)
    assert found[ngu_maze.DEPTH_FIRST] == pytest.approx({"share": 2 / 31, "steps": 1})
    assert found[ngu_maze.AVOIDING]["share"] <= 2 / 31 + 1e-6


def test_depth_first_fits_into_an_episode():
    for size in (5, 11, 21, 63):
        rooms = (size // 2) ** 2
        cells = 2 * rooms - 1
        assert 2 * (cells - 1) <= ngu_maze.steps_of(size) == 5 * rooms
    limit = inspect.signature(disco_maze.make).parameters["max_steps"].default
    assert ngu_maze.steps_of(21) == limit


# Runs that are pretended, so that an experiment takes no time.


def level(plan) -> float:
    """The score that a pretended run arrives at."""
    config, seed = plan.agent_config, plan.run.seed
    if "Maze" in plan.env:
        if config.embedding == "random":
            return 0.2 + 0.01 * seed
        if not config.episodic:
            return 0.1
        return 0.05 if config.intrinsic_scale == 0 else 0.6 + 0.02 * seed
    if "Coin" in plan.env:
        return 1.25 if plan.agent == "agent57" or config.intrinsic_scale < 5 else 0.5
    if "Patience" in plan.env:
        return 2.5 if plan.agent == "agent57" and config.discount > 0.99 else 1.25
    if plan.agent == "r2d2":
        return -1.0 if "Catch" in plan.env else 0.0
    return 1.15 if config.mixtures > 1 else 0.5 * seed


def pretended(plan):
    """Write what a run leaves: episodes of training, and evaluations that end at `level`."""

    def arms(i):
        if plan.agent != "agent57":
            return {}
        record = {"best_mixture": 3.4}  # a mean over updates
        record |= {f"mixture/return/{j}": -abs(j - 7.0 * (i < 8)) for j in range(8)}
        return record | {"mixture/return/3": None}

    return pretended_runs.write(plan, level(plan), arms)  # the longest horizon is best in the end


@pytest.fixture
def trained(monkeypatch):
    """The plans that were carried out, in order; walkers walk a known share."""
    plans = []
    monkeypatch.setattr(matrix.training, "run", lambda plan: plans.append(plan) or pretended(plan))
    walkers = {ngu_maze.DEPTH_FIRST: 0.8, ngu_maze.AVOIDING: 0.25}
    shares = {name: {"share": share, "steps": 9.0} for name, share in walkers.items()}
    monkeypatch.setattr(ngu_maze, "walk", lambda **args: shares)
    return plans


def arguments(name, tmp_path, *further):
    folders = ["--output", str(tmp_path / "runs"), "--results", str(tmp_path)]
    return ["reproduce", name, *folders, *further]


def rows_of(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines))


def test_the_maze_as_an_experiment(trained, tmp_path, capsys):
    args = arguments("ngu-maze", tmp_path, "--seeds", "2", "--steps", "4000", "--size", "7")
    cli.main(args)
    shown = capsys.readouterr().out
    assert "| learned embedding | 0.61 [0.6, 0.62] | 2 | 0.762 [0.75, 0.775] | 2.44 " in shown
    assert "| RND alone | 0.1 [0.1, 0.1] | 2 |" in shown
    assert "| walker: depth first | 0.8 | – | 1 | 3.2 |" in shown
    assert "| learned embedding / RND alone | 6.1 [6, 6.2] |" in shown
    assert "| learned embedding / random projection | 2.98 [2.86, 3.1] |" in shown
    assert {plan.env_args["size"] for plan in trained} == {7}
    assert {plan.env_args["max_steps"] for plan in trained} == {45}
    assert {(p.run.eval_every, p.run.runtime, p.preset) for p in trained} == {
        (200, "fused", "maze")
    }
    assert len(trained) == 2 * len(ngu_maze.VARIANTS)
    assert (tmp_path / "ngu-maze-7.png").stat().st_size > 10_000
    assert {row["variant"] for row in rows_of(tmp_path / "ngu-maze-7.csv")} == {*ngu_maze.VARIANTS}
    # Again: nothing is trained, and a damaged file is named. Another size has files of its own.
    cli.main(args)
    assert len(trained) == 2 * len(ngu_maze.VARIANTS)
    (walkers,) = tmp_path.glob("runs/walkers-7-*.json")
    walkers.write_text("[]")
    with pytest.raises(SystemExit):
        cli.main(args)
    message = " ".join(capsys.readouterr().err.split())
    assert f"`{walkers}` can't be read (it is not a JSON object)" in message
    assert "Delete the file and repeat the command" in message
    cli.main([*args[:-1], "9"])
    assert len(trained) == 4 * len(ngu_maze.VARIANTS)
    assert (tmp_path / "ngu-maze-9-scores.csv").exists()


def test_an_interrupted_run_stops_the_experiment(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(matrix.training, "run", lambda plan: {"status": "interrupted"})
    args = arguments("ngu-maze", tmp_path, "--seeds", "1", "--steps", "4000", "--size", "7")
    with pytest.raises(SystemExit):
        cli.main(args)
    monkeypatch.setattr(
        matrix.training, "run", lambda plan: trained.append(plan) or pretended(plan)
    )
    cli.main(args)
    assert len(trained) == len(ngu_maze.VARIANTS)


def test_the_ratio_of_two_means():
    found = ngu_maze.ratio(np.array([0.4, 0.6]), np.array([0.1, 0.1]))
    assert found == pytest.approx((5.0, 4.0, 6.0))
    single = ngu_maze.ratio(np.array([0.4]), np.array([0.1]))
    assert single == pytest.approx((4.0, 4.0, 4.0))


def test_the_ablations_as_an_experiment(trained, tmp_path, capsys):
    cli.main(arguments("ngu-ablations", tmp_path, "--seeds", "2", "--steps", "4000"))
    shown = capsys.readouterr().out
    assert "| success rate; runs that solved it | KeyDoor | DeepSea | Catch |" in shown
    # Evaluations rise to their last value in ten equal parts: the mean of the last five is 0.8.
    assert (
        "| N = 1 | 0.2 [0, 0.4]; 0 of 2 | 0.202 [0, 0.404]; 0 of 2 | 0.6 [0.5, 0.7]; 0 of 2 |"
        in shown
    )
    assert "| R2D2 | 0 [0, 0]; 0 of 2 | 0 [0, 0]; 0 of 2 | 0.1 [0.1, 0.1]; 0 of 2 |" in shown
    solved = "0.92 [0.92, 0.92]; 2 of 2 | 0.929 [0.929, 0.929]; 2 of 2 | 0.96 [0.96, 0.96]; 2 of 2"
    assert f"| N = 8 | {solved} |" in shown
    sizes = {plan.env: plan.env_args.get("size") for plan in trained}
    assert sizes == {"pronk/KeyDoor-v0": 3, "pronk/Catch-v0": None, "pronk/DeepSea-v0": 10}
    assert (tmp_path / "ngu-ablations.png").stat().st_size > 10_000
    ngu = [plan.agent_config for plan in trained if plan.agent == "ngu"]
    assert {(c.mixtures, c.lifelong, c.episodic, c.extrinsic) for c in ngu} == {
        (1, True, True, True), (8, True, True, True), (32, True, True, True),
        (1, True, True, False), (8, False, True, True), (8, True, False, True),
    }  # fmt: skip
    scales = {
        plan.env: plan.agent_config.intrinsic_scale for plan in trained if plan.agent == "ngu"
    }
    assert scales == {task.env: task.scale for task in exploration.TASKS.values()}


def test_an_episode_of_deep_sea_in_vain_is_no_success():
    task = exploration.TASKS["DeepSea"]
    np.testing.assert_allclose(
        exploration.success(task, np.array([-0.007, 0.0, 0.99])), [0.0, 0.0, 1.0]
    )
    catch = exploration.TASKS["Catch"]
    np.testing.assert_allclose(exploration.success(catch, np.array([-1, 0, 1])), [0, 0.5, 1])


def test_the_way_to_agent57_as_an_experiment(trained, tmp_path, capsys):
    args = arguments("agent57", tmp_path, "--seeds", "2", "--steps", "4000")
    cli.main([*args, "--tasks", "KeyDoor", "Patience"])
    shown = capsys.readouterr().out
    assert "| R2D2 | 0 [0, 0]; 0 of 2 | 0 [0, 0]; 0 of 2 |" in shown
    assert "| NGU | 0.92 [0.92, 0.92]; 2 of 2 | 0 [0, 0]; 0 of 2 |" in shown
    assert "| Agent57 | 0.92 [0.92, 0.92]; 2 of 2 | 1 [1, 1]; 2 of 2 |" in shown
    # Worst task, mean of the two worst, 20th percentile, mean, tasks solved.
    assert "| NGU | 0.00 | 0.46 | 0.18 | 0.46 | 1 of 2 |" in shown
    assert "| Agent57 | 0.92 | 0.96 | 0.94 | 0.96 | 2 of 2 |" in shown
    # Of the ten records of a run the last four are in the last third, and three have arm 0.
    assert "| Patience | 0: 75%, 7: 25% | 75% |" in shown
    for name in ("agent57.png", "agent57-arms.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    arms = rows_of(tmp_path / "agent57-arms.csv")
    assert len(arms) == 2 * 2 * 10
    assert {row["discount"] for row in arms} == {"0.9999", "0.97"}
    copies = {plan.env: plan.agent_config.target_every for plan in trained}
    assert copies == {"pronk/KeyDoor-v0": 100, "pronk/Patience-v0": 20}
    separate = [p.agent_config for p in trained if p.agent == "agent57"][1]
    assert (separate.bandit_epsilon, separate.discount) == (1.0, 0.99)


def test_agent57_has_parts_of_its_agents(trained, tmp_path, capsys):
    args = arguments("agent57", tmp_path, "--seeds", "1", "--steps", "4000", "--tasks", "Catch")
    cli.main([*args, "--agents", "R2D2"])
    shown = capsys.readouterr().out
    assert len(trained) == 1
    assert "There is no figure of the arms, because no run has recorded them." in shown
    assert not (tmp_path / "agent57-arms.png").exists()


def test_the_random_coin_as_an_experiment(trained, tmp_path, capsys):
    cli.main(arguments("random-coin", tmp_path, "--seeds", "2", "--steps", "4000"))
    shown = capsys.readouterr().out
    assert (
        "| success rate; runs that solved it | β = 0.1 | β = 0.3 | β = 1 | β = 3 | β = 10 |"
        in shown
    )
    high = "1 [1, 1]; 2 of 2 |"
    assert f"| single network |{4 * f' {high}'} 0.4 [0.4, 0.4]; 0 of 2 |" in shown
    assert f"| separate networks |{5 * f' {high}'}" in shown
    assert (tmp_path / "random-coin.png").stat().st_size > 10_000
    assert {plan.env_args["size"] for plan in trained} == {5}


@pytest.mark.parametrize("name", ["ngu-ablations", "agent57", "random-coin"])
def test_runs_that_are_too_short_for_an_evaluation(name, tmp_path, capsys, monkeypatch):
    def run(plan):
        summary, path = pretended(plan), plan.directory / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if "eval/" not in line))
        return summary

    monkeypatch.setattr(matrix.training, "run", run)
    picture = tmp_path / f"{name}.png"
    picture.touch()  # of earlier runs
    only = [] if name == "random-coin" else ["--tasks", "Catch"]
    cli.main(arguments(name, tmp_path, "--seeds", "1", "--steps", "4000", *only))
    shown = capsys.readouterr().out
    assert "There is no figure, because no run recorded an evaluation: more `--steps`" in shown
    assert "success rate" not in shown
    assert not picture.exists()


def test_every_variant_can_be_resolved():
    """Each experiment's settings are an agent's, and go together."""
    maze = [("ngu", changed) for changed in ngu_maze.VARIANTS.values()]
    cases = [(ngu_maze.ENV, {}, ngu_maze.COMMON, maze)]
    for task, variants in (
        *((task, ngu_ablations.variants) for task in exploration.TASKS.values()),
        *((task, agent57.variants) for task in agent57.TASKS.values()),
        *((task, random_coin.variants) for task in random_coin.tasks(5).values()),
    ):
        small = [(v.agent, v.settings) for v in variants(task).values()]
        common = {**exploration.COMMON, **task.further}
        cases.append((task.env, task.args, common, small))
    for env, env_args, common, variants in cases:
        for name, changed in variants:
            plan = resolve(name, env, env_args=env_args, **{**common, **changed})
            spec = envs.spec_of(env, env_args)
            agent = agents.make(plan.agent, plan.agent_config, spec, horizon=1)
            compatibility.check(plan, agent, jax_env=True)


def test_the_preset_maze_remembers_a_whole_episode():
    config = agent_module("ngu").preset("maze")
    assert config.memory_size >= ngu_maze.steps_of(21)
    assert config.neighbours < ngu_maze.steps_of(5)
    # Of table 7, what one machine can have as it is.
    table = {"mixtures": 1, "sequence_length": 50, "overlap": 0, "trace_lambda": 0.97,
             "rescaling": "none", "target_every": 100, "kernel_epsilon": 0.01}  # fmt: skip
    assert {name: getattr(config, name) for name in table} == table


def test_quick_experiments_are_smaller(trained, tmp_path):
    for name, runs in (("ngu-maze", 4), ("ngu-ablations", 7)):
        trained.clear()
        cli.main(arguments(name, tmp_path, "--quick"))
        assert len(trained) == runs
        assert {plan.run.steps for plan in trained} <= {50_000}
    assert (tmp_path / "ngu-maze-11.png").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["ngu-maze", "--size", "8"], "RandomDiscoMaze has size=8 and max_steps=80; expected an"),
        (["ngu-maze", "--seeds", "0"], "`--seeds` is 0; expected at least 1"),
        (["ngu-ablations", "--tasks", "DeepSee"], "did you mean 'DeepSea'?"),
        (["ngu-ablations", "--steps", "0"], "`--steps` is 0; expected at least 1"),
    ],
)
def test_bad_input(args, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*arguments(args[0], tmp_path), *args[1:]])
    assert caught.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.glob("runs/*"))
