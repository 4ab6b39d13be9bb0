"""Returns and off-policy corrections: pure, unbatched `[T]`, `vmap`ped by callers over `B`.

Index t is the transition t -> t + 1. Two arguments, never one, say what an episode's end does
(seed 003, section on V-trace; Espeholt et al. 2018):

- `discount[t]` = γ (1 − terminated[t + 1]) weighs the bootstrap value of the next observation;
- `continuation[t]` = 0 where t + 1 ends the episode *in any way*, else 1: traces stop there.

A truncated episode therefore bootstraps from the value of its own last observation, a terminated
one from zero, and neither sees the episode that follows.

Returns of state values have two forms (seed 003, "Return recapitulation"). Each function is the
recursive one; `from_td_errors` is the other, with δ = `td_errors(...)`, ρ the ratio π/μ of the
action taken, λ that of the state it leads to, γ the discount and k the continuation:

| return | G, from G' of the next state | errors | decay |
|---|---|---|---|
| `n_step` | r + γ G' | δ | γ k |
| `importance_sampled` | ρ (r + γ G') | | |
| `control_variate` | ρ (r + γ G') + (1 − ρ) V | ρ δ | γ k ρ |
| `lambda_return` | (1 − λ) (r + γ V') + λ (r + γ G') | δ | γ k λ |
| `off_policy_lambda` | ρ ((1 − λ) (r + γ V') + λ (r + γ G')) + (1 − ρ) V | ρ δ | γ k λ ρ |
| `vtrace` | `vtrace_as_control_variate` | min(ρ̄, ρ) δ | γ k λ min(c̄, ρ) |

`gae` is `lambda_return` less V. With `n` they look n rewards ahead, without to the sequence's end.
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
    # Of a row whose next one begins an episode that no flag announced, nothing goes on, either.
    followed = jnp.concatenate([weight[1:], jnp.ones_like(weight[:1])])
    return Transitions(
        reward=timestep.reward[1:] * weight,
        discount=gamma * (1.0 - timestep.terminated[1:].astype(jnp.float32)),
        continuation=(1.0 - ended.astype(jnp.float32)) * weight * followed,
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
    leak: Array | float = 0.0,
) -> VTrace:
    """V-trace targets by backward recursion (Espeholt et al. 2018, eq. 1 and remark 1).

    values: `[T + 1]`, V of each row, the last one being the bootstrap.
    reward, discount, continuation: `[T]`, see the module's docstring.
    ratio: `[T]`, π(a_t|x_t) / μ(a_t|x_t), at least 0; a ratio of 0 leaves a transition out.
    rho_bar, c_bar: truncation levels (the fixed point, and the speed); infinity is allowed.
    lambda_: shortens traces, c_i = λ min(c̄, ratio_i) (remark 2).
    leak: how much of the untruncated ratio both levels let through, `(1 - leak) min(level, ratio)
    + leak ratio`; 1 − α of leaky V-trace (Zahavy et al. 2020, eq. 6). The fixed point moves towards
    the value of π, and the variance grows.

        v_s = V(x_s) + ρ_s δ_s + γ_s c_s (v_{s+1} − V(x_{s+1}))
        δ_s = r_s + γ_s V(x_{s+1}) − V(x_s)

    No gradient flows through the result.
    """
    v_t, v_tp1 = values[:-1], values[1:]
    leaked = jnp.where(leak > 0, leak * ratio, 0.0)  # a ratio may be infinite
    rho = (1.0 - leak) * jnp.minimum(rho_bar, ratio) + leaked
    c = (1.0 - leak) * jnp.minimum(c_bar, ratio) + leaked
    errors = rho * td_errors(values, reward, discount)
    targets = from_td_errors(values, errors, discount * continuation * lambda_ * c)
    # The policy gradient looks ahead with v_{s+1}, the target, not V(x_{s+1}) (section 4.2);
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
    """V-trace's targets in the notation of control variates, `[T]`; arguments as of `vtrace`.

    They are off-policy traces with the ratio ρ_t = min(ρ̄, ratio_t) and λ_{t+1} = λ c_t / ρ_t: of
    a product of ratios only the last one corrects, the others are traces (seed 003, "V-trace
    analysis").
    """
    rho, c = jnp.minimum(rho_bar, ratio), jnp.minimum(c_bar, ratio)
    # Where the ratio is 0 nothing is ahead of the control variate, whatever λ.
    going_on = lambda_ * c / jnp.where(rho > 0, rho, 1.0)
    return off_policy_lambda(values, reward, discount, continuation, rho, going_on, n=n)


def td_errors(values: Array, reward: Array, discount: Array) -> Array:
    """δ_t = r_t + γ_t V(x_{t+1}) − V(x_t), `[T]`, for values `[T + 1]`."""
    return reward + discount * values[1:] - values[:-1]


def from_td_errors(values: Array, errors: Array, decay: Array, *, n: int | None = None) -> Array:
    """A return as the value and a sum of TD errors, `[T]`: any of the module's table.

        G_t = V(x_t) + Σ_{i<n} (Π_{j<i} decay_{t+j}) errors_{t+i}

    values: `[T + 1]`. errors, decay: `[T]`. n: terms of the sum, at most those up to the end of the
    sequence (None). Raises ValueError if `n` is below 1.
    """
    return values[:-1] + _recursion(errors, decay, jnp.zeros_like(values), n)


def _recursion(
    now: Array,
    going_on: Array,
    bootstrap: Array,
    n: int | None,
    continuation: Array | float = 1.0,
) -> Array:
    """G_t = now_t + going_on_t G', `[T]`: what every return of the module's table is.

    G' is that of t + 1, or `bootstrap[t + 1]`: n − 1 steps on, at the sequence's end, and where the
    continuation is 0. bootstrap: `[T + 1]`.
    """
    if n is not None and n < 1:
        raise ValueError(f"`n` is {n}; a return has at least one reward.")
    now = now + going_on * (1.0 - continuation) * bootstrap[1:]
    going_on = going_on * continuation
    if n is None:

        def backward(following: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
            found = x[0] + x[1] * following
            return found, found

        return jax.lax.scan(backward, bootstrap[-1], (now, going_on), reverse=True)[1]
    found = now + going_on * bootstrap[1:]
    for _ in range(n - 1):
        found = now + going_on * jnp.concatenate([found[1:], bootstrap[-1:]])
    return found


def n_step(
    values: Array, reward: Array, discount: Array, continuation: Array, *, n: int | None = None
) -> Array:
    """Returns of n rewards and the value of where they lead, `[T]`.

        G_{t:t+n} = r_t + γ_t G_{t+1:t+n}

    values: `[T + 1]`, of each row; with `double_q` and n = 5 these are R2D2's targets. Where an
    episode or the sequence ends sooner, fewer rewards are summed; None: only there. reward,
    discount, continuation: `[T]`, see the module's docstring. Raises ValueError if `n` is below 1.
    """
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
    """Off-policy n-step returns by importance sampling alone, `[T]`: unbiased, of any variance.

        G_{t:t+n} = ρ_t (r_t + γ_t G_{t+1:t+n})

    ratio: `[T]`, π(a_t|x_t) / μ(a_t|x_t); the other arguments are those of `n_step`.
    """
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
    """Off-policy n-step returns with a control variate, `[T]`: where the ratio is 0 they are V(x_t)
    instead of 0, which leaves the expectation and lowers the variance (De Asis and Sutton 2018).

        G_{t:t+n} = ρ_t (r_t + γ_t G_{t+1:t+n}) + (1 − ρ_t) V(x_t)

    Arguments as of `importance_sampled`.
    """
    now = ratio * reward + (1.0 - ratio) * values[:-1]
    return _recursion(now, ratio * discount, values, n, continuation)


def lambda_return(
    values: Array,
    reward: Array,
    discount: Array,
    continuation: Array,
    lambda_: Array | float,
    *,
    n: int | None = None,
) -> Array:
    """λ-returns, truncated after n rewards, `[T]` (Sutton and Barto 2018, eq. 12.2 and 12.9).

        G_{t:t+n} = (1 − λ_{t+1}) (r_t + γ_t V(x_{t+1})) + λ_{t+1} (r_t + γ_t G_{t+1:t+n})

    lambda_: one for all, or `[T]`, in place t that of the state which transition t leads to. The
    other arguments are those of `n_step`.
    """
    now = reward + (1.0 - lambda_) * discount * values[1:]
    return _recursion(now, lambda_ * discount, values, n, continuation)


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
    """λ-returns of n-step returns with control variates, `[T]` (seed 003, "Off-policy traces").

        G_{t:t+n} = (1 − λ_{t+1}) G^CV_{t:t+1} + λ_{t+1} (ρ_t (r_t + γ_t G_{t+1:t+n})
                                                        + (1 − ρ_t) V(x_t))

    where G^CV is `control_variate`. ratio: as of `importance_sampled`; lambda_: as
    of `lambda_return`.
    """
    v_t, v_tp1 = values[:-1], values[1:]
    one = ratio * (reward + discount * v_tp1) + (1.0 - ratio) * v_t
    more = ratio * reward + (1.0 - ratio) * v_t  # without what follows
    now = (1.0 - lambda_) * one + lambda_ * more
    return _recursion(now, lambda_ * ratio * discount, values, n, continuation)


def gae(
    values: Array,
    reward: Array,
    discount: Array,
    continuation: Array,
    lambda_: Array | float,
    *,
    n: int | None = None,
) -> Array:
    """Generalised advantage estimates, `[T]` (Schulman et al. 2016, eq. 16): the λ-return less V.

        A_t = δ_t + γ_t k_t λ_{t+1} A_{t+1}

    Arguments as of `lambda_return`.
    """
    decay = discount * continuation * lambda_
    return _recursion(td_errors(values, reward, discount), decay, jnp.zeros_like(values), n)


def td_lambda(
    weights: Array,
    features: Array,
    reward: Array,
    discount: Array,
    *,
    step_size: Array | float,
    lambda_: Array | float,
    trace: str = "accumulating",
    online: bool = True,
) -> Array:
    """TD(λ), the backward view, over an episode with a linear value function: the weights after it.

    weights: `[d]`. features: `[T + 1, d]`, one-hot for a table. reward, discount: `[T]`, the last
    transition's discount being 0 if it is terminal. Every step moves what the trace remembers:

        e_t = γ_{t-1} λ e_{t-1} + x_t,  w += α δ_t e_t

    (Sutton and Barto 2018, section 12.2). Without `online` the weights stand still until the end,
    and together the steps are exactly those of the λ-return, Σ_t α (G_t − V(x_t)) x_t. With
    `trace="dutch"` it is true online TD(λ) (van Seijen et al. 2016, algorithm 1; Sutton and Barto,
    section 12.5), whose weights after every step are those of the online λ-return algorithm, which
    does all earlier steps again with each new reward; it is always online. Raises ValueError for
    another `trace`.
    """
    if trace not in ("accumulating", "dutch"):
        raise ValueError(f"`trace` is {trace!r}; expected 'accumulating' or 'dutch'.")
    dutch = trace == "dutch"

    def step(state: tuple[Array, ...], x: tuple[Array, ...]) -> tuple[tuple[Array, ...], None]:
        w, e, v_old, faded = state
        x_t, x_tp1, reward_t, discount_t = x
        at = w if online or dutch else weights
        v_t, v_tp1 = at @ x_t, at @ x_tp1
        delta = reward_t + discount_t * v_tp1 - v_t
        e = faded * e + (1.0 - dutch * step_size * faded * (e @ x_t)) * x_t
        w = w + step_size * delta * e
        if dutch:
            w = w + step_size * (v_t - v_old) * (e - x_t)
        return (w, e, v_tp1, discount_t * lambda_), None

    begin = (weights, jnp.zeros_like(weights), weights @ features[0], jnp.zeros(()))
    (w, *_), _ = jax.lax.scan(step, begin, (features[:-1], features[1:], reward, discount))
    return w


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
