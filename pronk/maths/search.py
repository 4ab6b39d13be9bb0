"""Monte Carlo tree search in a learnt model: PUCT as MuZero has it, or Gumbel MuZero's.

[S20] Schrittwieser et al. 2020, "Mastering Atari, Go, chess and shogi by planning with a learned
model" (arXiv:1911.08265), appendix B and pseudocode; [D22] Danihelka et al. 2022, "Policy
improvement by planning with Gumbel" (in `pronk.maths.search_rules`).

B trees grow side by side, a node each per simulation. Arrays have the nodes first, `[N, B, ...]`,
so that each simulation writes one row of them, in place. A simulation goes down in all trees until
the deepest has arrived: cap the depth where single lines go deep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from pronk.maths import search_rules as rules
from pronk.maths.search_rules import Edges
from pronk.maths.shapes import assert_shape
from pronk.types import Array, Key, PyTree


class Root(NamedTuple):
    """What the model says of the states from which a search starts, `[B, ...]`."""

    state: PyTree
    logits: Array  # [B, A], of the policy
    value: Array  # [B]


class Prediction(NamedTuple):
    """What the model says of a step, `[B, ...]`."""

    state: PyTree  # after it
    reward: Array  # [B]
    logits: Array  # [B, A], of the policy after it
    value: Array  # [B], after it; of the side that moves then


Model: TypeAlias = "Callable[[PyTree, Array], Prediction]"  # (state [B, ...], action int32 [B])


class Settings(NamedTuple):
    """How to search."""

    algorithm: str = "puct"  # or "gumbel"
    simulations: int = 50  # 0: the prior alone decides
    max_depth: int = 0  # steps from the root; 0: as many as simulations
    dirichlet_alpha: float = 0.25
    dirichlet_fraction: float = 0.25
    value_bound: float = 0.0  # values are in ± this, as the pseudocode's known bounds; 0: unknown
    considered: int = 16  # [D22] actions that the root considers
    value_scale: float = 0.1  # [D22] c_scale

    @property
    def depth(self) -> int:
        """The largest number of steps from the root."""
        return min(self.max_depth or self.simulations, self.simulations)


class SearchResult(NamedTuple):
    """What a search returns for B roots."""

    action: Array  # int32 [B]
    policy: Array  # [B, A]: the visits' shares, or Gumbel MuZero's improved policy
    value: Array  # [B], of the root: the mean of its own value and of all returns
    depth: Array  # int32 [B], the most steps that a simulation went from the root
    visits: Array  # [B, A], of the root's actions


class _Trees(NamedTuple):
    """B trees of up to N nodes; node 0 is the root, and node i comes with simulation i."""

    child: Array  # int32 [N, B, A], the node that an action leads to; 0 where unvisited
    edges: Edges  # leaves [N, B, A]
    reward: Array  # [N, B], of the step into a node
    value: Array  # [N, B], as the network has it
    state: PyTree  # [N, B, ...]
    low: Array  # [B], the smallest and the largest value of all edges, ever, or the known bounds
    high: Array  # [B]
    depth: Array  # int32 [B]


class _Path(NamedTuple):
    """The edges of one simulation in each tree, from the root down, D at most."""

    node: Array  # int32 [D, B]
    action: Array  # int32 [D, B]
    below: Array  # int32 [D, B], the node after the action
    length: Array  # int32 [B]


def search(
    settings: Settings,
    model: Model,
    root: Root,
    discount: Array | float,
    key: Key,
    *,
    mask: Array | None = None,
    explores: Array | None = None,
    temperature: Array | float = 1.0,
) -> SearchResult:
    """Search from the roots.

    discount: γ, or −γ where the next state's value is the other side's. mask: bool `[B, A]`, the
    allowed actions of the roots; deeper in the tree the model's policy alone says what is allowed.
    explores: bool `[B]`; where it is False there is no noise, and the action is the one with most
    visits (PUCT), or that of the improved policy (Gumbel). temperature: `[B]` or a scalar T; PUCT
    draws actions in proportion to visits^(1/T), Gumbel MuZero has none.
    """
    batch, actions = root.logits.shape
    assert_shape((batch,), "one per root", value=root.value)
    allowed: Array = jnp.ones((batch, actions), bool) if mask is None else mask
    exploring: Array = jnp.ones(batch, bool) if explores is None else explores
    noise_key, action_key = jax.random.split(key)
    logits = jnp.where(allowed, rules.bounded(root.logits), rules.MASKED)
    if not settings.simulations:
        policy = jax.nn.softmax(logits)
        action = rules.draw(policy, exploring, temperature, action_key)
        none = jnp.zeros(batch, jnp.int32)
        return SearchResult(action, policy, root.value, none, jnp.zeros_like(logits))
    rule: rules.Rule
    if settings.algorithm == "gumbel":
        gumbel = exploring[:, None] * jax.random.gumbel(noise_key, logits.shape)
        sizes = settings.simulations, min(settings.considered, actions)
        rule = rules.Gumbel(allowed, gumbel, *sizes, settings.value_scale)
    else:
        fraction = jnp.where(exploring, settings.dirichlet_fraction, 0.0)
        prior = jax.nn.softmax(logits)
        prior = rules.add_noise(prior, allowed, fraction, settings.dirichlet_alpha, noise_key)
        rule, logits = rules.Puct(allowed), jnp.where(allowed, jnp.log(prior), rules.MASKED)
    trees = _grow(settings, rule, model, root._replace(logits=logits), discount)
    at_root = jax.tree.map(lambda x: x[0], trees.edges)
    visits, total = at_root.visits, at_root.total
    value = (root.value + total.sum(axis=-1)) / (1.0 + visits.sum(axis=-1))
    policy, action = rule.decide(at_root, root.value, exploring, temperature, action_key)
    return SearchResult(action, policy, value, trees.depth, visits)


def _grow(
    settings: Settings, rule: rules.Rule, model: Model, root: Root, discount: Array | float
) -> _Trees:
    """Trees after all simulations."""
    trees = _plant(rule, root, settings.simulations + 1, settings.value_bound or -jnp.inf)

    def simulate(i: Array, trees: _Trees) -> _Trees:
        path, parent, action = _descend(rule, trees, i, settings.depth)
        step = model(_rows(trees.state, parent), action)
        trees = _expand(rule, trees, i, parent, action, step)
        return _backup(trees, path, step.value, discount)

    return jax.lax.fori_loop(1, settings.simulations + 1, simulate, trees)


def _plant(rule: rules.Rule, root: Root, nodes: int, bound: float) -> _Trees:
    batch, actions = root.logits.shape

    def rows(x: Array) -> Array:
        return jnp.zeros((nodes, *x.shape), x.dtype).at[0].set(x)

    zeros = jnp.zeros((nodes, batch, actions))
    high = jnp.full(batch, bound)
    return _Trees(
        child=jnp.zeros((nodes, batch, actions), jnp.int32),
        edges=Edges(rows(rule.prior(root.logits)), zeros, zeros),
        reward=jnp.zeros((nodes, batch)),
        value=rows(root.value),
        state=jax.tree.map(rows, root.state),
        low=-high,
        high=high,
        depth=jnp.zeros(batch, jnp.int32),
    )


def _rows(x: PyTree, node: Array) -> PyTree:
    """The rows of `node` int32 `[B]` in leaves `[N, B, ...]`: `[B, ...]`."""
    return jax.tree.map(lambda x: x[node, jnp.arange(node.shape[0])], x)


def _descend(rule: rules.Rule, trees: _Trees, new: Array, depth: int) -> tuple[_Path, Array, Array]:
    """The way from the roots to actions without a node, or of `depth` steps; and the last node and
    action of each tree. `new`: the number of the node to come."""
    batch = trees.low.shape[0]
    slots = jnp.arange(batch)
    none = jnp.zeros((depth, batch), jnp.int32)

    def goes_on(carried: tuple[Array, ...]) -> Array:
        return carried[1].any()

    def down(carried: tuple[Array, ...]) -> tuple[Array, ...]:
        level, active, node, action, nodes, actions, below, length = carried
        edges = jax.tree.map(lambda x: x[node, slots], trees.edges)
        chosen = rule.select(edges, _rows(trees.value, node), trees.low, trees.high, level == 0)
        action = jnp.where(active, chosen, action)
        child = trees.child[node, slots, action]
        last = (child == 0) | (level + 1 >= depth)
        child = jnp.where(child == 0, new, child)

        def put(x: Array, row: Array) -> Array:
            row = jnp.where(active, row, 0)
            return jax.lax.dynamic_update_index_in_dim(x, row, level, axis=0)

        nodes, actions, below = put(nodes, node), put(actions, action), put(below, child)
        length = length + active
        active = active & ~last
        node = jnp.where(active, child, node)
        return level + 1, active, node, action, nodes, actions, below, length

    zeros = jnp.zeros(batch, jnp.int32)
    start = jnp.int32(0), jnp.ones(batch, bool), zeros, zeros, none, none, none, zeros
    _, _, node, action, *path = jax.lax.while_loop(goes_on, down, start)
    return _Path(*path), node, action


def _expand(
    rule: rules.Rule, trees: _Trees, new: Array, parent: Array, action: Array, step: Prediction
) -> _Trees:
    """Write the nodes number `new` of all trees. Where the limit of the depth stopped a simulation
    at an action that has a node, this one stays without a parent: the node is the same."""

    def put(x: Array, row: Array) -> Array:
        return jax.lax.dynamic_update_index_in_dim(x, row.astype(x.dtype), new, axis=0)

    here = (jnp.arange(trees.reward.shape[0])[:, None] == parent)[..., None]
    here &= action[:, None] == jnp.arange(trees.child.shape[-1])
    prior = put(trees.edges.prior, rule.prior(step.logits))
    return trees._replace(
        child=jnp.where(here & (trees.child == 0), new, trees.child),
        edges=trees.edges._replace(prior=prior),
        reward=put(trees.reward, step.reward),
        value=put(trees.value, step.value),
        state=jax.tree.map(put, trees.state, step.state),
    )


def _backup(trees: _Trees, path: _Path, value: Array, discount: Array | float) -> _Trees:
    """Add the return of each simulation, whose last node has `value` `[B]`, to its edges."""
    depth, batch = path.node.shape
    slots = jnp.arange(batch)
    on_path = jnp.arange(depth)[:, None] < path.length
    reward = trees.reward[path.below, slots]

    def up(later: Array, level: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, here = level
        later = jnp.where(here, reward + discount * later, later)
        return later, later

    _, returns = jax.lax.scan(up, value, (reward, on_path), reverse=True, unroll=min(depth, 8))
    # Products with one-hot vectors: on CPUs, writing to single elements in a loop is slow.
    nodes, _, actions = trees.child.shape
    at_node = ((jnp.arange(nodes) == path.node[..., None]) & on_path[..., None]).astype(jnp.float32)
    at_action = (jnp.arange(actions) == path.action[..., None]).astype(jnp.float32)
    visits = trees.edges.visits + jnp.einsum("dbn,dba->nba", at_node, at_action)
    total = trees.edges.total + jnp.einsum("dbn,dba->nba", at_node, at_action * returns[..., None])
    edge = path.node, slots, path.action
    mean = total[edge] / jnp.maximum(visits[edge], 1.0)
    return trees._replace(
        edges=trees.edges._replace(visits=visits, total=total),
        low=jnp.minimum(trees.low, jnp.where(on_path, mean, jnp.inf).min(axis=0)),
        high=jnp.maximum(trees.high, jnp.where(on_path, mean, -jnp.inf).max(axis=0)),
        depth=jnp.maximum(trees.depth, path.length),
    )
