"""MemoryCue: the smallest task that needs a memory, for an adjustable number of steps."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from pronk.envs.jax_env import JaxEnv
from pronk.errors import UserError
from pronk.types import Array, EnvSpec, Key


class State(NamedTuple):
    """The cue, and the steps taken since it was shown, int32 []."""

    cue: Array
    t: Array


def make(delay: int = 20, cues: int = 4) -> JaxEnv:
    """A cue is shown once and queried `delay` steps later.

    Observation 0 shows the cue and observation `delay` the query; with a delay of 1 they are
    consecutive. The action taken at the query ends the episode, after `delay + 1` steps, with
    reward 1 if it equals the cue, else 0; earlier actions have no effect. A policy without memory
    scores `1 / cues`. Observation: float32 `[cues + 1]`, the cue as one-hot (zeros after
    observation 0), then the query flag; the terminal one is all zeros. Actions: `cues`. Raises
    UserError if `delay` < 1 or `cues` < 2.
    """
    if delay < 1 or cues < 2:
        raise UserError(
            f"MemoryCue has delay={delay} and cues={cues}; expected a delay of at least 1 step and"
            " at least 2 cues."
        )
    spec = EnvSpec(
        "pronk/MemoryCue-v0", spaces.Box(0, 1, (cues + 1,), np.float32), spaces.Discrete(cues)
    )

    def observe(state: State) -> Array:
        cue = (jnp.arange(cues) == state.cue) & (state.t == 0)
        return jnp.append(cue, state.t == delay).astype(jnp.float32)

    def reset(key: Key) -> tuple[State, Array]:
        state = State(jax.random.randint(key, (), 0, cues, jnp.int32), jnp.int32(0))
        return state, observe(state)

    def step(state: State, action: Array, key: Key) -> tuple[State, Array, Array, Array, Array]:
        del key
        query = state.t == delay
        reward = (query & (action == state.cue)).astype(jnp.float32)
        state = State(state.cue, state.t + 1)
        return state, observe(state), reward, query, jnp.zeros_like(query)

    return JaxEnv(spec, reset, step)
