"""Suites of environments written in JAX, for the fused runtime.

Each task's slots are stepped by its own program: switching between tasks inside one would compute
all of them for every slot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pronk.envs.jax_env import JaxEnv, advance, start
from pronk.envs.suite import Common, Task, assignment, common, suite_spec
from pronk.types import Array, EnvSpec, Key, PyTree, TimeStep


class JaxSuite(NamedTuple):
    """Several `JaxEnv`s that look alike: their spaces are the suite's."""

    spec: EnvSpec
    envs: tuple[JaxEnv, ...]
    weights: tuple[float, ...]


class Ended(NamedTuple):
    """Whether a step ended an episode, and what is final where it did, `[B]`."""

    done: Array  # bool
    episode_return: Array  # float32
    episode_length: Array  # int32


class Stepper(NamedTuple):
    """So many slots as pure functions of their state, a pytree of arrays."""

    start: Callable[[Key], tuple[PyTree, TimeStep]]  # (key) -> state, first rows
    # (state, action [B, …]) -> state, rows, what ended
    advance: Callable[[PyTree, Array], tuple[PyTree, TimeStep, Ended]]
    task: np.ndarray  # int32 [B]


def make(env: str, tasks: tuple[Task, ...], parts: tuple[JaxEnv, ...]) -> JaxSuite:
    """The suite of these tasks, whose environments are `parts`; raises UserError where they have no
    common spaces."""
    specs = [part.spec for part in parts]
    spec, shared = suite_spec(env, tasks, specs), common(specs)
    alike = [
        _brought(part, k, task, spec, shared)
        for k, (part, task) in enumerate(zip(parts, tasks, strict=True))
    ]
    return JaxSuite(spec, tuple(alike), tuple(task.weight for task in tasks))


def _brought(env: JaxEnv, k: int, task: Task, spec: EnvSpec, shared: Common) -> JaxEnv:
    """Task `k` in the suite's spaces, its rewards scaled."""

    def seen(observation: PyTree) -> PyTree:
        batch = jax.tree.map(lambda x: x[None], observation)
        whole = shared.observation(k, env.spec.observation_space, batch, jnp)
        return jax.tree.map(lambda x: x[0], whole)

    def reset(key: Key) -> tuple[PyTree, PyTree]:
        state, observation = env.reset(key)
        return state, seen(observation)

    def step(state: PyTree, action: Array, key: Key) -> tuple[Any, ...]:
        state, observation, reward, terminated, truncated = env.step(state, action, key)
        return state, seen(observation), reward * task.reward_scale, terminated, truncated

    def action_mask(state: PyTree) -> Array:
        mask = None if env.action_mask is None else env.action_mask(state)[None]
        return shared.action_mask(env.spec.action_space, mask, 1, jnp)[0]

    mask = action_mask if shared.has_action_mask else None
    return env._replace(spec=spec, reset=reset, step=step, action_mask=mask)


def stepper(env: JaxEnv | JaxSuite, num_envs: int) -> Stepper:
    """`num_envs` slots of an environment, or of a suite in proportion to its weights."""
    if isinstance(env, JaxEnv):
        single = env
        env_ids = np.arange(num_envs, dtype=np.int32)

        def one(state: PyTree, action: Array) -> tuple[PyTree, TimeStep, Ended]:
            state, timestep = advance(single, state, action)
            return state, timestep, Ended(state.done, state.episode_return, state.episode_length)

        return Stepper(lambda key: start(single, key, env_ids), one, np.zeros(num_envs, np.int32))
    # Task by task, so that slots are cut and joined, and not gathered one by one.
    task = np.sort(assignment(env.weights, num_envs))
    present = [
        (part, np.flatnonzero(task == k).astype(np.int32))
        for k, part in enumerate(env.envs)
        if k in task
    ]

    def merged(parts: list[Any]) -> Any:
        return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

    def begin(key: Key) -> tuple[PyTree, TimeStep]:
        # A slot's course depends on its number among all, as that of a single environment does.
        found = [start(part, key, ids) for part, ids in present]
        timestep = merged([timestep for _, timestep in found])
        return tuple(state for state, _ in found), timestep._replace(task=jnp.asarray(task))

    def every(state: PyTree, action: Array) -> tuple[PyTree, TimeStep, Ended]:
        cuts = np.cumsum([len(ids) for _, ids in present])[:-1]
        actions = jnp.split(action, cuts)
        found = [
            advance(part, s, a) for (part, _), s, a in zip(present, state, actions, strict=True)
        ]
        timestep = merged([timestep for _, timestep in found])
        ended = merged([Ended(s.done, s.episode_return, s.episode_length) for s, _ in found])
        return tuple(s for s, _ in found), timestep._replace(task=jnp.asarray(task)), ended

    return Stepper(begin, every, task)
