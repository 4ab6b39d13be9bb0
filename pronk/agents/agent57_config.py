"""Agent57's configuration: the paper's tables, and presets for one small machine.

Sources: [A57] Badia et al. 2020, "Agent57: Outperforming the Atari Human Benchmark"
(arXiv:2003.13350); what it shares with NGU is in `pronk.agents.mixture_q_config`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pronk.agents import mixture_q_config
from pronk.config.fields import choice, fraction, number
from pronk.errors import UserError

_TABLE = "A57, appendix"

ATARI_DEFAULTS = mixture_q_config.ATARI_DEFAULTS
CAPABILITIES = mixture_q_config.CAPABILITIES
preset_for = mixture_q_config.preset_for

# Members for which the paper defines discounts; see `pronk.maths.intrinsic.long_discounts`.
_ALL_DISCOUNTS = 10


@dataclass(frozen=True)
class Config(mixture_q_config.Config):
    """Agent57: the defaults are the paper's for Atari.

    With `--no-episodic --no-lifelong` there is no intrinsic reward: "R2D2 (bandit)".
    """

    sequence_length: int = number(160, above=0, source=_TABLE)
    """Transitions of a sequence that are learnt from."""
    overlap: int = number(80, at_least=0, source=f"{_TABLE}: replay period 80")
    """Transitions that neighbouring sequences share."""
    importance_exponent: float = number(0.0, at_least=0, limit=100, source=_TABLE)
    """β: losses are weighted by (1 / probability)^β, divided by the batch's largest."""
    discount: float = number(0.9999, at_least=0, below=1, source=_TABLE, near_one=True)
    """γ_0, of the exploitative mixture: the longest horizon."""
    middle_discount: float = number(0.997, at_least=0, below=1, source=_TABLE, near_one=True)
    """γ_7, between the long horizons and the exploratory ones; not used for less than ten
    mixtures."""
    mixing: Literal["transformed", "identity"] = choice("transformed", source="A57, section 3.1")
    """How both networks' values are mixed: h(h⁻¹(q_e) + β_j h⁻¹(q_i)), or q_e + β_j q_i."""
    bandit_window: int = number(160, above=0, source="A57, section 3.2; table 3 has 90")
    """τ: an environment's last episodes, from which its bandit chooses the next mixture."""
    bandit_epsilon: float = fraction(0.5, source=_TABLE)
    """Probability that the bandit chooses any mixture."""
    bandit_bonus: float = number(1.0, at_least=0, source=_TABLE)
    """β of the upper confidence bound, in units of the return."""
    evaluator_decay: float = number(0.999, at_least=0, below=1)
    """Decay per update of the mean returns by which evaluations choose their mixture."""

    @property
    def intrinsic(self) -> bool:
        """Whether there is an intrinsic reward, and therefore a network for its values."""
        return self.episodic or self.lifelong

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return (*super().hyper_names(), "middle_discount")

    def _check(self) -> None:
        """Raise UserError for settings that do not go together."""
        super()._check()
        if self.mixtures < 2:
            raise UserError(
                f"`--mixtures` is {self.mixtures}; expected at least 2, of which the bandit chooses"
                " one for each episode: use ngu or r2d2 for a single policy."
            )
        if self.bandit_window < self.mixtures:
            raise UserError(
                f"`--bandit-window` is {self.bandit_window}; expected at least `--mixtures`, which"
                f" is {self.mixtures}: a shorter window never holds all of them."
            )
        ordered = self.exploratory_discount <= self.middle_discount <= self.discount
        if self.mixtures >= _ALL_DISCOUNTS and not ordered:
            raise UserError(
                f"`--middle-discount` is {self.middle_discount}; expected a number from"
                f" `--exploratory-discount`, {self.exploratory_discount}, to `--discount`,"
                f" {self.discount}."
            )


_LONGER: dict[str, Any] = {"sequence_length": 40, "overlap": 20, "mixtures": 8}
_SHORT: dict[str, Any] = {
    k: v for k, v in mixture_q_config.SMALL.items() if k != "discount"
} | _LONGER

# Differences from the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    # [A57, appendix]: made for 90 billion frames.
    "paper": {},
    # NGU's, with longer sequences and the paper's longest horizon.
    "atari": {k: v for k, v in mixture_q_config.ATARI.items() if k != "discount"} | _LONGER,
    "small": _SHORT,
    # R2D2 with a bandit, on small problems: a family of discounts, no intrinsic reward.
    "r2d2-bandit": _SHORT | {"episodic": False, "lifelong": False},
}
