"""Replay on the device, for the fused runtime: a ring of sequences, drawn uniformly.

Sequences are one after the other's unroll, so that they do not overlap, and go on across episodes;
each has the last `burn_in` rows of the one before in front of it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pronk.types import Array, Batch, Key, PyTree, Sequences, Trajectory


class Ring(NamedTuple):
    """The newest sequences, of which each new one takes the oldest's place."""

    rows: PyTree  # (timestep, action, extras), leaves [capacity, burn_in + length + 1, ...]
    core: PyTree  # [capacity, ...], as it was before row 0
    version: Array  # int32 [capacity]
    count: Array  # int32 [], inserted in all
    before: (
        PyTree  # (rows, core): the last `burn_in` rows, leaves [burn_in, B, ...], and before them
    )


def make(spec: Sequences, row: tuple[PyTree, PyTree, dict[str, PyTree]], core: PyTree) -> Ring:
    """An empty one, for environments that are at `row`, leaves `[B, ...]`, with `core` before it.

    In front of the first sequences that row is repeated, which resets what came before.
    """
    capacity = max(1, spec.capacity // spec.length)
    length = spec.burn_in + spec.length + 1

    def empty(x: Array, *shape: int) -> Array:
        return jnp.zeros((capacity, *shape, *x.shape[1:]), x.dtype)

    before = jax.tree.map(lambda x: jnp.repeat(x[None], spec.burn_in, axis=0), row)
    return Ring(
        jax.tree.map(lambda x: empty(x, length), row),
        jax.tree.map(empty, core),
        jnp.zeros(capacity, jnp.int32),
        jnp.int32(0),
        (before, core),
    )


def next_start(spec: Sequences) -> int:
    """The row of an unroll of `length` steps where the next sequence's burn-in starts."""
    return spec.length - spec.burn_in


def insert(ring: Ring, spec: Sequences, trajectory: Trajectory, next_core: PyTree) -> Ring:
    """Take up an unroll of `length` steps, leaves `[length + 1, B, ...]`.

    next_core: the recurrent state before row `next_start(spec)` of it, where the next sequence
    starts.
    """
    before, core = ring.before
    rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), before, trajectory[:3])
    width, capacity = trajectory.version.shape[0], ring.version.shape[0]
    at = (ring.count + jnp.arange(width)) % capacity

    def put(store: Array, x: Array) -> Array:
        return store.at[at].set(x)

    # The next sequence begins with row `length`, the last one: in front of it come those before.
    last = jax.tree.map(lambda x: x[-1 - spec.burn_in : -1], rows)
    return Ring(
        jax.tree.map(lambda s, x: put(s, jnp.moveaxis(x, 1, 0)), ring.rows, rows),
        jax.tree.map(put, ring.core, core),
        put(ring.version, trajectory.version),
        ring.count + width,
        (last, next_core),
    )


def draw(ring: Ring, key: Key, size: int) -> Batch:
    """`size` sequences, each as likely as any other."""
    capacity = ring.version.shape[0]
    at = jax.random.randint(key, (size,), 0, jnp.minimum(ring.count, capacity))
    rows = jax.tree.map(lambda x: jnp.moveaxis(x[at], 0, 1), ring.rows)
    core = jax.tree.map(lambda x: x[at], ring.core)
    return Batch(Trajectory(*rows, core=core, version=ring.version[at]))
