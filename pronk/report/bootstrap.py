"""Intervals by the stratified bootstrap: runs are drawn with replacement within each task.

The percentile method of Agarwal et al. 2021, section 4.1. Other than in rliable 1.2.0, the numbers
of runs may differ between tasks, and the seed decides what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pronk.report.statistics import Scores, arrays

REPEATS = 50_000
LEVEL = 0.95
_CHUNK = 2**19  # numbers drawn at a time, so that little memory is needed


def distribution(
    statistic: Callable[..., Any], *groups: Scores, repeats: int = REPEATS, seed: Any = 0
) -> np.ndarray:
    """`statistic(*groups)` of resampled groups, `[repeats, ...]`.

    The scores of a task are an array `[runs, ...]`. The function receives, for each group, arrays
    `[repeats, runs, ...]`, one per task, and returns an array `[repeats, ...]`. seed: whatever
    `numpy.random.SeedSequence` takes.
    """
    tasks = [arrays(group) for group in groups]
    drawn = sum(one.size for group in tasks for one in group)
    chunk = max(1, _CHUNK // max(drawn, 1))
    generators = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(len(groups))]
    parts = []
    for size in _sizes(repeats, chunk):
        resampled = [
            _resample(group, size, generator)
            for group, generator in zip(tasks, generators, strict=True)
        ]
        parts.append(np.asarray(statistic(*resampled), float))
    return np.concatenate(parts)


def interval(
    statistic: Callable[..., Any],
    *groups: Scores,
    repeats: int = REPEATS,
    seed: Any = 0,
    level: float = LEVEL,
) -> np.ndarray:
    """The ends `[2, ...]` of the percentile interval of `statistic(*groups)`; see `distribution`.

    NaN where no task has more than one run, of which nothing can be drawn but itself.
    """
    if all(len(one) < 2 for group in groups for one in arrays(group)):
        one = distribution(statistic, *groups, repeats=1, seed=seed)
        return np.full((2, *one.shape[1:]), math.nan)
    found = distribution(statistic, *groups, repeats=repeats, seed=seed)
    return np.quantile(found, [0.5 - level / 2, 0.5 + level / 2], axis=0)


def _sizes(total: int, chunk: int) -> Iterator[int]:
    for start in range(0, total, chunk):
        yield min(chunk, total - start)


def _resample(
    tasks: Sequence[np.ndarray], repeats: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """Arrays `[repeats, runs, ...]`: for each task as many of its runs as it has."""
    return [
        one[generator.integers(0, len(one), (repeats, len(one)), dtype=np.int32)] for one in tasks
    ]
