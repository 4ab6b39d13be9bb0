"""Actions between bounds: the scale on which ±1 are the bounds, and a Gaussian squashed into it."""

from __future__ import annotations

from typing import NamedTuple

import gymnasium as gym
import jax.numpy as jnp
import numpy as np

from pronk.errors import UserError
from pronk.maths import distributions
from pronk.maths.shapes import assert_same_shape
from pronk.types import Array, EnvSpec

# Log standard deviations are clipped to this range, as in the code of Haarnoja et al. 2018. It
# contains 0, where a policy begins. `sample` divides by no deviation, so that none is too small.
LOG_STD = (-20.0, 2.0)


class Bounds(NamedTuple):
    """The bounds of an environment's actions, of k dimensions."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def size(self) -> int:
        """The number of dimensions, k."""
        return len(self.low)

    def action(self, unit: Array) -> Array:
        """The environment's actions for those on the scale where ±1 are the bounds, `[..., k]`."""
        low, high = np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)
        # A sum of two halves: the difference of two large bounds might overflow.
        scaled = 0.5 * (1.0 - unit) * low + 0.5 * (1.0 + unit) * high
        return jnp.clip(scaled, low, high)


def bounds(agent: str, spec: EnvSpec) -> Bounds:
    """The bounds of the actions of an environment.

    Raises UserError, naming the agent, for actions that are not a one-dimensional Box of floats,
    and where a dimension has no bounds.
    """
    space = spec.action_space
    if not isinstance(space, gym.spaces.Box):
        raise UserError(
            f"{agent} is for actions that are numbers between bounds, and the actions of"
            f" '{spec.name}' are {space}; expected a Box: use another agent, such as ppo or"
            " impala, or r2d2 for Discrete actions."
        )
    gaussian = distributions.for_space(space)  # which refuses other boxes
    assert isinstance(gaussian, distributions.DiagonalGaussian)
    for i, (low, high) in enumerate(zip(gaussian.low, gaussian.high, strict=True)):
        if not np.isfinite([low, high]).all():
            raise UserError(
                f"{agent} squashes actions into their bounds, and dimension {i} of the actions of"
                f" '{spec.name}', {space}, goes from {low:g} to {high:g}; expected two finite"
                " bounds: wrap the environment (gymnasium.wrappers.TransformAction), or use an"
                " agent that needs none, such as ppo."
            )
    return Bounds(gaussian.low, gaussian.high)


def sample(params: Array, noise: Array) -> tuple[Array, Array]:
    """A Gaussian's samples, squashed by tanh, `[..., k]`, and their log-probabilities `[...]`.

    params: `[..., 2 k]`, means and log standard deviations before squashing. noise: `[..., k]`,
    standard normal. Log-probabilities are densities, in nats, on the scale where ±1 are the bounds:
    log N(u) − Σ log(1 − tanh² u) (Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and
    Applications", appendix C). Gradients pass through both results (section 4.2).
    """
    mean, log_std = jnp.split(params, 2, axis=-1)
    assert_same_shape(mean=mean, noise=noise)
    log_std = jnp.clip(log_std, *LOG_STD)
    raw = mean + jnp.exp(log_std) * noise
    density = -0.5 * jnp.square(noise) - log_std - 0.5 * np.log(2 * np.pi)
    return jnp.tanh(raw), jnp.sum(density - distributions.log_tanh_slope(raw), axis=-1)


def mode(params: Array) -> Array:
    """The squashed mean, `[..., k]`; params as of `sample`."""
    return jnp.tanh(jnp.split(params, 2, axis=-1)[0])
