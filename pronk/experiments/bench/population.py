"""Speed of a population in one program and of single fused runs, compilation included."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from pronk import envs
from pronk.config.spec import Plan
from pronk.errors import UserError
from pronk.experiments.bench.fused import NETWORKS, repeat
from pronk.experiments.bench.settings import Population as Settings
from pronk.experiments.hyperparameters import SMALL
from pronk.run.build import fused_shape
from pronk.run.resolve import resolve
from pronk.run.setup import ACTOR_KEY, INIT_KEY, build, configure_jax, key_for
from pronk.runtime import fused
from pronk.runtime.population import Population
from pronk.types import Agent, Array

CALLS = 20  # of the compiled program per run
COMPILED = "/jax/core/compile/backend_compile_duration"  # a monitoring event of JAX
_COUNT: list[int] = []  # compilations so far; empty until a listener is registered


def measure(settings: Settings) -> dict[str, Any]:
    """A row for each way to train the members: wall and CPU seconds from start to last update,
    seconds of the updates alone once compiled, compilations, and agent steps per second.

    The persistent compilation cache is off. Single runs are measured twice: compiled each, as
    separate commands would be, and compiled once for all.
    """
    configure_jax()
    env = envs.jax_env_of(settings.env)
    if env is None:
        raise UserError(f"`--env` is '{settings.env}'; expected an environment written in JAX.")
    shape = {"unroll": settings.unroll, "batch_size": settings.num_envs}
    network = NETWORKS.get(settings.env, {"hidden_sizes": (64, 64)})
    plan = resolve(
        "impala", settings.env, preset="paper", runtime="fused", **{**SMALL, **network, **shape}
    )
    _, agent = build(plan, settings.env)
    one_by_one = jax.default_backend() == "cpu"
    ways: dict[str, Callable[[], Iterator[int]]] = {
        "population": lambda: _population(plan, agent, env, settings, one_by_one),
        "single runs, compiled once": lambda: _singles(plan, agent, env, settings, each=False),
    }
    if settings.compiled_each:
        each = "single runs, compiled each"
        ways[each] = lambda: _singles(plan, agent, env, settings, each=True)
    if settings.vmapped and one_by_one:
        ways["population, vmapped"] = lambda: _population(plan, agent, env, settings, False)
    with without_cache():
        # Compiled and loaded first, so that no row pays for it: keys, an accelerator's libraries.
        _keys(settings.members)
        jax.jit(jnp.matmul)(*jnp.ones((2, 64, 64))).block_until_ready()
        rows = [{"way": name, **_timed(way)} for name, way in ways.items()]
    for row in rows:
        row["times_the_population"] = row["seconds"] / rows[0]["seconds"]
        row["times_compiled"] = row["updates_seconds"] / rows[0]["updates_seconds"]
    return {
        "env": settings.env,
        "members": settings.members,
        "steps_per_member": settings.steps,
        "device": jax.devices()[0].device_kind,
        "members_one_by_one": one_by_one,
        "rows": rows,
    }


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
    """Turn the persistent compilation cache off."""

    def use_cache(enabled: bool) -> None:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()  # JAX reads the flag only at its first compilation

    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    use_cache(False)
    try:
        yield
    finally:
        use_cache(before)


def _timed(way: Callable[[], Iterator[int]]) -> dict[str, Any]:
    """Time a way of training, a generator of the agent steps of each call of its program."""
    if not _COUNT:
        _COUNT.append(0)

        def count(event: str, duration_secs: float, **kwargs: str | int) -> None:
            del duration_secs, kwargs
            _COUNT[0] += event == COMPILED

        jax.monitoring.register_event_duration_secs_listener(count)
    compiled, cpu, start = _COUNT[0], os.times(), time.perf_counter()
    steps, times = 0, [start]
    for call_steps in way():
        steps += call_steps
        times.append(time.perf_counter())
    seconds, after = times[-1] - start, os.times()
    calls = np.diff(times)
    return {
        "seconds": seconds,
        "updates_seconds": float(np.median(calls)) * len(calls),
        "cpu_seconds": after.user + after.system - cpu.user - cpu.system,
        "compilations": _COUNT[0] - compiled,
        "steps_per_second": steps / seconds,
    }


def _updates(plan: Plan, settings: Settings) -> int:
    """Updates per call of the program."""
    per_update = plan.agent_config.unroll * plan.agent_config.batch_size
    return max(1, round(settings.steps / per_update / CALLS))


def _population(
    plan: Plan, agent: Agent, env: Any, settings: Settings, one_by_one: bool
) -> Iterator[int]:
    shape = fused_shape(plan, agent)
    population = Population(agent, env, shape, updates=_updates(plan, settings), in_turn=one_by_one)
    runs = population.begin(*_keys(settings.members), {})
    for _ in range(CALLS):
        runs, generation = population.advance(runs)
        yield int(np.asarray(generation.steps).sum())


def _keys(members: int) -> tuple[Array, Array]:
    """The members' keys for initialisation and for acting, `[members]` each."""
    seeds = range(members)
    return (
        jnp.stack([key_for(seed, INIT_KEY) for seed in seeds]),
        jnp.stack([key_for(seed, ACTOR_KEY) for seed in seeds]),
    )


def _singles(
    plan: Plan, agent: Agent, env: Any, settings: Settings, *, each: bool
) -> Iterator[int]:
    """The same members, one run after another; each: compile the programs of every run."""

    def programs() -> tuple[Callable[..., Any], Callable[..., Any]]:
        init, update = fused.build(agent, env, **fused_shape(plan, agent))

        def begin(init_key: Any, act_key: Any) -> fused.RunState:
            return init(agent.init(init_key), act_key)

        return jax.jit(begin), jax.jit(repeat(update, _updates(plan, settings)), donate_argnums=0)

    begin, advance = programs()
    for seed in range(settings.members):
        if each and seed:
            begin, advance = programs()
        run = begin(key_for(seed, INIT_KEY), key_for(seed, ACTOR_KEY))
        for _ in range(CALLS):
            run, steps = advance(run)
            yield int(steps)
