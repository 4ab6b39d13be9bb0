"""Common observation and action spaces for tasks whose own spaces differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from pronk.errors import UserError
from pronk.maths.spaces import LEAVES, as_vector, channels_first, is_pixels, mask_size
from pronk.types import Array, EnvSpec, PyTree


@dataclass(frozen=True)
class CommonSpaces:
    """The spaces of a suite, and the conversion of each task's observations and masks.

    Observations: if they differ, images of one layout are padded at the bottom and right to the
    largest, and everything else becomes a float32 vector, padded at its end; a suite with both has
    a dict of the two, in which the part that a task lacks is zero. Actions: if the numbers of
    discrete actions differ, the suite has the largest of them, and a mask.
    """

    observation_space: gym.Space
    action_space: gym.Space
    has_action_mask: bool
    kinds: tuple[str, ...]  # of each task's observation: same, image or vector

    def observation(self, k: int, space: gym.Space, value: PyTree, xp: Any) -> PyTree:
        """Convert an observation of task `k`, `[B, …]` of `space`; `xp` is numpy or jax.numpy."""
        kind = self.kinds[k]
        if kind == "same":
            return value
        if kind == "vector":
            value = as_vector(space, value, xp)
        whole = self.observation_space
        if not isinstance(whole, spaces.Dict):
            return _pad(value, whole.shape, xp)
        return {
            name: _pad(value, part.shape, xp)
            if name == kind
            else xp.zeros((value.shape[0], *(part.shape or ())), part.dtype)
            for name, part in whole.items()
        }

    def action_mask(self, space: gym.Space, mask: Array | None, batch: int, xp: Any) -> Array:
        """Convert a mask `[B, actions]` of a task's action space `space`; None allows all."""
        allowed = xp.ones((batch, mask_size(space)), bool) if mask is None else mask
        return _pad(allowed, (mask_size(self.action_space),), xp)


def common_spaces(specs: Sequence[EnvSpec]) -> CommonSpaces:
    """The common spaces of these tasks; raises UserError, naming two of them, if there are none."""
    observation_space, kinds = _common_observation(specs)
    first, *others = specs
    differing = next((s for s in others if s.action_space != first.action_space), None)
    action_space = first.action_space
    masked = any(s.has_action_mask for s in specs)
    if differing is not None:
        odd = next((s for s in specs if not isinstance(s.action_space, spaces.Discrete)), None)
        if odd is not None:
            other = differing if odd is first else first
            raise UserError(
                f"the action spaces of '{odd.name}', {odd.action_space}, and '{other.name}',"
                f" {other.action_space}, have no common space; expected equal action spaces, or"
                " Discrete ones in all tasks of a suite."
            )
        sizes = [int(s.action_space.n) for s in specs]  # type: ignore[attr-defined]
        action_space = spaces.Discrete(max(sizes))
        masked = masked or len(set(sizes)) > 1
    elif isinstance(action_space, spaces.Discrete):
        action_space = spaces.Discrete(int(action_space.n))  # actions count from 0
    return CommonSpaces(observation_space, action_space, masked, kinds)


def _common_observation(specs: Sequence[EnvSpec]) -> tuple[gym.Space, tuple[str, ...]]:
    first = specs[0]
    if all(s.observation_space == first.observation_space for s in specs):
        return first.observation_space, ("same",) * len(specs)
    kinds = tuple(_kind(s) for s in specs)
    parts: dict[str, gym.Space] = {}
    images = [s for s, kind in zip(specs, kinds, strict=True) if kind == "image"]
    if images:
        shapes = [s.observation_space.shape or (0, 0, 0) for s in images]
        for spec, shape in zip(images, shapes, strict=True):
            if channels_first(shape) != channels_first(shapes[0]):
                raise UserError(
                    f"the images of '{images[0].name}' {shapes[0]} and '{spec.name}' {shape} have"
                    " their channels at different ends; expected the same layout in all tasks of a"
                    " suite: wrap one of the environments."
                )
        largest = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
        parts["image"] = spaces.Box(0, 255, largest, np.uint8)
    sizes = [
        spaces.flatdim(s.observation_space)
        for s, kind in zip(specs, kinds, strict=True)
        if kind == "vector"
    ]
    if sizes:
        parts["vector"] = spaces.Box(-np.inf, np.inf, (max(sizes),), np.float32)
    return (next(iter(parts.values())) if len(parts) == 1 else spaces.Dict(parts)), kinds


def _kind(spec: EnvSpec) -> str:
    space = spec.observation_space
    if not isinstance(space, LEAVES):
        raise UserError(
            f"the observations {space} of '{spec.name}' have no common space with those of the"
            " other tasks; expected Box, Discrete, MultiBinary or MultiDiscrete: wrap the"
            " environment."
        )
    return "image" if is_pixels(space) else "vector"


def _pad(x: Array, shape: tuple[int, ...] | None, xp: Any) -> Array:
    """Pad `[B, …]` with zeros at the end of every axis, up to `shape`."""
    widths = [(0, 0), *((0, n - m) for n, m in zip(shape or (), x.shape[1:], strict=True))]
    return x if not any(after for _, after in widths) else xp.pad(x, widths)
