"""RWR, reward-weighted regression: the policy is fitted to its own actions, weighted by advantage.

Peters and Schaal 2007, "Reinforcement Learning by Reward-Weighted Regression for Operational Space
Control"; Kober and Peters 2009, "Policy Search for Motor Primitives in Robotics", for delayed
rewards; as in Duan et al. 2016, "Benchmarking Deep Reinforcement Learning for Continuous
Control". An update is one step of expectation maximisation: weights w ≥ 0 that rise with the
advantage, then the policy of the largest Σ w log π(a|x). The constants are in
`pronk.agents.rwr_config`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from pronk.agents import on_policy, regression, step, weighted_likelihood
from pronk.agents.on_policy import OnPolicy
from pronk.agents.rwr_config import Config
from pronk.maths import reweighting
from pronk.types import Agent, Array, Batch, EnvSpec, Hyper, Key, LearnerState, Learnt


@dataclass(frozen=True, eq=False)
class RWR:
    """Reward-weighted regression for one environment."""

    config: Config
    shared: OnPolicy

    def init(self, key: Key) -> LearnerState:
        """The learner's first state; only a value network has an optimiser."""
        return regression.init(self.shared, key)

    def learn(self, state: LearnerState, batch: Batch) -> Learnt:
        """A fit of the policy, then the baseline's regression on the same batch.

        A fit that is not accepted leaves the policy as it was; the baseline is fitted
        nevertheless.
        """
        shared, old = self.shared, state
        state = shared.before(state, batch)
        data = shared.data(state.extra["statistics"], state.hyper, batch)
        estimates = shared.estimate(state.params, state.extra, state.hyper, data)
        weights = self.weights(estimates.advantage, state.hyper, data.samples.weight)
        key = jax.random.fold_in(state.key, state.updates)
        fitted = weighted_likelihood.fit(
            *(shared, state.params, data.samples, weights, key),
            iterations=self.config.fit_iterations,
        )
        state = state._replace(params=fitted.params)
        state, value_loss, finite = regression.fit(self.config, shared, state, data, estimates)
        metrics = fitted.metrics | shared.metrics(data, estimates) | {"loss/value": value_loss}
        statistics = shared.after(state.extra["statistics"], batch)
        state = state._replace(extra=state.extra | {"statistics": statistics})
        finite &= jnp.isfinite(metrics["gradient_norm"])
        return Learnt(step.finish(old, state, finite, metrics["steps"]), metrics)

    def weights(self, advantage: Array, hyper: Hyper, weight: Array) -> Array:
        """The transitions' weights, `[T, B]`, 1 on average; advantage and weight are `[T, B]`."""
        if self.config.weighting == "exponential":
            return reweighting.exponential(advantage, hyper["temperature"], weight)
        return reweighting.shifted(advantage, weight)


def make(config: Config, spec: EnvSpec, *, horizon: int) -> Agent:
    """RWR for environments of this `spec`; schedules end after `horizon` agent steps.

    Raises UserError for settings that do not go together, and where a space of the environment
    can't be handled.
    """
    linear = config.baseline == "linear"
    agent = RWR(config, on_policy.make(config, spec, horizon=horizon, linear=linear))
    return agent.shared.as_agent(agent.learn)._replace(init=agent.init)
