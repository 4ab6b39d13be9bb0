"""Population based training without training: the controller, and what both workplaces keep on disk
when they are killed, resumed, or their members diverge."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pbt_fakes import (
    FLAGS,
    TUNE,
    FakeWorkplace,
    Killed,
    assert_same,
    check_journal,
    contents,
    kill_once,
    plan_in,
    saved_of,
    settings,
    use_fake_launcher,
    use_stub,
)

from pronk import cli, envs, pbt
from pronk.config.pbt import PBTConfig
from pronk.config.registry import AGENTS, agent_module
from pronk.config.run import RunConfig
from pronk.errors import UserError
from pronk.pbt import member_run
from pronk.pbt.controller import Controller, Report
from pronk.pbt.many_runs import ManyRuns
from pronk.pbt.member_run import Inheritance, ProcessRun
from pronk.pbt.one_program import Counters
from pronk.pbt.setup import Setup, open_journal
from pronk.run import plot_population as lineage
from pronk.run import train as training
from pronk.run.evaluate import Tally
from pronk.run.resolve import resolve
from pronk.run.setup import build, initial_state
from pronk.run.train import MAX_SKIPPED
from pronk.storage.checkpoint import Checkpointer
from pronk.storage.journal import Journal, read_journal

EVENT = threading.Event()  # never set

# The controller.


def controller(
    directory: Path, workplace: FakeWorkplace, env: str = "pronk/Catch-v0", **changes: Any
) -> Controller:
    """Of members that start with `learning_rate` in order of their number."""
    setup = pbt.set_up(plan_in(directory), settings(perturb_probability=0.0, **changes))
    setup = dataclasses.replace(setup, spec=envs.spec_of(env))
    directory.mkdir(exist_ok=True)
    return Controller(setup, open_journal(setup, one_program=workplace.in_step), workplace)


def report(member: int, steps: int, mean: float | None, **changes: Any) -> Report:
    """Of three episodes with this mean return, if any."""
    count = 0 if mean is None else 3
    total = (mean or 0.0) * count
    return Report(member, steps, count, Tally([total], [total**2 / 3], [count]), **changes)


def events_in(directory: Path, name: str = "ready") -> list[dict[str, Any]]:
    return [e for e in read_journal(directory / "journal.jsonl") if e["event"] == name]


def test_scores_are_of_the_games_since_last_time(tmp_path: Path) -> None:
    workplace = FakeWorkplace()
    made = controller(tmp_path, workplace)
    member = made.members[0]
    assert member.score is None
    made.handle([report(0, 100, None)._replace(games=Tally([6.0], [14.0], [3]))])  # 1, 2 and 3
    assert member.score == (2.0, pytest.approx(1 / np.sqrt(3)))
    made.handle([report(0, 200, None)._replace(games=Tally([-5.0], [25.0], [1]))])
    assert member.score == (-5.0, math.inf)  # of one episode
    assert events_in(tmp_path)[-1]["error"] is None
    made.handle([report(0, 300, None)])
    assert member.score == (-5.0, math.inf)  # no episode has ended: it is all that is known
    assert [change.counted for change in workplace.changes] == [True, True, False]
    assert member.generation == 3


def test_games_count_until_every_task_has_one(tmp_path: Path) -> None:
    workplace = FakeWorkplace()
    made = controller(tmp_path, workplace, "pronk/Catch-v0,pronk/DeepSea-v0")
    made.handle([report(0, 100, None)._replace(games=Tally([2.0, 0.0], [2.0, 0.0], [2, 0]))])
    assert made.members[0].score is None
    assert not workplace.changes[-1].counted
    made.handle([report(0, 200, None)._replace(games=Tally([3.0, 6.0], [3.0, 18.0], [3, 2]))])
    assert made.members[0].score == ((1.0 + 3.0) / 2, pytest.approx(0.0))
    assert workplace.changes[-1].counted


def test_members_in_step_decide_from_the_same_state(tmp_path: Path) -> None:
    """Donors are copied as they were before any decision of that moment."""
    workplace = FakeWorkplace(in_step=True)
    made = controller(tmp_path, workplace)
    before = [dict(member.hyper) for member in made.members]
    for generation in range(1, 9):
        steps = 400 * generation
        made.handle([report(i, steps, (i + generation) % 4 + 1) for i in range(4)])
        for event in events_in(tmp_path)[-4:]:
            expected = event["member"] if event["donor"] is None else event["donor"]
            assert event["after"] == before[expected]
        before = [dict(member.hyper) for member in made.members]
    copies = [e for e in events_in(tmp_path) if e["donor"] is not None]
    assert copies
    assert [(e["donor"], e["member"], e["generation"]) for e in copies] == workplace.copies
    assert [change.member.generation for change in workplace.changes[-4:]] == [8] * 4


def test_a_controller_goes_on_from_its_journal(tmp_path: Path) -> None:
    first = controller(tmp_path, FakeWorkplace())
    first.handle([report(1, 400, 2.0, tally={"total": [6.0]})])
    first.handle([report(1, 800, None, tally={"total": [7.0]})])
    first.handle([report(0, 2000, 1.0, final=True)])
    again = controller(tmp_path, FakeWorkplace())
    assert again.members == first.members
    assert again.members[0].ended
    assert (again.members[1].generation, again.members[1].steps) == (2, 800)
    assert again.members[1].tally == {"total": [6.0]}  # as of its last score
    assert len(events_in(tmp_path, "start")) == 4


@pytest.mark.parametrize("in_step", [True, False])
def test_a_diverged_member_copies_any_that_has_a_score(in_step: bool, tmp_path: Path) -> None:
    """Also before the others may, and however much worse; without one it waits, if it can."""
    workplace = FakeWorkplace(in_step=in_step)
    made = controller(tmp_path, workplace, evolve_after=10**6)
    made.handle([report(1, 100, 5.0, diverged=True)])
    assert len(events_in(tmp_path)) == in_step
    assert made.members[1].diverged
    made.handle([report(0, 400, -9.0)])
    if in_step:  # it goes on, and is reported again
        made.handle([report(1, 200, 5.0, diverged=True)])
    *_, copied = events_in(tmp_path)
    assert (copied["member"], copied["donor"], copied["score"]) == (1, 0, None)
    assert copied["donor_steps"] == 400
    assert workplace.copies[-1][:2] == (0, 1)
    assert made.members[1].diverged is in_step
    others = [e for e in events_in(tmp_path) if e["member"] != 1]
    assert all(e["donor"] is None for e in others)


@pytest.mark.parametrize("in_step", [True, False])
def test_all_members_diverge(in_step: bool, tmp_path: Path) -> None:
    made = controller(tmp_path, FakeWorkplace(in_step=in_step))
    made.handle([report(i, 100, 1.0, diverged=True) for i in range(3)])
    with pytest.raises(UserError, match="all members diverged"):
        made.handle([report(3, 100, 1.0, diverged=True)])


def test_a_member_that_nobody_may_replace_stays_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = [[report(i, 2000, float(i), final=True)] for i in (0, 2, 3)]
    workplace = FakeWorkplace([report(1, 100, 9.0, diverged=True)], *ends)
    summary = controller(tmp_path, workplace, copy_margin=math.inf).run(EVENT)
    assert (summary["status"], summary["best"], summary["copies"]) == ("finished", 3, 0)
    assert "member 1 diverged, and no member could be copied" in capsys.readouterr().out
    assert sorted(e["member"] for e in events_in(tmp_path, "end")) == [0, 2, 3]


def test_a_summary_is_of_the_last_scores(tmp_path: Path) -> None:
    workplace = FakeWorkplace([report(i, 2000, 10.0 - i, final=True) for i in range(3)])
    made = controller(tmp_path, workplace)
    summary = made.run(EVENT)
    assert (summary["status"], summary["best"]) == ("paused", 0)
    assert (summary["best_score"], summary["median_score"]) == (10.0, 9.0)
    assert summary["best_hyper"] == made.members[0].hyper
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


# One program.


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A population in one program that was never interrupted."""
    directory = tmp_path_factory.mktemp("pbt") / "whole"
    with pytest.MonkeyPatch.context() as patched:
        use_stub(patched)
        assert pbt.run(plan_in(directory), settings())["status"] == "finished"
    return directory


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members of one program learn nothing."""
    use_stub(monkeypatch)


def test_a_population_does_what_its_journal_says(whole: Path) -> None:
    events = check_journal(whole)
    assert {e["event"] for e in events} == {"start", "ready", "end"}
    copies = [e for e in events if e.get("donor") is not None]
    assert copies
    assert any(e.get("factors") for e in copies)
    assert any(e["event"] == "ready" and e["donor"] is None and e["factors"] for e in events)
    ends = {e["member"]: e for e in events if e["event"] == "end"}
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["copies"] == len(copies)
    assert summary["best_score"] == max(e["score"] for e in ends.values())
    assert summary["best_hyper"] == ends[summary["best"]]["hyper"]
    assert summary["median_score"] == np.median([e["score"] for e in ends.values()])


@pytest.mark.parametrize("where", ["before the journal", "after it", "torn", "saved"])
@pytest.mark.parametrize("which", [2, 4])
def test_killed_and_resumed_it_equals_the_uninterrupted_one(
    where: str, which: int, whole: Path, stub: None, tmp_path: Path, monkeypatch: Any
) -> None:
    """At the `which`-th event or checkpoint, with a checkpoint after each call of the program."""
    kill_once(monkeypatch, where, which, plan_in(tmp_path, checkpoint_every=1e-9))
    plan = plan_in(tmp_path, checkpoint_every=1e-9)
    assert pbt.run(plan, settings())["status"] == "finished"
    assert_same(contents(tmp_path), contents(whole))


def test_paused_and_resumed_it_equals_the_uninterrupted_one(
    whole: Path, stub: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the middle of a generation; and a finished one is left alone."""
    for part in (300, 1300):
        paused = pbt.run(plan_in(tmp_path, stop_after=part), settings())
        assert paused["status"] == "paused"
        assert part <= paused["agent_steps"] / 4 < 2000
    assert pbt.run(plan_in(tmp_path), settings())["status"] == "finished"
    assert_same(contents(tmp_path), contents(whole))
    assert re.search(r"^resumed at \d+ steps each", capsys.readouterr().out, re.M)
    before = contents(tmp_path)
    assert pbt.run(plan_in(tmp_path), settings())["status"] == "finished"
    assert "already trained for " in capsys.readouterr().out
    assert_same(contents(tmp_path), before)


def test_ready_by_episodes(stub: None, tmp_path: Path) -> None:
    pbt.run(plan_in(tmp_path), settings(ready_steps=None, ready_episodes=60))
    events = check_journal(tmp_path)
    for member in range(4):
        played = [0, *(e["episodes"] for e in events if e["member"] == member and "episodes" in e)]
        assert all(60 <= b - a < 120 for a, b in itertools.pairwise(played[:-1]))


def test_members_of_one_program_that_diverge_copy(
    stub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whose last twenty updates none had a finite gradient; however they become ready."""
    usual = Setup.initial_hyper

    def initial(setup: Setup, member: int) -> dict[str, float]:
        return usual(setup, member) | ({"learning_rate": 1e35} if member == 1 else {})

    monkeypatch.setattr(Setup, "initial_hyper", initial)
    config = settings(copy_margin=1e6, perturb_probability=0.0)
    pbt.run(plan_in(tmp_path / "one"), config)
    events = check_journal(tmp_path / "one")
    copied = [e for e in events if e.get("donor") is not None]
    assert [e["member"] for e in copied] == [1]
    assert copied[0]["score"] is None
    assert copied[0]["after"]["learning_rate"] < 1
    with pytest.raises(UserError, match="all members diverged"):
        pbt.run(plan_in(tmp_path / "all"), settings(tune=("learning_rate=6:9",)))
    config = settings(tune=("learning_rate=6:9",), ready_steps=None, ready_episodes=20)
    with pytest.raises(UserError, match="all members diverged"):
        pbt.run(plan_in(tmp_path / "by episodes", 20_000), config)


def test_one_non_finite_gradient_is_no_divergence() -> None:
    counters = Counters()
    for updates, skipped, diverged in ((1, 1, False), (19, 18, False), (2, 2, True), (9, 8, False)):
        counters.add(Tally([3.0], [3.0], [3]), 100, updates, skipped)
        assert (counters.skipped >= MAX_SKIPPED) is diverged
    assert (counters.steps, counters.episodes, counters.games, counters.calls) == (400, 12, 12, 4)
    assert counters.tally == {"total": [12.0], "squares": [12.0], "count": [12]}


def test_an_update_may_be_longer_than_a_call(stub: None, tmp_path: Path) -> None:
    """Members are ready as often as they are to be, to the nearest update."""
    pbt.run(plan_in(tmp_path, 6000, unroll=150), settings(ready_steps=1800, population=2))
    ready = [e["steps"] for e in check_journal(tmp_path, 2) if e["event"] == "ready"]
    assert 1200 < ready[0] <= 1800  # 3 updates of 600 rows each, a fifth of them dummies


def test_a_population_in_one_program_ends_within_a_call_of_its_steps(
    stub: None, tmp_path: Path
) -> None:
    """Whenever members are ready."""
    summary = pbt.run(plan_in(tmp_path), settings(ready_steps=100_000))
    assert 4 * 2000 <= summary["agent_steps"] <= 4 * (2000 + 120)


def test_what_a_population_learnt_is_not_forgotten_with_its_settings(
    stub: None, tmp_path: Path
) -> None:
    pbt.run(plan_in(tmp_path, 800, stop_after=400), settings(population=2, ready_steps=200))
    for name in ("pbt.json", "journal.jsonl"):
        saved = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        with pytest.raises(UserError, match=f"holds a population, but its {name} is missing"):
            pbt.run(plan_in(tmp_path, 800), settings(population=2, ready_steps=200))
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_bytes(saved)
    result = pbt.run(plan_in(tmp_path, 800), settings(population=2, ready_steps=200))
    assert result["status"] == "finished"


def test_the_best_is_written_again_if_that_was_cut_off(stub: None, tmp_path: Path) -> None:
    summary = pbt.run(plan_in(tmp_path, 400), settings())
    shutil.rmtree(tmp_path / "members")
    assert pbt.run(plan_in(tmp_path, 400), settings())["best_run"] == summary["best_run"]
    assert saved_of(tmp_path, summary["best"]).meta["agent_steps"] >= 400


def test_members_are_not_adapted_before_evolve_after(stub: None, tmp_path: Path) -> None:
    pbt.run(plan_in(tmp_path), settings(evolve_after=1000, copy_margin=0.0))
    ready = [e for e in check_journal(tmp_path) if e["event"] == "ready"]
    early = [e for e in ready if e["steps"] < 1000]
    assert len(early) == 4 * 3
    assert all(e["donor"] is None and not e["factors"] for e in early)
    assert any(e["donor"] is not None for e in ready)


def test_every_task_has_a_slot_in_one_program(tmp_path: Path) -> None:
    plan = resolve(
        "impala", "pronk/Catch-v0,pronk/DeepSea-v0", run_dir=tmp_path, batch_size=1, steps=100
    )
    with pytest.raises(UserError, match="1 of the 2 tasks"):
        pbt.run(plan, settings())


def test_a_directory_belongs_to_one_population(
    whole: Path, stub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(whole)
    with pytest.raises(UserError, match=r"holds another population.*entropy_cost"):
        pbt.run(plan_in(whole, 2000), settings(tune=TUNE[:1]))
    with pytest.raises(UserError, match=r"holds another population.*hidden_sizes: \[8\] there"):
        pbt.run(plan_in(whole, 2000, hidden_sizes=(16,)), settings())
    with pytest.raises(UserError, match="holds a population, whose members are runs"):
        training.run(plan_in(whole, 2000))
    assert_same(contents(whole), before)
    # A refused command that saved nothing does not block another one.
    use_fake_launcher(monkeypatch).failing[0, 1] = member_run.USER_ERROR
    refused = settings(population=2, execution="processes", parallel_members=1)
    with pytest.raises(UserError, match=r"member 0 can't be trained: it fell"):
        pbt.run(plan_in(tmp_path / "refused", 200), refused)
    shutil.rmtree(tmp_path / "refused" / "members")  # the launcher has trained nevertheless
    assert (tmp_path / "refused" / "journal.jsonl").stat().st_size > 0
    assert pbt.run(plan_in(tmp_path / "refused", 200), settings(population=2))["generations"] == 0
    Checkpointer(tmp_path / "run" / "checkpoints").save(1, {}, {}, block=True)
    with pytest.raises(UserError, match="holds a run, so it cannot hold a population"):
        pbt.run(plan_in(tmp_path / "run", 100), settings())


def test_a_population_stays_in_one_program_or_in_runs(
    stub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_launcher(monkeypatch)
    for first, second in (("vmapped", "processes"), ("processes", "vmapped")):
        directory = tmp_path / first
        one, other = (
            settings(population=3, ready_steps=200, execution=execution)
            for execution in (first, second)
        )
        pbt.run(plan_in(directory, 400), one)
        journal = (directory / "journal.jsonl").read_bytes()
        with pytest.raises(UserError, match=r"holds another population \(execution: "):
            pbt.run(plan_in(directory, 400), other)
        assert (directory / "journal.jsonl").read_bytes() == journal


# Members as runs of their own.

PROCESSES: dict[str, Any] = {
    "population": 3, "ready_steps": 200, "copy_margin": 0.0, "copy_sigmas": 0.0,
    "execution": "processes", "parallel_members": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A population whose members run one after another, never interrupted."""
    directory = tmp_path_factory.mktemp("processes") / "alone"
    with pytest.MonkeyPatch.context() as patched:
        use_fake_launcher(patched)
        assert pbt.run(plan_in(directory, 800), settings(**PROCESSES))["status"] == "finished"
    return directory


def events_of(events: list[dict[str, Any]], member: int) -> list[dict[str, Any]]:
    return [e for e in events if e["member"] == member]


def test_members_in_processes_do_what_the_journal_says(alone: Path) -> None:
    events = check_journal(alone, 3)
    assert any(e.get("donor") is not None for e in events)
    assert any(e.get("factors") for e in events)
    for end in (e for e in events if e["event"] == "end"):
        saved = saved_of(alone, end["member"])
        learner = saved.tree("learner")
        assert saved.meta["notes"] == {"generation": len(events_of(events, end["member"])) - 2}
        for name, value in end["hyper"].items():
            assert learner["hyper"][name] == np.float32(value)
        assert end["tally"] == saved.meta["tally"]


@pytest.mark.parametrize(
    ("where", "which"),
    [
        *(("set aside", which) for which in (1, 2)),
        *(("journal", which) for which in (1, 2, 3, 8)),
        *(("before the journal", which) for which in (1, 2, 3, 8)),
    ],
)
def test_a_controller_killed_anywhere_decides_the_same_again(
    where: str, which: int, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_launcher(monkeypatch)
    append, copy, count = Journal.append, ManyRuns.copy, 0

    def counted(call: Any, *args: Any) -> Any:
        nonlocal count
        count += 1
        if count == which and where == "before the journal":
            raise Killed
        result = call(*args)
        if count == which:
            raise Killed
        return result

    with monkeypatch.context() as patched:
        if where == "set aside":
            patched.setattr(ManyRuns, "copy", lambda *a: counted(copy, *a))
        else:
            patched.setattr(Journal, "append", lambda *a: counted(append, *a))
        with pytest.raises(Killed):
            pbt.run(plan_in(tmp_path, 800), settings(**PROCESSES))
    pbt.run(plan_in(tmp_path, 800), settings(**PROCESSES))
    assert (tmp_path / "journal.jsonl").read_bytes() == (alone / "journal.jsonl").read_bytes()
    for member in range(3):
        found, expected = (saved_of(d, member).tree("learner") for d in (tmp_path, alone))
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_runs_are_ready_by_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_launcher(monkeypatch)
    config = settings(**PROCESSES | {"ready_steps": None, "ready_episodes": 60})
    assert pbt.run(plan_in(tmp_path, 800), config)["status"] == "finished"
    ready = [e for e in check_journal(tmp_path, 3) if e["event"] == "ready"]
    assert {e["episodes"] for e in ready if e["generation"] == 1} == {60}
    assert {e["generation"] for e in ready} == {1, 2, 3}


def test_an_inheritance_is_adopted_once(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    _, agent = build(plan, plan.env)
    state = initial_state(plan, agent)
    donor = tmp_path / "donor"
    theirs = state._replace(
        params=jax.tree.map(lambda x: x + 1.0, state.params),
        opt_state=jax.tree.map(lambda x: x + 1, state.opt_state),
        hyper=state.hyper | {"value_cost": jnp.float32(9.0), "learning_rate": jnp.float32(8.0)},
        steps=jnp.uint32(77),
    )
    Checkpointer(donor).save(77, {"learner": theirs}, {}, block=True)
    inheritance = Inheritance(3, {"learning_rate": 0.5, "entropy_cost": 0.25}, donor)
    adopted, notes = inheritance.apply(agent, state, {"generation": 2})
    assert notes == {"generation": 3}
    for a, b in ((adopted.params, theirs.params), (adopted.opt_state, theirs.opt_state)):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    assert int(adopted.steps) == 0
    hyper = {k: float(v) for k, v in adopted.hyper.items()}
    assert (hyper["learning_rate"], hyper["entropy_cost"], hyper["value_cost"]) == (0.5, 0.25, 9.0)
    # A restart sees it in the checkpoint's notes, and keeps what was learnt since.
    again, notes = inheritance.apply(agent, state, notes)
    assert again is state
    assert notes == {"generation": 3}
    with pytest.raises(UserError, match="holds no checkpoint, but a member is to copy it"):
        inheritance._replace(donor=tmp_path / "gone").apply(agent, state, {})


def test_a_member_that_diverges_copies_another_and_one_that_keeps_dying_stops_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = use_fake_launcher(monkeypatch)
    launcher.failing[1, 2] = member_run.DIVERGED
    config = settings(**PROCESSES)
    pbt.run(plan_in(tmp_path / "a", 600), config)
    events = check_journal(tmp_path / "a", 3)
    second = next(e for e in events_of(events, 1) if e.get("generation") == 2)
    assert second["score"] is None
    assert second["donor"] in (0, 2)  # whatever their scores
    others = [e for e in events if e["event"] == "ready" and e is not second]
    assert all(e["score"] is not None for e in others)
    # Killed each time that it runs.
    launcher.started.clear()
    launcher.failing = {(1, 1): -9, (1, 2): -9}
    with pytest.raises(UserError, match="died 2 times, more than `--max-restarts` 1; the last"):
        pbt.run(plan_in(tmp_path / "b", 300, max_restarts=1), config)
    assert capsys.readouterr().out.count("the process of member 1 died (signal 9)") == 1
    # The same command goes on once the cause is gone.
    assert pbt.run(plan_in(tmp_path / "b", 300, max_restarts=1), config)["status"] == "finished"
    check_journal(tmp_path / "b", 3)
    # An error of the user's is shown as it is.
    launcher.started.clear()
    launcher.failing = {(0, 1): member_run.USER_ERROR}
    with pytest.raises(UserError, match=r"^member 0 can't be trained: it fell$"):
        pbt.run(plan_in(tmp_path / "c", 500), config)


def test_diverged_runs_copy_any_member_that_has_a_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also before the others may copy; unless no member ever does."""
    launcher = use_fake_launcher(monkeypatch)
    launcher.failing = {(member, 2): member_run.DIVERGED for member in (0, 1)}
    config = settings(**PROCESSES | {"evolve_after": 10**6})
    pbt.run(plan_in(tmp_path / "a", 600), config)
    copied = [e for e in check_journal(tmp_path / "a", 3) if e.get("donor") is not None]
    assert {e["member"] for e in copied} == {0, 1}
    assert all(e["score"] is None for e in copied)
    launcher.started.clear()
    launcher.failing = {(1, 2): member_run.DIVERGED}
    config = settings(**PROCESSES | {"copy_margin": math.inf})
    summary = pbt.run(plan_in(tmp_path / "b", 600), config)
    assert summary["status"] == "finished"
    assert summary["best"] in (0, 2)
    assert "member 1 diverged, and no member could be copied" in capsys.readouterr().out
    assert sorted(e["member"] for e in events_in(tmp_path / "b", "end")) == [0, 2]


def test_a_run_that_diverges_before_there_is_a_score_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a directory with a relative name; whether or not anything was saved."""
    monkeypatch.chdir(tmp_path)
    for unsaved in (set(), {(0, 1)}):
        launcher = use_fake_launcher(monkeypatch)
        launcher.failing, launcher.unsaved = {(0, 1): member_run.DIVERGED}, unsaved
        directory = Path(f"unsaved-{len(unsaved)}")
        assert pbt.run(plan_in(directory, 600), settings(**PROCESSES))["status"] == "finished"
        ready = events_in(directory)
        assert ready[0]["member"] != 0
        first = next(e for e in ready if e["member"] == 0)
        assert first["score"] is None
        assert any(e["donor"] is not None for e in ready)
        assert all((e["donor"] is None) == (e["donor_steps"] is None) for e in ready)
        assert all(e["donor_steps"] >= 200 for e in ready if e["donor"] is not None)
    launcher = use_fake_launcher(monkeypatch)
    launcher.failing = {(member, 1): member_run.DIVERGED for member in range(3)}
    with pytest.raises(UserError, match="all members diverged"):
        pbt.run(plan_in(Path("all"), 600), settings(**PROCESSES))


def test_other_ends_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = use_fake_launcher(monkeypatch)
    launcher.unsaved = {(0, 1)}
    with pytest.raises(UserError, match="member 0 finished a generation without a single update"):
        pbt.run(plan_in(tmp_path / "nothing", 400), settings(**PROCESSES))
    # A machine that leaves the cluster counts for no member.
    launcher.started.clear()
    launcher.unsaved, launcher.failing = set(), {(1, 1): member_run.MACHINE_LEFT}
    plan = plan_in(tmp_path / "gone", 400, max_restarts=0)
    assert pbt.run(plan, settings(**PROCESSES))["status"] == "finished"
    assert "the machine of member 1 left the cluster" in capsys.readouterr().out
    # Episodes longer than a generation: one warning, and they count for the next score.
    launcher.started.clear()
    launcher.failing, launcher.episode_steps = {}, 280
    pbt.run(plan_in(tmp_path / "long", 800), settings(**PROCESSES))
    assert capsys.readouterr().out.count("no episode of some task has ended since") == 1
    ready = events_in(tmp_path / "long")
    assert all(e["score"] is None and not e["tally"] for e in ready if e["generation"] == 1)
    assert all(e["score"] is not None for e in ready if e["generation"] == 2)


def test_wall_seconds_are_of_all_controllers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_launcher(monkeypatch)
    paused = pbt.run(plan_in(tmp_path, 400, stop_after=100), settings(**PROCESSES))
    assert (paused["status"], paused["agent_steps"]) == ("paused", 300)
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"wall_seconds": 1000.0}))
    assert pbt.run(plan_in(tmp_path, 400), settings(**PROCESSES))["wall_seconds"] > 1000


def test_the_error_of_a_process_is_its_last_line(tmp_path: Path) -> None:
    run = object.__new__(ProcessRun)
    run._log = tmp_path / "log.txt"
    assert run.error_text == f"see {tmp_path / 'log.txt'}"
    run._log.write_text("first update after 3 s\npronk: `--unroll` is 0.\n")
    assert run.error_text == "`--unroll` is 0."
    run._log.write_text("Traceback\nValueError: no\n")
    assert run.error_text == f"see {tmp_path / 'log.txt'}"


# The command line.


def pronk(*args: object) -> None:
    cli.main([str(a) for a in args])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tune", "learning_rte=1e-4:1e-2"], "did you mean 'learning_rate'? It can change"),
        (["--tune", "hidden_sizes=1:2"], "impala cannot change 'hidden_sizes'"),
        (["--tune", "horizon=1:2"], "impala cannot change 'horizon'"),
        (["--tune", "learning_rate=1e-2:1e-4"], "expected NAME=LOW:HIGH with LOW below HIGH"),
        (["--tune", "learning_rate=fast:slow"], "expected NAME=LOW:HIGH with LOW below HIGH"),
        (["--tune", "learning_rate=0:1"], "`--learning-rate` is 0.0; expected a number above"),
        (["--tune", "entropy_cost=0:1"], "would start at 0, which multiplying does not change"),
        (["--tune", "discount=0.9:1.5"], "`--discount` is 1.5; expected a number from 0 to 1"),
        (["--tune", "discount=0.9:1"], "both below 1"),
        (["--tune", "rho_bar", "--tune", "rho_bar"], "has 'rho_bar' twice"),
        (["--population", "1"], "`--population` is 1; expected at least 2"),
        (["--ready-steps", "0"], "`--ready-steps` is 0; expected at least 1"),
        (["--ready-steps", "9", "--ready-episodes", "9"], "expected one of them"),
        (["--copy-sigmas", "-1"], "`--copy-sigmas` is -1.0; expected zero or more"),
        (["--copy-margin", "-1"], "`--copy-margin` is -1.0; expected zero or more"),
        (["--perturb-probability", "1.5"], "expected a number from 0 to 1"),
        (["--perturb-factor", "0.5"], "`--perturb-factor` is 0.5; expected at least 1"),
        (["--parallel-members", "0"], "`--parallel-members` is 0; expected at least 1"),
        (["--eval-every", "10"], "which a vmapped population can't do"),
        (["--runtime", "local", "--execution", "vmapped"], "a vmapped population is fused"),
        (
            ["--architecture", "async-gradients", "--execution", "vmapped"],
            "`--architecture` is async-gradients, and the fused runtime has none of the local"
            " runtime's architectures: leave it out, or use --execution processes.",
        ),
        (["--learners", "2"], "`--learners` is for single runs"),
        (["--execution", "ray"], "no cluster is named; give `--ray auto`"),
        (
            ["--execution", "processes", "--keep-checkpoints", "1"],
            "`--keep-checkpoints` is 1; expected at least 2 where",
        ),
        (["--tune", "trace_lambda"], "would start at 1, which multiplying does not change"),
        (["--evolve-after", "-1"], "`--evolve-after` is -1; expected zero or more"),
    ],
)
def test_bad_input_is_one_paragraph(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        pronk("pbt", "impala", "pronk/Catch-v0", "--run-dir", tmp_path / "run", *FLAGS, *flags)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "journal.jsonl").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tune": "learning_rate"}, "`--tune` is 'learning_rate'; expected a list of str"),
        ({"population": "4"}, "`--population` is '4'; expected int"),
        ({"ready_steps": 1.5}, "`--ready-steps` is 1.5; expected int"),
        ({"copy_sigmas": True}, "`--copy-sigmas` is True; expected float"),
    ],
)
def test_settings_from_python_have_a_type(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        PBTConfig(**wrong)


@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_has_its_flags(agent: str, capsys: pytest.CaptureFixture[str]) -> None:
    """None of which is also one of the population's."""
    with pytest.raises(SystemExit) as caught:
        pronk("pbt", agent, "--help")
    assert not caught.value.code
    shown = capsys.readouterr().out
    for config in (PBTConfig, RunConfig, agent_module(agent).config):
        assert all(f"--{f.name.replace('_', '-')}" in shown for f in dataclasses.fields(config))


def test_vmapping_needs_an_environment_in_jax(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        pronk("pbt", "impala", "CartPole-v1", "--run-dir", tmp_path, "--execution", "vmapped")
    assert "needs an environment written in JAX" in capsys.readouterr().err


# The journal and the picture.


def test_a_journal_forgets_what_was_half_written_and_what_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append({"event": "a"}, {"event": "b"})
    size = journal.size
    journal.append({"event": "c"})
    journal.close()
    path.write_bytes(path.read_bytes() + b'{"event": "d"')
    assert [e["event"] for e in read_journal(path)] == ["a", "b", "c"]
    journal = Journal(path)
    journal.append({"event": "e"})
    assert [e["event"] for e in read_journal(path)] == ["a", "b", "c", "e"]
    journal.truncate(size)
    journal.append({"event": "f"})
    journal.close()
    assert [e["event"] for e in read_journal(path)] == ["a", "b", "f"]
    with pytest.raises(UserError, match="was truncated or replaced"):
        Journal(path).truncate(10_000)
    path.write_text('{"event": "a"}\nnonsense\n{"event": "b"}\n')
    with pytest.raises(UserError, match="is damaged in line 2"):
        read_journal(path)


def test_a_full_disk_is_said_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal._file = open("/dev/full", "ab")  # noqa: SIM115
    with pytest.raises(UserError, match="No space left"):
        journal.append({"event": "start"})
    journal.close()


def test_ancestry_of_a_population_by_hand() -> None:
    """Members that are ready together have not made equally many agent steps."""

    def ready(
        member: int, steps: int, score: float | None, donor: int | None, at: int | None = None
    ) -> dict[str, Any]:
        after = {"x": float(steps + member)}
        return {"event": "ready", "member": member, "steps": steps, "score": score,
                "donor": donor, "donor_steps": at, "after": after}  # fmt: skip

    events: list[dict[str, Any]] = [
        {"event": "start", "member": i, "hyper": {"x": float(i)}} for i in range(3)
    ]
    events += [ready(0, 10, 1.0, None), ready(1, 11, 2.0, None), ready(2, 10, None, None)]
    events += [ready(0, 20, 1.5, 1, 22), ready(1, 22, 3.0, 2, 19), ready(2, 19, 0.0, 1, 22)]
    events += [ready(0, 33, 4.0, 1, 34), ready(1, 34, 3.0, None), ready(2, 30, 3.0, 0, 33)]
    ends = ((0, 4.0), (1, 3.5), (2, 5.0))
    events += [{"event": "end", "member": m, "steps": 40, "score": s} for m, s in ends]
    lines = lineage.member_lines(events)
    assert math.isnan(lines[2].scores[0])
    assert lineage.best_member(lines) == 2
    segments = lineage.ancestry(lines, 2)
    expected = [lineage.Segment(1, 0, 22), lineage.Segment(0, 20, 33), lineage.Segment(2, 30, 40)]
    assert segments == expected
    x, y = lineage._path(lines, segments)
    assert x.tolist() == [11, 22, 33, 40]
    assert y.tolist() == [2.0, 3.0, 4.0, 5.0]
    corners = [lineage._stairs(lines[s.member], "x", False, s.begin, s.end) for s in segments]
    assert corners == [
        ([0, 11, 11, 22], [1.0, 1.0, 12.0, 12.0]), ([20, 33], [20.0, 20.0]), ([30, 40], [32.0] * 2)
    ]  # fmt: skip
    assert lineage._point(lines[1], 22) == (22, 3.0)
    assert lineage._point(lines[1], 33) == (22, 3.0)  # copied between two times that it was ready
    assert lineage.render(lines, "by hand").startswith(b"\x89PNG")
