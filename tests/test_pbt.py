"""Population based training: the policy by hand and by statistics, and populations that are killed,
resumed, copied and perturbed, in one program and in processes."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from pronk import cli, envs, pbt
from pronk.config.pbt import PBTConfig
from pronk.config.registry import AGENTS, agent_module
from pronk.config.run import RunConfig
from pronk.config.spec import Plan, run_of
from pronk.errors import UserError
from pronk.experiments.bench import population as bench
from pronk.experiments.reproduce import pbt as experiment
from pronk.pbt import common, lives, policy, processes, vmapped
from pronk.run import plot_population as lineage
from pronk.run import train as training
from pronk.run.build import fused_shape
from pronk.run.evaluate import Tally
from pronk.run.resolve import resolve
from pronk.run.setup import ACTOR_KEY, INIT_KEY, build, initial_state, key_for
from pronk.runtime import fused
from pronk.runtime.population import Population
from pronk.storage.checkpoint import Checkpointer
from pronk.storage.journal import Journal, read_journal

TINY: dict[str, Any] = {
    "envs_per_actor": 4,
    "batch_size": 4,
    "unroll": 5,
    "hidden_sizes": (8,),
    "quiet": True,
}
FLAGS = ["--envs-per-actor", "4", "--batch-size", "4", "--unroll", "5", "--hidden-sizes", "8"]
TUNE = ("learning_rate=1e-4:1e-1", "entropy_cost=1e-4:1e-2")


def plan_in(directory: Path, steps: int = 2000, **settings: Any) -> Plan:
    return resolve(
        "impala", "pronk/Catch-v0", run_dir=directory, steps=steps,
        **{"env_args": {"rows": 4}, **TINY, **settings},
    )  # fmt: skip


def settings(**changes: Any) -> PBTConfig:
    """With `copy_sigmas` 0, because scores after so few steps are noise, and copies are wanted."""
    return PBTConfig(
        **{"population": 4, "tune": TUNE, "ready_steps": 400, "copy_sigmas": 0.0, **changes}
    )


# The policy.


@pytest.mark.parametrize(
    ("donor", "own", "better"),
    [
        (1.05, 1.0, True),
        (1.049, 1.0, False),
        (0.8, 1.0, False),
        (-9.5, -10.0, True),  # a twentieth of the way to zero
        (-9.6, -10.0, False),
        (-10.0, -9.0, False),
        (1e-9, 0.0, True),
        (0.0, 0.0, False),
        (0.0, -1e-9, True),
        (5.0, None, False),
        (None, 5.0, False),
        (None, None, False),
        (math.nan, 1.0, False),
        (1.0, math.nan, False),
        (-1e9, -math.inf, True),  # diverged
        (-math.inf, -math.inf, False),
    ],
)
def test_five_per_cent_better(donor: float | None, own: float | None, better: bool) -> None:
    scores = rated([donor, own])
    assert policy.is_better(scores[0], scores[1], 0.05) is better
    assert not policy.is_better(scores[0], scores[1], math.inf)


def rated(scores: list[float | None]) -> list[policy.Score | None]:
    return [None if score is None else policy.Score(score) for score in scores]


def test_better_than_noise() -> None:
    """By so many standard errors of the difference, 5 for these, and by the threshold."""
    own, donor = policy.Score(1.0, 3.0), policy.Score(11.0, 4.0)
    assert policy.is_better(donor, own, 0.05, sigmas=2.0)
    assert not policy.is_better(donor, own, 0.05, sigmas=2.01)
    assert not policy.is_better(donor, own, 11.0, sigmas=2.0)
    assert policy.is_better(donor, policy.Score(-math.inf), 0.05, sigmas=100.0)
    returns = np.random.default_rng(0).normal(3.0, 2.0, size=50)
    spec = envs.spec_of("pronk/Catch-v0")
    score = policy.Score.of(spec, Tally([returns.sum()], [(returns**2).sum()], [50]))
    assert score is not None
    assert score.mean == pytest.approx(returns.mean())
    assert score.error == pytest.approx(returns.std(ddof=1) / np.sqrt(50))
    # Of a single game nothing is known of the noise.
    single = policy.Score.of(spec, Tally([500.0], [250_000.0], [1]))
    assert single == policy.Score(500.0, math.inf)
    assert not policy.is_better(single, own, 0.05, sigmas=2.0)
    assert policy.is_better(single, own, 0.05)


def test_of_normalised_scores_five_per_cent_are_absolute(tmp_path: Path) -> None:
    own, near, far = (policy.Score(mean) for mean in (0.2, 0.24, 0.26))
    assert policy.is_better(near, own, 0.05)
    assert not policy.is_better(near, own, 0.05, absolute=True)
    assert policy.is_better(far, own, 0.05, absolute=True)
    assert policy.is_better(own, policy.Score(-math.inf), 0.05, absolute=True)

    single = pbt.set_up(plan_in(tmp_path), settings())
    suite = dataclasses.replace(single, spec=envs.spec_of("suite/scales-v0"))
    without = envs.spec_of("pronk/Catch-v0,pronk/DeepSea-v0")
    assert policy.is_normalised(suite.spec)
    assert not policy.is_normalised(without)
    for setup, copies in ((single, True), (suite, False)):
        found = [setup.decide(0, g, 400, [own, near, near, near], lambda m: {}) for g in (1, 2)]
        assert [d.donor is not None for d in found] == [copies] * 2


def decisions(count: int, *, scores: list[float | None], **changes: Any) -> list[policy.Decision]:
    """Of member 0, at so many generations; every hyperparameter of member i is i + 1."""
    return [
        policy.decide(
            settings(**changes), seed=7, member=0, generation=g, scores=rated(scores),
            hyper_of=lambda m: {"a": m + 1.0, "b": m + 1.0, "c": m + 1.0},
        )
        for g in range(1, count + 1)
    ]  # fmt: skip


def test_a_random_member_is_copied_if_better_and_never_oneself() -> None:
    found = decisions(3000, scores=[0.0, 1.0, -1.0, 1.0])
    donors = [d.donor for d in found]
    # One of the three others is drawn; member 2 is worse.
    for donor, share in ((1, 1 / 3), (3, 1 / 3), (None, 1 / 3), (0, 0.0), (2, 0.0)):
        assert donors.count(donor) / 3000 == pytest.approx(share, abs=0.03)


def test_each_hyperparameter_is_perturbed_a_third_of_the_time_up_as_often_as_down() -> None:
    found = decisions(3000, scores=[None] * 4)
    assert all(d.donor is None for d in found)
    for name in "abc":
        values = [d.hyper[name] for d in found]
        for value, share in ((1.0, 0.67), (1.2, 0.165), (1 / 1.2, 0.165)):
            assert np.isclose(values, value).mean() == pytest.approx(share, abs=0.03)
    both = [("a" in d.factors, "b" in d.factors) for d in found]
    assert both.count((True, True)) / 3000 == pytest.approx(0.33**2, abs=0.02)


def test_copying_and_perturbing_are_independent() -> None:
    found = decisions(6000, scores=[0.0, 1.0, -1.0, -1.0])
    copied = np.array([d.donor is not None for d in found])
    perturbed = np.array([[name in d.factors for name in "abc"] for d in found])
    for column in perturbed.T:
        joint = (copied & column).mean()
        assert joint == pytest.approx(copied.mean() * column.mean(), abs=0.015)
    # Whether anything can be copied changes nothing of what is perturbed.
    alone = decisions(6000, scores=[None] * 4)
    assert [d.factors for d in found] == [d.factors for d in alone]
    # And what can be perturbed changes nothing of who is copied.
    still = decisions(6000, scores=[0.0, 1.0, -1.0, -1.0], perturb_probability=0.0)
    assert [d.donor for d in found] == [d.donor for d in still]
    assert not any(d.factors for d in still)


def test_a_perturbation_is_on_top_of_what_was_copied() -> None:
    found = decisions(500, scores=[0.0, 1.0, None, None])
    seen = set()
    for d in found:
        base = 1.0 if d.donor is None else d.donor + 1.0
        seen.add((d.donor, bool(d.factors)))
        for name in "abc":
            assert d.hyper[name] == pytest.approx(base * d.factors.get(name, 1.0))
    assert seen == {(None, False), (None, True), (1, False), (1, True)}


def test_nobody_copies_without_a_score_on_both_sides() -> None:
    assert not any(d.donor for d in decisions(300, scores=[None, 9.0, 9.0, 9.0]))
    assert not any(d.donor for d in decisions(300, scores=[0.0, None, None, math.nan]))


def test_each_decision_has_its_own_random_numbers_and_always_the_same() -> None:
    first, again = (decisions(50, scores=[0.0, 1.0, 1.0, 1.0]) for _ in range(2))
    assert first == again
    assert len({str(d) for d in first}) > 10


def test_first_values_are_log_uniform_in_their_range(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    _, agent = build(plan, plan.env)
    tune = ("learning_rate=1e-4:1e-1", "discount=0.9:0.999", "max_gradient_norm")
    names = policy.tuned(settings(tune=tune), plan, agent)
    drawn = [policy.first(names, seed=1, member=m) for m in range(2000)]
    rates = np.log10([d["learning_rate"] for d in drawn])
    assert rates.min() >= -4
    assert rates.max() <= -1
    for third in np.histogram(rates, bins=3, range=(-4, -1))[0] / 2000:
        assert third == pytest.approx(1 / 3, abs=0.04)
    # Of a discount the horizon is: half of them between 0.9 and 0.99.
    below = np.mean([d["discount"] < 0.99 for d in drawn])
    assert below == pytest.approx(0.5, abs=0.04)
    assert {d["max_gradient_norm"] for d in drawn} == {plan.agent_config.max_gradient_norm}


def test_a_discount_stays_one(tmp_path: Path) -> None:
    """Its distance from 1 is multiplied; and nothing goes where the settings don't let it."""
    config = settings(perturb_probability=1.0)

    def after(allowed: Any = lambda name, value: True) -> dict[str, float]:
        return policy.decide(
            config, seed=0, member=0, generation=1, scores=[None] * 4,
            hyper_of=lambda _: {"discount": 0.99, "trace_leak": 0.99}, allowed=allowed,
        ).hyper  # fmt: skip

    assert after()["discount"] in [pytest.approx(1 - 0.01 * f) for f in (1.2, 1 / 1.2)]
    values = {
        policy.decide(
            config, seed=0, member=0, generation=g, scores=[None] * 4,
            hyper_of=lambda _: {"trace_leak": 0.99}, allowed=policy.allowed_by(plan_in(tmp_path)),
        ).hyper["trace_leak"]
        for g in range(1, 30)
    }  # fmt: skip
    assert sorted(values) == pytest.approx([0.99 / 1.2, 0.99])


@pytest.mark.parametrize("agent", ["impala", "r2d2"])
def test_what_an_agent_tunes_by_default_can_be_tuned(agent: str, tmp_path: Path) -> None:
    plan = resolve(agent, "pronk/Catch-v0", run_dir=tmp_path)
    _, made = build(plan, plan.env)
    names = policy.tuned(PBTConfig(), plan, made)
    assert {"learning_rate", "optimiser_epsilon", "max_gradient_norm"} <= {n.name for n in names}


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
    # With an average policy in `aux`, and a replay and past parameters, which are the member's own.
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
    # They learn apart from there on.
    runs, _ = made.advance(runs)
    assert not same(member_of(runs.learner.params, 0), member_of(runs.learner.params, 1))


def start(plan: Plan, config: PBTConfig) -> tuple[vmapped._Vmapped, Journal]:
    setup = pbt.set_up(plan, config)
    setup.directory.mkdir(parents=True, exist_ok=True)
    journal = common.open_journal(setup, one_program=True)
    return vmapped._Vmapped(setup, journal), journal


def contents(directory: Path) -> tuple[bytes, dict[str, np.ndarray], Any]:
    """The journal, all arrays of the last checkpoint, and what the host knew of the members."""
    loaded = Checkpointer(directory / "population").load()
    assert loaded is not None
    return (
        (directory / "journal.jsonl").read_bytes(),
        loaded._arrays,
        [loaded.meta["members"], loaded.meta["journal"], loaded.meta["finished"]],
    )


def assert_same(found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    assert found[0] == expected[0]
    assert found[2] == expected[2]
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A population that was never interrupted."""
    directory = tmp_path_factory.mktemp("pbt") / "whole"
    summary = pbt.run(plan_in(directory), settings())
    assert summary["status"] == "finished"
    return directory


def check_journal(directory: Path, size: int = 4, ready_steps: int = 400) -> list[dict[str, Any]]:
    """Every member is born, ready for all generations in turn, and ends; what it goes on with from
    each is what it had next; and the donor's or its own with the perturbation on top."""
    events = read_journal(directory / "journal.jsonl")
    for member in range(size):
        own = [e for e in events if e["member"] == member]
        ready = own[1:-1]
        assert [e["event"] for e in own] == ["start", *["ready"] * len(ready), "end"]
        assert [e["generation"] for e in ready] == list(range(1, len(ready) + 1))
        steps = [e["steps"] for e in own[1:]]
        assert steps == sorted(set(steps))
        hyper = own[0]["hyper"]
        for event in ready:
            assert event["before"] == hyper
            hyper = event["after"]
            if event["donor"] is None:
                for name, value in event["before"].items():
                    factor = event["factors"].get(name, 1.0)
                    assert hyper[name] == pytest.approx(value * factor)
            else:
                donor = [e for e in events if e["member"] == event["donor"]]
                had = [e.get("after", e.get("hyper")) for e in donor]
                assert any(
                    all(
                        hyper[name] == pytest.approx(value * event["factors"].get(name, 1.0))
                        for name, value in values.items()
                    )
                    for values in had
                )
        assert own[-1]["hyper"] == hyper
    return events


def test_a_population_does_what_its_journal_says(whole: Path) -> None:
    events = check_journal(whole)
    assert {e["event"] for e in events} == {"start", "ready", "end"}
    copies = [e for e in events if e.get("donor") is not None]
    assert copies
    assert any(e.get("factors") for e in copies)
    assert any(e["event"] == "ready" and e["donor"] is None and e["factors"] for e in events)
    # What is on the device is what the journal says.
    loaded = Checkpointer(whole / "population").load()
    assert loaded is not None
    hyper = loaded.tree("population")["learner"]["hyper"]  # type: ignore[index]
    ends = {e["member"]: e for e in events if e["event"] == "end"}
    for name in ("learning_rate", "entropy_cost"):
        assert hyper[name].tolist() == [ends[i]["hyper"][name] for i in range(4)]
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["copies"] == len(copies)
    assert summary["best_score"] == max(e["score"] for e in ends.values())
    assert summary["best_hyper"] == ends[summary["best"]]["hyper"]
    assert summary["median_score"] == np.median([e["score"] for e in ends.values()])


def test_nothing_is_compiled_again(tmp_path: Path) -> None:
    """By whatever part of JAX, once every member has been ready once."""
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "backend_compile" in event else None
    )
    life, journal = start(plan_in(tmp_path), settings())
    counts = []
    advance = life._advance
    life._advance = lambda: (advance(), counts.append(len(compiled)))  # type: ignore[method-assign]
    life.go(threading.Event())
    journal.close()
    assert any(e.get("factors") for e in read_journal(journal.path)[-8:])
    assert counts[0] > 0
    assert len(counts) >= 4
    assert set(counts) == {counts[0]}
    made = life.population
    assert [f._cache_size() for f in (made.begin, made.advance)] == [1, 1]  # type: ignore[attr-defined]


class Killed(BaseException):
    """Stands for `kill -9`: what is on the disk at that moment is all that is left."""


@pytest.mark.parametrize("where", ["before the journal", "after it", "torn", "saved"])
@pytest.mark.parametrize("which", [2, 4])
def test_killed_and_resumed_it_equals_the_uninterrupted_one(
    where: str, which: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the `which`-th event or checkpoint, with a checkpoint after each call of the program."""
    # Elsewhere, but under the same name: the best member's configuration says where it lives.
    plan = plan_in(tmp_path, checkpoint_every=1e-9)
    count = 0
    append, save = Journal.append, vmapped._Vmapped._save

    def counted(at: str, call: Any, *args: Any) -> None:
        nonlocal count
        count += 1
        if count == which and at == "journal" and where == "before the journal":
            raise Killed
        call(*args)
        if count == which and at == "journal" and where == "torn":
            journal = args[0].path
            journal.write_bytes(journal.read_bytes()[:-30])
        if count == which:
            raise Killed

    with monkeypatch.context() as patched:
        if where == "saved":
            patched.setattr(vmapped._Vmapped, "_save", lambda *a: counted("save", save, *a))
        else:
            patched.setattr(Journal, "append", lambda *a: counted("journal", append, *a))
        with pytest.raises(Killed):
            pbt.run(plan, settings())
    assert pbt.run(plan, settings())["status"] == "finished"
    assert_same(contents(tmp_path), contents(whole))


def test_paused_and_resumed_it_equals_the_uninterrupted_one(whole: Path, tmp_path: Path) -> None:
    """In the middle of a generation; and a finished one is left alone."""
    for part in (300, 1300):
        paused = pbt.run(plan_in(tmp_path, stop_after=part), settings())
        assert paused["status"] == "paused"
        assert part <= paused["agent_steps"] / 4 < 2000
    assert pbt.run(plan_in(tmp_path), settings())["status"] == "finished"
    assert_same(contents(tmp_path), contents(whole))
    before = contents(tmp_path)
    assert pbt.run(plan_in(tmp_path), settings())["status"] == "finished"
    assert_same(contents(tmp_path), before)


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
    hyper = {k: np.float32(v) for k, v in setup.first(best).items()}
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


def test_ready_by_episodes(tmp_path: Path) -> None:
    pbt.run(plan_in(tmp_path), settings(ready_steps=None, ready_episodes=60))
    events = check_journal(tmp_path)
    for member in range(4):
        played = [0, *(e["episodes"] for e in events if e["member"] == member and "episodes" in e)]
        assert all(60 <= b - a < 120 for a, b in itertools.pairwise(played[:-1]))


def test_scores_are_of_the_games_since_last_time() -> None:
    member, spec = vmapped.Member(0, {}), envs.spec_of("pronk/Catch-v0")
    assert member.rated() is None
    member.add(Tally([6.0], [14.0], [3]), 100, 1, 0)  # 1, 2 and 3
    member.add(Tally([0.0], [0.0], [0]), 100, 1, 0)
    member.rate(spec)
    assert member.rated() == (2.0, pytest.approx(1 / np.sqrt(3)))
    member.add(Tally([-5.0], [25.0], [1]), 100, 1, 0)
    member.rate(spec)
    assert member.rated() == (-5.0, math.inf)  # of one game
    assert json.loads(json.dumps(dataclasses.asdict(member), allow_nan=False))["error"] is None
    member.add(Tally([0.0], [0.0], [0]), 100, 1, 0)
    member.rate(spec)
    assert member.rated() == (-5.0, math.inf)  # no game has ended: it is all that is known
    assert (member.steps, member.episodes, member.games) == (400, 4, 0)


def test_games_count_until_every_task_has_one() -> None:
    member, spec = vmapped.Member(0, {}), envs.spec_of("pronk/Catch-v0,pronk/DeepSea-v0")
    member.add(Tally([2.0, 0.0], [2.0, 0.0], [2, 0]), 100, 1, 0)
    member.rate(spec)
    assert member.rated() is None
    assert member.games == 0  # since it was last ready
    member.add(Tally([1.0, 6.0], [1.0, 18.0], [1, 2]), 100, 1, 0)
    member.rate(spec)
    assert member.rated() == ((1.0 + 3.0) / 2, pytest.approx(0.0))
    assert member.tally == {}


def test_vmapped_members_that_diverge_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whose last twenty updates none had a finite gradient; however they become ready."""
    usual = common.Setup.first

    def first(setup: common.Setup, member: int) -> dict[str, float]:
        return usual(setup, member) | ({"learning_rate": 1e35} if member == 1 else {})

    monkeypatch.setattr(common.Setup, "first", first)
    config = settings(copy_margin=10.0, perturb_probability=0.0)
    pbt.run(plan_in(tmp_path / "one"), config)
    events = check_journal(tmp_path / "one")
    copied = [e for e in events if e.get("donor") is not None]
    assert [e["member"] for e in copied] == [1]
    assert copied[0]["score"] is None
    assert copied[0]["after"]["learning_rate"] < 1
    with pytest.raises(UserError, match="all members diverged"):
        pbt.run(plan_in(tmp_path / "all"), settings(tune=("learning_rate=1e34:1e35",)))
    config = settings(tune=("learning_rate=1e34:1e35",), ready_steps=None, ready_episodes=20)
    with pytest.raises(UserError, match="all members diverged"):
        pbt.run(plan_in(tmp_path / "by episodes", 20_000, env_args={"rows": 7}), config)


def test_one_non_finite_gradient_is_no_divergence() -> None:
    member, spec = vmapped.Member(0, {}), envs.spec_of("pronk/Catch-v0")
    for updates, skipped, diverged in ((1, 1, False), (19, 18, False), (2, 2, True), (9, 8, False)):
        member.add(Tally([3.0], [3.0], [3]), 100, updates, skipped)
        member.rate(spec)
        assert member.diverged is diverged
        assert member.rated() == (policy.Score(-math.inf) if diverged else policy.Score(1.0))


def test_an_update_may_be_longer_than_a_call(tmp_path: Path) -> None:
    """Members are ready as often as they are to be, to the nearest update."""
    pbt.run(plan_in(tmp_path, 6000, unroll=150), settings(ready_steps=1800, population=2))
    ready = [e["steps"] for e in check_journal(tmp_path, 2, 1200) if e["event"] == "ready"]
    assert 1200 < ready[0] <= 1800  # 3 updates of 600 rows each, a quarter of them dummies


def test_what_a_population_learnt_is_not_forgotten_with_its_settings(tmp_path: Path) -> None:
    pbt.run(plan_in(tmp_path, 800, stop_after=400), settings(population=2, ready_steps=200))
    for name in ("pbt.json", "journal.jsonl"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        with pytest.raises(UserError, match=f"holds a population, but its {name} is gone"):
            pbt.run(plan_in(tmp_path, 800), settings(population=2, ready_steps=200))
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_bytes(whole)
    result = pbt.run(plan_in(tmp_path, 800), settings(population=2, ready_steps=200))
    assert result["status"] == "finished"


def test_a_vmapped_population_ends_within_a_call_of_its_steps(tmp_path: Path) -> None:
    """Whenever members are ready."""
    summary = pbt.run(plan_in(tmp_path), settings(ready_steps=100_000))
    assert 4 * 2000 <= summary["agent_steps"] <= 4 * (2000 + 120)


# Processes.


class Inline:
    """In the place of processes: a member's life, lived at once. Those to fail, by member and how
    often it has lived, end with the exit status that they are given."""

    def __init__(self) -> None:
        self.lived: dict[int, int] = {}
        self.failing: dict[tuple[int, int], int] = {}
        self.unsaved: set[tuple[int, int]] = set()  # in which nothing is learnt

    def start(self, plan: Plan, env: Any, legacy: lives.Legacy) -> Any:
        assert legacy.donor is None or legacy.donor.is_absolute()
        member = int(plan.run_dir.name)
        life = self.lived[member] = self.lived.get(member, 0) + 1
        if (member, life) not in self.unsaved:
            training.run(plan, env, change=legacy.take_up)
        status = self.failing.get((member, life), 0)
        return SimpleNamespace(
            over=True, words="it fell", stop=lambda: None, end=lambda: status, member=member
        )

    def wait(self, lives: Any, timeout: float) -> None:
        """They are over."""

    def close(self) -> None:
        """Nothing is left."""


def inline(patched: pytest.MonkeyPatch) -> Inline:
    here = Inline()
    patched.setattr(processes, "Here", lambda: here)
    return here


PROCESSES: dict[str, Any] = {
    "population": 3, "ready_steps": 200, "copy_margin": 0.0, "copy_sigmas": 0.0,
    "execution": "processes", "parallel_members": 1,
}  # fmt: skip


def saved_of(directory: Path, member: int) -> Any:
    loaded = Checkpointer(directory / f"members/{member:02d}/checkpoints").load()
    assert loaded is not None
    return loaded


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A population whose members live one after another, never interrupted."""
    directory = tmp_path_factory.mktemp("processes") / "alone"
    with pytest.MonkeyPatch.context() as patched:
        inline(patched)
        assert pbt.run(plan_in(directory, 400), settings(**PROCESSES))["status"] == "finished"
    return directory


def test_members_in_processes_do_what_the_journal_says(alone: Path) -> None:
    events = check_journal(alone, 3, 200)
    assert any(e.get("donor") is not None for e in events)
    assert any(e.get("factors") for e in events)
    for end in (e for e in events if e["event"] == "end"):
        saved = saved_of(alone, end["member"])
        learner = saved.tree("learner")
        assert saved.meta["notes"] == {"generation": len(lives_of(events, end["member"])) - 2}
        for name, value in end["hyper"].items():
            assert learner["hyper"][name] == np.float32(value)


def lives_of(events: list[dict[str, Any]], member: int) -> list[dict[str, Any]]:
    return [e for e in events if e["member"] == member]


@pytest.mark.parametrize("where", ["set aside", "journal", "before the journal"])
def test_a_controller_killed_anywhere_decides_the_same_again(
    where: str, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inline(monkeypatch)
    append, set_aside, count = Journal.append, processes._set_aside, 0

    def counted(call: Any, *args: Any) -> Any:
        nonlocal count
        count += 1
        die = count == (1 if where == "set aside" else 5)
        if die and where == "before the journal":
            raise Killed
        result = call(*args)
        if die:
            raise Killed
        return result

    with monkeypatch.context() as patched:
        if where == "set aside":
            patched.setattr(processes, "_set_aside", lambda *a: counted(set_aside, *a))
        else:
            patched.setattr(Journal, "append", lambda *a: counted(append, *a))
        with pytest.raises(Killed):
            pbt.run(plan_in(tmp_path, 400), settings(**PROCESSES))
    pbt.run(plan_in(tmp_path, 400), settings(**PROCESSES))
    assert (tmp_path / "journal.jsonl").read_bytes() == (alone / "journal.jsonl").read_bytes()
    for member in range(3):
        found, expected = (saved_of(d, member).tree("learner") for d in (tmp_path, alone))
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_what_is_inherited_is_taken_up_once(alone: Path, tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    _, agent = build(plan, plan.env)
    state = initial_state(plan, agent)
    donor = tmp_path / "donor"
    theirs = state._replace(
        params=jax.tree.map(lambda x: x + 1.0, state.params),
        opt_state=jax.tree.map(lambda x: x + 1, state.opt_state),
        hyper=state.hyper | {"value_cost": jnp.float32(9.0), "learning_rate": jnp.float32(8.0)},
        steps=jnp.uint32(77),
    )
    Checkpointer(donor).save(77, {"learner": theirs}, {}, block=True)
    legacy = lives.Legacy(3, {"learning_rate": 0.5, "entropy_cost": 0.25}, donor)
    taken, notes = legacy.take_up(state, {"generation": 2})
    assert notes == {"generation": 3}
    for a, b in ((taken.params, theirs.params), (taken.opt_state, theirs.opt_state)):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    assert int(taken.steps) == 0
    hyper = {k: float(v) for k, v in taken.hyper.items()}
    assert (hyper["learning_rate"], hyper["entropy_cost"], hyper["value_cost"]) == (0.5, 0.25, 9.0)
    # A second start finds it in the checkpoint's notes, and leaves what was learnt since alone.
    again, notes = legacy.take_up(state, notes)
    assert again is state
    assert notes == {"generation": 3}


def test_a_member_that_diverges_copies_another_and_one_that_keeps_dying_stops_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = inline(monkeypatch)
    here.failing[1, 2] = lives.DIVERGED
    config = settings(**PROCESSES)
    pbt.run(plan_in(tmp_path / "a", 600), config)
    events = check_journal(tmp_path / "a", 3, 200)
    second = next(e for e in lives_of(events, 1) if e.get("generation") == 2)
    assert second["score"] is None
    assert second["donor"] in (0, 2)  # whatever their scores
    others = [e for e in events if e["event"] == "ready" and e is not second]
    assert all(e["score"] is not None for e in others)
    # Killed in each of its lives.
    here.lived.clear()
    here.failing = {(1, 1): -9, (1, 2): -9}
    with pytest.raises(UserError, match="died 2 times, more than `--max-restarts` 1; the last"):
        pbt.run(plan_in(tmp_path / "b", 300, max_restarts=1), config)
    assert capsys.readouterr().out.count("member 1's process died (signal 9)") == 1
    # What was wrong having passed, the same command goes on.
    assert pbt.run(plan_in(tmp_path / "b", 300, max_restarts=1), config)["status"] == "finished"
    check_journal(tmp_path / "b", 3, 200)
    # What can't work is said as it was said.
    here.lived.clear()
    here.failing = {(0, 1): lives.MISTAKE}
    with pytest.raises(UserError, match=r"^member 0 can't be trained: it fell$"):
        pbt.run(plan_in(tmp_path / "c", 500), config)


def test_who_diverges_copies_whoever_has_a_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also before anybody else may, and whoever is drawn; unless nobody ever copies."""
    here = inline(monkeypatch)
    here.failing = {(member, 2): lives.DIVERGED for member in (0, 1)}
    config = settings(**PROCESSES | {"evolve_after": 10**6})
    pbt.run(plan_in(tmp_path / "a", 600), config)
    events = check_journal(tmp_path / "a", 3, 200)
    copied = [e for e in events if e.get("donor") is not None]
    assert {e["member"] for e in copied} == {0, 1}
    assert all(e["score"] is None for e in copied)
    here.lived.clear()
    here.failing = {(1, 2): lives.DIVERGED}
    config = settings(**PROCESSES | {"copy_margin": math.inf})
    summary = pbt.run(plan_in(tmp_path / "b", 600), config)
    assert summary["status"] == "finished"
    assert summary["best"] in (0, 2)
    assert "member 1 diverged, and nobody was copied instead" in capsys.readouterr().out
    ended = [e["member"] for e in read_journal(tmp_path / "b/journal.jsonl") if e["event"] == "end"]
    assert sorted(ended) == [0, 2]


@pytest.mark.parametrize("member", range(4))
def test_a_diverged_members_donor_is_drawn_from_those_with_a_score(member: int) -> None:
    scores = [policy.Score(1.0), None, policy.Score(-math.inf), policy.Score(3.0)]
    scores[member] = policy.Score(-math.inf)
    expected = {i for i in (0, 3) if i != member}

    def donor(generation: int, **changes: Any) -> int | None:
        return policy.decide(
            settings(**changes), seed=0, member=member, generation=generation, scores=scores,
            hyper_of=lambda other: {"a": 1.0},
        ).donor  # fmt: skip

    assert {donor(generation) for generation in range(1, 30)} == expected
    assert donor(1, copy_margin=math.inf) is None
    scores[0] = scores[3] = None
    scores[member] = policy.Score(-math.inf)
    assert donor(1) is None


def test_who_diverges_before_anybody_has_a_score_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a directory that is named relatively; whether or not anything was saved."""
    monkeypatch.chdir(tmp_path)
    for unsaved in (set(), {(0, 1)}):
        here = inline(monkeypatch)
        here.failing, here.unsaved = {(0, 1): lives.DIVERGED}, unsaved
        directory = Path(f"unsaved-{len(unsaved)}")
        assert pbt.run(plan_in(directory, 600), settings(**PROCESSES))["status"] == "finished"
        events = read_journal(directory / "journal.jsonl")
        ready = [e for e in events if e["event"] == "ready"]
        assert ready[0]["member"] != 0
        first = next(e for e in ready if e["member"] == 0)
        assert first["score"] is None
        assert any(e["donor"] is not None for e in ready)
        assert all((e["donor"] is None) == (e["donor_steps"] is None) for e in ready)
        assert all(e["donor_steps"] >= 200 for e in ready if e["donor"] is not None)
    here = inline(monkeypatch)
    here.failing = {(member, 1): lives.DIVERGED for member in range(3)}
    with pytest.raises(UserError, match="all members diverged"):
        pbt.run(plan_in(Path("all"), 600), settings(**PROCESSES))


def test_what_a_life_may_come_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = inline(monkeypatch)
    here.unsaved = {(0, 1)}
    with pytest.raises(UserError, match="member 0 was trained for a generation, and there was no"):
        pbt.run(plan_in(tmp_path / "nothing", 400), settings(**PROCESSES))
    # A machine that leaves is nobody's fault.
    here.lived.clear()
    here.unsaved, here.failing = set(), {(1, 1): lives.GONE}
    plan = plan_in(tmp_path / "gone", 400, max_restarts=0)
    assert pbt.run(plan, settings(**PROCESSES))["status"] == "finished"
    assert "member 1's machine left; it goes on elsewhere" in capsys.readouterr().out
    # Games longer than a generation: said once, and what was played is not lost for the score.
    here.lived.clear()
    here.failing = {}
    plan = plan_in(tmp_path / "long", 800, env_args={"rows": 70})
    pbt.run(plan, settings(**PROCESSES))
    assert capsys.readouterr().out.count("no game of some task has ended since member") == 1
    ready = [e for e in read_journal(tmp_path / "long/journal.jsonl") if e["event"] == "ready"]
    assert all(e["score"] is None for e in ready if e["generation"] == 1)
    assert any(e["score"] is not None for e in ready)


def test_wall_seconds_are_of_all_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inline(monkeypatch)
    pbt.run(plan_in(tmp_path, 400, stop_after=200), settings(**PROCESSES))
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"wall_seconds": 1000.0}))
    assert pbt.run(plan_in(tmp_path, 400), settings(**PROCESSES))["wall_seconds"] > 1000


def test_a_population_stays_in_one_program_or_in_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inline(monkeypatch)
    for first, second in (("vmapped", "processes"), ("processes", "vmapped")):
        directory = tmp_path / first
        pbt.run(plan_in(directory, 400), settings(**PROCESSES | {"execution": first}))
        journal = (directory / "journal.jsonl").read_bytes()
        with pytest.raises(UserError, match=r"holds another population \(execution: "):
            pbt.run(plan_in(directory, 400), settings(**PROCESSES | {"execution": second}))
        assert (directory / "journal.jsonl").read_bytes() == journal


def test_every_task_has_a_slot_in_one_program(tmp_path: Path) -> None:
    plan = resolve(
        "impala", "pronk/Catch-v0,pronk/DeepSea-v0", run_dir=tmp_path, batch_size=1, steps=100
    )
    with pytest.raises(UserError, match="1 of the 2 tasks"):
        pbt.run(plan, settings())


def test_the_best_is_written_again_if_that_was_cut_off(tmp_path: Path) -> None:
    summary = pbt.run(plan_in(tmp_path, 400), settings())
    shutil.rmtree(tmp_path / "members")
    assert pbt.run(plan_in(tmp_path, 400), settings())["best_run"] == summary["best_run"]
    assert saved_of(tmp_path, summary["best"]).meta["agent_steps"] >= 400


def test_a_full_disk_is_said_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal._file = open("/dev/full", "ab")  # noqa: SIM115
    with pytest.raises(UserError, match="No space left"):
        journal.append({"event": "start"})
    journal.close()


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


def test_members_and_controller_are_killed_and_nothing_is_lost(tmp_path: Path) -> None:
    """A member first, which is said and made up for; then the controller, whose members end too."""
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
    assert "process died (signal 9); it goes on from its last checkpoint (1 of 10)" in out
    before = read_journal(journal)
    # At once, while the last members may be saving; by the command line, to the end.
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "finished at" in done.stdout
    events = check_journal(directory, 3, 400)
    assert events[: len(before)] == before
    for end in (e for e in events if e["event"] == "end"):
        learner = saved_of(directory, end["member"]).tree("learner")
        for name, value in end["hyper"].items():
            assert learner["hyper"][name] == np.float32(value)
    assert not [m for m in members if Path(f"/proc/{m}").exists()]


def test_members_on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster of this machine's own: a life is a task there, and nothing else is different."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    config = settings(population=2, ready_steps=200, execution="ray", parallel_members=2)
    summary = pbt.run(plan_in(Path("run"), 400, ray="local"), config)
    assert summary["status"] == "finished"
    events = check_journal(Path("run"), 2, 200)
    for end in (e for e in events if e["event"] == "end"):
        learner = saved_of(Path("run"), end["member"]).tree("learner")
        for name, value in end["hyper"].items():
            assert learner["hyper"][name] == np.float32(value)


# The command line.


def pronk(*args: object) -> None:
    cli.main([str(a) for a in args])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tune", "learning_rte=1e-4:1e-2"], "did you mean 'learning_rate'? It can change"),
        (["--tune", "hidden_sizes=1:2"], "'hidden' is nothing that impala can change"),
        (["--tune", "horizon=1:2"], "'horizon' is nothing that impala can change"),
        (["--tune", "learning_rate=1e-2:1e-4"], "expected NAME=LOW:HIGH with LOW below HIGH"),
        (["--tune", "learning_rate=fast:slow"], "expected NAME=LOW:HIGH with LOW below HIGH"),
        (["--tune", "learning_rate=0:1"], "`--learning-rate` is 0.0; expected a number above"),
        (["--tune", "entropy_cost=0:1"], "would begin at 0, of which any multiple is the same"),
        (["--tune", "discount=0.9:1.5"], "`--discount` is 1.5; expected a number from 0 to 1"),
        (["--tune", "discount=0.9:1"], "both below 1"),
        (["--tune", "rho_bar", "--tune", "rho_bar"], "has 'rho_bar' twice"),
        (["--population", "1"], "`--population` is 1; expected at least 2"),
        (["--ready-steps", "0"], "`--ready-steps` is 0; expected at least 1"),
        (["--ready-steps", "9", "--ready-episodes", "9"], "expected one of them"),
        (["--copy-sigmas", "-1"], "`--copy-sigmas` is -1.0; expected zero or more"),
        (["--copy-margin", "-1"], "`--copy-margin` is -1.0; expected zero or more"),
        (["--perturb-probability", "1.5"], "expected a number from 0 to 1"),
        (["--perturb-factor", "0.5"], "`--perturb-factor` is 0.5; expected at least 1"),
        (["--parallel-members", "0"], "`--parallel-members` is 0; expected at least 1"),
        (["--eval-every", "10"], "which a vmapped population can't do"),
        (["--runtime", "local", "--execution", "vmapped"], "a vmapped population is fused"),
        (
            ["--architecture", "async-gradients", "--execution", "vmapped"],
            "`--architecture` is async-gradients, and the fused runtime has none of the local"
            " runtime's architectures: leave it out, or use --execution processes.",
        ),
        (["--learners", "2"], "`--learners` is for single runs"),
        (["--execution", "ray"], "no cluster is named; give `--ray auto`"),
        (
            ["--execution", "processes", "--keep-checkpoints", "1"],
            "`--keep-checkpoints` is 1; expected at least 2 where",
        ),
        (["--tune", "trace_lambda"], "would begin at 1, of which any multiple is the same"),
        (["--evolve-after", "-1"], "`--evolve-after` is -1; expected zero or more"),
    ],
)
def test_bad_input_is_one_paragraph(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        pronk("pbt", "impala", "pronk/Catch-v0", "--run-dir", tmp_path / "run", *FLAGS, *flags)
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not (tmp_path / "run" / "journal.jsonl").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tune": "learning_rate"}, "`--tune` is 'learning_rate'; expected a list of str"),
        ({"population": "4"}, "`--population` is '4'; expected int"),
        ({"ready_steps": 1.5}, "`--ready-steps` is 1.5; expected int"),
        ({"copy_sigmas": True}, "`--copy-sigmas` is True; expected float"),
    ],
)
def test_settings_from_python_have_a_type(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        PBTConfig(**wrong)


@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_has_its_flags(agent: str, capsys: pytest.CaptureFixture[str]) -> None:
    """None of which is also one of the population's."""
    with pytest.raises(SystemExit) as caught:
        pronk("pbt", agent, "--help")
    assert not caught.value.code
    shown = capsys.readouterr().out
    for config in (PBTConfig, RunConfig, agent_module(agent).config):
        assert all(f"--{f.name.replace('_', '-')}" in shown for f in dataclasses.fields(config))


def test_another_agent_in_one_program(tmp_path: Path) -> None:
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
    plan = resolve("r2d2", "pronk/Catch-v0", run_dir=tmp_path, steps=1200, **small)
    config = settings(tune=("learning_rate=1e-4:1e-2", "optimiser_epsilon"), copy_margin=0.0)
    assert pbt.run(plan, config)["copies"] > 0
    check_journal(tmp_path)


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
        runs, told = made.advance(made.begin(keys[0], keys[1], {}))
        found.append((runs.learner.params, told))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)


def test_vmapping_needs_an_environment_in_jax(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        pronk("pbt", "impala", "CartPole-v1", "--run-dir", tmp_path, "--execution", "vmapped")
    assert "needs an environment written in JAX" in capsys.readouterr().err


def test_a_directory_belongs_to_one_population(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(whole)
    with pytest.raises(UserError, match=r"holds another population.*entropy_cost"):
        pbt.run(plan_in(whole, 2000), settings(tune=TUNE[:1]))
    with pytest.raises(UserError, match=r"holds another population.*hidden: \[8\] there"):
        pbt.run(plan_in(whole, 2000, hidden_sizes=(16,)), settings())
    with pytest.raises(UserError, match="holds a population, whose members are runs"):
        training.run(plan_in(whole, 2000))
    assert_same(contents(whole), before)
    # What was refused before anything was saved is in nobody's way.
    refused = settings(population=2, execution="processes", parallel_members=1)
    with pytest.raises(UserError, match=r"member 0 can't be trained: .*a3c"):
        pbt.run(plan_in(tmp_path / "refused", 200, architecture="async-gradients",
                        value_normalisation="popart"), refused)  # fmt: skip
    assert (tmp_path / "refused" / "journal.jsonl").stat().st_size > 0
    assert pbt.run(plan_in(tmp_path / "refused", 200), settings(population=2))["generations"] == 0
    training.run(plan_in(tmp_path, 100))
    with pytest.raises(UserError, match="holds a run, and a population can't live in it"):
        pbt.run(plan_in(tmp_path, 100), settings())


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
        told = capsys.readouterr().err
        assert f"is damaged in line {whole.count(bytes([10])) + 1} ({why})" in told
    journal.write_bytes(whole)
    (directory / "summary.json").unlink()
    with pytest.raises(SystemExit):
        pronk("eval", directory)
    assert "a population without a best member" in capsys.readouterr().err


def test_nothing_happens_before_it_is_to(tmp_path: Path) -> None:
    pbt.run(plan_in(tmp_path), settings(evolve_after=1000, copy_margin=0.0))
    ready = [e for e in check_journal(tmp_path) if e["event"] == "ready"]
    early = [e for e in ready if e["steps"] < 1000]
    assert len(early) == 4 * 3
    assert all(e["donor"] is None and not e["factors"] for e in early)
    assert any(e["donor"] is not None for e in ready)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "pbt.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(block, {})
    assert (tmp_path / "runs/population/summary.json").exists()


# The experiment and the benchmark.


def test_the_experiment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small: the fixed members are the population's own first draws; done once; what it says is
    what the members did."""
    small = experiment.Task(
        "pronk/Catch-v0", {"rows": 4}, 2000, 1.0, {"hidden_sizes": (8,), "unroll": 5}
    )
    monkeypatch.setattr(experiment, "TASKS", {"small catch": small})
    flags = ["--seeds", 1, "--population", 4, "--output", tmp_path, "--results", tmp_path]
    pronk("reproduce", "pbt", *flags)
    out = capsys.readouterr().out
    assert "small catch: the best fixed member is at " in out
    names = (
        "pbt.csv",
        "pbt.png",
        "pbt-curves.csv",
        "pbt-curves.png",
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
    assert of_easy == "easy: the best fixed member is at 95% of the maximum (too near to tell)"
    assert easily.startswith("- PBT: best ≥ fixed best in the mean, on 1 of 1 seeds; ")
    table = experiment.table(found)
    assert "| | PBT, best | 5 % alone, best | fixed, best | PBT, median |" in table
    row = "| t | 3.75 (2.5 to 5) | 0 (0 to 0) | 4 (4 to 4) | 2.5 (2 to 3) | 0 (0 to 0) |"
    assert row in table


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


# The journal and the picture.


def test_a_journal_forgets_what_was_half_written_and_what_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append({"event": "a"}, {"event": "b"})
    size = journal.size
    journal.append({"event": "c"})
    journal.close()
    path.write_bytes(path.read_bytes() + b'{"event": "d"')
    assert [e["event"] for e in read_journal(path)] == ["a", "b", "c"]
    journal = Journal(path)
    journal.append({"event": "e"})
    assert [e["event"] for e in read_journal(path)] == ["a", "b", "c", "e"]
    journal.truncate(size)
    journal.append({"event": "f"})
    journal.close()
    assert [e["event"] for e in read_journal(path)] == ["a", "b", "f"]
    with pytest.raises(UserError, match="was cut short or replaced"):
        Journal(path).truncate(10_000)
    path.write_text('{"event": "a"}\nnonsense\n{"event": "b"}\n')
    with pytest.raises(UserError, match="is damaged in line 2"):
        read_journal(path)


def test_ancestry_of_a_population_by_hand() -> None:
    """Members that are ready together have not made equally many agent steps."""

    def ready(
        member: int, steps: int, score: float | None, donor: int | None, at: int | None = None
    ) -> dict[str, Any]:
        after = {"x": float(steps + member)}
        return {"event": "ready", "member": member, "steps": steps, "score": score,
                "donor": donor, "donor_steps": at, "after": after}  # fmt: skip

    events: list[dict[str, Any]] = [
        {"event": "start", "member": i, "hyper": {"x": float(i)}} for i in range(3)
    ]
    events += [ready(0, 10, 1.0, None), ready(1, 11, 2.0, None), ready(2, 10, None, None)]
    events += [ready(0, 20, 1.5, 1, 22), ready(1, 22, 3.0, 2, 19), ready(2, 19, 0.0, 1, 22)]
    events += [ready(0, 33, 4.0, 1, 34), ready(1, 34, 3.0, None), ready(2, 30, 3.0, 0, 33)]
    ends = ((0, 4.0), (1, 3.5), (2, 5.0))
    events += [{"event": "end", "member": m, "steps": 40, "score": s} for m, s in ends]
    lines = lineage.member_lines(events)
    assert math.isnan(lines[2].scores[0])
    assert lineage.best_member(lines) == 2
    segments = lineage.ancestry(lines, 2)
    expected = [lineage.Segment(1, 0, 22), lineage.Segment(0, 20, 33), lineage.Segment(2, 30, 40)]
    assert segments == expected
    x, y = lineage._path(lines, segments)
    assert x.tolist() == [11, 22, 33, 40]
    assert y.tolist() == [2.0, 3.0, 4.0, 5.0]
    corners = [lineage._stairs(lines[s.member], "x", s.begin, s.end) for s in segments]
    assert corners == [
        ([0, 11, 11, 22], [1.0, 1.0, 12.0, 12.0]), ([20, 33], [20.0, 20.0]), ([30, 40], [32.0] * 2)
    ]  # fmt: skip
    assert lineage._point(lines[1], 22) == (22, 3.0)
    assert lineage._point(lines[1], 33) == (22, 3.0)  # copied between two times that it was ready
    assert lineage.render(lines, "by hand").startswith(b"\x89PNG")
