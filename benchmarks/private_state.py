"""Acting with megabytes of private state per slot, beside acting without them.

    python benchmarks/private_state.py

The agent writes and reads one row of each slot's episodic memory in every step. The ratio is that
of the time with the memory to the time without it and the arithmetic on it, measured as the
difference of the compiled programs alone. It is about 1 if the memory is updated in place.
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
        # The write comes before the read. In the other order XLA would copy the whole memory,
        # unless the written values were computed from those read.
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
    """A player of `episodic_agent`, or its compiled program alone, and how long a step takes."""

    def __init__(self, rows: int, *, alone: bool):
        agent = episodic_agent(rows)
        self._behaviour = agent.behaviour(None)  # type: ignore[arg-type]
        self._player = Player(agent, jax.random.key(0), np.arange(SLOTS, dtype=np.int32), SLOTS)
        self._program = jax.jit(
            lambda behaviour, private, row: agent.act(behaviour, Carry((), private), row, None),
            donate_argnums=1,
        )
        self._alone, self._row = alone, random_row()

    def step(self) -> float:
        """Act once; returns seconds."""
        player = self._player
        start = time.perf_counter()
        if self._alone:
            action, player.carry, _ = self._program(
                self._behaviour, player.carry.private, self._row
            )
            np.asarray(action)
        else:
            player.act(self._behaviour, self._row)
        jax.block_until_ready(player.carry)
        return time.perf_counter() - start


def main() -> None:
    """Print the medians and the ratio; all take turns, so that they see the same machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    steps = parser.parse_args().steps
    kinds = [(rows, alone) for rows in (ROWS, 1) for alone in (False, True)]
    acting = {(rows, alone): Acting(rows, alone=alone) for rows, alone in kinds}
    times: dict[tuple[int, bool], list[float]] = {kind: [] for kind in kinds}
    for i in range(steps + 100):
        for kind in kinds:
            seconds = acting[kind].step()
            if i >= 100:  # the first ones compile, and fill the caches
                times[kind].append(seconds)
    median = {kind: 1e6 * statistics.median(seconds) for kind, seconds in times.items()}
    arithmetic = median[ROWS, True] - median[1, True]
    megabytes = ROWS * FEATURES * 4 / 2**20
    print(f"{SLOTS} slots × {megabytes:g} MB: {median[ROWS, False]:.1f} µs per step")
    print(f"without: {median[1, False]:.1f} µs per step")
    print(f"the memory's own arithmetic: {arithmetic:.1f} µs per step")
    print(f"ratio to the sum of both: {median[ROWS, False] / (median[1, False] + arithmetic):.3f}")


if __name__ == "__main__":
    main()
