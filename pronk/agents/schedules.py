"""Hyperparameters that change while training, by `pronk.config.schedules`, for any agent.

An agent reads numbers from `LearnerState.hyper`, and knows nothing of schedules. There, a scheduled
hyperparameter has its first value. `scheduled` puts the current one in its place while the agent
learns; it follows from `LearnerState.steps`, so that a resumed run continues it exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pronk.config import fields
from pronk.config.fields import flag
from pronk.config.schedules import Schedule, is_schedule, parse
from pronk.errors import UserError
from pronk.types import Agent, Array, Batch, Halves, Hyper, Key, LearnerState, Learnt, PyTree


def split(config: Any) -> tuple[Any, dict[str, Schedule]]:
    """A configuration without schedules, and those it has, by field.

    The agent is made for the first value, or the first that is not 0, because some settings are
    switched off by 0.
    """
    texts = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    found = {
        name: parse(text)
        for name, text in texts.items()
        if name in fields.numeric(type(config)) and is_schedule(text)
    }
    numbers = {name: next(filter(None, s.values), 0.0) for name, s in found.items()}
    return dataclasses.replace(config, **numbers) if found else config, found


def scheduled(
    agent: Agent,
    schedules: Mapping[str, Schedule],
    *,
    horizon: int,
    near_one: Collection[str] = (),
    learnt: Callable[[int], int] = int,
) -> Agent:
    """`agent`, whose hyperparameters of these names follow schedules that end at `horizon` steps.

    learnt: how many transitions have been learnt from after a number of agent steps, if it is not
    the same number. Schedules are in agent steps, and `LearnerState.steps` counts transitions.

    `hyper[name]` is the schedule's first value; where PBT has changed it by a factor, so is the
    whole schedule, or with `near_one` 1 − x. `hyper["horizon"]` is the horizon. The current values
    are among the metrics. Raises UserError for a name that is not in `LearnerState.hyper`.
    """
    known = jax.eval_shape(agent.init, jax.random.key(0)).hyper
    for name, schedule in schedules.items():
        if name not in known:
            raise UserError(
                f"`{flag(name)}` is {schedule.text}, and the agent reads it only when it is made;"
                f" expected a number. Schedules are for {', '.join(sorted(known.keys() - _OWN))}."
            )

    horizon = max(1, learnt(horizon))
    schedules = {
        name: schedule._replace(starts=tuple(map(learnt, schedule.starts)))
        for name, schedule in schedules.items()
    }

    def current(state: LearnerState) -> Hyper:
        return {
            name: _value(schedule, state, name, name in near_one)
            for name, schedule in schedules.items()
        }

    def init(key: Key) -> LearnerState:
        state = agent.init(key)
        first = {name: jnp.float32(schedule.first) for name, schedule in schedules.items()}
        return state._replace(hyper=state.hyper | {"horizon": jnp.float32(horizon)} | first)

    def now(state: LearnerState, values: Hyper) -> LearnerState:
        return state._replace(hyper=state.hyper | values)

    def done(before: LearnerState, learnt: Learnt, values: Hyper) -> Learnt:
        kept = {name: before.hyper[name] for name in values}
        state = learnt.state._replace(hyper=learnt.state.hyper | kept)
        return learnt._replace(state=state, metrics=learnt.metrics | values)

    def learn(state: LearnerState, batch: Batch) -> Learnt:
        values = current(state)
        return done(state, agent.learn(now(state, values), batch), values)

    halves = agent.halves
    if halves is not None:
        halves = _halves(halves, current, now, done)
    return agent._replace(init=init, learn=learn, halves=halves)


def annealed(agent: Agent, learning_rate: float, horizon: int) -> Agent:
    """`agent`, whose learning rate goes linearly from this one to 0 at `horizon` steps."""
    schedule = Schedule("linear", (learning_rate, 0.0))
    return scheduled(agent, {"learning_rate": schedule}, horizon=horizon)


_OWN = {"horizon"}  # in `hyper`, but no setting of an agent


def _halves(halves: Halves, current: Any, now: Any, done: Any) -> Halves:
    def gradients(state: LearnerState, batch: Batch) -> tuple[PyTree, PyTree]:
        return halves.gradients(now(state, current(state)), batch)

    def apply(state: LearnerState, grads: PyTree, sums: PyTree) -> Learnt:
        values = current(state)
        return done(state, halves.apply(now(state, values), grads, sums), values)

    return Halves(gradients, apply)


def progress(steps: Array, horizon: Array) -> Array:
    """The part of the run that is over, from 0 to 1, float32 []; steps: as `LearnerState.steps`."""
    return jnp.minimum(_as_float(steps) / horizon, 1.0)


def _as_float(steps: Array) -> Array:
    """A count of one or two words, the low one first, as float32 []."""
    count = steps.astype(jnp.float32)
    return count[0] + count[1] * 2.0**32 if count.ndim else count


def _reached(steps: Array, start: int) -> Array:
    """Whether a count of one or two words is at least `start`, exactly."""
    high, low = divmod(start, 2**32)
    if not steps.ndim:
        return steps >= np.uint32(low) if not high else jnp.bool_(False)
    of_low, of_high = steps[0], steps[1]
    return (of_high > np.uint32(high)) | ((of_high == np.uint32(high)) & (of_low >= np.uint32(low)))


def _value(schedule: Schedule, state: LearnerState, name: str, near_one: bool) -> Array:
    """The current value, float32 []."""
    first = state.hyper[name]
    values = [first, *_scaled(schedule, first, near_one)]
    if schedule.starts:
        return _at_points(schedule, values, state.steps)
    p = progress(state.steps, state.hyper["horizon"])
    last = values[1]
    if schedule.kind == "linear":
        value = first * (1.0 - p)
        if near_one or schedule.values[1]:  # otherwise `last` is 0, whatever the first value
            value += last * p
        return value
    if schedule.kind == "cosine":
        value = last + (first - last) * 0.5 * (1.0 + jnp.cos(np.float32(np.pi) * p))
    else:
        value = first * jnp.exp(p * jnp.log(last / first))
    return jnp.where(p < 1.0, value, last)


def _scaled(schedule: Schedule, first: Array, near_one: bool) -> list[Array]:
    """The values after the first, multiplied as `Schedule.starting_at` does."""
    base = np.float32(schedule.first)
    rest = [np.float32(value) for value in schedule.values[1:]]
    if near_one:
        if base == 1:
            return [jnp.asarray(value) for value in rest]
        factor = (1.0 - first) / (np.float32(1.0) - base)
        # A factor of 1 must leave the value exactly as it is.
        return [jnp.where(factor == 1.0, x, 1.0 - (np.float32(1.0) - x) * factor) for x in rest]
    factor = first / base if base else jnp.ones_like(first)
    return [value * factor for value in rest]


def _at_points(schedule: Schedule, values: list[Array], steps: Array) -> Array:
    value, count = values[0], _as_float(steps)
    for i in range(1, len(values)):
        start, end = schedule.starts[i - 1], schedule.starts[i]
        if schedule.kind == "linear":
            share = jnp.clip((count - start) / (end - start), 0.0, 1.0)
            between = values[i - 1] * (1.0 - share) + values[i] * share
            value = jnp.where(_reached(steps, start), between, value)
        value = jnp.where(_reached(steps, end), values[i], value)
    return value
