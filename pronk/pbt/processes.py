"""A run per member, each life of it in a process of its own: any runtime, any environment.

A member trains until it is ready, pauses like `--stop-after`, and gives its place to the one that
is furthest behind: there may be more members than `--workers`. The journal says what was decided;
what a member is to go on with is set aside before the journal names it, and taken up by the
member's next life, whose checkpoints note for which generation that was done. So whatever is killed
when, no member is lost, none inherits twice, and none goes on with other hyperparameters than the
journal's.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pronk import training
from pronk.checkpoint import Checkpointer, Loaded
from pronk.errors import Diverged, UserError
from pronk.files import fsync_directory
from pronk.journal import Journal
from pronk.pbt.common import Setup, end_event, ready_event, start_event
from pronk.pbt.policy import Decision, Hyper
from pronk.plan import Plan
from pronk.types import LearnerState

POLL = 0.5  # seconds after which a signal is noticed at the latest
ORPHANED = 120.0  # seconds that a member of a killed controller may take to save and go
MISTAKE, DIVERGED = 2, 3  # exit statuses of a life


class Legacy(NamedTuple):
    """What a member goes on with from a generation on."""

    generation: int
    hyper: Hyper
    donor: Path | None  # where the donor's checkpoint was set aside

    def take_up(
        self, state: LearnerState, notes: dict[str, Any]
    ) -> tuple[LearnerState, dict[str, Any]]:
        """`training.Change`: what a learner's state becomes, unless its checkpoint notes that it
        has become so already.

        Of the donor it has parameters, optimiser and statistics, and its untuned hyperparameters;
        counters and the random key stay its own.
        """
        if notes.get("generation") == self.generation:
            return state, notes
        if self.donor is not None:
            loaded = Checkpointer(self.donor).load()
            if loaded is None:
                raise UserError(
                    f"'{self.donor}' holds no checkpoint any more, and a member is to go on with"
                    " it; put it back, or start a new population."
                )
            donor: LearnerState = loaded.restore("learner", state)
            state = state._replace(
                params=donor.params, optimiser=donor.optimiser, aux=donor.aux, hyper=donor.hyper
            )
        hyper = {name: jnp.float32(value) for name, value in self.hyper.items()}
        state = state._replace(hyper=state.hyper | hyper)
        return jax.tree.map(jnp.asarray, state), {"generation": self.generation}


@dataclass
class Member:
    """A member as the journal has it, and the process that trains it, if one does."""

    member: int
    hyper: Hyper
    generation: int = 0
    steps: int = 0  # when it was last ready
    episodes: int = 0
    total_return: float = 0.0  # of all games so far
    score: float | None = None
    donor: int | None = None  # of this generation
    ended: bool = False
    paused: bool = False  # by `--stop-after`, in the middle of a generation
    deaths: int = 0
    process: Any = field(default=None, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """What is told of it."""
        names = ("member", "hyper", "generation", "steps", "score")
        return {name: getattr(self, name) for name in names}


def run(setup: Setup, journal: Journal, stopped: threading.Event) -> dict[str, Any]:
    """Train until the end, a pause or a signal; leaves every member as a run of its own, saved."""
    return _Processes(setup, journal).go(stopped)


class _Processes:
    """One life of a population's controller."""

    def __init__(self, setup: Setup, journal: Journal):
        self.setup, self.journal = setup, journal
        self.started = time.perf_counter()
        self.members = _members_of(setup, journal)
        self.copies = 0  # since the last line of progress
        self.shown = min(m.generation for m in self.members)

    def go(self, stopped: threading.Event) -> dict[str, Any]:
        """Until the end, a pause or a signal."""
        if self._waiting() and any(m.generation for m in self.members):
            self.setup.tell(f"resumed at {min(m.steps for m in self.members):,} steps each")
        try:
            while not stopped.is_set() and (self._waiting() or self._running()):
                self._fill()
                self._reap()
        finally:
            self._stop()
        if all(m.ended for m in self.members):
            return self._summary("finished")
        return self._summary("interrupted" if stopped.is_set() else "paused")

    def _running(self) -> list[Member]:
        return [m for m in self.members if m.process is not None]

    def _waiting(self) -> list[Member]:
        """Those to be trained on, the furthest behind first."""
        limit = self.setup.limit
        idle = [
            m
            for m in self.members
            if m.process is None and not m.ended and not m.paused and m.steps < limit
        ]
        return sorted(idle, key=lambda m: (m.steps, m.member))

    def _fill(self) -> None:
        """Have as many members trained as there may be workers."""
        for member in self._waiting():
            if len(self._running()) >= self.setup.settings.workers:
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
            donor = _set_aside_at(self.setup, member.member, member.generation)
        legacy = Legacy(member.generation, member.hyper, donor)
        plan = self.setup.member_plan(member.member, **goal)
        context = multiprocessing.get_context("spawn")  # forking after jax has started deadlocks
        process = context.Process(
            target=_live, args=(plan, self.setup.env, legacy), name=f"member {member.member}"
        )
        with _deaf():  # Ctrl-C reaches all processes of a terminal: let this one decide
            process.start()
        member.process = process

    def _reap(self) -> None:
        """Wait a moment for members whose life is over, and see what came of it."""
        running = self._running()
        wait([m.process.sentinel for m in running], timeout=POLL if running else 0)
        for member in running:
            if member.process.exitcode is not None:
                self._over(member, _ended(member))

    def _over(self, member: Member, status: int) -> None:
        """A life ended with this exit status."""
        saved = _newest(self.setup, member)
        if status == MISTAKE:
            raise UserError(
                f"member {member.member} can't be trained: {_last_words(self.setup, member)}"
            )
        if status == DIVERGED:
            if saved is None or not any(m.score is not None for m in self.members):
                raise UserError(
                    f"member {member.member} diverged, and there is none yet to copy instead: lower"
                    " the range of its learning rate, or have members ready later."
                )
            self._ready(member, saved, diverged=True)
        elif status == 0 and saved is not None and self._is_ready(member, saved):
            self._ready(member, saved)
        elif status != 0:
            self._died(member, status)
        elif saved is not None:
            member.paused = saved.meta["agent_steps"] >= self.setup.limit

    def _died(self, member: Member, status: int) -> None:
        member.deaths += 1
        how = f"signal {-status}" if status < 0 else f"status {status}"
        most = self.setup.plan.run.max_restarts
        log = self.setup.member_dir(member.member) / "log.txt"
        if member.deaths > most:
            raise UserError(
                f"member {member.member}'s process died {member.deaths} times, more than"
                f" `--max-restarts` {most}; the last time by {how}: see {log}. The others are"
                " saved."
            )
        self.setup.tell(
            f"member {member.member}'s process died ({how}); it goes on from its last checkpoint"
            f" ({member.deaths} of {most}): {log}"
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

    def _ready(self, member: Member, saved: Loaded, *, diverged: bool = False) -> None:
        """Score the member, and decide how it goes on or that it has come to the end."""
        steps, episodes = saved.meta["agent_steps"], saved.meta["episodes"]
        total = saved.meta["total_return"]
        if diverged:
            member.score = -math.inf
        elif episodes > member.episodes:
            member.score = (total - member.total_return) / (episodes - member.episodes)
        totals = {"total_return": total}
        if steps >= self.setup.plan.run.steps:
            event = end_event(
                member.member, steps=steps, episodes=episodes, score=member.score,
                hyper=member.hyper,
            )  # fmt: skip
        else:
            generation = member.generation + 1
            decision = self._decide(member, generation, saved)
            event = ready_event(
                member.member, generation, steps=steps, episodes=episodes, score=member.score,
                decision=decision, before=member.hyper,
            )  # fmt: skip
            self.copies += decision.donor is not None
        self.journal.append(event | totals)
        _apply(member, event | totals)
        _clear(self.setup, member)
        if min(m.generation for m in self.members) > self.shown or all(
            m.ended for m in self.members
        ):
            self.shown = min(m.generation for m in self.members)
            self.setup.progress([m.as_dict() for m in self.members], self.copies)
            self.copies = 0

    def _decide(self, member: Member, generation: int, saved: Loaded) -> Decision:
        """By everyone's latest scores. A donor's checkpoint is set aside for the member first, and
        its hyperparameters are those it holds: the ones that its score was won with, or newer."""

        def hyper_of(other: int) -> Hyper:
            if other == member.member:
                return _hyper_in(saved, member.hyper)
            path = _set_aside(self.setup, self.members[other], member.member, generation)
            loaded = Checkpointer(path).load()
            assert loaded is not None
            return _hyper_in(loaded, member.hyper)

        steps, scores = saved.meta["agent_steps"], [m.score for m in self.members]
        return self.setup.decide(member.member, generation, steps, scores, hyper_of)

    def _stop(self) -> None:
        """Have all members pause, saved, and wait for them."""
        running = self._running()
        for member in running:
            member.process.terminate()
        for member in running:
            member.process.join()
            _ended(member)

    def _summary(self, status: str) -> dict[str, Any]:
        members = [m.as_dict() for m in self.members]
        return self.setup.summary(status, members, time.perf_counter() - self.started)


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
    member.total_return, member.score = event["total_return"], event["score"]
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
        copy = temporary / found.path.name
        copy.mkdir(parents=True)
        try:
            for file in found.path.iterdir():
                _link(file, copy / file.name)
        except FileNotFoundError:
            continue  # the donor has saved a newer one meanwhile, and deleted this
        fsync_directory(copy)
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


def _ended(member: Member) -> int:
    """The exit status of its process, which is over."""
    process, member.process = member.process, None
    process.join()
    status = process.exitcode
    process.close()
    return status


def _last_words(setup: Setup, member: Member) -> str:
    """What its process said when it gave up."""
    log = setup.member_dir(member.member) / "log.txt"
    lines = [x for x in log.read_text(errors="replace").splitlines() if x.startswith("pronk: ")]
    return lines[-1].removeprefix("pronk: ") if lines else f"see {log}"


def _let_go(run_dir: Path) -> None:
    """Wait for a member's process of an earlier controller, which saves and goes once it notices
    that it is alone. Raises UserError where it doesn't."""
    end = time.monotonic() + ORPHANED
    while (run_dir / ".lock").exists():
        with (run_dir / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                pass
        if time.monotonic() > end:
            raise UserError(
                f"another process is training in '{run_dir}' and has not ended within"
                f" {ORPHANED:.0f} s; wait for it, or end it."
            )
        time.sleep(0.1)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Ignore SIGINT, and have what is started meanwhile ignore it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _live(plan: Plan, env: Any, legacy: Legacy) -> None:
    """A life of a member, in a process of its own: until it pauses, saved, or is told to."""
    plan.run_dir.mkdir(parents=True, exist_ok=True)
    with open(plan.run_dir / "log.txt", "ab", buffering=0) as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)  # nobody would go on from here: save, and end

    threading.Thread(target=watch, daemon=True).start()
    try:
        training.run(plan, env, change=legacy.take_up)
    except UserError as error:
        print(f"pronk: {error}", file=sys.stderr, flush=True)
        sys.exit(DIVERGED if isinstance(error, Diverged) else MISTAKE)
