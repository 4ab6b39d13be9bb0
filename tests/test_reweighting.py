"""RWR and REPS: L-BFGS, the weights of samples, REPS's dual, and weighted maximum likelihood."""

from __future__ import annotations

import functools
import re
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from gymnasium import spaces

from pronk import agents, cli, envs
from pronk.agents import on_policy, reps, rollout, weighted_likelihood
from pronk.config.registry import agent_module
from pronk.errors import UserError
from pronk.maths import distributions, lbfgs, reweighting
from pronk.maths.reweighting import Dual
from pronk.nn import networks
from pronk.run.resolve import resolve
from pronk.runtime.actor import Actor, Player
from pronk.types import Batch, EnvSpec, LearnerState, TimeStep, Trajectory

KEY = jax.random.key(0)
UNROLL, ENVS = 16, 4
WEIGHT = np.array([1.0, 0.0, 1.0, 1.0, 1.0])  # the second element is a dummy
TINY = {"unroll": UNROLL, "batch_size": ENVS, "hidden_sizes": (8,), "fit_iterations": 5}


def config(agent: str, **settings: Any) -> Any:
    fitted = {"value_hidden_sizes": (8,), "value_minibatch_size": UNROLL} if agent == "rwr" else {}
    return agent_module(agent).config(**(TINY | fitted | settings))


class Made(NamedTuple):
    state: LearnerState
    learn: Any  # `Agent.learn`, jitted
    trajectory: Trajectory  # of the first behaviour, in a real environment


@functools.cache
def made(agent: str) -> Made:
    env = "pronk/CartPole-v1"
    made = agents.make(agent, config(agent), envs.spec_of(env, {}), horizon=1000)
    state = jax.jit(made.init)(KEY)
    player = Player(made, KEY, np.arange(ENVS, dtype=np.int32), ENVS)
    actor = Actor(player, envs.make(env, ENVS, seed=1), unroll=UNROLL, on_policy=True)
    trajectory = actor.unroll(made.behaviour(state), 0).trajectory
    actor.close()
    return Made(state, jax.jit(made.learn), trajectory)


def rewarded(trajectory: Trajectory, reward: Any) -> Batch:
    """The trajectory with other rewards, 0 for dummies as from an environment."""
    timestep = trajectory.timestep
    reward = np.where(timestep.first, 0.0, reward).astype(np.float32)
    return Batch(trajectory._replace(timestep=timestep._replace(reward=reward)))


def equal(a: Any, b: Any) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


# L-BFGS.


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def test_a_curved_valley_is_followed_to_its_minimum():
    begin = np.zeros(6, np.float32)
    minimise = jax.jit(lambda n: lbfgs.minimise(rosenbrock, begin, iterations=n))
    found = minimise(100)
    np.testing.assert_allclose(found.params, 1.0, atol=1e-3)
    assert found.initial == 5.0
    slope = jax.jit(jax.grad(rosenbrock))(begin)
    np.testing.assert_allclose(found.gradient_norm, np.linalg.norm(slope))
    less = [minimise(n) for n in range(8)]
    assert (np.diff([x.value for x in less]) < 0).all()
    assert [int(x.iterations) for x in less] == list(range(8))


@pytest.mark.parametrize("kind", ["nan", "constant", "minimum", "cliff"])
def test_where_no_step_leads_down_the_parameters_stay(kind):
    """`cliff`: the function is NaN wherever the search may go."""
    x = np.array([0.3, -1.7], np.float32)
    function = {
        "nan": lambda p: jnp.sum(p) * jnp.nan,
        "constant": lambda p: jnp.sum(p * 0.0),
        "minimum": lambda p: jnp.sum((p - x) ** 2),
        "cliff": lambda p: jnp.sum(p) + jnp.where(jnp.sum(jnp.abs(p - x)) > 0, jnp.nan, 0.0),
    }[kind]
    found = jax.jit(lambda x: lbfgs.minimise(function, x, iterations=10))(x)
    np.testing.assert_array_equal(found.params, x)
    assert found.iterations == 0


# Weights.


shifted, exponential = jax.jit(reweighting.shifted), jax.jit(reweighting.exponential)
effective_share, divergence = map(jax.jit, (reweighting.effective_share, reweighting.divergence))


def test_shifted_weights_by_hand():
    weights = shifted(np.array([1.0, np.nan, -1.0, 3.0, 0.0], np.float32), WEIGHT)
    np.testing.assert_allclose(weights, np.array([2, 0, 0, 4, 1]) * 4 / 7, rtol=1e-6)


def test_exponential_weights_by_hand():
    advantage = np.array([1.0, np.nan, -1.0, 3.0, 0.0])
    weights = exponential(np.float32(advantage), 0.5, WEIGHT)
    expected = np.where(WEIGHT > 0, np.exp(advantage / 0.5), 0.0)
    np.testing.assert_allclose(weights, 4 * expected / expected.sum(), rtol=1e-5)
    tiny = exponential(np.float32(advantage * 1e6), 1e-30, WEIGHT)
    np.testing.assert_array_equal(tiny, [0, 0, 0, 4, 0])  # no overflow


def test_at_temperature_0_all_weight_is_that_of_the_best():
    advantage = np.array([1.0, 3.0, 2.0, 9.0], np.float32)
    weights = exponential(advantage, 0.0, np.array([1.0, 1.0, 1.0, 0.0], np.float32))
    np.testing.assert_array_equal(weights, [0.0, 3.0, 0.0, 0.0])


def test_how_many_samples_count():
    equals = np.array([1.0, 0.0, 1.0, 1.0, 1.0], np.float32)
    one = np.array([4.0, 0.0, 0.0, 0.0, 0.0], np.float32)
    np.testing.assert_allclose(effective_share(equals), 1.0)
    np.testing.assert_allclose(effective_share(one), 0.25)
    assert effective_share(np.zeros(5, np.float32)) == 0.0
    np.testing.assert_allclose(divergence(equals, WEIGHT), 0.0)
    np.testing.assert_allclose(divergence(one, WEIGHT), np.log(4), rtol=1e-6)


def test_a_constant_added_to_the_advantages_changes_no_weight():
    advantage = np.array([1.0, 0.0, -1.0, 3.0, 0.0], np.float32)
    for weigh in (shifted, lambda a, w: exponential(a, 0.5, w)):
        np.testing.assert_array_equal(weigh(advantage + 4.0, WEIGHT), weigh(advantage, WEIGHT))


@pytest.mark.parametrize("rule", ["shifted", "exponential"])
def test_equal_advantages_give_no_preference(rule):
    advantage = np.full(5, 2.7, np.float32)
    if rule == "shifted":
        weights = shifted(advantage, WEIGHT)
        np.testing.assert_array_equal(weights, 0.0)
    else:
        weights = exponential(advantage, 1.0, WEIGHT)
        np.testing.assert_array_equal(weights, WEIGHT)


# The dual.


def problem(seed: int = 0, penalty: float = 0.05, epsilon: float = 0.3) -> Dual:
    """A random one, whose flows differ in scale and do not vanish on average."""
    rng = np.random.default_rng(seed)
    flow = (rng.normal(size=(60, 4)) + 0.2) * [1.0, 100.0, 0.01, 1.0]
    reward = rng.normal(size=60) + flow[:, 0]
    weight = (rng.uniform(size=60) < 0.8).astype(float)
    dead = weight == 0
    reward[dead], flow[dead] = np.nan, np.nan  # of dummies
    return Dual(reward, flow, weight, epsilon, penalty)


@jax.jit
def minimise(dual: Dual, iterations: int = 500) -> reweighting.Multipliers:
    start = jnp.asarray(15.0, dual.reward.dtype), jnp.zeros(4, dual.reward.dtype)
    return dual.minimise(*start, iterations=iterations)


weights_of = jax.jit(Dual.weights)


def by_hand(dual: Dual, eta: float, nu: np.ndarray) -> float:
    real = np.asarray(dual.weight) > 0
    flow, reward = np.asarray(dual.flow)[real], np.asarray(dual.reward)[real]
    penalty = dual.penalty * np.sum((flow**2).mean(0) * nu**2)
    return eta * dual.epsilon + eta * np.log(np.mean(np.exp((reward + flow @ nu) / eta))) + penalty


def test_the_dual_and_its_gradient_are_the_papers():
    """The value is the sum in the paper; the gradient agrees with finite differences."""
    with jax.enable_x64(True):
        dual = problem()
        eta, nu = 0.7, np.array([0.3, -0.002, 4.0, 0.1])
        value, gradient = jax.jit(jax.value_and_grad(dual.value, argnums=(0, 1)))(eta, nu)
        np.testing.assert_allclose(value, by_hand(dual, eta, nu), rtol=1e-10)
        x = np.concatenate([[eta], nu])
        steps = 1e-6 * np.diag(np.abs(x))
        expected = [
            (by_hand(dual, *_split(x + h)) - by_hand(dual, *_split(x - h))) / (2 * h.sum())
            for h in steps
        ]
        found = np.concatenate([[gradient[0]], gradient[1]])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


def _split(x: np.ndarray) -> tuple[float, np.ndarray]:
    return float(x[0]), x[1:]


@pytest.mark.parametrize("seed", range(3))
def test_the_minimum_is_scipys_and_the_bound_is_tight(seed):
    """At the minimum the KL of the weights is ε, and the mean flow is that of the penalty."""
    with jax.enable_x64(True):
        dual = problem(seed)
        found = jax.tree.map(np.asarray, minimise(dual))
        real = np.asarray(dual.weight) > 0
        flow = np.asarray(dual.flow)[real]
        scale = np.sqrt((flow**2).mean(0))
        scipys = scipy.optimize.minimize(
            lambda x: by_hand(dual, np.exp(x[0]), x[1:] / scale), np.zeros(5), tol=1e-9
        )
        np.testing.assert_allclose(found.value, scipys.fun, rtol=1e-7)
        np.testing.assert_allclose(np.log(found.eta), scipys.x[0], atol=1e-4)
        np.testing.assert_allclose(found.nu * scale, scipys.x[1:], atol=1e-4)
        weights = np.asarray(weights_of(dual, found.eta, found.nu))
        np.testing.assert_allclose(weights.sum(), dual.weight.sum(), rtol=1e-12)
        np.testing.assert_allclose(divergence(weights, dual.weight), 0.3, rtol=1e-5)
        mean = (np.asarray(weights)[real, None] * flow).mean(0)
        expected = -2 * dual.penalty * (flow**2).mean(0) * np.asarray(found.nu)
        np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-7)


def test_float32_finds_the_minimum_of_float64():
    with jax.enable_x64(True):
        dual = problem()
        exact = minimise(dual)
        expected = np.asarray(weights_of(dual, exact.eta, exact.nu))
    single = Dual(*(np.asarray(x, np.float32) for x in dual))
    found = minimise(single, 50)
    np.testing.assert_allclose(found.value, exact.value, rtol=1e-5)
    np.testing.assert_allclose(weights_of(single, found.eta, found.nu), expected, atol=0.02)


def test_a_constant_added_to_the_rewards_changes_no_weight():
    with jax.enable_x64(True):
        plain = problem()
        raised = plain._replace(reward=plain.reward + 7.0)
        found = [jax.tree.map(np.asarray, minimise(d)) for d in (plain, raised)]
        np.testing.assert_allclose(found[1].value - found[0].value, 7.0, rtol=1e-6)
        a, b = (weights_of(d, m.eta, m.nu) for d, m in zip((plain, raised), found, strict=True))
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_without_a_penalty_the_dual_of_timed_episodes_has_no_minimum():
    """Values that fall with the time make every Bellman error as small as one likes, because the
    time in the episode rises in each transition and the value after an end is 0."""
    age = np.arange(10.0)
    features = np.stack([age, np.ones(10)], axis=1)
    after = np.concatenate([features[1:], np.zeros((1, 2))])
    dual = Dual(np.zeros(10), after - features, np.ones(10), 0.5, 0.0)
    value = jax.jit(dual.value)
    falling = [float(value(1.0, c * np.array([-1.0, 11.0], np.float32))) for c in (0, 10, 100)]
    assert falling[0] == 0.5
    assert falling[1] < -5
    assert falling[2] < -50


# Weighted maximum likelihood.


class Model:
    """A policy that is linear in `[N, D]` observations, as the fit sees a network."""

    def __init__(self, space: Any, constant: int = 0):
        self.distribution = distributions.for_space(space)
        self._constant = constant  # parameters that do not depend on the observation

    def forward(self, params: Any, rows: Any, last_action: Any, core: Any) -> Any:
        named = params["params"]
        policy = rows @ named["kernel"]
        if self._constant:
            shape = (*policy.shape[:-1], self._constant)
            policy = jnp.concatenate([policy, jnp.broadcast_to(named["rest"], shape)], -1)
        return networks.Output(policy, jnp.zeros(0), ())


@functools.partial(jax.jit, static_argnums=0)
def fit(model: Model, params: Any, x: Any, raw: Any, weights: Any, usable: Any = True) -> Any:
    weight = jnp.where(weights == 0, 0.0, 1.0)
    samples = rollout.Samples(x, None, raw, None, None, weight, None, ())
    shared: Any = types.SimpleNamespace(model=model)
    arguments = shared, {"params": params}, samples, weights, KEY
    return weighted_likelihood.fit(*arguments, iterations=200, usable=usable)


def test_the_fit_of_a_linear_gaussian_is_weighted_least_squares():
    """Means and deviation have closed forms; elements of weight 0 count nothing."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 3)).astype(np.float32)
    raw = x @ rng.normal(size=(3, 1)) + 0.3 * rng.normal(size=(80, 1))
    weights = rng.exponential(size=80) * (rng.uniform(size=80) < 0.8)
    weights *= (weights > 0).sum() / weights.sum()
    real = weights > 0
    xw = x[real] * weights[real, None]
    kernel = np.linalg.solve(xw.T @ x[real], xw.T @ raw[real])
    residual = raw[real] - x[real] @ kernel
    std = np.sqrt(np.mean(weights[real, None] * residual**2))
    raw = np.where(real[:, None], raw, 99.0).astype(np.float32)
    model = Model(spaces.Box(-1, 1, (1,)), constant=1)
    begin = {"kernel": np.zeros((3, 1), np.float32), "rest": np.zeros(1, np.float32)}
    fitted = fit(model, begin, x, raw, np.float32(weights))
    named = fitted.params["params"]
    np.testing.assert_allclose(named["kernel"], kernel, atol=2e-3)
    found = np.logaddexp(0, np.asarray(named["rest"]) + np.log(np.expm1(1.0))) + 1e-3
    np.testing.assert_allclose(found, std, rtol=5e-3)
    assert fitted.metrics["accepted"] == 1.0
    assert fitted.metrics["log_likelihood_after"] > fitted.metrics["log_likelihood"]
    entropy = np.log(std * np.sqrt(2 * np.pi * np.e))
    np.testing.assert_allclose(fitted.metrics["log_likelihood_after"], -entropy, rtol=1e-3)


def test_the_fit_of_a_table_is_weighted_frequencies():
    """A softmax per state; the divergences are those of the two tables, over the batch's states."""
    rng = np.random.default_rng(1)
    state, action = rng.integers(0, 3, 300), rng.integers(0, 4, 300)
    weights = rng.exponential(size=300).astype(np.float32)
    weights /= weights.mean()
    table = np.zeros((3, 4))
    np.add.at(table, (state, action), weights)
    table /= table.sum(1, keepdims=True)
    begin = rng.normal(size=(3, 4)).astype(np.float32)
    x = np.eye(3, dtype=np.float32)[state]
    fitted = fit(Model(spaces.Discrete(4)), {"kernel": begin}, x, action, weights)
    found = scipy.special.softmax(np.asarray(fitted.params["params"]["kernel"]), axis=-1)
    np.testing.assert_allclose(found, table, atol=2e-3)
    old = scipy.special.softmax(begin, axis=-1)
    for name, (p, q) in {"kl": (old, found), "kl_reverse": (found, old)}.items():
        expected = (p * np.log(p / q)).sum(1)[state].mean()
        np.testing.assert_allclose(fitted.metrics[name], expected, rtol=1e-4)


def test_without_a_preference_the_parameters_stay():
    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    begin = {"kernel": np.array([[0.1, 0.3], [-0.2, 0.7]], np.float32)}
    fixed = Model(spaces.Discrete(2)), begin, x, np.array([0, 1, 0, 1, 1, 1])
    good = np.array([0.5, 1.5, 1, 1, 1, 1], np.float32)
    changed = fit(*fixed, good, True)
    assert changed.metrics["accepted"] == 1.0
    assert not np.array_equal(changed.params["params"]["kernel"], begin["kernel"])
    for weights, usable in (
        (np.ones(6), True),
        (np.zeros(6), True),
        (np.full(6, np.nan), True),
        (np.array([1, 1, 1, 1, 1, np.inf]), True),
        (good, False),
    ):
        fitted = fit(*fixed, np.float32(weights), usable)
        equal(fitted.params["params"], begin)
        assert fitted.metrics["accepted"] == fitted.metrics["kl"] == 0.0


# The agents.


@pytest.mark.parametrize("agent", ["rwr", "reps"])
def test_a_reward_that_is_not_a_number_changes_nothing(agent):
    state, learn, trajectory = made(agent)
    reward = np.array(trajectory.timestep.reward)
    reward[3, 1] = np.nan
    timestep = trajectory.timestep
    assert not timestep.first[3, 1]
    bad = Batch(trajectory._replace(timestep=timestep._replace(reward=reward)))
    after = learn(state, bad)
    equal(after.state.params, state.params)
    equal(after.state.extra, state.extra)
    assert after.state.skipped == 1
    assert after.metrics["accepted"] == 0.0
    good = learn(after.state, Batch(trajectory))
    assert good.metrics["accepted"] == 1.0
    assert np.isfinite(good.state.extra["baseline"]).all()


def test_a_constant_reward_without_a_bootstrap_moves_no_policy():
    """γ = 0: all advantages are equal. The baseline learns nevertheless."""
    state, learn, trajectory = made("rwr")
    state = state._replace(hyper=state.hyper | {"discount": jnp.float32(0.0)})
    after = learn(state, rewarded(trajectory, 1.0))
    equal(after.state.params, state.params)
    assert after.metrics["accepted"] == after.state.skipped == 0
    assert np.abs(after.state.extra["baseline"]).max() > 0
    assert after.metrics["steps"] == after.state.steps > 0


def test_reps_learns_from_the_first_reward_after_many_constant_ones():
    """Where all δ are equal, η goes to 0. A search from there, in log η, would not come back."""
    state, learn, trajectory = made("reps")
    state = state._replace(extra=state.extra | {"eta": jnp.float32(1e-8)})
    reward = np.random.default_rng(0).random(trajectory.timestep.reward.shape) < 0.1
    metrics = learn(state, rewarded(trajectory, reward)).metrics
    np.testing.assert_allclose(metrics["weights_kl"], state.hyper["max_kl"], rtol=0.01)
    assert metrics["accepted"] == 1


def test_the_dual_is_of_the_papers_bellman_errors():
    """δ by a loop over transitions, with ends of both kinds; dummies count nothing."""
    settings = config("reps", discount=0.9, unroll=7, batch_size=1)
    spec = EnvSpec("test", spaces.Box(-1, 1, (1,)), spaces.Discrete(2))
    agent = reps.REPS(settings, on_policy.make(settings, spec, horizon=100, linear=True))
    observation = np.random.default_rng(0).uniform(-1, 1, (8, 1, 1)).astype(np.float32)
    reward = np.array([0, 1, 2, 0, -4, 3, 0, 5], np.float32)
    first = np.array([1, 0, 0, 1, 0, 0, 1, 0], bool)
    terminated = np.array([0, 0, 1, 0, 0, 0, 0, 0], bool)
    truncated = np.array([0, 0, 0, 0, 0, 1, 0, 0], bool)
    timestep = TimeStep(
        observation,
        *(x[:, None] for x in (reward, terminated, truncated, first)),
        np.zeros((8, 1), np.int32),
    )
    state, act = jax.jit(agent.init)(KEY), jax.jit(agent.shared.act)
    carry = agent.shared.initial_carry(KEY, np.arange(1), 1, False)
    rows = []
    for t in range(8):
        row = jax.tree.map(lambda x, t=t: x[t], timestep)
        action, carry, extras = act(agent.shared.behaviour(state), carry, row, KEY)
        rows.append((action, extras))
    action, extras = jax.tree.map(lambda *x: np.stack(x), *rows)
    batch = Batch(Trajectory(timestep, action, extras, carry.core, np.zeros(1, np.int32)))

    @jax.jit
    def dual_of(state: Any) -> Any:
        data = agent.shared.data(state.extra["statistics"], state.hyper, batch)
        return agent.dual(state, data)

    dual, start = jax.tree.map(np.asarray, dual_of(state))
    age = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    o, t = observation[:, 0, 0], age / 100
    phi = np.stack([o, o**2, t, t**2, t**3, np.ones(8)], 1)
    begin = phi[[0, 3, 6]].mean(0)
    np.testing.assert_allclose(start, begin, rtol=1e-5)
    nu = np.array([0.3, -1.0, 20.0, 5.0, -3.0, 2.0])
    errors = np.asarray(dual.errors(np.float32(nu)))[:, 0]
    for t in (0, 1, 3, 4, 6):
        bootstrap = 0.0 if terminated[t + 1] else 0.9 * phi[t + 1] @ nu
        expected = reward[t + 1] + bootstrap + 0.1 * begin @ nu - phi[t] @ nu
        np.testing.assert_allclose(errors[t], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(dual.weight[:, 0], [1, 1, 0, 1, 1, 0, 1])


def test_an_update_of_reps_stays_within_its_bound():
    """The dual comes near its minimum, from far away and from the last update's."""
    state, learn, trajectory = made("reps")
    rng = np.random.default_rng(0)
    for _ in range(3):
        batch = rewarded(trajectory, rng.normal(size=trajectory.timestep.reward.shape))
        state, metrics, _ = learn(state, batch)
        np.testing.assert_allclose(metrics["weights_kl"], 0.5, rtol=0.05)
        assert metrics["accepted"] == 1.0
        assert 0.1 < metrics["effective_samples"] < 1.0


# Bad input.


@pytest.mark.parametrize(
    ("agent", "wrong", "message"),
    [
        ("rwr", {"weighting": "exponential", "temperature": 0.0}, "expected a number above zero"),
        ("rwr", {"temperature": 0.5}, "`--weighting` is shifted, which has no temperature"),
        ("rwr", {"advantage_normalisation": "minibatch"}, "expected batch or none"),
        ("rwr", {"separate_value": False, "baseline": "network"}, "`--no-separate-value` is given"),
        ("rwr", {"fit_iterations": 0}, "`--fit-iterations` is 0; expected a number above zero"),
        ("reps", {"max_kl": 0.0}, "`--max-kl` is 0.0; expected a number above zero"),
        ("reps", {"initial_eta": -1.0}, "`--initial-eta` is -1.0; expected a number above zero"),
        ("reps", {"gae_lambda": 0.5}, "`--gae-lambda` is 0.5, and REPS does not use it"),
        ("reps", {"max_gradient_norm": "linear:1:2"}, "discount, dual_penalty, max_kl"),
    ],
)
def test_settings_that_do_not_fit(agent, wrong, message):
    def make():
        plan = resolve(agent, "pronk/CartPole-v1", preset="paper", **(wrong))
        agents.make(agent, plan.agent_config, envs.spec_of("pronk/CartPole-v1", {}), horizon=100)

    with pytest.raises(UserError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("agent", ["reps", "rwr"])
def test_a_linear_value_function_takes_no_images(agent):
    spec = EnvSpec("test/Pixels", spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Discrete(2))
    with pytest.raises(UserError, match=r"'test/Pixels' are images.*expected vectors"):
        agents.make(agent, config(agent), spec, horizon=100)


def test_a_wrong_bound_on_the_command_line(capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        cli.main(
            ["train", "reps", "CartPole-v1", "--max-kl", "-1", "--run-dir", str(tmp_path / "run")]
        )
    assert caught.value.code
    shown = capsys.readouterr().err
    assert "`--max-kl` is -1.0; expected a number above zero" in shown
    assert "Traceback" not in shown
