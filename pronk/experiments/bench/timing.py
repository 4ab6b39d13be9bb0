"""Timing, FLOP counts and random batches for the benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from pronk.maths.spaces import mask_size
from pronk.types import Agent, Batch, EnvSpec, LearnerState, TimeStep, Trajectory

MATRIX = 2048


def median_seconds(call: Callable[[], Any], seconds: float) -> float:
    """Median duration of `call`, which must block until done, over `seconds` and three calls."""
    for _ in range(2):  # compiles, and fills the caches
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def matrix_flops(seconds: float) -> float:
    """FLOP/s of a float32 matrix product, measured for so many seconds."""
    a = jnp.ones((MATRIX, MATRIX), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    return 2 * MATRIX**3 / median_seconds(lambda: jax.block_until_ready(product(a)), seconds)


def forward_flops(agent: Agent, spec: EnvSpec, state: LearnerState) -> float:
    """FLOPs of one observation's forward pass, as XLA counts them when compiling for a GPU.

    On a CPU pronk has its own convolutions, which XLA would not recognise.
    """
    timestep = random_rows(spec, (1,))
    carry = agent.initial_carry(jax.random.key(0), np.arange(1), 1, False)
    traced = jax.jit(agent.act).trace(agent.behaviour(state), carry, timestep, jax.random.key(0))
    analysis = traced.lower(lowering_platforms=("cuda",)).cost_analysis()
    return float(analysis["flops"])  # type: ignore[index]


def random_rows(spec: EnvSpec, shape: tuple[int, ...]) -> TimeStep:
    """Random time steps `[*shape]` inside an episode."""
    count = int(np.prod(shape))
    space = gym.vector.utils.batch_space(spec.observation_space, count)
    space.seed(0)
    rng = np.random.default_rng(0)
    flags = np.zeros(shape, bool)
    return TimeStep(
        jax.tree.map(lambda x: np.asarray(x).reshape(*shape, *x.shape[1:]), space.sample()),
        rng.choice(np.array([-1.0, 0.0, 1.0], np.float32), shape),
        flags,
        flags,
        flags,
        np.zeros(shape, np.int32),
        np.ones((*shape, mask_size(spec.action_space)), bool) if spec.has_action_mask else None,
    )


def random_batch(
    agent: Agent, spec: EnvSpec, state: LearnerState, unroll: int, batch: int
) -> Batch:
    """A batch `[unroll + 1, batch]` of random observations, with the agent's own actions."""
    rows = random_rows(spec, (unroll + 1, batch))
    carry = agent.initial_carry(jax.random.key(0), np.arange(batch), batch, False)
    core = jax.tree.map(np.asarray, carry.core)
    act, behaviour = jax.jit(agent.act), agent.behaviour(state)
    acted = []
    for t in range(unroll + 1):
        row = jax.tree.map(lambda x, t=t: x[t], rows)
        action, carry, extras = act(behaviour, carry, row, jax.random.key(t))
        acted.append(jax.tree.map(np.asarray, (action, extras)))
    action, extras = jax.tree.map(lambda *x: np.stack(x), *acted)
    version = np.zeros(batch, np.int32)
    return Batch(Trajectory(rows, action, extras, core, version))
