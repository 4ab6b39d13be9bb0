"""Many fused runs of one plan in one program, each with its own seed and hyperparameters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pronk.envs.jax_env import JaxEnv
from pronk.envs.jax_suite import JaxSuite, stepper
from pronk.runtime import fused
from pronk.runtime.fused import Outcome, RunState
from pronk.types import Agent, Array, Fresh, Key, LearnerState, Learnt

EVALUATION_ENVS, EVALUATION_STEPS = 32, 1000  # per member, and steps of each


class PopulationStats(NamedTuple):
    """Episodes that ended in one call, by member and task (one task without a suite)."""

    total: Array  # float32 [N, tasks], sum of their returns
    squares: Array  # float32 [N, tasks], sum of their squared returns
    count: Array  # int32 [N, tasks]
    steps: Array  # int32 [N], agent steps


class Population:
    """N members, whose states are one `RunState` with leaves `[N, ...]`.

    Each member equals `pronk train --runtime fused` with its keys and hyperparameters, up to
    rounding. Each of the three functions compiles once.

    shape: arguments of `fused.build`. updates: of each member per `advance`. in_turn: see
    `over_members`.
    """

    def __init__(
        self,
        agent: Agent,
        env: JaxEnv | JaxSuite,
        shape: Mapping[str, int],
        *,
        updates: int,
        in_turn: bool | None = None,
    ):
        init, update = fused.build(agent, env, **shape)
        sum_by_task = sum_returns_by_task(env, shape["num_envs"])

        def begin(init_key: Key, act_key: Key, hyper: dict[str, Array]) -> RunState:
            learner = agent.init(init_key)
            return init(learner._replace(hyper=learner.hyper | hyper), act_key)

        def advance(run: RunState) -> tuple[RunState, PopulationStats]:
            def one(run: RunState, _: None) -> tuple[RunState, PopulationStats]:
                run, outcome = update(run)
                return run, PopulationStats(*sum_by_task(outcome), outcome.steps)

            run, stats = jax.lax.scan(one, run, length=updates)
            return run, PopulationStats(*(jnp.sum(x, axis=0) for x in stats))

        # (init_keys [N], act_keys [N], hyper of [N]) -> runs; `hyper` replaces the agent's own.
        self.begin: Callable[[Key, Key, dict[str, Array]], RunState]
        self.begin = jax.jit(over_members(begin, in_turn))
        # (runs) -> runs, stats
        self.advance: Callable[[RunState], tuple[RunState, PopulationStats]]
        self.advance = jax.jit(over_members(advance, in_turn), donate_argnums=0)
        # (runs, sources [N], hyper of [N]) -> runs
        self.inherit: Callable[[RunState, Array, dict[str, Array]], RunState]
        self.inherit = jax.jit(functools.partial(_inherit, agent), donate_argnums=0)


def over_members(function: Callable[..., Any], in_turn: bool | None = None) -> Callable[..., Any]:
    """Map a function of one member over all members, leaves `[N, ...]`.

    in_turn: one member after another within the program instead of vmapped. By default only on a
    CPU: multiplying N small matrices as one batch is hardly faster there than one by one, and N
    convolutions with N kernels are much slower (`pronk bench population --vmapped`).
    """
    if in_turn is None:
        in_turn = jax.default_backend() == "cpu"
    if not in_turn:
        return jax.vmap(function)
    return lambda *args: jax.lax.map(lambda one: function(*one), args)


def _inherit(agent: Agent, runs: RunState, sources: Array, hyper: dict[str, Array]) -> RunState:
    """Let member i adopt the learner state of member `sources[i]`, and set some hyperparameters.

    `Agent.adopt` decides what is copied; `hyper` then replaces some hyperparameters. A member keeps
    its environments, counters and random key.
    """
    donors = jax.tree.map(lambda x: x[sources], runs.learner)
    learners = jax.vmap(agent.adopt)(runs.learner, donors)
    return runs._replace(learner=learners._replace(hyper=learners.hyper | hyper))


def sum_returns_by_task(
    env: JaxEnv | JaxSuite, num_envs: int
) -> Callable[[Outcome], tuple[Array, Array, Array]]:
    """A function that computes the first three of `PopulationStats`, `[tasks]`, of an outcome."""
    is_task = stepper(env, num_envs).task[:, None] == np.arange(env.spec.num_tasks)  # [B, tasks]

    def sum_by_task(outcome: Outcome) -> tuple[Array, Array, Array]:
        ended = outcome.ended[..., None] & is_task  # [T, B, tasks]
        returns = jnp.where(ended, outcome.episode_return[..., None], 0.0)
        sums = jnp.sum(returns, axis=(0, 1)), jnp.sum(returns**2, axis=(0, 1))
        return *sums, jnp.sum(ended, axis=(0, 1), dtype=jnp.int32)

    return sum_by_task


def evaluate_members(
    agent: Agent, env: JaxEnv | JaxSuite, learners: LearnerState, keys: Key
) -> Array:
    """The mean return `[N, tasks]` without learning, actions sampled.

    It is of the episodes that end within EVALUATION_STEPS of each of EVALUATION_ENVS environments;
    NaN where none ends.
    """
    idle = agent._replace(learn=lambda state, batch: Learnt(state, {}), source=Fresh())
    init, update = fused.build(idle, env, unroll=EVALUATION_STEPS, num_envs=EVALUATION_ENVS)
    sum_by_task = sum_returns_by_task(env, EVALUATION_ENVS)

    def play(learner: LearnerState, key: Key) -> tuple[Array, Array]:
        _, outcome = update(init(learner, jax.random.fold_in(key, EVALUATION_STEPS)))
        total, _, count = sum_by_task(outcome)
        return total, count

    return mean(*jax.device_get(jax.jit(over_members(play))(learners, keys)))


def mean(total: Array, count: Array) -> Array:
    """`total / count`, NaN where `count` is 0."""
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
