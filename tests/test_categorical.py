"""Scalars as distributions."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import rlax
from hypothesis import given
from hypothesis import strategies as st

from pronk.maths import transforms
from pronk.maths.categorical import Support
from pronk.types import Array

H = transforms.signed_sqrt(1e-3)


@jax.jit
def both_encodings(x: Array) -> tuple[Array, Array]:
    return Support(15.0, 31, H).encode(x), rlax.transform_to_2hot(H.apply(x), -15.0, 15.0, 31)


@given(st.lists(st.floats(-400, 400, width=32), min_size=1, max_size=8))
def test_encoding_is_rlaxs_two_hot(values: list[float]):
    x = np.zeros(8, np.float32)
    x[: len(values)] = values
    ours, theirs = both_encodings(x)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("transform", [H, transforms.IDENTITY])
def test_decoding_inverts_encoding(transform: transforms.Transform):
    support = Support(20.0, 41, transform)
    x = np.linspace(-15, 15, 23, dtype=np.float32).reshape(1, 23)
    with np.errstate(divide="ignore"):
        logits = np.log(jax.jit(support.encode)(x))
    np.testing.assert_allclose(jax.jit(support.decode)(logits), x, rtol=1e-4, atol=1e-4)
    assert not jax.jit(support.is_clipped)(x).any()


def test_what_is_beyond_the_limit_is_counted_and_counts_as_the_limit():
    support = Support(1.0, 3, transforms.IDENTITY)
    x = np.array([-3.0, -1.0, 0.5, 1.0, 1.01], np.float32)
    clipped = jax.jit(support.is_clipped)(x)
    np.testing.assert_array_equal(clipped, [True, False, False, False, True])
    expected = [[1, 0, 0], [1, 0, 0], [0, 0.5, 0.5], [0, 0, 1], [0, 0, 1]]
    np.testing.assert_allclose(jax.jit(support.encode)(x), expected, atol=1e-6)


def test_cross_entropy_is_least_at_the_encoding():
    support = Support(2.0, 5, transforms.IDENTITY)
    x = np.array([0.3, -1.7], np.float32)
    cross_entropy = jax.jit(support.cross_entropy)
    best = cross_entropy(np.log(np.asarray(jax.jit(support.encode)(x)) + np.float32(1e-9)), x)
    equal = np.asarray(cross_entropy(np.zeros((2, 5), np.float32), x))
    assert (best < equal).all()
    np.testing.assert_allclose(equal, np.log(5), rtol=1e-6)


def test_a_wrong_number_of_logits_is_refused():
    with pytest.raises(ValueError, match="one logit per value"):
        Support(1.0, 3, transforms.IDENTITY).decode(np.zeros((2, 4), np.float32))
