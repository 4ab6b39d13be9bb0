"""The learner: its state, the jitted update, and snapshots of what actors need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pronk.runtime.actor import Unroll
from pronk.runtime.base import ANYWHERE, Devices, Update
from pronk.types import Agent, Array, Batch, LearnerState, PyTree, Trajectory


class Prepared(NamedTuple):
    """A batch on the learner's device, and what a person is told of it."""

    batch: Batch
    steps: int  # agent steps
    version: Array  # int32 [B], as `Trajectory.version`


class Learner:
    """The learner's state, its update, and `latest`: the version and parameters for actors."""

    def __init__(self, agent: Agent, state: LearnerState, devices: Devices = ANYWHERE):
        self._devices = devices
        # On a CPU there is no bus to cross: the update reads the actors' memory.
        self._far = (devices.learner or jax.devices()[0]).platform != "cpu"
        self.state: LearnerState = jax.device_put(state, devices.learner)
        # The update may reuse the state's memory, because actors get a copy of what they need.
        self._learn = jax.jit(agent.learn, donate_argnums=0)
        self._copy = jax.jit(lambda state: jax.tree.map(jnp.copy, agent.behaviour(state)))
        self.updates = int(state.updates)
        self.publish()

    def prepare(self, batch: Batch) -> Prepared:
        """Bring a batch of NumPy arrays to the device; may be done while an update computes."""
        steps, version = agent_steps(batch.trajectory), batch.trajectory.version
        if self._far:
            batch = jax.device_put(batch, self._devices.learner)
        return Prepared(batch, steps, version)

    def update(self, prepared: Prepared, unrolls: Sequence[Unroll]) -> Update:
        """Learn from a batch; the report has what `unrolls`, which came meanwhile, brought.

        Returns when the update has been asked for: `publish` waits until it is done.
        """
        lag = self.updates - prepared.version
        self.state, _, metrics = self._learn(self.state, prepared.batch)
        self.updates += 1
        return report(metrics, prepared.steps, lag, unrolls)

    def behaviour(self) -> PyTree:
        """The newest published parameters for acting."""
        return self.latest[1]

    def publish(self) -> None:
        """Make the newest parameters `latest`; complete, so that no actor waits for them."""
        behaviour = jax.device_put(self._copy(self.state), self._devices.actor)
        self.latest: tuple[int, PyTree] = (self.updates, jax.block_until_ready(behaviour))


def agent_steps(trajectory: Trajectory) -> int:
    """Transitions in a trajectory of NumPy arrays; the dummies between episodes are none."""
    first = trajectory.timestep.first[1:]
    return int(first.size - first.sum())


def report(metrics: dict[str, Array], steps: int, lag: Array, unrolls: Sequence[Unroll]) -> Update:
    """An update from `steps` agent steps whose columns lagged by `lag` `[B]` updates."""
    return Update(
        metrics,
        steps=steps,
        episodes=[episode for unroll in unrolls for episode in unroll.episodes],
        policy_lag=float(np.mean(lag)),
        warnings=[warning for unroll in unrolls for warning in unroll.warnings],
    )
