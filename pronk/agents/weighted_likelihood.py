"""Weighted maximum likelihood: the policy's update of agents that reweight their samples.

`rwr` and `reps` differ in the weights that they give to a batch's transitions. The policy that is
fitted maximises Σ w log π(a|x) by L-BFGS. Only the bound on the number of steps keeps it near the
old policy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pronk.agents.on_policy import OnPolicy
from pronk.agents.rollout import Samples
from pronk.maths import lbfgs, reweighting, weighted
from pronk.nn import networks
from pronk.types import Array, Key, PyTree


class Fitted(NamedTuple):
    """What `fit` made of the network's parameters."""

    params: PyTree
    metrics: dict[str, Array]  # scalars, `gradient_norm` among them


def fit(
    shared: OnPolicy,
    params: PyTree,
    samples: Samples,
    weights: Array,
    key: Key,
    *,
    iterations: int,
    usable: Array | bool = True,
) -> Fitted:
    """The parameters after a fit of the policy; those of a separate value network stay.

    weights: `[T, B]`, 0 for dummies, 1 on average over other transitions. iterations: of L-BFGS, at
    most. The parameters stay as they are, bit for bit, and `accepted` is 0, if the weights are not
    `usable`, not finite, or all equal (a fit would only repeat the batch), if no step increases the
    likelihood, or if the fit is not finite.
    """
    distribution, weight = shared.model.distribution, samples.weight
    policy, rest = networks.split_value(params)

    def forward(policy: PyTree) -> Array:
        joined = networks.join_value(policy, rest)
        return shared.model.forward(joined, samples.rows, samples.last_action, samples.core).policy

    def loss(policy: PyTree) -> Array:
        log_prob = distribution.log_prob(forward(policy), samples.raw_action)
        return -weighted.mean(jnp.where(weight > 0, weights * log_prob, 0.0), weight)

    found = lbfgs.minimise(loss, policy, iterations=iterations)
    before, after = forward(policy), forward(found.params)
    kl = weighted.mean(distribution.kl(before, after), weight)
    reverse = weighted.mean(distribution.kl(after, before), weight)
    accepted = usable & _differ(weights, weight) & (found.value < found.initial)
    accepted &= jnp.isfinite(kl) & jnp.isfinite(reverse)
    policy, after_loss, kl, reverse = jax.tree.map(
        lambda new, old: jnp.where(accepted, new, old),
        (found.params, found.value, kl, reverse),
        (policy, found.initial, jnp.zeros_like(kl), jnp.zeros_like(kl)),
    )
    entropy = weighted.mean(distribution.entropy(before, key), weight)
    metrics: dict[str, Any] = {
        "loss/policy": found.initial,
        "loss/entropy": entropy,
        "log_likelihood": -found.initial,
        "log_likelihood_after": -after_loss,
        "kl": kl,
        "kl_reverse": reverse,
        "accepted": accepted.astype(jnp.float32),
        "fit_steps": found.iterations.astype(jnp.float32),
        "effective_samples": reweighting.effective_share(weights),
        "gradient_norm": found.gradient_norm,
    }
    return Fitted(networks.join_value(policy, rest), metrics)


def _differ(weights: Array, weight: Array) -> Array:
    """Whether the real transitions' weights are finite, and differ by more than rounding."""
    most = jnp.max(jnp.where(weight > 0, weights, -jnp.inf))
    least = jnp.min(jnp.where(weight > 0, weights, jnp.inf))
    return jnp.all(jnp.isfinite(weights)) & (most - least > 1e-4)
