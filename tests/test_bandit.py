"""Bandits with a sliding window, against their definition in NumPy, and mean returns of arms."""

from __future__ import annotations

import functools
from collections import deque
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pronk.maths import bandit

KEY = jax.random.key(0)
SLOTS = 40


class Slot:
    """The definition: a list of the last pulls."""

    def __init__(self, length: int, arms: int) -> None:
        self.pulls: deque[tuple[int, float]] = deque(maxlen=length)
        self.arms = arms

    def bounds(self, bonus: float) -> np.ndarray:
        found = np.full(self.arms, np.inf)
        for a in range(self.arms):
            rewards = [r for arm, r in self.pulls if arm == a]
            if rewards:
                found[a] = np.mean(rewards) + bonus * np.sqrt(1 / len(rewards))
        return found


record = jax.jit(bandit.record)
statistics = jax.jit(bandit.statistics, static_argnums=1)
choose = jax.jit(bandit.choose, static_argnames="arms")


@functools.partial(jax.jit, static_argnames=("reward", "pulls", "length", "arms"))
def play(
    reward: Any, pulls: int, *, length: int, arms: int, epsilon: Any = 0.0, bonus: Any = 1.0
) -> Any:
    """The arms that all slots pulled, `[pulls, B]`; reward: of (pull, arms `[B]`)."""

    def pull(window: bandit.Window, t: Any) -> tuple[bandit.Window, Any]:
        key = jax.random.fold_in(KEY, t)
        arm = bandit.choose(window, arms, epsilon=epsilon, bonus=bonus, key=key)
        returned = jnp.asarray(reward(t, arm), jnp.float32)
        return bandit.record(window, arm, returned, jnp.ones(SLOTS, bool)), arm

    return jax.lax.scan(pull, bandit.no_pulls(SLOTS, length), jnp.arange(pulls))[1]


def is_2(t: Any, arm: Any) -> Any:
    return arm == 2


@pytest.mark.parametrize(("length", "arms"), [(7, 4), (50, 3), (1, 1), (2, 5)])
def test_bounds_and_choices_are_those_of_the_definition(length: int, arms: int) -> None:
    """With rewards of few values, so that ties occur; some rows end no episode."""
    rng = np.random.default_rng(0)
    window, slots = bandit.no_pulls(SLOTS, length), [Slot(length, arms) for _ in range(SLOTS)]
    for t in range(30):
        arm = rng.integers(0, arms, SLOTS).astype(np.int32)
        reward, valid = rng.integers(0, 3, SLOTS).astype(np.float32), rng.uniform(size=SLOTS) < 0.7
        reward[rng.uniform(size=SLOTS) < 0.05] = np.nan
        window = record(window, arm, reward, valid)
        for slot, a, r, counts in zip(slots, arm, reward, valid & np.isfinite(reward), strict=True):
            if counts:
                slot.pulls.append((int(a), float(r)))
        pulls, mean = statistics(window, arms)
        expected = np.array([slot.bounds(0.5) for slot in slots])
        with np.errstate(divide="ignore"):
            bounds = np.where(pulls == 0, np.inf, mean + 0.5 * np.sqrt(1 / np.asarray(pulls)))
        np.testing.assert_allclose(bounds, expected, rtol=1e-6)
        key = jax.random.fold_in(KEY, t)
        chosen = choose(window, arms, epsilon=0.0, bonus=0.5, key=key)
        highest = np.take_along_axis(expected, np.asarray(chosen)[:, None], axis=1)[:, 0]
        np.testing.assert_allclose(highest, expected.max(axis=1), rtol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
def test_the_first_pulls_are_of_each_arm_once(epsilon: float) -> None:
    """In an order that differs between slots; exploration begins afterwards."""
    pulled = np.asarray(play(is_2, 6, length=8, arms=6, epsilon=epsilon))
    assert (np.sort(pulled, axis=0) == np.arange(6)[:, None]).all()
    assert len(np.unique(pulled[0])) > 1


@pytest.mark.parametrize(("epsilon", "share"), [(0.0, 1.0), (0.4, 0.7), (1.0, 0.25)])
def test_exploration_is_uniform(epsilon: float, share: float) -> None:
    """The best of four arms has 1 − ε + ε / 4 of the pulls, without a bonus."""
    pulled = np.asarray(play(is_2, 104, length=200, arms=4, epsilon=epsilon, bonus=0.0))[4:]
    np.testing.assert_allclose((pulled == 2).mean(), share, atol=0.02)
    others = [(pulled == a).mean() for a in (0, 1, 3)]
    np.testing.assert_allclose(others, (1 - share) / 3, atol=0.02)


def test_ties_are_broken_at_random() -> None:
    pulled = np.asarray(play(lambda t, arm: arm != 0, 43, length=200, arms=3, bonus=0.0))[3:]
    shares = np.bincount(pulled.ravel(), minlength=3) / pulled.size
    np.testing.assert_allclose(shares, [0, 0.5, 0.5], atol=0.05)


def test_an_arm_that_the_window_forgot_is_pulled() -> None:
    """With a window shorter than the number of arms, none is pulled again before it is forgotten,
    whatever it returned."""
    pulled = np.asarray(play(is_2, 40, length=3, arms=5))
    for t in range(3, 40):
        assert (pulled[t] != pulled[t - 3 : t]).all()
    # And with a longer one, the worst arm is pulled once in every 20.
    pulled = np.asarray(play(lambda t, arm: 100.0 * (arm == 1), 100, length=20, arms=2, bonus=0.0))
    for t in range(80):
        assert (pulled[t : t + 22] == 0).any(axis=0).all()
    assert (pulled == 0).mean() < 0.1


def regret(length: int) -> float:
    """Which part of the 100 pulls after the better of two arms became the worse it still has."""
    pulled = np.asarray(
        play(lambda t, arm: arm == (t >= 150), 250, length=length, arms=2, epsilon=0.1)
    )
    return float((pulled[150:] == 0).mean())


def test_a_window_forgets_which_arm_was_best() -> None:
    short, never = regret(30), regret(500)
    assert short < 0.35
    assert never > 2 * short


def test_the_tally_is_a_weighted_mean_that_forgets() -> None:
    rng = np.random.default_rng(0)
    tally, total, weights = bandit.no_tally(4), np.zeros(4), np.zeros(4)
    assert bandit.best(tally) == 0
    for _ in range(30):
        arm = rng.choice([1, 2], 20).astype(np.int32)
        reward, weight = rng.normal(size=20) + arm, rng.uniform(size=20) * (rng.random(20) < 0.6)
        reward[0], weight[0] = np.inf, 1.0
        total, weights = 0.9 * total, 0.9 * weights
        for a, r, w in zip(arm[1:], reward[1:], weight[1:], strict=True):
            total[a] += w * r
            weights[a] += w
        tally = bandit.add(tally, arm, *(x.astype(np.float32) for x in (reward, weight)), 0.9)
    np.testing.assert_allclose(tally.weight, weights, rtol=1e-5)
    expected = total[1:3] / weights[1:3]
    np.testing.assert_allclose(bandit.means(tally), [-np.inf, *expected, -np.inf], rtol=1e-4)
    assert bandit.best(tally) == 2
    # Returns below zero are better than none.
    tally = bandit.add(bandit.no_tally(3), jnp.array([2]), jnp.array([-5.0]), jnp.array([1.0]), 0.9)
    assert bandit.best(tally) == 2
