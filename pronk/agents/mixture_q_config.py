"""The settings that NGU and Agent57 share: a family of policies, intrinsic rewards, presets.

Sources: [B20] Badia et al. 2020, "Never Give Up: Learning Directed Exploration Strategies"
(arXiv:2002.06038), tables 6 (Atari) and 7 (Disco Maze); what it does not print is R2D2's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pronk.agents import sequence_q_config
from pronk.config.fields import choice, fraction, number
from pronk.errors import UserError

_TABLE = "B20, table 6"

CAPABILITIES = sequence_q_config.CAPABILITIES

# A lost life ends nothing. [B20, appendix F]
ATARI_DEFAULTS: dict[str, Any] = {"life_loss": False}


@dataclass(frozen=True)
class Config(sequence_q_config.Config):
    """What NGU and Agent57 have in common; the defaults are NGU's for Atari."""

    unroll: int = number(100, above=0, source="B20, appendix F: actors fetch parameters every 100")
    """Agent steps that an actor takes with the same parameters."""
    replay_capacity: int = number(5_000_000, above=0, limit=10**12, source=_TABLE)
    """Agent steps that the replay holds."""
    replay_minimum: int = number(6_250, above=0, limit=10**12, source=_TABLE)
    """Sequences held before the first update."""
    target_every: int = number(1500, above=0, limit=2**31 - 1, source=_TABLE)
    """Updates between copies of the network to the target network, and of the learnt embedding to
    the one that actors use."""
    optimiser_epsilon: float = number(1e-4, above=0, source=_TABLE, tune=True)
    """Adam's ε."""
    mixtures: int = number(32, above=0, source=_TABLE)
    """N: pairs (β_i, γ_i) of exploration scale and discount. With i = 0 the agent exploits; 1: it
    only explores."""
    intrinsic_scale: float = number(0.3, at_least=0, source=_TABLE, tune=True)
    """β: the largest of the β_i, by which intrinsic rewards are multiplied."""
    exploratory_discount: float = number(0.99, at_least=0, below=1, source=_TABLE, near_one=True)
    """γ of the most exploratory mixture, i = N − 1."""
    target_epsilon: float = fraction(0.01, source="B20, appendix F")
    """ε of the policy whose values Retrace learns; it is greedy otherwise."""
    evaluation_epsilon: float = fraction(0.01, source=f"{_TABLE}; 0 in table 7")
    """ε of evaluations and of exported policies: a greedy one can walk in circles for ever."""
    episodic: bool = choice(True, source="B20, section 2")
    """Reward novelty within the episode. Otherwise the episodic reward is 1 in every step."""
    memory_size: int = number(30_000, above=0, source=_TABLE)
    """Embeddings of its episode that each environment remembers; the newest are kept."""
    neighbours: int = number(10, above=0, source=_TABLE)
    """k: neighbours to which an embedding is compared."""
    kernel_epsilon: float = number(1e-4, above=0, source=f"{_TABLE}; its text has 1e-3")
    """ε of the inverse kernel."""
    cluster_distance: float = number(0.008, at_least=0, source=_TABLE)
    """ξ: neighbours within this normalised squared distance count as identical."""
    pseudo_count: float = number(0.001, above=0, source=_TABLE)
    """c, which is added to the root of the similarity."""
    max_similarity: float = number(8.0, above=0, source=_TABLE)
    """s_m: no episodic reward above this similarity. With k < 64 none is."""
    distance_decay: float = number(0.99, at_least=0, below=1)
    """Decay per step of the mean distance d²_m of each environment."""
    embedding: Literal["inverse-dynamics", "random"] = choice(
        "inverse-dynamics", source="B20, section 2"
    )
    """Embedding of observations: learnt by predicting the action between two of them, or a random
    network that stays as it is."""
    embedding_size: int = number(32, above=0, source="B20, appendix F")
    """Units of the embedding."""
    inverse_units: int = number(128, above=0, source="B20, appendix F")
    """Units of the hidden layer that predicts the action."""
    inverse_weight_decay: float = number(1e-5, at_least=0, source=_TABLE)
    """Factor of half the squared parameters of embedding and action prediction in their loss."""
    lifelong: bool = choice(True, source="B20, section 2")
    """Multiply by α, the novelty over all episodes, from random network distillation. Otherwise α
    is 1."""
    lifelong_limit: float = number(5.0, at_least=1, source=_TABLE)
    """L: the largest α."""
    lifelong_size: int = number(128, above=0, source="B20, appendix F")
    """Outputs of the random network and of its predictor."""
    error_decay: float = number(0.999, at_least=0, below=1)
    """Decay per step of mean and deviation of each environment's prediction errors."""
    intrinsic_steps: int = number(5, above=0, source="B20, appendix F")
    """Last transitions of each sequence, on which embedding and predictor are trained."""
    intrinsic_learning_rate: float = number(5e-4, above=0, limit=10, source=_TABLE, tune=True)
    """Adam's learning rate of embedding and predictor."""

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return (
            *super().hyper_names(),
            *("discount", "exploratory_discount", "intrinsic_scale", "intrinsic_learning_rate"),
        )

    def _check(self) -> None:
        """Raise UserError for settings that do not go together."""
        super()._check()
        discount: float = self.discount  # type: ignore[attr-defined]  # each agent has its own
        if self.exploratory_discount > discount and self.mixtures > 1:
            raise UserError(
                f"`--exploratory-discount` is {self.exploratory_discount}; expected at most"
                f" `--discount`, which is {discount}: exploration has the shorter horizon."
            )
        if self.episodic and self.neighbours > self.memory_size:
            raise UserError(
                f"`--neighbours` is {self.neighbours}; expected at most `--memory-size`, which is"
                f" {self.memory_size}: an embedding is compared with those remembered."
            )
        if self.intrinsic_steps > self.sequence_length:
            raise UserError(
                f"`--intrinsic-steps` is {self.intrinsic_steps}; expected at most"
                f" `--sequence-length`, which is {self.sequence_length}."
            )


# Presets, as differences from the defaults.

# For a few million agent steps on one small machine: R2D2's, with fewer mixtures.
ATARI: dict[str, Any] = sequence_q_config.ATARI | {
    "exploratory_discount": 0.97,
    "mixtures": 8,
    "memory_size": 3000,
}

# Small problems: R2D2's, with fewer mixtures, and the kernel of [B20, table 7].
SMALL: dict[str, Any] = sequence_q_config.SMALL | {
    "exploratory_discount": 0.97,
    "mixtures": 4,
    "memory_size": 1000,
    "kernel_epsilon": 0.01,
}

preset_for = sequence_q_config.preset_for
