"""SAC's configuration: presets of the paper's table, and of fewer random steps at the start.

Source: [H18] Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications"
(arXiv:1812.05905), table 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pronk.agents import continuous_q_config
from pronk.config.fields import number

RUN_DEFAULTS = continuous_q_config.RUN_DEFAULTS
CAPABILITIES = continuous_q_config.CAPABILITIES


@dataclass(frozen=True)
class Config(continuous_q_config.Config):
    """SAC: the defaults are the paper's."""

    target_entropy: float = number(-1.0, at_least=-1e6, source="H18, table 1: −dim(A)")
    """Entropy that the temperature aims at, for each action dimension, in nats, of actions on the
    scale where ±1 are their bounds (uniform ones have ln 2 = 0.69)."""
    initial_temperature: float = number(1.0, above=0, source="H18, code")
    """α at the start."""
    temperature_learning_rate: float = number(
        3e-4, at_least=0, limit=10, source="H18, table 1", tune=True
    )
    """Adam's learning rate of log α; 0: the temperature stays as it is."""

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return (*super().hyper_names(), "target_entropy", "temperature_learning_rate")


# Differences from the defaults. Values without a source come from measurements (docs/agents).
PRESETS: dict[str, dict[str, Any]] = {
    # [H18, table 1].
    "paper": {},
    # Any environment.
    "continuous": {"replay_minimum": 1000},
}


def preset_for(*, atari: bool, continuous: bool) -> str:
    """The preset that `--preset auto` selects for an environment of this kind."""
    del atari, continuous
    return "continuous"
