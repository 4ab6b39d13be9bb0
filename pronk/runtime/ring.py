"""Replay on the device, for the fused runtime: a ring of sequences, drawn uniformly.

Each sequence is an unroll. They do not overlap, and they continue across episodes. Each is stored
with the last `burn_in` rows of the one before it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pronk.types import Array, Batch, Key, PyTree, Sequences, Trajectory


class Ring(NamedTuple):
    """The newest sequences; a new one overwrites the oldest."""

    rows: PyTree  # (timestep, action, extras), leaves [capacity, burn_in + length + 1, ...]
    core: PyTree  # recurrent states before row 0, leaves [capacity, ...]
    version: Array  # int32 [capacity]
    # int32 [], inserted in all, less a multiple of the capacity once the ring is full
    count: Array
    # (rows, core): the rows before the next sequences, leaves [burn_in, B, ...], and the recurrent
    # states before these.
    before: PyTree


def make(sequences: Sequences, row: tuple[PyTree, PyTree, dict[str, PyTree]], core: PyTree) -> Ring:
    """An empty ring, for environments whose first row is `row`, leaves `[B, ...]`, with recurrent
    states `core` before it.

    The burn-in of the first sequences repeats that row, which resets the state before it.
    """
    capacity = max(1, sequences.capacity // sequences.length)
    length = sequences.burn_in + sequences.length + 1

    def empty(x: Array, *shape: int) -> Array:
        return jnp.zeros((capacity, *shape, *x.shape[1:]), x.dtype)

    before = jax.tree.map(lambda x: jnp.repeat(x[None], sequences.burn_in, axis=0), row)
    return Ring(
        jax.tree.map(lambda x: empty(x, length), row),
        jax.tree.map(empty, core),
        jnp.zeros(capacity, jnp.int32),
        jnp.int32(0),
        (before, core),
    )


def next_start(sequences: Sequences) -> int:
    """The row of an unroll of `length` steps where the next sequence's burn-in starts."""
    return sequences.length - sequences.burn_in


def insert(ring: Ring, sequences: Sequences, trajectory: Trajectory, next_core: PyTree) -> Ring:
    """Insert an unroll of `length` steps, leaves `[length + 1, B, ...]`.

    next_core: the recurrent states before its row `next_start(sequences)`.
    """
    before, core = ring.before
    rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), before, trajectory[:3])
    width, capacity = trajectory.version.shape[0], ring.version.shape[0]
    at = (ring.count + jnp.arange(width)) % capacity

    def put(store: Array, x: Array) -> Array:
        return store.at[at].set(x)

    count = ring.count + width
    # In steps of one transition, an int32 would overflow in long runs.
    count = jnp.where(count >= 2 * capacity, count - capacity, count)
    # The next sequence begins with the last row; its burn-in are those before it.
    last = jax.tree.map(lambda x: x[-1 - sequences.burn_in : -1], rows)
    return Ring(
        jax.tree.map(lambda s, x: put(s, jnp.moveaxis(x, 1, 0)), ring.rows, rows),
        jax.tree.map(put, ring.core, core),
        put(ring.version, trajectory.version),
        count,
        (last, next_core),
    )


def draw(ring: Ring, key: Key, size: int) -> tuple[Batch, Array]:
    """Draw `size` sequences uniformly, with replacement; also returns where they are, int32
    `[size]`, for `revise`."""
    capacity = ring.version.shape[0]
    at = jax.random.randint(key, (size,), 0, jnp.minimum(ring.count, capacity))
    rows = jax.tree.map(lambda x: jnp.moveaxis(x[at], 0, 1), ring.rows)
    core = jax.tree.map(lambda x: x[at], ring.core)
    return Batch(Trajectory(*rows, core=core, version=ring.version[at])), at


def revise(ring: Ring, at: Array, extras: dict[str, Array]) -> Ring:
    """Overwrite some extras, `[burn_in + length + 1, B, ...]`, of sequences drawn from `at`.

    Call it before the next `insert`. Of a sequence that was drawn several times the last column
    counts. Rows that a sequence shares with its neighbours are revised in this sequence only.
    """
    size = at.shape[0]
    last = jnp.zeros(ring.version.shape[0], jnp.int32).at[at].max(jnp.arange(size))
    timestep, action, stored = ring.rows
    stored = dict(stored)
    for name, values in extras.items():
        # Equal values for equal places, because the order of writing is not defined.
        values = jnp.moveaxis(values, 1, 0)[last[at]]
        stored[name] = stored[name].at[at].set(values)
    return ring._replace(rows=(timestep, action, stored))
