"""The beginning of every use of a run: JAX's settings, random keys, the agent, its shapes."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pronk import agents, envs
from pronk.config.spec import Plan
from pronk.maths.keys import key_of
from pronk.maths.spaces import mask_size
from pronk.run.allocator import keep_freed_memory
from pronk.types import Agent, EnvSpec, Key, LearnerState, PyTree, TimeStep, Trajectory

# Keys folded into the run's seed, one per purpose, so that no two share random numbers.
INIT_KEY, ACTOR_KEY, EVALUATION_KEY, REPLAY_KEY = range(4)


def configure_jax() -> None:
    """Set up allocator and compilation cache for training; call before anything is computed.

    Compiled programs are kept on disk, unless the user has chosen a place or none, or there is no
    directory for them that can be written.
    """
    keep_freed_memory()
    # JAX warns of every fork. Environments fork where nothing is computed that a fork could stop
    # (`initial_state`), and what they start does not use JAX.
    warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = _cache_directory()
        if cache is not None:
            jax.config.update("jax_compilation_cache_dir", str(cache))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _cache_directory() -> Path | None:
    """Of compiled programs, created; None where the user has none, or cannot write there."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache = Path(base, "pronk", "jax").absolute()
        cache.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # there is no home directory, or it is not ours
        return None
    return cache if os.access(cache, os.W_OK) else None


def key_for(seed: int, purpose: int) -> Any:
    """The random key for one purpose of a run."""
    return jax.random.fold_in(key_of(seed), purpose)


def build(plan: Plan, env: Any) -> tuple[EnvSpec, Agent]:
    """The environment's spec and the agent for it."""
    spec = envs.spec_of(env, plan.env_args)
    return spec, agents.make(plan.agent, plan.agent_config, spec, horizon=plan.run.steps)


def initial_state(plan: Plan, agent: Agent) -> LearnerState:
    """The learner's state before the first update.

    Waited for: orthogonal matrices are computed by OpenBLAS, and if the process forked meanwhile,
    as Ray and some environments do, the computation would never end.
    """
    return jax.block_until_ready(jax.jit(agent.init)(key_for(plan.run.seed, INIT_KEY)))


def row_spec(agent: Agent, spec: EnvSpec) -> tuple[PyTree, PyTree, dict[str, PyTree]]:
    """One environment's row (timestep, action, extras), as shapes and dtypes."""

    def act(observation: PyTree, mask: PyTree, key: Key) -> tuple[PyTree, ...]:
        no, zero = jnp.zeros(1, bool), jnp.zeros(1, jnp.int32)
        timestep = TimeStep(observation, jnp.zeros(1), no, no, no, zero, mask)
        carry = agent.initial_carry(key, zero, 1, False)
        action, _, extras = agent.act(agent.behaviour(agent.init(key)), carry, timestep, key)
        return timestep, action, extras

    observation = jax.tree.map(lambda x: np.asarray(x)[None], spec.observation_space.sample())
    mask = np.ones((1, mask_size(spec.action_space)), bool) if spec.has_action_mask else None
    row = jax.eval_shape(act, observation, mask, jax.random.key(0))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), row)


def core_spec(agent: Agent) -> PyTree:
    """The recurrent state of one environment, as shapes and dtypes."""

    def core(key: Key) -> PyTree:
        return agent.initial_carry(key, jnp.zeros(1, jnp.int32), 1, False).core

    batched = jax.eval_shape(core, jax.random.key(0))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batched)


def unroll_spec(
    plan: Plan, agent: Agent, spec: EnvSpec, num_envs: int, *, rows: int | None = None
) -> Trajectory:
    """The trajectory of an actor of `num_envs` environments, as shapes and dtypes.

    rows: of the trajectory; by default `unroll + 1`.
    """
    rows = plan.agent_config.unroll + 1 if rows is None else rows
    timestep, action, extras = row_spec(agent, spec)
    # Observations have the dtypes of their space, and JAX has no 64-bit ones.
    sample = jax.tree.map(np.asarray, spec.observation_space.sample())
    timestep, action, extras = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((rows, num_envs, *x.shape), x.dtype),
        (timestep._replace(observation=sample), action, extras),
    )

    def core(key: Key) -> PyTree:
        return agent.initial_carry(key, jnp.arange(num_envs), num_envs, False).core

    version = jax.ShapeDtypeStruct((num_envs,), jnp.int32)
    return Trajectory(timestep, action, extras, jax.eval_shape(core, jax.random.key(0)), version)
