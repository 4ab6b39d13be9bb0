"""Speed of the learner's update alone."""

from __future__ import annotations

import contextlib
from typing import Any

import jax

from pronk.experiments.bench.settings import Learner as Settings
from pronk.experiments.bench.timing import forward_flops, matrix_flops, median_seconds, random_batch
from pronk.run.resolve import resolve
from pronk.run.setup import build, configure_jax, initial_state
from pronk.runtime.learner import Learner
from pronk.runtime.source import Queue
from pronk.types import Agent, LearnerState, Trajectory

ENV = "ALE/Breakout-v5"


def measure(settings: Settings) -> dict[str, Any]:
    """Milliseconds per update on random pixels, and its FLOP/s beside a matrix product's."""
    configure_jax()
    plan = resolve(
        "impala",
        ENV,
        torso=settings.network,
        unroll=settings.unroll,
        batch_size=settings.batch_size,
    )
    spec, agent = build(plan, ENV)
    state = initial_state(plan, agent)
    flops = forward_flops(agent, spec, state)
    batch = random_batch(agent, spec, state, settings.unroll, settings.batch_size)
    seconds = update_seconds(agent, state, batch.trajectory, settings.seconds)
    peak = matrix_flops(min(settings.seconds, 2.0))
    # A backward pass counts as two forward passes, as is usual.
    achieved = 3 * flops * (settings.unroll + 1) * settings.batch_size / seconds
    return {
        "network": settings.network,
        "unroll": settings.unroll,
        "batch_size": settings.batch_size,
        "device": jax.devices()[0].device_kind,
        "milliseconds_per_update": 1e3 * seconds,
        "steps_per_second": settings.unroll * settings.batch_size / seconds,
        "gigaflops": achieved / 1e9,
        "matrix_product_gigaflops": peak / 1e9,
        "share_of_matrix_product": achieved / peak,
    }


def update_seconds(
    agent: Agent, state: LearnerState, trajectory: Trajectory, seconds: float
) -> float:
    """Median seconds of an update on the whole of `trajectory`, through the runtime's learner."""
    width = trajectory.version.shape[0]
    learner = Learner(agent, state, batch_size=width)
    queue = Queue(width)
    queue.add(0, trajectory)
    assert queue.ready()
    prepared = learner.prepare(queue.take(learner.parts).parts)

    def update() -> None:
        learner.update(prepared)
        learner.publish()

    with contextlib.closing(learner):
        return median_seconds(update, seconds)
