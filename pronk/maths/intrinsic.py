"""Intrinsic rewards of Never Give Up: episodic novelty, lifelong novelty, and the mixture of both.

Badia et al. 2020, "Never Give Up: Learning Directed Exploration Strategies" (arXiv:2002.06038).
All functions are pure; B is the number of slots, each of which has statistics of its own.

    r = r^episodic · min(max(α, 1), L)                     `combine`, eq. 1
    r^episodic = 1 / (√(Σ over the k nearest of K) + c)    `episodic_reward`, eq. 2, algorithm 1
    K = ε / (max(d² / d²_m − ξ, 0) + ε)                    eq. 3
    α = 1 + (‖ĝ(x) − g(x)‖² − μ_e) / σ_e                   `lifelong_factor`
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pronk.maths.shapes import assert_rank, assert_same_shape, assert_shape
from pronk.types import Array

# Rows are padded to a multiple of 256 bytes: since jaxlib 0.11.1, a smaller update within a loop on
# a CPU costs as much as a copy of the whole array.
_ROW = 64


class Average(NamedTuple):
    """Exponentially weighted mean and variance of each slot, `[B]`, bias-corrected: weights are
    normalised by the sum of those of the values so far."""

    weight: Array  # of all values so far, below 1
    mean: Array
    variance: Array


def no_average(slots: int) -> Average:
    """Before any value: weight, mean and variance 0."""
    return Average(*(jnp.zeros(slots, jnp.float32) for _ in range(3)))


def update_average(average: Average, x: Array, decay: float, valid: Array) -> Average:
    """The averages after values `x` `[B]`; the weight of each earlier value is multiplied by
    `decay`. Where `valid` `[B]` is False or `x` is not finite, nothing changes."""
    assert_same_shape(mean=average.mean, x=x, valid=valid)
    valid = valid & jnp.isfinite(x)
    weight = decay * average.weight + (1.0 - decay)
    rate = (1.0 - decay) / weight
    shift = jnp.where(valid, x, 0.0) - average.mean
    mean = average.mean + rate * shift
    variance = (1.0 - rate) * (average.variance + rate * jnp.square(shift))
    new = Average(weight, mean, variance)
    return jax.tree.map(lambda a, b: jnp.where(valid, a, b), new, average)


class Memory(NamedTuple):
    """The embeddings of each slot's current episode, of which the newest are kept."""

    rows: Array  # float32 [B, capacity + 1, padded width]
    position: Array  # int32 [B], of the newest
    count: Array  # int32 [B], embeddings of this episode before the newest, at most the capacity


def no_memory(slots: int, capacity: int, width: int) -> Memory:
    """An empty memory of `capacity` embeddings `[width]` per slot."""
    padded = -(-width // _ROW) * _ROW
    zeros = jnp.zeros(slots, jnp.int32)
    # One row more than the capacity: the newest embedding is written before the others are read,
    # because XLA would otherwise copy the memory in every step.
    return Memory(jnp.zeros((slots, capacity + 1, padded), jnp.float32), zeros, zeros - 1)


def remember(memory: Memory, embedding: Array, first: Array) -> Memory:
    """The memory with the embeddings `[B, width]` added; where `first` `[B]` begins an episode, the
    earlier ones are dropped. Beyond the capacity the oldest ones are overwritten."""
    slots, size, padded = memory.rows.shape
    assert_rank(2, embedding=embedding)
    assert_shape((slots,), "one per slot", first=first)
    row = jnp.pad(embedding, ((0, 0), (0, padded - embedding.shape[1])))
    position = (memory.position + 1) % size
    rows = memory.rows.at[jnp.arange(slots), position].set(row)
    count = jnp.where(first, 0, jnp.minimum(memory.count + 1, size - 1))
    return Memory(rows, position, count)


def neighbours(memory: Memory, embedding: Array, k: int) -> Array:
    """The k smallest squared distances `[B, k]`, ascending, between the newest embedding `[B,
    width]` and those before it in its episode; infinite where there are fewer."""
    _, size, padded = memory.rows.shape
    row = jnp.pad(embedding, ((0, 0), (0, padded - embedding.shape[1])))
    # Differences, not ‖a‖² + ‖b‖² − 2 ab: equal embeddings are at distance 0 exactly.
    squared = jnp.sum(jnp.square(memory.rows - row[:, None]), axis=-1)
    age = (memory.position[:, None] - jnp.arange(size)) % size  # 0: the newest itself
    known = (age >= 1) & (age <= memory.count[:, None]) & jnp.isfinite(squared)
    return -jax.lax.top_k(jnp.where(known, -squared, -jnp.inf), k)[0]


class Kernel(NamedTuple):
    """The constants of the episodic reward (table 6)."""

    epsilon: float = 1e-4  # ε of the inverse kernel
    cluster: float = 0.008  # ξ: nearer neighbours count as identical
    constant: float = 1e-3  # c
    max_similarity: float = 8.0  # s_m: no reward above


def mean_distance(average: Average, distances: Array, decay: float) -> Average:
    """d²_m after the distances `[B, k]` of `neighbours`: their mean, of those that exist, is one
    value of the average. The first observation of an episode has none and changes nothing."""
    exists = jnp.isfinite(distances)
    count = jnp.sum(exists, axis=-1)
    mean = jnp.sum(jnp.where(exists, distances, 0.0), axis=-1) / jnp.maximum(count, 1)
    return update_average(average, mean, decay, count > 0)


def episodic_reward(distances: Array, mean: Array, kernel: Kernel) -> Array:
    """r^episodic `[B]`, in the order of algorithm 1, for squared distances `[B, k]` and their mean
    d²_m `[B]`, which already includes them.

    The paper does not define three cases. Missing neighbours count as neighbours at the mean
    distance, so that rewards of an episode's first steps have the scale of later ones. Without any
    neighbour, as in an episode's first row, the reward is 0. Where d²_m is 0, all distances were 0,
    and their ratios to it count as 0.
    """
    assert_rank(2, distances=distances)
    assert_shape(np.shape(distances)[:1], "one per slot", mean=mean)
    exists = jnp.isfinite(distances)
    scale = jnp.where(mean > 0, mean, 1.0)[:, None]
    normalised = jnp.where(exists, jnp.where(exists, distances, 0.0) / scale, 1.0)
    normalised = jnp.maximum(normalised - kernel.cluster, 0.0)
    similarity = jnp.sum(kernel.epsilon / (normalised + kernel.epsilon), axis=-1)
    s = jnp.sqrt(similarity) + kernel.constant
    reward = jnp.where(s > kernel.max_similarity, 0.0, 1.0 / s)
    return jnp.where(exists.any(axis=-1), reward, 0.0)


def lifelong_factor(average: Average, error: Array) -> Array:
    """α `[B]`, not clipped, for errors `[B]` of the predictor and their running mean and deviation,
    which already include them; 1 where the errors have not varied, or an error is not finite."""
    assert_same_shape(mean=average.mean, error=error)
    deviation = jnp.sqrt(average.variance)
    varied = (deviation > 0) & jnp.isfinite(error)
    surprise = jnp.where(varied, error - average.mean, 0.0) / jnp.where(varied, deviation, 1.0)
    return 1.0 + surprise


def combine(episodic: Array, factor: Array, limit: float) -> Array:
    """r^episodic · min(max(α, 1), L) (eq. 1); 0 where that is not finite."""
    reward = episodic * jnp.clip(factor, 1.0, limit)
    return jnp.where(jnp.isfinite(reward), reward, 0.0)


def mixture_scales(members: int) -> np.ndarray:
    """β_i / β, float32 `[N]`: 0 for the exploitative member, 1 for the most exploratory one, and a
    sigmoid between them (appendix A). Two members have 0 and 1, a single one has 1.
    """
    i = np.arange(members)
    middle = 1.0 / (1.0 + np.exp(-10.0 * (2.0 * i - (members - 2)) / max(members - 2, 1)))
    return np.where(i == members - 1, 1.0, np.where(i == 0, 0.0, middle)).astype(np.float32)


def mixture_discounts(members: int, exploiting: Array, exploring: Array) -> Array:
    """γ_i, `[N]`: from `exploiting` (i = 0) to `exploring` (i = N − 1), with log(1 − γ) equally
    spaced (appendix A). A single member has `exploring`. Both are below 1."""
    if members == 1:
        return jnp.reshape(exploring, (1,))
    part = np.arange(members, dtype=np.float32) / (members - 1)
    logs = (1.0 - part) * jnp.log1p(-exploiting) + part * jnp.log1p(-exploring)
    return -jnp.expm1(logs)


_LONGEST = 7  # members with a discount above `exploiting`, in `long_discounts`


def long_discounts(members: int, longest: Array, exploiting: Array, exploring: Array) -> Array:
    """γ_j of Agent57, `[N]`: from `longest` (j = 0) to `exploring` (j = N − 1).

    Of ten members or more, γ_0 is `longest` and γ_7 `exploiting`, the six between them lie on a
    sigmoid, and from γ_8 = `exploiting` on log(1 − γ_j) is equally spaced (Badia et al. 2020,
    Agent57, appendix; its last formula lacks a difference of logarithms and would not end in
    `exploring`). The paper does not say what fewer members have: here log(1 − γ_j) is equally
    spaced from `longest` to `exploring`, as NGU's. All three are below 1.
    """
    if members < _LONGEST + 3:
        return mixture_discounts(members, longest, exploring)
    j = np.arange(1, _LONGEST)
    part = (1.0 / (1.0 + np.exp(-10.0 * (2.0 * j - 6.0) / 6.0))).astype(np.float32)
    sigmoid = exploiting + part * (longest - exploiting)
    rest = mixture_discounts(members - _LONGEST - 1, exploiting, exploring)
    return jnp.concatenate([jnp.stack([longest]), sigmoid, jnp.stack([exploiting]), rest])
