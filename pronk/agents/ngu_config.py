"""NGU's configuration: the paper's tables, and presets for one small machine.

Sources: [B20] Badia et al. 2020, "Never Give Up: Learning Directed Exploration Strategies"
(arXiv:2002.06038), table 6; what it shares with Agent57 is in `pronk.agents.mixture_q_config`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pronk.agents import mixture_q_config
from pronk.config.fields import choice, number
from pronk.errors import UserError

ATARI_DEFAULTS = mixture_q_config.ATARI_DEFAULTS
CAPABILITIES = mixture_q_config.CAPABILITIES
preset_for = mixture_q_config.preset_for


@dataclass(frozen=True)
class Config(mixture_q_config.Config):
    """NGU: the defaults are the paper's for Atari."""

    discount: float = number(0.997, at_least=0, below=1, source="B20, table 6", near_one=True)
    """γ of the exploitative mixture, i = 0."""
    extrinsic: bool = choice(True, source="B20, table 3")
    """Learn from the environment's rewards. Otherwise novelty is the only reward, and there is one
    mixture."""

    def _check(self) -> None:
        """Raise UserError for settings that do not go together."""
        super()._check()
        if not self.episodic and not self.lifelong:
            raise UserError(
                "`--no-episodic` and `--no-lifelong` leave no intrinsic reward; expected at most"
                " one of them: use r2d2 for an agent without."
            )
        if not self.extrinsic and self.mixtures > 1:
            raise UserError(
                f"`--no-extrinsic` has `--mixtures {self.mixtures}`; expected `--mixtures 1`: the"
                " exploitative mixture would have no reward at all."
            )


# Differences from the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    # [B20, table 6]: made for 35 billion frames.
    "paper": {},
    "atari": mixture_q_config.ATARI,
    "small": mixture_q_config.SMALL,
    # Random Disco Maze [B20, table 7], smaller: exploration alone, for the fused runtime.
    "maze": {
        "torso": "minatar",
        "hidden_sizes": (128,),
        "recurrent_units": 128,
        "head_units": 128,
        "batch_size": 16,
        "sequence_length": 50,
        "overlap": 0,
        "burn_in": 0,
        "unroll": 50,
        "trace_lambda": 0.97,
        "rescaling": "none",
        "mixtures": 1,
        "intrinsic_scale": 0.5,
        "memory_size": 500,
        "kernel_epsilon": 0.01,
        "evaluation_epsilon": 0.0,
        "replay_capacity": 200_000,
        "replay_minimum": 100,
        "samples_per_insert": 4.0,
        "priority_exponent": 0.0,
        "target_every": 100,
        "learning_rate": 1e-3,
        "intrinsic_learning_rate": 1e-3,
        "loss_reduction": "mean",
    },
}
