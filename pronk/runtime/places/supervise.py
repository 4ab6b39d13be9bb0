"""Actors that are restarted when they die, crash or hang, until a run has lost too many.

Every (re)start of an actor is an incarnation with a random id. Partial messages of a dead process
are never read. Late results of a thread that was abandoned because it hung are
discarded and counted.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pronk.errors import UserError
from pronk.runtime.actor import Unroll, misfit
from pronk.runtime.threads import Closed
from pronk.types import PyTree, Trajectory

BACKOFF = 0.25  # seconds before the first restart, doubled for each one without a result
LONGEST_BACKOFF = 5.0
FAILED_STARTS = 3  # crashes in a row without a result: the next restart would crash, too
STARTING = 600.0  # seconds that an incarnation may take to its first step: it imports and compiles


class ActorLost(UserError):
    """An actor's process has died, or was killed because it hung: another may continue."""


class NodeLost(ActorLost):
    """An actor's machine has left its cluster; this does not count towards the limit."""


class Unroller(Protocol):
    """An actor, in this process or another, as a loop uses it."""

    placement: str  # where its environments are stepped, for the log

    @property
    def rows_acted(self) -> int:
        """The number of rows acted in: an actor hangs if it does not change. Negative while the
        actor waits for a place on some machine."""
        ...

    def unroll(self, behaviour: PyTree, version: int) -> Unroll: ...
    def close(self) -> None: ...


class Restarts:
    """How many actors a run has lost, and may lose; how each was lost is appended to `log`.

    hang_after: seconds without a step after which an actor counts as hung. `fatal` says whether
    something that all actors need has failed, so that none can continue.
    """

    def __init__(self, limit: int, log: Path, hang_after: float):
        self.limit, self.log, self.hang_after = limit, log, hang_after
        self.fatal: Callable[[], bool] = lambda: False
        self.count = 0
        self._lock = threading.Lock()

    def record(self, name: str, error: BaseException) -> str:
        """Count a lost actor; returns the message for the log. Raises UserError if it was one too
        many. Actors whose machine left are not counted, because others will take their place."""
        cause = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        with self._lock:
            self.count += not isinstance(error, NodeLost)
            with contextlib.suppress(OSError), self.log.open("a") as file:
                stamp = time.strftime("%Y-%m-%d %H:%M:%S")
                file.write(f"{stamp} {name}: {cause}\n")
                if not isinstance(error, UserError):
                    file.writelines(traceback.format_exception(error))
            if isinstance(error, NodeLost):
                return f"{name}: {cause}; restarting it elsewhere"
            if self.count > self.limit:
                raise UserError(
                    f"actors were lost {self.count} times, and `--max-restarts` is {self.limit}."
                    f" The last: {name}: {cause.rstrip('.')}; all are in {self.log}. What was"
                    " learnt is saved; run the same command again to continue."
                )
        return f"{name}: {cause.rstrip('.')}; restarting it ({self.count} of {self.limit})"


class Supervised:
    """An actor that is restarted when it is lost; an `Unroller` itself.

    make: makes an actor whose random numbers are those of the given incarnation. actor: the first
    incarnation's, if it exists already; otherwise the thread that unrolls it makes it. like: the
    trajectory's shapes and dtypes; an actor that returns anything else counts as lost, and its
    result is dropped.
    """

    def __init__(
        self,
        make: Callable[[int], Unroller],
        name: str,
        restarts: Restarts,
        actor: Unroller | None = None,
        like: Trajectory | None = None,
    ):
        self.name = name
        self.incarnation = secrets.randbits(31)
        self.former: list[int] = []  # incarnations before it
        self.placement = "" if actor is None else actor.placement
        self._make, self._restarts, self._actor, self._like = make, restarts, actor, like
        self.losses = self.misfits = 0  # incarnations lost, and results that were no trajectories
        self._succeeded = False  # ever
        self._failed_starts = 0  # in a row
        self._messages: list[str] = []
        self._unrolling = False
        self._ends = threading.Event()  # it was abandoned, or the run closes: no more restarts
        self._progress = (0, 0.0)  # rows acted in, and when that number was new
        self._lock = threading.Lock()  # while the actor is looked at, or replaced

    @property
    def rows_acted(self) -> int:
        """Rows acted in by this incarnation."""
        with self._lock:
            return 0 if self._actor is None else self._actor.rows_acted

    def unroll(self, behaviour: PyTree, version: int) -> Unroll:
        """As the actor's, restarting it as often as that takes. Raises Closed once abandoned."""
        return self.unroll_newest(lambda: (version, behaviour))

    def unroll_newest(self, latest: Callable[[], tuple[int, PyTree]]) -> Unroll:
        """As `unroll`, with the behaviour that is newest when the actor is ready to act."""
        while True:
            if self._ends.is_set():
                raise self._closed()
            try:
                self._unrolling = True
                unroll = self._attempt(latest)
            except Exception as error:
                if self._ends.is_set():
                    raise self._closed() from error
                mistake = isinstance(error, UserError) and not isinstance(error, ActorLost)
                if mistake or self._restarts.fatal():
                    raise
                self._restart(error)
                continue
            finally:
                self._unrolling = False
            if self._ends.is_set():
                raise self._closed()
            self._succeeded, self._failed_starts = True, 0
            messages, self._messages = self._messages, []
            return unroll._replace(warnings=[*messages, *unroll.warnings])

    def _attempt(self, latest: Callable[[], tuple[int, PyTree]]) -> Unroll:
        if self._actor is None:
            self._actor = self._make(self.incarnation)
        if (ready := getattr(self._actor, "ready", None)) is not None:
            ready()
        version, behaviour = latest()
        unroll = self._actor.unroll(behaviour, version)
        if self._like is not None and (wrong := misfit(unroll, self._like, version)):
            self.misfits += 1
            raise ActorLost(f"its result was dropped: {wrong}")
        return unroll

    def _closed(self) -> Closed:
        self._release()
        return Closed()

    def _restart(self, error: Exception) -> None:
        self.losses += 1
        self._messages.append(self._restarts.record(self.name, error))
        if not isinstance(error, NodeLost):
            self._failed_starts += 1
            self._raise_if_pointless(error)
        self._release()
        self.former.append(self.incarnation)
        self.incarnation = secrets.randbits(31)
        self._ends.wait(min(BACKOFF * 2 ** max(self._failed_starts - 1, 0), LONGEST_BACKOFF))

    def _raise_if_pointless(self, error: Exception) -> None:
        """Raise if the next incarnation would end like this one: UserError, or the error itself."""
        if isinstance(error, ActorLost):
            if not self._succeeded:
                raise UserError(
                    f"{self.name}: {error}, before its first result; see {self._restarts.log}. What"
                    " was learnt is saved; run the same command again to continue."
                ) from None
            return  # the cause, now and then, is outside: `--max-restarts` decides
        if not self._succeeded or self._failed_starts >= FAILED_STARTS:
            raise error

    def stop(self) -> None:
        """Do not restart it any more, and do not wait for a place."""
        self._ends.set()
        if self.rows_acted < 0:
            self._kill(ActorLost("it had no place"))

    def reset_silence(self) -> None:
        """Measure its silence from now on."""
        self._progress = (0, 0.0)

    def hung_for(self) -> float:
        """Seconds for which it has been silent in an unroll, if that is too long; else 0. Ask now
        and then."""
        rows, now = self.rows_acted, time.monotonic()
        if not self._unrolling or rows != self._progress[0] or not self._progress[1]:
            self._progress = (rows, now)
        silent = now - self._progress[1]
        allowed = self._restarts.hang_after
        return silent if silent > (allowed if rows else max(STARTING, allowed)) else 0.0

    def abandon(self, seconds: float) -> Supervised | None:
        """End an incarnation that hangs: a process is killed, and its thread restarts it; of a
        thread the successor is returned. Raises UserError if that is one too many."""
        self.reset_silence()
        cause = ActorLost(f"it has not made a step for {seconds:.0f} s")
        if self._kill(cause):
            return None
        self._ends.set()
        successor = Supervised(self._make, self.name, self._restarts, like=self._like)
        successor._succeed(self, cause)
        return successor

    def _succeed(self, other: Supervised, cause: ActorLost) -> None:
        """Take the history of an actor that was abandoned."""
        self.losses, self.misfits = other.losses + 1, other.misfits
        self._succeeded, self._failed_starts = other._succeeded, other._failed_starts + 1
        self.former = [*other.former, other.incarnation]
        self._messages = [*other._messages, self._restarts.record(self.name, cause)]

    def _kill(self, cause: ActorLost) -> bool:
        """Whether the actor can be killed, and was, or there is none between two incarnations."""
        with self._lock:
            if self._actor is None:
                return True
            kill = getattr(self._actor, "kill", None)
            if kill is not None:
                kill(cause)
            return kill is not None

    def close(self) -> None:
        """Release what this incarnation holds."""
        if self._actor is not None:
            self._actor.close()

    def _release(self) -> None:
        with self._lock:
            actor, self._actor = self._actor, None
        if actor is not None:
            with contextlib.suppress(Exception):  # it was lost already
                actor.close()
