"""A network of one's own: IMPALA with another memory, without a change to the package.

    pronk train examples.custom_network pronk/MemoryCue-v0 --env-arg delay=10 --steps 200000

A recurrent core is a Flax module with two methods (`pronk.nn.cores.RecurrentCore`). To use one,
write an agent whose configuration can name it and whose `make` puts it into IMPALA's network.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from pronk.agents import impala, impala_config
from pronk.agents.impala_config import PRESETS, preset_for
from pronk.config.fields import choice
from pronk.nn import cores
from pronk.types import Agent, Array, EnvSpec, Key

__all__ = ["PRESETS", "Config", "Traces", "make", "preset_for"]


class Traces(nn.Module):
    """Sums of features that fade, each at a rate of its own, which is learnt.

    A linear recurrence with a diagonal matrix: s_t = λ s_{t-1} + x_t, λ in (0, 1).
    """

    units: int

    @nn.compact
    def __call__(self, inputs: Array, first: Array, state: Array) -> tuple[Array, Array]:
        """inputs `[T, B, F]`, first `[T, B]`, state `[B, units]` before the first row; returns
        outputs `[T, B, units]` and the state after the last row. Acting is the case T = 1."""
        x = nn.Dense(self.units, name="inputs")(inputs)

        def rates(key: Key, shape: tuple[int, ...]) -> Array:
            return jnp.linspace(0.0, 6.0, shape[0])  # half-lives from 1 to 280 steps

        decay = nn.sigmoid(self.param("decay", rates, (self.units,)))

        def step(state: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
            x_t, first_t = row
            # Nothing is remembered from the episode before: the state is reset *before* the row.
            state = decay * cores.reset(state, first_t) + x_t
            return state, state

        state, traces = jax.lax.scan(step, state, (x, first))
        return nn.tanh(nn.Dense(self.units, name="outputs")(traces)), state

    @nn.nowrap
    def initial_state(self, batch: int) -> Array:
        """The state at the beginning of an episode: zeros, as `cores.reset` makes it."""
        return jnp.zeros((batch, self.units), jnp.float32)


@dataclass(frozen=True)
class Config(impala_config.Config):
    """IMPALA's settings, with one more choice of a core, which is the default."""

    recurrent_core: Literal["traces", "none", "lstm", "gru"] = choice("traces")  # type: ignore
    """Recurrent core; last action and reward become inputs."""


def make(config: Config, spec: EnvSpec, *, horizon: int) -> Agent:
    """IMPALA with the core that `config` names."""
    if config.recurrent_core != "traces":
        return impala.make(config, spec, horizon=horizon)
    without = dataclasses.replace(config, recurrent_core="none")
    agent = impala.build(without, spec, horizon=horizon)
    network = agent.model.network.clone(core=Traces(config.recurrent_units))
    model = dataclasses.replace(agent.model, network=network)
    return dataclasses.replace(agent, model=model).as_agent()
