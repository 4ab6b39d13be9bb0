"""What intrinsic rewards cost an actor, and what a network for each reward costs the learner.

An actor's step is one of all its environments, and acting in them. The agents have the same
networks: R2D2 has no intrinsic reward, NGU without an episodic memory has lifelong novelty alone.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pronk import envs
from pronk.agents import ngu
from pronk.config.spec import Plan
from pronk.experiments.bench.settings import Intrinsic as Settings
from pronk.experiments.bench.timing import median_seconds, random_batch, random_rows
from pronk.maths import intrinsic
from pronk.maths.spaces import random_actions
from pronk.run.resolve import resolve
from pronk.run.setup import build, configure_jax, initial_state
from pronk.runtime.actor import Player
from pronk.types import Agent, EnvSpec, LearnerState

# Of NGU's preset: what the agents have in common.
COMMON = (
    *("torso", "hidden_sizes", "activation", "recurrent_core", "recurrent_units", "head_units"),
    *("batch_size", "sequence_length", "overlap", "burn_in"),
)


def measure(settings: Settings) -> dict[str, Any]:
    """Milliseconds of an actor's step by the size of the episodic memory, and of updates."""
    configure_jax()
    config = resolve("ngu", settings.env, preset=settings.preset).agent_config
    common = {name: getattr(config, name) for name in COMMON}
    cases = [("r2d2", 0, common), ("ngu", 0, common | {"episodic": False})]
    cases += [("ngu", size, common | {"memory_size": size}) for size in settings.memory_sizes]
    for name, _, changed in cases:  # what does not fit is refused before anything is measured
        build(resolve(name, settings.env, **changed), settings.env)
    env = _env(settings)
    rows = [_row(settings, name, env, memory, changed) for name, memory, changed in cases]
    without = rows[0]["step_ms"]
    for row in rows:
        row["intrinsic_share"] = 1.0 - without / row["step_ms"]
    updates = {name: _update(settings, name, common) for name in ("r2d2", "ngu", "agent57")}
    return {
        "env": settings.env,
        "num_envs": settings.num_envs,
        "device": jax.devices()[0].device_kind,
        "env_milliseconds": env,
        **{f"{name}_update_milliseconds": value for name, value in updates.items()},
        "agent57_update_of_ngu": updates["agent57"] / updates["ngu"],
        "rows": rows,
    }


def _env(settings: Settings) -> float:
    """Milliseconds of one step of all environments, with random actions."""
    vector = envs.make(settings.env, settings.num_envs, workers=0)
    with contextlib.closing(vector):
        space, rng = vector.spec.action_space, np.random.default_rng(0)
        last = [vector.reset()]

        def step() -> None:
            last[0] = vector.step(random_actions(space, vector.num_envs, rng, last[0].action_mask))

        return 1e3 * median_seconds(step, settings.seconds)


def _made(
    settings: Settings, name: str, changed: dict[str, Any]
) -> tuple[Plan, EnvSpec, Agent, LearnerState]:
    plan = resolve(name, settings.env, **changed)
    spec, agent = build(plan, settings.env)
    return plan, spec, agent, initial_state(plan, agent)


def _row(
    settings: Settings, name: str, env: float, memory: int, changed: dict[str, Any]
) -> dict[str, Any]:
    """What an actor's step takes, and the parts of the intrinsic reward, each a program of its
    own."""
    plan, spec, agent, state = _made(settings, name, changed)
    ids = np.arange(settings.num_envs)
    player = Player(agent, jax.random.key(0), ids, settings.num_envs)
    timestep = random_rows(spec, (settings.num_envs,))
    behaviour = jax.jit(agent.behaviour)(state)
    act = 1e3 * median_seconds(lambda: player.act(behaviour, timestep), settings.seconds)
    parts = {}
    if name == "ngu":
        parts = _parts(settings, ngu.build(plan.agent_config, spec), state)
    return {
        "agent": name,
        "memory": memory,
        "acting_ms": act,
        "step_ms": env + act,
        "steps_per_second": 1e3 * settings.num_envs / (env + act),
        **parts,
    }


def _parts(settings: Settings, agent: ngu.NGU, state: LearnerState) -> dict[str, float]:
    """Milliseconds of embedding, nearest neighbours and random network distillation."""
    config, novelty, slots = agent.config, agent.novelty, settings.num_envs
    seen = jax.tree.map(jnp.asarray, random_rows(agent.spec, (slots,)).observation)
    fixed, parts = state.extra["fixed"], {}
    if config.episodic:
        parts["embedding_ms"] = functools.partial(
            jax.jit(novelty.embedding.apply), fixed["embedding"], seen
        )
        memory = intrinsic.no_memory(slots, config.memory_size, config.embedding_size)
        embedded = jnp.zeros((slots, config.embedding_size))
        nearest = jax.jit(functools.partial(intrinsic.neighbours, k=config.neighbours))
        parts["neighbours_ms"] = functools.partial(nearest, memory, embedded)
    if config.lifelong:
        parts["lifelong_ms"] = functools.partial(
            jax.jit(novelty.error), state.params["predictor"], fixed["random"], seen
        )
    return {
        name: 1e3 * median_seconds(lambda call=call: jax.block_until_ready(call()), 0.5)
        for name, call in parts.items()
    }


def _update(settings: Settings, name: str, common: dict[str, Any]) -> float:
    """Milliseconds of an update, on random sequences of the same length for all agents."""
    plan, spec, agent, state = _made(settings, name, common)
    config = plan.agent_config
    rows = config.burn_in + config.sequence_length
    batch = random_batch(agent, spec, state, rows, config.batch_size)
    learn = jax.jit(agent.learn)
    return 1e3 * median_seconds(
        lambda: jax.block_until_ready(learn(state, batch)), settings.seconds
    )
