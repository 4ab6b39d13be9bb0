"""TD(λ) on the random walk of 19 states: RMS errors as in Sutton and Barto 2018, chapter 12.

Values begin at 0; the error is the root mean square over states, after each of the first ten
episodes, averaged over them and over runs (there: figures 12.6 and 12.8).
"""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pronk.experiments.reproduce.common import Interval, interval
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


def run(settings: TDLambda) -> str:
    """Compute it all, which takes a minute; write the table and the picture."""
    configure_jax()
    if settings.quick:
        settings = dataclasses.replace(settings, seeds=max(1, settings.seeds // 5))
    settings.results.mkdir(parents=True, exist_ok=True)
    walks = random_walks(np.random.default_rng(0), (settings.seeds, EPISODES))
    found = {}
    for method, options in METHODS.items():
        errors = jax.jit(_errors, static_argnames=("online", "trace"))
        found[method] = np.asarray(
            errors(
                walks, np.array(LAMBDAS, np.float32), np.array(STEP_SIZES, np.float32), **options
            )
        )
    return _write(found, settings.results)


def _errors(walks: Walk, lambdas: Array, step_sizes: Array, **options: Any) -> Array:
    """Of each λ, step size and run, `[L, A, R]`."""
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


def _write(found: dict[str, Array], results: Path) -> str:
    """The CSV of every run's errors, the picture, and the table as text."""
    with (results / "td-lambda.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "lambda", "step_size", "rms_error", "low", "high", "runs"])
        for method, errors in found.items():
            for i, lambda_ in enumerate(LAMBDAS):
                for j, step_size in enumerate(STEP_SIZES):
                    value = _interval(errors[i, j])
                    row = [f"{x:.5g}" for x in value]
                    writer.writerow([method, lambda_, step_size, *row, errors.shape[-1]])
    picture = results / "td-lambda.png"
    _draw(found, picture)
    lines = ["least RMS error of all step sizes (mean over runs, 95 % interval), and where"]
    for method, errors in found.items():
        for i, lambda_ in enumerate(LAMBDAS):
            j = _best(errors[i])
            value = _interval(errors[i, j])
            lines.append(f"{method:18} λ = {lambda_:<6} {value!s:28} α = {STEP_SIZES[j]}")
    return "\n".join([*lines, str(picture)])


def _interval(errors: Array) -> Interval:
    """Over runs; infinite where one diverged."""
    finite = np.isfinite(errors).all()
    return interval(errors.tolist()) if finite else Interval(np.inf, np.inf, np.inf)


def _best(errors: Array) -> int:
    """The step size of the least mean error; `errors` `[A, R]`."""
    return int(np.where(np.isfinite(errors), errors, np.inf).mean(-1).argmin())


def _draw(found: dict[str, Array], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(15, 3.8), constrained_layout=True, sharey=True)
    for axis, (method, errors) in zip(axes, found.items(), strict=False):
        for i, lambda_ in enumerate(LAMBDAS):
            axis.plot(STEP_SIZES, errors[i].mean(-1), label=f"λ = {lambda_}", color=f"C{i}")
        axis.set_title(method)
        axis.set_xlabel("step size α")
    for method, errors in found.items():
        best = [_interval(errors[i, _best(errors[i])]) for i in range(len(LAMBDAS))]
        (line,) = axes[-1].plot(LAMBDAS, [b.mean for b in best], marker=".", label=method)
        axes[-1].fill_between(
            LAMBDAS, [b.low for b in best], [b.high for b in best],
            color=line.get_color(), alpha=0.2,
        )  # fmt: skip
    axes[-1].set_title("best step size")
    axes[-1].set_xlabel("λ")
    axes[0].set_ylabel("RMS error, first 10 episodes")
    axes[0].set_ylim(0.2, 0.56)
    axes[0].legend(fontsize=7)
    axes[-1].legend(fontsize=7)
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
