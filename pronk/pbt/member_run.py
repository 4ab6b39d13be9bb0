"""One run of a member, from one decision to the next, in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from pronk.config.spec import Plan
from pronk.errors import Diverged, UserError
from pronk.pbt.decide import Hyper
from pronk.run import train as training
from pronk.run.guard import handle_signals
from pronk.storage import processes
from pronk.storage.checkpoint import Checkpointer
from pronk.types import Agent, LearnerState

USER_ERROR, DIVERGED = 2, 3  # exit statuses: a UserError, and the UserError `Diverged`
LOST = -9  # it ended without an exit status
MACHINE_LEFT = -1  # its machine left the cluster


class Inheritance(NamedTuple):
    """What a member trains with from a generation on."""

    generation: int
    hyper: Hyper
    donor: Path | None  # the directory with the donor's checkpoint

    def apply(
        self, agent: Agent, state: LearnerState, notes: dict[str, Any]
    ) -> tuple[LearnerState, dict[str, Any]]:
        """`training.Change`: adopt the donor's learner state and set the hyperparameters, unless
        the member's own checkpoint notes that this was done for the generation."""
        if notes.get("generation") == self.generation:
            return state, notes
        if self.donor is not None:
            loaded = Checkpointer(self.donor).load()
            if loaded is None:
                raise UserError(
                    f"'{self.donor}' holds no checkpoint, but a member is to copy it; put it back,"
                    " or start a new population."
                )
            donor: LearnerState = loaded.restore("learner", state)
            state = agent.adopt(state, donor)
        hyper = {name: jnp.float32(value) for name, value in self.hyper.items()}
        state = state._replace(hyper=state.hyper | hyper)
        return jax.tree.map(jnp.asarray, state), {"generation": self.generation}

    def train(self, plan: Plan, env: Any) -> tuple[int, str]:
        """Run the member's plan; its exit status, and the error's text."""
        try:
            training.run(plan, env, change=self.apply)
        except UserError as error:
            return DIVERGED if isinstance(error, Diverged) else USER_ERROR, str(error)
        except KeyboardInterrupt:  # it was asked to pause, and has saved
            return 0, ""
        return 0, ""


class MemberRun(Protocol):
    """A started run of a member."""

    # Its last error, once `wait` has returned.
    @property
    def error_text(self) -> str: ...

    # Whether it has ended, in whatever way.
    @property
    def finished(self) -> bool: ...

    # Ask it to save and pause.
    def stop(self) -> None: ...

    # Wait for its end; its exit status, negative where a signal ended it.
    def wait(self) -> int: ...


class ProcessRun:
    """A run in a spawned process, which prints to `log.txt` in the member's directory."""

    def __init__(self, plan: Plan, env: Any, inheritance: Inheritance):
        self._log = plan.run_dir / "log.txt"
        context = multiprocessing.get_context("spawn")  # forking after jax has started deadlocks
        self.process = context.Process(target=_train, args=(plan, env, inheritance))
        processes.start(self.process)

    @property
    def finished(self) -> bool:
        """Whether the process has ended."""
        return self.process.exitcode is not None

    @property
    def error_text(self) -> str:
        """The error in the last line of its log, or where to read it."""
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        last = lines[-1] if lines else ""
        return last.removeprefix("pronk: ") if last.startswith("pronk: ") else f"see {self._log}"

    def stop(self) -> None:
        """Send SIGTERM, on which training saves and pauses."""
        self.process.terminate()

    def wait(self) -> int:
        """Wait for the process; its exit status."""
        self.process.join()
        status = self.process.exitcode
        self.process.close()
        assert status is not None
        return status


class Launcher:
    """Starts runs of members: in processes on this machine, unless a subclass says otherwise."""

    def start(self, plan: Plan, env: Any, inheritance: Inheritance) -> MemberRun:
        """Start a run."""
        return ProcessRun(plan, env, inheritance)

    def wait(self, runs: Sequence[Any], timeout: float) -> None:
        """Wait until one of the runs has finished, for at most `timeout` seconds."""
        wait([run.process.sentinel for run in runs], timeout=timeout)

    def close(self) -> None:
        """Release what the launcher holds; all its runs have finished."""


def _train(plan: Plan, env: Any, inheritance: Inheritance) -> None:
    """The process of a `ProcessRun`. It pauses, saved, when its controller is gone."""
    handle_signals()  # before they are received
    processes.receive_signals()
    plan.run_dir.mkdir(parents=True, exist_ok=True)
    with open(plan.run_dir / "log.txt", "ab", buffering=0) as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    status, error_text = inheritance.train(plan, env)
    if status:
        print(f"pronk: {error_text}", file=sys.stderr, flush=True)
        sys.exit(status)
