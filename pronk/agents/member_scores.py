"""The scores of a generation's members: means over whole episodes."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from pronk.types import Array, Batch


class Scores(NamedTuple):
    """What is known of a generation's members, `[P]`."""

    sum: Array  # float32 [P], of the returns that are finite
    count: Array  # int32 [P], episodes
    failed: Array  # bool [P], whether a return was not finite

    def mean(self) -> Array:
        """The members' scores `[P]`, −∞ for those that failed."""
        return jnp.where(self.failed, -jnp.inf, self.sum / self.count)


def zero(members: int) -> Scores:
    """The scores of a generation that begins."""
    return Scores(jnp.zeros(members), jnp.zeros(members, jnp.int32), jnp.zeros(members, bool))


def counted(scores: Scores, batch: Batch, key: Array, wanted: int) -> Scores:
    """The scores after the episodes of the generation with this key that ended in the batch.

    wanted: the number of episodes per member; episodes with higher numbers are ignored.
    """
    rows, extras = batch.trajectory.timestep, batch.trajectory.extras
    returns = extras["score"][:-1] + extras["factor"][:-1] * rows.reward[1:]
    ends = (rows.terminated | rows.truncated)[1:] & ~rows.first[1:]
    ends &= jnp.all(extras["generation"][:-1] == key, axis=-1)
    members = scores.sum.shape[0]
    ends &= extras["episode"][:-1] < wanted * members
    acted = extras["episode"][:-1] % members
    # A sum over a mask, not a scatter, whose order of additions is not the same on every device.
    of = ends[..., None] & (acted[..., None] == jnp.arange(members))
    finite = jnp.isfinite(returns)
    added = jnp.sum(jnp.where(of & finite[..., None], returns[..., None], 0.0), axis=(0, 1))
    return Scores(
        scores.sum + added,
        scores.count + jnp.sum(of, axis=(0, 1), dtype=jnp.int32),
        scores.failed | jnp.any(of & ~finite[..., None], axis=(0, 1)),
    )
