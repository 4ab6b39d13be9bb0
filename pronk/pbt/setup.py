"""A population's settings and directory."""

from __future__ import annotations

import dataclasses
import fcntl
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pronk.config.json_files import read_object
from pronk.config.pbt import FREE, PBTConfig
from pronk.config.sources import changed, refuse_changed, sources
from pronk.config.spec import Plan, check_format, identity, refuse_another
from pronk.envs.episodes import derived_seed
from pronk.errors import UserError, printable
from pronk.pbt import decide
from pronk.pbt.decide import Decision, Hyper, Score, Tuned
from pronk.storage.files import write_json_atomically
from pronk.storage.journal import JOURNAL, Journal, read_events
from pronk.types import Agent, EnvSpec

SETTINGS = "pbt.json"
MEMBERS = 101  # purpose of the members' seeds, distinct from those in `run.setup`
GENERATIONS = 20  # unless `--ready-steps` or `--ready-episodes` is given


@dataclass(frozen=True)
class Setup:
    """A population, fully resolved. Its directory is `plan.run_dir`, its seed the plan's."""

    plan: Plan
    settings: PBTConfig
    env: Any
    spec: EnvSpec
    agent: Agent
    tuned: Sequence[Tuned]

    @property
    def directory(self) -> Path:
        """The population's directory."""
        return self.plan.directory

    @property
    def size(self) -> int:
        """Number of members."""
        return self.settings.population

    @property
    def limit(self) -> int:
        """Agent steps at which a member ends or, with `--stop-after`, pauses."""
        run = self.plan.run
        return run.steps if run.stop_after is None else min(run.steps, run.stop_after)

    @property
    def ready_steps(self) -> int | None:
        """Agent steps after which a member is ready; None where episodes count."""
        if self.settings.ready_episodes is not None:
            return None
        return self.settings.ready_steps or max(1, self.plan.run.steps // GENERATIONS)

    def member_dir(self, member: int) -> Path:
        """The directory of a member as a run of its own."""
        return self.directory / "members" / f"{member:02d}"

    def member_plan(self, member: int, **settings: Any) -> Plan:
        """The plan of a member as a run of its own, with a seed that no other population uses."""
        settings = {"stop_after": None, **settings, "quiet": True}
        run = dataclasses.replace(
            self.plan.run, seed=self.member_seed(member), run_dir=self.member_dir(member),
            **settings,
        )  # fmt: skip
        return dataclasses.replace(self.plan, run=run)

    def member_seed(self, member: int) -> int:
        """A member's own seed."""
        return derived_seed(self.plan.run.seed, MEMBERS, member)

    def initial_hyper(self, member: int) -> Hyper:
        """A member's initial hyperparameters."""
        return decide.initial_hyper(self.tuned, seed=self.plan.run.seed, member=member)

    def decide(
        self,
        member: int,
        generation: int,
        steps: int,
        scores: Sequence[Score | None],
        hyper_of: Callable[[int], Hyper],
    ) -> Decision:
        """The decision for a member that is ready after `steps` agent steps; see `decide.decide`.

        Before `evolve_after` only diverged members copy and are perturbed.
        """
        if steps < self.settings.evolve_after and scores[member] != decide.DIVERGED:
            return Decision(None, hyper_of(member), {})
        return decide.decide(
            self.settings,
            seed=self.plan.run.seed,
            member=member,
            generation=generation,
            scores=scores,
            hyper_of=hyper_of,
            allowed=lambda name, value: decide.is_allowed(self.plan, name, value),
            near_one=decide.near_one(self.plan),
            absolute=decide.is_normalised(self.spec),
        )

    def message(self, text: str) -> None:
        """Print a message, also with `--quiet`."""
        print(printable(text), flush=True)


def open_journal(setup: Setup, *, one_program: bool) -> Journal:
    """Open the population's journal and save its settings.

    Raises UserError, and changes nothing, where the directory holds a run, another population, or
    one that was not trained in the same way (in one program, or as runs). If nothing was saved
    there, an old journal is emptied.
    """
    directory = setup.directory
    if any((directory / "checkpoints").glob("[0-9]*")):
        raise UserError(
            f"'{directory}' holds a run, so it cannot hold a population; give another --run-dir."
        )
    ours = {
        "plan": setup.plan.described(),
        "pbt": dataclasses.asdict(setup.settings),
        "one_program": one_program,
    }
    has_progress = _has_progress(directory)
    if has_progress:
        _check_same(directory / SETTINGS, ours)
    write_json_atomically(directory / SETTINGS, ours)
    journal = Journal(directory / JOURNAL)
    if not has_progress:
        journal.truncate(0)
    return journal


def refuse_unnamed(plan: Plan, directory: Path) -> None:
    """Raise UserError where `directory`, which the plan does not name, holds a population whose
    agent or environment has another source now."""
    path = Path(plan.home, directory, SETTINGS)
    if _has_progress(path.parent):
        saved = read_object(path).get("plan")
        before = saved.get("sources") if isinstance(saved, dict) else None
        refuse_changed(directory, changed(before, sources(plan.agent, plan.env)))


def _has_progress(directory: Path) -> bool:
    """Whether a population saved or decided anything here, or a member of it still trains. A
    refused command leaves nothing that another one could overwrite. Raises UserError where there is
    progress but no settings or no journal."""
    places = ("population", "members/*/checkpoints", "members/*/replay")
    saved = any(any(directory.glob(f"{place}/*")) for place in places)
    saved = saved or any(is_locked(lock.parent) for lock in directory.glob("members/*/.lock"))
    if (directory / JOURNAL).exists():
        saved = saved or any(event["event"] != "start" for event in read_events(directory))
    for name in (SETTINGS, JOURNAL) if saved else ():
        if not (directory / name).exists():
            raise UserError(
                f"'{directory}' holds a population, but its {name} is missing; put back a copy of"
                " it, or give another --run-dir."
            )
    return saved


def is_locked(run_dir: Path) -> bool:
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
    """Raise UserError where the settings at `path` are another population's."""
    saved = read_object(path)
    try:
        check_format(saved["plan"], str(path))
        theirs = _identity(saved)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read as a population's configuration ({error!r}); it was damaged,"
            " or written by another version of pronk."
        ) from None
    mine = _identity(json.loads(json.dumps(ours, default=str)))
    refuse_another("population", path.parent, theirs, mine)


def _identity(saved: Mapping[str, Any]) -> dict[str, Any]:
    execution = "vmapped" if saved["one_program"] else "processes or ray"
    settings = {k: v for k, v in saved["pbt"].items() if k not in FREE}
    return identity(saved["plan"]) | settings | {"execution": execution}
