"""The whole population in one jitted fused program, all members in step.

Deterministic: killed at any moment and resumed it equals the population that never was, bit for
bit, its journal included. What the journal holds beyond the last checkpoint is cut off and done
again.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pronk import envs
from pronk.envs.suite import check_slots
from pronk.errors import UserError
from pronk.pbt.common import (
    GENERATIONS,
    Setup,
    all_diverged,
    end_event,
    ready_event,
    score_in,
    start_event,
    told,
)
from pronk.pbt.policy import Hyper, Score, has_diverged
from pronk.run.build import fused_shape
from pronk.run.devices import find_device
from pronk.run.evaluate import Tally
from pronk.run.setup import ACTOR_KEY, INIT_KEY, key_for
from pronk.run.train import MAX_SKIPPED
from pronk.runtime.fused import RunState
from pronk.runtime.population import Population, Told, played
from pronk.storage.checkpoint import Checkpointer
from pronk.storage.files import write_json_atomically
from pronk.storage.journal import Journal
from pronk.types import Array, EnvSpec

# Rows (agent steps, and dummies between episodes) of all members together per call of the program,
# within which no interruption is heard: on two cores some tenths of a second of Catch with a small
# network, six of Breakout with MinAtar's.
ROWS_PER_CALL = 1 << 17


@dataclass
class Member:
    """What the host knows of a member; saved with each checkpoint."""

    member: int
    hyper: Hyper
    generation: int = 0
    steps: int = 0
    episodes: int = 0
    # Of the games between the last two times that it was scored, as `told` tells it.
    score: float | None = None
    error: float | None = None
    tally: dict[str, list[Any]] = field(default_factory=dict)  # of the games since, by task
    # Since it was last ready:
    calls: int = 0
    games: int = 0
    skipped: int = 0  # the latest updates, of which no gradient was finite
    diverged: bool = False  # when it was last ready

    def add(self, tally: Tally, steps: int, updates: int, skipped: int) -> None:
        """What it did in a call."""
        self.calls += 1
        self.skipped = skipped + (self.skipped if skipped == updates else 0)
        self.tally = Tally.from_json(self.tally, len(tally.count)).plus(tally).as_json()
        self.steps += steps
        self.episodes += sum(tally.count)
        self.games += sum(tally.count)

    def rate(self, spec: EnvSpec) -> None:
        """It is ready: score it by the games since last time, if one of each task has ended."""
        self.diverged = self.skipped >= MAX_SKIPPED
        found = Score.of(spec, Tally.from_json(self.tally, spec.num_tasks))
        if found is not None or self.diverged:
            self.score, self.error = told(None if self.diverged else found).values()
            self.tally = {}
        self.calls = self.games = 0

    def rated(self) -> Score | None:
        """Its latest score; −∞ where it has diverged."""
        if self.diverged:
            return Score(-math.inf)
        return score_in({"score": self.score, "error": self.error})


def check(setup: Setup) -> dict[str, int]:
    """The arguments of `fused.build`; raises UserError for a device that is not there, and for too
    few slots, before anything is written."""
    config = setup.plan.run
    if config.learner_device is not None:
        find_device("--learner-device", config.learner_device)
    shape = fused_shape(setup.plan, setup.agent)
    check_slots(setup.env, shape["num_envs"])
    return shape


def run(setup: Setup, journal: Journal, stopped: threading.Event) -> dict[str, Any]:
    """Train until the end, a pause or a signal; leaves a checkpoint, a summary, and the best member
    as a run of its own."""
    return _Vmapped(setup, journal).go(stopped)


def final_returns(setup: Setup) -> Array:
    """What each member's last parameters are worth, `[N]`: the mean return of games in which
    nothing is learnt (`runtime.population.played`). Raises UserError where there is no checkpoint.
    """
    population = _Vmapped(setup, None)
    if not population.load():
        raise UserError(f"'{setup.directory}' holds no checkpoint of a population.")
    keys = population.keys(ACTOR_KEY)
    found = played(setup.agent, population.jax_env, population.runs.learner, keys)  # [N, tasks]
    tallies = [Tally(of.tolist(), (of**2).tolist(), (~np.isnan(of)).tolist()) for of in found]
    scores = [Score.of(setup.spec, tally) for tally in tallies]
    return np.array([math.nan if score is None else score.mean for score in scores])


class _Vmapped:
    """One life of a population."""

    def __init__(self, setup: Setup, journal: Journal | None):
        self.setup, self.journal = setup, journal
        self.started = time.perf_counter()
        self.wall_seconds = 0.0  # of earlier lives
        config = setup.plan.run
        shape = check(setup)
        self.jax_env: Any = envs.jax_env_of(setup.env, setup.plan.env_args)
        per_update = shape["unroll"] * shape["num_envs"]
        # The same whenever it is to pause, so that pausing changes nothing.
        per_call = max(1, min(ROWS_PER_CALL // setup.size, config.steps // GENERATIONS))
        if setup.ready_steps is not None:
            updates = max(1, round(setup.ready_steps / per_update))
            self.calls = math.ceil(updates / max(1, round(per_call / per_update)))  # per generation
            updates = math.ceil(updates / self.calls)
        else:  # often enough for whoever has played enough
            self.calls = 0
            per_call = min(per_call, max(1, config.steps // 100))
            updates = max(1, per_call // per_update)
        self.population = Population(setup.agent, self.jax_env, shape, updates=updates)
        self.checkpointer = Checkpointer(
            setup.directory / "population", keep=config.keep_checkpoints
        )
        self.members = [Member(i, setup.first(i)) for i in range(setup.size)]
        self.finished = False
        self.runs: RunState

    def keys(self, purpose: int) -> Array:
        """The members' keys for one purpose of a run."""
        seeds = [self.setup.seed_of(i) for i in range(self.setup.size)]
        return jnp.stack([key_for(seed, purpose) for seed in seeds])

    def hyper(self) -> dict[str, Array]:
        """The hyperparameters that are adapted, `[N]` each."""
        return {
            name: np.array([member.hyper[name] for member in self.members], np.float32)
            for name in self.members[0].hyper
        }

    def load(self) -> bool:
        """Go back to the last checkpoint; whether there was one."""
        loaded = self.checkpointer.load()
        if loaded is None:
            return False
        for warning in loaded.warnings:
            self.setup.tell(f"warning: {warning}")
        begun = jax.eval_shape(
            self.population.begin, self.keys(INIT_KEY), self.keys(ACTOR_KEY), self.hyper()
        )
        self.runs = loaded.restore("population", begun)
        self.members = [Member(**saved) for saved in loaded.meta["members"]]
        self.finished = loaded.meta["finished"]
        self.wall_seconds = loaded.meta["wall_seconds"]
        if self.journal is not None:
            self.journal.truncate(loaded.meta["journal"])
        return True

    def go(self, stopped: threading.Event) -> dict[str, Any]:
        """Until the end, a pause or a signal."""
        setup = self.setup
        assert self.journal is not None
        if self.load():
            if self.finished:
                setup.tell(f"already trained for {setup.plan.run.steps:,} steps: {setup.directory}")
                self._write_best()  # what was killed between that and its end has not
                return self._summary("finished")
            setup.tell(f"resumed at {self._steps():,} steps each")
            self._place()
        else:
            self.journal.truncate(0)
            self.runs = self.population.begin(
                self.keys(INIT_KEY), self.keys(ACTOR_KEY), self.hyper()
            )
            self._place()
            seeds = [setup.seed_of(m.member) for m in self.members]
            starts = zip(self.members, seeds, strict=True)
            self.journal.append(*(start_event(m.member, seed, m.hyper) for m, seed in starts))
        last_save = time.perf_counter()
        while self._steps() < setup.limit and not stopped.is_set():
            self._advance()
            if time.perf_counter() - last_save >= setup.plan.run.checkpoint_every:
                self._save()
                last_save = time.perf_counter()
        self.finished = self._steps() >= setup.plan.run.steps
        if self.finished:
            self._end()
        self._save()
        self._write_best()
        self.checkpointer.close()
        if self.finished:
            return self._summary("finished")
        return self._summary("interrupted" if stopped.is_set() else "paused")

    def _place(self) -> None:
        device = self.setup.plan.run.learner_device
        if device is not None:
            self.runs = jax.device_put(self.runs, find_device("--learner-device", device))

    def _steps(self) -> int:
        return min(member.steps for member in self.members)

    def _advance(self) -> None:
        """One call of the program, and what is to be decided after it."""
        before = self._updates()
        self.runs, outcome = self.population.advance(self.runs)
        outcome: Told = jax.device_get(outcome)
        made = self._updates() - before
        for member in self.members:
            i = member.member
            games = Tally(*(np.asarray(x)[i].tolist() for x in outcome[:3]))
            member.add(games, int(outcome.steps[i]), *made[:, i].tolist())
        if self._steps() < self.setup.plan.run.steps:  # otherwise nobody would learn from it
            self._evolve([m for m in self.members if self._is_ready(m)])

    def _updates(self) -> Array:
        """Of each member, and how many of these were skipped, `[2, N]`."""
        return np.stack(jax.device_get((self.runs.learner.updates, self.runs.learner.skipped)))

    def _is_ready(self, member: Member) -> bool:
        if self.calls:
            return member.calls >= self.calls
        wanted = self.setup.settings.ready_episodes
        return wanted is not None and member.games >= wanted

    def _evolve(self, ready: list[Member]) -> None:
        """Decide for those that are ready, all from what everyone is now; then copy and perturb."""
        if not ready:
            return
        setup = self.setup
        assert self.journal is not None
        for member in ready:
            member.rate(self.setup.spec)
            member.generation += 1
        scores = [member.rated() for member in self.members]
        if all(map(has_diverged, scores)):
            raise all_diverged()
        before = [dict(member.hyper) for member in self.members]
        sources = np.arange(setup.size)
        events = []
        for member in ready:
            i = member.member
            decision = setup.decide(i, member.generation, member.steps, scores, lambda m: before[m])
            donor = None if decision.donor is None else self.members[decision.donor]
            if donor is not None:
                sources[i] = donor.member
            member.hyper = decision.hyper
            events.append(
                ready_event(
                    i,
                    member.generation,
                    steps=member.steps,
                    episodes=member.episodes,
                    score=member.rated(),
                    decision=decision,
                    donor_steps=None if donor is None else donor.steps,
                    before=before[i],
                )
            )
        self.runs = self.population.inherit(self.runs, sources, self.hyper())
        self.journal.append(*events)
        copies = sum(event["donor"] is not None for event in events)
        setup.progress([dataclasses.asdict(m) for m in self.members], copies)

    def _end(self) -> None:
        assert self.journal is not None
        for member in self.members:
            member.rate(self.setup.spec)
        self.journal.append(
            *(
                end_event(
                    m.member, steps=m.steps, episodes=m.episodes, score=m.rated(), hyper=m.hyper
                )
                for m in self.members
            )
        )

    def _wall(self) -> float:
        return self.wall_seconds + time.perf_counter() - self.started

    def _save(self) -> None:
        assert self.journal is not None
        meta = {
            "members": [dataclasses.asdict(member) for member in self.members],
            "journal": self.journal.size,
            "finished": self.finished,
            "wall_seconds": self._wall(),
        }
        self.checkpointer.save(self._steps(), {"population": self.runs}, meta, block=True)

    def _write_best(self) -> None:
        """The best member as a run of its own, which can be evaluated, exported, trained on."""
        scored = [m for m in self.members if m.score is not None]
        if not scored:
            return
        best = max(scored, key=lambda m: m.score or 0.0)
        plan = self.setup.member_plan(best.member, runtime="fused")
        directory = plan.run_dir
        directory.mkdir(parents=True, exist_ok=True)
        write_json_atomically(directory / "config.json", plan.as_json())
        one: RunState = jax.tree.map(lambda x: x[best.member], jax.device_get(self.runs))
        nothing: Any = ()
        behaviour = self.setup.agent.behaviour(one.learner)
        trees = {
            "learner": one.learner,
            "behaviour": behaviour,
            "fused": one._replace(learner=nothing),
        }
        meta = {
            "agent_steps": best.steps,
            "episodes": best.episodes,
            "recent_returns": [],
            "wall_seconds": self._wall(),
            "lag_sum": 0.0,
            "lag_count": 1,
        }
        saved = Checkpointer(directory / "checkpoints", keep=1)
        saved.save(best.steps, trees, meta, block=True)

    def _summary(self, status: str) -> dict[str, Any]:
        members = [dataclasses.asdict(member) for member in self.members]
        return self.setup.summary(status, members, self._wall())
