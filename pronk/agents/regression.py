"""Value functions that are fitted apart from the policy, after the policy's step.

The advantages of a batch are estimated before the value function is fitted to the batch: fitted
first, it would know the returns that it is a baseline of.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from pronk.agents import normalisation, step
from pronk.agents.minibatches import Minibatches
from pronk.agents.on_policy import OnPolicy
from pronk.agents.rollout import Data, Estimates
from pronk.maths import linear_baseline, losses, weighted
from pronk.nn import networks
from pronk.types import Array, Key, LearnerState, PyTree


def init(shared: OnPolicy, key: Key) -> LearnerState:
    """The learner's first state; only the value network, if there is one, has an optimiser."""
    state = shared.init(key, optimiser="none")
    if shared.linear:
        return state
    _, value = networks.split_value(state.params)
    return state._replace(opt_state={"value": step.optimiser("adam", state.hyper).init(value)})


def fit(
    config: Any, shared: OnPolicy, state: LearnerState, data: Data, estimates: Estimates
) -> tuple[LearnerState, Array, Array]:
    """The state with a value function fitted to the targets, the mean loss, and whether all
    gradients were finite.

    The network's part takes `value_passes` passes of Adam steps (`opt_state["value"]`); the linear
    baseline is solved for (`extra["baseline"]`).
    """
    if shared.linear:
        assert data.features is not None
        error = estimates.target - estimates.value
        loss = 0.5 * weighted.mean(jnp.square(error), data.samples.weight)
        x = data.features[:-1]
        flat = x.reshape(-1, x.shape[-1]), estimates.target.reshape(-1)
        coefficients = linear_baseline.fit(*flat, data.samples.weight.reshape(-1))
        finite = jnp.all(jnp.isfinite(coefficients))
        return state._replace(extra=state.extra | {"baseline": coefficients}), loss, finite
    return _fit_network(config, shared, state, data, estimates)


def _fit_network(
    config: Any, shared: OnPolicy, state: LearnerState, data: Data, estimates: Estimates
) -> tuple[LearnerState, Array, Array]:
    policy, value = networks.split_value(state.params)
    statistics = normalisation.merge(
        state.extra["statistics"], "value", estimates.target, data.samples.weight
    )
    mean, deviation = normalisation.value_units(statistics)
    drawn = Minibatches(config, data.samples, estimates)
    flat = step.flatten(value, state.opt_state["value"])

    def loss(value: Array, index: Array) -> Array:
        samples, estimates = drawn.take(index)
        params = networks.join_value(policy, flat.unravel(value))
        output = shared.model.forward(params, samples.rows, samples.last_action, samples.core)
        values = shared.model.select_value(output.values, samples.task)
        target = (estimates.target - mean) / deviation
        return weighted.mean(losses.squared_error(values, target), samples.weight)

    def one(carry: tuple[Array, PyTree], index: Array) -> tuple[tuple[Array, PyTree], Array]:
        value, opt_state = carry
        error, grads = jax.value_and_grad(loss)(value, index)
        rate = state.hyper["value_learning_rate"]
        finite = jnp.isfinite(optax.tree.norm(grads))
        return step.adam(value, opt_state, state.hyper, grads, rate), (error, finite)

    keys = jax.random.split(jax.random.fold_in(state.key, state.updates), config.value_passes)
    orders = [drawn.order(key, config.value_minibatch_size) for key in keys]
    begin = flat.params, flat.opt_state
    (vector, opt_state), (error, finite) = jax.lax.scan(one, begin, jnp.concatenate(orders))
    state = state._replace(
        params=networks.join_value(policy, flat.unravel(vector)),
        opt_state=state.opt_state | {"value": flat.unflatten(opt_state)},
        extra=state.extra | {"statistics": statistics},
    )
    return state, jnp.mean(error), jnp.all(finite)
