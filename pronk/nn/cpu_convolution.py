"""Convolutions whose gradients are matrix products on a CPU, and pooling.

On CPUs XLA's gradients of convolutions are several times slower than matrix products, and its
convolutions are slower per image for many images than for a few (benchmarks/convolution.py). These
functions therefore process a few images at a time, whose data stay in the cache, and compute the
gradient with respect to the weights as one product per chunk. On other platforms, and for other
shapes, XLA's own convolution runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pronk.types import Array

CACHE = 1 << 20  # bytes of a CPU core's cache for a chunk of images and its intermediate results

Padding = tuple[int, int]  # before and after, of height and width alike


def conv2d(x: Array, kernel: Array, stride: int, padding: str) -> Array:
    """`x` `[N, H, W, C]` convolved with `kernel` `[h, w, C, F]`: `[N, H', W', F]`, as `kernel`.

    padding: "VALID" or "SAME". Integer `x` (pixels) is scaled by 1/255 and has no gradient.
    """
    size = kernel.shape[0]
    square = size == kernel.shape[1]
    if kernel.dtype != jnp.float32:  # reduced precision, for accelerators
        return _xla_conv(x, kernel, stride, padding)
    if square and stride == 1:
        around = ((size - 1) // 2, size // 2) if padding == "SAME" else (0, 0)
        return _conv(x, kernel, 1, around)
    if square and padding == "VALID" and size % stride == 0:
        return _conv(x, kernel, stride, (0, 0))
    return _xla_conv(x, kernel, stride, padding)


def _as_float(x: Array, dtype: Any = jnp.float32) -> Array:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(dtype)
    return x.astype(dtype) / 255.0


def _scale(x: Array) -> float:
    return 1.0 if jnp.issubdtype(x.dtype, jnp.floating) else 1.0 / 255.0


def _xla_conv(x: Array, kernel: Array, stride: int, padding: str | Padding) -> Array:
    return jax.lax.conv_general_dilated(
        _as_float(x, kernel.dtype),
        kernel,
        (stride, stride),
        padding if isinstance(padding, str) else (padding, padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    def on_cpu(x: Array, kernel: Array) -> Array:
        if stride > 1 and x.dtype == jnp.uint8:
            return _forward_by_blocks(x, kernel, stride)
        return _forward(x, kernel, stride, padding)

    def elsewhere(x: Array, kernel: Array) -> Array:
        return _xla_conv(x, kernel, stride, padding)

    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=elsewhere)


def _conv_fwd(
    x: Array, kernel: Array, stride: int, padding: Padding
) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, kernel, stride, padding), (x, kernel)


def _conv_bwd(
    stride: int, padding: Padding, residuals: tuple[Array, Array], grad: Array
) -> tuple[Array | np.ndarray, Array]:
    x, kernel = residuals

    def weights_on_cpu(x: Array, kernel: Array, grad: Array) -> Array:
        if stride == 1:
            return _weight_gradient_by_patches(x, kernel, grad, padding)
        return _weight_gradient_by_blocks(x, kernel, grad, stride)

    def weights_elsewhere(x: Array, kernel: Array, grad: Array) -> Array:
        return jax.vjp(lambda k: _xla_conv(x, k, stride, padding), kernel)[1](grad)[0]

    def inputs_on_cpu(x: Array, kernel: Array, grad: Array) -> Array:
        if stride == 1:
            return _input_gradient_by_convolution(kernel, grad, padding)
        return _input_gradient_by_blocks(x, kernel, grad, stride)

    def inputs_elsewhere(x: Array, kernel: Array, grad: Array) -> Array:
        return jax.vjp(lambda x: _xla_conv(x, kernel, stride, padding), x)[1](grad)[0]

    choose = jax.lax.platform_dependent
    d_kernel = choose(x, kernel, grad, cpu=weights_on_cpu, default=weights_elsewhere)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return np.zeros(x.shape, jax.dtypes.float0), d_kernel
    return choose(x, kernel, grad, cpu=inputs_on_cpu, default=inputs_elsewhere), d_kernel


_conv.defvjp(_conv_fwd, _conv_bwd)


def _forward(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    floats = int(np.prod(x.shape[1:]))
    return _map_chunks(lambda x: _xla_conv(x, kernel, stride, padding), floats, x)


def _weight_gradient_by_patches(x: Array, kernel: Array, grad: Array, padding: Padding) -> Array:
    """For stride 1: gradient times patches, `[F, n · H' · W'] @ [n · H' · W', h · w · C]`."""
    size, _, channels, features = kernel.shape
    height, width = grad.shape[1:3]

    def product(x: Array, g: Array) -> Array:
        x = jnp.pad(x, ((0, 0), padding, padding, (0, 0))).astype(jnp.float32)
        parts = [
            x[:, i : i + height, j : j + width].reshape(-1, channels)
            for i in range(size)
            for j in range(size)
        ]
        # The small operand transposed, on the left: XLA's fast case.
        return g.reshape(-1, features).T @ jnp.concatenate(parts, axis=1)

    floats = height * width * size * size * channels
    total = _sum_chunks(product, floats, x, grad)
    return total.T.reshape(kernel.shape) * _scale(x)


def _input_gradient_by_convolution(kernel: Array, grad: Array, padding: Padding) -> Array:
    """For stride 1: the gradient convolved with the kernel rotated by 180°."""
    before, after = padding
    last = kernel.shape[0] - 1
    rotated = kernel[::-1, ::-1].swapaxes(2, 3)
    return _forward(grad, rotated, 1, (last - before, last - after))


class _Blocks:
    """A VALID convolution whose images are cut into stride × stride blocks (space to depth).

    A kernel is then `shifts`² kernels of one block each: the output at p is the sum over s of block
    p + s times kernel s. Hence its gradients are products of the blocks and of the output's
    gradient, aligned with the blocks once per shift.
    """

    def __init__(self, kernel: Array, out: tuple[int, ...], stride: int):
        self.stride = stride
        self.size, _, self.channels, self.features = kernel.shape
        self.shifts = self.size // stride
        self.grid = tuple(n + self.shifts - 1 for n in out)
        self.depth = stride * stride * self.channels
        self.floats = int(np.prod(self.grid)) * (self.depth + self.shifts**2 * self.features)

    def cut(self, x: Array) -> Array:
        """`[n, H, W, C]` to its blocks `[n · grid, depth]`, float32."""
        # Pixels are rearranged as bytes, four at a time if possible, and converted to floats only
        # in the cache.
        words = x.dtype == jnp.uint8 and self.channels % 4 == 0
        if words:
            x = x.reshape(*x.shape[:-1], self.channels // 4, 4)
            x = jax.lax.bitcast_convert_type(x, jnp.uint32)
        s, (gh, gw) = self.stride, self.grid
        x = x[:, : gh * s, : gw * s].reshape(-1, gh, s, gw, s, x.shape[-1])
        x = x.transpose(0, 1, 3, 2, 4, 5)
        if words:  # the barrier keeps XLA from rearranging single bytes
            x = jax.lax.bitcast_convert_type(jax.lax.optimization_barrier(x), jnp.uint8)
        return x.reshape(-1, self.depth).astype(jnp.float32)

    def join(self, blocks: Array) -> Array:
        """The inverse of `cut`."""
        s, (gh, gw) = self.stride, self.grid
        x = blocks.reshape(-1, gh, gw, s, s, self.channels).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, gh * s, gw * s, self.channels)

    def lay(self, grad: Array) -> Array:
        """`[n, H', W', F]` aligned with the blocks, once per shift: `[shifts² · F, n · grid]`."""
        q, grad = self.shifts, jnp.moveaxis(grad, -1, 0)
        parts = [
            jnp.pad(grad, ((0, 0), (0, 0), (i, q - 1 - i), (j, q - 1 - j)))
            for i in range(q)
            for j in range(q)
        ]
        return jnp.concatenate(parts).reshape(q * q * self.features, -1)

    def matrix(self, kernel: Array) -> Array:
        """The kernel as `[shifts² · F, depth]`."""
        q, s = self.shifts, self.stride
        k = kernel.reshape(q, s, q, s, self.channels, self.features)
        return k.transpose(0, 2, 5, 1, 3, 4).reshape(-1, self.depth)

    def kernel(self, matrix: Array) -> Array:
        """The inverse of `matrix`."""
        q, s = self.shifts, self.stride
        k = matrix.reshape(q, q, self.features, s, s, self.channels)
        return k.transpose(0, 3, 1, 4, 5, 2).reshape(self.size, self.size, self.channels, -1)


def _forward_by_blocks(x: Array, kernel: Array, stride: int) -> Array:
    """For pixels, which `cut` converts to floats faster than XLA's convolution does."""
    out = tuple((n - kernel.shape[0]) // stride + 1 for n in x.shape[1:3])
    blocks = _Blocks(kernel, out, stride)
    q, features = blocks.shifts, blocks.features
    matrix = blocks.matrix(kernel).T * _scale(x)

    def convolve(x: Array) -> Array:
        y = (blocks.cut(x) @ matrix).reshape(-1, *blocks.grid, q, q, features)
        shifted = [y[:, i : i + out[0], j : j + out[1], i, j] for i in range(q) for j in range(q)]
        return functools.reduce(jnp.add, shifted)

    return _map_chunks(convolve, blocks.floats, x)


def _weight_gradient_by_blocks(x: Array, kernel: Array, grad: Array, stride: int) -> Array:
    blocks = _Blocks(kernel, grad.shape[1:3], stride)
    total = _sum_chunks(lambda x, g: blocks.lay(g) @ blocks.cut(x), blocks.floats, x, grad)
    return blocks.kernel(total) * _scale(x)


def _input_gradient_by_blocks(x: Array, kernel: Array, grad: Array, stride: int) -> Array:
    blocks = _Blocks(kernel, grad.shape[1:3], stride)
    matrix = blocks.matrix(kernel)
    d_x = _map_chunks(lambda g: blocks.join(blocks.lay(g).T @ matrix), blocks.floats, grad)
    # Pixels that no block covers have no gradient.
    return jnp.pad(d_x, [(0, n - m) for n, m in zip(x.shape, d_x.shape, strict=True)])


def _chunks(floats: int, *arrays: Array) -> tuple[Array, ...]:
    """Arrays `[N, ...]` as `[N / n, n, ...]`, padded with zeros if necessary; n images of `floats`
    floats each fill the cache."""
    total = arrays[0].shape[0]
    most = max(1, min(total, CACHE // (4 * floats)))
    chunk = max(n for n in range(1, most + 1) if total % n == 0)
    padding = 0
    if chunk < most // 2:
        chunk, padding = most, -total % most

    def cut(x: Array) -> Array:
        if padding:
            x = jnp.pad(x, ((0, padding),) + ((0, 0),) * (x.ndim - 1))
        return x.reshape(-1, chunk, *x.shape[1:])

    return tuple(cut(x) for x in arrays)


def _map_chunks(f: Callable[[Array], Array], floats: int, x: Array) -> Array:
    """Apply `f` to one chunk of `x` after the other."""
    (chunks,) = _chunks(floats, x)
    _, y = jax.lax.scan(lambda _, chunk: (None, f(chunk)), None, chunks)
    return y.reshape(-1, *y.shape[2:])[: x.shape[0]]


def _sum_chunks(f: Callable[[Array, Array], Array], floats: int, x: Array, y: Array) -> Array:
    """The sum of `f` over the chunks of `x` and `y`."""
    xs, ys = _chunks(floats, x, y)
    zeros = jnp.zeros(jax.eval_shape(f, xs[0], ys[0]).shape)

    def add(total: Array, chunks: tuple[Array, Array]) -> tuple[Array, None]:
        return total + f(*chunks), None

    return jax.lax.scan(add, zeros, (xs, ys))[0]


@jax.custom_vjp
def max_pool(x: Array) -> Array:
    """The maximum of each 3 × 3 window, stride 2, "SAME": `[N, H, W, C]` to `[N, ⌈H/2⌉, ⌈W/2⌉, C]`.

    The first of equal values gets the gradient, as with XLA's pooling, whose gradient is slow on
    CPUs.
    """
    floats = int(np.prod(x.shape[1:]))
    return jax.lax.platform_dependent(
        x, cpu=lambda x: _map_chunks(_largest, floats, x), default=_xla_pool
    )


def _xla_pool(x: Array) -> Array:
    return jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")


def _windows(x: Array) -> list[Array]:
    """The nine values of every window, row by row."""
    pads = [_pool_padding(n) for n in x.shape[1:3]]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-np.inf)
    height, width = (n - 2 for n in x.shape[1:3])
    return [x[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]


def _pool_padding(n: int) -> Padding:
    total = 1 if n % 2 == 0 else 2
    return total // 2, total - total // 2


def _largest(x: Array) -> Array:
    return functools.reduce(jnp.maximum, _windows(x))


def _pool_fwd(x: Array) -> tuple[Array, tuple[Array, Array]]:
    y = max_pool(x)
    return y, (x, y)


def _pool_bwd(residuals: tuple[Array, Array], grad: Array) -> tuple[Array]:
    x, y = residuals

    def on_cpu(x: Array, y: Array, grad: Array) -> Array:
        unmatched = jnp.ones(y.shape, bool)
        # Rows and columns 2p, 2p + 1 and 2p + 2 belong to window p: two parities each.
        sums: dict[tuple[int, int], Array] = {}
        for k, value in enumerate(_windows(x)):
            i, j = divmod(k, 3)
            match = unmatched & (value == y)
            unmatched &= ~match
            part = jnp.where(match, grad, 0.0)
            part = jnp.pad(part, ((0, 0), (i // 2, 1 - i // 2), (j // 2, 1 - j // 2), (0, 0)))
            sums[i % 2, j % 2] = sums.get((i % 2, j % 2), 0.0) + part
        rows = [jnp.stack([sums[i, 0], sums[i, 1]], axis=3) for i in (0, 1)]
        n, height, width, channels = sums[0, 0].shape
        d_x = jnp.stack(rows, axis=2).reshape(n, 2 * height, 2 * width, channels)
        top, left = (_pool_padding(n)[0] for n in x.shape[1:3])
        return d_x[:, top : top + x.shape[1], left : left + x.shape[2]]

    def elsewhere(x: Array, y: Array, grad: Array) -> Array:
        return jax.vjp(_xla_pool, x)[1](grad)[0]

    return (jax.lax.platform_dependent(x, y, grad, cpu=on_cpu, default=elsewhere),)


max_pool.defvjp(_pool_fwd, _pool_bwd)
