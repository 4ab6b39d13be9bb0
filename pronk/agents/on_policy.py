"""What the on-policy agents share: acting, and the estimates that a batch is learnt from with.

An on-policy batch was acted by one behaviour, which then learns (`Fresh(on_policy=True)`). The
local runtime may also run asynchronously; the stored log-probabilities then are of an older policy,
and stay the denominator of all importance ratios.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp

from pronk.agents import actor_critic, exploration, normalisation, step
from pronk.agents.actor_critic import ActorCritic
from pronk.agents.normalisation import Statistics
from pronk.agents.rollout import Data, Estimates, Samples
from pronk.maths import linear_baseline, returns, weighted
from pronk.maths.spaces import leaf_spaces
from pronk.nn import cores
from pronk.types import (
    Agent,
    Array,
    Batch,
    Carry,
    EnvSpec,
    Fresh,
    Hyper,
    Key,
    LearnerState,
    PyTree,
    TimeStep,
)


class Behaviour(NamedTuple):
    """What acting needs of the learner's state, and the units of what it has learnt."""

    params: PyTree
    statistics: Statistics


class Core(NamedTuple):
    """What is remembered within an episode, `[B, ...]`."""

    network: actor_critic.Core
    reward_sum: Array  # float32 [B], discounted sum of the rewards so far
    age: Array  # int32 [B], steps since the episode began
    noise: PyTree = ()  # [B, k], of the last continuous action, if it is correlated with the next


@dataclass(frozen=True, eq=False)
class OnPolicy:
    """Acting and estimating for one environment.

    linear: the value is the linear baseline of `extra["baseline"]` instead of the network's.
    """

    config: Any
    spec: EnvSpec
    model: ActorCritic
    horizon: int  # agent steps at which schedules end
    linear: bool = False

    def init(self, key: Key, optimiser: str = "adam") -> LearnerState:
        """The learner's first state, with an optimiser of all parameters (`step.new_state`)."""
        params_key, key = jax.random.split(key)
        params = self.model.init(params_key)
        hyper = step.hyperparameters(self.config, self.config.hyper_names())
        extra: dict[str, PyTree] = {
            "statistics": normalisation.init(self.config, self.spec.observation_space)
        }
        if self.linear:
            size = sum(map(gym.spaces.flatdim, leaf_spaces(self.spec.observation_space)))
            extra["baseline"] = jnp.zeros(linear_baseline.num_features(size))
        return step.new_state(optimiser, params, hyper, key, extra, self.horizon)

    def behaviour(self, state: LearnerState) -> Behaviour:
        """The parameters, and all running statistics."""
        return Behaviour(state.params, state.extra["statistics"])

    def warm_start(self, own: LearnerState, behaviour: Behaviour) -> LearnerState:
        """Begin to learn from another run's parameters and statistics."""
        extra = own.extra | {"statistics": behaviour.statistics}
        return own._replace(params=behaviour.params, extra=extra)

    def initial_carry(self, key: Key, env_ids: Array, num_envs: int, evaluate: bool) -> Carry:
        """`Agent.initial_carry`: slots of an evaluation take the likeliest action."""
        carry = self.model.initial_carry(key, env_ids, num_envs, evaluate)
        batch = env_ids.shape[0]
        noise = jnp.zeros((batch, self.model.distribution.num_features)) if self._correlated else ()
        age = jnp.zeros(batch, jnp.int32)
        return carry._replace(core=Core(carry.core, jnp.zeros(batch), age, noise))

    @property
    def _correlated(self) -> bool:
        return self.model.distribution.continuous and self.config.noise_correlation > 0

    def act(
        self, behaviour: Behaviour, carry: Carry, timestep: TimeStep, key: Key
    ) -> tuple[Array, Carry, dict[str, Array]]:
        """Decide for slots `[B]`; `extras` has what the learner needs to know of the decision."""
        config, distribution = self.config, self.model.distribution
        core: Core = carry.core
        age, reward_sum = cores.reset((core.age, core.reward_sum), timestep.first)
        reward_sum = config.discount * reward_sum + timestep.reward
        row = self._standardised(behaviour.statistics, timestep)
        noise, given = core.noise, None
        if self._correlated:
            rho = config.noise_correlation
            noise = given = exploration.correlated_noise(core.noise, timestep.first, key, rho)
        network = Carry(core.network, carry.private)
        decided = self.model.decide(behaviour.params, network, row, key, given)
        extras = {"log_prob": decided.log_prob, "policy": decided.policy}
        if distribution.continuous:
            extras["raw_action"] = decided.raw
        if config.reward_normalisation:
            extras["reward_sum"] = reward_sum
        if self.linear:
            extras["age"] = age
        carry = Carry(Core(decided.core, reward_sum, age + 1, noise), carry.private)
        return distribution.action(decided.raw), carry, extras

    def _standardised(self, statistics: Statistics, timestep: TimeStep) -> TimeStep:
        clip = self.config.observation_clip
        observation = normalisation.standardise(statistics, timestep.observation, clip)
        return timestep._replace(observation=observation)

    def data(self, statistics: Statistics, hyper: Hyper, batch: Batch) -> Data:
        """A batch of `[T + 1, B]` rows as the network sees it, rewards scaled."""
        model, trajectory = self.model, batch.trajectory
        extras = trajectory.extras
        seen = self._standardised(statistics, trajectory.timestep)
        trajectory = trajectory._replace(timestep=seen, core=trajectory.core.network)
        rows, last_action, core = model.inputs(Batch(trajectory))
        scaled = rows._replace(
            reward=model.scale_reward(rows.reward / normalisation.reward_deviation(statistics))
        )
        transitions = returns.transitions(scaled, hyper["discount"])
        samples = Samples(
            rows=jax.tree.map(lambda x: x[:-1], rows),
            last_action=last_action[:-1],
            raw_action=model.raw_actions(batch)[:-1],
            log_prob=extras["log_prob"][:-1],
            policy=extras["policy"][:-1],
            weight=transitions.weight,
            task=model.value_task(rows)[:-1],
            core=core,
        )
        features = None
        if self.linear:
            # Not standardised: coefficients fitted to one batch are used in the next one.
            raw = batch.trajectory.timestep.observation
            # Of rows that were not decided, or decided in vain, `extras` says nothing.
            later = jnp.where(rows.first[1:], 0, extras["age"][:-1] + 1)
            age = jnp.concatenate([extras["age"][:1], later])
            features = linear_baseline.features(
                normalisation.vectors(self.spec.observation_space, raw), age
            )
        return Data(rows, last_action, core, transitions, samples, features)

    def estimate(self, params: PyTree, extra: PyTree, hyper: Hyper, data: Data) -> Estimates:
        """Values under these parameters, and the advantages and targets that follow (GAE)."""
        mean, deviation = normalisation.value_units(extra["statistics"])
        if self.linear:
            value = data.features @ extra["baseline"]
        else:
            output = self.model.forward(params, data.rows, data.last_action, data.core)
            value = self.model.select_value(output.values, self.model.value_task(data.rows))
        values = deviation * value + mean
        t = data.transitions
        advantage = returns.gae(values, t.reward, t.discount, t.continuation, hyper["gae_lambda"])
        target = advantage + values[:-1]
        if self.config.advantage_normalisation == "batch":
            advantage = weighted.standardise(advantage, t.weight)
        return jax.lax.stop_gradient(Estimates(values[:-1], target, advantage))

    def log_ratio(self, samples: Samples, policy: Array) -> Array:
        """log π/μ of the actions taken, 0 for dummies; policy: `[..., P]`, π's distribution."""
        log_prob = self.model.distribution.log_prob(policy, samples.raw_action)
        return jnp.where(samples.weight > 0, log_prob - samples.log_prob, 0.0)

    def divergence(self, params: PyTree, data: Data) -> Array:
        """Mean KL in nats of the policy that acted from that of `params`, over a batch."""
        samples = data.samples
        now = self.model.forward(params, samples.rows, samples.last_action, samples.core).policy
        return weighted.mean(self.model.distribution.kl(samples.policy, now), samples.weight)

    def before(self, state: LearnerState, batch: Batch) -> LearnerState:
        """The state after merging a batch's rewards; what comes before its update."""
        trajectory, statistics = batch.trajectory, state.extra["statistics"]
        if self.config.reward_normalisation:
            before = trajectory.extras["reward_sum"][:-1]
            sums = self.config.discount * before + trajectory.timestep.reward[1:]
            real = 1.0 - trajectory.timestep.first[1:].astype(jnp.float32)
            statistics = normalisation.merge(statistics, "reward", sums, real)
        return state._replace(extra=state.extra | {"statistics": statistics})

    def after(self, statistics: Statistics, batch: Batch) -> Statistics:
        """The statistics after merging a batch's observations; what comes after its update."""
        rows = jax.tree.map(lambda x: x[:-1], batch.trajectory.timestep)
        return normalisation.observe(statistics, rows.observation)

    def metrics(self, data: Data, estimates: Estimates) -> dict[str, Array]:
        """Of the batch before it was learnt from, as scalars."""
        weight = data.transitions.weight
        error = weighted.deviation(estimates.target - estimates.value, weight)
        spread = weighted.deviation(estimates.target, weight)
        return {
            "steps": jnp.sum(weight),
            "value_mean": weighted.mean(estimates.value, weight),
            "explained_variance": 1.0 - jnp.square(error / jnp.maximum(spread, 1e-8)),
        }

    def as_agent(self, learn: Any) -> Agent:
        """These functions, with the agent's own `learn`."""
        return Agent(
            self.init,
            self.behaviour,
            self.initial_carry,
            self.act,
            learn,
            step.adopt,
            self.warm_start,
            source=Fresh(on_policy=True),
        )


def make(config: Any, spec: EnvSpec, *, horizon: int, linear: bool = False) -> OnPolicy:
    """What the agents share, for environments of this `spec`; linear: see `OnPolicy`.

    Raises UserError for settings that do not go together, and where a space of the environment
    can't be handled.
    """
    config.check()
    if linear:  # the network's own value is not used: its head is all that there is of it
        normalisation.refuse_images(spec)
        config = dataclasses.replace(config, separate_value=False, value_normalisation="none")
    model = actor_critic.make(
        config,
        spec,
        value_sizes=config.value_hidden_sizes,
        policy_gain=config.policy_gain,
        constant_std=not config.state_dependent_std,
    )
    return OnPolicy(config, spec, model, horizon, linear)
