"""The settings that R2D2, NGU and Agent57 share: replay of sequences, networks, exploration.

Sources: [K19] Kapturowski et al. 2019, "Recurrent Experience Replay in Distributed Reinforcement
Learning", section 2.3 and table 2; [H18] Horgan et al. 2018, "Distributed Prioritized Experience
Replay" (Ape-X), which that table refers to for the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from pronk.config.fields import choice, fraction, number, widths
from pronk.errors import UserError

TABLE = "K19, table 2"

CAPABILITIES = {
    "actions": "Discrete, masks",
    "observations": "Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple of them; pixels",
    "memory": "none, LSTM, GRU",
    "runtimes": "local (threads or Ray), deterministic; fused (drawing uniformly)",
}


@dataclass(frozen=True)
class Config:
    """What R2D2, NGU and Agent57 have in common; the defaults are R2D2's for Atari."""

    # No paper tunes R2D2 by a population: `tune` is a wide range about Adam's usual rates, and
    # begins with the run's own values otherwise.
    unroll: int = number(40, above=0, source=f"{TABLE}: actors fetch new parameters every 400")
    """Agent steps that an actor takes with the same parameters."""
    batch_size: int = number(64, above=0, source=TABLE)
    """Sequences per update."""
    sequence_length: int = number(80, above=0, source=TABLE)
    """Transitions of a sequence that are learnt from, m."""
    overlap: int = number(40, at_least=0, source="K19, 2.3")
    """Transitions that neighbouring sequences share."""
    burn_in: int = number(40, at_least=0, source=TABLE)
    """Rows before a sequence that only bring the recurrent state up to date, l."""
    stored_state: bool = choice(True, source="K19, section 3")
    """Begin the burn-in, or the sequence, with the recurrent state that the actor had there;
    otherwise with zeros."""
    trace_lambda: float = fraction(0.95, source="Agent57, Badia et al. 2020", near_one=True)
    """λ of Retrace."""
    rescaling: Literal["sqrt", "log", "none"] = choice("sqrt", source="K19, 2.3", meaning=True)
    """h, the transform of action values that replaces clipping of rewards."""
    rescaling_epsilon: float = number(1e-3, at_least=0, source=TABLE)
    """ε of the sqrt."""
    replay_capacity: int = number(4_000_000, above=0, limit=10**12, source=TABLE)
    """Agent steps that the replay holds."""
    replay_minimum: int = number(
        5_000, above=0, limit=10**12, source="H18, 4.1: 50,000 transitions"
    )
    """Sequences held before the first update."""
    samples_per_insert: float = number(
        0.2, above=0, source="K19, 2.3: 5 updates of 64 for 256 × 260 steps a second"
    )
    """Draws of a sequence for each one inserted; the side that is ahead waits."""
    replay_eviction: Literal["fifo", "lowest-priority"] = "fifo"
    """Which sequence makes room."""
    replay_compress: bool = False
    """Pack frames: a seventh of the memory on Atari, for slower batches."""
    replay_saved: bool = True
    """Save the replay with the run. Otherwise a resumed run starts with an empty one."""
    priority_exponent: float = number(0.9, at_least=0, limit=100, source=TABLE)
    """Draw sequences in proportion to priority to this power."""
    priority_mixture: float = fraction(0.9, source="K19, 2.3", near_one=True)
    """η: a priority is η max |δ| + (1 - η) mean |δ|."""
    importance_exponent: float = number(0.6, at_least=0, limit=100, source=TABLE)
    """β: losses are weighted by (1 / probability)^β, divided by the batch's largest."""
    target_every: int = number(2500, above=0, limit=2**31 - 1, source=TABLE)
    """Updates between copies of the network to the target network."""
    learning_rate: float = number(1e-4, above=0, limit=10, source=TABLE, tune=(1e-5, 1e-2))
    """Adam's learning rate."""
    optimiser_epsilon: float = number(1e-3, above=0, source=TABLE, tune=True)
    """Adam's ε."""
    max_gradient_norm: float = number(
        40.0, above=0, limit=math.inf, source="H18, appendix C", tune=True
    )
    """Global norm to which gradients are clipped."""
    loss_reduction: Literal["sum", "mean"] = "sum"
    """Reduction of the loss over a sequence's transitions; over sequences it is the mean."""
    epsilon_greedy: float = fraction(0.4, source="H18, 4.1")
    """ε of the actors: environment i of N acts at random with ε^(1 + α i / (N - 1))."""
    epsilon_alpha: float = number(7.0, at_least=0, source="H18, 4.1")
    """α of the actors' ε."""
    torso: Literal["auto", "mlp", "minatar", "shallow", "nature", "deep"] = choice(
        "nature", source="K19, 2.3: as DQN's"
    )
    """Feature extractor of images."""
    hidden_sizes: tuple[int, ...] = widths((512,), source="K19, 2.3")
    """Layer widths after convolutions, or of the MLP."""
    activation: Literal["relu", "tanh"] = "relu"
    """Activation between layers of the MLP."""
    recurrent_core: Literal["none", "lstm", "gru"] = choice("lstm", source="K19, 2.3")
    """Recurrent core; last action and reward become inputs. `none` is the paper's feed-forward
    variant."""
    recurrent_units: int = number(512, above=0, source="K19, 2.3")
    """Units of the recurrent core."""
    head_units: int = number(512, at_least=0, source="Wang et al. 2016")
    """Units of the hidden layers of value and advantage; 0 for none."""
    encoder_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which convolutions and dense layers before the core compute. bfloat16 is for
    accelerators."""

    def source(self) -> Any:
        """A prioritised replay of sequences; raises UserError for settings that allow none."""
        from pronk.types import Replayed, Sequences  # slow to import

        self._check()
        sequences = Sequences(
            self.replay_capacity,
            length=self.sequence_length,
            burn_in=self.burn_in,
            overlap=self.overlap,
            priority_exponent=self.priority_exponent,
            eviction=self.replay_eviction,
            compress=self.replay_compress,
            checkpoint=self.replay_saved,
        )
        return Replayed(sequences, self.replay_minimum, self.samples_per_insert)

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return (
            *("learning_rate", "optimiser_epsilon", "max_gradient_norm", "trace_lambda"),
            *("importance_exponent", "priority_mixture"),
        )

    def _check(self) -> None:
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


# Presets, as differences from the defaults. Values without a source come from measurements
# (docs/agents/r2d2.md).

# For a few million agent steps on one small machine.
ATARI: dict[str, Any] = {
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
}

# Small problems.
SMALL: dict[str, Any] = {
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
}


def preset_for(*, atari: bool, continuous: bool) -> str:
    """The preset that `--preset auto` selects for an environment of this kind."""
    del continuous
    return "atari" if atari else "small"
