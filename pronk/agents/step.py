"""What the agents' updates share: a new learner's state, one guarded gradient step, PBT's copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from pronk.types import Array, Key, LearnerState, PyTree

_LONG = 1 << 31  # agent steps; longer schedules count in 64 bits, well before 32 overflow


def hyperparameters(config: Any, names: Iterable[str]) -> dict[str, Array]:
    """The configuration's fields of these names as float32 scalars, for `LearnerState.hyper`."""
    return {name: jnp.float32(getattr(config, name)) for name in names}


def optimiser(kind: str, hyper: dict[str, Array]) -> optax.GradientTransformation:
    """Clips the global norm of gradients, then scales them; the learning rate is not applied.

    kind: `adam`; `sgd`, with momentum; or `rmsprop` as TensorFlow has it: ε inside the root, mean
    square starting at 1.
    """
    if kind == "adam":
        scale = optax.scale_by_adam(eps=hyper["optimiser_epsilon"])
    elif kind == "sgd":
        scale = optax.trace(decay=hyper["momentum"])
    else:
        scale = optax.scale_by_rms(
            decay=hyper["rmsprop_decay"],
            eps=hyper["optimiser_epsilon"],
            initial_scale=1.0,
            eps_in_sqrt=True,
        )
    return optax.chain(optax.clip_by_global_norm(hyper["max_gradient_norm"]), scale)


def new_state(
    kind: str,
    params: PyTree,
    hyper: dict[str, Array],
    key: Key,
    extra: PyTree = (),
    horizon: int = 0,
) -> LearnerState:
    """The state before the first update. kind: of the `optimiser`, or `none`. horizon: agent steps
    at which schedules end."""
    return LearnerState(
        params=params,
        opt_state={} if kind == "none" else optimiser(kind, hyper).init(params),
        hyper=hyper,
        updates=jnp.int32(0),
        steps=no_steps(horizon),
        skipped=jnp.int32(0),
        key=key,
        extra=extra,
    )


def no_steps(horizon: int) -> Array:
    """`LearnerState.steps` before the first update; horizon: agent steps at which schedules end."""
    # JAX has no integers of 64 bits; a long schedule's steps are two words, the low one first.
    return jnp.zeros((2,) if horizon >= _LONG else (), jnp.uint32)


def descend(
    kind: str, state: LearnerState, grads: PyTree, learning_rate: Array, steps: Array
) -> tuple[LearnerState, Array]:
    """One gradient step, and the gradient's norm; `steps` agent steps were learnt from.

    A gradient that is not finite changes neither parameters nor optimiser: it is counted in
    `skipped`, and training continues.
    """
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm)
    updates, opt_state = optimiser(kind, state.hyper).update(grads, state.opt_state)
    params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (params, opt_state),
        (state.params, state.opt_state),
    )
    return state._replace(
        params=params,
        opt_state=opt_state,
        updates=state.updates + 1,
        steps=_add(state.steps, steps.astype(jnp.uint32)),
        skipped=state.skipped + (~finite).astype(jnp.int32),
    ), norm


def adam(
    params: PyTree, opt_state: PyTree, hyper: dict[str, Array], grads: PyTree, rate: Array
) -> tuple[PyTree, PyTree]:
    """Parameters and optimiser state after one step of Adam at the learning rate `rate`."""
    updates, opt_state = optimiser("adam", hyper).update(grads, opt_state)
    params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
    return params, opt_state


class Flat(NamedTuple):
    """Parameters and optimiser state whose arrays are joined into vectors.

    On small networks, a step of the optimiser costs several times less for one vector than for many
    small arrays. A scan of many steps therefore carries these.
    """

    params: Array  # [P]
    opt_state: PyTree  # what has the parameters' structure is a vector [P]
    unravel: Callable[[Array], PyTree]  # parameters `[P]` to the network's
    unflatten: Callable[[PyTree], PyTree]  # an `opt_state` to the original structure


def flatten(params: PyTree, opt_state: PyTree) -> Flat:
    """Join the arrays of `params`, of several, and those of its optimiser's state."""
    structure = jax.tree.structure(params)
    vector, unravel = ravel_pytree(params)

    def alike(part: PyTree) -> bool:
        return jax.tree.structure(part) == structure

    def unflatten(flat: PyTree) -> PyTree:
        return jax.tree.map(
            lambda part, new: unravel(new) if alike(part) else new, opt_state, flat, is_leaf=alike
        )

    joined = jax.tree.map(
        lambda part: ravel_pytree(part)[0] if alike(part) else part, opt_state, is_leaf=alike
    )
    return Flat(vector, joined, unravel, unflatten)


def descend_part(state: LearnerState, name: str, grads: PyTree, rate: Array) -> LearnerState:
    """The state after one step of Adam, at the learning rate `rate`, of `params[name]`, whose
    optimiser is `opt_state[name]`. Other parameters and the counters stay; see `finish`."""
    part, opt_state = adam(state.params[name], state.opt_state[name], state.hyper, grads, rate)
    return state._replace(
        params=state.params | {name: part}, opt_state=state.opt_state | {name: opt_state}
    )


def polyak(params: PyTree, target: PyTree, rate: Array) -> PyTree:
    """The target network's parameters after a step of (1 − τ) target + τ params, τ = `rate`."""
    return jax.tree.map(lambda p, t: (1.0 - rate) * t + rate * p, params, target)


def copy_every(every: int, updates: Array, new: PyTree, old: PyTree) -> PyTree:
    """A target network's parameters after `updates` updates: `new` after each `every` of them, else
    `old`."""
    due = updates % every == 0
    return jax.tree.map(lambda a, b: jnp.where(due, a, b), new, old)


def finish(old: LearnerState, new: LearnerState, finite: Array, steps: Array) -> LearnerState:
    """The state after a `learn` of several steps, which began at `old`, made `new` and learnt from
    `steps` transitions. Where a gradient was not finite, nothing changes but the counters."""
    kept = jax.tree.map(
        lambda a, b: jnp.where(finite, a, b),
        (new.params, new.opt_state, new.extra),
        (old.params, old.opt_state, old.extra),
    )
    return old._replace(
        params=kept[0],
        opt_state=kept[1],
        extra=kept[2],
        updates=old.updates + 1,
        steps=_add(old.steps, steps.astype(jnp.uint32)),
        skipped=old.skipped + (~finite).astype(jnp.int32),
    )


def _add(count: Array, steps: Array) -> Array:
    """The sum of a count of one or two words and a number of steps."""
    if not count.ndim:
        return count + steps
    low = count[0] + steps
    return jnp.stack([low, count[1] + (low < steps).astype(jnp.uint32)])


def adopt(own: LearnerState, donor: LearnerState) -> LearnerState:
    """`Agent.adopt` of agents whose `extra` belongs to their parameters: all that was learnt is the
    donor's; counters and key stay."""
    return own._replace(
        params=donor.params, opt_state=donor.opt_state, hyper=donor.hyper, extra=donor.extra
    )
