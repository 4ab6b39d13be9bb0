"""Networks of intrinsic rewards: features of observations, and an inverse model on two of them."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import gymnasium as gym
import jax.numpy as jnp

from pronk.nn.networks import Encoder, Torso
from pronk.types import Array, PyTree


class Features(nn.Module):
    """An encoder with a linear layer of `width` units: observations `[N, ...]` to `[N, width]`.

    The controllable-state embedding, and both networks of random network distillation, are of this
    kind (Badia et al. 2020, appendix F).
    """

    space: gym.Space
    torso: Torso
    hidden_sizes: tuple[int, ...]
    activation: str
    width: int
    encoder_dtype: Any = jnp.float32

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
        return nn.Dense(self.width, name="features")(encoder(observation))


class InverseModel(nn.Module):
    """Logits `[N, num_actions]` of the action between two observations with these embeddings
    `[N, width]` (Badia et al. 2020, section 2)."""

    num_actions: int
    units: int

    @nn.compact
    def __call__(self, before: Array, after: Array) -> Array:
        x = jnp.concatenate([before, after], axis=-1)
        x = nn.relu(nn.Dense(self.units, name="hidden")(x))
        return nn.Dense(self.num_actions, name="action")(x)
