"""TD(λ) with eligibility traces: the backward view of the λ-return."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pronk.maths.shapes import assert_rank, assert_shape
from pronk.types import Array


def td_lambda(
    weights: Array,
    features: Array,
    reward: Array,
    discount: Array,
    *,
    step_size: Array | float,
    lambda_: Array | float,
    trace: str = "accumulating",
    online: bool = True,
) -> Array:
    """TD(λ), the backward view, over one episode with a linear value function.

    weights: `[d]`. features: `[T + 1, d]`, one-hot for a table. reward, discount: `[T]`, the last
    transition's discount being 0 if it is terminal. step_size, lambda_: scalars. Returns the
    weights after the episode, `[d]`. Each step updates an eligibility trace and the weights
    (Sutton and Barto 2018, section 12.2):

        e_t = γ_{t-1} λ e_{t-1} + x_t,  w += α δ_t e_t

    With `online=False` the weights change only at the end, and the sum of the updates is exactly
    that of the λ-return, Σ_t α (G_t − V(x_t)) x_t. `trace="dutch"` is true online TD(λ) (van Seijen
    et al. 2016, algorithm 1; Sutton and Barto 2018, section 12.5), whose weights after every step
    equal those of the online λ-return algorithm, which repeats all earlier updates with each new
    reward; it is always online. Raises ValueError for another `trace`.
    """
    if trace not in ("accumulating", "dutch"):
        raise ValueError(f"`trace` is {trace!r}; expected 'accumulating' or 'dutch'.")
    assert_rank(2, features=features)
    assert_rank(0, step_size=step_size, lambda_=lambda_)
    rows, size = np.shape(features)
    assert_shape((size,), "the width of `features`", weights=weights)
    why = f"`features` has {rows} rows, one more"
    assert_shape((rows - 1,), why, reward=reward, discount=discount)
    dutch = trace == "dutch"

    def step(state: tuple[Array, ...], x: tuple[Array, ...]) -> tuple[tuple[Array, ...], None]:
        w, e, v_old, decay = state
        x_t, x_tp1, reward_t, discount_t = x
        evaluated = w if online or dutch else weights
        v_t, v_tp1 = evaluated @ x_t, evaluated @ x_tp1
        delta = reward_t + discount_t * v_tp1 - v_t
        e = decay * e + (1.0 - dutch * step_size * decay * (e @ x_t)) * x_t
        w = w + step_size * delta * e
        if dutch:
            w = w + step_size * (v_t - v_old) * (e - x_t)
        return (w, e, v_tp1, discount_t * lambda_), None

    begin = (weights, jnp.zeros_like(weights), weights @ features[0], jnp.zeros(()))
    (w, *_), _ = jax.lax.scan(step, begin, (features[:-1], features[1:], reward, discount))
    return w
