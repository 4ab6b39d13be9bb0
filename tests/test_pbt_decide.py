"""Decisions of population based training: by hand, and by statistics."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pbt_fakes import plan_in, settings

from pronk import envs, pbt
from pronk.config.pbt import PBTConfig
from pronk.errors import UserError
from pronk.pbt.decide import (
    Decision,
    Score,
    decide,
    initial_hyper,
    is_allowed,
    is_better,
    is_normalised,
    near_one,
    parse_tune,
)
from pronk.run.evaluate import Tally
from pronk.run.resolve import resolve
from pronk.run.setup import build


@pytest.mark.parametrize(
    ("donor", "own", "better"),
    [
        (1.05, 1.0, True),
        (1.049, 1.0, False),
        (0.8, 1.0, False),
        (-9.5, -10.0, True),  # a twentieth of the way to zero
        (-9.6, -10.0, False),
        (-10.0, -9.0, False),
        (1e-9, 0.0, True),
        (0.0, 0.0, False),
        (0.0, -1e-9, True),
        (5.0, None, False),
        (None, 5.0, False),
        (None, None, False),
        (math.nan, 1.0, False),
        (1.0, math.nan, False),
        (-1e9, -math.inf, True),  # diverged
        (-math.inf, -math.inf, False),
    ],
)
def test_five_per_cent_better(donor: float | None, own: float | None, better: bool) -> None:
    scores = rated([donor, own])
    assert is_better(scores[0], scores[1], 0.05) is better
    assert not is_better(scores[0], scores[1], math.inf)


def rated(scores: list[float | None]) -> list[Score | None]:
    return [None if score is None else Score(score) for score in scores]


def test_better_than_noise() -> None:
    """By so many standard errors of the difference, 5 for these, and by the margin."""
    own, donor = Score(1.0, 3.0), Score(11.0, 4.0)
    assert is_better(donor, own, 0.05, sigmas=2.0)
    assert not is_better(donor, own, 0.05, sigmas=2.01)
    assert not is_better(donor, own, 11.0, sigmas=2.0)
    assert is_better(donor, Score(-math.inf), 0.05, sigmas=100.0)
    returns = np.random.default_rng(0).normal(3.0, 2.0, size=50)
    spec = envs.spec_of("pronk/Catch-v0")
    score = Score.of(spec, Tally([returns.sum()], [(returns**2).sum()], [50]))
    assert score is not None
    assert score.mean == pytest.approx(returns.mean())
    assert score.error == pytest.approx(returns.std(ddof=1) / np.sqrt(50))
    # The noise of a single episode is unknown.
    single = Score.of(spec, Tally([500.0], [250_000.0], [1]))
    assert single == Score(500.0, math.inf)
    assert not is_better(single, own, 0.05, sigmas=2.0)
    assert is_better(single, own, 0.05)


def test_of_normalised_scores_five_per_cent_are_absolute(tmp_path: Path) -> None:
    own, near, far = (Score(mean) for mean in (0.2, 0.24, 0.26))
    assert is_better(near, own, 0.05)
    assert not is_better(near, own, 0.05, absolute=True)
    assert is_better(far, own, 0.05, absolute=True)
    assert is_better(own, Score(-math.inf), 0.05, absolute=True)

    single = pbt.set_up(plan_in(tmp_path), settings())
    suite = dataclasses.replace(single, spec=envs.spec_of("suite/scales-v0"))
    without = envs.spec_of("pronk/Catch-v0,pronk/DeepSea-v0")
    assert is_normalised(suite.spec)
    assert not is_normalised(without)
    for setup, copies in ((single, True), (suite, False)):
        found = [setup.decide(0, g, 400, [own, near, near, near], lambda m: {}) for g in (1, 2)]
        assert [d.donor is not None for d in found] == [copies] * 2


def decisions(count: int, *, scores: list[float | None], **changes: Any) -> list[Decision]:
    """Of member 0 at `count` generations; every hyperparameter of member i is i + 1."""
    return [
        decide(
            settings(**changes), seed=7, member=0, generation=g, scores=rated(scores),
            hyper_of=lambda m: {"a": m + 1.0, "b": m + 1.0, "c": m + 1.0},
        )
        for g in range(1, count + 1)
    ]  # fmt: skip


def test_a_random_member_is_copied_if_better_and_never_itself() -> None:
    found = decisions(3000, scores=[0.0, 1.0, -1.0, 1.0])
    donors = [d.donor for d in found]
    # One of the three others is drawn; member 2 is worse.
    for donor, share in ((1, 1 / 3), (3, 1 / 3), (None, 1 / 3), (0, 0.0), (2, 0.0)):
        assert donors.count(donor) / 3000 == pytest.approx(share, abs=0.03)


def test_each_hyperparameter_is_perturbed_a_third_of_the_time_up_as_often_as_down() -> None:
    found = decisions(3000, scores=[None] * 4)
    assert all(d.donor is None for d in found)
    for name in "abc":
        values = [d.hyper[name] for d in found]
        for value, share in ((1.0, 0.67), (1.2, 0.165), (1 / 1.2, 0.165)):
            assert np.isclose(values, value).mean() == pytest.approx(share, abs=0.03)
    both = [("a" in d.factors, "b" in d.factors) for d in found]
    assert both.count((True, True)) / 3000 == pytest.approx(0.33**2, abs=0.02)


def test_copying_and_perturbing_are_independent() -> None:
    found = decisions(6000, scores=[0.0, 1.0, -1.0, -1.0])
    copied = np.array([d.donor is not None for d in found])
    perturbed = np.array([[name in d.factors for name in "abc"] for d in found])
    for column in perturbed.T:
        joint = (copied & column).mean()
        assert joint == pytest.approx(copied.mean() * column.mean(), abs=0.015)
    # Whether a member can be copied does not affect perturbations,
    alone = decisions(6000, scores=[None] * 4)
    assert [d.factors for d in found] == [d.factors for d in alone]
    # nor do perturbations affect copies.
    still = decisions(6000, scores=[0.0, 1.0, -1.0, -1.0], perturb_probability=0.0)
    assert [d.donor for d in found] == [d.donor for d in still]
    assert not any(d.factors for d in still)


def test_copied_hyperparameters_are_perturbed() -> None:
    found = decisions(500, scores=[0.0, 1.0, None, None])
    seen = set()
    for d in found:
        base = 1.0 if d.donor is None else d.donor + 1.0
        seen.add((d.donor, bool(d.factors)))
        for name in "abc":
            assert d.hyper[name] == pytest.approx(base * d.factors.get(name, 1.0))
    assert seen == {(None, False), (None, True), (1, False), (1, True)}


def test_a_copy_needs_both_scores() -> None:
    assert not any(d.donor for d in decisions(300, scores=[None, 9.0, 9.0, 9.0]))
    assert not any(d.donor for d in decisions(300, scores=[0.0, None, None, math.nan]))


def test_each_decision_has_its_own_random_numbers_and_always_the_same() -> None:
    first, again = (decisions(50, scores=[0.0, 1.0, 1.0, 1.0]) for _ in range(2))
    assert first == again
    assert len({str(d) for d in first}) > 10


def test_initial_values_are_log_uniform_in_their_range(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    _, agent = build(plan, plan.env)
    tune = ("learning_rate=1e-4:1e-1", "discount=0.9:0.999", "max_gradient_norm")
    names = parse_tune(settings(tune=tune), plan, agent)
    drawn = [initial_hyper(names, seed=1, member=m) for m in range(2000)]
    rates = np.log10([d["learning_rate"] for d in drawn])
    assert rates.min() >= -4
    assert rates.max() <= -1
    for third in np.histogram(rates, bins=3, range=(-4, -1))[0] / 2000:
        assert third == pytest.approx(1 / 3, abs=0.04)
    # For a discount 1 − γ is: half of them are between 0.9 and 0.99.
    below = np.mean([d["discount"] < 0.99 for d in drawn])
    assert below == pytest.approx(0.5, abs=0.04)
    assert {d["max_gradient_norm"] for d in drawn} == {plan.agent_config.max_gradient_norm}


def test_perturbed_values_stay_valid(tmp_path: Path) -> None:
    """A discount's distance from 1 is multiplied; and no value leaves the range of its setting."""
    config, plan = settings(perturb_probability=1.0), plan_in(tmp_path)

    def after(allowed: Any = lambda name, value: True) -> dict[str, float]:
        return decide(
            config, seed=0, member=0, generation=1, scores=[None] * 4,
            hyper_of=lambda _: {"discount": 0.99, "trace_leak": 0.99}, allowed=allowed,
            near_one=near_one(plan),
        ).hyper  # fmt: skip

    assert after()["discount"] in [pytest.approx(1 - 0.01 * f) for f in (1.2, 1 / 1.2)]
    values = {
        decide(
            config, seed=0, member=0, generation=g, scores=[None] * 4,
            hyper_of=lambda _: {"trace_leak": 0.99}, allowed=functools.partial(is_allowed, plan),
        ).hyper["trace_leak"]
        for g in range(1, 30)
    }  # fmt: skip
    assert sorted(values) == pytest.approx([0.99 / 1.2, 0.99])


def test_a_schedule_is_tuned_by_its_first_value(tmp_path: Path) -> None:
    """The whole schedule is multiplied, and none of its values may leave the range."""
    changes = {"entropy_cost": "linear:0.1:0.2", "discount": "linear:0.9:0.5"}
    changes |= {"value_cost": "linear:0:1", "trace_lambda": "linear:1:0.5"}
    changes |= {"rmsprop_decay": "linear:0.5:0.95"}
    plan = resolve("impala", "pronk/Catch-v0", run_dir=tmp_path, **changes)
    _, agent = build(plan, plan.env)
    tune = ("entropy_cost", "discount=0.8:0.95", "rmsprop_decay")
    names = parse_tune(settings(tune=tune), plan, agent)
    assert (names[0].low, names[0].high) == (0.1, 0.1)
    assert (names[1].low, names[1].high, names[1].near_one) == (0.8, 0.95, True)
    assert is_allowed(plan, "entropy_cost", 0.12)
    assert not is_allowed(plan, "entropy_cost", 6e5)  # twice that at the end: above a million
    assert is_allowed(plan, "discount", 0.85)  # 1 - 0.5 · 1.5
    assert not is_allowed(plan, "discount", 0.75)  # 1 - 0.5 · 2.5
    for text in ("value_cost", "value_cost=0.1:1", "trace_lambda", "trace_lambda=0.1:0.9"):
        with pytest.raises(UserError, match=r"begins at [01], which multiplying does not change"):
            parse_tune(settings(tune=(text,)), plan, agent)


@pytest.mark.parametrize("member", range(4))
def test_a_diverged_members_donor_is_drawn_from_those_with_a_score(member: int) -> None:
    scores = [Score(1.0), None, Score(-math.inf), Score(3.0)]
    scores[member] = Score(-math.inf)
    expected = {i for i in (0, 3) if i != member}

    def donor(generation: int, **changes: Any) -> int | None:
        return decide(
            settings(**changes), seed=0, member=member, generation=generation, scores=scores,
            hyper_of=lambda other: {"a": 1.0},
        ).donor  # fmt: skip

    assert {donor(generation) for generation in range(1, 30)} == expected
    assert donor(1, copy_margin=math.inf) is None
    scores[0] = scores[3] = None
    scores[member] = Score(-math.inf)
    assert donor(1) is None


@pytest.mark.parametrize("agent", ["impala", "r2d2"])
def test_what_an_agent_tunes_by_default_can_be_tuned(agent: str, tmp_path: Path) -> None:
    plan = resolve(agent, "pronk/Catch-v0", run_dir=tmp_path)
    _, made = build(plan, plan.env)
    names = parse_tune(PBTConfig(), plan, made)
    assert {"learning_rate", "optimiser_epsilon", "max_gradient_norm"} <= {n.name for n in names}
