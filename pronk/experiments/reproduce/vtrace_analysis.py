"""V-trace's theory (Espeholt et al. 2018, section 4.1 and appendix A), measured on random MDPs.

ρ̄ says whose value is found; c̄ how fast, and at what variance: each is shown with the other held.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from pronk.experiments.reproduce.common import interval
from pronk.experiments.reproduce.settings import VTraceAnalysis
from pronk.maths import returns
from pronk.maths.tabular import (
    Mdp,
    VTraceOperator,
    random_mdp,
    random_policy,
    truncated_policy,
)
from pronk.run.setup import configure_jax
from pronk.types import Array

STATES, ACTIONS, DISCOUNT = 5, 3, 0.9
# The fixed point's level, and a trace's that goes with it.
RHO_BARS = ((0.5, 0.5), (1.0, 1.0), (2.0, 1.0), (math.inf, 1.0))
C_BARS = (0.0, 0.25, 0.5, 1.0, 2.0, math.inf)  # with ρ̄ = ∞, so that all are allowed
WITHIN = 1e-6  # of the fixed point, from values that are wrong by one
STEPS, WALKS = 60, 2000  # of the trajectories whose targets are sampled


class Case(NamedTuple):
    """A random MDP, a target policy and a behaviour policy."""

    mdp: Mdp
    pi: Array
    mu: Array


class Found(NamedTuple):
    """What one pair of levels does to one MDP."""

    rho_bar: float
    c_bar: float
    from_truncated: float  # |fixed point − V of π_ρ̄|, largest over states
    from_target: float  # |fixed point − V of π|
    from_behaviour: float  # |fixed point − V of μ|
    modulus: float
    bound: float
    applications: int
    deviation: float  # of sampled targets, mean over states
    bias: float  # |mean of sampled targets − R V| in standard errors, mean over states


def case(seed: int) -> Case:
    """The MDP of this seed."""
    rng = np.random.default_rng(seed)
    mdp = random_mdp(rng, STATES, ACTIONS, DISCOUNT)
    return Case(mdp, random_policy(rng, STATES, ACTIONS), random_policy(rng, STATES, ACTIONS))


def measure(seed: int, rho_bar: float, c_bar: float) -> Found:
    """The operator of these levels, exactly, and the library's targets on sampled trajectories."""
    mdp, pi, mu = case(seed)
    operator = VTraceOperator(mdp, pi, mu, rho_bar=rho_bar, c_bar=c_bar)
    fixed = operator.fixed_point

    def apart(policy: Array) -> float:
        return float(np.abs(fixed - mdp.value(policy)).max())

    deviation, bias = _sampled(seed, rho_bar, c_bar, operator)
    return Found(
        rho_bar,
        c_bar,
        apart(truncated_policy(pi, mu, rho_bar)),
        apart(pi),
        apart(mu),
        operator.modulus,
        operator.bound,
        operator.applications(fixed + 1.0, WITHIN),
        deviation,
        bias,
    )


@partial(jax.jit, static_argnames=("rho_bar", "c_bar"))
def _targets(
    values: Array, reward: Array, discount: Array, ratio: Array, *, rho_bar: float, c_bar: float
) -> Array:
    """v of each trajectory's first state, `[walks]`, as agents compute it."""
    levels = {"rho_bar": rho_bar, "c_bar": c_bar}
    vtrace = jax.vmap(lambda v, r, k: returns.vtrace(v, r, discount, discount > 0, k, **levels))
    return vtrace(values, reward, ratio).targets[:, 0]


def _sampled(seed: int, rho_bar: float, c_bar: float, operator: VTraceOperator) -> tuple:
    """The deviation of targets from where V is 0, and how far their mean is from R V."""
    mdp, pi, mu = case(seed)
    rng = np.random.default_rng([seed, 1])
    zero, deviations, errors = np.zeros(STATES), [], []
    for state in range(STATES):
        states, actions = mdp.walk(mu, rng, state, WALKS, STEPS)
        targets = np.asarray(
            _targets(
                zero[states].astype(np.float32),
                mdp.reward[states[:, :-1], actions].astype(np.float32),
                np.full(STEPS, DISCOUNT, np.float32),
                (pi / mu)[states[:, :-1], actions].astype(np.float32),
                rho_bar=rho_bar,
                c_bar=c_bar,
            ),
            np.float64,
        )
        deviations.append(targets.std())
        standard_error = targets.std() / WALKS**0.5
        errors.append(abs(targets.mean() - operator(zero)[state]) / standard_error)
    return float(np.mean(deviations)), float(np.mean(errors))


def run(settings: VTraceAnalysis) -> str:
    """Compute it all, which takes a minute; write the tables and the picture."""
    configure_jax()
    if settings.quick:
        settings = dataclasses.replace(settings, seeds=max(1, settings.seeds // 5))
    settings.results.mkdir(parents=True, exist_ok=True)
    pairs = [*RHO_BARS, *((math.inf, c_bar) for c_bar in C_BARS if c_bar != 1.0)]
    found = {pair: [measure(seed, *pair) for seed in range(settings.seeds)] for pair in pairs}
    with (settings.results / "vtrace-analysis.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["mdp", *Found._fields])
        for rows in found.values():
            writer.writerows([seed, *row] for seed, row in enumerate(rows))
    picture = settings.results / "vtrace-analysis.png"
    _draw(found, picture)
    return "\n\n".join([fixed_points(found), speeds(found), str(picture)])


_All = dict[tuple[float, float], list[Found]]


def _level(x: float) -> str:
    return "∞" if math.isinf(x) else f"{x:g}"


def _over(rows: list[Found], field: str, form: str = ".3g") -> str:
    """Mean over MDPs, and the 95 % interval."""
    value = interval([getattr(row, field) for row in rows])
    if value.high < 1e-9:  # rounding
        return "0"
    return f"{value.mean:{form}} [{value.low:{form}}, {value.high:{form}}]"


def fixed_points(found: _All) -> str:
    """Whose value is found, by ρ̄: a table in Markdown."""
    lines = [
        "| ρ̄ | c̄ | from V of π_ρ̄, the most | from V of π | from V of μ |",
        "|---|---|---|---|---|",
    ]
    for pair in RHO_BARS:
        rows = found[pair]
        most = max(row.from_truncated for row in rows)
        cells = [_level(pair[0]), _level(pair[1]), f"{most:.0e}"]
        cells += [_over(rows, "from_target"), _over(rows, "from_behaviour")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def speeds(found: _All) -> str:
    """How fast, and at what variance, by c̄: a table in Markdown."""
    lines = [
        "| ρ̄ | c̄ | from V of π, the most | contraction | bound | times applied | deviation of a"
        " target | its mean, in standard errors from R V |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for c_bar in C_BARS:
        rows = found[math.inf, c_bar]
        most = max(row.from_target for row in rows)
        cells = [_level(math.inf), _level(c_bar), f"{most:.0e}"]
        cells += [_over(rows, k) for k in ("modulus", "bound")]
        cells += [_over(rows, "applications", ".0f")]
        cells += [_over(rows, k, ".2g") for k in ("deviation", "bias")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _draw(found: _All, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), constrained_layout=True)
    names = [_level(rho_bar) for rho_bar, _ in RHO_BARS]
    for field, label in (
        ("from_target", "from V of π"),
        ("from_behaviour", "from V of μ"),
        ("from_truncated", "from V of π_ρ̄"),
    ):
        values = [interval([getattr(r, field) for r in found[pair]]) for pair in RHO_BARS]
        error = [[v.mean - v.low for v in values], [v.high - v.mean for v in values]]
        left.errorbar(names, [v.mean for v in values], error, capsize=3, marker=".", label=label)
    left.set_xlabel("ρ̄")
    left.set_ylabel("distance of the fixed point")
    left.legend(fontsize=8)
    for c_bar in C_BARS:
        rows = found[math.inf, c_bar]
        label = f"c̄ = {_level(c_bar)}"
        middle.plot([r.bound for r in rows], [r.modulus for r in rows], ".", label=label)
    middle.plot([0, 1], [0, 1], "k:", linewidth=0.8)
    middle.set_xlim(0, 1)
    middle.set_ylim(0, 1)
    middle.set_xlabel("bound 1 − (1 − γ) Σ γ^i E[(Π c) ρ]")
    middle.set_ylabel("measured contraction")
    middle.legend(fontsize=8)
    names = [_level(c_bar) for c_bar in C_BARS]
    twin = right.twinx()
    for axis, field, colour in ((right, "applications", "C0"), (twin, "deviation", "C1")):
        values = [interval([getattr(r, field) for r in found[math.inf, c]]) for c in C_BARS]
        error = [[v.mean - v.low for v in values], [v.high - v.mean for v in values]]
        axis.errorbar(names, [v.mean for v in values], error, capsize=3, marker=".", color=colour)
    right.set_xlabel("c̄ (ρ̄ = ∞)")
    right.set_ylabel("times R is applied to be within 1e-6", color="C0")
    twin.set_ylabel("standard deviation of a target", color="C1")
    twin.set_yscale("log")
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
