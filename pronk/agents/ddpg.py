"""DDPG: Q-learning for continuous actions, with a deterministic policy that climbs Q.

Lillicrap et al. 2016, "Continuous Control with Deep Reinforcement Learning" (arXiv:1509.02971),
algorithm 1; the constants are in `pronk.agents.ddpg_config`. `learn` takes gradient steps on the
losses that `target`, `critic_loss` and `policy_loss` define.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from pronk.agents import continuous_q, step
from pronk.agents.continuous_q import ContinuousQ, Samples
from pronk.agents.ddpg_config import Config
from pronk.agents.exploration import correlated_noise
from pronk.maths import weighted
from pronk.types import Agent, Array, Batch, EnvSpec, Hyper, Key, LearnerState, Learnt, PyTree


@dataclass(frozen=True, eq=False)
class DDPG(ContinuousQ):
    """DDPG for one environment; its methods are the functions of an `Agent`."""

    def init_core(self, batch: int) -> PyTree:
        """The last action's noise `[B, k]`, if the noise of consecutive actions is correlated."""
        if not self.config.noise_correlation:
            return ()
        return jnp.zeros((batch, self.bounds.size))

    def explore(self, outputs: Array, core: PyTree, first: Array, key: Key) -> tuple[Array, PyTree]:
        """The policy's action plus noise, within the bounds (eq. 7)."""
        rho = self.config.noise_correlation
        noise = jax.random.normal(key, outputs.shape)
        if rho:
            noise = core = correlated_noise(core, first, key, rho)
        return jnp.clip(self.greedy(outputs) + self.config.noise_std * noise, -1.0, 1.0), core

    def greedy(self, outputs: Array) -> Array:
        """The policy's action, bounded by tanh (section 7)."""
        return jnp.tanh(outputs)

    def target(self, state: LearnerState, samples: Samples) -> Array:
        """r + γ Q̄(x', μ̄(x')), of the target networks, `[N]` (algorithm 1)."""
        target = state.extra["target"]
        action = self.greedy(self.outputs(target["actor"], samples.following))
        (q,) = self.values(target["critic"], samples.following, action)
        return samples.reward + samples.discount * q

    def critic_loss(
        self, critic: PyTree, samples: Samples, target: Array, hyper: Hyper
    ) -> tuple[Array, dict[str, Array]]:
        """`value_loss` with weight decay: ½ λ times the sum of all squared weights, no biases."""
        loss, metrics = self.value_loss(critic, samples, target)
        squares = [jnp.sum(jnp.square(x)) for x in jax.tree.leaves(critic) if x.ndim > 1]
        return loss + 0.5 * hyper["critic_weight_decay"] * sum(squares), metrics

    def policy_loss(self, actor: PyTree, critic: PyTree, samples: Samples) -> Array:
        """The mean of −Q(x, μ(x)) (eq. 6). Nothing but `actor` is differentiated."""
        action = self.greedy(self.outputs(actor, samples.observation))
        (q,) = self.values(critic, samples.observation, action)
        return -weighted.mean(q, samples.weight)

    def learn(self, state: LearnerState, batch: Batch) -> Learnt:
        """One step of the critic, then one of the policy (algorithm 1)."""
        samples, hyper = self.samples(state.hyper, batch), state.hyper
        target = self.target(state, samples)
        value_gradient, metrics = jax.grad(self.critic_loss, has_aux=True)(
            state.params["critic"], samples, target, hyper
        )
        new = step.descend_part(state, "critic", value_gradient, hyper["critic_learning_rate"])
        loss, policy_gradient = jax.value_and_grad(self.policy_loss)(
            state.params["actor"], new.params["critic"], samples
        )
        new = step.descend_part(new, "actor", policy_gradient, hyper["learning_rate"])
        metrics |= {"loss/policy": loss}
        return self.finish(state, new, (value_gradient, policy_gradient), metrics)


def build(config: Config, spec: EnvSpec, *, horizon: int = 0) -> DDPG:
    """DDPG for environments of this `spec`; raises UserError for actions without finite bounds."""
    return continuous_q.build(
        DDPG,
        config,
        spec,
        name="ddpg",
        horizon=horizon,
        outputs=1,
        critics=1,
        targets=("actor", "critic"),
        last_scale=config.last_scale,
    )


def make(config: Config, spec: EnvSpec, *, horizon: int) -> Agent:
    """`build`'s methods as an `Agent`. Raises UserError for settings that do not go together."""
    return build(config, spec, horizon=horizon).as_agent()
