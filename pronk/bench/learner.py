"""The learner's update alone."""

from __future__ import annotations

from typing import Any

import jax

from pronk.bench.timing import forward_flops, matrix_flops, median_seconds, random_batch
from pronk.configs.bench import Learner
from pronk.plan import resolve
from pronk.types import LearnerState
from pronk.wiring import build, configure_jax, initial_state

ENV = "ALE/Breakout-v5"


def measure(settings: Learner) -> dict[str, Any]:
    """Milliseconds per update of random pixels, and the share of a matrix product's speed."""
    configure_jax()
    plan = resolve(
        "impala", ENV, torso=settings.network, unroll=settings.unroll, batch_size=settings.batch
    )
    spec, agent = build(plan, ENV)
    state = initial_state(plan, agent)
    flops = forward_flops(agent, spec, state)
    seconds = update_seconds(
        agent, state, random_batch(agent, spec, state, settings.unroll, settings.batch),
        settings.seconds,
    )  # fmt: skip
    peak = matrix_flops(min(settings.seconds, 2.0))
    # As is usual, a backward pass counts as two forward passes.
    achieved = 3 * flops * (settings.unroll + 1) * settings.batch / seconds
    return {
        "network": settings.network,
        "unroll": settings.unroll,
        "batch": settings.batch,
        "device": jax.devices()[0].device_kind,
        "milliseconds_per_update": 1e3 * seconds,
        "steps_per_second": settings.unroll * settings.batch / seconds,
        "gigaflops": achieved / 1e9,
        "matrix_product_gigaflops": peak / 1e9,
        "share_of_matrix_product": achieved / peak,
    }


def update_seconds(agent: Any, state: LearnerState, batch: Any, seconds: float) -> float:
    """Median seconds of an update, its state donated as in training."""
    learn = jax.jit(agent.learn, donate_argnums=0)

    def update() -> None:
        nonlocal state
        state, _, metrics = learn(state, batch)
        jax.block_until_ready((state, metrics))

    return median_seconds(update, seconds)
