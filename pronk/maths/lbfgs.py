"""Minimisation of a smooth function by L-BFGS, in a bounded number of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from pronk.types import Array, PyTree

TRIALS = 20  # of a line search; each evaluates the function and its gradient


class Minimum(NamedTuple):
    """What `minimise` found."""

    params: PyTree
    value: Array  # float [], of the function at `params`
    initial: Array  # float [], at the parameters that the search began with
    gradient_norm: Array  # float [], at those parameters
    iterations: Array  # int32 [], steps taken


def minimise(
    function: Callable[[PyTree], Array], params: PyTree, *, iterations: Array | int
) -> Minimum:
    """Parameters at which `function` is no larger than at `params`, after at most `iterations`
    steps of L-BFGS (Liu and Nocedal 1989; memory of 10) with a line search for the Wolfe
    conditions.

    A step that does not make the value smaller, NaN included, is not taken and ends the search.
    optax's line search may return such a step if it finds no better one, as near a minimum, where
    values differ by rounding only. So the value never rises, and parameters from which no step
    leads down are returned bit for bit.
    """
    solver = optax.lbfgs(
        memory_size=10,
        linesearch=optax.scale_by_zoom_linesearch(TRIALS, initial_guess_strategy="one"),
    )

    # One vector: with trees, there would be thousands of operations to compile.
    vector, unravel = ravel_pytree(params)

    def flat(vector: Array) -> Array:
        return function(unravel(vector))

    def going(carry: tuple[Array, ...]) -> Array:
        *_, i, better = carry
        return better & (i < iterations)

    def one(carry: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        vector, value, gradient, state, i, _ = carry
        step, state = solver.update(
            gradient, state, vector, value=value, grad=gradient, value_fn=flat
        )
        candidate = vector + step
        # The search evaluated both at the candidate.
        found = optax.tree.get(state, "value"), optax.tree.get(state, "grad")
        better = found[0] < value  # false for NaN
        better &= jnp.isfinite(found[0]) & jnp.isfinite(jnp.linalg.norm(found[1]))
        vector, value, gradient = jax.tree.map(
            lambda new, old: jnp.where(better, new, old),
            (candidate, *found),
            (vector, value, gradient),
        )
        return vector, value, gradient, state, i + better.astype(jnp.int32), better

    value, gradient = jax.value_and_grad(flat)(vector)
    norm = jnp.linalg.norm(gradient)
    usable = jnp.isfinite(value) & jnp.isfinite(norm) & (norm > 0.0)
    begin = vector, value, gradient, solver.init(vector), jnp.int32(0), usable
    vector, least, _, _, count, _ = jax.lax.while_loop(going, one, begin)
    return Minimum(unravel(vector), least, value, norm, count)
