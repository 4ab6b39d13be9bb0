"""The architectures of IMPALA's throughput table: one agent under each, and how they differ."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pronk
from pronk import agents, envs
from pronk.agents.impala_config import Config
from pronk.config.architectures import ARCHITECTURES
from pronk.errors import UserError
from pronk.run import build as wiring
from pronk.run.inspect import inspect
from pronk.runtime.a3c import A3CLoop
from pronk.runtime.actor import Actor, Player, Unroll
from pronk.runtime.inference import Batching, CentralPlayer, InferenceServer, _size
from pronk.runtime.places.supervise import Restarts, Supervised
from pronk.types import Agent, Batch, EnvSpec, LearnerState, TimeStep

KEY = jax.random.key(0)
WIDTH = 2  # environments of each actor
SPEC = EnvSpec("test", gym.spaces.Box(-1, 1, (3,)), gym.spaces.Discrete(4))
CONFIG = Config(
    unroll=5, batch_size=WIDTH, hidden_sizes=(8,), recurrent_core="lstm", recurrent_units=4
)
AGENT = agents.make("impala", CONFIG, SPEC, horizon=10_000)


def initial_state(agent: Agent = AGENT) -> LearnerState:
    state = jax.jit(agent.init)(KEY)
    rng = np.random.default_rng(0)  # far from uniform: what is decided depends on what is seen
    return state._replace(
        params=jax.tree.map(lambda x: x + np.float32(rng.normal(size=x.shape)), state.params)
    )


STATE = initial_state()


def row(seed: int) -> TimeStep:
    rng = np.random.default_rng(seed)
    flags = np.zeros(WIDTH, bool)
    return TimeStep(
        rng.uniform(-1, 1, (WIDTH, 3)).astype(np.float32),
        rng.normal(size=WIDTH).astype(np.float32),
        flags,
        flags,
        rng.uniform(size=WIDTH) < 0.3,
        np.zeros(WIDTH, np.int32),
    )


def serve(*batching: Any, agent: Agent = AGENT) -> InferenceServer:
    return InferenceServer(agent, KEY, lambda: agent.behaviour(STATE), Batching(*batching))


def ask_all(server: InferenceServer, requests: list[tuple[Any, ...]]) -> list[Any]:
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda request: server.act(*request), requests))


def registered(server: InferenceServer, number: int) -> tuple[Any, Any]:
    """The recurrent state and the slots of actor `number`, whose environments are greedy."""
    ids = np.arange(number * WIDTH, (number + 1) * WIDTH)
    carry = AGENT.initial_carry(KEY, ids, 8, True)
    return carry.core, server.register(ids, carry.private)


def test_the_server_acts_as_a_player_would():
    """Five requests, padded to six: each gets its own action and recurrent state."""
    behaviour = AGENT.behaviour(STATE)
    alone = [Player(AGENT, KEY, np.arange(WIDTH), WIDTH, evaluate=True) for _ in range(5)]
    server = serve(5, 5, 60.0)
    cores, slots = zip(*(registered(server, i) for i in range(5)), strict=True)
    assert np.concatenate(slots).tolist() == list(range(5 * WIDTH))
    for t in range(3):
        rows = [row(10 * t + i) for i in range(5)]
        answers = ask_all(server, list(zip(rows, cores, slots, strict=True)))
        cores = [answer[1] for answer in answers]
        for player, timestep, (action, core, extras) in zip(alone, rows, answers, strict=True):
            expected = player.act(behaviour, timestep)
            np.testing.assert_array_equal(action, expected.action)
            np.testing.assert_allclose(extras["log_prob"], expected.extras["log_prob"], atol=1e-5)
            for ours, theirs in zip(
                jax.tree.leaves(core), jax.tree.leaves(player.carry.core), strict=True
            ):
                np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert (server.batches, server.requests) == (3, 15)
    server.close()


def test_a_lone_request_is_answered_after_the_timeout():
    server = serve(2, 2, 0.3)
    actor = registered(server, 0)
    server.act(row(0), *actor)  # compiles
    start = time.monotonic()
    server.act(row(0), *actor)
    assert time.monotonic() - start >= 0.3
    server.close()


def test_no_batch_exceeds_the_maximum():
    server = serve(1, 2, 60.0)
    ask_all(server, [(row(i), *registered(server, i)) for i in range(5)])
    assert server.requests == 5
    assert server.batches >= 3
    server.close()


def test_batches_have_few_sizes():
    sizes = [_size(n) for n in range(1, 50)]
    assert sorted(set(sizes)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert all(n <= size <= 1.5 * n for n, size in enumerate(sizes, 1))


def test_a_waiting_actor_gets_the_servers_error():
    def act(*_: Any) -> Any:
        raise ValueError("no such layer")

    server = serve(2, 2, 0.01, agent=AGENT._replace(act=act))
    actor = registered(server, 0)
    for _ in range(2):
        with pytest.raises(ValueError, match="no such layer"):
            server.act(row(0), *actor)
    server.close()
    server = serve(2, 2, 60.0)
    actor = registered(server, 0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.act, row(0), *actor)
        time.sleep(0.1)
        server.close()
        with pytest.raises(RuntimeError, match="closed"):
            waiting.result(timeout=10)
    server.close()
    assert not any(t.name == "inference" for t in threading.enumerate())


def test_trajectories_of_central_players_are_on_policy():
    """The learner recomputes what was stored: the importance ratio is 1."""
    spec = envs.spec_of("pronk/Catch-v0")
    agent = agents.make("impala", CONFIG, spec, horizon=10_000)
    state = initial_state(agent)
    behaviour = agent.behaviour(state)
    server = InferenceServer(agent, KEY, lambda: behaviour, Batching(2, 2, 0.2))
    actors = [
        Actor(
            CentralPlayer(server, agent, jax.random.key(i), np.arange(WIDTH), 4),
            envs.make("pronk/Catch-v0", WIDTH, seed=i),
            unroll=CONFIG.unroll,
        )
        for i in range(2)
    ]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            unrolls = list(pool.map(lambda actor: actor.unroll(behaviour, 0), actors))
    server.close()
    gradients = jax.jit(agent.halves.gradients)  # type: ignore[arg-type]
    for unroll in unrolls:
        _, aux = gradients(state, Batch(unroll.trajectory))
        np.testing.assert_allclose(aux["importance_ratio"] / aux["steps"], 1.0, atol=1e-5)
    assert (unrolls[0].trajectory.action != unrolls[1].trajectory.action).any()


class _Scripted:
    """An actor that returns the same unroll again and again."""

    placement, rows_acted = "in the test", 0

    def __init__(self) -> None:
        env = envs.make("pronk/Catch-v0", WIDTH)
        agent = catch_agent()
        player = Player(agent, KEY, np.arange(WIDTH), WIDTH)
        self.unrolled = Actor(player, env, unroll=5).unroll(
            agent.behaviour(initial_state(agent)), 0
        )

    def unroll(self, behaviour: Any, version: int) -> Unroll:
        trajectory = self.unrolled.trajectory
        version = np.full_like(trajectory.version, version)
        return self.unrolled._replace(trajectory=trajectory._replace(version=version))

    def close(self) -> None: ...


def catch_agent() -> Agent:
    spec = envs.spec_of("pronk/Catch-v0")
    return agents.make("impala", Config(unroll=5, hidden_sizes=(8,)), spec, horizon=10_000)


def test_a3c_applies_each_gradient_to_the_newest_parameters():
    agent, actor = catch_agent(), _Scripted()
    state = initial_state(agent)
    restarts = Restarts(0, Path(os.devnull), hang_after=60.0)
    actors = [Supervised(lambda _: actor, "actor", restarts, actor) for _ in range(2)]
    runtime = A3CLoop(agent, jax.tree.map(jnp.copy, state), actors)
    gradients, apply = map(jax.jit, agent.halves)  # type: ignore[arg-type]
    versions = [state]
    for _ in range(6):
        while not (update := runtime.update()).metrics:
            pass  # nothing came for a while: it compiles
        # One of the earlier versions acted; its gradient is what was applied.
        acted = versions[-1 - int(update.policy_lag)]
        grads, aux = gradients(acted, Batch(actor.unrolled.trajectory))
        expected = apply(versions[-1], grads, aux).state
        ours = jax.tree.map(jnp.copy, runtime.learner_state)
        for a, b in zip(
            jax.tree.leaves(ours.params), jax.tree.leaves(expected.params), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        versions.append(ours)
    runtime.close()
    assert runtime.learner_state.steps == 6 * update.steps
    with pytest.raises(UserError, match="one gradient step"):
        A3CLoop(agent._replace(halves=None), state, [])


TINY: dict[str, Any] = {
    "batch_size": 4,
    "unroll": 5,
    "hidden_sizes": (8,),
    "quiet": True,
    "actors": 2,
    "runtime": "local",
}


@pytest.mark.parametrize("core", ["lstm", pytest.param("none", marks=pytest.mark.extended)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_trains(name: str, core: str, tmp_path: Path) -> None:
    settings = {
        **TINY,
        "architecture": name,
        "recurrent_core": core,
        "recurrent_units": 4,
        "log_every": 0.01,
    }
    summary = pronk.train("impala", "pronk/Catch-v0", run_dir=tmp_path, steps=600, **settings)
    assert summary["status"] == "finished"
    assert summary["agent_steps"] >= 600
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert all(np.isfinite(r["loss/policy"]) for r in records)
    if ARCHITECTURES[name].synchronous:
        assert summary["policy_lag"] == 0
    resumed = pronk.train("impala", "pronk/Catch-v0", run_dir=tmp_path, steps=600, **settings)
    assert resumed["agent_steps"] == summary["agent_steps"]


@pytest.mark.parametrize("name", ["sync-step", "sync-unroll"])
def test_synchronous_architectures_can_be_deterministic(name: str, tmp_path: Path) -> None:
    digests = []
    for i in range(2):
        settings = {**TINY, "architecture": name, "deterministic": True}
        pronk.train("impala", "CartPole-v1", run_dir=tmp_path / str(i), steps=300, **settings)
        digests.append(inspect(tmp_path / str(i))["learner_sha256"])
    assert digests[0] == digests[1]


TOGETHER = {
    "central": ({"architecture": "async-batched", "deterministic": True}, "no two runs"),
    "gradients": (
        {"architecture": "async-gradients", "deterministic": True},
        "no two runs are alike",
    ),
    "fused": (
        {"architecture": "async-gradients", "runtime": "fused"},
        "`--architecture` is async-gradients, and the fused runtime has none",
    ),
    "a2c": (
        {"architecture": "sync-step", "envs_per_actor": 3},
        r"`--actors` 2 × `--envs-per-actor` 3 must equal",
    ),
    "a3c": (
        {"architecture": "async-gradients", "envs_per_actor": 3},
        "`--envs-per-actor` 3 must equal `--batch-size` 4",
    ),
    "name": ({"architecture": "a2c-sync-stp"}, "did you mean 'sync-step'"),
    "minimum": ({"inference_minimum": 0}, "expected a number above zero"),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_settings_that_contradict_each_other_are_refused(case: str, tmp_path: Path) -> None:
    settings, message = TOGETHER[case]
    with pytest.raises(UserError, match=message):
        pronk.train("impala", "pronk/Catch-v0", run_dir=tmp_path, steps=100, **{**TINY, **settings})


def test_actors_are_closed_if_the_loop_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Actor] = []

    def refuse(*_: Any, **__: Any) -> None:
        raise UserError("needs another agent")

    monkeypatch.setattr(wiring, "A3CLoop", refuse)
    monkeypatch.setattr(Actor, "close", lambda actor: closed.append(actor))
    with pytest.raises(UserError, match="another agent"):
        pronk.train(
            "impala",
            "pronk/Catch-v0",
            run_dir=tmp_path,
            steps=100,
            architecture="async-gradients",
            **TINY,
        )
    assert len(closed) == TINY["actors"]
