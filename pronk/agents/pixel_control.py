"""Pixel control: an auxiliary task whose rewards are how much the cells of an image change.

Jaderberg et al. 2017, "Reinforcement Learning with Unsupervised Auxiliary Tasks", section 3.1.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp

from pronk.errors import UserError
from pronk.maths import losses, returns
from pronk.maths.returns import Transitions
from pronk.nn import networks
from pronk.types import Array, Batch, EnvSpec


def head(config: Any, spec: EnvSpec) -> networks.PixelControl | None:
    """The network's head for it, None if its cost is 0. Raises UserError where there are no pixels
    or no discrete actions."""
    if not config.pixel_control_cost:
        return None
    cells = networks.pixel_cells(spec.observation_space, config.pixel_control_cell)
    if cells is None or not isinstance(spec.action_space, gym.spaces.Discrete):
        raise UserError(
            f"`--pixel-control-cost` is {config.pixel_control_cost:g}, and '{spec.name}' has"
            f" observations {spec.observation_space} and actions {spec.action_space}; expected"
            f" images of at least {config.pixel_control_cell} × {config.pixel_control_cell} pixels"
            " (--pixel-control-cell) and discrete actions, or a cost of 0."
        )
    return networks.PixelControl(cells, int(spec.action_space.n))


def loss(
    config: Any,
    spec: EnvSpec,
    hyper: dict[str, Array],
    batch: Batch,
    q: Array,
    transitions: Transitions,
) -> Array:
    """½ (n-step Q target − Q)² summed over cells, `[T, B]`.

    q: `[T + 1, B, H, W, actions]`, the head's output. transitions: the task's, for episode ends.
    """
    rows, taken = batch.trajectory.timestep, batch.trajectory.action
    cell = config.pixel_control_cell
    change = networks.pixel_change(spec.observation_space, rows.observation, cell)
    greedy = jnp.max(q, axis=-1)
    if rows.action_mask is not None:
        greedy = jnp.max(q, axis=-1, where=rows.action_mask[:, :, None, None], initial=-jnp.inf)
    # The task's discount is 0 where the episode terminates, and nowhere else.
    own_discount = hyper["pixel_control_discount"] * (transitions.discount > 0)
    weight, own_discount, continuation = (
        jnp.broadcast_to(x[..., None, None], change.shape)
        for x in (transitions.weight, own_discount, transitions.continuation)
    )
    targets = returns.n_step(
        jax.lax.stop_gradient(greedy), change * weight, own_discount, continuation
    )
    chosen = jnp.sum(q[:-1] * jax.nn.one_hot(taken[:-1], q.shape[-1])[:, :, None, None], -1)
    return jnp.sum(losses.squared_error(chosen, targets), axis=(-2, -1))
