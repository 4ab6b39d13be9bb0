"""Learners in several processes that update together, each with actors of its own.

The right half of figure 1 of the IMPALA paper. All processes run the same program in step: every
update is one computation over the devices of them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from pronk.errors import UserError
from pronk.types import PyTree

JOINING = 300  # seconds that processes wait for one another at the start
HEARTBEAT = 30  # seconds of silence after which a process counts as dead, and the others end
LEAVING = 10  # seconds that a failed process waits for the others


@dataclass(frozen=True)
class Group:
    """How many processes learn together, and which of them this one is."""

    count: int = 1
    rank: int = 0

    def all_reduce_sum(self, *numbers: int) -> tuple[int, ...]:
        """Each number summed over all processes, which must all call this together."""
        if self.count == 1:
            return numbers
        every = multihost_utils.process_allgather(np.array(numbers, np.int32))
        return tuple(int(x) for x in np.asarray(every).reshape(self.count, -1).sum(axis=0))

    def broadcast(self, tree: PyTree) -> PyTree:
        """The first process's `tree` of arrays, in all processes."""
        if self.count == 1:
            return tree
        return _mapped(multihost_utils.broadcast_one_to_all, tree)


SINGLE_PROCESS = Group()


def join(coordinator: str, count: int, rank: int) -> Group:
    """Meet the other processes at `coordinator`, HOST:PORT, where the first one listens.

    Call it before anything is computed. Raises UserError if they do not come together.
    """
    # Without it, CPUs can't compute together; ignored elsewhere.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if not jax.distributed.is_initialized():
        try:
            jax.distributed.initialize(
                coordinator,
                count,
                rank,
                initialization_timeout=JOINING,
                heartbeat_timeout_seconds=HEARTBEAT,
                shutdown_timeout_seconds=LEAVING,
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"the {count} learners of `--coordinator` '{coordinator}' did not come together"
                f" ({str(error).splitlines()[0]}). Expected the same HOST:PORT of the first"
                " learner's machine everywhere, the same `--learners`, and each `--learner-rank`"
                " from 0 on once."
            ) from None
    group = Group(jax.process_count(), jax.process_index())
    group.all_reduce_sum(0)  # the first time they must all ask within half a minute: now they do
    return group


def local_copy(tree: PyTree) -> PyTree:
    """This process's copy of arrays that all devices of the group have in full."""

    def copy(x: Any) -> Any:
        return x.addressable_data(0) if isinstance(x, jax.Array) else x

    return jax.tree.map(copy, tree)


def replicate(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """`tree`, which all processes have, as arrays that all devices of the group have in full."""

    def copy(x: Any) -> Any:
        return jax.make_array_from_process_local_data(sharding, x, x.shape)

    return _mapped(copy, tree)


def _mapped(function: Callable[[Any], Any], tree: PyTree) -> PyTree:
    """`function` of each array of `tree` as NumPy; of a random key, of its data."""

    def of(x: Any) -> Any:
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return function(np.asarray(x))
        data = function(np.asarray(jax.random.key_data(x)))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))

    return jax.tree.map(of, tree)
