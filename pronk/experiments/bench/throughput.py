"""Speed of environment, inference and learner alone, and of training, which needs all three.

Each part alone runs on one core at E, I and L agent steps per second. Together they cannot exceed
cores / (1/E + 1/I + 1/L), in whatever order the same work is done. In training the parts evict one
another's data from the caches; `in_turn` is the speed of all three taking turns on one core.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

import jax
import numpy as np

from pronk import envs
from pronk.config.spec import Plan
from pronk.experiments.bench import training
from pronk.experiments.bench.alone import alone
from pronk.experiments.bench.learner import update_seconds
from pronk.experiments.bench.settings import Throughput
from pronk.experiments.bench.timing import median_seconds, random_batch, random_rows
from pronk.maths.spaces import random_actions
from pronk.run.actors import ActorFactory
from pronk.run.resolve import resolve
from pronk.run.setup import build, initial_state
from pronk.runtime.actor import Player
from pronk.runtime.learner import Learner
from pronk.runtime.rounds import RoundsLoop
from pronk.runtime.source import Queue


def measure(settings: Throughput) -> dict[str, Any]:
    """Agent steps per second of the parts alone, of their limit together, and end to end."""
    plan = _plan(settings)
    cores = os.cpu_count() or 1
    env = alone(_env, settings)
    act = alone(_act, settings)
    learn = alone(_learn, settings)
    limit = cores / (1 / env + 1 / act + 1 / learn)
    in_turn = alone(_in_turn, settings)
    return {
        "env": settings.env,
        "network": plan.agent_config.torso,
        "actors": settings.actors,
        "envs_per_actor": settings.envs_per_actor,
        "batch_size": settings.batch_size,
        "unroll": settings.unroll,
        "cores": cores,
        "env_steps_per_second_per_core": env,
        "act_steps_per_second_per_core": act,
        "learn_steps_per_second_per_core": learn,
        "limit_steps_per_second": limit,
        "in_turn_steps_per_second_per_core": in_turn,
        **(end := training.train_for(_plan(settings), settings.seconds)),
        "share_of_limit": end["end_to_end_steps_per_second"] / limit,
        "share_of_in_turn": end["end_to_end_steps_per_second"] / (cores * in_turn),
    }


def _plan(settings: Throughput) -> Plan:
    network: Any = {"torso": settings.network} if envs.is_atari(settings.env) else {}
    return resolve(
        "impala",
        settings.env,
        runtime="local",
        actors=settings.actors,
        envs_per_actor=settings.envs_per_actor,
        unroll=settings.unroll,
        batch_size=settings.batch_size,
        **network,
    )


def _env(settings: Throughput) -> float:
    """Stepping one actor's environments with random actions."""
    env = envs.make(settings.env, settings.envs_per_actor, workers=0)
    with contextlib.closing(env):
        space, rng = env.spec.action_space, np.random.default_rng(0)
        timestep = env.reset()
        steps, start = 0, time.perf_counter()
        while (seconds := time.perf_counter() - start) < settings.seconds / 3:
            timestep = env.step(random_actions(space, env.num_envs, rng, timestep.action_mask))
            steps += int((~timestep.first).sum())
        return steps / seconds


def _act(settings: Throughput) -> float:
    """Acting in one actor's environments."""
    plan = _plan(settings)
    spec, agent = build(plan, plan.env)
    behaviour = jax.jit(agent.behaviour)(initial_state(plan, agent))
    env_ids = np.arange(settings.envs_per_actor, dtype=np.int32)
    player = Player(agent, jax.random.key(0), env_ids, settings.envs_per_actor)
    rows = random_rows(spec, (settings.envs_per_actor,))
    seconds = median_seconds(lambda: player.act(behaviour, rows), settings.seconds / 3)
    return settings.envs_per_actor / seconds


def _learn(settings: Throughput) -> float:
    """Updating on one batch of random observations."""
    plan = _plan(settings)
    spec, agent = build(plan, plan.env)
    state = initial_state(plan, agent)
    batch = random_batch(agent, spec, state, settings.unroll, settings.batch_size)
    seconds = update_seconds(agent, state, batch.trajectory, settings.seconds / 3)
    return settings.unroll * settings.batch_size / seconds


def _in_turn(settings: Throughput) -> float:
    """Training with one actor and the learner taking turns."""
    plan = _plan(settings)
    _, agent = build(plan, plan.env)
    learner = Learner(agent, initial_state(plan, agent), batch_size=settings.batch_size)
    actor = ActorFactory(plan, plan.env, 0, 1, settings.envs_per_actor, 0)(agent)
    runtime = RoundsLoop(learner, [actor], Queue(settings.batch_size), in_turns=True)
    with contextlib.closing(runtime):
        result = training.measure(runtime, settings.seconds / 3, warm_seconds=0.0)
    return result["end_to_end_steps_per_second"]
