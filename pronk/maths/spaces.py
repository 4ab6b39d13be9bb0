"""Gymnasium spaces: the leaves of nested ones, and leaves as vectors.

The leaves of a `Dict` are in the order of its sorted keys, as in `jax.tree.leaves`. This module
does not import jax, so that worker processes start quickly; `xp` is `numpy` or `jax.numpy`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from pronk.errors import UserError
from pronk.types import Array, PyTree

LEAVES = (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)


def leaf_spaces(space: gym.Space) -> list[gym.Space]:
    """The leaves of a (nested) observation space.

    Raises UserError for a space that is not supported.
    """
    if isinstance(space, spaces.Dict):
        return [leaf for key in sorted(space.keys()) for leaf in leaf_spaces(space[key])]
    if isinstance(space, spaces.Tuple):
        return [leaf for part in space.spaces for leaf in leaf_spaces(part)]
    if isinstance(space, LEAVES):
        return [space]
    raise UserError(
        f"the observation space {space} is not supported; expected Box, Discrete, MultiBinary,"
        " MultiDiscrete, or a Dict or Tuple of these: wrap the environment."
    )


def leaf_values(space: gym.Space, value: Any) -> list[Any]:
    """The leaves of an element of `space`, in the order of `leaf_spaces`."""
    if isinstance(space, spaces.Dict):
        return [
            leaf for key in sorted(space.keys()) for leaf in leaf_values(space[key], value[key])
        ]
    if isinstance(space, spaces.Tuple):
        return [leaf for s, v in zip(space, value, strict=True) for leaf in leaf_values(s, v)]
    return [value]


def from_leaves(space: gym.Space, leaves: Sequence[Array]) -> PyTree:
    """The inverse of `leaf_values`: leaves `[...]` nested as `space` is."""

    def nested(space: gym.Space, leaves: Iterator[Array]) -> PyTree:
        if isinstance(space, spaces.Dict):
            return {key: nested(space[key], leaves) for key in sorted(space.keys())}
        if isinstance(space, spaces.Tuple):
            return tuple(nested(s, leaves) for s in space)
        return next(leaves)

    return nested(space, iter(leaves))


def as_float32(space: gym.Space) -> gym.Space:
    """`space` with float32 instead of float64 boxes."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: as_float32(s) for key, s in space.items()})
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([as_float32(s) for s in space])
    if isinstance(space, spaces.Box) and space.dtype == np.float64:
        with np.errstate(over="ignore"):  # a bound beyond float32 is infinite
            low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        return spaces.Box(low, high, space.shape, np.float32)
    return space


def is_image(space: gym.Space) -> bool:
    """Whether a space holds images for a convolution: uint8, `[H, W, C]` or `[C, H, W]`, and at
    least 5 × 5, which two 3 × 3 kernels need."""
    if not is_pixels(space):
        return False
    shape = space.shape or ()
    return min(shape[1:] if channels_first(shape) else shape[:2]) >= 5


def is_pixels(space: gym.Space) -> bool:
    """Whether a space is a uint8 box with three axes."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether an image's channels, the smaller of its outer axes, come first."""
    return shape[0] < shape[2]


def as_vector(space: gym.Space, x: Array, xp: Any) -> Array:
    """Elements `[B, ...]` of a leaf space as float32 features `[B, spaces.flatdim(space)]`.

    Integers of Discrete and MultiDiscrete become one-hot vectors, bytes are scaled to 0 to 1, other
    numbers are kept.
    """
    x = xp.asarray(x)
    flat = x.reshape(x.shape[0], -1)
    if isinstance(space, spaces.Discrete):
        return _one_hot(flat[:, 0], int(space.start), int(space.n), xp)
    if isinstance(space, spaces.MultiDiscrete):
        bounds = zip(space.start.reshape(-1), space.nvec.reshape(-1), strict=True)
        parts = [
            _one_hot(flat[:, i], int(start), int(n), xp) for i, (start, n) in enumerate(bounds)
        ]
        return xp.concatenate(parts, axis=-1)
    flat = flat.astype(np.float32)
    is_bytes = isinstance(space, spaces.Box) and space.dtype == np.uint8
    return flat / 255.0 if is_bytes else flat


def _one_hot(x: Array, start: int, n: int, xp: Any) -> Array:
    return (x[:, None] == start + xp.arange(n)).astype(np.float32)
