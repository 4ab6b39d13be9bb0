"""Learners in two processes that update together."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import textwrap
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import pronk
from pronk import agents, envs
from pronk.agents.impala_config import Config
from pronk.errors import UserError
from pronk.runtime.learner import Learner
from pronk.runtime.multi_learner import SINGLE_PROCESS
from pronk.types import Batch
from tests.chaos.harm import RunWatcher, counters_increase, training


def free_address() -> str:
    """Where nobody listens now."""
    with Listener(("127.0.0.1", 0)) as listener:
        return "{}:{}".format(*listener.address)


# What both processes and this one do: updates of batches that they all can make.
PROGRAM = """
import sys
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from pronk import agents, envs
from pronk.agents.impala_config import Config
from pronk.runtime.api import Devices
from pronk.runtime.multi_learner import join
from pronk.runtime.learner import Learner
from test_group import UPDATES, batch, built

rank, address, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
group = join(address, 2, rank)
assert (group.count, group.rank) == (2, rank), group
assert group.all_reduce_sum(3 + rank, rank) == (7, 1)
mesh = Mesh(np.array(jax.devices()), ("data",))
everywhere = NamedSharding(mesh, PartitionSpec())
agent = built()
state = jax.jit(agent.init)(jax.random.key(rank))  # another one in each process
state = group.broadcast(state)
learner = Learner(agent, state, Devices(jax.local_devices()[0], everywhere), batch_size=4)
for i in range(UPDATES):
    update = learner.update(learner.prepare([batch(i, 2 * rank, 2 * rank + 2)]))
    learner.publish()
found = {
    "params": learner.state.params,
    "behaviour": learner.behaviour(),
    "steps": learner.state.steps,
    "loss": update.metrics["loss/policy"],
}
np.savez(path, *map(np.asarray, jax.tree.leaves(found)))
"""
UPDATES = 3


def built() -> Any:
    return agents.make(
        "impala", Config(unroll=5, batch_size=4, hidden_sizes=(8,)), envs.spec_of("CartPole-v1"),
        horizon=1000,
    )  # fmt: skip


def batch(i: int, start: int, stop: int) -> Batch:
    """Columns of the i-th batch: whatever its numbers, all who learn from it see the same."""
    from pronk.experiments.bench.timing import random_batch
    from pronk.runtime.columns import columns

    agent = built()
    state = jax.jit(agent.init)(jax.random.key(0))
    whole = random_batch(agent, envs.spec_of("CartPole-v1"), state, 5, 4).trajectory
    reward = np.random.default_rng(i).normal(size=np.shape(whole.timestep.reward))
    timestep = whole.timestep._replace(reward=reward.astype(np.float32))
    whole = jax.tree.map(np.asarray, whole._replace(timestep=timestep))
    return Batch(columns(whole, start, stop))


def test_two_processes_update_as_one(tmp_path):
    address = free_address()
    paths = [tmp_path / "0.npz", tmp_path / "1.npz"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM), str(rank), address, str(path)],
            cwd=Path(__file__).parent,
        )
        for rank, path in enumerate(paths)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    agent = built()
    learner = Learner(agent, jax.jit(agent.init)(jax.random.key(0)), batch_size=4)
    for i in range(UPDATES):
        update = learner.update(learner.prepare([batch(i, 0, 4)]))
        learner.publish()
    expected = jax.tree.leaves(
        {
            "params": learner.state.params,
            "behaviour": learner.behaviour(),
            "steps": learner.state.steps,
            "loss": update.metrics["loss/policy"],
        }
    )
    for path in paths:
        with np.load(path) as found:
            for ours, theirs in zip(expected, found.values(), strict=True):
                np.testing.assert_allclose(theirs, ours, rtol=2e-5, atol=1e-6)


@contextlib.contextmanager
def two_learners(run_dir: Path, *args: str) -> Any:
    """`pronk train` in two processes."""
    common = (
        *("impala", "CartPole-v1", "--learners", "2", "--coordinator", free_address()),
        *(
            "--actors",
            "1",
            "--envs-per-actor",
            "4",
            "--batch-size",
            "8",
            "--unroll",
            "5",
            "--hidden-sizes",
            "8",
        ),
        *args,
    )
    with (
        training(run_dir / "0", *common, "--learner-rank", "0") as first,
        training(run_dir / "1", *common, "--learner-rank", "1") as second,
    ):
        yield first, second


@pytest.mark.extended
def test_two_learners_stop_and_resume_together(tmp_path):
    """Whichever of them is interrupted; the run directory is that of the first."""
    with two_learners(tmp_path, "--checkpoint-every", "1000") as both:
        first = both[0][1]
        first.wait_for_records()
        both[1][0].send_signal(signal.SIGINT)
        assert [process.wait(timeout=60) for process, _ in both] == [0, 0]
        outs = [run.output() for _, run in both]
    assert all("interrupted" in out for out in outs)
    saved = pronk.load(tmp_path / "0").steps
    assert all(f"interrupted at {saved:,} steps" in out for out in outs)
    with two_learners(tmp_path) as both:
        first.wait_for_records()
        both[0][0].send_signal(signal.SIGTERM)
        assert [process.wait(timeout=60) for process, _ in both] == [0, 0]
        assert f"resumed at {saved:,} steps" in first.output()
    assert counters_increase(first.records())
    # What the other tells is beside its own run, which is none.
    beside = tmp_path / "1" / "learner1"
    assert RunWatcher(beside).records()[-1]["steps"] > saved
    assert not list(beside.glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "`--coordinator` None; expected a rank from 0 to 1"),
        ({"coordinator": "localhost:1", "learner_rank": 2}, "expected a rank from 0 to 1"),
        ({"coordinator": "localhost:1", "deterministic": True}, "with `--deterministic`"),
        (
            {"coordinator": "localhost:1", "architecture": "async-gradients"},
            "with `--architecture`",
        ),
        ({"coordinator": "localhost:1", "learner_device": "cpu"}, "with `--learner-device`"),
        (
            {"coordinator": "localhost:1", "batch_size": 3},
            "`--batch-size` 3; expected a batch size",
        ),
        ({"coordinator": "localhost:1", "runtime": "fused"}, "with `--runtime`"),
    ],
)
def test_wrong_settings_are_refused_before_the_learners_meet(tmp_path, settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        pronk.train("impala", "pronk/Catch-v0", run_dir=tmp_path, learners=2, **settings)


@pytest.mark.extended
def test_learners_with_different_settings_stop(tmp_path):
    """Both, instead of waiting for each other for ever."""
    address = free_address()
    common = ("impala", "CartPole-v1", "--learners", "2", "--coordinator", address)
    with (
        training(tmp_path / "0", *common, "--unroll", "5", "--learner-rank", "0") as first,
        training(tmp_path / "1", *common, "--unroll", "6", "--learner-rank", "1") as second,
    ):
        assert [process.wait(timeout=100) for process, _ in (first, second)] == [2, 2]
    for _, run in (first, second):
        assert "were not started with the same settings" in run.output()
        assert "Traceback" not in run.output()


def test_a_single_learner_needs_no_communication():
    assert SINGLE_PROCESS.all_reduce_sum(3, 1) == (3, 1)
    tree = {"a": np.ones(3)}
    assert SINGLE_PROCESS.broadcast(tree) is tree
