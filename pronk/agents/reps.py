"""REPS, relative entropy policy search: samples are reweighted within a KL of the batch.

Peters, Mülling and Altün 2010, "Relative Entropy Policy Search"; as in Duan et al. 2016,
"Benchmarking Deep Reinforcement Learning for Continuous Control". The weights are the solution of a
convex problem: the largest mean reward within KL ε of the batch, where states are entered as often
as they are left, in the mean of features φ. Its dual gives the temperature η and a value function
ν·φ(x); then the policy is fitted to the weighted actions. The constants are in
`pronk.agents.reps_config`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from pronk.agents import on_policy, step, weighted_likelihood
from pronk.agents.on_policy import OnPolicy
from pronk.agents.reps_config import Config
from pronk.agents.rollout import Data
from pronk.maths import reweighting, weighted
from pronk.maths.reweighting import Dual
from pronk.types import Agent, Array, Batch, EnvSpec, Key, LearnerState, Learnt


@dataclass(frozen=True, eq=False)
class REPS:
    """Relative entropy policy search for one environment.

    `LearnerState.extra` has the dual's variables, `eta` and `baseline` (ν), and `start`, the mean
    features of states in which episodes begin.
    """

    config: Config
    shared: OnPolicy

    def init(self, key: Key) -> LearnerState:
        """The learner's first state, without an optimiser."""
        state = self.shared.init(key, optimiser="none")
        extra = state.extra | {
            "eta": jnp.float32(self.config.initial_eta),
            "start": jnp.zeros_like(state.extra["baseline"]),
        }
        return state._replace(extra=extra)

    def learn(self, state: LearnerState, batch: Batch) -> Learnt:
        """The dual's minimum, then a fit of the policy to the weights that it gives.

        A fit that is not accepted leaves the policy as it was; η and ν change nevertheless.
        """
        shared, config, old = self.shared, self.config, state
        state = shared.before(state, batch)
        data = shared.data(state.extra["statistics"], state.hyper, batch)
        weight, epsilon = data.samples.weight, state.hyper["max_kl"]
        features = data.features
        assert features is not None
        dual, start = self.dual(state, data)
        # Where δ was constant, η went to 0, from where a search in log η would not come back: it
        # begins no lower than where the weights of normally distributed δ have a KL of ε.
        spread = weighted.deviation(dual.errors(state.extra["baseline"]), weight)
        begin = jnp.maximum(state.extra["eta"], spread / jnp.sqrt(2.0 * epsilon))
        found = dual.minimise(begin, state.extra["baseline"], iterations=config.dual_iterations)
        weights = dual.weights(found.eta, found.nu)
        divergence = reweighting.divergence(weights, weight)
        fitted = weighted_likelihood.fit(
            *(shared, state.params, data.samples, weights),
            jax.random.fold_in(state.key, state.updates),
            iterations=config.fit_iterations,
            # It is at most ε at the minimum; if it is far above ε, the search did not come near.
            usable=divergence <= 2.0 * epsilon,
        )
        steps = jnp.sum(weight)
        metrics = fitted.metrics | {
            "steps": steps,
            "value_mean": weighted.mean(features[:-1] @ found.nu, weight),
            "eta": found.eta,
            "dual": found.value,
            "weights_kl": divergence,
        }
        extra = state.extra | {
            "statistics": shared.after(state.extra["statistics"], batch),
            "eta": found.eta,
            "baseline": found.nu,
            "start": start,
        }
        state = state._replace(params=fitted.params, extra=extra)
        finite = jnp.isfinite(metrics["gradient_norm"]) & jnp.isfinite(found.value)
        return Learnt(step.finish(old, state, finite, steps), metrics)

    def dual(self, state: LearnerState, data: Data) -> tuple[Dual, Array]:
        """The batch's dual, and the mean features `[F]` of its episodes' first states.

        The Bellman error is δ = r + γ (1 − terminated) ν·φ(x') + (1 − γ) ν·φ₀ − ν·φ(x): with
        probability 1 − γ a step restarts, in states of mean features φ₀. With γ = 1, δ is the error
        of the papers.
        """
        features, t = data.features, data.transitions
        assert features is not None
        first = data.rows.first[:-1].astype(jnp.float32)
        count = jnp.sum(first)
        mean = jnp.sum(features[:-1] * first[..., None], axis=(0, 1)) / jnp.maximum(count, 1.0)
        start = jnp.where(count > 0, mean, state.extra["start"])
        flow = t.discount[..., None] * features[1:] - features[:-1]
        flow += (1.0 - state.hyper["discount"]) * start
        hyper = state.hyper
        return Dual(t.reward, flow, t.weight, hyper["max_kl"], hyper["dual_penalty"]), start


def make(config: Config, spec: EnvSpec, *, horizon: int) -> Agent:
    """REPS for environments of this `spec`; schedules end after `horizon` agent steps.

    Raises UserError for settings that do not go together, and where a space of the environment
    can't be handled.
    """
    agent = REPS(config, on_policy.make(config, spec, horizon=horizon, linear=True))
    return agent.shared.as_agent(agent.learn)._replace(init=agent.init)
