"""Decisions of population based training: pure functions of scores, hyperparameters and a seed.

Espeholt et al. 2018 [E18], section 5 and appendix F; Jaderberg et al. 2017 [J17], section 3.
Hyperparameters are Python floats that a float32 holds exactly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pronk.config import fields, schedules
from pronk.config.pbt import PBTConfig
from pronk.config.spec import Plan
from pronk.errors import UserError, nearest
from pronk.maths.scores import normalize
from pronk.run.evaluate import Tally
from pronk.types import Agent, EnvSpec

Hyper = dict[str, float]

# Purposes of random numbers: each decision of each member at each generation has its own stream.
INITIAL, CANDIDATE, PERTURB = range(3)


class Tuned(NamedTuple):
    """A hyperparameter that is adapted, and the range of its initial values."""

    name: str
    low: float
    high: float  # equal to `low`: nothing is drawn
    near_one: bool = False  # draw and perturb 1 − x


class Decision(NamedTuple):
    """How a member goes on."""

    donor: int | None  # the member whose learner state and hyperparameters it copies
    hyper: Hyper  # the donor's or its own, perturbed
    factors: dict[str, float]  # of the perturbed hyperparameters


def near_one(plan: Plan) -> Collection[str]:
    """The agent's hyperparameters of which 1 − x is perturbed."""
    return fields.near_one(type(plan.agent_config))


def parse_tune(settings: PBTConfig, plan: Plan, agent: Agent) -> list[Tuned]:
    """The hyperparameters that `--tune` names, or else the agent's own choice.

    Raises UserError for a name that is not a number in the agent's `LearnerState.hyper`, for an
    empty range, and for values that the agent's configuration does not allow.
    """
    leaves = jax.eval_shape(agent.init, jax.random.key(0)).hyper
    known = sorted(name for name in leaves if hasattr(plan.agent_config, name))
    found: list[Tuned] = []
    for text in settings.tune or fields.tuned(type(plan.agent_config)):
        name, _, span = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in known:
            raise UserError(
                f"`--tune` is '{text}', but {plan.agent} cannot change '{name}' while it"
                f" learns{nearest(name, known) or '.'} It can change {', '.join(known)}."
            )
        if name in (other.name for other in found):
            raise UserError(f"`--tune` has '{name}' twice; expected each name once.")
        own = getattr(plan.agent_config, name)
        begins = schedules.parse(own).first if schedules.is_schedule(own) else None
        own = own if begins is None else begins
        low, high = _parse_range(text, span) if "=" in text else (own, own)
        for value in (low, high):
            _check(plan, name, value)
        tuned = Tuned(name, low, high, name in near_one(plan))
        if begins is not None and not _scale(begins, tuned.near_one):
            raise UserError(
                f"`--tune` is '{text}', but the schedule of '{name}' begins at {begins:g}, which"
                " multiplying does not change; give it another first value, or tune another number."
            )
        if not min(_scale(low, tuned.near_one), _scale(high, tuned.near_one)) > 0:
            raise UserError(
                f"`--tune` is '{text}', but '{name}' would start at {low:g}, which multiplying"
                " does not change; expected NAME=LOW:HIGH, both"
                f" {'below 1' if tuned.near_one else 'above zero'}."
            )
        found.append(tuned)
    return found


def _parse_range(text: str, span: str) -> tuple[float, float]:
    low, _, high = span.partition(":")
    try:
        values = float(low), float(high)
    except ValueError:
        values = math.nan, math.nan
    if not (values[0] < values[1] and all(map(math.isfinite, values))):
        raise UserError(
            f"`--tune` is '{text}'; expected NAME=LOW:HIGH with LOW below HIGH, as in"
            " learning_rate=1e-4:1e-2, or NAME alone."
        )
    return values


def _check(plan: Plan, name: str, value: float) -> None:
    """Raise UserError where the agent's configuration does not allow the value, or a schedule that
    starts at it."""
    own, near = getattr(plan.agent_config, name), name in near_one(plan)
    checked: float | str = value
    if schedules.is_schedule(own):
        checked = schedules.parse(own).starting_at(value, near_one=near).text
    config = dataclasses.replace(plan.agent_config, **{name: checked})
    dataclasses.replace(plan, agent_config=config)


def is_allowed(plan: Plan, name: str, value: float) -> bool:
    """Whether the agent's configuration allows the value."""
    try:
        _check(plan, name, value)
    except UserError:
        return False
    return math.isfinite(value)


def _scale(value: float, near_one: bool) -> float:
    """The number that is drawn and multiplied; the function is its own inverse."""
    return 1.0 - value if near_one else value


def _as_float32(value: float) -> float:
    return float(np.float32(value))


def _rng(seed: int, member: int, generation: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, member, generation, purpose])


def initial_hyper(tuned: Sequence[Tuned], *, seed: int, member: int) -> Hyper:
    """A member's initial hyperparameters, log-uniform in their ranges [E18, table D.1]."""
    rng = _rng(seed, member, 0, INITIAL)
    drawn = {}
    for name, low, high, near in tuned:
        u = rng.random()
        ends = math.log(_scale(low, near)), math.log(_scale(high, near))
        value = _scale(math.exp(ends[0] + u * (ends[1] - ends[0])), near)
        drawn[name] = _as_float32(low if low == high else value)
    return dict(sorted(drawn.items()))  # the order of checkpoints and decisions


class Score(NamedTuple):
    """The mean return of some episodes and its standard error, infinite where unknown, as for a
    single episode.

    For a suite with known references (`is_normalised`) it is the mean of its tasks' normalised
    scores, each clipped at 1; for another suite the mean of its tasks' mean returns.
    """

    mean: float
    error: float = 0.0

    @staticmethod
    def of(spec: EnvSpec, tally: Tally) -> Score | None:
        """The score of these episodes; None unless there is one of every task, so that all scores
        compare the same tasks."""
        means, errors = [], []
        references = spec.references if is_normalised(spec) else ()
        for k, count in enumerate(tally.count):
            if not count:
                return None
            mean = tally.total[k] / count
            variance = max(tally.squares[k] / count - mean**2, 0.0) * count / max(count - 1, 1)
            error = math.sqrt(variance / count) if count > 1 else math.inf
            if references:
                random, one = references[k] or (0.0, 1.0)
                mean = min(normalize(mean, (random, one)), 1.0)
                error /= abs(one - random)
            means.append(mean)
            errors.append(error)
        return Score(math.fsum(means) / len(means), math.hypot(*errors) / len(means))


DIVERGED = Score(-math.inf)  # of a member whose last gradients were all not finite


def score_to_json(score: Score | None) -> dict[str, float | None]:
    """A score in the journal: `score` and `error`, None where not finite."""
    if score is None or not math.isfinite(score.mean):
        return {"score": None, "error": None}
    return {"score": score.mean, "error": score.error if math.isfinite(score.error) else None}


def score_from_json(saved: Mapping[str, Any]) -> Score | None:
    """The inverse of `score_to_json`."""
    if saved["score"] is None:
        return None
    return Score(saved["score"], math.inf if saved["error"] is None else saved["error"])


def is_normalised(spec: EnvSpec) -> bool:
    """Whether members' scores are normalised: in a suite where all references are known."""
    return bool(spec.references) and all(spec.references)


def is_better(
    donor: Score | None,
    own: Score | None,
    margin: float,
    sigmas: float = 0.0,
    *,
    absolute: bool = False,
) -> bool:
    """Whether `donor` is better than `own` by at least `margin`, by at least `sigmas` standard
    errors of the difference, and at all.

    absolute: donor − own ≥ margin, "an absolute 5 % higher" for normalised scores [E18, appendix
    F]. Returns have no common unit, so without `absolute` the margin is a share of one's own score:
    donor − own ≥ margin · |own|. False if either score is missing or the margin infinite.
    """
    if donor is None or own is None or math.isnan(donor.mean) or math.isnan(own.mean):
        return False
    if math.isinf(margin) or not donor.mean > own.mean:
        return False
    least = margin * (1.0 if absolute else abs(own.mean))
    noise = sigmas * math.hypot(donor.error, own.error) if sigmas else 0.0
    return donor.mean - own.mean >= max(least, noise)


def decide(
    settings: PBTConfig,
    *,
    seed: int,
    member: int,
    generation: int,
    scores: Sequence[Score | None],
    hyper_of: Callable[[int], Hyper],
    allowed: Callable[[str, float], bool] = lambda name, value: True,
    near_one: Collection[str] = (),
    absolute: bool = False,
) -> Decision:
    """The decision for `member`, which is ready for the `generation`-th time, from 1 on.

    scores: the latest of every member, None before its first. hyper_of: the hyperparameters of a
    member, asked once, of the donor or of the member itself. allowed: whether a hyperparameter may
    take a value. near_one: hyperparameters of which 1 − x is perturbed. absolute: see `is_better`.

    One other member is drawn uniformly, and copied if its score is better [E18, appendix F; J17:
    "binary tournament"]. Copied or not, each hyperparameter is then perturbed with the settings'
    probability, from random numbers of its own. A diverged member copies a random member that has
    a score, unless the margin is infinite.
    """
    rng = _rng(seed, member, generation, CANDIDATE)
    donor = None
    margin, sigmas = settings.copy_margin, settings.copy_sigmas
    if scores[member] == DIVERGED:
        scored = [i for i, score in enumerate(scores) if score not in (None, DIVERGED)]
        if scored and not math.isinf(margin):
            donor = scored[int(rng.integers(len(scored)))]
    else:
        drawn = int(rng.integers(len(scores) - 1))
        drawn += drawn >= member
        if is_better(scores[drawn], scores[member], margin, sigmas, absolute=absolute):
            donor = drawn
    rng = _rng(seed, member, generation, PERTURB)
    before = hyper_of(member if donor is None else donor)
    after, factors = {}, {}
    for name in sorted(before):
        chance, up = rng.random(2)  # both always drawn, so that names don't affect each other
        factor = settings.perturb_factor if up < 0.5 else 1.0 / settings.perturb_factor
        after[name] = before[name]
        if chance >= settings.perturb_probability:
            continue
        near = name in near_one
        value = _as_float32(_scale(_scale(before[name], near) * factor, near))
        if allowed(name, value):  # otherwise it keeps its value
            after[name], factors[name] = value, factor
    return Decision(donor, after, factors)
