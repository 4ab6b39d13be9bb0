"""IMPALA: an actor-critic learnt from other policies' trajectories by V-trace.

Espeholt et al. 2018, "IMPALA: Scalable Distributed Deep-RL with Importance Weighted
Actor-Learner Architectures"; the constants are in `pronk.agents.impala_config`. Follow a reward
here: `transitions` reads it off the trajectory, `vtrace` turns it into targets and advantages,
`loss` weighs them, `gradients` and `apply` take the step. With PopArt (`pronk.maths.popart`)
`renormalised` goes before.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import optax

from pronk.agents.impala_config import Config
from pronk.errors import UserError
from pronk.maths import distributions, losses, popart, returns, transforms
from pronk.maths.returns import Transitions
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
    last_action: Array  # [B, A] features, zero before an episode's first action


class Found(NamedTuple):
    """What a batch of `[T + 1, B]` rows says of the parameters."""

    output: networks.Output
    n: Array  # [T + 1, B], as the network gives them: the values, or with PopArt normalised ones
    values: Array  # [T + 1, B], in units of reward
    task: Array  # [T + 1, B], whose value
    seen: Transitions
    log_prob: Array  # [T, B], of what was done
    log_ratio: Array  # [T, B], log π/μ of it; 0 for dummies
    used: Array  # [T, B], 0 for transitions left out
    vtrace: returns.VTrace  # in units of reward; no gradient


EPSILON = 1e-6  # of ε-correction: log(π + ε) (section 5.2.2)


class Behaviour(NamedTuple):
    """What acting needs of the learner's state."""

    params: PyTree


def make(config: Config, spec: EnvSpec, *, horizon: int) -> Agent:
    """IMPALA for environments of this `spec`; schedules end after `horizon` agent steps.

    Raises UserError where a space of the environment can't be handled, where all is replayed, and
    where pixel control is asked for and there are no pixels, or no discrete actions.
    """
    if config.replay_fraction == 1.0:
        raise UserError(
            "`--replay-fraction` is 1, which leaves nothing of what the actors do; expected less,"
            " such as 0.875."
        )
    distribution = distributions.for_space(
        spec.action_space, squash=config.squash_actions, initial_std=config.initial_std
    )
    num_values = spec.num_tasks if config.value_per_task else 1
    renormalises = config.value_normalisation != "none"
    if renormalises and config.popart_debias and not 0 < config.popart_beta < 1:
        raise UserError(
            f"`--popart-beta` is {config.popart_beta:g}, which --popart-debias divides by; expected"
            " a number above 0 and below 1."
        )
    pixel_control = None
    if config.pixel_control_cost:
        pixel_control = _pixel_control(config, spec)
    network = networks.ActorCritic(
        space=spec.observation_space,
        num_params=distribution.num_params,
        torso=config.torso,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        core=config.recurrent_core,
        recurrent_units=config.recurrent_units,
        separate_value=config.separate_value,
        encoder_dtype=jnp.dtype(config.encoder_dtype),
        num_values=num_values,
        # What values are by chance is in units of 1, and would be preserved in all others.
        zero_values=renormalises,
        pixel_control=pixel_control,
    )

    def initial_core(batch: int) -> Core:
        state = networks.initial_state(config.recurrent_core, config.recurrent_units, batch)
        return Core(state, jnp.zeros((batch, distribution.num_features), jnp.float32))

    def scaled(reward: Array) -> Array:
        return transforms.clip_reward(reward * config.reward_scale, config.reward_clip)

    def forward(
        params: PyTree, timestep: TimeStep, last_action: Array, state: PyTree, pixel: bool = False
    ) -> networks.Output:
        """What the network makes of rows `[T, B]`."""
        output: networks.Output = network.apply(  # type: ignore[assignment]
            params,
            timestep.observation,
            scaled(timestep.reward),
            last_action,
            timestep.first,
            state,
            pixel=pixel,
        )
        if timestep.action_mask is not None:
            masked = jnp.where(timestep.action_mask, output.policy, distributions.MASKED)
            output = output._replace(policy=masked)
        return output

    def task_of(timestep: TimeStep) -> Array:
        """Whose value is meant, `[...]`."""
        return timestep.task if num_values > 1 else jnp.zeros_like(timestep.task)

    def of_task(values: Array, task: Array) -> Array:
        """Each row's own of `[..., K]` values."""
        if num_values == 1:
            return values[..., 0]
        return jnp.sum(values * jax.nn.one_hot(task, num_values), axis=-1)

    def init(key: Key) -> LearnerState:
        params_key, key = jax.random.split(key)
        rows = jax.tree.map(lambda x: jnp.asarray(x)[None, None], spec.observation_space.sample())
        core, zeros = initial_core(1), jnp.zeros((1, 1))
        params = network.init(
            params_key, rows, zeros, core.last_action[None], zeros > 0, core.state, pixel=True
        )
        hyper = {
            name: jnp.float32(getattr(config, name))
            for name in (
                *("learning_rate", "optimiser_epsilon", "rmsprop_decay", "max_gradient_norm"),
                *("entropy_cost", "value_cost", "discount", "rho_bar", "c_bar", "trace_lambda"),
                *(("trace_leak",) if config.trace_leak else ()),
                *(("trust_region", "average_decay") if config.trust_region else ()),
                *(("popart_beta",) if renormalises else ()),
                *(("pixel_control_cost", "pixel_control_discount") if pixel_control else ()),
            )
        }
        aux = {}
        if config.trust_region:  # the average policy, of which the trust region is one
            aux["target"] = jax.tree.map(jnp.copy, params)
        if renormalises:
            aux["statistics"] = popart.init(num_values)
        hyper["horizon"] = jnp.float32(horizon)
        return LearnerState(
            params=params,
            optimiser=optimiser(hyper).init(params),
            hyper=hyper,
            updates=jnp.int32(0),
            steps=jnp.uint32(0),
            skipped=jnp.int32(0),
            key=key,
            aux=aux or (),
        )

    def optimiser(hyper: dict[str, Array]) -> optax.GradientTransformation:
        if config.optimiser == "adam":
            scale = optax.scale_by_adam(eps=hyper["optimiser_epsilon"])
        else:  # TensorFlow's RMSProp: ε inside the root, mean square starting at 1
            scale = optax.scale_by_rms(
                decay=hyper["rmsprop_decay"],
                eps=hyper["optimiser_epsilon"],
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
        output = forward(behaviour.params, row, core.last_action[None], core.state)
        policy, state = output.policy[0], output.state
        greedy = carry.private["greedy"]
        sampled, mode = distribution.sample(policy, key), distribution.mode(policy)
        raw = jnp.where(greedy.reshape(greedy.shape + (1,) * (mode.ndim - 1)), mode, sampled)
        extras = {"log_prob": distribution.log_prob(policy, raw)}
        if distribution.continuous:
            extras["raw_action"] = raw
        if config.trust_region:
            extras["policy"] = policy
        if config.replay_fraction:
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
        average = forward(target, *inputs).policy
        behaved = batch.trajectory.extras["policy"]
        implied = distribution.implied(average, behaved, hyper["rho_bar"])
        return distribution.kl(average, implied)[:-1] < hyper["trust_region"]

    def inputs_of(batch: Batch) -> tuple[TimeStep, Array, PyTree]:
        """What the network sees of a batch: rows, the action before each, the core before all."""
        rows, core = batch.trajectory.timestep, batch.trajectory.core
        taken = distribution.features(taken_in(batch))
        last_action = jnp.concatenate([core.last_action[None], taken[:-1]])
        return rows, jnp.where(rows.first[..., None], 0.0, last_action), core.state

    def taken_in(batch: Batch) -> Array:
        """The raw actions of a batch, `[T + 1, B, ...]`."""
        return batch.trajectory.extras.get("raw_action", batch.trajectory.action)

    def found_in(
        params: PyTree, aux: Any, hyper: dict[str, Array], batch: Batch, *, pixel: bool = False
    ) -> Found:
        """What a batch says of these parameters, in units of reward."""
        inputs = inputs_of(batch)
        rows = inputs[0]
        output = forward(params, *inputs, pixel=pixel)
        task = task_of(rows)
        values = n = of_task(output.values, task)
        if renormalises:
            values = popart.unnormalised(aux["statistics"], n, task)
        seen = returns.transitions(rows._replace(reward=scaled(rows.reward)), hyper["discount"])
        log_prob = distribution.log_prob(output.policy[:-1], taken_in(batch)[:-1])
        # A dummy's ratio may be anything, and infinity times its weight 0 would not be 0.
        log_ratio = log_prob - batch.trajectory.extras["log_prob"][:-1]
        log_ratio = jnp.where(seen.weight > 0, log_ratio, 0.0)
        used = seen.weight
        if config.trust_region:
            used = used * trusted(aux["target"], hyper, batch, inputs)
        vtrace = corrected(hyper, *jax.lax.stop_gradient((values, seen, jnp.exp(log_ratio), used)))
        return Found(output, n, values, task, seen, log_prob, log_ratio, used, vtrace)

    def renormalised(state: LearnerState, batch: Batch) -> LearnerState:
        """The state in units that this batch's targets have been counted in, before its gradient is
        taken (Hessel et al. 2018): with PopArt of the same values as before."""
        found = found_in(state.params, state.aux, state.hyper, batch)
        old = state.aux["statistics"]
        new = popart.updated(
            old,
            found.vtrace.targets,
            found.task[:-1],
            found.used,
            state.hyper["popart_beta"],
            debias=config.popart_debias,
        )

        def rescaled(params: PyTree) -> PyTree:
            head = params["params"]["value"]
            kernel, bias = popart.preserved(head["kernel"], head["bias"], old, new)
            return {"params": params["params"] | {"value": {"kernel": kernel, "bias": bias}}}

        aux = state.aux | {"statistics": new}
        if config.value_normalisation == "art":
            return state._replace(aux=aux)
        if config.trust_region:
            aux["target"] = rescaled(state.aux["target"])
        return state._replace(params=rescaled(state.params), aux=aux)

    def pixel_loss(q: Array, hyper: dict[str, Array], batch: Batch, seen: Transitions) -> Array:
        """½ (n-step Q target − Q)² summed over cells, `[T, B]` (Jaderberg et al. 2017, section
        3.1); the reward is how much a cell changes."""
        rows, taken = batch.trajectory.timestep, batch.trajectory.action
        change = networks.pixel_change(
            spec.observation_space, rows.observation, config.pixel_control_cell
        )
        greedy = jnp.max(q, axis=-1)
        if rows.action_mask is not None:
            greedy = jnp.max(q, axis=-1, where=rows.action_mask[:, :, None, None], initial=-jnp.inf)
        # What `transitions` made of the task's discount: 0 where the episode terminates.
        going_on = hyper["pixel_control_discount"] * (seen.discount > 0)
        weight, going_on, continuation = (
            x[..., None, None] for x in (seen.weight, going_on, seen.continuation)
        )
        targets = returns.n_step(
            jax.lax.stop_gradient(greedy), change * weight, going_on, continuation
        )
        chosen = jnp.sum(q[:-1] * jax.nn.one_hot(taken[:-1], q.shape[-1])[:, :, None, None], -1)
        return jnp.sum(losses.squared_error(chosen, targets), axis=(-2, -1))

    def loss(
        params: PyTree, aux: Any, hyper: dict[str, Array], batch: Batch, key: Key
    ) -> tuple[Array, dict[str, Array]]:
        found = found_in(params, aux, hyper, batch, pixel=True)
        seen, used, log_prob, vtrace = found.seen, found.used, found.log_prob, found.vtrace
        weight = seen.weight
        if config.correction == "epsilon":
            log_prob = jnp.logaddexp(log_prob, jnp.log(EPSILON))
        targets, advantages = vtrace.targets, vtrace.advantages
        if renormalises:
            task = found.task[:-1]
            targets = popart.normalised(aux["statistics"], targets, task)
            advantages = advantages / aux["statistics"].deviation[task]
        # Section 4.2 of the paper: three terms, each over all real transitions.
        terms = {
            "policy": losses.policy_gradient(log_prob, advantages),
            "value": losses.squared_error(found.n[:-1], targets),
            "entropy": distribution.entropy(found.output.policy[:-1], key),
        }
        if found.output.pixel_values is not None:
            terms["pixel_control"] = pixel_loss(found.output.pixel_values, hyper, batch, seen)
        total = {k: jnp.sum(v * used) for k, v in terms.items()}
        if batch.replayed is not None:  # of fresh data alone (Schmitt et al. 2020, section 5.1)
            total["entropy"] = jnp.sum(terms["entropy"] * used * ~batch.replayed)
        objective = (
            total["policy"]
            + hyper["value_cost"] * total["value"]
            - hyper["entropy_cost"] * total["entropy"]
        )
        if pixel_control:
            objective += hyper["pixel_control_cost"] * total["pixel_control"]
        return objective, {
            **{f"loss/{k}": v for k, v in total.items()},
            "importance_ratio": jnp.sum(jnp.exp(found.log_ratio) * weight),
            "value_mean": jnp.sum(found.values[:-1] * weight),
            **({"trusted": jnp.sum(used)} if config.trust_region else {}),
            "steps": jnp.sum(weight),
            "fresh": jnp.sum(weight if batch.replayed is None else weight * ~batch.replayed),
        }

    def gradients(state: LearnerState, batch: Batch) -> tuple[PyTree, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.updates)
        return jax.grad(loss, has_aux=True)(state.params, state.aux, state.hyper, batch, key)

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
            state = state._replace(aux=state.aux | {"target": average})
        metrics = {k: aux[k] / count for k in aux if k not in ("steps", "fresh")}
        metrics |= {"steps": aux["steps"], "gradient_norm": norm, "learning_rate": learning_rate}
        if renormalises:
            statistics = state.aux["statistics"]
            for k, name in enumerate(spec.tasks if num_values > 1 else ("all",)):
                metrics[f"popart/mean/{name}"] = statistics.mean[k]
                metrics[f"popart/deviation/{name}"] = statistics.deviation[k]
        return state, (), metrics

    def learn(state: LearnerState, batch: Batch) -> tuple[LearnerState, PyTree, dict[str, Array]]:
        if not renormalises:
            return apply(state, *gradients(state, batch))
        units = renormalised(state, batch)
        after, feedback, metrics = apply(units, *gradients(units, batch))
        # A batch whose gradient is not finite changes no units, either.
        skipped = after.skipped > state.skipped
        params, aux = jax.tree.map(
            lambda new, old: jnp.where(skipped, old, new),
            (after.params, after.aux),
            (state.params, state.aux),
        )
        return after._replace(params=params, aux=aux), feedback, metrics

    replay = None
    if config.replay_fraction:
        replay = ReplaySpec(
            capacity=config.replay_capacity,
            burn_in=0,
            length=config.unroll,
            overlap=0,
            minimum=1,
            samples_per_insert=1.0,
            priority_exponent=0.0,
            share=config.replay_fraction,
            across=True,
        )
    if renormalises:  # from the whole batch, before its gradient: there are no halves
        return Agent(init, behaviour, initial_carry, act, learn, replay=replay)
    return Agent(init, behaviour, initial_carry, act, learn, gradients, apply, replay)


def _pixel_control(config: Config, spec: EnvSpec) -> networks.PixelControl:
    """The head of pixel control; raises UserError where it can't be had."""
    cells = networks.pixel_cells(spec.observation_space, config.pixel_control_cell)
    if cells is None or not isinstance(spec.action_space, gym.spaces.Discrete):
        raise UserError(
            f"`--pixel-control-cost` is {config.pixel_control_cost:g}, and '{spec.name}' has"
            f" observations {spec.observation_space} and actions {spec.action_space}; expected"
            f" images of at least {config.pixel_control_cell} × {config.pixel_control_cell} pixels"
            " (--pixel-control-cell) and discrete actions, or a cost of 0."
        )
    return networks.PixelControl(cells, int(spec.action_space.n))
