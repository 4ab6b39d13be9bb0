"""Welch's test of whether two groups of runs have the same mean score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_TINY = 1e-300
_TERMS = 10_000


@dataclass(frozen=True)
class Welch:
    """The result of Welch's t-test; NaN where it cannot be computed."""

    statistic: float
    freedom: float  # degrees of freedom, by Welch and Satterthwaite
    p_value: float  # two-sided


def welch(x: Any, y: Any) -> Welch:
    """Welch's t-test of two samples `[n]` and `[m]` (Welch 1947).

    NaN for a sample of one, and where neither sample varies.
    """
    first, second = np.asarray(x, float), np.asarray(y, float)
    if min(len(first), len(second)) < 2:
        return Welch(math.nan, math.nan, math.nan)
    of_first, of_second = (float(one.var(ddof=1)) / len(one) for one in (first, second))
    variance = of_first + of_second
    if variance == 0:
        return Welch(math.nan, math.nan, math.nan)
    statistic = float(first.mean() - second.mean()) / math.sqrt(variance)
    # In parts of the variance, whose squares do not underflow.
    part = of_first / variance
    freedom = 1 / (part**2 / (len(first) - 1) + (1 - part) ** 2 / (len(second) - 1))
    return Welch(statistic, freedom, two_sided(statistic, freedom))


def among_best(groups: Sequence[Any], level: float = 0.05) -> list[bool]:
    """Which of the samples `[n]` have the largest mean, or one that does not differ from it
    significantly: p ≥ `level` in `welch`. Duan et al. 2016, table 1, prints these in bold.
    """
    means = [float(np.mean(one)) for one in groups]
    best = int(np.argmax(means))
    return [
        mean == means[best] or welch(one, groups[best]).p_value >= level  # False for NaN
        for mean, one in zip(means, groups, strict=True)
    ]


def two_sided(statistic: float, freedom: float) -> float:
    """P(|T| ≥ |statistic|) of Student's t distribution with `freedom` degrees of freedom."""
    scaled = statistic / math.sqrt(freedom)
    return incomplete_beta(freedom / 2, 0.5, 1 / (1 + scaled * scaled))


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), for a, b > 0.

    By its continued fraction (NIST Digital Library of Mathematical Functions, 8.17.22), which
    converges fast below x = (a + 1) / (a + b + 2), and above that by I_x(a, b) = 1 − I_{1−x}(b, a).
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    factor = math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta) / a
    # 1 / (1 + d_1 / (1 + d_2 / (1 + …))) by Lentz's algorithm.
    value, c, d = _TINY, _TINY, 0.0
    for term in range(_TERMS):
        m = term // 2
        if term == 0:
            numerator = 1.0
        elif term % 2:
            numerator = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            numerator = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / (1 + numerator * d or _TINY)
        c = 1 + numerator / c
        value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return factor * value
