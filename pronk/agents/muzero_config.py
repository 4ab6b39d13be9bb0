"""MuZero's configuration: the paper's tables, and presets for one small machine.

Sources: [S20] Schrittwieser et al. 2020, "Mastering Atari, Go, chess and shogi by planning with a
learned model" (arXiv:1911.08265), and its pseudocode; [D22] Danihelka et al. 2022, "Policy
improvement by planning with Gumbel"; [Y21] Ye et al. 2021, "Mastering Atari games with limited
data" (EfficientZero).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from pronk.config.fields import choice, fraction, number, widths
from pronk.errors import UserError

_CODE = "S20, pseudocode"
_APPENDIX_G = "S20, appendix G"

CAPABILITIES = {
    "actions": "Discrete, masks",
    "observations": "Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple of them; pixels",
    "memory": "none",
    "runtimes": "local (threads or Ray), deterministic; fused (drawing uniformly)",
}


@dataclass(frozen=True)
class Config:
    """MuZero: the defaults are the paper's for Atari."""

    unroll: int = number(40, above=0, source="S20: sequences of 200 steps")
    """Agent steps that an actor takes with the same parameters."""
    batch_size: int = number(1024, above=0, source=_APPENDIX_G)
    """Sequences per update."""
    search: Literal["puct", "gumbel"] = choice("puct", source="S20, appendix B; D22")
    """How the tree is searched: by upper confidence bounds, or by Gumbel MuZero's halving."""
    simulations: int = number(50, at_least=0, limit=10_000, source=_CODE)
    """Simulations of a search; 0 acts by the policy network alone."""
    evaluation_simulations: int | None = number(
        None, at_least=0, limit=10_000, source="S20, figure 3D"
    )
    """Simulations in evaluations, where they should differ from those of training. [the same]"""
    max_depth: int = number(0, at_least=0, limit=10_000)
    """Steps that a simulation goes from the root at most; 0 for no limit."""
    dirichlet_alpha: float = number(0.25, above=0, source=_CODE)
    """α of the noise in the root's prior."""
    dirichlet_fraction: float = fraction(0.25, source=_CODE)
    """Share of that noise in the prior."""
    value_bound: float = number(0.0, at_least=0, source=f"{_CODE}: 1 on boards, else unknown")
    """b: where values are known to lie in [−b, b], as in a game, the search scales them by that;
    0: by the values in the tree. Only PUCT scales so."""
    temperature: float = number(1.0, above=0, source=_CODE)
    """T: actors draw actions in proportion to visits^(1/T). The paper's goes from 1 to 0.5 and 0.25
    in the second half of training: `--temperature` takes a schedule."""
    temperature_moves: int = number(0, at_least=0, source=f"{_CODE}: 30 on boards")
    """Moves of an episode that are drawn so; later ones are the most visited. 0: all are drawn."""
    considered_actions: int = number(16, above=0, source="D22")
    """Actions that Gumbel MuZero's root considers."""
    value_scale: float = number(0.1, above=0, source="D22: 1 on boards")
    """c_scale of Gumbel MuZero."""
    discount: float = fraction(0.997, source=_CODE, near_one=True)
    """γ."""
    unroll_steps: int = number(5, above=0, limit=100, source=_CODE)
    """K: steps that the model is unrolled in learning."""
    td_steps: int = number(10, above=0, limit=1000, source=f"{_CODE}; 5 with Reanalyze")
    """n: rewards in a value target, before the search's value counts. In a game it may be as long
    as an episode, so that only the outcome counts."""
    bootstrap: Literal["search", "target"] = choice("search", source=_CODE)
    """ν of value targets: the search's, as it was when acting, or the target network's. The former
    are old where the replay is, and values then grow slowly."""
    starts: int = number(1, above=0)
    """Rows of a sequence from which the model is unrolled. With 1 each row is a sequence of its
    own, with a priority, as in the paper; with more, sequences are unrolls drawn uniformly, and
    `--unroll` must be equal: the fused runtime needs that."""
    reanalyze: float = fraction(0.0, source="S20, appendix H: 0.8 in Reanalyze")
    """Share of the batch whose policies are searched for anew, with the newest parameters, and
    whose value targets are bootstrapped from the target network."""
    replay_capacity: int = number(
        25_000_000, above=0, limit=10**12, source=f"{_CODE}: 125,000 sequences of 200"
    )
    """Agent steps that the replay holds."""
    replay_minimum: int = number(1_000, above=0, limit=10**12)
    """Sequences held before the first update."""
    samples_per_insert: float = number(0.1, above=0, source="S20, appendix H; 2 with Reanalyze")
    """Draws of a sequence for each one inserted; the side that is ahead waits."""
    replay_compress: bool = False
    """Pack frames: a seventh of the memory on Atari, for slower batches."""
    replay_saved: bool = True
    """Save the replay with the run. Otherwise a resumed run starts with an empty one."""
    priority_exponent: float = number(1.0, at_least=0, limit=100, source=_APPENDIX_G)
    """Draw positions in proportion to |ν − z| to this power."""
    importance_exponent: float = number(1.0, at_least=0, limit=100, source=_APPENDIX_G)
    """β: losses are weighted by (1 / probability)^β, divided by the batch's largest."""
    target_every: int = number(200, above=0, limit=2**31 - 1, source="Y21")
    """Updates between copies of the network to the target network, for Reanalyze."""
    value_coefficient: float = number(1.0, at_least=0, source="S20, appendix H: 0.25 in Reanalyze")
    """Weight of the values' loss."""
    consistency: float = number(0.0, at_least=0, source="Y21: 2; no part of MuZero")
    """Weight of the loss by which predicted states agree with those of the later observations."""
    weight_decay: float = number(1e-4, at_least=0, source=_CODE)
    """c: weight of the sum of squared parameters."""
    optimiser: Literal["sgd", "adam"] = choice("sgd", source=_CODE)
    """Stochastic gradient descent with momentum, or Adam."""
    momentum: float = number(0.9, at_least=0, below=1, source=_CODE)
    """Of sgd."""
    learning_rate: float = number(0.05, above=0, limit=10, source=_CODE, tune=(1e-4, 1e-1))
    """Learning rate; the paper's falls to a tenth every 350,000 updates."""
    optimiser_epsilon: float = number(1e-8, above=0)
    """Adam's ε."""
    max_gradient_norm: float = number(math.inf, above=0, limit=math.inf)
    """Global norm to which gradients are clipped; the paper's are not."""
    support_limit: float = number(300.0, above=0, source="S20, appendix F", meaning=True)
    """Rewards and values, after h, are distributions over −limit to limit. Targets beyond it are
    clipped, and counted in the metric `clipped_targets`."""
    support_bins: int = number(601, at_least=3, source="S20, appendix F")
    """Points of these distributions, an odd number."""
    rescaling: Literal["sqrt", "log", "none"] = choice(
        "sqrt", source="S20, appendix F", meaning=True
    )
    """h, the transform of rewards and values."""
    rescaling_epsilon: float = number(1e-3, at_least=0, source="S20, appendix F")
    """ε of the sqrt."""
    torso: Literal["auto", "mlp", "minatar", "shallow", "nature", "deep"] = "auto"
    """Feature extractor of images where the model's states are vectors."""
    hidden_sizes: tuple[int, ...] = widths((512,))
    """Layer widths of the representation of vectors."""
    model_units: int = number(256, above=0)
    """Units of a state that is a vector, and of hidden layers."""
    planes: int = number(256, at_least=0, source="S20, appendix F")
    """Planes of a state that is an image; 0: states are vectors."""
    blocks: int = number(16, at_least=0, source="S20, appendix F")
    """Residual blocks of the representation and of the dynamics."""

    def source(self) -> Any:
        """A prioritised replay of positions, or one of unrolls; raises UserError for settings that
        allow none."""
        from pronk.types import Replayed, Sequences  # slow to import

        self._check()
        window = self.unroll_steps + self.td_steps
        if self.starts == 1:
            sequences = Sequences(
                self.replay_capacity,
                length=window,
                overlap=window - 1,
                tails=True,
                priority_exponent=self.priority_exponent,
                compress=self.replay_compress,
                checkpoint=self.replay_saved,
            )
        else:
            sequences = Sequences(
                self.replay_capacity,
                length=self.starts,
                burn_in=window - 1,
                cross_episodes=True,
                compress=self.replay_compress,
                checkpoint=self.replay_saved,
            )
        return Replayed(sequences, self.replay_minimum, self.samples_per_insert)

    def hyper_names(self) -> tuple[str, ...]:
        """The fields in `LearnerState.hyper`: changing one compiles nothing."""
        return (
            *("learning_rate", "optimiser_epsilon", "max_gradient_norm", "momentum"),
            *("temperature", "importance_exponent", "value_coefficient", "weight_decay"),
        )

    def _check(self) -> None:
        """Raise UserError for settings that do not go together."""
        if self.support_bins % 2 == 0:
            raise UserError(
                f"`--support-bins` is {self.support_bins}; expected an odd number, so that 0 is one"
                " of the points."
            )
        if self.starts > 1 and self.unroll != self.starts:
            raise UserError(
                f"`--starts` is {self.starts} and `--unroll` {self.unroll}; expected equal numbers,"
                " because with several starts a sequence of the replay is an unroll."
            )
        window = self.unroll_steps + self.td_steps
        if self.replay_capacity < window:
            raise UserError(
                f"`--replay-capacity` is {self.replay_capacity}, `--unroll-steps`"
                f" {self.unroll_steps} and `--td-steps` {self.td_steps}; expected room for at least"
                f" {window} agent steps, those of one position's targets."
            )
        if 1 < self.starts < window - 1:
            raise UserError(
                f"`--starts` is {self.starts}, `--unroll-steps` {self.unroll_steps} and"
                f" `--td-steps` {self.td_steps}; expected at least {window - 1} starts, the rows"
                " that an unroll's targets need beyond it."
            )
        if self.starts > 1 and self.priority_exponent:
            raise UserError(
                f"`--starts` is {self.starts} and `--priority-exponent` {self.priority_exponent};"
                " expected 0, because unrolls with several starts are drawn uniformly."
            )


# Differences from the defaults. Values without a source come from measurements
# (docs/agents/muzero.md).
_FUSED: dict[str, Any] = {"starts": 16, "unroll": 16, "priority_exponent": 0.0}
_VECTORS: dict[str, Any] = {
    "planes": 0,
    "blocks": 0,
    "optimiser": "adam",
    "max_gradient_norm": 10.0,
    "weight_decay": 1e-5,
    "learning_rate": 1e-3,
    "target_every": 100,
}

PRESETS: dict[str, dict[str, Any]] = {
    # [S20]: made for 20 billion frames.
    "paper": {},
    # Small vectors, such as CartPole's.
    "small": _VECTORS
    | {
        "unroll": 16,
        "batch_size": 128,
        "simulations": 20,
        "max_depth": 5,
        "bootstrap": "target",
        "hidden_sizes": (128,),
        "model_units": 64,
        "support_limit": 25.0,
        "support_bins": 51,
        "replay_capacity": 100_000,
        "replay_minimum": 500,
        "samples_per_insert": 32.0,
        "value_coefficient": 0.25,
    },
    # Images of 10 × 10, such as MinAtar's: states are vectors.
    "minatar": _VECTORS
    | _FUSED
    | {
        "batch_size": 32,
        "simulations": 16,
        "max_depth": 5,
        "bootstrap": "target",
        "td_steps": 10,
        "torso": "minatar",
        "hidden_sizes": (128,),
        "model_units": 128,
        "support_limit": 15.0,
        "support_bins": 61,
        "replay_capacity": 200_000,
        "replay_minimum": 100,
        "samples_per_insert": 4.0,
        "value_coefficient": 0.25,
    },
    # Atari on one small machine: frames and networks are those of the other agents, states are
    # vectors, and a batch has a sixteenth of the paper's positions.
    "atari-small": _VECTORS
    | {
        "unroll": 20,
        "batch_size": 64,
        "simulations": 16,
        "max_depth": 5,
        "bootstrap": "target",
        "td_steps": 5,
        "torso": "shallow",
        "hidden_sizes": (256,),
        "model_units": 128,
        "support_limit": 15.0,
        "support_bins": 61,
        "replay_capacity": 200_000,
        "replay_minimum": 2_000,
        "samples_per_insert": 1.0,
        "value_coefficient": 0.25,
    },
    # Games of two players on small boards.
    "board": _VECTORS
    | _FUSED
    | {
        "batch_size": 32,
        "simulations": 25,
        "max_depth": 8,
        "dirichlet_alpha": 0.5,
        "value_bound": 1.0,
        "discount": 1.0,
        "td_steps": 9,
        "hidden_sizes": (128,),
        "model_units": 128,
        "support_limit": 1.0,
        "support_bins": 21,
        "rescaling": "none",
        "replay_capacity": 250_000,
        "replay_minimum": 100,
        "samples_per_insert": 16.0,
        "value_coefficient": 0.25,
    },
}


def preset_for(*, atari: bool, continuous: bool) -> str:
    """The preset that `--preset auto` selects for an environment of this kind."""
    del continuous
    return "atari-small" if atari else "small"
