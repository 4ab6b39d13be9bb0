"""Recurrent cores: networks over time whose state is reset where an episode begins.

Inputs are time-major `[T, B, F]`; acting is the case T = 1. A core is any Flax module with the two
methods of `RecurrentCore`.
"""

from __future__ import annotations

from typing import Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from pronk.types import Array, PyTree


class RecurrentCore(Protocol):
    """The interface of a core, which `networks.ActorCritic` and `networks.DuelingQ` accept."""

    def __call__(self, inputs: Array, first: Array, state: PyTree) -> tuple[Array, PyTree]:
        """inputs `[T, B, F]`, first `[T, B]` (reset before this row), state `[B, ...]`; returns
        outputs `[T, B, units]` and the state after the last row."""
        ...

    def initial_state(self, batch: int) -> PyTree:
        """The state at the beginning of an episode, `[batch, ...]`."""
        ...


class LSTM(nn.Module):
    """An LSTM (Hochreiter and Schmidhuber 1997); its state is the pair (c, h), `[B, units]`."""

    units: int

    @nn.compact
    def __call__(self, inputs: Array, first: Array, state: PyTree) -> tuple[Array, PyTree]:
        # The inputs' part of the gates needs no recurrence: one product for all time steps.
        gates = nn.Dense(4 * self.units, name="lstm_inputs")(inputs)
        recurrent = self.param(
            "lstm_recurrent", nn.initializers.orthogonal(), (self.units, 4 * self.units)
        )

        def step(state: tuple[Array, Array], x: tuple[Array, Array]) -> tuple[PyTree, Array]:
            gates_t, first_t = x
            c, h = reset(state, first_t)
            i, g, f, o = jnp.split(gates_t + h @ recurrent, 4, axis=-1)
            # The forget gate starts open (bias 1, as in the IMPALA paper's TensorFlow cell): with
            # bias 0 a memory halves at every step, and nothing is learnt over 20 of them.
            c = nn.sigmoid(f + 1.0) * c + nn.sigmoid(i) * jnp.tanh(g)
            h = nn.sigmoid(o) * jnp.tanh(c)
            return (c, h), h

        state, outputs = jax.lax.scan(step, state, (gates, first))
        return outputs, state

    @nn.nowrap
    def initial_state(self, batch: int) -> PyTree:
        """Zeros."""
        zeros = jnp.zeros((batch, self.units), jnp.float32)
        return zeros, zeros


class GRU(nn.Module):
    """A GRU (Cho et al. 2014); its state is one array `[B, units]`."""

    units: int

    @nn.compact
    def __call__(self, inputs: Array, first: Array, state: PyTree) -> tuple[Array, PyTree]:
        cell = nn.GRUCell(self.units, name="gru")

        def step(cell: nn.Module, state: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
            features, first_t = x
            return cell(reset(state, first_t), features)

        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        state, outputs = scan(cell, state, (inputs, first))
        return outputs, state

    @nn.nowrap
    def initial_state(self, batch: int) -> PyTree:
        """Zeros."""
        return jnp.zeros((batch, self.units), jnp.float32)


def make_core(kind: str, units: int) -> RecurrentCore | None:
    """The core named `kind`: "lstm", "gru", or "none", which is None."""
    if kind == "none":
        return None
    return {"lstm": LSTM, "gru": GRU}[kind](units)


def initial_state(core: RecurrentCore | None, batch: int) -> PyTree:
    """`core.initial_state(batch)`; the empty state `()` without a core."""
    return () if core is None else core.initial_state(batch)


def reset(state: PyTree, first: Array) -> PyTree:
    """`state` `[B, ...]` with zeros where `first` `[B]` begins an episode."""

    def leaf(x: Array) -> Array:
        mask = first.reshape(first.shape + (1,) * (x.ndim - first.ndim))
        return jnp.where(mask, jnp.zeros_like(x), x)

    return jax.tree.map(leaf, state)
