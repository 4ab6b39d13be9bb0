"""Train many fused runs in one program: one plan with several seeds and hyperparameters."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pronk import envs
from pronk.config.spec import Plan
from pronk.run.build import fused_shape
from pronk.run.setup import ACTOR_KEY, INIT_KEY, build, key_for
from pronk.runtime.population import Population, evaluate_members, mean
from pronk.types import Array, LearnerState

SELECTION_SEEDS = 2  # 0 and 1: choose the hyperparameters
FIRST_SEED = 100  # of the runs that the results are made of
POINTS = 40  # of a curve; the score is the mean of the last quarter

Observe = Callable[[LearnerState], Any]


class Member(NamedTuple):
    """What differs between the runs."""

    seed: int
    hyper: dict[str, float]  # by the names in `LearnerState.hyper`


class Curves(NamedTuple):
    """What the runs achieved, `[N, points]` unless a field says otherwise."""

    mean_return: Array  # of the episodes that ended since the previous point; NaN where none did
    steps: Array  # agent steps so far
    final: Array  # [N], mean return of the final policies, with sampled actions
    task_return: Array  # [N, points, tasks]; `mean_return` is its mean over tasks
    observed: Sequence[Any] = ()  # [points], results of `observe`

    def scores(self) -> Array:
        """Mean return of the last quarter of training, `[N, tasks]`."""
        points = self.task_return.shape[1]
        return np.nanmean(self.task_return[:, -(points // 4) :], axis=1)


def train(
    plan: Plan, members: Sequence[Member], *, points: int, observe: Observe | None = None
) -> Curves:
    """Train all `members` for `plan.run.steps` rows (agent steps and the dummies between episodes).

    Each member is the run that `pronk train --runtime fused` makes of its seed and hyperparameters,
    up to rounding. observe: called at each point with the state of all learners, `[N, ...]`.
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
    parts: list[Any] = []
    observed: list[Any] = []
    for _ in range(points):
        runs, ended = population.advance(runs)
        parts.append(jax.device_get((ended.total, ended.count, ended.steps)))
        if observe is not None:
            observed.append(observe(runs.learner))
    total, count, steps = (np.stack(x, axis=1) for x in zip(*parts, strict=True))
    final = evaluate_members(agent, env, runs.learner, act_keys)
    by_task = mean(total, count)
    return Curves(_over_tasks(by_task), steps.cumsum(1), _over_tasks(final), by_task, observed)


def _over_tasks(values: Array) -> Array:
    """The mean over the last axis, ignoring NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where no episode has ended
        return np.nanmean(values, axis=-1)


class Tuned(NamedTuple):
    """A grid search, and runs with its best point."""

    grid: list[dict[str, Any]]  # hyperparameters and `scores` of the selection seeds
    best: dict[str, float]
    curves: Curves  # of `seeds` other seeds, from FIRST_SEED


def tune(
    plan: Plan,
    choices: Mapping[str, Sequence[float]],
    seeds: int,
    *,
    rank: Callable[[Array], Array],
    observe: Observe | None = None,
) -> Tuned:
    """Train every combination of `choices` on SELECTION_SEEDS, and the best on other seeds.

    rank: from scores `[combinations, tasks]`, means over the selection seeds, to what decides,
    `[combinations]`; NaN is the worst.
    """
    grid = [dict(zip(choices, x, strict=True)) for x in itertools.product(*choices.values())]
    members = [Member(seed, hyper) for hyper in grid for seed in range(SELECTION_SEEDS)]
    scores = train(plan, members, points=POINTS).scores()
    scores = scores.reshape(len(grid), SELECTION_SEEDS, -1)
    best = grid[int(np.nan_to_num(rank(scores.mean(axis=1)), nan=-np.inf).argmax())]
    members = [Member(FIRST_SEED + i, best) for i in range(seeds)]
    curves = train(plan, members, points=POINTS, observe=observe)
    rows = [{**hyper, "scores": s.tolist()} for hyper, s in zip(grid, scores, strict=True)]
    return Tuned(rows, best, curves)
