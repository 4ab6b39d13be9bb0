"""What an agent step of NGU costs in Random Disco Maze, part by part: preset `maze`.

Usage: python benchmarks/ngu.py [--sizes 11 21] [--slots 32] [--torso minatar]

Each part is a jitted program of its own, called many times; the median counts. `act` is all of
acting, `learn` an update. The last line is the speed that both allow with the preset's
`samples_per_insert`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pronk import envs
from pronk.agents import ngu
from pronk.config.registry import agent_module
from pronk.envs.jax_suite import stepper
from pronk.experiments.bench.timing import median_seconds, random_batch, random_rows
from pronk.maths import intrinsic

ENV = "pronk/RandomDiscoMaze-v0"


def seconds(call: Callable[..., Any], *args: Any, budget: float = 1.0) -> float:
    """The median time of a call, once it is compiled."""
    return median_seconds(lambda: jax.block_until_ready(call(*args)), budget)


def acting(agent: ngu.NGU, state: Any, slots: int) -> dict[str, float]:
    """Seconds of an agent step of `slots` environments, and of its parts."""
    config, novelty = agent.config, agent.novelty
    timestep = jax.tree.map(jnp.asarray, random_rows(agent.spec, (slots,)))
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


def measure(size: int, slots: int, torso: str) -> dict[str, float]:
    """Milliseconds of each part for `slots` environments of this size."""
    maze = envs.jax_env_of(ENV, {"size": size})
    assert maze is not None
    config = dataclasses.replace(agent_module("ngu").preset("maze"), torso=torso)
    agent = ngu.build(config, maze.spec)
    state = jax.jit(agent.init)(jax.random.key(0))
    steps = stepper(maze, slots)
    batch = random_batch(
        agent, maze.spec, state, config.burn_in + config.sequence_length, config.batch_size
    )
    slot_states, _ = jax.jit(steps.start)(jax.random.key(0))
    actions = jnp.zeros(slots, jnp.int32)
    parts = {
        "environment": seconds(jax.jit(steps.advance), slot_states, actions),
        **acting(agent, state, slots),
        "learn": seconds(jax.jit(agent.learn), state, batch, budget=3.0),
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
