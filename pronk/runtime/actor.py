"""The actor: steps its environments with a snapshot of the parameters, and fills trajectories."""

from __future__ import annotations

import functools
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from pronk.types import (
    Agent,
    Array,
    Carry,
    Episode,
    Key,
    PyTree,
    TimeStep,
    Trajectory,
    VectorEnv,
)


class Row(NamedTuple):
    """What was seen and decided at one moment, and what was remembered before it, `[B, ...]`."""

    timestep: TimeStep
    action: Array
    extras: dict[str, Array]
    core: PyTree


class Unroll(NamedTuple):
    """What an actor hands over after T steps."""

    trajectory: Trajectory  # NumPy
    episodes: list[Episode]
    env_seconds: float
    act_seconds: float


@functools.partial(jax.jit, static_argnums=0)
def jit_act(
    act: Any, behaviour: PyTree, carry: Carry, timestep: TimeStep, key: Key, count: Array
) -> tuple[Array, Carry, dict[str, Array]]:
    """One device call per step: the step's key is made inside. Compiled once per `act`."""
    return act(behaviour, carry, timestep, jax.random.fold_in(key, count))


class Actor:
    """Unrolls the agent in a vector environment, one parameter snapshot per unroll.

    Row T of an unroll is executed next and returned again as row 0 of the following one.
    """

    def __init__(
        self,
        agent: Agent,
        env: VectorEnv,
        *,
        unroll: int,
        key: Key,
        env_ids: Array,
        num_envs: int,
        evaluate: bool = False,
    ):
        self.env = env
        self.placement = env.placement
        self._agent = agent
        self._unroll = unroll
        self._act_key, carry_key = jax.random.split(key)
        self._carry = agent.initial_carry(carry_key, np.asarray(env_ids), num_envs, evaluate)
        self._count = np.uint32(0)
        self._row: Row | None = None  # row T of the previous unroll

    def act(self, behaviour: PyTree, timestep: TimeStep) -> Row:
        """Decide what to do at `timestep`; remembers the carry."""
        core = self._carry.core
        action, self._carry, extras = jit_act(
            self._agent.act, behaviour, self._carry, timestep, self._act_key, self._count
        )
        self._count += np.uint32(1)
        return Row(timestep, np.asarray(action), extras, core)

    def unroll(self, behaviour: PyTree, version: int) -> Unroll:
        """T steps with the parameters `behaviour` of update `version`."""
        env_seconds = act_seconds = 0.0
        row = self._row
        if row is None:
            row = self.act(behaviour, self.env.reset())
        core = jax.tree.map(np.asarray, row.core)
        buffers = jax.tree.map(
            lambda x: np.empty((self._unroll + 1, *np.shape(x)), np.asarray(x).dtype),
            (row.timestep, row.action, row.extras),
        )
        _write(buffers, 0, (row.timestep, row.action, row.extras))
        for t in range(1, self._unroll + 1):
            start = time.perf_counter()
            timestep = self.env.step(row.action)
            stepped = time.perf_counter()
            row = self.act(behaviour, timestep)
            _write(buffers, t, (row.timestep, row.action, row.extras))
            env_seconds += stepped - start
            act_seconds += time.perf_counter() - stepped
        timestep, action, extras = buffers
        # The environment reuses its arrays: keep the row from our own buffers.
        last = jax.tree.map(lambda x: x[-1], buffers)
        self._row = Row(*last, core=row.core)
        trajectory = Trajectory(
            timestep, action, extras, core, np.full((self.env.num_envs,), version, np.int32)
        )
        return Unroll(trajectory, self.env.episodes(), env_seconds, act_seconds)

    def state(self) -> tuple[PyTree, PyTree | None]:
        """Everything needed to go on between unrolls: (own state, the environment's or None)."""
        return {"row": self._row, "carry": self._carry, "count": self._count}, self.env.state()

    def template(self, behaviour: PyTree) -> PyTree:
        """A tree shaped as `state()`'s first part, for restoring; steps nothing that counts."""
        carry, count = self._carry, self._count
        row = self.act(behaviour, self.env.reset())
        self._carry, self._count = carry, count
        return {"row": row, "carry": carry, "count": count}

    def restore(self, own: PyTree, env: PyTree) -> None:
        """Continue from `state()`."""
        self._row, self._carry, self._count = own["row"], own["carry"], np.uint32(own["count"])
        self.env.restore(env)

    def close(self) -> None:
        """Release the environments."""
        self.env.close()


def _write(buffers: PyTree, t: int, values: PyTree) -> None:
    for buffer, value in zip(jax.tree.leaves(buffers), jax.tree.leaves(values), strict=True):
        buffer[t] = value
