"""Returns and off-policy corrections: pure functions of time-major arrays `[T, ...]`.

Trailing axes are sequences side by side, which do not interact; without them an array is one
sequence. Index t is the transition t -> t + 1. Rewards and values are in the same units. The end of
an episode enters through two arguments, because a time limit is not a terminal state (Pardo et al.
2018, "Time Limits in Reinforcement Learning"):

- `discount[t]` = γ (1 − terminated[t + 1]) multiplies the value of the next observation;
- `continuation[t]` = 0 where t + 1 ends the episode *in any way*, else 1: traces stop there.

A truncated episode therefore bootstraps from the value of its own last observation, a terminated
one from zero, and neither depends on the episode that follows.

Returns of state values have two forms (Sutton and Barto 2018, chapters 7 and 12). Each function is
the recursive one; `from_td_errors` is the other, with δ = `td_errors(...)`, ρ the ratio π/μ of the
action taken, λ that of the state it leads to, γ the discount and k the continuation:

| return | G, from G' of the next state | errors | decay |
|---|---|---|---|
| `n_step` | r + γ G' | δ | γ k |
| `importance_sampled` | ρ (r + γ G') | | |
| `control_variate` | ρ (r + γ G') + (1 − ρ) V | ρ δ | γ k ρ |
| `lambda_return` | (1 − λ) (r + γ V') + λ (r + γ G') | δ | γ k λ |
| `off_policy_lambda` | ρ ((1 − λ) (r + γ V') + λ (r + γ G')) + (1 − ρ) V | ρ δ | γ k λ ρ |
| `vtrace` | `vtrace_as_control_variate` | min(ρ̄, ρ) δ | γ k λ min(c̄, ρ) |

`gae` is `lambda_return` minus V. `n` limits a return to n rewards; None sums to the end of the
sequence. All functions raise ValueError for arrays whose shapes do not fit.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pronk.maths.shapes import assert_rank, assert_same_shape, assert_scalar_or_shape, assert_shape
from pronk.types import Array, TimeStep


class Transitions(NamedTuple):
    """The T transitions of `[T + 1, ...]` rows as arguments of a return, each `[T, ...]`."""

    reward: Array
    discount: Array
    continuation: Array
    weight: Array  # 0 for the dummy between two episodes, else 1


def transitions(timestep: TimeStep, gamma: Array | float) -> Transitions:
    """Rewards, discounts, continuations and weights of consecutive rows.

    timestep: `[T + 1, ...]`, where reward and end flags of row t belong to the transition into t.
    gamma: a scalar, or one per sequence. A row with `first` set that no end flag precedes (a
    restarted environment) cuts the trace like a truncation one row earlier: its transition is a
    dummy of weight 0.
    """
    assert_same_shape(
        first=timestep.first,
        reward=timestep.reward,
        terminated=timestep.terminated,
        truncated=timestep.truncated,
    )
    assert_scalar_or_shape(np.shape(timestep.first)[1:], "one per sequence", gamma=gamma)
    weight = 1.0 - timestep.first[1:].astype(jnp.float32)
    ended = jnp.logical_or(timestep.terminated[1:], timestep.truncated[1:])
    # A row also continues into nothing if the next one begins an episode without any end flag.
    followed = jnp.concatenate([weight[1:], jnp.ones_like(weight[:1])])
    return Transitions(
        reward=timestep.reward[1:] * weight,
        discount=gamma * (1.0 - timestep.terminated[1:].astype(jnp.float32)),
        continuation=(1.0 - ended.astype(jnp.float32)) * weight * followed,
        weight=weight,
    )


class VTrace(NamedTuple):
    """V-trace targets and the quantities of its policy gradient, each `[T, ...]`."""

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
    leak: Array | float = 0.0,
) -> VTrace:
    """V-trace targets by backward recursion (Espeholt et al. 2018, eq. 1 and remark 1).

    values: `[T + 1, ...]`, V of each row; the last one is the bootstrap.
    reward, discount, continuation: `[T, ...]`, see the module's docstring.
    ratio: `[T, ...]`, π(a_t|x_t) / μ(a_t|x_t), at least 0; a ratio of 0 leaves a transition out.
    rho_bar, c_bar: scalars, the truncation levels that set the fixed point and the speed; may be
    infinite.
    lambda_: a scalar or `[T, ...]`; shortens traces, c_i = λ min(c̄, ratio_i) (remark 2).
    leak: a scalar, the part of the untruncated ratio in both levels, `(1 - leak) min(level, ratio)
    + leak ratio`; 1 − α of leaky V-trace (Zahavy et al. 2020, eq. 6). It moves the fixed point
    towards the value of π, at a higher variance.

        v_s = V(x_s) + ρ_s δ_s + γ_s c_s (v_{s+1} − V(x_{s+1}))
        δ_s = r_s + γ_s V(x_{s+1}) − V(x_s)

    No gradient flows through the result.
    """
    _assert_transitions(values, reward, discount, continuation, ratio, lambda_)
    assert_rank(0, rho_bar=rho_bar, c_bar=c_bar, leak=leak)
    v_t, v_tp1 = values[:-1], values[1:]
    leaked = jnp.where(leak > 0, leak * ratio, 0.0)  # a ratio may be infinite
    rho = (1.0 - leak) * jnp.minimum(rho_bar, ratio) + leaked
    c = (1.0 - leak) * jnp.minimum(c_bar, ratio) + leaked
    errors = rho * td_errors(values, reward, discount)
    targets = from_td_errors(values, errors, discount * continuation * lambda_ * c)
    # The policy gradient bootstraps from v_{s+1}, the target, not from V(x_{s+1}) (section 4.2);
    # where the trace stops there is no target beyond the observation's own value.
    following = jnp.concatenate([targets[1:], values[-1:]])
    q = reward + discount * (v_tp1 + continuation * (following - v_tp1))
    return VTrace(*jax.lax.stop_gradient((targets, q, rho * (q - v_t))))


def vtrace_as_control_variate(
    values: Array,
    reward: Array,
    discount: Array,
    continuation: Array,
    ratio: Array,
    *,
    rho_bar: Array | float = 1.0,
    c_bar: Array | float = 1.0,
    lambda_: Array | float = 1.0,
    n: int | None = None,
) -> Array:
    """V-trace targets in the notation of control variates, `[T, ...]`; arguments as of `vtrace`.

    Espeholt et al. 2018, eq. 1, is `off_policy_lambda` with the ratio ρ_t = min(ρ̄, ratio_t) and
    λ_{t+1} = λ c_t / ρ_t: of a product of ratios only the last one corrects, the others are traces.
    """
    _assert_transitions(values, reward, discount, continuation, ratio, lambda_)
    assert_rank(0, rho_bar=rho_bar, c_bar=c_bar)
    rho, c = jnp.minimum(rho_bar, ratio), jnp.minimum(c_bar, ratio)
    # Where the ratio is 0 the return is the control variate alone, whatever λ.
    trace = lambda_ * c / jnp.where(rho > 0, rho, 1.0)
    return off_policy_lambda(values, reward, discount, continuation, rho, trace, n=n)


def td_errors(values: Array, reward: Array, discount: Array) -> Array:
    """δ_t = r_t + γ_t V(x_{t+1}) − V(x_t), `[T, ...]`, for values `[T + 1, ...]`."""
    _assert_transitions(values, reward, discount)
    return reward + discount * values[1:] - values[:-1]


def from_td_errors(values: Array, errors: Array, decay: Array, *, n: int | None = None) -> Array:
    """A return as the value plus a sum of TD errors, `[T, ...]`: any of the module's table
    (Sutton and Barto 2018, eq. 12.24).

        G_t = V(x_t) + Σ_{i<n} (Π_{j<i} decay_{t+j}) errors_{t+i}

    values: `[T + 1, ...]`. errors, decay: `[T, ...]`. n: the number of terms; None sums to the end
    of the sequence. Raises ValueError if `n` is below 1.
    """
    _assert_per_transition(values, errors=errors, decay=decay)
    return values[:-1] + _recursion(errors, decay, jnp.zeros_like(values), n)


def _recursion(
    base: Array,
    decay: Array,
    bootstrap: Array,
    n: int | None,
    continuation: Array | float = 1.0,
) -> Array:
    """G_t = base_t + decay_t G', `[T, ...]`: the recursion of every return in the module's table.

    G' is G_{t+1}, or `bootstrap[t + 1]` n − 1 steps later, at the end of the sequence, and where
    the continuation is 0. bootstrap: `[T + 1, ...]`.
    """
    if n is not None and n < 1:
        raise ValueError(f"`n` is {n}, expected at least 1: a return has at least one reward.")
    base = base + decay * (1.0 - continuation) * bootstrap[1:]
    decay = decay * continuation
    if n is None:

        def backward(following: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
            result = x[0] + x[1] * following
            return result, result

        return jax.lax.scan(backward, bootstrap[-1], (base, decay), reverse=True)[1]
    result = base + decay * bootstrap[1:]
    for _ in range(n - 1):
        result = base + decay * jnp.concatenate([result[1:], bootstrap[-1:]])
    return result


def _assert_transitions(
    values: Array,
    reward: Array,
    discount: Array,
    continuation: Array | None = None,
    ratio: Array | None = None,
    lambda_: Array | float | None = None,
) -> None:
    """Check the arguments that most returns share."""
    arrays = {"reward": reward, "discount": discount, "continuation": continuation, "ratio": ratio}
    _assert_per_transition(values, **{k: x for k, x in arrays.items() if x is not None})
    if lambda_ is not None:
        assert_scalar_or_shape(np.shape(reward), "that of `reward`", lambda_=lambda_)


def _assert_per_transition(values: Array, **arrays: Array) -> None:
    """`values` is `[T + 1, ...]`, and each of `arrays` `[T, ...]`."""
    rows, *rest = np.shape(values) or (0,)
    if rows < 1:
        raise ValueError(f"`values` has shape {np.shape(values)}, expected [T + 1, ...].")
    assert_shape((rows - 1, *rest), f"`values`: {np.shape(values)}, T + 1 rows", **arrays)


def n_step(
    values: Array, reward: Array, discount: Array, continuation: Array, *, n: int | None = None
) -> Array:
    """n-step returns, `[T, ...]` (Sutton and Barto 2018, eq. 7.12).

        G_{t:t+n} = r_t + γ_t G_{t+1:t+n}

    values: `[T + 1, ...]`, the bootstrap value of each row; with `double_q` and n = 5 the result is
    R2D2's targets. Where an episode or the sequence ends sooner, fewer rewards are summed. reward,
    discount, continuation: `[T, ...]`, see the module's docstring. Raises ValueError if `n` is
    below 1.
    """
    _assert_transitions(values, reward, discount, continuation)
    return _recursion(reward, discount, values, n, continuation)


def importance_sampled(
    values: Array,
    reward: Array,
    discount: Array,
    continuation: Array,
    ratio: Array,
    *,
    n: int | None = None,
) -> Array:
    """Off-policy n-step returns by importance sampling alone, `[T, ...]`: unbiased, with unbounded
    variance (Sutton and Barto 2018, section 7.4).

        G_{t:t+n} = ρ_t (r_t + γ_t G_{t+1:t+n})

    ratio: `[T, ...]`, π(a_t|x_t) / μ(a_t|x_t); the other arguments are those of `n_step`.
    """
    _assert_transitions(values, reward, discount, continuation, ratio)
    return _recursion(ratio * reward, ratio * discount, values, n, continuation)


def control_variate(
    values: Array,
    reward: Array,
    discount: Array,
    continuation: Array,
    ratio: Array,
    *,
    n: int | None = None,
) -> Array:
    """Off-policy n-step returns with a control variate, `[T, ...]`: a ratio of 0 gives V(x_t)
    instead of 0, which keeps the expectation and lowers the variance (De Asis and Sutton 2018;
    Sutton and Barto 2018, eq. 7.13).

        G_{t:t+n} = ρ_t (r_t + γ_t G_{t+1:t+n}) + (1 − ρ_t) V(x_t)

    Arguments as of `importance_sampled`.
    """
    _assert_transitions(values, reward, discount, continuation, ratio)
    base = ratio * reward + (1.0 - ratio) * values[:-1]
    return _recursion(base, ratio * discount, values, n, continuation)


def lambda_return(
    values: Array,
    reward: Array,
    discount: Array,
    continuation: Array,
    lambda_: Array | float,
    *,
    n: int | None = None,
) -> Array:
    """λ-returns, truncated after n rewards, `[T, ...]` (Sutton and Barto 2018, eq. 12.9 and 12.18).

        G_{t:t+n} = (1 − λ_{t+1}) (r_t + γ_t V(x_{t+1})) + λ_{t+1} (r_t + γ_t G_{t+1:t+n})

    lambda_: a scalar or `[T, ...]`, element t being that of the state which transition t leads to.
    The other arguments are those of `n_step`.
    """
    _assert_transitions(values, reward, discount, continuation, lambda_=lambda_)
    base = reward + (1.0 - lambda_) * discount * values[1:]
    return _recursion(base, lambda_ * discount, values, n, continuation)


def off_policy_lambda(
    values: Array,
    reward: Array,
    discount: Array,
    continuation: Array,
    ratio: Array,
    lambda_: Array | float,
    *,
    n: int | None = None,
) -> Array:
    """λ-returns with control variates, `[T, ...]` (Sutton and Barto 2018, eq. 12.22).

        G_{t:t+n} = (1 − λ_{t+1}) G^CV_{t:t+1} + λ_{t+1} (ρ_t (r_t + γ_t G_{t+1:t+n})
                                                        + (1 − ρ_t) V(x_t))

    where G^CV is `control_variate`. ratio: as of `importance_sampled`; lambda_: as
    of `lambda_return`.
    """
    _assert_transitions(values, reward, discount, continuation, ratio, lambda_)
    v_t, v_tp1 = values[:-1], values[1:]
    one_step = ratio * (reward + discount * v_tp1) + (1.0 - ratio) * v_t
    longer = ratio * reward + (1.0 - ratio) * v_t  # without the discounted return that follows
    base = (1.0 - lambda_) * one_step + lambda_ * longer
    return _recursion(base, lambda_ * ratio * discount, values, n, continuation)


def gae(
    values: Array,
    reward: Array,
    discount: Array,
    continuation: Array,
    lambda_: Array | float,
    *,
    n: int | None = None,
) -> Array:
    """Generalised advantage estimates, `[T, ...]` (Schulman et al. 2016, eq. 16): λ-returns − V.

        A_t = δ_t + γ_t k_t λ_{t+1} A_{t+1}

    Arguments as of `lambda_return`.
    """
    _assert_transitions(values, reward, discount, continuation, lambda_=lambda_)
    decay = discount * continuation * lambda_
    return _recursion(td_errors(values, reward, discount), decay, jnp.zeros_like(values), n)


def double_q(online: Array, target: Array) -> Array:
    """The target network's value of the action that the online network prefers, `[...]`.

    Both `[..., actions]` (van Hasselt et al. 2016, eq. 4).
    """
    assert_same_shape(online=online, target=target)
    best = jnp.argmax(online, axis=-1)
    return jnp.take_along_axis(target, best[..., None], axis=-1)[..., 0]


# Trace coefficients c of `off_policy`, `[...]`, from the probabilities π and μ of the action taken
# (Munos et al. 2016, table 1); for 0 ≤ c ≤ π/μ the fixed point is q_π.


def importance_sampling_trace(pi: Array, mu: Array, *, lambda_: Array | float = 1.0) -> Array:
    """c = λ π/μ: a full correction, with unbounded variance. All `[...]`, λ also a scalar."""
    assert_same_shape(pi=pi, mu=mu)
    assert_scalar_or_shape(np.shape(pi), "that of `pi`", lambda_=lambda_)
    return lambda_ * pi / mu


def tree_backup_trace(pi: Array, *, lambda_: Array | float = 1.0) -> Array:
    """c = λ π: needs no μ, and cuts traces even where the policies agree."""
    assert_scalar_or_shape(np.shape(pi), "that of `pi`", lambda_=lambda_)
    return lambda_ * pi


def retrace_trace(pi: Array, mu: Array, *, lambda_: Array | float = 1.0) -> Array:
    """c = λ min(1, π/μ): bounded variance, and no cut where the policies agree."""
    assert_same_shape(pi=pi, mu=mu)
    assert_scalar_or_shape(np.shape(pi), "that of `pi`", lambda_=lambda_)
    return lambda_ * jnp.minimum(1.0, pi / mu)


def off_policy(
    q: Array, values: Array, reward: Array, discount: Array, continuation: Array, trace: Array
) -> Array:
    """Returns of action values by the general operator R of Munos et al. 2016, eq. 3; `[T, ...]`.

    q: `[T, ...]`, q(x_t, a_t) of the actions taken. values: `[T + 1, ...]`, E_π q(x_t, ·) of each
    row. reward, discount, continuation: `[T, ...]`, see the module's docstring. trace: `[T, ...]`,
    c_t of the action taken at t; the first one has no effect.

        R_t = r_t + γ_t (v_{t+1} + c_{t+1} (R_{t+1} − q_{t+1}))

    With c = 0 it is expected Sarsa. For values learnt on a transformed scale, apply h⁻¹ to `q` and
    to each action value in `values` first, and h to the result.
    """
    _assert_transitions(values, reward, discount, continuation)
    _assert_per_transition(values, q=q, trace=trace)

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
