"""Gymnasium environments as a `VectorEnv`, stepped in the caller's thread.

What is common to that and to the form with worker processes (`process_env`) is here too. Neither
imports jax, so that workers start quickly.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pronk.envs.episodes import EpisodeCounter, slot_states
from pronk.envs.slot import Factory, Fault, Rows, Slot
from pronk.errors import UserError
from pronk.types import Array, EnvSpec, Episode, PyTree, TimeStep


class Slots:
    """A contiguous chunk of slots, `rows[lo:hi]`, and the commands they obey."""

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
        self._done = rows.done[lo:hi]

    def run(self, command: str, payload: Any) -> tuple[list[Any], list[Fault]]:
        """One answer per slot, and the faults met on the way."""
        slots = self._slots
        if command == "step":
            answers = [slot.step() for slot in slots]
        elif command == "reset":
            answers = [slot.begin() for slot in slots]
        elif command == "recover":
            answers = [
                slot.begin() if done else slot.abandon()
                for slot, done in zip(slots, self._done, strict=True)
            ]
        elif command == "abandon":
            answers = [slot.abandon() for slot in slots]
        elif command == "state":
            answers = [slot.state() for slot in slots]
        elif command == "restore":
            answers = [slot.restore(p) for slot, p in zip(slots, payload, strict=True)]
        else:
            raise ValueError(command)
        faults = list(self._faults)
        self._faults.clear()
        return answers, faults

    def close(self) -> None:
        for slot in self._slots:
            slot.close()


class SlotConfig(NamedTuple):
    """What all slots of a vector have in common."""

    factory: Factory
    spec: EnvSpec
    num_envs: int
    seed: int
    first_env_id: int
    replayable: bool
    max_faults: int
    hang_after: float  # seconds without an answer after which a worker process is replaced


class SlotVectorEnv:
    """What the serial and the process form share: `_run` and `close` are theirs."""

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
        self._rows = Rows(spec, num_envs)
        self._rows.begin()
        self._start()

    def reset(self) -> TimeStep:
        """Begin new episodes everywhere; `first` is set throughout."""
        self._rows.done[:] = True
        return self._advance("reset")

    def step(self, action: Array) -> TimeStep:
        """Execute `action` `[B, ...]`, where a discrete one counts from 0 whatever the space's
        `start`; slots whose episode has ended begin the next one instead.

        Raises `UserError` when the environments have failed more than `max_faults` times.
        """
        action = np.asarray(action)
        if action.shape != self._rows.action.shape:
            raise ValueError(
                f"`action` has shape {action.shape}, expected {self._rows.action.shape}"
            )
        np.copyto(self._rows.action, action, casting="same_kind")
        return self._advance("step")

    def episodes(self) -> list[Episode]:
        """The games finished since the last call; not those that ended by a fault."""
        return self._counter.episodes()

    def state(self) -> PyTree | None:
        """`{"slot_0": {...}, ...}`, NumPy: the running episodes' indices and actions; None where
        the environment isn't declared replayable."""
        if not self._config.replayable:
            return None
        return {
            f"slot_{i}": {**state, **self._counter.state(i)}
            for i, state in enumerate(self._run("state"))
        }

    def restore(self, state: PyTree) -> None:
        """Reseed and replay the episodes of `state()`, and check that they look the same.

        Where one doesn't, the next step begins a new episode and `warnings()` says so.
        """
        states = slot_states(state, self.num_envs)
        for i, (saved, warning) in enumerate(
            zip(states, self._run("restore", states), strict=True)
        ):
            self._counter.restore(i, saved)
            if warning is not None:
                self._warnings.append(warning)

    def warnings(self) -> list[str]:
        """What went otherwise than asked for since the last call, a line each."""
        warnings, self._warnings = self._warnings, []
        return warnings

    def close(self) -> None:
        """Release processes and memory; safe to call twice."""
        raise NotImplementedError

    def _start(self) -> None:
        """Make the slots."""
        raise NotImplementedError

    def _run(self, command: str, payload: list[Any] | None = None) -> list[Any]:
        """The answers of all slots."""
        raise NotImplementedError

    def _advance(self, command: str) -> TimeStep:
        self._run(command)
        rows = self._rows
        self._counter.update(rows.reward, rows.first, rows.done & ~rows.faulted)
        return rows.timestep()

    def _note(self, faults: list[Fault]) -> None:
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
        raise UserError(
            f"`env` '{self.spec.name}' failed {self._num_faults} times, and `max_faults` is "
            f"{self._config.max_faults}. The last: {faults[-1].where}: {faults[-1].cause}{log}"
        )


class SerialVectorEnv(SlotVectorEnv):
    """Gymnasium environments stepped one after the other in the caller's thread.

    `factory` makes one environment, `spec` is its `gym_spec`. Slot i is environment
    `first_env_id + i`, which with `seed` decides all its episodes. `replayable` declares that
    reseeding and repeating the actions repeats an episode, and keeps the actions. Faults (see
    `Slot`) are appended to `fault_log`. Raises `UserError` where an environment can't be made,
    and from `step` and `reset` after more than `max_faults` faults.
    """

    placement = "stepped in the actor's thread"

    def _start(self) -> None:
        self._slots = Slots(self._config, self._rows, 0, self.num_envs)

    def close(self) -> None:
        """Close the environments; safe to call twice."""
        self._slots.close()

    def _run(self, command: str, payload: list[Any] | None = None) -> list[Any]:
        answers, faults = self._slots.run(command, payload)
        self._note(faults)
        return answers
