"""Shape checks for the heads of pure functions.

They look at static shapes only, so under `jit` they run while tracing and cost nothing at run time.
Arrays are keyword arguments, because their names are part of the message.
"""

from __future__ import annotations

import numpy as np

from pronk.types import Array


def assert_rank(rank: int, /, **arrays: Array) -> None:
    """Raise ValueError unless every array has this number of axes."""
    for name, array in arrays.items():
        if np.ndim(array) != rank:
            raise ValueError(
                f"`{name}` has shape {np.shape(array)}, expected {rank} axes, not {np.ndim(array)}."
            )


def assert_shape(expected: tuple[int, ...], why: str = "", /, **arrays: Array) -> None:
    """Raise ValueError unless every array has the shape `expected`; `why` ends the message."""
    for name, array in arrays.items():
        if np.shape(array) != tuple(expected):
            reason = f" ({why})" if why else ""
            raise ValueError(
                f"`{name}` has shape {np.shape(array)}, expected {tuple(expected)}{reason}."
            )


def assert_same_shape(**arrays: Array) -> None:
    """Raise ValueError unless all arrays have the shape of the first."""
    (name, first), *_ = arrays.items()
    assert_shape(np.shape(first), f"that of `{name}`", **arrays)


def assert_scalar_or_shape(expected: tuple[int, ...], why: str = "", /, **arrays: Array) -> None:
    """Raise ValueError unless every array is a scalar or has the shape `expected`."""
    for name, array in arrays.items():
        if np.ndim(array):
            assert_shape(expected, why, **{name: array})
