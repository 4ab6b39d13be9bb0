"""Gymnasium environments stepped by worker processes, their arrays in shared memory."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
import weakref
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from pronk.envs import main_module
from pronk.envs.construct import Factory
from pronk.envs.gym_env import Method, SlotConfig, Slots, SlotVectorEnv
from pronk.envs.slot import Fault, Rows
from pronk.errors import UserError
from pronk.storage import processes, shared_memory
from pronk.types import EnvSpec

_CLOSE_SECONDS = 2.0
_POLL_SECONDS = 1.0


class _Worker:
    """The parent's end of one worker process, which owns the rows `lo` to `hi`."""

    def __init__(self, config: SlotConfig, memory: str, lo: int, hi: int):
        context = multiprocessing.get_context("spawn")  # fork deadlocks once jax has started
        self.lo, self.hi = lo, hi
        self._hang_after = config.hang_after
        self._hung = False
        self._sent = 0
        self._connection, child_end = context.Pipe()
        self._process = context.Process(
            target=_worker_main,
            args=(child_end, config, memory, lo, hi),
            name=f"pronk-env-{lo}",
            daemon=True,
        )
        try:
            with main_module.hidden_if_unguarded():
                processes.start(self._process)
        finally:
            child_end.close()  # so that only the process holds it, and it closes with the process

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        self._process.join(_CLOSE_SECONDS)
        return self._process.exitcode

    def failure(self) -> str:
        """Why the process ended."""
        if self._hung:
            return f"their worker process did not answer for {self._hang_after:g} s and was killed"
        return f"their worker process ended with exit code {self.exitcode}"

    def send(self, method: Method, states: list[Any] | None = None) -> None:
        """Request a call of `Slots.call`; a dead worker is detected by `receive`."""
        self._sent += 1
        with contextlib.suppress(OSError):
            self._connection.send((self._sent, method, states))

    def receive(self, deadline: float = math.inf) -> Any | None:
        """The result of the last request; None if the process has ended, or has been killed because
        it did not answer before the `deadline` (`time.monotonic`). Raises what the
        environment raised of KeyboardInterrupt and UserError."""
        while True:
            before = time.monotonic()
            # The sentinel too: a child process of the environment may hold the pipe open.
            ready = wait([self._connection, self._process.sentinel], _POLL_SECONDS)
            if not ready:
                waited = time.monotonic() - before
                if waited > 5 * _POLL_SECONDS:  # this process, and perhaps all, were suspended
                    deadline += waited
                if time.monotonic() < deadline:
                    continue
                self._hung = True
                self._process.kill()
            if self._connection not in ready:
                return None
            try:
                number, result = self._connection.recv()
            except (EOFError, OSError):
                return None
            if number == self._sent:  # others answer a request that was interrupted
                if isinstance(result, BaseException):
                    raise result
                return result

    def disconnect(self) -> None:
        """Ask the process to end."""
        self._connection.close()

    def end(self, deadline: float) -> None:
        """Wait for the process until `deadline` (`time.monotonic`), then kill it, and what its
        environments have started and not ended."""
        self._connection.close()
        self._process.join(max(0.0, deadline - time.monotonic()))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid or 0, signal.SIGKILL)


def _worker_main(connection: Connection, config: SlotConfig, memory: str, lo: int, hi: int) -> None:
    """The worker process: serves requests until the other end of the pipe closes."""
    # The parent handles Ctrl-C, and a SIGTERM to the whole group, by closing the pipe.
    processes.leave_signals_to_parent()
    os.setsid()  # a group of its own, which the parent ends with it
    multiprocessing.current_process().daemon = False  # environments may start processes
    threading.Thread(target=_end_with_parent, daemon=True).start()
    block = shared_memory.attach(memory)
    try:
        _serve(connection, config, Rows(config.spec, config.num_envs, block.buf), lo, hi)
    finally:
        with contextlib.suppress(BufferError):  # an environment kept a view; the process ends
            block.close()


def _end_with_parent() -> None:
    """End this process and what it has started, if the parent is gone and closing takes long."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    time.sleep(_CLOSE_SECONDS)
    os.killpg(0, signal.SIGKILL)


def _serve(connection: Connection, config: SlotConfig, rows: Rows, lo: int, hi: int) -> None:
    # Message 0 reports the start: an error message, or the empty string.
    try:
        slots = Slots(config, rows, lo, hi)
    except UserError as e:
        connection.send((0, str(e)))
        return
    with contextlib.suppress(EOFError, OSError):
        connection.send((0, ""))
        while True:
            number, method, states = connection.recv()
            try:
                result: Any = slots.call(method, states)
            except (UserError, KeyboardInterrupt) as error:  # not a fault of the environment
                result = error
            connection.send((number, result))
    slots.close()


class _Processes:
    """The resources to release: the workers and the shared memory they write."""

    def __init__(self, config: SlotConfig):
        self.workers: list[_Worker] = []
        self._memory = shared_memory.create(Rows.size(config.spec, config.num_envs))
        self.name = self._memory.name
        self.rows: Rows | None = Rows(config.spec, config.num_envs, self._memory.buf)

    def release(self) -> None:
        """Runs once: at `close`, at garbage collection, or at exit."""
        self._memory.unlink()
        for worker in self.workers:
            worker.disconnect()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for worker in self.workers:
            worker.end(deadline)
        self.rows = None  # its views forbid unmapping
        with contextlib.suppress(BufferError):  # interrupted during a copy; unmapped at exit
            self._memory.close()


class ProcessVectorEnv(SlotVectorEnv):
    """Gymnasium environments stepped by `workers` processes, each with a contiguous range of slots.

    Arguments, episodes and errors are those of `SerialVectorEnv`; `factory` must be picklable. A
    worker that dies or hangs is replaced, which counts as one fault of all its slots.
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
        if why := main_module.obstacle(config.factory):
            raise UserError(
                f"`env` '{config.spec.name}' cannot be stepped in worker processes: {why}. Define"
                " it at the top level of a module, or ask for no worker processes"
                " (`--env-workers 0`, from Python env_workers=0)."
            )
        self._processes = _Processes(config)
        self._finalizer = weakref.finalize(self, self._processes.release)
        np.copyto(self._shared.memory, self._rows.memory)
        bounds = [self.num_envs * k // n for k in range(n + 1)]
        try:
            for lo, hi in pairwise(bounds):
                self._processes.workers.append(_Worker(config, self._processes.name, lo, hi))
            for worker in self._processes.workers:
                if not self._has_started(worker):
                    raise UserError(
                        f"a worker process of `env` '{config.spec.name}' ended while starting"
                        f" (exit code {worker.exitcode}; its output is above). Ask for no worker"
                        " processes (`--env-workers 0`, from Python env_workers=0), or find out why"
                        " a new Python process cannot make the environment."
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
    def _has_started(worker: _Worker) -> bool:
        """Wait for the worker's start; raises `UserError` if it cannot create its environments."""
        error = worker.receive()
        if error:
            raise UserError(error)
        return error is not None

    def _call(self, method: Method, states: list[Any] | None = None) -> list[Any]:
        np.copyto(self._shared.action, self._rows.action)
        np.copyto(self._shared.done, self._rows.done)
        workers = self._processes.workers
        deadline = self._deadline(method)
        for worker in workers:
            worker.send(method, states and states[worker.lo : worker.hi])
        results: list[Any] = []
        for k, worker in enumerate(workers):
            answer = worker.receive(deadline)
            if answer is None:
                answer = self._replace_worker(k, method, states)
            results.extend(answer[0])
            self._record_faults(answer[1])
        # A copy, because memory that the caller can see must outlive `close`.
        np.copyto(self._rows.memory, self._shared.memory)
        return results

    def _replace_worker(self, k: int, method: Method, states: list[Any] | None) -> Any:
        """Replace worker `k`, which died during `method`; returns the new worker's answer."""
        workers = self._processes.workers
        worker = workers[k]
        chunk = slice(worker.lo, worker.hi)
        # The shared indices count episodes that the dead worker began without reporting them. At
        # least 0, so that a new worker creates its environments lazily and a failure is a fault.
        episodes = np.maximum(self._shared.episode[chunk], 0)
        while True:
            first = self._config.first_env_id + worker.lo
            where = f"slots {worker.lo} to {worker.hi - 1} (environments from {first})"
            cause = worker.failure()
            worker.end(time.monotonic())
            self._record_faults([Fault(where, cause, "")])
            self._shared.episode[chunk] = episodes
            self._shared.done[chunk] = True
            workers[k] = worker = _Worker(self._config, self._processes.name, worker.lo, worker.hi)
            if not self._has_started(worker):
                continue
            if method in ("state", "restore"):
                self._warnings.append(f"{where}: {cause}; they begin new episodes")
            request = "reset" if method == "step" else method
            answer = self._request(worker, request, states and states[chunk])
            if answer is not None:
                return answer

    def _deadline(self, method: Method) -> float:
        # Restoring replays whole episodes and has no time limit.
        if method in ("state", "restore"):
            return math.inf
        return time.monotonic() + self._config.hang_after

    def _request(
        self, worker: _Worker, method: Method, states: list[Any] | None = None
    ) -> Any | None:
        worker.send(method, states)
        return worker.receive(self._deadline(method))
