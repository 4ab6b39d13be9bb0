"""The experiments: what they measure, and that they resume where they were interrupted."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from pronk import cli, envs
from pronk.agents import impala_config, r2d2
from pronk.experiments.reproduce import (
    pbt,
    policy_lag,
    popart_atari,
    side_by_side,
    td_lambda,
    vtrace_ablation,
    vtrace_analysis,
)
from pronk.experiments.reproduce import popart as popart_experiment
from pronk.experiments.reproduce import r2d2_ablations as ablations
from pronk.experiments.reproduce import r2d2_staleness as study
from pronk.maths import popart
from pronk.run.build import fused_shape
from pronk.run.evaluate import Evaluation, SuiteEvaluation
from pronk.run.resolve import resolve
from pronk.run.setup import ACTOR_KEY, INIT_KEY, build, initial_state, key_for
from pronk.runtime import fused


@pytest.fixture(scope="module")
def recent_episodes():
    """Episodes of one unchanged network; its trajectories, parameters and forward function."""
    plan = study._plan("stored state", 0, 1000)
    # Acting at random, for episodes longer than an untrained network's.
    config = dataclasses.replace(plan.agent_config, epsilon_greedy=1.0, epsilon_alpha=0.0)
    plan = dataclasses.replace(plan, agent_config=config)
    spec, agent = build(plan, plan.env)
    state = initial_state(plan, agent)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + np.float32(0.1 * rng.normal(size=x.shape)), state.params)
    actor = study._recording_actor(plan, agent)
    recent, trajectories = study._RecentEpisodes(), []
    for _ in range(60):
        trajectories.append(actor.unroll(params, 0).trajectory)
        recent.add(trajectories[-1])
    forward = r2d2.build(plan.agent_config, spec).forward
    return recent, trajectories, params, jax.jit(forward)


def test_complete_episodes_are_kept(recent_episodes):
    recent, trajectories, _, _ = recent_episodes
    assert len(recent.episodes) > 20
    for episode in recent.episodes:
        first = episode.timestep.first
        assert first[0]
        assert not first[1:].any()
        ended = episode.timestep.terminated | episode.timestep.truncated
        assert ended[-1]
        assert not ended[:-1].any()
    rows = sum(len(e.action) for e in recent.episodes)
    assert rows <= sum(t.action[:-1].size for t in trajectories)


@pytest.mark.extended
def test_stored_states_of_an_unchanged_network_have_no_error(recent_episodes):
    """The stored state is right while the network has not changed; zeros are wrong, and a burn-in
    reduces their error."""
    recent, _, params, forward = recent_episodes
    delta = {}
    for strategy in study.STRATEGIES:
        config = study._plan(strategy, 0, 1000).agent_config
        delta[strategy] = study._delta_q(forward, params, recent, config, np.random.default_rng(1))
    for strategy in ("stored state", "stored + burn-in"):
        assert max(delta[strategy]) < 1e-4
    assert delta["zero state"][0] > delta["zero state + burn-in"][0] > 1e-4
    assert delta["zero state"][0] > delta["zero state"][1]


@pytest.mark.extended
def test_an_interrupted_study_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "EVERY", 5)
    monkeypatch.setattr(study, "FORGET", (1, 500))
    args = ["reproduce", "r2d2-staleness", "--seeds", "1", "--steps", "1500"]
    args += ["--output", str(tmp_path / "runs"), "--results", str(tmp_path)]
    train, done = study._train, []

    def once(*given):
        if done:
            raise KeyboardInterrupt
        done.append(given)
        return train(*given)

    monkeypatch.setattr(study, "_train", once)
    with pytest.raises(SystemExit):
        cli.main(args)
    kept = {p.name: json.loads(p.read_text()) for p in (tmp_path / "runs").iterdir()}
    assert len(kept) == 1
    monkeypatch.setattr(study, "_train", train)
    cli.main(args)
    assert "stored + burn-in" in capsys.readouterr().out
    for name, content in kept.items():
        assert json.loads((tmp_path / "runs" / name).read_text()) == content
    assert len(list((tmp_path / "runs").iterdir())) == 4
    assert (tmp_path / "r2d2-staleness.png").stat().st_size > 10_000
    rows = (tmp_path / "r2d2-staleness.csv").read_text().splitlines()
    assert rows[0] == "strategy,seed,steps,first,last,return"
    assert len(rows) > 4
    memory = (tmp_path / "r2d2-memory.csv").read_text().splitlines()
    assert len(memory) == 1 + 4 * 2


@pytest.mark.extended
def test_each_ablation_changes_one_part_and_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablations, "EPISODES", 2)
    some = {name: ablations.VARIANTS[name] for name in ("R2D2", "Feed-Forward", "roll")}
    assert len(ablations.VARIANTS) == 6
    monkeypatch.setattr(ablations, "VARIANTS", some)
    args = ["reproduce", "r2d2-ablations", "--seeds", "1", "--steps", "2000"]
    args += ["--output", str(tmp_path / "runs"), "--results", str(tmp_path)]
    cli.main(args)
    assert "Feed-Forward" in capsys.readouterr().out
    configs = {}
    for variant in ablations.VARIANTS:
        config = json.loads((tmp_path / "runs" / f"{variant}-0-2000" / "config.json").read_text())
        configs[variant] = {**config["agent_config"], **config["env_args"]}
    assert configs["R2D2"]["discount"] == 0.997
    for variant, changed in ablations.VARIANTS.items():
        expected = {**configs["R2D2"], **changed, **changed.get("env_args", {})}
        expected.pop("env_args", None)
        assert configs[variant] == expected
    rows = (tmp_path / "r2d2-ablations-greedy.csv").read_text().splitlines()
    assert len(rows) == 1 + len(ablations.VARIANTS)
    curves = (tmp_path / "r2d2-ablations.csv").read_text().splitlines()
    assert {row.split(",")[0] for row in curves[1:]} == set(ablations.VARIANTS)
    # Finished runs are not repeated.
    (kept,) = (tmp_path / "runs").glob("roll-0-2000-*.json")
    kept.unlink()
    train, trained = ablations._train, []
    monkeypatch.setattr(ablations, "_train", lambda *given: trained.append(given) or train(*given))
    cli.main(args)
    assert [given[1] for given in trained] == ["roll"]
    assert (tmp_path / "r2d2-ablations-greedy.csv").read_text().splitlines() == rows


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["r2d2-stalenes"], "did you mean 'r2d2-staleness'"),
        (["r2d2-staleness", "--seeds", "0"], "`--seeds` is 0; expected at least 1"),
        (["popart-atari", "--episodes", "0"], "`--episodes` is 0; expected at least 1"),
        (["pbt", "--population", "0"], "`--population` is 0; expected at least 1"),
        (["td-lambda", "--results", "/dev/null"], "or choose another `--results`"),
        (["policy-lag", "--scale", "0"], "`--scale` is 0.0; expected a finite number above zero"),
        (["policy-lag", "--tasks", "deep see"], "`--tasks` has 'deep see'; known are 'delayed"),
        (["vtrace-ablation", "--tasks", "deep see"], "'deep see'; did you mean 'deep sea'?"),
    ],
)
def test_bad_input(args, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["reproduce", *args])
    assert caught.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


# Fused runs side by side, and the experiments made of them.


def test_experiments_do_not_change_with_the_presets(monkeypatch, tmp_path):
    """Their committed results belong to hyperparameters that they name themselves."""

    def configs():
        tasks = vtrace_ablation.TASKS
        yield pbt.plan_for(pbt.TASKS["cart-pole"], 100, tmp_path, 1.0)
        yield vtrace_ablation.plan_for(tasks["deep sea"], "none", replay=True, lag=0, steps=1000)
        yield popart_experiment.plan_for("popart", 1000, debias=False)

    before = [plan.agent_config for plan in configs()]
    for preset in (p for name, p in impala_config.PRESETS.items() if name != "paper"):
        monkeypatch.setitem(preset, "separate_value", True)
        monkeypatch.setitem(preset, "optimiser_epsilon", 0.1)
    assert before == [plan.agent_config for plan in configs()]
    assert {(c.optimiser, c.learning_rate, c.reward_clip) for c in before} == {("adam", 3e-3, 0.0)}
    assert [c.hidden_sizes for c in before] == [(64,), (64,), (128,)]
    assert [c.batch_size for c in before] == [16, 16, 18]


@pytest.mark.extended
def test_members_equal_single_runs():
    """With their own seeds and hyperparameters, independently of the others."""
    plan = resolve("impala", "pronk/Catch-v0", preset="small", steps=1600, batch_size=2, unroll=5,
                   hidden_sizes=(8,), runtime="fused")  # fmt: skip
    members = [
        side_by_side.Member(seed, {"learning_rate": rate, "entropy_cost": 0.02})
        for seed, rate in ((3, 1e-3), (3, 3e-2), (4, 1e-3))
    ]
    curves = side_by_side.train(plan, members, points=4)
    assert curves.mean_return.shape == curves.steps.shape == (3, 4)
    _, agent = build(plan, plan.env)
    env = envs.jax_env_of(plan.env)
    assert env is not None
    init, update = fused.build(agent, env, **fused_shape(plan, agent))
    update, begin = jax.jit(update), jax.jit(agent.init)
    for i, member in enumerate(members):
        learner = begin(key_for(member.seed, INIT_KEY))
        hyper = learner.hyper | {k: np.float32(v) for k, v in member.hyper.items()}
        run = init(learner._replace(hyper=hyper), key_for(member.seed, ACTOR_KEY))
        ended, steps = [], 0
        for _ in range(40):  # updates in a quarter of 1,600 steps, of 2 × 5 each
            run, outcome = update(run)
            ended += np.asarray(outcome.episode_return)[np.asarray(outcome.ended)].tolist()
            steps += int(outcome.steps)
        assert curves.steps[i, 0] == steps
        assert curves.mean_return[i, 0] == pytest.approx(np.mean(ended), abs=1e-5)
    assert len({tuple(row) for row in curves.mean_return.tolist()}) == 3
    assert curves.final.shape == (3,)
    assert np.all(np.abs(curves.final) < 1)


@pytest.mark.extended
def test_the_final_parameters_are_evaluated():
    """Neither those of so many updates before, nor any learnt during the evaluation."""
    plan = resolve("impala", "pronk/Catch-v0", preset="small", steps=60_000, batch_size=16,
                   env_args={"rows": 4}, hidden_sizes=(16,), reward_scale=1.0, runtime="fused",
                   policy_lag=40)  # fmt: skip
    members = [
        side_by_side.Member(0, {"learning_rate": rate, "entropy_cost": 1e-3})
        for rate in (0.0, 1e-2)
    ]
    curves = side_by_side.train(plan, members, points=1)
    assert curves.final[0] < 0
    assert curves.final[1] > 0.9
    assert curves.final[1] > curves.mean_return[1, 0] + 0.1


def pretended(plan, members, *, points, observe=None):
    """Curves as if something had been learnt: the more, the nearer the learning rate is to 1e-3."""
    level = [1 / (1 + abs(np.log10(m.hyper["learning_rate"]) + 3)) + m.seed / 1e4 for m in members]
    curves = np.outer(level, np.linspace(0, 1, points))
    curves[:, 0] = np.nan  # no episode had ended yet
    steps = np.tile(np.arange(1, points + 1) * 100, (len(members), 1))
    return side_by_side.Curves(curves, steps, np.array(level), curves[..., None])


@pytest.fixture
def pretend(monkeypatch):
    """Two tasks and two corrections; records the plans instead of training."""
    plans = []

    def train(plan, members, **options):
        plans.append(plan)
        return pretended(plan, members, **options)

    tasks = {
        "short": vtrace_ablation.Task("pronk/Catch-v0", {"rows": 4}, 3200, {"hidden_sizes": (8,)}),
        "delayed": vtrace_ablation.Task(
            "pronk/Catch-v0", {"delay": 5}, 3200, {"hidden_sizes": (8,)}
        ),
    }
    monkeypatch.setattr(policy_lag, "SHOWN", ("short",))
    for module in (vtrace_ablation, policy_lag):
        monkeypatch.setattr(module, "TASKS", tasks)
        monkeypatch.setattr(module, "CORRECTIONS", {"vtrace": "V-trace", "none": "none"})
    monkeypatch.setattr(side_by_side, "train", train)
    return plans


def test_an_interrupted_ablation_resumes(pretend, tmp_path, monkeypatch, capsys):
    args = ["reproduce", "vtrace-ablation", "--seeds", "2", "--output", str(tmp_path / "runs")]
    args += ["--results", str(tmp_path)]
    cell, done = vtrace_ablation.train, []

    def some(plan, seeds):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(plan)
        return cell(plan, seeds)

    monkeypatch.setattr(vtrace_ablation, "train", some)
    with pytest.raises(SystemExit):
        cli.main(args)
    assert len(list((tmp_path / "runs").iterdir())) == 3
    monkeypatch.setattr(vtrace_ablation, "train", lambda *x: done.append(x[0]) or cell(*x))
    cli.main(args)
    shown = capsys.readouterr().out
    assert len(done) == 8  # two tasks × two corrections × with and without replay
    assert "| **with replay** |" in shown
    assert "best, or within the interval of the best (or 1% of the spread), with replay:" in shown
    cli.main(args)
    assert len(done) == 8
    # Other settings reuse none of the results, and keep them.
    cli.main([*args[:2], "--scale", "0.5", "--tasks", "short", *args[2:]])
    assert len(done) == 12
    cli.main([*args[:2], "--scale", "0.5", *args[2:]])
    assert len(done) == 16
    assert len(list((tmp_path / "runs").iterdir())) == 16
    assert {p.run.policy_lag for p in done} == {10}
    # As many fresh trajectories with replay as without.
    assert {(p.agent_config.replay_fraction, p.agent_config.batch_size) for p in done} == {
        (0.0, 8), (0.5, 16)
    }  # fmt: skip
    grid = math.prod(map(len, vtrace_ablation.GRID.values()))
    rows = (tmp_path / "vtrace-ablation.csv").read_text().splitlines()
    assert len(rows) == 1 + 8 * (grid * side_by_side.SELECTION_SEEDS + 2)
    curves = (tmp_path / "vtrace-ablation-curves.csv").read_text().splitlines()
    assert len(curves) == 1 + 8 * 2
    assert {len(row.split(",")) for row in curves} == {5 + vtrace_ablation.POINTS}
    assert (tmp_path / "vtrace-ablation.png").stat().st_size > 10_000


def test_the_best_point_of_the_grid_is_run_on_other_seeds(pretend):
    plan = vtrace_ablation.plan_for(
        vtrace_ablation.TASKS["short"], "vtrace", replay=False, lag=0, steps=100
    )
    result = vtrace_ablation.train(plan, 3)
    assert result["best"] == {"learning_rate": 1e-3, "entropy_cost": 1e-3}
    assert len(result["grid"]) == 6
    # The last quarter's mean of 40 points that rise from 0 to 1 + seed / 10,000.
    rising = np.linspace(0, 1, 40)[-10:].mean()
    assert result["scores"] == pytest.approx(
        [rising * (1 + seed / 1e4) for seed in (100, 101, 102)]
    )
    assert result["grid"][0]["scores"] == pytest.approx(
        [rising * (1 / (1 + np.log10(1e-3 / 3e-4)) + seed / 1e4) for seed in (0, 1)]
    )


@pytest.mark.parametrize("name", vtrace_ablation.TASKS)
def test_every_task_has_a_plan(name):
    for replay in (False, True):
        plan = vtrace_ablation.plan_for(
            vtrace_ablation.TASKS[name], "one-step", replay=replay, lag=10, steps=1000
        )
        _, agent = build(plan, plan.env)
        shape = fused_shape(plan, agent)
        assert shape["num_envs"] * shape["unroll"] == vtrace_ablation.FRESH
        assert shape["draws"] == (shape["num_envs"] if replay else 0)


def test_the_verdict_counts_corrections_near_the_best():
    def cell(correction, scores):
        return {"task": "a", "replay": False, "correction": correction, "scores": scores}

    scores = {"vtrace": [1.0, 1.2], "one-step": [1.1, 1.3], "epsilon": [0.2] * 2, "none": [0.0] * 2}
    cells = [cell(c, s) for c, s in scores.items()]
    close = {"vtrace": 0.495, "one-step": 0.5, "epsilon": 0.48, "none": -0.5}
    cells += [{**cell(c, [s] * 2), "replay": True} for c, s in close.items()]
    start = "best, or within the interval of the best (or 1% of the spread), "
    assert vtrace_ablation.verdict(cells).splitlines() == [
        f"{start}without replay: V-trace 1 (1) of 1, 1-step 1 (1) of 1, ε-correction 0 (0) of 1,"
        " no-correction 0 (0) of 1",
        f"{start}with replay: V-trace 0 (1) of 1, 1-step 1 (1) of 1, ε-correction 0 (0) of 1,"
        " no-correction 0 (0) of 1",
    ]
    assert "| 1-step | **1.2** [1.1, 1.3] |" in vtrace_ablation.table(cells)


@pytest.mark.extended
def test_committed_figures_can_be_drawn_from_the_committed_tables(tmp_path):
    results = Path(__file__).parents[1] / "docs" / "results"
    for table in results.glob("*.csv"):
        shutil.copy(table, tmp_path)
    for module in (
        policy_lag, popart_atari, popart_experiment, ablations, study, td_lambda, vtrace_ablation,
        vtrace_analysis, pbt,
    ):  # fmt: skip
        assert module.draw(tmp_path).stat().st_size > 10_000
    assert popart_experiment.draw_statistics(tmp_path).stat().st_size > 10_000


def test_policy_lag_as_an_experiment(pretend, tmp_path, capsys):
    args = ["reproduce", "policy-lag", "--seeds", "2", "--output", str(tmp_path / "runs")]
    cli.main([*args, "--results", str(tmp_path)])
    assert "| short | k = 0 | k = 1 |" in capsys.readouterr().out
    expected = [(lag, c) for lag in policy_lag.LAGS for c in ("vtrace", "none")]
    assert [(p.run.policy_lag, p.agent_config.correction) for p in pretend] == expected
    rows = (tmp_path / "policy-lag.csv").read_text().splitlines()
    assert len(rows) == 1 + len(expected) * 2
    assert (tmp_path / "policy-lag.png").stat().st_size > 5_000
    cli.main([*args, "--results", str(tmp_path)])
    assert len(pretend) == len(expected)


@pytest.mark.extended
def test_popart_as_an_experiment(monkeypatch, tmp_path, capsys):
    """It resumes; 0.9 and 0.1 are relative to agents trained on one task."""
    share = {"none": {1.0: 0.5, 0.0: 0.05}, "art": {0.0: 0.8}, "popart": {0.0: 0.95}}
    tasks = popart_experiment.SUITES[popart_experiment.SUITE]
    scales, plans = np.array([task.reward_scale for task in tasks]), []

    def train(plan, members, *, points, observe=None):
        """Returns rise from 1 (untrained policy) to a share of 2 (an agent for this task alone),
        in each task's own rewards; the best learning rate is 1e-3."""
        if len(plans) == stop:
            raise KeyboardInterrupt
        plans.append(plan)
        config, alone = plan.agent_config, plan.env != popart_experiment.SUITE
        top = 1.0 if alone else share[config.value_normalisation][config.reward_clip]
        rates = np.array([m.hyper["learning_rate"] for m in members])
        level = np.where(rates == 0, 0.0, np.where(rates == 1e-3, top, top / 2))
        rising = 1 + level[:, None, None] * np.clip(np.linspace(0, 2, points), 0, 1)[:, None]
        returns = rising * (np.ones(1) if alone else scales)
        steps = np.tile(np.arange(1, points + 1) * 100, (len(members), 1))
        shape = (len(members), len(tasks))
        statistics = popart.Statistics(np.ones(shape), np.full(shape, 4.0), np.zeros(shape))
        learners = SimpleNamespace(extra={"statistics": statistics})
        observed = [] if observe is None else [observe(learners)] * points
        return side_by_side.Curves(returns.mean(-1), steps, level, returns, observed)

    monkeypatch.setattr(side_by_side, "train", train)
    args = ["reproduce", "popart", "--seeds", "2", "--output", str(tmp_path / "runs")]
    args += ["--results", str(tmp_path)]
    stop = 5  # after two agents' grids and runs, and the third one's grid
    with pytest.raises(SystemExit):
        cli.main(args)
    assert len(list((tmp_path / "runs").iterdir())) == 2
    stop = -1
    cli.main(args)
    shown = capsys.readouterr().out
    whole = 2 * (len(popart_experiment.CONDITIONS) + len(tasks)) + 1
    assert len(plans) == whole + 1  # one grid was done again
    cli.main(args)
    assert len(plans) == whole + 1
    assert "| PopArt-IMPALA | 95% [95%, 95%] |" in shown
    assert f"PopArt-IMPALA: {len(tasks)} of {len(tasks)} at 90 % or more, 0 below 10 %" in shown
    assert f"IMPALA, unclipped: 0 of {len(tasks)} at 90 % or more, {len(tasks)} below" in shown
    assert "| IMPALA, clipped | 50% [50%, 50%] |" in shown
    assert "| return that is 100 % | 2 | 2 |" in shown
    assert "| return that is 0 % | 1 | 1 |" in shown
    # As many steps and updates of each task alone as in the suite.
    together, alone = plans[0], plans[-2]
    assert together.run.steps == alone.run.steps * len(tasks)
    assert together.agent_config.batch_size == alone.agent_config.batch_size * len(tasks)
    lines = (tmp_path / "popart.csv").read_text().splitlines()
    grid = len(popart_experiment.LEARNING_RATES) * popart_experiment.SELECTION_SEEDS + 2
    assert len(lines) == 1 + len(tasks) * (4 * grid + grid + 1)
    statistics = (tmp_path / "popart-statistics.csv").read_text().splitlines()
    assert len(statistics) == 1 + popart_experiment.POINTS * 2 * len(tasks)
    assert statistics[1].endswith(",1,2")
    curves = (tmp_path / "popart-curves.csv").read_text().splitlines()
    assert len(curves) == 1 + len(popart_experiment.CONDITIONS) * 2 * popart_experiment.POINTS
    for picture in ("popart", "popart-curves", "popart-statistics"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 10_000


def test_a_task_that_the_reference_does_not_learn_has_no_score():
    tasks = popart_experiment.SUITES[popart_experiment.SUITE]
    cell = {"scores": [[1.0] * len(tasks)] * 2, "curves": [[[1.0] * len(tasks)]] * 2}
    singles = {task.name: {"scores": [[0.0], [0.0]]} for task in tasks}
    normalised = popart_experiment.Normalised({"popart": cell}, singles, [0.0] * len(tasks))
    assert np.isnan(normalised.scores["popart"]).all()


def test_popart_on_atari_as_an_experiment(monkeypatch, tmp_path, capsys):
    """One run for each agent, which resumes; scores are human-normalised."""
    games, trained = popart_atari.GAMES, []

    def train(agent, env, *, run_dir, **settings):
        trained.append(settings)
        run_dir.mkdir(parents=True, exist_ok=True)
        records = [
            {"steps": 10 * i, **{f"return/ALE/{game}-v5": float(i) for game in games[: 2 * i]}}
            for i in (1, 2)
        ]
        text = "".join(json.dumps(record) + "\n" for record in records)
        (run_dir / "metrics.jsonl").write_text(text)
        status = "interrupted" if len(trained) == 2 else "finished"
        return {"status": status, "wall_seconds": 1.0}

    def evaluate(*, episodes, sample):
        assert (episodes, sample) == (7, True)
        of = [popart_atari.scores.ATARI[game] for game in games]
        played = {
            f"ALE/{game}-v5": Evaluation(7, (low + high) / 2, 0.0, 0.0, 0.0, 1.0, None)
            for game, (low, high) in zip(games, of, strict=True)
        }
        return SuiteEvaluation(played, {}, {})

    monkeypatch.setattr(popart_atari, "train", train)
    monkeypatch.setattr(popart_atari, "load", lambda run: SimpleNamespace(evaluate=evaluate))
    args = ["reproduce", "popart-atari", "--output", str(tmp_path / "runs"), "--episodes", "7"]
    args += ["--results", str(tmp_path)]
    with pytest.raises(SystemExit):
        cli.main(args)
    cli.main(args)
    assert len(trained) == 4  # the second one twice
    assert {s["reward_clip"] for s in trained[:3]} == {0.0}
    assert trained[3].get("reward_clip") is None  # as the preset has it
    shown = capsys.readouterr().out
    assert shown.count("(50.0%)") == 3 * len(games)
    curves = (tmp_path / "popart-atari.csv").read_text().splitlines()
    assert len(curves) == 1 + 3  # records with a return of every game
    assert (tmp_path / "popart-atari.png").stat().st_size > 10_000
