"""Action distributions: densities, samples, bounds, masks, and the spaces they are made for."""

from __future__ import annotations

import functools
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from gymnasium import spaces

from pronk.errors import UserError
from pronk.maths import distributions
from pronk.maths.distributions import MASKED, Categorical, DiagonalGaussian, MultiCategorical

KEY = jax.random.key(0)
INF = float("inf")


class Compiled:
    """A distribution, each of whose methods is compiled as a whole."""

    def __init__(self, distribution: Any):
        self._distribution = distribution

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._distribution, name)
        return _jit(found) if callable(found) else found

    def __eq__(self, other: object) -> bool:
        return self._distribution == other


@functools.cache
def _jit(method: Any) -> Any:
    return jax.jit(method)


def categorical(*args: Any) -> Any:
    return Compiled(Categorical(*args))


def multi_categorical(*args: Any) -> Any:
    return Compiled(MultiCategorical(*args))


def gaussian(*args: Any, **kwargs: Any) -> Any:
    return Compiled(DiagonalGaussian(*args, **kwargs))


def for_space(space: Any, **kwargs: Any) -> Any:
    return Compiled(distributions.for_space(space, **kwargs))


def samples(distribution, params, count: int):
    """`count` samples of one distribution, params `[P]`."""
    many = np.broadcast_to(params, (count, *params.shape))
    return many, distribution.sample(many, KEY)


def test_categorical():
    logits = np.array([[0.3, -1.0, 2.0], [1.0, 1.0, 1.0]], np.float32)
    p = scipy.special.softmax(logits, axis=-1)
    d = categorical(3)
    for a in range(3):
        np.testing.assert_allclose(
            d.log_prob(logits, np.full(2, a)), np.log(p[:, a]), rtol=1e-5, atol=1e-6
        )
    np.testing.assert_allclose(d.entropy(logits, KEY), scipy.stats.entropy(p, axis=1), rtol=1e-5)
    assert d.mode(logits)[0] == 2
    _, raw = samples(d, logits[0], 20_000)
    assert raw.dtype == jnp.int32
    np.testing.assert_allclose(np.bincount(raw, minlength=3) / 20_000, p[0], atol=0.015)
    np.testing.assert_array_equal(d.features(np.array([2])), [[0, 0, 1]])


@pytest.mark.parametrize(
    "distribution",
    [
        categorical(3),
        multi_categorical((2, 3)),
        gaussian((-1.0, 0.0), (1.0, 2.0)),
        gaussian((-1.0, 0.0), (1.0, 2.0), squash=True),
    ],
)
def test_the_kl_divergence_is_the_mean_of_the_log_ratio(distribution):
    rng = np.random.default_rng(1)
    params, other = rng.normal(size=(2, distribution.num_params)).astype(np.float32)
    many, raw = samples(distribution, np.float32(params), 40_000)
    log_prob = distribution.log_prob
    ratio = np.subtract(log_prob(many, raw), log_prob(np.broadcast_to(other, many.shape), raw))
    found = float(distribution.kl(params, other))
    assert found == pytest.approx(float(ratio.mean()), abs=5 * float(ratio.std()) / 200)
    assert found > 0.05
    assert float(distribution.kl(params, params)) == pytest.approx(0.0, abs=1e-6)


def test_the_implied_policy_is_vtraces():
    rng = np.random.default_rng(0)
    params, behaviour = rng.normal(size=(2, 4, 3)).astype(np.float32)
    pi, mu = (scipy.special.softmax(x, axis=-1) for x in (params, behaviour))
    for rho_bar in (0.5, 1.0, 2.0, np.inf):
        expected = np.minimum(rho_bar * mu, pi)
        expected /= expected.sum(-1, keepdims=True)
        found = categorical(3).implied(params, behaviour, np.float32(rho_bar))
        np.testing.assert_allclose(scipy.special.softmax(found, axis=-1), expected, rtol=1e-5)
    several = multi_categorical((3, 3))
    both = several.implied(*(np.tile(x, (1, 2)) for x in (params, behaviour)), np.float32(1.0))
    one = categorical(3).implied(params, behaviour, np.float32(1.0))
    np.testing.assert_allclose(both, np.tile(one, (1, 2)))


def test_the_kl_divergence_with_a_mask():
    masked = np.array([0.3, MASKED, -1.0], np.float32)
    assert float(categorical(3).kl(masked, masked + 0.5)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("sizes", [(2, 3, 4), (3, 2, 3, 2), (2, 2, 2), (1, 5), (4, 4, 2)])
def test_multi_categorical_is_one_categorical_for_each_component(sizes):
    """To the bit, whatever is computed as a batch: samples and modes, and nearly so their sums."""
    d = multi_categorical(sizes)
    rng = np.random.default_rng(0)
    params, other = rng.normal(size=(2, 5, sum(sizes))).astype(np.float32)
    raw = np.asarray(d.sample(params, KEY))
    assert raw.dtype == np.int32
    cuts = np.cumsum(sizes)[:-1]
    ones = [categorical(n) for n in sizes]
    parts = list(zip(ones, np.split(params, cuts, 1), np.split(other, cuts, 1), strict=True))
    keys = jax.random.split(KEY, len(sizes))
    drawn = [one.sample(p, key) for (one, p, _), key in zip(parts, keys, strict=True)]
    np.testing.assert_array_equal(raw, np.stack(drawn, axis=1))
    np.testing.assert_array_equal(d.mode(params), np.stack([o.mode(p) for o, p, _ in parts], 1))
    rho = np.float32(0.8)
    implied = np.concatenate([one.implied(p, q, rho) for one, p, q in parts], axis=1)
    np.testing.assert_array_equal(d.implied(params, other, rho), implied)
    hot = np.concatenate([one.features(raw[:, i]) for i, one in enumerate(ones)], axis=1)
    np.testing.assert_array_equal(d.features(raw), hot)
    log_prob = sum(one.log_prob(p, raw[:, i]) for i, (one, p, _) in enumerate(parts))
    np.testing.assert_allclose(d.log_prob(params, raw), log_prob, rtol=1e-6)
    kl = sum(one.kl(p, q) for one, p, q in parts)
    np.testing.assert_allclose(d.kl(params, other), kl, rtol=1e-5)
    entropy = sum(one.entropy(p, KEY) for one, p, _ in parts)
    np.testing.assert_allclose(d.entropy(params, KEY), entropy, rtol=1e-6)


def test_equal_components_are_computed_once():
    """The size of the program does not depend on their number."""

    def operations(sizes):
        d = MultiCategorical(sizes)

        def f(params, other, key):
            raw = d.sample(params, key)
            values = (d.log_prob(params, raw), d.entropy(params, key), d.kl(params, other))
            return *values, d.mode(params), d.features(raw), d.implied(params, other, 1.0)

        params = jnp.zeros((4, sum(sizes)))
        return len(jax.make_jaxpr(f)(params, params, KEY).eqns)

    assert operations((3,) * 50) == operations((3,) * 4)
    assert operations((3, 2) * 25) == operations((3, 2) * 2)


def test_multi_categorical_is_independent_categoricals():
    sizes = (2, 3, 4)
    d = multi_categorical(sizes)
    params = np.random.default_rng(0).normal(size=(5, 9)).astype(np.float32)
    raw = np.array([[1, 2, 3], [0, 0, 0], [1, 0, 2], [0, 2, 1], [1, 1, 1]])
    parts = np.split(params, [2, 5], axis=1)
    log_p = sum(
        categorical(n).log_prob(p, raw[:, i])
        for i, (n, p) in enumerate(zip(sizes, parts, strict=True))
    )
    np.testing.assert_allclose(d.log_prob(params, raw), log_p, rtol=1e-5)
    entropy = sum(scipy.stats.entropy(scipy.special.softmax(p, axis=1), axis=1) for p in parts)
    np.testing.assert_allclose(d.entropy(params, KEY), entropy, rtol=1e-5)
    np.testing.assert_array_equal(
        d.mode(params), np.stack([p.argmax(axis=1) for p in parts], axis=1)
    )
    _, actions = samples(d, params[0], 20_000)
    for i, part in enumerate(parts):
        frequency = np.bincount(actions[:, i], minlength=sizes[i]) / 20_000
        np.testing.assert_allclose(frequency, scipy.special.softmax(part[0]), atol=0.015)
    # Equal logits side by side: with one key for all the parts would move together.
    _, pair = samples(multi_categorical((2, 2)), np.zeros(4, np.float32), 4000)
    assert abs(np.corrcoef(pair.T)[0, 1]) < 0.06
    assert d.features(raw).shape == (5, d.num_features)
    np.testing.assert_array_equal(d.features(raw)[0], [0, 1, 0, 0, 1, 0, 0, 0, 1])


def test_forbidden_actions():
    """Never sampled, and neither entropy nor gradients are touched by them."""
    d = categorical(4)
    mask = np.array([True, False, True, False])

    def masked(logits):
        return jnp.where(mask, logits, MASKED)

    logits = np.array([0.5, 3.0, -0.5, 1.0], np.float32)
    allowed = np.where(mask, logits, np.float32(MASKED))
    _, raw = samples(d, allowed, 5000)
    assert set(np.unique(raw)) == {0, 2}
    assert d.mode(allowed) == 0
    p = scipy.special.softmax([0.5, -0.5])
    np.testing.assert_allclose(d.entropy(allowed, KEY), scipy.stats.entropy(p), rtol=1e-5)
    np.testing.assert_allclose(d.log_prob(allowed, np.array(2)), np.log(p[1]), rtol=1e-5)
    for f in (
        lambda x: d.entropy(masked(x), KEY),
        lambda x: d.log_prob(masked(x), np.array(0)),
    ):
        gradient = np.asarray(jax.jit(jax.grad(f))(logits))
        assert np.isfinite(gradient).all()
        assert gradient[1] == gradient[3] == 0
        assert gradient[0] != 0
    only = np.where(np.arange(4) == 1, logits, np.float32(MASKED))
    assert d.entropy(only, KEY) == 0
    assert np.isfinite(jax.jit(jax.grad(lambda x: d.entropy(x, KEY)))(only)).all()


def test_gaussian_against_scipy():
    d = gaussian((-1.0, -1.0), (1.0, 1.0), initial_std=0.5)
    params = np.array([0.3, -0.2, 0.0, 1.5], np.float32)
    std = np.logaddexp(0, params[2:] + np.log(np.expm1(0.5))) + d.min_std
    raw = np.array([0.9, -2.0], np.float32)
    expected = scipy.stats.norm(params[:2], std)
    np.testing.assert_allclose(d.log_prob(params, raw), expected.logpdf(raw).sum(), rtol=1e-5)
    np.testing.assert_allclose(d.entropy(params, KEY), expected.entropy().sum(), rtol=1e-5)
    np.testing.assert_array_equal(d.mode(params), params[:2])
    _, drawn = samples(d, np.float32(params), 50_000)
    np.testing.assert_allclose(drawn.mean(axis=0), params[:2], atol=0.03)
    np.testing.assert_allclose(drawn.std(axis=0), std, rtol=0.02)
    np.testing.assert_allclose(std[0], 0.5, atol=2 * d.min_std)  # x = 0 means `initial_std`


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("params", [(0.0, 0.0), (0.7, -1.0), (-1.5, 0.5)])
def test_density_integrates_to_one(squash, params):
    """On the scale where ±1 are the bounds: of tanh(raw) if squashed, else of raw itself."""
    d = gaussian((-3.0,), (7.0,), squash=squash)
    raw = np.linspace(-12, 12, 40_001, dtype=np.float64)[:, None]
    many = np.broadcast_to(np.float32(params), (len(raw), 2))
    density = np.exp(d.log_prob(many, raw.astype(np.float32)), dtype=np.float64)
    y = np.tanh(raw[:, 0]) if squash else raw[:, 0]
    np.testing.assert_allclose(np.trapezoid(density, y), 1.0, atol=1e-3)


def test_squashed_entropy_and_its_gradient():
    """The one-sample estimate is right on average, and so is its gradient."""
    d = gaussian((-1.0,), (1.0,), squash=True, initial_std=0.7)
    params = np.array([0.4, 0.3], np.float32)
    many, raw = samples(d, params, 50_000)
    x = np.linspace(-10, 10, 20_001, dtype=np.float32)[:, None]

    def exact(params):
        log_p = d.log_prob(jnp.broadcast_to(params, (len(x), 2)), x)
        return -jnp.trapezoid(jnp.exp(log_p) * log_p * (1 - jnp.tanh(x[:, 0]) ** 2), x[:, 0])

    def sampled(params):
        return d.entropy(jnp.broadcast_to(params, many.shape), KEY).mean()

    value, gradient = jax.jit(jax.value_and_grad(sampled))(params)
    expected, slope = jax.jit(jax.value_and_grad(exact))(params)
    np.testing.assert_allclose(value, expected, atol=0.02)
    np.testing.assert_allclose(gradient, slope, atol=0.02)
    np.testing.assert_allclose(-np.mean(d.log_prob(many, raw)), expected, atol=0.02)


def test_squashed_log_prob_keeps_its_digits():
    d = gaussian((-1.0,), (1.0,), squash=True)
    raw = np.array([[15.0], [-15.0], [40.0]], np.float32)
    x = np.abs(np.float64(raw[:, 0]))
    slope = 2 * (np.log(2) - x - np.log1p(np.exp(-2 * x)))  # log(1 - tanh²)
    exact = scipy.stats.norm(0, 1 + d.min_std).logpdf(x) - slope
    np.testing.assert_allclose(d.log_prob(np.zeros((3, 2), np.float32), raw), exact, rtol=1e-4)
    gradient = jax.jit(jax.grad(lambda p: d.log_prob(p, raw).sum()))(np.zeros((3, 2), np.float32))
    assert np.isfinite(gradient).all()


def test_actions_within_bounds():
    """Bounded, half-bounded and unbounded dimensions side by side."""
    space = spaces.Box(
        np.array([-2.0, 0.0, -INF, -INF, 5.0], np.float32),
        np.array([2.0, 1.0, INF, 3.0, INF], np.float32),
    )
    d = for_space(space)
    raw = np.random.default_rng(0).normal(size=(1000, 5), scale=5).astype(np.float32)
    action = np.asarray(d.action(raw))
    assert action.dtype == np.float32
    assert all(space.contains(a) for a in action)
    np.testing.assert_allclose(action[:, 0], 2 * np.clip(raw[:, 0], -1, 1), atol=1e-6)
    np.testing.assert_allclose(action[:, 1], (np.clip(raw[:, 1], -1, 1) + 1) / 2, atol=1e-6)
    np.testing.assert_array_equal(action[:, 2], raw[:, 2])
    np.testing.assert_array_equal(action[:, 3], np.minimum(raw[:, 3], 3))
    # From the bound, because all samples around 0 would be clipped to it.
    np.testing.assert_array_equal(action[:, 4], np.maximum(raw[:, 4] + 5, 5))
    bounds = np.array([[-1.0] * 5, [1.0] * 5], np.float32)
    np.testing.assert_array_equal(np.asarray(d.action(bounds))[:, :2], [[-2, 0], [2, 1]])


@pytest.mark.parametrize("bound", [INF, float(np.finfo(np.float32).max), 1e38, 1e300])
def test_bounds_that_are_meant_as_none(bound):
    """They are not scaled to: actions would overflow, or all be one."""
    high = np.array([bound, bound, 2.0])
    space = spaces.Box(np.array([-bound, 0.0, -2.0]), high, dtype=np.float64)
    raw = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    for squash in (False, True):
        d = for_space(space, squash=squash)
        action = np.asarray(d.action(raw))
        assert all(space.contains(a.astype(np.float64)) for a in action)
        np.testing.assert_array_equal(action[:, 0], raw[:, 0])
        np.testing.assert_array_equal(action[:, 1], np.maximum(raw[:, 1], 0))
        scaled = np.tanh(raw[:, 2]) if squash else np.clip(raw[:, 2], -1, 1)
        np.testing.assert_allclose(action[:, 2], 2 * scaled, atol=1e-5)


def test_only_bounded_dimensions_are_squashed():
    """The distribution is the product of a plain Gaussian and a squashed one."""
    both = gaussian((-INF, -1.0), (INF, 1.0), squash=True)
    parts = (gaussian((-INF,), (INF,)), gaussian((-1.0,), (1.0,), squash=True))
    params = np.array([4.0, 5.0, 0.3, -0.2], np.float32)  # both means beyond MEAN_BOUND
    other = np.array([3.0, 4.0, 0.1, 0.2], np.float32)
    raw = np.array([4.5, 1.5], np.float32)
    log_prob = sum(d.log_prob(params[i::2], raw[i : i + 1]) for i, d in enumerate(parts))
    np.testing.assert_allclose(both.log_prob(params, raw), log_prob, rtol=1e-5)
    kl = sum(d.kl(params[i::2], other[i::2]) for i, d in enumerate(parts))
    np.testing.assert_allclose(both.kl(params, other), kl, rtol=1e-5)
    mode = np.concatenate([d.mode(params[i::2]) for i, d in enumerate(parts)])
    np.testing.assert_allclose(both.mode(params), mode, rtol=1e-6)
    many, drawn = samples(both, np.float32(params), 20_000)
    entropy = np.mean(both.entropy(many, KEY))
    np.testing.assert_allclose(entropy, -np.mean(both.log_prob(many, drawn)), atol=0.03)


@functools.cache
def _gradient_of_loss(log_prob):
    return jax.jit(jax.grad(lambda params, raw: -log_prob(params, raw)))


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_a_mean_beyond_the_bound_is_led_back(side):
    """Gradients that lead it back pass in full, however far out it is; others are zero."""
    d = gaussian((-1.0,), (1.0,), squash=True)
    bound = distributions.MEAN_BOUND

    def gradient(mean, raw):
        """Of a loss: the action's probability should grow."""
        return _gradient_of_loss(d.log_prob)(
            np.array([mean, 0.0], np.float32), np.array([raw], np.float32)
        )[0]

    np.testing.assert_allclose(d.mode(np.array([side * 30.0, 0.0], np.float32)), [side * bound])
    inward = gradient(side * 30.0, side * (bound - 1.0))
    np.testing.assert_allclose(inward, gradient(side * bound, side * (bound - 1.0)), rtol=1e-5)
    assert inward * side > 0.5
    assert gradient(side * 30.0, side * (bound + 1.0)) == 0
    assert gradient(side * 2.0, side * (bound + 1.0)) * side < -0.5  # within it, all pass


def test_squashed_actions_within_bounds():
    space = spaces.Box(np.array([-2.0, 0.1], np.float32), np.array([2.0, 0.3], np.float32))
    d = for_space(space, squash=True)
    raw = np.array([[100.0, 100.0], [-100.0, -100.0], [0.0, 0.0], [0.5, 0.5]], np.float32)
    action = np.asarray(d.action(raw))
    assert all(space.contains(a) for a in action)
    expected = [[2, 0.3], [-2, 0.1], [0, 0.2], [2 * np.tanh(0.5), 0.2 + 0.1 * np.tanh(0.5)]]
    np.testing.assert_allclose(action, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (spaces.Discrete(5, start=2), Categorical(5)),
        (spaces.MultiDiscrete([2, 3]), MultiCategorical((2, 3))),
        (spaces.MultiBinary(3), MultiCategorical((2, 2, 2))),
        (
            spaces.Box(-2, 2, (1,), np.float64),
            DiagonalGaussian((-2.0,), (2.0,)),
        ),
    ],
)
def test_spaces(space, expected):
    d = for_space(space)
    assert d == expected
    params = np.zeros((7, d.num_params), np.float32)
    raw = d.sample(params, KEY)
    assert d.features(raw).shape == (7, d.num_features)
    assert d.log_prob(params, raw).shape == d.entropy(params, KEY).shape == (7,)
    assert d.action(raw).shape == (7, *space.shape)
    assert d.mode(params).shape == raw.shape
    offset = getattr(space, "start", 0)
    for action in np.asarray(d.action(raw)):
        assert space.contains(np.asarray(action + offset, space.dtype))


@pytest.mark.parametrize("squash", [True, False])
def test_an_agent_sees_the_action_that_was_executed(squash):
    d = gaussian((-2.0, 0.0), (2.0, 1.0), squash=squash)
    raw = np.array([[0.7, -3.0], [2.0, 0.1]], np.float32)
    unit = 2 * (d.action(raw) - np.array(d.low)) / (np.array(d.high) - np.array(d.low)) - 1
    np.testing.assert_allclose(d.features(raw), unit, atol=1e-6)


@pytest.mark.parametrize(
    ("space", "squash"),
    [
        (spaces.Dict({"a": spaces.Discrete(2)}), False),
        (spaces.Tuple([spaces.Discrete(2)]), False),
        (spaces.Text(3), False),
        (spaces.Box(-1, 1, (2, 2)), False),
        (spaces.Box(-1, 1, ()), False),
        (spaces.Box(0, 9, (2,), np.int32), False),
        (spaces.MultiBinary((2, 2)), False),
        (spaces.MultiDiscrete([[2, 2], [2, 2]]), False),
        (spaces.Box(2.0, 2.0, (1,), np.float64), True),
        (spaces.Box(2.0, 2.0 + 1e-12, (1,), np.float64), False),  # equal in float32
    ],
)
def test_unsupported_spaces_are_named(space: gym.Space, squash):
    with pytest.raises(UserError, match="the action space"):
        distributions.for_space(space, squash=squash)


@pytest.mark.parametrize(
    "distribution",
    [categorical(3), multi_categorical((2, 3)), gaussian((-1.0, 0.0), (1.0, 2.0))],
)
def test_wrong_shapes_are_named(distribution):
    params = np.zeros((4, distribution.num_params), np.float32)
    raw = np.asarray(distribution.mode(params))
    for wrong in (params[:, :-1], np.pad(params, ((0, 0), (0, 1)))):
        with pytest.raises(ValueError, match=r"`params` has shape .* parameters per element"):
            distribution.sample(wrong, KEY)
        for pair in (distribution.kl, lambda *x: distribution.implied(*x, 1.0)):
            with pytest.raises(ValueError, match="has shape"):
                pair(params, wrong)
    with pytest.raises(ValueError, match=r"`raw` has shape .*, expected"):
        distribution.log_prob(params, raw[..., None])
    with pytest.raises(ValueError, match=r"`raw` has shape .*, expected"):
        distribution.log_prob(params, raw[:1])
