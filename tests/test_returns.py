"""Returns: against the papers' sums, against rlax, and what they must be at episodes' ends."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import rlax
from hypothesis import given
from hypothesis import strategies as st

from pronk.maths import losses, returns
from pronk.maths.td_lambda import td_lambda
from pronk.types import TimeStep

GAMMA = np.float64(0.93)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


class Rows(NamedTuple):
    """`T + 1` rows of one environment."""

    values: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    first: np.ndarray
    ratio: np.ndarray  # [T + 1], the last one unused

    def timestep(self) -> TimeStep:
        zeros = np.zeros(len(self.values))
        return TimeStep(zeros, self.reward, self.terminated, self.truncated, self.first, zeros)


def rows(rng: np.random.Generator, length: int, end: str = "", first: bool = True) -> Rows:
    """One episode of `length` rows whose last one has the flag `end`."""
    flags = np.zeros(length, bool)
    result = Rows(
        rng.normal(size=length),
        rng.normal(size=length),
        flags,
        flags.copy(),
        flags.copy(),
        np.exp(rng.normal(size=length)),
    )
    if first:
        result.reward[0], result.first[0] = 0.0, True
    if end:
        getattr(result, end)[-1] = True
    return result


def join(*parts: Rows) -> Rows:
    return Rows(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def inputs(r: Rows) -> tuple[np.ndarray, ...]:
    """The arguments of V-trace, as the agent makes them."""
    reward, discount, continuation, weight = returns.transitions(r.timestep(), GAMMA)
    return r.values, reward, discount, continuation, r.ratio[:-1] * weight


def vtrace(r: Rows, **levels: float) -> returns.VTrace:
    return jit_vtrace(*inputs(r), **levels)


jit_vtrace = jax.jit(returns.vtrace)
jit_rlax = jax.jit(rlax.vtrace)
jit_leaky = jax.jit(rlax.leaky_vtrace)
jit_advantages = jax.jit(rlax.vtrace_td_error_and_advantage)


def close(a, b, **tolerance) -> None:
    for x, y in zip(_leaves(a), _leaves(b), strict=True):
        assert np.shape(x) == np.shape(y)
        np.testing.assert_allclose(x, y, **{"rtol": 1e-10, "atol": 1e-10} | tolerance)


def _leaves(x):
    return x if isinstance(x, tuple) else [x]


levels = st.sampled_from([0.3, 1.0, 2.5, math.inf])
lambdas = st.sampled_from([0.0, 0.4, 0.9, 1.0])


@st.composite
def cases(draw):
    n = draw(st.sampled_from([9, 5, 2, 1]))  # each length is compiled anew
    kinds = st.sampled_from(["", "", "", "terminated", "truncated"])
    ends = draw(st.lists(kinds, min_size=n, max_size=n))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    terminated = np.array([e == "terminated" for e in ends])
    truncated = np.array([e == "truncated" for e in ends])
    ratio = np.exp(rng.normal(size=n)) * (rng.uniform(size=n) > 0.1)
    gamma = draw(st.sampled_from([0.0, 0.5, 0.99, 1.0]))
    return (
        rng.normal(size=n + 1),
        rng.normal(size=n),
        gamma * (1.0 - terminated),
        1.0 - (terminated | truncated),
        ratio,
    )


@given(cases(), levels, levels, lambdas)
def test_vtrace_is_the_papers_sum(case, rho_bar, c_bar, lambda_):
    arguments = {"rho_bar": rho_bar, "c_bar": c_bar, "lambda_": lambda_}
    result = jit_vtrace(*case, **arguments)
    assert result.targets.dtype == jnp.float64
    close(result, reference.vtrace(*case, **arguments))


@given(cases())
def test_defaults_are_the_papers(case):
    close(jit_vtrace(*case), reference.vtrace(*case, rho_bar=1.0, c_bar=1.0, lambda_=1.0))


# rlax has one discount for both jobs, which is right only where nothing is truncated, truncates
# c at 1, and mixes V into q by λ.


@given(cases(), levels, lambdas)
def test_vtrace_is_rlaxs_without_truncation(case, rho_bar, lambda_):
    values, reward, discount, _, ratio = case
    result = jit_vtrace(
        values, reward, discount, np.ones_like(reward), ratio, rho_bar=rho_bar, lambda_=lambda_
    )
    arguments = (values[:-1], values[1:], reward, discount, ratio)
    errors = jit_rlax(*arguments, lambda_=np.float64(lambda_), clip_rho_threshold=rho_bar)
    close(result.targets, errors + values[:-1])
    leaky = jit_leaky(
        *arguments, alpha_=1.0, lambda_=np.float64(lambda_), clip_rho_threshold=rho_bar
    )
    close(result.targets, leaky + values[:-1])


@given(cases(), levels)
def test_advantages_are_rlaxs_without_truncation(case, rho_bar):
    values, reward, discount, _, ratio = case
    # Where the discount is 0 a trace is cut whatever the continuation says.
    result = jit_vtrace(values, reward, discount, 1.0 * (discount > 0), ratio, rho_bar=rho_bar)
    theirs = jit_advantages(
        *(values[:-1], values[1:], reward, discount, ratio),
        clip_rho_threshold=rho_bar,
        clip_pg_rho_threshold=rho_bar,
    )
    close(result, (theirs.errors + values[:-1], theirs.q_estimate, theirs.pg_advantage))


# The whole family: the recursive form, the sum of TD errors, and the definition as a NumPy sum.

jitted = {
    name: jax.jit(getattr(returns, name), static_argnames="n")
    for name in (
        *("n_step", "importance_sampled", "control_variate", "lambda_return", "gae"),
        *("off_policy_lambda", "vtrace_as_control_variate", "from_td_errors"),
    )
}
steps_ahead = st.sampled_from([None, 1, 3])


@st.composite
def traces(draw, length: int):
    """One λ for all, or one for each step."""
    fixed = draw(st.sampled_from([None, 0.0, 0.6, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.uniform(size=length) if fixed is None else np.full(length, fixed)


def td_form(case, ratio, trace, n):
    """V + Σ (Π γ k trace) ratio δ, by our function and by NumPy."""
    values, reward, discount, continuation, _ = case
    errors = ratio * np.asarray(returns.td_errors(values, reward, discount))
    decay = discount * continuation * trace
    ours = jitted["from_td_errors"](values, errors, decay, n=n)
    close(ours, reference.sum_of_td_errors(values, errors, decay, n))
    return ours


@given(cases(), steps_ahead)
def test_n_step_in_both_forms(case, n):
    values, reward, discount, continuation, _ = case
    ours = jitted["n_step"](*case[:4], n=n)
    length = len(reward) if n is None else n
    close(ours, reference.n_rewards(values, reward, discount, continuation, length))
    close(ours, td_form(case, 1.0, 1.0, n))


@given(cases(), steps_ahead)
def test_importance_sampling_with_and_without_control_variates(case, n):
    """The second has a form of TD errors; on-policy both are the n-step return."""
    ratio = case[4]
    close(jitted["importance_sampled"](*case, n=n), reference.importance_sampled(*case, n))
    ours = jitted["control_variate"](*case, n=n)
    close(ours, reference.control_variate(*case, n))
    close(ours, td_form(case, ratio, ratio, n))
    on_policy = (*case[:4], np.ones_like(ratio))
    for name in ("importance_sampled", "control_variate"):
        close(jitted[name](*on_policy, n=n), jitted["n_step"](*case[:4], n=n))


@given(cases(), steps_ahead, st.data())
def test_lambda_returns_in_both_forms(case, n, data):
    """Averages of n-step returns, with one λ or many; GAE is what they are above V."""
    lambda_ = data.draw(traces(len(case[1])))
    ours = jitted["lambda_return"](*case[:4], lambda_, n=n)
    close(ours, td_form(case, 1.0, lambda_, n))

    def of_steps(i):
        return reference.n_rewards(*case[:4], i)

    close(ours, reference.average_of_returns(of_steps, case[3], lambda_, n))
    close(jitted["gae"](*case[:4], lambda_, n=n), ours - case[0][:-1])


@given(cases(), steps_ahead, st.data())
def test_off_policy_traces_in_both_forms(case, n, data):
    """Averages of n-step returns with control variates, with one λ or many."""
    lambda_, ratio = data.draw(traces(len(case[1]))), case[4]
    ours = jitted["off_policy_lambda"](*case, lambda_, n=n)
    close(ours, td_form(case, ratio, lambda_ * ratio, n))

    def of_steps(i):
        return reference.control_variate(*case, i)

    close(ours, reference.average_of_returns(of_steps, case[3], lambda_, n))


@given(cases(), levels, levels, lambdas, steps_ahead)
def test_vtrace_in_both_forms(case, rho_bar, c_bar, lambda_, n):
    """With control variates, and as a sum of TD errors; whole, it is `vtrace`."""
    ratio, options = case[4], {"rho_bar": rho_bar, "c_bar": c_bar, "lambda_": lambda_}
    ours = jitted["vtrace_as_control_variate"](*case, **options, n=n)
    close(ours, td_form(case, np.minimum(rho_bar, ratio), lambda_ * np.minimum(c_bar, ratio), n))
    if n is None:
        close(ours, jit_vtrace(*case, **options).targets)


@given(cases(), lambdas, st.sampled_from([0.0, 0.3, 1.0]))
def test_leaky_vtrace_is_rlaxs_without_truncation(case, lambda_, leak):
    values, reward, discount, _, ratio = case
    ours = jit_vtrace(
        *(values, reward, discount, 1.0 * (discount > 0), ratio),
        rho_bar=0.7, lambda_=lambda_, leak=leak,
    )  # fmt: skip
    theirs = jit_leaky(
        *(values[:-1], values[1:], reward, discount, ratio),
        alpha_=1.0 - leak, lambda_=np.float64(lambda_), clip_rho_threshold=0.7,
    )  # fmt: skip
    close(ours.targets, theirs + values[:-1])


def test_an_infinite_ratio_is_truncated():
    """Nothing of it leaks unless a leak is asked for."""
    case = (np.ones(3), np.ones(2), np.full(2, 0.9), np.ones(2))
    found = jit_vtrace(*case, np.array([np.inf, 0.5]))
    close(found, jit_vtrace(*case, np.array([7.0, 0.5])))
    assert np.isfinite(found.targets).all()


def test_gae_is_rlaxs():
    rng = np.random.default_rng(12)
    reward, values = rng.normal(size=6), rng.normal(size=7)
    discount = np.array([0.9, 0.9, 0.0, 0.9, 0.9, 0.9])
    theirs = rlax.truncated_generalized_advantage_estimation(reward, discount, 0.8, values)
    close(returns.gae(values, reward, discount, 1.0 * (discount > 0), 0.8), theirs)


@pytest.mark.parametrize("name", ["from_td_errors", "n_step"])
def test_a_return_has_a_reward(name):
    arguments = (np.zeros(3), np.zeros(2), np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match="`n` is 0"):
        getattr(returns, name)(*arguments[: 3 if name == "from_td_errors" else 4], n=0)


# TD(λ): the backward view is the forward view.

jit_td = jax.jit(td_lambda, static_argnames=("trace", "online"))


def random_walk(seed: int, states: int = 19) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features `[T + 1, states]`, reward and discount `[T]` of an episode from the middle on."""
    rng = np.random.default_rng(seed)
    visited = [states // 2]
    while 0 <= visited[-1] < states:
        visited.append(visited[-1] + rng.choice([-1, 1]))
    reward = np.zeros(len(visited) - 1)
    reward[-1] = 1.0 if visited[-1] == states else -1.0
    discount = np.ones(len(reward))
    discount[-1] = 0.0
    features = np.array([np.arange(states) == s for s in visited], float)
    return features, reward, discount


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", [0, 2])
def test_offline_the_backward_view_is_the_lambda_return(seed, lambda_):
    """Σ α δ_t e_t = Σ α (G_t^λ − V(x_t)) x_t, on the random walk of 19 states."""
    features, reward, discount = random_walk(seed)
    weights = np.random.default_rng(seed).normal(size=19)
    after = jit_td(
        weights, features, reward, discount, step_size=0.2, lambda_=lambda_, online=False
    )
    values = features @ weights
    target = returns.lambda_return(values, reward, discount, 1.0 * (discount > 0), lambda_)
    close(after, weights + 0.2 * (np.asarray(target) - values[:-1]) @ features[:-1])


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 0.9, 1.0])
def test_true_online_td_is_the_online_lambda_return(lambda_):
    """The short episodes of a walk of 5 states, and features that are no table."""
    rng = np.random.default_rng(3)
    walked, reward, discount = random_walk(5, 5)
    for features in (walked, walked @ rng.normal(size=(5, 3))):
        weights = rng.normal(size=features.shape[1])
        after = jit_td(
            weights, features, reward, discount, step_size=0.1, lambda_=lambda_, trace="dutch"
        )
        expected = reference.online_lambda_return(weights, features, reward, discount, 0.1, lambda_)
        close(after, expected)
        always = jit_td(
            weights, features, reward, discount,
            step_size=0.1, lambda_=lambda_, trace="dutch", online=False,
        )  # fmt: skip
        close(after, always)


def test_online_td_is_the_forward_view_nearly():
    """It moves its values within the episode: equal to the first order of the step size."""
    features, reward, discount = random_walk(2)
    weights = np.random.default_rng(2).normal(size=19)

    def moved(step_size, **options):
        after = jit_td(weights, features, reward, discount, step_size=step_size, lambda_=0.8,
                       **options)  # fmt: skip
        return np.asarray(after - weights) / step_size

    apart = [np.abs(moved(a) - moved(a, online=False)).max() for a in (1e-2, 1e-3)]
    assert 0 < apart[1] < 0.2 * apart[0]


def test_an_unknown_trace():
    features, reward, discount = random_walk(0)
    with pytest.raises(ValueError, match="`trace` is 'replacing'; expected 'accumulating'"):
        td_lambda(
            np.zeros(19), features, reward, discount, step_size=0.1, lambda_=0.5, trace="replacing"
        )


# What a one-discount V-trace gets wrong, and other codebases' mistakes (/pitfalls).


def test_transitions_reads_rows():
    """Reward, end flags and weight are those of row t + 1."""
    flags = [False] * 6
    timestep = TimeStep(
        np.zeros(6),
        np.array([9.0, 1, 2, 0, 4, 5]),
        np.array([True, False, True, *flags[:3]]),
        np.array([*flags[:5], True]),
        np.array([False, False, False, True, False, False]),
        np.zeros(6, np.int32),
    )
    result = returns.transitions(timestep, 0.5)
    close(result.reward, [1.0, 2, 0, 4, 5])
    close(result.discount, [0.5, 0, 0.5, 0.5, 0.5])
    close(result.continuation, [1.0, 0, 0, 1, 0])
    close(result.weight, [1.0, 1, 0, 1, 1])


def test_the_dummys_reward_does_not_count():
    r = join(rows(np.random.default_rng(0), 3, "terminated"), rows(np.random.default_rng(1), 3))
    r.reward[3] = 100.0
    assert returns.transitions(r.timestep(), GAMMA).reward[2] == 0.0


@pytest.mark.parametrize("end", ["terminated", "truncated", ""])
@pytest.mark.parametrize("last", ["terminated", "truncated", ""])
@pytest.mark.parametrize("lengths", [(4, 5), (1, 4), (5, 1), (2, 2)])
def test_two_episodes_equal_each_alone(end, last, lengths):
    """Also where no end flag announces the second one: a lost worker, a restarted environment.

    An episode of one row has no transition: it is a game that ends at once.
    """
    rng = np.random.default_rng(7)
    a, b = rows(rng, lengths[0], end), rows(rng, lengths[1], last)
    both = vtrace(join(a, b), rho_bar=1.2, c_bar=1.1, lambda_=0.9)
    split = len(a.values) - 1
    for part, r in ((slice(0, split), a), (slice(split + 1, None), b)):
        if len(r.values) > 1:
            alone = vtrace(r, rho_bar=1.2, c_bar=1.1, lambda_=0.9)
            close(jax.tree.map(lambda x, part=part: x[part], both), alone)
    # The dummy between them asks for nothing, even of a loss that forgets its weight.
    assert both.targets[split] == a.values[-1]
    assert both.advantages[split] == 0


@pytest.mark.parametrize("end", ["terminated", "truncated", ""])
def test_n_step_returns_do_not_depend_on_the_next_episode(end):
    """Which has no ratio that a dummy could be left out by; nor where no flag announces it."""
    rng = np.random.default_rng(3)
    a = rows(rng, 5, end)
    found = []
    for _ in range(2):
        r = join(a, rows(rng, 6))
        seen = returns.transitions(r.timestep(), GAMMA)
        found.append(returns.n_step(r.values, seen.reward, seen.discount, seen.continuation)[:4])
    close(*found)


@pytest.mark.parametrize("end", ["terminated", "truncated", ""])
def test_targets_do_not_depend_on_the_next_episode(end):
    rng = np.random.default_rng(3)
    a = rows(rng, 5, end)
    one, other = (vtrace(join(a, rows(rng, 6))) for _ in range(2))
    close(*(jax.tree.map(lambda x: x[:4], result) for result in (one, other)))


@pytest.mark.parametrize("end", ["terminated", "truncated", ""])
def test_bootstrap_from_the_last_observation(end):
    """On-policy: Σ γ^k r + γ^n V(last observation), or + 0 if it is terminal."""
    a = rows(np.random.default_rng(4), 4, end)._replace(ratio=np.ones(4))
    r = join(a, rows(np.random.default_rng(5), 3))
    bootstrap = 0.0 if end == "terminated" else a.values[3]
    expected = a.reward[1] + GAMMA * a.reward[2] + GAMMA**2 * a.reward[3] + GAMMA**3 * bootstrap
    close(vtrace(r).targets[0], expected)
    # The policy gradient's look-ahead of the last transition: the observation's own value.
    close(vtrace(r).q[2], a.reward[3] + GAMMA * bootstrap)


@given(cases(), st.sampled_from([1.0, 1.5, math.inf]), st.sampled_from([1.0, 2.0, math.inf]))
def test_on_policy_it_is_the_n_step_return(case, rho_bar, c_bar):
    values, reward, discount, continuation, ratio = case
    result = jit_vtrace(
        *(values, reward, discount, continuation, np.ones_like(ratio)), rho_bar=rho_bar, c_bar=c_bar
    )
    expected = reference.n_step_return(values, reward, discount, continuation)
    close(result.targets, expected)
    close(result.advantages, expected - values[:-1])


def test_the_policy_gradient_looks_ahead_with_the_target():
    """v_{s+1}, not V(x_{s+1})."""
    r = rows(np.random.default_rng(6), 6)
    result = vtrace(r, rho_bar=1.3, c_bar=0.8)
    ahead = np.append(result.targets[1:], r.values[-1])
    close(result.q, r.reward[1:] + GAMMA * ahead)
    close(result.advantages, np.minimum(1.3, r.ratio[:-1]) * (result.q - r.values[:-1]))
    assert np.all(np.abs(ahead - r.values[1:])[:-1] > 1e-3)


def test_a_ratio_of_zero_leaves_a_transition_out():
    r = rows(np.random.default_rng(8), 7)
    r.ratio[3] = 0.0
    result = vtrace(r)
    assert result.targets[3] == r.values[3]
    assert result.advantages[3] == 0
    shorter = Rows(*(x[:4] for x in r))  # rows 0 to 3, bootstrapping from row 3
    close(jax.tree.map(lambda x: x[:3], result), vtrace(shorter))


def test_levels_truncate():
    """ρ̄ sets the weight of the TD error, c̄ the trace: with T = 2 both can be seen apart."""
    values, reward = np.zeros(3), np.array([0.0, 1.0])
    one, ratio = np.ones(2), np.array([5.0, 5.0])
    targets = jit_vtrace(values, reward, one, one, ratio, rho_bar=3.0, c_bar=2.0).targets
    close(targets, [2.0 * 3.0, 3.0])
    targets = jit_vtrace(
        values, reward, one, one, ratio, rho_bar=math.inf, c_bar=math.inf, lambda_=0.5
    ).targets
    close(targets, [0.5 * 25.0, 5.0])


def test_no_gradient_flows():
    case = inputs(rows(np.random.default_rng(9), 5))

    def total(*case):
        return sum(jnp.sum(x) for x in returns.vtrace(*case, rho_bar=2.0))

    for gradient in jax.grad(total, argnums=range(5))(*map(jnp.asarray, case)):
        assert not gradient.any()


def test_vmap_and_jit():
    rng = np.random.default_rng(10)
    parts = [
        join(rows(rng, n, end), rows(rng, 9 - n))
        for n, end in ((2, "terminated"), (4, "truncated"), (7, ""))
    ]
    columns = [np.stack(x, axis=1) for x in zip(*map(inputs, parts), strict=True)]
    batched = jax.jit(jax.vmap(returns.vtrace, in_axes=1, out_axes=1))(*columns)
    for i, part in enumerate(parts):
        close(jax.tree.map(lambda x, i=i: x[:, i], batched), vtrace(part))


@pytest.mark.parametrize(("rho_bar", "c_bar"), [(1.0, 1.0), (0.6, 0.5), (2.0, 1.0)])
def test_the_fixed_point_is_the_value_of_the_truncated_policy(rho_bar, c_bar):
    """E_μ[v_s] = V for V the value of π_ρ̄ ∝ min(ρ̄ μ, π), and is contracted towards it.

    Espeholt et al. 2018, theorem 1: exact, over all trajectories of a tabular MDP.
    """
    rng = np.random.default_rng(11)
    states, actions, steps, gamma = 2, 2, 3, 0.8
    p = rng.dirichlet(np.ones(states), size=(states, actions))
    reward = rng.normal(size=(states, actions))
    pi, mu = rng.dirichlet(np.ones(actions), size=(2, states))
    clipped = np.minimum(rho_bar * mu, pi)
    clipped /= clipped.sum(axis=1, keepdims=True)
    transition = np.einsum("sa,sax->sx", clipped, p)
    fixed = np.linalg.solve(np.eye(states) - gamma * transition, (clipped * reward).sum(axis=1))

    def operator(value: np.ndarray) -> np.ndarray:
        expected = np.zeros(states)
        paths = []
        for path in itertools.product(range(states), *[range(actions), range(states)] * steps):
            s, a = np.array(path[::2]), np.array(path[1::2])
            odds = np.prod(mu[s[:-1], a] * p[s[:-1], a, s[1:]])
            paths.append((s, a, odds))
        s, a, odds = (np.array(x) for x in zip(*paths, strict=True))
        ratio = (pi / mu)[s[:, :-1], a]
        one = np.ones_like(ratio)
        levels = {"rho_bar": rho_bar, "c_bar": c_bar}
        result = jax.vmap(lambda *x: returns.vtrace(*x, **levels))(
            value[s], reward[s[:, :-1], a], gamma * one, one, ratio
        )
        np.add.at(expected, s[:, 0], odds * np.asarray(result.targets[:, 0]))
        return expected

    close(operator(fixed), fixed)
    other = fixed + np.array([1.0, -2.0])
    modulus = 1 - (1 - gamma) * np.minimum(rho_bar * mu, pi).sum(axis=1).min()
    assert np.abs(operator(other) - fixed).max() <= modulus * 2.0


def test_losses():
    """No gradient flows into advantages and targets."""
    a, b = jnp.array([2.0, 3.0]), jnp.array([5.0, 7.0])
    close(jax.grad(lambda a, b: losses.policy_gradient(a, b).sum(), (0, 1))(a, b), (-b, 0 * a))
    close(jax.grad(lambda a, b: losses.squared_error(a, b).sum(), (0, 1))(a, b), (a - b, 0 * a))
    close(losses.squared_error(a, b), [4.5, 8.0])


# Shapes are checked where a function is called.

T = 4
SHAPES = {"values": (T + 1,), "reward": (T,), "discount": (T,), "continuation": (T,)}
TAKES_RATIO = ("vtrace", "vtrace_as_control_variate", "importance_sampled", "control_variate")
TAKES_LAMBDA = ("lambda_return", "gae")


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    if name in TAKES_RATIO:
        return SHAPES | {"ratio": (T,)}
    if name == "off_policy_lambda":
        return SHAPES | {"ratio": (T,), "lambda_": (T,)}
    return SHAPES | ({"lambda_": (T,)} if name in TAKES_LAMBDA else {})


@pytest.mark.parametrize("name", ["n_step", *TAKES_RATIO, *TAKES_LAMBDA, "off_policy_lambda"])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_wrong_shapes_are_named(name, batch):
    """Sequences may lie side by side, but nothing is broadcast along time or between sequences."""
    right = {k: np.ones((*shape, *batch)) for k, shape in shapes_of(name).items()}
    jax.block_until_ready(getattr(returns, name)(**right))
    for k, x in right.items():
        for wrong in (np.concatenate([x, x[:1]]), x[..., None]):
            given, other = right | {k: wrong}, "reward" if k == "values" else k
            with pytest.raises(ValueError) as error:
                getattr(returns, name)(**given)
            shape = np.shape(given[other])
            assert f"`{other}` has shape {shape}, expected" in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: returns.n_step(np.ones(()), np.ones(4), np.ones(4), np.ones(4)),
            r"`values` has shape \(\), expected \[T \+ 1, ...\]",
        ),
        (
            lambda: returns.from_td_errors(np.ones(5), np.ones(4), np.ones(5)),
            r"`decay` has shape \(5,\), expected \(4,\) \(`values`: \(5,\), T \+ 1 rows\)",
        ),
        (
            lambda: returns.off_policy(*[np.ones(n) for n in (5, 5, 4, 4, 4, 4)]),
            r"`q` has shape \(5,\), expected \(4,\)",
        ),
        (
            lambda: returns.vtrace(*[np.ones(n) for n in (5, 4, 4, 4, 4)], rho_bar=np.ones(4)),
            r"`rho_bar` has shape \(4,\), expected 0 axes, not 1",
        ),
        (
            lambda: returns.retrace_trace(np.ones(3), np.ones(4)),
            r"`mu` has shape \(4,\), expected \(3,\) \(that of `pi`\)",
        ),
        (lambda: returns.double_q(np.ones((3, 2)), np.ones((3, 1))), "`target` has shape"),
        (
            lambda: returns.transitions(TimeStep((), *[np.ones(4)] * 3, np.ones(3), ()), 0.9),
            r"`reward` has shape \(4,\), expected \(3,\) \(that of `first`\)",
        ),
        (
            lambda: returns.transitions(TimeStep((), *[np.ones((4, 2))] * 4, ()), np.ones(3)),
            r"`gamma` has shape \(3,\), expected \(2,\) \(one per sequence\)",
        ),
        (
            lambda: td_lambda(
                np.ones(2), np.ones((5, 3)), *np.ones((2, 4)), step_size=1, lambda_=1
            ),
            r"`weights` has shape \(2,\), expected \(3,\) \(the width of `features`\)",
        ),
        (lambda: losses.squared_error(np.ones((3, 1)), np.ones(3)), "`target` has shape"),
        (lambda: losses.policy_gradient(np.ones((3, 1)), np.ones(3)), "`advantage` has shape"),
    ],
)
def test_messages_about_shapes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_shapes_are_checked_while_tracing():
    """So that they cost nothing at run time, and see what `vmap` leaves of a batch."""
    with pytest.raises(ValueError, match="`ratio`"):
        jax.eval_shape(
            returns.vtrace, *[jax.ShapeDtypeStruct((n,), float) for n in (5, 4, 4, 4, 5)]
        )
    jax.vmap(returns.vtrace, in_axes=1)(*[np.ones((n, 3)) for n in (5, 4, 4, 4, 4)])
