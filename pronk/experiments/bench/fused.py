"""The fused runtime, with and without its update."""

from __future__ import annotations

from typing import Any

import jax

from pronk import envs
from pronk.envs.suite import check_slots
from pronk.experiments.bench.settings import Fused
from pronk.experiments.bench.timing import median_seconds
from pronk.run.resolve import resolve
from pronk.run.setup import build, configure_jax, initial_state
from pronk.runtime import fused
from pronk.types import Agent

UPDATES_PER_CALL = 16
_VECTOR: dict[str, Any] = {"hidden_sizes": (64, 64)}
_PIXELS: dict[str, Any] = {"torso": "minatar", "hidden_sizes": (128,)}
NETWORKS = {
    "pronk/Catch-v0": _VECTOR,
    "pronk/CartPole-v1": _VECTOR,
    "pronk/Breakout-v0": _PIXELS,
    "pronk/SpaceInvaders-v0": _PIXELS,
}
SUITE = "suite/scales-v0"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{env: (env, settings) for env, settings in NETWORKS.items()},
    SUITE: (SUITE, _PIXELS),
    f"{SUITE}, PopArt": (SUITE, {**_PIXELS, "value_normalisation": "popart"}),
}


def measure(settings: Fused) -> dict[str, Any]:
    """Agent steps per second of Catch and CartPole (network 64 × 64), of MinAtar's games (16
    kernels of 3 × 3, and 128 units), and so of a suite with and without PopArt. Raises UserError
    where a task of the suite would get no environment."""
    for env, _ in CASES.values():
        check_slots(env, settings.envs)
    configure_jax()
    rows = []
    for name, case in CASES.items():
        training = _steps_per_second(case, settings, learning=True)
        acting = _steps_per_second(case, settings, learning=False)
        rows.append(
            {
                "env": name,
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


def _steps_per_second(
    case: tuple[str, dict[str, Any]], settings: Fused, *, learning: bool
) -> float:
    env, network = case
    plan = resolve("impala", env, unroll=settings.unroll, batch_size=settings.envs, **network)
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
