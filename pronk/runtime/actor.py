"""Acting: a player decides, an actor steps its environments with it and fills trajectories."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
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
    warnings: Sequence[str] = ()  # of the environments


def misfit(unroll: Any, like: Trajectory, version: int) -> str:
    """What is wrong with what came from another process, if it is no unroll of `version` whose
    trajectory has the structure, shapes and dtypes of `like`; else an empty string."""
    if not isinstance(unroll, Unroll):
        return f"expected an unroll, got {type(unroll).__name__}"
    found, structure = jax.tree.flatten(unroll.trajectory)
    expected = jax.tree.leaves_with_path(like)
    if structure != jax.tree.structure(like):
        return "its trajectory has other parts than ours"
    for (path, ours), theirs in zip(expected, found, strict=True):
        if not isinstance(theirs, np.ndarray) or (theirs.shape, theirs.dtype) != (
            ours.shape,
            ours.dtype,
        ):
            theirs = f"{getattr(theirs, 'dtype', type(theirs))} {np.shape(theirs)}"
            return f"{jax.tree_util.keystr(path)} is {theirs}, expected {ours.dtype} {ours.shape}"
    if (unroll.trajectory.version != version).any():
        return f"it acted with other parameters than those of update {version}"
    return ""


@functools.partial(jax.jit, static_argnums=0)
def jit_act(
    act: Any, behaviour: PyTree, carry: Carry, timestep: TimeStep, key: Key, count: Array
) -> tuple[Array, Carry, dict[str, Array]]:
    """One device call per step: the step's key is made inside. Compiled once per `act`."""
    return act(behaviour, carry, timestep, jax.random.fold_in(key, count))


class Player:
    """An agent that plays: remembers each slot's carry, and never draws a random number twice.

    env_ids: int32 [B], which of the run's `num_envs` environments the slots are. `evaluate` plays
    without exploration.
    """

    def __init__(
        self, agent: Agent, key: Key, env_ids: Array, num_envs: int, *, evaluate: bool = False
    ):
        self._act = agent.act
        self._key, carry_key = jax.random.split(key)
        self.carry = agent.initial_carry(carry_key, np.asarray(env_ids), num_envs, evaluate)
        self.count = np.uint32(0)  # decisions so far

    def act(self, behaviour: PyTree, timestep: TimeStep) -> Row:
        """Decide what to do at `timestep`."""
        core = self.carry.core
        action, self.carry, extras = jit_act(
            self._act, behaviour, self.carry, timestep, self._key, self.count
        )
        self.count += np.uint32(1)
        return Row(timestep, np.asarray(action), extras, core)


class Actor:
    """Unrolls a player in a vector environment, one parameter snapshot per unroll.

    Row T of an unroll is executed next and returned again as row 0 of the following one.
    """

    def __init__(self, player: Player, env: VectorEnv, *, unroll: int):
        self.env = env
        self.placement = env.placement
        self._player = player
        self._unroll = unroll
        self._row: Row | None = None  # row T of the previous unroll
        self.beats = 0  # rows acted in
        self.beat: Callable[[], None] = lambda: None  # called for each, too

    def unroll(self, behaviour: PyTree, version: int) -> Unroll:
        """T steps with the parameters `behaviour` of update `version`."""
        env_seconds = act_seconds = 0.0
        row = self._row
        if row is None:
            row = self._player.act(behaviour, self.env.reset())
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
            row = self._player.act(behaviour, timestep)
            _write(buffers, t, (row.timestep, row.action, row.extras))
            self.beats += 1
            self.beat()
            env_seconds += stepped - start
            act_seconds += time.perf_counter() - stepped
        timestep, action, extras = buffers
        # The environment reuses its arrays: keep the row from our own buffers.
        last = jax.tree.map(lambda x: x[-1], buffers)
        self._row = Row(*last, core=row.core)
        trajectory = Trajectory(
            timestep, action, extras, core, np.full((self.env.num_envs,), version, np.int32)
        )
        return Unroll(
            trajectory, self.env.episodes(), env_seconds, act_seconds, self.env.warnings()
        )

    def state(self) -> tuple[PyTree, PyTree | None]:
        """Everything needed to go on between unrolls: (own state, the environment's or None)."""
        return self._own(self._row), self.env.state()

    def template(self, behaviour: PyTree) -> PyTree:
        """A tree shaped as `state()`'s first part, for restoring; steps nothing that counts."""
        player = self._player
        carry, count = player.carry, player.count
        row = player.act(behaviour, self.env.reset())
        player.carry, player.count = carry, count
        return self._own(row)

    def restore(self, own: PyTree, env: PyTree) -> None:
        """Continue from `state()`."""
        self._row = own["row"]
        self._player.carry, self._player.count = own["carry"], np.uint32(own["count"])
        self.env.restore(env)

    def _own(self, row: Row | None) -> PyTree:
        return {"row": row, "carry": self._player.carry, "count": self._player.count}

    def close(self) -> None:
        """Release the environments."""
        self.env.close()


def _write(buffers: PyTree, t: int, values: PyTree) -> None:
    for buffer, value in zip(jax.tree.leaves(buffers), jax.tree.leaves(values), strict=True):
        buffer[t] = value
