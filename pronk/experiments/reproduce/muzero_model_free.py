"""MuZero beside Q-learning with the same network, and IMPALA, on Breakout in 10 × 10.

Schrittwieser et al. 2020, "MuZero" (arXiv:1911.08265), figure 3C: the same network and the same
data, learnt by R2D2's targets and without a search.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pronk.agents.muzero_config import PRESETS
from pronk.experiments.reproduce import common, matrix
from pronk.experiments.reproduce.common import Row, select, unique
from pronk.experiments.reproduce.matrix import Variant
from pronk.experiments.reproduce.settings import ModelFree
from pronk.report.runs import EVALUATION
from pronk.run.setup import configure_jax

NAME = "muzero-model-free"
TASK, ENV = "Breakout", "pronk/Breakout-v0"
EVALUATIONS, EPISODES = 20, 32
_MUZERO = PRESETS["minatar"]
# As in MuZero's: the representation ends in a layer of `model_units`, and so does each head's
# hidden layer.
_SIZES = (*_MUZERO["hidden_sizes"], _MUZERO["model_units"])
_NETWORK: dict[str, Any] = {"torso": _MUZERO["torso"], "hidden_sizes": _SIZES}
_DISCOUNT = 0.997  # MuZero's default
VARIANTS = {
    "MuZero": Variant("muzero", {"preset": "minatar", "discount": _DISCOUNT}),
    "Q-learning": Variant(
        "r2d2",
        {
            "preset": "small",
            **_NETWORK,
            "head_units": _MUZERO["model_units"],
            "recurrent_core": "none",
            # The same replay of unrolls, drawn uniformly, as often.
            "sequence_length": _MUZERO["unroll"],
            "overlap": 0,
            "burn_in": 0,
            "priority_exponent": 0.0,
            **{
                name: _MUZERO[name]
                for name in (
                    *("unroll", "batch_size", "replay_capacity", "replay_minimum"),
                    *("samples_per_insert", "target_every"),
                )
            },
            "n_steps": _MUZERO["td_steps"],
            "discount": _DISCOUNT,
        },
    ),
    "IMPALA": Variant(
        "impala",
        {"preset": "small", **_NETWORK, "activation": "relu", "separate_value": False}
        | {"reward_scale": 1.0},
    ),
}
SCORES = {"last_evaluations": "last evaluations", "all_episodes": "all episodes of training"}


def run(settings: ModelFree, *, output: Path, results: Path) -> str:
    """Train the missing runs, then write the table and the figure."""
    configure_jax()
    names = common.choose("agents", settings.agents, VARIANTS)
    seeds, steps = settings.seeds, settings.steps
    if settings.quick:
        seeds, steps = 1, max(1, steps // 50)
    done = matrix.train(
        output,
        {TASK: ENV},
        {name: VARIANTS[name] for name in names},
        seeds=seeds,
        steps=steps,
        eval_every=max(1, steps // EVALUATIONS),
        eval_episodes=EPISODES,
        runtime="fused",
    )
    matrix.write(done, results, NAME, f"pronk reproduce {NAME}, {steps:,} agent steps")
    label = "mean return (evaluation)"
    figure = matrix.draw_curves(results, NAME, metric=EVALUATION, label=label)
    return "\n\n".join([table(common.read_csv(results / f"{NAME}-scores.csv")), figure])


def table(rows: Sequence[Row]) -> str:
    """Mean returns by agent: means over seeds with 95 % intervals."""
    lines = []
    for variant in unique(rows, "variant"):
        returns = [
            [x for x in select(rows, score, variant=variant) if np.isfinite(x)] for score in SCORES
        ]
        cells = [common.interval(values).short() if values else "–" for values in returns]
        seeds = len(select(rows, "seed", variant=variant))
        lines.append([variant, *cells, f"{seeds}"])
    return common.markdown([f"mean return in {TASK}", *SCORES.values(), "seeds"], lines)
