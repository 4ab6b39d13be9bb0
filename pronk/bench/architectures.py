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

from pronk.architectures import ARCHITECTURES
from pronk.bench.alone import alone
from pronk.bench.queueing import Costs, predict
from pronk.bench.timing import median_seconds
from pronk.bench.training import train_for
from pronk.configs.bench import Architectures
from pronk.envs import waiting
from pronk.errors import UserError, nearest
from pronk.plan import Plan, resolve
from pronk.runtime.actor import Actor, Player
from pronk.runtime.batcher import Batcher, columns
from pronk.runtime.inference import Batching, CentralPlayer, InferenceServer
from pronk.runtime.learner import Learner
from pronk.types import Agent, Batch, Trajectory
from pronk.wiring import build, initial_state

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
    costs = _costs(settings) if set(settings.tasks) & set(waiting.DEVIATION) else None
    rows = []
    for task in settings.tasks:
        for name in chosen:
            plan = _plan(name, task, settings)
            result = train_for(plan, settings.seconds, warm_seconds=settings.seconds / 3)
            row = {
                "task": task,
                "architecture": name,
                "actors": plan.run.actors,
                "envs": plan.run.envs,
                "steps_per_second": result["end_to_end_steps_per_second"],
            }
            if costs is not None and task in waiting.DEVIATION:
                row["model"] = predict(
                    name, task, costs, cores=cores, envs=settings.envs, unroll=settings.unroll
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
        actors=shape.actors,
        envs=shape.envs,
        batch_size=shape.batch,
        unroll=settings.unroll,
    )


def _costs(settings: Architectures) -> Costs:
    one = alone(_parts, settings)
    together = _update_seconds(settings, *_made(settings))
    return Costs(**one, speedup=one["update"] / together)


def _made(settings: Architectures) -> tuple[Agent, Learner]:
    plan = _plan("impala", "even", settings)
    _, agent = build(plan, plan.env)
    return agent, Learner(agent, initial_state(plan, agent))


def _parts(settings: Architectures) -> dict[str, float]:
    """Costs on one core, `speedup` left out."""
    agent, learner = _made(settings)
    n, unroll = settings.envs, settings.unroll
    # n requests are answered one by one, or all together: two equations for the server's costs.
    lone = _served_seconds(agent, learner, settings, maximum=1)
    together = _served_seconds(agent, learner, settings, maximum=n)
    batch = (lone - together) / (1 - 1 / n)
    trajectory = _trajectory(agent, learner, settings)

    def assemble() -> None:
        batcher = Batcher(n)
        for i in range(n):
            batcher.add(columns(trajectory, i, i + 1))
        jax.block_until_ready(learner.prepare(batcher.take()).batch)

    single = Batch(columns(trajectory, 0, 1))
    assert agent.gradients is not None
    assert agent.apply is not None
    gradients, apply = jax.jit(agent.gradients), jax.jit(agent.apply, donate_argnums=0)
    copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state))
    state = copy(learner.state)
    found = gradients(state, single)

    def applied() -> None:
        nonlocal state
        state, _, _ = apply(state, *found)
        jax.block_until_ready(copy(state))

    return {
        "step": _step_seconds(agent, learner, unroll, 1),
        "step_all": _step_seconds(agent, learner, unroll, n),
        "batch": batch,
        "request": together - batch / n,
        "assemble": median_seconds(assemble, PART_SECONDS),
        "update": _update_seconds(settings, agent, learner),
        "gradient": median_seconds(
            lambda: jax.block_until_ready(gradients(learner.state, single)), PART_SECONDS
        ),
        "apply": median_seconds(applied, PART_SECONDS),
    }


def _actor(player: Player, width: int, unroll: int) -> Actor:
    return Actor(player, waiting.make(width, 0, 0, scale=0.0), unroll=unroll)


def _step_seconds(agent: Agent, learner: Learner, unroll: int, width: int) -> float:
    """Of an actor's step with `width` environments that do not wait."""
    player = Player(agent, jax.random.key(KEY), np.arange(width), width)
    actor = _actor(player, width, unroll)
    return median_seconds(lambda: actor.unroll(learner.behaviour(), 0), PART_SECONDS) / unroll


def _trajectory(agent: Agent, learner: Learner, settings: Architectures) -> Trajectory:
    player = Player(agent, jax.random.key(KEY), np.arange(settings.envs), settings.envs)
    actor = _actor(player, settings.envs, settings.unroll)
    return actor.unroll(learner.behaviour(), 0).trajectory


def _served_seconds(
    agent: Agent, learner: Learner, settings: Architectures, *, maximum: int
) -> float:
    """Per request, of as many actors as there are environments, none of which waits."""
    n = settings.envs
    server = InferenceServer(
        agent, jax.random.key(KEY), learner.behaviour, Batching(maximum, maximum, 1.0)
    )
    actors = [
        _actor(CentralPlayer(server, agent, jax.random.key(i), np.arange(1), n), 1, settings.unroll)
        for i in range(n)
    ]
    end = 0.0

    def act(actor: Actor) -> None:
        while True:
            actor.unroll(None, 0)
            if time.perf_counter() > end:
                return

    with ThreadPoolExecutor(n) as pool:
        list(pool.map(act, actors))  # compiles
        before, start = server.requests, time.perf_counter()
        end = start + PART_SECONDS
        list(pool.map(act, actors))
        seconds = time.perf_counter() - start
    server.close()
    return seconds / (server.requests - before)


def _update_seconds(settings: Architectures, agent: Agent, learner: Learner) -> float:
    trajectory = _trajectory(agent, learner, settings)
    prepared = learner.prepare(Batch(trajectory))

    def update() -> None:
        learner.update(prepared, [])
        learner.publish()

    return median_seconds(update, PART_SECONDS)
