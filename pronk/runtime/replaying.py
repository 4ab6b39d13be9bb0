"""Learning from replay: actors fill it, the learner draws from it, and says what is worth drawing.

Asynchronous, actors and learner each go at their own speed as far as the limiter lets them.
Synchronous (deterministic runs), they take turns. Where only a share of each batch is replayed, all
is as without replay, and what was drawn is beside what was just acted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pronk.errors import UserError
from pronk.replay import Limiter, Replay, SegmentLog
from pronk.runtime.actor import Actor, Unroll
from pronk.runtime.base import Update
from pronk.runtime.batcher import columns, concatenate, mixed
from pronk.runtime.learner import Learner, Prepared, agent_steps, only_acted
from pronk.runtime.local import LocalRuntime, OneLearner, SynchronousRuntime
from pronk.runtime.places.supervise import Closed, Supervised
from pronk.runtime.workers import Workers
from pronk.storage.checkpoint import Loaded
from pronk.types import Array, Batch, Mixed, PyTree, Replayed

POLL = 0.2  # seconds after which whoever waits looks whether the run has stopped


class Seen(NamedTuple):
    """What is left of an unroll that is in the replay."""

    steps: int
    unroll: Unroll


class Drawn(NamedTuple):
    """A batch on the learner's device, and whose priorities it will change."""

    batch: Prepared
    keys: Array


class Memory:
    """A replay with its limiter, the random numbers of its draws, and its log if it is saved."""

    def __init__(
        self,
        source: Replayed | Mixed,
        replay: Replay,
        log: SegmentLog | None,
        *,
        batch_size: int,
        seed: int,
    ):
        self._source, self.replay, self._log, self._batch_size = source, replay, log, batch_size
        self.limiter = Limiter(
            replay,
            samples_per_insert=getattr(source, "samples_per_insert", 1.0),
            minimum=getattr(source, "min_size", 1),
            batch_size=batch_size,
        )
        self._rng = np.random.default_rng(seed)

    def insert(self, source: int, unroll: Unroll) -> Seen:
        """Take up what actor number `source` did."""
        self.replay.add(source, unroll.trajectory)
        self.limiter.changed()
        steps = agent_steps(unroll.trajectory)
        return Seen(steps, unroll._replace(trajectory=None))  # type: ignore[arg-type]

    def forget(self, lives: list[int]) -> None:
        """Drop what actors that are no more had begun."""
        while lives:
            self.replay.forget(lives.pop())

    def mix(self, parts: list[Batch]) -> list[Batch]:
        """Batches with what is replayed beside them; while there is nothing, they themselves."""
        assert isinstance(self._source, Mixed)
        share = self._source.fraction
        found = []
        for part in parts:
            fresh = part.trajectory
            width = fresh.version.shape[0]
            count = round(width * share / (1.0 - share))
            if len(self.replay):
                drawn = self.replay.sample(count, self._rng)[0].trajectory
            else:
                again = [fresh] * (1 + count // width)
                drawn = columns(concatenate(again), 0, count)
            found.append(mixed(fresh, drawn))
        return found

    def draw(self, learner: Learner) -> Drawn:
        """A batch for the learner."""
        batch, keys = self.replay.sample(self._batch_size, self._rng)
        self.limiter.changed()
        return Drawn(learner.prepare([batch]), keys)

    def learn(self, learner: Learner, drawn: Drawn, seen: Sequence[Seen]) -> Update:
        """An update, whose feedback are new priorities."""
        update = learner.update(drawn.batch, [s.unroll for s in seen])
        self.replay.update(drawn.keys, np.asarray(update.feedback.priorities))
        return update._replace(steps=sum(s.steps for s in seen))

    def state(self) -> dict[str, PyTree]:
        """What to save, having written what is new to the log."""
        if self._log is None:
            return {}
        return {"replay": self._log.save() | {"rng": _rng_state(self._rng)}}

    def restore(self, loaded: Loaded, *, episodes: bool) -> list[str]:
        """Be as saved, with or without the running episodes; says what could not be."""
        tree = loaded.tree("replay")
        if tree is None or self._log is None:
            return ["the replay is filled anew, because it was not saved."]
        try:
            self._log.restore(tree, episodes=episodes)
        except UserError as error:
            return [f"warning: the replay is filled anew, because {error}."]
        _set_rng_state(self._rng, tree["rng"])
        return []

    def close(self) -> None:
        """Write no more to the log."""
        if self._log is not None:
            self._log.close()


def _rng_state(rng: np.random.Generator) -> Array:
    """The state of a PCG64, uint64 `[6]`."""
    state: Any = rng.bit_generator.state
    numbers = [
        state["state"][k] >> shift & (1 << 64) - 1 for k in ("state", "inc") for shift in (64, 0)
    ]
    return np.array([*numbers, state["has_uint32"], state["uinteger"]], np.uint64)


def _set_rng_state(rng: np.random.Generator, saved: Array) -> None:
    high, low, high_inc, low_inc, has_uint32, uinteger = (int(x) for x in saved)
    rng.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": high << 64 | low, "inc": high_inc << 64 | low_inc},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }


def only_seen(seen: Sequence[Seen], warnings: Sequence[str] = ()) -> Update:
    """What is reported where nothing was learnt."""
    return only_acted(sum(s.steps for s in seen), [s.unroll for s in seen], warnings)


class ReplayRuntime(OneLearner):
    """Actors in threads around a replay, from which one learner learns."""

    def __init__(
        self,
        learner: Learner,
        actors: Sequence[Supervised],
        memory: Memory,
        *,
        actor_cores: int | None = None,
    ):
        self.learner, self.memory = learner, memory
        self._closing = threading.Event()
        self._begun = threading.Event()  # by the first update: until then, replay can be restored
        # What waits for the learner here is small, and no reason for actors to wait.
        super().__init__(actors, self._insert, actor_cores, queue_size=0)
        # One more thread, so that the next batch is ready when an update is done.
        self._batches = Workers([self._draw], "batcher")

    def _insert(self, actor: Supervised) -> Seen:
        self._begun.wait()
        start = time.perf_counter()
        self._wait_until(self.memory.limiter.may_insert)
        self._waits.queued(time.perf_counter() - start)
        unroll = actor.unroll_newest(lambda: self.learner.latest)
        self._waits.acted(unroll)
        self.memory.forget(actor.ended)
        # What one life began, no other continues.
        return self.memory.insert(actor.life, unroll)

    def _draw(self) -> Drawn:
        self._begun.wait()
        self._wait_until(self.memory.limiter.may_sample)
        return self.memory.draw(self.learner)

    def _wait_until(self, allowed: Callable[[], bool]) -> None:
        while not self._closing.is_set():
            if allowed():
                return
            self.memory.limiter.wait(POLL)
        raise Closed

    def update(self) -> Update:
        """Learn from the next batch; while there is none, what actors did is reported."""
        self._begun.set()
        drawn = self._next(self._batches, POLL)
        seen, warnings = self._workers.get_all(), self._warnings()
        if drawn is None:
            return only_seen(seen, warnings)
        update = self.memory.learn(self.learner, drawn, seen)
        self.learner.publish()
        return update._replace(warnings=[*warnings, *update.warnings])

    def state(self) -> dict[str, PyTree]:
        """The replay; actors are in the middle of things."""
        return self.memory.state()

    def restore(self, loaded: Loaded) -> list[str]:
        """Take up the replay; actors begin with the first update, in new episodes."""
        return [*super().restore(loaded), *self.memory.restore(loaded, episodes=False)]

    def close(self) -> None:
        """Stop the actors and release their environments."""
        self._closing.set()
        self._begun.set()
        super().close()
        self.memory.close()


class MixedRuntime(LocalRuntime):
    """Actors in threads around one learner, which learns from what they did, and from replay."""

    def __init__(
        self,
        learner: Learner,
        actors: Sequence[Supervised],
        memory: Memory,
        *,
        batch_size: int,
        actor_cores: int | None = None,
    ):
        self.memory = memory
        self._begun = threading.Event()  # by the first update: until then, replay can be restored
        super().__init__(learner, actors, batch_size=batch_size, actor_cores=actor_cores)

    def _unroll(self, actor: Supervised) -> Unroll:
        self._begun.wait()
        unroll = super()._unroll(actor)
        self.memory.forget(actor.ended)
        self.memory.replay.add(actor.life, unroll.trajectory)
        return unroll

    def _take(self, parts: int) -> list[Batch]:
        return self.memory.mix(super()._take(parts))

    def update(self) -> Update:
        """Learn from the next batch."""
        self._begun.set()
        return super().update()

    def state(self) -> dict[str, PyTree]:
        """The replay; actors are in the middle of things."""
        return self.memory.state()

    def restore(self, loaded: Loaded) -> list[str]:
        """Take up the replay; actors begin with the first update, in new episodes."""
        return [*super().restore(loaded), *self.memory.restore(loaded, episodes=False)]

    def close(self) -> None:
        """Stop the actors and release their environments."""
        self._begun.set()
        super().close()
        self.memory.close()


class _SynchronousWithMemory(SynchronousRuntime):
    """Rounds, and a replay that is saved with them."""

    def __init__(self, learner: Learner, actors: Sequence[Actor], memory: Memory, **options: Any):
        super().__init__(learner, actors, **options)
        self._memory = memory

    def state(self) -> dict[str, PyTree]:
        """The actors', their environments', and the replay with the running episodes."""
        return super().state() | self._memory.state()

    def restore(self, loaded: Loaded) -> list[str]:
        """Take up all of it."""
        told = super().restore(loaded)
        # Episodes go on only where the environments do.
        return told + self._memory.restore(loaded, episodes=not told)

    def close(self) -> None:
        """Release the environments."""
        super().close()
        self._memory.close()


class SynchronousMixedRuntime(_SynchronousWithMemory):
    """Rounds of which all is learnt from, with what is replayed beside it."""

    def unrolls(self) -> Iterator[Unroll]:
        """One of each actor, all with the newest parameters."""
        for source, unroll in enumerate(super().unrolls()):
            self._memory.replay.add(source, unroll.trajectory)
            yield unroll

    def _take(self, parts: int) -> list[Batch]:
        return self._memory.mix(super()._take(parts))


class SynchronousReplayRuntime(_SynchronousWithMemory):
    """Actors and learner in turns: the learner whenever it may draw, else each actor once."""

    def __init__(self, learner: Learner, actors: Sequence[Actor], memory: Memory):
        super().__init__(learner, actors, memory, batch_size=1, in_turns=True)

    def update(self) -> Update:
        """Learn from a batch, or act where none may be drawn."""
        with self.undrained():
            if self._memory.limiter.may_sample():
                drawn = self._memory.draw(self.learner)
                return self._memory.learn(self.learner, drawn, [])
            seen = []
            for source, unroll in enumerate(self.unrolls()):
                seen.append(self._memory.insert(source, unroll))
            return only_seen(seen)
