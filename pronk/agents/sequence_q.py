"""What R2D2, NGU and Agent57 share: acting by action values of a recurrent network, which are
learnt from sequences of a prioritised replay.

Kapturowski et al. 2019, "Recurrent Experience Replay in Distributed Reinforcement Learning",
section 2.3.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp

from pronk.agents.actor_critic import Core
from pronk.agents.exploration import Ladder
from pronk.errors import UserError
from pronk.maths import distributions, transforms
from pronk.nn import cores, networks
from pronk.types import Array, Batch, EnvSpec, Hyper, Key, PyTree, TimeStep


class Choice(NamedTuple):
    """What was decided for slots `[B]`."""

    action: Array  # int32
    taken: Array  # [B, A], one-hot
    probability: Array  # with which it was taken


@dataclass(frozen=True, eq=False)
class SequenceQ(abc.ABC):
    """Acting and learning for one environment; a base of agents."""

    config: Any
    spec: EnvSpec
    network: networks.DuelingQ
    rescaling: transforms.Transform  # h, by which action values are transformed
    ladder: Ladder  # exploration rates
    horizon: int = 0  # agent steps at which schedules end

    @abc.abstractmethod
    def values(
        self, params: PyTree, rows: tuple[PyTree, ...], state: PyTree
    ) -> tuple[Array, PyTree]:
        """Action values `[T, B, A]`, transformed by h, and the recurrent state after them, for what
        `inputs` returns."""

    @property
    def num_actions(self) -> int:
        """Discrete actions, each of which has a value."""
        return self.network.num_actions

    def initial_core(self, batch: int) -> Core:
        """The memory at an episode's start, `[B, ...]`."""
        state = cores.initial_state(self.network.core, batch)
        return Core(state, jnp.zeros((batch, self.num_actions), jnp.float32))

    def sample_rows(self) -> PyTree:
        """One row of observations, `[1, 1, ...]`, for the networks' initialisation."""
        sample = self.spec.observation_space.sample()
        return jax.tree.map(lambda x: jnp.asarray(x)[None, None], sample)

    def choose(self, q: Array, epsilon: Array, mask: Array | None, key: Key) -> Choice:
        """ε-greedy actions for values `[B, A]` and rates ε `[B]`."""
        policy = self.epsilon_greedy(q, epsilon[:, None], mask)
        action = jax.random.categorical(key, jnp.log(policy)).astype(jnp.int32)
        taken = jax.nn.one_hot(action, self.num_actions)
        return Choice(action, taken, jnp.sum(policy * taken, axis=-1))

    def epsilon_greedy(self, q: Array, epsilon: Array | float, mask: Array | None) -> Array:
        """The probabilities of all actions, `[..., A]`: greedy but for ε, which is uniform over
        the allowed ones."""
        allowed = jnp.ones_like(q) if mask is None else mask.astype(jnp.float32)
        greedy = jax.nn.one_hot(jnp.argmax(q, axis=-1), self.num_actions)
        return epsilon * allowed / allowed.sum(-1, keepdims=True) + (1 - epsilon) * greedy

    def masked(self, q: Array, timestep: TimeStep) -> Array:
        """Values `[T, B, A]`, those of forbidden actions far below all others."""
        if timestep.action_mask is None:
            return q
        return jnp.where(timestep.action_mask, q, distributions.MASKED)

    def inputs(self, batch: Batch) -> tuple[tuple[PyTree, ...], PyTree]:
        """The network's inputs for a batch: time steps and the action before each, and the state
        before all."""
        timestep, core = batch.trajectory.timestep, batch.trajectory.core
        stored = self.config.stored_state
        state = core.state if stored else jax.tree.map(jnp.zeros_like, core.state)
        taken = jax.nn.one_hot(batch.trajectory.action, self.num_actions)
        last_action = jnp.concatenate([core.last_action[None], taken[:-1]])
        return (timestep, jnp.where(timestep.first[..., None], 0.0, last_action)), state

    def action_values(self, params: PyTree, batch: Batch) -> Array:
        """Values of the rows after the burn-in, `[length + 1, B, A]`, transformed by h."""
        rows, state = self.inputs(batch)
        before, after = (
            jax.tree.map(lambda x, part=part: x[part], rows)
            for part in (slice(self.config.burn_in), slice(self.config.burn_in, None))
        )
        if self.config.burn_in:
            _, state = self.values(params, before, state)
        # Learnt from is only what comes after: no gradient reaches back (section 3).
        return self.values(params, after, jax.lax.stop_gradient(state))[0]

    def sequence_loss(
        self, error: Array, weight: Array, q: Array, hyper: Hyper, batch: Batch
    ) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        """The objective, a scalar: the mean over sequences of ½ δ², weighted for their probability
        of being drawn; also new priorities `[B]` and metrics.

        error: δ, weight: 0 for dummies, q: values of the actions taken, all `[length, B]`. A
        priority is η max |δ| + (1 − η) mean |δ| (2.3).
        """
        count = jnp.maximum(weight.sum(axis=0), 1.0)  # [B]
        size = jnp.abs(error)
        eta = hyper["priority_mixture"]
        priority = eta * size.max(axis=0) + (1 - eta) * size.sum(axis=0) / count
        sequence_loss = 0.5 * jnp.square(error).sum(axis=0)
        if self.config.loss_reduction == "mean":
            sequence_loss /= count
        # Sequences drawn too often for their number count less (Schaul et al. 2016, 3.4).
        correction = jnp.ones_like(sequence_loss)
        if batch.probabilities is not None:
            correction = batch.probabilities ** -hyper["importance_exponent"]
            correction /= correction.max()
        objective = jnp.mean(correction * sequence_loss)
        steps = weight.sum()
        metrics = {
            "loss/value": objective,
            "q_mean": jnp.sum(q * weight) / jnp.maximum(steps, 1.0),
            "td_error": jnp.sum(size) / jnp.maximum(steps, 1.0),
            "importance_weight": correction.mean(),
            "steps": steps,
        }
        return objective, (priority, metrics)


def parts(name: str, config: Any, spec: EnvSpec) -> tuple[Any, Any, Any, Any, Any]:
    """The first fields of a `SequenceQ`, configuration and spec among them, for the agent `name`.

    Raises UserError for actions that are not discrete.
    """
    if not isinstance(spec.action_space, gym.spaces.Discrete):
        raise UserError(
            f"{name} has a value for each action, and the actions of '{spec.name}' are"
            f" {spec.action_space}; expected Discrete: use another agent, such as impala."
        )
    network = networks.DuelingQ(
        space=spec.observation_space,
        num_actions=int(spec.action_space.n),
        torso=config.torso,
        hidden_sizes=config.hidden_sizes,
        head_units=config.head_units,
        activation=config.activation,
        core=cores.make_core(config.recurrent_core, config.recurrent_units),
        encoder_dtype=jnp.dtype(config.encoder_dtype),
    )
    rescaling = transforms.by_name(config.rescaling, config.rescaling_epsilon)
    return config, spec, network, rescaling, Ladder(config.epsilon_greedy, config.epsilon_alpha)
