"""Exploration: rates that differ between the environments of a run, and correlated noise."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pronk.types import Array, Key

# A slot that explores more often plays noticeably worse than the greedy policy.
NEARLY_GREEDY = 0.01


class Ladder(NamedTuple):
    """Environment i of N explores at the rate ε^(1 + α i / (N − 1)) (Horgan et al. 2018, 4.1)."""

    base: float  # ε
    alpha: float

    def rates(self, env_ids: Array, num_envs: int) -> Array:
        """The rates of environments `env_ids` `[B]` of N, float32 `[B]`."""
        rank = jnp.asarray(env_ids, jnp.float32) / max(num_envs - 1, 1)
        return self.base ** (1 + self.alpha * rank)

    def explores(self, env_ids: Array, num_envs: int) -> Array:
        """`Agent.explores`: whose rate is above 1 % and not the least of all."""
        rates = np.asarray(self.rates(np.arange(num_envs), num_envs))
        return (rates > max(NEARLY_GREEDY, rates.min()))[np.asarray(env_ids)]


def correlated_noise(before: Array, first: Array, key: Key, correlation: float) -> Array:
    """The standard normal noise `[B, k]` that follows `before` `[B, k]`: ρ ε + √(1 − ρ²) ξ within
    an episode, and drawn anew where `first` `[B]` begins one."""
    drawn = jax.random.normal(key, before.shape)
    following = correlation * before + (1.0 - correlation**2) ** 0.5 * drawn
    return jnp.where(first[:, None], drawn, following)
