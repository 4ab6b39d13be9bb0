"""Checks the functions of an agent by shapes alone: nothing is computed.

What a wrong agent returns would otherwise fail far from its cause, or not at all. The tests check
pronk's own agents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pronk.config.registry import AGENTS
from pronk.config.spec import Plan
from pronk.errors import UserError
from pronk.maths.spaces import mask_size
from pronk.run.setup import key_for, unroll_spec
from pronk.types import (
    Agent,
    Batch,
    Carry,
    EnvSpec,
    Fresh,
    LearnerState,
    Learnt,
    Mixed,
    PyTree,
    TimeStep,
)

ENVS = 3  # environments and columns of the trial


def check_agent(plan: Plan, agent: Agent, spec: EnvSpec) -> None:
    """Raise UserError where a function of `agent` returns what the runtimes cannot use, naming the
    function, what it returned and what was expected."""
    if plan.agent in AGENTS:
        return
    state = jax.eval_shape(agent.init, key_for(0, 0))
    _expect(isinstance(state, LearnerState), plan, "init", state, "a `LearnerState`")
    for name, dtype in (("updates", jnp.int32), ("steps", jnp.uint32), ("skipped", jnp.int32)):
        counter = getattr(state, name)
        _expect(_is(counter, (), dtype), plan, f"init().{name}", counter, f"{dtype.__name__}[]")
    for name, value in dict(state.hyper).items():
        _expect(_is(value, (), jnp.float32), plan, f"init().hyper['{name}']", value, "float32[]")
    if agent.explores is not None:
        explores = np.asarray(agent.explores(np.arange(ENVS), ENVS))
        fits = _is(explores, (ENVS,), bool)
        _expect(fits, plan, "explores", explores, f"a bool [{ENVS}], one of each environment")
    _check_act(plan, agent, spec, state)
    _check_learn(plan, agent, spec, state)


def _check_act(plan: Plan, agent: Agent, spec: EnvSpec, state: LearnerState) -> None:
    def carry_of(key: Any) -> Any:
        return agent.initial_carry(key, jnp.arange(ENVS), ENVS, False)

    carry = jax.eval_shape(carry_of, key_for(0, 0))
    _expect(isinstance(carry, Carry), plan, "initial_carry", carry, "a `Carry`")
    _expect_rows(plan, "initial_carry", carry)
    observation = jax.tree.map(
        lambda x: np.stack([np.asarray(x)] * ENVS), spec.observation_space.sample()
    )
    no = np.zeros(ENVS, bool)
    zeros = np.zeros(ENVS, np.float32)
    mask = np.ones((ENVS, mask_size(spec.action_space)), bool) if spec.has_action_mask else None
    timestep = TimeStep(observation, zeros, no, no, no, np.zeros(ENVS, np.int32), mask)
    behaviour = jax.eval_shape(agent.behaviour, state)
    acted = jax.eval_shape(agent.act, behaviour, carry, timestep, key_for(0, 0))
    is_three = isinstance(acted, tuple) and len(acted) == 3
    _expect(is_three, plan, "act", acted, "the tuple (action, carry, extras)")
    action, after, extras = acted
    sample = jnp.asarray(spec.action_space.sample())
    fits = getattr(action, "shape", None) == (ENVS, *sample.shape)
    _expect(fits, plan, "act", action, f"an action of shape {(ENVS, *sample.shape)}")
    _expect_same(plan, "act", after, carry, "the carry that it was given")
    _expect(isinstance(extras, Mapping), plan, "act", extras, "a dict of extras")
    _expect_rows(plan, "act", extras, "extras for each environment")


def _check_learn(plan: Plan, agent: Agent, spec: EnvSpec, state: LearnerState) -> None:
    rows = plan.agent_config.unroll + 1
    if not isinstance(agent.source, Fresh | Mixed):
        sequences = agent.source.sequences
        rows = sequences.burn_in + sequences.length + 1
    trajectory = unroll_spec(plan, agent, spec, ENVS, rows=rows)
    column = jax.ShapeDtypeStruct((ENVS,), jnp.float32)
    fresh = isinstance(agent.source, Fresh)
    replayed = None if not isinstance(agent.source, Mixed) else jax.ShapeDtypeStruct((ENVS,), bool)
    batch = Batch(trajectory, None if fresh else column, replayed)
    learnt = jax.eval_shape(agent.learn, state, batch)
    _expect(isinstance(learnt, Learnt), plan, "learn", learnt, "a `Learnt`")
    _expect_same(plan, "learn", learnt.state, state, "the state that it was given")
    for name in ("steps", "gradient_norm"):
        _expect(name in learnt.metrics, plan, "learn().metrics", learnt.metrics, f"`{name}` in it")
    for name, value in learnt.metrics.items():
        scalar = getattr(value, "shape", None) == ()
        _expect(scalar, plan, f"learn().metrics['{name}']", value, "a scalar")


def _is(value: Any, shape: tuple[int, ...], dtype: Any) -> bool:
    return getattr(value, "shape", None) == shape and value.dtype == dtype


def _expect(condition: bool, plan: Plan, what: str, found: Any, expected: str) -> None:
    if not condition:
        raise UserError(
            f"agent '{plan.agent}' breaks its contract: `{what}` is {_described(found)}; expected"
            f" {expected}. See docs/extending.md."
        )


def _expect_rows(plan: Plan, what: str, tree: PyTree, expected: str = "arrays [B, ...]") -> None:
    """Every leaf has an axis of environments."""
    for leaf in jax.tree.leaves(tree):
        _expect(leaf.shape[:1] == (ENVS,), plan, what, leaf, f"{expected} (here B = {ENVS})")


def _expect_same(plan: Plan, what: str, found: PyTree, like: PyTree, which: str) -> None:
    """The two trees have the same structure, shapes and dtypes."""
    expected = f"the structure, shapes and dtypes of {which}"
    same = jax.tree.structure(found) == jax.tree.structure(like)
    _expect(same, plan, what, found, expected)
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(like), jax.tree.leaves(found), strict=True
    ):
        same = (old.shape, old.dtype) == (new.shape, new.dtype)
        where = f"{what}{jax.tree_util.keystr(path)}"
        _expect(same, plan, where, new, f"{_described(old)}, as in {which}")


def _described(value: Any) -> str:
    if isinstance(value, jax.ShapeDtypeStruct | np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, value)) or 'nothing'}"
    return "None" if value is None else f"a {type(value).__name__}"
