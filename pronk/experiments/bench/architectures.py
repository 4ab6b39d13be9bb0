"""IMPALA's throughput table (Espeholt et al. 2018, table 1): six architectures, one agent.

In the tasks `even` and `uneven` the environments sleep instead of computing (`pronk.envs.waiting`),
so that many of them fit on few cores.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import jax

from pronk.config.architectures import ARCHITECTURES
from pronk.config.spec import Plan
from pronk.envs import waiting
from pronk.errors import UserError, nearest
from pronk.experiments.bench.settings import Architectures
from pronk.experiments.bench.training import train_for
from pronk.run.resolve import resolve


def measure(settings: Architectures) -> dict[str, Any]:
    """Agent steps per second of every architecture in every task.

    Raises UserError for an unknown architecture or environment, before anything is measured.
    """
    names = settings.architectures or tuple(ARCHITECTURES)
    for name in names:
        if name not in ARCHITECTURES:
            raise UserError(
                f"`--architectures` has '{name}'{nearest(name, ARCHITECTURES) or '.'} Known:"
                f" {', '.join(ARCHITECTURES)}."
            )
    plans = [(task, name, _plan(name, task, settings)) for task in settings.tasks for name in names]
    rows = []
    for task, name, plan in plans:
        result = train_for(plan, settings.seconds, warm_seconds=settings.seconds / 3)
        rows.append(
            {
                "task": task,
                "architecture": name,
                "actors": plan.run.actors,
                "envs_per_actor": plan.run.envs_per_actor,
                "steps_per_second": result["end_to_end_steps_per_second"],
                "policy_lag": result["policy_lag"],
                "bound_by": result["bound_by"],
            }
        )
    return {
        "network": settings.network,
        "unroll": settings.unroll,
        "cores": os.cpu_count() or 1,
        "device": jax.devices()[0].device_kind,
        "rows": rows,
    }


class Layout(NamedTuple):
    """How a task's environments are divided among actors."""

    actors: int
    envs_per_actor: int
    batch_size: int  # trajectories per update


def _layout(name: str, task: str, settings: Architectures) -> Layout:
    """One environment per actor where environments sleep; few vectors where they compute."""
    architecture = ARCHITECTURES[name]
    waits = task in waiting.DEVIATION
    total = settings.num_envs if waits else settings.num_atari_envs
    if architecture.single:
        return Layout(1, total, total)
    if architecture.gradients:
        return Layout(total, 1, 1)
    if waits:
        return Layout(total, 1, total)
    actors = min(total, 2 * (os.cpu_count() or 1)) if architecture.central else 2
    return Layout(actors, total // actors, total)


def _plan(name: str, task: str, settings: Architectures) -> Plan:
    waits = task in waiting.DEVIATION
    return resolve(
        "impala",
        waiting.NAME if waits else task,
        env_args={"task": task} if waits else {},
        preset="atari",
        torso=settings.network,
        runtime="local",
        architecture=name,
        actor_cores=settings.actor_cores if waits else None,
        unroll=settings.unroll,
        **_layout(name, task, settings)._asdict(),
    )
