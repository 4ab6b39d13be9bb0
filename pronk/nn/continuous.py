"""Networks for continuous actions: a policy's outputs, and values of observations with actions."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import gymnasium as gym
import jax.numpy as jnp

from pronk.nn.networks import Encoder, Torso
from pronk.types import Array, PyTree


def _last(width: int, gain: float, scale: float) -> nn.Dense:
    """A last layer, whose first weights are orthogonal with this gain, or, with a scale, uniform
    between ± scale, biases too (Lillicrap et al. 2016, section 7)."""
    if not scale:
        return nn.Dense(width, kernel_init=nn.initializers.orthogonal(gain), name="last")
    uniform = nn.initializers.uniform(2.0 * scale)

    def around_zero(*args: Any) -> Array:
        return uniform(*args) - scale

    return nn.Dense(width, kernel_init=around_zero, bias_init=around_zero, name="last")


class Outputs(nn.Module):
    """Encoder and a linear layer: observations `[N, ...]` to `[N, width]`."""

    space: gym.Space
    width: int
    torso: Torso
    hidden_sizes: tuple[int, ...]
    activation: str
    encoder_dtype: Any = jnp.float32
    last_scale: float = 0.0  # see `_last`

    @nn.compact
    def __call__(self, observation: PyTree) -> Array:
        encoder = Encoder(
            self.space,
            self.torso,
            self.hidden_sizes,
            self.activation,
            self.encoder_dtype,
            name="encoder",
        )
        # Small weights make the first actions nearly independent of the observation.
        return _last(self.width, 0.01, self.last_scale)(encoder(observation))


class ActionValue(nn.Module):
    """Q(x, a): observations `[N, ...]` and actions `[N, k]` to values `[N]`.

    Actions join the features of images, and other observations, before the first dense layer.
    """

    space: gym.Space
    torso: Torso
    hidden_sizes: tuple[int, ...]
    activation: str
    encoder_dtype: Any = jnp.float32
    last_scale: float = 0.0  # see `_last`

    @nn.compact
    def __call__(self, observation: PyTree, action: Array) -> Array:
        encoder = Encoder(
            self.space,
            self.torso,
            self.hidden_sizes,
            self.activation,
            self.encoder_dtype,
            name="encoder",
        )
        return _last(1, 1.0, self.last_scale)(encoder(observation, action))[:, 0]
