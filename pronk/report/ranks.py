"""Ranks of algorithms, and how much two rankings agree."""

from __future__ import annotations

from typing import Any

import numpy as np


def ranks(values: Any) -> np.ndarray:
    """The ranks `[..., n]` of values `[..., n]`: 1 for the largest; equal ones share their mean
    rank."""
    x = np.asarray(values, float)
    above = (x[..., None, :] > x[..., :, None]).sum(-1)
    equal = (x[..., None, :] == x[..., :, None]).sum(-1)
    return 1 + above + (equal - 1) / 2


def mean_ranks(means: Any) -> np.ndarray:
    """The mean over tasks `[..., algorithms]` of the ranks of mean scores `[..., tasks,
    algorithms]`."""
    return ranks(means).mean(-2)


def kendall_tau(x: Any, y: Any) -> np.ndarray:
    """Kendall's τ `[...]` of two rankings `[..., n]`, corrected for ties (τ_b; Kendall 1945).

    1 if both order all pairs alike, −1 if oppositely; NaN where one ranks all the same.
    """
    first, second = (np.asarray(one, float) for one in (x, y))
    a, b = (np.sign(one[..., :, None] - one[..., None, :]) for one in (first, second))
    pairs = np.sqrt(np.abs(a).sum((-2, -1)) * np.abs(b).sum((-2, -1)))
    agree = (a * b).sum((-2, -1))
    return np.divide(agree, pairs, out=np.full(np.shape(agree), np.nan), where=pairs > 0)
