"""Learning from replay: actors fill it, the learner draws from it, and says what is worth drawing.

Asynchronous, actors and learner each go at their own speed as far as the limiter lets them.
Synchronous (deterministic runs), they take turns.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pronk.replay import Limiter, Replay
from pronk.runtime.actor import Unroll
from pronk.runtime.base import Update
from pronk.runtime.learner import Learner, Prepared, agent_steps
from pronk.runtime.workers import Asynchronous, Closed, Unroller, Workers
from pronk.types import Array, LearnerState

POLL = 0.2  # seconds after which whoever waits looks whether the run has stopped


class Seen(NamedTuple):
    """What is left of an unroll that is in the replay."""

    steps: int
    unroll: Unroll


class Drawn(NamedTuple):
    """A batch on the learner's device, and whose priorities it will change."""

    batch: Prepared
    keys: Array


class Memory:
    """A replay with its limiter, and the random numbers of its draws."""

    def __init__(self, replay: Replay, *, batch_size: int, seed: int):
        self.replay, spec = replay, replay.spec
        self.limiter = Limiter(
            self.replay,
            samples_per_insert=spec.samples_per_insert,
            minimum=spec.minimum,
            batch_size=batch_size,
        )
        self.batch_size = batch_size
        self.rng = np.random.default_rng(seed)

    def insert(self, source: int, unroll: Unroll) -> Seen:
        """Take up what actor number `source` did."""
        steps = agent_steps(unroll.trajectory)
        self.replay.add(source, unroll.trajectory)
        self.limiter.changed()
        return Seen(steps, unroll._replace(trajectory=None))  # type: ignore[arg-type]

    def draw(self, learner: Learner) -> Drawn:
        """A batch for the learner."""
        batch, keys = self.replay.sample(self.batch_size, self.rng)
        self.limiter.changed()
        return Drawn(learner.prepare([batch]), keys)

    def learn(self, learner: Learner, drawn: Drawn, seen: Sequence[Seen]) -> Update:
        """An update, whose feedback are new priorities."""
        update = learner.update(drawn.batch, [s.unroll for s in seen])
        learner.publish()
        self.replay.update(drawn.keys, np.asarray(update.feedback))
        return update._replace(steps=sum(s.steps for s in seen))


def only_seen(seen: Sequence[Seen]) -> Update:
    """What is reported where nothing was learnt."""
    return Update(
        metrics={},
        steps=sum(s.steps for s in seen),
        episodes=[episode for s in seen for episode in s.unroll.episodes],
        policy_lag=math.nan,
        warnings=[warning for s in seen for warning in s.unroll.warnings],
    )


class ReplayRuntime(Asynchronous):
    """Actors in threads around a replay, from which one learner learns."""

    def __init__(
        self,
        learner: Learner,
        actors: Sequence[Unroller],
        memory: Memory,
        *,
        actor_cores: int | None = None,
    ):
        self.learner, self.memory = learner, memory
        self._numbers = {id(actor): i for i, actor in enumerate(actors)}
        self._closing = threading.Event()
        self._begun = threading.Event()  # by the first update: until then, replay can be restored
        # What waits for the learner here is small, and no reason for actors to wait.
        super().__init__(actors, self._insert, actor_cores, queue_size=0)
        # One more thread, so that the next batch is ready when an update is done.
        self._batches = Workers([self._draw], "batcher")

    def _insert(self, actor: Unroller) -> Seen:
        self._begun.wait()
        start = time.perf_counter()
        self._wait_until(self.memory.limiter.may_insert)
        self._waits.queued(time.perf_counter() - start)
        version, behaviour = self.learner.latest
        unroll = actor.unroll(behaviour, version)
        self._waits.acted(unroll)
        return self.memory.insert(self._numbers[id(actor)], unroll)

    def _draw(self) -> Drawn:
        self._begun.wait()
        self._wait_until(self.memory.limiter.may_sample)
        return self.memory.draw(self.learner)

    def _wait_until(self, allowed: Callable[[], bool]) -> None:
        while not self._closing.is_set():
            if allowed():
                return
            self.memory.limiter.wait(POLL)
        raise Closed

    def update(self) -> Update:
        """Learn from the next batch; while there is none, what actors did is reported."""
        self._begun.set()
        start = time.perf_counter()
        drawn = self._batches.get(timeout=POLL)
        self._waits.learner += time.perf_counter() - start
        seen = self._workers.get_all()
        if drawn is None:
            return only_seen(seen)
        return self.memory.learn(self.learner, drawn, seen)

    def close(self) -> None:
        """Stop the actors and release their environments."""
        self._closing.set()
        self._begun.set()
        super().close()
        self._batches.close()
        self.learner.close()

    @property
    def learner_state(self) -> LearnerState:
        """The newest state of the learner."""
        return self.learner.state
