"""IMPALA's configuration: the paper's table, and presets that learn on one small machine.

Sources: [E18] Espeholt et al. 2018, "IMPALA: Scalable Distributed Deep-RL with Importance
Weighted Actor-Learner Architectures", appendix D, table D.1 and G.1 (Atari). [Z20] Zahavy et al.
2020, "A Self-Tuning Actor-Critic Algorithm". [S20] Schmitt et al. 2020, "Off-Policy Actor-Critic
with Shared Experience Replay" (LASER). [H18] Hessel et al. 2018, "Multi-task Deep Reinforcement
Learning with PopArt". [H16] van Hasselt et al. 2016, "Learning values across many orders of
magnitude". [J17] Jaderberg et al. 2017, "Reinforcement Learning with Unsupervised Auxiliary Tasks".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from pronk.config.fields import choice, fraction, number, widths
from pronk.config.schedules import is_schedule

_ATARI = "E18, table G.1"


@dataclass(frozen=True)
class Config:
    """IMPALA: the defaults are the paper's for Atari."""

    # `tune` has the ranges of the paper's population. [E18, table D.1 and appendix F; first values
    # of ε are 10⁻¹, 10⁻³, 10⁻⁵ and 10⁻⁷ there, and of the gradient's norm 40.]
    unroll: int = number(20, above=0, source=_ATARI)
    """Agent steps per trajectory, T."""
    batch_size: int = number(32, above=0, source=_ATARI)
    """Trajectories per update, B."""
    discount: float = fraction(0.99, source=_ATARI, near_one=True)
    """γ."""
    learning_rate: float = number(6e-4, above=0, limit=10, source=_ATARI, tune=(5e-6, 5e-3))
    """Learning rate at the start."""
    anneal: bool = choice(True, source=_ATARI)
    """Anneal the learning rate linearly to zero at `--steps`, unless it is a schedule itself."""
    entropy_cost: float = number(0.01, at_least=0, source=_ATARI, tune=(5e-5, 1e-2))
    """Weight of the entropy bonus."""
    value_cost: float = number(0.5, at_least=0, source=_ATARI)
    """Weight of the value loss ½ (v_s − V)²."""
    rho_bar: float = number(1.0, above=0, limit=math.inf, source="E18, 4.1")
    """ρ̄, truncates the importance weight of the TD error: it sets the fixed point."""
    c_bar: float = number(1.0, above=0, limit=math.inf, source="E18, 4.1")
    """c̄, truncates the trace: it sets the speed."""
    trace_lambda: float = fraction(1.0, source="E18, remark 2", near_one=True)
    """λ, shortens the trace further: c_i = λ min(c̄, ratio)."""
    trace_leak: float = fraction(0.0, source="Z20")
    """1 − α of leaky V-trace: the part of the untruncated ratio that ρ and c let through."""
    correction: Literal["vtrace", "none", "epsilon", "one-step"] = choice(
        "vtrace", source="E18, section 5.2.2"
    )
    """Off-policy correction. none: ρ = c = 1. epsilon: none, with log(π + 1e-6). one-step: value
    target r + γ V' without a weight, the policy's gradient times ρ."""
    replay_fraction: float = fraction(0.0, source="E18, 5.2.2: 0.5; S20: 0.875")
    """Part of each batch that is drawn, uniformly, from a replay of trajectories."""
    replay_capacity: int = number(
        200_000, above=0, limit=10**12, source="E18, 5.2.2: 10,000 trajectories"
    )
    """Agent steps that the replay holds."""
    trust_region: float = number(0.0, at_least=0, limit=math.inf, source="S20, section 4.3")
    """Leave out transitions, and end traces, where KL(π ‖ π_ρ̄) is not below this: of the average
    policy from the one whose value V-trace estimates. 0 leaves none out."""
    average_decay: float = fraction(0.99, source="S20: 0", near_one=True)
    """Decay of the average policy's parameters, per update; 0: π is the learnt policy."""
    optimiser: Literal["rmsprop", "adam"] = choice("rmsprop", source=_ATARI)
    """RMSProp as TensorFlow's: ε inside the root, mean square starting at 1."""
    rmsprop_decay: float = fraction(0.99, source=_ATARI, near_one=True)
    """Decay of RMSProp's mean square."""
    optimiser_epsilon: float = number(0.01, above=0, source=_ATARI, tune=(1e-7, 1e-1))
    """The optimiser's ε."""
    max_gradient_norm: float = number(40.0, above=0, limit=math.inf, source=_ATARI, tune=True)
    """Global norm to which gradients are clipped."""
    loss_reduction: Literal["sum", "mean"] = choice("sum", source="E18, code")
    """Reduction of losses over time and batch; choose learning rate and norm to match."""
    reward_clip: float = number(1.0, at_least=0, limit=math.inf, source=_ATARI)
    """Clip rewards to ± this; 0 leaves them alone."""
    reward_scale: float = number(1.0, above=0, limit=1e15)
    """Factor of rewards, before clipping."""
    value_normalisation: Literal["none", "art", "popart"] = choice("none", source="H18")
    """popart: learn values in units of each task's targets, keeping outputs when these change. art:
    without the latter. Rewards need no clipping then (--reward-clip 0)."""
    popart_beta: float = fraction(3e-4, source="H18")
    """β, step size of the statistics of targets, per update."""
    popart_debias: bool = choice(False, source="H16, section 2.1")
    """Forget the statistics' initial values (mean 0, deviation 1) at once."""
    value_per_task: bool = choice(True, source="H18")
    """In a suite: a value function, and statistics, for each task; the policy is shared."""
    pixel_control_cost: float = number(
        0.0, at_least=0, source="J17: 0.01 to 0.1 in DeepMind Lab, 1e-4 to 0.01 in Atari"
    )
    """Weight of the auxiliary loss of changing the pixels of each cell; 0: none."""
    pixel_control_discount: float = fraction(0.9, source="J17, section 4.1.1", near_one=True)
    """γ of pixel control."""
    pixel_control_cell: int = number(4, above=0, source="J17")
    """Width and height of a cell, in pixels."""
    torso: Literal["auto", "mlp", "minatar", "shallow", "deep"] = choice(
        "auto", source="E18, figure 3"
    )
    """Feature extractor; auto is `shallow` for images and `mlp` for vectors. minatar is one
    convolution, for images of 10 × 10."""
    hidden_sizes: tuple[int, ...] = widths((256,), source="E18, figure 3")
    """Layer widths after convolutions, or of the MLP."""
    activation: Literal["relu", "tanh"] = choice("relu", source="E18, figure 3")
    """Activation between layers of the MLP."""
    recurrent_core: Literal["none", "lstm", "gru"] = choice("none", source="E18, figure 3: LSTM")
    """Recurrent core; last action and reward become inputs."""
    recurrent_units: int = number(256, above=0, source="E18, figure 3")
    """Units of the recurrent core."""
    separate_value: bool = False
    """Give the value function a network of its own, which also sees the core's output. The paper
    shares one."""
    encoder_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which convolutions and dense layers before the core compute; parameters, the core,
    the heads and all losses stay float32. bfloat16 is for accelerators."""
    squash_actions: bool = False
    """Squash continuous actions into their bounds by tanh, instead of clipping them."""
    initial_std: float = number(1.0, above=0, limit=1000)
    """Standard deviation of continuous actions at the start, where ±1 are the bounds."""

    def __post_init__(self) -> None:
        """A learning rate with a schedule is not annealed as well."""
        if is_schedule(self.learning_rate):
            object.__setattr__(self, "anneal", False)

    def source(self) -> Any:
        """Fresh data or, with a replay fraction, a mixture with replayed unrolls."""
        from pronk.types import Fresh, Mixed, Sequences  # slow to import

        if not self.replay_fraction:
            return Fresh()
        unrolls = Sequences(self.replay_capacity, length=self.unroll, cross_episodes=True)
        return Mixed(unrolls, self.replay_fraction)

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return (
            *("learning_rate", "optimiser_epsilon", "rmsprop_decay", "max_gradient_norm"),
            *("entropy_cost", "value_cost", "discount", "rho_bar", "c_bar", "trace_lambda"),
            *(("trace_leak",) if self.trace_leak else ()),
            *(("trust_region", "average_decay") if self.trust_region else ()),
            *(("popart_beta",) if self.value_normalisation != "none" else ()),
            *(("pixel_control_cost", "pixel_control_discount") if self.pixel_control_cost else ()),
        )


_SMALL: dict[str, Any] = {
    "batch_size": 8,
    "optimiser": "adam",
    "learning_rate": 2e-3,
    "optimiser_epsilon": 1e-5,
    "loss_reduction": "mean",
    "max_gradient_norm": 0.5,
    "reward_clip": 0.0,
    "reward_scale": 0.1,
    "entropy_cost": 0.01,
    "hidden_sizes": (64, 64),
    "activation": "tanh",
    "separate_value": True,
    "recurrent_units": 64,
}

# Differences from the defaults. Values without a source come from measurements (docs/agents).
PRESETS: dict[str, dict[str, Any]] = {
    # [E18, table G.1]: made for 50 million agent steps and more.
    "paper": {},
    # For about 10 million agent steps: four times the updates per step, Adam, less entropy.
    "atari": {
        "batch_size": 8,
        "entropy_cost": 1e-3,
        "optimiser": "adam",
        "learning_rate": 8e-4,
        "optimiser_epsilon": 1e-5,
        "loss_reduction": "mean",
        "max_gradient_norm": 0.5,
    },
    # [H18]: the paper's, with unclipped rewards.
    "popart": {"reward_clip": 0.0, "value_normalisation": "popart"},
    # Small problems with discrete actions.
    "small": _SMALL,
    # The same in [S20]'s way: seven eighths of each batch replayed, in a trust region.
    "laser": {**_SMALL, "replay_fraction": 0.875, "trust_region": 0.1},
    # Small problems with continuous actions.
    "continuous": {
        "unroll": 10,
        "batch_size": 8,
        "optimiser": "adam",
        "learning_rate": 1e-3,
        "optimiser_epsilon": 1e-5,
        "loss_reduction": "mean",
        "max_gradient_norm": 0.5,
        "reward_clip": 0.0,
        "reward_scale": 0.1,
        "discount": 0.9,
        "trace_lambda": 0.95,
        "entropy_cost": 0.01,
        "squash_actions": True,
        "hidden_sizes": (64, 64),
        "activation": "tanh",
        "separate_value": True,
        "recurrent_units": 64,
    },
}

CAPABILITIES = {
    "actions": "Discrete, MultiDiscrete, MultiBinary, Box (Gaussian, or squashed by tanh), masks",
    "observations": "Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple of them; pixels",
    "memory": "none, LSTM, GRU",
    "runtimes": "local (threads or Ray), fused, deterministic",
}


def preset_for(*, atari: bool, continuous: bool) -> str:
    """The preset that `--preset auto` selects for an environment of this kind."""
    if atari:
        return "atari"
    return "continuous" if continuous else "small"
