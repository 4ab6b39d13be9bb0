"""The local runtime: actors fill a bounded queue, one learner empties it.

Actors fetch the newest parameters before each unroll; a full queue makes them wait, so that
policies lag by little and nothing is dropped. With `deterministic` the same actors take turns in
the learner's thread instead.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pronk.checkpoint import Loaded
from pronk.runtime.actor import Actor, Unroll
from pronk.runtime.base import Update
from pronk.runtime.batcher import Batcher
from pronk.types import Agent, Batch, LearnerState, PyTree, Trajectory

# Unrolls that may wait for the learner: one more makes actors wait, so that policies lag little.
QUEUE_SIZE = 1


class Unroller(Protocol):
    """What the runtime needs of an actor, in this process or another."""

    def unroll(self, behaviour: PyTree, version: int) -> Unroll: ...
    def close(self) -> None: ...


class Learner:
    """The learner's state and its two jitted functions: update, and snapshot for the actors."""

    def __init__(self, agent: Agent, state: LearnerState):
        self.state = state
        # The update may reuse the state's memory, because actors get a copy of what they need.
        self._learn = jax.jit(agent.learn, donate_argnums=0)
        self._copy = jax.jit(lambda state: jax.tree.map(jnp.copy, agent.behaviour(state)))
        self.updates = int(state.updates)

    def update(self, batch: Batch, unrolls: Sequence[Unroll]) -> Update:
        """Learn from `batch`; the report has what `unrolls`, which came meanwhile, brought."""
        lag = float(self.updates - batch.trajectory.version.mean())
        steps = real_steps(batch.trajectory)
        self.state, _, metrics = self._learn(self.state, batch)
        self.updates += 1
        episodes = [episode for unroll in unrolls for episode in unroll.episodes]
        warnings = [warning for unroll in unrolls for warning in unroll.warnings]
        return Update(metrics, steps, episodes, lag, warnings)

    def snapshot(self) -> PyTree:
        """The parameters as actors need them, complete: no actor waits for another's call."""
        return jax.block_until_ready(self._copy(self.state))


def real_steps(trajectory: Trajectory) -> int:
    """Agent steps in a trajectory: its transitions less the dummies between episodes."""
    first = np.asarray(trajectory.timestep.first)[1:]
    return int(first.size - first.sum())


class _Waits:
    """Seconds spent, from which what bounds the run is read."""

    def __init__(self) -> None:
        self.learner = self.queue = self.env = self.act = 0.0

    def bound_by(self) -> str:
        if self.queue >= self.learner:
            return "learner"
        return "environments" if self.env >= self.act else "inference"


class LocalRuntime:
    """Asynchronous actors in threads around one learner (IMPALA)."""

    drained = True  # unfinished trajectories are not part of what was committed

    def __init__(
        self,
        learner: Learner,
        actors: Sequence[Unroller],
        *,
        batch_size: int,
    ):
        self.learner = learner
        self._actors = actors
        self._batcher = Batcher(batch_size)
        self._queue: queue.Queue[Unroll] = queue.Queue(QUEUE_SIZE)
        self._latest = (learner.updates, learner.snapshot())
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._waits = _Waits()
        self._threads = [
            threading.Thread(target=self._act, args=(actor,), name=f"actor-{i}", daemon=True)
            for i, actor in enumerate(actors)
        ]
        for thread in self._threads:
            thread.start()

    def _act(self, actor: Unroller) -> None:
        try:
            while not self._stop.is_set():
                version, behaviour = self._latest
                unroll = actor.unroll(behaviour, version)
                start = time.perf_counter()
                while not self._stop.is_set():
                    try:
                        self._queue.put(unroll, timeout=0.2)
                        break
                    except queue.Full:
                        continue
                self._waits.queue += (time.perf_counter() - start) / len(self._actors)
                self._waits.env += unroll.env_seconds
                self._waits.act += unroll.act_seconds
        except BaseException as error:
            self._error = error

    def update(self) -> Update:
        """Learn from the next batch, waiting for actors if need be."""
        unrolls = []
        start = time.perf_counter()
        while not self._batcher.ready:
            if self._error is not None:  # looked at always: the other actors fill the queue
                raise self._error
            try:
                unroll = self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
            self._batcher.add(unroll.trajectory)
            unrolls.append(unroll)
        self._waits.learner += time.perf_counter() - start
        update = self.learner.update(self._batcher.take(), unrolls)
        self._latest = (self.learner.updates, self.learner.snapshot())
        return update

    def bound_by(self) -> str:
        """Which part the others waited for: learner, environments or inference."""
        return self._waits.bound_by()

    @property
    def learner_state(self) -> LearnerState:
        """The newest state of the learner."""
        return self.learner.state

    def state(self) -> dict[str, PyTree]:
        """Nothing but the learner's: actors are in the middle of things."""
        return {}

    def restore(self, loaded: Loaded) -> list[str]:
        """Says that new episodes start."""
        return ["new episodes start: only runs with --deterministic go on within episodes."]

    def close(self) -> None:
        """Stop the actors and release their environments."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)
        for actor in self._actors:
            actor.close()


class DeterministicRuntime:
    """The same actors and learner in one thread, in a fixed order: the same seed, the same bits.

    Every round, each actor unrolls with the parameters at the round's start; then all their
    columns are learnt from. Between rounds nothing is in flight: there a run can be saved.
    """

    def __init__(self, learner: Learner, actors: Sequence[Actor], *, batch_size: int):
        self.learner = learner
        self._actors = actors
        self._batcher = Batcher(batch_size)
        self._waits = _Waits()
        self._updating = False  # also after an update that was interrupted or failed

    @property
    def drained(self) -> bool:
        """Whether everything acted has been learnt from."""
        return self._batcher.waiting == 0 and not self._updating

    def update(self) -> Update:
        """Learn from the next batch; at a round's start all actors unroll first."""
        unrolls = []
        self._updating = True
        if not self._batcher.ready:
            behaviour = self.learner.snapshot()
            for actor in self._actors:
                unroll = actor.unroll(behaviour, self.learner.updates)
                self._batcher.add(unroll.trajectory)
                unrolls.append(unroll)
                self._waits.env += unroll.env_seconds
                self._waits.act += unroll.act_seconds
        start = time.perf_counter()
        update = self.learner.update(self._batcher.take(), unrolls)
        jax.block_until_ready(update.metrics)
        self._waits.queue += time.perf_counter() - start
        self._waits.learner = self._waits.env + self._waits.act
        self._updating = False
        return update

    def bound_by(self) -> str:
        """Which part took longest: learner, environments or inference."""
        return self._waits.bound_by()

    def state(self) -> dict[str, PyTree]:
        """The actors' states, and their environments' where these can be saved."""
        trees: dict[str, PyTree] = {}
        for i, actor in enumerate(self._actors):
            own, env = actor.state()
            trees[f"actor{i}"] = own
            if env is not None:
                trees[f"env{i}"] = env
        return trees

    @property
    def learner_state(self) -> LearnerState:
        """The newest state of the learner."""
        return self.learner.state

    def restore(self, loaded: Loaded) -> list[str]:
        """Take up the actors and, where they could be saved, their environments."""
        told = []
        behaviour = self.learner.snapshot()
        for i, actor in enumerate(self._actors):
            env = loaded.tree(f"env{i}")
            if env is None:
                told.append(
                    f"actor {i}: new episodes start, because this environment can be neither"
                    " saved nor replayed."
                )
                continue
            own = loaded.restore(f"actor{i}", actor.template(behaviour))
            actor.restore(own, env)
            told.extend(actor.env.warnings())
        return told

    def close(self) -> None:
        """Release the environments."""
        for actor in self._actors:
            actor.close()
