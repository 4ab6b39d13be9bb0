"""Acting and learning on the devices that were asked for, with two that pretend to be separate."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pronk
from pronk import agents, envs
from pronk.agents.impala_config import Config
from pronk.errors import UserError
from pronk.experiments.bench.timing import random_batch

TWO_DEVICES = """
import contextlib, sys
import jax
from pronk.run.resolve import resolve
from pronk.run.setup import build, initial_state
from pronk.run.build import make_runtime

acts, learns = jax.devices()[1], jax.devices()[0]


def on(tree, device):
    leaves = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    assert leaves and all(x.devices() == {device} for x in leaves), (tree, device)


# The actor acts meanwhile, and updates in place what it keeps to itself.
def carry_on(player, device):
    for _ in range(1000):
        try:
            return on(player.carry, device)
        except RuntimeError as error:
            assert "deleted" in str(error), error
    raise AssertionError("the carry was never seen whole")


for architecture in sys.argv[1:]:
    fused = architecture == "fused"
    flags = {"learner_device": "cpu:1"} if fused else {
        "actor_device": "cpu:1", "learner_device": "cpu:0", "architecture": architecture,
    }
    plan = resolve(
        "impala",
        "pronk/Catch-v0",
        runtime="fused" if fused else "local",
        actors=None if fused else 2,
        envs_per_actor=4,
        batch_size=4 if architecture == "async-gradients" else 8,
        hidden_sizes=(8,),
        unroll=5,
        **flags,
    )
    _, agent = build(plan, plan.env)
    with contextlib.ExitStack() as stack:
        runtime = make_runtime(
            plan, plan.env, agent, initial_state(plan, agent), start_step=0, log=print, stack=stack
        )
        stack.callback(runtime.close)
        for _ in range(3):
            runtime.update()
        on(runtime.learner_state, acts if fused else learns)
        if architecture == "async-gradients":
            on(runtime._latest, acts)
        elif not fused:
            on(runtime.learner.behaviour(), acts)
        if not fused:
            for actor in runtime._actors._actors:
                if not architecture.endswith("batched"):  # the server hands NumPy over
                    carry_on(actor._actor._player, acts)
"""


@pytest.mark.parametrize(
    "architectures",
    [
        ["async", "fused"],
        pytest.param(["async-gradients", "async-batched"], marks=pytest.mark.extended),
    ],
)
def test_arrays_are_on_the_chosen_devices(architectures: list[str]) -> None:
    subprocess.run(
        [sys.executable, "-c", TWO_DEVICES, *architectures],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        check=True,
        timeout=300,
    )


SEVERAL_LEARNERS = """
import sys
import jax
import numpy as np
from pronk.experiments.bench.timing import random_batch
from pronk.run.resolve import resolve
from pronk.runtime.learner import Learner
from pronk.run.devices import choose_devices
from pronk.run.setup import build, initial_state

replayed = {"burn_in": 2, "sequence_length": 4, "overlap": 2, "head_units": 4}
of_sequences = ("r2d2", "ngu", "agent57")
off_policy = sys.argv[1] in ("ddpg", "sac")
plan = resolve(
    sys.argv[1], "pronk/CartPoleBalance-v0" if off_policy else "pronk/Catch-v0", runtime="local",
    batch_size=8, hidden_sizes=(8,), unroll=6, optimiser_epsilon=0.1,
    **({} if off_policy else {"recurrent_core": "lstm", "recurrent_units": 4}),
    **({} if sys.argv[1] in ("trpo", "rwr") else {"learning_rate": 0.01}),
    **({"minibatch_size": 24, "passes": 2} if sys.argv[1] == "ppo" else {}),
    **({"value_minibatch_size": 24, "value_passes": 2} if sys.argv[1] in ("trpo", "rwr") else {}),
    **({"fit_iterations": 2, "baseline": "network"} if sys.argv[1] == "rwr" else {}),
    learner_device="cpu:0,cpu:1,cpu:2,cpu:3",
    **(replayed if sys.argv[1] in of_sequences else {}),
    **({"intrinsic_steps": 2, "memory_size": 20} if sys.argv[1] in ("ngu", "agent57") else {}),
    **({"value_normalisation": "popart", "popart_beta": 0.1} if sys.argv[2:] else {}),
)
spec, agent = build(plan, plan.env)
state = initial_state(plan, agent)
batches = []
for i in range(3):
    batch = random_batch(agent, spec, state, 6, 8)
    trajectory = batch.trajectory
    if sys.argv[1] in of_sequences:
        extras = dict(trajectory.extras)
        probabilities = np.random.default_rng(i).uniform(0.1, 1, 8).astype(np.float32)
        batch = batch._replace(
            trajectory=trajectory._replace(extras=extras), probabilities=probabilities,
        )
    batches.append(batch)
states, priorities = [], []
for devices in ((), (choose_devices(plan),)):
    learner = Learner(agent, initial_state(plan, agent), *devices, batch_size=8)
    learner.parts = 1
    for batch in batches:
        update = learner.update(learner.prepare([batch]))
    learner.publish()
    states.append(jax.tree.map(np.asarray, learner.state._replace(key=())))
    priorities.append(jax.tree.map(np.asarray, update.feedback))
    learner.close()
leaves = [x for x in jax.tree.leaves(learner.state.params)]
assert all(len(x.devices()) == 4 and x.is_fully_replicated for x in leaves)
shared = jax.tree.leaves(learner.prepare(batches[:1]).parts[0])
assert all(x.addressable_shards[0].data.size * 4 == x.size for x in shared)
assert len(jax.tree.leaves(learner.latest[1])[0].devices()) == 1  # where actors act
before = jax.tree.map(np.asarray, initial_state(plan, agent).params)
moved = max(abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (before, states[0].params))))
assert moved > 1e-3, moved
close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)
jax.tree.map(close, *states)
jax.tree.map(close, *priorities)
"""
FOUR = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}


@pytest.mark.parametrize(
    "agent",
    [
        "ppo",
        *(pytest.param(x, marks=pytest.mark.extended) for x in ("impala popart", "r2d2", "sac")),
    ],
)
def test_several_learner_devices_update_as_one(agent) -> None:
    """The state is compared, PopArt's statistics in it."""
    command = [sys.executable, "-c", SEVERAL_LEARNERS, *agent.split()]
    subprocess.run(command, env=FOUR, check=True, timeout=300)


@pytest.mark.parametrize("agent", ["impala", "r2d2"])
@pytest.mark.extended
def test_training_on_several_learner_devices(agent, tmp_path: Path) -> None:
    """The run is saved as any other, and continues on one device."""
    flags = [
        "--runtime",
        "local",
        "--actors",
        "1",
        "--envs-per-actor",
        "4",
        "--batch-size",
        "4",
        "--quiet",
    ]
    flags += ["--hidden-sizes", "8", "--unroll", "5", "--run-dir", str(tmp_path), "--steps", "4000"]
    if agent == "r2d2":
        flags += ["--recurrent-units", "4", "--head-units", "4", "--replay-minimum", "5"]
    command = [sys.executable, "-m", "pronk", "train", agent, "pronk/Catch-v0", *flags]
    several = [*command, "--learner-device", "cpu:0,cpu:1", "--stop-after", "2000"]
    subprocess.run(several, env=FOUR, check=True, timeout=300)
    half = pronk.load(tmp_path).steps
    assert 2000 <= half < 4000
    subprocess.run(command, check=True, timeout=300)
    assert pronk.load(tmp_path).steps >= 4000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learner_device": "tpu"}, "`--learner-device` is 'tpu'.*cpu:0"),
        ({"actor_device": "cpu:7"}, "`--actor-device` is 'cpu:7'.*cpu:0"),
        ({"learner_device": "cpu:0,cpu:0"}, "expected different devices"),
        ({"learner_device": "cpu:0,tpu"}, "`--learner-device` is 'tpu'"),
        ({"actor_device": "cpu:x"}, "`--actor-device` is 'cpu:x'"),
        ({"actor_device": "cpu", "runtime": "fused"}, "acts where it learns"),
    ],
)
def test_missing_devices_are_named(settings, message, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        pronk.train(
            "impala",
            "pronk/Catch-v0",
            run_dir=tmp_path,
            steps=100,
            **{"runtime": "local", **settings},
        )


@pytest.mark.parametrize("torso", ["shallow", pytest.param("deep", marks=pytest.mark.extended)])
def test_bfloat16_is_nearly_float32(torso) -> None:
    """Values, policies and gradients of the same parameters; all that is kept is float32."""
    spec = envs.spec_of("pronk/Waiting-v0")
    found = []
    for dtype in ("float32", "bfloat16"):
        config = Config(torso=torso, hidden_sizes=(32,), encoder_dtype=dtype)  # type: ignore[arg-type]
        agent = agents.make("impala", config, spec, horizon=100)
        state = jax.jit(agent.init)(jax.random.key(0))
        batch = random_batch(agent, spec, state, 3, 2)
        grads, aux = jax.jit(agent.halves.gradients)(state, batch)  # type: ignore[arg-type]
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((state.params, grads)))
        found.append((grads, aux))
    (exact, aux), (rough, rough_aux) = found
    assert rough_aux["value_mean"] == pytest.approx(float(aux["value_mean"]), rel=0.05, abs=0.05)
    flat, other = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in (exact, rough)
    )
    cosine = flat @ other / np.linalg.norm(flat) / np.linalg.norm(other)
    assert 0.95 < cosine < 1 - 1e-7  # it is another arithmetic, and points the same way
