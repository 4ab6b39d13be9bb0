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
from pronk.runtime.actor import Actor, Unroll
from pronk.runtime.base import ANYWHERE, Devices, Update
from pronk.runtime.learner import agent_steps, only_acted, report
from pronk.runtime.workers import PATIENCE, Asynchronous
from pronk.types import Agent, Batch, LearnerState, PyTree


class Gradient(NamedTuple):
    """What an actor sends instead of its trajectory."""

    grads: PyTree
    aux: PyTree
    unroll: Unroll


class A3CRuntime(Asynchronous):
    """Asynchronous actors that send gradients of their own unrolls.

    A gradient is of the parameters that acted, on-policy, and is applied to newer ones.
    """

    def __init__(
        self,
        agent: Agent,
        state: LearnerState,
        actors: Sequence[Actor],
        devices: Devices = ANYWHERE,
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
        super().__init__(actors, self._gradient, actor_cores)

    def _snapshot(self) -> tuple[int, LearnerState, PyTree]:
        state = jax.device_put(self._copy(self.learner_state), self._devices.actor)
        return jax.block_until_ready((self._updates, state, self._behaviour(state)))

    def _gradient(self, actor: Actor) -> Gradient:
        version, state, behaviour = self._latest
        unroll = actor.unroll(behaviour, version)
        self._waits.acted(unroll)
        grads, aux = jax.block_until_ready(self._gradients(state, Batch(unroll.trajectory)))
        return Gradient(grads, aux, unroll)

    def update(self) -> Update:
        """Apply the next gradient, waiting for one if need be, but not for ever."""
        if (gradient := self._next(self._workers, PATIENCE)) is None:
            return only_acted(0, [], self._warnings())
        grads, aux, unroll = gradient
        grads, aux = jax.device_put((grads, aux), self._devices.learner)
        self.learner_state, metrics, _ = self._apply(self.learner_state, grads, aux)
        lag = self._updates - unroll.trajectory.version
        self._updates += 1
        self._latest = self._snapshot()
        update = report(metrics, agent_steps(unroll.trajectory), lag, [unroll])
        warnings = [*self._warnings(), *update.warnings]
        return update._replace(batch=[Batch(unroll.trajectory)], warnings=warnings)
