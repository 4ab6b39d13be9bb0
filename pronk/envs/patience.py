"""Patience: a small reward at once, or a larger one many steps later."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from pronk.envs.jax_env import JaxEnv
from pronk.errors import UserError
from pronk.types import Array, EnvSpec, Key


class State(NamedTuple):
    """int32 []."""

    t: Array  # steps taken
    waits: Array  # 1 if the first action chose the later reward, else 0


def make(delay: int = 400, small: float = 1.0, large: float = 2.0) -> JaxEnv:
    """The first action chooses a reward of `small` at once, or of `large` after `delay` more steps.

    Actions: 0 takes the small reward, 1 waits for the large one; after the first step, actions have
    no effect. Either way the episode is terminated after `delay + 1` steps; nothing is random. The
    small reward comes with the first step and the large one with the last. With a discount γ,
    waiting is better if `large · γ^delay > small`; with the default rewards and a `delay` of 400,
    if γ > 0.99827.

    Observation: float32 [3]: whether the choice is still to be made, whether the agent waits, and
    the share of the episode that is over, `t / (delay + 1)`. The two ways have the same length, and
    their observations differ in the second number only. Otherwise an agent that explores for
    longer, or for newer observations, would wait for that reason, whatever its discount.

    The optimum of the undiscounted return is `large`: `expert` waits. Uniformly random actions have
    a mean return of `(small + large) / 2`, 1.5 by default; so does any first action that is a
    guess, which is why `small` is the score 0 of a comparison.

    Raises UserError if `delay` < 1 or not whole, or unless 0 < `small` < `large`, both finite.
    """
    if delay < 1 or delay % 1 or not 0 < small < large < math.inf:
        raise UserError(
            f"Patience has delay={delay}, small={small} and large={large}; expected a delay of"
            " at least 1 whole step, and finite rewards above 0, of which the large one is larger."
        )
    steps = delay + 1
    spec = EnvSpec("pronk/Patience-v0", spaces.Box(0, 1, (3,), np.float32), spaces.Discrete(2))

    def observe(state: State) -> Array:
        return jnp.stack([state.t == 0, state.waits, state.t / steps]).astype(jnp.float32)

    def reset(key: Key) -> tuple[State, Array]:
        del key
        state = State(jnp.int32(0), jnp.int32(0))
        return state, observe(state)

    def step(state: State, action: Array, key: Key) -> tuple[State, Array, Array, Array, Array]:
        del key
        begins = state.t == 0
        waits = jnp.where(begins, action.astype(jnp.int32), state.waits)
        state = State(state.t + 1, waits)
        ended = state.t == steps
        reward = jnp.where(begins & (waits == 0), small, 0.0)
        reward += jnp.where(ended & (waits == 1), large, 0.0)
        return state, observe(state), reward, ended, jnp.zeros_like(ended)

    def render(state: State) -> np.ndarray:
        picture = np.full((48, 240, 3), 30, np.uint8)
        colour = (240, 140, 40) if state.waits else (110, 110, 110)
        picture[:, : max(4, round(240 * int(state.t) / steps))] = colour
        return picture

    return JaxEnv(spec, reset, step, render=render, frames_per_second=60)


def expert(state: State) -> Array:
    """The action that waits, int32 []."""
    return jnp.ones_like(state.waits)
