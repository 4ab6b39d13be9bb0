"""A member's life: from one decision to the next, in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from pronk.config.spec import Plan
from pronk.errors import Diverged, UserError
from pronk.pbt.policy import Hyper
from pronk.run import train as training
from pronk.storage.checkpoint import Checkpointer
from pronk.types import Agent, LearnerState

MISTAKE, DIVERGED = 2, 3  # exit statuses: a UserError, and that of a learner that has diverged
LOST = -9  # of what ended without a word
GONE = -1  # of what ended because its machine left the cluster


class Legacy(NamedTuple):
    """What a member goes on with from a generation on."""

    generation: int
    hyper: Hyper
    donor: Path | None  # where the donor's checkpoint was set aside

    def take_up(
        self, agent: Agent, state: LearnerState, notes: dict[str, Any]
    ) -> tuple[LearnerState, dict[str, Any]]:
        """`training.Change`: what a learner's state becomes, unless its checkpoint notes that it
        has become so already.

        Of the donor it has parameters, optimiser and statistics, and its untuned hyperparameters;
        counters and the random key stay its own.
        """
        if notes.get("generation") == self.generation:
            return state, notes
        if self.donor is not None:
            loaded = Checkpointer(self.donor).load()
            if loaded is None:
                raise UserError(
                    f"'{self.donor}' holds no checkpoint any more, and a member is to go on with"
                    " it; put it back, or start a new population."
                )
            donor: LearnerState = loaded.restore("learner", state)
            state = agent.adopt(state, donor)
        hyper = {name: jnp.float32(value) for name, value in self.hyper.items()}
        state = state._replace(hyper=state.hyper | hyper)
        return jax.tree.map(jnp.asarray, state), {"generation": self.generation}


class Life(Protocol):
    """A life under way."""

    @property
    def words(self) -> str:
        """What it said when it gave up."""
        ...

    @property
    def over(self) -> bool:
        """Whether it has come to its end."""
        ...

    def stop(self) -> None:
        """Have it pause, saved."""
        ...

    def end(self) -> int:
        """Wait for its end; its exit status, negative where a signal ended it."""
        ...


class Workplace(Protocol):
    """Where lives are led."""

    def start(self, plan: Plan, env: Any, legacy: Legacy) -> Life:
        """Begin one."""
        ...

    def wait(self, lives: Sequence[Any], timeout: float) -> None:
        """Until one of them is over, or so many seconds."""
        ...

    def close(self) -> None:
        """When all are over."""
        ...


class Process:
    """A life in a spawned process; what it prints is in `log.txt` of the member's directory."""

    def __init__(self, plan: Plan, env: Any, legacy: Legacy):
        self._log = plan.run_dir / "log.txt"
        context = multiprocessing.get_context("spawn")  # forking after jax has started deadlocks
        self.process = context.Process(target=_live, args=(plan, env, legacy))
        with _deaf():  # Ctrl-C reaches all processes of a terminal: let this one decide
            self.process.start()

    @property
    def over(self) -> bool:
        """Whether the process has ended."""
        return self.process.exitcode is not None

    @property
    def words(self) -> str:
        """The last error that it printed."""
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        said = lines[-1] if lines else ""
        return said.removeprefix("pronk: ") if said.startswith("pronk: ") else f"see {self._log}"

    def stop(self) -> None:
        """SIGTERM, which training hears."""
        self.process.terminate()

    def end(self) -> int:
        """Wait for it; its exit status."""
        self.process.join()
        status = self.process.exitcode
        self.process.close()
        assert status is not None
        return status


class Here:
    """On this machine."""

    def start(self, plan: Plan, env: Any, legacy: Legacy) -> Process:
        """Spawn a process."""
        return Process(plan, env, legacy)

    def wait(self, lives: Sequence[Process], timeout: float) -> None:
        """Until one of them is over, or so many seconds."""
        wait([life.process.sentinel for life in lives], timeout=timeout)

    def close(self) -> None:
        """Nothing is left."""


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Ignore SIGINT, and have what is started meanwhile ignore it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _live(plan: Plan, env: Any, legacy: Legacy) -> None:
    """A life of a member, in a process of its own: until it pauses, saved, or is told to."""
    plan.run_dir.mkdir(parents=True, exist_ok=True)
    with open(plan.run_dir / "log.txt", "ab", buffering=0) as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)  # nobody would go on from here: save, and end

    threading.Thread(target=watch, daemon=True).start()
    try:
        training.run(plan, env, change=legacy.take_up)
    except UserError as error:
        print(f"pronk: {error}", file=sys.stderr, flush=True)
        sys.exit(DIVERGED if isinstance(error, Diverged) else MISTAKE)
