"""Suites of environments written in JAX, for the fused runtime.

The slots of each task are stepped together: a switch between tasks inside one vmapped function
would compute all tasks for every slot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pronk.envs.common_spaces import CommonSpaces, common_spaces
from pronk.envs.jax_env import JaxEnv, Slots, advance, start
from pronk.envs.suite import Task, assignment, suite_spec
from pronk.types import Array, EnvSpec, Key, PyTree, TimeStep


class JaxSuite(NamedTuple):
    """Several `JaxEnv`s in the suite's common spaces."""

    spec: EnvSpec
    envs: tuple[JaxEnv, ...]
    weights: tuple[float, ...]


class Ended(NamedTuple):
    """Whether a step ended an episode, and the episode's statistics if it did, `[B]`."""

    done: Array  # bool
    episode_return: Array  # float32
    episode_length: Array  # int32


class Stepper(NamedTuple):
    """A number of slots as pure functions of their state, a pytree of arrays."""

    start: Callable[[Key], tuple[PyTree, TimeStep]]  # (key) -> state, first rows
    # (state, action [B, …]) -> state, rows, ended episodes
    advance: Callable[[PyTree, Array], tuple[PyTree, TimeStep, Ended]]
    task: np.ndarray  # int32 [B]


def make(env: str, tasks: tuple[Task, ...], parts: tuple[JaxEnv, ...]) -> JaxSuite:
    """The suite of these tasks, whose environments are `parts`; raises UserError if they have no
    common spaces."""
    specs = [part.spec for part in parts]
    spec, shared = suite_spec(env, tasks, specs), common_spaces(specs)
    converted = [
        _convert(part, k, task, spec, shared)
        for k, (part, task) in enumerate(zip(parts, tasks, strict=True))
    ]
    return JaxSuite(spec, tuple(converted), tuple(task.weight for task in tasks))


def _convert(env: JaxEnv, k: int, task: Task, spec: EnvSpec, shared: CommonSpaces) -> JaxEnv:
    """Task `k` in the suite's spaces, with scaled rewards."""

    def convert(observation: PyTree) -> PyTree:
        batch = jax.tree.map(lambda x: x[None], observation)
        whole = shared.observation(k, env.spec.observation_space, batch, jnp)
        return jax.tree.map(lambda x: x[0], whole)

    def reset(key: Key) -> tuple[PyTree, PyTree]:
        state, observation = env.reset(key)
        return state, convert(observation)

    def step(state: PyTree, action: Array, key: Key) -> tuple[Any, ...]:
        state, observation, reward, terminated, truncated = env.step(state, action, key)
        return state, convert(observation), reward * task.reward_scale, terminated, truncated

    def action_mask(state: PyTree) -> Array:
        mask = None if env.action_mask is None else env.action_mask(state)[None]
        return shared.action_mask(env.spec.action_space, mask, 1, jnp)[0]

    def score(state: PyTree) -> Array:
        assert env.score is not None
        return env.score(state) * task.reward_scale

    return env._replace(
        spec=spec,
        reset=reset,
        step=step,
        action_mask=action_mask if shared.has_action_mask else None,
        score=None if env.score is None else score,
    )


def without_specs(env: JaxEnv | JaxSuite) -> JaxEnv | JaxSuite:
    """The same functions, as a key of a cache: spaces have no hash."""
    bare: Any = env._replace(spec=None)  # type: ignore[arg-type]
    if isinstance(env, JaxSuite):
        bare = bare._replace(envs=tuple(map(without_specs, env.envs)))
    return bare


def stepper(env: JaxEnv | JaxSuite, num_envs: int) -> Stepper:
    """`num_envs` slots of an environment, or of a suite in proportion to its weights."""
    if isinstance(env, JaxEnv):
        return _single_stepper(env, num_envs)
    return _suite_stepper(env, num_envs)


def _single_stepper(env: JaxEnv, num_envs: int) -> Stepper:
    env_ids = np.arange(num_envs, dtype=np.int32)

    def step(state: PyTree, action: Array) -> tuple[PyTree, TimeStep, Ended]:
        state, timestep = advance(env, state, action)
        return state, timestep, _ended(state)

    return Stepper(lambda key: start(env, key, env_ids), step, np.zeros(num_envs, np.int32))


def _suite_stepper(suite: JaxSuite, num_envs: int) -> Stepper:
    # Sorted by task, so that slots are split and concatenated instead of gathered one by one.
    task = np.sort(assignment(suite.weights, num_envs))
    present = [
        (part, np.flatnonzero(task == k).astype(np.int32))
        for k, part in enumerate(suite.envs)
        if k in task
    ]

    def concatenate(parts: list[Any]) -> Any:
        return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

    def merge(timesteps: list[TimeStep]) -> TimeStep:
        return concatenate(timesteps)._replace(task=jnp.asarray(task))

    def begin(key: Key) -> tuple[PyTree, TimeStep]:
        # A slot's id is its number among all slots, as in a single environment.
        parts = [start(part, key, ids) for part, ids in present]
        return tuple(slots for slots, _ in parts), merge([timestep for _, timestep in parts])

    def step(state: PyTree, action: Array) -> tuple[PyTree, TimeStep, Ended]:
        cuts = np.cumsum([len(ids) for _, ids in present])[:-1]
        actions = jnp.split(action, cuts)
        parts = [
            advance(part, slots, a)
            for (part, _), slots, a in zip(present, state, actions, strict=True)
        ]
        state = tuple(slots for slots, _ in parts)
        timestep = merge([timestep for _, timestep in parts])
        return state, timestep, concatenate([_ended(slots) for slots in state])

    return Stepper(begin, step, task)


def _ended(slots: Slots) -> Ended:
    return Ended(slots.done, slots.episode_return, slots.episode_length)
