"""What dies, crashes or hangs is made again, within a budget, and nothing of it is learnt twice."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import jax
import numpy as np
import pytest

import pronk
from pronk import agents, envs
from pronk.agents.impala_config import Config
from pronk.errors import UserError
from pronk.run.actors import ActorFactory
from pronk.run.resolve import resolve
from pronk.run.setup import build, unroll_spec
from pronk.runtime import actor_threads, asynchronous
from pronk.runtime.actor import Actor, Player, misfit
from pronk.runtime.asynchronous import AsynchronousLoop
from pronk.runtime.learner import Learner
from pronk.runtime.places import supervise
from pronk.runtime.places.supervise import ActorLost, Restarts, Supervised
from pronk.runtime.source import Queue
from pronk.runtime.threads import Closed

CONFIG = Config(unroll=6, batch_size=2, hidden_sizes=(8,))
ENV = "pronk/Catch-v0"
AGENT = agents.make("impala", CONFIG, envs.spec_of(ENV), horizon=1000)
KEY = jax.random.key(0)


def learner() -> Learner:
    return Learner(AGENT, jax.jit(AGENT.init)(KEY), batch_size=2)


class Fragile(Actor):
    """An actor of Catch to whom `fate` is done before each unroll."""

    def __init__(self, fate: Any = lambda: None):
        player = Player(AGENT, KEY, np.arange(2, dtype=np.int32), 2)
        super().__init__(player, envs.make(ENV, 2), unroll=CONFIG.unroll)
        self.fate, self.closed = fate, False

    def unroll(self, behaviour, version):
        self.fate()
        return super().unroll(behaviour, version)

    def close(self) -> None:
        self.closed = True
        super().close()


class Script:
    """Makes actors, to each of whom what comes next in `fates` is done: None, or an error."""

    def __init__(self, *fates: list[Any]):
        self.fates = list(fates)
        self.made: list[Fragile] = []
        self.lives: list[int] = []

    def __call__(self, life: int) -> Fragile:
        fates = iter(self.fates.pop(0))

        def fate() -> None:
            error = next(fates)
            if error is not None:
                raise error

        self.lives.append(life)
        self.made.append(Fragile(fate))
        return self.made[-1]


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(supervise, "BACKOFF", 0.01)
    monkeypatch.setattr(actor_threads, "WATCH_EVERY", 0.05)


@pytest.fixture
def restarts(tmp_path) -> Restarts:
    return Restarts(2, tmp_path / "faults.log", hang_after=0.5)


def unroll(actor: Supervised):
    return actor.unroll(learner().behaviour(), 0)


def test_a_lost_actor_is_restarted(restarts):
    script = Script([None, ActorLost("it died")], [None, KeyError("crash")], [None, None])
    actor = Supervised(script, "actor 7", restarts)
    seen = [unroll(actor) for _ in range(4)]
    assert [len(u.warnings) for u in seen] == [0, 1, 1, 0]
    assert seen[1].warnings == ["actor 7: it died; restarting it (1 of 2)"]
    assert "KeyError" in seen[2].warnings[0]
    assert all(u.trajectory.timestep.first[0].all() for u in seen[:3])  # each in new episodes
    assert [a.closed for a in script.made] == [True, True, False]
    assert len({*script.lives}) == 3
    assert script.lives == [*actor.former, actor.incarnation]
    log = restarts.log.read_text()
    assert "actor 7: it died" in log
    assert "Traceback" in log
    assert "crash" in log


def test_max_restarts_is_for_all_actors(restarts):
    one, two = (
        Supervised(Script(*[[None, ActorLost("it died")]] * 3), name, restarts)
        for name in ("a", "b")
    )
    for _ in range(2):
        unroll(one)
        unroll(two)
    with pytest.raises(UserError, match=r"lost 3 times, and `--max-restarts` is 2.* The last: a"):
        unroll(one)


def test_an_actor_that_fails_at_once_is_not_restarted(restarts):
    """It would fail again: its error is raised."""
    restarts.limit = 9
    with pytest.raises(KeyError):
        unroll(Supervised(Script([KeyError("crash")]), "a", restarts))
    with pytest.raises(UserError, match="a: it died, before its first result"):
        unroll(Supervised(Script([ActorLost("it died")]), "a", restarts))
    actor = Supervised(Script([None, UserError("a wrong flag")]), "a", restarts)
    unroll(actor)
    with pytest.raises(UserError, match="a wrong flag"):
        unroll(actor)
    assert restarts.count == 2
    actor = Supervised(Script(*[[None, KeyError("x")], *[[KeyError("x")]] * 2]), "a", restarts)
    unroll(actor)
    with pytest.raises(KeyError):
        unroll(actor)
    assert restarts.log.read_text().count("a: KeyError: 'x'\n") == 3  # the one that ended it, too
    # What is killed from outside may be, as often as it may.
    actor = Supervised(
        Script([None, ActorLost("y")], *[[ActorLost("y")]] * 4, [None]), "a", restarts
    )
    restarts.limit = 99
    unroll(actor)
    assert len(unroll(actor).warnings) == 5


def test_no_actor_is_restarted_if_the_server_has_failed(restarts):
    """Such as the inference server."""
    actor = Supervised(Script([None, ValueError("no such layer")]), "a", restarts)
    unroll(actor)
    restarts.fatal = lambda: True
    with pytest.raises(ValueError, match="no such layer"):
        unroll(actor)
    assert restarts.count == 0


@pytest.mark.parametrize("wakes", ["well", "with an error"])
def test_a_thread_that_hangs_is_replaced(restarts, wakes):
    """What it returns when it wakes up is dropped."""
    wake, stuck = threading.Event(), threading.Event()
    made: list[Fragile] = []

    def make(life: int) -> Fragile:
        count = iter(range(10**9))
        number = len(made)

        def fate() -> None:
            if number == 0 and next(count) == 3:
                stuck.set()
                wake.wait(60)
                if wakes == "with an error":
                    raise TimeoutError

        made.append(Fragile(fate))
        return made[-1]

    actor = Supervised(make, "actor 0", restarts, make(0))
    runtime = AsynchronousLoop(learner(), [actor], Queue(2, bounded=True))
    told: list[str] = []
    try:
        deadline = time.monotonic() + 60
        while len(made) < 2 or len(told) < 1:
            assert time.monotonic() < deadline
            told += runtime.update().warnings
        assert stuck.is_set()
        assert told == ["actor 0: it has not made a step for 1 s; restarting it (1 of 2)"]
        before = int(runtime.learner_state.updates)
        wake.set()
        while not runtime.faults()["dropped_unrolls"]:
            assert time.monotonic() < deadline
            runtime.update()
        assert runtime.learner_state.updates > before
        assert restarts.count == 1
        assert len(made) == 2
        assert made[0].closed
    finally:
        wake.set()
        runtime.close()
    assert made[1].closed


def test_an_actor_acts_with_the_parameters_that_are_newest_once_it_has_a_place(restarts):
    class Waiting(Fragile):
        def ready(self) -> None:
            newest[0] += 1

    newest = [0]
    actor = Supervised(lambda _: Waiting(), "a", restarts)
    found = actor.unroll_newest(lambda: (newest[0], learner().behaviour()))
    assert (found.trajectory.version == 1).all()


def test_a_restart_can_be_stopped(restarts, monkeypatch):
    monkeypatch.setattr(supervise, "BACKOFF", 5.0)
    script = Script([None, ActorLost("it died")], [None])
    actor = Supervised(script, "a", restarts)
    unroll(actor)
    threading.Timer(0.3, actor.stop).start()
    start = time.monotonic()
    with pytest.raises(Closed):
        unroll(actor)
    assert time.monotonic() - start < 4
    assert len(script.made) == 1


def test_closing_restarts_no_actor(restarts, monkeypatch):
    """An actor that ends because the loop closes is not lost."""
    monkeypatch.setattr(asynchronous, "PATIENCE", 0.01)
    stuck, wake = threading.Event(), threading.Event()

    def fate() -> None:
        stuck.set()
        wake.wait(60)
        raise ActorLost("it was closed")

    script = Script([None])
    actor = Supervised(script, "actor 0", restarts, Fragile(fate))
    runtime = AsynchronousLoop(learner(), [actor], Queue(2, bounded=True))
    assert not runtime.update().metrics  # the actors start with the first update
    assert stuck.wait(60)
    threading.Timer(0.3, wake.set).start()
    runtime.close()
    assert restarts.count == 0
    assert not script.made


def test_an_actor_that_waits_for_the_learner_does_not_hang(restarts):
    actor = Supervised(Script([None] * 1000), "actor 0", restarts)
    runtime = AsynchronousLoop(learner(), [actor], Queue(2, bounded=True))
    try:
        runtime.update()
        time.sleep(1.0)  # the queue is full, and nobody takes from it
        for _ in range(3):
            assert not runtime.update().warnings
    finally:
        runtime.close()
    assert restarts.count == 0


def like() -> Any:
    """What actors of this module bring, as shapes and dtypes."""
    with contextlib.closing(Fragile()) as actor:
        trajectory = actor.unroll(learner().behaviour(), 0).trajectory
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), trajectory)


def fuzzed(unroll: Any, rng: np.random.Generator) -> Any:
    """Something that is almost an unroll."""
    leaves, structure = jax.tree.flatten(unroll.trajectory)
    i = rng.integers(len(leaves))
    changes = (
        lambda x: x[..., :0] if x.ndim else x,
        lambda x: np.repeat(x, 2, axis=0),
        lambda x: x.astype(np.complex64),
        lambda x: x.astype(np.float16),
        lambda x: np.broadcast_to(x, (10**6, *x.shape)),  # claims to be larger than memory
        lambda x: x.tobytes(),
        lambda _: None,
        lambda x: [x],
    )
    leaves[i] = changes[rng.integers(len(changes))](leaves[i])
    whole = unroll._replace(trajectory=structure.unflatten(leaves))
    stale = unroll.trajectory._replace(version=unroll.trajectory.version - 1)
    others = (unroll.trajectory, None, tuple(unroll), unroll._replace(trajectory=stale))
    return whole if rng.random() < 0.8 else others[rng.integers(len(others))]


@pytest.mark.faults
@pytest.mark.parametrize(
    "seed", [*range(8), *(pytest.param(i, marks=pytest.mark.extended) for i in range(8, 40))]
)
def test_malformed_unrolls_are_dropped_and_counted(restarts, seed):
    """They are never learnt from, and the actor is restarted."""
    rng = np.random.default_rng(seed)
    sent: list[Any] = []

    class Liar(Fragile):
        def unroll(self, behaviour, version):
            found = super().unroll(behaviour, version)
            if len(sent) == 1:
                found = fuzzed(found, rng)
            sent.append(found)
            return found

    actor = Supervised(lambda _: Liar(), "actor 0", restarts, like=like())
    first, second = unroll(actor), unroll(actor)
    assert first.trajectory is sent[0].trajectory
    assert second.trajectory is sent[2].trajectory
    assert len(sent) == 3
    assert (actor.misfits, actor.losses) == (1, 1)
    assert "its result was dropped: " in restarts.log.read_text()


@pytest.mark.parametrize("env", ["CartPole-v1", "FrozenLake-v1", "Pendulum-v1", "ALE/Pong-v5"])
@pytest.mark.parametrize("agent", ["impala", "r2d2"])
def test_unrolls_have_the_expected_shapes_and_dtypes(agent, env, tmp_path):
    """Also integers of 64 bits, which JAX would narrow."""
    if (agent, env) == ("r2d2", "Pendulum-v1"):
        pytest.skip("discrete actions only")
    settings = R2D2 if agent == "r2d2" else {"recurrent_core": "lstm"}
    plan = resolve(agent, env, run_dir=tmp_path, **(TINY | settings))
    spec, built = build(plan, plan.env)
    expected = unroll_spec(plan, built, spec, 2)
    with contextlib.closing(ActorFactory(plan, plan.env, 0, 1, 2, 0)()) as actor:
        found = actor.unroll(built.behaviour(jax.jit(built.init)(KEY)), 3)
    assert not misfit(found, expected, 3)


TINY: dict[str, Any] = {
    "runtime": "local",
    "actors": 2,
    "envs_per_actor": 2,
    "unroll": 10,
    "batch_size": 2,
    "hidden_sizes": (8,),
    "log_every": 0.2,
    "quiet": True,
}
R2D2 = {"sequence_length": 8, "overlap": 4, "burn_in": 2, "recurrent_units": 4, "head_units": 8,
        "replay_minimum": 10, "replay_capacity": 2000, "samples_per_insert": 0.5}  # fmt: skip


def test_a_run_stops_saved_after_too_many_restarts(tmp_path, monkeypatch):
    unroll, count = Actor.unroll, iter(range(10**9))

    def fail_now_and_then(actor, behaviour, version):
        if next(count) % 20 == 19:
            raise ActorLost("it died")
        return unroll(actor, behaviour, version)

    monkeypatch.setattr(Actor, "unroll", fail_now_and_then)
    wrong = pytest.raises(UserError, match=r"`--max-restarts` is 1.*actor_faults\.log")
    with wrong:
        pronk.train("impala", "CartPole-v1", run_dir=tmp_path, max_restarts=1, **TINY)
    assert pronk.load(tmp_path).steps > 0
    assert (tmp_path / "actor_faults.log").read_text().count("it died") == 2
