"""Environments written in JAX as pure functions, and functions that step many of them.

The fused runtime uses `start` and `advance` inside its jitted scan; the local one uses
`JaxVectorEnv`, which wraps the same two functions, so both have the same episodes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector.utils import create_empty_array

from pronk.errors import UserError, counted
from pronk.maths.keys import key_of
from pronk.types import Array, EnvSpec, Episode, Key, PyTree, TimeStep


class JaxEnv(NamedTuple):
    """One environment as pure, unbatched, jittable functions; the state is any pytree of arrays.

    `step` is also called on the states of ended episodes; its result is then discarded. An
    environment whose `step` uses its key must set `stochastic=True`: otherwise `step` receives the
    same key at every step, which saves computing new ones.
    """

    spec: EnvSpec
    reset: Callable[[Key], tuple[PyTree, PyTree]]  # (key) -> state, observation
    # (state, action, key) -> state, observation, reward [], terminated [], truncated []
    step: Callable[[PyTree, Array, Key], tuple[PyTree, PyTree, Array, Array, Array]]
    action_mask: Callable[[PyTree], Array] | None = None  # (state) -> bool [actions]
    stochastic: bool = False
    render: Callable[[PyTree], Array] | None = None  # (state) -> uint8 [H, W, 3]
    frames_per_second: float = 8  # of a film of the episode
    # (state) -> bool []: the step that led here cost a life. As in `AtariEnvs` it ends nothing
    # (False), the return and the recurrent state (True), or the return alone ("roll").
    life_lost: Callable[[PyTree], Array] | None = None
    life_loss: bool | Literal["roll"] = False
    # (state) -> float32 []: what is reported as the episode's return in place of the sum of its
    # rewards, where rewards don't say how good an episode is. Agents don't see it.
    score: Callable[[PyTree], Array] | None = None


class Slots(NamedTuple):
    """The state of `B` environments that begin a new episode after each end, `[B, ...]`.

    `episode_return` and `episode_length` count the current episode, and are final where `done`. The
    return is that of `JaxEnv.score`, if there is one, from an episode's first step on.
    """

    state: PyTree
    key: Key  # typed key [B], one per slot, which never changes
    episode: Array  # int32 [B], 0 for the first
    done: Array  # bool [B], the episode has ended: the next `advance` begins another
    lost: Array  # bool [B], a life was lost, so the next row is `first`
    episode_return: Array  # float32 [B], raw
    episode_length: Array  # int32 [B], steps taken, which is also the step within the episode


def start(env: JaxEnv, key: Key, env_ids: Array) -> tuple[Slots, TimeStep]:
    """Begin the first episode in each of the slots `env_ids` (int32 [B]).

    A slot's episodes depend on `key`, its id and its actions, but not on the other slots; `key`
    must not be used for anything else.
    """
    keys = jax.vmap(lambda env_id: jax.random.fold_in(key, env_id))(jnp.asarray(env_ids))
    num = keys.shape[0]
    count, flag = jnp.zeros(num, jnp.int32), jnp.zeros(num, bool)
    total = jnp.zeros(num, jnp.float32)
    state, observation = _reset(env, keys, count)
    slots = Slots(state, keys, count, flag, flag, total, count)
    return slots, _timestep(env, state, observation, total, flag, flag, ~flag)


def advance(env: JaxEnv, slots: Slots, action: Array) -> tuple[Slots, TimeStep]:
    """Execute `action` `[B, ...]`; slots whose episode has ended begin the next one instead.

    This is NEXT_STEP autoreset as `TimeStep` describes it.
    """
    new = slots.done
    keys = _step_keys(slots) if env.stochastic else slots.key
    state, observation, reward, terminated, truncated = jax.vmap(env.step)(
        slots.state, action, keys
    )
    reward = jnp.where(new, 0, reward).astype(jnp.float32)
    terminated = jnp.asarray(terminated, bool) & ~new
    truncated = jnp.asarray(truncated, bool) & ~new
    episode = slots.episode + new

    def with_resets() -> tuple[PyTree, PyTree]:
        return _select(new, _reset(env, slots.key, episode), (state, observation))

    # Most steps end no episode, and the random bits of a reset can cost more than the step.
    state, observation = jax.lax.cond(jnp.any(new), with_resets, lambda: (state, observation))
    lost, first = jnp.zeros_like(new), jnp.logical_or(new, slots.lost)
    if env.life_lost is not None and env.life_loss:
        lost = jax.vmap(env.life_lost)(state) & ~new
    score = slots.episode_return + reward if env.score is None else jax.vmap(env.score)(state)
    slots = Slots(
        state,
        slots.key,
        episode,
        terminated | truncated,
        lost if env.life_loss is True else slots.lost,
        jnp.where(new, 0, score),
        jnp.where(new, 0, slots.episode_length + 1),
    )
    reward = jnp.where(first, 0, reward)
    return slots, _timestep(env, state, observation, reward, terminated | lost, truncated, first)


# An episode's key is fold_in(slot key, episode). Its reset uses child 0 and its steps children
# 1, 2, …. The reset must not use the episode's key itself: split(key)[i] equals fold_in(key, i), so
# that a reset that splits its key would share random numbers with the steps.


def _reset(env: JaxEnv, keys: Key, episode: Array) -> tuple[PyTree, PyTree]:
    def one(key: Key, episode: Array) -> tuple[PyTree, PyTree]:
        return env.reset(jax.random.fold_in(jax.random.fold_in(key, episode), 0))

    return jax.vmap(one)(keys, episode)


def _step_keys(slots: Slots) -> Key:
    def one(key: Key, episode: Array, length: Array) -> Key:
        return jax.random.fold_in(jax.random.fold_in(key, episode), length + 1)

    return jax.vmap(one)(slots.key, slots.episode, slots.episode_length)


def _select(mask: Array, new: PyTree, old: PyTree) -> PyTree:
    """`new` in the slots where `mask` [B], `old` elsewhere."""

    def leaf(new: Array, old: Array) -> Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(leaf, new, old)


def _timestep(
    env: JaxEnv,
    state: PyTree,
    observation: PyTree,
    reward: Array,
    terminated: Array,
    truncated: Array,
    first: Array,
) -> TimeStep:
    mask = None if env.action_mask is None else jax.vmap(env.action_mask)(state)
    task = jnp.zeros(first.shape, jnp.int32)
    return TimeStep(observation, reward, terminated, truncated, first, task, mask)


@functools.lru_cache(maxsize=32)
def _compiled(env: JaxEnv) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`start` and `advance`, jitted: vectors of one environment share what JAX has compiled.

    `env` comes without its spec, which has no hash and is no part of what is computed.
    """
    return jax.jit(partial(start, env)), jax.jit(partial(advance, env))


class JaxVectorEnv:
    """A `types.VectorEnv` of `num_envs` copies of a `JaxEnv`, computed on the CPU.

    The slots are those of `start(env, key_of(seed), first_env_id + arange(num_envs))`.
    Arrays handed out are read-only. Raises UserError if `num_envs` is below 1.
    """

    placement = "computed by jax on the CPU"

    def __init__(self, env: JaxEnv, num_envs: int, seed: int, first_env_id: int = 0):
        if num_envs < 1:
            raise UserError(f"`num_envs` is {num_envs}, expected at least 1.")
        self.spec: EnvSpec = env.spec
        self.num_envs = num_envs
        self._env_ids = range(first_env_id, first_env_id + num_envs)
        self._cpu = jax.devices("cpu")[0]
        begin, self._advance = _compiled(env._replace(spec=None))  # type: ignore[arg-type]
        self._episodes: list[Episode] = []
        with jax.default_device(self._cpu):
            self._slots, timestep = begin(key_of(seed), np.asarray(self._env_ids, np.int32))
        # The first rows of the first episodes, until `reset` returns them.
        self._pending: TimeStep | None = timestep

    def reset(self) -> TimeStep:
        """Begin new episodes everywhere; unfinished ones are dropped and not reported."""
        timestep, self._pending = self._pending, None
        if timestep is None:
            self._slots = self._slots._replace(done=np.ones(self.num_envs, bool))
            ignored = create_empty_array(self.spec.action_space, self.num_envs, np.zeros)
            timestep = self._execute(ignored)
        return jax.tree.map(np.asarray, timestep)

    def step(self, action: Array) -> TimeStep:
        """Execute `action` `[B, ...]`; slots whose episode has ended begin the next one instead."""
        self._pending = None
        timestep = jax.tree.map(np.asarray, self._execute(action))
        ended = np.flatnonzero(self._slots.done)
        if ended.size:
            returns = np.asarray(self._slots.episode_return)
            lengths = np.asarray(self._slots.episode_length)
            self._episodes += [
                Episode(float(returns[i]), int(lengths[i]), self._env_ids[i]) for i in ended
            ]
        return timestep

    def episodes(self) -> list[Episode]:
        """The episodes finished since the last call."""
        finished, self._episodes = self._episodes, []
        return finished

    def state(self) -> dict[str, np.ndarray]:
        """The slots' leaves by number, random keys as their uint32 data.

        Finished episodes that `episodes` has not returned yet are not part of it.
        """
        leaves = jax.tree.leaves(self._slots)
        # Numbers of equal width, so that they sort as strings.
        return {f"{i:04d}": np.array(_key_data(leaf)) for i, leaf in enumerate(leaves)}

    def restore(self, state: PyTree) -> None:
        """Continue from `state()` of the same environment and `num_envs`; else UserError."""
        old, structure = jax.tree.flatten(self._slots)
        saved = jax.tree.leaves(state)
        given = [(np.shape(leaf), np.asarray(leaf).dtype) for leaf in saved]
        expected = [(np.shape(leaf), np.dtype(leaf.dtype)) for leaf in map(_key_data, old)]
        if given != expected:
            raise UserError(
                f"the saved state does not fit {counted(self.num_envs, 'environment')}"
                f" '{self.spec.name}': it has arrays {given}, expected {expected}; restore it into"
                " the environment and number of environments it was saved from."
            )
        with jax.default_device(self._cpu):
            leaves = [_like(leaf, data) for leaf, data in zip(old, saved, strict=True)]
        self._slots = jax.tree.unflatten(structure, leaves)
        self._episodes, self._pending = [], None

    def warnings(self) -> list[str]:
        """Always empty: these environments don't fail."""
        return []

    def first_state(self) -> PyTree:
        """The unbatched state of the first slot, for `JaxEnv.render`."""
        return jax.tree.map(lambda x: np.asarray(x[0]), self._slots.state)

    def close(self) -> None:
        """Nothing to release."""

    def _execute(self, action: Array) -> TimeStep:
        with jax.default_device(self._cpu):
            self._slots, timestep = self._advance(self._slots, action)
        return timestep


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _like(leaf: Any, data: np.ndarray) -> Array:
    """`data` as a JAX array, wrapped as a key of the same kind where `leaf` is one."""
    array = jnp.array(data)
    if _is_key(leaf):
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
    return array
