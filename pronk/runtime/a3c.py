"""A3C: actors compute gradients on their own copies, the learner applies them as they arrive.

Mnih et al. 2016, "Asynchronous Methods for Deep Reinforcement Learning". The row of that name in
IMPALA's throughput table: the same agent, one gradient per actor's unroll.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pronk.errors import UserError
from pronk.runtime.actor import Unroll
from pronk.runtime.actor_threads import ActorThreads
from pronk.runtime.api import DEFAULT_DEVICES, Devices, Update, report
from pronk.runtime.columns import agent_steps
from pronk.runtime.places.supervise import Supervised
from pronk.runtime.threads import Channel, WaitTimes
from pronk.storage.checkpoint import Loaded
from pronk.types import Agent, Batch, LearnerState, PyTree

PATIENCE = 1.0  # seconds after which an update without a gradient returns, so that a run can stop


class Gradient(NamedTuple):
    """What an actor sends instead of its trajectory."""

    grads: PyTree
    sums: PyTree
    unroll: Unroll


class A3CLoop:
    """Asynchronous actors that send gradients of their own unrolls.

    A gradient is of the parameters that acted, on-policy, and is applied to newer ones. Raises
    UserError for an agent whose update is more than one gradient step.
    """

    drained = True  # unfinished unrolls are not part of a checkpoint

    def __init__(
        self,
        agent: Agent,
        state: LearnerState,
        actors: Sequence[Supervised],
        devices: Devices = DEFAULT_DEVICES,
        actor_cores: int | None = None,
    ):
        if agent.halves is None:
            raise UserError(
                "`--architecture async-gradients` needs an agent whose update is one gradient step"
                " and nothing besides, and with these settings this agent's is not; use"
                " --architecture async."
            )
        self._devices = devices
        self.learner_state: LearnerState = jax.device_put(state, devices.learner)
        self._updates = int(state.updates)
        self._gradients = jax.jit(agent.halves.gradients)
        # Actors hold copies, so the update may reuse the state's memory.
        self._apply = jax.jit(agent.halves.apply, donate_argnums=0)
        self._behaviour = jax.jit(agent.behaviour)
        self._copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state))
        self._latest = self._snapshot()
        self._waits = WaitTimes(len(actors))
        self._sent = Channel(1)
        self._actors = ActorThreads(actors, self._act, self._sent.fail, actor_cores)

    def _snapshot(self) -> tuple[int, LearnerState, PyTree]:
        state = jax.device_put(self._copy(self.learner_state), self._devices.actor)
        return jax.block_until_ready((self._updates, state, self._behaviour(state)))

    def _act(self, actor: Supervised) -> None:
        """One unroll and its gradient."""
        version, state, behaviour = self._latest
        unroll = actor.unroll(behaviour, version)
        self._waits.acted(unroll)
        grads, sums = jax.block_until_ready(self._gradients(state, Batch(unroll.trajectory)))
        with self._waits.queued():
            self._sent.put(Gradient(grads, sums, unroll))

    def update(self) -> Update:
        """Apply the next gradient, waiting for one if need be, but not for ever."""
        with self._waits.starved():
            gradient: Gradient | None = self._sent.get(PATIENCE)
        if gradient is None:
            return report([], steps=0, warnings=self._actors.messages())
        grads, sums, unroll = gradient
        grads, sums = jax.device_put((grads, sums), self._devices.learner)
        self.learner_state, metrics, _ = self._apply(self.learner_state, grads, sums)
        lag = self._updates - unroll.trajectory.version
        self._updates += 1
        self._latest = self._snapshot()
        return report(
            [unroll],
            steps=agent_steps(unroll.trajectory),
            metrics=metrics,
            lag=lag,
            warnings=self._actors.messages(),
            batch=[Batch(unroll.trajectory)],
        )

    def bound_by(self) -> str:
        """Which part the others waited for: learner, environments or inference."""
        return self._waits.bound_by()

    def waits(self) -> dict[str, float]:
        """Seconds the learner and, on average, an actor spent waiting, stepping, and inferring."""
        return self._waits.as_dict()

    def faults(self) -> dict[str, int]:
        """Actors that were lost, and unrolls of theirs that were dropped."""
        return self._actors.faults()

    def state(self) -> dict[str, PyTree]:
        """Nothing but the learner's: actors are in the middle of things."""
        return {}

    def restore(self, loaded: Loaded) -> list[str]:
        """New episodes start."""
        return ["new episodes start: only runs with --deterministic continue within episodes."]

    def close(self) -> None:
        """Stop the actors and release their environments."""
        self._sent.close()
        self._actors.stop()
        self._actors.close()
