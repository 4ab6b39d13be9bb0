"""Minimisation of a smooth function by L-BFGS, in a bounded number of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from pronk.types import Array, PyTree

TRIALS = 20  # of a line search; each evaluates the function and its gradient


class Minimum(NamedTuple):
    """What `minimise` found."""

    params: PyTree
    value: Array  # float [], of the function at `params`
    initial: Array  # float [], at the parameters that the search began with
    gradient_norm: Array  # float [], there
    iterations: Array  # int32 [], steps taken


def minimise(function: Callable[[PyTree], Array], params: PyTree, *, iterations: int) -> Minimum:
    """Parameters at which `function` is no larger than at `params`, after at most `iterations`
    steps of L-BFGS (Liu and Nocedal 1989; memory of 10) with a line search for the Wolfe
    conditions.

    A step that does not make the value smaller, NaN included, is not taken and ends the search:
    the line search of optax may take one where it finds none, as it does near a minimum, where the
    values differ by rounding. So the value never rises, and parameters from which no step leads
    down are returned bit for bit.
    """
    solver = optax.lbfgs(
        memory_size=10,
        linesearch=optax.scale_by_zoom_linesearch(TRIALS, initial_guess_strategy="one"),
    )

    def going(carry: tuple[PyTree, ...]) -> Array:
        *_, i, better = carry
        return better & (i < iterations)

    def one(carry: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        params, value, gradient, state, i, _ = carry
        step, state = solver.update(
            gradient, state, params, value=value, grad=gradient, value_fn=function
        )
        candidate = optax.apply_updates(params, step)
        # The search evaluated both at the candidate.
        found = optax.tree.get(state, "value"), optax.tree.get(state, "grad")
        better = found[0] < value  # false for NaN
        better &= jnp.isfinite(found[0]) & jnp.isfinite(optax.tree.norm(found[1]))
        params, value, gradient = jax.tree.map(
            lambda new, old: jnp.where(better, new, old),
            (candidate, *found),
            (params, value, gradient),
        )
        return params, value, gradient, state, i + better.astype(jnp.int32), better

    value, gradient = jax.value_and_grad(function)(params)
    norm = optax.tree.norm(gradient)
    usable = jnp.isfinite(value) & jnp.isfinite(norm) & (norm > 0.0)
    begin = params, value, gradient, solver.init(params), jnp.int32(0), usable
    params, least, _, _, count, _ = jax.lax.while_loop(going, one, begin)
    return Minimum(params, least, value, norm, count)
