"""Strided convolutions whose CPU form is a matrix product over patches.

XLA's CPU convolutions, above all their gradients with respect to the weights, are several times
slower than a matrix product (benchmarks/convolution.py). Where the kernel size is a multiple of the
stride, the patches are cheap: cut the image into stride × stride blocks (space to depth), then
gather a few shifts of the block grid. Doing so for a handful of images at a time keeps the
patches in the cache. On any other platform, and for other shapes, XLA's own convolution runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pronk.types import Array

CHUNK = 16  # images whose patches fit into a core's cache
FEW = 64  # images, as when acting, for which XLA's forward pass is the faster one


def conv2d(x: Array, kernel: Array, stride: int, padding: str) -> Array:
    """`x` `[N, H, W, C]` convolved with `kernel` `[h, w, C, F]`: `[N, H', W', F]` float32.

    padding: "VALID" or "SAME". Integer `x` (pixels) is scaled by 1/255 and has no gradient.
    """
    size = kernel.shape[0]
    if padding == "VALID" and stride > 1 and size % stride == 0 and size == kernel.shape[1]:
        return _patch_conv(x, kernel, stride)
    return _xla_conv(x, kernel, stride, padding)


def _as_float(x: Array) -> Array:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return x.astype(jnp.float32) / 255.0


def _xla_conv(x: Array, kernel: Array, stride: int, padding: str = "VALID") -> Array:
    return jax.lax.conv_general_dilated(
        _as_float(x), kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _patch_conv(x: Array, kernel: Array, stride: int) -> Array:
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_forward, stride=stride),
        default=functools.partial(_xla_conv, stride=stride),
    )


def _patch_conv_fwd(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _patch_conv(x, kernel, stride), (x, kernel)


def _patch_conv_bwd(
    stride: int, residuals: tuple[Array, Array], grad: Array
) -> tuple[Array | np.ndarray, Array]:
    x, kernel = residuals

    def weights_xla(x: Array, kernel: Array, grad: Array) -> Array:
        return jax.vjp(lambda k: _xla_conv(x, k, stride), kernel)[1](grad)[0]

    def inputs_xla(x: Array, kernel: Array, grad: Array) -> Array:
        return jax.vjp(lambda x: _xla_conv(x, kernel, stride), x)[1](grad)[0]

    d_kernel = jax.lax.platform_dependent(
        x,
        kernel,
        grad,
        cpu=functools.partial(_weight_gradient, stride=stride),
        default=weights_xla,
    )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return np.zeros(x.shape, jax.dtypes.float0), d_kernel
    d_x = jax.lax.platform_dependent(
        x,
        kernel,
        grad,
        cpu=functools.partial(_input_gradient, stride=stride),
        default=inputs_xla,
    )
    return d_x, d_kernel


_patch_conv.defvjp(_patch_conv_fwd, _patch_conv_bwd)


class _Geometry:
    """Sizes of a VALID convolution cut into blocks: `shifts`² shifts of a grid of blocks."""

    def __init__(self, x: Array, kernel: Array, stride: int):
        self.stride = stride
        self.size, _, self.channels, self.features = kernel.shape
        self.shifts = self.size // stride
        self.out = tuple((n - self.size) // stride + 1 for n in x.shape[1:3])
        self.grid = tuple(n + self.shifts - 1 for n in self.out)
        self.depth = stride * stride * self.channels
        self.height, self.width = x.shape[1:3]

    def patches(self, x: Array) -> Array:
        """`[n, H, W, C]` to rows of patches `[n · H' · W', shifts² · depth]`, float32."""
        s, (gh, gw), (oh, ow) = self.stride, self.grid, self.out
        x = x[:, : gh * s, : gw * s]
        # Pixels are rearranged as bytes, and become floats only in the cache.
        x = x.reshape(-1, gh, s, gw, s, self.channels).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(-1, gh, gw, self.depth).astype(jnp.float32)
        parts = [
            x[:, i : i + oh, j : j + ow].reshape(-1, self.depth)
            for i in range(self.shifts)
            for j in range(self.shifts)
        ]
        return jnp.concatenate(parts, axis=1)

    def scatter(self, patches: Array) -> Array:
        """The transpose of `patches`: rows of patches summed back into images."""
        s, (gh, gw), (oh, ow) = self.stride, self.grid, self.out
        q = self.shifts
        p = patches.reshape(-1, oh, ow, q * q, self.depth)
        grid = sum(
            jnp.pad(p[:, :, :, q * i + j], ((0, 0), (i, q - 1 - i), (j, q - 1 - j), (0, 0)))
            for i in range(q)
            for j in range(q)
        )
        x = jnp.asarray(grid).reshape(-1, gh, gw, s, s, self.channels).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(-1, gh * s, gw * s, self.channels)
        return jnp.pad(x, ((0, 0), (0, self.height - gh * s), (0, self.width - gw * s), (0, 0)))

    def matrix(self, kernel: Array) -> Array:
        """The kernel as a matrix `[shifts² · depth, F]` whose rows match the patches' columns."""
        q, s = self.shifts, self.stride
        k = kernel.reshape(q, s, q, s, self.channels, self.features)
        return k.transpose(0, 2, 1, 3, 4, 5).reshape(-1, self.features)

    def kernel(self, matrix: Array) -> Array:
        """The inverse of `matrix`."""
        q, s = self.shifts, self.stride
        k = matrix.reshape(q, q, s, s, self.channels, self.features)
        return k.transpose(0, 2, 1, 3, 4, 5).reshape(self.size, self.size, self.channels, -1)


def _scale(x: Array) -> float:
    return 1.0 if jnp.issubdtype(x.dtype, jnp.floating) else 1.0 / 255.0


def _chunked(*arrays: Array) -> tuple[Array, ...]:
    """Arrays `[N, ...]` as `[N / n, n, ...]` with n at most CHUNK, padded with zeros if need be."""
    total = arrays[0].shape[0]
    chunk = max(n for n in range(1, min(CHUNK, total) + 1) if total % n == 0)
    padding = 0
    if chunk < CHUNK // 2 and total > CHUNK:
        chunk, padding = CHUNK, -total % CHUNK

    def cut(x: Array) -> Array:
        if padding:
            x = jnp.pad(x, ((0, padding),) + ((0, 0),) * (x.ndim - 1))
        return x.reshape(-1, chunk, *x.shape[1:])

    return tuple(cut(x) for x in arrays)


def _map_chunks(f: Callable[[Array], Array], x: Array) -> Array:
    (chunks,) = _chunked(x)
    _, y = jax.lax.scan(lambda _, chunk: (None, f(chunk)), None, chunks)
    return y.reshape(-1, *y.shape[2:])[: x.shape[0]]


def _forward(x: Array, kernel: Array, *, stride: int) -> Array:
    if x.shape[0] <= FEW:
        return _xla_conv(x, kernel, stride)
    geometry = _Geometry(x, kernel, stride)
    matrix = geometry.matrix(kernel) * _scale(x)
    return _map_chunks(
        lambda x: (geometry.patches(x) @ matrix).reshape(-1, *geometry.out, geometry.features), x
    )


def _weight_gradient(x: Array, kernel: Array, grad: Array, *, stride: int) -> Array:
    geometry = _Geometry(x, kernel, stride)

    def add(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
        x, g = chunk
        # The small operand transposed, on the left: XLA's fast case.
        return total + g.reshape(-1, geometry.features).T @ geometry.patches(x), None

    zeros = jnp.zeros((geometry.features, geometry.shifts**2 * geometry.depth))
    total, _ = jax.lax.scan(add, zeros, _chunked(x, grad))
    return geometry.kernel(total.T) * _scale(x)


def _input_gradient(x: Array, kernel: Array, grad: Array, *, stride: int) -> Array:
    geometry = _Geometry(x, kernel, stride)
    transposed = geometry.matrix(kernel).T
    return _map_chunks(
        lambda g: geometry.scatter(g.reshape(-1, geometry.features) @ transposed), grad
    )
