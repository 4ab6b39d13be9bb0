"""Actors and environments picked by trying: where the search goes, and that it counts rightly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import pronk
from pronk import agents, envs
from pronk.agents.impala_config import Config
from pronk.runtime import tuning
from pronk.runtime.actor import Actor, Player

KEY = jax.random.key(0)


def search(monkeypatch: pytest.MonkeyPatch, rate: Any, **settings: Any) -> tuning.Pick:
    monkeypatch.setattr(
        tuning, "_steps_per_second", lambda make, actors, envs, *_: rate(actors, envs)
    )
    return tuning.pick(lambda actors, envs: [], None, **settings)


def test_environments_grow_while_that_is_faster(monkeypatch):
    """A call costs as much as 50 environments: from 128 to 256, 17 % are gained, then 9 %."""

    def rate(actors: int, envs: int) -> float:
        return 2 * envs / (1 + 0.02 * envs)

    assert search(monkeypatch, rate, batch_size=1000)[:2] == (2, 256)
    assert search(monkeypatch, lambda m, n: 100.0, batch_size=1000)[:2] == (2, 16)


def test_actors_grow_for_waiting_environments(monkeypatch):
    picked = search(monkeypatch, lambda m, n: 100.0 * min(m, 9), batch_size=1000)
    assert picked[:2] == (8, 16)
    assert "8 × 16: 800" in picked.why


@pytest.mark.parametrize("batch", [1, 2, 8, 32])
def test_few_batches_are_in_flight(monkeypatch, batch):
    """However much faster more would be."""
    actors, envs, _ = search(monkeypatch, lambda m, n: float(m * n) ** 2, batch_size=batch)
    assert batch < actors * envs <= tuning.IN_FLIGHT * batch


def test_given_numbers_are_kept(monkeypatch):
    grows = {"rate": lambda m, n: float(m * n), "batch_size": 64}
    assert search(monkeypatch, **grows, envs=3)[:2] == (64, 3)
    assert search(monkeypatch, **grows, envs=3, actors=3)[:2] == (3, 3)
    assert search(monkeypatch, **grows, actors=3)[:2] == (3, 64)


def test_slow_environments_are_tried_once(monkeypatch):
    times = iter([0.0, 10.0])
    monkeypatch.setattr(tuning.time, "perf_counter", lambda: next(times))
    assert search(monkeypatch, lambda m, n: float(m * n), batch_size=64)[:2] == (2, 16)


def test_nothing_is_tried_with_environments_that_are_slow_to_make(monkeypatch):
    picked = search(monkeypatch, lambda m, n: 1 / 0, batch_size=64, construction=0.5)
    assert picked == (2, 16, "other numbers are not tried: an environment takes 0.5 s to make")


def test_steps_are_counted_and_actors_closed(monkeypatch):
    """Waiting environments have a known speed."""
    monkeypatch.setattr(tuning, "SECONDS", 0.3)
    spec = envs.spec_of("pronk/Waiting-v0")
    config = Config(unroll=4, hidden_sizes=(8,), torso="mlp")
    agent = agents.make("impala", config, spec, horizon=100)
    behaviour = agent.behaviour(jax.jit(agent.init)(KEY))
    closed = []

    def make(actors: int, width: int) -> list[Actor]:
        made = []
        for i in range(actors):
            env = envs.make("pronk/Waiting-v0", width, seed=i)
            env.close = lambda i=i: closed.append(i)
            made.append(Actor(Player(agent, KEY, np.arange(width), width), env, unroll=4))
        return made

    rate = tuning._steps_per_second(make, 2, 3, behaviour, lambda: None)
    assert 100 < rate < 2 * 3 / 0.01  # as slow as the machine is, never faster than the waiting
    assert {*closed} == {0, 1}


def test_a_run_shows_the_chosen_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pronk.train(
        "impala", "pronk/Catch-v0", run_dir=tmp_path, runtime="local", steps=300,
        hidden_sizes=(8,), batch_size=16, unroll=5, quiet=True,
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert "steps/s of actors × environments: 2 × 16:" in shown
    assert "async: 2 actors" in shown
