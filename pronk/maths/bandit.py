"""Bandits with a sliding window, which choose one of N arms for each episode; and mean returns of
the arms, which are those of all slots together.

Badia et al. 2020, "Agent57: Outperforming the Atari Human Benchmark" (arXiv:2003.13350), section
3.2; the upper confidence bounds are those of Garivier and Moulines 2008. All functions are pure; B
is the number of slots, each of which has a bandit of its own, and τ the length of its window.

    Â_k = argmax_a μ̂_k(a, τ) + β √(1 / N_k(a, τ)), or with probability ε any arm     `choose`

N(a, τ) is the number of pulls of arm a among the slot's last τ pulls, μ̂(a, τ) their mean return.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pronk.maths.shapes import assert_same_shape, assert_shape
from pronk.types import Array, Key


class Window(NamedTuple):
    """The last τ pulls of each slot."""

    arm: Array  # int32 [B, τ]
    reward: Array  # float32 [B, τ]
    count: Array  # int32 [B], all pulls so far, also those before the last τ


def no_pulls(slots: int, length: int) -> Window:
    """Before the first pull, for a window of `length` pulls."""
    arm = jnp.zeros((slots, length), jnp.int32)
    return Window(arm, jnp.zeros(arm.shape, jnp.float32), jnp.zeros(slots, jnp.int32))


def record(window: Window, arm: Array, reward: Array, valid: Array) -> Window:
    """The window after one more pull of `arm` `[B]` with return `reward` `[B]`, which replaces the
    oldest one of a full window. Where `valid` `[B]` is False or the reward is not finite, nothing
    changes."""
    assert_same_shape(count=window.count, arm=arm, reward=reward, valid=valid)
    valid = valid & jnp.isfinite(reward)
    length = window.arm.shape[1]
    here = valid[:, None] & (jnp.arange(length) == (window.count % length)[:, None])
    return Window(
        jnp.where(here, arm[:, None], window.arm),
        jnp.where(here, reward[:, None], window.reward),
        window.count + valid,
    )


def statistics(window: Window, arms: int) -> tuple[Array, Array]:
    """N(a, τ) and μ̂(a, τ), float32 `[B, arms]`; the mean of an arm without a pull is 0."""
    known = jnp.arange(window.arm.shape[1]) < window.count[:, None]
    pulled = known[..., None] & (window.arm[..., None] == jnp.arange(arms))  # [B, τ, arms]
    pulls = jnp.sum(pulled, axis=1).astype(jnp.float32)
    total = jnp.sum(jnp.where(pulled, window.reward[..., None], 0.0), axis=1)
    return pulls, total / jnp.maximum(pulls, 1.0)


def choose(
    window: Window, arms: int, *, epsilon: Array | float, bonus: Array | float, key: Key
) -> Array:
    """The next arm of each slot, int32 `[B]`.

    The first N pulls are of each arm once. Later, with probability `epsilon` it is any arm, drawn
    uniformly, and otherwise the one with the highest upper confidence bound, whose width is
    `bonus` √(1 / N(a, τ)). An arm that has no pull in the window has no bound and comes first. Ties
    are broken at random, and so is the order of the first N pulls (the paper's is 0, 1, …).
    """
    pulls, mean = statistics(window, arms)
    bound = jnp.where(pulls > 0, mean + bonus * jnp.sqrt(1.0 / jnp.maximum(pulls, 1.0)), jnp.inf)
    tie_key, explore_key, arm_key = jax.random.split(key, 3)
    highest = bound == bound.max(axis=1, keepdims=True)
    drawn = jax.random.uniform(tie_key, bound.shape)
    best = jnp.argmax(jnp.where(highest, drawn, -1.0), axis=1)
    explore = jax.random.uniform(explore_key, window.count.shape) < epsilon
    uniform = jax.random.randint(arm_key, window.count.shape, 0, arms)
    return jnp.where(explore & (window.count >= arms), uniform, best).astype(jnp.int32)


class Tally(NamedTuple):
    """Weighted returns of each arm, float32 `[N]`, of which older ones count less."""

    total: Array
    weight: Array


def no_tally(arms: int) -> Tally:
    """Before any return."""
    return Tally(jnp.zeros(arms, jnp.float32), jnp.zeros(arms, jnp.float32))


def add(tally: Tally, arm: Array, reward: Array, weight: Array, decay: Array | float) -> Tally:
    """The tally with returns `reward` of arms `arm` added, weighted by `weight`, all `[n]`; earlier
    sums are multiplied by `decay`. Returns of weight 0, or not finite, do not count."""
    assert_same_shape(arm=arm, reward=reward, weight=weight)
    weight = jnp.where(jnp.isfinite(reward), weight, 0.0)
    mine = arm[:, None] == jnp.arange(tally.total.shape[0])
    new = (jnp.where(weight > 0, reward, 0.0) * weight, weight)
    sums = (jnp.sum(jnp.where(mine, x[:, None], 0.0), axis=0) for x in new)
    return Tally(*(decay * old + x for old, x in zip(tally, sums, strict=True)))


def means(tally: Tally) -> Array:
    """The mean return of each arm, `[N]`; −infinity for one without a return."""
    assert_shape(tally.total.shape, "one per arm", weight=tally.weight)
    known = tally.weight > 0
    return jnp.where(known, tally.total / jnp.where(known, tally.weight, 1.0), -jnp.inf)


def best(tally: Tally) -> Array:
    """The arm with the highest mean return, int32 `[]`; the first one before any return."""
    return jnp.argmax(means(tally)).astype(jnp.int32)
