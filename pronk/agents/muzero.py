"""MuZero: acting by a search in a learnt model, from whose results the model learns.

[S20] Schrittwieser et al. 2020, "Mastering Atari, Go, chess and shogi by planning with a learned
model" (arXiv:1911.08265); the constants are in `pronk.agents.muzero_config`. `act` searches
(`pronk.maths.search`) and stores policy and value of the search; `targets` makes of them what the
model should predict when it is unrolled (`pronk.maths.unrolled`), with Reanalyze by a new search;
`loss` unrolls the model; `learn` takes the step.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from pronk.agents import planner, step
from pronk.agents.muzero_config import Config
from pronk.agents.planner import Planner
from pronk.maths import unrolled
from pronk.maths.unrolled import Unrolled
from pronk.types import (
    Agent,
    Array,
    Batch,
    Carry,
    EnvSpec,
    Feedback,
    Hyper,
    Key,
    LearnerState,
    Learnt,
    PyTree,
    TimeStep,
)


@dataclass(frozen=True, eq=False)
class MuZero(Planner):
    """MuZero for one environment; its methods are the functions of an `Agent`."""

    def init(self, key: Key) -> LearnerState:
        """The learner's first state; the target network begins as a copy."""
        params_key, key = jax.random.split(key)
        sample = jax.tree.map(lambda x: jnp.asarray(x)[None], self.spec.observation_space.sample())
        params = self.model.init(params_key, sample, jnp.zeros(1, jnp.int32))
        hyper = step.hyperparameters(self.config, self.config.hyper_names())
        extra = {
            "target": jax.tree.map(jnp.copy, params),
            # What acting uses: a schedule's value, where there is one.
            "temperature": jnp.copy(hyper["temperature"]),
        }
        kind = self.config.optimiser
        return step.new_state(kind, params, hyper, key, extra, self.horizon)

    def behaviour(self, state: LearnerState) -> PyTree:
        """The networks' parameters, and the temperature."""
        return {"params": state.params, "temperature": state.extra["temperature"]}

    def warm_start(self, own: LearnerState, behaviour: PyTree) -> LearnerState:
        """Begin to learn from another run's parameters."""
        params = behaviour["params"]
        extra = own.extra | {"target": jax.tree.map(jnp.copy, params)}
        return own._replace(params=params, extra=extra)

    def initial_carry(self, key: Key, env_ids: Array, num_envs: int, evaluate: bool) -> Carry:
        """Whether a slot explores, and how many moves its episode has had."""
        del key, num_envs
        slots = env_ids.shape[0]
        explores = jnp.full(slots, not evaluate)
        private: dict[str, PyTree] = {"explores": explores, "moves": jnp.zeros(slots, jnp.int32)}
        if evaluate and self.config.evaluation_simulations is not None:
            private["evaluates"] = ()  # a mark without data: a search's size is part of the program
        return Carry((), private)

    def act(
        self, behaviour: PyTree, carry: Carry, timestep: TimeStep, key: Key
    ) -> tuple[Array, Carry, dict[str, Array]]:
        """Actions for slots `[B]`, and the search's policy π and value ν. A row's first priority is
        |ν − v|, because its return is not known yet; learning makes it |ν − z|."""
        moves = jnp.where(timestep.first, 0, carry.private["moves"])
        limit = self.config.temperature_moves
        temperature = behaviour["temperature"]
        if limit:
            temperature = jnp.where(moves < limit, temperature, 0.0)
        root = self.root(behaviour["params"], timestep.observation)
        evaluates = "evaluates" in carry.private
        result = self.search(
            behaviour["params"],
            root,
            timestep.action_mask,
            key,
            carry.private["explores"],
            temperature,
            self.config.evaluation_simulations if evaluates else None,
        )
        extras = {
            "search_policy": result.policy,
            "search_value": result.value,
            "priority": jnp.abs(result.value - root.value),
            "search_depth": result.depth,
        }
        return result.action, Carry((), carry.private | {"moves": moves + 1}), extras

    def targets(
        self, params: PyTree, target_params: PyTree, batch: Batch, key: Key
    ) -> tuple[Unrolled, Array]:
        """What the model should predict from the rows where it is unrolled; and ν of these rows,
        `[starts, B]`."""
        config = self.config
        action_key, search_key = jax.random.split(key)
        timestep, action, extras = batch.trajectory[:3]
        policy, value = extras["search_policy"], extras["search_value"]
        if fresh := round(config.reanalyze * action.shape[1]):
            rows = slice(config.starts + config.unroll_steps), slice(fresh)
            some = jax.tree.map(lambda x: x[rows], timestep)
            policy = policy.at[rows].set(self.searched(params, some, search_key))
        newer = action.shape[1] if config.bootstrap == "target" else fresh
        if newer:
            some = jax.tree.map(lambda x: x[:, :newer], timestep)
            value = value.at[:, :newer].set(self.values(target_params, some))
        z = unrolled.value_targets(timestep, value, self.discount, steps=config.td_steps)
        shape = (config.unroll_steps + 1, config.starts, action.shape[1])
        unrolls = unrolled.unroll(
            timestep,
            action,
            policy,
            z,
            jax.random.randint(action_key, shape, 0, self.num_actions),
            steps=config.unroll_steps,
            starts=config.starts,
        )
        return jax.lax.stop_gradient(unrolls), extras["search_value"][: config.starts]

    def loss(
        self, params: PyTree, hyper: Hyper, batch: Batch, targets: Unrolled
    ) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        """The objective, a scalar: the mean over unrolls of Σ_k s_k (l^p + c_v l^v + l^r) [S20,
        eq. 1], s_0 = 1 and s_k = 1/K, weighted for the probability of being drawn, plus c ‖θ‖²;
        also values v of the first rows `[starts, B]`, and metrics."""
        config, steps = self.config, self.config.unroll_steps
        shape = targets.start.shape
        targets = jax.tree.map(lambda x: x.reshape(-1, shape[0] * shape[1], *x.shape[3:]), targets)

        def observations(k: int) -> PyTree:  # of the rows k steps after those of the unrolls
            return jax.tree.map(
                lambda x: x[k : k + shape[0]].reshape(-1, *x.shape[2:]),
                batch.trajectory.timestep.observation,
            )

        state = self.represent(params, observations(0))
        losses = dict.fromkeys(("policy", "value", "reward", "consistency"), jnp.float32(0))
        first_value = jnp.zeros(())
        for k in range(steps + 1):
            scale = 1.0 if k == 0 else 1.0 / steps
            weight, policy_weight = targets.weight[k] * scale, targets.policy_weight[k] * scale
            if k:
                # Half of the gradient goes on at each step [S20, appendix G].
                state = 0.5 * state + 0.5 * jax.lax.stop_gradient(state)
                state, reward = self.step(params, state, targets.action[k])
                losses["reward"] += weight * self.support.cross_entropy(reward, targets.reward[k])
                if config.consistency:
                    losses["consistency"] -= policy_weight * self.similarity(
                        params, state, observations(k)
                    )
            logits, value = self.predict(params, state)
            cross_entropy = -jnp.sum(targets.policy[k] * jax.nn.log_softmax(logits), axis=-1)
            losses["policy"] += policy_weight * cross_entropy
            losses["value"] += weight * self.support.cross_entropy(value, targets.value[k])
            if not k:
                first_value = self.support.decode(value)
        correction = jnp.ones(shape[1])
        if batch.probabilities is not None:
            correction = batch.probabilities ** -hyper["importance_exponent"]
            correction /= correction.max()
        start = targets.start[0]
        weight = start * jnp.tile(correction, shape[0]) / jnp.maximum(start.sum(), 1.0)
        parts = {name: jnp.sum(weight * loss) for name, loss in losses.items()}
        total = parts["policy"] + parts["reward"] + config.consistency * parts["consistency"]
        total += hyper["value_coefficient"] * parts["value"]
        decay = sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params))
        metrics = {f"loss/{name}": loss for name, loss in parts.items()}
        return total + hyper["weight_decay"] * decay, (first_value.reshape(shape), metrics)

    def learn(self, state: LearnerState, batch: Batch) -> Learnt:
        """One gradient step; now and then the target network becomes a copy."""
        hyper = state.hyper
        key = jax.random.fold_in(state.key, state.updates)
        targets, searched = self.targets(state.params, state.extra["target"], batch, key)
        grads, (value, metrics) = jax.grad(self.loss, has_aux=True)(
            state.params, hyper, batch, targets
        )
        start, z = targets.start, targets.value[0]
        steps = start.sum()
        of_starts = start / jnp.maximum(steps, 1.0)
        rate = hyper["learning_rate"]
        state, norm = step.descend(self.config.optimiser, state, grads, rate, steps)
        every, old = self.config.target_every, state.extra["target"]
        target = step.copy_every(every, state.updates, state.params, old)
        extra = {"target": target, "temperature": hyper["temperature"]}
        policy = targets.policy[0]
        entropy = -jnp.sum(jnp.where(policy > 0, policy * jnp.log(policy), 0.0), axis=-1)
        clipped = targets.weight * (
            self.support.is_clipped(targets.value) | self.support.is_clipped(targets.reward)
        )
        metrics |= {
            "steps": steps,
            "gradient_norm": norm,
            "value_target": jnp.sum(of_starts * z),
            "value_error": jnp.sum(of_starts * jnp.abs(z - value)),
            "search_entropy": jnp.sum(of_starts * entropy),
            "search_depth": jnp.sum(
                of_starts * batch.trajectory.extras["search_depth"][: len(start)]
            ),
            "clipped_targets": jnp.sum(start * clipped)
            / jnp.maximum(jnp.sum(start * targets.weight), 1.0),
        }
        priority = jnp.sum(start * jnp.abs(searched - z), axis=0) / jnp.maximum(start.sum(0), 1.0)
        feedback = Feedback(priority if self.config.priority_exponent else None)
        return Learnt(state._replace(extra=extra), metrics, feedback)


def build(config: Config, spec: EnvSpec, *, horizon: int = 0) -> MuZero:
    """MuZero for environments of this `spec`. Raises UserError as `planner.parts` does."""
    return MuZero(*planner.parts(config, spec), horizon)


def make(config: Config, spec: EnvSpec, *, horizon: int) -> Agent:
    """`build`'s methods as an `Agent`. Raises UserError for settings that do not go together."""
    source = config.source()
    muzero = build(config, spec, horizon=horizon)
    return Agent(
        *(muzero.init, muzero.behaviour, muzero.initial_carry, muzero.act, muzero.learn),
        *(step.adopt, muzero.warm_start),
        source=source,
        alerts=(planner.clipping(config),),
        two_players=True,
    )
