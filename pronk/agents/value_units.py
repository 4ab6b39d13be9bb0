"""PopArt's part of an agent: value functions learnt in units of each task's targets.

Hessel et al. 2018, "Multi-task Deep Reinforcement Learning with PopArt"; the mathematics is in
`pronk.maths.popart`. The statistics are `LearnerState.extra["statistics"]`.
"""

from __future__ import annotations

from typing import Any

import jax

from pronk.errors import UserError
from pronk.maths import popart
from pronk.types import Array, EnvSpec, LearnerState, PyTree


def check(config: Any) -> None:
    """Raise UserError for a β that debiasing can't divide by."""
    if config.popart_debias and not 0 < config.popart_beta < 1:
        raise UserError(
            f"`--popart-beta` is {config.popart_beta:g}, which --popart-debias divides by; expected"
            " a number above 0 and below 1."
        )


def renormalize(
    config: Any, state: LearnerState, targets: Array, task: Array, weight: Array
) -> LearnerState:
    """Update the statistics from a batch's targets and, with PopArt, rescale the value head so that
    its outputs do not change; with ART (`value_normalisation="art"`) it stays as it is.

    targets, weight: `[T, B]` in units of reward; task: int32 `[T, B]`.
    """
    old = state.extra["statistics"]
    beta = state.hyper["popart_beta"]
    new = popart.update_statistics(old, targets, task, weight, beta, debias=config.popart_debias)
    extra = state.extra | {"statistics": new}
    if config.value_normalisation == "art":
        return state._replace(extra=extra)
    if "target" in extra:
        extra["target"] = _rescale(extra["target"], old, new)
    return state._replace(params=_rescale(state.params, old, new), extra=extra)


def _rescale(params: PyTree, old: popart.Statistics, new: popart.Statistics) -> PyTree:
    head = params["params"]["value"]
    kernel, bias = popart.rescale_head(head["kernel"], head["bias"], old, new)
    return {"params": params["params"] | {"value": {"kernel": kernel, "bias": bias}}}


def revert_if_skipped(before: LearnerState, after: LearnerState) -> LearnerState:
    """`after`, but with the units of `before` where the gradient was not finite."""
    skipped = after.skipped > before.skipped
    params, extra = jax.tree.map(
        lambda new, old: jax.numpy.where(skipped, old, new),
        (after.params, after.extra),
        (before.params, before.extra),
    )
    return after._replace(params=params, extra=extra)


def metrics(spec: EnvSpec, statistics: popart.Statistics) -> dict[str, Array]:
    """Each task's statistics by name."""
    names = spec.tasks if statistics.mean.shape[0] > 1 else ("all",)
    return {
        f"popart/{kind}/{name}": getattr(statistics, kind)[k]
        for k, name in enumerate(names)
        for kind in ("mean", "deviation")
    }
