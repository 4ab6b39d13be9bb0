"""Statistics of reports: against published tables, rliable 1.2.0, and slow sums."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pronk import report
from pronk.maths import scores as reference_scores
from pronk.report import references, statistics
from pronk.report.statistics import probabilities_of_improvement, task_means
from pronk.report.welch import incomplete_beta, two_sided, welch

DATA = Path(__file__).with_name("data")
RLIABLE = json.loads((DATA / "rliable.json").read_text())

# Published tables.


def published(file: str, table: str) -> dict[str, dict[str, np.ndarray]]:
    """The normalised scores of each agent in a table of a paper, by game."""
    found = references.load(table)
    assert found is not None
    agents: dict[str, dict[str, Any]] = {}
    for run in report.read([DATA / file]):
        agents.setdefault(run.agent, {})[run.env] = [run.rows[0].score]
    for tasks in agents.values():
        assert len(tasks) == 57
    return {
        name: report.normalised(tasks, found.of(list(tasks), {})) for name, tasks in agents.items()
    }


def percents(scores: dict[str, np.ndarray], names: list[str]) -> list[float]:
    values = report.aggregates(scores, names)
    factors = [1 if report.AGGREGATES[name].is_count else 100 for name in names]
    return (values * factors).tolist()


# Badia et al. 2020, "Agent57: Outperforming the Atari Human Benchmark", table 1.
TABLE_1 = {
    "Agent57": [100.00, 57, 4766.25, 1933.49, 1091.07, 614.65, 324.78, 184.35, 116.67],
    "R2D2 (bandit)": [96.93, 54, 5461.66, 2357.92, 1298.80, 648.17, 303.61, 116.82, 93.25],
    "MuZero": [89.92, 51, 5661.84, 2381.51, 1172.90, 503.05, 171.39, 75.74, 0.03],
}


def test_table_1_of_agent57() -> None:
    """All 27 figures; the paper rounds them and the scores they are made of."""
    percentiles = [f"percentile_{percent}" for percent in (40, 30, 20, 10, 5)]
    names = ["capped_mean", "tasks_above", "mean", "median", *percentiles]
    for agent, scores in published("agent57.csv", "agent57").items():
        np.testing.assert_allclose(percents(scores, names), TABLE_1[agent], atol=0.031, rtol=0)


def test_the_cap_of_agent57_is_on_both_sides() -> None:
    scores = published("agent57.csv", "agent57")["MuZero"]
    one_sided = reference_scores.aggregates([float(x[0]) for x in scores.values()])["mean_capped"]
    assert 100 * one_sided == pytest.approx(87.96, abs=0.01)


def test_the_table_of_references_matters() -> None:
    """With two decimals, Double Dunk's score moves across the median."""
    scores = published("agent57.csv", "muzero-s1")["Agent57"]
    np.testing.assert_allclose(percents(scores, ["median", "mean"]), [1975.81, 4766.97], atol=0.01)


# Espeholt et al. 2018 (IMPALA), table 4: median and mean.
TABLE_4 = {
    "IMPALA (deep, multi-task)": [59.7, 176.9],
    "IMPALA (shallow)": [93.2, 466.4],
    "IMPALA (deep)": [191.8, 957.6],
}


def test_table_4_of_impala() -> None:
    for agent, scores in published("impala.csv", "muzero-s1").items():
        found = percents(scores, ["median", "mean"])
        np.testing.assert_allclose(found, TABLE_4[agent], atol=0.051, rtol=0)


def test_table_1_of_muzero() -> None:
    """Median and mean of Schrittwieser et al. 2020; other rows of it mix several sources."""
    scores = published("muzero.csv", "muzero-s1")
    found = percents(scores["MuZero"], ["median", "mean"])
    np.testing.assert_allclose(found, [2041.1, 4999.2], atol=0.051, rtol=0)
    assert percents(scores["Ape-X"], ["median"]) == [pytest.approx(434.1, abs=0.051)]
    old = published("muzero.csv", "agent57")
    assert percents(old["R2D2"], ["mean"]) == [pytest.approx(4024.9, abs=0.051)]


# rliable 1.2.0; see `about` in the file.


def matrix(name: str) -> list[np.ndarray]:
    """The scores of each task."""
    return list(np.array(RLIABLE["scores"][name]).T)


@pytest.mark.parametrize("name", ["x", "y", "z"])
def test_aggregates_and_profiles_are_those_of_rliable(name: str) -> None:
    scores = matrix(name)
    for statistic, value in RLIABLE["aggregates"][name].items():
        assert float(report.AGGREGATES[statistic].function(scores)) == pytest.approx(value, 1e-12)
    names = list(RLIABLE["aggregates"][name])
    values = list(RLIABLE["aggregates"][name].values())
    np.testing.assert_allclose(report.aggregates(scores, names), values, rtol=1e-12)
    found = report.profile(scores, RLIABLE["thresholds"])
    np.testing.assert_allclose(found, RLIABLE["profiles"][name], rtol=1e-12)


@pytest.mark.parametrize("pair", RLIABLE["improvement"])
def test_probability_of_improvement_is_that_of_rliable(pair: str) -> None:
    first, second = map(matrix, pair.split(","))
    value, low, high = RLIABLE["improvement"][pair]
    assert float(report.probability_of_improvement(first, second)) == pytest.approx(value, 1e-12)
    ends = report.interval(report.probability_of_improvement, first, second, repeats=20_000)
    np.testing.assert_allclose(ends, [low, high], atol=0.02)  # theirs: 2,000 repeats


@pytest.mark.parametrize("name", ["x", "y", "z"])
def test_intervals_are_those_of_rliable_within_monte_carlo_error(name: str) -> None:
    theirs = RLIABLE["intervals"][name]
    ends = report.interval(
        lambda scores: report.aggregates(scores, list(theirs)), matrix(name), repeats=20_000
    )
    width = np.diff(np.array(list(theirs.values()))).max()
    np.testing.assert_allclose(ends.T, list(theirs.values()), atol=0.025 * width)


# Definitions.


def slow_iqm(tasks: list[list[float]]) -> float:
    """The integral of the quantile function between t and 1 - t, piece by piece."""
    weighted = sorted((x, Fraction(1, len(tasks) * len(task))) for task in tasks for x in task)
    total = sum(len(task) for task in tasks)
    first = Fraction(total // 4, total)
    last = 1 - first
    integral, begin = 0.0, Fraction(0)
    for value, weight in weighted:
        kept = min(begin + weight, last) - max(begin, first)
        integral += value * float(max(kept, Fraction(0)))
        begin += weight
    return integral / float(last - first)


SCORES = st.lists(
    st.lists(st.floats(-5, 5, allow_subnormal=False), min_size=1, max_size=6),
    min_size=1,
    max_size=5,
)


@given(SCORES)
def test_interquartile_mean_with_unequal_numbers_of_runs(tasks: list[list[float]]) -> None:
    assert float(report.iqm(tasks)) == pytest.approx(slow_iqm(tasks), abs=1e-9)


@given(SCORES)
def test_statistics_are_the_same_in_a_batch(tasks: list[list[float]]) -> None:
    """Leading axes are those of resamples."""
    batch = [np.stack([task, np.array(task) + 1]) for task in tasks]
    for one in statistics.AGGREGATES.values():
        both = [one.function(tasks), one.function([np.array(task) + 1 for task in tasks])]
        np.testing.assert_allclose(one.function(batch), both, atol=1e-9)


def test_every_task_has_the_same_weight() -> None:
    scores = {"a": [0.0, 0.0, 0.0, 0.0], "b": [1.0]}
    assert report.mean(scores) == 0.5
    assert report.profile(scores, [0.5]) == [0.5]
    assert report.optimality_gap(scores) == 0.5
    assert report.iqm({"a": [0.0] * 100, "b": [1.0] * 2}) == pytest.approx(0.5)


def test_aggregates_of_tasks() -> None:
    scores = {"a": [-1.0, -3.0], "b": [0.5], "c": [1.0], "d": [3.0, 5.0]}
    np.testing.assert_array_equal(task_means(scores), [-2.0, 0.5, 1.0, 4.0])
    assert report.capped_mean(scores) == (0 + 0.5 + 1 + 1) / 4
    assert report.tasks_above(scores) == 2
    assert report.median(scores) == 0.75
    assert report.percentile(scores, 10) == pytest.approx(-2 + 0.3 * 2.5)
    assert report.optimality_gap(scores) == pytest.approx((3 + 0.5) / 4)


@given(SCORES, st.data())
def test_improvement_and_its_opposite_add_up_to_one(
    tasks: list[list[float]], data: st.DataObject
) -> None:
    values = st.lists(st.sampled_from([-1.0, 0.0, tasks[0][0]]), min_size=1, max_size=4)
    others = [data.draw(values) for _ in tasks]
    there = probabilities_of_improvement(tasks, others)
    np.testing.assert_allclose(there + probabilities_of_improvement(others, tasks), 1)
    np.testing.assert_allclose(probabilities_of_improvement(tasks, tasks), 0.5)


def test_profiles_count_scores_above_the_threshold() -> None:
    np.testing.assert_array_equal(report.profile([[0.0, 1.0]], [-1, 0, 0.5, 1]), [1, 0.5, 0.5, 0])


def test_area_under_the_curve_is_the_mean_over_episodes() -> None:
    assert report.area_under_curve([1.0, 4.0], [10, 20]) == 3.0


# The bootstrap.


def test_the_seed_decides_the_interval() -> None:
    scores = matrix("x")
    first = report.interval(report.iqm, scores, repeats=500, seed=1)
    np.testing.assert_array_equal(report.interval(report.iqm, scores, repeats=500, seed=1), first)
    assert (report.interval(report.iqm, scores, repeats=500, seed=2) != first).all()


def test_runs_are_drawn_within_their_task() -> None:
    """Tasks of equal runs never change, whatever is drawn."""
    scores = [np.full(3, 1.0), np.full(5, 7.0)]
    found = report.distribution(task_means, scores, repeats=50)
    np.testing.assert_array_equal(found, np.tile([1.0, 7.0], (50, 1)))


def test_resamples_have_as_many_runs_and_all_repeats() -> None:
    scores = [np.arange(4.0), np.arange(2.0), np.arange(3000.0)]
    shapes: list[list[int]] = []
    found = report.distribution(
        lambda tasks: shapes.append([len(one[0]) for one in tasks]) or report.mean(tasks),
        scores,
        repeats=1001,
    )
    assert found.shape == (1001,)
    assert len(shapes) > 1  # in chunks
    assert set(map(tuple, shapes)) == {(4, 2, 3000)}


def test_the_bootstrap_has_the_spread_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(size=40)
    low, high = report.interval(report.mean, [values], repeats=20_000)
    error = values.std() / math.sqrt(40)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.03)


def test_one_run_has_no_interval() -> None:
    assert np.isnan(report.interval(report.aggregates, [[1.0], [2.0]])).all()


def test_groups_are_drawn_apart() -> None:
    """The difference of a group from itself varies."""
    scores = matrix("x")
    low, high = report.interval(lambda a, b: report.mean(a) - report.mean(b), scores, scores)
    assert low < -0.05
    assert high > 0.05


# Welch's test; stored values of SciPy 1.17.1.


@pytest.mark.parametrize(
    ("a", "b", "x", "value"),
    [
        (0.5, 0.5, 0.3, 0.36901011956554536),
        (2, 0.5, 0.9, 0.5414697392755851),
        (1.7, 0.5, 0.05, 0.002511371273673247),
        (40, 0.5, 0.99, 0.37138602325398434),
        (3, 5, 0.4, 0.5800960000000001),
        (0.5, 2, 0.999, 0.9999996248749297),
        (200.0, 0.5, 0.98, 0.004497916539844504),
    ],
)
def test_incomplete_beta(a: float, b: float, x: float, value: float) -> None:
    assert incomplete_beta(a, b, x) == pytest.approx(value, 1e-12)


@pytest.mark.parametrize(
    ("x", "y", "statistic", "p_value", "freedom"),
    [
        (("x", 0), ("y", 0), 0.8267297768323817, 0.44343790315223747, 5.390025875080773),
        (("x", 1), ("z", 1), -0.14391440491608554, 0.8958605820130723, 2.633083739371151),
        (("x", 2), ("y", 4), -1.444415783508247, 0.20607103365134838, 5.198792594507339),
    ],
)
def test_welch(
    x: tuple[str, int], y: tuple[str, int], statistic: float, p_value: float, freedom: float
) -> None:
    found = welch(matrix(x[0])[x[1]], matrix(y[0])[y[1]])
    assert found.statistic == pytest.approx(statistic, 1e-10)
    assert found.p_value == pytest.approx(p_value, 1e-10)
    assert found.freedom == pytest.approx(freedom, 1e-10)


def test_welch_where_it_cannot_be_computed() -> None:
    assert math.isnan(welch([1.0], [2.0, 3.0]).p_value)
    assert math.isnan(welch([1.0, 1.0], [2.0, 2.0]).p_value)
    assert 0 < welch([1.0, 1.0], [2.0, 2.5]).p_value < 1


def test_two_sided_probabilities() -> None:
    """One degree of freedom is Cauchy's distribution, and many are almost the normal one."""
    assert two_sided(1.0, 1) == pytest.approx(0.5, 1e-12)
    assert two_sided(-1.0, 1) == two_sided(1.0, 1)
    assert two_sided(0.0, 7) == 1
    assert two_sided(1.96, 1e6) == pytest.approx(math.erfc(1.96 / math.sqrt(2)), 1e-4)
    assert 0 <= two_sided(1e200, 3) < 1e-100
