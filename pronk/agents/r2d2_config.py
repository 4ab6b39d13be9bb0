"""R2D2's configuration: the paper's table, and presets that learn on one small machine.

Sources: [K19] Kapturowski et al. 2019, "Recurrent Experience Replay in Distributed Reinforcement
Learning", section 2.3 and table 2; [H18] Horgan et al. 2018, "Distributed Prioritized Experience
Replay" (Ape-X), which that table refers to for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pronk.errors import UserError


@dataclass(frozen=True)
class Config:
    """R2D2: the defaults are the paper's for Atari."""

    unroll: int = 40
    """Agent steps that an actor takes with the same parameters. The paper's actors fetch new ones
    every 400. [K19, table 2]"""
    batch_size: int = 64
    """Sequences per update. [K19, table 2]"""
    discount: float = 0.997
    """γ. [K19, table 2]"""
    sequence_length: int = 80
    """Transitions of a sequence that are learnt from, m. [K19, table 2]"""
    overlap: int = 40
    """Transitions that neighbouring sequences share. [K19, 2.3]"""
    burn_in: int = 40
    """Rows before a sequence that only bring the recurrent state up to date, l. [K19, table 2]"""
    stored_state: bool = True
    """Begin the burn-in, or the sequence, with the recurrent state that the actor had there;
    otherwise with zeros. [K19, section 3]"""
    returns: Literal["n-step", "retrace"] = "n-step"
    """Targets: n-step double Q-learning, or Retrace(λ) for the greedy policy. [K19, 2.3; Munos et
    al. 2016]"""
    n_steps: int = 5
    """Rewards in an n-step return. [K19, 2.3]"""
    trace_lambda: float = 0.95
    """λ of Retrace. [Agent57, Badia et al. 2020]"""
    rescaling: Literal["sqrt", "log", "none"] = "sqrt"
    """h, by which action values are transformed instead of clipping rewards. [K19, 2.3]"""
    rescaling_epsilon: float = 1e-3
    """ε of the sqrt. [K19, table 2]"""
    reward_clip: float = 0.0
    """Rewards are clipped to ± this; 0 leaves them alone. The paper's `Clipped` variant: 1, and
    no rescaling. [K19, section 5]"""
    replay_capacity: int = 4_000_000
    """Agent steps held. [K19, table 2]"""
    replay_minimum: int = 5_000
    """Sequences held before the first update. [Ape-X holds 50,000 transitions: H18, 4.1]"""
    samples_per_insert: float = 0.2
    """Draws of a sequence for each that is inserted; whoever is ahead waits. [K19, 2.3: 5 updates
    of 64 for 256 × 260 steps a second]"""
    replay_eviction: Literal["fifo", "lowest-priority"] = "fifo"
    """Which sequence makes room."""
    replay_compress: bool = False
    """Pack frames: a seventh of the memory on Atari, for slower batches."""
    replay_saved: bool = True
    """Save the replay with the run. Otherwise a resumed run fills it anew."""
    priority_exponent: float = 0.9
    """Sequences are drawn in proportion to priority to this power. [K19, table 2]"""
    priority_mixture: float = 0.9
    """η: a priority is η max |δ| + (1 - η) mean |δ|. [K19, 2.3]"""
    importance_exponent: float = 0.6
    """β: losses are weighted by (1 / probability)^β, divided by the batch's largest. [K19, table
    2]"""
    target_every: int = 2500
    """Updates between copies of the network to the target network. [K19, table 2]"""
    learning_rate: float = 1e-4
    """Adam's. [K19, table 2]"""
    optimiser_epsilon: float = 1e-3
    """Adam's ε. [K19, table 2]"""
    max_gradient_norm: float = 40.0
    """Global norm to which gradients are clipped. [H18, appendix C]"""
    loss_reduction: Literal["sum", "mean"] = "sum"
    """Over a sequence's transitions; over sequences it is the mean."""
    epsilon_greedy: float = 0.4
    """ε of the actors: environment i of N acts at random with ε^(1 + 7 i / (N - 1)). [H18, 4.1]"""
    epsilon_alpha: float = 7.0
    """α there. [H18, 4.1]"""
    torso: Literal["auto", "mlp", "shallow", "nature", "deep"] = "nature"
    """Feature extractor of images. [K19, 2.3: as DQN's]"""
    hidden_sizes: tuple[int, ...] = (512,)
    """Layer widths after convolutions, or of the MLP. [K19, 2.3]"""
    activation: Literal["relu", "tanh"] = "relu"
    """Between layers of the MLP."""
    recurrent_core: Literal["none", "lstm", "gru"] = "lstm"
    """Recurrent core; last action and reward become inputs. `none` is the paper's feed-forward
    variant. [K19, 2.3]"""
    recurrent_units: int = 512
    """Units of the recurrent core. [K19, 2.3]"""
    head_units: int = 512
    """Units of the hidden layers of value and advantage; 0 for none. [Wang et al. 2016]"""
    encoder_dtype: Literal["float32", "bfloat16"] = "float32"
    """What convolutions and dense layers before the core compute in. bfloat16 is for
    accelerators."""

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return (
            *("learning_rate", "optimiser_epsilon", "max_gradient_norm", "discount"),
            *("trace_lambda", "importance_exponent", "priority_mixture"),
        )

    def check(self) -> None:
        """Raise UserError for an overlap, or a minimum, that the sequences do not allow."""
        if not 0 <= self.overlap < self.sequence_length:
            raise UserError(
                f"`--overlap` is {self.overlap}; expected from 0 to less than `--sequence-length`,"
                f" which is {self.sequence_length}."
            )
        stride = self.sequence_length - self.overlap
        if self.replay_minimum * stride > self.replay_capacity:
            raise UserError(
                f"`--replay-minimum` is {self.replay_minimum} sequences, one per {stride} steps,"
                f" and `--replay-capacity` {self.replay_capacity} steps: expected room for all of"
                " them."
            )


# What differs from the defaults. Values without a source were found by measuring (docs/agents).
PRESETS: dict[str, dict[str, Any]] = {
    # [K19, table 2]: made for 10 billion frames.
    "paper": {},
    # For a few million agent steps on one small machine.
    "atari": {
        "torso": "shallow",
        "hidden_sizes": (256,),
        "recurrent_units": 256,
        "head_units": 256,
        "batch_size": 16,
        "sequence_length": 20,
        "overlap": 10,
        "burn_in": 5,
        "unroll": 20,
        "discount": 0.99,
        "replay_capacity": 400_000,
        "replay_minimum": 500,
        "samples_per_insert": 2.0,
        "target_every": 250,
        "learning_rate": 2e-4,
        "optimiser_epsilon": 1e-7,
        "loss_reduction": "mean",
    },
    # Small problems.
    "small": {
        "torso": "auto",
        "hidden_sizes": (64,),
        "recurrent_units": 64,
        "head_units": 64,
        "batch_size": 32,
        "sequence_length": 20,
        "overlap": 10,
        "burn_in": 10,
        "unroll": 10,
        "discount": 0.99,
        "replay_capacity": 200_000,
        "replay_minimum": 100,
        "samples_per_insert": 16.0,
        "target_every": 100,
        "learning_rate": 5e-4,
        "optimiser_epsilon": 1e-5,
        "loss_reduction": "mean",
    },
}


# Arguments of Atari games unless given: a lost life ends nothing. [K19, 2.3] With `life_loss=true`
# it is the paper's `reset` variant, with `life_loss=roll` its `roll`. [K19, section 5]
ATARI_ARGS: dict[str, Any] = {"life_loss": False}


# What `pronk pbt` adapts unless told otherwise, and the ranges of first values: no paper does, so a
# wide range about Adam's usual rates, and the others from the run's own.
TUNE = ("learning_rate=1e-5:1e-2", "optimiser_epsilon", "max_gradient_norm")


# What `pronk list` says of the agent.
SUPPORTS = {
    "actions": "Discrete, masks",
    "observations": "Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple of them; pixels",
    "memory": "none, LSTM, GRU",
    "runtimes": "local (threads or processes), deterministic; fused (drawing uniformly)",
    "presets": ", ".join(PRESETS),
    "tuned by pbt": ", ".join(TUNE),
}


def preset_for(*, atari: bool, continuous: bool) -> str:
    """The preset `--preset auto` means for an environment of this kind."""
    del continuous
    return "atari" if atari else "small"
