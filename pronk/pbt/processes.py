"""A run per member, each life of it in a process of its own: any runtime, any environment.

A member trains until it is ready, pauses like `--stop-after`, and gives its place to the one that
is furthest behind: there may be more members than `--parallel-members`. The journal says what was
decided; what a member is to go on with is set aside before the journal names it, and taken up by
the member's next life, whose checkpoints note for which generation that was done. So whatever is
killed when, no member is lost, none inherits twice, and none goes on with other hyperparameters
than the journal's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pronk.config.run import RunConfig
from pronk.errors import UserError
from pronk.pbt.common import (
    Setup,
    all_diverged,
    end_event,
    is_held,
    ready_event,
    score_in,
    start_event,
    told,
)
from pronk.pbt.lives import DIVERGED, GONE, MISTAKE, Here, Legacy, Life, Workplace
from pronk.pbt.policy import Decision, Hyper, Score
from pronk.run.evaluate import Tally
from pronk.storage.checkpoint import Checkpointer, Loaded
from pronk.storage.files import fsync_directory
from pronk.storage.journal import Journal

POLL = 0.5  # seconds after which a signal is noticed at the latest
ORPHANED = 120.0  # seconds that a member of a killed controller may take to save and go


@dataclass
class Member:
    """A member as the journal has it, and the process that trains it, if one does."""

    member: int
    hyper: Hyper
    generation: int = 0
    steps: int = 0  # when it was last ready
    episodes: int = 0
    tally: dict[str, Any] = field(default_factory=dict)  # of all games until it was last scored
    score: Score | None = None
    donor: int | None = None  # of this generation
    ended: bool = False
    paused: bool = False  # by `--stop-after`, in the middle of a generation
    diverged: bool = False  # and waits for somebody with a score
    deaths: int = 0
    life: Life | None = field(default=None, repr=False)  # under way

    def as_dict(self) -> dict[str, Any]:
        """What is told of it."""
        names = ("member", "hyper", "generation", "steps")
        return {**{name: getattr(self, name) for name in names}, **told(self.score)}


def run(setup: Setup, journal: Journal, stopped: threading.Event) -> dict[str, Any]:
    """Train until the end, a pause or a signal; leaves every member as a run of its own, saved."""
    return _with(Here(), setup, journal, stopped)


def run_on_ray(setup: Setup, journal: Journal, stopped: threading.Event) -> dict[str, Any]:
    """As `run`, on the machines of a cluster; raises UserError where Ray is not installed."""
    try:
        from pronk.pbt.on_ray import OnRay  # an extra; half a second
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UserError(
            "`--execution` is ray, and Ray is not installed: pip install 'pronk[ray]'."
        ) from None
    return _with(OnRay(setup.plan, setup.settings.parallel_members), setup, journal, stopped)


def _with(
    workplace: Workplace, setup: Setup, journal: Journal, stopped: threading.Event
) -> dict[str, Any]:
    with contextlib.closing(workplace):
        return _Processes(setup, journal, workplace).go(stopped)


class _Processes:
    """One life of a population's controller."""

    def __init__(self, setup: Setup, journal: Journal, workplace: Workplace):
        self.setup, self.journal, self.workplace = setup, journal, workplace
        self.started = time.perf_counter()
        self.members = _members_of(setup, journal)
        self.wall_seconds = _earlier(setup)
        self.copies = 0  # since the last line of progress
        self.warned = False  # that games are longer than generations
        self.shown = min(m.generation for m in self.members)

    def go(self, stopped: threading.Event) -> dict[str, Any]:
        """Until the end, a pause or a signal."""
        if self._waiting() and any(m.generation for m in self.members):
            self.setup.tell(f"resumed at {min(m.steps for m in self.members):,} steps each")
        try:
            while not stopped.is_set() and (self._waiting() or self._running()):
                self._fill()
                self._reap()
                self._revive()
        finally:
            self._stop()
        if all(m.ended or m.diverged for m in self.members):
            return self._summary("finished")
        return self._summary("interrupted" if stopped.is_set() else "paused")

    def _running(self) -> list[Member]:
        return [m for m in self.members if m.life is not None]

    def _waiting(self) -> list[Member]:
        """Those to be trained on, the furthest behind first."""
        limit = self.setup.limit
        idle = [
            m
            for m in self.members
            if m.life is None and m.steps < limit and not (m.ended or m.paused or m.diverged)
        ]
        return sorted(idle, key=lambda m: (m.steps, m.member))

    def _fill(self) -> None:
        """Have as many members trained as there may be workers."""
        for member in self._waiting():
            if len(self._running()) >= self.setup.settings.parallel_members:
                return
            saved = _newest(self.setup, member)
            if saved is not None and self._is_ready(member, saved):
                self._ready(member, saved)  # it was when the controller died
                continue
            _let_go(self.setup.member_dir(member.member))
            self._start(member)

    def _start(self, member: Member) -> None:
        goal: dict[str, Any] = {}
        ready_steps = self.setup.ready_steps
        goal["stop_after"] = self.setup.limit
        if ready_steps is None:
            wanted = self.setup.settings.ready_episodes
            assert wanted is not None
            goal["stop_after_episodes"] = member.episodes + wanted
        else:
            goal["stop_after"] = min(self.setup.limit, member.steps + ready_steps)
        donor = None
        if member.donor is not None:
            donor = _set_aside_at(self.setup, member.member, member.generation).resolve()
        legacy = Legacy(member.generation, member.hyper, donor)
        if self.setup.settings.execution == "ray":
            # The life is there: its actors are where it is.
            reserved = ("ray", "actor_cpus", "actor_gpus", "actor_resource")
            goal |= {name: getattr(RunConfig, name) for name in reserved}
        plan = self.setup.member_plan(member.member, **goal)
        # Wherever it is led, files are where they are here.
        begun = plan.run.init_from
        run = dataclasses.replace(
            plan.run,
            run_dir=plan.run_dir.resolve(),
            init_from=None if begun is None else begun.resolve(),
        )
        plan = dataclasses.replace(plan, run=run)
        member.life = self.workplace.start(plan, self.setup.env, legacy)

    def _reap(self) -> None:
        """Wait a moment for members whose life is over, and see what came of it."""
        running = self._running()
        if running:
            self.workplace.wait([m.life for m in running], POLL)
        for member in running:
            if member.life is not None and member.life.over:
                life, member.life = member.life, None
                self._over(member, life.end(), life)

    def _over(self, member: Member, status: int, life: Life) -> None:
        """A life ended with this exit status."""
        saved = _newest(self.setup, member)
        if status == MISTAKE:
            raise UserError(f"member {member.member} can't be trained: {life.words}")
        if status == DIVERGED:
            member.diverged = True
        elif status == GONE:
            self.setup.tell(f"member {member.member}'s machine left; it goes on elsewhere")
        elif status != 0:
            self._died(member, status, life)
        elif saved is None:
            raise UserError(
                f"member {member.member} was trained for a generation, and there was no update in"
                " it, as while a replay fills: nothing is saved of that. Have members ready later,"
                " by a larger --ready-steps, or learn earlier."
            )
        elif self._is_ready(member, saved):
            self._ready(member, saved)
        else:
            member.paused = saved.meta["agent_steps"] >= self.setup.limit

    def _revive(self) -> None:
        """Have those that diverged copy, once there is somebody with a score; raises UserError
        where all have diverged."""
        diverged = [m for m in self.members if m.diverged]
        if not diverged:
            return
        for member in diverged:
            member.score = Score(-math.inf)
        nobody_copies = math.isinf(self.setup.settings.copy_margin)
        if not nobody_copies and any(m.score is not None for m in self.members if not m.diverged):
            for member in diverged:
                member.diverged = False
                self._ready(member, _newest(self.setup, member), diverged=True)
        elif len(diverged) == len(self.members):
            raise all_diverged()
        elif not self._waiting() and not self._running():
            self.setup.tell(
                f"warning: member {diverged[0].member} diverged, and nobody was copied instead; it"
                " is left behind"
            )

    def _died(self, member: Member, status: int, life: Life) -> None:
        member.deaths += 1
        how = f"signal {-status}" if status < 0 else f"status {status}"
        most = self.setup.plan.run.max_restarts
        if member.deaths > most:
            raise UserError(
                f"member {member.member}'s process died {member.deaths} times, more than"
                f" `--max-restarts` {most}; the last time by {how}: {life.words}. The others are"
                " saved."
            )
        self.setup.tell(
            f"member {member.member}'s process died ({how}); it goes on from its last checkpoint"
            f" ({member.deaths} of {most}): {life.words}"
        )

    def _is_ready(self, member: Member, saved: Loaded) -> bool:
        """Whether what is saved is the end of its generation, and not of an earlier one."""
        if saved.meta["notes"].get("generation") != member.generation:
            return False
        steps, episodes = saved.meta["agent_steps"], saved.meta["episodes"]
        if steps >= self.setup.plan.run.steps:
            return True
        if self.setup.ready_steps is not None:
            return steps >= member.steps + self.setup.ready_steps
        wanted = self.setup.settings.ready_episodes
        return wanted is not None and episodes >= member.episodes + wanted

    def _ready(self, member: Member, saved: Loaded | None, *, diverged: bool = False) -> None:
        """Score the member, and decide how it goes on or that it has come to the end. Nothing may
        be saved of one that diverged."""
        steps, episodes, games = member.steps, member.episodes, member.tally
        if saved is not None:
            steps, episodes = saved.meta["agent_steps"], saved.meta["episodes"]
            games = saved.meta["tally"]
        tally = {"tally": games}
        found = self._scored(member, games)
        if found is not None and not diverged:
            member.score = found
        elif not diverged:  # it keeps its score, if any, and these games count for the next one
            tally = {"tally": member.tally}
            self._warn(member)
        if steps >= self.setup.plan.run.steps:
            event = end_event(
                member.member, steps=steps, episodes=episodes, score=member.score,
                hyper=member.hyper,
            )  # fmt: skip
        else:
            generation = member.generation + 1
            decision = self._decide(member, generation, steps, saved)
            event = ready_event(
                member.member, generation, steps=steps, episodes=episodes, score=member.score,
                decision=decision, donor_steps=self._donor_steps(member, generation, decision),
                before=member.hyper,
            )  # fmt: skip
            self.copies += decision.donor is not None
        self.journal.append(event | tally)
        _apply(member, event | tally)
        _clear(self.setup, member)
        if min(m.generation for m in self.members) > self.shown or all(
            m.ended for m in self.members
        ):
            self.shown = min(m.generation for m in self.members)
            self.setup.progress([m.as_dict() for m in self.members], self.copies)
            self.copies = 0

    def _scored(self, member: Member, games: dict[str, Any]) -> Score | None:
        """By what was played since it was last scored; None where that is not enough."""
        tasks = self.setup.spec.num_tasks
        now, before = Tally.from_json(games, tasks), Tally.from_json(member.tally, tasks)
        return Score.of(self.setup.spec, now.plus(before, -1))

    def _warn(self, member: Member) -> None:
        """Once, of games that a generation is too short for: a life that begins has new ones."""
        if self.warned:
            return
        self.warned = True
        self.setup.tell(
            f"warning: no game of some task has ended since member {member.member} was last scored;"
            " what a life leaves unfinished is not counted. Have members ready later, by a larger"
            " --ready-steps."
        )

    def _donor_steps(self, member: Member, generation: int, decision: Decision) -> int | None:
        """At how many agent steps the donor was copied."""
        if decision.donor is None:
            return None
        loaded = Checkpointer(_set_aside_at(self.setup, member.member, generation)).load()
        assert loaded is not None
        return loaded.meta["agent_steps"]

    def _decide(
        self, member: Member, generation: int, steps: int, saved: Loaded | None
    ) -> Decision:
        """By everyone's latest scores. A donor's checkpoint is set aside for the member first, and
        its hyperparameters are those it holds: the ones that its score was won with, or newer."""

        def hyper_of(other: int) -> Hyper:
            if other == member.member:
                return member.hyper if saved is None else _hyper_in(saved, member.hyper)
            path = _set_aside(self.setup, self.members[other], member.member, generation)
            loaded = Checkpointer(path).load()
            assert loaded is not None
            return _hyper_in(loaded, member.hyper)

        scores = [m.score for m in self.members]
        return self.setup.decide(member.member, generation, steps, scores, hyper_of)

    def _stop(self) -> None:
        """Have all members pause, saved, and wait for them."""
        running = self._running()
        for member in running:
            assert member.life is not None
            member.life.stop()
        for member in running:
            assert member.life is not None
            member.life.end()
            member.life = None

    def _summary(self, status: str) -> dict[str, Any]:
        members = [m.as_dict() for m in self.members]
        for now, member in zip(members, self.members, strict=True):
            saved = _newest(self.setup, member)  # in the middle of a generation, perhaps
            now["steps"] = member.steps if saved is None else saved.meta["agent_steps"]
        wall_seconds = self.wall_seconds + time.perf_counter() - self.started
        return self.setup.summary(status, members, wall_seconds)


def _earlier(setup: Setup) -> float:
    """Wall seconds of earlier lives that ended by themselves."""
    try:
        return float(json.loads((setup.directory / "summary.json").read_text())["wall_seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _members_of(setup: Setup, journal: Journal) -> list[Member]:
    """The members as the journal has them; those that it doesn't have yet are born."""
    members: dict[int, Member] = {}
    for event in setup.events():
        if event["event"] == "start":
            members[event["member"]] = Member(event["member"], event["hyper"])
        else:
            _apply(members[event["member"]], event)
    for i in range(setup.size):
        if i not in members:
            members[i] = Member(i, setup.first(i))
            journal.append(start_event(i, setup.seed_of(i), members[i].hyper))
    return [members[i] for i in range(setup.size)]


def _apply(member: Member, event: dict[str, Any]) -> None:
    """What an event of the journal makes of a member."""
    member.steps, member.episodes = event["steps"], event["episodes"]
    member.tally, member.score = event["tally"], score_in(event)
    if event["event"] == "end":
        member.ended = True
        return
    member.generation, member.hyper = event["generation"], event["after"]
    member.donor = event["donor"]


def _newest(setup: Setup, member: Member) -> Loaded | None:
    return Checkpointer(setup.member_dir(member.member) / "checkpoints").load()


def _hyper_in(loaded: Loaded, like: Hyper) -> Hyper:
    """What a checkpoint's learner had, of the names in `like`."""
    learner = loaded.tree("learner")
    assert isinstance(learner, dict)
    return {name: float(learner["hyper"][name]) for name in like}


def _set_aside_at(setup: Setup, member: int, generation: int) -> Path:
    """Where what a member inherits for a generation lies: a directory that holds one checkpoint."""
    return setup.member_dir(member) / f"inherited-{generation:04d}"


def _set_aside(setup: Setup, donor: Member, heir: int, generation: int) -> Path:
    """Keep the donor's newest checkpoint for the heir, whatever the donor goes on to do; whole, or
    not at all."""
    place = _set_aside_at(setup, heir, generation)
    temporary = place.with_name(f".tmp-{place.name}")
    while True:
        for leftover in (temporary, place):  # of a life that died before the journal named it
            shutil.rmtree(leftover, ignore_errors=True)
        found = _newest(setup, donor)
        assert found is not None, "it has a score"
        temporary.mkdir(parents=True)
        try:
            _link(found.path, temporary / found.path.name)
        except FileNotFoundError:
            continue  # the donor has saved a newer one meanwhile, and deleted this
        fsync_directory(temporary)
        temporary.rename(place)
        fsync_directory(place.parent)
        return place


def _link(source: Path, target: Path) -> None:
    """The same file, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
        with open(target, "rb") as file:
            os.fsync(file.fileno())


def _clear(setup: Setup, member: Member) -> None:
    """Forget what it has inherited for earlier generations."""
    current = _set_aside_at(setup, member.member, member.generation)
    for path in setup.member_dir(member.member).glob("inherited-*"):
        if path != current:
            shutil.rmtree(path, ignore_errors=True)


def _let_go(run_dir: Path) -> None:
    """Wait for a member's process of an earlier controller, which saves and goes once it notices
    that it is alone. Raises UserError where it doesn't."""
    end = time.monotonic() + ORPHANED
    while is_held(run_dir):
        if time.monotonic() > end:
            raise UserError(
                f"another process is training in '{run_dir}' and has not ended within"
                f" {ORPHANED:.0f} s; wait for it, or end it."
            )
        time.sleep(0.1)
