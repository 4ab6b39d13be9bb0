"""V-trace's operator and the random walk, in tables; and the page that shows them."""

from __future__ import annotations

import csv
import itertools
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from pronk import cli
from pronk.experiments.reproduce import policy_lag, td_lambda, vtrace_ablation, vtrace_analysis
from pronk.experiments.reproduce.settings import TDLambda, VTraceAnalysis
from pronk.maths import returns
from pronk.maths.tabular import (
    VTraceOperator,
    random_mdp,
    random_policy,
    random_walk_values,
    random_walks,
    truncated_policy,
)

DOCS = Path(__file__).parents[1] / "docs"
LEVELS = [(0.5, 0.5), (0.5, 0.2), (1.0, 1.0), (2.0, 0.7), (math.inf, 1.0), (math.inf, math.inf)]


def problem(seed: int):
    rng = np.random.default_rng(seed)
    mdp = random_mdp(rng, 4, 3, 0.9)
    return mdp, random_policy(rng, 4, 3), random_policy(rng, 4, 3)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("rho_bar", "c_bar"), LEVELS)
def test_the_fixed_point_and_the_contraction(seed, rho_bar, c_bar):
    """Theorem 1: V of π_ρ̄, whatever c̄, and no slower than the bound says."""
    mdp, pi, mu = problem(seed)
    operator = VTraceOperator(mdp, pi, mu, rho_bar=rho_bar, c_bar=c_bar)
    value = mdp.value(truncated_policy(pi, mu, rho_bar))
    np.testing.assert_allclose(operator.fixed_point, value, rtol=1e-9)
    np.testing.assert_allclose(operator(value), value, rtol=1e-9)
    assert operator.modulus <= operator.bound + 1e-9
    assert operator.bound <= 1 - 0.1 * np.minimum(rho_bar * mu, pi).sum(1).min() + 1e-9
    rng = np.random.default_rng(seed)
    for _ in range(20):
        a, b = rng.normal(size=(2, 4))
        apart = np.abs(operator(a) - operator(b)).max()
        assert apart <= operator.modulus * np.abs(a - b).max() + 1e-12
    if rho_bar < math.inf:
        assert np.abs(value - mdp.value(pi)).max() > 1e-3


def test_wrong_shapes_are_named():
    mdp, pi, mu = problem(0)
    with pytest.raises(ValueError, match=r"`policy` has shape \(3, 4\), expected \(4, 3\)"):
        mdp.value(pi.T)
    with pytest.raises(ValueError, match=r"`mu` has shape \(4, 2\), expected \(4, 3\)"):
        truncated_policy(pi, mu[:, :2], 1.0)
    with pytest.raises(ValueError, match="`pi` has shape"):
        VTraceOperator(mdp, pi[:1], mu, rho_bar=1.0, c_bar=1.0)


def test_a_larger_c_bar_is_faster():
    mdp, pi, mu = problem(0)
    operators = [VTraceOperator(mdp, pi, mu, rho_bar=2.0, c_bar=c) for c in (0.0, 0.5, 1.0, 2.0)]
    times = [o.applications(o.fixed_point + 1.0, 1e-6) for o in operators]
    assert times == sorted(times, reverse=True)
    assert times[0] > 1.5 * times[-1]
    for a, b in itertools.pairwise(operators):
        np.testing.assert_allclose(a.fixed_point, b.fixed_point, rtol=1e-9)


@pytest.mark.parametrize(("rho_bar", "c_bar"), LEVELS[:4])
def test_the_librarys_targets_are_the_operator_on_average(rho_bar, c_bar):
    """`returns.vtrace` on trajectories of μ, within five standard errors."""
    mdp, pi, mu = problem(1)
    operator = VTraceOperator(mdp, pi, mu, rho_bar=rho_bar, c_bar=c_bar)
    rng = np.random.default_rng(0)
    value = rng.normal(size=4)
    walks, steps = 5000, 80

    @jax.jit
    @jax.vmap
    def targets(values, reward, ratio):
        discount = np.full(steps, 0.9, np.float32)
        return returns.vtrace(
            values, reward, discount, np.ones(steps), ratio, rho_bar=rho_bar, c_bar=c_bar
        ).targets[0]

    for state in range(4):
        states, actions = mdp.walk(mu, rng, state, walks, steps)
        assert (states[:, 0] == state).all()
        before = states[:, :-1]
        found = np.asarray(
            targets(value[states], mdp.reward[before, actions], (pi / mu)[before, actions])
        )
        error = found.std() / walks**0.5
        assert abs(found.mean() - operator(value)[state]) < 5 * error


def test_walks_are_drawn_as_the_mdp_has_it():
    mdp, pi, _ = problem(2)
    states, actions = mdp.walk(pi, np.random.default_rng(0), 1, 4000, 2)
    for action in range(3):
        assert np.mean(actions[:, 0] == action) == pytest.approx(pi[1, action], abs=0.04)
    chain = pi[1] @ mdp.transition[1]
    for state in range(4):
        assert np.mean(states[:, 1] == state) == pytest.approx(chain[state], abs=0.04)


def test_the_random_walk():
    walk = random_walks(np.random.default_rng(0), (300,), 5)
    for features, reward, discount in zip(*walk, strict=True):
        length = int(features.sum())  # rows within
        path = features[:length].argmax(1)
        assert path[0] == 2
        assert set(np.abs(np.diff(path))) <= {1}
        assert not reward[: length - 1].any()
        assert not reward[length:].any()
        assert reward[length - 1] == (1.0 if path[-1] == 4 else -1.0)
        assert path[-1] in (0, 4)
        assert discount[: length - 1].all()
        assert not discount[length - 1 :].any()
        assert not features[length:].any()
    # Values solve the walk's Bellman equation: the mean of both neighbours, ends ±1.
    padded = np.concatenate([[-1.0], random_walk_values(5), [1.0]])
    np.testing.assert_allclose(padded[1:-1], (padded[:-2] + padded[2:]) / 2, atol=1e-9)
    assert walk.reward.sum(-1).mean() == pytest.approx(0.0, abs=0.15)


@pytest.mark.extended
def test_td_lambda_as_an_experiment(tmp_path):
    """The figure's shape: a λ between is best, on-line is better than off-line."""
    assert cli.main(["reproduce", "td-lambda", "--seeds", "10", "--results", str(tmp_path)]) is None
    rows = [line.split(",") for line in (tmp_path / "td-lambda.csv").read_text().splitlines()]
    assert (tmp_path / "td-lambda.png").exists()
    best: dict[tuple[str, float], float] = {}
    for method, lambda_, _, error, *_ in rows[1:]:
        key = (method, float(lambda_))
        best[key] = min(float(error), best.get(key, math.inf))
    assert best["TD(λ)", 0.8] < best["TD(λ)", 0.0] < best["TD(λ)", 1.0]
    assert best["TD(λ)", 0.8] < 0.8 * best["off-line TD(λ)", 0.8]
    assert best["true online TD(λ)", 0.95] < best["TD(λ)", 0.95]
    # A step size of 0 learns nothing: the error of values 0.
    nothing = float(np.sqrt(np.mean(random_walk_values() ** 2)))
    assert all(float(r[3]) == pytest.approx(nothing, abs=1e-3) for r in rows[1:] if r[2] == "0.0")


def test_quick_takes_a_part(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(vtrace_analysis, "measure", lambda seed, *_: seen.append(seed))
    monkeypatch.setattr(vtrace_analysis, "draw", lambda *_: None)
    with pytest.raises(TypeError):  # nothing was measured
        vtrace_analysis.run(VTraceAnalysis(seeds=10, quick=True), results=tmp_path)
    assert set(seen) == {0, 1}
    monkeypatch.setattr(td_lambda, "draw", lambda *_: None)
    td_lambda.run(TDLambda(seeds=5, quick=True), results=tmp_path)
    rows = list(csv.reader((tmp_path / "td-lambda.csv").open()))[1:]
    assert {row[-1] for row in rows} == {"1"}  # runs


def test_the_pages_tables_are_what_the_code_finds():
    """As `pronk reproduce vtrace-analysis` prints them; the exact columns, for some of the MDPs."""
    page = (DOCS / "vtrace.md").read_text()
    committed = (DOCS / "results" / "vtrace-analysis.csv").read_text().splitlines()
    fields = committed[0].split(",")
    rows = [dict(zip(fields, line.split(","), strict=True)) for line in committed[1:]]
    for row in rows[::7]:
        found = vtrace_analysis.measure(
            int(row["mdp"]), float(row["rho_bar"]), float(row["c_bar"])
        )._asdict()
        for field in ("from_behaviour", "modulus", "applications"):
            assert found[field] == pytest.approx(float(row[field]), rel=1e-6, abs=1e-9)
    whole: dict[tuple[float, float], list] = {}
    for row in rows:
        values = [float(row[field]) for field in vtrace_analysis.Measured._fields]
        whole.setdefault((values[0], values[1]), []).append(vtrace_analysis.Measured(*values))
    for table in (vtrace_analysis.fixed_points(whole), vtrace_analysis.speeds(whole)):
        assert table in page


def test_the_pages_code_runs():
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "vtrace.md").read_text(), re.S)
    assert len(blocks) >= 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)


def test_the_pages_ablation_is_the_committed_one():
    """The table as `pronk reproduce vtrace-ablation` prints it, from every seed's score."""
    path = DOCS / "results" / "vtrace-ablation.csv"
    scores: dict[tuple[str, str, str], list[float]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["part"] == "shown":
                cell = (row["task"], row["replay"], row["correction"])
                scores.setdefault(cell, []).append(float(row["score"]))
    found = [
        {"task": task, "replay": replay == "True", "correction": correction, "scores": values}
        for (task, replay, correction), values in scores.items()
    ]
    assert vtrace_ablation.table(found) in (DOCS / "vtrace.md").read_text()


def test_the_pages_policy_lags_are_the_committed_ones():
    """As above, from `pronk reproduce policy-lag`."""
    scores: dict[tuple[str, str, int], list[float]] = {}
    with (DOCS / "results" / "policy-lag.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            cell = (row["task"], row["correction"], int(row["lag"]))
            scores.setdefault(cell, []).append(float(row["score"]))
    found = [
        {"task": task, "correction": correction, "lag": lag, "score": score}
        for (task, correction, lag), values in scores.items()
        for score in values
    ]
    for task in dict.fromkeys(cell["task"] for cell in found):
        assert policy_lag.table(found, task) in (DOCS / "vtrace.md").read_text()
