"""Networks: observation encoders, and actor-critics and action values on top of them.

Rows are time-major `[T, B, ...]`; acting is the case T = 1. Parameters are plain dicts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import gymnasium as gym
import jax
import jax.numpy as jnp

from pronk.errors import UserError, counted
from pronk.maths.spaces import as_vector, channels_first, is_image, leaf_spaces, named_leaves
from pronk.nn.cores import RecurrentCore
from pronk.nn.cpu_convolution import conv2d, max_pool
from pronk.types import Array, PyTree

# Orthogonal with gain √2 preserves the scale of activations through ReLU layers. With the paper's
# variance of 1 / fan-in, Adam leaves most units of the shallow network dead on Pong.
_init = nn.initializers.orthogonal(2**0.5)


def _channels_last(x: Array) -> Array:
    """Images `[N, ...]` with their channels moved last."""
    return jnp.moveaxis(x, 1, -1) if channels_first(x.shape[1:]) else x


def _centred_conv2d(x: Array, kernel: Array, stride: int, padding: str) -> Array:
    """`conv2d` of images minus their mean brightness.

    Pixels are positive and mostly background. Without centring, all weights of a unit get gradients
    of one sign, Adam moves them together, and within some hundred updates most units of the first
    layer respond to the background only, and are dead.
    """
    brightness = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
    if jnp.issubdtype(x.dtype, jnp.integer):
        brightness /= 255.0
    shift = brightness * jnp.sum(kernel, axis=(0, 1, 2))
    return conv2d(x, kernel, stride, padding) - shift.astype(kernel.dtype)


class Shallow(nn.Module):
    """Two convolutions (figure 3, left, of the IMPALA paper): uint8 `[N, H, W, C]` to `[N, F]`."""

    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        # MinAtar-sized images are smaller than the receptive field of the paper's layers.
        small = min(x.shape[1:3]) < 36
        layers = ((16, 3, 1), (32, 3, 1)) if small else ((16, 8, 4), (32, 4, 2))
        for i, (features, size, stride) in enumerate(layers):
            shape = (size, size, x.shape[-1], features)
            kernel = self.param(f"conv{i}_kernel", _init, shape)
            bias = self.param(f"conv{i}_bias", nn.initializers.zeros, (features,))
            kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
            conv = conv2d if i else _centred_conv2d
            x = nn.relu(conv(x, kernel, stride, "VALID") + bias)
        return x.reshape(x.shape[0], -1)


class MinAtar(nn.Module):
    """One convolution, of 16 3 × 3 kernels (Young and Tian 2019): uint8 `[N, H, W, C]` to
    `[N, F]`."""

    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("conv0_kernel", _init, (3, 3, x.shape[-1], 16))
        bias = self.param("conv0_bias", nn.initializers.zeros, (16,))
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        x = nn.relu(_centred_conv2d(x, kernel, 1, "VALID") + bias)
        return x.reshape(x.shape[0], -1)


class Nature(nn.Module):
    """The three convolutions of DQN (Mnih et al. 2015): uint8 `[N, H, W, C]` to `[N, F]`.

    Raises UserError for images too small for them.
    """

    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if min(x.shape[1:3]) < 36:
            raise UserError(
                f"the images are {x.shape[1]} × {x.shape[2]} pixels, and the network's torso is"
                " nature, which expects at least 36 × 36: use `--torso auto`."
            )
        for i, (features, size, stride) in enumerate(((32, 8, 4), (64, 4, 2), (64, 3, 1))):
            kernel = self.param(f"conv{i}_kernel", _init, (size, size, x.shape[-1], features))
            bias = self.param(f"conv{i}_bias", nn.initializers.zeros, (features,))
            conv = conv2d if i else _centred_conv2d
            x = nn.relu(
                conv(x, kernel.astype(self.dtype), stride, "VALID") + bias.astype(self.dtype)
            )
        return x.reshape(x.shape[0], -1)


class Deep(nn.Module):
    """Fifteen convolutions in residual blocks (figure 3, right): `[N, H, W, C]` to `[N, F]`."""

    dtype: Any = jnp.float32  # of the computation; parameters are float32
    channels: tuple[int, ...] = (16, 32, 32)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def conv(name: str, x: Array, features: int, convolve: Any = conv2d) -> Array:
            kernel = self.param(f"{name}_kernel", _init, (3, 3, x.shape[-1], features))
            bias = self.param(f"{name}_bias", nn.initializers.zeros, (features,))
            return convolve(x, kernel.astype(self.dtype), 1, "SAME") + bias.astype(self.dtype)

        for i, features in enumerate(self.channels):
            x = conv(f"section{i}", x, features, conv2d if i else _centred_conv2d)
            x = max_pool(x)
            for j in range(2):
                y = conv(f"section{i}_block{j}_conv0", nn.relu(x), features)
                x = x + conv(f"section{i}_block{j}_conv1", nn.relu(y), features)
        return nn.relu(x).reshape(x.shape[0], -1)


_TORSOS: dict[str, Any] = {
    "auto": Shallow,
    "minatar": MinAtar,
    "shallow": Shallow,
    "nature": Nature,
    "deep": Deep,
}
# A name of `_TORSOS`, `mlp`, or what makes a module of images: (name=, dtype=) -> module.
Torso = str | Callable[..., nn.Module]


def describe(space: gym.Space, torso: Torso) -> str:
    """What an `Encoder` makes of each leaf of an observation, in words."""
    return "network input: " + "; ".join(
        f"{name} {_treatment(leaf, torso)}" for name, leaf in named_leaves(space)
    )


def _treatment(space: gym.Space, torso: Torso) -> str:
    shape, count = space.shape or (), gym.spaces.flatdim(space)
    numbers = counted(count, "number")
    if isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        return f"is one-hot, {numbers}"
    if isinstance(space, gym.spaces.MultiBinary) or len(shape) < 2:
        return f"is {numbers}"
    listed = " x ".join(map(str, shape))
    if not is_image(space):
        why = "only uint8 with three axes, of at least 5 x 5 pixels, is an image"
        return f"({listed}, {space.dtype}) is flattened to {numbers}: {why}"
    if torso == "mlp":
        return f"({listed}, {space.dtype}) is flattened to {numbers}, as by the torso mlp"
    first = channels_first(shape)
    channels, *pixels = shape if first else (shape[-1], *shape[:2])
    return (
        f"({listed}) is images of {pixels[0]} x {pixels[1]} pixels with {channels} channels,"
        f" {'first' if first else 'last'}, convolved by the torso {_torso_name(torso)}"
    )


def _torso_name(torso: Torso) -> str:
    if not isinstance(torso, str):
        return getattr(torso, "__name__", type(torso).__name__)
    return "shallow" if torso == "auto" else torso


def check_torso(space: gym.Space, torso: Torso) -> None:
    """Raise UserError if a torso of images is asked for and an observation holds none."""
    if torso in ("auto", "mlp") or any(is_image(leaf) for leaf in leaf_spaces(space)):
        return
    raise UserError(
        f"the network's torso is {_torso_name(torso)}, which convolves images, and the observations"
        f" {space} hold none; expected uint8 [height, width, channels] or [channels, height, width]"
        " of at least 5 × 5 pixels: use `--torso auto`, or wrap the environment so that it returns"
        " such images."
    )


class Encoder(nn.Module):
    """Any (nested) observation `[N, ...]` to float32 features `[N, hidden_sizes[-1]]`.

    Images are convolved, other leaves are flattened; the concatenation of all, and of `memory`
    `[N, M]` if it is given, passes through dense layers of the widths `hidden_sizes`. Raises
    UserError for a space that is not supported, and for a torso from outside the package where
    there are no images.
    """

    space: gym.Space
    torso: Torso
    hidden_sizes: tuple[int, ...]
    activation: str
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, observation: PyTree, memory: Array | None = None) -> Array:
        if not isinstance(self.torso, str):
            check_torso(self.space, self.torso)
        parts = []
        spaces = leaf_spaces(self.space)
        for i, (space, x) in enumerate(zip(spaces, jax.tree.leaves(observation), strict=True)):
            if is_image(space) and self.torso != "mlp":
                torso = _TORSOS[self.torso] if isinstance(self.torso, str) else self.torso
                parts.append(torso(name=f"torso{i}", dtype=self.dtype)(_channels_last(x)))
            else:
                parts.append(as_vector(space, x, jnp))
        if memory is not None:
            parts.append(memory)
        x = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
        activate = nn.tanh if self.activation == "tanh" else nn.relu
        for i, width in enumerate(self.hidden_sizes):
            x = activate(nn.Dense(width, kernel_init=_init, name=f"dense{i}", dtype=self.dtype)(x))
        return x.astype(jnp.float32)


def _core_inputs(features: Array, reward: Array, last_action: Array) -> Array:
    """Inputs of the recurrent core, `[T, B, F]` (Espeholt et al. 2018, figure 3)."""
    return jnp.concatenate([features, reward[..., None], last_action], axis=-1)


class PixelControl(nn.Module):
    """Action values of changing the pixels of each cell of a grid: features `[N, F]` to
    `[N, H, W, actions]`, by deconvolution and a dueling head (Jaderberg et al. 2017, section 3.1
    and figure 1)."""

    cells: tuple[int, int]  # H, W
    num_actions: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        height, width = (-(-n // 2) for n in self.cells)
        x = nn.relu(nn.Dense(height * width * 32, kernel_init=_init, name="dense")(features))
        x = x.reshape(-1, height, width, 32)
        small = nn.initializers.orthogonal(0.1)
        value, advantage = (
            nn.ConvTranspose(n, (4, 4), (2, 2), kernel_init=small, name=name)(x)
            for name, n in (("value", 1), ("advantage", self.num_actions))
        )
        q = value + advantage - jnp.mean(advantage, axis=-1, keepdims=True)
        return q[:, : self.cells[0], : self.cells[1]]


def pixel_cells(space: gym.Space, size: int) -> tuple[int, int] | None:
    """The number of cells of `size` × `size` pixels in an observation's first image, `(H, W)`; None
    without an image, or if it is smaller than a cell."""
    image = next((leaf for leaf in leaf_spaces(space) if is_image(leaf)), None)
    if image is None:
        return None
    a, b, c = image.shape or (0, 0, 0)
    height, width = (b, c) if channels_first((a, b, c)) else (a, b)
    return (height // size, width // size) if min(height, width) >= size else None


def pixel_change(space: gym.Space, observation: PyTree, size: int) -> Array:
    """The mean absolute change of each cell of an observation's first image from row to row, in
    units of 255. Rows `[T + 1, B, ...]` to float32 `[T, B, H, W]` (Jaderberg et al. 2017, section
    3.1)."""
    leaves = zip(leaf_spaces(space), jax.tree.leaves(observation), strict=True)
    x = next(x for leaf, x in leaves if is_image(leaf))
    if channels_first(x.shape[2:]):
        x = jnp.moveaxis(x, 2, -1)
    steps, batch, height, width, channels = x.shape
    height, width = height // size, width // size
    x = x[:, :, : height * size, : width * size].astype(jnp.float32) / 255.0
    change = jnp.abs(x[1:] - x[:-1]).reshape(steps - 1, batch, height, size, width, size, channels)
    return jnp.mean(change, axis=(3, 5, 6))


class Output(NamedTuple):
    """Outputs of `ActorCritic` for `[T, B]` rows."""

    policy: Array  # [T, B, P], parameters of the action distribution
    values: Array  # [T, B, K], one per task
    state: PyTree  # [B, ...], the core's state after the last row
    pixel_values: Array | None = None  # [T, B, H, W, actions], if requested


class ActorCritic(nn.Module):
    """Encoder, optional recurrent core, policy and value heads (Espeholt et al. 2018, figure 3).

    observation `[T, B, ...]`, reward `[T, B]` and last_action `[T, B, A]` (inputs of the core
    only), first `[T, B]`, state `[B, ...]` (`()` without a core). A separate value function sees
    the observation and the core's output, through which it sends no gradient. `pixel=True` also
    computes the action values of pixel control.
    """

    space: gym.Space
    num_params: int  # of the action distribution
    torso: Torso
    hidden_sizes: tuple[int, ...]
    activation: str
    core: RecurrentCore | None = None
    separate_value: bool = False  # whether the value has an encoder of its own
    encoder_dtype: Any = jnp.float32
    num_values: int = 1
    zero_values: bool = False  # initial values are zero
    pixel_control: PixelControl | None = None
    value_sizes: tuple[int, ...] | None = None  # widths of the value's own encoder, if others
    policy_gain: float = 0.01
    constant_params: int = 0  # the last of the distribution's, if they do not depend on inputs

    @nn.compact
    def __call__(
        self,
        observation: PyTree,
        reward: Array,
        last_action: Array,
        first: Array,
        state: PyTree,
        *,
        pixel: bool = False,
    ) -> Output:
        steps, batch = first.shape
        encoder: dict[str, Any] = {
            "space": self.space,
            "torso": self.torso,
            "hidden_sizes": self.hidden_sizes,
            "activation": self.activation,
            "dtype": self.encoder_dtype,
        }
        flat = jax.tree.map(lambda x: x.reshape(steps * batch, *x.shape[2:]), observation)
        features = Encoder(**encoder, name="encoder")(flat).reshape(steps, batch, -1)
        if self.core is not None:
            features, state = self.core(_core_inputs(features, reward, last_action), first, state)
        # Small policy weights make the first policy nearly uniform.
        small = nn.initializers.orthogonal(self.policy_gain)
        dependent = self.num_params - self.constant_params
        policy = nn.Dense(dependent, kernel_init=small, name="policy")(features)
        if self.constant_params:
            constant = self.param("constant", nn.initializers.zeros, (self.constant_params,))
            shape = (*policy.shape[:-1], self.constant_params)
            policy = jnp.concatenate([policy, jnp.broadcast_to(constant, shape)], axis=-1)
        pixel_values = None
        if pixel and self.pixel_control is not None:
            pixel_values = self.pixel_control(features.reshape(steps * batch, -1))
            pixel_values = pixel_values.reshape(steps, batch, *pixel_values.shape[1:])
        if self.separate_value:
            encoder["hidden_sizes"] = self.value_sizes or self.hidden_sizes
            memory = None
            if self.core is not None:
                # Read, not trained: the value function's errors must not change what the policy
                # remembers.
                memory = jax.lax.stop_gradient(features).reshape(steps * batch, -1)
            value_encoder = Encoder(**encoder, name="value_encoder")
            features = value_encoder(flat, memory).reshape(steps, batch, -1)
        kernel = nn.initializers.zeros if self.zero_values else nn.initializers.orthogonal(1.0)
        values = nn.Dense(self.num_values, kernel_init=kernel, name="value")(features)
        return Output(policy, values, state, pixel_values)


def split_value(params: PyTree) -> tuple[PyTree, PyTree]:
    """The parameters of an `ActorCritic` with `separate_value`: the policy's, and the value's."""
    named = params["params"]
    value = {k: v for k, v in named.items() if k.startswith("value")}
    return {k: v for k, v in named.items() if k not in value}, value


def join_value(policy: PyTree, value: PyTree) -> PyTree:
    """The inverse of `split_value`."""
    return {"params": policy | value}


class DuelingQ(nn.Module):
    """Encoder, optional recurrent core and a dueling head (Wang et al. 2016, eq. 9).

    Inputs are those of `ActorCritic`; condition `[T, B, C]`: further inputs, of the core, or of the
    head without one. Returns action values `[T, B, num_actions]` and the core's state after the
    last row.
    """

    space: gym.Space
    num_actions: int
    torso: Torso
    hidden_sizes: tuple[int, ...]
    head_units: int  # units of each head's hidden layer; 0 for none
    activation: str
    core: RecurrentCore | None = None
    encoder_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        observation: PyTree,
        reward: Array,
        last_action: Array,
        first: Array,
        state: PyTree,
        condition: Array | None = None,
    ) -> tuple[Array, PyTree]:
        steps, batch = first.shape
        flat = jax.tree.map(lambda x: x.reshape(steps * batch, *x.shape[2:]), observation)
        encoder = Encoder(
            self.space,
            self.torso,
            self.hidden_sizes,
            self.activation,
            self.encoder_dtype,
            name="encoder",
        )
        features = encoder(flat).reshape(steps, batch, -1)
        if condition is not None:
            features = jnp.concatenate([features, condition], axis=-1)
        if self.core is not None:
            features, state = self.core(_core_inputs(features, reward, last_action), first, state)

        def head(name: str, width: int) -> Array:
            x = features
            if self.head_units:
                x = nn.relu(nn.Dense(self.head_units, kernel_init=_init, name=f"{name}_hidden")(x))
            return nn.Dense(width, kernel_init=nn.initializers.orthogonal(0.1), name=name)(x)

        value, advantage = head("value", 1), head("advantage", self.num_actions)
        return value + advantage - jnp.mean(advantage, axis=-1, keepdims=True), state
