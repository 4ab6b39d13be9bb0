"""The networks of a learnt model: representation, dynamics and prediction.

Schrittwieser et al. 2020, "Mastering Atari, Go, chess and shogi by planning with a learned model"
(arXiv:1911.08265), appendices F and G. States are scaled to [0, 1], the range of the actions beside
them, and so that their size does not grow with each step of the dynamics.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import gymnasium as gym
import jax
import jax.numpy as jnp

from pronk.maths.spaces import channels_first, is_image, leaf_spaces
from pronk.nn.cpu_convolution import conv2d
from pronk.nn.networks import Encoder, Torso
from pronk.types import Array, PyTree

_init = nn.initializers.orthogonal(2**0.5)
_small = nn.initializers.orthogonal(0.01)


def scale_state(x: Array) -> Array:
    """States `[N, ...]`, each scaled to [0, 1] by its smallest and its largest number."""
    axes = tuple(range(1, x.ndim))
    low, high = x.min(axis=axes, keepdims=True), x.max(axis=axes, keepdims=True)
    return (x - low) / jnp.maximum(high - low, 1e-5)


class Model(nn.Module):
    """The three networks, for N states at a time.

    With a `width` of planes, states are images `[N, H, W, width]` and all networks convolve;
    otherwise states are vectors `[N, units]`. Policy logits are `[N, actions]`; the logits of
    rewards and values are `[N, bins]`.
    """

    space: gym.Space  # of observations
    num_actions: int
    bins: int
    torso: Torso  # of the representation of vectors
    hidden_sizes: tuple[int, ...]  # of the representation of vectors
    units: int  # of a state that is a vector, and of all hidden layers
    planes: int = 0
    blocks: int = 1  # residual blocks of representation and of dynamics, where states are images
    projection: int = 0  # units of the projection of states, for a loss of consistency

    def setup(self) -> None:
        """The layers by name."""
        if self.planes:
            self.representation: Any = _ImageRepresentation(self.space, self.planes, self.blocks)
            self.dynamics: Any = _ImageDynamics(self.num_actions, self.planes, self.blocks)
        else:
            self.representation = _VectorRepresentation(
                self.space, self.torso, self.hidden_sizes, self.units
            )
            self.dynamics = _VectorDynamics(self.num_actions, self.units)
        self.reward = _Head(self.bins, self.units, zero=True)
        self.value = _Head(self.bins, self.units, zero=True)
        self.policy = _Head(self.num_actions, self.units)
        if self.projection:
            self.projector = _Projector(self.projection)
            self.predictor = _Projector(self.projection)

    def represent(self, observation: PyTree) -> Array:
        """The states of observations `[N, ...]`."""
        return scale_state(self.representation(observation))

    def step(self, state: Array, action: Array) -> tuple[Array, Array]:
        """The states after actions, int32 `[N]`, and the rewards' logits."""
        after, features = self.dynamics(state, action)
        return scale_state(after), self.reward(features)

    def predict(self, state: Array) -> tuple[Array, Array]:
        """The logits of policy and value in states."""
        return self.policy(state), self.value(state)

    def project(self, state: Array, predict: bool) -> Array:
        """What a loss of consistency compares, `[N, projection]`: of a predicted state through one
        more network (Ye et al. 2021, EfficientZero, section 4.1)."""
        x = self.projector(state.reshape(state.shape[0], -1))
        return self.predictor(x) if predict else x

    def __call__(self, observation: PyTree, action: Array) -> Array:
        """All networks once, for their initialisation."""
        state, reward = self.step(self.represent(observation), action)
        self.predict(state)
        if self.projection:
            self.project(state, True)
        return reward


class _Head(nn.Module):
    """A hidden layer and logits; of an image after a convolution to few planes."""

    outputs: int
    units: int
    zero: bool = False  # whether the first logits are 0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if x.ndim > 2:
            kernel = self.param("kernel", _init, (1, 1, x.shape[-1], 4))
            x = nn.relu(conv2d(x, kernel, 1, "SAME"))
            x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.units, kernel_init=_init)(x))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.zeros if self.zero else _small)(x)


class _Projector(nn.Module):
    units: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(nn.LayerNorm()(nn.Dense(self.units, kernel_init=_init)(x)))
        return nn.Dense(self.units, kernel_init=_init)(x)


class _VectorRepresentation(nn.Module):
    space: gym.Space
    torso: Torso
    hidden_sizes: tuple[int, ...]
    units: int

    @nn.compact
    def __call__(self, observation: PyTree) -> Array:
        x = Encoder(self.space, self.torso, self.hidden_sizes, "relu", name="encoder")(observation)
        return nn.Dense(self.units, kernel_init=_init)(x)


class _VectorDynamics(nn.Module):
    num_actions: int
    units: int

    @nn.compact
    def __call__(self, state: Array, action: Array) -> tuple[Array, Array]:
        one_hot = jax.nn.one_hot(action, self.num_actions)
        x = jnp.concatenate([state, one_hot], axis=-1)
        x = nn.relu(nn.Dense(self.units, kernel_init=_init)(x))
        return state + nn.Dense(self.units, kernel_init=_init)(x), x


class _Block(nn.Module):
    """A residual block of two convolutions (appendix F), without batch normalisation: acting and
    learning would normalise by different batches."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = _convolve(self, "conv0", nn.relu(x), x.shape[-1])
        return x + _convolve(self, "conv1", nn.relu(y), x.shape[-1])


class _ImageRepresentation(nn.Module):
    space: gym.Space
    planes: int
    blocks: int

    @nn.compact
    def __call__(self, observation: PyTree) -> Array:
        images = [
            jnp.moveaxis(x, 1, -1) if channels_first(x.shape[1:]) else x
            for space, x in zip(leaf_spaces(self.space), jax.tree.leaves(observation), strict=True)
            if is_image(space) or len(space.shape or ()) == 3
        ]
        x = _convolve(self, "input", jnp.concatenate(images, axis=-1), self.planes)
        stage = 0
        while max(x.shape[1:3]) > 16:  # the paper's 96 × 96 become 6 × 6
            x = _convolve(self, f"down{stage}", nn.relu(x), self.planes, stride=2)
            stage += 1
        for _ in range(self.blocks):
            x = _Block()(x)
        return x


class _ImageDynamics(nn.Module):
    num_actions: int
    planes: int
    blocks: int

    @nn.compact
    def __call__(self, state: Array, action: Array) -> tuple[Array, Array]:
        x = jnp.concatenate([state, action_planes(action, self.num_actions, state)], axis=-1)
        x = state + _convolve(self, "input", x, self.planes)
        for _ in range(self.blocks):
            x = _Block()(x)
        return x, nn.relu(x)


def action_planes(action: Array, num_actions: int, state: Array) -> Array:
    """Actions, int32 `[N]`, as planes beside states `[N, H, W, C]`.

    Where there is an action for each cell, or for each column, it is marked there, as the paper
    does for boards; otherwise the planes are constant, one per action and one-hot (the paper has a
    single plane of action / number for Atari, which orders what has no order).
    """
    count, height, width = state.shape[:3]
    one_hot = jax.nn.one_hot(action, num_actions)
    if num_actions == height * width:
        return one_hot.reshape(count, height, width, 1)
    if num_actions == width:
        return jnp.broadcast_to(one_hot[:, None, :, None], (count, height, width, 1))
    return jnp.broadcast_to(one_hot[:, None, None], (count, height, width, num_actions))


def _convolve(module: nn.Module, name: str, x: Array, features: int, stride: int = 1) -> Array:
    kernel = module.param(f"{name}_kernel", _init, (3, 3, x.shape[-1], features))
    bias = module.param(f"{name}_bias", nn.initializers.zeros, (features,))
    return conv2d(x, kernel, stride, "SAME") + bias
