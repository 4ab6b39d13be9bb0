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
from pronk.bench.timing import random_batch
from pronk.configs.impala import Config
from pronk.errors import UserError

TWO_DEVICES = """
import contextlib, sys
import jax
from pronk.plan import resolve
from pronk.wiring import build, initial_state, make_runtime

acts, learns = jax.devices()[1], jax.devices()[0]


def on(tree, device):
    leaves = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    assert leaves and all(x.devices() == {device} for x in leaves), (tree, device)


for architecture in sys.argv[1:]:
    fused = architecture == "fused"
    flags = {"learner_device": "cpu:1"} if fused else {
        "actor_device": "cpu:1", "learner_device": "cpu:0", "architecture": architecture,
    }
    plan = resolve(
        "impala", "pronk/Catch-v0", runtime="fused" if fused else "local", actors=2, envs=4,
        batch_size=4 if architecture == "a3c" else 8, hidden=(8,), unroll=5, **flags,
    )
    _, agent = build(plan, plan.env)
    with contextlib.ExitStack() as stack:
        runtime = make_runtime(
            plan, plan.env, agent, initial_state(plan, agent), life=0, tell=print, stack=stack
        )
        stack.callback(runtime.close)
        for _ in range(3):
            runtime.update()
        on(runtime.learner_state, acts if fused else learns)
        if architecture == "a3c":
            on(runtime._latest, acts)
        elif not fused:
            on(runtime.learner.behaviour(), acts)
        if not fused:
            for actor in runtime._actors:
                if not architecture.endswith("dynamic-batch"):  # the server hands NumPy over
                    on(actor._player.carry, acts)
"""


@pytest.mark.parametrize("architectures", [["impala", "fused"], ["a3c", "impala-dynamic-batch"]])
def test_everything_is_where_it_was_asked_for(architectures: list[str]) -> None:
    subprocess.run(
        [sys.executable, "-c", TWO_DEVICES, *architectures],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        check=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learner_device": "tpu"}, "`--learner-device` is 'tpu'.*cpu:0"),
        ({"actor_device": "cpu:7"}, "`--actor-device` is 'cpu:7'.*cpu:0"),
        ({"actor_device": "cpu:x"}, "`--actor-device` is 'cpu:x'"),
        ({"actor_device": "cpu", "runtime": "fused"}, "acts where it learns"),
    ],
)
def test_devices_that_there_are_not(settings, message, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        pronk.train("impala", "pronk/Catch-v0", run_dir=tmp_path, steps=100, **settings)


@pytest.mark.parametrize("torso", ["shallow", "deep"])
def test_bfloat16_is_nearly_float32(torso) -> None:
    """Values, policies and gradients of the same parameters; all that is kept is float32."""
    spec = envs.spec_of("pronk/Waiting-v0")
    found = []
    for dtype in ("float32", "bfloat16"):
        config = Config(torso=torso, hidden=(32,), encoder_dtype=dtype)  # type: ignore[arg-type]
        agent = agents.make("impala", config, spec, horizon=100)
        state = jax.jit(agent.init)(jax.random.key(0))
        batch = random_batch(agent, spec, state, 3, 2)
        grads, aux = jax.jit(agent.gradients)(state, batch)  # type: ignore[arg-type]
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((state.params, grads)))
        found.append((grads, aux))
    (exact, aux), (rough, rough_aux) = found
    assert rough_aux["value_mean"] == pytest.approx(float(aux["value_mean"]), rel=0.05, abs=0.05)
    flat, other = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in (exact, rough)
    )
    cosine = flat @ other / np.linalg.norm(flat) / np.linalg.norm(other)
    assert 0.95 < cosine < 1 - 1e-7  # it is another arithmetic, and points the same way
