"""R2D2: recurrent Q-learning from prioritised, distributed replay.

Kapturowski et al. 2019, "Recurrent Experience Replay in Distributed Reinforcement Learning"; the
constants are in `pronk.agents.r2d2_config`. `learn` takes the step and returns new priorities,
`loss` weighs the `td_errors`, `action_values` runs the network over a sequence, burn-in first.
"""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import jax
import jax.numpy as jnp

from pronk.agents import step
from pronk.agents.actor_critic import Core
from pronk.agents.exploration import Ladder
from pronk.agents.r2d2_config import Config
from pronk.errors import UserError
from pronk.maths import distributions, returns, transforms
from pronk.nn import cores, networks
from pronk.types import (
    Agent,
    Array,
    Batch,
    Carry,
    EnvSpec,
    Feedback,
    Key,
    LearnerState,
    Learnt,
    PyTree,
    TimeStep,
)


@dataclass(frozen=True, eq=False)
class R2D2:
    """R2D2 for one environment; its methods are the functions of an `Agent`."""

    config: Config
    spec: EnvSpec
    network: networks.DuelingQ
    rescaling: transforms.Transform  # h, by which action values are transformed
    ladder: Ladder  # exploration rates
    horizon: int = 0  # agent steps at which schedules end

    @property
    def num_actions(self) -> int:
        """Discrete actions, each of which has a value."""
        return self.network.num_actions

    def initial_core(self, batch: int) -> Core:
        """The memory at an episode's start, `[B, ...]`."""
        state = cores.initial_state(self.network.core, batch)
        return Core(state, jnp.zeros((batch, self.num_actions), jnp.float32))

    def init(self, key: Key) -> LearnerState:
        """The learner's first state; the target network begins as a copy."""
        params_key, key = jax.random.split(key)
        sample = self.spec.observation_space.sample()
        rows = jax.tree.map(lambda x: jnp.asarray(x)[None, None], sample)
        core, zeros = self.initial_core(1), jnp.zeros((1, 1))
        params = self.network.init(
            params_key, rows, zeros, core.last_action[None], zeros > 0, core.state
        )
        hyper = step.hyperparameters(self.config, self.config.hyper_names())
        extra = {"target": jax.tree.map(jnp.copy, params)}
        return step.new_state("adam", params, hyper, key, extra, self.horizon)

    def behaviour(self, state: LearnerState) -> PyTree:
        """The network's parameters."""
        return state.params

    def warm_start(self, own: LearnerState, behaviour: PyTree) -> LearnerState:
        """Begin to learn from another run's parameters."""
        return own._replace(params=behaviour, extra={"target": jax.tree.map(jnp.copy, behaviour)})

    def initial_carry(self, key: Key, env_ids: Array, num_envs: int, evaluate: bool) -> Carry:
        """Each environment explores at its own rate."""
        del key
        epsilon = jnp.where(evaluate, 0.0, self.ladder.rates(env_ids, num_envs))
        return Carry(self.initial_core(env_ids.shape[0]), private={"epsilon": epsilon})

    def forward(
        self, params: PyTree, timestep: TimeStep, last_action: Array, state: PyTree
    ) -> tuple[Array, PyTree]:
        """Action values `[T, B, A]`, transformed by h, and the recurrent state after them."""
        reward = transforms.clip_reward(timestep.reward, self.config.reward_clip)
        reward = self.rescaling.apply(reward)
        q, state = self.network.apply(  # type: ignore[misc]
            params, timestep.observation, reward, last_action, timestep.first, state
        )
        if timestep.action_mask is not None:
            q = jnp.where(timestep.action_mask, q, distributions.MASKED)
        return q, state

    def act(
        self, behaviour: PyTree, carry: Carry, timestep: TimeStep, key: Key
    ) -> tuple[Array, Carry, dict[str, Array]]:
        """ε-greedy actions for slots `[B]`, and the probability with which each was taken."""
        last_action = cores.reset(carry.core.last_action, timestep.first)
        row = jax.tree.map(lambda x: x[None], timestep)
        q, state = self.forward(behaviour, row, last_action[None], carry.core.state)
        epsilon = carry.private["epsilon"][:, None]
        mask = timestep.action_mask
        allowed = jnp.ones_like(q[0]) if mask is None else mask.astype(jnp.float32)
        greedy = jax.nn.one_hot(jnp.argmax(q[0], axis=-1), self.num_actions)
        policy = epsilon * allowed / allowed.sum(-1, keepdims=True) + (1 - epsilon) * greedy
        action = jax.random.categorical(key, jnp.log(policy)).astype(jnp.int32)
        taken = jax.nn.one_hot(action, self.num_actions)
        extras = {"probability": jnp.sum(policy * taken, axis=-1)}
        return action, Carry(Core(state, taken), carry.private), extras

    def inputs(self, batch: Batch) -> tuple[TimeStep, Array, PyTree]:
        """The network's inputs for a batch: rows, the action before each, the state before all."""
        timestep, core = batch.trajectory.timestep, batch.trajectory.core
        stored = self.config.stored_state
        state = core.state if stored else jax.tree.map(jnp.zeros_like, core.state)
        taken = jax.nn.one_hot(batch.trajectory.action, self.num_actions)
        last_action = jnp.concatenate([core.last_action[None], taken[:-1]])
        return timestep, jnp.where(timestep.first[..., None], 0.0, last_action), state

    def action_values(self, params: PyTree, batch: Batch) -> Array:
        """Values of the rows after the burn-in, `[length + 1, B, A]`, transformed by h."""
        timestep, last_action, state = self.inputs(batch)
        before, after = (
            jax.tree.map(lambda x, part=part: x[part], (timestep, last_action))
            for part in (slice(self.config.burn_in), slice(self.config.burn_in, None))
        )
        if self.config.burn_in:
            _, state = self.forward(params, before[0], before[1], state)
        # Learnt from is only what comes after: no gradient reaches back (section 3).
        return self.forward(params, after[0], after[1], jax.lax.stop_gradient(state))[0]

    def td_errors(
        self, params: PyTree, target_params: PyTree, hyper: dict[str, Array], batch: Batch
    ) -> tuple[Array, Array, Array]:
        """TD errors, weights (0 for dummies) and values of the actions taken, `[length, B]`."""
        config, h = self.config, self.rescaling
        timestep, action, extras = jax.tree.map(
            lambda x: x[config.burn_in :],
            (batch.trajectory.timestep, batch.trajectory.action, batch.trajectory.extras),
        )
        online = self.action_values(params, batch)
        target = self.action_values(target_params, batch)
        taken = jnp.take_along_axis(online, action[..., None], axis=-1)[..., 0]
        timestep = timestep._replace(
            reward=transforms.clip_reward(timestep.reward, config.reward_clip)
        )
        reward, discount, continuation, weight = returns.transitions(timestep, hyper["discount"])
        bootstrap = h.inverse(returns.double_q(online, target))
        if config.returns == "n-step":
            td_target = returns.n_step(bootstrap, reward, discount, continuation, n=config.n_steps)
        else:
            pi = (action == jnp.argmax(online, axis=-1)).astype(jnp.float32)
            trace = returns.retrace_trace(pi, extras["probability"], lambda_=hyper["trace_lambda"])
            q = h.inverse(jnp.take_along_axis(target, action[..., None], axis=-1)[..., 0])
            # A dummy's action may be any, and infinity times 0 would not be 0.
            q, trace = (jnp.where(weight > 0, x[:-1], 0.0) for x in (q, trace))
            td_target = jax.vmap(returns.off_policy, in_axes=1, out_axes=1)(
                q, bootstrap, reward, discount, continuation, trace
            )
        error = jax.lax.stop_gradient(h.apply(td_target)) - taken[:-1]
        return jnp.where(weight > 0, error, 0.0), weight, taken[:-1]

    def loss(
        self, params: PyTree, target_params: PyTree, hyper: dict[str, Array], batch: Batch
    ) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        """The objective, a scalar: the mean over sequences of ½ δ², weighted for their probability
        of being drawn; also new priorities `[B]` and metrics.

        batch: `[burn_in + length + 1, B]` rows. A priority is η max |δ| + (1 − η) mean |δ| (2.3).
        """
        error, weight, q = self.td_errors(params, target_params, hyper, batch)
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

    def learn(self, state: LearnerState, batch: Batch) -> Learnt:
        """One gradient step; now and then the target network becomes a copy."""
        grads, (priority, metrics) = jax.grad(self.loss, has_aux=True)(
            state.params, jax.lax.stop_gradient(state.extra["target"]), state.hyper, batch
        )
        rate = state.hyper["learning_rate"]
        state, norm = step.descend("adam", state, grads, rate, metrics["steps"])
        due = state.updates % self.config.target_every == 0
        target = jax.tree.map(
            lambda new, old: jnp.where(due, new, old), state.params, state.extra["target"]
        )
        metrics |= {"gradient_norm": norm}
        return Learnt(state._replace(extra={"target": target}), metrics, Feedback(priority))


def build(config: Config, spec: EnvSpec, *, horizon: int = 0) -> R2D2:
    """R2D2 for environments of this `spec`. Raises UserError for actions that are not discrete."""
    if not isinstance(spec.action_space, gym.spaces.Discrete):
        raise UserError(
            f"r2d2 has a value for each action, and the actions of '{spec.name}' are"
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
    ladder = Ladder(config.epsilon_greedy, config.epsilon_alpha)
    return R2D2(config, spec, network, rescaling, ladder, horizon)


def make(config: Config, spec: EnvSpec, *, horizon: int) -> Agent:
    """`build`'s methods as an `Agent`. Raises UserError for settings that do not go together."""
    r2d2 = build(config, spec, horizon=horizon)
    return Agent(
        r2d2.init,
        r2d2.behaviour,
        r2d2.initial_carry,
        r2d2.act,
        r2d2.learn,
        step.adopt,
        r2d2.warm_start,
        explores=r2d2.ladder.explores,
        source=config.source(),
    )
