"""NGU, "Never Give Up": R2D2's learning for a family of exploratory and exploitative policies.

Badia et al. 2020, "Never Give Up: Learning Directed Exploration Strategies" (arXiv:2002.06038);
the constants are in `pronk.agents.ngu_config`. `act` draws a mixture i for each episode and stores
the intrinsic reward (`pronk.agents.novelty`); `td_errors` learns action values of r^e + β_i r^i
with discount γ_i by transformed Retrace; `learn` (`pronk.agents.mixture_q`) takes the gradient
steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from pronk.agents import mixture_q, step
from pronk.agents.actor_critic import Core
from pronk.agents.mixture_q import MixtureQ
from pronk.agents.ngu_config import Config
from pronk.maths import intrinsic, returns
from pronk.nn import cores
from pronk.types import Agent, Array, Batch, Carry, EnvSpec, Hyper, Key, PyTree, TimeStep


@dataclass(frozen=True, eq=False)
class NGU(MixtureQ):
    """NGU for one environment; its methods are the functions of an `Agent`."""

    def initial_values(self, key: Key) -> dict[str, PyTree]:
        """One network for both rewards."""
        return {"q": self.initial_network(key)}

    def initial_carry(self, key: Key, env_ids: Array, num_envs: int, evaluate: bool) -> Carry:
        """Each environment has its own ε; those of an evaluation have `evaluation_epsilon`, and
        mixture 0."""
        del key
        slots = env_ids.shape[0]
        private = {
            "epsilon": self.rates(env_ids, num_envs, evaluate),
            "mixture": jnp.zeros(slots, jnp.int32),
            "evaluate": jnp.full(slots, evaluate),
            "novelty": self.novelty.initial_private(slots),
        }
        return Carry(self.initial_core(slots), private)

    def values(
        self, params: PyTree, rows: tuple[PyTree, ...], state: PyTree
    ) -> tuple[Array, PyTree]:
        """Action values `[T, B, A]`, transformed by h, and the recurrent state after them; rows:
        time steps, the action before each, intrinsic rewards, mixtures."""
        q, state = self.network_values(params, rows, state)
        return self.masked(q, rows[0]), state

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
        extras = {"probability": probability, "mixture": mixture} | reward.extras()
        return action, Carry(Core(state, taken), private), extras

    def td_errors(
        self, params: PyTree, target_params: PyTree, hyper: Hyper, batch: Batch
    ) -> tuple[Array, Array, Array]:
        """TD errors of Retrace, weights (0 for dummies) and values of the actions taken, each
        `[length, B]` (appendix E).

        The learnt policy is ε-greedy for the online network; its values are the target network's.
        """
        config = self.config
        rows = timestep, action, extras = self.learnt_rows(batch)
        online = self.action_values(params, batch)
        target = self.action_values(target_params, batch)
        taken = jnp.take_along_axis(online, action[..., None], axis=-1)[..., 0]
        scales = hyper["intrinsic_scale"] * intrinsic.mixture_scales(config.mixtures)
        discounts = intrinsic.mixture_discounts(
            config.mixtures, hyper["discount"], hyper["exploratory_discount"]
        )
        reward = scales[extras["mixture"]] * extras["intrinsic_reward"]
        if config.extrinsic:
            reward = timestep.reward + reward
        transitions = returns.transitions(timestep._replace(reward=reward), 1.0)
        transitions = transitions._replace(
            discount=transitions.discount * discounts[extras["mixture"][:-1]]
        )
        policy = self.epsilon_greedy(online, config.target_epsilon, timestep.action_mask)
        goal = self.retrace(policy, target, transitions, rows, hyper["trace_lambda"])
        weight = transitions.weight
        return jnp.where(weight > 0, goal - taken[:-1], 0.0), weight, taken[:-1]

    def loss(
        self, params: dict[str, PyTree], target: dict[str, PyTree], hyper: Hyper, batch: Batch
    ) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        """`sequence_loss` of a batch of `[burn_in + length + 1, B]` rows."""
        error, weight, q = self.td_errors(params["q"], target["q"], hyper, batch)
        objective, (priority, metrics) = self.sequence_loss(error, weight, q, hyper, batch)
        extras = jax.tree.map(lambda x: x[1:], self.learnt_rows(batch)[2])
        return objective, (priority, metrics | self.novelty.metrics(extras, weight))


def build(config: Config, spec: EnvSpec, *, horizon: int = 0) -> NGU:
    """NGU for environments of this `spec`. Raises UserError as `mixture_q.parts` does."""
    return NGU(*mixture_q.parts("ngu", config, spec, horizon))


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
