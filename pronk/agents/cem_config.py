"""The cross-entropy method's configuration.

Sources: [SL06] Szita and Lőrincz 2006, "Learning Tetris Using the Noisy Cross-Entropy Method".
[D16] Duan et al. 2016, "Benchmarking Deep Reinforcement Learning for Continuous Control", and its
code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pronk.agents import evolution_config
from pronk.config.fields import number
from pronk.errors import UserError

RUN_DEFAULTS = evolution_config.RUN_DEFAULTS
CAPABILITIES = evolution_config.CAPABILITIES
preset_for = evolution_config.preset_for


@dataclass(frozen=True)
class Config(evolution_config.Config):
    """The cross-entropy method with extra noise."""

    population_size: int = number(100, at_least=2, source="D16")
    """Members of a generation."""
    elite_fraction: float = number(0.05, above=0, at_most=1, source="D16")
    """Fraction of the members, the best ones, that the next generation is made from."""
    search_std: float = number(1.0, above=0, source="D16")
    """Standard deviation of each parameter in the first generation, without the extra noise."""
    extra_std: float = number(1.0, at_least=0, source="D16", tune=True)
    """Standard deviation of the extra noise in the first generation."""
    extra_generations: int = number(100, above=0, source="D16")
    """Generations in which the variance of the extra noise goes to 0, linearly."""

    @property
    def elite(self) -> int:
        """The number of members that the next generation is made from."""
        return round(self.population_size * self.elite_fraction)

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return ("extra_std",)

    def check(self) -> None:
        """Raise UserError for an elite of no member, or of all of them."""
        if not 1 <= self.elite < self.population_size:
            raise UserError(
                f"`--elite-fraction` is {self.elite_fraction:g} and `--population-size`"
                f" {self.population_size}, so that the elite has {self.elite} members; expected at"
                f" least 1 and fewer than {self.population_size}: give a fraction from"
                f" {1 / self.population_size:.2g} to {1 - 1 / self.population_size:.2g}."
            )


# Differences from the defaults. Values without a source come from measurements (docs/agents).
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    # [D16].
    "duan": evolution_config.DUAN,
    # Small problems.
    "small": {"population_size": 40, "elite_fraction": 0.2, "extra_generations": 40},
}
