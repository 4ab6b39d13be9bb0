"""REINFORCE with a baseline: one gradient step per batch, by the returns that followed each action.

Williams 1992, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement
Learning"; the constants are in `pronk.agents.reinforce_config`. The gradient is the mean of
∇log π(a_t|x_t) (G_t − b(x_t)), G_t the discounted return from t on (Sutton et al. 2000). The
theorem's factor γ^t is left out, as everywhere in practice.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from pronk.agents import on_policy, regression, step
from pronk.agents.on_policy import OnPolicy
from pronk.agents.reinforce_config import Config
from pronk.agents.rollout import Data, Estimates
from pronk.maths import losses, weighted
from pronk.nn import networks
from pronk.types import Agent, Array, Batch, EnvSpec, Hyper, Key, LearnerState, Learnt, PyTree


@dataclass(frozen=True, eq=False)
class Reinforce:
    """REINFORCE for one environment."""

    config: Config
    shared: OnPolicy

    def init(self, key: Key) -> LearnerState:
        """The learner's first state, with an optimiser each for policy and value network."""
        state = self.shared.init(key)
        optimiser = step.optimiser("adam", state.hyper)
        policy, value = networks.split_value(state.params)
        of = {"policy": policy} if self.shared.linear else {"policy": policy, "value": value}
        return state._replace(opt_state={k: optimiser.init(v) for k, v in of.items()})

    def learn(self, state: LearnerState, batch: Batch) -> Learnt:
        """One step of the policy, then the baseline's regression on the same batch."""
        shared, old = self.shared, state
        state = shared.before(state, batch)
        data = whole = shared.data(state.extra["statistics"], state.hyper, batch)
        steps = jnp.sum(data.samples.weight)
        if self.config.episodes == "complete":
            data = _completed(data)
        estimates = shared.estimate(state.params, state.extra, state.hyper, data)
        policy, rest = networks.split_value(state.params)
        key = jax.random.fold_in(state.key, state.updates)
        gradient = jax.grad(self.loss, has_aux=True)
        grads, metrics = gradient(policy, rest, state.hyper, data, estimates, key)
        norm = optax.tree.norm(grads)
        policy, opt_state = step.adam(
            policy, state.opt_state["policy"], state.hyper, grads, state.hyper["learning_rate"]
        )
        state = state._replace(
            params=networks.join_value(policy, rest),
            opt_state=state.opt_state | {"policy": opt_state},
        )
        state, value_loss, finite = regression.fit(self.config, shared, state, data, estimates)
        metrics |= shared.metrics(data, estimates)
        metrics |= {"loss/value": value_loss, "gradient_norm": norm, "steps": steps}
        metrics["kl"] = shared.divergence(state.params, whole)
        statistics = shared.after(state.extra["statistics"], batch)
        state = state._replace(extra=state.extra | {"statistics": statistics})
        finite &= jnp.isfinite(norm)
        return Learnt(step.finish(old, state, finite, steps), metrics)

    def loss(
        self,
        policy: PyTree,
        rest: PyTree,
        hyper: Hyper,
        data: Data,
        estimates: Estimates,
        key: Key,
    ) -> tuple[Array, dict[str, Array]]:
        """The objective, a mean over the batch's transitions, and its parts; `policy` and `rest`
        are the network's parameters."""
        model, samples = self.shared.model, data.samples
        params = networks.join_value(policy, rest)
        output = model.forward(params, samples.rows, samples.last_action, samples.core)
        log_prob = model.distribution.log_prob(output.policy, samples.raw_action)
        log_prob = jnp.where(samples.weight > 0, log_prob, 0.0)
        terms = {
            "loss/policy": losses.policy_gradient(log_prob, estimates.advantage),
            "loss/entropy": model.distribution.entropy(output.policy, key),
        }
        means = {k: weighted.mean(v, samples.weight) for k, v in terms.items()}
        return means["loss/policy"] - hyper["entropy_cost"] * means["loss/entropy"], means


def _completed(data: Data) -> Data:
    """The data with weight 0 where the batch does not hold the end of the episode."""
    t = data.transitions

    def backward(ends: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        continuation, weight = x
        # A transition that the trace does not continue from is an episode's last, or a dummy.
        ends = jnp.where((weight > 0) & (continuation == 0), True, ends & (weight > 0))
        return ends, ends

    _, complete = jax.lax.scan(
        backward, jnp.zeros(t.weight.shape[1], bool), (t.continuation, t.weight), reverse=True
    )
    weight = t.weight * complete
    return data._replace(
        transitions=t._replace(weight=weight), samples=data.samples._replace(weight=weight)
    )


def make(config: Config, spec: EnvSpec, *, horizon: int) -> Agent:
    """REINFORCE for environments of this `spec`; schedules end after `horizon` agent steps.

    Raises UserError for settings that do not go together, and where a space of the environment
    can't be handled.
    """
    linear = config.baseline == "linear"
    agent = Reinforce(config, on_policy.make(config, spec, horizon=horizon, linear=linear))
    return agent.shared.as_agent(agent.learn)._replace(init=agent.init)
