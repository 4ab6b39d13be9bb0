"""Who copies whom, and what is perturbed: pure functions of scores, hyperparameters and a seed.

Espeholt et al. 2018, section 5 and appendix F; Jaderberg et al. 2017, section 3. Both executions
decide by these. Hyperparameters are what their float32 leaves hold, as Python floats.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pronk.config import fields
from pronk.config.pbt import PBTConfig
from pronk.config.spec import Plan
from pronk.errors import UserError, nearest
from pronk.maths.scores import normalize
from pronk.run.evaluate import Tally
from pronk.types import Agent, EnvSpec

Hyper = dict[str, float]

# Purposes of random numbers; each decision of each member at each generation has its own.
FIRST, CANDIDATE, PERTURB = range(3)
FIXED = ("horizon",)  # leaves of `LearnerState.hyper` that are no setting of the agent


class Tuned(NamedTuple):
    """A hyperparameter that is adapted, and the range of its first values."""

    name: str
    low: float
    high: float  # where it equals `low`, nothing is drawn
    near_one: bool = False  # whether 1 − x is drawn and perturbed


class Decision(NamedTuple):
    """What becomes of a member that is ready."""

    donor: int | None  # whose parameters, optimiser, statistics and hyperparameters it goes on with
    hyper: Hyper  # with which it goes on: the donor's or its own, perturbed
    factors: dict[str, float]  # of those that were perturbed


def tuned(settings: PBTConfig, plan: Plan, agent: Agent) -> list[Tuned]:
    """What `--tune` asks for, or else the fields that the agent's configuration marks `tune`.

    Raises UserError for a name that is no number in the agent's `LearnerState.hyper`, a range that
    is none, and values that the agent's settings don't allow.
    """
    leaves = jax.eval_shape(agent.init, jax.random.key(0)).hyper
    known = sorted(
        name for name in leaves if name not in FIXED and hasattr(plan.agent_config, name)
    )
    found: list[Tuned] = []
    for text in settings.tune or fields.tuned(type(plan.agent_config)):
        name, _, span = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in known:
            raise UserError(
                f"`--tune` is '{text}', and '{name}' is nothing that {plan.agent} can change while"
                f" it learns{nearest(name, known) or '.'} It can change {', '.join(known)}."
            )
        if name in (other.name for other in found):
            raise UserError(f"`--tune` has '{name}' twice; expected each name once.")
        own = getattr(plan.agent_config, name)
        low, high = _range(text, span) if "=" in text else (own, own)
        for value in (low, high):
            _allow(plan, name, value)  # says what is expected
        near_one = name in fields.near_one(type(plan.agent_config))
        if not (_scale(low, near_one) > 0 and _scale(high, near_one) > 0):
            where = "below 1" if near_one else "above zero"
            raise UserError(
                f"`--tune` is '{text}', and '{name}' would begin at {low:g}, of which any multiple"
                f" is the same; expected NAME=LOW:HIGH, both {where}."
            )
        found.append(Tuned(name, low, high, near_one))
    return found


def _range(text: str, span: str) -> tuple[float, float]:
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


def _allow(plan: Plan, name: str, value: float) -> None:
    """Raise UserError where the agent's settings don't allow it."""
    config = dataclasses.replace(plan.agent_config, **{name: value})
    dataclasses.replace(plan, agent_config=config)


def allowed_by(plan: Plan) -> Callable[[str, float], bool]:
    """Whether a hyperparameter may have a value, by what the agent's settings may be."""

    def allowed(name: str, value: float) -> bool:
        try:
            _allow(plan, name, value)
        except UserError:
            return False
        return math.isfinite(value)

    return allowed


def _scale(value: float, near_one: bool) -> float:
    """What is drawn and multiplied, of a value; the same function leads back."""
    return 1.0 - value if near_one else value


def _held(value: float) -> float:
    """As the float32 leaf holds it."""
    return float(np.float32(value))


def _rng(seed: int, member: int, generation: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, member, generation, purpose])


def first(names: Sequence[Tuned], *, seed: int, member: int) -> Hyper:
    """A member's first hyperparameters, log-uniform in their ranges [E18, table D.1]."""
    rng = _rng(seed, member, 0, FIRST)
    drawn = {}
    for name, low, high, near_one in names:
        u = rng.random()
        ends = math.log(_scale(low, near_one)), math.log(_scale(high, near_one))
        value = _scale(math.exp(ends[0] + u * (ends[1] - ends[0])), near_one)
        drawn[name] = _held(low if low == high else value)
    return dict(sorted(drawn.items()))  # as checkpoints and decisions have them


class Score(NamedTuple):
    """What a member is worth: the mean return of some games, and the standard error of that, which
    is infinite where it isn't known, as of a single game. Of a suite whose references are known
    (`is_normalised`), the mean of its tasks' normalised scores, cut off at 1; of another one, the
    mean of their mean returns."""

    mean: float
    error: float = 0.0

    @staticmethod
    def of(spec: EnvSpec, tally: Tally) -> Score | None:
        """Of these games; None where there is none, or none of some task: what is compared is of
        the same tasks."""
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


def is_normalised(spec: EnvSpec) -> bool:
    """Whether members' scores are normalised ones, of a suite whose references are all known."""
    return bool(spec.references) and all(spec.references)


def is_better(
    donor: Score | None,
    own: Score | None,
    threshold: float,
    sigmas: float = 0.0,
    *,
    absolute: bool = False,
) -> bool:
    """Whether a score is so much better than one's own that its member is copied: by at least
    `threshold`, by at least `sigmas` standard errors of the difference, and at all.

    absolute: donor − own ≥ threshold, which is "an absolute 5 % higher" of normalised scores [E18,
    appendix F]. Returns have no unit that is every task's, and there it is a share of one's own,
    donor − own ≥ threshold · |own|: below zero a twentieth of the way to zero; next to zero any
    gain will do. Without a score on either side nothing is better. An infinite threshold: nothing
    ever is.
    """
    if donor is None or own is None or math.isnan(donor.mean) or math.isnan(own.mean):
        return False
    if math.isinf(threshold) or not donor.mean > own.mean:
        return False
    margin = threshold * (1.0 if absolute else abs(own.mean))
    noise = sigmas * math.hypot(donor.error, own.error) if sigmas else 0.0
    return donor.mean - own.mean >= max(margin, noise)


def has_diverged(score: Score | None) -> bool:
    """Whether the score, −∞, is that of a member of whose last updates none was finite."""
    return score is not None and score.mean == -math.inf


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
    """What becomes of `member`, which is ready for the `generation`-th time, from 1 on.

    scores: the latest of every member, None where there is none yet. hyper_of: what a member's
    learner has now, or, of a donor, what comes with the copy. near_one: hyperparameters of which
    1 − x is perturbed. absolute: as in `is_better`.

    One other member is drawn, each as likely as any, and copied if its score is so much better
    [E18, appendix F; J17: "binary tournament"]. Whether or not that happened, each hyperparameter
    is perturbed with the settings' probability. The two decisions have random numbers of their own.
    Who has diverged draws from those that have a score, unless nobody is ever copied.
    """
    rng = _rng(seed, member, generation, CANDIDATE)
    donor = None
    if has_diverged(scores[member]):
        scored = [i for i, s in enumerate(scores) if s is not None and not has_diverged(s)]
        if scored and not math.isinf(settings.copy_margin):
            donor = scored[int(rng.integers(len(scored)))]
    else:
        drawn = int(rng.integers(len(scores) - 1))
        drawn += drawn >= member
        threshold, sigmas = settings.copy_margin, settings.copy_sigmas
        if is_better(scores[drawn], scores[member], threshold, sigmas, absolute=absolute):
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
        value = _held(_scale(_scale(before[name], name in near_one) * factor, name in near_one))
        if allowed(name, value):  # otherwise it stays where it is
            after[name], factors[name] = value, factor
    return Decision(donor, after, factors)


def summary_of(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Best and median of members that have a `score`, and who the best one is; NaN where none
    has."""
    scored = [m for m in members if m["score"] is not None]
    if not scored:
        return {"best": None, "best_score": math.nan, "median_score": math.nan}
    best = max(scored, key=lambda m: m["score"])
    return {
        "best": best["member"],
        "best_score": best["score"],
        "median_score": float(np.median([m["score"] for m in scored])),
    }
