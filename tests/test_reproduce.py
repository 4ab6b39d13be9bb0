"""The experiments: what they measure, and that they go on where they were interrupted."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from pronk import cli
from pronk.agents import r2d2
from pronk.reproduce import r2d2_ablations as ablations
from pronk.reproduce import r2d2_staleness as study
from pronk.wiring import ActorFactory, build, initial_state


@pytest.fixture(scope="module")
def late():
    """Episodes of one network that has not changed since, and what measures them."""
    plan = study._plan("stored state", 0, 1000)
    # Acting at random, for episodes longer than an untrained network's.
    config = dataclasses.replace(plan.agent_config, exploration=1.0, exploration_exponent=0.0)
    plan = dataclasses.replace(plan, agent_config=config)
    spec, agent = build(plan, plan.env)
    state = initial_state(plan, agent)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + np.float32(0.1 * rng.normal(size=x.shape)), state.params)
    actor = ActorFactory(plan, plan.env, 0, 1, study.ENVS, 0)(agent)
    found, trajectories = study._Late(), []
    for _ in range(60):
        trajectories.append(actor.unroll(params, 0).trajectory)
        found.add(trajectories[-1])
    _, forward = r2d2.action_values(plan.agent_config, spec)
    return found, trajectories, params, jax.jit(forward)


def test_whole_episodes_are_kept(late):
    found, trajectories, _, _ = late
    assert len(found.episodes) > 20
    for episode in found.episodes:
        first = episode.timestep.first
        assert first[0]
        assert not first[1:].any()
        ended = episode.timestep.terminated | episode.timestep.truncated
        assert ended[-1]
        assert not ended[:-1].any()
    rows = sum(len(e.action) for e in found.episodes)
    assert rows <= sum(t.action[:-1].size for t in trajectories)


def test_a_state_that_is_right_has_no_discrepancy(late):
    """The stored one, while the network is the one that stored it; zeros are wrong, and a burn-in
    makes them less so."""
    found, _, params, forward = late
    delta = {}
    for strategy in study.STRATEGIES:
        config = study._plan(strategy, 0, 1000).agent_config
        delta[strategy] = study._delta_q(forward, params, found, config, np.random.default_rng(1))
    for strategy in ("stored state", "stored + burn-in"):
        assert max(delta[strategy]) < 1e-4
    assert delta["zero state"][0] > delta["zero state + burn-in"][0] > 1e-4
    assert delta["zero state"][0] > delta["zero state"][1]


def test_an_interrupted_study_goes_on(tmp_path, monkeypatch, capsys):
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


def test_the_ablations_are_of_one_part_each_and_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablations, "GAMES", 2)
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
    # What is done is not done again.
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
    ],
)
def test_bad_input(args, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["reproduce", *args])
    assert caught.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
