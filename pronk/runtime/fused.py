"""The fused runtime: environment, acting and update in one jitted scan, for JAX environments.

`update` is a pure `RunState -> RunState`, so that a population of runs can be vmapped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from pronk.envs.jax_env import JaxEnv
from pronk.envs.jax_suite import JaxSuite, Stepper, stepper, without_specs
from pronk.runtime import ring
from pronk.runtime.actor import Row
from pronk.runtime.api import Update
from pronk.runtime.columns import mix
from pronk.runtime.ring import Ring
from pronk.runtime.source import check_feedback
from pronk.storage.checkpoint import Loaded
from pronk.types import (
    Agent,
    Array,
    Batch,
    Carry,
    Episode,
    Fresh,
    Key,
    LearnerState,
    Learnt,
    Mixed,
    PyTree,
    Replayed,
    Sequences,
    TimeStep,
    Trajectory,
)

# Agent steps per call of the compiled program: long enough to hide the cost of the call.
STEPS_PER_CALL = 1 << 15
# Updates from a replay per call, at most, where there are many for each step: some seconds.
UPDATES_PER_CALL = 1 << 10
# Folded into the acting key for draws from replay; counts of acting never come so far.
DRAWS = (1 << 32) - 1


class RunState(NamedTuple):
    """A whole run as one pytree."""

    learner: LearnerState
    slots: PyTree  # of the environments
    carry: Carry
    row: Row  # row T of the last unroll, not yet executed
    act_key: Key
    count: Array  # uint32 [], act calls so far
    replay: Ring | None = None  # of agents that learn from it
    past: PyTree = ()  # with a policy lag: the last behaviours, leaves [lag + 1, ...]


class Outcome(NamedTuple):
    """The report of one update."""

    metrics: dict[str, Array]
    learnt: Array  # bool [], whether anything was
    steps: Array  # int32 [], agent steps
    lag: Array  # int32 [], updates since the behaviour that acted
    ended: Array  # bool [T, B], an episode ended in this step
    episode_return: Array  # float32 [T, B], where ended
    episode_length: Array  # int32 [T, B], where ended


_Carried: TypeAlias = "tuple[LearnerState, Ring | None]"


@dataclass(frozen=True, eq=False)
class Program:
    """A run as two pure functions, `init` and `update`; see `build`."""

    agent: Agent
    stepper: Stepper
    unroll: int
    num_envs: int
    draws: int
    draw_size: int
    policy_lag: int

    @property
    def on_policy(self) -> bool:
        """Whether row T is decided by the behaviour of the following unroll; see `Fresh`."""
        return isinstance(self.agent.source, Fresh) and self.agent.source.on_policy

    @property
    def sequences(self) -> Sequences | None:
        """What the replay holds, if there is one."""
        source = self.agent.source
        return None if isinstance(source, Fresh) else source.sequences

    def init(self, learner: LearnerState, key: Key) -> RunState:
        """The run before its first update."""
        agent, policy_lag = self.agent, self.policy_lag
        env_key, carry_key, act_key = jax.random.split(key, 3)
        state, timestep = self.stepper.start(env_key)
        env_ids = jnp.arange(self.num_envs, dtype=jnp.int32)
        carry = agent.initial_carry(carry_key, env_ids, self.num_envs, False)
        behaviour = agent.behaviour(learner)
        action, after, extras = agent.act(
            behaviour, carry, timestep, jax.random.fold_in(act_key, 0)
        )
        row = Row(timestep, action, extras, carry.core)
        replay = None
        if self.sequences is not None:
            replay = ring.make(self.sequences, (timestep, action, extras), carry.core)
        past = ()
        if policy_lag:
            past = jax.tree.map(lambda x: jnp.repeat(x[None], policy_lag + 1, axis=0), behaviour)
        return RunState(learner, state, after, row, act_key, jnp.uint32(1), replay, past)

    def update(self, run: RunState) -> tuple[RunState, Outcome]:
        """One unroll of all environments, and what is learnt from it."""
        behaviour, past, lag = self._behaviour(run)
        sequences, next_core = self.sequences, ()
        if sequences is not None:
            next_core = run.row.core

        def decide(carry: Carry, timestep: TimeStep, count: Array) -> tuple[Row, Carry, Array]:
            key = jax.random.fold_in(run.act_key, count)
            action, after, extras = self.agent.act(behaviour, carry, timestep, key)
            return Row(timestep, action, extras, carry.core), after, count + 1

        if self.on_policy:
            row, carry, count = decide(run.carry, run.row.timestep, run.count)
            run = run._replace(row=row, carry=carry, count=count)

        def step(
            run_state: tuple[PyTree, Carry, Row, Array, PyTree], t: Array
        ) -> tuple[tuple[PyTree, Carry, Row, Array, PyTree], tuple[PyTree, ...]]:
            state, carry, row, count, next_core = run_state
            state, timestep, ended = self.stepper.advance(state, row.action)
            if sequences is not None:  # the only row whose recurrent state is kept
                here = t == ring.next_start(sequences)
                next_core = jax.tree.map(
                    lambda old, new: jnp.where(here, new, old), next_core, carry.core
                )
            row, after, count = decide(carry, timestep, count)
            return (state, after, row, count, next_core), (row[:3], ended)

        decided = self.unroll - 1 if self.on_policy else self.unroll
        (state, carry, row, count, next_core), (rows, ended) = jax.lax.scan(
            step,
            (run.slots, run.carry, run.row, run.count, next_core),
            jnp.arange(1, decided + 1),
        )
        if self.on_policy:  # row T, which is not decided yet
            state, timestep, last = self.stepper.advance(state, row.action)
            row = Row(timestep, row.action, row.extras, carry.core)
            rows, ended = jax.tree.map(
                lambda xs, x: jnp.concatenate([xs, x[None]]), (rows, ended), (row[:3], last)
            )
        first = (run.row.timestep, run.row.action, run.row.extras)
        rows = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, rows)
        version = jnp.full((self.num_envs,), run.learner.updates - lag)
        trajectory = Trajectory(*rows, core=run.row.core, version=version)
        learner, replay, metrics, learnt = self._learn(run, trajectory, next_core)
        steps = jnp.sum(~trajectory.timestep.first[1:], dtype=jnp.int32)
        run = RunState(learner, state, carry, row, run.act_key, count, replay, past)
        return run, Outcome(metrics, learnt, steps, lag, *ended)

    def _behaviour(self, run: RunState) -> tuple[PyTree, PyTree, Array]:
        """The behaviour that acts, those kept for later, and how many updates old the first is."""
        newest, updates = self.agent.behaviour(run.learner), run.learner.updates
        if not self.policy_lag:
            return newest, (), jnp.int32(0)
        lag = jnp.minimum(self.policy_lag, updates)
        size = self.policy_lag + 1
        past = jax.tree.map(lambda xs, x: xs.at[updates % size].set(x), run.past, newest)
        return jax.tree.map(lambda xs: xs[(updates - lag) % size], past), past, lag

    def _learn(
        self, run: RunState, trajectory: Trajectory, next_core: PyTree
    ) -> tuple[LearnerState, Ring | None, dict[str, Array], Array]:
        """The learner, the replay, metrics, and whether anything was learnt."""
        source, learn = self.agent.source, self.agent.learn
        if isinstance(source, Fresh):
            learner, metrics, feedback = learn(run.learner, Batch(trajectory))
            check_feedback(source, feedback)
            return learner, None, metrics, jnp.bool_(True)
        assert run.replay is not None
        replay = ring.insert(run.replay, source.sequences, trajectory, next_core)
        key = jax.random.fold_in(run.act_key, DRAWS)
        if isinstance(source, Mixed):
            drawn, _ = ring.draw(replay, jax.random.fold_in(key, run.learner.updates), self.draws)
            learner, metrics, feedback = learn(run.learner, mix(trajectory, drawn.trajectory, jnp))
            check_feedback(source, feedback)
            return learner, replay, metrics, jnp.bool_(True)

        def one(learner: LearnerState, replay: Ring) -> tuple[Learnt, Array]:
            draw_key = jax.random.fold_in(key, learner.updates)
            batch, at = ring.draw(replay, draw_key, self.draw_size)
            return learn(learner, batch), at

        # A replay that nothing rewrites is not carried along: carrying it might copy it.
        learnt, _ = jax.eval_shape(one, run.learner, replay)
        rewrites = learnt.feedback.extras is not None

        def step(carried: _Carried, _: None) -> tuple[_Carried, dict[str, Array]]:
            learner, rewritten = carried
            learnt, at = one(learner, replay if rewritten is None else rewritten)
            if rewritten is not None:
                assert learnt.feedback.extras is not None
                rewritten = ring.revise(rewritten, at, learnt.feedback.extras)
            return (learnt.state, rewritten), learnt.metrics

        def every(carried: _Carried) -> tuple[_Carried, dict[str, Array]]:
            carried, metrics = jax.lax.scan(step, carried, length=self.draws)
            return carried, jax.tree.map(lambda x: x.mean(0), metrics)

        def none(carried: _Carried) -> tuple[_Carried, dict[str, Array]]:
            return carried, jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(every, carried)[1]
            )

        enough = replay.count >= source.min_size
        carried = (run.learner, replay if rewrites else None)
        (learner, rewritten), metrics = jax.lax.cond(enough, every, none, carried)
        return learner, rewritten if rewrites else replay, metrics, enough


def build(
    agent: Agent,
    env: JaxEnv | JaxSuite,
    *,
    unroll: int,
    num_envs: int,
    draws: int = 0,
    draw_size: int | None = None,
    policy_lag: int = 0,
) -> tuple[Callable[[LearnerState, Key], RunState], Callable[[RunState], tuple[RunState, Outcome]]]:
    """`init(learner, key) -> RunState` and `update(RunState) -> RunState, Outcome`, both pure.

    draws: for agents that learn from replay alone, batches of `draw_size` sequences, by default
    `num_envs`, after each unroll; for those that mix, sequences beside each unroll. policy_lag: for
    agents with one update per unroll, how many updates old the acting behaviour is, once there have
    been as many.
    """
    program = Program(
        agent, stepper(env, num_envs), unroll, num_envs, draws, draw_size or num_envs, policy_lag
    )
    return program.init, program.update


@functools.lru_cache(maxsize=8)
def _compiled(
    agent: Agent, env: JaxEnv | JaxSuite, updates: int, **shape: Any
) -> tuple[Callable[..., RunState], Callable[..., tuple[RunState, Outcome]]]:
    """`init`, and so many times `update`, jitted: equal runs share what JAX has compiled.

    `env` comes without its specs, which have no hash and are no part of what is computed.
    """
    init, update = build(agent, env, **shape)

    def many(run: RunState) -> tuple[RunState, Outcome]:
        return jax.lax.scan(lambda run, _: update(run), run, length=updates)

    return jax.jit(init), jax.jit(many, donate_argnums=0)


class FusedLoop:
    """Runs several updates per call of one compiled program: about STEPS_PER_CALL agent steps."""

    drained = True

    def __init__(
        self,
        agent: Agent,
        env: JaxEnv | JaxSuite,
        learner: LearnerState,
        key: Key,
        *,
        unroll: int,
        num_envs: int,
        max_steps: int,
        draws: int = 0,
        draw_size: int | None = None,
        policy_lag: int = 0,
    ):
        per_update = unroll * num_envs
        calls = min(STEPS_PER_CALL, max_steps // 20) // per_update
        if isinstance(agent.source, Replayed):
            calls = min(calls, UPDATES_PER_CALL // max(draws, 1))
        init, self._many = _compiled(
            agent,
            without_specs(env),
            max(1, calls),
            unroll=unroll,
            num_envs=num_envs,
            draws=draws,
            draw_size=draw_size,
            policy_lag=policy_lag,
        )
        self._task = stepper(env, num_envs).task
        self._explores = np.zeros(num_envs, bool)
        if agent.explores is not None:
            self._explores = agent.explores(np.arange(num_envs), num_envs)
        self.run = init(learner, key)

    @property
    def learner_state(self) -> LearnerState:
        """The learner's part of the run."""
        return self.run.learner

    def update(self) -> Update:
        """One call of the program; the metrics are means over its updates."""
        self.run, outcome = self._many(self.run)
        outcome = jax.device_get(outcome)
        ended = outcome.ended.nonzero()
        episodes = [
            Episode(float(r), int(n), int(i), int(self._task[i]), bool(self._explores[i]))
            for r, n, i in zip(
                outcome.episode_return[ended], outcome.episode_length[ended], ended[-1], strict=True
            )
        ]
        learnt = outcome.learnt
        metrics = {k: v[learnt].mean() for k, v in outcome.metrics.items()} if learnt.any() else {}
        return Update(metrics, int(outcome.steps.sum()), episodes, float(outcome.lag.mean()))

    def bound_by(self) -> str:
        """One program does it all."""
        return "fused program"

    def faults(self) -> dict[str, int]:
        """None: nothing can fail alone."""
        return {}

    def waits(self) -> dict[str, float]:
        """Empty: nothing waits in a single program."""
        return {}

    def state(self) -> dict[str, PyTree]:
        """Everything but the learner, which is saved by its own name."""
        return {"fused": self.run._replace(learner=())}  # type: ignore[arg-type]

    def restore(self, loaded: Loaded) -> list[str]:
        """Continue exactly where `state` was taken."""
        template = self.run._replace(learner=())  # type: ignore[arg-type]
        self.run = loaded.restore("fused", template)._replace(learner=self.run.learner)
        return []

    def close(self) -> None:
        """Nothing to release."""
