"""Returns and off-policy corrections: pure, unbatched `[T]`, `vmap`ped by callers over `B`.

Index t is the transition t -> t + 1. Two arguments, never one, say what an episode's end does
(seed 003, section on V-trace; Espeholt et al. 2018):

- `discount[t]` = γ (1 − terminated[t + 1]) weighs the bootstrap value of the next observation;
- `continuation[t]` = 0 where t + 1 ends the episode *in any way*, else 1: traces stop there.

A truncated episode therefore bootstraps from the value of its own last observation, a terminated
one from zero, and neither sees the episode that follows.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pronk.types import Array, TimeStep


class Transitions(NamedTuple):
    """What the T transitions of `[T + 1, ...]` rows are worth to a return, each `[T, ...]`."""

    reward: Array
    discount: Array
    continuation: Array
    weight: Array  # 0 for the dummy between two episodes, else 1


def transitions(timestep: TimeStep, gamma: Array | float) -> Transitions:
    """Read rewards, discounts, continuations and weights off consecutive rows.

    timestep: `[T + 1, ...]`, where reward and end flags of row t belong to the transition into t.
    A row with `first` set that no end flag announced (a restarted environment) cuts the trace
    like a truncation one row earlier: its transition is a dummy of weight 0.
    """
    weight = 1.0 - timestep.first[1:].astype(jnp.float32)
    ended = jnp.logical_or(timestep.terminated[1:], timestep.truncated[1:])
    return Transitions(
        reward=timestep.reward[1:] * weight,
        discount=gamma * (1.0 - timestep.terminated[1:].astype(jnp.float32)),
        continuation=(1.0 - ended.astype(jnp.float32)) * weight,
        weight=weight,
    )


class VTrace(NamedTuple):
    """V-trace's targets and what its policy gradient needs, each `[T]`."""

    targets: Array  # v_s, for the value function
    q: Array  # r_s + γ v_{s+1}, the action value the policy gradient uses
    advantages: Array  # ρ_s (r_s + γ v_{s+1} − V(x_s))


def vtrace(
    values: Array,
    reward: Array,
    discount: Array,
    continuation: Array,
    ratio: Array,
    *,
    rho_bar: Array | float = 1.0,
    c_bar: Array | float = 1.0,
    lambda_: Array | float = 1.0,
) -> VTrace:
    """V-trace targets by backward recursion (Espeholt et al. 2018, eq. 1 and remark 1).

    values: `[T + 1]`, V of each row, the last one being the bootstrap.
    reward, discount, continuation: `[T]`, see the module's docstring.
    ratio: `[T]`, π(a_t|x_t) / μ(a_t|x_t), at least 0; a ratio of 0 leaves a transition out.
    rho_bar, c_bar: truncation levels (the fixed point, and the speed); infinity is allowed.
    lambda_: shortens traces, c_i = λ min(c̄, ratio_i) (remark 2).

        v_s = V(x_s) + ρ_s δ_s + γ_s c_s (v_{s+1} − V(x_{s+1}))
        δ_s = r_s + γ_s V(x_{s+1}) − V(x_s)

    No gradient flows through the result.
    """
    v_t, v_tp1 = values[:-1], values[1:]
    rho = jnp.minimum(rho_bar, ratio)
    c = lambda_ * jnp.minimum(c_bar, ratio)
    delta = rho * (reward + discount * v_tp1 - v_t)

    def backward(acc: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        delta_t, decay_t = x
        acc = delta_t + decay_t * acc
        return acc, acc

    _, correction = jax.lax.scan(
        backward, jnp.zeros_like(v_t[0]), (delta, discount * continuation * c), reverse=True
    )
    targets = v_t + correction
    # The policy gradient looks ahead with v_{s+1}, the target, not V(x_{s+1}) (section 4.2);
    # where the trace stops there is no target beyond the observation's own value.
    correction_tp1 = jnp.concatenate([correction[1:], jnp.zeros_like(correction[:1])])
    q = reward + discount * (v_tp1 + continuation * correction_tp1)
    return VTrace(*jax.lax.stop_gradient((targets, q, rho * (q - v_t))))
