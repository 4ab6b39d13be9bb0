"""Gymnasium spaces: their leaves, what an agent gets for their elements, and what it gives.

The leaves of a `Dict` are in the order of its sorted keys, as in `jax.tree.leaves`. This module
does not import jax, so that worker processes start quickly; `xp` is `numpy` or `jax.numpy`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from pronk.errors import Diverged, UserError
from pronk.types import Array, PyTree

LEAVES = (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)
MASK = "action_mask"  # its name in an `info` and in a dict of observations
UNBOUNDED = 1e18  # larger bounds of actions count as none: float32 cannot hold their squares
_INT32 = np.iinfo(np.int32)  # JAX's integers have 32 bits
_LARGEST = float(np.finfo(np.float32).max)
_SMALL_SQUARES = 1e30  # numbers whose squares sum to less are in the range of float32


def leaf_spaces(space: gym.Space) -> list[gym.Space]:
    """The leaves of a (nested) observation space.

    Raises UserError for a space that is not supported.
    """
    return [leaf for _, leaf in named_leaves(space)]


def named_leaves(space: gym.Space, name: str = "observation") -> list[tuple[str, gym.Space]]:
    """The leaves of a (nested) observation space, each with its place, such as
    `observation['camera'][0]`; raises as `leaf_spaces`."""
    if isinstance(space, spaces.Dict):
        return [
            leaf for key in _keys(space) for leaf in named_leaves(space[key], f"{name}[{key!r}]")
        ]
    if isinstance(space, spaces.Tuple):
        parts = enumerate(space.spaces)
        return [leaf for i, part in parts for leaf in named_leaves(part, f"{name}[{i}]")]
    if isinstance(space, LEAVES):
        return [(name, space)]
    raise UserError(
        f"the observation space {space} is not supported; expected Box, Discrete, MultiBinary,"
        " MultiDiscrete, or a Dict or Tuple of these: wrap the environment."
    )


def _keys(space: spaces.Dict) -> list[Any]:
    """The sorted keys; raises UserError where they have no order."""
    try:
        return sorted(space.keys())
    except TypeError:
        listed = ", ".join(repr(key) for key in space)
        raise UserError(
            f"the observation space {space} has keys of several types ({listed}), which have no"
            " order; expected strings: wrap the environment."
        ) from None


def leaf_values(space: gym.Space, value: Any, name: str = "observation") -> list[Any]:
    """The leaves of an element of `space`, in the order of `leaf_spaces`.

    Keys that the space lacks are left out. Raises ValueError for another structure, naming its
    place.
    """
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping) or not all(key in value for key in space):
            is_dict = isinstance(value, Mapping)
            found = f"a dict of {list(value)}" if is_dict else f"a {type(value).__name__}"
            raise ValueError(f"{name} is {found}, expected a dict of {_keys(space)}")
        return [
            leaf
            for key in sorted(space.keys())
            for leaf in leaf_values(space[key], value[key], f"{name}[{key!r}]")
        ]
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, Sequence | np.ndarray) or len(value) != len(space.spaces):
            length = f" of {len(value)}" if isinstance(value, Sequence | np.ndarray) else ""
            found = f"a {type(value).__name__}{length}"
            raise ValueError(f"{name} is {found}, expected a tuple of {len(space.spaces)}")
        parts = enumerate(zip(space.spaces, value, strict=True))
        return [leaf for i, (s, v) in parts for leaf in leaf_values(s, v, f"{name}[{i}]")]
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


def agent_space(space: gym.Space) -> gym.Space:
    """An observation space as agents have it: numbers of 64 bits, which JAX would cut, are float32.

    Raises UserError for a space that is not supported or has no numbers, and for discrete elements
    beyond int32.
    """
    if not sum(math.prod(leaf.shape or ()) for leaf in leaf_spaces(space)):
        raise UserError(
            f"the observation space {space} has no numbers; expected at least one: wrap the"
            " environment, for example with `gymnasium.wrappers.TimeAwareObservation`."
        )

    def converted(space: gym.Space) -> gym.Space:
        if isinstance(space, spaces.Dict):
            return spaces.Dict({key: converted(s) for key, s in space.items()})
        if isinstance(space, spaces.Tuple):
            return spaces.Tuple([converted(s) for s in space])
        if not isinstance(space, spaces.Box):
            _check_elements(space)
            return space
        if np.dtype(space.dtype).itemsize < 8:
            return space
        with np.errstate(over="ignore"):  # a bound beyond float32 is infinite
            low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        return spaces.Box(low, high, space.shape, np.float32)

    return converted(space)


def _check_elements(space: gym.Space) -> None:
    lowest = np.min(getattr(space, "start", 0))
    highest = np.max(_stop(space)) - 1
    if lowest < _INT32.min or highest > _INT32.max:
        raise UserError(
            f"the observation space {space} has elements from {lowest} to {highest}; expected"
            f" {_INT32.min} to {_INT32.max}: wrap the environment."
        )


def _stop(space: Any) -> Any:
    """The least integer above the elements of a discrete space, for each of its components."""
    if isinstance(space, spaces.Discrete):
        return space.start + space.n
    return space.start + space.nvec if isinstance(space, spaces.MultiDiscrete) else 2


class Observations:
    """Checks and converts an environment's observations; every one passes through it.

    space: the agent's, of `agent_space`.
    """

    def __init__(self, space: gym.Space):
        self._space, self._named = space, named_leaves(space)
        self._nested = isinstance(space, spaces.Dict | spaces.Tuple)

    def leaves(self, observation: Any) -> list[np.ndarray]:
        """The leaves of one observation in the dtypes of the space.

        Raises ValueError, naming the leaf, for another structure or shape, for what is no number,
        for NaN and infinity, for numbers that the dtype cannot hold, and for integers that are no
        elements of a discrete space. Numbers outside a Box's bounds pass: see `outside`.
        """
        if not self._nested:
            ((name, leaf),) = self._named
            return [_element(leaf, observation, name)]
        values = leaf_values(self._space, observation)
        return [
            _element(leaf, value, name)
            for (name, leaf), value in zip(self._named, values, strict=True)
        ]

    def outside(self, leaves: Sequence[np.ndarray]) -> str:
        """The first number of `leaves` `[B, ...]` that is outside the bounds of its Box, in words;
        else an empty string."""
        for (name, leaf), x in zip(self._named, leaves, strict=True):
            if not isinstance(leaf, spaces.Box) or leaf.dtype in (np.uint8, np.bool_):
                continue
            wrong = (x < leaf.low) | (x > leaf.high)
            if wrong.any():
                return f"{name} has the value {x[wrong][0]:g}, outside the bounds of {leaf}"
        return ""


def _element(space: gym.Space, value: Any, name: str) -> np.ndarray:
    """`value` in the dtype of the leaf `space`; raises ValueError if it does not fit."""
    if _plainly_fits(space, value):
        return value if value.dtype == space.dtype else value.astype(space.dtype)
    try:
        array = np.asarray(value)
    except ValueError:  # a list of lists of several lengths
        raise ValueError(f"{name} is not an array; expected shape {space.shape}") from None
    if array.shape != space.shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {space.shape}")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} has dtype {array.dtype}, expected {space.dtype}")
    cast = array
    if array.dtype != space.dtype:
        with np.errstate(over="ignore", invalid="ignore"):  # the checks below have better messages
            cast = array.astype(space.dtype)
    if cast.dtype.kind == "f":
        if not np.isfinite(cast).all():
            if np.isfinite(array).all():
                largest = array.flat[np.abs(array).argmax()]
                raise ValueError(f"{name} has the value {largest:g}, {beyond(cast.dtype)}")
            raise ValueError(f"{name} is not finite (NaN or infinity)")
        return cast
    if cast is not array and not np.array_equal(cast, array):
        raise ValueError(f"{name} of dtype {array.dtype} does not fit {space.dtype}")
    if not isinstance(space, spaces.Box):
        start = getattr(space, "start", 0)
        if not ((cast >= start) & (cast < _stop(space))).all():
            raise ValueError(f"{name} is {value!r}, which is not an element of {space}")
    return cast


def _plainly_fits(space: gym.Space, value: Any) -> bool:
    """Whether one product shows that the array `value` has the shape of the leaf `space` and
    numbers that its dtype can hold; False decides nothing."""
    if type(value) is not np.ndarray or value.dtype.char not in "fd" or value.shape != space.shape:
        return False
    if space.dtype is None or space.dtype.char not in "fd":
        return False
    flat = value.reshape(-1).astype(np.float64, copy=False)  # squares of float32 fit
    return bool(flat.dot(flat) < _SMALL_SQUARES)  # False for NaN


def beyond(dtype: Any) -> str:
    """In words, that a number is too large for a floating dtype."""
    return f"which is beyond the range of {np.dtype(dtype)} (±{float(np.finfo(dtype).max):.3g})"


def choices(space: gym.Space) -> tuple[int, ...]:
    """The number of alternatives of each choice that an action consists of; () for a Box."""
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(int(n) for n in space.nvec.reshape(-1))
    if isinstance(space, spaces.MultiBinary):
        return (2,) * int(np.prod(space.shape))
    return ()


def mask_size(space: gym.Space) -> int:
    """The length of an action mask: the alternatives of all choices side by side; 0 for a Box."""
    return sum(choices(space))


def has_mask(observation_space: gym.Space, action_space: gym.Space, name: str) -> bool:
    """Whether observations hold an action mask: a dict's `action_mask`.

    Raises UserError, naming the environment, where there is one that does not fit the actions.
    """
    if not isinstance(observation_space, spaces.Dict) or MASK not in observation_space.spaces:
        return False
    size, leaf = mask_size(action_space), observation_space[MASK]
    if not size or leaf.shape != (size,):
        raise UserError(
            f"the observations of `env` '{name}' have an '{MASK}', {leaf}, and its actions are"
            f" {action_space}; expected {_mask_shape(action_space)}: wrap the environment, or give"
            " that part of its observations another name."
        )
    return True


def _mask_shape(space: gym.Space) -> str:
    size, count = mask_size(space), len(choices(space))
    if not size:
        return "no mask, because masks are for Discrete, MultiDiscrete and MultiBinary actions"
    each = "" if count == 1 else f" for each of the {count} choices, side by side"
    return f"{size} booleans, at least one of them true{each}"


def as_mask(space: gym.Space, given: Any) -> np.ndarray:
    """An action mask as booleans `[mask_size]`; that of a MultiDiscrete space may also be given as
    one array per choice.

    Raises ValueError for another shape, other values than 0 and 1, and a choice that allows
    nothing.
    """
    mask = given
    if isinstance(given, tuple | list) and any(np.ndim(part) for part in given):
        mask = np.concatenate([np.ravel(part) for part in given])
    mask = np.asarray(mask)
    fits = mask.shape == (mask_size(space),) and mask.dtype.kind in "biuf" and mask.size
    if not fits or not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"the action mask is {given!r}, expected {_mask_shape(space)}")
    mask = mask.astype(np.bool_)
    begins = np.cumsum((0, *choices(space)[:-1]))
    if not np.logical_or.reduceat(mask, begins).all():
        raise ValueError(f"the action mask is {given!r}, expected {_mask_shape(space)}")
    return mask


def random_actions(
    space: gym.Space, num: int, rng: np.random.Generator, mask: Array | None = None
) -> np.ndarray:
    """Random actions `[num, ...]`, counted from 0, of those that `mask` `[num, mask_size]` allows;
    actions of a Box are drawn from its bounds, or normally where there are none."""
    if isinstance(space, spaces.Box):
        low, high = (np.asarray(x, np.float64) for x in (space.low, space.high))
        bounded = (np.abs(low) < UNBOUNDED) & (np.abs(high) < UNBOUNDED)
        shape = (num, *space.shape)
        between = rng.uniform(np.where(bounded, low, 0.0), np.where(bounded, high, 1.0), shape)
        drawn = np.where(bounded, between, rng.normal(size=shape))
        return np.clip(drawn, low, high).astype(space.dtype)
    scores = rng.random((num, mask_size(space)))
    if mask is not None:
        scores = np.where(mask, scores, -1.0)
    begins = np.cumsum(choices(space)[:-1])
    drawn = [part.argmax(axis=1) for part in np.split(scores, begins, axis=1)]
    return np.stack(drawn, axis=1).reshape(num, *(space.shape or ()))


def as_reward(value: Any) -> float:
    """A reward as a number that float32 can hold; raises ValueError where it is none."""
    try:
        is_number = isinstance(value, float) or not (
            isinstance(value, str | bytes) or np.ndim(value)
        )
        number = float(value) if is_number else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"the reward is {value!r}, expected a finite number")
    if abs(number) > _LARGEST:
        raise ValueError(f"the reward is {value!r}, {beyond(np.float32)}")
    return number


def check_actions(space: gym.Space, actions: np.ndarray) -> None:
    """Raise UserError for an agent's actions `[B, ...]`, counted from 0, that stand for none of
    `space`."""
    if isinstance(space, spaces.Box):
        if not np.isfinite(actions).all():
            raise Diverged(
                "an action of the agent is not finite (NaN or infinity), because its network"
                " overflows. Look for huge observations, or lower the learning rate."
            )
        return
    counts = _stop(space) - getattr(space, "start", 0)
    if ((actions < 0) | (actions >= counts)).any():
        raise UserError(
            f"the agent's actions are {actions.tolist()}; expected integers from 0 to below"
            f" {counts}, for the action space {space}."
        )


def env_action(space: gym.Space, action: Array) -> Any:
    """An agent's action, counted from 0, as the element of `space` that its environment executes:
    in its dtype and within its bounds."""
    if isinstance(space, spaces.Discrete):
        return int(action) + int(space.start)
    # A fresh array: the environment may keep it.
    if isinstance(space, spaces.Box):
        action = np.asarray(action, space.dtype)
        return np.asarray(np.minimum(np.maximum(action, space.low), space.high))
    return np.asarray(action + getattr(space, "start", 0), space.dtype)


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
    """Whether an image's channels come first: they are the axis beside the two that are equal, or
    else the smaller of the outer axes."""
    first, middle, last = shape
    if (first == middle) != (middle == last):
        return middle == last
    return first < last


def as_vector(space: gym.Space, x: Array, xp: Any) -> Array:
    """Elements `[B, ...]` of a leaf space as float32 features `[B, spaces.flatdim(space)]`.

    Integers of Discrete and MultiDiscrete become one-hot vectors, bytes are scaled to 0 to 1, other
    numbers are kept.
    """
    x = xp.asarray(x)
    flat = x.reshape(x.shape[0], -1)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        starts = np.reshape(space.start, -1)
        return one_hots(flat - starts.astype(x.dtype), choices(space), xp)
    flat = flat.astype(np.float32)
    is_bytes = isinstance(space, spaces.Box) and space.dtype == np.uint8
    return flat / 255.0 if is_bytes else flat


def one_hots(x: Array, counts: Sequence[int], xp: Any) -> Array:
    """Integers `[..., k]`, of which the i-th counts to `counts[i]`, as one-hot vectors side by
    side, float32 `[..., sum(counts)]`; zeros for an integer out of range."""
    component = np.repeat(np.arange(len(counts)), counts)
    value = np.concatenate([np.arange(n, dtype=np.int32) for n in counts])
    repeated = x if len(counts) == 1 else x[..., component]
    return (repeated == value).astype(np.float32)
