"""The shallow network's convolutions on a CPU: as matrix products over patches, and as XLA's.

    python benchmarks/convolution.py [--batch 672] [--repeats 20]

Prints the median milliseconds of each layer's forward pass and gradients in both forms, which take
turns so that a busy machine slows both, and their ratio.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pronk.nn.cpu_convolution import conv2d

# Image size, channels, kernel size, stride, features of the shallow network's two layers.
LAYERS = [(84, 4, 8, 4, 16), (20, 16, 4, 2, 32)]


def xla_conv(x: Any, kernel: Any, stride: int) -> Any:
    """XLA's convolution of pixels or features."""
    x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32) / 255.0
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def weight_gradient(conv: Callable[[Any, Any], Any], x: Any, kernel: Any, grad: Any) -> Any:
    """The gradient of the sum of `conv(x, kernel) * grad` with respect to `kernel`."""
    return jax.vjp(lambda k: conv(x, k), kernel)[1](grad)[0]


def input_gradient(conv: Callable[[Any, Any], Any], x: Any, kernel: Any, grad: Any) -> Any:
    """The gradient of the sum of `conv(x, kernel) * grad` with respect to `x`."""
    return jax.vjp(lambda x: conv(x, kernel), x)[1](grad)[0]


def main() -> None:
    """Time both forms of every pass."""
    parser = argparse.ArgumentParser(description="Convolutions on a CPU, ours and XLA's.")
    parser.add_argument("--batch", type=int, default=672, help="images: (20 + 1) × 32")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"{args.batch} images; median milliseconds of {args.repeats}")
    print(f"{'layer':<18}{'pass':<18}{'patches':>9}{'XLA':>9}{'ratio':>8}")
    for i, (size, channels, kernel_size, stride, features) in enumerate(LAYERS):
        x = rng.integers(0, 256, (args.batch, size, size, channels)).astype(np.uint8)
        if i:  # only the first layer sees pixels
            x = x.astype(np.float32)
        kernel = rng.normal(size=(kernel_size, kernel_size, channels, features))
        out = (size - kernel_size) // stride + 1
        grad = rng.normal(size=(args.batch, out, out, features))
        operands = [jnp.asarray(x), jnp.float32(kernel), jnp.float32(grad)]
        passes: dict[str, Callable[..., Any]] = {
            "forward": lambda conv, x, kernel, grad: conv(x, kernel),
            "weight gradient": weight_gradient,
        }
        if i:
            passes["input gradient"] = input_gradient
        for name, function in passes.items():
            forms = [
                jax.jit(functools.partial(function, functools.partial(form, stride=stride)))
                for form in (functools.partial(conv2d, padding="VALID"), xla_conv)
            ]
            seconds: list[list[float]] = [[], []]
            for _ in range(args.repeats + 1):
                for form, times in zip(forms, seconds, strict=True):
                    start = time.perf_counter()
                    jax.block_until_ready(form(*operands))
                    times.append(time.perf_counter() - start)
            ours, theirs = (1e3 * statistics.median(times[1:]) for times in seconds)
            layer = f"{kernel_size}×{kernel_size}/{stride}, {channels} → {features}"
            print(f"{layer:<18}{name:<18}{ours:>9.1f}{theirs:>9.1f}{theirs / ours:>8.1f}")


if __name__ == "__main__":
    main()
