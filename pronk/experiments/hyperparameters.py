"""IMPALA's hyperparameters in the experiments on small environments."""

from __future__ import annotations

from typing import Any

# Spelled out, because a preset changes when better values are found, and the committed results
# must remain those of the command. These were preset `small` in version 0.1.0.
SMALL: dict[str, Any] = {
    "batch_size": 16,
    "optimiser": "adam",
    "learning_rate": 3e-3,
    "optimiser_epsilon": 1e-5,
    "loss_reduction": "mean",
    "max_gradient_norm": 0.5,
    "reward_clip": 0.0,
    "reward_scale": 0.1,
    "entropy_cost": 1e-3,
    "hidden_sizes": (64, 64),
    "activation": "tanh",
    "recurrent_units": 64,
}
