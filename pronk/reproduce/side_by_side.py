"""Many fused runs in one program: the same plan with other seeds and hyperparameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pronk import envs
from pronk.envs.jax_env import JaxEnv
from pronk.envs.jax_suite import JaxSuite
from pronk.plan import Plan
from pronk.runtime import fused
from pronk.types import Agent, Array, Key, LearnerState
from pronk.wiring import ACTOR_KEY, INIT_KEY, build, fused_shape

PLAYERS, PLAYED = 32, 1000  # environments, and steps of each, after training


class Member(NamedTuple):
    """What is one run's own."""

    seed: int
    hyper: dict[str, float]  # by the names of `LearnerState.hyper`


class Curves(NamedTuple):
    """What the runs achieved, `[N, points]` where nothing else is said."""

    mean_return: Array  # of the games that ended since the point before; NaN where none did
    steps: Array  # agent steps so far
    final: Array  # [N], the mean return of games with what was learnt in the end, sampled actions


def train(plan: Plan, members: Sequence[Member], *, points: int) -> Curves:
    """Train all `members` for `plan.run.steps` rows, the dummies between episodes among them; what
    they achieved at so many points.

    Each is the run that `pronk train --runtime fused` makes of its seed and hyperparameters, but
    for the order in which sums are rounded.
    """
    _, agent = build(plan, plan.env)
    env = envs.jax_env_of(plan.env, plan.env_args)
    assert env is not None
    shape = fused_shape(plan, agent)
    init, update = fused.build(agent, env, **shape)
    per_update = shape["unroll"] * shape["num_envs"]
    updates = max(1, round(plan.run.steps / per_update / points))

    def begin(init_key: Key, act_key: Key, hyper: dict[str, Array]) -> fused.RunState:
        learner = agent.init(init_key)
        return init(learner._replace(hyper=learner.hyper | hyper), act_key)

    def some(run: fused.RunState) -> tuple[fused.RunState, tuple[Array, Array, Array]]:
        run, outcome = jax.lax.scan(lambda run, _: update(run), run, length=updates)
        total = jnp.sum(jnp.where(outcome.ended, outcome.episode_return, 0.0))
        return run, (total, jnp.sum(outcome.ended), jnp.sum(outcome.steps))

    keys = [
        jax.vmap(lambda seed, purpose=purpose: jax.random.fold_in(jax.random.key(seed), purpose))(
            np.array([member.seed for member in members])
        )
        for purpose in (INIT_KEY, ACTOR_KEY)
    ]
    names = members[0].hyper
    hyper = {name: np.array([m.hyper[name] for m in members], np.float32) for name in names}
    runs = jax.jit(jax.vmap(begin))(*keys, hyper)
    advance = jax.jit(jax.vmap(some), donate_argnums=0)
    found: list[Any] = []
    for _ in range(points):
        runs, told = advance(runs)
        found.append(jax.device_get(told))
    total, count, steps = (np.stack(x, axis=1) for x in zip(*found, strict=True))
    final = _played(agent, env, runs.learner, keys[1])
    return Curves(_mean(total, count), steps.cumsum(1), final)


def _mean(total: Array, count: Array) -> Array:
    """NaN where there is nothing to divide by."""
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def _played(agent: Agent, env: JaxEnv | JaxSuite, learners: LearnerState, keys: Key) -> Array:
    """The mean return `[N]` of the games that end within PLAYED steps of each of PLAYERS
    environments, in which nothing is learnt."""
    idle = agent._replace(learn=lambda state, batch: (state, (), {}), replay=None)
    init, update = fused.build(idle, env, unroll=PLAYED, num_envs=PLAYERS)

    def play(learner: LearnerState, key: Key) -> tuple[Array, Array]:
        _, outcome = update(init(learner, jax.random.fold_in(key, PLAYED)))
        total = jnp.sum(jnp.where(outcome.ended, outcome.episode_return, 0.0))
        return total, jnp.sum(outcome.ended)

    return _mean(*jax.device_get(jax.jit(jax.vmap(play))(learners, keys)))
