"""The settings that all on-policy agents share.

Sources: [S17] Schulman et al. 2017, "Proximal Policy Optimization Algorithms", table 3 (MuJoCo).
[OAI] its code, OpenAI Baselines' ppo2. [A21] Andrychowicz et al. 2021, "What Matters for On-Policy
Deep Actor-Critic Methods? A Large-Scale Study". [D16] Duan et al. 2016, "Benchmarking Deep
Reinforcement Learning for Continuous Control", and its code. [BL] OpenAI Baselines' trpo_mpi.
[H24] Hollenstein et al. 2024, "Colored Noise in PPO: Improved Exploration and Performance through
Correlated Action Sampling", whose noise is coloured; here it is a first-order autoregression.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from pronk.config.fields import choice, fraction, number, widths
from pronk.errors import UserError

# Actors wait for the update, and one actor steps all environments together.
RUN_DEFAULTS = {"architecture": "sync-step"}

CAPABILITIES = {
    "actions": "Discrete, MultiDiscrete, MultiBinary, Box (Gaussian, or squashed by tanh), masks",
    "observations": "Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple of them; pixels",
    "memory": "none, LSTM, GRU",
    "runtimes": "local (synchronous by default), fused, deterministic",
}


@dataclass(frozen=True)
class Config:
    """Shared settings; an agent's own are in its subclass."""

    unroll: int = number(2048, above=0, source="S17")
    """Agent steps per trajectory, T."""
    batch_size: int = number(1, above=0, source="S17")
    """Trajectories per update, and environments, B."""
    discount: float = fraction(0.99, source="S17", near_one=True)
    """γ."""
    gae_lambda: float = fraction(0.95, source="S17", near_one=True)
    """λ of the advantages (GAE); 1: returns minus the baseline."""
    observation_normalisation: bool = choice(True, source="OAI")
    """Standardise observations, but not images and one-hot inputs, by the mean and deviation of all
    that were seen. These are part of what acts: evaluation and export use them, unchanged."""
    observation_clip: float = number(10.0, above=0, source="OAI")
    """Clip standardised observations to ± this."""
    reward_normalisation: bool = choice(True, source="OAI")
    """Divide rewards by the deviation of the discounted sum of rewards since the episode began."""
    reward_clip: float = number(10.0, at_least=0, limit=math.inf, source="OAI")
    """Clip scaled rewards to ± this; 0 leaves them alone."""
    reward_scale: float = number(1.0, above=0, limit=1e15)
    """Factor of rewards, before clipping."""
    value_normalisation: Literal["none", "running"] = choice("none", source="A21: running")
    """running: the value network learns in units of the running mean and deviation of its
    targets."""
    advantage_normalisation: Literal["none", "batch", "minibatch"] = choice(
        "minibatch", source="OAI"
    )
    """Standardise advantages, over the batch or over each minibatch."""
    optimiser_epsilon: float = number(1e-5, above=0, source="OAI", tune=True)
    """Adam's ε."""
    max_gradient_norm: float = number(0.5, above=0, limit=math.inf, source="OAI")
    """Global norm to which gradients are clipped."""
    torso: Literal["auto", "mlp", "minatar", "shallow", "nature", "deep"] = choice("auto")
    """Feature extractor; auto is `shallow` for images and `mlp` for vectors. nature is DQN's;
    minatar is one convolution, for images of 10 × 10."""
    hidden_sizes: tuple[int, ...] = widths((64, 64), source="S17")
    """Layer widths of the policy, after convolutions, or of the MLP."""
    value_hidden_sizes: tuple[int, ...] = widths((64, 64), source="S17")
    """Layer widths of the value function, if it has a network of its own."""
    activation: Literal["relu", "tanh"] = choice("tanh", source="S17")
    """Activation between layers of the MLP."""
    recurrent_core: Literal["none", "lstm", "gru"] = "none"
    """Recurrent core; last action and reward become inputs, and minibatches are of sequences."""
    recurrent_units: int = number(64, above=0)
    """Units of the recurrent core."""
    separate_value: bool = choice(True, source="S17")
    """Give the value function a network of its own."""
    policy_gain: float = number(0.01, above=0, source="A21")
    """Scale of the policy head's orthogonal initial weights."""
    state_dependent_std: bool = choice(False, source="S17")
    """Let the network give the standard deviation of continuous actions. Otherwise it is one
    parameter per action dimension."""
    initial_std: float = number(1.0, above=0, limit=1000, source="OAI")
    """Standard deviation of continuous actions at the start, where ±1 are the bounds."""
    squash_actions: bool = choice(False, source="A21: True")
    """Squash continuous actions into their bounds by tanh, instead of clipping them."""
    noise_correlation: float = number(0.0, at_least=0, below=1, source="H24")
    """Correlation of the noise of consecutive continuous actions. Each is distributed as without;
    together they explore further, which slow systems need."""
    encoder_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which convolutions and dense layers before the core compute. bfloat16 is for
    accelerators."""

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return (
            *("optimiser_epsilon", "max_gradient_norm"),
            *("discount", "gae_lambda"),
        )

    def check(self) -> None:
        """Raise UserError for settings that do not go together."""

    def check_minibatches(self, flag: str, size: int) -> None:
        """Raise UserError unless minibatches of `size` transitions, the setting `flag`, divide the
        batch."""
        whole = self.unroll * self.batch_size
        recurrent = self.recurrent_core != "none"
        if whole % size or (recurrent and size % self.unroll):
            of = " and a multiple of `--unroll`, because a recurrent core needs whole trajectories"
            raise UserError(
                f"`{flag}` is {size}; expected a divisor of {whole}, which is `--unroll`"
                f" {self.unroll} × `--batch-size` {self.batch_size}{of if recurrent else ''}."
            )


@dataclass(frozen=True)
class RegressionConfig(Config):
    """Of agents that fit the value function apart from the policy, after the policy's step."""

    baseline: Literal["network", "linear"] = choice("network", source="D16: linear")
    """Value function. linear: linear in the observation, its square and the time in the episode,
    fitted by least squares."""
    value_learning_rate: float = number(1e-3, above=0, limit=10, source="BL")
    """Learning rate of the value network's Adam."""
    value_passes: int = number(5, above=0, source="BL")
    """Passes over a batch to fit the value network."""
    value_minibatch_size: int = number(64, above=0, source="BL")
    """Transitions per gradient step of the value network."""

    def check(self) -> None:
        """Raise UserError for settings that do not go together."""
        if not self.separate_value and self.baseline == "network":
            raise UserError(
                "`--no-separate-value` is given, and this agent's policy takes steps that the value"
                " function must not change: leave it out, or use `--baseline linear`."
            )
        if self.advantage_normalisation == "minibatch":
            raise UserError(
                "`--advantage-normalisation` is minibatch, and this agent's policy learns from the"
                " whole batch; expected batch or none."
            )
        self.check_minibatches("--value-minibatch-size", self.value_minibatch_size)

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return (*super().hyper_names(), "value_learning_rate")


def preset_for(*, atari: bool, continuous: bool) -> str:
    """The preset that `--preset auto` selects for an environment of this kind."""
    del continuous
    return "atari" if atari else "small"


# Differences from the defaults of agents with a `RegressionConfig`.
# As PPO's for Atari [S17, table 5], but that the value has a network of its own.
ATARI: dict[str, Any] = {
    "unroll": 128,
    "batch_size": 16,
    "value_minibatch_size": 256,
    "torso": "nature",
    "hidden_sizes": (512,),
    "value_hidden_sizes": (512,),
    "activation": "relu",
    "observation_normalisation": False,
    "reward_clip": 1.0,
}
# Small problems.
SMALL: dict[str, Any] = {
    "unroll": 256,
    "batch_size": 8,
    "value_normalisation": "running",
    "value_passes": 10,
}
# [D16]: three layers, batches of 50,000 steps; a fifth of that here.
DUAN: dict[str, Any] = {
    "unroll": 1250,
    "batch_size": 8,
    "baseline": "linear",
    "gae_lambda": 1.0,
    "hidden_sizes": (100, 50, 25),
    "observation_normalisation": False,
    "value_minibatch_size": 1250,
}
