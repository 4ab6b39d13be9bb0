"""Threads that hand things to one another: channels, workers, and the time spent waiting."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from pronk.runtime.actor import Unroll

POLL = 0.2  # seconds between looks at whether a wait is still wanted
CLOSING = 60.0  # seconds that threads have to finish what they are doing


class Closed(Exception):
    """Raised in a thread that should end."""


class Channel:
    """A queue between threads that passes on errors and can be closed.

    size: items that may wait before `put` blocks; 0: any number.
    """

    def __init__(self, size: int):
        self._queue: queue.Queue[Any] = queue.Queue(size)
        self._closed = threading.Event()
        self._error: BaseException | None = None

    def put(self, item: Any) -> None:
        """Append an item, waiting for room. Raises Closed."""
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                return self._queue.put(item, timeout=POLL)
        raise Closed

    def get(self, timeout: float = math.inf) -> Any:
        """The next item, or None if there is none for `timeout` seconds. Raises as `check`."""
        end = time.monotonic() + timeout
        while True:
            self.check()
            left = end - time.monotonic()
            try:
                return self._queue.get(timeout=min(POLL, max(left, 0.001)))
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

    def fail(self, error: BaseException) -> None:
        """Have the receiver raise `error`."""
        self._error = error

    def check(self) -> None:
        """Raise the error passed to `fail`, or Closed."""
        if self._error is not None:
            raise self._error
        if self._closed.is_set():
            raise Closed

    def close(self) -> None:
        """Let waiting threads raise Closed."""
        self._closed.set()


def _nothing() -> None:
    pass


class Worker(NamedTuple):
    """A thread, and whether it was abandoned."""

    thread: threading.Thread
    abandoned: threading.Event


class Workers:
    """Threads that call their function again and again until they are closed.

    fail: receives what a function raises, and that thread ends. begin: called first in each thread.
    ends: called last, one in each thread.
    """

    def __init__(
        self,
        functions: Sequence[Callable[[], None]],
        name: str,
        fail: Callable[[BaseException], None],
        begin: Callable[[], None] = _nothing,
        ends: Sequence[Callable[[], None]] = (),
    ):
        self._name, self._fail, self._begin = name, fail, begin
        self._closed = threading.Event()
        self.dropped = 0  # results of abandoned threads
        ends = ends or [_nothing] * len(functions)
        self._workers = [
            self._start(i, *pair) for i, pair in enumerate(zip(functions, ends, strict=True))
        ]

    def _start(self, i: int, function: Callable[[], None], end: Callable[[], None]) -> Worker:
        abandoned = threading.Event()
        thread = threading.Thread(
            target=self._run, args=(function, end, abandoned), name=f"{self._name}-{i}", daemon=True
        )
        thread.start()
        return Worker(thread, abandoned)

    def replace(self, i: int, function: Callable[[], None], end: Callable[[], None]) -> None:
        """Abandon thread i, which hangs, and start another in its place. If it ever wakes up, it
        ends, and what it was doing is counted as dropped."""
        self._workers[i].abandoned.set()
        self._workers[i] = self._start(i, function, end)

    def _run(
        self, function: Callable[[], None], end: Callable[[], None], abandoned: threading.Event
    ) -> None:
        try:
            self._begin()
            while not (self._closed.is_set() or abandoned.is_set()):
                function()
        except Closed:
            self.dropped += abandoned.is_set()
        except BaseException as error:
            if not abandoned.is_set():
                self._fail(error)
        with contextlib.suppress(Exception):
            end()

    def close(self) -> None:
        """Wait until the threads have finished what they are doing, but not for ever."""
        self._closed.set()
        deadline = time.monotonic() + CLOSING
        for worker in self._workers:
            worker.thread.join(timeout=max(0.0, deadline - time.monotonic()))


class OwnThreads:
    """One thread for each of `count` objects; all calls for an object run in its thread, because an
    environment may work only in the thread that made it."""

    def __init__(self, count: int, name: str, begin: Callable[[], None]):
        self._threads = [ThreadPoolExecutor(1, f"{name}-{i}", begin) for i in range(count)]

    def call(self, i: int, function: Callable[..., Any], *args: Any) -> Any:
        """The result of a call in thread i."""
        return self._threads[i].submit(function, *args).result()

    def map(self, function: Callable[[Any], Any], things: Sequence[Any]) -> Iterator[Any]:
        """The results of calls for all things at the same time, each in the thing's thread."""
        pairs = zip(self._threads, things, strict=True)
        for future in [thread.submit(function, thing) for thread, thing in pairs]:
            yield future.result()

    def close(self) -> None:
        """Wait for the threads to finish what they are doing."""
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)


class WaitTimes:
    """Seconds spent waiting and working, from which `bound_by` is read; an actor's are the mean."""

    def __init__(self, actors: int) -> None:
        self._actors = actors
        self.learner = self.queue = self.env = self.act = 0.0
        self._lead = self._balance = 0.0

    def acted(self, unroll: Unroll) -> None:
        """Count the time that an actor spent on an unroll."""
        self.env += unroll.env_seconds / self._actors
        self.act += unroll.act_seconds / self._actors

    @contextlib.contextmanager
    def queued(self) -> Iterator[None]:
        """Count the time within as an actor's wait for the learner."""
        start = time.perf_counter()
        yield
        self.queue += (time.perf_counter() - start) / self._actors

    @contextlib.contextmanager
    def starved(self) -> Iterator[None]:
        """Count the time within as the learner's wait for actors."""
        start = time.perf_counter()
        yield
        self.learner += time.perf_counter() - start

    def as_dict(self) -> dict[str, float]:
        """Seconds, by name."""
        return {
            "learner_waits": self.learner,
            "actor_waits": self.queue,
            "actor_steps": self.env,
            "actor_infers": self.act,
        }

    def on_learner(self) -> bool:
        """Whether actors have recently waited longer than the learner; ask once per update.

        The memory fades within some ten updates, because all wait for the first ones to compile.
        """
        balance = self.queue - self.learner
        self._lead = 0.9 * self._lead + balance - self._balance
        self._balance = balance
        return self._lead > 0

    def bound_by(self) -> str:
        """The part that the others waited for: learner, environments or inference."""
        if self.queue >= self.learner:
            return "learner"
        return "environments" if self.env >= self.act else "inference"
