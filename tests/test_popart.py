"""PopArt against the paper's formulas, and what it must not change."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
import reference
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

import pronk
from pronk import agents
from pronk.agents.impala_config import Config
from pronk.errors import UserError
from pronk.maths import popart, returns
from pronk.maths.popart import Statistics
from pronk.types import Batch, EnvSpec, TimeStep, Trajectory

BETA = 0.1
# A function of an agent is compiled once, also where it is a method, which is another object each
# time it is looked up.
jit = functools.cache(jax.jit)
update = jax.jit(popart.update_statistics, static_argnames="debias")
rescale_head, normalize, denormalize = map(
    jax.jit, (popart.rescale_head, popart.normalize, popart.denormalize)
)


def statistics(mean, deviation) -> Statistics:
    mean, deviation = np.float32(mean), np.float32(deviation)
    return Statistics(mean, np.square(deviation), np.zeros(mean.shape, np.int32))


def batch_of_targets(seed: int, tasks: int = 3):
    rng = np.random.default_rng(seed)
    task = rng.integers(tasks - 1, size=(5, 4))  # none of the last one
    targets = rng.normal(size=(5, 4)) * 10.0**task + task
    weight = rng.integers(2, size=(5, 4))
    return targets.astype(np.float32), task.astype(np.int32), weight.astype(np.float32)


def by_the_paper(mean, second, targets, task, weight, beta):
    """With means over the batch: μ and ν, in float64."""
    mean, second = np.array(mean, np.float64), np.array(second, np.float64)
    for k in range(len(mean)):
        x = np.float64(targets)[(task == k) & (weight > 0)]
        if x.size:
            mean[k] = (1 - beta) * mean[k] + beta * x.mean()
            second[k] = (1 - beta) * second[k] + beta * np.mean(x**2)
    return mean, second


@pytest.mark.parametrize("seed", range(3))
def test_statistics_are_those_of_the_paper(seed):
    """After several batches, μ and √(ν − μ²) of each task; those of a task without targets stay."""
    found, mean, second = popart.init(3), np.zeros(3), np.ones(3)
    for i in range(20):
        batch = batch_of_targets(100 * seed + i)
        found = update(found, *batch, BETA)
        mean, second = by_the_paper(mean, second, *batch, BETA)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.deviation, np.sqrt(second - mean**2), rtol=1e-4)
    assert (found.mean[2], found.deviation[2], found.count[2]) == (0, 1, 0)
    assert found.count[0] == 20


def test_a_batch_counts_once_whatever_its_size():
    targets, task, weight = batch_of_targets(0)
    once = update(popart.init(3), targets, task, weight, BETA)
    thrice = update(
        popart.init(3), *(np.concatenate([x] * 3) for x in (targets, task, weight)), BETA
    )
    np.testing.assert_allclose(once.mean, thrice.mean, rtol=1e-5)
    np.testing.assert_allclose(once.variance, thrice.variance, rtol=1e-5)


def test_the_deviation_is_precise_beside_a_large_mean():
    """Here ν − μ² would be a difference of numbers near 10¹⁰, which float32 knows to a thousand."""
    rng, found = np.random.default_rng(0), popart.init(1)
    for _ in range(200):
        targets = (1e5 + rng.normal(size=64)).astype(np.float32)
        found = update(found, targets, np.zeros(64, np.int32), np.ones(64), 0.2)
    assert found.mean[0] == pytest.approx(1e5, rel=1e-4)
    assert found.deviation[0] == pytest.approx(1.0, rel=0.1)


def test_debiased_statistics_do_not_depend_on_the_first_ones():
    """After t equal batches they are those of one batch."""
    targets, task, weight = batch_of_targets(1)
    mean, second = by_the_paper(np.zeros(3), np.zeros(3), targets, task, weight, 1.0)
    found = popart.init(3)
    for _ in range(3):
        found = update(found, targets, task, weight, 3e-4, debias=True)
        np.testing.assert_allclose(found.mean[:2], mean[:2], rtol=1e-4)
        deviation = np.sqrt(second - mean**2)
        np.testing.assert_allclose(found.deviation[:2], deviation[:2], rtol=1e-4)


@pytest.mark.parametrize("beta", [0.5, 1e-3, 1e-8])
def test_debiased_weights_are_precise(beta):
    """After targets a and then b, the mean is (a (1 − β) + b) / (2 − β)."""
    found = popart.init(1)
    for x in (1.0, 3.0):
        found = update(
            found, np.array([x], np.float32), np.array([0], np.int32), np.ones(1), beta, debias=True
        )
    assert found.mean[0] == pytest.approx(((1 - beta) + 3) / (2 - beta), rel=1e-5)


def test_the_deviation_is_bounded():
    zeros = np.zeros(8, np.float32)
    found = update(popart.init(1), zeros, zeros.astype(np.int32), np.ones(8), 1.0)
    assert found.deviation[0] == np.float32(popart.LOWEST)
    huge = np.array([-1e9, 1e9], np.float32)
    found = update(popart.init(1), huge, np.zeros(2, np.int32), np.ones(2), 1.0)
    assert found.deviation[0] == np.float32(popart.HIGHEST)


SIZES = st.floats(-8, 8).map(lambda x: np.sign(x) * 10.0 ** (abs(x) - 2))
SCALES = st.floats(-5, 7).map(lambda x: 10.0**x)  # beyond the bounds, too


@given(st.tuples(SIZES, SCALES), st.tuples(SIZES, SCALES), st.integers(0, 2**31))
@settings(max_examples=300, deadline=None)
def test_outputs_are_preserved_by_updates_of_any_size(old, new, seed):
    """To the rounding of float32, which is relative to the largest number in the sum."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(7, 4)).astype(np.float32)
    kernel, bias = rng.normal(size=(4, 1)).astype(np.float32), rng.normal(size=1)
    bias = bias.astype(np.float32)
    old, new = (statistics([mean], [deviation]) for mean, deviation in (old, new))
    task = np.zeros(7, np.int32)

    def value(kernel, bias, units):
        n = np.float64(features) @ np.float64(kernel) + np.float64(bias)
        return np.float64(units.deviation)[task] * n[:, 0] + np.float64(units.mean)[task]

    before = value(kernel, bias, old)
    after = value(*rescale_head(kernel, bias, old, new), new)
    largest = (
        np.abs(old.mean).max() + np.abs(new.mean).max() + 4 * float(old.deviation[0])
    ) * np.abs(features).max(axis=1).clip(1)
    assert (np.abs(after - before) <= 16 * np.finfo(np.float32).eps * largest + 1e-12).all()


def test_unnormalised_inverts_normalised():
    units = statistics([3.0, -100.0], [0.5, 20.0])
    task, v = np.array([0, 1, 1]), np.array([1.0, 2.0, 3.0], np.float32)
    n = normalize(units, v, task)
    np.testing.assert_allclose(n, [-4, 5.1, 5.15], rtol=1e-5)
    np.testing.assert_allclose(denormalize(units, n, task), v, rtol=1e-5)


def test_wrong_shapes_are_named():
    units, four = popart.init(3), np.zeros(4, np.int32)
    with pytest.raises(ValueError, match=r"`task` has shape \(4, 1\), expected \(4,\)"):
        popart.update_statistics(units, np.ones(4), four[:, None], np.ones(4), 0.1)
    with pytest.raises(ValueError, match="`beta`"):
        popart.update_statistics(units, np.ones(4), four, np.ones(4), np.ones(3))
    with pytest.raises(ValueError, match=r"`bias` has shape \(2,\), expected \(3,\)"):
        popart.rescale_head(np.ones((5, 3)), np.ones(2), units, units)
    with pytest.raises(ValueError, match=r"`new_mean` has shape \(2,\), expected \(3,\)"):
        popart.rescale_head(np.ones((5, 3)), np.ones(3), units, popart.init(2))
    for function in (popart.normalize, popart.denormalize):
        with pytest.raises(ValueError, match="`task` has shape"):
            function(units, np.ones((4, 1)), four)


# In the agent.

STATES, ACTIONS, LENGTH, WIDTH, TASKS = 4, 3, 6, 6, 2
SPEC = EnvSpec(
    "test", spaces.Discrete(STATES), spaces.Discrete(ACTIONS), tasks=("a", "b"),
    references=(None, None),
)  # fmt: skip
# A table: logits and values are a linear function of which state it is.
TABLE = Config(
    hidden_sizes=(),
    reward_clip=0.0,
    discount=0.9,
    unroll=LENGTH,
    batch_size=WIDTH,
    popart_beta=BETA,
    value_normalisation="popart",
    learning_rate=1e-9,
)
KEY = jax.random.key(0)


@functools.cache
def made(**changes):
    agent = agents.make("impala", dataclasses.replace(TABLE, **changes), SPEC, horizon=1000)
    state, rng = jax.jit(agent.init)(KEY), np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: np.asarray(x) + np.float32(rng.normal(size=x.shape)), state.params
    )
    units = statistics([1.0, -50.0], [2.0, 300.0])
    aux = dict(state.extra) | {"statistics": units} if state.extra else ()
    return agent, state._replace(params=params, extra=aux)


def batch(seed: int = 0) -> Batch:
    """Boundaries of every kind; rewards of the second task are some hundred times larger."""
    rng = np.random.default_rng(seed)
    shape = (LENGTH + 1, WIDTH)
    first, terminated, truncated = (rng.uniform(size=shape) < 0.15 for _ in range(3))
    task = np.broadcast_to(np.arange(WIDTH, dtype=np.int32) % TASKS, shape)
    timestep = TimeStep(
        rng.integers(STATES, size=shape),
        (rng.normal(size=shape) * np.array([1, 300])[task]).astype(np.float32) * ~first,
        terminated & ~first,
        truncated & ~first,
        first,
        task,
    )
    logits = rng.normal(size=(*shape, ACTIONS)).astype(np.float32)
    action = rng.integers(ACTIONS, size=shape)
    log_prob = np.log(np.take_along_axis(reference.softmax(logits), action[..., None], -1)[..., 0])
    agent, _ = made()
    core = agent.initial_carry(KEY, np.arange(WIDTH), WIDTH, False).core
    extras = {"log_prob": log_prob.astype(np.float32), "policy": logits}
    return Batch(Trajectory(timestep, action, extras, core, np.zeros(WIDTH, np.int32)))


def by_hand(state, seen: Batch):
    """In NumPy, float64: targets in units of reward, then the statistics, then the last layer, then
    losses in the new units. Returns (μ, σ, kernel, bias, policy loss, value loss), means."""
    table = jax.tree.map(np.float64, state.params["params"])
    old_mean, old_deviation = (
        np.float64(x) for x in (state.extra["statistics"].mean, state.extra["statistics"].deviation)
    )
    rows, action = seen.trajectory.timestep, seen.trajectory.action[:-1]
    states, task = rows.observation, rows.task
    logits = (table["policy"]["kernel"] + table["policy"]["bias"])[states]
    taken = np.take_along_axis(reference.softmax(logits)[:-1], action[..., None], -1)[..., 0]
    kernel, bias = table["value"]["kernel"], table["value"]["bias"]
    n = (kernel + bias)[states, task]
    values = old_deviation[task] * n + old_mean[task]
    reward, discount, continuation, weight = map(np.float64, returns.transitions(rows, 0.9))
    ratio = taken / np.exp(seen.trajectory.extras["log_prob"][:-1]) * weight
    columns = [
        reference.vtrace(*(x[:, b] for x in (values, reward, discount, continuation, ratio)))
        for b in range(WIDTH)
    ]
    targets, advantages = (np.stack([getattr(c, k) for c in columns], 1) for k in
                           ("targets", "advantages"))  # fmt: skip
    mean, second = by_the_paper(
        old_mean, old_deviation**2 + old_mean**2, targets, task[:-1], weight, BETA
    )
    deviation = np.sqrt(second - mean**2)
    kernel = kernel * old_deviation / deviation
    bias = (old_deviation * bias + old_mean - mean) / deviation
    n = (kernel + bias)[states, task][:-1]
    at = task[:-1]
    value = np.sum(0.5 * (((targets - mean[at]) / deviation[at]) - n) ** 2 * weight)
    policy = np.sum(-np.log(taken) * advantages / deviation[at] * weight)
    total = weight.sum()
    return mean, deviation, kernel, bias, policy / total, value / total


@pytest.mark.parametrize("seed", range(3))
def test_the_update_has_the_order_of_the_paper(seed):
    agent, state = made()
    after, metrics, _ = jit(agent.learn)(state, batch(seed))
    mean, deviation, kernel, bias, policy, value = by_hand(state, batch(seed))
    units, head = after.extra["statistics"], after.params["params"]["value"]
    np.testing.assert_allclose(units.mean, mean, rtol=1e-4)
    np.testing.assert_allclose(units.deviation, deviation, rtol=1e-4)
    np.testing.assert_allclose(head["kernel"], kernel, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(head["bias"], bias, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["loss/policy"], policy, rtol=1e-3)
    np.testing.assert_allclose(metrics["loss/value"], value, rtol=1e-3)
    assert metrics["popart/mean/b"] == pytest.approx(mean[1], rel=1e-4)
    assert metrics["popart/deviation/a"] == pytest.approx(deviation[0], rel=1e-4)


def values_of(state) -> np.ndarray:
    """The table of values in units of reward, `[STATES, TASKS]`."""
    head, units = state.params["params"]["value"], state.extra["statistics"]
    kernel, bias = np.asarray(head["kernel"]), np.asarray(head["bias"])
    return np.asarray(units.deviation) * (kernel + bias) + np.asarray(units.mean)


def test_popart_preserves_values_and_art_does_not():
    for kind, stays in (("popart", True), ("art", False)):
        agent, state = made(value_normalisation=kind)
        after, _, _ = jit(agent.learn)(state, batch())
        moved = np.abs(values_of(after) - values_of(state)) / state.extra["statistics"].deviation
        assert (moved.max() < 1e-5) == stays
        assert differs(after.extra["statistics"], state.extra["statistics"])


def differs(a, b) -> bool:
    return any(
        not np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_the_average_policy_is_rescaled_too():
    agent, state = made(trust_region=1e9, average_decay=1.0)  # which never moves by itself
    state = state._replace(extra=state.extra | {"target": state.params})
    after, _, _ = jit(agent.learn)(state, batch())
    target, head = after.extra["target"]["params"]["value"], after.params["params"]["value"]
    np.testing.assert_allclose(target["kernel"], head["kernel"], rtol=1e-5)
    np.testing.assert_allclose(target["bias"], head["bias"], rtol=1e-5, atol=1e-6)
    assert differs(target, state.params["params"]["value"])


def test_the_scale_of_rewards_does_not_matter():
    """With debiased statistics, rewards 10,000 times as large give the same parameters but for
    rounding; without normalisation they do not."""
    for kind, same in (("popart", True), ("none", False)):
        found = []
        for scale in (1.0, 1e4):
            settings = {"reward_scale": scale, "popart_debias": True, "learning_rate": 0.01}
            spec = EnvSpec("test", SPEC.observation_space, SPEC.action_space)
            config = dataclasses.replace(TABLE, value_normalisation=kind, **settings)
            agent = agents.make("impala", config, spec, horizon=10_000)
            state, learn = jax.jit(agent.init)(KEY), jax.jit(agent.learn)
            # Values that begin at zero are as nothing to either.
            head = jax.tree.map(np.zeros_like, state.params["params"]["value"])
            state = state._replace(params={"params": state.params["params"] | {"value": head}})
            for seed in range(5):
                rewards = batch(seed)
                rows = rewards.trajectory.timestep
                rows = rows._replace(reward=np.sign(rows.reward), task=np.zeros_like(rows.task))
                trajectory = rewards.trajectory._replace(timestep=rows)
                state, _, _ = learn(state, Batch(trajectory))
            found.append(np.asarray(state.params["params"]["policy"]["kernel"]))
        assert np.allclose(*found, atol=2e-4) == same


def test_a_shared_value_has_one_statistic():
    agent, state = made()
    assert state.params["params"]["value"]["kernel"].shape == (STATES, TASKS)
    agent = agents.make("impala", dataclasses.replace(TABLE, value_per_task=False), SPEC, horizon=1)
    state = jax.eval_shape(agent.init, KEY)
    assert state.params["params"]["value"]["kernel"].shape == (STATES, 1)
    assert state.extra["statistics"].mean.shape == (1,)


def test_async_gradients_is_refused(tmp_path):
    with pytest.raises(UserError, match="async-gradients"):
        pronk.train(
            "impala",
            "pronk/Catch-v0",
            runtime="local",
            architecture="async-gradients",
            run_dir=tmp_path,
            value_normalisation="popart",
            steps=1000,
        )


@pytest.mark.slow
def test_a_task_with_large_rewards_is_learnt(tmp_path):
    """Catch with ±5,000 for ±1."""
    found = pronk.train(
        "impala", "pronk/Catch-v0?reward_scale=5000", run_dir=tmp_path, steps=200_000, quiet=True,
        value_normalisation="popart", popart_beta=0.01, reward_scale=1.0, max_gradient_norm=5.0,
    )  # fmt: skip
    assert found["return/pronk/Catch-v0?reward_scale=5000"] > 4_500


def test_a_run_may_start_from_the_statistics_of_another(tmp_path):
    settings = {
        "runtime": "fused",
        "hidden_sizes": (8,),
        "value_normalisation": "popart",
        "popart_beta": 0.1,
        "quiet": True,
    }
    first, second = tmp_path / "first", tmp_path / "second"
    pronk.train("impala", "pronk/Catch-v0", run_dir=first, steps=3000, **settings)
    pronk.train(
        "impala", "pronk/Catch-v0", run_dir=second, steps=3000, stop_after=1, init_from=first,
        learning_rate=1e-12, **(settings | {"popart_beta": 0.0}),
    )  # fmt: skip
    ours, theirs = (pronk.load(run).behaviour for run in (second, first))
    np.testing.assert_allclose(ours.statistics.mean, theirs.statistics.mean)
    exported = tmp_path / "policy.safetensors"
    from pronk.run.policy import export

    export(first, exported)
    for number, source in enumerate((first, exported)):
        with pytest.raises(UserError, match="does not fit: at `behaviour/statistics"):
            pronk.train(
                "impala", "pronk/Catch-v0", run_dir=tmp_path / f"third{number}", steps=3000,
                init_from=source, **(settings | {"value_normalisation": "none"}),
            )  # fmt: skip
