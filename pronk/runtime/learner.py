"""The learner: its state, the jitted update, and snapshots of what actors need."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pronk.runtime.api import DEFAULT_DEVICES, Devices
from pronk.runtime.columns import fresh_columns, over_axes
from pronk.runtime.cpus import available_cpus
from pronk.runtime.multi_learner import local_copy, replicate
from pronk.runtime.source import check_feedback
from pronk.storage.checkpoint import Loaded
from pronk.types import Agent, Array, Batch, LearnerState, Learnt, PyTree


class Prepared(NamedTuple):
    """A batch on the learner's device, in parts."""

    parts: list[Batch]
    version: Array  # int32 [B], as `Trajectory.version`, of what is not replayed


# More threads than this gain nothing on a batch of the usual size.
MAX_PARTS = 8


class Compiled(NamedTuple):
    """An agent's functions of the learner's state, jitted."""

    learn: Callable[[LearnerState, Batch], Learnt]
    gradients: Any  # (state, part of a batch) -> (gradients, sums)
    apply: Any  # (state, [(gradients, sums) of each part]) -> Learnt
    behaviour: Callable[[LearnerState], PyTree]  # a copy


@functools.lru_cache(maxsize=32)
def compiled(agent: Agent, shared: NamedSharding | None = None) -> Compiled:
    """Equal agents share what is compiled. `learn` and `apply` reuse the state's memory, because
    actors get a copy of what they need."""

    def learn(state: LearnerState, batch: Batch) -> Learnt:
        learnt = agent.learn(state, batch)
        check_feedback(agent.source, learnt.feedback)
        return learnt

    def apply(state: LearnerState, parts: list[PyTree]) -> Learnt:
        assert agent.halves is not None
        return agent.halves.apply(state, *jax.tree.map(lambda *x: sum(x), *parts))

    # Results are the same on all devices, but for feedback, of which each has its columns.
    results = None if shared is None else Learnt(shared, shared, None)  # type: ignore[arg-type]
    return Compiled(
        jax.jit(learn, donate_argnums=0, out_shardings=results),
        None if agent.halves is None else jax.jit(agent.halves.gradients),
        jax.jit(apply, donate_argnums=0),
        jax.jit(lambda state: jax.tree.map(jnp.copy, agent.behaviour(state)), out_shardings=shared),
    )


class Learner:
    """The learner's state, its update, and `latest`: the version and parameters for actors.

    A batch comes whole or in `parts`. On a CPU each core computes the gradient of its own part, in
    a thread: XLA shares the work of one gradient among cores only where a single operation is
    large, and most are not. Whole, an update costs less and leaves cores to others.

    If `devices.learner` are several, each has a copy of the state and a part of the batch's
    columns, and XLA adds up their gradients (synchronous data parallelism, figure 1 of the IMPALA
    paper on the right): the update is that of the whole batch, up to rounding.

    batch_size: a multiple of the number of parts. policy_lag: how many updates old `latest` is,
    once there have been as many, if `publish` is called after each.
    """

    def __init__(
        self,
        agent: Agent,
        state: LearnerState,
        devices: Devices = DEFAULT_DEVICES,
        *,
        batch_size: int,
        policy_lag: int = 0,
    ):
        self._devices = devices
        self.policy_lag = policy_lag
        self._past: deque[tuple[int, PyTree]] = deque(maxlen=policy_lag + 1)  # published recently
        self._shared: NamedSharding | None = None
        if isinstance(devices.learner, NamedSharding):
            self._shared, self._far = devices.learner, True
        else:
            # On a CPU there is no bus to cross: the update reads the actors' memory.
            self._far = (devices.learner or jax.devices()[0]).platform != "cpu"
        self.parts = 1
        if not self._far and agent.halves is not None:
            most = min(available_cpus(), MAX_PARTS)
            self.parts = max(n for n in range(1, most + 1) if batch_size % n == 0)
        self.shared_by = 1 if self._shared is None else _processes(self._shared)
        self._state: LearnerState
        if self._shared is not None and self.shared_by > 1:
            self._state = replicate(state, self._shared)
        else:
            self._state = jax.device_put(state, devices.learner)
        self._compiled = compiled(agent, self._shared)
        self._threads = ThreadPoolExecutor(self.parts, "learner") if self.parts > 1 else None
        self.updates = int(state.updates)
        self.publish()

    @property
    def state(self) -> LearnerState:
        """The newest; in this process's memory, where several learn together."""
        if self.shared_by == 1 or any(x.is_deleted() for x in jax.tree.leaves(self._state)):
            return self._state
        return local_copy(self._state)

    def prepare(self, parts: list[Batch]) -> Prepared:
        """Bring a batch, whole or in `self.parts` parts, to the device; may be done during an
        update."""
        version = np.concatenate([fresh_columns(part).version for part in parts])
        if self._shared is not None:
            # What this process has is its part of the columns.
            parts = [
                jax.tree.map(jax.make_array_from_process_local_data, self._sharding(part), part)
                for part in parts
            ]
        elif self._far:
            parts = jax.device_put(parts, self._devices.learner)
        return Prepared(parts, version)

    def _sharding(self, batch: Batch) -> Batch:
        """Of a batch's arrays: every device has a part of the columns."""
        assert self._shared is not None
        mesh = self._shared.mesh
        rows, slots = (NamedSharding(mesh, PartitionSpec(*p)) for p in ((None, "data"), ("data",)))
        return over_axes(rows, slots, batch)

    def update(self, prepared: Prepared) -> Learnt:
        """Learn from a batch. Returns when the update is under way: `publish` waits for its end.

        The result's `state` is None: it is the learner's, and the next update reuses its memory.
        """
        if len(prepared.parts) == 1:
            learnt = self._compiled.learn(self._state, prepared.parts[0])
        else:
            assert self._threads is not None
            parts = list(self._threads.map(self._part_gradients, prepared.parts))
            learnt = self._compiled.apply(self._state, parts)
        self._state = learnt.state
        self.updates += 1
        return learnt._replace(state=None)  # type: ignore[arg-type]

    def _part_gradients(self, part: Batch) -> PyTree:
        return jax.block_until_ready(self._compiled.gradients(self._state, part))

    def close(self) -> None:
        """Let the threads end."""
        if self._threads is not None:
            self._threads.shutdown()

    def behaviour(self) -> PyTree:
        """The newest published parameters for acting."""
        return self.latest[1]

    def publish(self) -> None:
        """Make the newest parameters `latest`; complete, so that no actor waits for them."""
        behaviour = self._compiled.behaviour(self._state)
        behaviour = local_copy(behaviour) if self.shared_by > 1 else behaviour
        behaviour = jax.device_put(behaviour, self._devices.actor)
        if self._past and self._past[-1][0] == self.updates:
            self._past.pop()
        self._past.append((self.updates, jax.block_until_ready(behaviour)))

    @property
    def latest(self) -> tuple[int, PyTree]:
        """The version and the parameters for actors."""
        return self._past[0]

    def past(self) -> PyTree:
        """With a policy lag, what has been published and has not acted for the last time yet."""
        return {str(version): behaviour for version, behaviour in self._past}

    def restore_past(self, loaded: Loaded) -> None:
        """Take up what `past` gave."""
        versions = sorted(int(version) for version in loaded.tree("past") or {})
        template = {str(version): self._past[-1][1] for version in versions}
        past = loaded.restore("past", template)
        self._past.clear()
        for version in versions:
            self._past.append((version, jax.device_put(past[str(version)], self._devices.actor)))


def _processes(sharding: NamedSharding) -> int:
    """Whose devices these are."""
    return len({device.process_index for device in sharding.device_set})
