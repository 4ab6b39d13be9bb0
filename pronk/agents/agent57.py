"""Agent57: NGU with a network for each of the two rewards, and bandits that choose the policy.

Badia et al. 2020, "Agent57: Outperforming the Atari Human Benchmark" (arXiv:2003.13350); the
constants are in `pronk.agents.agent57_config`. `act` lets a bandit choose the mixture j of an
episode (`pronk.agents.meta_controller`); `targets` are those of transformed Retrace for the values
of r^e and of r^i, with the same policy and discount γ_j; `learn` also updates the mean return of
each mixture, by which evaluations choose theirs. Without an intrinsic reward it is the paper's
"R2D2 (bandit)".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pronk.agents import mixture_q, step
from pronk.agents.actor_critic import Core
from pronk.agents.agent57_config import Config
from pronk.agents.meta_controller import MetaController
from pronk.agents.mixture_q import MixtureQ
from pronk.maths import bandit, intrinsic, returns, weighted
from pronk.nn import cores
from pronk.types import (
    Agent,
    Array,
    Batch,
    Carry,
    EnvSpec,
    Hyper,
    Key,
    LearnerState,
    Learnt,
    PyTree,
    TimeStep,
)


class Targets(NamedTuple):
    """What is learnt from the transitions of a batch, each `[length, B]`; values are transformed by
    h, and `goal` and `taken` have an entry for each network, by its name."""

    goal: dict[str, Array]  # returns by Retrace
    taken: dict[str, Array]  # values of the actions taken
    scale: Array  # β_j
    discount: Array  # γ_j
    weight: Array  # 0 for dummies


@dataclass(frozen=True, eq=False)
class Agent57(MixtureQ):
    """Agent57 for one environment; its methods are the functions of an `Agent`."""

    controller: MetaController = None  # type: ignore[assignment]

    @property
    def names(self) -> tuple[str, ...]:
        """The networks of action values, one for each reward."""
        return ("extrinsic", "intrinsic") if self.config.intrinsic else ("extrinsic",)

    def initial_core(self, batch: int) -> Core:
        """The recurrent states of all networks at an episode's start, `[B, ...]`."""
        core = super().initial_core(batch)
        return core._replace(state=dict.fromkeys(self.names, core.state))

    def initial_values(self, key: Key) -> dict[str, PyTree]:
        """A complete network for each reward (section 3.1)."""
        keys = jax.random.split(key, len(self.names))
        return {name: self.initial_network(k) for name, k in zip(self.names, keys, strict=True)}

    def init(self, key: Key) -> LearnerState:
        """The learner's first state, without a return of any mixture."""
        state = super().init(key)
        extra = {
            "tally": bandit.no_tally(self.config.mixtures),
            # β for acting, which may follow a schedule.
            "scale": jnp.copy(state.hyper["intrinsic_scale"]),
        }
        return state._replace(extra=state.extra | extra)

    def behaviour(self, state: LearnerState) -> PyTree:
        """NGU's, with β and the mixtures' mean returns: evaluations and exported policies act by
        the best mixture."""
        return super().behaviour(state) | {k: state.extra[k] for k in ("tally", "scale")}

    def warm_start(self, own: LearnerState, behaviour: PyTree) -> LearnerState:
        """Begin to learn from another run's parameters and its mixtures' mean returns."""
        own = super().warm_start(own, behaviour)
        return own._replace(extra=own.extra | {"tally": behaviour["tally"]})

    def initial_carry(self, key: Key, env_ids: Array, num_envs: int, evaluate: bool) -> Carry:
        """Each environment has its own ε and its own bandit; those of an evaluation have
        `evaluation_epsilon`, and the best mixture."""
        del key
        slots = env_ids.shape[0]
        private = {
            "epsilon": self.rates(env_ids, num_envs, evaluate),
            "controller": self.controller.initial_private(slots, evaluate),
        }
        if self.config.intrinsic:
            private["novelty"] = self.novelty.initial_private(slots)
        return Carry(self.initial_core(slots), private)

    def values(
        self, params: PyTree, rows: tuple[PyTree, ...], state: PyTree
    ) -> tuple[dict[str, Array], PyTree]:
        """Each network's action values `[T, B, A]`, transformed by h, and their recurrent states
        after them; rows: time steps, the action before each, intrinsic rewards, mixtures."""
        found = {k: self.network_values(params[k], rows, state[k]) for k in self.names}
        return {k: q for k, (q, _) in found.items()}, {k: after for k, (_, after) in found.items()}

    def mixed(self, values: dict[str, Array], scale: Array) -> Array:
        """h(h⁻¹(q_e) + β_j h⁻¹(q_i)), or the sum without h (section 3.1), for values `[...]` and
        β_j of the same shape."""
        if not self.config.intrinsic:
            return values["extrinsic"]
        if self.config.mixing == "identity":
            return values["extrinsic"] + scale * values["intrinsic"]
        h = self.rescaling
        return h.apply(h.inverse(values["extrinsic"]) + scale * h.inverse(values["intrinsic"]))

    def scales(self, largest: Array) -> Array:
        """β_j, `[N]`."""
        return largest * intrinsic.mixture_scales(self.config.mixtures)

    def act(
        self, behaviour: PyTree, carry: Carry, timestep: TimeStep, key: Key
    ) -> tuple[Array, Carry, dict[str, Array]]:
        """ε-greedy actions for slots `[B]`; `extras` has the probability of each, the mixture, the
        episode's return so far, and the intrinsic reward with its parts."""
        action_key, mixture_key = jax.random.split(key)
        chosen = self.controller.choose(
            carry.private["controller"], behaviour["tally"], timestep, mixture_key
        )
        private = carry.private | {"controller": chosen}
        extras = {"mixture": chosen["mixture"], "episode_return": chosen["return"]}
        if self.config.intrinsic:
            private["novelty"], reward = self.novelty.reward(
                behaviour["params"], behaviour["fixed"], private["novelty"], timestep
            )
            extras |= reward.extras()
        last_action = cores.reset(carry.core.last_action, timestep.first)
        rows = (timestep, last_action, extras.get("intrinsic_reward"), extras["mixture"])
        rows = jax.tree.map(lambda x: x[None], rows)
        q, state = self.values(behaviour["params"], rows, carry.core.state)
        scale = self.scales(behaviour["scale"])[rows[3]][..., None]
        q = self.masked(self.mixed(q, scale), rows[0])
        action, taken, probability = self.choose(
            q[0], private["epsilon"], timestep.action_mask, action_key
        )
        return action, Carry(Core(state, taken), private), extras | {"probability": probability}

    def targets(self, params: PyTree, target_params: PyTree, hyper: Hyper, batch: Batch) -> Targets:
        """What the networks learn from a batch. Both learn values of the same policy, ε-greedy for
        their mixed online values, with the same traces (appendix B)."""
        config = self.config
        rows = timestep, action, extras = self.learnt_rows(batch)
        online, target = (self.action_values(p, batch) for p in (params, target_params))
        scale = self.scales(hyper["intrinsic_scale"])[extras["mixture"]]
        discount = intrinsic.long_discounts(
            config.mixtures,
            *(hyper["discount"], hyper["middle_discount"], hyper["exploratory_discount"]),
        )[extras["mixture"]]
        policy = self.epsilon_greedy(
            self.masked(self.mixed(online, scale[..., None]), timestep),
            config.target_epsilon,
            timestep.action_mask,
        )
        goal, taken = {}, {}
        transitions = returns.transitions(timestep, 1.0)
        transitions = transitions._replace(discount=transitions.discount * discount[:-1])
        rewards = {"extrinsic": timestep.reward, "intrinsic": extras.get("intrinsic_reward")}
        for name in self.names:
            found = transitions._replace(reward=rewards[name][1:] * transitions.weight)
            goal[name] = self.retrace(policy, target[name], found, rows, hyper["trace_lambda"])
            q = jnp.take_along_axis(online[name], action[..., None], axis=-1)[..., 0]
            taken[name] = q[:-1]
        return Targets(goal, taken, scale[:-1], discount[:-1], transitions.weight)

    def loss(
        self, params: dict[str, PyTree], target: dict[str, PyTree], hyper: Hyper, batch: Batch
    ) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        """The sum of both networks' `sequence_loss`, each of which depends on one network only.

        Priorities are those of the mixed error, h(G_e + β_j G_i) − q(x_t, a_t, j).
        """
        goal, taken, scale, discount, weight = self.targets(params, target, hyper, batch)

        def loss(error: Array, q: Array) -> tuple[Array, tuple[Array, dict[str, Array]]]:
            return self.sequence_loss(jnp.where(weight > 0, error, 0.0), weight, q, hyper, batch)

        losses = {k: loss(goal[k] - taken[k], taken[k])[0] for k in self.names}
        q = self.mixed(taken, scale)
        _, (priority, metrics) = loss(self.mixed(goal, scale) - q, q)
        metrics |= {
            "loss/value": sum(losses.values()),
            "mixture_scale": weighted.mean(scale, weight),
            "mixture_discount": weighted.mean(discount, weight),
        }
        if self.config.intrinsic:
            metrics |= {f"loss/{name}": x for name, x in losses.items()}
            extras = jax.tree.map(lambda x: x[1:], self.learnt_rows(batch)[2])
            metrics |= self.novelty.metrics(extras, weight)
        return sum(losses.values()), (priority, metrics)

    def learn(self, state: LearnerState, batch: Batch) -> Learnt:
        """`MixtureQ.learn`; also counts the returns of the episodes that end in the batch."""
        learnt = super().learn(state, batch)
        timestep, _, extras = jax.tree.map(lambda x: x[1:], self.learnt_rows(batch))
        tally, metrics = self.controller.count(
            state.extra["tally"], timestep, extras, batch.probabilities
        )
        extra = learnt.state.extra | {"tally": tally, "scale": state.hyper["intrinsic_scale"]}
        after = learnt.state._replace(extra=extra)
        metrics |= mixture_q.by_mixture("return", bandit.means(tally))
        return learnt._replace(state=after, metrics=learnt.metrics | metrics)


def build(config: Config, spec: EnvSpec, *, horizon: int = 0) -> Agent57:
    """Agent57 for environments of this `spec`. Raises UserError as `mixture_q.parts` does."""
    fields = mixture_q.parts("agent57", config, spec, horizon)
    return Agent57(*fields, controller=MetaController(config))


def make(config: Config, spec: EnvSpec, *, horizon: int) -> Agent:
    """`build`'s methods as an `Agent`. Raises UserError for settings that do not go together."""
    source = config.source()
    agent57 = build(config, spec, horizon=horizon)
    return Agent(
        *(agent57.init, agent57.behaviour, agent57.initial_carry, agent57.act, agent57.learn),
        *(step.adopt, agent57.warm_start),
        source=source,
        notes=agent57.novelty.notes(),
    )
