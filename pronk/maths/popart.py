"""PopArt: values in normalised units, whose outputs stay as they are when the units change.

Hessel et al. 2018, "Multi-task Deep Reinforcement Learning with PopArt" (van Hasselt et al. 2016
for one task). The network's last layer gives n(s), one per task, and the value is v = σ n + μ. An
update goes: targets in unnormalised units, then `updated` statistics, then the `preserved` last
layer, then the loss in the new units.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pronk.types import Array

# What σ is kept between: where all targets are the same it would be zero, and is divided by. That
# there are bounds is the paper's; these are those of public implementations of it.
LOWEST, HIGHEST = 1e-4, 1e6


class Statistics(NamedTuple):
    """Of the targets of each task, float32 `[K]`.

    The paper keeps ν, the mean of squares, and σ² = ν − μ². In float32 that difference has no
    digits left once μ is some thousand σ, so the variance is what is kept here; it is updated to
    what ν and μ would give.
    """

    mean: Array  # μ
    variance: Array  # ν − μ²
    count: Array  # int32 [K], updates so far

    @property
    def deviation(self) -> Array:
        """σ, within its bounds, `[K]`."""
        return jnp.clip(jnp.sqrt(self.variance), LOWEST, HIGHEST)


def init(tasks: int) -> Statistics:
    """Before any update: μ = 0 and ν = 1, so that normalised and unnormalised are the same."""
    return Statistics(jnp.zeros(tasks), jnp.ones(tasks), jnp.zeros(tasks, jnp.int32))


def updated(
    statistics: Statistics,
    targets: Array,
    task: Array,
    weight: Array,
    beta: Array | float,
    *,
    debias: bool = False,
) -> Statistics:
    """Statistics moved towards the mean and the mean square of a batch of `targets`, task by task.

        μ ← (1 − β) μ + β G,  ν ← (1 − β) ν + β G²

    where G and G² are means over the batch's targets of the task. targets, weight: float32 of any
    one shape; task: int32 of the same; targets of weight 0 are left out. A task that the batch has
    none of stays as it is. debias: β_t = β / (1 − (1 − β)^t) in a task's t-th update, so that what
    they began with is forgotten at once (van Hasselt et al. 2016, section 2.1).
    """
    tasks = statistics.mean.shape[0]
    chosen = jax.nn.one_hot(task, tasks) * weight[..., None]  # [..., K]
    axes = tuple(range(targets.ndim))
    total = jnp.sum(chosen, axes)
    share = chosen / jnp.maximum(total, 1.0)
    mean = jnp.sum(share * targets[..., None], axes)
    variance = jnp.sum(share * jnp.square(targets[..., None] - mean), axes)

    count = statistics.count + (total > 0)
    if debias:
        # 1 − (1 − β)^t, with digits however small β is.
        beta = beta / -jnp.expm1(jnp.maximum(count, 1) * jnp.log1p(-jnp.float32(beta)))
    beta = jnp.where(total > 0, beta, 0.0)
    surprise = mean - statistics.mean
    return Statistics(
        statistics.mean + beta * surprise,
        # ν' − μ'² with ν = σ² + μ², multiplied out.
        (1.0 - beta) * (statistics.variance + beta * jnp.square(surprise)) + beta * variance,
        count,
    )


def preserved(kernel: Array, bias: Array, old: Statistics, new: Statistics) -> tuple[Array, Array]:
    """The last layer, kernel `[F, K]` and bias `[K]`, that with `new` statistics gives the values
    that it gave with `old` ones, to rounding.

        ω' = ω σ / σ',  b' = (σ b + μ − μ') / σ'
    """
    ratio = old.deviation / new.deviation
    bias = (old.deviation * bias + (old.mean - new.mean)) / new.deviation
    return kernel * ratio, bias


def unnormalised(statistics: Statistics, n: Array, task: Array) -> Array:
    """v = σ n + μ of normalised values of these tasks; all of one shape."""
    return statistics.deviation[task] * n + statistics.mean[task]


def normalised(statistics: Statistics, v: Array, task: Array) -> Array:
    """n = (v − μ) / σ of values of these tasks; all of one shape."""
    return (v - statistics.mean[task]) / statistics.deviation[task]
