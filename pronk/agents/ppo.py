"""PPO: several passes of minibatch gradient steps on a surrogate that keeps the policy close.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms"; the constants are in
`pronk.agents.ppo_config`. One `learn` makes all passes over a batch: per pass, estimates of the
advantages (`OnPolicy.estimate`), a permutation, and a gradient step of `loss` per minibatch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pronk.agents import minibatches, normalisation, on_policy, step
from pronk.agents.on_policy import OnPolicy
from pronk.agents.ppo_config import Config
from pronk.agents.rollout import Estimates, Samples
from pronk.maths import losses, weighted
from pronk.types import Agent, Array, Batch, EnvSpec, Hyper, Key, LearnerState, Learnt, PyTree


class Learning(NamedTuple):
    """What changes from minibatch to minibatch."""

    params: Array  # [P], see `step.Flat`
    opt_state: PyTree
    stopped: Array  # bool [], the policy is too far from the old one
    finite: Array  # bool [], all gradients so far were


@dataclass(frozen=True, eq=False)
class PPO:
    """PPO for one environment."""

    config: Config
    shared: OnPolicy

    def init(self, key: Key) -> LearnerState:
        """The learner's first state; `extra` also has β where it adapts."""
        state = self.shared.init(key)
        if self.config.objective != "adaptive-kl":
            return state
        return state._replace(extra=state.extra | {"kl_cost": jnp.float32(self.config.kl_cost)})

    def learn(self, state: LearnerState, batch: Batch) -> Learnt:
        """All passes over a batch. A gradient that is not finite undoes all of them."""
        config, shared = self.config, self.shared
        old = state
        state = shared.before(state, batch)
        hyper = state.hyper
        data = shared.data(state.extra["statistics"], hyper, batch)
        estimates = shared.estimate(state.params, state.extra, hyper, data)
        statistics = normalisation.merge(
            state.extra["statistics"], "value", estimates.target, data.samples.weight
        )
        extra = state.extra | {"statistics": statistics}
        flat = step.flatten(state.params, state.opt_state)

        def loss(params: Array, minibatch: Any, key: Key) -> tuple[Array, dict[str, Array]]:
            return self.loss(flat.unravel(params), extra, hyper, minibatch, key)

        def one_pass(learning: Learning, key: Key) -> tuple[Learning, dict[str, Array]]:
            current = estimates
            if config.recompute_advantages:
                current = shared.estimate(flat.unravel(learning.params), extra, hyper, data)
            order_key, entropy_key = jax.random.split(key)
            drawn = minibatches.Minibatches(config, data.samples, current)

            def one(learning: Learning, index: Array) -> tuple[Learning, dict[str, Array]]:
                return self._step(loss, learning, hyper, drawn.take(index), entropy_key)

            return jax.lax.scan(one, learning, drawn.order(order_key, config.minibatch_size))

        keys = jax.random.split(jax.random.fold_in(state.key, state.updates), config.passes)
        learning = Learning(flat.params, flat.opt_state, jnp.bool_(False), jnp.bool_(True))
        learning, sums = jax.lax.scan(one_pass, learning, keys)
        params, opt_state = flat.unravel(learning.params), flat.unflatten(learning.opt_state)
        metrics = self._metrics(sums) | shared.metrics(data, estimates)
        metrics["kl"] = shared.divergence(params, data)
        if config.objective == "adaptive-kl":
            extra = extra | {"kl_cost": self._adapted(extra["kl_cost"], hyper, sums)}
        extra = extra | {"statistics": shared.after(statistics, batch)}
        new = step.finish(
            old,
            state._replace(params=params, opt_state=opt_state, extra=extra),
            learning.finite,
            metrics["steps"],
        )
        return Learnt(new, metrics)

    def loss(
        self,
        params: PyTree,
        extra: PyTree,
        hyper: Hyper,
        minibatch: tuple[Samples, Estimates],
        key: Key,
    ) -> tuple[Array, dict[str, Array]]:
        """The objective of a minibatch (eq. 9), a mean over its real transitions, and its parts."""
        config, model = self.config, self.shared.model
        samples, estimates = minibatch
        output = model.forward(params, samples.rows, samples.last_action, samples.core)
        log_ratio = self.shared.log_ratio(samples, output.policy)
        advantage = estimates.advantage
        if config.advantage_normalisation == "minibatch":
            advantage = weighted.standardise(advantage, samples.weight)
        if config.objective == "clip":
            policy_loss = losses.clipped_surrogate(
                log_ratio, advantage, hyper["clip"], reciprocal=config.reciprocal_clip
            )
        else:
            policy_loss = losses.importance_weighted(log_ratio, advantage)
        kl = model.distribution.kl(samples.policy, output.policy)
        value_loss = self._value_loss(output.values, extra, hyper, samples, estimates)
        terms = {
            "loss/policy": policy_loss,
            "loss/value": value_loss,
            "loss/entropy": model.distribution.entropy(output.policy, key),
            "kl": kl,
            "importance_ratio": jnp.exp(log_ratio),
            "clip_fraction": (jnp.abs(jnp.expm1(log_ratio)) > hyper["clip"]).astype(jnp.float32),
        }
        means = {k: weighted.mean(v, samples.weight) for k, v in terms.items()}
        objective = means["loss/policy"] + hyper["value_cost"] * means["loss/value"]
        objective -= hyper["entropy_cost"] * means["loss/entropy"]
        if config.objective in ("fixed-kl", "adaptive-kl"):
            objective += extra.get("kl_cost", config.kl_cost) * means["kl"]
        return objective, means

    def _value_loss(
        self,
        values: Array,
        extra: PyTree,
        hyper: Hyper,
        samples: Samples,
        estimates: Estimates,
    ) -> Array:
        """½ (target − V)² in the network's units; with clipping the larger of two such errors."""
        mean, deviation = normalisation.value_units(extra["statistics"])
        value = self.shared.model.select_value(values, samples.task)
        target = (estimates.target - mean) / deviation
        loss = losses.squared_error(value, target)
        if not self.config.value_clip:
            return loss
        before, bound = (estimates.value - mean) / deviation, hyper["value_clip"]
        clipped = before + jnp.clip(value - before, -bound, bound)
        return jnp.maximum(loss, losses.squared_error(clipped, target))

    def _step(
        self,
        loss: Callable[..., tuple[Array, dict[str, Array]]],
        learning: Learning,
        hyper: Hyper,
        minibatch: tuple[Samples, Estimates],
        key: Key,
    ) -> tuple[Learning, dict[str, Array]]:
        """One gradient step, unless the policy has come too far."""
        grads, means = jax.grad(loss, has_aux=True)(learning.params, minibatch, key)
        norm = optax.tree.norm(grads)
        params, opt_state = step.adam(
            learning.params, learning.opt_state, hyper, grads, hyper["learning_rate"]
        )
        stopped = learning.stopped
        if self.config.stop_early:
            stopped |= means["kl"] > hyper["stop_early"] * hyper["target_kl"]
            params, opt_state = jax.tree.map(
                lambda new, old: jnp.where(stopped, old, new),
                (params, opt_state),
                (learning.params, learning.opt_state),
            )
        after = Learning(params, opt_state, stopped, learning.finite & jnp.isfinite(norm))
        return after, means | {"gradient_norm": norm, "taken": 1.0 - stopped}

    def _metrics(self, sums: dict[str, Array]) -> dict[str, Array]:
        """Means over the minibatches `[K, N]` of an update."""
        metrics = {k: jnp.mean(v) for k, v in sums.items() if k not in ("taken", "kl")}
        return metrics | {"gradient_steps": jnp.sum(sums["taken"])}

    def _adapted(self, cost: Array, hyper: Hyper, sums: dict[str, Array]) -> Array:
        """β doubled or halved where the last pass's mean KL is 1.5 times too large or too small
        (section 4)."""
        kl, target = jnp.mean(sums["kl"][-1]), hyper["target_kl"]
        factor = jnp.where(kl > 1.5 * target, 2.0, jnp.where(kl < target / 1.5, 0.5, 1.0))
        return jnp.clip(cost * factor, 1e-6, 1e6)


def make(config: Config, spec: EnvSpec, *, horizon: int) -> Agent:
    """PPO for environments of this `spec`; schedules end after `horizon` agent steps.

    Raises UserError for settings that do not go together, and where a space of the environment
    can't be handled.
    """
    ppo = PPO(config, on_policy.make(config, spec, horizon=horizon))
    return ppo.shared.as_agent(ppo.learn)._replace(init=ppo.init)
