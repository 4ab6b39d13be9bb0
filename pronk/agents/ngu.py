"""NGU, "Never Give Up": R2D2's learning for a family of exploratory and exploitative policies.

Badia et al. 2020, "Never Give Up: Learning Directed Exploration Strategies" (arXiv:2002.06038);
the constants are in `pronk.agents.ngu_config`. `act` draws a mixture i for each episode and stores
the intrinsic reward (`pronk.agents.novelty`); `td_errors` learns action values of r^e + β_i r^i
with discount γ_i by transformed Retrace; `learn` takes the gradient steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from pronk.agents import novelty, sequence_q, step
from pronk.agents.actor_critic import Core
from pronk.agents.ngu_config import Config
from pronk.agents.novelty import Novelty
from pronk.agents.sequence_q import SequenceQ
from pronk.errors import UserError
from pronk.maths import intrinsic, returns
from pronk.nn import cores
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
class NGU(SequenceQ):
    """NGU for one environment; its methods are the functions of an `Agent`."""

    novelty: Novelty = None  # type: ignore[assignment]

    def init(self, key: Key) -> LearnerState:
        """The learner's first state; targets begin as copies, and every part of the parameters
        has an optimiser of its own."""
        network_key, novelty_key, key = jax.random.split(key, 3)
        rows = self.sample_rows()
        learnt, fixed = self.novelty.init(novelty_key, jax.tree.map(lambda x: x[0], rows))
        core, zeros = self.initial_core(1), jnp.zeros((1, 1))
        params = learnt | {
            "q": self.network.init(
                network_key,
                *(rows, zeros, core.last_action[None], zeros > 0, core.state),
                self.condition(zeros, zeros.astype(jnp.int32)),
            )
        }
        hyper = step.hyperparameters(self.config, self.config.hyper_names())
        extra = {"target": jax.tree.map(jnp.copy, params["q"]), "fixed": fixed}
        state = step.new_state("none", params, hyper, key, extra, self.horizon)
        optimiser = step.optimiser("adam", hyper)
        return state._replace(
            opt_state={name: optimiser.init(part) for name, part in params.items()}
        )

    def behaviour(self, state: LearnerState) -> PyTree:
        """All parameters but the target network's: the intrinsic reward is an input of acting."""
        return {"params": state.params, "fixed": state.extra["fixed"]}

    def warm_start(self, own: LearnerState, behaviour: PyTree) -> LearnerState:
        """Begin to learn from another run's parameters."""
        target = jax.tree.map(jnp.copy, behaviour["params"]["q"])
        extra = {"target": target, "fixed": behaviour["fixed"]}
        return own._replace(params=behaviour["params"], extra=extra)

    def initial_carry(self, key: Key, env_ids: Array, num_envs: int, evaluate: bool) -> Carry:
        """Each environment explores at its own rate; those of an evaluation are greedy, with
        mixture 0."""
        del key
        slots = env_ids.shape[0]
        private = {
            "epsilon": jnp.where(evaluate, 0.0, self.ladder.rates(env_ids, num_envs)),
            "mixture": jnp.zeros(slots, jnp.int32),
            "evaluate": jnp.full(slots, evaluate),
            "novelty": self.novelty.initial_private(slots),
        }
        return Carry(self.initial_core(slots), private)

    def condition(self, reward: Array, mixture: Array) -> Array:
        """The network's inputs beside R2D2's, `[T, B, 1 + N]`: the intrinsic reward, transformed by
        h, and the mixture."""
        one_hot = jax.nn.one_hot(mixture, self.config.mixtures)
        return jnp.concatenate([self.rescaling.apply(reward)[..., None], one_hot], axis=-1)

    def values(
        self, params: PyTree, rows: tuple[PyTree, ...], state: PyTree
    ) -> tuple[Array, PyTree]:
        """Action values `[T, B, A]`, transformed by h, and the recurrent state after them; rows:
        time steps, the action before each, intrinsic rewards, mixtures."""
        timestep, last_action, intrinsic_reward, mixture = rows
        q, state = self.network.apply(  # type: ignore[misc]
            params,
            timestep.observation,
            self.rescaling.apply(timestep.reward),
            last_action,
            timestep.first,
            state,
            self.condition(intrinsic_reward, mixture),
        )
        return self.masked(q, timestep), state

    def act(
        self, behaviour: PyTree, carry: Carry, timestep: TimeStep, key: Key
    ) -> tuple[Array, Carry, dict[str, Array]]:
        """ε-greedy actions for slots `[B]`; `extras` has the probability of each, the mixture, and
        the intrinsic reward with its parts."""
        params, private, first = behaviour["params"], carry.private, timestep.first
        action_key, mixture_key = jax.random.split(key)
        drawn = jax.random.randint(mixture_key, first.shape, 0, self.config.mixtures)
        mixture = jnp.where(first & ~private["evaluate"], drawn, private["mixture"])
        kept, reward = self.novelty.reward(params, behaviour["fixed"], private["novelty"], timestep)
        last_action = cores.reset(carry.core.last_action, first)
        rows = (timestep, last_action, reward.intrinsic, mixture)
        rows = jax.tree.map(lambda x: x[None], rows)
        q, state = self.values(params["q"], rows, carry.core.state)
        action, taken, probability = self.choose(
            q[0], private["epsilon"], timestep.action_mask, action_key
        )
        private = private | {"mixture": mixture, "novelty": kept}
        extras = {
            "probability": probability,
            "mixture": mixture,
            "intrinsic_reward": reward.intrinsic,
            "alpha": reward.alpha,
            "memory_filled": reward.filled,
        }
        return action, Carry(Core(state, taken), private), extras

    def inputs(self, batch: Batch) -> tuple[tuple[PyTree, ...], PyTree]:
        """`SequenceQ.inputs`, with the intrinsic reward and the mixture of each row."""
        rows, state = super().inputs(batch)
        extras = batch.trajectory.extras
        return (*rows, extras["intrinsic_reward"], extras["mixture"]), state

    def td_errors(
        self, params: PyTree, target_params: PyTree, hyper: Hyper, batch: Batch
    ) -> tuple[Array, Array, Array]:
        """TD errors of Retrace, weights (0 for dummies) and values of the actions taken, `[length,
        B]` (appendix E).

        The reward of a transition is that of the row it leads to, intrinsic and extrinsic. The
        learnt policy is ε-greedy for the online network; its values are the target network's.
        """
        config, h = self.config, self.rescaling
        timestep, action, extras = jax.tree.map(
            lambda x: x[config.burn_in :],
            (batch.trajectory.timestep, batch.trajectory.action, batch.trajectory.extras),
        )
        online = self.action_values(params, batch)
        target = h.inverse(self.action_values(target_params, batch))
        taken = jnp.take_along_axis(online, action[..., None], axis=-1)[..., 0]
        scales = hyper["intrinsic_scale"] * intrinsic.mixture_scales(config.mixtures)
        discounts = intrinsic.mixture_discounts(
            config.mixtures, hyper["discount"], hyper["exploratory_discount"]
        )
        reward = timestep.reward + scales[extras["mixture"]] * extras["intrinsic_reward"]
        reward, discount, continuation, weight = returns.transitions(
            timestep._replace(reward=reward), 1.0
        )
        discount = discount * discounts[extras["mixture"][:-1]]
        policy = self.epsilon_greedy(online, config.target_epsilon, timestep.action_mask)
        # Forbidden actions have values of −10⁹, transformed.
        values = jnp.sum(jnp.where(policy > 0, policy * target, 0.0), axis=-1)
        q, pi = (
            jnp.take_along_axis(x, action[..., None], axis=-1)[..., 0] for x in (target, policy)
        )
        trace = returns.retrace_trace(pi, extras["probability"], lambda_=hyper["trace_lambda"])
        # A dummy's action may be any, and infinity times 0 would not be 0.
        q, trace = (jnp.where(weight > 0, x[:-1], 0.0) for x in (q, trace))
        goal = returns.off_policy(q, values, reward, discount, continuation, trace)
        error = jax.lax.stop_gradient(h.apply(goal)) - taken[:-1]
        return jnp.where(weight > 0, error, 0.0), weight, taken[:-1]

    def loss(
        self, params: PyTree, target_params: PyTree, hyper: Hyper, batch: Batch
    ) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        """`sequence_loss` of a batch of `[burn_in + length + 1, B]` rows."""
        error, weight, q = self.td_errors(params, target_params, hyper, batch)
        objective, (priority, metrics) = self.sequence_loss(error, weight, q, hyper, batch)
        extras = jax.tree.map(lambda x: x[self.config.burn_in + 1 :], batch.trajectory.extras)
        return objective, (priority, metrics | self.novelty.metrics(extras, weight))

    def learn(self, state: LearnerState, batch: Batch) -> Learnt:
        """One gradient step of each part; now and then the copies that targets and acting use."""
        hyper, extra = state.hyper, state.extra
        gradient, (priority, metrics) = jax.grad(self.loss, has_aux=True)(
            state.params["q"], jax.lax.stop_gradient(extra["target"]), hyper, batch
        )
        timestep, action = jax.tree.map(
            lambda x: x[self.config.burn_in :], (batch.trajectory.timestep, batch.trajectory.action)
        )
        samples = self.novelty.samples(timestep, action)
        more, of_novelty = self.novelty.gradients(state.params, extra["fixed"], samples)
        new = step.descend_part(state, "q", gradient, hyper["learning_rate"])
        for name, part in more.items():
            new = step.descend_part(new, name, part, hyper["intrinsic_learning_rate"])
        norm = optax.tree.norm(more | {"q": gradient})
        counted, fixed = state._replace(updates=state.updates + 1), dict(extra["fixed"])
        target = self.copied(counted, new.params["q"], extra["target"])
        if self.novelty.learns_embedding:
            learnt = new.params["embedding"]["features"]
            fixed["embedding"] = self.copied(counted, learnt, fixed["embedding"])
        new = new._replace(extra={"target": target, "fixed": fixed})
        state = step.finish(state, new, jnp.isfinite(norm), metrics["steps"])
        return Learnt(state, metrics | of_novelty | {"gradient_norm": norm}, Feedback(priority))


def build(config: Config, spec: EnvSpec, *, horizon: int = 0) -> NGU:
    """NGU for environments of this `spec`. Raises UserError for actions that are not discrete, and
    where there is only one and the embedding is to be learnt from it."""
    parts = sequence_q.parts("ngu", config, spec)
    actions = int(spec.action_space.n)  # type: ignore[attr-defined]
    if actions < 2 and config.episodic and config.embedding == "inverse-dynamics":
        raise UserError(
            f"'{spec.name}' has a single action, from whose prediction no embedding can be learnt;"
            " expected two or more: use `--embedding random`."
        )
    return NGU(*parts, horizon, novelty.build(config, spec, actions))


def make(config: Config, spec: EnvSpec, *, horizon: int) -> Agent:
    """`build`'s methods as an `Agent`. Raises UserError for settings that do not go together."""
    source = config.source()
    ngu = build(config, spec, horizon=horizon)
    return Agent(
        *(ngu.init, ngu.behaviour, ngu.initial_carry, ngu.act, ngu.learn),
        *(step.adopt, ngu.warm_start),
        source=source,
        notes=ngu.novelty.notes(),
    )
