"""The loop of rounds: all actors unroll with the same behaviour, then the learner learns.

Batched A2C, and every deterministic run. Between rounds nothing is in flight, so that a run can be
saved there and continue exactly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import jax

from pronk.runtime.actor import Actor, Unroll
from pronk.runtime.api import Update, report
from pronk.runtime.columns import agent_steps
from pronk.runtime.cpus import pin_threads
from pronk.runtime.learner import Learner
from pronk.runtime.source import Source
from pronk.runtime.threads import OwnThreads, WaitTimes
from pronk.storage.checkpoint import Loaded
from pronk.types import LearnerState, PyTree


class RoundsLoop:
    """Actors that wait for the learner, a source, and one learner.

    in_turns: the actors act one after the other, in a fixed order, for environments that share
    something random, and all that they keep is saved; otherwise each has a thread.
    """

    def __init__(
        self,
        learner: Learner,
        actors: Sequence[Actor],
        source: Source,
        *,
        in_turns: bool = False,
        actor_cores: int | None = None,
    ):
        self.learner, self._source = learner, source
        self._actors, self._in_turns = actors, in_turns
        self._waits = WaitTimes(len(actors))
        self._updating = False  # also after an update that was interrupted or failed
        self._threads = None
        if not in_turns:
            self._threads = OwnThreads(len(actors), "actor", pin_threads(actor_cores))

    @property
    def drained(self) -> bool:
        """Whether everything acted has been learnt from."""
        return self._source.drained and not self._updating

    def update(self) -> Update:
        """Learn from the next batch. If there is none, all actors unroll first; from a replay,
        only the next call learns."""
        with self._undrained():
            unrolls: list[Unroll] = []
            steps = 0
            if not self._source.ready():
                with self._waits.starved():
                    for i, unroll in enumerate(self._round()):
                        steps += agent_steps(unroll.trajectory)
                        self._source.add(i, unroll.trajectory)
                        unrolls.append(unroll)
                if self._source.drained or not self._source.ready():
                    return report(unrolls, steps=steps)
            with self._waits.queued():
                return self._learn(unrolls, steps)

    def _learn(self, unrolls: list[Unroll], steps: int) -> Update:
        taken = self._source.take(self.learner.parts)
        batch = self.learner.prepare(taken.parts)
        lag = self.learner.updates - batch.version
        learnt = self.learner.update(batch)
        jax.block_until_ready(learnt.metrics)
        self._source.feedback(taken.keys, learnt.feedback)
        if self.learner.policy_lag:  # otherwise, when a round begins
            self.learner.publish()
        return report(unrolls, steps=steps, metrics=learnt.metrics, lag=lag, batch=batch.parts)

    @contextlib.contextmanager
    def _undrained(self) -> Iterator[None]:
        """Within this context, and after an exception in it, `drained` is False."""
        self._updating = True
        yield
        self._updating = False

    def _round(self) -> Iterator[Unroll]:
        """One unroll of each actor, all with the newest behaviour."""
        self.learner.publish()
        version, behaviour = self.learner.latest

        def unroll(actor: Actor) -> Unroll:
            return actor.unroll(behaviour, version)

        for result in (map if self._threads is None else self._threads.map)(unroll, self._actors):
            self._waits.acted(result)
            yield result

    def bound_by(self) -> str:
        """Which part took longest: learner, environments or inference."""
        return self._waits.bound_by()

    def waits(self) -> dict[str, float]:
        """Seconds the learner and, on average, an actor spent waiting, stepping, and inferring."""
        return self._waits.as_dict()

    def faults(self) -> dict[str, int]:
        """None: what fails here ends the run."""
        return {}

    def state(self) -> dict[str, PyTree]:
        """The actors' states, their environments' where these can be saved, and the source's."""
        trees: dict[str, PyTree] = {}
        for i, actor in enumerate(self._actors):
            own, env = actor.state(private=self._in_turns)
            trees[f"actor{i}"] = own
            if env is not None:
                trees[f"env{i}"] = env
        if self.learner.policy_lag:
            trees["past"] = self.learner.past()
        return trees | self._source.state()

    @property
    def learner_state(self) -> LearnerState:
        """The newest state of the learner."""
        return self.learner.state

    def restore(self, loaded: Loaded) -> list[str]:
        """Continue with the actors and, where they could be saved, their environments."""
        messages: list[str] = []
        if self.learner.policy_lag:
            self.learner.restore_past(loaded)
        for i in range(len(self._actors)):
            if self._threads is None:
                messages += self._restore_actor(i, loaded)
            else:
                messages += self._threads.call(i, self._restore_actor, i, loaded)
        # A replay's episodes continue only where the environments do.
        return messages + self._source.restore(loaded, episodes=not messages)

    def _restore_actor(self, i: int, loaded: Loaded) -> list[str]:
        actor, env = self._actors[i], loaded.tree(f"env{i}")
        if env is None:
            why = "they can be neither saved nor replayed"
            if not self._in_turns:
                why = "only runs with --deterministic save them"
            return [
                f"actor {i}: new episodes start, because its environments were not saved: {why}."
            ]
        _, behaviour = self.learner.latest
        template = actor.template(behaviour, private=self._in_turns)
        actor.restore(loaded.restore(f"actor{i}", template), env)
        return actor.env.warnings()

    def close(self) -> None:
        """Let the actors finish and release their environments."""
        if self._threads is not None:
            list(self._threads.map(lambda actor: actor.close(), self._actors))
            self._threads.close()
        for actor in self._actors:
            actor.close()
        self.learner.close()
        self._source.close()
