"""An actor in a process of its own, with the face of one in this process.

Parameters go out and trajectories come back through shared memory; a pipe carries a few bytes per
unroll. What the pipe carries is read by the two ends only, which are the same program.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple

import jax
import numpy as np

from pronk.errors import UserError
from pronk.runtime.actor import Actor, Unroll
from pronk.runtime.places.supervise import Lost
from pronk.storage import shared_memory
from pronk.types import Array, PyTree, Trajectory


class Placed(NamedTuple):
    """Where an array lies in a block of shared memory. A leaf, not a tree: see `_is_placed`."""

    offset: int
    shape: tuple[int, ...]
    dtype: str

    def view(self, memory: SharedMemory) -> np.ndarray:
        """The array, without copying it."""
        return np.ndarray(self.shape, self.dtype, buffer=memory.buf, offset=self.offset)


def _is_placed(x: Any) -> bool:
    return isinstance(x, Placed)


def _layout(tree: PyTree) -> tuple[PyTree, int]:
    """`tree` with each array replaced by its place, and the bytes they need."""
    total = 0

    def place(x: Array) -> Placed:
        nonlocal total
        offset, total = total, total + -(-x.nbytes // 64) * 64
        return Placed(offset, tuple(x.shape), str(x.dtype))

    return jax.tree.map(place, tree), max(total, 1)


def _write(memory: SharedMemory, places: PyTree, tree: PyTree) -> None:
    flat = jax.tree.leaves(places, is_leaf=_is_placed)
    for place, x in zip(flat, jax.tree.leaves(tree), strict=True):
        place.view(memory)[...] = x


def _read(memory: SharedMemory, places: PyTree) -> PyTree:
    """A copy, so that the memory may be written again at once."""
    return jax.tree.map(lambda p: p.view(memory).copy(), places, is_leaf=_is_placed)


class ActorProcess:
    """Calls `make_actor` in a spawned process and unrolls it there.

    make_actor: picklable. What the process raises is raised here, with its traceback, or as it is
    where it was a UserError.
    """

    placement = "in processes of their own"

    def __init__(self, make_actor: Callable[[], Actor], name: str):
        try:
            ForkingPickler.dumps(make_actor)
        except Exception as error:
            raise UserError(
                f"{name} can't be made in another process ({error}); use `--actor-kind thread`, or"
                " an environment factory that is a function of a module."
            ) from None
        context = multiprocessing.get_context("spawn")  # forking after jax has started deadlocks
        self._name = name
        self._pipe, theirs = context.Pipe()
        self._memories: list[SharedMemory] = []
        self._beats = Placed(0, (), "int64")
        self._beats.view(self._memory(8))[...] = 0
        self._process = context.Process(
            target=_main,
            args=(theirs, make_actor, self._memories[0].name, self._beats),
            name=name,
            daemon=True,
        )
        self._process.start()
        self._ended = False
        theirs.close()
        self._killed = ""  # why
        self._params: tuple[SharedMemory, PyTree] | None = None
        self._trajectory: tuple[SharedMemory, PyTree] | None = None
        self._finalizer = weakref.finalize(self, _release, self._memories, self._pipe)

    @property
    def beats(self) -> int:
        """Rows acted in; the other process counts them in shared memory."""
        return int(self._beats.view(self._memories[0])) if self._memories else 0

    def kill(self, cause: Lost) -> None:
        """End the process at once; whoever waits for its unroll is told the cause."""
        self._killed = str(cause)
        self._process.kill()

    def unroll(self, behaviour: PyTree, version: int) -> Unroll:
        """As `Actor.unroll`, in the other process. Raises Lost where that has died."""
        behaviour = jax.tree.map(np.asarray, behaviour)
        if self._params is None:
            places, size = _layout(behaviour)
            self._params = (self._memory(size), places)
            self._tell("parameters", self._params[0].name, places)
        _write(*self._params, behaviour)
        self._tell("unroll", version)
        kind, *rest = self._hear()
        if kind == "size":
            places, size = rest
            self._trajectory = (self._memory(size), places)
            self._tell("memory", self._trajectory[0].name)
            kind, *rest = self._hear()
        assert self._trajectory is not None
        trajectory: Trajectory = _read(*self._trajectory)
        return Unroll(trajectory, *rest)

    def close(self) -> None:
        """End the process and release the memory; safe to call twice."""
        self._finalizer()
        if self._ended:
            return
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._ended = True
        self._process.close()  # its descriptors: garbage may be collected much later

    def _memory(self, size: int) -> SharedMemory:
        memory = shared_memory.create(size)
        self._memories.append(memory)
        return memory

    def _tell(self, *message: Any) -> None:
        try:
            self._pipe.send(message)
        except (BrokenPipeError, OSError):
            raise self._death() from None

    def _hear(self) -> tuple[Any, ...]:
        try:
            # The sentinel too: a child of the environment's may hold the pipe open.
            if self._pipe not in wait([self._pipe, self._process.sentinel]):
                raise EOFError
            message = self._pipe.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if message[0] == "mistake":
            raise UserError(message[1])
        if message[0] == "failure":
            raise RuntimeError(f"{self._name} failed:\n{message[1]}")
        return message

    def _death(self) -> Lost:
        self._process.join(timeout=5)
        died = f"its process {self._process.pid} died with exit code {self._process.exitcode}"
        return Lost(self._killed or died)


def _release(memories: list[SharedMemory], pipe: Connection) -> None:
    pipe.close()
    while memories:
        memory = memories.pop()
        memory.close()
        memory.unlink()


def _main(pipe: Connection, make_actor: Callable[[], Actor], memory: str, beats: Placed) -> None:
    """The other process: obeys until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the learner's process decides when to stop
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    block = shared_memory.attach(memory)
    actor: Actor | None = None
    try:
        actor = make_actor()

        def beat() -> None:
            view = beats.view(block)
            view += 1

        actor.beat = beat
        _obey(pipe, actor)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except UserError as error:
        _last_words(pipe, "mistake", str(error))
    except Exception:
        _last_words(pipe, "failure", traceback.format_exc())
    finally:
        if actor is not None:
            actor.close()


def _last_words(pipe: Connection, *words: str) -> None:
    try:
        pipe.send(words)
    except OSError:
        print(*words)


def _obey(pipe: Connection, actor: Actor) -> None:
    params: tuple[SharedMemory, PyTree] | None = None
    room: tuple[SharedMemory, PyTree] | None = None
    while True:
        command, *rest = pipe.recv()
        if command == "parameters":
            name, places = rest
            params = (shared_memory.attach(name), places)
            continue
        assert command == "unroll"
        assert params is not None
        trajectory, *others = actor.unroll(_read(*params), rest[0])
        if room is None:
            places, size = _layout(trajectory)
            pipe.send(("size", places, size))
            _, name = pipe.recv()
            room = (shared_memory.attach(name), places)
        _write(*room, trajectory)
        pipe.send(("done", *others))
