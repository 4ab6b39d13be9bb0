"""Settings of population based training. Imports neither jax nor an environment.

Sources: [E18] Espeholt et al. 2018, "IMPALA", sections 5 and F. [J17] Jaderberg et al. 2017,
"Population Based Training of Neural Networks".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tyro.conf import UseAppendAction

from pronk.config.fields import check, fraction, number, plainer
from pronk.errors import UserError


@dataclass(frozen=True)
class PBTConfig:
    """How large a population is, what it adapts, when and how; raises UserError for a value that is
    out of range."""

    population: int = number(24, at_least=2, source="E18: 24")
    """Members."""
    tune: UseAppendAction[tuple[str, ...]] = ()
    """NAME=LOW:HIGH, a hyperparameter to adapt and the range of its first values, which are drawn
    log-uniformly; NAME alone begins with the run's value. May be given several times. [the agent's
    own choice, shown by `pronk list`]"""
    ready_steps: int | None = number(None, at_least=1, limit=10**12)
    """Agent steps of a member after which it may copy another and is perturbed. [a twentieth of
    `--steps`; J17: 10⁶ to 10⁷]"""
    ready_episodes: int | None = number(None, at_least=1, limit=10**12, source="E18: 5000")
    """Episodes of a member instead of steps."""
    evolve_after: int = number(0, at_least=0, limit=10**12, source="E18: 20 million frames")
    """Agent steps of a member before which it neither copies nor is perturbed: copying while scores
    are noise loses the hyperparameters that were drawn."""
    copy_margin: float = number(
        0.05, at_least=0, limit=math.inf, source="E18: an absolute 5 % of such scores"
    )
    """Copy a member only if its score is better by this fraction of the copying member's score;
    in a suite with normalised scores, by this amount."""
    copy_sigmas: float = number(
        2.0, at_least=0, limit=math.inf, source="J17: a t-test at 5 %, about 2; E18: 0"
    )
    """And only if it is better by this many standard errors of the difference, so that members
    don't copy luck where few episodes make a score."""
    perturb_probability: float = fraction(0.33, source="E18: 33 %")
    """Probability with which each hyperparameter is perturbed."""
    perturb_factor: float = number(1.2, at_least=1, below=math.inf, source="E18: 1.2")
    """Factor by which a hyperparameter is multiplied or, as often, divided."""
    execution: Literal["auto", "vmapped", "processes", "ray"] = "auto"
    """vmapped: all members in one program, for environments written in JAX. processes: each member
    is a run of its own. ray: the same on the machines of a Ray cluster (`--ray`) that share the
    directory. auto: vmapped where the fused runtime is possible, else processes."""
    parallel_members: int = number(2, at_least=1)
    """Members that train at the same time, in processes or on Ray."""

    def __post_init__(self) -> None:
        for name, value in plainer(self).items():
            object.__setattr__(self, name, value)
        check(self)
        if self.ready_steps is not None and self.ready_episodes is not None:
            raise UserError(
                f"`--ready-steps` is {self.ready_steps} and `--ready-episodes`"
                f" {self.ready_episodes}; expected one of them: a member is ready after either."
            )


# Changing these does not change the population's results; a vmapped population stays vmapped.
FREE = ("parallel_members", "execution")
