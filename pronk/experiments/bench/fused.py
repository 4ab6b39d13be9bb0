"""Speed of the fused runtime, with and without the update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from pronk import envs
from pronk.envs.suite import check_slots
from pronk.experiments.bench.settings import Fused
from pronk.experiments.bench.timing import median_seconds
from pronk.experiments.hyperparameters import SMALL
from pronk.run.resolve import resolve
from pronk.run.setup import build, configure_jax, initial_state
from pronk.runtime import fused
from pronk.types import Agent, Array, Learnt

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
    """Agent steps per second of each of `CASES`.

    Raises UserError where a task of the suite would get no environment.
    """
    for env, _ in CASES.values():
        check_slots(env, settings.num_envs)
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
        "num_envs": settings.num_envs,
        "unroll": settings.unroll,
        "device": jax.devices()[0].device_kind,
        "rows": rows,
    }


def _steps_per_second(
    case: tuple[str, dict[str, Any]], settings: Fused, *, learning: bool
) -> float:
    env, network = case
    shape = {"unroll": settings.unroll, "batch_size": settings.num_envs}
    plan = resolve("impala", env, preset="paper", **{**SMALL, **network, **shape})
    _, agent = build(plan, env)
    if not learning:
        agent = _without_update(agent)
    jax_env = envs.jax_env_of(env)
    assert jax_env is not None
    init, update = fused.build(agent, jax_env, unroll=settings.unroll, num_envs=settings.num_envs)
    run = jax.jit(init)(initial_state(plan, agent), jax.random.key(0))
    program = jax.jit(repeat(update, UPDATES_PER_CALL), donate_argnums=0)
    steps = 0

    def call() -> None:
        nonlocal run, steps
        run, count = program(run)
        steps = int(count)

    seconds = median_seconds(call, settings.seconds)
    return steps / seconds


def repeat(update: Callable[..., Any], updates: int) -> Callable[..., Any]:
    """A function of the run's state: so many updates, and their agent steps in all."""

    def program(run: fused.RunState) -> tuple[fused.RunState, Array]:
        def body(run: fused.RunState, _: None) -> tuple[fused.RunState, Array]:
            run, outcome = update(run)
            return run, outcome.steps

        run, steps = jax.lax.scan(body, run, length=updates)
        return run, steps.sum()

    return program


def _without_update(agent: Agent) -> Agent:
    """The agent with an update that only counts steps."""
    return agent._replace(learn=lambda state, batch: Learnt(state, {}))
