"""PopArt: value normalisation whose outputs do not change when the statistics do.

Hessel et al. 2018, "Multi-task Deep Reinforcement Learning with PopArt" (van Hasselt et al. 2016
for one task). The network's last layer gives n(s), one per task, and the value is v = σ n + μ. An
update computes targets in units of reward, then `update_statistics`, then `rescale_head`, then the
loss in the new units.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pronk.maths.shapes import assert_rank, assert_same_shape, assert_shape
from pronk.types import Array

# Bounds of σ, by which values are divided: equal targets would make it zero. The paper has bounds,
# too; these are those of public implementations of it.
LOWEST, HIGHEST = 1e-4, 1e6


class Statistics(NamedTuple):
    """Running statistics of each task's targets, float32 `[K]`, in units of reward.

    The paper keeps ν, the mean of squares, and σ² = ν − μ². In float32 that difference has no
    digits left once μ is some thousand σ, so this keeps the variance, updated to what ν and μ would
    give.
    """

    mean: Array  # μ
    variance: Array  # ν − μ²
    count: Array  # int32 [K], updates so far

    @property
    def deviation(self) -> Array:
        """σ, within its bounds, `[K]`."""
        return jnp.clip(jnp.sqrt(self.variance), LOWEST, HIGHEST)


def init(tasks: int) -> Statistics:
    """Before any update: μ = 0 and ν = 1, so that normalising changes nothing."""
    return Statistics(jnp.zeros(tasks), jnp.ones(tasks), jnp.zeros(tasks, jnp.int32))


def update_statistics(
    statistics: Statistics,
    targets: Array,
    task: Array,
    weight: Array,
    beta: Array | float,
    *,
    debias: bool = False,
) -> Statistics:
    """Move the statistics towards the mean and the mean square of a batch of `targets`, per task.

        μ ← (1 − β) μ + β G,  ν ← (1 − β) ν + β G²

    where G and G² are means over the batch's targets of the task (Hessel et al. 2018).

    targets, weight: float32 of one shape, in units of reward; weight is 0 or 1, and targets of
    weight 0 are left out. task: int32 of the same shape. The statistics of a task without targets
    in the batch do not change. beta: a scalar. debias: β_t = β / (1 − (1 − β)^t) in a task's t-th
    update, so that the first update replaces the initial statistics (van Hasselt et al. 2016,
    section 2.1).
    """
    assert_rank(1, mean=statistics.mean)
    assert_same_shape(mean=statistics.mean, variance=statistics.variance, count=statistics.count)
    assert_same_shape(targets=targets, task=task, weight=weight)
    assert_rank(0, beta=beta)
    tasks = statistics.mean.shape[0]
    selected = jax.nn.one_hot(task, tasks) * weight[..., None]  # [..., K]
    axes = tuple(range(targets.ndim))
    total = jnp.sum(selected, axes)
    share = selected / jnp.maximum(total, 1.0)
    mean = jnp.sum(share * targets[..., None], axes)
    variance = jnp.sum(share * jnp.square(targets[..., None] - mean), axes)

    count = statistics.count + (total > 0)
    if debias:
        # 1 − (1 − β)^t, with digits however small β is.
        beta = beta / -jnp.expm1(jnp.maximum(count, 1) * jnp.log1p(-jnp.float32(beta)))
    beta = jnp.where(total > 0, beta, 0.0)
    shift = mean - statistics.mean
    return Statistics(
        statistics.mean + beta * shift,
        # ν' − μ'² with ν = σ² + μ², multiplied out.
        (1.0 - beta) * (statistics.variance + beta * jnp.square(shift)) + beta * variance,
        count,
    )


def rescale_head(
    kernel: Array, bias: Array, old: Statistics, new: Statistics
) -> tuple[Array, Array]:
    """Rescale the last layer so that its values do not change, to rounding, from `old` statistics
    to `new` ones (Hessel et al. 2018, eq. 4).

        ω' = ω σ / σ',  b' = (σ b + μ − μ') / σ'

    kernel: `[F, K]`. bias: `[K]`, as are the statistics. Returns the new kernel and bias.
    """
    assert_rank(2, kernel=kernel)
    why = "the width of `kernel`"
    assert_shape(np.shape(kernel)[1:], why, bias=bias, old_mean=old.mean, new_mean=new.mean)
    ratio = old.deviation / new.deviation
    bias = (old.deviation * bias + (old.mean - new.mean)) / new.deviation
    return kernel * ratio, bias


def denormalize(statistics: Statistics, normalized: Array, task: Array) -> Array:
    """v = σ n + μ, in units of reward, of normalised values n of these tasks; all of one shape."""
    assert_same_shape(normalized=normalized, task=task)
    return statistics.deviation[task] * normalized + statistics.mean[task]


def normalize(statistics: Statistics, values: Array, task: Array) -> Array:
    """n = (v − μ) / σ of values v, in units of reward, of these tasks; all of one shape."""
    assert_same_shape(values=values, task=task)
    return (values - statistics.mean[task]) / statistics.deviation[task]
