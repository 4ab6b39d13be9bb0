"""What a person sees of mixtures and of the intrinsic reward: metrics, the display, the plot of a
run, and the strip below the frames of a film."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_agent57
import test_ngu
from rich.console import Console

from pronk.agents import mixture_q
from pronk.agents.mixture_q import by_mixture
from pronk.maths import bandit
from pronk.run.monitor import Monitor, best_mixture
from pronk.types import Batch

AGENTS = {"ngu": test_ngu, "agent57": test_agent57}


def batch_of_ages(module: Any, agent: Any, version: list[int]) -> Batch:
    batch = module.random_batch(agent)
    return batch._replace(trajectory=batch.trajectory._replace(version=np.array(version, np.int32)))


@pytest.mark.parametrize("name", AGENTS)
def test_shares_are_of_the_transitions_of_the_newest_sequences(name: str) -> None:
    """A quarter of them, rounded down, but at least one, and all that are as old; each sequence as
    if all were equally likely."""
    module = AGENTS[name]
    agent, state, learn = module.make()
    for version, recent in (
        ([3, 9, 1, 2, 0], [1]),
        ([3, 9, 9, 2, 0], [1, 2]),
        ([7, 7, 7, 7, 7], [0, 1, 2, 3, 4]),
    ):
        batch = batch_of_ages(module, agent, version)
        trajectory, expected = batch.trajectory, np.zeros(module.N)
        for b in recent:
            for t in range(module.BURN_IN, len(trajectory.action) - 1):
                if not trajectory.timestep.first[t + 1, b]:
                    weight = 1 / float(batch.probabilities[b])  # type: ignore[index]
                    expected[trajectory.extras["mixture"][t, b]] += weight
        metrics = learn(state, batch).metrics
        found = [metrics[f"mixture/share/{j}"] for j in range(module.N)]
        np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-5)
    dummies = trajectory._replace(
        timestep=trajectory.timestep._replace(first=np.ones_like(trajectory.timestep.first))
    )
    np.testing.assert_array_equal(agent.shares(batch._replace(trajectory=dummies)), 0)


def test_returns_are_the_means_that_evaluations_choose_from() -> None:
    """Of a mixture whose episodes have not been seen to end: −infinity, which is null in files."""
    agent, state, learn = test_agent57.make()
    batch = test_agent57.random_batch(agent)
    after, metrics, _ = learn(state, batch)
    found = [metrics[f"mixture/return/{j}"] for j in range(test_agent57.N)]
    np.testing.assert_array_equal(found, bandit.means(after.extra["tally"]))
    assert np.isfinite(found).all()
    never = batch.trajectory.timestep._replace(
        terminated=np.zeros_like(batch.trajectory.timestep.first),
        truncated=np.zeros_like(batch.trajectory.timestep.first),
    )
    metrics = learn(state, batch._replace(trajectory=batch.trajectory._replace(timestep=never)))[1]
    assert [metrics[f"mixture/return/{j}"] for j in range(3)] == [-math.inf] * 3


def test_there_are_metrics_of_at_most_32_mixtures() -> None:
    assert list(by_mixture("share", jnp.arange(32.0))) == [f"mixture/share/{j}" for j in range(32)]
    assert by_mixture("share", jnp.arange(33.0)) == {}


@pytest.mark.parametrize("name", AGENTS)
def test_metrics_change_nothing_that_is_learnt(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for shown in (True, False):
        if not shown:
            monkeypatch.setattr(mixture_q, "by_mixture", lambda *_: {})
        agent, state, learn = AGENTS[name].make()
        for seed in range(3):
            state, metrics, _ = learn(state, AGENTS[name].random_batch(agent, seed))
        assert ("mixture/share/0" in metrics) == shown
        states.append(state)
    assert not AGENTS[name].differs(
        *(jax.tree.map(jax.random.key_data, s.key) for s in states)
    )
    assert not AGENTS[name].differs(*(s._replace(key=()) for s in states))


def logged(run_dir: Path, *records: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """What a run's `metrics.jsonl` has, and its panel after the last record."""
    console = Console(file=io.StringIO(), width=100)
    with Monitor(run_dir, total_steps=100, frames_per_step=1, title="x", console=console) as m:
        for record in records:
            m.log(record)
        console.print(m._panel())
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], console.file.getvalue()  # type: ignore[attr-defined]


def test_the_display_has_the_best_mixture_and_no_more(tmp_path: Path) -> None:
    shares = {f"mixture/share/{j}": 1 / 32 for j in range(32)}
    returns = {f"mixture/return/{j}": -float(abs(j - 17)) for j in range(32)}
    unknown = dict.fromkeys(returns, -math.inf)
    _, panel = logged(tmp_path / "a", {"steps": 1, **shares, **unknown})
    assert "mixture" not in panel
    records, panel = logged(
        tmp_path / "b", {"steps": 2, **shares, **returns, "mixture/return/31": math.nan}
    )
    (line,) = [line for line in panel.splitlines() if "mixture" in line]
    assert line.split()[-4:-1] == ["best", "mixture", "17"]
    assert records[0]["mixture/return/31"] is None
    assert records[0]["mixture/return/17"] == 0
    assert best_mixture(records[0]) == 17
    assert best_mixture({"mixture/return/x": 3.0}) is None
