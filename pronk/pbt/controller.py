"""The controller of a population: members, readiness, decisions, journal, summary.

Members train in a `Workplace`. The journal is the only record of decisions: members are rebuilt
from it on resume, so that a workplace saves nothing but how far its members are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from pronk.errors import UserError
from pronk.pbt.decide import (
    DIVERGED,
    Hyper,
    Score,
    score_from_json,
    score_to_json,
)
from pronk.pbt.setup import Setup
from pronk.run.evaluate import Tally
from pronk.storage.files import without_nan, write_json_atomically
from pronk.storage.journal import Journal, read_events


@dataclass
class Member:
    """A member as of its last event in the journal."""

    member: int
    hyper: Hyper
    generation: int = 0
    steps: int = 0
    episodes: int = 0
    score: Score | None = None
    donor: int | None = None  # whose learner state it took for this generation
    ended: bool = False
    tally: Mapping[str, Any] = field(default_factory=dict)  # of runs: see `Report.tally`
    diverged: bool = False  # by its last report

    def apply(self, event: Mapping[str, Any]) -> None:
        """Update from an event of the journal other than its start."""
        self.steps, self.episodes = event["steps"], event["episodes"]
        self.score, self.tally = score_from_json(event), event.get("tally", {})
        if event["event"] == "end":
            self.ended = True
            return
        self.generation, self.hyper = event["generation"], event["after"]
        self.donor = event["donor"]


class Report(NamedTuple):
    """A member that has trained."""

    member: int
    steps: int  # agent steps so far
    episodes: int  # so far
    games: Tally  # episodes that ended since it last got a score
    ready: bool = True  # for a decision
    final: bool = False  # it has made all its steps, or its workplace ends all members
    diverged: bool = False
    # All episodes so far, of a workplace that counts from the start. The journal keeps it as of the
    # last score: `games` are those since.
    tally: Mapping[str, Any] | None = None


class Change(NamedTuple):
    """A member after its decision."""

    member: Member
    counted: bool  # the episodes of its report made a score (or it diverged)


class Stopped(Protocol):
    """Whether the population should pause, saved."""

    def is_set(self) -> bool: ...


class Workplace(Protocol):
    """Where members train. `journal` is always the journal's size in bytes."""

    in_step: bool  # all members train together, so a diverged one cannot wait for a donor

    # Seconds of training so far, those before a restart included.
    @property
    def wall_seconds(self) -> float: ...

    # Restore what was saved; the size of the journal that belongs to it, None for all of it.
    def load(self) -> int | None: ...

    # Go on with what was restored, or start; each member's agent steps.
    def begin(self, members: Sequence[Member]) -> list[int]: ...

    # Train for a moment; reports on some members, None where nothing is left to train.
    def advance(self, members: Sequence[Member]) -> list[Report] | None: ...

    # Set the donor's newest state aside for the heir; its hyperparameters and agent steps.
    def copy(self, donor: Member, heir: Member, generation: int) -> tuple[Hyper, int]: ...

    # Carry out decisions, which the journal has: hyperparameters, and copies that were set aside.
    def apply(self, changes: Sequence[Change]) -> None: ...

    # Save if it is time to.
    def save(self, journal: int) -> None: ...

    # Pause all, saved, and leave the best member as a run of its own; each member's agent steps.
    def finish(self, journal: int, best: int | None) -> list[int]: ...

    # Stop whatever still runs.
    def close(self) -> None: ...


class Controller:
    """One invocation of a population: from its start, or from its journal, to its end or a pause.

    Raises UserError where all members diverge before there is one to copy.
    """

    def __init__(self, setup: Setup, journal: Journal, workplace: Workplace):
        self.setup, self.journal, self.workplace = setup, journal, workplace
        size = workplace.load()
        if size is not None:
            journal.truncate(size)
        self.members = self._members()
        self.waiting: list[Report] = []  # diverged members that wait for a donor
        self.shown = min(m.generation for m in self.members)  # by the last line of progress
        self.copies = 0  # since then

    def _members(self) -> list[Member]:
        """The members by the journal; those that are not in it yet are started."""
        members: dict[int, Member] = {}
        for event in read_events(self.setup.directory):
            if event["event"] == "start":
                members[event["member"]] = Member(event["member"], event["hyper"])
            else:
                members[event["member"]].apply(event)
        new = [i for i in range(self.setup.size) if i not in members]
        for i in new:
            members[i] = Member(i, self.setup.initial_hyper(i))
        self.journal.append(*(self._start_event(members[i]) for i in new))
        return [members[i] for i in range(self.setup.size)]

    def _start_event(self, member: Member) -> dict[str, Any]:
        seed = self.setup.member_seed(member.member)
        return {"event": "start", "member": member.member, "seed": seed, "hyper": member.hyper}

    def run(self, stopped: Stopped) -> dict[str, Any]:
        """Train until the end, a pause, or until `stopped` is set; returns the summary."""
        steps = self.workplace.begin(self.members)
        if all(m.ended for m in self.members):
            self.setup.message(f"already trained for {min(steps):,} steps: {self.setup.directory}")
        elif any(steps):
            self.setup.message(f"resumed at {min(steps):,} steps each")
        while not stopped.is_set():
            reports = self.workplace.advance(self.members)
            if reports is None:
                break
            self.handle(reports)
            self.workplace.save(self.journal.size)
        if self.waiting and not stopped.is_set():
            self.setup.message(
                f"warning: member {self.waiting[0].member} diverged, and no member could be copied;"
                " it stays behind"
            )
        best = summarise(self.members)["best"]
        steps = self.workplace.finish(self.journal.size, best)
        left = {report.member for report in self.waiting}
        if all(m.ended or m.member in left for m in self.members):
            return self._summary("finished", steps)
        return self._summary("interrupted" if stopped.is_set() else "paused", steps)

    def handle(self, reports: Sequence[Report]) -> None:
        """Decide for the members that are ready. A diverged one waits for a donor if it can."""
        for report in reports:
            self.members[report.member].diverged = report.diverged
        ready = [report for report in reports if report.ready]
        in_step = self.workplace.in_step
        ending = in_step and any(report.final for report in ready)
        if ready and not ending and all(m.diverged for m in self.members):
            raise UserError(
                "all members diverged: none of their last updates had a finite gradient, and no"
                " member is left to copy. Lower the range of the learning rate, or make members"
                " ready earlier."
            )
        self._decide([report for report in ready if in_step or not report.diverged])
        if in_step:
            return
        for report in ready:
            if report.diverged:
                self.members[report.member].score = DIVERGED  # so that no member copies it
                self.waiting.append(report)
        scored = any(m.score is not None for m in self.members if not m.diverged)
        if scored and not math.isinf(self.setup.settings.copy_margin):
            waiting, self.waiting = self.waiting, []
            self._decide(waiting)
            for report in waiting:
                self.members[report.member].diverged = False

    def _decide(self, reports: Sequence[Report]) -> None:
        """Score these members, then decide for each from the state of all, then carry it out."""
        if not reports:
            return
        counted = {report.member: self._rate(report) for report in reports}
        scores = [m.score for m in self.members]
        events = [self._event(report, scores, counted[report.member]) for report in reports]
        self.journal.append(*events)
        for event in events:
            self.members[event["member"]].apply(event)
            self.copies += event.get("donor") is not None
        self.workplace.apply([Change(self.members[i], counted[i]) for i in counted])
        self._show_progress()

    def _rate(self, report: Report) -> bool:
        """Score a member by its episodes since its last score, if there is one of each task;
        whether it has a new score."""
        score = DIVERGED if report.diverged else Score.of(self.setup.spec, report.games)
        if score is not None:
            self.members[report.member].score = score
        return score is not None

    def _event(
        self, report: Report, scores: Sequence[Score | None], counted: bool
    ) -> dict[str, Any]:
        """The decision on a member, as the journal records it."""
        member = self.members[report.member]
        score = score_to_json(member.score)
        tally = {}
        if report.tally is not None:
            tally["tally"] = report.tally if counted else member.tally
        if report.final:
            return {
                "event": "end",
                "member": member.member,
                "steps": report.steps,
                "episodes": report.episodes,
                **score,
                "hyper": member.hyper,
                **tally,
            }
        generation, donor_steps = member.generation + 1, None

        def hyper_of(other: int) -> Hyper:
            nonlocal donor_steps
            if other == member.member:
                return member.hyper
            hyper, donor_steps = self.workplace.copy(self.members[other], member, generation)
            return hyper

        decision = self.setup.decide(member.member, generation, report.steps, scores, hyper_of)
        return {
            "event": "ready",
            "generation": generation,
            "member": member.member,
            "steps": report.steps,
            "episodes": report.episodes,
            **score,
            "donor": decision.donor,
            "donor_steps": donor_steps,
            "before": member.hyper,
            "after": decision.hyper,
            "factors": decision.factors,
            **tally,
        }

    def _show_progress(self) -> None:
        """Print a line when the last member reaches a generation, and at the end."""
        generation = min(m.generation for m in self.members)
        if generation <= self.shown and not all(m.ended for m in self.members):
            return
        self.shown, copies, self.copies = generation, self.copies, 0
        if self.setup.plan.run.quiet:
            return
        steps, scores = min(m.steps for m in self.members), summarise(self.members)
        text = "no member has a score"
        if scores["best"] is not None:
            text = (
                f"best {scores['best_score']:.4g} (member {scores['best']})"
                f"  median {scores['median_score']:.4g}"
            )
        done = f"{100 * min(steps / self.setup.plan.run.steps, 1):.1f}%"
        self.setup.message(
            f"  generation {generation}  {steps:,} steps each  {done}  {text}  copies {copies}"
        )

    def _summary(self, status: str, steps: Sequence[int]) -> dict[str, Any]:
        """Write `summary.json` and return it; `best_run` is relative to the directory."""
        setup, scores = self.setup, summarise(self.members)
        best, events = scores["best"], read_events(setup.directory)
        result = {
            "status": status,
            "agent": setup.plan.agent,
            "env": setup.plan.env,
            "seed": setup.plan.run.seed,
            "population": setup.size,
            "agent_steps": sum(steps),
            "generations": max(m.generation for m in self.members),
            "copies": sum(e["donor"] is not None for e in events if e["event"] == "ready"),
            **scores,
            "best_run": None if best is None else f"members/{best:02d}",
            "best_hyper": None if best is None else self.members[best].hyper,
            "wall_seconds": self.workplace.wall_seconds,
            "run_dir": str(setup.plan.run_dir),
        }
        write_json_atomically(setup.directory / "summary.json", without_nan(result))
        return result


def summarise(members: Iterable[Member]) -> dict[str, Any]:
    """Best and median score, and the best member; NaN and None where no member has a score."""
    scores = {m.member: m.score.mean for m in members if m.score not in (None, DIVERGED)}
    if not scores:
        return {"best": None, "best_score": math.nan, "median_score": math.nan}
    best = max(scores, key=scores.__getitem__)
    median = float(np.median(list(scores.values())))
    return {"best": best, "best_score": scores[best], "median_score": median}
