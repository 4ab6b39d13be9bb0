"""Policy gradients of small Markov decision processes, exactly, in float64, to check theory.

The policy is π(a|s) ∝ exp(φ(s, a)ᵀ θ) with features φ `[S, A, P]`; indicators of each pair make it
tabular. NumPy only. Functions raise ValueError for arrays whose shapes do not fit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pronk.maths.shapes import assert_shape
from pronk.maths.tabular import Mdp
from pronk.types import Array


class PolicyGradient(NamedTuple):
    """Of the value of a start distribution, at a policy."""

    gradient: Array  # [P], g
    fisher: Array  # [P, P], F
    advantage: Array  # [S, A]
    value: float

    @property
    def natural(self) -> Array:
        """F⁻¹ g, `[P]`; the shortest solution where F is singular."""
        return np.linalg.lstsq(self.fisher, self.gradient, rcond=1e-13)[0]


def softmax(features: Array, params: Array) -> Array:
    """The policy `[S, A]` of parameters `[P]`."""
    assert_shape(np.shape(features)[2:], "one per feature", params=params)
    logits = features @ params
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def indicators(states: int, actions: int) -> Array:
    """The tabular policy's features: a parameter of its own for each state and action."""
    return np.eye(states * actions).reshape(states, actions, -1)


def policy_gradient(mdp: Mdp, features: Array, params: Array, start: Array) -> PolicyGradient:
    """The gradient of Σ start V and the Fisher information (Kakade 2001, eqs. 1 and 2).

    g = E[A ∇log π] / (1 − γ) and F = E[∇log π ∇log πᵀ], over the discounted distribution of states
    and the policy's actions. start: `[S]`.
    """
    policy = softmax(features, params)
    value = mdp.value(policy)
    assert_shape(value.shape, "one per state", start=start)
    chain = np.einsum("sa,sax->sx", policy, mdp.transition)
    visits = np.linalg.solve(np.eye(len(value)) - mdp.discount * chain.T, start)  # Σ γ^t p
    advantage = mdp.reward + mdp.discount * mdp.transition @ value - value[:, None]
    score = features - np.einsum("sa,sap->sp", policy, features)[:, None]
    weight = visits[:, None] * policy
    gradient = np.einsum("sa,sa,sap->p", weight, advantage, score)
    fisher = (1 - mdp.discount) * np.einsum("sa,sap,saq->pq", weight, score, score)
    return PolicyGradient(gradient, fisher, advantage, float(start @ value))
