"""What training needs of a runtime, whichever it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jax.sharding import NamedSharding

from pronk.runtime.actor import Unroll
from pronk.storage.checkpoint import Loaded
from pronk.types import Array, Batch, Device, Episode, LearnerState, PyTree


class Devices(NamedTuple):
    """Where the network acts and where it learns; None is JAX's default device.

    Several devices that share each batch are a replicated `NamedSharding` over a mesh of one axis,
    `data`.
    """

    actor: Device | None = None
    learner: Device | NamedSharding | None = None


DEFAULT_DEVICES = Devices()


class Update(NamedTuple):
    """The report of one call of `Runtime.update`."""

    metrics: dict[str, Array]  # scalars, still on the device; {} if nothing was learnt
    steps: int  # agent steps, without dummies
    episodes: list[Episode]  # that ended meanwhile
    policy_lag: float  # mean over the batch, in updates; NaN if nothing was learnt
    warnings: Sequence[str] = ()
    batch: Sequence[Batch] = ()  # what was learnt from, in parts, where it can be had


class Runtime(Protocol):
    """Produces experience and learns from it, one `update` at a time."""

    @property
    def learner_state(self) -> LearnerState: ...

    @property
    def drained(self) -> bool:
        """Whether a checkpoint taken now would lose nothing that a resumed run relies on."""
        ...

    def update(self) -> Update: ...

    def bound_by(self) -> str:
        """Which part of the run the others wait for."""
        ...

    def waits(self) -> dict[str, float]:
        """Seconds so far, by what they were spent on; empty where nothing waits."""
        ...

    def faults(self) -> dict[str, int]:
        """Counts of what was lost without ending the run; empty where nothing can be."""
        ...

    def state(self) -> dict[str, PyTree]:
        """What to save beside the learner's state, by name."""
        ...

    def restore(self, loaded: Loaded) -> list[str]:
        """Continue from a checkpoint's `state()`; returns messages for the log."""
        ...

    def close(self) -> None: ...


def report(
    unrolls: Sequence[Unroll],
    *,
    steps: int,
    metrics: dict[str, Array] | None = None,
    lag: Array | float = np.nan,
    warnings: Sequence[str] = (),
    batch: Sequence[Batch] = (),
) -> Update:
    """An update with the episodes and warnings of `unrolls`; lag: of the batch's columns, `[B]`."""
    return Update(
        metrics or {},
        steps=steps,
        episodes=[episode for unroll in unrolls for episode in unroll.episodes],
        policy_lag=float(np.mean(lag)),
        warnings=[*warnings, *(warning for unroll in unrolls for warning in unroll.warnings)],
        batch=batch,
    )
