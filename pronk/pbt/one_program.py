"""A workplace where the whole population is one jitted fused program and members are in step.

Deterministic: killed at any moment and resumed, a population equals an uninterrupted one bit for
bit, journal included. What the journal holds beyond the last checkpoint is cut off and repeated.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pronk import envs
from pronk.envs.suite import check_slots
from pronk.errors import UserError
from pronk.pbt.controller import Change, Member, Report
from pronk.pbt.decide import Hyper, Score
from pronk.pbt.setup import GENERATIONS, Setup
from pronk.run.build import fused_shape
from pronk.run.devices import find_device
from pronk.run.evaluate import Tally
from pronk.run.setup import ACTOR_KEY, INIT_KEY, key_for
from pronk.run.train import MAX_SKIPPED
from pronk.runtime.fused import RunState
from pronk.runtime.population import Population, PopulationStats, evaluate_members
from pronk.storage.checkpoint import Checkpointer
from pronk.storage.files import write_json_atomically
from pronk.types import Array

# Rows (agent steps, and dummies between episodes) of all members per call of the program, which a
# signal cannot interrupt: on two CPU cores some tenths of a second of Catch with a small network,
# six seconds of Breakout with MinAtar's.
ROWS_PER_CALL = 1 << 17


@dataclass
class Counters:
    """What the host counts of a member; saved with each checkpoint."""

    steps: int = 0
    episodes: int = 0
    tally: dict[str, list[Any]] = field(default_factory=dict)  # of episodes since its last score
    calls: int = 0  # of the program, since it was last ready
    games: int = 0  # episodes since then
    skipped: int = 0  # the latest updates in a row without a finite gradient

    def add(self, tally: Tally, steps: int, updates: int, skipped: int) -> None:
        """Count one call of the program."""
        self.calls += 1
        self.skipped = skipped + (self.skipped if skipped == updates else 0)
        self.tally = Tally.from_json(self.tally, len(tally.count)).plus(tally).as_json()
        self.steps += steps
        self.episodes += sum(tally.count)
        self.games += sum(tally.count)


def check(setup: Setup) -> dict[str, int]:
    """The arguments of `fused.build`; raises UserError for a device that is missing, and for too
    few slots, before anything is written."""
    config = setup.plan.run
    if config.learner_device is not None:
        find_device("--learner-device", config.learner_device)
    shape = fused_shape(setup.plan, setup.agent)
    check_slots(setup.env, shape["num_envs"])
    return shape


def final_returns(setup: Setup) -> Array:
    """The mean return `[N]` of each member's last parameters, without learning
    (`runtime.population.evaluate_members`). Raises UserError where there is no checkpoint."""
    program = OneProgram(setup)
    if not program.load():
        raise UserError(f"'{setup.directory}' holds no checkpoint of a population.")
    keys = program.keys(ACTOR_KEY)
    returns = evaluate_members(setup.agent, program.jax_env, program.runs.learner, keys)
    tallies = [Tally(x.tolist(), (x**2).tolist(), (~np.isnan(x)).tolist()) for x in returns]
    scores = [Score.of(setup.spec, tally) for tally in tallies]
    return np.array([math.nan if score is None else score.mean for score in scores])


class OneProgram:
    """`controller.Workplace`: all members are trained, copied and saved together."""

    in_step = True

    def __init__(self, setup: Setup):
        self.setup = setup
        self._started, self._earlier = time.perf_counter(), 0.0
        config = setup.plan.run
        shape = check(setup)
        self.jax_env: Any = envs.jax_env_of(setup.env, setup.plan.env_args)
        per_update = shape["unroll"] * shape["num_envs"]
        # Independent of `--stop-after`, so that a pause changes nothing.
        per_call = max(1, min(ROWS_PER_CALL // setup.size, config.steps // GENERATIONS))
        if setup.ready_steps is not None:
            updates = max(1, round(setup.ready_steps / per_update))
            self._calls = math.ceil(updates / max(1, round(per_call / per_update)))
            updates = math.ceil(updates / self._calls)
        else:  # often enough to notice soon that a member has played its episodes
            self._calls = 0
            per_call = min(per_call, max(1, config.steps // 100))
            updates = max(1, per_call // per_update)
        self.population = Population(setup.agent, self.jax_env, shape, updates=updates)
        self._checkpointer = Checkpointer(
            setup.directory / "population", keep=config.keep_checkpoints
        )
        self._counters = [Counters() for _ in range(setup.size)]
        self._hyper = [setup.initial_hyper(i) for i in range(setup.size)]
        self.runs: RunState
        self._restored = False
        self._unsaved = False
        self._last_save = time.perf_counter()

    @property
    def wall_seconds(self) -> float:
        """Seconds of training so far."""
        return self._earlier + time.perf_counter() - self._started

    def keys(self, purpose: int) -> Array:
        """The members' keys for one purpose of a run."""
        seeds = [self.setup.member_seed(i) for i in range(self.setup.size)]
        return jnp.stack([key_for(seed, purpose) for seed in seeds])

    def load(self) -> int:
        """Restore the last checkpoint; the journal's size when it was saved, 0 without one."""
        loaded = self._checkpointer.load()
        if loaded is None:
            return 0
        for warning in loaded.warnings:
            self.setup.message(f"warning: {warning}")
        keys = self.keys(INIT_KEY), self.keys(ACTOR_KEY)
        begun = jax.eval_shape(self.population.begin, *keys, self._stacked_hyper())
        self.runs, self._restored = loaded.restore("population", begun), True
        self._counters = [Counters(**saved) for saved in loaded.meta["members"]]
        self._earlier = loaded.meta["wall_seconds"]
        return loaded.meta["journal"]

    def _stacked_hyper(self) -> dict[str, Array]:
        """The tuned hyperparameters, float32 `[N]` each."""
        names = self._hyper[0]
        return {name: np.array([x[name] for x in self._hyper], np.float32) for name in names}

    def begin(self, members: Sequence[Member]) -> list[int]:
        """Initialise all members, unless they were restored."""
        self._hyper = [member.hyper for member in members]
        if not self._restored:
            keys = self.keys(INIT_KEY), self.keys(ACTOR_KEY)
            self.runs = self.population.begin(*keys, self._stacked_hyper())
            self._unsaved = True
        device = self.setup.plan.run.learner_device
        if device is not None:
            self.runs = jax.device_put(self.runs, find_device("--learner-device", device))
        return [counters.steps for counters in self._counters]

    def advance(self, members: Sequence[Member]) -> list[Report] | None:
        """Call the program once."""
        if self._steps() >= self.setup.limit:
            return None
        before = self._updates()
        self.runs, stats = self.population.advance(self.runs)
        self._unsaved = True
        stats: PopulationStats = jax.device_get(stats)
        made = self._updates() - before
        for i, counters in enumerate(self._counters):
            tally = Tally(*(np.asarray(x)[i].tolist() for x in stats[:3]))
            counters.add(tally, int(stats.steps[i]), *made[:, i].tolist())
        final = self._steps() >= self.setup.plan.run.steps
        reports = []
        for i, counters in enumerate(self._counters):
            ready = final or self._is_ready(counters)
            if ready:
                counters.calls = counters.games = 0
            games = Tally.from_json(counters.tally, self.setup.spec.num_tasks)
            diverged = counters.skipped >= MAX_SKIPPED
            reports.append(
                Report(i, counters.steps, counters.episodes, games, ready, final, diverged)
            )
        return reports

    def _steps(self) -> int:
        return min(counters.steps for counters in self._counters)

    def _updates(self) -> Array:
        """Updates of each member, and how many of them were skipped, `[2, N]`."""
        return np.stack(jax.device_get((self.runs.learner.updates, self.runs.learner.skipped)))

    def _is_ready(self, counters: Counters) -> bool:
        if self._calls:
            return counters.calls >= self._calls
        wanted = self.setup.settings.ready_episodes
        return wanted is not None and counters.games >= wanted

    def copy(self, donor: Member, heir: Member, generation: int) -> tuple[Hyper, int]:
        """All decisions of a call are made before any is carried out: nothing to set aside."""
        del heir, generation
        return donor.hyper, self._counters[donor.member].steps

    def apply(self, changes: Sequence[Change]) -> None:
        """Copy within the program, and set the hyperparameters."""
        sources = np.arange(self.setup.size)
        for member, counted in changes:
            i = member.member
            if counted:
                self._counters[i].tally = {}
            if not member.ended and member.donor is not None:
                sources[i] = member.donor
            self._hyper[i] = member.hyper
        if not all(member.ended for member, _ in changes):
            self.runs = self.population.inherit(self.runs, sources, self._stacked_hyper())

    def save(self, journal: int) -> None:
        """Save all members if `--checkpoint-every` seconds have passed."""
        if time.perf_counter() - self._last_save >= self.setup.plan.run.checkpoint_every:
            self._save(journal)
            self._last_save = time.perf_counter()

    def _save(self, journal: int) -> None:
        meta = {
            "members": [dataclasses.asdict(counters) for counters in self._counters],
            "journal": journal,
            "wall_seconds": self.wall_seconds,
        }
        self._checkpointer.save(self._steps(), {"population": self.runs}, meta, block=True)
        self._unsaved = False

    def finish(self, journal: int, best: int | None) -> list[int]:
        """Save all members, and the best one as a run of its own."""
        if self._unsaved:
            self._save(journal)
        if best is not None:
            self._write_run(best)
        return [counters.steps for counters in self._counters]

    def _write_run(self, member: int) -> None:
        """Write a member as a run, which can be evaluated, exported and trained on."""
        plan = self.setup.member_plan(member, runtime="fused")
        directory, counters = plan.run_dir, self._counters[member]
        directory.mkdir(parents=True, exist_ok=True)
        write_json_atomically(directory / "config.json", plan.described())
        one: RunState = jax.tree.map(lambda x: x[member], jax.device_get(self.runs))
        empty: Any = ()
        trees = {
            "learner": one.learner,
            "behaviour": self.setup.agent.behaviour(one.learner),
            "fused": one._replace(learner=empty),
        }
        meta = {
            "agent_steps": counters.steps,
            "episodes": counters.episodes,
            "recent_returns": [],
            "wall_seconds": self.wall_seconds,
            "lag_sum": 0.0,
            "lag_count": 1,
        }
        saved = Checkpointer(directory / "checkpoints", keep=1)
        saved.save(counters.steps, trees, meta, block=True)

    def close(self) -> None:
        """Close the checkpoints."""
        self._checkpointer.close()
