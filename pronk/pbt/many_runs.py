"""A workplace where every member is a run of its own: any runtime, any environment.

A member trains until it is ready, pauses as with `--stop-after`, and makes room for the member with
the fewest steps: there may be more members than `--parallel-members`. What a member copies is set
aside before the journal has the decision; its next run adopts that once, and its checkpoints note
for which generation. So whatever is killed at any moment, no member is lost, none copies twice, and
none trains with other hyperparameters than the journal's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pronk import envs
from pronk.config.architectures import Case
from pronk.config.json_files import read_object
from pronk.config.registry import agent_module
from pronk.errors import UserError
from pronk.pbt.controller import Change, Member, Report
from pronk.pbt.decide import Hyper
from pronk.pbt.member_run import (
    DIVERGED,
    MACHINE_LEFT,
    USER_ERROR,
    Inheritance,
    Launcher,
    MemberRun,
)
from pronk.pbt.setup import Setup, is_locked
from pronk.run.evaluate import Tally
from pronk.storage.checkpoint import Checkpointer, Loaded
from pronk.storage.files import fsync_directory

POLL = 0.5  # seconds after which a signal is noticed at the latest
ORPHAN_TIMEOUT = 120.0  # seconds for a run of a killed controller to save and end


class ManyRuns:
    """`controller.Workplace`: members are runs that a `launcher` starts."""

    in_step = False

    def __init__(self, setup: Setup, launcher: Launcher):
        self.setup, self.launcher = setup, launcher
        self._started = time.perf_counter()
        self._earlier = 0.0
        with contextlib.suppress(UserError, ValueError, KeyError, TypeError):
            self._earlier = float(read_object(setup.directory / "summary.json")["wall_seconds"])
        self._running: dict[int, MemberRun] = {}
        self._paused: set[int] = set()  # by `--stop-after`, in the middle of a generation
        self._deaths: Counter[int] = Counter()
        self._warned = False
        jax_env = envs.jax_env_of(setup.env, setup.plan.env_args) is not None
        case = Case(setup.plan, setup.agent.source, setup.agent.halves is not None, jax_env)
        self._never_restarts = case.fused or case.exact  # members have no actors to restart

    @property
    def wall_seconds(self) -> float:
        """Seconds of training, those of earlier controllers that were not killed included."""
        return self._earlier + time.perf_counter() - self._started

    def load(self) -> None:
        """Nothing: the journal has all decisions, and each member its own checkpoints."""

    def begin(self, members: Sequence[Member]) -> list[int]:
        """Nothing to start yet; agent steps of each member when it was last ready."""
        return [member.steps for member in members]

    def advance(self, members: Sequence[Member]) -> list[Report] | None:
        """Start runs while there is room, then wait a moment for one to finish."""
        waiting = self._waiting(members)
        if not waiting and not self._running:
            return None
        for member in waiting:
            if len(self._running) >= self.setup.settings.parallel_members:
                break
            saved = self._newest(member.member)
            if saved is not None and self._is_ready(member, saved):
                return [self._report(member, saved)]  # its controller died before deciding
            _wait_for_orphan(self.setup.member_dir(member.member))
            self._start(member)
        self.launcher.wait(list(self._running.values()), POLL)
        for i, run in self._running.items():
            if run.finished:
                del self._running[i]
                return self._finished(members[i], run)
        return []

    def _waiting(self, members: Sequence[Member]) -> list[Member]:
        """Members to be trained, the one with the fewest steps first."""
        idle = [
            m
            for m in members
            if m.steps < self.setup.limit
            and not (m.ended or m.diverged)
            and m.member not in self._running.keys() | self._paused
        ]
        return sorted(idle, key=lambda m: (m.steps, m.member))

    def _start(self, member: Member) -> None:
        """Start a run until the member is ready."""
        setup, settings = self.setup, dict[str, Any](stop_after=self.setup.limit)
        if setup.ready_steps is None:
            assert setup.settings.ready_episodes is not None
            settings["stop_after_episodes"] = member.episodes + setup.settings.ready_episodes
        else:
            settings["stop_after"] = min(setup.limit, member.steps + setup.ready_steps)
        donor = None
        if member.donor is not None:
            donor = self._copy_dir(member.member, member.generation).resolve()
        defaults = agent_module(setup.plan.agent).run_config()
        used_here = ["max_restarts"] if self._never_restarts else []
        if setup.settings.execution == "ray":  # the member's actors are where it is
            used_here += ["ray", "actor_cpus", "actor_gpus", "actor_resource"]
        settings |= {name: getattr(defaults, name) for name in used_here}
        plan = setup.member_plan(member.member, **settings)
        start = plan.run.init_from
        run = dataclasses.replace(  # on other machines, paths are what they are here
            plan.run,
            run_dir=plan.run_dir.resolve(),
            init_from=None if start is None else Path(plan.home, start).resolve(),
        )
        plan = dataclasses.replace(plan, run=run)
        inheritance = Inheritance(member.generation, member.hyper, donor)
        self._running[member.member] = self.launcher.start(plan, setup.env, inheritance)

    def _finished(self, member: Member, run: MemberRun) -> list[Report]:
        """Report on a member whose run has ended, if it is ready or has diverged."""
        status = run.wait()
        saved = self._newest(member.member)
        if status == USER_ERROR:
            raise UserError(f"member {member.member} can't be trained: {run.error_text}")
        if status == DIVERGED:
            return [self._report(member, saved, diverged=True)]
        if status == MACHINE_LEFT:
            self.setup.message(
                f"the machine of member {member.member} left the cluster; the member goes on on"
                " another one"
            )
        elif status != 0:
            self._count_death(member.member, status, run)
        elif saved is None:
            raise UserError(
                f"member {member.member} finished a generation without a single update (its replay"
                " was still filling), so nothing was saved. Increase --ready-steps, or let it learn"
                " from a smaller replay."
            )
        elif self._is_ready(member, saved):
            return [self._report(member, saved)]
        elif saved.meta["agent_steps"] >= self.setup.limit:
            self._paused.add(member.member)
        return []

    def _count_death(self, member: int, status: int, run: MemberRun) -> None:
        self._deaths[member] += 1
        deaths, most = self._deaths[member], self.setup.plan.run.max_restarts
        cause = f"signal {-status}" if status < 0 else f"status {status}"
        if deaths > most:
            raise UserError(
                f"the process of member {member} died {deaths} times, more than `--max-restarts`"
                f" {most}; the last time by {cause}: {run.error_text}. The other members are saved."
            )
        self.setup.message(
            f"the process of member {member} died ({cause}); it restarts from its last checkpoint"
            f" ({deaths} of {most}): {run.error_text}"
        )

    def _is_ready(self, member: Member, saved: Loaded) -> bool:
        """Whether the checkpoint is the end of the member's present generation."""
        if saved.meta["notes"].get("generation") != member.generation:
            return False
        steps, episodes = saved.meta["agent_steps"], saved.meta["episodes"]
        if steps >= self.setup.plan.run.steps:
            return True
        if self.setup.ready_steps is not None:
            return steps >= member.steps + self.setup.ready_steps
        wanted = self.setup.settings.ready_episodes
        return wanted is not None and episodes >= member.episodes + wanted

    def _report(self, member: Member, saved: Loaded | None, *, diverged: bool = False) -> Report:
        """saved: None where a member diverged before its first checkpoint."""
        steps, episodes, tally = member.steps, member.episodes, member.tally
        if saved is not None:
            meta = saved.meta
            steps, episodes, tally = meta["agent_steps"], meta["episodes"], meta["tally"]
        tasks = self.setup.spec.num_tasks
        games = Tally.from_json(tally, tasks).plus(Tally.from_json(member.tally, tasks), -1)
        final = steps >= self.setup.plan.run.steps
        return Report(
            member.member, steps, episodes, games, final=final, diverged=diverged, tally=tally
        )

    def copy(self, donor: Member, heir: Member, generation: int) -> tuple[Hyper, int]:
        """Keep the donor's newest checkpoint for the heir, complete or not at all; its
        hyperparameters are those of the donor's score, or newer ones."""
        target = self._copy_dir(heir.member, generation)
        temporary = target.with_name(f".tmp-{target.name}")
        while True:
            for leftover in (temporary, target):  # of a controller that died before the decision
                shutil.rmtree(leftover, ignore_errors=True)
            newest = self._newest(donor.member)
            assert newest is not None, "it has a score"
            temporary.mkdir(parents=True)
            try:
                _link(newest.path, temporary / newest.path.name)
            except FileNotFoundError:
                continue  # the donor has just saved a newer one and deleted this one
            fsync_directory(temporary)
            temporary.rename(target)
            fsync_directory(target.parent)
            break
        loaded = Checkpointer(target).load()
        assert loaded is not None
        learner = loaded.tree("learner")
        assert isinstance(learner, dict)
        hyper = {name: float(learner["hyper"][name]) for name in heir.hyper}
        return hyper, loaded.meta["agent_steps"]

    def apply(self, changes: Sequence[Change]) -> None:
        """Remove what members copied for earlier generations; their next run does the rest."""
        for member, counted in changes:
            if not counted and not self._warned:
                self._warned = True
                self.setup.message(
                    f"warning: member {member.member} has no new score, because no episode of some"
                    " task has ended since its last one; an episode that is unfinished when a run"
                    " pauses is not counted. Increase --ready-steps."
                )
            current = self._copy_dir(member.member, member.generation)
            for path in self.setup.member_dir(member.member).glob("inherited-*"):
                if path != current:
                    shutil.rmtree(path, ignore_errors=True)

    def save(self, journal: int) -> None:
        """Nothing: every run saves itself."""

    def finish(self, journal: int, best: int | None) -> list[int]:
        """Pause all runs, saved."""
        self._stop()
        saved = [self._newest(i) for i in range(self.setup.size)]
        return [0 if loaded is None else loaded.meta["agent_steps"] for loaded in saved]

    def close(self) -> None:
        """Stop all runs, and close the launcher."""
        self._stop()
        self.launcher.close()

    def _stop(self) -> None:
        for run in self._running.values():
            run.stop()
        for run in self._running.values():
            run.wait()
        self._running.clear()

    def _newest(self, member: int) -> Loaded | None:
        return Checkpointer(self.setup.member_dir(member) / "checkpoints").load()

    def _copy_dir(self, member: int, generation: int) -> Path:
        """The directory of the checkpoint that a member copies for a generation."""
        return self.setup.member_dir(member) / f"inherited-{generation:04d}"


def _link(source: Path, target: Path) -> None:
    """Link a file, or copy it where the file system has no links."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
        with open(target, "rb") as file:
            os.fsync(file.fileno())


def _wait_for_orphan(run_dir: Path) -> None:
    """Wait for a run of an earlier controller, which saves and ends when it notices that it is
    alone. Raises UserError where it does not."""
    end = time.monotonic() + ORPHAN_TIMEOUT
    while is_locked(run_dir):
        if time.monotonic() > end:
            raise UserError(
                f"another process is training in '{run_dir}' and has not ended within"
                f" {ORPHAN_TIMEOUT:.0f} s; wait for it, or end it."
            )
        time.sleep(0.1)
