"""IMPALA's configuration: the paper's table, and presets that learn on one small machine.

Sources: [E18] Espeholt et al. 2018, "IMPALA: Scalable Distributed Deep-RL with Importance
Weighted Actor-Learner Architectures", appendix D, table D.1 and G.1 (Atari). [Z20] Zahavy et al.
2020, "A Self-Tuning Actor-Critic Algorithm". [S20] Schmitt et al. 2020, "Off-Policy Actor-Critic
with Shared Experience Replay" (LASER). [H18] Hessel et al. 2018, "Multi-task Deep Reinforcement
Learning with PopArt". [H16] van Hasselt et al. 2016, "Learning values across many orders of
magnitude". [J17] Jaderberg et al. 2017, "Reinforcement Learning with Unsupervised Auxiliary Tasks".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Config:
    """IMPALA: the defaults are the paper's for Atari."""

    unroll: int = 20
    """Agent steps per trajectory, T. [E18, table G.1]"""
    batch_size: int = 32
    """Trajectories per update, B. [E18, table G.1]"""
    discount: float = 0.99
    """γ. [E18, table G.1]"""
    entropy_cost: float = 0.01
    """Weight of the entropy bonus. [E18, table G.1]"""
    value_cost: float = 0.5
    """Weight of the value loss ½ (v_s − V)². [E18, table G.1]"""
    rho_bar: float = 1.0
    """ρ̄, truncates the importance weight of the TD error: it sets the fixed point. [E18, 4.1]"""
    c_bar: float = 1.0
    """c̄, truncates the trace: it sets the speed. [E18, 4.1]"""
    trace_lambda: float = 1.0
    """λ, shortens the trace further: c_i = λ min(c̄, ratio). [E18, remark 2]"""
    trace_leak: float = 0.0
    """How much of the untruncated ratio ρ and c let through: 1 − α of leaky V-trace. [Z20]"""
    correction: Literal["vtrace", "none", "epsilon", "one-step"] = "vtrace"
    """Of what is off-policy. none: ρ = c = 1. epsilon: none, with log(π + 1e-6). one-step: value
    target r + γ V' without a weight, the policy's gradient times ρ. [E18, section 5.2.2]"""
    replay_fraction: float = 0.0
    """How much of each batch is drawn, uniformly, from a replay of trajectories. [E18, 5.2.2: 0.5;
    S20: 0.875]"""
    replay_capacity: int = 200_000
    """Agent steps that are held there. (10,000 trajectories of 20 steps.)"""
    trust_region: float = 0.0
    """Transitions are left out, and end traces, where KL(π ‖ π_ρ̄) is not below this: of the average
    policy from the one whose value V-trace finds. 0 leaves none out. [S20, section 4.3]"""
    average_decay: float = 0.99
    """Of the average policy's parameters, per update; 0: π is what is learnt. [S20: 0]"""
    optimiser: Literal["rmsprop", "adam"] = "rmsprop"
    """RMSProp as TensorFlow's: ε inside the root, mean square starting at 1. [E18, table G.1]"""
    learning_rate: float = 6e-4
    """At the start. [E18, table G.1]"""
    anneal: bool = True
    """Anneal the learning rate linearly to zero at `--steps`. [E18, table G.1]"""
    rmsprop_decay: float = 0.99
    """Decay of the mean square. [E18, table G.1]"""
    optimiser_epsilon: float = 0.01
    """The optimiser's ε. [E18, table G.1]"""
    max_gradient_norm: float = 40.0
    """Global norm to which gradients are clipped. [E18, table G.1]"""
    loss_reduction: Literal["sum", "mean"] = "sum"
    """How losses are reduced over time and batch; learning rate and norm go with it. [E18, code]"""
    reward_clip: float = 1.0
    """Rewards are clipped to ± this; 0 leaves them alone. [E18, table G.1]"""
    reward_scale: float = 1.0
    """Rewards are multiplied by this, before clipping."""
    value_normalisation: Literal["none", "art", "popart"] = "none"
    """popart: values are learnt in units of each task's targets, and outputs stay as they are when
    these change. art: without the latter. Rewards need no clipping then (--reward-clip 0). [H18]"""
    popart_beta: float = 3e-4
    """β, how fast the statistics of targets move, per update. [H18]"""
    popart_debias: bool = False
    """Forget at once what the statistics began with (mean 0, deviation 1). [H16, section 2.1]"""
    value_per_task: bool = True
    """Of a suite: a value function, and statistics, for each task; the policy is one. [H18]"""
    pixel_control_cost: float = 0.0
    """Weight of the auxiliary loss of changing the pixels of each cell; 0: none. [J17: 0.01 to 0.1
    in DeepMind Lab, 1e-4 to 0.01 in Atari]"""
    pixel_control_discount: float = 0.9
    """Its γ. [J17, section 4.1.1]"""
    pixel_control_cell: int = 4
    """Width and height of a cell, in pixels. [J17]"""
    torso: Literal["auto", "mlp", "minatar", "shallow", "deep"] = "auto"
    """Feature extractor; auto is `shallow` for images and `mlp` for vectors. [E18, figure 3]
    minatar is one convolution, for images of 10 × 10."""
    hidden_sizes: tuple[int, ...] = (256,)
    """Layer widths after convolutions, or of the MLP. [E18, figure 3]"""
    activation: Literal["relu", "tanh"] = "relu"
    """Between layers of the MLP. [E18, figure 3]"""
    recurrent_core: Literal["none", "lstm", "gru"] = "none"
    """Recurrent core; last action and reward become inputs. [E18, figure 3: LSTM 256]"""
    recurrent_units: int = 256
    """Units of the recurrent core. [E18, figure 3]"""
    separate_value: bool = False
    """Give the value function a network of its own (without a core). The paper shares one."""
    encoder_dtype: Literal["float32", "bfloat16"] = "float32"
    """What convolutions and dense layers before the core compute in; parameters, the core, the
    heads and all losses stay float32. bfloat16 is for accelerators."""
    squash_actions: bool = False
    """Squash continuous actions into their bounds by tanh, instead of clipping them."""
    initial_std: float = 1.0
    """Standard deviation of continuous actions at the start, where ±1 are the bounds."""

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
    "batch_size": 16,
    "optimiser": "adam",
    "learning_rate": 3e-3,
    "optimiser_epsilon": 1e-5,
    "loss_reduction": "mean",
    "max_gradient_norm": 0.5,
    "reward_clip": 0.0,
    "reward_scale": 0.1,
    "entropy_cost": 1e-3,
    "hidden_sizes": (64, 64),
    "activation": "tanh",
    "recurrent_units": 64,
}

# What differs from the defaults. Values without a source were found by measuring (docs/agents).
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
    # [H18]: the paper's, rewards as they are.
    "popart": {"reward_clip": 0.0, "value_normalisation": "popart"},
    # Small problems with discrete actions.
    "small": _SMALL,
    # The same as [S20] would: of each batch seven eighths replayed, in a trust region.
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
        "entropy_cost": 3e-3,
        "squash_actions": True,
        "hidden_sizes": (64, 64),
        "activation": "tanh",
        "separate_value": True,
        "recurrent_units": 64,
    },
}


# Arguments of Atari games unless given; those of `AtariEnvs` are the paper's.
ATARI_ARGS: dict[str, Any] = {}


# What `pronk pbt` adapts unless told otherwise, and the ranges of first values. [E18, table D.1 and
# appendix F; first values of ε are 10⁻¹, 10⁻³, 10⁻⁵ and 10⁻⁷ there, and of the norm 40.]
TUNE = (
    "learning_rate=5e-6:5e-3",
    "entropy_cost=5e-5:1e-2",
    "optimiser_epsilon=1e-7:1e-1",
    "max_gradient_norm",
)


# What `pronk list` says of the agent.
SUPPORTS = {
    "actions": "Discrete, MultiDiscrete, MultiBinary, Box (Gaussian, or squashed by tanh), masks",
    "observations": "Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple of them; pixels",
    "memory": "none, LSTM, GRU",
    "runtimes": "local (threads or processes), fused, deterministic",
    "presets": ", ".join(PRESETS),
    "tuned by pbt": ", ".join(TUNE),
}


def preset_for(*, atari: bool, continuous: bool) -> str:
    """The preset `--preset auto` means for an environment of this kind."""
    if atari:
        return "atari"
    return "continuous" if continuous else "small"
