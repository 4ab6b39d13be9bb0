"""SAC: soft actor-critic, with two critics and a learnt temperature.

Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications" (arXiv:1812.05905), algorithm
1; the constants are in `pronk.agents.sac_config`. `learn` takes gradient steps on the losses
that `target`, `policy_loss` and `temperature_loss` define.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from pronk.agents import continuous_q, step
from pronk.agents.continuous_q import ContinuousQ, Samples
from pronk.agents.sac_config import Config
from pronk.maths import squashed, weighted
from pronk.types import Agent, Array, Batch, EnvSpec, Hyper, Key, LearnerState, Learnt, PyTree


@dataclass(frozen=True, eq=False)
class SAC(ContinuousQ):
    """SAC for one environment; its methods are the functions of an `Agent`."""

    def init_more(self) -> dict[str, PyTree]:
        """log α, so that α stays positive."""
        return {"log_temperature": jnp.float32(np.log(self.config.initial_temperature))}

    def explore(self, outputs: Array, core: PyTree, first: Array, key: Key) -> tuple[Array, PyTree]:
        """Sample the policy."""
        del first
        return self.sample(outputs, key)[0], core

    def greedy(self, outputs: Array) -> Array:
        """The squashed mean."""
        return squashed.mode(outputs)

    def sample(self, outputs: Array, key: Key) -> tuple[Array, Array]:
        """Actions `[N, k]` and their log-probabilities `[N]`."""
        noise = jax.random.normal(key, (outputs.shape[0], self.bounds.size))
        return squashed.sample(outputs, noise)

    def target(self, state: LearnerState, samples: Samples, key: Key) -> Array:
        """r + γ (min_i Q̄_i(x', a') − α log π(a'|x')) with a' from the policy, `[N]` (eq. 3, 5)."""
        outputs = self.outputs(state.params["actor"], samples.following)
        action, log_prob = self.sample(outputs, key)
        q = self.values(state.extra["target"]["critic"], samples.following, action)
        soft = jnp.min(q, axis=0) - jnp.exp(state.params["log_temperature"]) * log_prob
        return samples.reward + samples.discount * soft

    def policy_loss(
        self, actor: PyTree, critic: PyTree, log_temperature: Array, samples: Samples, key: Key
    ) -> tuple[Array, Array]:
        """The mean of α log π(a|x) − min_i Q_i(x, a), with a from the policy (eq. 9); also the
        policy's entropy, estimated from these a. Nothing but `actor` is differentiated."""
        action, log_prob = self.sample(self.outputs(actor, samples.observation), key)
        q = jnp.min(self.values(critic, samples.observation, action), axis=0)
        loss = weighted.mean(jnp.exp(log_temperature) * log_prob - q, samples.weight)
        return loss, -weighted.mean(log_prob, samples.weight)

    def temperature_loss(self, log_temperature: Array, entropy: Array, hyper: Hyper) -> Array:
        """log α (H − H̄) (eq. 18, with log α for α, as in the authors' code): α falls while the
        entropy H is above its target H̄."""
        target = hyper["target_entropy"] * self.bounds.size
        return log_temperature * (entropy - target)

    def learn(self, state: LearnerState, batch: Batch) -> Learnt:
        """One step of the critics, then the policy, then the temperature (algorithm 1)."""
        samples, hyper = self.samples(state.hyper, batch), state.hyper
        target_key, policy_key = jax.random.split(jax.random.fold_in(state.key, state.updates))
        target = self.target(state, samples, target_key)
        value_gradient, metrics = jax.grad(self.value_loss, has_aux=True)(
            state.params["critic"], samples, target
        )
        new = step.descend_part(state, "critic", value_gradient, hyper["critic_learning_rate"])
        temperature = state.params["log_temperature"]
        (loss, entropy), policy_gradient = jax.value_and_grad(self.policy_loss, has_aux=True)(
            state.params["actor"], new.params["critic"], temperature, samples, policy_key
        )
        new = step.descend_part(new, "actor", policy_gradient, hyper["learning_rate"])
        temperature_gradient = jax.grad(self.temperature_loss)(temperature, entropy, hyper)
        # A batch of dummies says nothing of the entropy.
        temperature_gradient *= metrics["steps"] > 0
        rate = hyper["temperature_learning_rate"]
        new = step.descend_part(new, "log_temperature", temperature_gradient, rate)
        metrics |= {
            "loss/policy": loss,
            "loss/entropy": entropy,
            "temperature": jnp.exp(temperature),
        }
        gradients = (value_gradient, policy_gradient, temperature_gradient)
        return self.finish(state, new, gradients, metrics)


def build(config: Config, spec: EnvSpec, *, horizon: int = 0) -> SAC:
    """SAC for environments of this `spec`; raises UserError for actions without finite bounds."""
    return continuous_q.build(
        SAC, config, spec, name="sac", horizon=horizon, outputs=2, critics=2, targets=("critic",)
    )


def make(config: Config, spec: EnvSpec, *, horizon: int) -> Agent:
    """`build`'s methods as an `Agent`. Raises UserError for settings that do not go together."""
    return build(config, spec, horizon=horizon).as_agent()
