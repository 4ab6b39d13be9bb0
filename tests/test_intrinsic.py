"""Intrinsic rewards against slow sums in NumPy that look like the paper's algorithm 1."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pronk.maths import intrinsic

SLOTS, WIDTH, CAPACITY, K, DECAY = 3, 5, 6, 4, 0.9
KERNEL = intrinsic.Kernel(epsilon=1e-2, cluster=0.008, constant=1e-3, max_similarity=8.0)


class Slow:
    """Algorithm 1 of one slot, in float64; what it leaves open is decided as the docstrings say."""

    def __init__(self) -> None:
        self.memory: list[np.ndarray] = []
        self.weight = self.total = 0.0

    def step(self, x: np.ndarray, first: bool) -> float:
        if first:
            self.memory = []
        distances = sorted(float(((x - y) ** 2).sum()) for y in self.memory[-CAPACITY:])[:K]
        self.memory.append(x)
        if not distances:
            return 0.0
        self.weight = DECAY * self.weight + 1 - DECAY
        self.total = DECAY * self.total + (1 - DECAY) * np.mean(distances)
        mean = self.total / self.weight
        normalised = [d / mean if mean > 0 else 0.0 for d in distances] + [1.0] * (
            K - len(distances)
        )
        kernel = [
            KERNEL.epsilon / (max(d - KERNEL.cluster, 0.0) + KERNEL.epsilon) for d in normalised
        ]
        s = np.sqrt(sum(kernel)) + KERNEL.constant
        return 0.0 if s > KERNEL.max_similarity else 1.0 / s


@jax.jit
def fast_step(state: Any, x: Any, first: Any) -> tuple[Any, Any]:
    memory, average = state
    memory = intrinsic.remember(memory, x, first)
    distances = intrinsic.neighbours(memory, x, K)
    average = intrinsic.mean_distance(average, distances, DECAY)
    return (memory, average), intrinsic.episodic_reward(distances, average.mean, KERNEL)


def start(capacity: int = CAPACITY) -> Any:
    return intrinsic.no_memory(SLOTS, capacity, WIDTH), intrinsic.no_average(SLOTS)


def test_the_episodic_reward_is_that_of_algorithm_1() -> None:
    """Episodes of all lengths, longer than the memory among them, which end at other times in each
    slot; some observations repeat."""
    rng = np.random.default_rng(0)
    slow, state = [Slow() for _ in range(SLOTS)], start()
    points = rng.normal(size=(12, WIDTH))
    for t in range(60):
        first = (rng.uniform(size=SLOTS) < 0.08) | (t == 0)
        x = points[rng.integers(0, 12, SLOTS)].astype(np.float32)
        state, reward = fast_step(state, x, first)
        expected = [s.step(np.float64(x[i]), bool(first[i])) for i, s in enumerate(slow)]
        np.testing.assert_allclose(reward, expected, rtol=1e-4)
        np.testing.assert_array_equal(
            state[0].count, [min(len(s.memory) - 1, CAPACITY) for s in slow]
        )


def test_slots_do_not_mix_and_memories_end_with_episodes() -> None:
    rng = np.random.default_rng(1)
    no, yes = np.zeros(SLOTS, bool), np.ones(SLOTS, bool)
    x = rng.normal(size=(5, SLOTS, WIDTH)).astype(np.float32)
    state = start()
    for t in range(4):
        state, reward = fast_step(state, x[t], yes if t == 0 else no)
    other = x.copy()
    other[:, 1:] += 1.0  # of other slots
    state2 = start()
    for t in range(4):
        state2, reward2 = fast_step(state2, other[t], yes if t == 0 else no)
    assert reward[0] == reward2[0]
    # The embedding itself is in the memory when it is compared, and is not its own neighbour.
    assert np.isinf(intrinsic.neighbours(state[0], x[3], K)[:, 3:]).all()
    state, reward = fast_step(state, x[0], np.array([True, False, False]))
    assert reward[0] == 0  # empty again, though x[0] was there
    assert (reward[1:] > 0).all()


@pytest.mark.parametrize("epsilon", [1e-4, 1e-3, 1e-2])
def test_the_scale_of_the_reward(epsilon: float) -> None:
    """All neighbours at the mean distance, and all identical, which is never 0: a slot that stands
    still is paid for ever."""
    kernel = intrinsic.Kernel(epsilon, 0.0, 1e-3, 8.0)
    distances = jnp.full((1, 10), 2.0)
    reward = intrinsic.episodic_reward(distances, jnp.array([2.0]), kernel)
    np.testing.assert_allclose(
        reward, 1 / (np.sqrt(10 * epsilon / (1 + epsilon)) + 1e-3), rtol=1e-5
    )
    same = intrinsic.episodic_reward(jnp.zeros((1, 10)), jnp.zeros(1), kernel)
    np.testing.assert_allclose(same, 1 / (np.sqrt(10) + 1e-3), rtol=1e-6)


def test_the_largest_similarity_cannot_be_reached_by_ten_neighbours() -> None:
    """√k + c > s_m needs k ≥ 64: with the paper's k = 10 and s_m = 8 no reward is cut off."""
    kernel = intrinsic.Kernel()
    for k, cut in ((10, False), (63, False), (64, True)):
        reward = intrinsic.episodic_reward(jnp.zeros((1, k)), jnp.ones(1), kernel)
        assert (reward == 0).all() == cut


def test_fewer_neighbours_than_k_make_no_spike() -> None:
    """One neighbour at the mean distance is worth as much as k of them; none, nothing."""
    kernel = intrinsic.Kernel()
    some = np.full((11, 10), np.inf, np.float32)
    for n in range(11):
        some[n, :n] = 3.0
    reward = np.asarray(intrinsic.episodic_reward(some, jnp.full(11, 3.0), kernel))
    assert reward[0] == 0
    np.testing.assert_allclose(reward[1:], reward[10], rtol=1e-6)


def test_identical_observations_for_ever() -> None:
    """Every distance is 0, and so is their mean; the reward stays finite."""
    state, x = start(), np.ones((SLOTS, WIDTH), np.float32) * 1e3
    for t in range(12):
        state, reward = fast_step(state, x, np.full(SLOTS, t == 0))
    np.testing.assert_allclose(reward, 1 / (np.sqrt(K) + 1e-3), rtol=1e-6)
    assert (state[1].mean == 0).all()
    # What differs then is as far away as can be.
    _, reward = fast_step(state, x + 1, np.zeros(SLOTS, bool))
    assert (reward > 1).all()


def test_an_embedding_that_is_not_finite_changes_no_statistic() -> None:
    rng = np.random.default_rng(2)
    state = start()
    for t in range(4):
        x = rng.normal(size=(SLOTS, WIDTH)).astype(np.float32)
        state, _ = fast_step(state, x, np.full(SLOTS, t == 0))
    before = state[1]
    bad, reward = fast_step(state, np.full((SLOTS, WIDTH), np.nan, np.float32), np.zeros(3, bool))
    np.testing.assert_array_equal(bad[1].mean, before.mean)
    assert (reward == 0).all()
    _, reward = fast_step(bad, x, np.zeros(SLOTS, bool))
    assert np.isfinite(reward).all()
    assert (reward > 0).all()
    error = intrinsic.update_average(before, jnp.full(SLOTS, jnp.nan), 0.9, jnp.ones(3, bool))
    np.testing.assert_array_equal(error.mean, before.mean)
    assert (intrinsic.combine(jnp.ones(1), jnp.array([jnp.nan]), 5.0) == 0).all()


def test_averages_are_weighted_means_and_variances() -> None:
    rng = np.random.default_rng(3)
    values, valid = rng.normal(3.0, 2.0, (30, SLOTS)), rng.uniform(size=(30, SLOTS)) < 0.7
    average = intrinsic.no_average(SLOTS)
    for x, v in zip(values, valid, strict=True):
        average = intrinsic.update_average(average, jnp.float32(x), 0.95, v)
    for i in range(SLOTS):
        x = values[valid[:, i], i]
        weight = 0.95 ** np.arange(len(x))[::-1]
        mean = np.average(x, weights=weight)
        np.testing.assert_allclose(average.mean[i], mean, rtol=1e-5)
        variance = np.average((x - mean) ** 2, weights=weight)
        np.testing.assert_allclose(average.variance[i], variance, rtol=1e-5)


def test_alpha_is_between_1_and_L() -> None:
    average = intrinsic.Average(*(jnp.full(4, x) for x in (0.5, 2.0, 0.25)))
    alpha = intrinsic.lifelong_factor(average, jnp.array([2.0, 3.0, 0.0, 9.0]))
    np.testing.assert_allclose(alpha, [1.0, 3.0, -3.0, 15.0], rtol=1e-6)
    np.testing.assert_allclose(
        intrinsic.combine(jnp.full(4, 2.0), alpha, 5.0), [2.0, 6.0, 2.0, 10.0], rtol=1e-6
    )
    constant = average._replace(variance=jnp.zeros(4))
    np.testing.assert_array_equal(intrinsic.lifelong_factor(constant, jnp.full(4, 2.0)), 1.0)


def test_mixture_scales() -> None:
    """β_i / β of appendix A; two members have no middle, one only explores."""
    np.testing.assert_allclose(
        0.3 * intrinsic.mixture_scales(8),
        [0, 0.000381, 0.010334, 0.15, 0.289666, 0.299619, 0.299986, 0.3],
        atol=1e-6,
    )
    np.testing.assert_allclose(intrinsic.mixture_scales(3), [0, 0.999955, 1], atol=1e-6)
    np.testing.assert_array_equal(intrinsic.mixture_scales(2), [0, 1])
    np.testing.assert_array_equal(intrinsic.mixture_scales(1), [1])
    for n in range(1, 40):
        scales = intrinsic.mixture_scales(n)
        assert (np.diff(scales) >= 0).all()
        assert scales[-1] == 1


def test_mixture_discounts() -> None:
    def discounts(n: int) -> np.ndarray:
        return np.asarray(intrinsic.mixture_discounts(n, jnp.float32(0.997), jnp.float32(0.99)))

    found = discounts(32)
    np.testing.assert_allclose(found[[0, 1, 2, 30, 31]],
                               [0.997, 0.996881, 0.996758, 0.990381, 0.99], atol=1e-6)  # fmt: skip
    np.testing.assert_allclose(discounts(2), [0.997, 0.99], rtol=1e-6)
    np.testing.assert_allclose(discounts(1), [0.99], rtol=1e-6)


@pytest.mark.parametrize("width", [WIDTH, 32, 64, 65])
def test_rows_of_the_memory_are_whole_multiples_of_256_bytes(width: int) -> None:
    """Updates of fewer bytes within loops cost O(memory) in some releases of jaxlib."""
    rows = intrinsic.no_memory(2, 10, width).rows
    assert rows.shape[2] * 4 % 256 == 0
    assert rows.shape[2] >= width


def copies(text: str, size: int) -> list[str]:
    """The instructions of a compiled program that copy an array with an axis of this size."""
    return [x for x in text.splitlines() if re.search(rf"= f32\[[\d,]*\b{size}\b.* copy\(", x)]


def test_the_memory_is_updated_in_place() -> None:
    """With donated arguments, and in the loop of a scan: no copy of the memory."""
    capacity = 4999
    state = start(capacity)
    x, first = np.ones((SLOTS, WIDTH), np.float32), np.zeros(SLOTS, bool)
    step = jax.jit(fast_step, donate_argnums=0)
    assert not copies(step.lower(state, x, first).compile().as_text(), capacity + 1)
    pointer = state[0].rows.unsafe_buffer_pointer()
    state, _ = step(state, x, first)
    assert state[0].rows.unsafe_buffer_pointer() == pointer

    def scan(state: Any, xs: Any) -> Any:
        return jax.lax.scan(lambda s, x: fast_step(s, x, first), state, xs)

    xs = np.ones((50, SLOTS, WIDTH), np.float32)
    text = jax.jit(scan, donate_argnums=0).lower(state, xs).compile().as_text()
    assert not copies(text, capacity + 1)

    # The check finds a copy where there is one: read before the write.
    def wrong(rows: Any, x: Any) -> Any:
        seen = jnp.sum(jnp.square(rows - x[:, None]), -1)
        return rows.at[jnp.arange(SLOTS), 0].set(x), seen

    rows = jnp.zeros((SLOTS, capacity + 1, WIDTH))
    assert copies(jax.jit(wrong, donate_argnums=0).lower(rows, x).compile().as_text(), capacity + 1)


def test_a_scan_computes_what_steps_compute() -> None:
    """Also where the ring has wrapped around: XLA's updates in place are right in loops."""
    rng = np.random.default_rng(4)
    xs = rng.normal(size=(25, SLOTS, WIDTH)).astype(np.float32)
    first = rng.uniform(size=(25, SLOTS)) < 0.1
    first[0] = True
    state, expected = start(), []
    for x, f in zip(xs, first, strict=True):
        state, reward = fast_step(state, x, f)
        expected.append(reward)
    scanned, rewards = jax.jit(
        lambda s: jax.lax.scan(lambda s, x: fast_step(s, *x), s, (xs, first))
    )(start())
    np.testing.assert_allclose(rewards, expected, rtol=1e-5)
    np.testing.assert_array_equal(scanned[0].rows, state[0].rows)


def test_long_discounts() -> None:
    """Those of Agent57, in float64 from the corrected formula; γ_8 = .997, γ_31 = .99."""
    found = intrinsic.long_discounts(32, *map(jnp.float32, (0.9999, 0.997, 0.99)))
    middle = [0.9970037, 0.9970999, 0.99845, 0.9998001, 0.9998963, 0.9998999]
    j = np.arange(24)
    rest = 1 - np.exp(((23 - j) * np.log(0.003) + j * np.log(0.01)) / 23)
    np.testing.assert_allclose(found, [0.9999, *middle, 0.997, *rest], atol=2e-7)
    np.testing.assert_allclose(np.asarray(found)[[7, 8, 31]], [0.997, 0.997, 0.99], atol=1e-7)
    found = intrinsic.long_discounts(10, *map(jnp.float32, (0.9999, 0.997, 0.99)))
    np.testing.assert_allclose(found, [0.9999, *middle, 0.997, 0.997, 0.99], atol=2e-7)


@pytest.mark.parametrize("members", [2, 4, 9])
def test_long_discounts_of_few_members(members: int) -> None:
    """Horizons from 10,000 to 100 steps, each the same part of the one before."""
    found = intrinsic.long_discounts(members, *map(jnp.float32, (0.9999, 0.5, 0.99)))
    horizons = np.geomspace(10_000, 100, members)
    np.testing.assert_allclose(1 / (1 - np.float64(found)), horizons, rtol=2e-3)
