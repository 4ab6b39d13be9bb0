"""The asynchronous loop: actors never wait for one another, the learner takes what is there.

IMPALA's architecture: each actor, in a thread, fetches the newest behaviour before each unroll and
adds the unroll to the source; the learner takes batches from the source. R2D2's is the same with a
replay as the source.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import NamedTuple

from pronk.runtime.actor import Unroll
from pronk.runtime.actor_threads import ActorThreads
from pronk.runtime.api import Update, report
from pronk.runtime.columns import agent_steps
from pronk.runtime.learner import Learner, Prepared
from pronk.runtime.places.supervise import Supervised
from pronk.runtime.source import Source
from pronk.runtime.threads import Channel, WaitTimes, Workers
from pronk.storage.checkpoint import Loaded
from pronk.types import Array, LearnerState, PyTree

PATIENCE = 1.0  # seconds after which an update without a batch returns, so that a run can stop


class _Next(NamedTuple):
    """The next batch, on the learner's device."""

    batch: Prepared
    keys: Array | None


class _Acted(NamedTuple):
    """An unroll whose trajectory the source has."""

    steps: int
    unroll: Unroll


class AsynchronousLoop:
    """Actors in threads, a source, and one learner, whose next batch is made by a thread."""

    drained = True  # unfinished unrolls are not part of a checkpoint

    def __init__(
        self,
        learner: Learner,
        actors: Sequence[Supervised],
        source: Source,
        *,
        actor_cores: int | None = None,
    ):
        self.learner, self._source = learner, source
        self._waits = WaitTimes(len(actors))
        self._begun = threading.Event()  # by the first update: until then, a replay can be restored
        self._acted, self._batches = Channel(0), Channel(1)
        self._actors = ActorThreads(actors, self._act, self._batches.fail, actor_cores)
        self._loader = Workers([self._load], "loader", self._batches.fail)

    def _act(self, actor: Supervised) -> None:
        """One unroll, with the newest behaviour."""
        self._begun.wait()
        with self._waits.queued():
            self._source.wait_to_act()
        unroll = actor.unroll_newest(lambda: self.learner.latest)
        self._waits.acted(unroll)
        self._source.forget(actor.former)
        with self._waits.queued():
            self._source.add(actor.incarnation, unroll.trajectory)
        steps = agent_steps(unroll.trajectory)
        self._acted.put(_Acted(steps, unroll._replace(trajectory=None)))  # type: ignore[arg-type]

    def _load(self) -> None:
        """Bring the next batch to the learner's device, while it learns from the last one."""
        self._begun.wait()
        self._source.wait_until_ready()
        # While the learner is the one that waits, the actors need the cores more than it.
        parts = self.learner.parts if self._waits.on_learner() else 1
        taken = self._source.take(parts)
        self._batches.put(_Next(self.learner.prepare(taken.parts), taken.keys))

    def update(self) -> Update:
        """Learn from the next batch; if none comes in PATIENCE seconds, only report the unrolls."""
        self._begun.set()
        # Several learners update all together, or not at all.
        patience = PATIENCE if self.learner.shared_by == 1 else math.inf
        with self._waits.starved():
            following: _Next | None = self._batches.get(patience)
        acted: list[_Acted] = self._acted.get_all()
        unrolls, steps = [a.unroll for a in acted], sum(a.steps for a in acted)
        messages = self._actors.messages()
        if following is None:
            return report(unrolls, steps=steps, warnings=messages)
        lag = self.learner.updates - following.batch.version
        learnt = self.learner.update(following.batch)
        self._source.feedback(following.keys, learnt.feedback)
        self.learner.publish()
        return report(
            unrolls,
            steps=steps,
            metrics=learnt.metrics,
            lag=lag,
            warnings=messages,
            batch=following.batch.parts,
        )

    @property
    def learner_state(self) -> LearnerState:
        """The newest state of the learner."""
        return self.learner.state

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
        """The source's; actors are in the middle of things."""
        return self._source.state()

    def restore(self, loaded: Loaded) -> list[str]:
        """Continue with the source; actors start new episodes with the first update."""
        message = "new episodes start: only runs with --deterministic continue within episodes."
        return [message, *self._source.restore(loaded, episodes=False)]

    def close(self) -> None:
        """Stop the actors and release their environments."""
        self._begun.set()
        for channel in (self._acted, self._batches):
            channel.close()
        self._source.stop()
        self._actors.stop()
        self._loader.close()
        self._actors.close()
        self.learner.close()
        self._source.close()
