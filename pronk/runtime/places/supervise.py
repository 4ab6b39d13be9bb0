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
from pronk.runtime.actor import Unroll, misfit
from pronk.runtime.threads import Closed
from pronk.types import PyTree, Trajectory

BACKOFF = 0.25  # seconds before the second life, doubled for each life that brought nothing
LONGEST_BACKOFF = 5.0
FRUITLESS = 3  # lives in a row that crashed and brought nothing: the next would, too
STARTING = 600.0  # seconds that a life may take to its first step: it imports and compiles


class Lost(UserError):
    """A process has died, or was killed because it hung: another may go on."""


class Departed(Lost):
    """The machine of a process has left its cluster, as machines do: no fault of the actor's."""


class Unroller(Protocol):
    """What a runtime needs of an actor, in this process or another."""

    placement: str  # where its environments are stepped, for a person

    @property
    def beats(self) -> int:
        """How many rows it has acted in: it hangs if this doesn't change. Negative while it waits
        for a place on some machine."""
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
        """One life more; what a person is told of it. Raises UserError if it was one too many.

        One whose machine departed is not counted: others will.
        """
        cause = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        with self._lock:
            self.count += not isinstance(error, Departed)
            with contextlib.suppress(OSError), self.log.open("a") as file:
                stamp = time.strftime("%Y-%m-%d %H:%M:%S")
                file.write(f"{stamp} {name}: {cause}\n")
                if not isinstance(error, UserError):
                    file.writelines(traceback.format_exception(error))
            if isinstance(error, Departed):
                return f"{name}: {cause}; it begins again elsewhere"
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
    already; otherwise the thread that unrolls it makes it. like: what a trajectory looks like, as
    shapes and dtypes; an actor that brings anything else is lost, and what it brought is dropped.
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
        self.life = secrets.randbits(31)
        self.ended: list[int] = []  # lives before it
        self.placement = "" if actor is None else actor.placement
        self._make, self._restarts, self._actor, self._like = make, restarts, actor, like
        self.losses = self.misfits = 0  # lives, and unrolls that were none
        self._done = False  # an unroll, ever
        self._fruitless = 0  # lives in a row
        self._told: list[str] = []
        self._unrolling = False
        self._ends = threading.Event()  # it is given up, or the run closes: it begins no life
        self._heard = (0, 0.0)  # beats, and when they were new
        self._lock = threading.Lock()  # while the actor is looked at, or replaced

    @property
    def beats(self) -> int:
        """Rows acted in, in this life."""
        with self._lock:
            return 0 if self._actor is None else self._actor.beats

    def unroll(self, behaviour: PyTree, version: int) -> Unroll:
        """As the actor's, in as many lives as that takes. Raises Closed once it was given up."""
        return self.unroll_newest(lambda: (version, behaviour))

    def unroll_newest(self, latest: Callable[[], tuple[int, PyTree]]) -> Unroll:
        """As `unroll`, with what is newest when the actor, made and placed, can act."""
        while True:
            if self._ends.is_set():
                raise self._parting()
            try:
                self._unrolling = True
                if self._actor is None:
                    self._actor = self._make(self.life)
                if (ready := getattr(self._actor, "ready", None)) is not None:
                    ready()
                version, behaviour = latest()
                unroll = self._actor.unroll(behaviour, version)
                if self._like is not None and (wrong := misfit(unroll, self._like, version)):
                    self.misfits += 1
                    raise Lost(f"what it brought was dropped: {wrong}")
            except Exception as error:
                if self._ends.is_set():
                    raise self._parting() from error
                mistake = isinstance(error, UserError) and not isinstance(error, Lost)
                if mistake or self._restarts.hopeless():
                    raise
                self._begin_again(error)
                continue
            finally:
                self._unrolling = False
            if self._ends.is_set():
                raise self._parting()
            self._done, self._fruitless = True, 0
            told, self._told = self._told, []
            return unroll._replace(warnings=[*told, *unroll.warnings])

    def _parting(self) -> Closed:
        self._release()
        return Closed()

    def _begin_again(self, error: Exception) -> None:
        self.losses += 1
        self._told.append(self._restarts.spend(self.name, error))
        if not isinstance(error, Departed):
            self._fruitless += 1
            self._give_way(error)
        self._release()
        self.ended.append(self.life)
        self.life = secrets.randbits(31)
        self._ends.wait(min(BACKOFF * 2 ** max(self._fruitless - 1, 0), LONGEST_BACKOFF))

    def _give_way(self, error: Exception) -> None:
        """Raise if another life would end like this one: UserError, or the error itself."""
        if isinstance(error, Lost):
            if not self._done:
                raise UserError(
                    f"{self.name}: {error}, before it had brought anything; see"
                    f" {self._restarts.log}. What was learnt is saved, and the same command goes on"
                    " from there."
                ) from None
            return  # whatever kills it, now and then, comes from outside: `--max-restarts` decides
        if not self._done or self._fruitless >= FRUITLESS:
            raise error

    def stop(self) -> None:
        """Begin no further life, and wait for no place."""
        self._ends.set()
        if self.beats < 0:
            self._kill(Lost("it had no place"))

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
        if self._kill(cause):
            return None
        self._ends.set()
        successor = Supervised(self._make, self.name, self._restarts, like=self._like)
        successor.losses, successor.misfits = self.losses + 1, self.misfits
        successor._done, successor._fruitless = self._done, self._fruitless + 1
        successor.ended = [*self.ended, self.life]
        successor._told = [*self._told, self._restarts.spend(self.name, cause)]
        return successor

    def _kill(self, cause: Lost) -> bool:
        """Whether the actor can be killed, and was, or there is none between two lives."""
        with self._lock:
            if self._actor is None:
                return True
            kill = getattr(self._actor, "kill", None)
            if kill is not None:
                kill(cause)
            return kill is not None

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
