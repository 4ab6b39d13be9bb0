"""The learner in parts, on a core each: the update is that of the whole batch."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pronk
from pronk import agents, envs
from pronk.agents.impala_config import Config
from pronk.errors import UserError
from pronk.experiments.bench.timing import random_batch
from pronk.runtime import cpus
from pronk.runtime import learner as learner_module
from pronk.runtime.learner import Learner
from pronk.runtime.source import Queue

SPEC = envs.spec_of("CartPole-v1")
SIZE = 6


def update(
    monkeypatch: pytest.MonkeyPatch, available_cpus: int, *, whole: bool = False, **config: Any
):
    """State and report of one update by a learner that may use so many cores."""
    monkeypatch.setattr(learner_module, "available_cpus", lambda: available_cpus)
    agent = agents.make("impala", Config(unroll=4, hidden_sizes=(8,), **config), SPEC, horizon=1000)
    state = jax.jit(agent.init)(jax.random.key(0))
    trajectory = random_batch(agent, SPEC, state, 4, SIZE).trajectory
    # Columns of unlike weight: means over parts would not be the mean over all.
    first = np.zeros_like(trajectory.timestep.first)
    first[1:, :3] = np.arange(12).reshape(4, 3) % 2 == 0
    trajectory = trajectory._replace(
        timestep=trajectory.timestep._replace(first=first), version=np.arange(SIZE, dtype=np.int32)
    )
    learner = Learner(agent, jax.tree.map(jnp.copy, state), batch_size=SIZE)
    with contextlib.closing(learner):
        queue = Queue(SIZE)
        queue.add(0, trajectory)
        assert queue.ready()
        batch = learner.prepare(queue.take(1 if whole else learner.parts).parts)
        assert batch.version.tolist() == [0, 1, 2, 3, 4, 5]
        learnt = learner.update(batch)
        learner.publish()
    return learner, learnt


@pytest.mark.parametrize(
    ("reduction", "core"),
    [
        ("sum", "lstm"),
        ("mean", "none"),
        pytest.param("sum", "none", marks=pytest.mark.extended),
        pytest.param("mean", "lstm", marks=pytest.mark.extended),
    ],
)
def test_an_update_in_parts_is_that_of_the_whole_batch(monkeypatch, reduction, core):
    settings = {"loss_reduction": reduction, "recurrent_core": core, "recurrent_units": 4}
    whole, expected = update(monkeypatch, 2, whole=True, **settings)
    parts, found = update(monkeypatch, 2, **settings)
    assert whole.parts == parts.parts == 2
    assert whole.state.steps == parts.state.steps == 18
    assert found.metrics.keys() == expected.metrics.keys()
    for name, value in expected.metrics.items():
        np.testing.assert_allclose(found.metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    for ours, theirs in zip(
        jax.tree.leaves(parts.state.params), jax.tree.leaves(whole.state.params), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert parts.updates == parts.latest[0] == 1


@pytest.mark.parametrize(
    ("available_cpus", "parts"), [(1, 1), (2, 2), (4, 3), (5, 3), (6, 6), (64, 6)]
)
def test_the_number_of_parts_divides_the_batch(monkeypatch, available_cpus, parts):
    learner, _ = update(monkeypatch, available_cpus)
    assert learner.parts == parts
    assert not any(t.name.startswith("learner") and t.is_alive() for t in threading.enumerate())


needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="the system does not let a program choose"
)


@needs_affinity
@pytest.mark.parametrize("architecture", ["async", "sync-unroll", "async-batched"])
def test_actor_cores_are_for_the_threads_of_actors(tmp_path, monkeypatch, architecture):
    """And of central inference, but not for the main thread or others."""
    seen: dict[str, set[int]] = {}
    mine = os.sched_getaffinity(0)
    settle = os.sched_setaffinity

    def spy(who: int, which: list[int]) -> None:
        settle(who, which)
        seen[threading.current_thread().name.split("-")[0].split("_")[0]] = os.sched_getaffinity(0)

    monkeypatch.setattr(os, "sched_setaffinity", spy)
    pronk.train(
        "impala",
        "CartPole-v1",
        run_dir=tmp_path,
        steps=200,
        actors=2,
        envs_per_actor=2,
        batch_size=4,
        unroll=5,
        hidden_sizes=(8,),
        architecture=architecture,
        actor_cores=1,
        quiet=True,
    )
    central = {"inference"} if "batched" in architecture else set()
    assert seen == {name: {max(mine)} for name in {"actor"} | central}
    assert os.sched_getaffinity(0) == mine


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"actor_cores": 10_000}, "`--actor-cores` is 10000; this process may use"),
        ({"actor_cores": 0}, "`--actor-cores` is 0; expected a number above zero"),
        ({"actor_cores": 1, "deterministic": True}, "deterministic actors have no threads"),
        ({"actor_cores": 1, "env": "pronk/Catch-v0"}, "the fused runtime has no actors' threads"),
    ],
)
def test_wrong_actor_cores_are_refused(tmp_path, settings, message):
    env = settings.pop("env", "CartPole-v1")
    with pytest.raises(UserError, match=message):
        pronk.train("impala", env, run_dir=tmp_path, steps=100, batch_size=32, **settings)


def test_a_system_without_affinity_is_named(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cpus.available_cpus() == os.cpu_count()
    cpus.pin_threads(None)()
    with pytest.raises(UserError, match="does not let a program choose"):
        cpus.pin_threads(1)
