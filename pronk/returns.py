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


def n_step(values: Array, reward: Array, discount: Array, continuation: Array, *, n: int) -> Array:
    """Returns of n rewards and the value of where they lead, `[T]`.

    values: `[T + 1]`, of each row; with `double_q` and n = 5 these are R2D2's targets. Where an
    episode or the sequence ends sooner, fewer rewards are summed. reward, discount, continuation:
    `[T]`, see the module's docstring. Raises ValueError if `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"`n` is {n}; a return has at least one reward.")
    after = values[1:]  # what a transition leads to is worth
    for _ in range(n - 1):
        target = reward + discount * after
        following = jnp.concatenate([target[1:], values[-1:]])
        after = jnp.where(continuation > 0, following, values[1:])
    return reward + discount * after


def double_q(online: Array, target: Array) -> Array:
    """The target network's value of the action that the online network prefers, `[...]`.

    Both `[..., actions]` (van Hasselt et al. 2016, eq. 4).
    """
    best = jnp.argmax(online, axis=-1)
    return jnp.take_along_axis(target, best[..., None], axis=-1)[..., 0]


# Trace coefficients c of `off_policy`, `[...]`, from the probabilities π and μ of the action taken
# (Munos et al. 2016, table 1); for 0 ≤ c ≤ π/μ the fixed point is q_π.


def importance_sampling_trace(pi: Array, mu: Array, *, lambda_: Array | float = 1.0) -> Array:
    """c = λ π/μ: corrects fully, with a variance that may be without bound."""
    return lambda_ * pi / mu


def tree_backup_trace(pi: Array, *, lambda_: Array | float = 1.0) -> Array:
    """c = λ π: needs no μ, and cuts traces even where the policies agree."""
    return lambda_ * pi


def retrace_trace(pi: Array, mu: Array, *, lambda_: Array | float = 1.0) -> Array:
    """c = λ min(1, π/μ): variance bounded, and no cut where the policies agree."""
    return lambda_ * jnp.minimum(1.0, pi / mu)


def off_policy(
    q: Array, values: Array, reward: Array, discount: Array, continuation: Array, trace: Array
) -> Array:
    """Returns of action values by the general operator R of Munos et al. 2016, eq. 3; `[T]`.

    q: `[T]`, q(x_t, a_t) of the actions taken. values: `[T + 1]`, E_π q(x_t, ·) of each row.
    reward, discount, continuation: `[T]`, see the module's docstring. trace: `[T]`, c_t of the
    action taken at t; that of t = 0 has no effect.

        R_t = r_t + γ_t (v_{t+1} + c_{t+1} (R_{t+1} − q_{t+1}))

    With c = 0 it is expected Sarsa. For values learnt in a transformed scale, bring `q` and each
    action value in `values` back with h⁻¹ before, and the result there with h.
    """

    def backward(surplus: Array, x: tuple[Array, ...]) -> tuple[Array, Array]:
        q_t, v_tp1, reward_t, discount_t, continuation_t, trace_t = x
        target = reward_t + discount_t * (v_tp1 + continuation_t * surplus)
        return trace_t * (target - q_t), target

    _, targets = jax.lax.scan(
        backward,
        jnp.zeros_like(q[0]),
        (q, values[1:], reward, discount, continuation, trace),
        reverse=True,
    )
    return targets
