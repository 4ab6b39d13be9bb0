"""What training needs of a runtime, whichever it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from jax.sharding import NamedSharding

from pronk.storage.checkpoint import Loaded
from pronk.types import Array, Batch, Device, Episode, Feedback, LearnerState, PyTree


class Devices(NamedTuple):
    """Where the network acts and where it learns; None is where JAX would put it.

    Several devices that share each batch are a replicated `NamedSharding` over a mesh of one axis,
    `data`.
    """

    actor: Device | None = None
    learner: Device | NamedSharding | None = None


ANYWHERE = Devices()


class Update(NamedTuple):
    """What one call of `Runtime.update` did."""

    metrics: dict[str, Array]  # scalars, still on the device; {} if nothing was learnt
    steps: int  # agent steps learnt from; with replay, those that were taken
    episodes: list[Episode]  # games that ended meanwhile
    policy_lag: float  # mean, in updates
    warnings: Sequence[str] = ()  # what a person should be told
    feedback: Feedback = Feedback()  # for the source of the batch
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
        """Seconds so far, by what they were spent on; empty where nobody waits for anybody."""
        ...

    def faults(self) -> dict[str, int]:
        """What was lost so far without ending the run, counted; empty where nothing can be."""
        ...

    def state(self) -> dict[str, PyTree]:
        """What to save beside the learner's state, by name."""
        ...

    def restore(self, loaded: Loaded) -> list[str]:
        """Take up `state()` from a checkpoint; returns what a person should be told."""
        ...

    def close(self) -> None: ...
