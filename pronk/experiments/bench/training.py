"""Train for some seconds as `pronk train` does, without saving, and measure the speed."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pronk.config.spec import Plan
from pronk.run.build import make_runtime
from pronk.run.setup import build, configure_jax, initial_state
from pronk.runtime.api import Runtime

WARM_UPDATES = 5


def train_for(plan: Plan, seconds: float, *, warm_seconds: float = 3.0) -> dict[str, Any]:
    """`measure` a runtime built for `plan`."""
    configure_jax()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plan = dataclasses.replace(plan, run=dataclasses.replace(plan.run, run_dir=directory))
        _, agent = build(plan, plan.env)
        runtime = make_runtime(
            plan,
            plan.env,
            agent,
            initial_state(plan, agent),
            start_step=0,
            log=lambda _: None,
            stack=stack,
        )
        stack.callback(runtime.close)
        return measure(runtime, seconds, warm_seconds)


def measure(runtime: Runtime, seconds: float, warm_seconds: float) -> dict[str, Any]:
    """Agent steps per second of `runtime`, its mean policy lag, and the shares of waiting time.

    The first WARM_UPDATES updates, which compile, and at least `warm_seconds` are not counted.
    """
    warm, updates = time.perf_counter() + warm_seconds, 0
    while updates < WARM_UPDATES or time.perf_counter() < warm:
        updates += bool(runtime.update().metrics)
    waited = runtime.waits()
    start, steps, lags = time.perf_counter(), 0, []
    while time.perf_counter() - start < seconds:
        update = runtime.update()
        steps += update.steps
        if update.metrics:
            lags.append(update.policy_lag)
    elapsed = time.perf_counter() - start
    return {
        "end_to_end_steps_per_second": steps / elapsed,
        "policy_lag": float(np.mean(lags)),
        "bound_by": runtime.bound_by(),
        **{f"{k}_share": (v - waited[k]) / elapsed for k, v in runtime.waits().items()},
    }
