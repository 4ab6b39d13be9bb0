"""Actors on a cluster of several raylets on this machine: real processes, real transfers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster as Raylets

import pronk
from pronk import agents, envs
from pronk.agents.impala_config import Config
from pronk.errors import UserError
from pronk.runtime import actor_threads
from pronk.runtime.actor import Actor, Player
from pronk.runtime.places.ray import Cluster, Needs, RayActor
from pronk.runtime.places.supervise import ActorLost, NodeLost
from tests.chaos.harm import (
    RunWatcher,
    counters_increase,
    descendants,
    find_processes,
    harming,
    importing_this,
    stop,
    training,
)

# Else the raylets' processes would look for this module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

CONFIG = Config(unroll=6, hidden_sizes=(8,))
ENV = "pronk/Catch-v0"
TINY: dict[str, Any] = {
    "envs_per_actor": 2,
    "unroll": 10,
    "batch_size": 2,
    "hidden_sizes": (8,),
    "log_every": 0.2,
    "quiet": True,
}


# Quicker than usual to know that a machine is gone.
HEAD = {
    "num_cpus": 0,
    "_system_config": {
        "health_check_initial_delay_ms": 1000,
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 4,
    },
}


@pytest.fixture(scope="module")
def raylets() -> Iterator[Raylets]:
    """A head without places, so that all actors are on machines that can be taken away."""
    cluster = Raylets(initialize_head=True, head_node_args=HEAD)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def machine(raylets: Raylets) -> Iterator[Any]:
    """One with two places."""
    node = raylets.add_node(num_cpus=2)
    yield node
    with contextlib.suppress(Exception):  # the test has taken it away
        raylets.remove_node(node)


def hosts() -> set[int]:
    """Processes of actors on the machines of this test."""
    return {*find_processes("ray::Host")} & {*descendants(os.getpid())}


def make_actor(fate: str = "") -> Actor:
    """Of Catch, to whom something happens."""
    if fate == "mistake":
        raise UserError("a wrong flag")
    agent = agents.make("impala", CONFIG, envs.spec_of(ENV), horizon=1000)
    player = Player(agent, jax.random.key(0), np.arange(2, dtype=np.int32), 2)
    actor = Actor(player, envs.make(ENV, 2), unroll=CONFIG.unroll)
    if fate == "crash":
        actor.unroll = lambda *_: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    return actor


def behaviour() -> Any:
    agent = agents.make("impala", CONFIG, envs.spec_of(ENV), horizon=1000)
    return agent.behaviour(jax.jit(agent.init)(jax.random.key(0)))


@pytest.fixture
def cluster(raylets: Raylets) -> Iterator[Cluster]:
    cluster = Cluster(raylets.address, Needs())
    yield cluster
    cluster.close()


def test_parameters_are_put_once_per_version(cluster):
    one, two = behaviour(), behaviour()
    assert cluster.parameters(one) is cluster.parameters(one)
    assert cluster.parameters(one) is not cluster.parameters(two)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(ray.get(cluster.parameters(two))))
    assert not cluster.warnings()


def test_unrolls_are_those_of_a_local_actor(cluster, machine):
    """NumPy arrays, read-only because they are in the object store."""
    params = behaviour()
    actor = RayActor(cluster, make_actor, "actor 0")
    here = make_actor()
    with contextlib.closing(actor), contextlib.closing(here):
        for version in range(2):
            theirs = actor.unroll(params, version).trajectory
            leaves = jax.tree.leaves(theirs)
            assert all(type(x) is np.ndarray for x in leaves)
            assert not any(x.flags.writeable for x in leaves)
            jax.tree.map(np.testing.assert_array_equal, theirs, here.unroll(params, version)[0])
        assert cluster.room() == 2
        seen = set()
        deadline = time.monotonic() + 30
        while 2 * CONFIG.unroll not in seen:
            seen.add(actor.rows_acted)
            assert time.monotonic() < deadline
    actor.close()  # twice


@pytest.mark.extended
def test_an_actor_without_a_place_gets_one_when_a_machine_joins(cluster, raylets):
    actor = RayActor(cluster, make_actor, "actor 0")
    with contextlib.closing(actor):
        assert actor.rows_acted > actor.rows_acted  # falling
        assert actor.rows_acted < 0
        node = raylets.add_node(num_cpus=1)
        try:
            assert actor.unroll(behaviour(), 0).trajectory.version.shape == (2,)
            assert actor.rows_acted >= 0
        finally:
            raylets.remove_node(node)
        with pytest.raises(NodeLost, match="left the cluster"):
            actor.unroll(behaviour(), 1)


def test_errors_of_remote_actors_are_raised(cluster, machine):
    for fate, error, message in (
        ("mistake", UserError, "^a wrong flag$"),
        ("crash", RuntimeError, "actor 0 failed(.|\n)*ZeroDivisionError"),
    ):
        actor = RayActor(cluster, lambda fate=fate: make_actor(fate), "actor 0")
        with contextlib.closing(actor), pytest.raises(error, match=message) as raised:
            actor.unroll(behaviour(), 0)
        assert not isinstance(raised.value, ActorLost)


@pytest.mark.extended
def test_other_versions_of_pronk_are_refused(cluster, machine, monkeypatch):
    monkeypatch.setattr("pronk.runtime.places.ray.metadata.version", lambda _: "0.0.9")
    actor = RayActor(cluster, make_actor, "actor 0")
    wrong = pytest.raises(UserError, match=r"has pronk 0\.\d+\.\d+, .*0\.0\.9")
    with contextlib.closing(actor), wrong:
        actor.unroll(behaviour(), 0)


def test_a_factory_that_cannot_be_sent_is_refused(cluster):
    lock = threading.Lock()
    with pytest.raises(UserError, match="can't be made on another machine"):
        RayActor(cluster, lambda: lock, "actor 0")  # type: ignore[arg-type,return-value]


FLAGS = ("--envs-per-actor", "2", "--unroll", "10", "--batch-size", "2", "--actors", "2")
OF_R2D2 = (
    *("--sequence-length", "8", "--overlap", "4", "--burn-in", "2", "--recurrent-units", "4"),
    *("--head-units", "8", "--replay-minimum", "10", "--replay-capacity", "2000"),
    *("--samples-per-insert", "0.5"),
)


@pytest.mark.faults
@pytest.mark.extended
def test_training_survives_the_loss_of_a_machine(raylets, tmp_path):
    """With an agent that learns from replay; IMPALA is in `pronk bench faults`."""
    nodes = [raylets.add_node(num_cpus=1) for _ in range(2)]
    address = ("--ray", raylets.address, "--max-restarts", "0", "--hidden-sizes", "8")
    try:
        with training(tmp_path, "r2d2", "CartPole-v1", *FLAGS, *address, *OF_R2D2) as (
            process,
            run,
        ):
            run.wait_for_records()
            raylets.remove_node(nodes.pop(), allow_graceful=False)
            run.wait_for(lambda: run.lines("actor_faults.log"))
            run.wait_for(lambda: "1 of 2 actors wait for a place" in " ".join(run.output().split()))
            nodes.append(raylets.add_node(num_cpus=1))
            run.wait_for(lambda: "all actors have a place" in " ".join(run.output().split()))
            run.wait_for(lambda: len(hosts()) == 2)
            run.wait_for_records()
            out = stop(process, run)
    finally:
        for node in nodes:
            raylets.remove_node(node)
    assert "interrupted" in out
    assert counters_increase(RunWatcher(tmp_path).records())
    assert pronk.load(tmp_path).steps >= RunWatcher(tmp_path).records()[-1]["steps"]
    (line,) = run.lines("actor_faults.log")
    assert "its machine left the cluster" in line


def test_waiting_for_a_place_can_be_interrupted(raylets, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(actor_threads, "REPORT_AFTER", 1.0)

    def harm(run: RunWatcher) -> None:
        told: list[str] = []

        def says_so() -> bool:
            told.append(capfd.readouterr().out)
            return "2 of 2 actors wait for a place" in "".join(told)

        run.wait_for(says_so)
        os.kill(os.getpid(), signal.SIGINT)

    start = time.monotonic()
    with harming(tmp_path, harm, survives=False), pytest.raises(KeyboardInterrupt):
        pronk.train(
            "impala", "CartPole-v1", run_dir=tmp_path, ray=raylets.address, actors=2, **TINY
        )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert summary["agent_steps"] == 0
    assert time.monotonic() - start < 40


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"deterministic": True}, "with `--deterministic`"),
        ({"architecture": "async-gradients"}, "with `--architecture`"),
        ({"env_workers": 2}, "with `--env-workers`"),
        ({"actor_cores": 1}, "with `--actor-cores`"),
        ({"actor_device": "cpu"}, "--actor-gpus decides where"),
        ({"runtime": "fused"}, "the fused runtime has no actors"),
        ({"actor_cpus": 0.0}, "above zero"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        pronk.train("impala", ENV, run_dir=tmp_path, ray="auto", steps=100, **settings)


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "pronk.runtime.places.ray")
    with pytest.raises(UserError, match=r"Ray is not installed: pip install 'pronk\[ray\]'"):
        pronk.train("impala", ENV, run_dir=tmp_path, ray="local")


def test_room_is_counted_by_machine(cluster, raylets, machine):
    """At least one actor, which waits for its place."""
    assert cluster.room() == 2
    for needs, room in ((Needs(cpus=2), 1), (Needs(cpus=0.5), 4), (Needs(resource="none"), 1)):
        cluster.needs = needs
        assert cluster.room() == room


def test_an_unreachable_address_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing is to be reached there.*Connection refused"):
        pronk.train("impala", ENV, run_dir=tmp_path, ray="127.0.0.1:1")
    with pytest.raises(UserError, match="nothing is to be reached there"):
        pronk.train("impala", ENV, run_dir=tmp_path, ray="everywhere")


@pytest.mark.extended
def test_a_wrong_token_is_refused(raylets, tmp_path, monkeypatch):
    """Ray tries for half a minute; its first message is enough here."""
    args = ("impala", ENV, "--ray", raylets.address)
    with monkeypatch.context() as other:
        other.setenv("RAY_AUTH_TOKEN", "wrong" * 8)
        with training(tmp_path, *args) as (process, run):
            run.wait_for(lambda: "InvalidAuthToken" in run.output() or process.poll() is not None)
    assert "InvalidAuthToken" in run.output()
    assert not run.lines()


def test_a_refused_connection_names_the_token(raylets, monkeypatch):
    def refused(**_: Any) -> None:
        raise ConnectionError("Failed to connect to Ray cluster")

    monkeypatch.setattr(ray, "init", refused)
    with pytest.raises(UserError, match=r"lets us in \(Failed.*\)\..*auth_token"):
        Cluster(raylets.address, Needs())


LOCAL = """
import json, os, stat, sys, urllib.request
from pathlib import Path
from pronk.runtime.places.ray import Cluster, Needs, psutil

def answers(port):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2).status
    except Exception:  # it asks for a token, or does not speak HTTP
        return None

os.umask(0o022)
cluster = Cluster("local", Needs(), 1)
ours = psutil.Process()
started = ours.children(recursive=True)
listening = {
    (socket.laddr.ip, socket.laddr.port)
    for process in [ours, *started]
    for socket in process.net_connections("inet")
    if socket.status == psutil.CONN_LISTEN
}
token = Path.home() / ".ray" / "auth_token"
found = {
    "listening": sorted({ip for ip, _ in listening}),
    "token": stat.S_IMODE(token.stat().st_mode),
    "warnings": cluster.warnings(),
    "open": [port for _, port in listening if answers(port)],
}
cluster.close()
found["left"] = [p.pid for p in started if p.is_running() and p.status() != "zombie"]
found["variables"] = [x for x in os.environ if x.endswith(("_collection", "_ENABLED"))]
print(json.dumps(found))
"""


@pytest.mark.parametrize("mode", [None, 0o644], ids=["new", "wide"])
def test_a_local_cluster_keeps_the_promises_of_security_md(mode, tmp_path):
    if mode is not None:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("ab" * 32)
        (tmp_path / ".ray" / "auth_token").chmod(mode)
    variables = {k: v for k, v in importing_this().items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", LOCAL], env={**variables, "HOME": str(tmp_path)},
        stdout=subprocess.PIPE, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["listening"]
    assert {*found["listening"]} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert found["token"] == 0o600
    assert {*found["open"]} <= {44217}  # of Ray's autoscaler
    assert not found["warnings"] + found["left"] + found["variables"]


@pytest.mark.faults
@pytest.mark.extended
def test_a_local_cluster_ends_with_a_killed_run(tmp_path):
    args = ("impala", ENV, "--ray", "local", *FLAGS, "--hidden-sizes", "8")
    with training(tmp_path, *args) as (process, run):
        run.wait_for_records(2)
        started = {*descendants(process.pid)}
        assert started & {*find_processes("raylet")}
        assert started & {*find_processes("ray::Host")}
    # Its watchmen, which have nothing left to watch, take a minute more.
    run.wait_for(lambda: not started & {*find_processes("raylet"), *find_processes("ray::Host")})
