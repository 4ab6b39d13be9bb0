"""TRPO's configuration.

Sources: [S15] Schulman et al. 2015, "Trust Region Policy Optimization". [BL] OpenAI Baselines'
trpo_mpi. [D16] Duan et al. 2016, "Benchmarking Deep Reinforcement Learning for Continuous Control".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pronk.agents import on_policy_config, trust_region_config
from pronk.config.fields import number

RUN_DEFAULTS = on_policy_config.RUN_DEFAULTS
CAPABILITIES = on_policy_config.CAPABILITIES
preset_for = on_policy_config.preset_for


@dataclass(frozen=True)
class Config(trust_region_config.Config):
    """TRPO: the defaults are those of its public code for MuJoCo."""

    max_kl: float = number(0.01, above=0, limit=100, source="S15, section 8", tune=(1e-3, 1e-1))
    """δ, the largest mean KL(π_old ‖ π) of a step."""
    search_shrink: float = number(0.5, above=0, below=1, source="BL")
    """Factor by which the step shrinks until it is accepted."""
    search_trials: int = number(10, above=0, source="BL")
    """Steps that are tried; if none is accepted, the policy stays as it is."""

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return (*super().hyper_names(), "max_kl", "search_shrink")


# Differences from the defaults. Values without a source come from measurements (docs/agents).
PRESETS: dict[str, dict[str, Any]] = {
    # [BL, MuJoCo].
    "paper": {},
    "atari": trust_region_config.ATARI,
    # [D16].
    "duan": on_policy_config.DUAN | {"damping": 1e-5, "search_shrink": 0.8, "search_trials": 15},
    # Small problems.
    "small": on_policy_config.SMALL,
}
