"""R2D2: recurrent Q-learning from prioritised, distributed replay.

Kapturowski et al. 2019, "Recurrent Experience Replay in Distributed Reinforcement Learning"; the
constants are in `pronk.agents.r2d2_config`. `learn` takes the step and returns new priorities,
`loss` weighs the `td_errors`, `action_values` runs the network over a sequence, burn-in first.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from pronk.agents import sequence_q, step
from pronk.agents.actor_critic import Core
from pronk.agents.r2d2_config import Config
from pronk.agents.sequence_q import SequenceQ
from pronk.maths import returns, transforms
from pronk.nn import cores
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
class R2D2(SequenceQ):
    """R2D2 for one environment; its methods are the functions of an `Agent`."""

    def init(self, key: Key) -> LearnerState:
        """The learner's first state; the target network begins as a copy."""
        params_key, key = jax.random.split(key)
        core, zeros = self.initial_core(1), jnp.zeros((1, 1))
        params = self.network.init(
            params_key, self.sample_rows(), zeros, core.last_action[None], zeros > 0, core.state
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
        return self.masked(q, timestep), state

    def values(
        self, params: PyTree, rows: tuple[PyTree, ...], state: PyTree
    ) -> tuple[Array, PyTree]:
        """`forward` of time steps and the actions before them."""
        timestep, last_action = rows
        return self.forward(params, timestep, last_action, state)

    def act(
        self, behaviour: PyTree, carry: Carry, timestep: TimeStep, key: Key
    ) -> tuple[Array, Carry, dict[str, Array]]:
        """ε-greedy actions for slots `[B]`, and the probability with which each was taken."""
        last_action = cores.reset(carry.core.last_action, timestep.first)
        row = jax.tree.map(lambda x: x[None], timestep)
        q, state = self.forward(behaviour, row, last_action[None], carry.core.state)
        action, taken, probability = self.choose(
            q[0], carry.private["epsilon"], timestep.action_mask, key
        )
        return action, Carry(Core(state, taken), carry.private), {"probability": probability}

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
        """`sequence_loss` of a batch of `[burn_in + length + 1, B]` rows."""
        error, weight, q = self.td_errors(params, target_params, hyper, batch)
        return self.sequence_loss(error, weight, q, hyper, batch)

    def learn(self, state: LearnerState, batch: Batch) -> Learnt:
        """One gradient step; now and then the target network becomes a copy."""
        grads, (priority, metrics) = jax.grad(self.loss, has_aux=True)(
            state.params, jax.lax.stop_gradient(state.extra["target"]), state.hyper, batch
        )
        rate = state.hyper["learning_rate"]
        state, norm = step.descend("adam", state, grads, rate, metrics["steps"])
        every, old = self.config.target_every, state.extra["target"]
        target = step.copy_every(every, state.updates, state.params, old)
        metrics |= {"gradient_norm": norm}
        return Learnt(state._replace(extra={"target": target}), metrics, Feedback(priority))


def build(config: Config, spec: EnvSpec, *, horizon: int = 0) -> R2D2:
    """R2D2 for environments of this `spec`. Raises UserError for actions that are not discrete."""
    return R2D2(*sequence_q.parts("r2d2", config, spec), horizon)


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
