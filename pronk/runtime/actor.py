"""Acting: a player chooses actions, an actor steps environments and fills trajectories."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pronk.types import (
    Agent,
    Array,
    Carry,
    Episode,
    Key,
    PyTree,
    Sequences,
    Starts,
    TimeStep,
    Trajectory,
    VectorEnv,
)


class Row(NamedTuple):
    """A time step, the decision at it, and the recurrent state before it, `[B, ...]`."""

    timestep: TimeStep
    action: Array
    extras: dict[str, Array]
    core: PyTree


class Unroll(NamedTuple):
    """The result of an actor's T steps."""

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
    # How many rows `starts` has is the episodes' business.
    trajectory = unroll.trajectory._replace(starts=None)
    found, structure = jax.tree.flatten(trajectory)
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


def _act(
    act: Any,
    behaviour: PyTree,
    core: PyTree,
    private: PyTree,
    timestep: TimeStep,
    key: Key,
    count: Array,
) -> tuple[Array, Carry, dict[str, Array]]:
    """One device call per step: the step's key is made inside."""
    return act(behaviour, Carry(core, private), timestep, jax.random.fold_in(key, count))


# Compiled once per `act`. The first updates `private` in place; the second keeps its argument.
act_in_place = jax.jit(_act, static_argnums=0, donate_argnums=3)
act_and_keep = jax.jit(_act, static_argnums=0)


class Player:
    """Acts with an agent: keeps each slot's carry, and never uses a random number twice.

    env_ids: int32 [B], which of the run's `num_envs` environments the slots are. evaluate:
    without exploration.
    """

    def __init__(
        self, agent: Agent, key: Key, env_ids: Array, num_envs: int, *, evaluate: bool = False
    ):
        self._act = agent.act
        self._key, carry_key = jax.random.split(key)
        carry = agent.initial_carry(carry_key, np.asarray(env_ids), num_envs, evaluate)
        # Copies: what is donated must be in one place only.
        self.carry = jax.tree.map(jnp.array, carry)
        self.count = np.uint32(0)  # decisions so far

    def act(self, behaviour: PyTree, timestep: TimeStep) -> Row:
        """Choose actions at `timestep`, with this behaviour."""
        core = self.carry.core
        action, self.carry, extras = act_in_place(
            self._act, behaviour, core, self.carry.private, timestep, self._key, self.count
        )
        self.count += np.uint32(1)
        return Row(timestep, np.asarray(action), extras, core)

    def row_spec(self, behaviour: PyTree, timestep: TimeStep) -> Row:
        """The shapes and dtypes of `act`'s result, without acting."""
        action, _, extras = jax.eval_shape(
            functools.partial(_act, self._act),
            behaviour,
            *self.carry,
            timestep,
            self._key,
            self.count,
        )
        return Row(timestep, action, extras, self.carry.core)


class StartRecorder:
    """Records the recurrent states where a replay's sequences will start.

    In each episode these are the rows k · stride − burn_in, where stride = length − overlap, and
    its first row, where nothing is recorded because agents reset the state there. For each row call
    `advance` and then `record`.
    """

    def __init__(self, sequences: Sequences, num_envs: int):
        self._burn_in = sequences.burn_in
        self._stride = sequences.length - sequences.overlap
        self.position = np.zeros(num_envs, np.int64)  # rows since the episode began
        self._recorded: list[tuple[Array, Array, PyTree]] = []

    def advance(self, first: Array) -> None:
        """Go to the next row; first: bool `[B]`, whether it begins an episode."""
        self.position = np.where(first, 0, self.position + 1)

    def record(self, row: int, core: PyTree) -> None:
        """Record the states `core` `[B, ...]` before this `row` of the unroll, if needed."""
        starts = (self.position > 0) & ((self.position + self._burn_in) % self._stride == 0)
        slots = np.flatnonzero(starts).astype(np.int32)
        if len(slots) or not self._recorded:  # an empty record has the structure
            states = jax.tree.map(lambda x: np.asarray(x)[slots], core)
            self._recorded.append((np.full(len(slots), row, np.int32), slots, states))

    def take(self) -> Starts:
        """What was recorded since the last call, of one unroll."""
        recorded, self._recorded = self._recorded, []
        rows, slots, cores = zip(*recorded, strict=True)
        core = jax.tree.map(lambda *x: np.concatenate(x), *cores)
        return Starts(np.concatenate(rows), np.concatenate(slots), core)


class Actor:
    """Unrolls a player in a vector environment, one behaviour per unroll.

    Row T of an unroll is executed next and returned again as row 0 of the following one. on_policy:
    see `Fresh`; row T is decided by the following unroll's behaviour. sequences: of a replay whose
    sequences start within unrolls, and which wants the recurrent state at each start. explores:
    bool `[B]`, the slots that `Agent.explores` names.
    """

    def __init__(
        self,
        player: Player,
        env: VectorEnv,
        *,
        unroll: int,
        on_policy: bool = False,
        sequences: Sequences | None = None,
        explores: Array | None = None,
    ):
        self.env = env
        self.placement = env.placement
        self._player = player
        self._unroll = unroll
        self._on_policy = on_policy
        self._explores = np.zeros(env.num_envs, bool) if explores is None else explores
        self._row: Row | None = None  # row T of the previous unroll
        self._starts = None if sequences is None else StartRecorder(sequences, env.num_envs)
        self.rows_acted = 0

    def unroll(self, behaviour: PyTree, version: int) -> Unroll:
        """T steps with the `behaviour` of update `version`."""
        env_seconds = act_seconds = 0.0
        row = self._row
        if row is None:
            row = self._act(behaviour, self.env.reset())
        elif self._on_policy:
            row = self._act(behaviour, row.timestep)
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
            if self._starts is not None:
                self._starts.record(t - 1, row.core)
            if self._on_policy and t == self._unroll:
                row = Row(timestep, row.action, row.extras, self._player.carry.core)
            else:
                row = self._act(behaviour, timestep)
            _write(buffers, t, (row.timestep, row.action, row.extras))
            self.rows_acted += 1
            env_seconds += stepped - start
            act_seconds += time.perf_counter() - stepped
        timestep, action, extras = buffers
        # The environment reuses its arrays: keep the row from our own buffers.
        last = jax.tree.map(lambda x: x[-1], buffers)
        self._row = Row(*last, core=row.core)
        versions = np.full((self.env.num_envs,), version, np.int32)
        starts = None if self._starts is None else self._starts.take()
        trajectory = Trajectory(timestep, action, extras, core, versions, starts)
        episodes = [
            episode._replace(explores=bool(self._explores[episode.env_id % self.env.num_envs]))
            for episode in self.env.episodes()
        ]
        return Unroll(trajectory, episodes, env_seconds, act_seconds, self.env.warnings())

    def _act(self, behaviour: PyTree, timestep: TimeStep) -> Row:
        if self._starts is not None:
            self._starts.advance(timestep.first)
        return self._player.act(behaviour, timestep)

    def state(self, *, private: bool = True) -> tuple[PyTree, PyTree | None]:
        """All that is needed to continue between unrolls: (own state, the environment's or None);
        private: with the slots' private states."""
        return self._own(self._row, private), self.env.state()

    def template(self, behaviour: PyTree, *, private: bool = True) -> PyTree:
        """Shapes and dtypes of `state()`'s first part, for restoring."""
        return self._own(self._player.row_spec(behaviour, self.env.reset()), private)

    def restore(self, own: PyTree, env: PyTree) -> None:
        """Continue from `state()`."""
        self._row = own["row"]
        carry, self._player.count = own["carry"], np.uint32(own["count"])
        if not jax.tree.leaves(carry.private):  # not saved
            carry = carry._replace(private=self._player.carry.private)
        self._player.carry = carry
        if self._starts is not None:
            self._starts.position = np.asarray(own["position"])
        self.env.restore(env)

    def _own(self, row: Row | None, private: bool) -> PyTree:
        carry = self._player.carry if private else Carry(self._player.carry.core)
        own = {"row": row, "carry": carry, "count": self._player.count}
        return own if self._starts is None else own | {"position": self._starts.position}

    def close(self) -> None:
        """Release the environments."""
        self.env.close()


def _write(buffers: PyTree, t: int, values: PyTree) -> None:
    for buffer, value in zip(jax.tree.leaves(buffers), jax.tree.leaves(values), strict=True):
        buffer[t] = value
