"""IMPALA's throughput table (table 1): six architectures, the same agent and network.

On the tasks `even` and `uneven` the environments wait instead of computing
(`pronk.envs.waiting`), so that many fit on few cores, and a queueing model predicts each row.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pronk.config.compatibility import ARCHITECTURES
from pronk.config.spec import Plan
from pronk.envs import waiting
from pronk.errors import UserError, nearest
from pronk.experiments.bench.alone import alone
from pronk.experiments.bench.learner import update_seconds
from pronk.experiments.bench.queueing import Costs, predict
from pronk.experiments.bench.settings import Architectures
from pronk.experiments.bench.timing import median_seconds
from pronk.experiments.bench.training import train_for
from pronk.run.resolve import resolve
from pronk.run.setup import build, initial_state
from pronk.runtime.actor import Actor, Player
from pronk.runtime.columns import columns
from pronk.runtime.inference import Batching, CentralPlayer, InferenceServer
from pronk.runtime.learner import Learner
from pronk.runtime.source import Queue
from pronk.types import Agent, Batch, Trajectory

PART_SECONDS = 3.0  # to measure each part for the model
KEY = 0


def measure(settings: Architectures) -> dict[str, Any]:
    """Agent steps per second of every architecture and task, and the model's where there is one."""
    chosen = settings.architectures or tuple(ARCHITECTURES)
    for name in chosen:
        if name not in ARCHITECTURES:
            raise UserError(
                f"`--architectures` has '{name}'{nearest(name, ARCHITECTURES) or '.'} Known:"
                f" {', '.join(ARCHITECTURES)}."
            )
    for task in settings.tasks:  # what is unknown is said before minutes are spent
        _plan(chosen[0], task, settings)
    cores = os.cpu_count() or 1
    costs = waiting_costs(settings) if set(settings.tasks) & set(waiting.DEVIATION) else None
    rows = []
    for task in settings.tasks:
        for name in chosen:
            plan = _plan(name, task, settings)
            result = train_for(plan, settings.seconds, warm_seconds=settings.seconds / 3)
            row = {
                "task": task,
                "architecture": name,
                "actors": plan.run.actors,
                "envs": plan.run.envs_per_actor,
                "steps_per_second": result["end_to_end_steps_per_second"],
            }
            if costs is not None and task in waiting.DEVIATION:
                row["model"] = predict(
                    name,
                    task,
                    costs,
                    cores=cores,
                    actor_cores=min(settings.actor_cores, cores),
                    envs=settings.envs,
                    unroll=settings.unroll,
                )
                row["measured_to_model"] = row["steps_per_second"] / row["model"]
            row |= {k: result[k] for k in ("policy_lag", "bound_by")}
            rows.append(row)
    return {
        "network": settings.network,
        "unroll": settings.unroll,
        "cores": cores,
        "device": jax.devices()[0].device_kind,
        **({} if costs is None else {f"{k}_cost": v for k, v in costs._asdict().items()}),
        "rows": rows,
    }


class Shape(NamedTuple):
    """How a table's environments are divided."""

    actors: int
    envs: int  # of each actor
    batch: int  # trajectories per update


def _shape(name: str, task: str, settings: Architectures) -> Shape:
    """An environment per actor where they wait; Atari's, which compute, in few vectors."""
    architecture = ARCHITECTURES[name]
    total = settings.envs if task in waiting.DEVIATION else settings.atari_envs
    if architecture.single:
        return Shape(1, total, total)
    if architecture.gradients:
        return Shape(total, 1, 1)
    if task in waiting.DEVIATION:
        return Shape(total, 1, total)
    actors = min(total, 2 * (os.cpu_count() or 1)) if architecture.central else 2
    return Shape(actors, total // actors, total)


def _plan(name: str, task: str, settings: Architectures) -> Plan:
    shape = _shape(name, task, settings)
    waits = task in waiting.DEVIATION
    return resolve(
        "impala",
        waiting.NAME if waits else task,
        env_args={"task": task} if waits else {},
        preset="atari",
        torso=settings.network,
        runtime="local",
        architecture=name,
        actor_cores=settings.actor_cores if waits else None,
        actors=shape.actors,
        envs_per_actor=shape.envs,
        batch_size=shape.batch,
        unroll=settings.unroll,
    )


def waiting_costs(settings: Architectures) -> Costs:
    """What the parts cost on environments that wait, of a batch of all of them."""
    one = alone(_parts, settings)
    agent, learner = _made(settings)
    together = _update_seconds(agent, learner, settings)
    return Costs(**one, speedup=one["update"] / together)


def _made(settings: Architectures) -> tuple[Agent, Learner]:
    plan = _plan("impala", "even", settings)
    _, agent = build(plan, plan.env)
    return agent, Learner(agent, initial_state(plan, agent), batch_size=settings.envs)


def _parts(settings: Architectures) -> dict[str, float]:
    """Costs on one core, `speedup` left out."""
    agent, learner = _made(settings)
    n = settings.envs
    # n requests are answered one by one, or all together: two equations for the server's costs.
    lone = _served_seconds(agent, learner, settings, maximum=1)
    together = _served_seconds(agent, learner, settings, maximum=n)
    batch = (lone - together) / (1 - 1 / n)
    trajectory = _trajectory(agent, learner, settings)

    def assemble() -> None:
        batcher = Queue(n)
        for i in range(n):
            batcher.add(i, columns(trajectory, i, i + 1))
        assert batcher.ready()
        jax.block_until_ready(learner.prepare(batcher.take(learner.parts).parts).parts)

    single = Batch(columns(trajectory, 0, 1))
    assert agent.halves is not None
    gradients = jax.jit(agent.halves.gradients)
    apply = jax.jit(agent.halves.apply, donate_argnums=0)
    copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state))
    state = copy(learner.state)
    found = gradients(state, single)

    def applied() -> None:
        nonlocal state
        state, _, _ = apply(state, *found)
        jax.block_until_ready(copy(state))

    return {
        "step": _crowd_seconds([_player(agent, i, 1) for i in range(n)], learner, settings),
        "step_all": n * _crowd_seconds([_player(agent, 0, n)], learner, settings),
        "batch": batch,
        "request": together - batch / n,
        "assemble": median_seconds(assemble, PART_SECONDS),
        "update": _update_seconds(agent, learner, settings),
        "gradient": median_seconds(
            lambda: jax.block_until_ready(gradients(learner.state, single)), PART_SECONDS
        ),
        "apply": median_seconds(applied, PART_SECONDS),
    }


def _player(agent: Agent, index: int, width: int) -> Player:
    return Player(agent, jax.random.key(index), np.arange(width), width)


def _crowd_seconds(players: list[Player], learner: Learner, settings: Architectures) -> float:
    """Per step of an environment, of as many actors in threads, none of which waits."""
    width = settings.envs // len(players)
    actors = [_actor(player, width, settings.unroll) for player in players]
    behaviour = learner.behaviour()

    def act(actor: Actor) -> int:
        unrolls = 0
        while time.perf_counter() < end or not unrolls:
            actor.unroll(behaviour, 0)
            unrolls += 1
        return unrolls

    with ThreadPoolExecutor(len(actors)) as pool:
        end = 0.0
        list(pool.map(act, actors))  # compiles
        start = time.perf_counter()
        end = start + PART_SECONDS
        unrolls = sum(pool.map(act, actors))
        return (time.perf_counter() - start) / (unrolls * settings.unroll * width)


def _actor(player: Player, width: int, unroll: int) -> Actor:
    return Actor(player, waiting.make(width, 0, 0, scale=0.0), unroll=unroll)


def _trajectory(agent: Agent, learner: Learner, settings: Architectures) -> Trajectory:
    actor = _actor(_player(agent, KEY, settings.envs), settings.envs, settings.unroll)
    return actor.unroll(learner.behaviour(), 0).trajectory


def _served_seconds(
    agent: Agent, learner: Learner, settings: Architectures, *, maximum: int
) -> float:
    """Per request, of as many actors as there are environments, none of which waits."""
    n = settings.envs
    server = InferenceServer(
        agent, jax.random.key(KEY), learner.behaviour, Batching(maximum, maximum, 1.0)
    )
    players: list[Player] = [
        CentralPlayer(server, agent, jax.random.key(i), np.arange(1), n) for i in range(n)
    ]
    seconds = _crowd_seconds(players, learner, settings)
    server.close()
    return seconds


def _update_seconds(agent: Agent, learner: Learner, settings: Architectures) -> float:
    trajectory = _trajectory(agent, learner, settings)
    state = jax.tree.map(jnp.copy, learner.state)  # which the updates may reuse
    return update_seconds(agent, state, trajectory, PART_SECONDS)
