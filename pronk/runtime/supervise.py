"""Actors that are made again when they die, crash or hang, until a run has lost too many.

Each making of an actor is a life with a random number. What a process that died had half said is
never read; what a thread says that was given up, because it hung, is known by its life, dropped
and counted.
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
from pronk.runtime.actor import Unroll
from pronk.types import PyTree

BACKOFF = 0.25  # seconds before the second life, doubled for each life that brought nothing
LONGEST_BACKOFF = 5.0
FRUITLESS = 3  # lives in a row that brought nothing: the next would not, either
STARTING = 600.0  # seconds that a life may take to its first step: it imports and compiles


class Closed(Exception):
    """Whoever waited for threads that were stopped, or is no more wanted, is told by this."""


class Lost(UserError):
    """A process has died, or was killed because it hung: another may go on."""


class Unroller(Protocol):
    """What a runtime needs of an actor, in this process or another."""

    placement: str  # where its environments are stepped, for a person

    @property
    def beats(self) -> int:
        """How many rows it has acted in: it hangs if this doesn't change."""
        ...

    def unroll(self, behaviour: PyTree, version: int) -> Unroll: ...
    def close(self) -> None: ...


class Restarts:
    """How many lives the actors of a run have lost, and may; how each ended is written to `log`.

    silent_after: seconds without a step after which an actor is taken for hung. `hopeless` says
    whether what all actors need has failed, so that none can go on.
    """

    def __init__(self, most: int, log: Path, silent_after: float):
        self.most, self.log, self.silent_after = most, log, silent_after
        self.hopeless: Callable[[], bool] = lambda: False
        self.count = 0
        self._lock = threading.Lock()

    def spend(self, name: str, error: BaseException) -> str:
        """One life more; what a person is told of it. Raises UserError if it was one too many."""
        cause = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        with self._lock:
            self.count += 1
            with contextlib.suppress(OSError), self.log.open("a") as file:
                stamp = time.strftime("%Y-%m-%d %H:%M:%S")
                file.write(f"{stamp} {name}: {cause}\n")
                if not isinstance(error, UserError):
                    file.writelines(traceback.format_exception(error))
            if self.count > self.most:
                raise UserError(
                    f"actors were lost {self.count} times, and `--max-restarts` is {self.most}."
                    f" The last: {name}: {cause.rstrip('.')}; all are in {self.log}. What was"
                    " learnt is saved, and the same command goes on from there."
                )
        return f"{name}: {cause.rstrip('.')}; it begins again ({self.count} of {self.most})"


class Supervised:
    """An actor that goes on in a new life where one is lost; an `Unroller` itself.

    make: an actor whose random numbers are this life's. actor: of the first life, if it is made
    already; otherwise the thread that unrolls it makes it.
    """

    def __init__(
        self,
        make: Callable[[int], Unroller],
        name: str,
        restarts: Restarts,
        actor: Unroller | None = None,
    ):
        self.name = name
        self.life = secrets.randbits(31)
        self.ended: list[int] = []  # lives before it
        self.placement = "" if actor is None else actor.placement
        self._make, self._restarts, self._actor = make, restarts, actor
        self._done = False  # an unroll, ever
        self._fruitless = 0  # lives in a row
        self._told: list[str] = []
        self._unrolling = False
        self._unwanted = False  # given up, or closing: it must not begin again
        self._heard = (0, 0.0)  # beats, and when they were new
        self._lock = threading.Lock()  # while the actor is looked at, or replaced

    @property
    def beats(self) -> int:
        """Rows acted in, in this life."""
        with self._lock:
            return 0 if self._actor is None else self._actor.beats

    def unroll(self, behaviour: PyTree, version: int) -> Unroll:
        """As the actor's, in as many lives as that takes. Raises Closed once it was given up."""
        while True:
            try:
                self._unrolling = True
                if self._actor is None:
                    self._actor = self._make(self.life)
                unroll = self._actor.unroll(behaviour, version)
            except Exception as error:
                if self._unwanted:
                    raise self._parting() from error
                mistake = isinstance(error, UserError) and not isinstance(error, Lost)
                if mistake or self._restarts.hopeless():
                    raise
                self._begin_again(error)
                continue
            finally:
                self._unrolling = False
            if self._unwanted:
                raise self._parting()
            self._done, self._fruitless = True, 0
            told, self._told = self._told, []
            return unroll._replace(warnings=[*told, *unroll.warnings])

    def _parting(self) -> Closed:
        self._release()
        return Closed()

    def _begin_again(self, error: Exception) -> None:
        self._fruitless += 1
        self._told.append(self._restarts.spend(self.name, error))
        if not self._done or self._fruitless >= FRUITLESS:
            if isinstance(error, Lost):
                raise UserError(
                    f"{self.name}: {error}, before it had brought anything; see"
                    f" {self._restarts.log}. What was learnt is saved, and the same command goes on"
                    " from there."
                ) from None
            raise error
        self._release()
        self.ended.append(self.life)
        self.life = secrets.randbits(31)
        time.sleep(min(BACKOFF * 2 ** (self._fruitless - 1), LONGEST_BACKOFF))

    def stop(self) -> None:
        """Begin no further life."""
        self._unwanted = True

    def heard(self) -> None:
        """Count its silence from now on."""
        self._heard = (0, 0.0)

    def hangs(self) -> float:
        """Seconds for which it has been silent in an unroll, if these are too many; else 0. To be
        asked now and then."""
        beats, now = self.beats, time.monotonic()
        if not self._unrolling or beats != self._heard[0] or not self._heard[1]:
            self._heard = (beats, now)
        silent = now - self._heard[1]
        allowed = self._restarts.silent_after
        return silent if silent > (allowed if beats else max(STARTING, allowed)) else 0.0

    def give_up(self, seconds: float) -> Supervised | None:
        """End a life that hangs: a process is killed, and its thread begins again; of a thread the
        successor is returned. Raises UserError where that is one too many."""
        self._heard = (0, 0.0)
        cause = Lost(f"it has not made a step for {seconds:.0f} s")
        with self._lock:
            if self._actor is None:
                return None  # it is between lives
            kill = getattr(self._actor, "kill", None)
            if kill is not None:
                kill(cause)
                return None
        self._unwanted = True
        successor = Supervised(self._make, self.name, self._restarts)
        successor._done, successor._fruitless = self._done, self._fruitless + 1
        successor.ended = [*self.ended, self.life]
        successor._told = [*self._told, self._restarts.spend(self.name, cause)]
        return successor

    def close(self) -> None:
        """Release what this life holds."""
        if self._actor is not None:
            self._actor.close()

    def _release(self) -> None:
        with self._lock:
            actor, self._actor = self._actor, None
        if actor is not None:
            with contextlib.suppress(Exception):  # it was lost: what it says of that is no news
                actor.close()
