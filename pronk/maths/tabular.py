"""Small Markov decision processes, solved exactly in float64, to check the theory of returns.

S states, A actions; policies are `[S, A]`, values `[S]`. NumPy only. Functions raise ValueError for
arrays whose shapes do not fit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pronk.maths.shapes import assert_rank, assert_same_shape, assert_shape
from pronk.types import Array


class Mdp(NamedTuple):
    """A Markov decision process without terminal states."""

    transition: Array  # [S, A, S], p(x'|x, a)
    reward: Array  # [S, A], expected
    discount: float

    def value(self, policy: Array) -> Array:
        """V of a policy, `[S]`: the solution of its Bellman equation."""
        assert_shape(np.shape(self.reward), "that of `reward`", policy=policy)
        chain = np.einsum("sa,sax->sx", policy, self.transition)
        reward = (policy * self.reward).sum(1)
        return np.linalg.solve(np.eye(len(chain)) - self.discount * chain, reward)

    def walk(
        self, policy: Array, rng: np.random.Generator, state: int, walks: int, steps: int
    ) -> tuple[Array, Array]:
        """Sample `walks` trajectories of `policy` from `state`: states `[walks, steps + 1]` and
        actions `[walks, steps]`."""
        assert_shape(np.shape(self.reward), "that of `reward`", policy=policy)
        states, actions = np.full((walks, steps + 1), state), np.zeros((walks, steps), int)
        for t in range(steps):
            actions[:, t] = _draw(rng, policy[states[:, t]])
            states[:, t + 1] = _draw(rng, self.transition[states[:, t], actions[:, t]])
        return states, actions


def _draw(rng: np.random.Generator, odds: Array) -> Array:
    """Sample an index for each row of probabilities `odds` `[n, k]`."""
    return (odds.cumsum(1) > rng.uniform(size=(len(odds), 1)) * odds.sum(1)[:, None]).argmax(1)


def random_mdp(rng: np.random.Generator, states: int, actions: int, discount: float) -> Mdp:
    """An MDP with transitions from a Dirichlet and rewards from a normal distribution."""
    transition = rng.dirichlet(np.ones(states), size=(states, actions))
    return Mdp(transition, rng.normal(size=(states, actions)), discount)


def random_policy(rng: np.random.Generator, states: int, actions: int) -> Array:
    """A policy from a Dirichlet distribution, `[S, A]`; every action has a positive probability."""
    return rng.dirichlet(np.ones(actions), size=states)


def truncated_policy(pi: Array, mu: Array, rho_bar: float) -> Array:
    """π_ρ̄ ∝ min(ρ̄ μ, π), `[S, A]`, the policy V-trace evaluates (Espeholt et al. 2018, eq. 3)."""
    assert_rank(2, pi=pi)
    assert_same_shape(pi=pi, mu=mu)
    clipped = np.minimum(rho_bar * mu, pi)
    return clipped / clipped.sum(1, keepdims=True)


class VTraceOperator:
    """V-trace's operator R on an MDP, over trajectories of any length (Espeholt et al. 2018, A.1).

    R V(x) = V(x) + E_μ[Σ_t γ^t (Π_{i<t} c_i) ρ_t (r_t + γ V(x_{t+1}) − V(x_t))] is affine in V:
    the sum over all trajectories is the inverse of a matrix.
    """

    def __init__(self, mdp: Mdp, pi: Array, mu: Array, *, rho_bar: float, c_bar: float):
        assert_shape(np.shape(mdp.reward), "that of the MDP's rewards", pi=pi, mu=mu)
        ratio, gamma = pi / mu, mdp.discount
        rho, c = np.minimum(rho_bar, ratio), np.minimum(c_bar, ratio)
        identity = np.eye(len(pi))
        traced = np.einsum("sa,sax->sx", mu * c, mdp.transition)
        # Σ_t γ^t (Π c) E[…]: the weight of each later state's error.
        weights = np.linalg.inv(identity - gamma * traced)
        corrected = (mu * rho).sum(1)
        ahead = gamma * np.einsum("sa,sax->sx", mu * rho, mdp.transition)
        self.matrix = identity + weights @ (ahead - np.diag(corrected))
        self.constant = weights @ (mu * rho * mdp.reward).sum(1)
        # 1 − (1 − γ) Σ_t γ^t E[(Π c) ρ_t], in each state: theorem 1's modulus is the largest.
        self.bound = float((1 - (1 - gamma) * weights @ corrected).max())

    def __call__(self, value: Array) -> Array:
        """R V, `[S]`."""
        assert_shape(self.constant.shape, "one per state", value=value)
        return self.constant + self.matrix @ value

    @property
    def fixed_point(self) -> Array:
        """The V with R V = V, `[S]`."""
        return np.linalg.solve(np.eye(len(self.constant)) - self.matrix, self.constant)

    @property
    def modulus(self) -> float:
        """The contraction modulus: max |R V − R W| over V and W with max |V − W| ≤ 1."""
        return float(np.abs(self.matrix).sum(1).max())

    def applications(self, value: Array, within: float) -> int:
        """The number of applications of R to `value` until every state is within `within` of the
        fixed point."""
        goal, count = self.fixed_point, 0
        while np.abs(value - goal).max() > within:
            value, count = self(value), count + 1
        return count


class Walk(NamedTuple):
    """Episodes of a random walk for `td_lambda`, padded with zeros after their ends."""

    features: Array  # [..., T + 1, S]
    reward: Array  # [..., T]
    discount: Array  # [..., T]


def random_walks(rng: np.random.Generator, shape: tuple[int, ...], states: int = 19) -> Walk:
    """Sample `shape` episodes that start in the middle of `states` and step left or right; leaving
    the states ends the episode with reward −1 or 1 (Sutton and Barto 2018, example 7.1)."""
    position = np.full(shape, states // 2)
    visited = [position]
    while ((position >= 0) & (position < states)).any():
        inside = (position >= 0) & (position < states)
        position = position + rng.choice([-1, 1], size=shape) * inside
        visited.append(position)
    path = np.stack(visited, -1)
    inside = (path >= 0) & (path < states)
    ends = inside[..., :-1] & ~inside[..., 1:]
    reward = np.where(ends, np.sign(path[..., 1:]), 0)
    features = path[..., None] == np.arange(states)
    return Walk(
        features.astype(np.float32),
        reward.astype(np.float32),
        (inside[..., :-1] & inside[..., 1:]).astype(np.float32),
    )


def random_walk_values(states: int = 19) -> Array:
    """The values of the random walk's states without discounting, `[states]`."""
    return np.arange(1, states + 1) * 2 / (states + 1) - 1
