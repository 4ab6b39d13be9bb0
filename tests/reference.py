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
