"""Slow NumPy float64 sums that look like the papers' formulas; what the tests compare against.

Index t is the transition t -> t + 1; `values` has one entry more than the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class VTrace(NamedTuple):
    targets: np.ndarray
    q: np.ndarray
    advantages: np.ndarray


def product(factors: np.ndarray) -> float:
    """Π of the factors, 1 for none."""
    result = 1.0
    for factor in factors:
        result *= factor
    return result


def vtrace(
    values: np.ndarray,
    reward: np.ndarray,
    discount: np.ndarray,
    continuation: np.ndarray,
    ratio: np.ndarray,
    *,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    lambda_: float = 1.0,
) -> VTrace:
    """Espeholt et al. 2018, eq. 1, with a discount and a continuation per step:

    v_s = V(x_s) + Σ_{t=s}^{s+n-1} (Π_{i=s}^{t-1} γ_i k_i c_i) δ_t V
    δ_t V = ρ_t (r_t + γ_t V(x_{t+1}) − V(x_t))
    """
    n = len(reward)
    rho = np.array([min(rho_bar, x) for x in ratio])
    c = np.array([lambda_ * min(c_bar, x) for x in ratio])
    delta = np.array([rho[t] * (reward[t] + discount[t] * values[t + 1] - values[t])
                      for t in range(n)])  # fmt: skip
    decay = discount * continuation * c
    v = np.array([values[s] + sum(product(decay[s:t]) * delta[t] for t in range(s, n))
                  for s in range(n)])  # fmt: skip
    # Section 4.2: q_s = r_s + γ v_{s+1}; beyond the end of a trace there is only V.
    ahead = np.array(
        [v[s + 1] if s + 1 < n and continuation[s] else values[s + 1] for s in range(n)]
    )
    q = reward + discount * ahead
    return VTrace(v, q, rho * (q - values[:-1]))


def n_step_return(
    values: np.ndarray, reward: np.ndarray, discount: np.ndarray, continuation: np.ndarray
) -> np.ndarray:
    """Σ_{t=s}^{e-1} (Π γ) r_t + (Π γ) V(x_e), e the end of s's episode or of the rows."""
    n = len(reward)
    returns = np.zeros(n)
    for s in range(n):
        end = next((t + 1 for t in range(s, n) if not continuation[t]), n)
        returns[s] = sum(product(discount[s:t]) * reward[t] for t in range(s, end))
        returns[s] += product(discount[s:end]) * values[end]
    return returns


def softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def tf_rmsprop(
    param: float,
    gradients: list[float],
    *,
    learning_rate: float,
    decay: float,
    epsilon: float,
) -> float:
    """tf.train.RMSPropOptimizer without momentum: ms starts at 1, ε is inside the root."""
    ms = 1.0
    for g in gradients:
        ms = decay * ms + (1.0 - decay) * g**2
        param -= learning_rate * g / np.sqrt(ms + epsilon)
    return param


def n_rewards(
    values: np.ndarray, reward: np.ndarray, discount: np.ndarray, continuation: np.ndarray, n: int
) -> np.ndarray:
    """Σ_{t=s}^{e-1} (Π γ) r_t + (Π γ) V(x_e), e = s + n, or the end of s's episode or the rows."""
    length = len(reward)
    returns = np.zeros(length)
    for s in range(length):
        last = min(s + n, length)
        end = next((t + 1 for t in range(s, last) if not continuation[t]), last)
        returns[s] = sum(product(discount[s:t]) * reward[t] for t in range(s, end))
        returns[s] += product(discount[s:end]) * values[end]
    return returns


def off_policy(
    q: np.ndarray,
    values: np.ndarray,
    reward: np.ndarray,
    discount: np.ndarray,
    continuation: np.ndarray,
    trace: np.ndarray,
) -> np.ndarray:
    """Munos et al. 2016, eq. 3, with a discount and a continuation per step:

    q(x_s, a_s) + Σ_{t≥s} (Π_{i=s}^{t-1} γ_i k_i c_{i+1}) δ_t
    δ_t = r_t + γ_t E_π q(x_{t+1}, ·) − q(x_t, a_t)
    """
    n = len(reward)
    delta = reward + discount * values[1:] - q
    decay = discount[:-1] * continuation[:-1] * trace[1:]
    return np.array(
        [q[s] + sum(product(decay[s:t]) * delta[t] for t in range(s, n)) for s in range(n)]
    )


def horizon(continuation: np.ndarray, s: int, n: int | None) -> int:
    """The row where a return of n rewards from s bootstraps: sooner if the episode or rows end."""
    last = len(continuation) if n is None else min(s + n, len(continuation))
    return next((t + 1 for t in range(s, last) if not continuation[t]), last)


def importance_sampled(values, reward, discount, continuation, ratio, n) -> np.ndarray:
    """Σ_t (Π γ) (Π ρ) r_t + (Π γ) (Π ρ) V, the ratios up to and with t."""
    returns = np.zeros(len(reward))
    for s in range(len(reward)):
        end = horizon(continuation, s, n)
        returns[s] = sum(
            product(discount[s:t]) * product(ratio[s : t + 1]) * reward[t] for t in range(s, end)
        )
        returns[s] += product(discount[s:end]) * product(ratio[s:end]) * values[end]
    return returns


def control_variate(values, reward, discount, continuation, ratio, n) -> np.ndarray:
    """The importance-sampled return, and for every step (Π γ) (Π ρ before it) (1 − ρ_t) V_t."""
    returns = importance_sampled(values, reward, discount, continuation, ratio, n)
    for s in range(len(reward)):
        for t in range(s, horizon(continuation, s, n)):
            returns[s] += product((discount * ratio)[s:t]) * (1 - ratio[t]) * values[t]
    return returns


def average_of_returns(returns_of, continuation, lambda_, n) -> np.ndarray:
    """Σ_i (1 − λ_{s+i}) (Π λ before) G_{s:s+i} + (Π λ) G_{s:end}: λ-returns as they are defined.

    returns_of: (i) -> the i-step returns `[T]`. lambda_: `[T]`, λ_{t+1} in place t.
    """
    length = len(continuation)
    by_length = [returns_of(i) for i in range(1, length + 1)]
    result = np.zeros(length)
    for s in range(length):
        steps = horizon(continuation, s, n) - s
        for i in range(1, steps):
            weight = (1 - lambda_[s + i - 1]) * product(lambda_[s : s + i - 1])
            result[s] += weight * by_length[i - 1][s]
        result[s] += product(lambda_[s : s + steps - 1]) * by_length[steps - 1][s]
    return result


def sum_of_td_errors(values, errors, decay, n) -> np.ndarray:
    """V_s + Σ_{i<n} (Π_{j<i} decay) errors."""
    length = len(errors)
    return np.array([
        values[s] + sum(product(decay[s:t]) * errors[t]
                        for t in range(s, length if n is None else min(s + n, length)))
        for s in range(length)
    ])  # fmt: skip


def online_lambda_return(weights, features, reward, discount, step_size, lambda_) -> np.ndarray:
    """Sutton and Barto 2018, section 12.4: with each new reward, all updates of the episode are
    done again from its beginning, towards λ-returns truncated there; bootstrapping from the weights
    that there were then."""
    history = [weights]  # after each horizon
    for h in range(1, len(reward) + 1):
        w = weights
        for t in range(h):
            target, decay = 0.0, 1.0
            # G = Σ (1 − λ) λ^{i−1} G_i + λ^{h−t−1} G_{h−t}, each bootstrapping from its own weights
            for i in range(1, h - t + 1):
                value = sum(product(discount[t:u]) * reward[u] for u in range(t, t + i))
                value += product(discount[t : t + i]) * (history[t + i - 1] @ features[t + i])
                last = i == h - t
                target += decay * (1 if last else 1 - lambda_) * value
                decay *= lambda_
            w = w + step_size * (target - w @ features[t]) * features[t]
        history.append(w)
    return history[-1]
