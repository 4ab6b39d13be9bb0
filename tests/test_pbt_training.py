"""Population based training for real: in one program, in processes, on Ray."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from pbt_fakes import (
    FLAGS,
    TUNE,
    assert_same,
    check_journal,
    contents,
    kill_once,
    plan_in,
    saved_of,
    settings,
    use_stub,
)

from pronk import cli, envs, pbt
from pronk.config.spec import Plan, run_of
from pronk.experiments.bench import population as bench
from pronk.experiments.reproduce import pbt as experiment
from pronk.pbt import one_program
from pronk.pbt.controller import Controller
from pronk.pbt.one_program import OneProgram, final_returns
from pronk.pbt.setup import Setup, open_journal
from pronk.run.build import fused_shape
from pronk.run.resolve import resolve
from pronk.run.setup import ACTOR_KEY, INIT_KEY, build, initial_state, key_for
from pronk.runtime import fused
from pronk.runtime.population import Population
from pronk.storage.checkpoint import Checkpointer
from pronk.storage.journal import read_journal


def pronk(*args: object) -> None:
    cli.main([str(a) for a in args])


# One program.


def population(plan: Plan, size: int, updates: int) -> tuple[Population, fused.RunState]:
    _, agent = build(plan, plan.env)
    env = envs.jax_env_of(plan.env, plan.env_args)
    assert env is not None
    made = Population(agent, env, fused_shape(plan, agent), updates=updates)
    keys = [jnp.stack([key_for(s, p) for s in range(size)]) for p in (INIT_KEY, ACTOR_KEY)]
    rates = np.geomspace(1e-3, 1e-1, size, dtype=np.float32)
    return made, made.begin(keys[0], keys[1], {"learning_rate": rates})


def member_of(tree: Any, i: int) -> list[np.ndarray]:
    def array(x: Any) -> np.ndarray:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        return np.asarray(x[i]).copy()

    return [array(x) for x in jax.tree.leaves(tree)]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_copy_has_all_that_was_learnt_and_its_own_hyperparameters(tmp_path: Path) -> None:
    # With an average policy in `extra`, which is copied, and a replay, which is not.
    laser = {
        "replay_fraction": 0.5,
        "trust_region": 0.5,
        "replay_capacity": 200,
        "envs_per_actor": 2,
    }
    made, runs = population(plan_in(tmp_path, **laser), 4, 7)
    runs, _ = made.advance(runs)
    learner = runs.learner
    parts = (learner.params, learner.opt_state, learner.extra)
    own = (runs._replace(learner=()), learner.updates, learner.steps, learner.key)  # type: ignore[arg-type]
    before = [member_of(parts, i) for i in range(4)]
    kept = [member_of(own, i) for i in range(4)]
    costs = np.asarray(learner.hyper["entropy_cost"]).copy()
    assert len(jax.tree.leaves(learner.extra)) > 0
    assert not same(before[0], before[1])
    rates = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    sources = np.array([0, 0, 3, 2])  # two of them exchange what they have
    runs = made.inherit(runs, sources, {"learning_rate": rates})
    learner = runs.learner
    parts = (learner.params, learner.opt_state, learner.extra)
    own = (runs._replace(learner=()), learner.updates, learner.steps, learner.key)  # type: ignore[arg-type]
    for i, source in enumerate(sources):
        assert same(member_of(parts, i), before[source])
        assert same(member_of(own, i), kept[i])
    np.testing.assert_array_equal(learner.hyper["learning_rate"], rates)
    np.testing.assert_array_equal(learner.hyper["entropy_cost"], costs)
    # From there on they differ.
    runs, _ = made.advance(runs)
    assert not same(member_of(runs.learner.params, 0), member_of(runs.learner.params, 1))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A population that was never interrupted."""
    directory = tmp_path_factory.mktemp("pbt") / "whole"
    assert pbt.run(plan_in(directory), settings())["status"] == "finished"
    return directory


def test_the_program_has_the_hyperparameters_of_the_journal(whole: Path) -> None:
    events = check_journal(whole)
    assert any(e.get("donor") is not None for e in events)
    loaded = Checkpointer(whole / "population").load()
    assert loaded is not None
    hyper = loaded.tree("population")["learner"]["hyper"]  # type: ignore[index]
    ends = {e["member"]: e for e in events if e["event"] == "end"}
    for name in ("learning_rate", "entropy_cost"):
        assert hyper[name].tolist() == [ends[i]["hyper"][name] for i in range(4)]


def test_final_returns_are_of_the_last_parameters(whole: Path) -> None:
    returns = final_returns(pbt.set_up(plan_in(whole), settings()))
    assert returns.shape == (4,)
    assert np.all(np.abs(returns) <= 1)
    assert len(set(returns.tolist())) > 1


def test_nothing_is_compiled_again(tmp_path: Path) -> None:
    """By whatever part of JAX, once every member has been ready once."""
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "backend_compile" in event else None
    )
    setup = pbt.set_up(plan_in(tmp_path), settings())
    setup.directory.mkdir(exist_ok=True)
    journal, program = open_journal(setup, one_program=True), OneProgram(setup)
    counts = []
    apply = program.apply
    program.apply = lambda changes: (apply(changes), counts.append(len(compiled)))  # type: ignore
    Controller(setup, journal, program).run(threading.Event())
    journal.close()
    assert any(e.get("factors") for e in read_journal(journal.path)[-8:])
    assert counts[0] > 0
    assert len(counts) >= 4
    assert set(counts) == {counts[0]}
    made = program.population
    assert [f._cache_size() for f in (made.begin, made.advance)] == [1, 1]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("where", "which"), [("before the journal", 2), ("torn", 4), ("saved", 3)])
def test_killed_and_resumed_it_equals_the_uninterrupted_one(
    where: str, which: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a checkpoint after each call of the program."""
    plan = plan_in(tmp_path, checkpoint_every=1e-9)
    kill_once(monkeypatch, where, which, plan)
    assert pbt.run(plan, settings())["status"] == "finished"
    assert_same(contents(tmp_path), contents(whole))


def test_paused_and_resumed_it_equals_the_uninterrupted_one(whole: Path, tmp_path: Path) -> None:
    """In the middle of a generation."""
    assert pbt.run(plan_in(tmp_path, stop_after=1300), settings())["status"] == "paused"
    assert pbt.run(plan_in(tmp_path), settings())["status"] == "finished"
    assert_same(contents(tmp_path), contents(whole))


def test_a_member_with_huge_gradients_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Setup.initial_hyper

    def initial(setup: Setup, member: int) -> dict[str, float]:
        return usual(setup, member) | ({"learning_rate": 1e35} if member == 1 else {})

    monkeypatch.setattr(Setup, "initial_hyper", initial)
    pbt.run(plan_in(tmp_path), settings(copy_margin=10.0, perturb_probability=0.0))
    copied = [e for e in check_journal(tmp_path) if e.get("donor") is not None]
    assert [e["member"] for e in copied] == [1]
    assert copied[0]["score"] is None
    assert copied[0]["after"]["learning_rate"] < 1


def test_a_member_is_the_run_that_it_would_be_alone(tmp_path: Path) -> None:
    """Where nobody copies and nothing is perturbed, to rounding; and the best one is a run."""
    config = settings(copy_margin=math.inf, perturb_probability=0.0)
    summary = pbt.run(plan_in(tmp_path), config)
    assert summary["copies"] == 0
    assert summary["generations"] > 2
    setup = pbt.set_up(plan_in(tmp_path), config)
    best = summary["best"]
    plan = setup.member_plan(best, runtime="fused")
    assert Plan.load(tmp_path / summary["best_run"]).run.seed == plan.run.seed
    state = initial_state(plan, setup.agent)
    hyper = {k: np.float32(v) for k, v in setup.initial_hyper(best).items()}
    env = envs.jax_env_of(plan.env, plan.env_args)
    assert env is not None
    init, update = fused.build(setup.agent, env, **fused_shape(plan, setup.agent))
    run = init(state._replace(hyper=state.hyper | hyper), key_for(plan.run.seed, ACTOR_KEY))
    update = jax.jit(update)
    saved = Checkpointer(tmp_path / summary["best_run"] / "checkpoints").load()
    assert saved is not None
    learner = saved.restore("learner", state)
    for _ in range(int(learner.updates)):
        run, _ = update(run)
    assert int(run.learner.steps) == int(learner.steps) == saved.steps
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        run.learner.params,
        learner.params,
    )


@pytest.mark.parametrize("agent", ["r2d2", "agent57"])
@pytest.mark.extended
def test_another_agent_in_one_program(agent: str, tmp_path: Path) -> None:
    """With a replay and a target network."""
    small: dict[str, Any] = {
        "sequence_length": 6,
        "overlap": 0,
        "priority_exponent": 0.0,
        "burn_in": 2,
        "recurrent_units": 4,
        "head_units": 8,
        "replay_minimum": 20,
        "replay_capacity": 400,
        "samples_per_insert": 1.0,
        "envs_per_actor": 4,
        "batch_size": 4,
        "hidden_sizes": (8,),
        "runtime": "fused",
        "env_args": {"rows": 4},
    }
    if agent != "r2d2":
        small |= {"mixtures": 2, "memory_size": 10, "intrinsic_steps": 2}
    plan = resolve(agent, "pronk/Catch-v0", run_dir=tmp_path, steps=1200, **small)
    config = settings(tune=("learning_rate=1e-4:1e-2", "optimiser_epsilon"), copy_margin=0.0)
    assert pbt.run(plan, config)["copies"] > 0
    check_journal(tmp_path)


@pytest.mark.extended
@pytest.mark.parametrize("agent", ["ddpg", "sac"])
def test_agents_with_continuous_actions_in_one_program(agent: str, tmp_path: Path) -> None:
    """Members copy targets, temperatures and all optimisers."""
    small: dict[str, Any] = {
        "replay_minimum": 20,
        "replay_capacity": 400,
        "envs_per_actor": 2,
        "batch_size": 4,
        "hidden_sizes": (8,),
        "runtime": "fused",
        "env_args": {"max_steps": 20},
    }
    plan = resolve(agent, "pronk/CartPoleSwingUp-v0", run_dir=tmp_path, steps=1200, **small)
    config = settings(tune=("learning_rate=1e-4:1e-2", "target_rate"), copy_margin=0.0)
    assert pbt.run(plan, config)["copies"] > 0
    check_journal(tmp_path)


@pytest.mark.extended
def test_vmapped_or_in_turn_members_do_the_same(tmp_path: Path) -> None:
    """To rounding: on accelerators they are vmapped."""
    plan = plan_in(tmp_path)
    _, agent = build(plan, plan.env)
    env = envs.jax_env_of(plan.env, plan.env_args)
    assert env is not None
    found = []
    for in_turn in (True, False):
        made = Population(agent, env, fused_shape(plan, agent), updates=6, in_turn=in_turn)
        keys = [jnp.stack([key_for(s, p) for s in range(3)]) for p in (INIT_KEY, ACTOR_KEY)]
        runs, stats = made.advance(made.begin(keys[0], keys[1], {}))
        found.append((runs.learner.params, stats))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)


# Processes and Ray.


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    """Members' processes: not the resource tracker's."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


@pytest.mark.extended
def test_members_and_controller_are_killed_and_nothing_is_lost(tmp_path: Path) -> None:
    """A member first, which restarts; then the controller, whose members end too."""
    directory = tmp_path / "run"
    args = ["impala", "pronk/Catch-v0", "--run-dir", directory, "--steps", 800, *FLAGS,
            "--population", 3, "--parallel-members", 2, "--ready-steps", 400,
            "--execution", "processes", "--tune", TUNE[0], "--tune", TUNE[1]]  # fmt: skip
    command = [sys.executable, "-m", "pronk", "pbt", *map(str, args)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: len(children_of(process.pid)) == 2, process)
        os.kill(children_of(process.pid)[0], signal.SIGKILL)
        journal = directory / "journal.jsonl"
        wait_for(lambda: journal.read_text().count('"ready"') >= 2, process)
    finally:
        members = children_of(process.pid)
        process.kill()
        out, _ = process.communicate()
    assert re.search(r"process of member \d died \(signal 9\); it restarts .* \(1 of 10\)", out)
    before = read_journal(journal)
    # At once, while the last members may be saving; by the command line, to the end.
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "finished at" in done.stdout
    events = check_journal(directory, 3)
    assert events[: len(before)] == before
    for end in (e for e in events if e["event"] == "end"):
        learner = saved_of(directory, end["member"]).tree("learner")
        for name, value in end["hyper"].items():
            assert learner["hyper"][name] == np.float32(value)
    assert not [m for m in members if Path(f"/proc/{m}").exists()]


@pytest.mark.extended
def test_members_on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster of this machine's own: a run is a task there, and nothing else differs."""
    monkeypatch.chdir(tmp_path)
    config = settings(population=2, ready_steps=200, execution="ray", parallel_members=2)
    summary = pbt.run(plan_in(Path("run"), 400, ray="local"), config)
    assert summary["status"] == "finished"
    events = check_journal(Path("run"), 2)
    for end in (e for e in events if e["event"] == "end"):
        learner = saved_of(Path("run"), end["member"]).tree("learner")
        for name, value in end["hyper"].items():
            assert learner["hyper"][name] == np.float32(value)


# The command line.


def test_a_population_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained, evaluated, exported, looked at and drawn: what is meant is its best member."""
    monkeypatch.chdir(tmp_path)
    flags = ["--steps", "2000", "--population", "3", "--ready-steps", "500"]
    pronk("pbt", "impala", "pronk/Catch-v0", *FLAGS, *flags)
    directory = Path("runs/pbt-impala-pronk_Catch-v0-0")
    out = capsys.readouterr().out
    assert "generation 1 " in out
    assert re.search(r"^finished at 6,\d{3} steps in all, best ", out, re.M)
    assert str(directory) in out
    summary = json.loads((directory / "summary.json").read_text())
    pronk("eval", directory, "--episodes", "5", "--json")
    assert json.loads(capsys.readouterr().out)["steps"] >= 2000
    pronk("export", directory, "best.safetensors")
    pronk("inspect", directory)
    assert summary["best_run"] in capsys.readouterr().out
    pronk("train", "impala", "pronk/Catch-v0", *FLAGS, "--steps", "300", "--learning-rate", "1e-30",
          "--run-dir", "after", "--init-from", directory)  # fmt: skip
    capsys.readouterr()
    saved = [Checkpointer(of / "checkpoints").load() for of in (run_of(directory), Path("after"))]
    assert all(of is not None for of in saved)
    first, after = (of.tree("learner")["params"] for of in saved)  # type: ignore[union-attr, index]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-20), first, after)
    pronk("plot", directory, "--output", "population.png")
    assert Path("population.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        pronk("plot", directory, directory)
    assert "give it alone" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        pronk("plot", directory, "--csv", "population.csv")
    assert "`--csv` is population.csv, and " in capsys.readouterr().err
    pronk("inspect", directory)
    shown = capsys.readouterr().out
    assert f"{summary['best_hyper']['learning_rate']:.6g}"[:6] in shown
    journal = directory / "journal.jsonl"
    whole = journal.read_bytes()
    for line, why in (
        (b'{"event": "ready"}', "no 'member'"),
        (whole.splitlines()[-1].replace(b'"member": 2', b'"member": 7'), "member 7 has no start"),
        (b'{"event": "dance", "member": 1}', "'dance' is no event of a population"),
    ):
        journal.write_bytes(whole + line + b"\n")
        with pytest.raises(SystemExit):
            pronk("plot", directory, "--output", "population.png")
        error = capsys.readouterr().err
        assert f"is damaged in line {whole.count(bytes([10])) + 1} ({why})" in error
    journal.write_bytes(whole)
    (directory / "summary.json").unlink()
    with pytest.raises(SystemExit):
        pronk("eval", directory)
    assert "a population without a best member" in capsys.readouterr().err


@pytest.mark.extended
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "pbt.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(block, {})
    assert (tmp_path / "runs/population/summary.json").exists()


# The experiment and the benchmark.


@pytest.mark.extended
def test_the_experiment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small: the fixed members are the population's own first draws; done once; what it says is
    what the members did."""
    small = experiment.Task(
        "pronk/Catch-v0", {"rows": 4}, 2000, 1.0, {"hidden_sizes": (8,), "unroll": 5}
    )
    monkeypatch.setattr(experiment, "TASKS", {"small catch": small})
    use_stub(monkeypatch)
    monkeypatch.setattr(
        one_program, "evaluate_members", lambda agent, env, learner, keys: learner.params[:, None]
    )
    flags = ["--seeds", 1, "--population", 4, "--output", tmp_path, "--results", tmp_path]
    pronk("reproduce", "pbt", *flags)
    out = capsys.readouterr().out
    assert "small catch: the best fixed member is at " in out
    names = (
        *("pbt.csv", "pbt.png", "pbt-curves.csv", "pbt-curves.png"),
        "pbt-lineage-small-catch.png",
    )
    assert all((tmp_path / name).exists() for name in names)
    with (tmp_path / "pbt.csv").open() as file:
        rows = list(csv.DictReader(file))
    kinds = {kind: [r for r in rows if r["kind"] == kind] for kind in experiment.KINDS}
    for ours, looser, fixed in zip(*kinds.values(), strict=True):
        assert ours["first_learning_rate"] == fixed["first_learning_rate"]
        assert looser["first_learning_rate"] == fixed["first_learning_rate"]
        assert fixed["last_learning_rate"] == fixed["first_learning_rate"]
    assert len({r["first_learning_rate"] for r in rows}) == 4
    scores = {kind: [float(r["score"]) for r in rows] for kind, rows in kinds.items()}
    found = [{"task": "small catch", "seed": 0, "kind": k, "scores": s} for k, s in scores.items()]
    assert experiment.table(found) in out
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.json*")}
    pronk("reproduce", "pbt", *flags)
    assert capsys.readouterr().out.endswith(out[out.index("| |") :])
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.json*")} == before


def test_what_the_experiment_says_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    task = experiment.Task("pronk/Catch-v0", {}, 1, 10.0, {})
    monkeypatch.setattr(experiment, "TASKS", {"t": task, "easy": task})

    def cells(name: str, seed: int, ours: list[float], fixed: list[float]) -> list[dict[str, Any]]:
        kinds = (("pbt", ours), ("threshold", [0.0] * 5), ("fixed", fixed))
        return [{"task": name, "seed": seed, "kind": k, "scores": s} for k, s in kinds]

    fixed = [1.0, 2.0, 3.0, 4.0, math.nan]
    found = cells("t", 0, [5.0, 3.0, 4.0, 2.0, 1.0], fixed)
    found += cells("t", 1, [2.0, 2.0, 2.5, 2.0, 2.0], fixed)
    found += cells("easy", 0, [9.5] * 5, [9.5, 1.0, 1.0, 1.0, 1.0])
    assert experiment.figures(found, "t", 0) == {
        "pbt_best": 5.0, "pbt_quarter": 4.0, "pbt_median": 3.0,
        "threshold_best": 0.0, "threshold_quarter": 0.0, "threshold_median": 0.0,
        "fixed_best": 4.0, "fixed_quarter": 3.0, "fixed_median": 2.0,
    }  # fmt: skip
    of_t, ours, looser, of_easy, easily, _ = experiment.verdict(found).splitlines()
    assert of_t == "t: the best fixed member is at 40% of the maximum"
    assert ours.startswith("- PBT: best < fixed best in the mean, on 1 of 2 seeds; ")
    assert ours.endswith("; median < fixed quarter in the mean, on 1 of 2 seeds")
    assert looser.startswith("- PBT, 5 % alone: best < fixed best in the mean, on 0 of 2 seeds; ")
    assert (
        of_easy == "easy: the best fixed member is at 95% of the maximum (within the uncertainty)"
    )
    assert easily.startswith("- PBT: best ≥ fixed best in the mean, on 1 of 1 seeds; ")
    table = experiment.table(found)
    assert "| | PBT, best | 5 % alone, best | fixed, best | PBT, median |" in table
    row = "| t | 3.75 (2.5 to 5) | 0 (0 to 0) | 4 (4 to 4) | 2.5 (2 to 3) | 0 (0 to 0) |"
    assert row in table


@pytest.mark.extended
def test_the_benchmark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "without_cache", contextlib.nullcontext)  # compiling takes its time
    path = tmp_path / "population.json"
    flags = ["--members", 2, "--steps", 800, "--num-envs", 2, "--unroll", 5, "--json", path]
    pronk("bench", "population", *flags, "--vmapped")
    rows = json.loads(path.read_text())["rows"]
    assert [row["compilations"] for row in rows] == [2, 2, 4, 2]
    assert rows[0]["times_the_population"] == 1.0
    assert all(0.0 < row["updates_seconds"] < row["seconds"] for row in rows)
    # The same members: the same agent steps.
    steps = [row["steps_per_second"] * row["seconds"] for row in rows]
    assert steps == pytest.approx([steps[0]] * 4)
    assert "single runs, compiled once" in capsys.readouterr().out


def test_the_benchmark_compiles_what_the_cache_has(tmp_path: Path) -> None:
    """Also where something was compiled before: JAX asks whether there is a cache only once."""
    hits: list[str] = []
    jax.monitoring.register_event_listener(
        lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None
    )

    def compile_anew() -> int:
        before = len(hits)
        jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x) + 731.0)(jnp.ones((7, 7)))
        return len(hits) - before

    names = ["jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"]
    was = {name: getattr(jax.config, name) for name in names}
    compilation_cache.reset_cache()
    try:
        for name, value in zip(names, [str(tmp_path), 0.0], strict=True):
            jax.config.update(name, value)
        compile_anew()
        assert compile_anew() > 0
        with bench.without_cache():
            assert compile_anew() == 0
        assert compile_anew() > 0
    finally:
        for name, value in was.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
