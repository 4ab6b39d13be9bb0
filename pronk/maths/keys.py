"""Random keys from seeds."""

from __future__ import annotations

import jax

from pronk.types import Key

_WORD = 1 << 32


def key_of(seed: int) -> Key:
    """The random key of a seed below 2^64; JAX's own would ignore all but the low 32 bits."""
    key = jax.random.key(seed % _WORD)
    return jax.random.fold_in(key, seed // _WORD) if seed >= _WORD else key
