"""The patch convolution against XLA's own, forwards and both gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pronk import convolution
from pronk.convolution import _chunked, conv2d

# Kernel size, stride, input channels, features: the two layers of the shallow network, narrower.
LAYERS = {"first": (8, 4, 3, 4), "second": (4, 2, 4, 5)}
# Odd sizes leave pixels over at the border; 17 and 33 images leave a chunk to be padded.
SIZES = [(20, 24), (21, 19)]
BATCHES = [1, 7, 17, 33]


@pytest.fixture(autouse=True)
def _patches_for_any_number_of_images(monkeypatch):
    monkeypatch.setattr(convolution, "FEW", 0)


def xla(x, kernel, stride, padding="VALID"):
    if x.dtype == jnp.uint8:
        x = x.astype(jnp.float32) / 255
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def data(layer: str, size, batch: tuple[int, ...], integer: bool):
    rng = np.random.default_rng(0)
    kernel, stride, channels, features = LAYERS[layer]
    shape = (*batch, *size, channels)
    x = rng.integers(0, 256, shape).astype(np.uint8) if integer else rng.normal(size=shape)
    k = rng.normal(size=(kernel, kernel, channels, features)) / kernel
    return jnp.asarray(x, None if integer else jnp.float32), jnp.asarray(k, jnp.float32), stride


def close(a, b):
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    scale = float(np.abs(b).max()) + 1e-6
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * scale)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layer", LAYERS)
def test_forward_and_gradients(layer, size, batch):
    x, kernel, stride = data(layer, size, (batch,), False)

    @jax.jit
    def both(x, kernel):
        ours, pullback = jax.vjp(lambda x, k: conv2d(x, k, stride, "VALID"), x, kernel)
        theirs, reference = jax.vjp(lambda x, k: xla(x, k, stride), x, kernel)
        grad = jnp.cos(jnp.arange(ours.size, dtype=jnp.float32)).reshape(ours.shape)
        return (ours, *pullback(grad)), (theirs, *reference(grad))

    for a, b in zip(*both(x, kernel), strict=True):
        close(a, b)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("layer", LAYERS)
def test_pixels(layer, batch):
    """uint8 is scaled by 1/255; only the kernel has a gradient."""
    x, kernel, stride = data(layer, (21, 19), (batch,), True)

    @jax.jit
    def both(x, kernel):
        def total(conv):
            return lambda k: jnp.sum(jnp.sin(conv(x, k, stride, "VALID")))

        return (
            (conv2d(x, kernel, stride, "VALID"), jax.grad(total(conv2d))(kernel)),
            (xla(x, kernel, stride), jax.grad(total(xla))(kernel)),
        )

    for a, b in zip(*both(x, kernel), strict=True):
        close(a, b)
    # Without jit, and with respect to the pixels: a gradient of the type that says there is none.
    y, pullback = jax.vjp(lambda x, k: conv2d(x, k, stride, "VALID"), x, kernel)
    assert pullback(jnp.ones_like(y))[0].dtype == jax.dtypes.float0


def test_atari_sized_with_an_odd_border():
    x, kernel, stride = data("first", (85, 83), (3,), True)
    close(jax.jit(lambda: conv2d(x, kernel, stride, "VALID"))(), xla(x, kernel, stride))


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("kernels", [None, 0])
def test_vmap(integer, kernels):
    """A population of learners, each with its images, and its own kernel or a shared one."""
    x, kernel, stride = data("second", (13, 11), (3, 9), integer)
    if kernels == 0:
        kernel = jnp.stack([kernel, 2 * kernel, -kernel])

    def gradients(conv):
        def loss(x, k):
            return jnp.sum(jnp.sin(conv(x, k, stride, "VALID")))

        argnums = 1 if integer else (0, 1)
        one = jax.value_and_grad(loss, argnums)
        return jax.jit(jax.vmap(one, in_axes=(0, kernels)))(x, kernel)

    for a, b in zip(*map(jax.tree.leaves, map(gradients, (conv2d, xla))), strict=True):
        close(a, b)


@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [(3, 1, "SAME"), (3, 1, "VALID"), (3, 2, "VALID"), (4, 2, "SAME")],
)
def test_other_shapes(size, stride, padding):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.integers(0, 256, (2, 9, 8, 2)), jnp.uint8)
    kernel = jnp.asarray(rng.normal(size=(size, size, 2, 3)), jnp.float32)
    close(conv2d(x, kernel, stride, padding), xla(x, kernel, stride, padding))


def test_few_images_and_many_are_the_same(monkeypatch):
    """XLA's forward pass up to `FEW` images, patches beyond: acting and learning must agree."""
    monkeypatch.undo()
    few = convolution.FEW
    x, kernel, stride = data("second", (10, 10), (few + 1,), True)
    many = jax.jit(lambda x: conv2d(x, kernel, stride, "VALID"))(x)
    close(jax.jit(lambda x: conv2d(x, kernel, stride, "VALID"))(x[:few]), many[:few])


@pytest.mark.parametrize("total", [1, 7, 16, 17, 19, 32, 33, 34, 672])
def test_chunks_hold_every_image_once(total):
    x = np.arange(1, total + 1, dtype=np.float32)[:, None]
    (chunks,) = _chunked(x)
    assert chunks.shape[1] <= 16
    assert chunks.size < total + 16
    np.testing.assert_array_equal(chunks.reshape(-1, 1)[:total], x)
    assert not np.asarray(chunks).reshape(-1)[total:].any()
