"""Elo ratings by maximum likelihood.

The model of Bradley and Terry 1952: i scores against j with probability 1 / (1 + 10^((R_j − R_i) /
400)), where a draw is half a win.
"""

from __future__ import annotations

import numpy as np

SCALE = 400.0 / np.log(10.0)  # of a natural logit
_ITERATIONS, _LARGEST_STEP = 200, 2.0


def ratings(points: np.ndarray, *, anchor: int = 0, virtual: float = 1.0) -> np.ndarray:
    """The ratings `[..., n]` of n players; that of `anchor` is 0.

    points: `[..., n, n]`, what the row's player has scored against the column's: 1 for a win and
    0.5 for a draw. virtual: drawn games to add for each pair that has played; with 0, a player
    without a win, or without a loss, has no finite rating. Any two players must be connected by
    games, directly or through others.
    """
    points = np.array(points, float)
    points += virtual / 2 * (points + np.swapaxes(points, -1, -2) > 0)
    games = points + np.swapaxes(points, -1, -2)
    logits = np.zeros(points.shape[:-1])
    for _ in range(_ITERATIONS):  # Newton's method for a concave function
        difference = logits[..., :, None] - logits[..., None, :]
        expected = 1.0 / (1.0 + np.exp(-difference))
        gradient = np.sum(points - games * expected, axis=-1)
        weight = games * expected * (1.0 - expected)
        # Only differences count: adding 1 to all elements keeps the mean, and the rank full.
        curvature = weight.sum(axis=-1)[..., None] * np.eye(points.shape[-1]) - weight + 1.0
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        logits += np.clip(step, -_LARGEST_STEP, _LARGEST_STEP)
        if np.abs(step).max() < 1e-10:
            break
    return SCALE * (logits - logits[..., anchor, None])
