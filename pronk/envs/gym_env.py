"""Gymnasium environments as a `VectorEnv`, stepped in the caller's thread.

The base class `SlotVectorEnv` is shared with `process_env`, which steps them in worker processes.
Neither module imports jax, so that workers start quickly.
"""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from pronk.envs.construct import Factory
from pronk.envs.episodes import EpisodeCounter, slot_states
from pronk.envs.slot import Fault, Rows, Slot
from pronk.errors import UserError
from pronk.maths.spaces import Observations, check_actions
from pronk.types import Array, EnvSpec, Episode, PyTree, TimeStep

_making = threading.Lock()  # constructors are not called in several threads at once

Method = Literal["step", "reset", "state", "restore"]  # of `Slots`


class SlotConfig(NamedTuple):
    """Settings that all slots of a vector share."""

    factory: Factory
    spec: EnvSpec
    num_envs: int
    seed: int
    first_env_id: int
    replayable: bool
    max_faults: int
    hang_after: float  # seconds without a result after which a worker process is replaced


class Slots:
    """A contiguous range of slots, `rows[lo:hi]`; its methods return one result per slot."""

    def __init__(self, config: SlotConfig, rows: Rows, lo: int, hi: int):
        self._faults: list[Fault] = []
        self._slots = [
            Slot(
                config.factory,
                config.spec,
                rows,
                row,
                seed=config.seed,
                env_id=config.first_env_id + row,
                replayable=config.replayable,
                attempts=config.max_faults + 1,
                faults=self._faults,
            )
            for row in range(lo, hi)
        ]

    def call(
        self, method: Method, states: list[Any] | None = None
    ) -> tuple[list[Any], list[Fault]]:
        """The results of a method, and the faults that occurred in it."""
        call = getattr(self, method)
        results = call() if states is None else call(states)
        faults = list(self._faults)
        self._faults.clear()
        return results, faults

    def step(self) -> list[None]:
        """Execute the rows' actions; slots whose episode has ended begin the next one."""
        return [slot.step() for slot in self._slots]

    def reset(self) -> list[None]:
        """Begin new episodes."""
        return [slot.begin() for slot in self._slots]

    def state(self) -> list[dict[str, PyTree]]:
        """The arguments of `restore`."""
        return [slot.state() for slot in self._slots]

    def restore(self, states: list[dict[str, PyTree]]) -> list[str | None]:
        """Replay the episodes of `states`; a warning for each that does not replay exactly."""
        return [slot.restore(state) for slot, state in zip(self._slots, states, strict=True)]

    def close(self) -> None:
        """Close the environments; safe to call twice."""
        for slot in self._slots:
            slot.close()


class SlotVectorEnv:
    """The part of a `VectorEnv` that does not depend on where the slots are stepped.

    Subclasses define `_start`, `_call` and `close`.
    """

    def __init__(
        self,
        factory: Factory,
        spec: EnvSpec,
        num_envs: int,
        seed: int = 0,
        first_env_id: int = 0,
        *,
        replayable: bool = False,
        fault_log: Path | None = None,
        max_faults: int = 10,
        hang_after: float = math.inf,
    ):
        self.spec = spec
        self.num_envs = num_envs
        self._config = SlotConfig(
            factory, spec, num_envs, seed, first_env_id, replayable, max_faults, hang_after
        )
        self._fault_log = fault_log
        self._num_faults = 0
        self._warnings: list[str] = []
        self._counter = EpisodeCounter(num_envs, first_env_id)
        self._observations = Observations(spec.observation_space)
        # One vector of a run says it, once, that numbers are outside their bounds.
        self._watches_bounds = first_env_id == 0
        self._rows = Rows(spec, num_envs)
        self._rows.begin()
        self._start()

    def reset(self) -> TimeStep:
        """Begin new episodes everywhere; `first` is set throughout."""
        self._rows.done[:] = True
        return self._advance("reset")

    def step(self, action: Array) -> TimeStep:
        """Execute `action` `[B, ...]`; slots whose episode has ended begin the next one instead.

        Discrete actions count from 0 whatever the space's `start`; those of a Box are clipped.
        Raises ValueError for an action of another shape, and `UserError` for one that the space
        lacks, and after more than `max_faults` faults.
        """
        action = np.asarray(action)
        if action.shape != self._rows.action.shape:
            raise ValueError(
                f"`action` has shape {action.shape}, expected {self._rows.action.shape}"
            )
        np.copyto(self._rows.action, action, casting="same_kind")
        check_actions(self.spec.action_space, self._rows.action)
        return self._advance("step")

    def episodes(self) -> list[Episode]:
        """The episodes finished since the last call, except those that ended by a fault."""
        return self._counter.episodes()

    def state(self) -> PyTree | None:
        """`{"slot_0": {...}, ...}`, NumPy: the running episodes' indices and actions; None if the
        environment isn't declared replayable."""
        if not self._config.replayable:
            return None
        return {
            f"slot_{i}": {**state, **self._counter.state(i)}
            for i, state in enumerate(self._call("state"))
        }

    def restore(self, state: PyTree) -> None:
        """Reseed and replay the episodes of `state()`, and compare their observations.

        Where one differs, the next step begins a new episode, and `warnings()` has a line.
        """
        states = slot_states(state, self.num_envs)
        for i, (saved, warning) in enumerate(
            zip(states, self._call("restore", states), strict=True)
        ):
            self._counter.restore(i, saved)
            if warning is not None:
                self._warnings.append(warning)

    def warnings(self) -> list[str]:
        """One line for each fault and inexact replay since the last call."""
        warnings, self._warnings = self._warnings, []
        return warnings

    def close(self) -> None:
        """Release processes and memory; safe to call twice."""
        raise NotImplementedError

    def _start(self) -> None:
        """Make the slots."""
        raise NotImplementedError

    def _call(self, method: Method, states: list[Any] | None = None) -> list[Any]:
        """Call a method of `Slots`; the results of all slots."""
        raise NotImplementedError

    def _advance(self, method: Method) -> TimeStep:
        self._call(method)
        rows = self._rows
        if self._watches_bounds and (found := self._observations.outside(rows.leaves)):
            self._watches_bounds = False
            self._warnings.append(f"`env` '{self.spec.name}': {found}; it is used as it is")
        self._counter.update(rows.reward, rows.first, rows.done)
        return rows.timestep()

    def _record_faults(self, faults: list[Fault]) -> None:
        """Count and log faults; raises `UserError` after more than `max_faults`."""
        if not faults:
            return
        self._num_faults += len(faults)
        self._warnings += [
            f"`env` '{self.spec.name}', {fault.where}: {fault.cause}; restarted" for fault in faults
        ]
        if self._fault_log is not None:
            with self._fault_log.open("a") as file:
                for fault in faults:
                    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
                    file.write(f"{stamp} {self.spec.name}, {fault.where}: {fault.cause}\n")
                    file.write(f"{fault.detail}\n")
        if self._num_faults <= self._config.max_faults:
            return
        self.close()
        log = f"; all are in {self._fault_log}" if self._fault_log is not None else ""
        if "thread" in faults[-1].cause and threading.current_thread() != threading.main_thread():
            log += ". If it needs a main thread, a worker process has one: `--env-workers 1`"
        raise UserError(
            f"`env` '{self.spec.name}' failed {self._num_faults} times, and `--max-env-faults` is"
            f" {self._config.max_faults}. The last fault: {faults[-1].where}:"
            f" {faults[-1].cause.rstrip('.')}{log}"
        )


class SerialVectorEnv(SlotVectorEnv):
    """Gymnasium environments stepped one after the other in the caller's thread.

    The first call makes them. Make all calls from one thread: some environments work only in the
    thread that made them.

    `factory` makes one environment, `spec` is its `gym_spec`. Slot i is environment
    `first_env_id + i`, which with `seed` determines all its episodes. `replayable` declares that
    the same seed and actions repeat an episode, and keeps the actions. Faults (see `Slot`) are
    appended to `fault_log`. `step` and `reset` raise `UserError` if an environment cannot be
    created, and after more than `max_faults` faults.
    """

    placement = "stepped in the actor's thread"

    def _start(self) -> None:
        self._slots: Slots | None = None

    def close(self) -> None:
        """Close the environments; safe to call twice."""
        if self._slots is not None:
            self._slots.close()

    def _call(self, method: Method, states: list[Any] | None = None) -> list[Any]:
        if self._slots is None:
            with _making:
                self._slots = Slots(self._config, self._rows, 0, self.num_envs)
        results, faults = self._slots.call(method, states)
        self._record_faults(faults)
        return results
