"""What DDPG and SAC share: acting between bounds, the transitions of a batch, guarded updates.

Both learn Q(x, a) from transitions of a replay, and a policy by the gradient of Q with respect to
its action. Policies and values work on the scale where ±1 are the actions' bounds.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from pronk.agents import step
from pronk.maths import returns, squashed, transforms, weighted
from pronk.nn.continuous import ActionValue, Outputs
from pronk.types import (
    Agent,
    Array,
    Batch,
    Carry,
    EnvSpec,
    Hyper,
    Key,
    LearnerState,
    Learnt,
    PyTree,
    TimeStep,
)


class Behaviour(NamedTuple):
    """What acting needs of the learner's state, and what another run begins with."""

    params: PyTree
    uniform: Array  # bool [], nothing has been learnt yet: actions are uniform in their bounds


class Samples(NamedTuple):
    """N transitions, `[N, ...]`."""

    observation: PyTree
    action: Array  # [N, k], on the scale where ±1 are the bounds
    reward: Array  # scaled
    discount: Array
    following: PyTree  # the next observation
    weight: Array  # 0 for dummies, else 1


@dataclass(frozen=True, eq=False)
class ContinuousQ(abc.ABC):
    """Acting and learning for one environment; a base of agents.

    critics: how many action values are learnt. targets: the parts of the parameters that have a
    slowly moving copy.
    """

    config: Any
    spec: EnvSpec
    horizon: int  # agent steps at which schedules end
    bounds: squashed.Bounds
    policy: Outputs
    value: ActionValue
    critics: int
    targets: tuple[str, ...]

    @abc.abstractmethod
    def explore(self, outputs: Array, core: PyTree, first: Array, key: Key) -> tuple[Array, PyTree]:
        """Actions `[B, k]` and the core after them, for the policy's outputs `[B, ...]`."""

    @abc.abstractmethod
    def greedy(self, outputs: Array) -> Array:
        """Actions `[B, k]` without exploration, for the policy's outputs `[B, ...]`."""

    @abc.abstractmethod
    def learn(self, state: LearnerState, batch: Batch) -> Learnt:
        """One update of all parts of the parameters."""

    def init_core(self, batch: int) -> PyTree:
        """What exploration remembers within an episode, `[B, ...]`: nothing."""
        del batch
        return ()

    def init_more(self) -> dict[str, PyTree]:
        """Parameters beside those of the networks: none."""
        return {}

    def init(self, key: Key) -> LearnerState:
        """The learner's first state; targets begin as copies, and every part of the parameters
        has an optimiser of its own."""
        actor_key, key = jax.random.split(key)
        *critic_keys, key = jax.random.split(key, self.critics + 1)
        row = jax.tree.map(lambda x: jnp.asarray(x)[None], self.spec.observation_space.sample())
        action = jnp.zeros((1, self.bounds.size))
        params = self.init_more() | {
            "actor": self.policy.init(actor_key, row),
            "critic": [self.value.init(k, row, action) for k in critic_keys],
        }
        hyper = step.hyperparameters(self.config, self.config.hyper_names())
        extra = {"target": self._copied(params), "uniform": jnp.bool_(True)}
        # `LearnerState.steps` counts transitions, up to this number.
        learnt = self.config.transitions_learnt(self.horizon)
        state = step.new_state("none", params, hyper, key, extra, learnt)
        optimiser = step.optimiser("adam", hyper)
        return state._replace(
            opt_state={name: optimiser.init(part) for name, part in params.items()}
        )

    def _copied(self, params: Mapping[str, PyTree]) -> PyTree:
        return jax.tree.map(jnp.copy, {name: params[name] for name in self.targets})

    def behaviour(self, state: LearnerState) -> Behaviour:
        """All parameters: another run that starts from them needs the values, too."""
        return Behaviour(state.params, state.extra["uniform"])

    def warm_start(self, own: LearnerState, behaviour: Behaviour) -> LearnerState:
        """Begin to learn from another run's parameters."""
        extra = {"target": self._copied(behaviour.params), "uniform": behaviour.uniform}
        return own._replace(params=behaviour.params, extra=extra)

    def initial_carry(self, key: Key, env_ids: Array, num_envs: int, evaluate: bool) -> Carry:
        """`Agent.initial_carry`: slots of an evaluation do not explore."""
        del key, num_envs
        batch = env_ids.shape[0]
        return Carry(self.init_core(batch), private={"greedy": jnp.full((batch,), evaluate)})

    def act(
        self, behaviour: Behaviour, carry: Carry, timestep: TimeStep, key: Key
    ) -> tuple[Array, Carry, dict[str, Array]]:
        """Decide for slots `[B]`; `extras` has the action on the scale where ±1 are the bounds."""
        explore_key, uniform_key = jax.random.split(key)
        outputs = self.outputs(behaviour.params["actor"], timestep.observation)
        unit, core = self.explore(outputs, carry.core, timestep.first, explore_key)
        drawn = jax.random.uniform(uniform_key, unit.shape, minval=-1.0, maxval=1.0)
        unit = jnp.where(behaviour.uniform, drawn, unit)
        unit = jnp.where(carry.private["greedy"][:, None], self.greedy(outputs), unit)
        return self.bounds.action(unit), Carry(core, carry.private), {"unit_action": unit}

    def outputs(self, actor: PyTree, observation: PyTree) -> Array:
        """The policy's outputs `[N, ...]`."""
        return self.policy.apply(actor, observation)  # type: ignore[return-value]

    def values(self, critic: list[PyTree], observation: PyTree, action: Array) -> Array:
        """The action values of each critic, `[critics, N]`."""
        return jnp.stack([self.value.apply(q, observation, action) for q in critic])  # type: ignore

    def samples(self, hyper: Hyper, batch: Batch) -> Samples:
        """The transitions of a batch of `[T + 1, B, ...]` rows, N = T · B, rewards scaled."""
        timestep, config = batch.trajectory.timestep, self.config
        reward = transforms.clip_reward(timestep.reward * config.reward_scale, config.reward_clip)
        t = returns.transitions(timestep._replace(reward=reward), hyper["discount"])

        def flat(tree: PyTree, rows: slice = slice(None)) -> PyTree:
            return jax.tree.map(lambda x: x[rows].reshape(-1, *x.shape[2:]), tree)

        now, later = slice(None, -1), slice(1, None)
        return Samples(
            flat(timestep.observation, now),
            flat(batch.trajectory.extras["unit_action"], now),
            flat(t.reward),
            flat(t.discount),
            flat(timestep.observation, later),
            flat(t.weight),
        )

    def value_loss(
        self, critic: list[PyTree], samples: Samples, target: Array
    ) -> tuple[Array, dict[str, Array]]:
        """The sum over critics of the mean of ½ (target − Q)²; also metrics. target: `[N]`."""
        q = self.values(critic, samples.observation, samples.action)
        weight = jnp.broadcast_to(samples.weight, q.shape)
        error = jnp.where(weight > 0, jax.lax.stop_gradient(target) - q, 0.0)
        loss = self.critics * weighted.mean(0.5 * jnp.square(error), weight)
        metrics = {
            "loss/value": loss,
            "q_mean": weighted.mean(q, weight),
            "td_error": weighted.mean(jnp.abs(error), weight),
            "steps": jnp.sum(samples.weight),
        }
        return loss, metrics

    def finish(
        self, old: LearnerState, new: LearnerState, gradients: PyTree, metrics: dict[str, Array]
    ) -> Learnt:
        """The result of an update from `old`: the new parameters, targets moved towards them.

        If one of its gradients is not finite, nothing changes but the counters.
        """
        norm = optax.tree.norm(gradients)
        learning = {name: new.params[name] for name in self.targets}
        target = step.polyak(learning, old.extra["target"], old.hyper["target_rate"])
        new = new._replace(extra={"target": target, "uniform": jnp.bool_(False)})
        state = step.finish(old, new, jnp.isfinite(norm), metrics["steps"])
        return Learnt(state, metrics | {"gradient_norm": norm})

    def as_agent(self) -> Agent:
        """These functions as an `Agent`."""
        return Agent(
            self.init,
            self.behaviour,
            self.initial_carry,
            self.act,
            self.learn,
            step.adopt,
            self.warm_start,
            source=self.config.source(),
        )


Made = TypeVar("Made", bound=ContinuousQ)


def build(
    kind: type[Made],
    config: Any,
    spec: EnvSpec,
    *,
    name: str,
    horizon: int,
    outputs: int,
    critics: int,
    targets: tuple[str, ...],
    last_scale: float = 0.0,
) -> Made:
    """An agent of this `kind` and `name`; its policy has `outputs` numbers per action dimension.

    Raises UserError for actions that are not a Box with finite bounds.
    """
    bounds = squashed.bounds(name, spec)
    network: dict[str, Any] = {
        "space": spec.observation_space,
        "torso": config.torso,
        "hidden_sizes": config.hidden_sizes,
        "activation": config.activation,
        "encoder_dtype": jnp.dtype(config.encoder_dtype),
        "last_scale": last_scale,
    }
    policy = Outputs(width=outputs * bounds.size, **network)
    value = ActionValue(**network)
    return kind(config, spec, horizon, bounds, policy, value, critics, targets)
