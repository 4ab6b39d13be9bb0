"""IMPALA: an actor-critic that learns from other policies' trajectories by V-trace.

Espeholt et al. 2018, "IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner
Architectures"; the constants are in `pronk.agents.impala_config`. `learn` is `gradients`, then
`apply`; `gradients` differentiates `loss`, which weighs the results of `evaluate`. Additions from
other papers are in `off_policy` (LASER), `value_units` (PopArt) and `pixel_control` (UNREAL).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pronk.agents import actor_critic, off_policy, pixel_control, schedules, step, value_units
from pronk.agents.actor_critic import ActorCritic
from pronk.agents.impala_config import Config
from pronk.maths import losses, popart, returns
from pronk.maths.returns import Transitions
from pronk.nn import networks
from pronk.types import (
    Agent,
    Array,
    Batch,
    Carry,
    EnvSpec,
    Halves,
    Hyper,
    Key,
    LearnerState,
    Learnt,
    PyTree,
    TimeStep,
)


class Behaviour(NamedTuple):
    """What acting needs of the learner's state, and what its values are in units of."""

    params: PyTree
    statistics: popart.Statistics | tuple[()] = ()


class Evaluation(NamedTuple):
    """A batch of `[T + 1, B]` rows under the learner's parameters."""

    network: networks.Output
    normalized_values: Array  # [T + 1, B], as the network gives them
    values: Array  # [T + 1, B], in units of reward
    task: Array  # int32 [T + 1, B], whose value function
    transitions: Transitions  # [T, B]
    log_prob: Array  # [T, B], log π of the actions taken
    log_ratio: Array  # [T, B], log π/μ of them; 0 for dummies
    weight: Array  # [T, B], 0 for transitions left out, dummies among them
    vtrace: returns.VTrace  # [T, B], in units of reward; no gradient flows through it


@dataclass(frozen=True, eq=False)
class Impala:
    """IMPALA for one environment; its methods are the functions of an `Agent`."""

    config: Config
    spec: EnvSpec
    model: ActorCritic
    horizon: int  # agent steps at which the learning rate's schedule ends

    @property
    def normalizes(self) -> bool:
        """Whether values are learnt in normalised units."""
        return self.config.value_normalisation != "none"

    def init(self, key: Key) -> LearnerState:
        """The learner's first state."""
        config = self.config
        params_key, key = jax.random.split(key)
        params = self.model.init(params_key)
        hyper = step.hyperparameters(config, config.hyper_names())
        hyper["horizon"] = jnp.float32(self.horizon)
        extra = self._extra(params, popart.init(self.model.num_values))
        return step.new_state(config.optimiser, params, hyper, key, extra, self.horizon)

    def _extra(self, params: PyTree, statistics: PyTree) -> PyTree:
        """What belongs to these parameters: LASER's average policy, PopArt's statistics."""
        extra = {"target": jax.tree.map(jnp.copy, params)} if self.config.trust_region else {}
        return extra | ({"statistics": statistics} if self.normalizes else {}) or ()

    def behaviour(self, state: LearnerState) -> Behaviour:
        """The parameters and, where values are normalised, their statistics."""
        return Behaviour(state.params, state.extra["statistics"] if self.normalizes else ())

    def warm_start(self, own: LearnerState, behaviour: Behaviour) -> LearnerState:
        """Begin to learn from another run's parameters."""
        extra = self._extra(behaviour.params, behaviour.statistics)
        return own._replace(params=behaviour.params, extra=extra)

    def act(
        self, behaviour: Behaviour, carry: Carry, timestep: TimeStep, key: Key
    ) -> tuple[Array, Carry, dict[str, Array]]:
        """Decide for slots `[B]`; `extras` has what the learner needs to know of the decision."""
        decided = self.model.decide(behaviour.params, carry, timestep, key)
        extras = {"log_prob": decided.log_prob}
        if self.model.distribution.continuous:
            extras["raw_action"] = decided.raw
        if self.config.trust_region:
            extras["policy"] = decided.policy
        action = self.model.distribution.action(decided.raw)
        return action, Carry(decided.core, carry.private), extras

    def evaluate(
        self, params: PyTree, extra: PyTree, hyper: Hyper, batch: Batch, *, pixel: bool = False
    ) -> Evaluation:
        """Run the network over a batch, and V-trace over its values; pixel: also pixel control."""
        model, inputs = self.model, self.model.inputs(batch)
        rows = inputs[0]
        output = model.forward(params, *inputs, pixel=pixel)
        task = model.value_task(rows)
        values = normalized = model.select_value(output.values, task)
        if self.normalizes:
            values = popart.denormalize(extra["statistics"], normalized, task)
        scaled = rows._replace(reward=model.scale_reward(rows.reward))
        transitions = returns.transitions(scaled, hyper["discount"])
        log_prob = model.distribution.log_prob(output.policy[:-1], model.raw_actions(batch)[:-1])
        # A dummy's ratio may be anything, and infinity times its weight 0 would not be 0.
        log_ratio = log_prob - batch.trajectory.extras["log_prob"][:-1]
        log_ratio = jnp.where(transitions.weight > 0, log_ratio, 0.0)
        weight = transitions.weight
        if self.config.trust_region:
            average = model.forward(extra["target"], *inputs).policy
            weight *= off_policy.trust_region_mask(model.distribution, average, batch, hyper)
        fixed = jax.lax.stop_gradient((values, transitions, jnp.exp(log_ratio), weight))
        vtrace = off_policy.targets(self.config.correction, hyper, *fixed)
        return Evaluation(
            output, normalized, values, task, transitions, log_prob, log_ratio, weight, vtrace
        )

    def loss(
        self, params: PyTree, extra: PyTree, hyper: Hyper, batch: Batch, key: Key
    ) -> tuple[Array, dict[str, Array]]:
        """The objective, a scalar summed over the batch's real transitions, and sums to report.

        batch: a trajectory of `[T + 1, B]` rows. Three terms (section 4.2): the policy gradient
        with V-trace's advantages, ½ (v_s − V)², and the entropy bonus; pixel control is a fourth.
        """
        config, model = self.config, self.model
        outputs = self.evaluate(params, extra, hyper, batch, pixel=True)
        used, real = outputs.weight, outputs.transitions.weight
        targets, advantages = outputs.vtrace.targets, outputs.vtrace.advantages
        if self.normalizes:
            task = outputs.task[:-1]
            targets = popart.normalize(extra["statistics"], targets, task)
            advantages = advantages / extra["statistics"].deviation[task]
        log_prob = off_policy.policy_log_prob(config.correction, outputs.log_prob)
        terms = {
            "policy": losses.policy_gradient(log_prob, advantages),
            "value": losses.squared_error(outputs.normalized_values[:-1], targets),
            "entropy": model.distribution.entropy(outputs.network.policy[:-1], key),
        }
        if outputs.network.pixel_values is not None:
            terms["pixel_control"] = pixel_control.loss(
                config, self.spec, hyper, batch, outputs.network.pixel_values, outputs.transitions
            )
        total = {k: jnp.sum(v * used) for k, v in terms.items()}
        if batch.replayed is not None:  # of fresh data alone (Schmitt et al. 2020, section 5.1)
            total["entropy"] = jnp.sum(terms["entropy"] * used * ~batch.replayed)
        objective = total["policy"] + hyper["value_cost"] * total["value"]
        objective -= hyper["entropy_cost"] * total["entropy"]
        if config.pixel_control_cost:
            objective += hyper["pixel_control_cost"] * total["pixel_control"]
        return objective, {
            **{f"loss/{k}": v for k, v in total.items()},
            "importance_ratio": jnp.sum(jnp.exp(outputs.log_ratio) * real),
            "value_mean": jnp.sum(outputs.values[:-1] * real),
            **({"trusted": jnp.sum(used)} if config.trust_region else {}),
            "steps": jnp.sum(real),
            "fresh": jnp.sum(real if batch.replayed is None else real * ~batch.replayed),
        }

    def gradients(self, state: LearnerState, batch: Batch) -> tuple[PyTree, dict[str, Array]]:
        """The loss's gradient and sums; those of a batch's parts add up to the whole batch's."""
        key = jax.random.fold_in(state.key, state.updates)
        return jax.grad(self.loss, has_aux=True)(state.params, state.extra, state.hyper, batch, key)

    def apply(self, state: LearnerState, grads: PyTree, sums: dict[str, Array]) -> Learnt:
        """The gradient step."""
        config = self.config
        count = jnp.maximum(sums["steps"], 1.0)
        if config.loss_reduction == "mean":
            grads = jax.tree.map(lambda g: g / count, grads)
        rate = state.hyper["learning_rate"]
        state, norm = step.descend(config.optimiser, state, grads, rate, sums["fresh"])
        if config.trust_region:
            state = off_policy.update_average(state)
        metrics = {k: sums[k] / count for k in sums if k not in ("steps", "fresh")}
        metrics |= {"steps": sums["steps"], "gradient_norm": norm, "learning_rate": rate}
        if self.normalizes:
            metrics |= value_units.metrics(self.spec, state.extra["statistics"])
        return Learnt(state, metrics)

    def learn(self, state: LearnerState, batch: Batch) -> Learnt:
        """One update; with PopArt in the units of this batch's targets (Hessel et al. 2018)."""
        if not self.normalizes:
            return self.apply(state, *self.gradients(state, batch))
        seen = self.evaluate(state.params, state.extra, state.hyper, batch)
        units = value_units.renormalize(
            self.config, state, seen.vtrace.targets, seen.task[:-1], seen.weight
        )
        learnt = self.apply(units, *self.gradients(units, batch))
        return learnt._replace(state=value_units.revert_if_skipped(state, learnt.state))

    def as_agent(self) -> Agent:
        """These functions. PopArt's statistics need the whole batch: with them, no halves."""
        return Agent(
            self.init,
            self.behaviour,
            self.model.initial_carry,
            self.act,
            self.learn,
            step.adopt,
            self.warm_start,
            halves=None if self.normalizes else Halves(self.gradients, self.apply),
            source=self.config.source(),
        )


def build(config: Config, spec: EnvSpec, *, horizon: int) -> Impala:
    """IMPALA for environments of this `spec`; schedules end after `horizon` agent steps.

    Raises UserError where a space of the environment can't be handled, and where pixel control is
    asked for and there are no pixels, or no discrete actions.
    """
    normalizes = config.value_normalisation != "none"
    if normalizes:
        value_units.check(config)
    model = actor_critic.make(
        config,
        spec,
        num_values=spec.num_tasks if config.value_per_task else 1,
        # A random value head would be preserved in units that it was not drawn for.
        zero_values=normalizes,
        pixel_control=pixel_control.head(config, spec),
    )
    return Impala(config, spec, model, horizon)


def make(config: Config, spec: EnvSpec, *, horizon: int) -> Agent:
    """`build`, as an `Agent`; with `anneal`, its learning rate goes to 0."""
    agent = build(config, spec, horizon=horizon).as_agent()
    return schedules.annealed(agent, config.learning_rate, horizon) if config.anneal else agent
