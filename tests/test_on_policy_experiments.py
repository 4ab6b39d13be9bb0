"""The experiments with on-policy agents: what they train, that they resume, and their tables."""

from __future__ import annotations

import csv
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from pronk import agents, cli, envs, report
from pronk.config import compatibility
from pronk.config.registry import agent_module
from pronk.errors import UserError
from pronk.experiments.reproduce import common, duan, kl, matrix, mujoco, ppo_clip, study
from pronk.experiments.reproduce.matrix import JAX_TASKS, Variant
from pronk.report import published
from pronk.run.resolve import resolve
from pronk.storage.checkpoint import Checkpointer
from pronk.storage.files import write_json_atomically

TINY = {"unroll": 16, "batch_size": 4, "hidden_sizes": (4,), "value_hidden_sizes": (4,)}


# The mathematics of the tables.


def test_ranks_share_ties():
    np.testing.assert_array_equal(report.ranks([10.0, 30.0, 20.0]), [3, 1, 2])
    np.testing.assert_array_equal(report.ranks([5.0, 7.0, 7.0, 1.0]), [3, 1.5, 1.5, 4])
    means = [[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]  # tasks × algorithms
    np.testing.assert_allclose(report.mean_ranks(means), [7 / 3, 2, 5 / 3])


@pytest.mark.parametrize("seed", range(5))
def test_kendalls_tau_is_scipys(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 6, (2, 7, 8)).astype(float)  # with ties
    for a, b, tau in zip(x, y, report.kendall_tau(x, y), strict=True):
        assert tau == pytest.approx(scipy.stats.kendalltau(a, b).statistic)
    assert report.kendall_tau([1, 2, 3], [3, 2, 1]) == -1
    assert math.isnan(report.kendall_tau([1, 1, 1], [1, 2, 3]))


def test_bold_is_the_best_and_what_does_not_differ_from_it():
    best, near, far = [10.0, 11.0, 12.0], [9.0, 10.5, 12.0], [1.0, 1.5, 2.0]
    assert scipy.stats.ttest_ind(best, near, equal_var=False).pvalue > 0.05
    assert scipy.stats.ttest_ind(best, far, equal_var=False).pvalue < 0.05
    assert report.among_best([far, near, best]) == [False, True, True]
    # Of one run nothing is known but its score, and runs that do not vary differ or are equal.
    assert report.among_best([[1.0], [2.0], [2.0]]) == [False, True, True]
    assert report.among_best([[1.0, 1.0], [2.0, 2.0]]) == [False, True]


def test_the_published_table_has_its_mean_ranks():
    """Computed once by hand from table 1: the five basic tasks, eight algorithms."""
    names = [name for name in published.DUAN["pronk/Acrobot"] if name != "random"]
    means = [[row[name].mean for name in names] for row in published.DUAN.values()]
    ranks = dict(zip(names, report.mean_ranks(means), strict=True))
    expected = {
        "trpo": 1.4, "tnpg": 3.2, "reinforce": 4.6, "ddpg": 4.6, "rwr": 3.4, "cem": 4.2,
        "cma-es": 6.8, "reps": 7.8,
    }  # fmt: skip
    assert ranks == pytest.approx(expected)
    assert set(published.DUAN) == {f"pronk/{name}" for name in JAX_TASKS}
    assert set(ppo_clip.VARIANTS) <= set(published.PPO_SURROGATES)


def test_random_play_is_0_and_the_best_mean_1():
    scores = {"a": {"x": np.array([10.0, 20.0])}, "b": {"x": np.array([5.0])}}
    np.testing.assert_allclose(matrix.normalised_means(scores, ["x"], {"x": 5.0}), [[1.0, 0.0]])
    assert matrix.spread(np.array([10.0, 20.0])) == "15.0 ± 7.1"
    assert matrix.spread(np.array([1.0]), bold=True) == "**1.0**"


def test_a_task_without_an_agent_above_random_play_is_not_normalised(tmp_path):
    scores = {
        "reinforce": {"Acrobot": np.array([10.0]), "MountainCar": np.array([-9.0])},
        "trpo": {"Acrobot": np.array([20.0]), "MountainCar": np.array([-5.0])},
    }
    random = {"Acrobot": 0.0, "MountainCar": -5.0}
    above, words = matrix.above_random(scores, list(random), random)
    assert above == ["Acrobot"]
    assert words.endswith("above random play: MountainCar")
    assert "| reinforce | 0.500 | 2.00 |" in duan.summary(scores, random, list(random))
    assert "| trpo | – | 1.00 |" in duan.summary(scores, random, ["MountainCar"])
    rows = [
        [task, name, 0, -6.0 if task == "MountainCar" else 10.0]
        for task in random
        for name in ("clip 0.1", "clip 0.2")
    ]
    header = ["task", "variant", "seed", "last_100"]
    common.write_csv(tmp_path / "ppo-clip-scores.csv", header, rows)
    common.write_csv(tmp_path / "ppo-clip-random.csv", ["task", "mean_return"], random.items())
    shown = ppo_clip.table(tmp_path)
    assert "| clip 0.2 | 1.00 | 0.82 | 10.0 | -6.0 |" in shown
    assert shown.endswith("above random play: MountainCar")


# Runs that are pretended, so that an experiment takes no time.


def level(plan) -> float:
    """The return that a pretended run arrives at: by agent, seed, and a few settings."""
    base = {"reinforce": 10.0, "npg": 20.0, "tnpg": 40.0, "trpo": 41.0, "ppo": 30.0}.get(
        plan.agent, 5.0
    )
    config = plan.agent_config
    base -= 25.0 * (getattr(config, "objective", "clip") == "none")
    base -= 5.0 * (getattr(config, "gae_lambda", None) == 0.95)
    return base + plan.run.seed


def pretended(plan):
    """Write what a run of ten records leaves; its 50 episodes have half of `level` on average."""
    directory, steps = plan.directory, plan.run.steps
    directory.mkdir(parents=True)
    write_json_atomically(directory / "config.json", plan.as_json())
    with (directory / "metrics.jsonl").open("w") as file:
        for i in range(1, 11):
            record = {"steps": steps * i // 10, "episodes": 5 * i, "wall_seconds": float(i)}
            file.write(json.dumps({**record, "mean_return": level(plan) * i / 10}) + "\n")
        if plan.run.eval_every:
            found = {"eval/mean_return": 2 * level(plan), "eval/episodes": plan.run.eval_episodes}
            file.write(json.dumps({"steps": steps, **found}) + "\n")
    meta = {"tally": {"total": [25.0 * level(plan)], "squares": [1.0], "count": [50]}}
    trees = {"learner": {"x": np.zeros(1)}}
    Checkpointer(directory / "checkpoints").save(steps, trees, meta, block=True)
    summary = {"status": "finished"}
    write_json_atomically(directory / "summary.json", summary)
    return summary


@pytest.fixture
def trained(monkeypatch):
    """The plans that were carried out, in order; random play returns 0."""
    plans = []
    monkeypatch.setattr(matrix.training, "run", lambda plan: plans.append(plan) or pretended(plan))
    monkeypatch.setattr(matrix, "random_play", lambda output, env: 0.0)
    monkeypatch.setattr(matrix.envs, "spec_of", lambda env: None)
    return plans


def arguments(name, tmp_path, *further):
    folders = ["--output", str(tmp_path / "runs"), "--results", str(tmp_path)]
    return ["reproduce", name, *folders, *further]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def test_an_interrupted_experiment_trains_only_what_is_missing(
    trained, tmp_path, monkeypatch, capsys
):
    args = arguments("duan", tmp_path, "--seeds", "2", "--steps", "1000", "--tasks", "Acrobot")
    agents = ("reinforce", "cem", "trpo")
    args += ["--agents", *agents]
    run = matrix.training.run

    def some(plan):
        return run(plan) if len(trained) < 4 else {"status": "interrupted"}

    monkeypatch.setattr(matrix.training, "run", some)
    with pytest.raises(SystemExit):
        cli.main(args)
    assert len(trained) == 4
    assert not (tmp_path / "duan.csv").exists()
    monkeypatch.setattr(matrix.training, "run", run)
    cli.main(args)
    assert len({plan.run_dir for plan in trained}) == len(trained) == 2 * len(agents)
    before = (tmp_path / "duan-scores.csv").read_text()
    cli.main(args)
    assert len(trained) == 2 * len(agents)
    assert (tmp_path / "duan-scores.csv").read_text() == before
    # Further seeds are added, and other steps have runs of their own.
    cli.main([*args, "--seeds", "3"])
    assert len(trained) == 3 * len(agents)
    cli.main([*args, "--steps", "2000"])
    assert len(trained) == 5 * len(agents)
    assert "| Acrobot | 0.0 |" in capsys.readouterr().out


def test_runs_of_other_settings_are_not_reused(trained, tmp_path):
    changes = {
        "runtime": "local",
        "architecture": "sync-unroll",
        "actors": 3,
        "envs_per_actor": 4,
        "eval_every": 500,
        "eval_episodes": 7,
    }
    for settings in ({}, *({name: value} for name, value in changes.items())):
        for _ in range(2):
            variants = {"ppo": Variant("ppo", {"preset": "paper", **settings})}
            matrix.train(tmp_path, {"a": JAX_TASKS["Acrobot"]}, variants, seeds=1, steps=1000)
    assert len({plan.run_dir for plan in trained}) == len(trained) == 1 + len(changes)


def test_a_run_that_did_not_finish_is_resumed(trained, tmp_path, monkeypatch):
    args = arguments("duan", tmp_path, "--seeds", "1", "--steps", "1000", "--tasks", "Acrobot")
    cli.main([*args, "--agents", "trpo"])
    (directory,) = (tmp_path / "runs").glob("trpo-*")
    write_json_atomically(directory / "summary.json", {"status": "interrupted"})
    resumed = []

    def resume(plan):
        resumed.append(plan.directory)
        write_json_atomically(plan.directory / "summary.json", {"status": "finished"})
        return {"status": "finished"}

    monkeypatch.setattr(matrix.training, "run", resume)
    cli.main([*args, "--agents", "trpo"])
    assert resumed == [directory]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_finished_run_without_its_checkpoint_is_named(trained, tmp_path, damaged):
    args = tmp_path, {"a": JAX_TASKS["Acrobot"]}, {"ppo": Variant("ppo", {"preset": "paper"})}
    matrix.train(*args, seeds=1, steps=1000)
    directory = trained[0].directory
    (checkpoint,) = (directory / "checkpoints").glob("*.safetensors")
    if damaged:
        checkpoint.write_bytes(checkpoint.read_bytes()[:20])
    else:
        checkpoint.unlink()
    with pytest.raises(UserError, match="Delete the directory") as caught:
        matrix.train(*args, seeds=1, steps=1000)
    assert f"'{directory}'" in str(caught.value)
    shutil.rmtree(directory)
    matrix.train(*args, seeds=1, steps=1000)
    assert len(trained) == 2


def test_duans_table(trained, tmp_path, capsys):
    """In the paper's form, its metric, and the comparison with the published ranking."""
    names = ("--tasks", "Acrobot", "DoublePendulum", "--seeds", "3", "--steps", "1000")
    agents = ("reinforce", "npg", "tnpg", "trpo", "ppo")
    cli.main(arguments("duan", tmp_path, *names, "--agents", *agents))
    shown = capsys.readouterr().out
    assert "| | random | reinforce | npg | tnpg | trpo | ppo |" in shown
    # Half of `level` of seeds 0 to 2; the two best do not differ significantly.
    cells = "5.5 ± 0.5 | 10.5 ± 0.5 | **20.5 ± 0.5** | **21.0 ± 0.5** | 13.0 ± 0.5"
    assert f"| Acrobot | 0.0 | {cells} |" in shown
    columns = "rank among the paper's agents | published rank | published normalised score"
    assert f"| | normalised score | mean rank | {columns} |" in shown
    assert "| reinforce | 0.262 | 5.00 | 3.00 | 3.00 | 0.876 |" in shown
    assert "| trpo | 1.000 | 1.00 | 1.00 | 1.50 |" in shown
    assert "| ppo | 0.619 | 3.00 | | | |" in shown
    assert "Kendall's τ of the mean ranks of reinforce, tnpg, trpo on 2 tasks" in shown
    configs = {plan.agent: plan.agent_config for plan in trained}
    assert {config.hidden_sizes for config in configs.values()} == {(100, 50, 25)}
    assert {config.unroll * config.batch_size for config in configs.values()} == {10_000}
    assert {configs[name].fisher_every for name in ("npg", "tnpg", "trpo")} == {5}
    assert not configs["tnpg"].reject
    assert kl.plan_for("tnpg", "Acrobot", 0, 1000).agent_config.reject  # there, δ is kept
    assert {plan.run.runtime for plan in trained} == {"fused"}
    assert (tmp_path / "duan.png").stat().st_size > 10_000
    # The curves can be reported on, and say the same as the runs.
    made = report.make(report.read([tmp_path / "duan.csv"]), normalise="duan2016", metric="auc")
    assert set(made.groups) == set(agents)
    assert {len(runs) for group in made.groups.values() for runs in group.values()} == {3}
    assert len(rows_of(tmp_path / "duan.csv")) == 10 * len(trained)
    # An agent that the paper does not have is compared with nothing.
    cli.main(arguments("duan", tmp_path, *names, "--agents", "ppo"))
    shown = capsys.readouterr().out
    assert "| ppo | 1.000 | 1.00 | | | |" in shown
    assert "Kendall" not in shown


@pytest.mark.parametrize("name", ["duan", "mujoco", "ppo-clip", "study"])
def test_without_episodes_the_tables_are_printed(name, trained, tmp_path, monkeypatch, capsys):
    def without(plan):
        summary = pretended(plan)
        (plan.directory / "metrics.jsonl").write_text('{"steps": 1000, "episodes": 0}\n')
        shutil.rmtree(plan.directory / "checkpoints")
        if name != "duan":  # whose runs are too short for an update
            trees, meta = {"learner": {"x": np.zeros(1)}}, {"tally": {}}
            Checkpointer(plan.directory / "checkpoints").save(1000, trees, meta, block=True)
        return summary

    monkeypatch.setattr(matrix.training, "run", without)
    task = "Hopper" if name == "mujoco" else "Acrobot"
    cli.main(arguments(name, tmp_path, "--seeds", "1", "--steps", "1000", "--tasks", task))
    shown = capsys.readouterr().out
    assert "|---|" in shown
    assert "There is no figure, because no run recorded an episode" in shown
    assert not list(tmp_path.glob("*.png"))


def test_the_agreement_of_rankings_is_resampled():
    rng = np.random.default_rng(0)
    order = ("reps", "cma-es", "cem", "rwr", "reinforce", "ddpg", "tnpg", "trpo")
    scores = {
        name: {task: 100.0 * i + rng.normal(size=5) for task in JAX_TASKS}
        for i, name in enumerate(order)
    }
    found = duan.kendall(scores, list(JAX_TASKS))
    _, theirs = duan._published(scores, list(JAX_TASKS))
    expected = scipy.stats.kendalltau(range(8, 0, -1), theirs).statistic
    assert found == pytest.approx((expected,) * 4)  # 100 apart: no resampling changes an order
    noisy = {n: {t: x + rng.normal(0, 400, 5) for t, x in own.items()} for n, own in scores.items()}
    found = duan.kendall(noisy, list(JAX_TASKS))
    assert found.low < found.median < found.high
    assert f"a median of {found.median:.2f}" in duan.agreement(noisy, list(JAX_TASKS))
    # Of one run each, nothing can be resampled.
    single = {name: {t: x[:1] for t, x in own.items()} for name, own in scores.items()}
    assert duan.agreement(single, list(JAX_TASKS)).endswith(f"published: {expected:.2f}")


def test_mujoco_as_an_experiment(trained, tmp_path, capsys):
    names = ("--tasks", "Hopper", "Walker2d", "--seeds", "2", "--agents", "ppo", "trpo")
    cli.main(arguments("mujoco", tmp_path, *names, "--steps", "4096"))
    shown = capsys.readouterr().out
    evaluated, training = shown.split("| v4, the last 100 episodes of training |")
    assert "| v4, 100 episodes of the final policy | Hopper | Walker2d |" in evaluated
    assert "| trpo | 83.0 ± 1.4 | 83.0 ± 1.4 |" in evaluated  # twice `level`
    assert "| trpo | 41.5 ± 0.7 | 41.5 ± 0.7 |" in training
    assert (
        "| trpo, SB3 Contrib (v3; evaluation, 3 seeds; discount 0.9999 in Swimmer) | 3372 | 4502 |"
        in shown
    )
    assert "reinforce" not in shown
    assert {plan.env for plan in trained} == {"Hopper-v4", "Walker2d-v4"}
    assert {(p.run.eval_every, p.run.eval_episodes) for p in trained} == {(4096, 100)}
    cli.main(arguments("mujoco", tmp_path, *names, "--env-version", "v5"))
    assert (tmp_path / "mujoco-v4.csv").exists()
    assert (tmp_path / "mujoco-v5.png").exists()
    assert {row["version"] for row in rows_of(tmp_path / "mujoco-v5.csv")} == {"v5"}


def test_ppo_clip_as_an_experiment(trained, tmp_path, capsys):
    cli.main(arguments("ppo-clip", tmp_path, "--seeds", "2", "--tasks", "Acrobot", "MountainCar"))
    shown = capsys.readouterr().out
    # `level` is 25 ± 1 / 2, and without clipping 0 ± 1 / 2, of a best mean of 25.5.
    assert "| clip 0.2 | 1.00 [0.98, 1.02] | 0.82 | 25.5 ± 0.7 | 25.5 ± 0.7 |" in shown
    assert "| no clipping | 0.02 [0.00, 0.04] | -0.39 | 0.5 ± 0.7 | 0.5 ± 0.7 |" in shown
    configs = [plan.agent_config for plan in trained[: len(ppo_clip.VARIANTS)]]
    chosen = [(c.objective, c.clip, c.kl_cost, c.target_kl) for c in configs]
    assert len(set(chosen)) == 8
    assert {objective for objective, *_ in chosen} == {"none", "clip", "fixed-kl", "adaptive-kl"}
    assert {row["variant"] for row in rows_of(tmp_path / "ppo-clip.csv")} == {*ppo_clip.VARIANTS}
    cli.main(arguments("ppo-clip", tmp_path, "--seeds", "1", "--tasks", "Reacher", "--mujoco"))
    assert "| clip 0.2 | 1.00 | 0.82 | 25.0 |" in capsys.readouterr().out
    assert trained[-1].env == "Reacher-v4"
    assert (tmp_path / "ppo-clip-mujoco-v4.png").exists()


def test_the_study_as_an_experiment(trained, tmp_path, capsys):
    cli.main(arguments("study", tmp_path, "--seeds", "3", "--tasks", "Acrobot"))
    shown = capsys.readouterr().out
    assert "| **study** | 15.5 ± 0.5 |" in shown
    assert "| λ 0.95 | **-2.5 [-3.2, -1.8]** |" in shown
    assert "| relu | +0.0 [-0.7, +0.7] |" in shown
    whole = agent_module("ppo").preset("study")
    for plan, (name, changed) in zip(trained[1:], study.WITHOUT.items(), strict=False):
        for field, value in changed.items():
            assert getattr(plan.agent_config, field) == value != getattr(whole, field), name


def test_every_variant_can_be_resolved():
    """Each experiment's settings are an agent's, and go together."""
    for settings in (*ppo_clip.VARIANTS.values(), *study.WITHOUT.values()):
        plan = resolve("ppo", JAX_TASKS["Acrobot"], preset="paper", **settings)
        plan.agent_config.check()
    env = JAX_TASKS["Acrobot"]
    for runtime, variants in (("fused", duan.AGENTS), ("local", mujoco.AGENTS)):
        for variant in variants.values():
            plan = resolve(variant.agent, env, runtime=runtime, **variant.settings)
            agent = agents.make(plan.agent, plan.agent_config, envs.spec_of(env), horizon=1)
            compatibility.check(plan, agent, jax_env=True)


@pytest.mark.extended
def test_quick_experiments_are_smaller(trained, tmp_path):
    for name in ("duan", "mujoco", "ppo-clip", "study"):
        trained.clear()
        cli.main(arguments(name, tmp_path, "--quick"))
        assert 0 < len(trained) <= 40
        assert {plan.run.steps for plan in trained} <= {25_000, 50_000, 100_000, 200_000}


# Real runs.


def small(monkeypatch):
    """Agents that learn from batches of 64 steps."""
    agents = {
        name: Variant(variant.agent, {**variant.settings, **TINY, **size})
        for name, variant in duan.AGENTS.items()
        for size in [{"minibatch_size" if name == "ppo" else "value_minibatch_size": 16}]
    }
    for module in (duan, kl):
        monkeypatch.setattr(module, "AGENTS", agents)


@pytest.mark.extended
def test_a_run_is_trained_and_its_scores_are_of_all_episodes(tmp_path, monkeypatch, capsys):
    small(monkeypatch)
    args = arguments("duan", tmp_path, "--seeds", "1", "--steps", "2048")
    cli.main([*args, "--tasks", "CartPoleBalance", "--agents", "reinforce", "trpo"])
    first = capsys.readouterr().out
    assert first.count("first update") == 2
    rows = rows_of(tmp_path / "duan-scores.csv")
    assert [row["variant"] for row in rows] == ["reinforce", "trpo"]
    for row, name in zip(rows, ("reinforce", "trpo"), strict=True):
        (directory,) = (tmp_path / "runs").glob(f"{name}-*")
        saved = Checkpointer(directory / "checkpoints").load()
        assert saved is not None
        tally = saved.meta["tally"]
        assert tally["count"][0] > 20
        mean = tally["total"][0] / tally["count"][0]
        assert float(row["all_episodes"]) == pytest.approx(mean, rel=1e-5)
    cli.main([*args, "--tasks", "CartPoleBalance", "--agents", "reinforce", "trpo"])
    assert "first update" not in capsys.readouterr().out


@pytest.mark.extended
def test_kl_as_an_experiment(tmp_path, monkeypatch, capsys):
    small(monkeypatch)
    args = arguments("kl", tmp_path, "--seeds", "1", "--steps", "1280")
    args += ["--tasks", "CartPoleBalance"]
    cell, done = kl.train, []

    def some(plan):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(plan.agent)
        return cell(plan)

    monkeypatch.setattr(kl, "train", some)
    with pytest.raises(SystemExit):
        cli.main(args)
    assert done == ["trpo", "tnpg"]
    monkeypatch.setattr(kl, "train", lambda plan: done.append(plan.agent) or cell(plan))
    cli.main(args)
    assert tuple(done) == kl.SHOWN
    shown = capsys.readouterr().out
    assert "| CartPoleBalance | updates | KL ≤ 0.01 |" in shown
    assert "| trpo | 20 | 100.0% |" in shown
    rows = rows_of(tmp_path / "kl.csv")
    assert len(rows) == 20 * len(kl.SHOWN)
    assert {row["agent"] for row in rows} == set(kl.SHOWN)
    for agent in ("reinforce", "ppo", "npg"):  # the policy moves
        assert max(float(row["kl"]) for row in rows if row["agent"] == agent) > 1e-6
    assert (tmp_path / "kl.png").stat().st_size > 10_000


def test_the_table_of_kls(tmp_path):
    header = ["task", "agent", "seed", "update", "kl", "accepted", "search_trials", "mean_return"]
    trpo = [[0.008, 1, 1], [0.01, 1, 3], [0.0, 0, 10], [0.009, 1, 1]]
    reinforce = [[x, 1, 1] for x in (0.001, 0.002, 0.004, 0.1)]
    rows = [
        ["a", agent, 0, i, *numbers, 5.0]
        for agent, values in (("trpo", trpo), ("reinforce", reinforce))
        for i, numbers in enumerate(values)
    ]
    common.write_csv(tmp_path / "kl.csv", header, rows)
    (table,) = kl.tables(tmp_path)
    lines = table.splitlines()
    assert lines[2] == "| trpo | 4 | 100.0% | 0.009 | 0.00998 | 1.1 | 0.01 | 33.3% | 25.0% |"
    assert lines[3] == "| reinforce | 4 | 75.0% | 0.003 | 0.0971 | 32.4 | 0.1 | 0.0% | 0.0% |"
    assert kl.draw(tmp_path).stat().st_size > 10_000


def test_the_committed_figure_can_be_drawn_from_the_committed_table(tmp_path):
    shutil.copy(Path(__file__).parents[1] / "docs" / "results" / "kl.csv", tmp_path)
    assert kl.draw(tmp_path).stat().st_size > 10_000


def test_random_play_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "RANDOM_EPISODES", 20)
    found = matrix.random_play(tmp_path, JAX_TASKS["CartPoleBalance"])
    assert 60 < found < 110  # of many episodes 78.6
    monkeypatch.setattr(matrix.envs, "make", None)
    assert matrix.random_play(tmp_path, JAX_TASKS["CartPoleBalance"]) == found


# Bad input.


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["duan", "--agents", "tpro"], "`--agents` has 'tpro'; did you mean 'trpo'?"),
        (["duan", "--tasks", "Pong"], "`--tasks` has 'Pong'; known are 'CartPoleBalance'"),
        (["duan", "--steps", "0"], "`--steps` is 0; expected at least 1"),
        (["kl", "--seeds", "0"], "`--seeds` is 0; expected at least 1"),
        (["kl", "--tasks", "acrobot"], "did you mean 'Acrobot'?"),
        (["kl", "--agents", "sac"], "`--agents` has 'sac'; known are 'trpo'"),
        (["mujoco", "--tasks", "Hoper"], "did you mean 'Hopper'?"),
        (["ppo-clip", "--mujoco", "--tasks", "Acrobot"], "known are 'HalfCheetah'"),
        (["study", "--results", "/dev/null"], "or choose another `--results`"),
    ],
)
def test_bad_input(args, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["reproduce", *args])
    assert caught.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_missing_mujoco_is_named(tmp_path, monkeypatch):
    """Before anything is trained."""
    monkeypatch.setitem(sys.modules, "mujoco", None)  # importing it raises ImportError
    for name in ("", ".mujoco_env", ".half_cheetah_v4"):
        monkeypatch.delitem(sys.modules, f"gymnasium.envs.mujoco{name}", raising=False)
    with pytest.raises(UserError) as caught:
        mujoco.run(
            mujoco.MuJoCo(tasks=("HalfCheetah",)), output=tmp_path / "runs", results=tmp_path
        )
    assert str(caught.value) == (
        "`env` 'HalfCheetah-v4' needs MuJoCo, which is not installed: pip install 'pronk[mujoco]'."
    )
    assert not list(tmp_path.iterdir())
