"""A population in one program, against single fused runs, compilation included."""

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
from pronk.experiments.bench.fused import NETWORKS
from pronk.experiments.bench.settings import Population as Settings
from pronk.run.build import fused_shape
from pronk.run.resolve import resolve
from pronk.run.setup import ACTOR_KEY, INIT_KEY, build, configure_jax, key_for
from pronk.runtime import fused
from pronk.runtime.population import Population
from pronk.types import Agent, Array

CALLS = 20  # of the program per run
COMPILED = "/jax/core/compile/backend_compile_duration"
_LISTENING: list[int] = []  # compilations so far, once there is someone who counts


def measure(settings: Settings) -> dict[str, Any]:
    """Seconds from nothing to the last update, wall and of the CPU; those that the updates take
    once all is compiled; compilations (of programs; each way has one for the beginning and one for
    the updates); and agent steps per second.

    Nothing comes from the cache of compiled programs. Single runs are compiled each, as commands of
    their own are that find no cache; and once for all of them.
    """
    configure_jax()
    env = envs.jax_env_of(settings.env)
    if env is None:
        raise UserError(f"`--env` is '{settings.env}'; expected an environment written in JAX.")
    plan = resolve(
        "impala", settings.env, preset="small", runtime="fused", unroll=settings.unroll,
        batch_size=settings.envs, **NETWORKS.get(settings.env, {"hidden_sizes": (64, 64)}),
    )  # fmt: skip
    _, agent = build(plan, settings.env)
    in_turn = jax.default_backend() == "cpu"
    ways: dict[str, Callable[[], Iterator[int]]] = {
        "population": lambda: _population(plan, agent, env, settings, in_turn),
        "single runs, compiled once": lambda: _singles(plan, agent, env, settings, each=False),
    }
    if settings.compiled_each:
        each = "single runs, compiled each"
        ways[each] = lambda: _singles(plan, agent, env, settings, each=True)
    if settings.vmapped and in_turn:
        ways["population, vmapped"] = lambda: _population(plan, agent, env, settings, False)
    with without_cache():
        # What is nobody's in particular: the keys' programs, and an accelerator's libraries.
        _keys(settings.members)
        jax.jit(jnp.matmul)(*jnp.ones((2, 64, 64))).block_until_ready()
        rows = [{"what": name, **_timed(way)} for name, way in ways.items()]
    for row in rows:
        row["times_the_population"] = row["seconds"] / rows[0]["seconds"]
        row["times_compiled"] = row["updates_seconds"] / rows[0]["updates_seconds"]
    return {
        "env": settings.env,
        "members": settings.members,
        "rows_each": settings.steps,
        "device": jax.devices()[0].device_kind,
        "members_in_turn": in_turn,
        "rows": rows,
    }


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
    """All is compiled that is meant to be measured."""

    def use_cache(wanted: bool) -> None:
        jax.config.update("jax_enable_compilation_cache", wanted)
        compilation_cache.reset_cache()  # jax asks once, at its first compilation

    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    use_cache(False)
    try:
        yield
    finally:
        use_cache(before)


def _timed(way: Callable[[], Iterator[int]]) -> dict[str, Any]:
    """way: yields the agent steps of each call of its program."""
    if not _LISTENING:
        _LISTENING.append(0)

        def heard(event: str, duration_secs: float, **kwargs: str | int) -> None:
            del duration_secs, kwargs
            _LISTENING[0] += event == COMPILED

        jax.monitoring.register_event_duration_secs_listener(heard)
    compiled, cpu, start = _LISTENING[0], os.times(), time.perf_counter()
    steps, ended = 0, [start]
    for of_call in way():
        steps += of_call
        ended.append(time.perf_counter())
    seconds, after = ended[-1] - start, os.times()
    calls = np.diff(ended)
    return {
        "seconds": seconds,
        "updates_seconds": float(np.median(calls)) * len(calls),
        "cpu_seconds": after.user + after.system - cpu.user - cpu.system,
        "compilations": _LISTENING[0] - compiled,
        "steps_per_second": steps / seconds,
    }


def _updates(plan: Plan, settings: Settings) -> int:
    """Per call."""
    per_update = plan.agent_config.unroll * plan.agent_config.batch_size
    return max(1, round(settings.steps / per_update / CALLS))


def _population(
    plan: Plan, agent: Agent, env: Any, settings: Settings, in_turn: bool
) -> Iterator[int]:
    shape = fused_shape(plan, agent)
    made = Population(agent, env, shape, updates=_updates(plan, settings), in_turn=in_turn)
    runs = made.begin(*_keys(settings.members), {})
    for _ in range(CALLS):
        runs, told = made.advance(runs)
        yield int(np.asarray(told.steps).sum())


def _keys(members: int) -> tuple[Array, Array]:
    """For the networks, and for acting."""
    seeds = range(members)
    return (
        jnp.stack([key_for(seed, INIT_KEY) for seed in seeds]),
        jnp.stack([key_for(seed, ACTOR_KEY) for seed in seeds]),
    )


def _singles(
    plan: Plan, agent: Agent, env: Any, settings: Settings, *, each: bool
) -> Iterator[int]:
    """The same members and calls, one run after another."""
    updates = _updates(plan, settings)

    def programs() -> tuple[Callable[..., Any], Callable[..., Any]]:
        init, update = fused.build(agent, env, **fused_shape(plan, agent))

        def begin(init_key: Any, act_key: Any) -> fused.RunState:
            return init(agent.init(init_key), act_key)

        def some(run: fused.RunState) -> tuple[fused.RunState, Array]:
            def one(run: fused.RunState, _: None) -> tuple[fused.RunState, Array]:
                run, outcome = update(run)
                return run, outcome.steps

            run, steps = jax.lax.scan(one, run, length=updates)
            return run, steps.sum()

        return jax.jit(begin), jax.jit(some, donate_argnums=0)

    begin, some = programs()
    for seed in range(settings.members):
        if each and seed:
            begin, some = programs()
        run = begin(key_for(seed, INIT_KEY), key_for(seed, ACTOR_KEY))
        for _ in range(CALLS):
            run, steps = some(run)
            yield int(steps)
