"""Small Markov processes, exactly, in float64: what the theory of the returns is checked on.

S states, A actions; policies are `[S, A]`, values `[S]`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pronk.types import Array


class Mdp(NamedTuple):
    """A Markov decision process that never ends."""

    transition: Array  # [S, A, S], p(x'|x, a)
    reward: Array  # [S, A], expected
    discount: float

    def value(self, policy: Array) -> Array:
        """V of a policy: the solution of its Bellman equation."""
        chain = np.einsum("sa,sax->sx", policy, self.transition)
        reward = (policy * self.reward).sum(1)
        return np.linalg.solve(np.eye(len(chain)) - self.discount * chain, reward)

    def walk(
        self, policy: Array, rng: np.random.Generator, state: int, walks: int, steps: int
    ) -> tuple[Array, Array]:
        """States `[walks, steps + 1]` and actions `[walks, steps]` of `policy` from `state` on."""
        states, actions = np.full((walks, steps + 1), state), np.zeros((walks, steps), int)
        for t in range(steps):
            actions[:, t] = _draw(rng, policy[states[:, t]])
            states[:, t + 1] = _draw(rng, self.transition[states[:, t], actions[:, t]])
        return states, actions


def _draw(rng: np.random.Generator, odds: Array) -> Array:
    """An index for each row of `odds` `[n, k]`."""
    return (odds.cumsum(1) > rng.uniform(size=(len(odds), 1)) * odds.sum(1)[:, None]).argmax(1)


def random_mdp(rng: np.random.Generator, states: int, actions: int, discount: float) -> Mdp:
    """Each action leads anywhere, with rewards from a normal distribution."""
    transition = rng.dirichlet(np.ones(states), size=(states, actions))
    return Mdp(transition, rng.normal(size=(states, actions)), discount)


def random_policy(rng: np.random.Generator, states: int, actions: int) -> Array:
    """One without an action that is never taken."""
    return rng.dirichlet(np.ones(actions), size=states)


def truncated_policy(pi: Array, mu: Array, rho_bar: float) -> Array:
    """π_ρ̄ ∝ min(ρ̄ μ, π), whose value V-trace finds (Espeholt et al. 2018, eq. 3)."""
    clipped = np.minimum(rho_bar * mu, pi)
    return clipped / clipped.sum(1, keepdims=True)


class VTraceOperator:
    """V-trace's operator R on an MDP, over trajectories of any length (Espeholt et al. 2018, A.1).

    R V(x) = V(x) + E_μ[Σ_t γ^t (Π_{i<t} c_i) ρ_t (r_t + γ V(x_{t+1}) − V(x_t))] is affine in V:
    the sum over all trajectories is the inverse of a matrix.
    """

    def __init__(self, mdp: Mdp, pi: Array, mu: Array, *, rho_bar: float, c_bar: float):
        ratio, gamma = pi / mu, mdp.discount
        rho, c = np.minimum(rho_bar, ratio), np.minimum(c_bar, ratio)
        identity = np.eye(len(pi))
        traced = np.einsum("sa,sax->sx", mu * c, mdp.transition)
        # Σ_t γ^t (Π c) E[…]: how much of each later state's error arrives here.
        arrives = np.linalg.inv(identity - gamma * traced)
        corrected = (mu * rho).sum(1)
        ahead = gamma * np.einsum("sa,sax->sx", mu * rho, mdp.transition)
        self.matrix = identity + arrives @ (ahead - np.diag(corrected))
        self.constant = arrives @ (mu * rho * mdp.reward).sum(1)
        # 1 − (1 − γ) Σ_t γ^t E[(Π c) ρ_t], in each state: theorem 1's modulus is the largest.
        self.bound = float((1 - (1 - gamma) * arrives @ corrected).max())

    def __call__(self, value: Array) -> Array:
        """R V."""
        return self.constant + self.matrix @ value

    @property
    def fixed_point(self) -> Array:
        """The V with R V = V."""
        return np.linalg.solve(np.eye(len(self.constant)) - self.matrix, self.constant)

    @property
    def modulus(self) -> float:
        """The most by which R V and R W can differ where V and W differ by 1 at most."""
        return float(np.abs(self.matrix).sum(1).max())

    def applications(self, value: Array, within: float) -> int:
        """How often R is applied to `value` until no state is further than `within` from the fixed
        point."""
        goal, count = self.fixed_point, 0
        while np.abs(value - goal).max() > within:
            value, count = self(value), count + 1
        return count


class Walk(NamedTuple):
    """Episodes of a random walk for `returns.td_lambda`, with zeros behind their ends."""

    features: Array  # [..., T + 1, S]
    reward: Array  # [..., T]
    discount: Array  # [..., T]


def random_walks(rng: np.random.Generator, shape: tuple[int, ...], states: int = 19) -> Walk:
    """`shape` episodes from the middle of `states`, each step left or right; beyond the ends are
    rewards −1 and 1 (Sutton and Barto 2018, example 7.1)."""
    at = np.full(shape, states // 2)
    visited = [at]
    while ((at >= 0) & (at < states)).any():
        inside = (at >= 0) & (at < states)
        at = at + rng.choice([-1, 1], size=shape) * inside
        visited.append(at)
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
    """The expected sums of rewards, `[states]`."""
    return np.arange(1, states + 1) * 2 / (states + 1) - 1
