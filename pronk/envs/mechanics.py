"""What the control tasks in JAX share: an integrator, small linear systems, arguments, pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from pronk.errors import UserError
from pronk.types import Array

State = TypeVar("State")

BACKGROUND, TRACK = (30, 30, 30), (90, 90, 90)
ORANGE, WHITE, RED = (240, 140, 40), (240, 240, 240), (200, 80, 80)


def check(name: str, max_steps: int) -> None:
    """Raise UserError for a time limit below one step."""
    if max_steps < 1:
        raise UserError(f"{name} has max_steps={max_steps}; expected at least 1.")


def runge_kutta(rate: Callable[[State], State], state: State, seconds: float, steps: int) -> State:
    """`state` after `seconds`, in `steps` equal steps of the classical fourth-order method.

    rate: the time derivative of a state; both are the same pytree of float arrays.
    """
    h = seconds / steps

    def after(state: State, rate: State, seconds: float) -> State:
        return jax.tree.map(lambda x, r: x + seconds * r, state, rate)

    def step(_: Array, state: State) -> State:
        k1 = rate(state)
        k2 = rate(after(state, k1, h / 2))
        k3 = rate(after(state, k2, h / 2))
        k4 = rate(after(state, k3, h))
        mean = jax.tree.map(lambda a, b, c, d: (a + 2 * (b + c) + d) / 6, k1, k2, k3, k4)
        return after(state, mean, h)

    return jax.lax.fori_loop(0, steps, step, state)


def solve(
    a: Array | float, b: Array, c: Array | float, right: tuple[Array, Array]
) -> tuple[Array, Array]:
    """The x and y of a x + b y = right[0] and b x + c y = right[1]."""
    determinant = a * c - b * b
    p, q = right
    return (c * p - b * q) / determinant, (a * q - b * p) / determinant


def clipped(action: Array, limit: float) -> Array:
    """The only component of `action`, float32 `[1]`, clipped to ± `limit`."""
    return jnp.clip(action[0], -limit, limit)


def canvas(height: int = 240, width: int = 480) -> np.ndarray:
    """An empty picture, uint8 `[height, width, 3]`."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = BACKGROUND
    return picture


def draw(
    picture: np.ndarray,
    points: Sequence[Sequence[float] | np.ndarray] | np.ndarray,
    scale: float,
    centre: tuple[float, float],
    colour: tuple[int, int, int],
    thickness: int = 3,
) -> None:
    """Draw the line through `points` (x, y), in metres, y up.

    scale: pixels per metre. centre: the point in the middle of the picture. What lies outside the
    picture is left out.
    """
    height, width, _ = picture.shape
    corners = (np.asarray(points, np.float64) - centre) * (scale, -scale) + (width / 2, height / 2)
    lengths = np.hypot(*np.diff(corners, axis=0).T)
    along = np.concatenate([[0], np.cumsum(lengths)])
    at = np.linspace(0, along[-1], 2 + int(2 * along[-1]))
    dots = np.stack([np.interp(at, along, corners[:, i]) for i in (1, 0)])
    brush = np.arange(thickness) - thickness // 2
    rows, columns = (
        np.floor(dots[..., None, None]).astype(int) + np.stack(np.meshgrid(brush, brush))[:, None]
    )
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    picture[rows[inside], columns[inside]] = colour
