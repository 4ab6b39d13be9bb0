"""Gymnasium environments stepped by worker processes, their arrays in shared memory."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import signal
import time
import weakref
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

from pronk.envs.gym_env import SlotConfig, Slots, SlotVectorEnv
from pronk.envs.slot import Factory, Fault, Rows
from pronk.errors import UserError
from pronk.storage import shared_memory
from pronk.types import EnvSpec

_CLOSE_SECONDS = 2.0
_SLICE = 1.0  # seconds of waiting at a time


class _Worker:
    """The parent's end of one worker process, which owns the rows `lo` to `hi`."""

    def __init__(self, config: SlotConfig, memory: str, lo: int, hi: int):
        context = multiprocessing.get_context("spawn")  # fork deadlocks once jax has started
        self.lo, self.hi = lo, hi
        self._patience = config.hang_after
        self._hung = False
        self._sent = 0
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, config, memory, lo, hi), name=f"pronk-env-{lo}", daemon=True
        )
        try:
            self._process.start()
        finally:
            theirs.close()  # so that its end closes with the process

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        self._process.join(_CLOSE_SECONDS)
        return self._process.exitcode

    def fate(self) -> str:
        """What became of the process."""
        if self._hung:
            return f"their worker process did not answer for {self._patience:g} s and was killed"
        return f"their worker process ended with exit code {self.exitcode}"

    def send(self, command: str, payload: Any = None) -> None:
        """A dead worker is noticed by `receive`."""
        self._sent += 1
        with contextlib.suppress(OSError):
            self._connection.send((self._sent, command, payload))

    def receive(self, deadline: float = math.inf) -> Any | None:
        """The answer to the last command, or None where the process has ended, or has not answered
        by the `deadline` (`time.monotonic`) and was killed."""
        while True:
            before = time.monotonic()
            # The sentinel too: a child of the environment's may hold the pipe open.
            ready = wait([self._connection, self._process.sentinel], _SLICE)
            if not ready:
                slept = time.monotonic() - before
                if slept > 5 * _SLICE:  # this process was stopped itself, and perhaps all of them
                    deadline += slept
                if time.monotonic() < deadline:
                    continue
                self._hung = True
                self._process.kill()
            if self._connection not in ready:
                return None
            try:
                number, answer = self._connection.recv()
            except (EOFError, OSError):
                return None
            if number == self._sent:  # else to a command whose sender was interrupted
                return answer

    def hang_up(self) -> None:
        """Ask the process to end."""
        self._connection.close()

    def end(self, deadline: float) -> None:
        """Wait for the process until `deadline` (`time.monotonic`), then kill it."""
        self._connection.close()
        self._process.join(max(0.0, deadline - time.monotonic()))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _work(connection: Connection, config: SlotConfig, memory: str, lo: int, hi: int) -> None:
    """A worker process: obeys commands until the other end of the pipe closes."""
    # Ctrl-C, and a SIGTERM to the whole group, are the parent's to handle: it hangs up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    block = shared_memory.attach(memory)
    try:
        _obey(connection, config, Rows(config.spec, config.num_envs, block.buf), lo, hi)
    finally:
        with contextlib.suppress(BufferError):  # an environment kept a view; the end is near
            block.close()


def _obey(connection: Connection, config: SlotConfig, rows: Rows, lo: int, hi: int) -> None:
    try:
        slots = Slots(config, rows, lo, hi)
    except UserError as e:
        connection.send((0, str(e)))
        return
    with contextlib.suppress(EOFError, OSError):
        connection.send((0, ""))
        while True:
            number, command, payload = connection.recv()
            connection.send((number, slots.run(command, payload)))
    slots.close()


class _Processes:
    """What must be released: the workers and the shared memory they write."""

    def __init__(self, config: SlotConfig):
        self.workers: list[_Worker] = []
        self._memory = shared_memory.create(Rows.size(config.spec, config.num_envs))
        self.name = self._memory.name
        self.rows: Rows | None = Rows(config.spec, config.num_envs, self._memory.buf)

    def release(self) -> None:
        """Runs once, at `close`, when the environment is garbage, or at exit."""
        self._memory.unlink()
        for worker in self.workers:
            worker.hang_up()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for worker in self.workers:
            worker.end(deadline)
        self.rows = None  # its views forbid unmapping
        with contextlib.suppress(BufferError):  # interrupted amid a copy; unmapped at exit
            self._memory.close()


class ProcessVectorEnv(SlotVectorEnv):
    """Gymnasium environments stepped by `workers` processes, each with a contiguous chunk.

    Arguments, episodes and errors are those of `SerialVectorEnv`; `factory` must be picklable. A
    worker that dies, or hangs, is replaced and counts as one fault; its episodes are truncated.
    """

    def __init__(
        self,
        factory: Factory,
        spec: EnvSpec,
        num_envs: int,
        seed: int = 0,
        first_env_id: int = 0,
        *,
        workers: int,
        **options: Any,
    ):
        self._num_workers = min(workers, num_envs)
        plural = "es" if self._num_workers > 1 else ""
        self.placement = f"stepped in {self._num_workers} worker process{plural}"
        super().__init__(factory, spec, num_envs, seed, first_env_id, **options)

    def _start(self) -> None:
        config, n = self._config, self._num_workers
        try:
            ForkingPickler.dumps(config.factory)
        except Exception as e:
            raise UserError(
                f"the factory of `env` '{config.spec.name}' cannot be sent to a worker process "
                f"({e}); pass a function defined at the top level of a module, or workers=0"
            ) from e
        self._processes = _Processes(config)
        self._finalizer = weakref.finalize(self, self._processes.release)
        np.copyto(self._shared.memory, self._rows.memory)
        bounds = [self.num_envs * k // n for k in range(n + 1)]
        try:
            for lo, hi in pairwise(bounds):
                self._processes.workers.append(_Worker(config, self._processes.name, lo, hi))
            for worker in self._processes.workers:
                if not self._greeted(worker):
                    raise UserError(
                        f"a worker process of `env` '{config.spec.name}' ended while starting "
                        f"(exit code {worker.exitcode}; what it said is above). A script needs "
                        "`if __name__ == '__main__':` around what it runs; or pass workers=0"
                    )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the processes within about two seconds and free the memory; safe to call twice."""
        self._finalizer()

    @property
    def _shared(self) -> Rows:
        # Never kept in a variable: a view in some traceback's frame would forbid `close`.
        assert self._processes.rows is not None, "used after close()"
        return self._processes.rows

    @staticmethod
    def _greeted(worker: _Worker) -> bool:
        """Whether it started; `UserError` where its environments can't be made."""
        # Before any command a worker answers number 0, with what is wrong or nothing.
        wrong = worker.receive()
        if wrong:
            raise UserError(wrong)
        return wrong is not None

    def _run(self, command: str, payload: list[Any] | None = None) -> list[Any]:
        np.copyto(self._shared.action, self._rows.action)
        np.copyto(self._shared.done, self._rows.done)
        workers = self._processes.workers
        deadline = self._deadline(command)
        for worker in workers:
            worker.send(command, payload and payload[worker.lo : worker.hi])
        answers: list[Any] = []
        for k, worker in enumerate(workers):
            result = worker.receive(deadline)
            if result is None:
                result = self._revive(k, command, payload)
            answers.extend(result[0])
            self._note(result[1])
        # A copy, because memory that the caller can see must outlive `close`; and what a dying
        # worker leaves half-written is repaired from it.
        np.copyto(self._rows.memory, self._shared.memory)
        return answers

    def _revive(self, k: int, command: str, payload: list[Any] | None) -> Any:
        """Replace worker `k`, which died of `command`; the answer of its successor."""
        workers = self._processes.workers
        dead = workers[k]
        chunk = slice(dead.lo, dead.hi)
        # The episodes it had begun, though the parent hasn't heard of them; and at least 0, since a
        # successor makes its environments lazily, so that their failure is a fault.
        episodes = np.maximum(self._shared.episode[chunk], 0)
        while True:
            first = self._config.first_env_id + dead.lo
            where = f"slots {dead.lo} to {dead.hi - 1} (environments from {first})"
            cause = dead.fate()
            dead.end(time.monotonic())
            self._note([Fault(where, cause, "")])
            self._repair(chunk)
            self._shared.episode[chunk] = episodes
            workers[k] = dead = _Worker(self._config, self._processes.name, dead.lo, dead.hi)
            if not self._greeted(dead):
                continue
            if command in ("state", "restore"):
                if not self._ask(dead, "abandon"):
                    continue
                self._warnings.append(f"{where}: {cause}; new episodes are begun there")
                result = self._ask(dead, command, payload and payload[chunk])
            else:
                result = self._ask(dead, "recover")
            if result is not None:
                return result

    def _repair(self, chunk: slice) -> None:
        for theirs, ours in zip(self._shared.arrays, self._rows.arrays, strict=True):
            theirs[chunk] = ours[chunk]

    def _deadline(self, command: str) -> float:
        # Restoring repeats whole episodes, and may take its time.
        if command in ("state", "restore"):
            return math.inf
        return time.monotonic() + self._config.hang_after

    def _ask(self, worker: _Worker, command: str, payload: Any = None) -> Any | None:
        worker.send(command, payload)
        return worker.receive(self._deadline(command))
