"""Networks: observation encoders, resettable recurrent cores and the actor-critic over them.

Everything is time-major `[T, B, ...]`; acting is the case T = 1. Parameters are plain dicts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from pronk.errors import UserError
from pronk.nn.cpu_convolution import conv2d, max_pool
from pronk.types import Array, PyTree

# Orthogonal with gain √2, which keeps a ReLU network's signal from fading layer by layer. With the
# paper's variance of 1 / fan-in, Adam leaves most units of the shallow network dead on Pong.
_init = nn.initializers.orthogonal(2**0.5)


def is_image(space: gym.Space) -> bool:
    """Whether a space is pixels to be convolved: uint8, `[H, W, C]` or `[C, H, W]`, and at least
    5 × 5, which two 3 × 3 kernels need."""
    if not isinstance(space, gym.spaces.Box) or space.dtype != np.uint8 or len(space.shape) != 3:
        return False
    return min(space.shape[1:] if _channels_first(space.shape) else space.shape[:2]) >= 5


def _channels_first(shape: tuple[int, ...]) -> bool:
    """Whether the channels, the smaller outer axis of an image, come first."""
    return shape[0] < shape[2]


def _check_leaf(space: gym.Space) -> None:
    kinds = (
        gym.spaces.Box,
        gym.spaces.Discrete,
        gym.spaces.MultiDiscrete,
        gym.spaces.MultiBinary,
    )
    if not isinstance(space, kinds):
        raise UserError(
            f"the observation space {space} is not one pronk can see; expected Box, Discrete,"
            " MultiDiscrete, MultiBinary, or a Dict or Tuple of them: wrap the environment."
        )


def leaf_spaces(space: gym.Space) -> list[gym.Space]:
    """The leaves of a (nested) observation space in the order `jax.tree.leaves` gives values.

    Raises UserError for a space that can't be encoded.
    """
    if isinstance(space, gym.spaces.Dict):
        return [leaf for key in sorted(space.keys()) for leaf in leaf_spaces(space[key])]
    if isinstance(space, gym.spaces.Tuple):
        return [leaf for part in space.spaces for leaf in leaf_spaces(part)]
    _check_leaf(space)
    return [space]


def _as_vector(space: gym.Space, x: Array) -> Array:
    """A leaf `[N, ...]` that is not convolved as features `[N, F]`."""
    if isinstance(space, gym.spaces.Discrete):
        return jax.nn.one_hot(x - int(space.start), int(space.n))
    if isinstance(space, gym.spaces.MultiDiscrete):
        sizes = space.nvec.reshape(-1)
        x = (x - space.start).reshape(x.shape[0], -1)
        return jnp.concatenate(
            [jax.nn.one_hot(x[:, i], int(n)) for i, n in enumerate(sizes)], axis=-1
        )
    flat = x.reshape(x.shape[0], -1).astype(jnp.float32)
    bytes_ = isinstance(space, gym.spaces.Box) and space.dtype == np.uint8
    return flat / 255.0 if bytes_ else flat  # pixels, or a machine's memory


def _channels_last(x: Array) -> Array:
    """Images `[N, ...]` with their channels moved last."""
    return jnp.moveaxis(x, 1, -1) if _channels_first(x.shape[1:]) else x


def _centred_conv2d(x: Array, kernel: Array, stride: int, padding: str) -> Array:
    """`conv2d` of images less their mean brightness.

    Pixels are positive and mostly background, so that without this all weights of a unit get
    gradients of one sign, Adam moves them together, and within some hundred updates most units of
    the first layer see nothing but the background, and are dead.
    """
    brightness = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
    if jnp.issubdtype(x.dtype, jnp.integer):
        brightness /= 255.0
    shift = brightness * jnp.sum(kernel, axis=(0, 1, 2))
    return conv2d(x, kernel, stride, padding) - shift.astype(kernel.dtype)


class Shallow(nn.Module):
    """Two convolutions (figure 3, left, of the IMPALA paper): uint8 `[N, H, W, C]` to `[N, F]`."""

    dtype: Any = jnp.float32  # of what is computed; parameters are float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        # MinAtar-sized images are smaller than what one unit of the paper's layers looks at.
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

    dtype: Any = jnp.float32  # of what is computed; parameters are float32

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

    dtype: Any = jnp.float32  # of what is computed; parameters are float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if min(x.shape[1:3]) < 36:
            raise UserError(
                f"images of {x.shape[1]} × {x.shape[2]} are too small for `--torso` nature, which"
                " needs 36 × 36: use --torso auto."
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

    dtype: Any = jnp.float32  # of what is computed; parameters are float32
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


class Encoder(nn.Module):
    """Any (nested) observation `[N, ...]` to float32 features `[N, hidden[-1]]`.

    Images are convolved, everything else is flattened; both are concatenated and passed through
    dense layers of the widths `hidden`.
    """

    space: gym.Space
    torso: str  # auto, mlp, minatar, shallow, nature, deep
    hidden_sizes: tuple[int, ...]
    activation: str
    dtype: Any = jnp.float32  # of what is computed

    @nn.compact
    def __call__(self, observation: PyTree) -> Array:
        parts = []
        spaces = leaf_spaces(self.space)
        for i, (space, x) in enumerate(zip(spaces, jax.tree.leaves(observation), strict=True)):
            if is_image(space) and self.torso != "mlp":
                torso = _TORSOS[self.torso]
                parts.append(torso(name=f"torso{i}", dtype=self.dtype)(_channels_last(x)))
            else:
                parts.append(_as_vector(space, x))
        x = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
        activate = nn.tanh if self.activation == "tanh" else nn.relu
        for i, width in enumerate(self.hidden_sizes):
            x = activate(nn.Dense(width, kernel_init=_init, name=f"dense{i}", dtype=self.dtype)(x))
        return x.astype(jnp.float32)


class ResettableCore(nn.Module):
    """An LSTM or GRU over time that starts afresh wherever `first` is set.

    inputs `[T, B, F]`, first `[T, B]`, state as made by `initial_state`; returns outputs
    `[T, B, size]` and the state after the last row.
    """

    kind: str
    size: int

    @nn.compact
    def __call__(self, inputs: Array, first: Array, state: PyTree) -> tuple[Array, PyTree]:
        if self.kind == "lstm":
            return self._lstm(inputs, first, state)
        cell = nn.GRUCell(self.size, name="gru")

        def step(cell: nn.Module, state: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
            features, first_t = x
            return cell(reset(state, first_t), features)

        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        state, outputs = scan(cell, state, (inputs, first))
        return outputs, state

    def _lstm(self, inputs: Array, first: Array, state: PyTree) -> tuple[Array, PyTree]:
        # The inputs' part of the gates needs no recurrence: one product for all time steps.
        gates = nn.Dense(4 * self.size, name="lstm_inputs")(inputs)
        recurrent = self.param(
            "lstm_recurrent", nn.initializers.orthogonal(), (self.size, 4 * self.size)
        )

        def step(state: tuple[Array, Array], x: tuple[Array, Array]) -> tuple[PyTree, Array]:
            gates_t, first_t = x
            c, h = reset(state, first_t)
            i, g, f, o = jnp.split(gates_t + h @ recurrent, 4, axis=-1)
            # A forget gate that starts open (bias 1, as in the paper's TensorFlow cell): with
            # bias 0 a memory halves at every step, and nothing is learnt over 20 of them.
            c = nn.sigmoid(f + 1.0) * c + nn.sigmoid(i) * jnp.tanh(g)
            h = nn.sigmoid(o) * jnp.tanh(c)
            return (c, h), h

        state, outputs = jax.lax.scan(step, state, (gates, first))
        return outputs, state


def initial_state(kind: str, size: int, batch: int) -> PyTree:
    """The zero state of a core of this kind: LSTM a pair, GRU one array, else `()`. `[B, size]`."""
    zeros = jnp.zeros((batch, size), jnp.float32)
    return {"none": (), "lstm": (zeros, zeros), "gru": zeros}[kind]


def reset(state: PyTree, first: Array) -> PyTree:
    """Zeros in the slots of `state` `[B, ...]` where `first` `[B]` begins an episode."""

    def leaf(x: Array) -> Array:
        mask = first.reshape(first.shape + (1,) * (x.ndim - first.ndim))
        return jnp.where(mask, jnp.zeros_like(x), x)

    return jax.tree.map(leaf, state)


def _remembered(features: Array, reward: Array, last_action: Array) -> Array:
    """What a core sees at each row, `[T, B, F]`."""
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
    """How many cells of `size` × `size` the first image of an observation has, `(H, W)`; None where
    there is no image, or none so large."""
    image = next((leaf for leaf in leaf_spaces(space) if is_image(leaf)), None)
    if image is None:
        return None
    a, b, c = image.shape or (0, 0, 0)
    height, width = (b, c) if _channels_first((a, b, c)) else (a, b)
    return (height // size, width // size) if min(height, width) >= size else None


def pixel_change(space: gym.Space, observation: PyTree, size: int) -> Array:
    """How much each cell of an observation's first image changes from row to row: the mean over its
    pixels and channels of what 255 is 1 of. Rows `[T + 1, B, ...]` to float32 `[T, B, H, W]`."""
    leaves = zip(leaf_spaces(space), jax.tree.leaves(observation), strict=True)
    x = next(x for leaf, x in leaves if is_image(leaf))
    if _channels_first(x.shape[2:]):
        x = jnp.moveaxis(x, 2, -1)
    steps, batch, height, width, channels = x.shape
    height, width = height // size, width // size
    x = x[:, :, : height * size, : width * size].astype(jnp.float32) / 255.0
    change = jnp.abs(x[1:] - x[:-1]).reshape(steps - 1, batch, height, size, width, size, channels)
    return jnp.mean(change, axis=(3, 5, 6))


class Output(NamedTuple):
    """What `ActorCritic` makes of `[T, B]` rows."""

    policy: Array  # [T, B, P], parameters of the action distribution
    values: Array  # [T, B, K], one for each task
    state: PyTree  # [B, ...], of the core after the last row
    pixel_values: Array | None = None  # [T, B, H, W, actions], where asked for


class ActorCritic(nn.Module):
    """Encoder, optional recurrent core, policy and value heads.

    observation `[T, B, ...]`, reward `[T, B]` and last_action `[T, B, A]` (inputs of the core
    only), first `[T, B]`, state `[B, ...]`. Values of pixel control are computed where `pixel`.
    """

    space: gym.Space
    num_params: int
    torso: str
    hidden_sizes: tuple[int, ...]
    activation: str
    core: str
    recurrent_units: int
    separate_value: bool
    encoder_dtype: Any = jnp.float32
    num_values: int = 1
    zero_values: bool = False  # at first
    pixel_control: PixelControl | None = None

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
        if self.core != "none":
            core = ResettableCore(self.core, self.recurrent_units, name="core")
            features, state = core(_remembered(features, reward, last_action), first, state)
        # Small policy weights make the first policy nearly uniform.
        small = nn.initializers.orthogonal(0.01)
        policy = nn.Dense(self.num_params, kernel_init=small, name="policy")(features)
        pixel_values = None
        if pixel and self.pixel_control is not None:
            pixel_values = self.pixel_control(features.reshape(steps * batch, -1))
            pixel_values = pixel_values.reshape(steps, batch, *pixel_values.shape[1:])
        if self.separate_value:
            features = Encoder(**encoder, name="value_encoder")(flat).reshape(steps, batch, -1)
        kernel = nn.initializers.zeros if self.zero_values else nn.initializers.orthogonal(1.0)
        values = nn.Dense(self.num_values, kernel_init=kernel, name="value")(features)
        return Output(policy, values, state, pixel_values)


class DuelingQ(nn.Module):
    """Encoder, optional recurrent core and a dueling head (Wang et al. 2016, eq. 9).

    Inputs as those of `ActorCritic`; returns action values `[T, B, num_actions]` and the state
    after the last row.
    """

    space: gym.Space
    num_actions: int
    torso: str
    hidden_sizes: tuple[int, ...]
    head_units: int  # units of each head's hidden layer; 0 for none
    activation: str
    core: str
    recurrent_units: int
    encoder_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, observation: PyTree, reward: Array, last_action: Array, first: Array, state: PyTree
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
        if self.core != "none":
            core = ResettableCore(self.core, self.recurrent_units, name="core")
            features, state = core(_remembered(features, reward, last_action), first, state)

        def head(name: str, width: int) -> Array:
            x = features
            if self.head_units:
                x = nn.relu(nn.Dense(self.head_units, kernel_init=_init, name=f"{name}_hidden")(x))
            return nn.Dense(width, kernel_init=nn.initializers.orthogonal(0.1), name=name)(x)

        value, advantage = head("value", 1), head("advantage", self.num_actions)
        return value + advantage - jnp.mean(advantage, axis=-1, keepdims=True), state
