"""Scalars as distributions."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from hypothesis import given
from hypothesis import strategies as st

from pronk.maths import transforms
from pronk.maths.categorical import Support

H = transforms.signed_sqrt(1e-3)


@given(st.lists(st.floats(-400, 400, width=32), min_size=1, max_size=8))
def test_encoding_is_rlaxs_two_hot(values: list[float]):
    x = jnp.array(values, jnp.float32)
    support = Support(15.0, 31, H)
    expected = rlax.transform_to_2hot(H.apply(x), -15.0, 15.0, 31)
    np.testing.assert_allclose(support.encode(x), expected, atol=1e-4)


@pytest.mark.parametrize("transform", [H, transforms.IDENTITY])
def test_decoding_inverts_encoding(transform: transforms.Transform):
    support = Support(20.0, 41, transform)
    x = jnp.linspace(-15, 15, 23).reshape(1, 23)
    logits = jnp.log(support.encode(x))
    np.testing.assert_allclose(support.decode(logits), x, rtol=1e-4, atol=1e-4)
    assert not support.is_clipped(x).any()


def test_what_is_beyond_the_limit_is_counted_and_counts_as_the_limit():
    support = Support(1.0, 3, transforms.IDENTITY)
    x = jnp.array([-3.0, -1.0, 0.5, 1.0, 1.01])
    np.testing.assert_array_equal(support.is_clipped(x), [True, False, False, False, True])
    expected = [[1, 0, 0], [1, 0, 0], [0, 0.5, 0.5], [0, 0, 1], [0, 0, 1]]
    np.testing.assert_allclose(support.encode(x), expected, atol=1e-6)


def test_cross_entropy_is_least_at_the_encoding():
    support = Support(2.0, 5, transforms.IDENTITY)
    x = jnp.array([0.3, -1.7])
    best = support.cross_entropy(jnp.log(support.encode(x) + 1e-9), x)
    assert (best < support.cross_entropy(jnp.zeros((2, 5)), x)).all()
    np.testing.assert_allclose(support.cross_entropy(jnp.zeros((2, 5)), x), np.log(5), rtol=1e-6)


def test_a_wrong_number_of_logits_is_refused():
    with pytest.raises(ValueError, match="one logit per value"):
        Support(1.0, 3, transforms.IDENTITY).decode(jnp.zeros((2, 4)))
