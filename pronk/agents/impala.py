"""IMPALA: an actor-critic learnt from other policies' trajectories by V-trace.

Espeholt et al. 2018, "IMPALA: Scalable Distributed Deep-RL with Importance Weighted
Actor-Learner Architectures"; the constants are in `pronk.configs.impala`. Follow a reward here:
`transitions` reads it off the trajectory, `vtrace` turns it into targets and advantages, `loss`
weighs them, `gradients` and `apply` take the step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pronk import distributions, losses, networks, returns, transforms
from pronk.configs.impala import Config
from pronk.errors import UserError
from pronk.returns import Transitions
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
    last_action: Array  # [B, A] features, zero before an episode's first action


EPSILON = 1e-6  # of ε-correction: log(π + ε) (section 5.2.2)


class Behaviour(NamedTuple):
    """What acting needs of the learner's state."""

    params: PyTree


def make(config: Config, spec: EnvSpec, *, horizon: int) -> Agent:
    """IMPALA for environments of this `spec`; schedules end after `horizon` agent steps.

    Raises UserError where a space of the environment can't be handled, and where all is replayed.
    """
    if config.replay_share == 1.0:
        raise UserError(
            "`--replay-share` is 1, which leaves nothing of what the actors do; expected less, such"
            " as 0.875."
        )
    distribution = distributions.for_space(
        spec.action_space, squash=config.squash_actions, initial_std=config.initial_std
    )
    network = networks.ActorCritic(
        space=spec.observation_space,
        num_params=distribution.num_params,
        torso=config.torso,
        hidden=config.hidden,
        activation=config.activation,
        core=config.core,
        core_size=config.core_size,
        separate_value=config.separate_value,
        encoder_dtype=jnp.dtype(config.encoder_dtype),
    )

    def initial_core(batch: int) -> Core:
        state = networks.initial_state(config.core, config.core_size, batch)
        return Core(state, jnp.zeros((batch, distribution.num_features), jnp.float32))

    def scaled(reward: Array) -> Array:
        return transforms.clip_reward(reward * config.reward_scale, config.reward_clip)

    def forward(
        params: PyTree, timestep: TimeStep, last_action: Array, state: PyTree
    ) -> tuple[Array, Array, PyTree]:
        """Policy parameters and values of rows `[T, B]`, and the core's state after them."""
        policy, value, state = network.apply(  # type: ignore[misc]
            params,
            timestep.observation,
            scaled(timestep.reward),
            last_action,
            timestep.first,
            state,
        )
        if timestep.action_mask is not None:
            policy = jnp.where(timestep.action_mask, policy, distributions.MASKED)
        return policy, value, state

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
                *("learning_rate", "epsilon", "rmsprop_decay", "max_gradient_norm"),
                *("entropy_cost", "value_cost", "discount", "rho_bar", "c_bar", "trace_lambda"),
                *(("trace_leak",) if config.trace_leak else ()),
                *(("trust_region", "average_decay") if config.trust_region else ()),
            )
        }
        hyper["horizon"] = jnp.float32(horizon)
        return LearnerState(
            params=params,
            optimiser=optimiser(hyper).init(params),
            hyper=hyper,
            updates=jnp.int32(0),
            steps=jnp.uint32(0),
            skipped=jnp.int32(0),
            key=key,
            # The average policy, of which the trust region is one.
            aux={"target": jax.tree.map(jnp.copy, params)} if config.trust_region else (),
        )

    def optimiser(hyper: dict[str, Array]) -> optax.GradientTransformation:
        if config.optimiser == "adam":
            scale = optax.scale_by_adam(eps=hyper["epsilon"])
        else:  # TensorFlow's RMSProp: ε inside the root, mean square starting at 1
            scale = optax.scale_by_rms(
                decay=hyper["rmsprop_decay"],
                eps=hyper["epsilon"],
                initial_scale=1.0,
                eps_in_sqrt=True,
            )
        return optax.chain(optax.clip_by_global_norm(hyper["max_gradient_norm"]), scale)

    def behaviour(state: LearnerState) -> Behaviour:
        return Behaviour(state.params)

    def initial_carry(key: Key, env_ids: Array, num_envs: int, evaluate: bool) -> Carry:
        del key, num_envs
        batch = env_ids.shape[0]
        return Carry(initial_core(batch), private={"greedy": jnp.full((batch,), evaluate)})

    def act(
        behaviour: Behaviour, carry: Carry, timestep: TimeStep, key: Key
    ) -> tuple[Array, Carry, dict[str, Array]]:
        core = Core(carry.core.state, networks.reset(carry.core.last_action, timestep.first))
        row = jax.tree.map(lambda x: x[None], timestep)
        policy, _, state = forward(behaviour.params, row, core.last_action[None], core.state)
        policy = policy[0]
        greedy = carry.private["greedy"]
        sampled, mode = distribution.sample(policy, key), distribution.mode(policy)
        raw = jnp.where(greedy.reshape(greedy.shape + (1,) * (mode.ndim - 1)), mode, sampled)
        extras = {"log_prob": distribution.log_prob(policy, raw)}
        if distribution.continuous:
            extras["raw_action"] = raw
        if config.trust_region:
            extras["policy"] = policy
        if config.replay_share:
            extras["core"] = carry.core
        core = Core(state, distribution.features(raw))
        return distribution.action(raw), Carry(core, carry.private), extras

    def corrected(
        hyper: dict[str, Array], values: Array, seen: Transitions, ratio: Array, used: Array
    ) -> returns.VTrace:
        """Targets and advantages by `config.correction`; all `[T, B]`, values `[T + 1, B]`.

        used: 0 for transitions to be left out, dummies among them. The alternatives to V-trace are
        those of the paper's section 5.2.2.
        """
        levels: dict[str, Any] = {"lambda_": hyper["trace_lambda"]}
        continuation = seen.continuation
        if config.correction == "vtrace":
            levels |= {"rho_bar": hyper["rho_bar"], "c_bar": hyper["c_bar"]}
            levels |= {"leak": hyper.get("trace_leak", 0.0)}
            told = jnp.where(used > 0, ratio, 0.0)
        else:
            told = used  # as if π and μ were the same
        if config.correction == "one-step":
            continuation = jnp.zeros_like(continuation)
        found = jax.vmap(lambda *args: returns.vtrace(*args, **levels), in_axes=1, out_axes=1)(
            values, seen.reward, seen.discount, continuation, told
        )
        if config.correction == "one-step":
            rho = jnp.minimum(hyper["rho_bar"], ratio)
            found = found._replace(advantages=rho * found.advantages)
        return found

    def trusted(target: PyTree, hyper: dict[str, Array], batch: Batch, inputs: tuple) -> Array:
        """Whether what V-trace would find from this behaviour is nearly the average policy's value,
        `[T, B]` (Schmitt et al. 2020, section 4.3)."""
        average, _, _ = forward(target, *inputs)
        behaved = batch.trajectory.extras["policy"]
        implied = distribution.implied(average, behaved, hyper["rho_bar"])
        return distribution.kl(average, implied)[:-1] < hyper["trust_region"]

    def loss(
        params: PyTree, target: PyTree, hyper: dict[str, Array], batch: Batch, key: Key
    ) -> tuple[Array, dict[str, Array]]:
        rows, core = batch.trajectory.timestep, batch.trajectory.core
        raw = batch.trajectory.extras.get("raw_action", batch.trajectory.action)
        taken = distribution.features(raw)
        last_action = jnp.concatenate([core.last_action[None], taken[:-1]])
        last_action = jnp.where(rows.first[..., None], 0.0, last_action)
        inputs = (rows, last_action, core.state)
        policy, values, _ = forward(params, *inputs)

        seen = returns.transitions(rows._replace(reward=scaled(rows.reward)), hyper["discount"])
        weight = seen.weight
        log_prob = distribution.log_prob(policy[:-1], raw[:-1])
        # A dummy's ratio may be anything, and infinity times its weight 0 would not be 0.
        log_ratio = jnp.where(weight > 0, log_prob - batch.trajectory.extras["log_prob"][:-1], 0.0)
        used = weight
        if config.trust_region:
            used = weight * trusted(target, hyper, batch, inputs)
        vtrace = corrected(hyper, *jax.lax.stop_gradient((values, seen, jnp.exp(log_ratio), used)))
        if config.correction == "epsilon":
            log_prob = jnp.logaddexp(log_prob, jnp.log(EPSILON))
        # Section 4.2 of the paper: three terms, each over all real transitions.
        terms = {
            "policy": losses.policy_gradient(log_prob, vtrace.advantages),
            "value": losses.squared_error(values[:-1], vtrace.targets),
            "entropy": distribution.entropy(policy[:-1], key),
        }
        total = {k: jnp.sum(v * used) for k, v in terms.items()}
        if batch.replayed is not None:  # of fresh data alone (Schmitt et al. 2020, section 5.1)
            total["entropy"] = jnp.sum(terms["entropy"] * used * ~batch.replayed)
        objective = (
            total["policy"]
            + hyper["value_cost"] * total["value"]
            - hyper["entropy_cost"] * total["entropy"]
        )
        return objective, {
            **{f"loss/{k}": v for k, v in total.items()},
            "importance_ratio": jnp.sum(jnp.exp(log_ratio) * weight),
            "value_mean": jnp.sum(values[:-1] * weight),
            **({"trusted": jnp.sum(used)} if config.trust_region else {}),
            "steps": jnp.sum(weight),
            "fresh": jnp.sum(weight if batch.replayed is None else weight * ~batch.replayed),
        }

    def gradients(state: LearnerState, batch: Batch) -> tuple[PyTree, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.updates)
        target = state.aux["target"] if config.trust_region else ()
        return jax.grad(loss, has_aux=True)(state.params, target, state.hyper, batch, key)

    def apply(
        state: LearnerState, grads: PyTree, aux: dict[str, Array]
    ) -> tuple[LearnerState, PyTree, dict[str, Array]]:
        count = jnp.maximum(aux["steps"], 1.0)
        if config.loss_reduction == "mean":
            grads = jax.tree.map(lambda g: g / count, grads)
        progress = jnp.minimum(state.steps.astype(jnp.float32) / state.hyper["horizon"], 1.0)
        learning_rate = state.hyper["learning_rate"]
        if config.anneal:
            learning_rate = learning_rate * (1.0 - progress)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm)
        updates, optimiser_state = optimiser(state.hyper).update(grads, state.optimiser)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
        # A gradient that is not finite must not touch the parameters: count it and go on.
        params, optimiser_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, optimiser_state),
            (state.params, state.optimiser),
        )
        state = state._replace(
            params=params,
            optimiser=optimiser_state,
            updates=state.updates + 1,
            steps=state.steps + aux["fresh"].astype(jnp.uint32),
            skipped=state.skipped + (~finite).astype(jnp.int32),
        )
        if config.trust_region:
            decay = state.hyper["average_decay"]
            average = optax.incremental_update(params, state.aux["target"], 1.0 - decay)
            state = state._replace(aux={"target": average})
        metrics = {k: aux[k] / count for k in aux if k not in ("steps", "fresh")}
        metrics |= {"steps": aux["steps"], "gradient_norm": norm, "learning_rate": learning_rate}
        return state, (), metrics

    def learn(state: LearnerState, batch: Batch) -> tuple[LearnerState, PyTree, dict[str, Array]]:
        return apply(state, *gradients(state, batch))

    replay = None
    if config.replay_share:
        replay = ReplaySpec(
            capacity=config.replay_capacity,
            burn_in=0,
            length=config.unroll,
            overlap=0,
            minimum=1,
            samples_per_insert=1.0,
            priority_exponent=0.0,
            share=config.replay_share,
            across=True,
        )
    return Agent(init, behaviour, initial_carry, act, learn, gradients, apply, replay)
