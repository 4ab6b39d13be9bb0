"""What population based training can be told. Imports neither jax nor an environment.

Sources: [E18] Espeholt et al. 2018, "IMPALA", sections 5 and F. [J17] Jaderberg et al. 2017,
"Population Based Training of Neural Networks".
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from tyro.conf import UseAppendAction

from pronk.errors import UserError


@dataclass(frozen=True)
class PBTConfig:
    """A population: how large, what is adapted, when and how. Raises UserError for what makes no
    sense."""

    population: int = 24
    """Members. [E18: 24]"""
    tune: UseAppendAction[tuple[str, ...]] = ()
    """NAME=LOW:HIGH, a hyperparameter that is adapted and the range of its first values, which are
    drawn log-uniformly; NAME alone begins as the run has it. May be given several times. [those of
    `TUNE` in the agent's configuration; `pronk list` shows them]"""
    ready_steps: int | None = None
    """Agent steps of a member's own after which it may copy another and is perturbed. [a
    twentieth of `--steps`; J17: 10⁶ to 10⁷]"""
    ready_episodes: int | None = None
    """Episodes of a member's own instead of steps. [E18: 5000]"""
    evolve_after: int = 0
    """Agent steps of a member's own before which it neither copies nor is perturbed: as long as
    scores are noise, copying loses what was drawn. [E18: 20 million frames]"""
    threshold: float = 0.05
    """By how much of its own score another member's must be better to be copied; of a suite whose
    scores are normalised, by how much. [E18: an absolute 5 % of normalised scores]"""
    sigmas: float = 2.0
    """By how many standard errors of the two scores' difference it must be better besides, so that
    members don't copy luck where few games make a score; 0: by none. [J17: a t-test at 5 %, which
    is about 2; E18, with 5000 episodes: none]"""
    perturb_probability: float = 0.33
    """With which a hyperparameter is multiplied. [E18: 33 %]"""
    perturb_factor: float = 1.2
    """What it is multiplied or, as often, divided by. [E18: 1.2]"""
    execution: Literal["auto", "vmapped", "processes", "ray"] = "auto"
    """vmapped: all members in one program, of environments written in JAX. processes: each is a run
    of its own. ray: so, on the machines of a Ray cluster (`--ray`) that share the directory. auto:
    vmapped where the fused runtime can be, or else processes."""
    workers: int = 2
    """Members that are trained at the same time, in processes or on Ray."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kinds = getattr(self, field.name), _KINDS.get(str(field.type), object)
            if not isinstance(value, kinds) or isinstance(value, bool):
                expected = "a list of texts" if field.name == "tune" else field.type
                flag = field.name.replace("_", "-")
                raise UserError(f"`--{flag}` is {value!r}; expected {expected}.")
        wrong = {
            "--population": (self.population < 2, "at least 2"),
            "--ready-steps": (self.ready_steps is not None and self.ready_steps < 1, "at least 1"),
            "--ready-episodes": (
                self.ready_episodes is not None and self.ready_episodes < 1,
                "at least 1",
            ),
            "--evolve-after": (self.evolve_after < 0, "zero or more"),
            "--threshold": (not self.threshold >= 0, "zero or more"),
            "--sigmas": (not self.sigmas >= 0, "zero or more"),
            "--perturb-probability": (
                not 0 <= self.perturb_probability <= 1,
                "a number from 0 to 1",
            ),
            "--perturb-factor": (not 1 <= self.perturb_factor < float("inf"), "at least 1"),
            "--workers": (self.workers < 1, "at least 1"),
        }
        for flag, (is_wrong, expected) in wrong.items():
            if is_wrong:
                value = getattr(self, flag[2:].replace("-", "_"))
                raise UserError(f"`{flag}` is {value}; expected {expected}.")
        if self.ready_steps is not None and self.ready_episodes is not None:
            raise UserError(
                f"`--ready-steps` is {self.ready_steps} and `--ready-episodes`"
                f" {self.ready_episodes}; expected one of them: a member is ready after either."
            )
        executions = ("auto", "vmapped", "processes", "ray")
        if self.execution not in executions:
            raise UserError(
                f"`--execution` is '{self.execution}'; expected one of {', '.join(executions)}."
            )


_KINDS: dict[str, Any] = {
    "int": int,
    "int | None": int | None,
    "float": int | float,
    "UseAppendAction[tuple[str, ...]]": tuple | list,
}

# Hyperparameters near 1, of which counts how far from it they are: 1 − x is drawn and multiplied,
# so that the horizon 1/(1 − x) is what changes by the factor.
HORIZONS = (
    *("discount", "rmsprop_decay", "average_decay", "trace_lambda", "pixel_control_discount"),
    "priority_mixture",
)

# Changing these does not change what a population is; but one in one program stays so.
FREE = ("workers", "execution")
