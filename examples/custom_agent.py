"""An agent of one's own in one module: synchronous advantage actor-critic (A2C).

    pronk train examples.custom_agent CartPole-v1 --steps 200000

Mnih et al. 2016, "Asynchronous Methods for Deep Reinforcement Learning" [M16], section 4, with
actors that wait for the update. `docs/extending.md` says what each function has to do. What the
agent does not write itself are parts of pronk: network and action distribution (`ActorCritic`), the
optimiser's step (`step`), returns and loss terms (`maths`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from pronk.agents import step
from pronk.agents.actor_critic import ActorCritic
from pronk.config.fields import fraction, number, widths
from pronk.maths import distributions, losses, returns
from pronk.nn import networks
from pronk.types import (
    Agent,
    Array,
    Batch,
    Carry,
    EnvSpec,
    Halves,
    Key,
    LearnerState,
    Learnt,
    PyTree,
    TimeStep,
)


@dataclass(frozen=True)
class Config:
    """A2C. Each field is a flag, with its range and the text below it; PBT adapts `tune`."""

    unroll: int = number(8, above=0)
    """Agent steps per trajectory, T. Every agent needs this field."""
    batch_size: int = number(16, above=0, source="M16, section 8: 16 actors")
    """Trajectories per update, B. Every agent needs this field."""
    n_steps: int = number(5, above=0, source="M16, section 8")
    """Rewards in a return; fewer at the end of an episode or a trajectory."""
    discount: float = fraction(0.99, source="M16, section 8", near_one=True)
    """γ."""
    learning_rate: float = number(2e-3, above=0, tune=(1e-4, 1e-2))
    """Adam's learning rate."""
    optimiser_epsilon: float = number(1e-5, above=0)
    """Adam's ε."""
    max_gradient_norm: float = number(0.5, above=0)
    """Global norm to which gradients are clipped."""
    entropy_cost: float = number(0.01, at_least=0, source="M16, section 8", tune=(1e-4, 1e-1))
    """Weight of the entropy bonus, β."""
    value_cost: float = number(0.5, at_least=0)
    """Weight of the value loss."""
    reward_scale: float = number(0.1, above=0)
    """Factor of rewards, before clipping."""
    reward_clip: float = number(0.0, at_least=0, source="M16: 1 for Atari")
    """Clip rewards to ± this; 0 leaves them alone."""
    hidden_sizes: tuple[int, ...] = widths((64, 64))
    """Layer widths after convolutions, or of the MLP."""


# Differences from the defaults by name, for `--preset`.
PRESETS: dict[str, dict[str, Any]] = {"m16": {"unroll": 5, "reward_scale": 1.0, "reward_clip": 1.0}}
# The returns are not corrected for policy lag, so that actors have to wait for the update.
RUN_DEFAULTS = {"architecture": "sync-unroll"}
# What `pronk list` shows.
CAPABILITIES = {"actions": "Discrete, MultiDiscrete, MultiBinary, Box, masks"}

# The fields that are arrays in `LearnerState.hyper`: changing one compiles nothing, and PBT can.
_COSTS = ("discount", "entropy_cost", "value_cost")
_HYPER = ("learning_rate", "optimiser_epsilon", "max_gradient_norm", *_COSTS)


@dataclass(frozen=True, eq=False)
class A2C:
    """A2C for one environment; its methods are the functions of an `Agent`."""

    config: Config
    model: ActorCritic

    def init(self, key: Key) -> LearnerState:
        """The learner's first state."""
        params_key, key = jax.random.split(key)
        hyper = step.hyperparameters(self.config, _HYPER)
        return step.new_state("adam", self.model.init(params_key), hyper, key)

    def behaviour(self, state: LearnerState) -> PyTree:
        """All that acting needs: the parameters."""
        return state.params

    def warm_start(self, own: LearnerState, behaviour: PyTree) -> LearnerState:
        """Begin to learn from another run's parameters (`--init-from`)."""
        return own._replace(params=behaviour)

    def act(
        self, behaviour: PyTree, carry: Carry, timestep: TimeStep, key: Key
    ) -> tuple[Array, Carry, dict[str, Array]]:
        """Decide for slots `[B]`; the sample is stored, because continuous actions are clipped."""
        decided = self.model.decide(behaviour, carry, timestep, key)
        action = self.model.distribution.action(decided.raw)
        return action, Carry(decided.core, carry.private), {"raw_action": decided.raw}

    def loss(
        self, params: PyTree, hyper: dict[str, Array], batch: Batch, key: Key
    ) -> tuple[Array, dict[str, Array]]:
        """The objective, a scalar summed over the batch's real transitions, and sums to report.

        batch: a trajectory of `[T + 1, B]` rows, from which come T transitions.
        """
        model, rows = self.model, batch.trajectory.timestep
        output = model.forward(params, *model.inputs(batch))
        values, policy = output.values[..., 0], output.policy[:-1]  # [T + 1, B], [T, B, P]
        scaled = rows._replace(reward=model.scale_reward(rows.reward))
        # A truncated episode bootstraps from its last observation's value, a terminated one from
        # 0. `weight` is 0 for the dummy step between two episodes.
        reward, discount, continuation, weight = returns.transitions(scaled, hyper["discount"])
        targets = returns.n_step(values, reward, discount, continuation, n=self.config.n_steps)
        log_prob = model.distribution.log_prob(policy, model.raw_actions(batch)[:-1])
        terms = {  # [T, B]; no gradient flows through advantages and targets
            "policy": losses.policy_gradient(log_prob, targets - values[:-1]),
            "value": losses.squared_error(values[:-1], targets),
            "entropy": model.distribution.entropy(policy, key),
        }
        total = {name: jnp.sum(term * weight) for name, term in terms.items()}
        objective = total["policy"] + hyper["value_cost"] * total["value"]
        objective -= hyper["entropy_cost"] * total["entropy"]
        return objective, {f"loss/{k}": v for k, v in total.items()} | {"steps": jnp.sum(weight)}

    def gradients(self, state: LearnerState, batch: Batch) -> tuple[PyTree, dict[str, Array]]:
        """The loss's gradient and sums; those of a batch's parts add up to the whole batch's."""
        key = jax.random.fold_in(state.key, state.updates)
        return jax.grad(self.loss, has_aux=True)(state.params, state.hyper, batch, key)

    def apply(self, state: LearnerState, grads: PyTree, sums: dict[str, Array]) -> Learnt:
        """The gradient step, of the mean over transitions."""
        steps = jnp.maximum(sums["steps"], 1.0)
        grads = jax.tree.map(lambda g: g / steps, grads)
        rate = state.hyper["learning_rate"]
        state, norm = step.descend("adam", state, grads, rate, sums["steps"])
        metrics = {name: total / steps for name, total in sums.items()}
        return Learnt(state, metrics | {"steps": sums["steps"], "gradient_norm": norm})

    def learn(self, state: LearnerState, batch: Batch) -> Learnt:
        """One update."""
        return self.apply(state, *self.gradients(state, batch))


def make(config: Config, spec: EnvSpec, *, horizon: int) -> Agent:
    """The agent for an environment's spaces; raises UserError where it can't handle them."""
    del horizon  # agent steps at which schedules end; there is none here
    distribution = distributions.for_space(spec.action_space)
    network = networks.ActorCritic(
        space=spec.observation_space,
        num_params=distribution.num_params,
        torso="auto",
        hidden_sizes=config.hidden_sizes,
        activation="tanh",
    )
    a2c = A2C(config, ActorCritic(config, spec, distribution, network))
    return Agent(
        init=a2c.init,
        behaviour=a2c.behaviour,
        initial_carry=a2c.model.initial_carry,
        act=a2c.act,
        learn=a2c.learn,
        adopt=step.adopt,  # PBT's copy
        warm_start=a2c.warm_start,
        halves=Halves(a2c.gradients, a2c.apply),  # `learn` is one gradient step
    )
