"""Many fused runs in one program: the same plan with other seeds and hyperparameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pronk import envs
from pronk.config.spec import Plan
from pronk.run.build import fused_shape
from pronk.run.setup import ACTOR_KEY, INIT_KEY, build, key_for
from pronk.runtime.population import Population, mean, played
from pronk.types import Array, LearnerState


class Member(NamedTuple):
    """What is one run's own."""

    seed: int
    hyper: dict[str, float]  # by the names of `LearnerState.hyper`


class Curves(NamedTuple):
    """What the runs achieved, `[N, points]` where nothing else is said."""

    mean_return: Array  # of the games that ended since the point before; NaN where none did
    steps: Array  # agent steps so far
    final: Array  # [N], the mean return of games with what was learnt in the end, sampled actions
    task_return: Array  # [N, points, tasks], as `mean_return`, which is their mean
    looked: Sequence[Any] = ()  # what `look` saw at each point


def train(
    plan: Plan,
    members: Sequence[Member],
    *,
    points: int,
    look: Callable[[LearnerState], Any] | None = None,
) -> Curves:
    """Train all `members` for `plan.run.steps` rows, the dummies between episodes among them; what
    they achieved at so many points.

    Each is the run that `pronk train --runtime fused` makes of its seed and hyperparameters, but
    for the order in which sums are rounded. look: at all learners, `[N, ...]`, at each point.
    """
    _, agent = build(plan, plan.env)
    env = envs.jax_env_of(plan.env, plan.env_args)
    assert env is not None
    shape = fused_shape(plan, agent)
    per_update = shape["unroll"] * shape["num_envs"]
    updates = max(1, round(plan.run.steps / per_update / points))
    population = Population(agent, env, shape, updates=updates)
    init_keys = jnp.stack([key_for(member.seed, INIT_KEY) for member in members])
    act_keys = jnp.stack([key_for(member.seed, ACTOR_KEY) for member in members])
    names = members[0].hyper
    hyper = {name: np.array([m.hyper[name] for m in members], np.float32) for name in names}
    runs = population.begin(init_keys, act_keys, hyper)
    found: list[Any] = []
    looked: list[Any] = []
    for _ in range(points):
        runs, told = population.advance(runs)
        found.append(jax.device_get((told.total, told.count, told.steps)))
        if look is not None:
            looked.append(look(runs.learner))
    total, count, steps = (np.stack(x, axis=1) for x in zip(*found, strict=True))
    final = played(agent, env, runs.learner, act_keys)
    by_task = mean(total, count)
    return Curves(_over_tasks(by_task), steps.cumsum(1), _over_tasks(final), by_task, looked)


def _over_tasks(values: Array) -> Array:
    """The mean over the last axis, of what is there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where no game has ended
        return np.nanmean(values, axis=-1)
