"""Two facts about the natural gradient, computed exactly on random Markov decision processes.

Invariance (Kakade 2001, section 2): in other coordinates of the parameters the natural gradient
makes the same policies, and the plain gradient makes others. Best action (Kakade 2001, theorem 3):
with a parameter for each state and action, a long natural step makes the policy greedy with respect
to its own advantages, and a long step along the plain gradient need not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pronk.experiments.reproduce import common
from pronk.experiments.reproduce.common import Row
from pronk.experiments.reproduce.settings import NaturalGradient
from pronk.maths.tabular import random_mdp
from pronk.maths.tabular_policy import indicators, policy_gradient, softmax
from pronk.types import Array

STATES, ACTIONS, FEATURES, DISCOUNT = 6, 3, 8, 0.9
UPDATES, RATE = 100, 0.01
LENGTHS = tuple(10.0**k for k in np.arange(-2, 3.01, 0.25))
METHODS = ("gradient", "natural gradient")


class Paths(NamedTuple):
    """The same training in two coordinates of the parameters, θ and A w."""

    distance: Array  # [updates + 1], largest difference of the two policies
    value: Array  # [updates + 1], in the coordinates θ


def invariance(method: str, seed: int, updates: int = UPDATES) -> Paths:
    """Train a log-linear policy by `method` in its own coordinates and in random others."""
    rng = np.random.default_rng(seed)
    mdp, start = random_mdp(rng, STATES, ACTIONS, DISCOUNT), np.full(STATES, 1 / STATES)
    features = rng.normal(size=(STATES, ACTIONS, FEATURES))
    # A rotation, and scales from 1/3 to 3: well conditioned, so that what differs is no rounding.
    turned = np.linalg.qr(rng.normal(size=(FEATURES, FEATURES)))[0]
    turned = turned * np.geomspace(1 / 3, 3, FEATURES)
    theta = rng.normal(size=FEATURES)
    coordinates = [(features, theta), (features @ turned, np.linalg.solve(turned, theta))]
    distance, value = [], []
    for _ in range(updates + 1):
        policies = [softmax(*pair) for pair in coordinates]
        results = [policy_gradient(mdp, *pair, start) for pair in coordinates]
        distance.append(np.abs(policies[0] - policies[1]).max())
        value.append(results[0].value)
        coordinates = [
            (phi, params + RATE * (found.natural if method == METHODS[1] else found.gradient))
            for (phi, params), found in zip(coordinates, results, strict=True)
        ]
    return Paths(np.array(distance), np.array(value))


def greediness(method: str, seed: int, length: float) -> float:
    """How far a tabular policy is from the greedy one after one step of `length` along the method's
    direction: the largest probability, over states, of an action that is not the best."""
    rng = np.random.default_rng(seed)
    mdp, start = random_mdp(rng, STATES, ACTIONS, DISCOUNT), np.full(STATES, 1 / STATES)
    features = indicators(STATES, ACTIONS)
    theta = rng.normal(size=STATES * ACTIONS)
    found = policy_gradient(mdp, features, theta, start)
    step = found.natural if method == METHODS[1] else found.gradient
    policy = softmax(features, theta + length * step)
    best = found.advantage.argmax(1)
    return float(1 - policy[np.arange(STATES), best].min())


def run(settings: NaturalGradient, *, results: Path) -> str:
    """Compute both, which takes seconds; write the tables and the figure."""
    seeds = range(max(1, settings.seeds // 5) if settings.quick else settings.seeds)
    same, greedy = [], []
    for method in METHODS:
        paths = [invariance(method, seed) for seed in seeds]
        for i in range(UPDATES + 1):
            distance = max(float(path.distance[i]) for path in paths)
            value = float(np.mean([path.value[i] for path in paths]))
            same.append([method, i, f"{distance:.3g}", f"{value:.5g}", len(seeds)])
        for length in LENGTHS:
            rest = max(greediness(method, seed, length) for seed in seeds)
            greedy.append([method, f"{length:.4g}", f"{rest:.3g}", len(seeds)])
    header = ["method", "update", "distance", "value", "mdps"]
    common.write_csv(results / "natural-gradient-invariance.csv", header, same)
    header = ["method", "length", "not_best", "mdps"]
    common.write_csv(results / "natural-gradient-greedy.csv", header, greedy)
    lines = [f"largest over {len(seeds)} random MDPs"]
    for method in METHODS:
        last = [float(row[2]) for row in same if row[0] == method]
        rest = [float(row[2]) for row in greedy if row[0] == method]
        lines.append(
            f"{method:17} policies in two coordinates differ by up to {max(last):.2g};"
            f" probability of an action that is not the best after a step of"
            f" {LENGTHS[-1]:g}: {rest[-1]:.2g}"
        )
    return "\n".join([*lines, str(draw(results))])


def draw(results: Path) -> Path:
    """Draw the figure from the tables in `results`."""
    same = common.read_csv(results / "natural-gradient-invariance.csv")
    greedy = common.read_csv(results / "natural-gradient-greedy.csv")
    figure, (axes,) = common.panels(1, 3, 4.2, 3.4)
    _lines(axes[0], same, "update", "distance", "same training in other coordinates")
    axes[0].set_ylabel("largest difference of two policies")
    axes[0].set_yscale("log")
    axes[0].set_ylim(1e-17, 3)
    _lines(axes[1], same, "update", "value", "what both learn")
    axes[1].set_ylabel("value of the start states")
    _lines(axes[2], greedy, "length", "not_best", "one step of a tabular policy")
    axes[2].set_ylabel("probability of a worse action")
    axes[2].set_xscale("log")
    mdps = int(same[0]["mdps"])
    note = f"left and right: largest of {mdps} random MDPs; middle: mean. float64"
    return common.save(figure, results / "natural-gradient.png", note, columns=2)


def _lines(axis: Any, rows: list[Row], x: str, y: str, title: str) -> None:
    for i, method in enumerate(METHODS):
        own = [row for row in rows if row["method"] == method]
        # A difference of exactly 0 is drawn at the bottom of the logarithmic axis.
        values = [max(float(row[y]), 1e-17) if y == "distance" else float(row[y]) for row in own]
        axis.plot([row[x] for row in own], values, color=common.COLOURS[i], label=method)
    axis.set_title(title)
    axis.set_xlabel({"update": "updates", "length": "length of the step α"}[x])
