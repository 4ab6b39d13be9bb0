"""A policy and a value function on one network: acting, and re-evaluating what was acted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pronk.errors import UserError
from pronk.maths import distributions, transforms
from pronk.nn import cores, networks
from pronk.types import Array, Batch, Carry, EnvSpec, Key, PyTree, TimeStep


class Core(NamedTuple):
    """What the network remembers within an episode, `[B, ...]`."""

    state: PyTree  # of the recurrent core
    last_action: Array  # [B, A] features, zero before an episode's first action


class Action(NamedTuple):
    """What the policy decided for rows `[B, ...]`."""

    raw: Array  # as drawn: what `log_prob` is about
    policy: Array  # [B, P], parameters of the distribution
    log_prob: Array  # [B], of `raw`
    core: Core  # after this row


@dataclass(frozen=True, eq=False)
class ActorCritic:
    """The network for an environment's spaces, with its action distribution; see `make`."""

    config: Any
    spec: EnvSpec
    distribution: distributions.Distribution
    network: networks.ActorCritic

    @property
    def num_values(self) -> int:
        """Value functions: one per task, or one for all."""
        return self.network.num_values

    def init(self, key: Key) -> PyTree:
        """The network's first parameters."""
        space = self.spec.observation_space
        rows = jax.tree.map(lambda x: jnp.asarray(x)[None, None], space.sample())
        core, zeros = self.initial_core(1), jnp.zeros((1, 1))
        return self.network.init(
            key, rows, zeros, core.last_action[None], zeros > 0, core.state, pixel=True
        )

    def initial_core(self, batch: int) -> Core:
        """The memory at an episode's start, `[B, ...]`."""
        state = cores.initial_state(self.network.core, batch)
        return Core(state, jnp.zeros((batch, self.distribution.num_features), jnp.float32))

    def initial_carry(self, key: Key, env_ids: Array, num_envs: int, evaluate: bool) -> Carry:
        """`Agent.initial_carry`: slots of an evaluation take the likeliest action."""
        del key, num_envs
        batch = env_ids.shape[0]
        return Carry(self.initial_core(batch), private={"greedy": jnp.full((batch,), evaluate)})

    def scale_reward(self, reward: Array) -> Array:
        """Rewards as the network sees and learns them: scaled, then clipped."""
        config = self.config
        return transforms.clip_reward(reward * config.reward_scale, config.reward_clip)

    def forward(
        self,
        params: PyTree,
        timestep: TimeStep,
        last_action: Array,
        state: PyTree,
        pixel: bool = False,
    ) -> networks.Output:
        """The network's output for rows `[T, B, ...]`, forbidden actions masked; last_action
        `[T, B, A]`, state `[B, ...]` before the first row."""
        output: networks.Output = self.network.apply(  # type: ignore[assignment]
            params,
            timestep.observation,
            self.scale_reward(timestep.reward),
            last_action,
            timestep.first,
            state,
            pixel=pixel,
        )
        if timestep.action_mask is not None:
            masked = jnp.where(timestep.action_mask, output.policy, distributions.MASKED)
            output = output._replace(policy=masked)
        return output

    def decide(
        self,
        params: PyTree,
        carry: Carry,
        timestep: TimeStep,
        key: Key,
        noise: Array | None = None,
    ) -> Action:
        """Sample an action for each slot, or take the likeliest where the slot is greedy.

        noise: `[B, k]`, standard normal, to sample continuous actions with; otherwise it is drawn.
        """
        core = Core(carry.core.state, cores.reset(carry.core.last_action, timestep.first))
        row = jax.tree.map(lambda x: x[None], timestep)
        output = self.forward(params, row, core.last_action[None], core.state)
        policy, state = output.policy[0], output.state
        greedy = carry.private["greedy"]
        if noise is None:
            sampled = self.distribution.sample(policy, key)
        else:
            assert isinstance(self.distribution, distributions.DiagonalGaussian)
            sampled = self.distribution.shift(policy, noise)
        mode = self.distribution.mode(policy)
        raw = jnp.where(greedy.reshape(greedy.shape + (1,) * (mode.ndim - 1)), mode, sampled)
        log_prob = self.distribution.log_prob(policy, raw)
        return Action(raw, policy, log_prob, Core(state, self.distribution.features(raw)))

    def raw_actions(self, batch: Batch) -> Array:
        """The actions of a batch as drawn, `[T + 1, B, ...]`."""
        return batch.trajectory.extras.get("raw_action", batch.trajectory.action)

    def inputs(self, batch: Batch) -> tuple[TimeStep, Array, PyTree]:
        """The network's inputs for a batch: rows, the action before each, the state before all."""
        rows, core = batch.trajectory.timestep, batch.trajectory.core
        taken = self.distribution.features(self.raw_actions(batch))
        last_action = jnp.concatenate([core.last_action[None], taken[:-1]])
        return rows, jnp.where(rows.first[..., None], 0.0, last_action), core.state

    def value_task(self, timestep: TimeStep) -> Array:
        """Which value function each row is about, `[...]`."""
        return timestep.task if self.num_values > 1 else jnp.zeros_like(timestep.task)

    def select_value(self, values: Array, task: Array) -> Array:
        """The value `[...]` of each row's task among `[..., K]`."""
        if self.num_values == 1:
            return values[..., 0]
        return jnp.sum(values * jax.nn.one_hot(task, self.num_values), axis=-1)


def make(
    config: Any,
    spec: EnvSpec,
    *,
    num_values: int = 1,
    zero_values: bool = False,
    pixel_control: networks.PixelControl | None = None,
    value_sizes: tuple[int, ...] | None = None,
    policy_gain: float = 0.01,
    constant_std: bool = False,
) -> ActorCritic:
    """The network and distribution for an environment's spaces.

    config: has IMPALA's fields about network, rewards and actions. zero_values: the value head
    starts at zero. value_sizes: layer widths of a separate value network, if others than the
    policy's. policy_gain: scale of the policy head's first weights. constant_std: the deviations of
    continuous actions do not depend on the observation. Raises UserError where a space can't be
    handled, and for settings of continuous actions where there are none.
    """
    distribution = distributions.for_space(
        spec.action_space, squash=config.squash_actions, initial_std=config.initial_std
    )
    if not distribution.continuous:
        _refuse_continuous(config, spec)
    constant_std = constant_std and distribution.continuous
    network = networks.ActorCritic(
        space=spec.observation_space,
        num_params=distribution.num_params,
        torso=config.torso,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        core=cores.make_core(config.recurrent_core, config.recurrent_units),
        separate_value=config.separate_value,
        encoder_dtype=jnp.dtype(config.encoder_dtype),
        num_values=num_values,
        zero_values=zero_values,
        pixel_control=pixel_control,
        value_sizes=value_sizes,
        policy_gain=policy_gain,
        constant_params=distribution.num_params // 2 if constant_std else 0,
    )
    return ActorCritic(config, spec, distribution, network)


def _refuse_continuous(config: Any, spec: EnvSpec) -> None:
    """Raise UserError for settings of continuous actions, which would have no effect."""
    for flag, neutral in (
        ("squash_actions", "--no-squash-actions"),
        ("state_dependent_std", "--no-state-dependent-std"),
        ("noise_correlation", "--noise-correlation 0"),
    ):
        if getattr(config, flag, False):
            raise UserError(
                f"`--{flag.replace('_', '-')}` is for continuous actions, and those of"
                f" '{spec.name}' are {spec.action_space}; expected `{neutral}`, or another preset"
                " if that is where the setting comes from."
            )
