"""Corrections for off-policy data: V-trace, IMPALA's alternatives to it, LASER's trust region."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from pronk.maths import returns
from pronk.maths.distributions import Distribution
from pronk.maths.returns import Transitions
from pronk.types import Array, Batch, LearnerState

EPSILON = 1e-6  # of ε-correction, log(π + ε) (Espeholt et al. 2018, section 5.2.2)


def targets(
    correction: str,
    hyper: dict[str, Array],
    values: Array,
    transitions: Transitions,
    ratio: Array,
    weight: Array,
) -> returns.VTrace:
    """Value targets and advantages, `[T, B]`, by one of four corrections.

    correction: `vtrace`; `none` and `epsilon` take π for μ; `one-step` targets r + γ V' without a
    weight and multiplies the advantage by ρ (Espeholt et al. 2018, section 5.2.2). values:
    `[T + 1, B]`; ratio: π/μ `[T, B]`; weight: `[T, B]`, 0 for transitions to leave out, dummies
    among them.
    """
    levels: dict[str, Any] = {"lambda_": hyper["trace_lambda"]}
    continuation = transitions.continuation
    if correction == "vtrace":
        levels |= {"rho_bar": hyper["rho_bar"], "c_bar": hyper["c_bar"]}
        levels |= {"leak": hyper.get("trace_leak", 0.0)}
        applied = jnp.where(weight > 0, ratio, 0.0)
    else:
        applied = weight  # as if π and μ were the same
    if correction == "one-step":
        continuation = jnp.zeros_like(continuation)
    vtrace = jax.vmap(lambda *args: returns.vtrace(*args, **levels), in_axes=1, out_axes=1)(
        values, transitions.reward, transitions.discount, continuation, applied
    )
    if correction == "one-step":
        rho = jnp.minimum(hyper["rho_bar"], ratio)
        vtrace = vtrace._replace(advantages=rho * vtrace.advantages)
    return vtrace


def policy_log_prob(correction: str, log_prob: Array) -> Array:
    """The log-probability that the policy gradient differentiates, of the shape of `log_prob`."""
    if correction == "epsilon":
        return jnp.logaddexp(log_prob, jnp.log(EPSILON))
    return log_prob


def trust_region_mask(
    distribution: Distribution, average: Array, batch: Batch, hyper: dict[str, Array]
) -> Array:
    """LASER's trust region: True where KL(π_average ‖ π_ρ̄) < `trust_region`, `[T, B]`.

    π_ρ̄ is the policy whose value V-trace estimates from the batch's behaviour. average: parameters
    of distributions, `[T + 1, B, P]` (Schmitt et al. 2020, section 4.3).
    """
    implied = distribution.implied(average, batch.trajectory.extras["policy"], hyper["rho_bar"])
    return distribution.kl(average, implied)[:-1] < hyper["trust_region"]


def update_average(state: LearnerState) -> LearnerState:
    """Move the average policy's parameters, `extra["target"]`, towards the new ones."""
    decay = state.hyper["average_decay"]
    average = optax.incremental_update(state.params, state.extra["target"], 1.0 - decay)
    return state._replace(extra=state.extra | {"target": average})
