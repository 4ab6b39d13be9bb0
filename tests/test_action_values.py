"""Returns on action values: the papers' sums, rlax's, their fixed points and variances."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import rlax
from hypothesis import given
from hypothesis import strategies as st

from pronk.maths import returns, transforms

ACTIONS = 3
TRACES = {
    "importance sampling": jax.jit(returns.importance_sampling_trace),
    "tree backup": jax.jit(lambda pi, mu, **options: returns.tree_backup_trace(pi, **options)),
    "retrace": jax.jit(returns.retrace_trace),
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def close(a, b) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@st.composite
def cases(draw):
    """Action values `[n + 1, A]` and, per transition, reward, discount and continuation."""
    n = draw(st.sampled_from([8, 4, 1]))  # each length is compiled anew
    kinds = st.sampled_from(["", "", "", "terminated", "truncated"])
    ends = draw(st.lists(kinds, min_size=n, max_size=n))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    terminated = np.array([e == "terminated" for e in ends])
    gamma = draw(st.sampled_from([0.5, 0.99, 1.0]))
    return (
        rng.normal(size=(n + 1, ACTIONS)) * 3,
        rng.normal(size=n) * 3,
        gamma * (1.0 - terminated),
        np.array([1.0 * (e == "") for e in ends]),
        rng,
    )


jit_n_step = jax.jit(returns.n_step, static_argnames="n")
jit_off_policy = jax.jit(returns.off_policy)
jit_each_off_policy = jax.jit(jax.vmap(returns.off_policy))
jit_rlax_n_step = jax.jit(rlax.transformed_n_step_q_learning, static_argnames=("n", "tx_pair"))
jit_rlax_retrace = jax.jit(rlax.transformed_retrace, static_argnames="tx_pair")
jit_rlax_general = jax.jit(rlax.general_off_policy_returns_from_q_and_v)
SCALES = {"identity": transforms.IDENTITY, "sqrt": transforms.signed_sqrt(1e-2)}
PAIRS = {name: rlax.TxPair(h.apply, h.inverse) for name, h in SCALES.items()}


@given(cases(), st.sampled_from([1, 2, 3, 5, 20]))
def test_n_step_is_the_sum(case, n):
    q, reward, discount, continuation, _ = case
    result = jit_n_step(q[:, 0], reward, discount, continuation, n=n)
    close(result, reference.n_rewards(q[:, 0], reward, discount, continuation, n))
    whole = reference.n_step_return(q[:, 0], reward, discount, continuation)
    if n >= len(reward):
        close(result, whole)


@given(cases(), st.sampled_from([1, 3, 5]), st.sampled_from(["identity", "sqrt"]))
def test_n_step_double_q_is_rlaxs_without_truncation(case, n, name):
    """Transformed and plain; rlax's one discount is right only where nothing is truncated."""
    q, reward, discount, _, rng = case
    online = rng.normal(size=q.shape)
    continuation = 1.0 * (discount > 0)
    target = double_q_target(name, n)(online, q, reward, discount, continuation)
    taken = rng.integers(ACTIONS, size=len(reward))
    error = jit_rlax_n_step(
        *(online[:-1], taken, q[1:], online[1:].argmax(-1), reward, discount),
        n=n,
        tx_pair=PAIRS[name],
    )
    close(target, error + online[np.arange(len(reward)), taken])


@functools.cache
def double_q_target(name: str, n: int):
    h = SCALES[name]

    @jax.jit
    def target(online, q, reward, discount, continuation):
        values = h.inverse(returns.double_q(online, q))
        return h.apply(returns.n_step(values, reward, discount, continuation, n=n))

    return target


def decisions(case):
    """Action taken, π and μ of all actions, at each of the n + 1 rows."""
    q, *_, rng = case
    pi, mu = rng.dirichlet(np.ones(ACTIONS), size=(2, len(q)))
    return rng.integers(ACTIONS, size=len(q)), pi, mu


def of(action: np.ndarray, values: np.ndarray) -> np.ndarray:
    return values[np.arange(len(action)), action]


@given(cases(), st.sampled_from(list(TRACES)), st.sampled_from([0.0, 0.7, 1.0]))
def test_off_policy_is_the_papers_sum(case, name, lambda_):
    q, reward, discount, continuation, _ = case
    action, pi, mu = decisions(case)
    trace = np.asarray(TRACES[name](of(action, pi), of(action, mu), lambda_=lambda_))[:-1]
    args = (of(action, q)[:-1], (pi * q).sum(-1), reward, discount, continuation, trace)
    close(jit_off_policy(*args), reference.off_policy(*args))


@functools.cache
def retrace_target(name: str):
    h = SCALES[name]

    @jax.jit
    def target(q, action, pi, mu, reward, discount):
        rows = jnp.arange(len(action))
        plain = h.inverse(q)
        trace = returns.retrace_trace(pi[rows, action], mu[rows, action], lambda_=0.9)[:-1]
        args = plain[rows, action][:-1], (pi * plain).sum(-1), reward, discount
        return h.apply(returns.off_policy(*args, 1.0 * (discount > 0), trace))

    return target


@given(cases(), st.sampled_from(["identity", "sqrt"]))
def test_retrace_is_rlaxs_without_truncation(case, name):
    q, reward, discount, _, _ = case
    action, pi, mu = decisions(case)
    target = retrace_target(name)(q, action, pi, mu, reward, discount)
    error = jit_rlax_retrace(
        *(q[:-1], q[1:], action[:-1], action[1:], reward, discount, pi[1:], of(action, mu)[1:]),
        *(np.float64(0.9), np.float64(0.0)),
        tx_pair=PAIRS[name],
    )
    close(target, error + of(action, q)[:-1])


@given(cases(), st.sampled_from(["tree backup", "importance sampling"]))
def test_the_general_form_is_rlaxs(case, name):
    q, reward, discount, _, _ = case
    action, pi, mu = decisions(case)
    trace = np.asarray(TRACES[name](of(action, pi), of(action, mu)))[:-1]
    taken, values = of(action, q)[:-1], (pi * q).sum(-1)
    theirs = jit_rlax_general(taken[1:], values[1:], reward, discount, trace[1:])
    ours = jit_off_policy(taken, values, reward, discount, 1.0 * (discount > 0), trace)
    close(ours, theirs)


@given(cases())
def test_without_traces_it_is_expected_sarsa(case):
    """And on-policy, importance sampling and Retrace agree, where tree backup cuts."""
    q, reward, discount, continuation, _ = case
    action, pi, _ = decisions(case)
    common = (of(action, q)[:-1], (pi * q).sum(-1), reward, discount, continuation)
    close(jit_off_policy(*common, 0 * reward), reward + discount * common[1][1:])
    p = of(action, pi)
    ours = [TRACES[name](p, p) for name in ("importance sampling", "retrace")]
    close(*ours)
    close(ours[0], np.ones_like(p))
    close(TRACES["tree backup"](p, p), p)


def test_targets_do_not_depend_on_the_next_episode():
    rng = np.random.default_rng(0)
    for discount in (0.0, 0.9):  # terminated, truncated
        case = []
        for _ in range(2):
            q = np.concatenate([np.arange(4.0), rng.normal(size=4)])
            reward = np.concatenate([np.arange(3.0), rng.normal(size=4)])
            discounts, continuation = np.full(7, 0.9), np.ones(7)
            discounts[2], continuation[2] = discount, 0
            steps = jit_n_step(q, reward, discounts, continuation, n=5)
            traced = jit_off_policy(q[:-1], q, reward, discounts, continuation, np.ones(7))
            case.append((np.asarray(steps)[:3], np.asarray(traced)[:3]))
        close(case[0][0], case[1][0])
        close(case[0][1], case[1][1])
        expected = 2.0 + discount * 3.0  # the last transition's reward, its observation's value
        close([case[0][0][2], case[0][1][2]], [expected, expected])


# On a tabular MDP, over all trajectories there are: exact expectations, no sampling.

STATES, CHOICES, STEPS, DISCOUNT = 2, 2, 4, 0.9


class Mdp:
    """Two states, two actions, a target and a behaviour policy."""

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        self.p = rng.dirichlet(np.ones(STATES), size=(STATES, CHOICES))
        self.reward = rng.normal(size=(STATES, CHOICES))
        self.pi = rng.dirichlet(np.ones(CHOICES), size=STATES)
        self.mu = 0.2 + 0.6 * rng.dirichlet(np.ones(CHOICES), size=STATES)
        follow = np.einsum("sax,xb->saxb", self.p, self.pi)
        chain = follow.reshape(STATES * CHOICES, STATES * CHOICES)
        q = np.linalg.solve(np.eye(STATES * CHOICES) - DISCOUNT * chain, self.reward.ravel())
        self.q = q.reshape(STATES, CHOICES)
        paths = itertools.product(*[range(STATES), range(CHOICES)] * STEPS, range(STATES))
        found = np.array(list(paths))
        self.s, self.a = found[:, ::2], found[:, 1::2]

    def returns(self, q: np.ndarray, trace: str) -> tuple[np.ndarray, np.ndarray]:
        """Of each trajectory, the return of its first pair, and its odds given that pair."""
        s, a = self.s, self.a
        odds = np.prod(self.p[s[:, :-1], a, s[:, 1:]], axis=1)
        odds = odds * np.prod(self.mu[s[:, 1:-1], a[:, 1:]], axis=1)
        before = s[:, :-1]
        c = np.asarray(TRACES[trace](self.pi[before, a], self.mu[before, a]))
        value = (self.pi * q).sum(-1)
        one = np.ones_like(c)
        found = jit_each_off_policy(
            q[before, a], value[s], self.reward[before, a], DISCOUNT * one, one, c
        )
        return np.asarray(found)[:, 0], odds

    def expected(self, x: np.ndarray, odds: np.ndarray) -> np.ndarray:
        total = np.zeros((STATES, CHOICES))
        np.add.at(total, (self.s[:, 0], self.a[:, 0]), x * odds)
        return total


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("trace", TRACES)
def test_the_fixed_point_is_the_target_policys(seed, trace):
    """Munos et al. 2016, theorem 1: contracted by γ, towards q_π, from any q."""
    mdp = Mdp(seed)
    close(mdp.expected(*mdp.returns(mdp.q, trace)), mdp.q)
    other = mdp.q + np.random.default_rng(seed).normal(size=mdp.q.shape)
    before = np.abs(other - mdp.q).max()
    after = np.abs(mdp.expected(*mdp.returns(other, trace)) - mdp.q).max()
    assert after <= DISCOUNT * before


@pytest.mark.parametrize("seed", range(3))
def test_variances_order_as_their_traces_do(seed):
    """Section 3 there: importance sampling above Retrace, and that above tree backup."""
    mdp = Mdp(seed)
    variance = {}
    for trace in TRACES:
        found, odds = mdp.returns(mdp.q, trace)
        mean = mdp.expected(found, odds)
        variance[trace] = mdp.expected(found**2, odds) - mean**2
    assert np.all(variance["importance sampling"] > variance["retrace"])
    assert np.all(variance["retrace"] > variance["tree backup"])
