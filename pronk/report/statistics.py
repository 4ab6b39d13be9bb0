"""Statistics of scores, as pure functions of NumPy arrays.

`scores` is a mapping from tasks to the scores of each task's runs, or a sequence of these, in the
same order: arrays `[..., runs]`, whose leading axes are the same in all tasks. Tasks may have
different numbers of runs; every task has the same weight, and so has every run of a task. A result
is an array `[...]`. With as many runs in each task, the results are those of rliable (Agarwal et
al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Scores = Mapping[str, Any] | Sequence[Any]


@dataclass(frozen=True)
class Summary:
    """Statistics of the scores of a task's runs."""

    mean: float
    deviation: float  # standard deviation with n − 1; NaN of one run
    count: int
    minimum: float
    maximum: float


def summary(scores: Any) -> Summary:
    """Statistics of scores `[runs]`."""
    values = np.asarray(scores, float)
    deviation = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return Summary(
        float(values.mean()), deviation, len(values), float(values.min()), float(values.max())
    )


def normalised(
    scores: Mapping[str, Any], references: Mapping[str, tuple[float, float]]
) -> dict[str, np.ndarray]:
    """(score − random) / (one − random) of each task, by its reference `(random, one)`."""
    return {
        task: (np.asarray(values, float) - references[task][0])
        / (references[task][1] - references[task][0])
        for task, values in scores.items()
    }


def arrays(scores: Scores) -> list[np.ndarray]:
    """The scores of each task, `[..., runs]`."""
    values = scores.values() if isinstance(scores, Mapping) else scores
    return [np.asarray(one, float) for one in values]


def task_means(scores: Scores) -> np.ndarray:
    """The mean score of each task, `[..., tasks]`."""
    return np.stack([one.mean(-1) for one in arrays(scores)], -1)


def mean(scores: Scores) -> np.ndarray:
    """The mean over tasks of their mean scores."""
    return task_means(scores).mean(-1)


def median(scores: Scores) -> np.ndarray:
    """The median over tasks of their mean scores."""
    return np.median(task_means(scores), -1)


def capped_mean(scores: Scores) -> np.ndarray:
    """The mean over tasks of their mean scores, each clipped to [0, 1].

    As in table 1 of Badia et al. 2020 (Agent57). `pronk.maths.scores.aggregates` has the mean
    without the lower bound, of Espeholt et al. 2018, section 5.3.
    """
    return np.clip(task_means(scores), 0.0, 1.0).mean(-1)


def tasks_above(scores: Scores, threshold: float = 1.0) -> np.ndarray:
    """How many tasks have a mean score of at least `threshold`; 1 is human play in Atari tables."""
    return (task_means(scores) >= threshold).sum(-1)


def percentile(scores: Scores, percent: float) -> np.ndarray:
    """The percentile over tasks of their mean scores, with linear interpolation."""
    return np.percentile(task_means(scores), percent, axis=-1)


def iqm(scores: Scores) -> np.ndarray:
    """The interquartile mean: the mean of all runs but the lowest and the highest quarter.

    With N runs in all, Q(u) the quantile function of their scores, in which all tasks weigh the
    same, and t = ⌊N / 4⌋ / N: ∫ Q(u) du / (1 − 2t) from t to 1 − t. With as many runs in each task
    that is the mean of the runs but the ⌊N / 4⌋ lowest and highest (Agarwal et al. 2021, section
    4.3).
    """
    tasks = arrays(scores)
    values = np.concatenate(tasks, -1)
    count = values.shape[-1]
    cut = count // 4
    if len({one.shape[-1] for one in tasks}) == 1:
        return np.sort(values, -1)[..., cut : count - cut].mean(-1)
    weights = np.concatenate(
        [np.full(one.shape[-1], 1 / (len(tasks) * one.shape[-1])) for one in tasks]
    )
    order = np.argsort(values, -1)
    ends = np.cumsum(weights[order], -1)
    first, last = cut / count, 1 - cut / count
    kept = np.minimum(ends, last) - np.maximum(ends - weights[order], first)
    kept = np.maximum(kept, 0.0)
    return (kept * np.take_along_axis(values, order, -1)).sum(-1) / kept.sum(-1)


def optimality_gap(scores: Scores, target: float = 1.0) -> np.ndarray:
    """How far runs are below the target on average: the mean of max(target − score, 0).

    Agarwal et al. 2021, section 4.3, with γ = `target`.
    """
    short = [np.maximum(target - one, 0.0).mean(-1) for one in arrays(scores)]
    return np.stack(short, -1).mean(-1)


def probabilities_of_improvement(x: Scores, y: Scores) -> np.ndarray:
    """P(X > Y) + ½ P(X = Y) in each task, for a run X of `x` and a run Y of `y`, `[..., tasks]`.

    The Mann–Whitney U statistic over the number of pairs. The tasks are the same in both.
    """
    per_task = []
    for mine, theirs in zip(arrays(x), arrays(y), strict=True):
        ours, others = mine[..., :, None], theirs[..., None, :]
        per_task.append(((ours > others) + 0.5 * (ours == others)).mean((-2, -1)))
    return np.stack(per_task, -1)


def probability_of_improvement(x: Scores, y: Scores) -> np.ndarray:
    """The mean over tasks of `probabilities_of_improvement` (Agarwal et al. 2021, section 4.3)."""
    return probabilities_of_improvement(x, y).mean(-1)


def profile(scores: Scores, thresholds: Any) -> np.ndarray:
    """The performance profile, `[..., thresholds]`: the fraction of runs whose score is above each
    threshold (Agarwal et al. 2021, section 4.2)."""
    limits = np.asarray(thresholds, float)
    return np.stack([(one[..., None] > limits).mean(-2) for one in arrays(scores)]).mean(0)


def area_under_curve(returns: Any, episodes: Any) -> float:
    """The mean return of all episodes of training, from mean returns `[N]` of `[N]` episodes each.

    The performance metric of Duan et al. 2016: the mean over iterations and their trajectories of
    the undiscounted return.
    """
    return float(np.average(np.asarray(returns, float), weights=np.asarray(episodes, float)))


@dataclass(frozen=True)
class Aggregate:
    """A statistic of the scores of all tasks."""

    name: str
    title: str
    function: Callable[[Scores], np.ndarray]
    of_means: bool = True  # it depends on the mean scores of tasks only
    needs_normalised: bool = False  # it compares scores with 1
    is_count: bool = False  # of tasks


def _percentile(percent: int) -> Aggregate:
    return Aggregate(
        f"percentile_{percent}",
        f"{percent}th percentile of tasks",
        lambda scores: percentile(scores, percent),
    )


AGGREGATES: dict[str, Aggregate] = {
    one.name: one
    for one in (
        Aggregate("iqm", "interquartile mean", iqm, of_means=False),
        Aggregate("median", "median of tasks", median),
        Aggregate("mean", "mean of tasks", mean),
        Aggregate("capped_mean", "mean of tasks, capped", capped_mean, needs_normalised=True),
        Aggregate(
            "optimality_gap",
            "optimality gap",
            optimality_gap,
            of_means=False,
            needs_normalised=True,
        ),
        Aggregate(
            "tasks_above",
            "tasks of at least 100 %",
            tasks_above,
            needs_normalised=True,
            is_count=True,
        ),
        *(_percentile(percent) for percent in (40, 30, 20, 10, 5)),
    )
}


def aggregates(scores: Scores, names: Sequence[str] = tuple(AGGREGATES)) -> np.ndarray:
    """The aggregates of these names, `[..., names]`."""
    tasks = arrays(scores)
    means = [one.mean(-1, keepdims=True) for one in tasks]  # computed once, as tasks of one run
    chosen = [AGGREGATES[name] for name in names]
    return np.stack([one.function(means if one.of_means else tasks) for one in chosen], -1)
