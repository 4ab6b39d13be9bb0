"""R2D2: recurrent Q-learning from prioritised, distributed replay.

Kapturowski et al. 2019, "Recurrent Experience Replay in Distributed Reinforcement Learning"; the
constants are in `pronk.agents.r2d2_config`. Follow a reward here: `rows` cuts a drawn sequence into
burn-in and what is learnt from, `errors` turns the latter's rewards into TD errors, `loss` weighs
these, `learn` takes the step and returns the sequences' new priorities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import optax

from pronk.agents.r2d2_config import Config
from pronk.errors import UserError
from pronk.maths import distributions, returns, transforms
from pronk.nn import networks
from pronk.types import (
    Agent,
    Array,
    Batch,
    Carry,
    EnvSpec,
    Key,
    LearnerState,
    PyTree,
    ReplaySpec,
    TimeStep,
)


class Core(NamedTuple):
    """What the network remembers within an episode, `[B, ...]`."""

    state: PyTree  # of the recurrent core
    last_action: Array  # one-hot [B, A], zero before an episode's first action


def rescaling(config: Config) -> transforms.Transform:
    """h, by which action values are transformed."""
    return {
        "sqrt": transforms.signed_sqrt(config.rescaling_epsilon),
        "log": transforms.signed_log(),
        "none": transforms.IDENTITY,
    }[config.rescaling]


def action_values(
    config: Config, spec: EnvSpec
) -> tuple[networks.DuelingQ, Callable[..., tuple[Array, PyTree]]]:
    """The network, and its values of rows."""
    h = rescaling(config)
    network = networks.DuelingQ(
        space=spec.observation_space,
        num_actions=int(spec.action_space.n),  # type: ignore[attr-defined]
        torso=config.torso,
        hidden_sizes=config.hidden_sizes,
        head_units=config.head_units,
        activation=config.activation,
        core=config.recurrent_core,
        recurrent_units=config.recurrent_units,
        encoder_dtype=jnp.dtype(config.encoder_dtype),
    )

    def forward(
        params: PyTree, timestep: TimeStep, last_action: Array, state: PyTree
    ) -> tuple[Array, PyTree]:
        """Action values `[T, B, A]`, transformed by h, and the core's state after them."""
        reward = transforms.clip_reward(timestep.reward, config.reward_clip)
        q, state = network.apply(  # type: ignore[misc]
            params, timestep.observation, h.apply(reward), last_action, timestep.first, state
        )
        if timestep.action_mask is not None:
            q = jnp.where(timestep.action_mask, q, distributions.MASKED)
        return q, state

    return network, forward


def make(config: Config, spec: EnvSpec, *, horizon: int) -> Agent:
    """R2D2 for environments of this `spec`. Raises UserError where a space, or settings that do
    not go together, can't be handled."""
    del horizon  # nothing is annealed
    _check(config, spec)
    num_actions = int(spec.action_space.n)  # type: ignore[attr-defined]
    h = rescaling(config)
    network, forward = action_values(config, spec)

    def initial_core(batch: int) -> Core:
        state = networks.initial_state(config.recurrent_core, config.recurrent_units, batch)
        return Core(state, jnp.zeros((batch, num_actions), jnp.float32))

    def init(key: Key) -> LearnerState:
        params_key, key = jax.random.split(key)
        rows = jax.tree.map(lambda x: jnp.asarray(x)[None, None], spec.observation_space.sample())
        core, zeros = initial_core(1), jnp.zeros((1, 1))
        params = network.init(
            params_key, rows, zeros, core.last_action[None], zeros > 0, core.state
        )
        hyper = {
            name: jnp.float32(getattr(config, name))
            for name in (
                *(
                    "learning_rate",
                    "optimiser_epsilon",
                    "max_gradient_norm",
                    "discount",
                    "trace_lambda",
                ),
                *("importance_exponent", "priority_mixture"),
            )
        }
        return LearnerState(
            params=params,
            optimiser=optimiser(hyper).init(params),
            hyper=hyper,
            updates=jnp.int32(0),
            steps=jnp.uint32(0),
            skipped=jnp.int32(0),
            key=key,
            aux={"target": jax.tree.map(jnp.copy, params)},
        )

    def optimiser(hyper: dict[str, Array]) -> optax.GradientTransformation:
        clip = optax.clip_by_global_norm(hyper["max_gradient_norm"])
        return optax.chain(clip, optax.scale_by_adam(eps=hyper["optimiser_epsilon"]))

    def behaviour(state: LearnerState) -> PyTree:
        return state.params

    def initial_carry(key: Key, env_ids: Array, num_envs: int, evaluate: bool) -> Carry:
        del key
        rank = jnp.asarray(env_ids, jnp.float32) / max(num_envs - 1, 1)
        epsilon = config.epsilon_greedy ** (1 + config.epsilon_alpha * rank)
        epsilon = jnp.where(evaluate, 0.0, epsilon)
        return Carry(initial_core(env_ids.shape[0]), private={"epsilon": epsilon})

    def act(
        behaviour: PyTree, carry: Carry, timestep: TimeStep, key: Key
    ) -> tuple[Array, Carry, dict[str, Array]]:
        last_action = networks.reset(carry.core.last_action, timestep.first)
        row = jax.tree.map(lambda x: x[None], timestep)
        q, state = forward(behaviour, row, last_action[None], carry.core.state)
        epsilon = carry.private["epsilon"][:, None]
        mask = timestep.action_mask
        allowed = jnp.ones_like(q[0]) if mask is None else mask.astype(jnp.float32)
        greedy = jax.nn.one_hot(jnp.argmax(q[0], axis=-1), num_actions)
        chosen = epsilon * allowed / allowed.sum(-1, keepdims=True) + (1 - epsilon) * greedy
        action = jax.random.categorical(key, jnp.log(chosen)).astype(jnp.int32)
        taken = jax.nn.one_hot(action, num_actions)
        extras = {"probability": jnp.sum(chosen * taken, axis=-1), "core": carry.core}
        return action, Carry(Core(state, taken), carry.private), extras

    def rows(batch: Batch) -> tuple[TimeStep, Array, Core]:
        """Everything drawn, with the last actions, and the state that it begins with."""
        timestep, core = batch.trajectory.timestep, batch.trajectory.core
        if not config.stored_state:
            core = Core(jax.tree.map(jnp.zeros_like, core.state), core.last_action)
        taken = jax.nn.one_hot(batch.trajectory.action, num_actions)
        last_action = jnp.concatenate([core.last_action[None], taken[:-1]])
        return timestep, jnp.where(timestep.first[..., None], 0.0, last_action), core

    def values(params: PyTree, batch: Batch) -> Array:
        """Action values `[length + 1, B, A]` of what is learnt from, transformed by h."""
        timestep, last_action, core = rows(batch)
        before, after = (
            jax.tree.map(lambda x, part=part: x[part], (timestep, last_action))
            for part in (slice(config.burn_in), slice(config.burn_in, None))
        )
        state = core.state
        if config.burn_in:
            _, state = forward(params, before[0], before[1], state)
        # Learnt from is only what comes after: no gradient reaches back (section 3).
        return forward(params, after[0], after[1], jax.lax.stop_gradient(state))[0]

    def errors(
        params: PyTree, target_params: PyTree, hyper: dict[str, Array], batch: Batch
    ) -> tuple[Array, Array, Array]:
        """TD errors, weights (0 for dummies) and values of the actions taken, `[length, B]`."""
        trajectory = jax.tree.map(
            lambda x: x[config.burn_in :],
            (batch.trajectory.timestep, batch.trajectory.action, batch.trajectory.extras),
        )
        timestep, action, extras = trajectory
        online, target = values(params, batch), values(target_params, batch)
        taken = jnp.take_along_axis(online, action[..., None], axis=-1)[..., 0]
        timestep = timestep._replace(
            reward=transforms.clip_reward(timestep.reward, config.reward_clip)
        )
        reward, discount, continuation, weight = returns.transitions(timestep, hyper["discount"])
        bootstrap = h.inverse(returns.double_q(online, target))
        if config.returns == "n-step":
            goal = returns.n_step(bootstrap, reward, discount, continuation, n=config.n_steps)
        else:
            pi = (action == jnp.argmax(online, axis=-1)).astype(jnp.float32)
            trace = returns.retrace_trace(pi, extras["probability"], lambda_=hyper["trace_lambda"])
            q = h.inverse(jnp.take_along_axis(target, action[..., None], axis=-1)[..., 0])
            # A dummy's action may be any, and infinity times 0 would not be 0.
            q, trace = (jnp.where(weight > 0, x[:-1], 0.0) for x in (q, trace))
            goal = jax.vmap(returns.off_policy, in_axes=1, out_axes=1)(
                q, bootstrap, reward, discount, continuation, trace
            )
        error = jax.lax.stop_gradient(h.apply(goal)) - taken[:-1]
        return jnp.where(weight > 0, error, 0.0), weight, taken[:-1]

    def loss(
        params: PyTree, target_params: PyTree, hyper: dict[str, Array], batch: Batch
    ) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        error, weight, q = errors(params, target_params, hyper, batch)
        count = jnp.maximum(weight.sum(axis=0), 1.0)  # [B]
        size = jnp.abs(error)
        eta = hyper["priority_mixture"]
        priority = eta * size.max(axis=0) + (1 - eta) * size.sum(axis=0) / count
        of_sequence = 0.5 * jnp.square(error).sum(axis=0)
        if config.loss_reduction == "mean":
            of_sequence /= count
        # Sequences drawn too often for their number count less (Schaul et al. 2016, 3.4).
        correction = jnp.ones_like(of_sequence)
        if batch.probabilities is not None:
            correction = batch.probabilities ** -hyper["importance_exponent"]
            correction /= correction.max()
        objective = jnp.mean(correction * of_sequence)
        steps = weight.sum()
        return objective, (
            priority,
            {
                "loss/value": objective,
                "q_mean": jnp.sum(q * weight) / jnp.maximum(steps, 1.0),
                "td_error": jnp.sum(size) / jnp.maximum(steps, 1.0),
                "importance_weight": correction.mean(),
                "steps": steps,
            },
        )

    def learn(state: LearnerState, batch: Batch) -> tuple[LearnerState, PyTree, dict[str, Array]]:
        grads, (priority, metrics) = jax.grad(loss, has_aux=True)(
            state.params, jax.lax.stop_gradient(state.aux["target"]), state.hyper, batch
        )
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm)
        updates, optimiser_state = optimiser(state.hyper).update(grads, state.optimiser)
        rate = state.hyper["learning_rate"]
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        # A gradient that is not finite must not touch the parameters: count it and go on.
        params, optimiser_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, optimiser_state),
            (state.params, state.optimiser),
        )
        count = state.updates + 1
        due = count % config.target_every == 0
        target = jax.tree.map(
            lambda new, old: jnp.where(due, new, old), params, state.aux["target"]
        )
        state = state._replace(
            params=params,
            optimiser=optimiser_state,
            updates=count,
            steps=state.steps + metrics["steps"].astype(jnp.uint32),
            skipped=state.skipped + (~finite).astype(jnp.int32),
            aux={"target": target},
        )
        return state, priority, metrics | {"gradient_norm": norm}

    replay = ReplaySpec(
        capacity=config.replay_capacity,
        burn_in=config.burn_in,
        length=config.sequence_length,
        overlap=config.overlap,
        minimum=config.replay_minimum,
        samples_per_insert=config.samples_per_insert,
        priority_exponent=config.priority_exponent,
        eviction=config.replay_eviction,
        compress=config.replay_compress,
        saved=config.replay_saved,
    )
    return Agent(init, behaviour, initial_carry, act, learn, replay=replay)


def _check(config: Config, spec: EnvSpec) -> None:
    space = spec.action_space
    if not isinstance(space, gym.spaces.Discrete):
        raise UserError(
            f"r2d2 has a value for each action, and the actions of '{spec.name}' are {space};"
            " expected Discrete: use another agent, such as impala."
        )
    if not 0 <= config.overlap < config.sequence_length:
        raise UserError(
            f"`--overlap` is {config.overlap}; expected from 0 to less than `--sequence-length`,"
            f" which is {config.sequence_length}."
        )
    stride = config.sequence_length - config.overlap
    if config.replay_minimum * stride > config.replay_capacity:
        raise UserError(
            f"`--replay-minimum` is {config.replay_minimum} sequences, one per {stride} steps, and"
            f" `--replay-capacity` {config.replay_capacity} steps: expected room for all of them."
        )
