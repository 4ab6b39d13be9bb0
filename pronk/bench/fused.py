"""The fused runtime, with and without its update."""

from __future__ import annotations

from typing import Any

import jax

from pronk import envs
from pronk.bench.timing import median_seconds
from pronk.configs.bench import Fused
from pronk.plan import resolve
from pronk.runtime import fused
from pronk.types import Agent
from pronk.wiring import build, configure_jax, initial_state

UPDATES_PER_CALL = 16
_VECTOR: dict[str, Any] = {"hidden": (64, 64)}
_PIXELS: dict[str, Any] = {"torso": "minatar", "hidden": (128,)}
NETWORKS = {
    "pronk/Catch-v0": _VECTOR,
    "pronk/CartPole-v1": _VECTOR,
    "pronk/Breakout-v0": _PIXELS,
    "pronk/SpaceInvaders-v0": _PIXELS,
}


def measure(settings: Fused) -> dict[str, Any]:
    """Agent steps per second of Catch and CartPole (network 64 × 64), and of MinAtar's games (16
    kernels of 3 × 3, and 128 units)."""
    configure_jax()
    rows = []
    for env in NETWORKS:
        training = _steps_per_second(env, settings, learning=True)
        acting = _steps_per_second(env, settings, learning=False)
        rows.append(
            {
                "env": env,
                "steps_per_second": training,
                "without_update": acting,
                "ratio": training / acting,
            }
        )
    return {
        "envs": settings.envs,
        "unroll": settings.unroll,
        "device": jax.devices()[0].device_kind,
        "rows": rows,
    }


def _steps_per_second(env: str, settings: Fused, *, learning: bool) -> float:
    plan = resolve("impala", env, unroll=settings.unroll, batch_size=settings.envs, **NETWORKS[env])
    _, agent = build(plan, env)
    if not learning:
        agent = _without_update(agent)
    jax_env = envs.jax_env_of(env)
    assert jax_env is not None
    init, update = fused.build(agent, jax_env, unroll=settings.unroll, num_envs=settings.envs)
    run = jax.jit(init)(initial_state(plan, agent), jax.random.key(0))

    def many(run: fused.RunState) -> tuple[fused.RunState, Any]:
        def one(run: fused.RunState, _: None) -> tuple[fused.RunState, Any]:
            run, outcome = update(run)
            return run, outcome.steps

        return jax.lax.scan(one, run, length=UPDATES_PER_CALL)

    many = jax.jit(many, donate_argnums=0)
    steps = 0

    def call() -> None:
        nonlocal run, steps
        run, counts = many(run)
        steps = int(counts.sum())

    seconds = median_seconds(call, settings.seconds)
    return steps / seconds


def _without_update(agent: Agent) -> Agent:
    """The same, but it learns nothing: what is left of the update is counting."""
    return agent._replace(learn=lambda state, batch: (state, (), {}))
