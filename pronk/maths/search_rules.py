"""How a tree search chooses its edges, and what follows from its visits: PUCT, and Gumbel MuZero.

[S20] Schrittwieser et al. 2020, "Mastering Atari, Go, chess and shogi by planning with a learned
model" (arXiv:1911.08265), appendix B; [D22] Danihelka et al. 2022, "Policy improvement by planning
with Gumbel", sections 3 to 5 and appendices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pronk.types import Array, Key

MASKED = -1e9  # the logit of a forbidden action

C1, C2 = 1.25, 19652.0  # [S20, eq. 2]
VISIT_OFFSET = 50.0  # [D22] c_visit


class Edges(NamedTuple):
    """The actions of a node in each of B trees, `[B, A]`."""

    prior: Array  # what the rule makes of the policy's logits
    visits: Array  # float32
    total: Array  # the sum of the returns of its simulations; total / visits is its value Q


class Rule(Protocol):
    """A kind of search."""

    def prior(self, logits: Array) -> Array:
        """What `Edges.prior` is, `[B, A]`, of the policy's logits."""
        ...

    def select(self, edges: Edges, value: Array, low: Array, high: Array, at_root: Array) -> Array:
        """The action of each node, int32 `[B]`. value: `[B]` as the network has it; low, high:
        `[B]`, the bounds of the values of the tree's edges; at_root: bool []."""
        ...

    def decide(
        self, edges: Edges, value: Array, explores: Array, temperature: Array | float, key: Key
    ) -> tuple[Array, Array]:
        """The policy `[B, A]` that a search has led to, of its roots' edges and values `[B]`, and
        the action to take, int32 `[B]`."""
        ...


@dataclass(frozen=True)
class Puct:
    """The prior's upper confidence bound [S20, eq. 2], of values scaled over the tree [S20, eq. 5].

    N(s) counts the node's own visit, so that the first choice follows the prior; the paper's
    pseudocode lacks it at the root alone. An unvisited action has the value 0, the smallest.
    """

    mask: Array  # bool [B, A], allowed at the root

    def prior(self, logits: Array) -> Array:
        """Probabilities; below 0 where forbidden, so that no other action is worse."""
        return jnp.where(logits <= MASKED, -1.0, jax.nn.softmax(logits))

    def select(self, edges: Edges, value: Array, low: Array, high: Array, at_root: Array) -> Array:
        """argmax_a Q̄(s, a) + P(s, a) √N(s) / (1 + N(s, a)) (c₁ + log((N(s) + c₂ + 1) / c₂))."""
        del value, at_root
        count = 1.0 + edges.visits.sum(axis=-1, keepdims=True)
        spread = jnp.where(high > low, high - low, jnp.inf)[:, None]
        mean = edges.total / jnp.maximum(edges.visits, 1.0)
        scaled = jnp.where(edges.visits > 0, (mean - low[:, None]) / spread, 0.0)
        factor = jnp.sqrt(count) * (C1 + jnp.log((count + C2 + 1.0) / C2))
        bound = scaled + factor * edges.prior / (1.0 + edges.visits)
        return jnp.argmax(bound, axis=-1).astype(jnp.int32)

    def decide(
        self, edges: Edges, value: Array, explores: Array, temperature: Array | float, key: Key
    ) -> tuple[Array, Array]:
        """The visits' shares, and an action drawn from them."""
        del value
        policy = edges.visits / edges.visits.sum(axis=-1, keepdims=True)
        return policy, draw(policy, explores, temperature, key)


@dataclass(frozen=True)
class Gumbel:
    """Sequential halving among actions drawn without replacement at the root, and below it the
    action that brings the visits nearest to the improved policy [D22, sections 3 and 5]."""

    mask: Array  # bool [B, A], allowed at the root
    noise: Array  # [B, A], of the Gumbel distribution, 0 for none
    simulations: int
    considered: int
    value_scale: float  # c_scale

    def prior(self, logits: Array) -> Array:
        """The logits."""
        return logits

    def select(self, edges: Edges, value: Array, low: Array, high: Array, at_root: Array) -> Array:
        """See the class."""
        del low, high
        improvement = self.improvement(edges, value)
        count = edges.visits.sum(axis=-1)
        allowed = jnp.minimum(self.mask.sum(axis=-1), self.considered)
        table = jnp.asarray(considered_visits(self.considered, self.simulations))
        turn = jnp.minimum(count.astype(jnp.int32), self.simulations - 1)
        at_root_score = self._score(edges, improvement, table[allowed, turn])
        policy = jax.nn.softmax(edges.prior + improvement)
        below_score = policy - edges.visits / (1.0 + count[:, None])
        score = jnp.where(at_root, at_root_score, below_score)
        return jnp.argmax(score, axis=-1).astype(jnp.int32)

    def decide(
        self, edges: Edges, value: Array, explores: Array, temperature: Array | float, key: Key
    ) -> tuple[Array, Array]:
        """The improved policy, and the best of the actions that were visited most; there is no
        temperature."""
        del explores, temperature, key
        improvement = self.improvement(edges, value)
        policy = jax.nn.softmax(edges.prior + improvement)
        score = self._score(edges, improvement, edges.visits.max(axis=-1))
        return policy, jnp.argmax(score, axis=-1).astype(jnp.int32)

    def _score(self, edges: Edges, improvement: Array, visits: Array) -> Array:
        """g(a) + logits(a) + σ(q(a)) of the root's actions with so many `visits` `[B]`."""
        score = self.noise + edges.prior + improvement
        among = self.mask & (edges.visits == visits[:, None])
        return jnp.where(among, score, -jnp.inf)

    def improvement(self, edges: Edges, value: Array) -> Array:
        """σ(completed q) `[B, A]` [D22, eq. 8 and 33]: values scaled by the smallest and the
        largest of the node; an unvisited action has the mean of the network's value and of the
        visited actions' values, weighted by the prior and the visits."""
        prior = jax.nn.softmax(edges.prior)
        visited = edges.visits > 0
        q = edges.total / jnp.maximum(edges.visits, 1.0)
        count = edges.visits.sum(axis=-1)
        share = jnp.sum(jnp.where(visited, prior, 0.0), axis=-1)
        share = jnp.where(count > 0, jnp.maximum(share, 2.0**-126), 1.0)
        of_visited = jnp.sum(jnp.where(visited, prior * q, 0.0), axis=-1) / share
        mixed = (value + count * of_visited) / (1.0 + count)
        completed = jnp.where(visited, q, mixed[:, None])
        low = completed.min(axis=-1, keepdims=True)
        spread = completed.max(axis=-1, keepdims=True) - low
        scaled = (completed - low) / jnp.maximum(spread, 1e-8)
        return (VISIT_OFFSET + edges.visits.max(axis=-1, keepdims=True)) * self.value_scale * scaled


def bounded(logits: Array) -> Array:
    """The logits, above that of a forbidden action even where a model that has diverged makes them
    infinite or NaN, so that no search chooses one."""
    return jnp.clip(jnp.nan_to_num(logits, nan=0.0), 0.1 * MASKED, -0.1 * MASKED)


def considered_visits(considered: int, simulations: int) -> np.ndarray:
    """How many visits those actions have that take turn t of a root that considers m of them, int32
    `[considered + 1, simulations]`: sequential halving [D22, figure 1].

    The m actions are visited in turn, then the better half of them, and so on, as often as
    ⌈log₂ m⌉ phases share the simulations.
    """
    return np.array([_considered_visits(m, simulations) for m in range(considered + 1)], np.int32)


def _considered_visits(actions: int, simulations: int) -> list[int]:
    if actions <= 1:
        return list(range(simulations))
    phases = int(np.ceil(np.log2(actions)))
    turns: list[int] = []
    visits, left = [0] * actions, actions
    while len(turns) < simulations:
        for _ in range(max(1, simulations // (phases * left))):
            turns += visits[:left]
            visits[:left] = [n + 1 for n in visits[:left]]
        left = max(2, left // 2)
    return turns[:simulations]


def draw(policy: Array, explores: Array, temperature: Array | float, key: Key) -> Array:
    """Actions, int32 `[B]`, in proportion to policy^(1/T) `[B, A]`; the most probable where a slot
    does not explore, or T is 0."""
    temperature = jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), explores.shape)
    warm = explores & (temperature >= jnp.finfo(jnp.float32).tiny)
    # With a small T the others may become −∞, but not the most probable action.
    relative = policy / policy.max(axis=-1, keepdims=True)
    logits = jnp.log(relative) / jnp.where(warm, temperature, 1.0)[:, None]
    drawn = jax.random.categorical(key, logits)
    return jnp.where(warm, drawn, jnp.argmax(policy, axis=-1)).astype(jnp.int32)


def add_noise(prior: Array, mask: Array, fraction: Array, alpha: float, key: Key) -> Array:
    """(1 − f) p + f η for a prior p `[B, A]`, η ~ Dirichlet(α) over the allowed actions, and f
    `[B]` [S20, appendix C]."""
    gamma = jnp.where(mask, jax.random.gamma(key, alpha, prior.shape), 0.0)
    # With a small α, all of the draws can be 0 in float32.
    total = jnp.sum(gamma, axis=-1, keepdims=True)
    uniform = mask / jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)
    noise = jnp.where(total > 0, gamma / jnp.where(total > 0, total, 1.0), uniform)
    return (1.0 - fraction[:, None]) * prior + fraction[:, None] * noise
