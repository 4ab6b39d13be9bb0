"""What both executions share: the population's directory, its members' plans, what is told."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pronk.config.fields import near_one
from pronk.config.pbt import FREE, PBTConfig
from pronk.config.spec import Plan, check_format, identity, refuse_another
from pronk.envs.episodes import derived_seed
from pronk.errors import UserError
from pronk.pbt.policy import (
    Decision,
    Hyper,
    Score,
    Tuned,
    allowed_by,
    decide,
    first,
    has_diverged,
    is_normalised,
    summary_of,
)
from pronk.storage.files import without_nan, write_json_atomically
from pronk.storage.journal import JOURNAL, Journal, read_events
from pronk.types import Agent, EnvSpec

SETTINGS = "pbt.json"
MEMBERS = 101  # purpose of the members' seeds: not one of `wiring`'s
GENERATIONS = 20  # unless `--ready-steps` or `--ready-episodes` says otherwise


@dataclass(frozen=True)
class Setup:
    """A population, fully resolved. Its directory is `plan.run.run_dir`."""

    plan: Plan
    settings: PBTConfig
    env: Any
    spec: EnvSpec
    agent: Agent
    names: Sequence[Tuned]

    @property
    def directory(self) -> Path:
        """Where the population lives."""
        return self.plan.run_dir

    @property
    def size(self) -> int:
        """Members."""
        return self.settings.population

    @property
    def limit(self) -> int:
        """Agent steps at which a member ends or, with `--stop-after`, pauses."""
        run = self.plan.run
        return run.steps if run.stop_after is None else min(run.steps, run.stop_after)

    @property
    def ready_steps(self) -> int | None:
        """Agent steps after which a member is ready, unless that goes by episodes."""
        if self.settings.ready_episodes is not None:
            return None
        return self.settings.ready_steps or max(1, self.plan.run.steps // GENERATIONS)

    def member_dir(self, member: int) -> Path:
        """The directory of a member as a run of its own."""
        return self.directory / "members" / f"{member:02d}"

    def member_plan(self, member: int, **settings: Any) -> Plan:
        """The plan of a member as a run of its own, whose seed no other population's member has."""
        settings = {"stop_after": None, **settings, "quiet": True}
        run = dataclasses.replace(
            self.plan.run, seed=self.seed_of(member), run_dir=self.member_dir(member), **settings
        )
        return dataclasses.replace(self.plan, run=run)

    def seed_of(self, member: int) -> int:
        """A member's own seed."""
        return derived_seed(self.plan.run.seed, MEMBERS, member)

    def first(self, member: int) -> Hyper:
        """A member's first hyperparameters."""
        return first(self.names, seed=self.plan.run.seed, member=member)

    def decide(
        self,
        member: int,
        generation: int,
        steps: int,
        scores: Sequence[Score | None],
        hyper_of: Callable[[int], Hyper],
    ) -> Decision:
        """What becomes of a member that is ready after so many agent steps."""
        if steps < self.settings.evolve_after and not has_diverged(scores[member]):
            return Decision(None, hyper_of(member), {})
        return decide(
            self.settings,
            seed=self.plan.run.seed,
            member=member,
            generation=generation,
            scores=scores,
            hyper_of=hyper_of,
            allowed=allowed_by(self.plan),
            near_one=near_one(type(self.plan.agent_config)),
            absolute=is_normalised(self.spec),
        )

    def tell(self, text: str) -> None:
        """Print a message, also when `--quiet`."""
        print(text, flush=True)

    def progress(self, members: Sequence[Mapping[str, Any]], copies: int) -> None:
        """Print a line on all members: `member`, `generation`, `steps`, `score` of each."""
        if self.plan.run.quiet:
            return
        found = summary_of(members)
        generation = min(m["generation"] for m in members)
        steps = min(m["steps"] for m in members)
        told = "no member has been scored"
        if found["best"] is not None:
            told = (
                f"best {found['best_score']:.4g} (member {found['best']})"
                f"  median {found['median_score']:.4g}"
            )
        done = f"{100 * min(steps / self.plan.run.steps, 1):.1f}%"
        print(
            f"  generation {generation}  {steps:,} steps each  {done}  {told}  copies {copies}",
            flush=True,
        )

    def summary(
        self, status: str, members: Sequence[Mapping[str, Any]], wall_seconds: float
    ) -> dict[str, Any]:
        """Write `summary.json` and return it; `best_run` is relative to the directory."""
        found = summary_of(members)
        best = found["best"]
        result = {
            "status": status,
            "agent": self.plan.agent,
            "env": self.plan.env,
            "seed": self.plan.run.seed,
            "population": self.size,
            "agent_steps": sum(m["steps"] for m in members),
            "generations": max(m["generation"] for m in members),
            "copies": sum(e["donor"] is not None for e in self.events() if e["event"] == "ready"),
            **found,
            "best_run": None if best is None else f"members/{best:02d}",
            "best_hyper": None if best is None else members[best]["hyper"],
            "wall_seconds": wall_seconds,
            "run_dir": str(self.directory),
        }
        write_json_atomically(self.directory / "summary.json", without_nan(result))
        return result

    def events(self) -> list[dict[str, Any]]:
        """All of the journal."""
        return read_events(self.directory)


def open_journal(setup: Setup, *, one_program: bool) -> Journal:
    """The journal of the population, which must be the one that the directory holds, if any, and
    carried out as there, in one program or as runs of their own: otherwise UserError, and nothing
    is changed. What a population left of which nothing was saved is forgotten."""
    directory = setup.directory
    if any((directory / "checkpoints").glob("[0-9]*")):
        raise UserError(
            f"'{directory}' holds a run, and a population can't live in it; give another --run-dir."
        )
    ours = {
        "plan": setup.plan.as_json(),
        "pbt": dataclasses.asdict(setup.settings),
        "one_program": one_program,
    }
    learnt = _has_learnt(directory)
    if learnt:
        _check_same(directory / SETTINGS, ours)
    write_json_atomically(directory / SETTINGS, ours)
    journal = Journal(directory / JOURNAL)
    if not learnt:
        journal.truncate(0)
    return journal


def _has_learnt(directory: Path) -> bool:
    """Whether anything is saved of a population, or decided, or a member of it still trains. A
    command that was refused leaves nothing that another one could spoil. Raises UserError where
    something is, and its settings or its journal are gone."""
    places = ("population", "members/*/checkpoints", "members/*/replay")
    saved = any(any(directory.glob(f"{place}/*")) for place in places)
    saved = saved or any(is_held(lock.parent) for lock in directory.glob("members/*/.lock"))
    if (directory / JOURNAL).exists():
        saved = saved or any(event["event"] != "start" for event in read_events(directory))
    for name in (SETTINGS, JOURNAL) if saved else ():
        if not (directory / name).exists():
            raise UserError(
                f"'{directory}' holds a population, but its {name} is gone; put back a copy of it,"
                " or give another --run-dir."
            )
    return saved


def is_held(run_dir: Path) -> bool:
    """Whether a process trains in this directory."""
    try:
        with (run_dir / ".lock").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _check_same(path: Path, ours: Mapping[str, Any]) -> None:
    """Raise UserError where the settings at `path` are those of another population."""
    try:
        saved = json.loads(path.read_text())
        check_format(saved["plan"], str(path))
        theirs = _identity(saved)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} can't be read as a population's configuration ({error!r}); it was damaged,"
            " or written by another version of pronk."
        ) from None
    mine = _identity(json.loads(json.dumps(ours, default=str)))
    refuse_another("population", path.parent, theirs, mine)


def _identity(saved: Mapping[str, Any]) -> dict[str, Any]:
    execution = "vmapped" if saved["one_program"] else "processes or ray"
    settings = {k: v for k, v in saved["pbt"].items() if k not in FREE}
    return identity(saved["plan"]) | settings | {"execution": execution}


def all_diverged() -> UserError:
    """What is said where nobody is left to copy."""
    return UserError(
        "all members diverged, not one of their last updates was finite, before there was one to"
        " copy: lower the range of the learning rate, or have members ready earlier."
    )


def start_event(member: int, seed: int, hyper: Hyper) -> dict[str, Any]:
    """A member is born."""
    return {"event": "start", "member": member, "seed": seed, "hyper": hyper}


def ready_event(
    member: int,
    generation: int,
    *,
    steps: int,
    episodes: int,
    score: Score | None,
    decision: Decision,
    donor_steps: int | None,
    before: Hyper,
) -> dict[str, Any]:
    """A member is ready, and what was decided: `before` is its own, it goes on with `after`.
    donor_steps: agent steps of the donor, if any, when it was as it was copied."""
    return {
        "event": "ready",
        "generation": generation,
        "member": member,
        "steps": steps,
        "episodes": episodes,
        **told(score),
        "donor": decision.donor,
        "donor_steps": donor_steps,
        "before": before,
        "after": decision.hyper,
        "factors": decision.factors,
    }


def end_event(
    member: int, *, steps: int, episodes: int, score: Score | None, hyper: Hyper
) -> dict[str, Any]:
    """A member has been trained for all of its steps."""
    return {
        "event": "end",
        "member": member,
        "steps": steps,
        "episodes": episodes,
        **told(score),
        "hyper": hyper,
    }


def told(score: Score | None) -> dict[str, float | None]:
    """A score as JSON has it, by the names that events and members have it by."""
    if score is None or not math.isfinite(score.mean):
        return {"score": None, "error": None}
    return {"score": score.mean, "error": score.error if math.isfinite(score.error) else None}


def score_in(saved: Mapping[str, Any]) -> Score | None:
    """What `told` told."""
    if saved["score"] is None:
        return None
    return Score(saved["score"], math.inf if saved["error"] is None else saved["error"])
