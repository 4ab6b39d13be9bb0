"""The settings that DDPG and SAC share: replay, networks, optimiser."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from pronk.config.fields import choice, fraction, number, widths
from pronk.errors import UserError

# Few environments: there is an update for each step, so that more environments would not be faster,
# and would act with older parameters.
RUN_DEFAULTS: dict[str, Any] = {"actors": 1, "envs_per_actor": 4}

CAPABILITIES = {
    "actions": "Box with finite bounds",
    "observations": "Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple of them; pixels",
    "memory": "none",
    "runtimes": "local (threads or Ray), deterministic; fused",
}


@dataclass(frozen=True)
class Config:
    """What DDPG and SAC have in common."""

    unroll: int = number(1, above=0)
    """Agent steps that an actor takes with the same parameters."""
    batch_size: int = number(256, above=0)
    """Transitions per update."""
    updates_per_step: float = number(1.0, above=0, source="Haarnoja et al. 2018b, table 1")
    """Updates for each agent step; actors and learner wait for each other."""
    discount: float = fraction(0.99, near_one=True)
    """γ."""
    target_rate: float = number(0.005, above=0, at_most=1)
    """τ: the fraction of the way to the learning networks that targets move after each update."""
    replay_capacity: int = number(1_000_000, above=0, limit=10**12)
    """Agent steps that the replay holds."""
    replay_minimum: int = number(10_000, above=0, limit=10**12)
    """Transitions held before the first update. Until then, actions are uniform in their bounds."""
    replay_compress: bool = False
    """Pack frames: a fraction of the memory on images, for slower batches."""
    replay_saved: bool = True
    """Save the replay with the run. Otherwise a resumed run starts with an empty one."""
    learning_rate: float = number(3e-4, above=0, limit=10, tune=(1e-5, 1e-2))
    """Adam's learning rate of the policy."""
    critic_learning_rate: float = number(3e-4, above=0, limit=10, tune=(1e-5, 1e-2))
    """Adam's learning rate of the action values."""
    optimiser_epsilon: float = number(1e-8, above=0)
    """Adam's ε."""
    max_gradient_norm: float = number(math.inf, above=0, limit=math.inf)
    """Norm to which the gradient of each part of the parameters is clipped: of the policy, of the
    action values, and of SAC's temperature."""
    reward_scale: float = number(1.0, above=0, limit=1e15)
    """Factor of rewards, before clipping."""
    reward_clip: float = number(0.0, at_least=0, limit=math.inf)
    """Clip scaled rewards to ± this; 0 leaves them alone."""
    torso: Literal["auto", "mlp", "shallow", "nature", "deep"] = "auto"
    """Feature extractor of images; policy and action values have one each."""
    hidden_sizes: tuple[int, ...] = widths((256, 256))
    """Layer widths of the policy and of the action values."""
    activation: Literal["relu", "tanh"] = choice("relu")
    """Activation between layers."""
    encoder_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which all but the last layers compute. bfloat16 is for accelerators."""

    def source(self) -> Any:
        """A replay of transitions, drawn uniformly; raises UserError for one that is too small."""
        from pronk.types import Replayed, Sequences  # slow to import

        if self.replay_minimum > self.replay_capacity:
            raise UserError(
                f"`--replay-minimum` is {self.replay_minimum} transitions, and `--replay-capacity`"
                f" {self.replay_capacity} steps: expected room for all of them."
            )
        sequences = Sequences(
            self.replay_capacity,
            length=1,
            compress=self.replay_compress,
            checkpoint=self.replay_saved,
        )
        draws = self.updates_per_step * self.batch_size
        return Replayed(sequences, self.replay_minimum, draws)

    def transitions_learnt(self, agent_steps: int) -> int:
        """How many transitions have been drawn after this many agent steps; for schedules."""
        steps = max(0, agent_steps - self.replay_minimum)
        return round(steps * self.updates_per_step * self.batch_size)

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return (
            *("learning_rate", "critic_learning_rate", "optimiser_epsilon", "max_gradient_norm"),
            *("discount", "target_rate"),
        )
