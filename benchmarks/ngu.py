"""What an agent step of NGU costs in Random Disco Maze, part by part: preset `maze`.

Usage: python benchmarks/ngu.py [--sizes 11 21] [--slots 32]

Each part is a jitted program of its own, called many times; the least mean of three repetitions
counts. `act` is all of acting, `learn` an update. The last line is the speed that both allow with
the preset's `samples_per_insert`, without the environment.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pronk import envs
from pronk.agents import ngu
from pronk.config.registry import agent_module
from pronk.envs.jax_suite import stepper
from pronk.maths import intrinsic
from pronk.types import Batch, TimeStep, Trajectory


def seconds(call: Callable[..., Any], *args: Any, budget: float = 1.0) -> float:
    """The time of a call, once it is compiled."""
    jax.block_until_ready(call(*args))
    start = time.perf_counter()
    jax.block_until_ready(call(*args))
    calls = max(1, int(budget / 3 / max(time.perf_counter() - start, 1e-6)))
    found = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(calls):
            result = call(*args)
        jax.block_until_ready(result)
        found.append((time.perf_counter() - start) / calls)
    return min(found)


def measure(size: int, slots: int, settings: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of each part for `slots` environments of this size."""
    config = dataclasses.replace(agent_module("ngu").preset("maze"), **settings)
    args = {"size": size}
    spec = envs.spec_of("pronk/RandomDiscoMaze-v0", args)
    agent = ngu.build(config, spec)
    state = jax.jit(agent.init)(jax.random.key(0))
    behaviour = agent.behaviour(state)
    carry = agent.initial_carry(jax.random.key(0), jnp.arange(slots), slots, False)
    rng = np.random.default_rng(0)

    def rows(*shape: int) -> TimeStep:
        no, zeros = np.zeros(shape, bool), np.zeros(shape, np.float32)
        images = rng.integers(0, 2, (*shape, *spec.observation_space.shape)) * 255  # type: ignore
        return TimeStep(images.astype(np.uint8), zeros, no, no, no, zeros.astype(np.int32))

    timestep = jax.tree.map(jnp.asarray, rows(slots))
    novelty, fixed = agent.novelty, behaviour["fixed"]
    memory = intrinsic.no_memory(slots, config.memory_size, config.embedding_size)
    embedded = jnp.zeros((slots, config.embedding_size))
    q_rows = jax.tree.map(
        lambda x: x[None],
        (timestep, carry.core.last_action, timestep.reward, carry.private["mixture"]),
    )
    maze = stepper(envs.jax_env_of("pronk/RandomDiscoMaze-v0", args), slots)
    slot_states, _ = jax.jit(maze.start)(jax.random.key(0))
    actions = jnp.zeros(slots, jnp.int32)
    found = {
        "environment": seconds(jax.jit(maze.advance), slot_states, actions),
        "embedding": seconds(
            jax.jit(novelty.embedding.apply), fixed["embedding"], timestep.observation
        ),
        "kNN": seconds(
            jax.jit(lambda m, x: intrinsic.neighbours(m, x, config.neighbours)), memory, embedded
        ),
        "RND": seconds(
            jax.jit(novelty.error),
            state.params["predictor"],
            fixed["random"],
            timestep.observation,
        ),
        "Q network": seconds(
            jax.jit(lambda *x: agent.values(*x)[0]), state.params["q"], q_rows, carry.core.state
        ),
        "act": seconds(jax.jit(agent.act), behaviour, carry, timestep, jax.random.key(0)),
    }
    length, batch = config.sequence_length + config.burn_in + 1, config.batch_size
    extras = {"probability": np.ones((length, batch), np.float32)}
    extras |= {
        name: np.ones((length, batch), np.float32)
        for name in ("intrinsic_reward", "alpha", "memory_filled")
    }
    extras["mixture"] = np.zeros((length, batch), np.int32)
    taken = rng.integers(0, 4, (length, batch)).astype(np.int32)
    trajectory = Trajectory(
        rows(length, batch), taken, extras, agent.initial_core(batch), np.zeros(batch, np.int32)
    )
    found["learn"] = seconds(
        jax.jit(agent.learn), state, jax.tree.map(jnp.asarray, Batch(trajectory)), budget=3.0
    )
    return {name: 1000 * value for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[11, 21])
    parser.add_argument("--slots", type=int, default=32)
    options = parser.parse_args()
    config = agent_module("ngu").preset("maze")
    for size in options.sizes:
        found = measure(size, options.slots, {})
        print(f"{size} × {size}, {options.slots} environments, milliseconds:")
        for name, value in found.items():
            print(f"  {name:12} {value:8.2f}")
        per_step = (found["environment"] + found["act"]) / options.slots
        updates = config.samples_per_insert / (config.batch_size * config.sequence_length)
        speed = 1000 / (per_step + updates * found["learn"])
        print(f"  {speed:,.0f} agent steps per second", flush=True)


if __name__ == "__main__":
    main()
