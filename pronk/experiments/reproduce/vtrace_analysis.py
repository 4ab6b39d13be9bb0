"""V-trace's theory (Espeholt et al. 2018, section 4.1 and appendix A), measured on random MDPs.

ρ̄ decides the fixed point; c̄ the speed of convergence and the variance of targets. Each is varied
with the other held.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pronk.experiments.reproduce import common
from pronk.experiments.reproduce.common import Interval, interval
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
# The levels (ρ̄, c̄) of which the fixed point is shown.
RHO_BARS = ((0.5, 0.5), (1.0, 1.0), (2.0, 1.0), (math.inf, 1.0))
C_BARS = (0.0, 0.25, 0.5, 1.0, 2.0, math.inf)  # with ρ̄ = ∞, since c̄ may not exceed ρ̄
WITHIN = 1e-6  # distance to the fixed point that ends the iteration; it starts at 1
STEPS, WALKS = 60, 2000  # steps and number of the sampled trajectories


class Case(NamedTuple):
    """A random MDP, a target policy and a behaviour policy."""

    mdp: Mdp
    pi: Array
    mu: Array


class Measured(NamedTuple):
    """The operator of one pair of levels on one MDP."""

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


def measure(seed: int, rho_bar: float, c_bar: float) -> Measured:
    """Measure the exact operator, and the library's targets on sampled trajectories."""
    mdp, pi, mu = case(seed)
    operator = VTraceOperator(mdp, pi, mu, rho_bar=rho_bar, c_bar=c_bar)
    fixed = operator.fixed_point

    def distance(policy: Array) -> float:
        return float(np.abs(fixed - mdp.value(policy)).max())

    deviation, bias = _sampled(seed, rho_bar, c_bar, operator)
    return Measured(
        rho_bar,
        c_bar,
        distance(truncated_policy(pi, mu, rho_bar)),
        distance(pi),
        distance(mu),
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
    """Targets of each trajectory's first state, `[walks]`, as agents compute them."""
    levels = {"rho_bar": rho_bar, "c_bar": c_bar}
    vtrace = jax.vmap(lambda v, r, k: returns.vtrace(v, r, discount, discount > 0, k, **levels))
    return vtrace(values, reward, ratio).targets[:, 0]


def _sampled(
    seed: int, rho_bar: float, c_bar: float, operator: VTraceOperator
) -> tuple[float, float]:
    """`deviation` and `bias` of targets from V = 0."""
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


Results = dict[tuple[float, float], list[Measured]]  # by (ρ̄, c̄), an entry per MDP


def run(settings: VTraceAnalysis, *, results: Path) -> str:
    """Measure all, which takes a minute; write the tables and the figure."""
    configure_jax()
    if settings.quick:
        settings = dataclasses.replace(settings, seeds=max(1, settings.seeds // 5))
    pairs = [*RHO_BARS, *((math.inf, c_bar) for c_bar in C_BARS if c_bar != 1.0)]
    measured = {pair: [measure(seed, *pair) for seed in range(settings.seeds)] for pair in pairs}
    rows = [[seed, *row] for own in measured.values() for seed, row in enumerate(own)]
    common.write_csv(results / "vtrace-analysis.csv", ["mdp", *Measured._fields], rows)
    return "\n\n".join([fixed_points(measured), speeds(measured), str(draw(results))])


def _level(x: float) -> str:
    return "∞" if math.isinf(x) else f"{x:g}"


def _over(rows: list[Measured], field: str) -> Interval:
    """Mean over MDPs, and the 95 % interval."""
    return interval([getattr(row, field) for row in rows])


def _cell(rows: list[Measured], field: str, form: str = ".3g") -> str:
    value = _over(rows, field)
    if value.high < 1e-9:  # rounding
        return "0"
    return f"{value.mean:{form}} [{value.low:{form}}, {value.high:{form}}]"


def fixed_points(measured: Results) -> str:
    """A Markdown table by ρ̄: whose value the fixed point is."""
    lines = []
    for pair in RHO_BARS:
        rows = measured[pair]
        most = max(row.from_truncated for row in rows)
        cells = [_level(pair[0]), _level(pair[1]), f"{most:.0e}"]
        lines.append([*cells, _cell(rows, "from_target"), _cell(rows, "from_behaviour")])
    header = ["ρ̄", "c̄", "largest distance from V of π_ρ̄", "from V of π", "from V of μ"]
    return common.markdown(header, lines)


def speeds(measured: Results) -> str:
    """A Markdown table by c̄: speed of convergence and variance."""
    lines = []
    for c_bar in C_BARS:
        rows = measured[math.inf, c_bar]
        cells = [_level(math.inf), _level(c_bar), f"{max(row.from_target for row in rows):.0e}"]
        cells += [_cell(rows, k) for k in ("modulus", "bound")]
        cells += [_cell(rows, "applications", ".0f")]
        lines.append([*cells, *(_cell(rows, k, ".2g") for k in ("deviation", "bias"))])
    header = [
        *("ρ̄", "c̄", "largest distance from V of π", "contraction", "bound", "iterations"),
        *("deviation of a target", "its mean, in standard errors from R V"),
    ]
    return common.markdown(header, lines)


def draw(results: Path) -> Path:
    """Draw the figure from the table in `results`."""
    measured: Results = {}
    for row in common.read_csv(results / "vtrace-analysis.csv"):
        values = Measured(**{name: row[name] for name in Measured._fields})
        measured.setdefault((values.rho_bar, values.c_bar), []).append(values)
    figure, axes = common.panels(2, 2, 4.9, 3.3)
    left, contraction, iterations, deviation = axes.flat

    def points(axis: Any, pairs: Any, field: str, i: int, label: str, **style: Any) -> None:
        values = [_over(measured[pair], field) for pair in pairs]
        at = np.arange(len(values)) + style.pop("shift", 0.0)
        style = {"marker": "o", "markersize": 5, "color": common.COLOURS[i], **style}
        common.draw_points(axis, at, values, label=label, **style)

    def ticks(axis: Any, levels: Any, label: str) -> None:
        axis.set_xticks(range(len(levels)), map(_level, levels))
        axis.set_xlabel(label)

    points(left, RHO_BARS, "from_target", 0, "to the value of the target policy π")
    points(left, RHO_BARS, "from_behaviour", 1, "to the value of the behaviour policy μ")
    points(
        left,
        RHO_BARS,
        "from_truncated",
        2,
        r"to the value of the truncated policy $\pi_{\bar\rho}$",
    )
    left.set_ylabel("distance of the fixed point\n(largest over states)")
    ticks(left, [rho_bar for rho_bar, _ in RHO_BARS], "ρ̄ (c̄ = min(1, ρ̄))")
    pairs = [(math.inf, c_bar) for c_bar in C_BARS]
    options = {"linestyle": "none", "shift": -0.1}
    points(contraction, pairs, "modulus", 3, "contraction, measured", **options)
    options = {"linestyle": "none", "shift": 0.1, "marker": "x"}
    points(contraction, pairs, "bound", 6, "contraction, bound of the paper's appendix", **options)
    contraction.set_ylabel("contraction factor")
    points(iterations, pairs, "applications", 4, "")
    iterations.set_ylabel("iterations until within $10^{-6}$\nof the fixed point")
    points(deviation, pairs, "deviation", 5, "")
    deviation.set_ylabel("standard deviation\nof a sampled target")
    deviation.set_yscale("log")
    for axis in (contraction, iterations, deviation):
        ticks(axis, C_BARS, "c̄ (ρ̄ = ∞)")
    note = "mean over random MDPs; bars: 95 % bootstrap interval of the mean"
    return common.save(figure, results / "vtrace-analysis.png", note, columns=2)
