"""Acting and scoring of the agents that search a policy's parameters by whole episodes.

A generation is a set of parameter vectors, its members, drawn from a search distribution. Each
environment plays an episode with one member, then one with the next. When every member has been
scored by enough episodes, the agent's own `Method` makes the next distribution from the best.

A member's vector follows from its number and its generation's key, so that acting and learning draw
the same one. An environment keeps its vector in `Carry.private` until its episode ends. If the
generation ends meanwhile, the episode is played to its end and ignored: each row has the
generation's key and the episode's number in the generation. Scores are thus means over whole
episodes, whatever the unroll, the number of environments and their speed. An episode's number
decides whether it counts. If the first episodes to end counted, short ones would be favoured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from pronk.agents import actor_critic, member_scores, step
from pronk.agents.vector_policy import VectorPolicy
from pronk.maths import evolution
from pronk.types import (
    Agent,
    Array,
    Batch,
    Carry,
    Hyper,
    Key,
    LearnerState,
    Learnt,
    PyTree,
    TimeStep,
)


class Method(Protocol):
    """The search distribution, a mean `[n]` and a shape, which is all else; and how it changes.

    A shape has `generation`, int32 [], the number of generations that it was learnt from.
    """

    @property
    def members(self) -> int: ...  # of a generation, P
    @property
    def parents(self) -> int: ...  # the best of them, which the next generation is made from
    def start(self, hyper: Hyper) -> PyTree: ...  # the first generation's shape
    def offset(self, shape: PyTree, normals: Array) -> Array: ...  # members − mean, [..., n]
    # (mean, shape, the parents' normals [parents, n], best first, hyper) -> (mean, shape)
    def next(
        self, mean: Array, shape: PyTree, normals: Array, hyper: Hyper
    ) -> tuple[Array, PyTree]: ...
    def metrics(self, shape: PyTree) -> dict[str, Array]: ...  # scalars


class Behaviour(NamedTuple):
    """What acting needs: the search distribution. Evaluation plays its mean."""

    mean: Array  # [n]
    shape: PyTree
    key: Array  # uint32 [k], the data of the generation's key, which names the generation


class Core(NamedTuple):
    """What is remembered within an episode, `[B, ...]`."""

    network: actor_critic.Core
    score: Array  # float32 [B], discounted sum of the rewards so far
    factor: Array  # float32 [B], of the next reward in that sum


class Slot(NamedTuple):
    """What an environment keeps across episodes, `[B, ...]`."""

    vector: Array  # [B, n], the parameters that act in this episode
    key: Array  # uint32 [B, k], of the generation that they were drawn in; 0: of none
    episode: Array  # int32 [B], its number in that generation
    ended: Array  # bool [B], whether the last row ended an episode of one step or more
    index: Array  # int32 [B], which environment of the run this is
    stride: Array  # int32 [B], how many environments the run has
    greedy: Array  # bool [B], plays the mean, as in evaluations


@dataclass(frozen=True, eq=False)
class Evolution:
    """An agent for one environment that searches with one method."""

    config: Any
    policy: VectorPolicy
    method: Method
    horizon: int  # agent steps at which schedules end

    def init(self, key: Key) -> LearnerState:
        """The learner's first state; the mean is the network's first parameters."""
        params_key, key = jax.random.split(key)
        hyper = step.hyperparameters(self.config, self.config.hyper_names())
        extra = {
            "shape": self.method.start(hyper),
            "key": jax.random.key_data(jax.random.fold_in(key, 0)),
            "scores": member_scores.zero(self.method.members),
            "score_mean": jnp.float32(0),
            "score_best": jnp.float32(0),
        }
        return LearnerState(
            params=self.policy.first(params_key),
            opt_state=(),
            hyper=hyper,
            updates=jnp.int32(0),
            steps=step.no_steps(self.horizon),
            skipped=jnp.int32(0),
            key=key,
            extra=extra,
        )

    def behaviour(self, state: LearnerState) -> Behaviour:
        """The search distribution, with its generation's key."""
        return Behaviour(state.params, state.extra["shape"], state.extra["key"])

    def warm_start(self, own: LearnerState, behaviour: Behaviour) -> LearnerState:
        """Continue with another run's distribution, from its generation's first episode."""
        extra = own.extra | {"shape": behaviour.shape, "key": behaviour.key}
        return own._replace(params=behaviour.mean, extra=extra)

    def initial_carry(self, key: Key, env_ids: Array, num_envs: int, evaluate: bool) -> Carry:
        """`Agent.initial_carry`: slots of an evaluation play the distribution's mean."""
        batch = env_ids.shape[0]
        words = jax.eval_shape(jax.random.key_data, key).shape[-1]
        slot = Slot(
            vector=jnp.zeros((batch, self.policy.size)),
            key=jnp.zeros((batch, words), jnp.uint32),
            episode=jnp.zeros(batch, jnp.int32),
            ended=jnp.zeros(batch, bool),
            index=jnp.asarray(env_ids, jnp.int32),
            stride=jnp.full(batch, num_envs, jnp.int32),
            greedy=jnp.full(batch, evaluate),
        )
        network = self.policy.model.initial_core(batch)
        return Carry(Core(network, jnp.zeros(batch), jnp.ones(batch)), slot)

    def act(
        self, behaviour: Behaviour, carry: Carry, timestep: TimeStep, key: Key
    ) -> tuple[Array, Carry, dict[str, Array]]:
        """Decide for slots `[B]`; `extras` has the generation's key, the episode's number, the
        score so far and the next reward's factor."""
        core, first = carry.core, timestep.first
        slot = self._begin(behaviour, carry.private, first)
        slot = slot._replace(ended=(timestep.terminated | timestep.truncated) & ~first)
        score = jnp.where(first, 0.0, core.score + core.factor * timestep.reward)
        factor = jnp.where(first, 1.0, core.factor * self.config.discount)
        vector = jnp.where(slot.greedy[:, None], behaviour.mean, slot.vector)
        action, network = self.policy.decide(vector, core.network, timestep, key, slot.greedy)
        extras = {"generation": slot.key, "episode": slot.episode, "score": score, "factor": factor}
        return action, Carry(Core(network, score, factor), slot), extras

    def _begin(self, behaviour: Behaviour, slot: Slot, first: Array) -> Slot:
        """The slots; those that begin an episode have the vector of its member.

        Environment i of N plays the episodes i, i + N, i + 2 N, … of a generation, and again each
        that begins anew without an end. Member e mod P plays episode e.
        """
        begins = first & ~slot.greedy

        def drawn(slot: Slot) -> Slot:
            same = jnp.all(slot.key == behaviour.key, axis=-1)
            following = slot.episode + jnp.where(slot.ended, slot.stride, 0)
            episode = jnp.where(same, following, slot.index)
            new = slot._replace(
                vector=self.vectors(behaviour, episode % self.method.members),
                key=jnp.broadcast_to(behaviour.key, slot.key.shape),
                episode=episode,
            )
            return jax.tree.map(
                lambda a, b: jnp.where(begins.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, slot
            )

        # Drawing vectors at every step would take longer than acting.
        return jax.lax.cond(jnp.any(begins), drawn, lambda slot: slot, slot)

    def vectors(self, behaviour: Behaviour, member: Array) -> Array:
        """The parameter vectors `[B, n]` of the members `[B]`."""
        normals = self._normals(behaviour.key, member)
        return behaviour.mean + self.method.offset(behaviour.shape, normals)

    def _normals(self, key: Array, member: Array) -> Array:
        """The standard normals `[B, n]` that the members `[B]` were made from."""

        def one(member: Array) -> Array:
            folded = jax.random.fold_in(jax.random.wrap_key_data(key), member)
            return jax.random.normal(folded, (self.policy.size,))

        return jax.vmap(one)(member)

    def learn(self, state: LearnerState, batch: Batch) -> Learnt:
        """Count the episodes that ended; if every member has enough, begin the next generation."""
        steps = jnp.sum(~batch.trajectory.timestep.first[1:], dtype=jnp.float32)
        wanted = self.config.episodes_per_member
        scores = member_scores.counted(state.extra["scores"], batch, state.extra["key"], wanted)
        enough = scores.count >= wanted
        new, skipped, moved = jax.lax.cond(
            jnp.all(enough),
            self._next,
            lambda state: (state, jnp.int32(0), jnp.float32(0)),
            state._replace(extra=state.extra | {"scores": scores}),
        )
        metrics = self.method.metrics(new.extra["shape"]) | {
            "steps": steps,
            "gradient_norm": moved,  # there is no gradient: how far the mean moved
            "generation": new.extra["shape"].generation.astype(jnp.float32),
            "members_scored": jnp.mean(enough, dtype=jnp.float32),
            "score_mean": new.extra["score_mean"],
            "score_best": new.extra["score_best"],
        }
        new = step.finish(state, new, jnp.bool_(True), steps)
        return Learnt(new._replace(skipped=state.skipped + skipped), metrics)

    def _next(self, state: LearnerState) -> tuple[LearnerState, Array, Array]:
        """The state with the next generation, 1 if nothing was learnt from this one, and how far
        the mean moved.

        With fewer members of finite score than parents, the distribution stays, and other members
        are drawn from it.
        """
        extra, method = state.extra, self.method
        scores = extra["scores"].mean()
        finite = jnp.isfinite(scores)
        normals = self._normals(extra["key"], evolution.ranking(scores)[: method.parents])
        new = method.next(state.params, extra["shape"], normals, state.hyper)
        old = (state.params, extra["shape"])
        learnt = jnp.sum(finite) >= method.parents
        for leaf in jax.tree.leaves(new):
            learnt &= jnp.all(jnp.isfinite(leaf))
        mean, shape = jax.tree.map(lambda a, b: jnp.where(learnt, a, b), new, old)
        key = jax.random.fold_in(state.key, state.updates + 1)  # 0 is the first generation's
        extra = extra | {
            "shape": shape,
            "key": jax.random.key_data(key),
            "scores": member_scores.zero(method.members),
            "score_mean": jnp.where(finite, scores, 0.0).sum() / jnp.maximum(finite.sum(), 1),
            "score_best": jnp.where(finite.any(), scores.max(), 0.0),
        }
        moved = jnp.linalg.norm(mean - state.params)
        return state._replace(params=mean, extra=extra), (~learnt).astype(jnp.int32), moved

    def as_agent(self, note: str) -> Agent:
        """These functions as an `Agent`. note: what a run prints at its start."""
        acting = (self.init, self.behaviour, self.initial_carry, self.act)
        return Agent(*acting, self.learn, step.adopt, self.warm_start, notes=(note,))
