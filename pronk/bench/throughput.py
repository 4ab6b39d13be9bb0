"""What environment, inference and learner can do alone, and what training makes of them.

Each part alone has one core, so that the work-conserving limit of them together is
cores / (1/E + 1/I + 1/L): no order of doing the same work can be faster.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import numpy as np

from pronk import envs
from pronk.bench.learner import update_seconds
from pronk.bench.timing import median_seconds, random_batch, random_rows
from pronk.configs.bench import Throughput
from pronk.errors import UserError
from pronk.plan import Plan, resolve
from pronk.runtime.actor import Player
from pronk.wiring import build, initial_state, make_runtime, use_compilation_cache

WARM_UPDATES = 20


def measure(settings: Throughput) -> dict[str, Any]:
    """Agent steps per second of the parts alone, of their limit together, and end to end."""
    plan = _plan(settings, None)
    cores = os.cpu_count() or 1
    env = _alone("env", settings)
    act = _alone("act", settings)
    learn = _alone("learn", settings)
    limit = cores / (1 / env + 1 / act + 1 / learn)
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
        **(end := _end_to_end(settings)),
        "share_of_limit": end["end_to_end_steps_per_second"] / limit,
    }


def _plan(settings: Throughput, run_dir: Path | None) -> Plan:
    network: Any = {"torso": settings.network} if envs.is_atari(settings.env) else {}
    return resolve(
        "impala",
        settings.env,
        run_dir=run_dir,
        runtime="local",
        actors=settings.actors,
        envs=settings.envs,
        unroll=settings.unroll,
        batch_size=settings.batch,
        **network,
    )


def _end_to_end(settings: Throughput) -> dict[str, Any]:
    """Train as `pronk train` does, without saving."""
    use_compilation_cache()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plan = _plan(settings, directory)
        _, agent = build(plan, plan.env)
        runtime = make_runtime(
            plan,
            plan.env,
            agent,
            initial_state(plan, agent),
            life=0,
            tell=lambda _: None,
            stack=stack,
        )
        stack.callback(runtime.close)
        for _ in range(WARM_UPDATES):
            runtime.update()
        waited = runtime.waits()
        start, steps, lags = time.perf_counter(), 0, []
        while time.perf_counter() - start < settings.seconds:
            update = runtime.update()
            steps += update.steps
            lags.append(update.policy_lag)
        seconds = time.perf_counter() - start
        return {
            "end_to_end_steps_per_second": steps / seconds,
            "policy_lag": float(np.mean(lags)),
            "bound_by": runtime.bound_by(),
            **{f"{k}_share": (v - waited[k]) / seconds for k, v in runtime.waits().items()},
        }


def _alone(part: str, settings: Throughput) -> float:
    """Steps per second of one part in a process of its own, which has one core."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_on_one_core, args=(theirs, part, settings))
    process.start()
    theirs.close()
    try:
        result = ours.recv()
    except EOFError:
        process.join()
        raise UserError(
            f"the process that measured '{part}' alone died with exit code {process.exitcode};"
            " what it said is above."
        ) from None
    process.join()
    if isinstance(result, str):
        raise UserError(result)
    return result


def _on_one_core(connection: Connection, part: str, settings: Throughput) -> None:
    core = sorted(os.sched_getaffinity(0))[-1]
    os.sched_setaffinity(0, {core})  # before jax starts its threads
    use_compilation_cache()
    try:
        measured = {"env": _env, "act": _act, "learn": _learn}[part](settings)
    except UserError as error:
        connection.send(str(error))
    else:
        connection.send(measured)


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
    plan = _plan(settings, None)
    spec, agent = build(plan, plan.env)
    behaviour = jax.jit(agent.behaviour)(initial_state(plan, agent))
    env_ids = np.arange(settings.envs, dtype=np.int32)
    player = Player(agent, jax.random.key(0), env_ids, settings.envs)
    rows = random_rows(spec, (settings.envs,))
    seconds = median_seconds(lambda: player.act(behaviour, rows), settings.seconds / 3)
    return settings.envs / seconds


def _learn(settings: Throughput) -> float:
    """Updates from one batch of random observations."""
    plan = _plan(settings, None)
    spec, agent = build(plan, plan.env)
    state = initial_state(plan, agent)
    batch = random_batch(agent, spec, state, settings.unroll, settings.batch)
    seconds = update_seconds(agent, state, batch, settings.seconds / 3)
    return settings.unroll * settings.batch / seconds
