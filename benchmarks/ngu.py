"""What an agent step of NGU costs in Random Disco Maze, part by part: preset `maze`.

Usage: python benchmarks/ngu.py [--sizes 11 21] [--slots 32] [--torso minatar]

Each part is a jitted program of its own, called many times; the least mean of three repetitions
counts. `act` is all of acting, `learn` an update. The last line is the speed that both allow with
the preset's `samples_per_insert`, without the environment.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
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

ENV = "pronk/RandomDiscoMaze-v0"


def seconds(call: Callable[..., Any], *args: Any, budget: float = 1.0) -> float:
    """The time of a call, once it is compiled."""
    result = jax.block_until_ready(call(*args))
    start = time.perf_counter()
    jax.block_until_ready(call(*args))
    calls = max(1, int(budget / 3 / max(time.perf_counter() - start, 1e-6)))
    repetitions = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(calls):
            result = call(*args)
        jax.block_until_ready(result)
        repetitions.append((time.perf_counter() - start) / calls)
    return min(repetitions)


def rows(space: Any, *shape: int) -> TimeStep:
    """Rows with random images."""
    no, zeros = np.zeros(shape, bool), np.zeros(shape, np.float32)
    images = np.random.default_rng(0).integers(0, 2, (*shape, *space.shape)) * 255
    timestep = TimeStep(images.astype(np.uint8), zeros, no, no, no, zeros.astype(np.int32))
    return jax.tree.map(jnp.asarray, timestep)


def acting(agent: ngu.NGU, state: Any, slots: int) -> dict[str, float]:
    """Seconds of an agent step of `slots` environments, and of its parts."""
    config, novelty = agent.config, agent.novelty
    timestep = rows(agent.spec.observation_space, slots)
    behaviour, fixed = agent.behaviour(state), state.extra["fixed"]
    carry = agent.initial_carry(jax.random.key(0), jnp.arange(slots), slots, False)
    memory = intrinsic.no_memory(slots, config.memory_size, config.embedding_size)
    inputs = timestep, carry.core.last_action, timestep.reward, carry.private["mixture"]
    inputs = jax.tree.map(lambda x: x[None], inputs)
    seen, predictor = timestep.observation, state.params["predictor"]
    embedded = jnp.zeros((slots, config.embedding_size))
    neighbours = jax.jit(functools.partial(intrinsic.neighbours, k=config.neighbours))
    return {
        "embedding": seconds(jax.jit(novelty.embedding.apply), fixed["embedding"], seen),
        "kNN": seconds(neighbours, memory, embedded),
        "RND": seconds(jax.jit(novelty.error), predictor, fixed["random"], seen),
        "Q network": seconds(jax.jit(agent.values), state.params["q"], inputs, carry.core.state),
        "act": seconds(jax.jit(agent.act), behaviour, carry, timestep, jax.random.key(0)),
    }


def batch_of(agent: ngu.NGU) -> Batch:
    """A batch of random images."""
    config = agent.config
    shape = config.burn_in + config.sequence_length + 1, config.batch_size
    ones = jnp.ones(shape, jnp.float32)
    names = ("probability", "intrinsic_reward", "alpha", "memory_filled")
    extras = {"mixture": jnp.zeros(shape, jnp.int32), **dict.fromkeys(names, ones)}
    taken = jax.random.randint(jax.random.key(0), shape, 0, 4, jnp.int32)
    timestep, core = rows(agent.spec.observation_space, *shape), agent.initial_core(shape[1])
    return Batch(Trajectory(timestep, taken, extras, core, jnp.zeros(shape[1], jnp.int32)))


def measure(size: int, slots: int, torso: str) -> dict[str, float]:
    """Milliseconds of each part for `slots` environments of this size."""
    maze = envs.jax_env_of(ENV, {"size": size})
    assert maze is not None
    config = dataclasses.replace(agent_module("ngu").preset("maze"), torso=torso)
    agent = ngu.build(config, maze.spec)
    state = jax.jit(agent.init)(jax.random.key(0))
    steps = stepper(maze, slots)
    slot_states, _ = jax.jit(steps.start)(jax.random.key(0))
    actions = jnp.zeros(slots, jnp.int32)
    parts = {
        "environment": seconds(jax.jit(steps.advance), slot_states, actions),
        **acting(agent, state, slots),
        "learn": seconds(jax.jit(agent.learn), state, batch_of(agent), budget=3.0),
    }
    return {name: 1000 * value for name, value in parts.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[11, 21])
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--torso", choices=["minatar", "shallow"], default="minatar")
    options = parser.parse_args()
    config = agent_module("ngu").preset("maze")
    for size in options.sizes:
        times = measure(size, options.slots, options.torso)
        print(f"{size} × {size}, {options.slots} environments, milliseconds:")
        for name, value in times.items():
            print(f"  {name:12} {value:8.2f}")
        per_step = (times["environment"] + times["act"]) / options.slots
        updates = config.samples_per_insert / (config.batch_size * config.sequence_length)
        speed = 1000 / (per_step + updates * times["learn"])
        print(f"  {speed:,.0f} agent steps per second", flush=True)


if __name__ == "__main__":
    main()
