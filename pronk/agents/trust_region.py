"""The natural-gradient agents' update: a direction, a step along it, and the value's regression.

`npg`, `tnpg` and `trpo` differ in how far they go along the natural gradient x = F⁻¹ g of the
surrogate (`maths.natural_gradient`), which each gives as a function. All else is here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pronk.agents import on_policy, regression, step
from pronk.agents.on_policy import OnPolicy
from pronk.agents.rollout import Data, Estimates
from pronk.maths import losses, natural_gradient, weighted
from pronk.maths.natural_gradient import Search
from pronk.nn import networks
from pronk.types import Agent, Array, Batch, EnvSpec, Hyper, Key, LearnerState, Learnt, PyTree


class Direction(NamedTuple):
    """The natural gradient at a policy, and what is known of it."""

    params: PyTree  # of the policy
    x: PyTree  # F⁻¹ g
    fisher_x: PyTree  # (F + ζ I) x
    hyper: Hyper
    # Parameters to (surrogate, mean KL from `params`), on the whole batch.
    evaluate: Callable[[PyTree], tuple[Array, Array]]


Step = Callable[[Direction], Search]


@dataclass(frozen=True, eq=False)
class NaturalGradient:
    """An agent whose policy takes `step` along the natural gradient."""

    config: Any
    shared: OnPolicy
    step: Step

    def init(self, key: Key) -> LearnerState:
        """The learner's first state; only the value network has an optimiser."""
        return regression.init(self.shared, key)

    def learn(self, state: LearnerState, batch: Batch) -> Learnt:
        """One step of the policy, then the value function's regression on the same batch.

        A step that is not accepted leaves the policy as it was, and the value learns nevertheless.
        """
        shared, old = self.shared, state
        state = shared.before(state, batch)
        data = shared.data(state.extra["statistics"], state.hyper, batch)
        estimates = shared.estimate(state.params, state.extra, state.hyper, data)
        policy, rest = networks.split_value(state.params)
        found, metrics = self._policy_step(policy, rest, state, data, estimates)
        state = state._replace(params=networks.join_value(found.params, rest))
        state, value_loss, finite = regression.fit(self.config, shared, state, data, estimates)
        metrics |= shared.metrics(data, estimates) | {"loss/value": value_loss}
        metrics["kl"] = shared.divergence(state.params, data)
        statistics = shared.after(state.extra["statistics"], batch)
        state = state._replace(extra=state.extra | {"statistics": statistics})
        finite &= jnp.isfinite(metrics["gradient_norm"])
        return Learnt(step.finish(old, state, finite, metrics["steps"]), metrics)

    def _policy_step(
        self, policy: PyTree, rest: PyTree, state: LearnerState, data: Data, estimates: Estimates
    ) -> tuple[Search, dict[str, Array]]:
        """The policy's step, and what to report of it."""
        model, hyper, samples = self.shared.model, state.hyper, data.samples
        weight = samples.weight

        def forward(policy: PyTree, of: Any = samples) -> Array:
            params = networks.join_value(policy, rest)
            return model.forward(params, of.rows, of.last_action, of.core).policy

        before = jax.lax.stop_gradient(forward(policy))

        def surrogate(policy: PyTree) -> tuple[Array, Array]:
            after = forward(policy)
            log_ratio = self.shared.log_ratio(samples, after)
            loss = losses.importance_weighted(log_ratio, estimates.advantage)
            kl = model.distribution.kl(before, after)
            return -weighted.mean(loss, weight), weighted.mean(kl, weight)

        (objective, _), gradient = jax.value_and_grad(surrogate, has_aux=True)(policy)
        part = self._thinned(data)
        product = natural_gradient.fisher_vector_product(
            lambda p: forward(p, part), policy, model.distribution, part.weight, hyper["damping"]
        )
        solution = natural_gradient.conjugate_gradient(
            product, gradient, iterations=self.config.cg_iterations
        )
        direction = Direction(policy, solution.x, product(solution.x), hyper, surrogate)
        found = self.step(direction)
        entropy = model.distribution.entropy(before, jax.random.fold_in(state.key, state.updates))
        return found, {
            "loss/policy": -objective,
            "loss/entropy": weighted.mean(entropy, weight),
            "improvement": found.improvement,
            "accepted": found.accepted.astype(jnp.float32),
            "search_trials": found.trials.astype(jnp.float32),
            "cg_residual": solution.residual,
            "gradient_norm": optax.tree.norm(gradient),
        }

    def _thinned(self, data: Data) -> Any:
        """The samples that the Fisher information is averaged over: one of `fisher_every`."""
        every = self.config.fisher_every
        if every == 1:
            return data.samples
        flat = data.samples._replace(core=())
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[::every][None], flat)


def take(direction: Direction, whole: PyTree) -> Search:
    """The step `whole`, whatever its KL and improvement, unless one of them is not finite."""
    before, _ = direction.evaluate(direction.params)
    moved = jax.tree.map(lambda p, s: p + s, direction.params, whole)
    objective, divergence = direction.evaluate(moved)
    finite = jnp.isfinite(objective) & jnp.isfinite(divergence)
    params = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, direction.params)
    gained, kl = (jnp.where(finite, x, 0.0) for x in (objective - before, divergence))
    return Search(params, finite, jnp.int32(1), kl, gained)


def make(config: Any, spec: EnvSpec, rule: Step, *, horizon: int) -> Agent:
    """An agent whose policy steps by `rule`, for environments of this `spec`.

    Raises UserError where a space of the environment can't be handled.
    """
    shared = on_policy.make(config, spec, horizon=horizon, linear=config.baseline == "linear")
    agent = NaturalGradient(config, shared, rule)
    return shared.as_agent(agent.learn)._replace(init=agent.init)
