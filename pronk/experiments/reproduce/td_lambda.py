"""TD(λ) on the random walk of 19 states: RMS errors as in Sutton and Barto 2018, chapter 12.

Values begin at 0; the error is the root mean square over states, after each of the first ten
episodes, averaged over them and over runs (there: figures 12.6 and 12.8).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pronk.experiments.reproduce import common
from pronk.experiments.reproduce.common import Interval, Row, unique
from pronk.experiments.reproduce.settings import TDLambda
from pronk.maths.tabular import Walk, random_walk_values, random_walks
from pronk.maths.td_lambda import td_lambda
from pronk.run.setup import configure_jax
from pronk.types import Array

LAMBDAS = (0.0, 0.4, 0.8, 0.9, 0.95, 0.975, 0.99, 1.0)
STEP_SIZES = tuple(
    np.round(np.concatenate([np.arange(0, 0.1, 0.01), np.arange(0.1, 1.01, 0.05)]), 3)
)
EPISODES = 10
METHODS: dict[str, dict[str, Any]] = {
    "off-line TD(λ)": {"online": False},
    "TD(λ)": {},
    "true online TD(λ)": {"trace": "dutch"},
}


def run(settings: TDLambda, *, results: Path) -> str:
    """Compute all errors, which takes a minute; write the table and the figure."""
    configure_jax()
    if settings.quick:
        settings = dataclasses.replace(settings, seeds=max(1, settings.seeds // 5))
    walks = random_walks(np.random.default_rng(0), (settings.seeds, EPISODES))
    compute = jax.jit(_errors, static_argnames=("online", "trace"))
    lambdas, step_sizes = np.array(LAMBDAS, np.float32), np.array(STEP_SIZES, np.float32)
    table = []
    for method, options in METHODS.items():
        errors = np.asarray(compute(walks, lambdas, step_sizes, **options))
        for i, lambda_ in enumerate(LAMBDAS):
            for j, step_size in enumerate(STEP_SIZES):
                row = [f"{x:.5g}" for x in _interval(errors[i, j])]
                table.append([method, lambda_, step_size, *row, errors.shape[-1]])
    header = ["method", "lambda", "step_size", "rms_error", "low", "high", "runs"]
    common.write_csv(results / "td-lambda.csv", header, table)
    rows = common.read_csv(results / "td-lambda.csv")
    lines = ["least RMS error of all step sizes (mean over runs, 95 % interval), and its step size"]
    for method in METHODS:
        for lambda_ in LAMBDAS:
            best = _best(rows, method, lambda_)
            value = Interval(best["rms_error"], best["low"], best["high"])
            lines.append(f"{method:18} λ = {lambda_:<6} {value!s:28} α = {best['step_size']}")
    return "\n".join([*lines, str(draw(results))])


def _errors(walks: Walk, lambdas: Array, step_sizes: Array, **options: Any) -> Array:
    """The error of each λ, step size and run, `[L, A, R]`."""
    truth = jnp.asarray(random_walk_values(), jnp.float32)

    def of_run(lambda_: Array, step_size: Array, walk: Walk) -> Array:
        def episode(weights: Array, walk: Walk) -> tuple[Array, Array]:
            weights = td_lambda(weights, *walk, step_size=step_size, lambda_=lambda_, **options)
            return weights, jnp.sqrt(jnp.mean(jnp.square(weights - truth)))

        _, errors = jax.lax.scan(episode, jnp.zeros_like(truth), walk)
        return errors.mean()

    over_runs = jax.vmap(of_run, (None, None, 0))
    over_steps = jax.vmap(over_runs, (None, 0, None))
    return jax.vmap(over_steps, (0, None, None))(lambdas, step_sizes, walks)


def _interval(errors: Array) -> Interval:
    """Over runs; infinite where one diverged."""
    finite = np.isfinite(errors).all()
    return common.interval(errors.tolist()) if finite else Interval(np.inf, np.inf, np.inf)


def _best(rows: list[Row], method: str, lambda_: float) -> Row:
    """The row of the step size with the least error."""
    own = [row for row in rows if (row["method"], row["lambda"]) == (method, lambda_)]
    return min(own, key=lambda row: row["rms_error"])


def draw(results: Path) -> Path:
    """Draw the figure from the table in `results`."""
    from matplotlib import colormaps

    rows = common.read_csv(results / "td-lambda.csv")
    methods, lambdas = unique(rows, "method"), unique(rows, "lambda")
    figure, (axes,) = common.panels(1, 1 + len(methods), 3.6, 3.6, sharey=True)
    for axis, method in zip(axes, methods, strict=False):
        for i, lambda_ in enumerate(lambdas):
            own = [row for row in rows if (row["method"], row["lambda"]) == (method, lambda_)]
            colour = colormaps["viridis"](i / len(lambdas))
            x, y = (
                [row[k] if np.isfinite(row[k]) else np.nan for row in own]
                for k in ("step_size", "rms_error")
            )
            axis.plot(x, y, color=colour, label=f"λ = {lambda_:g}")
        axis.set_title(method)
        axis.set_xlabel("step size α")
    for i, method in enumerate(methods):
        best = [_best(rows, method, lambda_) for lambda_ in lambdas]
        values = [[row[k] for row in best] for k in ("rms_error", "low", "high")]
        style = {"marker": ".", "color": common.COLOURS[1 + 2 * i]}
        common.draw_band(axes[-1], lambdas, values, i, f"{method}, best α", **style)
    axes[-1].set_title("the best step size of each λ")
    axes[-1].set_xlabel("trace decay λ")
    axes[0].set_ylabel("RMS error of the values\nin the first 10 episodes")
    axes[0].set_ylim(0.2, 0.56)
    note = "mean over runs; band in the right panel: 95 % bootstrap interval of the mean"
    return common.save(figure, results / "td-lambda.png", note, columns=6)
