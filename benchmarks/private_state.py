"""Acting with megabytes of private state per slot, beside the same arithmetic without them.

    python benchmarks/private_state.py

The agent writes one row of each slot's episodic memory in every step. If the memory is updated in
place, its size costs nothing: the ratio printed is about 1.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pronk.runtime.actor import Player
from pronk.types import Agent, Carry, TimeStep

SLOTS, FEATURES, HIDDEN = 16, 128, 512
ROWS = 8192  # of 128 float32: 4 MB per slot


def episodic_agent(rows: int) -> Agent:
    """An agent that remembers the embeddings of the last `rows` steps in `Carry.private`; it acts,
    and does not learn."""

    def initial_carry(key: Any, env_ids: Any, num_envs: int, evaluate: bool) -> Carry:
        del key, num_envs, evaluate
        slots = len(env_ids)
        memory = jnp.zeros((slots, rows, FEATURES), jnp.float32)
        return Carry((), {"memory": memory, "position": jnp.zeros(slots, jnp.int32)})

    def behaviour(state: Any) -> Any:
        del state
        embed, decide = jax.random.split(jax.random.key(0))
        return {
            "embed": jax.random.normal(embed, (FEATURES, HIDDEN)) / FEATURES**0.5,
            "decide": jax.random.normal(decide, (HIDDEN, FEATURES)) / HIDDEN**0.5,
        }

    def act(weights: Any, carry: Carry, timestep: TimeStep, key: Any) -> tuple[Any, Carry, Any]:
        del key
        embedding = jnp.tanh(jnp.tanh(timestep.observation @ weights["embed"]) @ weights["decide"])
        memory, position = carry.private["memory"], carry.private["position"]
        slot = jnp.arange(len(position))
        # Written first: XLA copies an array that is read and then written, unless what is written
        # depends on what was read.
        memory = memory.at[slot, position % rows].set(embedding)
        oldest = memory[slot, (position + 1) % rows]
        action = jnp.argmax(embedding + oldest, axis=-1).astype(jnp.int32)
        private = {"memory": memory, "position": position + 1}
        return action, Carry((), private), {"oldest": oldest}

    def no(*_: Any) -> Any:
        raise NotImplementedError("only acting is measured; this agent does not learn")

    return Agent(no, behaviour, initial_carry, act, no, no, no)


def random_row(seed: int = 0, slots: int = SLOTS) -> TimeStep:
    """A row within an episode, of random observations."""
    rng = np.random.default_rng(seed)
    no, zero = np.zeros(slots, bool), np.zeros(slots, np.int32)
    observation = rng.normal(size=(slots, FEATURES)).astype(np.float32)
    return TimeStep(observation, np.zeros(slots, np.float32), no, no, no, zero)


class Acting:
    """A player of `episodic_agent`, and how long its steps take."""

    def __init__(self, rows: int):
        agent = episodic_agent(rows)
        self._behaviour = agent.behaviour(None)  # type: ignore[arg-type]
        self._player = Player(agent, jax.random.key(0), np.arange(SLOTS, dtype=np.int32), SLOTS)
        self._row = random_row()

    def step(self) -> float:
        """Act once; returns seconds."""
        start = time.perf_counter()
        self._player.act(self._behaviour, self._row)
        jax.block_until_ready(self._player.carry)
        return time.perf_counter() - start


def main() -> None:
    """Print both medians and their ratio; the two take turns, so that both see the same machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    steps = parser.parse_args().steps
    players = {"with": Acting(ROWS), "without": Acting(1)}
    times: dict[str, list[float]] = {name: [] for name in players}
    for i in range(steps + 100):
        for name, player in players.items():
            seconds = player.step()
            if i >= 100:  # the first ones compile, and fill the caches
                times[name].append(seconds)
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    megabytes = ROWS * FEATURES * 4 / 2**20
    print(f"{SLOTS} slots × {megabytes:g} MB: {1e6 * median['with']:.1f} µs per step")
    print(f"without: {1e6 * median['without']:.1f} µs per step")
    print(f"ratio: {median['with'] / median['without']:.3f}")


if __name__ == "__main__":
    main()
