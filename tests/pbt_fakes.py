"""Populations that train nothing: for tests of who copies whom, and of what is on disk when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pronk import pbt
from pronk.config.compatibility import check
from pronk.config.pbt import PBTConfig
from pronk.config.spec import Plan
from pronk.pbt import one_program
from pronk.pbt.controller import Change, Member, Report
from pronk.pbt.decide import Hyper
from pronk.pbt.member_run import Inheritance
from pronk.pbt.one_program import OneProgram
from pronk.run.evaluate import Tally
from pronk.run.resolve import resolve
from pronk.runtime.fused import RunState
from pronk.runtime.population import PopulationStats
from pronk.storage.checkpoint import Checkpointer
from pronk.storage.journal import Journal, read_journal
from pronk.types import Agent, LearnerState

TINY: dict[str, Any] = {
    "envs_per_actor": 4,
    "batch_size": 4,
    "unroll": 5,
    "hidden_sizes": (8,),
    "quiet": True,
}
FLAGS = ["--envs-per-actor", "4", "--batch-size", "4", "--unroll", "5", "--hidden-sizes", "8"]
TUNE = ("learning_rate=1e-4:1e-1", "entropy_cost=1e-4:1e-2")


class Killed(BaseException):
    """Stands for `kill -9`: what is on disk at that moment is all that is left."""


def plan_in(directory: Path, steps: int = 2000, **settings: Any) -> Plan:
    return resolve(
        "impala", "pronk/Catch-v0", run_dir=directory, steps=steps,
        **{"env_args": {"rows": 4}, **TINY, **settings},
    )  # fmt: skip


def settings(**changes: Any) -> PBTConfig:
    """With `copy_sigmas` 0, because scores after so few steps are noise, and copies are wanted."""
    return PBTConfig(
        **{"population": 4, "tune": TUNE, "ready_steps": 400, "copy_sigmas": 0.0, **changes}
    )


class FakeWorkplace:
    """`controller.Workplace`: reports by a script, in memory."""

    wall_seconds = 1.0

    def __init__(self, *script: Sequence[Report], in_step: bool = False):
        self.script, self.in_step = list(script), in_step
        self.copies: list[tuple[int, int, int]] = []  # donor, heir, generation
        self.changes: list[Change] = []

    def load(self) -> None:
        return None

    def begin(self, members: Sequence[Member]) -> list[int]:
        return [member.steps for member in members]

    def advance(self, members: Sequence[Member]) -> list[Report] | None:
        return list(self.script.pop(0)) if self.script else None

    def copy(self, donor: Member, heir: Member, generation: int) -> tuple[Hyper, int]:
        self.copies.append((donor.member, heir.member, generation))
        return donor.hyper, donor.steps

    def apply(self, changes: Sequence[Change]) -> None:
        self.changes += changes

    def save(self, journal: int) -> None:
        pass

    def finish(self, journal: int, best: int | None) -> list[int]:
        return [0] * 4

    def close(self) -> None:
        pass


class StubPopulation:
    """In the place of `runtime.population.Population`: what a member has learnt grows with its
    learning rate, and is the return of its episodes of four steps. A learning rate above 5 gives
    no finite gradient. A fifth of the rows are dummies."""

    def __init__(self, agent: Agent, env: Any, shape: dict[str, int], *, updates: int):
        self.updates = updates
        self.steps = updates * shape["unroll"] * shape["num_envs"] * 4 // 5

    def begin(self, init_key: Any, act_key: Any, hyper: dict[str, Any]) -> RunState:
        size = len(hyper["learning_rate"])
        zeros = jnp.zeros(size, jnp.int32)
        hyper = {name: jnp.asarray(value) for name, value in hyper.items()}
        learner = LearnerState(
            jnp.zeros(size), (), hyper, zeros, zeros.astype(jnp.uint32), zeros, init_key
        )
        empty: Any = ()
        return RunState(learner, empty, empty, empty, act_key, zeros)

    def advance(self, runs: RunState) -> tuple[RunState, PopulationStats]:
        learner = runs.learner
        finite = learner.hyper["learning_rate"] < 5
        learner = learner._replace(
            params=jnp.where(finite, learner.params + learner.hyper["learning_rate"], 0.0),
            updates=learner.updates + self.updates,
            skipped=learner.skipped + jnp.where(finite, 0, self.updates),
        )
        count = jnp.full(learner.updates.shape, self.steps // 4)[:, None]
        mean = learner.params[:, None]
        stats = PopulationStats(
            mean * count, (mean**2 + 0.01) * count, count, jnp.full(count.shape[0], self.steps)
        )
        return runs._replace(learner=learner), stats

    def inherit(self, runs: RunState, sources: Any, hyper: dict[str, Any]) -> RunState:
        learner = runs.learner
        hyper = learner.hyper | {name: jnp.asarray(value) for name, value in hyper.items()}
        return runs._replace(learner=learner._replace(params=learner.params[sources], hyper=hyper))


def use_stub(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(one_program, "Population", StubPopulation)


class FakeLauncher:
    """In the place of `Launcher`: runs end at once, with a checkpoint like training's. Those
    in `failing`, by member and how many runs it had, end with the exit status given there."""

    def __init__(self) -> None:
        self.started: Counter[int] = Counter()
        self.failing: dict[tuple[int, int], int] = {}
        self.unsaved: set[tuple[int, int]] = set()  # runs without an update
        self.episode_steps = 4

    def start(self, plan: Plan, env: Any, inheritance: Inheritance) -> Any:
        assert inheritance.donor is None or inheritance.donor.is_absolute()
        check(plan, jax_env=True)  # as training would
        member = int(plan.run_dir.name)
        self.started[member] += 1
        run = member, self.started[member]
        if run not in self.unsaved:
            self._train(plan, inheritance)
        status = self.failing.get(run, 0)
        return SimpleNamespace(
            finished=True, error_text="it fell", stop=lambda: None, wait=lambda: status
        )

    def _train(self, plan: Plan, inheritance: Inheritance) -> None:
        hyper = {name: jnp.float32(1.0) for name in ("value_cost", *inheritance.hyper)}
        zero = jnp.int32(0)
        state = LearnerState(
            jnp.float32(0.0), (), hyper, zero, jnp.uint32(0), zero, jax.random.key(plan.run.seed)
        )
        meta = {"agent_steps": 0, "tally": {}, "notes": {}}
        checkpointer = Checkpointer(plan.run_dir / "checkpoints", keep=plan.run.keep_checkpoints)
        loaded = checkpointer.load()
        if loaded is not None:
            state, meta = loaded.restore("learner", state), loaded.meta
        agent: Any = SimpleNamespace(
            adopt=lambda own, donor: own._replace(params=donor.params, hyper=donor.hyper)
        )
        state, notes = inheritance.apply(agent, state, meta["notes"])
        steps, tally = meta["agent_steps"], Tally.from_json(meta["tally"], 1)
        until = plan.run.stop_after_episodes or 10**9
        while steps < min(plan.run.stop_after or 0, plan.run.steps) and tally.count[0] < until:
            steps += 20
            state = state._replace(params=state.params + state.hyper["learning_rate"])
            episodes = steps // self.episode_steps - tally.count[0]
            value = float(state.params)
            tally = tally.plus(Tally([episodes * value], [episodes * value**2], [episodes]))
        meta = {
            "agent_steps": steps, "episodes": tally.count[0], "tally": tally.as_json(),
            "notes": notes,
        }  # fmt: skip
        checkpointer.save(steps, {"learner": state}, meta, block=True)

    def wait(self, runs: Any, timeout: float) -> None:
        """All have finished."""

    def close(self) -> None:
        """Nothing to release."""


def use_fake_launcher(patched: pytest.MonkeyPatch) -> FakeLauncher:
    launcher = FakeLauncher()
    patched.setattr(pbt, "Launcher", lambda: launcher)
    return launcher


def kill_once(monkeypatch: pytest.MonkeyPatch, where: str, which: int, plan: Plan) -> None:
    """Run a population in one program until its `which`-th event or checkpoint, and kill it."""
    count = 0
    append, save = Journal.append, OneProgram._save

    def counted(at: str, call: Any, *args: Any) -> None:
        nonlocal count
        count += 1
        if count == which and at == "journal" and where == "before the journal":
            raise Killed
        call(*args)
        if count == which and at == "journal" and where == "torn":
            journal = args[0].path
            journal.write_bytes(journal.read_bytes()[:-30])
        if count == which:
            raise Killed

    with monkeypatch.context() as patched:
        if where == "saved":
            patched.setattr(OneProgram, "_save", lambda *a: counted("save", save, *a))
        else:
            patched.setattr(Journal, "append", lambda *a: counted("journal", append, *a))
        with pytest.raises(Killed):
            pbt.run(plan, settings())


def contents(directory: Path) -> tuple[bytes, Any, Any]:
    """The journal, all arrays of the last checkpoint, and what the host counted."""
    loaded = Checkpointer(directory / "population").load()
    assert loaded is not None
    return (
        (directory / "journal.jsonl").read_bytes(),
        loaded.tree("population"),
        [loaded.meta["members"], loaded.meta["journal"]],
    )


def assert_same(found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    assert found[0] == expected[0]
    assert found[2] == expected[2]
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])


def saved_of(directory: Path, member: int) -> Any:
    loaded = Checkpointer(directory / f"members/{member:02d}/checkpoints").load()
    assert loaded is not None
    return loaded


def check_journal(directory: Path, size: int = 4) -> list[dict[str, Any]]:
    """Every member starts, is ready for all generations in turn, and ends; it goes on with the
    hyperparameters that it had next, which are the donor's or its own, perturbed."""
    events = read_journal(directory / "journal.jsonl")
    for member in range(size):
        own = [e for e in events if e["member"] == member]
        ready = own[1:-1]
        assert [e["event"] for e in own] == ["start", *["ready"] * len(ready), "end"]
        assert [e["generation"] for e in ready] == list(range(1, len(ready) + 1))
        steps = [e["steps"] for e in own[1:]]
        assert steps == sorted(set(steps))
        hyper = own[0]["hyper"]
        for event in ready:
            assert event["before"] == hyper
            hyper = event["after"]
            if event["donor"] is None:
                for name, value in event["before"].items():
                    factor = event["factors"].get(name, 1.0)
                    assert hyper[name] == pytest.approx(value * factor)
            else:
                donor = [e for e in events if e["member"] == event["donor"]]
                had = [e.get("after", e.get("hyper")) for e in donor]
                assert any(
                    all(
                        hyper[name] == pytest.approx(value * event["factors"].get(name, 1.0))
                        for name, value in values.items()
                    )
                    for values in had
                )
        assert own[-1]["hyper"] == hyper
    return events
