"""CMA-ES's configuration.

Sources: [H16] Hansen 2016, "The CMA Evolution Strategy: A Tutorial". [RH08] Ros and Hansen 2008, "A
Simple Modification in CMA-ES Achieving Linear Time and Space Complexity". [D16] Duan et al. 2016,
"Benchmarking Deep Reinforcement Learning for Continuous Control", and its code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pronk.agents import evolution_config
from pronk.config.fields import choice, number
from pronk.errors import UserError

RUN_DEFAULTS = evolution_config.RUN_DEFAULTS
CAPABILITIES = evolution_config.CAPABILITIES
preset_for = evolution_config.preset_for


@dataclass(frozen=True)
class Config(evolution_config.Config):
    """Evolution strategy with covariance matrix adaptation."""

    population_size: int | None = number(None, at_least=2, source="H16, eq. 48")
    """Members of a generation, λ; by default 4 + ⌊3 ln n⌋, for n parameters."""
    search_std: float = number(1.0, above=0, source="D16")
    """σ in the first generation, the standard deviation of each parameter."""
    mean_rate: float = number(1.0, above=0, at_most=1, source="H16, eq. 54", tune=True)
    """c_m, the rate at which the mean moves towards the weighted mean of the best members."""
    covariance: Literal["auto", "full", "separable"] = choice("auto", source="H16: full")
    """full: of all pairs of parameters, n² numbers and an eigendecomposition each generation.
    separable: a variance of each parameter [RH08]. auto: full for `--full-limit` parameters or
    fewer."""
    full_limit: int = number(500, above=0)
    """The largest number of parameters with a full covariance."""

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return ("mean_rate",)

    def separable(self, size: int) -> bool:
        """Whether the covariance of `size` parameters is diagonal; raises UserError where a full
        one was asked for and is too large."""
        if self.covariance == "full" and size > self.full_limit:
            raise UserError(
                f"`--covariance` is full, and the policy has {size:,} parameters, whose covariance"
                f" would have {size * size:,} entries; expected at most `--full-limit`"
                f" {self.full_limit:,} parameters: use --covariance separable, smaller"
                " `--hidden-sizes`, or a larger `--full-limit`."
            )
        return self.covariance == "separable" or size > self.full_limit


# Differences from the defaults. Values without a source come from measurements (docs/agents).
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    # [D16].
    "duan": evolution_config.DUAN,
    # Small problems.
    "small": {"search_std": 0.5},
}
