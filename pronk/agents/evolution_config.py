"""The shared settings of the agents that search a policy's parameters by whole episodes.

Sources: [D16] Duan et al. 2016, "Benchmarking Deep Reinforcement Learning for Continuous Control",
and its code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pronk.config.fields import choice, fraction, number, widths

# Actors wait for the update, and one actor steps all environments together.
RUN_DEFAULTS = {"architecture": "sync-step"}

CAPABILITIES = {
    "actions": "Discrete, MultiDiscrete, MultiBinary, Box (clipped, or squashed by tanh), masks",
    "observations": "Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple of them; pixels",
    "memory": "none, LSTM, GRU",
    "runtimes": "local (synchronous by default), fused, deterministic",
}


@dataclass(frozen=True)
class Config:
    """Shared settings; an agent's own are in its subclass."""

    unroll: int = number(32, above=0)
    """Agent steps per trajectory, T. A generation ends at an update: with longer
    trajectories there are fewer updates, and generations end later."""
    batch_size: int = number(8, above=0)
    """Trajectories per update, and environments, B."""
    episodes_per_member: int = number(1, above=0, limit=1000, source="D16")
    """Episodes from which a member's score is estimated. The score is their mean."""
    discount: float = fraction(1.0, near_one=True)
    """γ of the returns that members are scored by; 1: the plain sum of rewards."""
    sampled_actions: bool = choice(False, source="D16: True")
    """Draw actions from the policy's distribution, whose standard deviations are searched, too.
    Otherwise each member takes its most likely action."""
    torso: Literal["auto", "mlp", "minatar", "shallow", "nature", "deep"] = choice("auto")
    """Feature extractor; auto is `shallow` for images and `mlp` for vectors. nature is DQN's;
    minatar is one convolution, for images of 10 × 10."""
    hidden_sizes: tuple[int, ...] = widths((16,))
    """Layer widths of the policy, after convolutions, or of the MLP."""
    activation: Literal["relu", "tanh"] = choice("tanh", source="D16")
    """Activation between layers of the MLP."""
    recurrent_core: Literal["none", "lstm", "gru"] = "none"
    """Recurrent core; last action and reward become inputs."""
    recurrent_units: int = number(16, above=0)
    """Units of the recurrent core."""
    squash_actions: bool = choice(False, source="D16")
    """Squash continuous actions into their bounds by tanh, instead of clipping them."""
    max_parameters: int = number(1_000_000, above=0, limit=1e9)
    """The largest number of parameters to search. Each environment keeps a vector of its own, and
    each generation draws one for every member."""

    # `actor_critic.make` reads these; they have no effect here.
    reward_scale: ClassVar[float] = 1.0
    reward_clip: ClassVar[float] = 0.0
    separate_value: ClassVar[bool] = False
    initial_std: ClassVar[float] = 1.0
    encoder_dtype: ClassVar[str] = "float32"

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return ()

    def check(self) -> None:
        """Raise UserError for settings that do not go together."""


def preset_for(*, atari: bool, continuous: bool) -> str:
    """The preset that `--preset auto` selects for an environment of this kind."""
    del atari, continuous
    return "small"


# [D16]: the policy of its comparison.
DUAN: dict[str, Any] = {
    "hidden_sizes": (100, 50, 25),
    "sampled_actions": True,
    "discount": 0.99,
}
