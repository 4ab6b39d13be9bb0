"""Random perfect mazes: between any two rooms there is one way without turning back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pronk.types import Array, Key


def generate(key: Key, side: int) -> Array:
    """The free cells of a maze of `side` × `side` rooms, bool `[2 side + 1, 2 side + 1]`.

    Rooms are the cells with odd row and odd column, and a passage is the cell between two rooms:
    `2 side² - 1` cells are free. The passages are the minimum spanning tree of independent random
    weights. This is the distribution of randomised Kruskal mazes: every maze is possible, but they
    are not equally likely, as those of Wilson's algorithm are. Borůvka's algorithm finds the tree
    in at most log₂ side² rounds, each of a few operations on all rooms; Wilson's and depth-first
    search take a step per room or more, each in all of the slots that are reset together.
    """
    weights = _weights(key, side)
    rooms = jnp.arange(side * side, dtype=jnp.int32)

    def joins_more(state: tuple[Array, Array]) -> Array:
        labels, _ = state
        return (labels != labels[0]).any()

    def join(state: tuple[Array, Array]) -> tuple[Array, Array]:
        labels, passages = state
        best = _best(weights, labels, side)
        # Of the rooms at the passages' other ends.
        beyond = jnp.stack([jnp.roll(best, -1), jnp.roll(best, -side)], -1)
        chosen = (weights == best[:, None]) | (weights == beyond)
        return _merged(labels, best, side), passages | chosen

    none = jnp.zeros((side * side, 2), bool)
    _, passages = jax.lax.while_loop(joins_more, join, (rooms, none))
    return _cells(passages.reshape(side, side, 2))


_NONE = np.uint32(2**32 - 1)  # the weight of no passage


def _weights(key: Key, side: int) -> Array:
    """A different weight for each passage, to the right and down from each room: uint32 [rooms, 2].

    The lowest bits are the passage's number, 2 · room + (0 right, 1 down), so no two are equal.
    """
    count = 2 * side * side
    low = np.uint32((1 << (count - 1).bit_length()) - 1)
    bits = jax.random.bits(key, (side * side, 2), jnp.uint32)
    weights = (bits & ~low) | jnp.arange(count, dtype=jnp.uint32).reshape(-1, 2)
    room = np.arange(side * side)
    outside = np.stack([room % side == side - 1, room // side == side - 1], -1)
    return jnp.where(outside, _NONE, weights)


def _best(weights: Array, labels: Array, side: int) -> Array:
    """The least weight of a passage out of each room's component, uint32 [rooms]."""
    least = jnp.full(side * side, _NONE)
    for axis, stride in enumerate((1, side)):
        # Where a shift wraps around, the weight is that of no passage.
        out = jnp.where(labels != jnp.roll(labels, -stride), weights[:, axis], _NONE)
        least = jnp.minimum(least, jnp.minimum(out, jnp.roll(out, stride)))
    return jax.ops.segment_min(least, labels, side * side)[labels]


def _merged(labels: Array, best: Array, side: int) -> Array:
    """The components joined by the passages `best`. A component's label is one of its rooms."""
    low = np.uint32((1 << (2 * side * side - 1).bit_length()) - 1)
    passage = (best & low).astype(jnp.int32)
    room = passage >> 1
    # In a vmapped loop, mazes that are finished are computed again and discarded; they have no
    # passage to choose, and the numbers of these rooms are too large.
    ends = [labels.at[i].get(mode="clip") for i in (room, room + jnp.where(passage & 1, side, 1))]
    other = jnp.where(ends[0] == labels, ends[1], ends[0])
    # Following `other` ends in two components that chose the same passage; one of them is the root.
    root = (other[other] == labels) & (labels < other)
    other = jnp.where(root, labels, other)
    return jax.lax.while_loop(lambda x: (x[x] != x).any(), lambda x: x[x], other)


def _cells(passages: Array) -> Array:
    side = passages.shape[0]
    right, down = passages[..., 0], passages[..., 1]
    room, wall = jnp.ones_like(right), jnp.zeros_like(right)
    rows = jnp.stack([jnp.stack([room, right], -1), jnp.stack([down, wall], -1)], 1)
    return jnp.pad(rows.reshape(2 * side, 2 * side), ((1, 0), (1, 0)))
