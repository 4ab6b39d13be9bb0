"""Many fused runs of one plan in one program: their own seeds, hyperparameters, environments."""

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

PLAYERS, PLAYED = 32, 1000  # environments, and steps of each, in which nothing is learnt


class Told(NamedTuple):
    """What the members did in one call, for each task of a suite (of one where it is none)."""

    total: Array  # float32 [N, tasks], the sum of the returns of the games that ended
    squares: Array  # float32 [N, tasks], of their squares
    count: Array  # int32 [N, tasks], how many ended
    steps: Array  # int32 [N], agent steps


class Population:
    """N members, whose states are one `RunState` with leaves `[N, ...]`.

    Each is the run that `pronk train --runtime fused` makes of its keys and hyperparameters, but
    for the order in which sums are rounded. Each of the three functions compiles once.

    shape: what `fused.build` is told. updates: of each member per `advance`. in_turn: see
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
        by_task = ended_by_task(env, shape["num_envs"])

        def begin(init_key: Key, act_key: Key, hyper: dict[str, Array]) -> RunState:
            learner = agent.init(init_key)
            return init(learner._replace(hyper=learner.hyper | hyper), act_key)

        def some(run: RunState) -> tuple[RunState, Told]:
            def one(run: RunState, _: None) -> tuple[RunState, Told]:
                run, outcome = update(run)
                return run, Told(*by_task(outcome), outcome.steps)

            run, told = jax.lax.scan(one, run, length=updates)
            return run, Told(*(jnp.sum(x, axis=0) for x in told))

        # (init_keys [N], act_keys [N], hyper of [N]) -> runs; hyper: instead of the agent's own.
        self.begin: Callable[[Key, Key, dict[str, Array]], RunState]
        self.begin = jax.jit(over_members(begin, in_turn))
        # (runs) -> runs, Told
        self.advance: Callable[[RunState], tuple[RunState, Told]]
        self.advance = jax.jit(over_members(some, in_turn), donate_argnums=0)
        # (runs, sources [N], hyper of [N]) -> runs
        self.inherit: Callable[[RunState, Array, dict[str, Array]], RunState]
        self.inherit = jax.jit(functools.partial(_inherit, agent), donate_argnums=0)


def over_members(function: Callable[..., Any], in_turn: bool | None = None) -> Callable[..., Any]:
    """`function` of one member, for all: leaves `[N, ...]`.

    in_turn: one member after another within the program, or else all at once, vmapped. Unless it is
    said, in turn on a CPU: N small matrices multiplied as one batch are hardly faster there than
    one by one, N convolutions by N kernels very much slower (`pronk bench population --vmapped`).
    """
    if in_turn is None:
        in_turn = jax.default_backend() == "cpu"
    if not in_turn:
        return jax.vmap(function)
    return lambda *args: jax.lax.map(lambda one: function(*one), args)


def _inherit(agent: Agent, runs: RunState, sources: Array, hyper: dict[str, Array]) -> RunState:
    """Member i goes on with what member `sources[i]` has learnt, and with its own `hyper`.

    What is copied is the agent's business (`Agent.adopt`); `hyper` then replaces some
    hyperparameters. A member's environments, counters and random key stay its own.
    """
    donors = jax.tree.map(lambda x: x[sources], runs.learner)
    learners = jax.vmap(agent.adopt)(runs.learner, donors)
    return runs._replace(learner=learners._replace(hyper=learners.hyper | hyper))


def ended_by_task(
    env: JaxEnv | JaxSuite, num_envs: int
) -> Callable[[Outcome], tuple[Array, Array, Array]]:
    """Of an outcome, the first three of `Told`, `[tasks]` each."""
    chosen = stepper(env, num_envs).task[:, None] == np.arange(env.spec.num_tasks)  # [B, tasks]

    def of(outcome: Outcome) -> tuple[Array, Array, Array]:
        ended = outcome.ended[..., None] & chosen  # [T, B, tasks]
        returns = jnp.where(ended, outcome.episode_return[..., None], 0.0)
        sums = jnp.sum(returns, axis=(0, 1)), jnp.sum(returns**2, axis=(0, 1))
        return *sums, jnp.sum(ended, axis=(0, 1), dtype=jnp.int32)

    return of


def played(agent: Agent, env: JaxEnv | JaxSuite, learners: LearnerState, keys: Key) -> Array:
    """The mean return `[N, tasks]` of the games that end within PLAYED steps of each of PLAYERS
    environments, in which nothing is learnt; actions are sampled. NaN where no game ends."""
    idle = agent._replace(learn=lambda state, batch: Learnt(state, {}), source=Fresh())
    init, update = fused.build(idle, env, unroll=PLAYED, num_envs=PLAYERS)
    by_task = ended_by_task(env, PLAYERS)

    def play(learner: LearnerState, key: Key) -> tuple[Array, Array]:
        _, outcome = update(init(learner, jax.random.fold_in(key, PLAYED)))
        total, _, count = by_task(outcome)
        return total, count

    return mean(*jax.device_get(jax.jit(over_members(play))(learners, keys)))


def mean(total: Array, count: Array) -> Array:
    """NaN where there is nothing to divide by."""
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
