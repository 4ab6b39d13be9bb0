"""Opponents of a trained agent in board games: another agent among them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pronk import envs
from pronk.envs.board_opponents import Opponent
from pronk.envs.boards import board_of
from pronk.errors import UserError
from pronk.run.policy import Policy, load
from pronk.types import Array, Key, PyTree, TimeStep


def complete(
    policy: Policy,
    env: str | None,
    env_args: Mapping[str, Any],
    chosen: str | None,
    *,
    sample: bool,
) -> tuple[dict[str, Any], str]:
    """The arguments for evaluating `policy` with the opponent `chosen`, and the opponent's name.

    env, env_args: another environment than the policy's own, and arguments that replace its own.
    chosen: random, perfect, or the path of a run or exported policy; None for that of the
    arguments, or of an evaluation by default. sample: a policy draws its actions. Without a board
    game the name is empty. Raises UserError for an opponent where there is no board game, or two,
    for an unknown one, and for one that was trained on another board.
    """
    name = policy.env if env is None else env
    args = {**(policy.plan.env_args if name == policy.env else {}), **env_args}
    if chosen is None:
        label = envs.evaluation_args(name, args)["opponent"] if envs.is_board(name) else ""
        return dict(env_args), label
    if not envs.is_board(name):
        raise UserError(
            f"`--opponent` is '{chosen}', and `env` '{name}' is not a board game for two players;"
            " leave it out."
        )
    if "opponent" in env_args:
        raise UserError(
            f"`--opponent` is '{chosen}', and `--env-arg opponent={env_args['opponent']}` is given;"
            " leave one of them out."
        )
    opponent = chosen if chosen in ("random", "perfect") else _trained(chosen, name, args, sample)
    return {**env_args, "opponent": opponent}, chosen


def _trained(path: str, env: str, args: Mapping[str, Any], sample: bool) -> Opponent:
    """The policy in `path`; raises UserError if there is none, or one for another board."""
    if not os.path.exists(path):
        raise UserError(
            f"`--opponent` is '{path}', which does not exist; expected random, perfect, a run's"
            " directory, or a file that `pronk export` wrote."
        )
    policy = load(path)
    is_board = envs.is_board(policy.env)
    if not is_board or board_of(policy.env, policy.plan.env_args) != board_of(env, args):
        theirs, ours = _described(policy.env, policy.plan.env_args), _described(env, args)
        raise UserError(
            f"`--opponent` '{path}' was trained on {theirs}, and the game is {ours}; give a policy"
            " for the same board."
        )
    return as_opponent(policy, sample=sample)


def _described(env: str, args: Mapping[str, Any]) -> str:
    listed = ", ".join(f"{k}={v}" for k, v in args.items() if k not in ("opponent", "side"))
    return f"'{env}'" + (f" ({listed})" if listed else "")


def as_opponent(policy: Policy, *, sample: bool = False) -> Opponent:
    """A policy as an opponent in a board game, with its carry as the memory.

    sample: draw actions instead of taking the most likely.
    """
    behaviour = jax.tree.map(np.asarray, policy.behaviour)
    no, zero, task = jnp.zeros(1, bool), jnp.zeros(1), jnp.zeros(1, jnp.int32)

    def start(key: Key) -> PyTree:
        carry = policy.agent.initial_carry(key, np.zeros(1, np.int32), 1, not sample)
        return jax.tree.map(jnp.asarray, carry), jnp.bool_(True)

    def act(memory: PyTree, observation: Array, mask: Array, key: Key) -> tuple[Array, PyTree]:
        carry, first = memory
        timestep = TimeStep(observation[None], zero, no, no, first[None], task, mask[None])
        action, carry, _ = policy.agent.act(behaviour, carry, timestep, key)
        return action[0], (carry, jnp.bool_(False))

    return Opponent(start, act)
