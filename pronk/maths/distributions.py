"""Action distributions, chosen by the action space.

Each is a small frozen object whose methods are pure and raise ValueError for arrays whose shapes do
not fit. `params` `[..., num_params]` come from the policy head. A *raw* action is the sample, whose
log-probability is defined; `action` maps it to the action that the environment executes. They
differ only for continuous actions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from pronk.errors import UserError
from pronk.maths.shapes import assert_rank, assert_same_shape, assert_shape
from pronk.maths.spaces import UNBOUNDED, choices, one_hots
from pronk.types import Array, Key

# Added to logits of forbidden actions: finite, so that gradients and entropies stay finite.
MASKED = -1e9

# Squashed means stay within ± this before tanh: within 0.987 of the action bounds after it.
MEAN_BOUND = 2.5


@jax.custom_vjp
def _within_bound(mean: Array) -> Array:
    """`mean` clipped to ± MEAN_BOUND; beyond it, only gradients whose descent leads back pass.

    Those of clipping, or of a tanh, would be zero, or nearly, and a mean that an update has
    carried beyond the bound would stay there.
    """
    return jnp.clip(mean, -MEAN_BOUND, MEAN_BOUND)


def _within_bound_forward(mean: Array) -> tuple[Array, Array]:
    return _within_bound(mean), mean


def _within_bound_backward(mean: Array, gradient: Array) -> tuple[Array]:
    outward = (jnp.abs(mean) > MEAN_BOUND) & (mean * gradient < 0)
    return (jnp.where(outward, 0.0, gradient),)


_within_bound.defvjp(_within_bound_forward, _within_bound_backward)


class Distribution(Protocol):
    """The action distribution of a policy; for `raw` see the module's docstring.

    Entropies, divergences and log-probabilities are in nats, `[...]`; features `[..., F]` encode an
    action for a network.
    """

    @property
    def num_params(self) -> int: ...
    @property
    def num_features(self) -> int: ...
    @property
    def continuous(self) -> bool: ...

    def sample(self, params: Array, key: Key) -> Array: ...
    def mode(self, params: Array) -> Array: ...
    def log_prob(self, params: Array, raw: Array) -> Array: ...
    def entropy(self, params: Array, key: Key) -> Array: ...
    def kl(self, params: Array, other: Array) -> Array: ...  # KL(params ‖ other), [...]
    # M t, where M is the Fisher information with respect to `params`, [..., P]
    def fisher_product(self, params: Array, tangent: Array) -> Array: ...
    def implied(self, params: Array, behaviour: Array, rho_bar: Array) -> Array: ...
    def action(self, raw: Array) -> Array: ...
    def features(self, raw: Array) -> Array: ...


def _batch_shape(distribution: Distribution, **params: Array) -> tuple[int, ...]:
    """The batch axes of `params`, after checking that all are of one shape `[..., num_params]`."""
    assert_same_shape(**params)
    (name, first), *_ = params.items()
    batch = np.shape(first)[:-1]
    size = distribution.num_params
    assert_shape((*batch, size), f"{size} parameters per element", **{name: first})
    return batch


def _check_raw(expected: tuple[int, ...], raw: Array) -> None:
    assert_shape(expected, "the batch axes of `params`, then those of an action", raw=raw)


@dataclass(frozen=True)
class Categorical:
    """One of `n` actions; `params` are logits `[..., n]`, raw and action are int32 `[...]`."""

    n: int
    continuous = False

    @property
    def num_params(self) -> int:
        return self.n

    @property
    def num_features(self) -> int:
        return self.n

    def sample(self, params: Array, key: Key) -> Array:
        _batch_shape(self, params=params)
        return jax.random.categorical(key, params).astype(jnp.int32)

    def mode(self, params: Array) -> Array:
        _batch_shape(self, params=params)
        return jnp.argmax(params, axis=-1).astype(jnp.int32)

    def log_prob(self, params: Array, raw: Array) -> Array:
        _check_raw(_batch_shape(self, params=params), raw)
        log_p = jax.nn.log_softmax(params)
        return jnp.take_along_axis(log_p, raw[..., None], axis=-1)[..., 0]

    def entropy(self, params: Array, key: Key) -> Array:
        _batch_shape(self, params=params)
        log_p = jax.nn.log_softmax(params)
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    def kl(self, params: Array, other: Array) -> Array:
        _batch_shape(self, params=params, other=other)
        log_p = jax.nn.log_softmax(params)
        return jnp.sum(jnp.exp(log_p) * (log_p - jax.nn.log_softmax(other)), axis=-1)

    def fisher_product(self, params: Array, tangent: Array) -> Array:
        """(diag(p) − p pᵀ) t, of the logits' Fisher information."""
        _batch_shape(self, params=params, tangent=tangent)
        p = jax.nn.softmax(params)
        return p * (tangent - jnp.sum(p * tangent, axis=-1, keepdims=True))

    def implied(self, params: Array, behaviour: Array, rho_bar: Array) -> Array:
        """Parameters of π_ρ̄ ∝ min(ρ̄ μ, π), the policy that V-trace evaluates (Espeholt et al.
        2018, eq. 3). rho_bar: a scalar."""
        _batch_shape(self, params=params, behaviour=behaviour)
        assert_rank(0, rho_bar=rho_bar)
        log_pi, log_mu = jax.nn.log_softmax(params), jax.nn.log_softmax(behaviour)
        return jnp.minimum(jnp.log(rho_bar) + log_mu, log_pi)

    def action(self, raw: Array) -> Array:
        return raw

    def features(self, raw: Array) -> Array:
        return jax.nn.one_hot(raw, self.n)


class _Group(NamedTuple):
    """The components of a `MultiCategorical` that have the same size, computed as one batch."""

    distribution: Categorical
    components: np.ndarray  # int [g]
    columns: np.ndarray  # int [g, n], of their logits


@dataclass(frozen=True)
class MultiCategorical:
    """Independent categoricals; `params` are their logits side by side, raw is int32 `[..., k]`.

    Components of one size are one computation, because compiling them one by one takes minutes.
    """

    sizes: tuple[int, ...]
    continuous = False

    @property
    def num_params(self) -> int:
        return sum(self.sizes)

    @property
    def num_features(self) -> int:
        return sum(self.sizes)

    def _groups(self) -> list[_Group]:
        sizes = np.asarray(self.sizes)
        begins = np.cumsum(sizes) - sizes
        groups = []
        for n in dict.fromkeys(self.sizes):
            components = np.flatnonzero(sizes == n)
            columns = begins[components, None] + np.arange(n)
            groups.append(_Group(Categorical(n), components, columns))
        return groups

    def _split(self, params: Array) -> list[Array]:
        """The logits `[..., g, n]` of each group."""
        batch = _batch_shape(self, params=params)
        groups = self._groups()
        if len(groups) == 1:
            return [params.reshape(*batch, len(self.sizes), -1)]
        # Not by indices: their gradient would be a scatter, which is slow on CPUs.
        parts = jnp.split(params, np.cumsum(self.sizes)[:-1], axis=-1)
        return [jnp.stack([parts[i] for i in group.components], axis=-2) for group in groups]

    def _joined(self, parts: list[Array]) -> Array:
        """What was computed of each group, `[..., g]`, in the components' order, `[..., k]`."""
        joined = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
        return _permuted(joined, [group.components for group in self._groups()])

    def _sum(self, method: Callable[..., Array], *arrays: list[Array]) -> Array:
        """The sum over the components of what `method` of each group's distribution makes of its
        part of `arrays`."""
        groups = zip(self._groups(), *arrays, strict=True)
        return sum(jnp.sum(method(group.distribution, *x), axis=-1) for group, *x in groups)

    def sample(self, params: Array, key: Key) -> Array:
        keys = jax.random.split(key, len(self.sizes))
        return self._joined(
            [
                jax.vmap(group.distribution.sample, (-2, 0), -1)(part, keys[group.components])
                for group, part in zip(self._groups(), self._split(params), strict=True)
            ]
        )

    def mode(self, params: Array) -> Array:
        parts = zip(self._groups(), self._split(params), strict=True)
        return self._joined([group.distribution.mode(part) for group, part in parts])

    def log_prob(self, params: Array, raw: Array) -> Array:
        _check_raw((*np.shape(params)[:-1], len(self.sizes)), raw)
        taken = [raw[..., group.components] for group in self._groups()]
        return self._sum(Categorical.log_prob, self._split(params), taken)

    def entropy(self, params: Array, key: Key) -> Array:
        return self._sum(lambda d, p: d.entropy(p, key), self._split(params))

    def kl(self, params: Array, other: Array) -> Array:
        _batch_shape(self, params=params, other=other)
        return self._sum(Categorical.kl, self._split(params), self._split(other))

    def fisher_product(self, params: Array, tangent: Array) -> Array:
        """That of each categorical: they are independent."""
        return self._joined_columns(Categorical.fisher_product, params, tangent)

    def implied(self, params: Array, behaviour: Array, rho_bar: Array) -> Array:
        """π_ρ̄ of each categorical with its own ratio: π_ρ̄ of their product is not a product."""
        return self._joined_columns(lambda d, p, q: d.implied(p, q, rho_bar), params, behaviour)

    def _joined_columns(self, method: Callable[..., Array], params: Array, other: Array) -> Array:
        """What `method` of each group's distribution makes of its part of the arrays, side by side
        as these are, `[..., num_params]`."""
        batch = _batch_shape(self, params=params, other=other)
        groups = self._groups()
        pairs = zip(groups, self._split(params), self._split(other), strict=True)
        parts = [method(group.distribution, p, q) for group, p, q in pairs]
        flat = jnp.concatenate([part.reshape(*batch, -1) for part in parts], axis=-1)
        return _permuted(flat, [group.columns.reshape(-1) for group in groups])

    def action(self, raw: Array) -> Array:
        return raw

    def features(self, raw: Array) -> Array:
        return one_hots(raw, self.sizes, jnp)


def _permuted(x: Array, places: list[np.ndarray]) -> Array:
    """The elements of `x` `[..., k]`, each put in its place."""
    order = np.argsort(np.concatenate(places))
    return x if (order == np.arange(len(order))).all() else x[..., order]


@dataclass(frozen=True)
class DiagonalGaussian:
    """A Gaussian per action dimension, optionally squashed by tanh into the action bounds.

    `params` `[..., 2 k]` are means and pre-softplus standard deviations (softplus(x + offset), the
    offset making x = 0 mean `initial_std`). Raw actions `[..., k]` are on a scale where −1 and 1
    are the bounds `low` and `high` (both `[k]`); dimensions with an infinite bound are not scaled
    or squashed: there a raw action is added to 0, or to the bound nearest to 0. `action` clips or
    squashes. Log-probabilities are densities on the scale where −1 and 1 are the bounds: of the
    squashed variable in squashed dimensions, of the raw sample in others.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    squash: bool = False
    initial_std: float = 1.0
    min_std: float = 1e-3
    continuous = True

    @property
    def num_params(self) -> int:
        return 2 * len(self.low)

    @property
    def num_features(self) -> int:
        return len(self.low)

    def _mean_std(self, params: Array) -> tuple[Array, Array]:
        _batch_shape(self, params=params)
        mean, x = jnp.split(params, 2, axis=-1)
        # Far out tanh is flat: a mean there would get no gradient back.
        mean = self._if_squashed(lambda: _within_bound(mean), lambda: mean)
        offset = np.log(np.expm1(self.initial_std))
        return mean, jax.nn.softplus(x + offset) + self.min_std

    def sample(self, params: Array, key: Key) -> Array:
        noise = jax.random.normal(key, (*params.shape[:-1], len(self.low)), params.dtype)
        return self.shift(params, noise)

    def shift(self, params: Array, noise: Array) -> Array:
        """mean + std · noise, `[..., k]`: a sample where `noise` is standard normal."""
        mean, std = self._mean_std(params)
        return mean + std * noise

    def mode(self, params: Array) -> Array:
        return self._mean_std(params)[0]

    def log_prob(self, params: Array, raw: Array) -> Array:
        mean, std = self._mean_std(params)
        _check_raw(mean.shape, raw)
        log_p = -0.5 * jnp.square((raw - mean) / std) - jnp.log(std) - 0.5 * np.log(2 * np.pi)
        log_p = self._if_squashed(lambda: log_p - log_tanh_slope(raw), lambda: log_p)
        return jnp.sum(log_p, axis=-1)

    def entropy(self, params: Array, key: Key) -> Array:
        """Exact for the Gaussian; with `squash` plus a one-sample estimate of E[log tanh′]."""
        _, std = self._mean_std(params)
        entropy = jnp.sum(jnp.log(std) + 0.5 * np.log(2 * np.pi * np.e), axis=-1)
        if self._squashed.any():
            slope = log_tanh_slope(self.sample(params, key))
            slope = self._if_squashed(lambda: slope, lambda: jnp.zeros_like(slope))
            entropy += jnp.sum(slope, axis=-1)
        return entropy

    def kl(self, params: Array, other: Array) -> Array:
        """Exact, also with `squash`: the same bijection of both leaves the divergence as it is."""
        _batch_shape(self, params=params, other=other)
        (mean, std), (mean_o, std_o) = self._mean_std(params), self._mean_std(other)
        spread = (jnp.square(std) + jnp.square(mean - mean_o)) / (2.0 * jnp.square(std_o))
        return jnp.sum(jnp.log(std_o / std) + spread - 0.5, axis=-1)

    def fisher_product(self, params: Array, tangent: Array) -> Array:
        """With respect to the mean M = 1 / σ², to log σ M = 2, through the softplus of `params`.
        Squashing changes nothing: it is a bijection. A mean beyond its bound counts as it stands
        there, because its gradient passes, too."""
        _batch_shape(self, params=params, tangent=tangent)
        _, std = self._mean_std(params)
        _, x = jnp.split(params, 2, axis=-1)
        d_mean, d_x = jnp.split(tangent, 2, axis=-1)
        slope = jax.nn.sigmoid(x + np.log(np.expm1(self.initial_std)))  # dσ / dx
        product = jnp.concatenate([d_mean, 2.0 * jnp.square(slope) * d_x], axis=-1)
        return product / jnp.square(jnp.concatenate([std, std], axis=-1))

    def implied(self, params: Array, behaviour: Array, rho_bar: Array) -> Array:
        """The behaviour itself: π_ρ̄ is not a Gaussian, but close to μ where π is far from it."""
        _batch_shape(self, params=params, behaviour=behaviour)
        return behaviour

    def action(self, raw: Array) -> Array:
        low, high = np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)
        bounded = self._bounded
        safe_low, safe_high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        scaled = safe_low + 0.5 * (self._unit(raw) + 1.0) * (safe_high - safe_low)
        # Start from 0, or the bound nearest to 0: if 0 is beyond a bound, clipping would make all
        # samples equal.
        free = jnp.clip(np.clip(np.float32(0), low, high) + raw, low, high)
        return jnp.where(bounded, jnp.clip(scaled, safe_low, safe_high), free)

    def features(self, raw: Array) -> Array:
        return self._unit(raw)

    def _unit(self, raw: Array) -> Array:
        """The executed action on the scale where ±1 are the bounds."""
        assert_shape((*np.shape(raw)[:-1], len(self.low)), "[..., action dimensions]", raw=raw)
        return self._if_squashed(lambda: jnp.tanh(raw), lambda: jnp.clip(raw, -1.0, 1.0))

    @property
    def _bounded(self) -> np.ndarray:
        return np.isfinite(self.low) & np.isfinite(self.high)

    @property
    def _squashed(self) -> np.ndarray:
        return self._bounded & self.squash

    def _if_squashed(self, yes: Callable[[], Array], no: Callable[[], Array]) -> Array:
        """`yes()` in the dimensions that are squashed and `no()` in the others, `[..., k]`."""
        squashed = self._squashed
        if squashed.all() or not squashed.any():  # without a `where` that changes nothing
            return yes() if squashed.any() else no()
        return jnp.where(squashed, yes(), no())


def log_tanh_slope(x: Array) -> Array:
    """log(1 − tanh²x), in a form that is accurate for large |x|."""
    return 2.0 * (np.log(2.0) - x - jax.nn.softplus(-2.0 * x))


def _check_differ(space: gym.Space, low: Sequence[float], high: Sequence[float]) -> None:
    """Raise UserError for bounds that are equal, as actions of type float32."""
    equal = np.flatnonzero(np.asarray(low, np.float32) == np.asarray(high, np.float32))
    if len(equal):
        i = equal[0]
        raise UserError(
            f"dimension {i} of the action space {space} has two equal bounds, {low[i]:g}, and"
            " leaves nothing to choose; expected bounds that differ: wrap the environment"
            " (gymnasium.wrappers.TransformAction), so that it adds this number to actions without"
            " that dimension."
        )


def for_space(space: gym.Space, *, squash: bool = False, initial_std: float = 1.0) -> Distribution:
    """The distribution for an action space: Discrete, MultiDiscrete, MultiBinary or flat Box.

    squash and initial_std are those of `DiagonalGaussian`. Raises UserError for any other space,
    and for a Box with a dimension whose bounds are equal.
    """
    if isinstance(space, gym.spaces.Discrete):
        return Categorical(int(space.n))
    if (
        isinstance(space, gym.spaces.MultiDiscrete | gym.spaces.MultiBinary)
        and len(space.shape) == 1
    ):
        return MultiCategorical(choices(space))
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        if not np.issubdtype(space.dtype, np.floating):
            raise UserError(
                f"the action space {space} has dtype {space.dtype}; expected a Box of floats: use"
                " MultiDiscrete for integers."
            )
        # float32's largest number, and others that are as far away, are meant as no bounds.
        low = tuple(float(x) if x > -UNBOUNDED else -np.inf for x in space.low)
        high = tuple(float(x) if x < UNBOUNDED else np.inf for x in space.high)
        _check_differ(space, low, high)
        return DiagonalGaussian(low, high, squash=squash, initial_std=initial_std)
    raise UserError(
        f"the action space {space} is not supported; expected Discrete, MultiDiscrete, MultiBinary"
        " or a one-dimensional Box of floats: wrap the environment to flatten it."
    )
