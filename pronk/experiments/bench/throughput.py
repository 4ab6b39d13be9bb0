"""What environment, inference and learner can do alone, and what training makes of them.

Each part alone has one core, so that the work-conserving limit of them together is
cores / (1/E + 1/I + 1/L): no order of doing the same work can be faster. Parts that take turns slow
one another down by what each puts out of the caches; `in_turn` is what one core makes of all three.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

import gymnasium as gym
import jax
import numpy as np

from pronk import envs
from pronk.config.spec import Plan
from pronk.experiments.bench import training
from pronk.experiments.bench.alone import alone
from pronk.experiments.bench.learner import update_seconds
from pronk.experiments.bench.settings import Throughput
from pronk.experiments.bench.timing import median_seconds, random_batch, random_rows
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
        "envs": settings.envs,
        "batch": settings.batch,
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
        envs_per_actor=settings.envs,
        unroll=settings.unroll,
        batch_size=settings.batch,
        **network,
    )


def _env(settings: Throughput) -> float:
    """Random actions in one vector of environments."""
    env = envs.make(settings.env, settings.envs, workers=0)
    with contextlib.closing(env):
        space = gym.vector.utils.batch_space(env.spec.action_space, env.num_envs)
        space.seed(0)
        lowest = getattr(env.spec.action_space, "start", 0)
        env.reset()
        steps, start = 0, time.perf_counter()
        while (seconds := time.perf_counter() - start) < settings.seconds / 3:
            steps += int((~env.step(np.asarray(space.sample()) - lowest).first).sum())
        return steps / seconds


def _act(settings: Throughput) -> float:
    """Decisions for one vector of environments, as an actor asks for them."""
    plan = _plan(settings)
    spec, agent = build(plan, plan.env)
    behaviour = jax.jit(agent.behaviour)(initial_state(plan, agent))
    env_ids = np.arange(settings.envs, dtype=np.int32)
    player = Player(agent, jax.random.key(0), env_ids, settings.envs)
    rows = random_rows(spec, (settings.envs,))
    seconds = median_seconds(lambda: player.act(behaviour, rows), settings.seconds / 3)
    return settings.envs / seconds


def _learn(settings: Throughput) -> float:
    """Updates from one batch of random observations."""
    plan = _plan(settings)
    spec, agent = build(plan, plan.env)
    state = initial_state(plan, agent)
    batch = random_batch(agent, spec, state, settings.unroll, settings.batch)
    seconds = update_seconds(agent, state, batch.trajectory, settings.seconds / 3)
    return settings.unroll * settings.batch / seconds


def _in_turn(settings: Throughput) -> float:
    """One actor and the learner, each waiting for the other."""
    plan = _plan(settings)
    _, agent = build(plan, plan.env)
    learner = Learner(agent, initial_state(plan, agent), batch_size=settings.batch)
    actor = ActorFactory(plan, plan.env, 0, 1, settings.envs, 0)(agent)
    runtime = RoundsLoop(learner, [actor], Queue(settings.batch), in_turns=True)

    with contextlib.closing(runtime):
        found = training.measure(runtime, settings.seconds / 3, warm_seconds=0.0)
    return found["end_to_end_steps_per_second"]
