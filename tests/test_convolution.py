"""Convolution and pooling against XLA's own, forwards and all gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pronk.nn import cpu_convolution as convolution
from pronk.nn.cpu_convolution import _chunks, conv2d, max_pool

# Kernel size, stride, padding, input channels, features: the two layers of the shallow network,
# narrower, those of the deep one, and of the shallow one for small images.
LAYERS = {
    "first": (8, 4, "VALID", 3, 4),
    "words": (8, 4, "VALID", 4, 4),  # pixels that are rearranged four bytes at a time
    "second": (4, 2, "VALID", 4, 5),
    "deep": (3, 1, "SAME", 3, 4),
    "small": (3, 1, "VALID", 3, 4),
    "even": (2, 1, "SAME", 3, 2),
}
# Odd sizes leave pixels over at the border; 33 images leave a chunk to be padded.
SIZES = [(20, 24), (21, 19)]
BATCHES = [1, 7, 33]


@pytest.fixture(autouse=True)
def _chunks_of_few_images(monkeypatch):
    monkeypatch.setattr(convolution, "CACHE", 1 << 17)


def xla(x, kernel, stride, padding="VALID"):
    if x.dtype == jnp.uint8:
        x = x.astype(jnp.float32) / 255
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def data(layer: str, size, batch: tuple[int, ...], integer: bool):
    rng = np.random.default_rng(0)
    kernel, _, _, channels, features = LAYERS[layer]
    shape = (*batch, *size, channels)
    x = rng.integers(0, 256, shape).astype(np.uint8) if integer else rng.normal(size=shape)
    k = rng.normal(size=(kernel, kernel, channels, features)) / kernel
    return jnp.asarray(x, None if integer else jnp.float32), jnp.asarray(k, jnp.float32)


def convolutions(layer: str):
    """Ours and XLA's, of images and a kernel."""
    stride, padding = LAYERS[layer][1:3]
    return (lambda x, k: conv2d(x, k, stride, padding), lambda x, k: xla(x, k, stride, padding))


def close(a, b):
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    scale = float(np.abs(b).max()) + 1e-6
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * scale)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layer", LAYERS)
def test_forward_and_gradients(layer, size, batch):
    x, kernel = data(layer, size, (batch,), False)
    conv, reference_conv = convolutions(layer)

    @jax.jit
    def both(x, kernel):
        ours, pullback = jax.vjp(conv, x, kernel)
        theirs, reference = jax.vjp(reference_conv, x, kernel)
        grad = jnp.cos(jnp.arange(ours.size, dtype=jnp.float32)).reshape(ours.shape)
        return (ours, *pullback(grad)), (theirs, *reference(grad))

    for a, b in zip(*both(x, kernel), strict=True):
        close(a, b)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("layer", LAYERS)
def test_pixels(layer, batch):
    """uint8 is scaled by 1/255; only the kernel has a gradient."""
    x, kernel = data(layer, (21, 19), (batch,), True)
    conv, reference = convolutions(layer)

    @jax.jit
    def both(x, kernel):
        def total(conv):
            return lambda k: jnp.sum(jnp.sin(conv(x, k)))

        return (
            (conv(x, kernel), jax.grad(total(conv))(kernel)),
            (reference(x, kernel), jax.grad(total(reference))(kernel)),
        )

    for a, b in zip(*both(x, kernel), strict=True):
        close(a, b)
    # Without jit, and with respect to the pixels: a gradient of the type that says there is none.
    y, pullback = jax.vjp(conv, x, kernel)
    assert pullback(jnp.ones_like(y))[0].dtype == jax.dtypes.float0


def test_atari_sized_with_an_odd_border():
    x, kernel = data("first", (85, 83), (3,), True)
    conv, reference = convolutions("first")
    close(jax.jit(conv)(x, kernel), reference(x, kernel))


@pytest.mark.parametrize("layer", ["second", "deep"])
@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("kernels", [None, 0])
def test_vmap(integer, kernels, layer):
    """A population of learners, each with its images, and its own kernel or a shared one."""
    x, kernel = data(layer, (13, 11), (3, 9), integer)
    if kernels == 0:
        kernel = jnp.stack([kernel, 2 * kernel, -kernel])

    def gradients(conv):
        def loss(x, k):
            return jnp.sum(jnp.sin(conv(x, k)))

        argnums = 1 if integer else (0, 1)
        one = jax.value_and_grad(loss, argnums)
        return jax.jit(jax.vmap(one, in_axes=(0, kernels)))(x, kernel)

    for a, b in zip(*map(jax.tree.leaves, map(gradients, convolutions(layer))), strict=True):
        close(a, b)


@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [(3, 2, "VALID"), (4, 2, "SAME")],
)
def test_other_shapes(size, stride, padding):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.integers(0, 256, (2, 9, 8, 2)), jnp.uint8)
    kernel = jnp.asarray(rng.normal(size=(size, size, 2, 3)), jnp.float32)
    close(conv2d(x, kernel, stride, padding), xla(x, kernel, stride, padding))


@pytest.mark.parametrize("total", [1, 7, 16, 17, 19, 32, 33, 34, 672])
def test_chunks_hold_every_image_once(total, monkeypatch):
    monkeypatch.setattr(convolution, "CACHE", 16 * 4)
    x = np.arange(1, total + 1, dtype=np.float32)[:, None]
    (chunks,) = _chunks(1, x)
    assert chunks.shape[1] <= 16
    assert chunks.size < total + 16
    np.testing.assert_array_equal(chunks.reshape(-1, 1)[:total], x)
    assert not np.asarray(chunks).reshape(-1)[total:].any()


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (3, 4), (1, 2)])
@pytest.mark.parametrize("ties", [False, True])
def test_max_pool(size, ties):
    """As XLA's, also where values are equal: the first has the gradient."""
    rng = np.random.default_rng(0)
    shape = (7, *size, 3)
    x = rng.integers(-1, 2, shape) if ties else rng.normal(size=shape)
    x = jnp.asarray(x, jnp.float32)

    def reference(x):
        return jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")

    results = []
    for pool in (max_pool, reference):
        y, pullback = jax.vjp(jax.jit(pool), x)
        (grad,) = pullback(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))
        results.append((y, grad))
    (ours, our_gradient), (theirs, their_gradient) = results
    np.testing.assert_array_equal(ours, theirs)
    close(our_gradient, their_gradient)
