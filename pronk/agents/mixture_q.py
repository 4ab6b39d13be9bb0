"""What NGU and Agent57 share: action values of N policies, each for its own mixture of extrinsic
and intrinsic rewards, learnt from sequences by transformed Retrace.

Badia et al. 2020, "Never Give Up: Learning Directed Exploration Strategies" (arXiv:2002.06038).
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pronk.agents import novelty, sequence_q, step
from pronk.agents.novelty import Novelty
from pronk.agents.sequence_q import SequenceQ
from pronk.errors import UserError
from pronk.maths import returns
from pronk.nn import cores
from pronk.types import (
    Array,
    Batch,
    EnvSpec,
    Feedback,
    Hyper,
    Key,
    LearnerState,
    Learnt,
    PyTree,
    TimeStep,
)

# With more mixtures there are no metrics of each one.
MOST_SHOWN = 32


def by_mixture(name: str, values: Array) -> dict[str, Array]:
    """The metrics `mixture/NAME/j` of values `[N]`; none if N is above `MOST_SHOWN`."""
    count = values.shape[0]
    return {f"mixture/{name}/{j}": values[j] for j in range(count) if count <= MOST_SHOWN}


@dataclass(frozen=True, eq=False)
class MixtureQ(SequenceQ):
    """Acting and learning for one environment; a base of agents.

    Every network of action values, and each part of the intrinsic reward's networks, has an
    optimiser of its own, which clips its gradient alone.
    """

    novelty: Novelty = None  # type: ignore[assignment]

    @abc.abstractmethod
    def initial_values(self, key: Key) -> dict[str, PyTree]:
        """The first parameters of the networks of action values, by name; see
        `initial_network`."""

    @abc.abstractmethod
    def loss(
        self, params: dict[str, PyTree], target: dict[str, PyTree], hyper: Hyper, batch: Batch
    ) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        """The objective of the networks of action values, a scalar; new priorities `[B]`, and
        metrics."""

    def initial_network(self, key: Key) -> PyTree:
        """The first parameters of one network of action values."""
        rows, zeros = self.sample_rows(), jnp.zeros((1, 1))
        state = cores.initial_state(self.network.core, 1)
        last_action = jnp.zeros((1, 1, self.num_actions))
        reward = zeros if self.config.episodic or self.config.lifelong else None
        condition = self.condition(reward, zeros.astype(jnp.int32))
        return self.network.init(key, rows, zeros, last_action, zeros > 0, state, condition)

    def rates(self, env_ids: Array, num_envs: int, evaluate: bool) -> Array:
        """ε of each slot."""
        ladder = self.ladder.rates(env_ids, num_envs)
        return jnp.where(evaluate, self.config.evaluation_epsilon, ladder)

    def init(self, key: Key) -> LearnerState:
        """The learner's first state; targets begin as copies."""
        network_key, novelty_key, key = jax.random.split(key, 3)
        row = jax.tree.map(lambda x: x[0], self.sample_rows())
        learnt, fixed = self.novelty.init(novelty_key, row)
        values = self.initial_values(network_key)
        params = learnt | values
        hyper = step.hyperparameters(self.config, self.config.hyper_names())
        extra = {"target": jax.tree.map(jnp.copy, values), "fixed": fixed}
        state = step.new_state("none", params, hyper, key, extra, self.horizon)
        optimiser = step.optimiser("adam", hyper)
        return state._replace(
            opt_state={name: optimiser.init(part) for name, part in params.items()}
        )

    def behaviour(self, state: LearnerState) -> PyTree:
        """All parameters but the target networks', those of novelty included: the intrinsic reward
        is an input of the network."""
        return {"params": state.params, "fixed": state.extra["fixed"]}

    def warm_start(self, own: LearnerState, behaviour: PyTree) -> LearnerState:
        """Begin to learn from another run's parameters."""
        params = behaviour["params"]
        target = {name: jax.tree.map(jnp.copy, params[name]) for name in own.extra["target"]}
        extra = own.extra | {"target": target, "fixed": behaviour["fixed"]}
        return own._replace(params=params, extra=extra)

    def condition(self, reward: Array | None, mixture: Array) -> Array:
        """The network's inputs beside R2D2's, `[T, B, 1 + N]`: the intrinsic reward, transformed by
        h, and the mixture."""
        one_hot = jax.nn.one_hot(mixture, self.config.mixtures)
        if reward is None:
            return one_hot
        return jnp.concatenate([self.rescaling.apply(reward)[..., None], one_hot], axis=-1)

    def network_values(
        self, params: PyTree, rows: tuple[PyTree, ...], state: PyTree
    ) -> tuple[Array, PyTree]:
        """One network's action values `[T, B, A]`, transformed by h, and the recurrent state after
        them; rows: time steps, the action before each, intrinsic rewards or None, mixtures."""
        timestep, last_action, intrinsic_reward, mixture = rows
        return self.network.apply(  # type: ignore[return-value]
            params,
            timestep.observation,
            self.rescaling.apply(timestep.reward),
            last_action,
            timestep.first,
            state,
            self.condition(intrinsic_reward, mixture),
        )

    def inputs(self, batch: Batch) -> tuple[tuple[PyTree, ...], PyTree]:
        """`SequenceQ.inputs`, with the intrinsic reward, if there is one, and the mixture of each
        row."""
        rows, state = super().inputs(batch)
        extras = batch.trajectory.extras
        return (*rows, extras.get("intrinsic_reward"), extras["mixture"]), state

    def learnt_rows(self, batch: Batch) -> tuple[TimeStep, Array, dict[str, Array]]:
        """Time steps, actions and extras of the rows after the burn-in, `[length + 1, B, ...]`."""
        trajectory = batch.trajectory
        return jax.tree.map(
            lambda x: x[self.config.burn_in :],
            (trajectory.timestep, trajectory.action, trajectory.extras),
        )

    def shares(self, batch: Batch) -> Array:
        """The share of the recent transitions in which each mixture acted, `[N]`.

        Recent are those of the newest quarter of the batch's sequences. The weight of a sequence is
        one over its probability of being drawn, so that priorities have no effect.
        """
        timestep, _, extras = self.learnt_rows(batch)
        version = batch.trajectory.version
        oldest = jax.lax.top_k(version, max(1, version.shape[0] // 4))[0][-1]
        weight = (version >= oldest) * (1.0 - timestep.first[1:])
        if batch.probabilities is not None:
            weight = weight / batch.probabilities
        acted = jax.nn.one_hot(extras["mixture"][:-1], self.config.mixtures)
        total = jnp.sum(weight)
        return jnp.sum(weight[..., None] * acted, axis=(0, 1)) / jnp.where(total > 0, total, 1.0)

    def retrace(
        self,
        policy: Array,
        target: Array,
        transitions: returns.Transitions,
        rows: tuple[TimeStep, Array, dict[str, Array]],
        lambda_: Array,
    ) -> Array:
        """h of the returns by Retrace, `[length, B]`.

        policy: probabilities `[length + 1, B, A]`. target: the target network's values, transformed
        by h, of the same shape. rows: what `learnt_rows` returns.

        The reward of a transition is that of the row it leads to, intrinsic and extrinsic
        (appendix E).
        """
        h, (_, action, extras) = self.rescaling, rows
        reward, discount, continuation, weight = transitions
        target = h.inverse(target)
        # Forbidden actions may have values of −10⁹, transformed.
        values = jnp.sum(jnp.where(policy > 0, policy * target, 0.0), axis=-1)
        q, pi = (
            jnp.take_along_axis(x, action[..., None], axis=-1)[..., 0] for x in (target, policy)
        )
        trace = returns.retrace_trace(pi, extras["probability"], lambda_=lambda_)
        # A dummy's action is arbitrary, its value or trace may be infinite, and ∞ · 0 is NaN.
        q, trace = (jnp.where(weight > 0, x[:-1], 0.0) for x in (q, trace))
        goal = returns.off_policy(q, values, reward, discount, continuation, trace)
        return jax.lax.stop_gradient(h.apply(goal))

    def learn(self, state: LearnerState, batch: Batch) -> Learnt:
        """One gradient step of each part; every `target_every` updates, also new copies of the
        parameters that targets and acting use."""
        hyper, extra = state.hyper, state.extra
        values = {name: state.params[name] for name in extra["target"]}
        gradients, (priority, metrics) = jax.grad(self.loss, has_aux=True)(
            values, jax.lax.stop_gradient(extra["target"]), hyper, batch
        )
        timestep, action, _ = self.learnt_rows(batch)
        samples = self.novelty.samples(timestep, action)
        more, of_novelty = self.novelty.gradients(state.params, extra["fixed"], samples)
        new = state
        for name, part in gradients.items():
            new = step.descend_part(new, name, part, hyper["learning_rate"])
        for name, part in more.items():
            new = step.descend_part(new, name, part, hyper["intrinsic_learning_rate"])
        norm = optax.tree.norm(more | gradients)
        every, updates, fixed = self.config.target_every, state.updates + 1, dict(extra["fixed"])
        values = {name: new.params[name] for name in values}
        target = step.copy_every(every, updates, values, extra["target"])
        if self.novelty.learns_embedding:
            learnt = new.params["embedding"]["features"]
            fixed["embedding"] = step.copy_every(every, updates, learnt, fixed["embedding"])
        new = new._replace(extra=extra | {"target": target, "fixed": fixed})
        state = step.finish(state, new, jnp.isfinite(norm), metrics["steps"])
        metrics |= of_novelty | {"gradient_norm": norm} | by_mixture("share", self.shares(batch))
        return Learnt(state, metrics, Feedback(priority))


def parts(name: str, config: Any, spec: EnvSpec, horizon: int) -> tuple[Any, ...]:
    """The fields of a `MixtureQ` for the agent `name`.

    Raises UserError for actions that are not discrete, and where there is only one and the
    embedding is to be learnt from it.
    """
    fields = sequence_q.parts(name, config, spec)
    actions = int(spec.action_space.n)  # type: ignore[attr-defined]
    if actions < 2 and config.episodic and config.embedding == "inverse-dynamics":
        raise UserError(
            f"'{spec.name}' has a single action, from whose prediction no embedding can be learnt;"
            " expected two or more: use `--embedding random`."
        )
    return (*fields, horizon, novelty.build(config, spec, actions))
