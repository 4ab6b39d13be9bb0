"""Actors in threads that produce for the learner, and what everyone waited for."""

from __future__ import annotations

import contextlib
import functools
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pronk.errors import UserError
from pronk.runtime.actor import Unroll
from pronk.runtime.cpus import settle_on
from pronk.runtime.places.supervise import Closed, Supervised, Unroller
from pronk.storage.checkpoint import Loaded
from pronk.types import PyTree

# Items that may wait for the learner: one more makes actors wait, so that policies lag little.
QUEUE_SIZE = 1
WATCH_EVERY = 1.0  # seconds
TELL_AFTER = 5.0  # seconds for which actors had no place
PATIENCE = 1.0  # seconds after which an update without a batch returns, so that a run can stop


class Waits:
    """Seconds spent, from which what bounds the run is read; those of actors are their mean."""

    def __init__(self, actors: int) -> None:
        self._actors = actors
        self.learner = self.queue = self.env = self.act = 0.0
        self._lead = self._seen = 0.0

    def acted(self, unroll: Unroll) -> None:
        """What an actor spent on an unroll."""
        self.env += unroll.env_seconds / self._actors
        self.act += unroll.act_seconds / self._actors

    def queued(self, seconds: float) -> None:
        """An actor waited until its unroll was wanted."""
        self.queue += seconds / self._actors

    def as_dict(self) -> dict[str, float]:
        """Seconds, by name."""
        return {
            "learner_waits": self.learner,
            "actor_waits": self.queue,
            "actor_steps": self.env,
            "actor_infers": self.act,
        }

    def on_learner(self) -> bool:
        """Whether of late the actors waited longer than the learner; to be asked once per update.

        The memory fades within some ten updates: the first ones compile, and all wait for them.
        """
        balance = self.queue - self.learner
        self._lead = 0.9 * self._lead + balance - self._seen
        self._seen = balance
        return self._lead > 0

    def bound_by(self) -> str:
        """The part that the others waited for."""
        if self.queue >= self.learner:
            return "learner"
        return "environments" if self.env >= self.act else "inference"


class _Thread(NamedTuple):
    thread: threading.Thread
    given_up: threading.Event


class Workers:
    """Threads that call their `produce` for ever; what it returns waits in a queue.

    The queue full (`size`; 0: never), they wait, and `waited` hears how many seconds: nothing is
    dropped. What one of them raises, `get` raises. Each begins with `begin`.
    """

    def __init__(
        self,
        producers: Sequence[Callable[[], Any]],
        name: str,
        waited: Callable[[float], None] = lambda seconds: None,
        begin: Callable[[], None] = lambda: None,
        size: int = QUEUE_SIZE,
    ):
        self._waited, self._begin = waited, begin
        self._queue: queue.Queue[Any] = queue.Queue(size)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._name = name
        self.dropped = 0  # items of threads that were given up
        self._threads = [self._started(i, produce) for i, produce in enumerate(producers)]

    def _started(self, i: int, produce: Callable[[], Any]) -> _Thread:
        given_up = threading.Event()
        thread = threading.Thread(
            target=self._work, args=(produce, given_up), name=f"{self._name}-{i}", daemon=True
        )
        thread.start()
        return _Thread(thread, given_up)

    def replace(self, i: int, produce: Callable[[], Any]) -> None:
        """Give up thread i, which hangs, and begin another. Should it ever wake up, what it brings
        is dropped and counted."""
        self._threads[i].given_up.set()
        self._threads[i] = self._started(i, produce)

    def fail(self, error: BaseException) -> None:
        """Have whoever gets the next item told of `error`."""
        self._error = error

    def _work(self, produce: Callable[[], Any], given_up: threading.Event) -> None:
        try:
            self._begin()
            while not self._stop.is_set():
                item = produce()
                if given_up.is_set():
                    self.dropped += 1
                    return
                start = time.perf_counter()
                while not self._stop.is_set():
                    try:
                        self._queue.put(item, timeout=0.2)
                        break
                    except queue.Full:
                        continue
                self._waited(time.perf_counter() - start)
        except Closed:
            self.dropped += given_up.is_set()
        except BaseException as error:
            if not given_up.is_set():
                self._error = error

    def check(self) -> None:
        """Raise what one of the threads raised, or Closed once they were stopped."""
        if self._error is not None:  # looked at always: the others fill the queue
            raise self._error
        if self._stop.is_set():
            raise Closed

    def get(self, timeout: float = math.inf) -> Any:
        """The next item, waiting for it so long; None if there is none. Raises as `check`."""
        end = time.monotonic() + timeout
        while True:
            self.check()
            left = end - time.monotonic()
            try:
                return self._queue.get(timeout=min(0.2, max(left, 0.001)))
            except queue.Empty:
                if left <= 0:
                    return None

    def get_all(self) -> list[Any]:
        """The items that are there now. Raises as `check`."""
        self.check()
        items = []
        with contextlib.suppress(queue.Empty):
            while True:
                items.append(self._queue.get_nowait())
        return items

    def close(self) -> None:
        """Stop the threads, each after what it is producing."""
        self._stop.set()
        deadline = time.monotonic() + 60
        for thread, _ in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))


class Asynchronous:
    """What runtimes share whose actors never wait for one another: `produce` is called for ever,
    for each actor in a thread of its own. Those that are supervised are watched."""

    drained = True  # what actors are in the middle of is no part of what was committed

    def __init__(
        self,
        actors: Sequence[Unroller],
        produce: Callable[[Any], Any],
        actor_cores: int | None = None,
        queue_size: int = QUEUE_SIZE,
    ):
        self._actors: list[Any] = list(actors)
        self._produce = produce
        self._waits = Waits(len(actors))
        self._workers = Workers(
            [functools.partial(produce, actor) for actor in actors],
            "actor",
            self._waits.queued,
            settle_on(actor_cores),
            queue_size,
        )
        self._told: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._waiting, self._since, self._told_waiting = 0, 0.0, 0  # actors without a place
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        """Look now and then whether an actor hangs, or has no place."""
        looked = time.monotonic()
        try:
            while not self._closed.wait(WATCH_EVERY):
                # If this process was stopped itself, nobody could make a step.
                stopped = time.monotonic() - looked > 10 * WATCH_EVERY
                looked = time.monotonic()
                for i, actor in enumerate(self._actors):
                    if not isinstance(actor, Supervised):
                        continue
                    if stopped:
                        actor.heard()
                    if not (seconds := actor.hangs()):
                        continue
                    if (successor := actor.give_up(seconds)) is not None:
                        self._actors[i] = successor
                        self._workers.replace(i, functools.partial(self._produce, successor))
                self._tell_of_places(looked)
        except UserError as error:  # one too many
            self._workers.fail(error)

    def _tell_of_places(self, now: float) -> None:
        """Say how many actors wait for a place, once it has been so for a while."""
        waiting = sum(isinstance(a, Supervised) and a.beats < 0 for a in self._actors)
        if waiting != self._waiting:
            self._waiting, self._since = waiting, now
        if waiting == self._told_waiting or (waiting and now - self._since < TELL_AFTER):
            return
        self._told_waiting = waiting
        some = f"{waiting} of {len(self._actors)} actors wait for a place on some machine"
        self._told.put(some if waiting else "all actors have a place")

    def _next(self, source: Workers, timeout: float) -> Any:
        """What `source` has next for the learner; None if nothing came for so long."""
        start = time.perf_counter()
        item = source.get(timeout)
        self._waits.learner += time.perf_counter() - start
        return item

    def _warnings(self) -> list[str]:
        """What a person should be told beside what came with the unrolls."""
        told = []
        with contextlib.suppress(queue.Empty):
            while True:
                told.append(self._told.get_nowait())
        return told

    def bound_by(self) -> str:
        """Which part the others waited for: learner, environments or inference."""
        return self._waits.bound_by()

    def waits(self) -> dict[str, float]:
        """Seconds the learner and, on average, an actor spent waiting, stepping, and inferring."""
        return self._waits.as_dict()

    def faults(self) -> dict[str, int]:
        """Lives of actors that ended, and unrolls of theirs that were brought and not learnt."""
        supervised = [actor for actor in self._actors if isinstance(actor, Supervised)]
        return {
            "lost_actors": sum(actor.losses for actor in supervised),
            "dropped_unrolls": self._workers.dropped + sum(actor.misfits for actor in supervised),
        }

    def state(self) -> dict[str, PyTree]:
        """Nothing but the learner's: actors are in the middle of things."""
        return {}

    def restore(self, loaded: Loaded) -> list[str]:
        """Says that new episodes start."""
        return ["new episodes start: only runs with --deterministic go on within episodes."]

    def close(self) -> None:
        """Stop the actors and release their environments."""
        self._closed.set()
        self._watcher.join()
        for actor in self._actors:
            if isinstance(actor, Supervised):
                actor.stop()
        self._workers.close()
        for actor in self._actors:
            actor.close()
