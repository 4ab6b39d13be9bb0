"""The local runtimes: actors act, one learner learns, in one process or a few on one machine.

Asynchronous (IMPALA), actors fill a bounded queue and fetch the newest parameters before each
unroll. Synchronous (batched A2C, and every deterministic run), all actors unroll with the same
parameters and wait for the learner.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax

from pronk.runtime.actor import Actor, Unroll
from pronk.runtime.base import Update
from pronk.runtime.batcher import Batcher
from pronk.runtime.cpus import settle_on
from pronk.runtime.learner import Learner, Prepared, only_acted
from pronk.runtime.places.supervise import Supervised
from pronk.runtime.workers import PATIENCE, Asynchronous, Waits, Workers
from pronk.storage.checkpoint import Loaded
from pronk.types import Batch, LearnerState, PyTree


class OneLearner(Asynchronous):
    """What asynchronous runtimes share whose one learner has its batches made by a thread."""

    learner: Learner
    _batches: Workers

    def close(self) -> None:
        """Stop the actors and release their environments."""
        super().close()
        self._batches.close()
        self.learner.close()

    @property
    def learner_state(self) -> LearnerState:
        """The newest state of the learner."""
        return self.learner.state


class LocalRuntime(OneLearner):
    """Asynchronous actors in threads around one learner (IMPALA)."""

    def __init__(
        self,
        learner: Learner,
        actors: Sequence[Supervised],
        *,
        batch_size: int,
        actor_cores: int | None = None,
    ):
        self.learner = learner
        self._batcher = Batcher(batch_size)
        super().__init__(actors, self._unroll, actor_cores)
        # One more thread, so that the next batch is ready when an update is done.
        self._batches = Workers([self._batch], "batcher")

    def _unroll(self, actor: Supervised) -> Unroll:
        unroll = actor.unroll_newest(lambda: self.learner.latest)
        self._waits.acted(unroll)
        return unroll

    def _batch(self) -> tuple[Prepared, list[Unroll]]:
        unrolls = []
        while not self._batcher.ready:
            unroll = self._workers.get()
            self._batcher.add(unroll.trajectory)
            unrolls.append(unroll)
        # While the learner is the one that waits, the actors need the cores more than it.
        parts = self.learner.parts if self._waits.on_learner() else 1
        return self.learner.prepare(self._take(parts)), unrolls

    def _take(self, parts: int) -> list[Batch]:
        """The next batch, in so many parts."""
        return self._batcher.take(parts)

    def update(self) -> Update:
        """Learn from the next batch, waiting for it if need be, but not for ever."""
        # Several learners update all together, or not at all.
        patience = PATIENCE if self.learner.shared_by == 1 else math.inf
        if (batch := self._next(self._batches, patience)) is None:
            return only_acted(0, [], self._warnings())
        update = self.learner.update(*batch)
        self.learner.publish()
        return update._replace(warnings=[*self._warnings(), *update.warnings])


class SynchronousRuntime:
    """Rounds: every actor unrolls with the same parameters, then all is learnt from.

    Between rounds nothing is in flight: there a run can be saved. `in_turns` has the actors act
    one after the other, in a fixed order, for environments that share something random; otherwise
    each has a thread, and the slowest is waited for.
    """

    def __init__(
        self,
        learner: Learner,
        actors: Sequence[Actor],
        *,
        batch_size: int,
        in_turns: bool = False,
        actor_cores: int | None = None,
    ):
        self.learner = learner
        self._actors = actors
        self._batcher = Batcher(batch_size)
        self._waits = Waits(len(actors))
        self._updating = False  # also after an update that was interrupted or failed
        self._threads = None
        if not in_turns:
            self._threads = ThreadPoolExecutor(len(actors), "actor", settle_on(actor_cores))

    @property
    def drained(self) -> bool:
        """Whether everything acted has been learnt from."""
        return self._batcher.waiting == 0 and not self._updating

    def update(self) -> Update:
        """Learn from the next batch; at a round's start all actors unroll first."""
        unrolls = []
        with self.undrained():
            start = time.perf_counter()
            if not self._batcher.ready:
                for unroll in self.unrolls():
                    self._batcher.add(unroll.trajectory)
                    unrolls.append(unroll)
            acted = time.perf_counter()
            self._waits.learner += acted - start
            batch = self.learner.prepare(self._take(self.learner.parts))
            update = self.learner.update(batch, unrolls)
            jax.block_until_ready(update.metrics)
            if self.learner.policy_lag:  # otherwise, when a round begins
                self.learner.publish()
            # Meanwhile all actors waited.
            self._waits.queue += time.perf_counter() - acted
        return update

    def _take(self, parts: int) -> list[Batch]:
        """The next batch, in so many parts."""
        return self._batcher.take(parts)

    @contextlib.contextmanager
    def undrained(self) -> Iterator[None]:
        """What is interrupted in here, or fails, leaves the run in the middle of something."""
        self._updating = True
        yield
        self._updating = False

    def unrolls(self) -> Iterator[Unroll]:
        """One of each actor, all with the newest parameters."""
        self.learner.publish()
        version, behaviour = self.learner.latest

        def unroll(actor: Actor) -> Unroll:
            return actor.unroll(behaviour, version)

        for found in (map if self._threads is None else self._threads.map)(unroll, self._actors):
            self._waits.acted(found)
            yield found

    def bound_by(self) -> str:
        """Which part took longest: learner, environments or inference."""
        return self._waits.bound_by()

    def waits(self) -> dict[str, float]:
        """Seconds the learner and, on average, an actor spent waiting, stepping, and inferring."""
        return self._waits.as_dict()

    def faults(self) -> dict[str, int]:
        """None: what fails here ends the run."""
        return {}

    def state(self) -> dict[str, PyTree]:
        """The actors' states, and their environments' where these can be saved."""
        trees: dict[str, PyTree] = {}
        for i, actor in enumerate(self._actors):
            own, env = actor.state()
            trees[f"actor{i}"] = own
            if env is not None:
                trees[f"env{i}"] = env
        if self.learner.policy_lag:
            trees["past"] = self.learner.past()
        return trees

    @property
    def learner_state(self) -> LearnerState:
        """The newest state of the learner."""
        return self.learner.state

    def restore(self, loaded: Loaded) -> list[str]:
        """Take up the actors and, where they could be saved, their environments."""
        told = []
        if self.learner.policy_lag:
            self.learner.restore_past(loaded)
        _, behaviour = self.learner.latest
        for i, actor in enumerate(self._actors):
            env = loaded.tree(f"env{i}")
            if env is None:
                told.append(
                    f"actor {i}: new episodes start, because its environments were not saved:"
                    " they can be neither saved nor replayed, or --deterministic was not given."
                )
                continue
            own = loaded.restore(f"actor{i}", actor.template(behaviour))
            actor.restore(own, env)
            told.extend(actor.env.warnings())
        return told

    def close(self) -> None:
        """Let the actors finish and release their environments."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for actor in self._actors:
            actor.close()
        self.learner.close()
