"""A policy network as a function of a vector of parameters, one for each environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from pronk.agents import actor_critic
from pronk.agents.actor_critic import ActorCritic, Core
from pronk.errors import UserError
from pronk.nn import cores, networks
from pronk.types import Array, EnvSpec, Key, PyTree, TimeStep


@dataclass(frozen=True, eq=False)
class VectorPolicy:
    """The network of an actor-critic without its value; see `make`."""

    model: ActorCritic
    size: int  # n, of the vector
    unravel: Callable[[Array], PyTree]  # a vector to the parameters that are searched
    constant: PyTree  # the other parameters, all of them 0
    sampled: bool  # whether actions are drawn

    def first(self, key: Key) -> Array:
        """The network's first parameters, `[n]`."""
        params, _ = networks.split_value(self.model.init(key))
        return ravel_pytree({k: v for k, v in params.items() if k not in self.constant})[0]

    def decide(
        self, vector: Array, core: Core, timestep: TimeStep, key: Key, greedy: Array
    ) -> tuple[Array, Core]:
        """The actions and the network's memory of slots `[B]`, each with parameters of its own.

        vector `[B, n]`. greedy: bool `[B]`, slots that take the most likely action in any case.
        """
        distribution = self.model.distribution

        def one(
            vector: Array, core: Core, row: TimeStep, key: Key, greedy: Array
        ) -> tuple[Array, Core]:
            core, row = jax.tree.map(lambda x: x[None], (core, row))
            last_action = cores.reset(core.last_action, row.first)
            params = {"params": self.unravel(vector) | self.constant}
            rows = jax.tree.map(lambda x: x[None], row)
            output = self.model.forward(params, rows, last_action[None], core.state)
            raw = distribution.mode(output.policy[0])
            if self.sampled:
                raw = jnp.where(greedy, raw, distribution.sample(output.policy[0], key))
            after = Core(output.state, distribution.features(raw))
            return jax.tree.map(lambda x: x[0], (distribution.action(raw), after))

        keys = jax.random.split(key, greedy.shape[0])
        return jax.vmap(one)(vector, core, timestep, keys, greedy)


def make(config: Any, spec: EnvSpec) -> VectorPolicy:
    """The policy for an environment's spaces.

    config: as `evolution_config.Config`. Unless actions are drawn, the standard deviations of
    continuous ones are not searched. Raises UserError where a space can't be handled, for a suite,
    and where the vector has more than `config.max_parameters` elements.
    """
    if spec.num_tasks > 1:
        raise UserError(
            f"`env` is a suite of {spec.num_tasks} tasks, and this agent ranks members by their"
            " returns, which can't be compared between tasks; expected a single environment."
        )
    model = actor_critic.make(config, spec, constant_std=True)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    params, value = networks.split_value(zeros)
    if not config.sampled_actions and "constant" in params:
        value = value | {"constant": params.pop("constant")}
    size = sum(x.size for x in jax.tree.leaves(params))
    if size > config.max_parameters:
        raise UserError(
            f"the policy has {size:,} parameters, and `--max-parameters` is"
            f" {config.max_parameters:,}: each environment would keep as many of its own; expected"
            " smaller `--hidden-sizes`, for images a smaller `--torso` such as minatar or mlp, or a"
            " larger `--max-parameters`."
        )
    return VectorPolicy(model, size, ravel_pytree(params)[1], value, config.sampled_actions)
