"""Actors in threads of their own, watched, and replaced where one hangs."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable, Sequence

from pronk.errors import UserError
from pronk.runtime.cpus import pin_threads
from pronk.runtime.places.supervise import Supervised
from pronk.runtime.threads import Workers

WATCH_EVERY = 1.0  # seconds
REPORT_AFTER = 5.0  # seconds for which actors had no place


class ActorThreads:
    """Calls `work(actor)` again and again, for each actor in a thread of its own.

    fail: receives the error that ends a thread, or the run because too many actors were lost.
    """

    def __init__(
        self,
        actors: Sequence[Supervised],
        work: Callable[[Supervised], None],
        fail: Callable[[BaseException], None],
        actor_cores: int | None = None,
    ):
        self._actors = list(actors)
        self._work, self._fail = work, fail
        self._workers = Workers(
            [functools.partial(work, actor) for actor in actors],
            "actor",
            fail,
            pin_threads(actor_cores),
            # In its thread: an environment may belong to the thread that made it.
            [actor.close for actor in actors],
        )
        self._messages: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._waiting, self._since, self._reported = 0, 0.0, 0  # actors without a place
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        """Look now and then whether an actor hangs, or has no place."""
        looked = time.monotonic()
        try:
            while not self._closed.wait(WATCH_EVERY):
                # If this process was stopped itself, no actor could make a step.
                stopped = time.monotonic() - looked > 10 * WATCH_EVERY
                looked = time.monotonic()
                for i, actor in enumerate(self._actors):
                    if stopped:
                        actor.reset_silence()
                    if not (seconds := actor.hung_for()):
                        continue
                    if (successor := actor.abandon(seconds)) is not None:
                        self._actors[i] = successor
                        work = functools.partial(self._work, successor)
                        self._workers.replace(i, work, successor.close)
                self._report_places(looked)
        except UserError as error:  # too many were lost
            self._fail(error)

    def _report_places(self, now: float) -> None:
        """Say how many actors wait for a place, once it has been so for a while."""
        waiting = sum(actor.rows_acted < 0 for actor in self._actors)
        if waiting != self._waiting:
            self._waiting, self._since = waiting, now
        if waiting == self._reported or (waiting and now - self._since < REPORT_AFTER):
            return
        self._reported = waiting
        some = f"{waiting} of {len(self._actors)} actors wait for a place on some machine"
        self._messages.put(some if waiting else "all actors have a place")

    def messages(self) -> list[str]:
        """Messages for the log since the last call."""
        messages = []
        with contextlib.suppress(queue.Empty):
            while True:
                messages.append(self._messages.get_nowait())
        return messages

    def faults(self) -> dict[str, int]:
        """Actors that were lost, and unrolls of theirs that were dropped."""
        return {
            "lost_actors": sum(actor.losses for actor in self._actors),
            "dropped_unrolls": self._workers.dropped + sum(actor.misfits for actor in self._actors),
        }

    def stop(self) -> None:
        """Let no actor start again, or wait for a place."""
        self._closed.set()
        self._watcher.join()
        for actor in self._actors:
            actor.stop()

    def close(self) -> None:
        """Wait for the threads, which release the environments; those of hanging ones, too."""
        self._workers.close()
        for actor in self._actors:
            actor.close()
