"""The learner: its state, the jitted update, and snapshots of what actors need."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pronk.runtime.actor import Unroll
from pronk.runtime.base import Update
from pronk.types import Agent, Array, Batch, LearnerState, PyTree, Trajectory


class Learner:
    """The learner's state, its update, and `latest`: the version and parameters for actors."""

    def __init__(self, agent: Agent, state: LearnerState):
        self.state = state
        # The update may reuse the state's memory, because actors get a copy of what they need.
        self._learn = jax.jit(agent.learn, donate_argnums=0)
        self._copy = jax.jit(lambda state: jax.tree.map(jnp.copy, agent.behaviour(state)))
        self.updates = int(state.updates)
        self.publish()

    def update(self, batch: Batch, unrolls: Sequence[Unroll]) -> Update:
        """Learn from `batch`; the report has what `unrolls`, which came meanwhile, brought.

        Returns when the update has been asked for: `publish` waits until it is done.
        """
        version = batch.trajectory.version
        self.state, _, metrics = self._learn(self.state, batch)
        self.updates += 1
        return report(metrics, batch.trajectory, unrolls, self.updates - 1 - version)

    def publish(self) -> None:
        """Make the newest parameters `latest`; complete, so that no actor waits for them."""
        self.latest: tuple[int, PyTree] = (
            self.updates,
            jax.block_until_ready(self._copy(self.state)),
        )


def report(
    metrics: dict[str, Array], trajectory: Trajectory, unrolls: Sequence[Unroll], lag: Array
) -> Update:
    """An update from `trajectory`, whose columns lagged by `lag` `[B]` updates."""
    # Of the transitions, the dummies between episodes are no agent steps.
    first = np.asarray(trajectory.timestep.first)[1:]
    return Update(
        metrics,
        steps=int(first.size - first.sum()),
        episodes=[episode for unroll in unrolls for episode in unroll.episodes],
        policy_lag=float(np.mean(lag)),
        warnings=[warning for unroll in unrolls for warning in unroll.warnings],
    )
