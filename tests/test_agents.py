"""What every agent promises, and IMPALA's update against its formulas (R2D2's: test_r2d2.py).

`VARIANTS` is the conformance table: add each new agent, and each kind of network or action that
takes another path through it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from gymnasium import spaces

from pronk import agents, envs
from pronk.agents import impala_config as impala
from pronk.config.registry import agent_module
from pronk.maths import returns
from pronk.runtime.actor import Actor, Player, jit_act
from pronk.runtime.columns import columns, concatenate
from pronk.storage.checkpoint import Checkpointer
from pronk.types import Agent, Batch, EnvSpec, LearnerState, TimeStep, Trajectory

UNROLL, NUM_ENVS, HORIZON = 6, 3, 10_000

SMALL = {"hidden_sizes": (8,), "recurrent_units": 4, "unroll": UNROLL, "batch_size": NUM_ENVS}
VECTOR = spaces.Box(-1, 1, (3,))
DISCRETE = spaces.Discrete(3)
BOX = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, np.inf], np.float32))
PIXELS = spaces.Box(0, 255, (7, 6, 2), np.uint8)
MIXED = spaces.Dict({"b": spaces.Discrete(3), "a": spaces.Tuple([VECTOR, spaces.MultiBinary(2)])})
ADAM = {"optimiser": "adam", "loss_reduction": "mean", "max_gradient_norm": 0.5}


class Variant(NamedTuple):
    agent: str
    config: Any
    spec: EnvSpec


# A trajectory is a drawn sequence: two rows of burn-in, and four transitions to learn from.
REPLAYED = {
    "burn_in": 2,
    "sequence_length": UNROLL - 2,
    "overlap": 2,
    "head_units": 8,
    "n_steps": 2,
}


def variant(observation, action, mask=False, agent="impala", tasks=(), **settings) -> Variant:
    references = (None,) * len(tasks)
    spec = EnvSpec(
        "test", observation, action, has_action_mask=mask, tasks=tasks, references=references
    )
    small = SMALL | (REPLAYED if agent == "r2d2" else {})
    return Variant(agent, agent_module(agent).config(**(small | settings)), spec)


VARIANTS = {
    "mlp": variant(VECTOR, DISCRETE),
    "lstm": variant(VECTOR, DISCRETE, recurrent_core="lstm"),
    "gru": variant(VECTOR, spaces.MultiBinary(2), recurrent_core="gru", separate_value=True),
    "gaussian": variant(VECTOR, BOX, **ADAM),
    "squashed": variant(
        VECTOR, spaces.Box(-2, 2, (2,)), squash_actions=True, recurrent_core="lstm"
    ),
    "multi_discrete": variant(MIXED, spaces.MultiDiscrete([2, 3]), **ADAM),
    "masked": variant(VECTOR, spaces.Discrete(4, start=1), mask=True, recurrent_core="gru"),
    "pixels": variant(PIXELS, DISCRETE, torso="shallow"),
    "laser": variant(
        VECTOR,
        spaces.MultiDiscrete([2, 3]),
        recurrent_core="lstm",
        replay_fraction=2 / 3,
        trust_region=1e6,
    ),
    "popart": variant(
        VECTOR,
        DISCRETE,
        mask=True,
        tasks=("a", "b"),
        value_normalisation="popart",
        recurrent_core="lstm",
        trust_region=1e6,
        replay_fraction=2 / 3,
    ),
    "art": variant(
        VECTOR, BOX, value_normalisation="art", popart_debias=True, separate_value=True, **ADAM
    ),
    "pixel_control": variant(
        PIXELS,
        DISCRETE,
        mask=True,
        recurrent_core="lstm",
        pixel_control_cost=0.1,
        pixel_control_cell=3,
    ),
    "r2d2": variant(VECTOR, DISCRETE, agent="r2d2"),
    "r2d2_feed_forward": variant(
        MIXED,
        DISCRETE,
        agent="r2d2",
        recurrent_core="none",
        burn_in=0,
        sequence_length=UNROLL,
        loss_reduction="mean",
    ),
    "r2d2_masked": variant(
        VECTOR,
        spaces.Discrete(4, start=1),
        mask=True,
        agent="r2d2",
        recurrent_core="gru",
        returns="retrace",
        rescaling="log",
    ),
    "r2d2_pixels": variant(
        PIXELS,
        DISCRETE,
        agent="r2d2",
        torso="shallow",
        stored_state=False,
        rescaling="none",
        reward_clip=1.0,
    ),
}
every_variant = pytest.mark.parametrize("name", VARIANTS)
# Those whose update is one gradient step, of sums over transitions.
with_gradients = pytest.mark.parametrize(
    "name",
    [
        k
        for k, v in VARIANTS.items()
        if v.agent == "impala" and v.config.value_normalisation == "none"
    ],
)


class RandomEnv:
    """Random observations with every kind of boundary: ends, restarts that no end announced, and
    games over in their first row. Reuses its arrays, as environments may."""

    placement = "in the test"

    def __init__(self, spec: EnvSpec, num_envs: int, seed: int = 0):
        self.spec, self.num_envs = spec, num_envs
        self._rng = np.random.default_rng(seed)
        self._ended = np.ones(num_envs, bool)
        self.actions: list[np.ndarray] = []
        spec.observation_space.seed(seed)
        self._timestep = jax.tree.map(
            np.array,
            TimeStep(
                self._observation(),
                *(np.zeros(num_envs, t) for t in (np.float32, bool, bool, bool, np.int32)),
                self._mask(),
            ),
        )

    def _observation(self):
        samples = [self.spec.observation_space.sample() for _ in range(self.num_envs)]
        return jax.tree.map(lambda *x: np.stack(x), *samples)

    def _mask(self):
        if not self.spec.has_action_mask:
            return None
        mask = self._rng.uniform(size=(self.num_envs, self.spec.action_space.n)) < 0.5
        mask[np.arange(self.num_envs), self._rng.integers(0, mask.shape[1], self.num_envs)] = True
        return mask

    def reset(self) -> TimeStep:
        self._ended[:] = True
        return self.step(None)

    def step(self, action) -> TimeStep:
        if action is not None:
            self.actions.append(np.array(action))
        draw = self._rng.uniform(size=(4, self.num_envs))
        first = self._ended | (draw[0] < 0.1)
        reward = np.where(first, 0, self._rng.normal(size=self.num_envs)).astype(np.float32)
        row = TimeStep(
            self._observation(),
            reward,
            draw[1] < 0.15,
            draw[2] < 0.15,
            first,
            np.arange(self.num_envs, dtype=np.int32) % self.spec.num_tasks,
            self._mask(),
        )
        for ours, new in zip(jax.tree.leaves(self._timestep), jax.tree.leaves(row), strict=True):
            ours[...] = new
        self._ended = row.terminated | row.truncated
        return self._timestep

    def episodes(self):
        return []

    def warnings(self):
        return []

    def close(self):
        pass


def player(agent: Agent, num_envs: int) -> Player:
    return Player(agent, jax.random.key(0), np.arange(num_envs, dtype=np.int32), num_envs)


def actor(agent: Agent, env: Any, unroll: int = UNROLL) -> Actor:
    return Actor(player(agent, env.num_envs), env, unroll=unroll)


class Made(NamedTuple):
    """An agent, a state whose policy is far from uniform, and some of its own data."""

    agent: Agent
    state: LearnerState
    learn: Any
    trajectories: list[Trajectory]
    env: RandomEnv
    act_compilations: list[int]
    gradients: Any  # of all the trajectories side by side
    ratios: list[np.ndarray]  # of which V-trace was told in the last call of `gradients`


def spread(state: LearnerState) -> LearnerState:
    """Parameters far from their first values, where the policy hardly depends on anything."""
    leaves, tree = jax.tree.flatten(state.params)
    rng = np.random.default_rng(0)
    scales = [0.8 / np.sqrt(np.prod(x.shape[:-1]) or 1) for x in leaves]
    moved = [
        x + np.float32(scale * rng.normal(size=x.shape))
        for x, scale in zip(leaves, scales, strict=True)
    ]
    return state._replace(params=tree.unflatten(moved))


@functools.cache
def made(name: str) -> Made:
    v = VARIANTS[name]
    agent = agents.make(v.agent, v.config, v.spec, horizon=HORIZON)
    state = spread(jax.jit(agent.init)(jax.random.key(0)))
    env = RandomEnv(v.spec, NUM_ENVS)
    unroller = actor(agent, env)
    behaviour, trajectories, compilations = agent.behaviour(state), [], []
    for version in range(4):
        trajectories.append(unroller.unroll(behaviour, version).trajectory)
        compilations.append(jit_act._cache_size())
    learn = jax.jit(agent.learn)
    gradients, ratios = spied_gradients(agent) if agent.halves.gradients else (None, [])
    return Made(agent, state, learn, trajectories, env, compilations, gradients, ratios)


def spied_gradients(agent: Agent) -> tuple[Any, list[np.ndarray]]:
    """`agent.halves.gradients`, jitted, and a list of the importance ratios `[T]` of each column.

    They are looked at where the agent hands them to V-trace; the columns are in any order.
    """
    ratios: list[np.ndarray] = []
    vtrace = returns.vtrace

    def spy(values, reward, discount, continuation, ratio, **levels):
        jax.debug.callback(lambda x: ratios.append(np.asarray(x)), ratio)
        return vtrace(values, reward, discount, continuation, ratio, **levels)

    @jax.jit
    def gradients(state, batch):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(returns, "vtrace", spy)
            return agent.halves.gradients(state, batch)

    def call(state, batch):
        ratios.clear()
        result = gradients(state, batch)
        jax.effects_barrier()
        return result

    return call, ratios


def equal(a, b) -> None:
    """Bit for bit, keys included."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def differs(a, b) -> bool:
    return any(
        not np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def avals(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


# The conformance table.


@every_variant
def test_stable_pytrees(name):
    """What goes in comes out: structure, shapes and dtypes, weak types included."""
    m = made(name)
    batch = Batch(m.trajectories[0])
    after = jax.eval_shape(m.agent.learn, m.state, batch)[0]
    assert avals(after) == avals(m.state)
    assert not any(x.weak_type for x in jax.tree.leaves(jax.eval_shape(m.agent.init, KEY)))
    carry = m.agent.initial_carry(KEY, np.arange(NUM_ENVS), NUM_ENVS, False)
    row = jax.tree.map(lambda x: x[0], m.trajectories[0].timestep)
    action, later, extras = jax.eval_shape(m.agent.act, m.agent.behaviour(m.state), carry, row, KEY)
    assert avals(later) == avals(carry)
    assert all(x.shape[0] == NUM_ENVS for x in jax.tree.leaves((action, extras)))
    assert avals(m.trajectories[0].core) == avals(carry.core)


KEY = jax.random.key(1)


@every_variant
def test_learns_without_a_second_compilation(name):
    m = made(name)
    learn = jax.jit(lambda *args: m.agent.learn(*args))  # with a cache of its own
    state, norms = m.state, []
    for trajectory in m.trajectories[:3]:
        state, metrics, _ = learn(state, Batch(trajectory))
        norms.append(float(metrics["gradient_norm"]))
        assert all(np.isfinite(x) for x in metrics.values())
        assert all(np.shape(x) == () for x in metrics.values())
    assert learn._cache_size() == 1
    assert len(set(m.act_compilations)) == 1
    assert min(norms) > 0
    assert state.updates == 3
    assert state.skipped == 0
    begin = 1 + getattr(VARIANTS[name].config, "burn_in", 0)
    weights = [1 - np.asarray(t.timestep.first[begin:]) for t in m.trajectories[:3]]
    assert state.steps == np.sum(weights)
    assert differs(state.params, m.state.params)


@with_gradients
def test_the_importance_ratio_is_one_on_fresh_data(name):
    """In every transition, boundaries of all kinds included: act and learn agree."""
    m = made(name)
    assert_on_policy(m.gradients, m.ratios, m.state, m.trajectories)


def assert_on_policy(gradients, ratios, state: LearnerState, trajectories) -> None:
    batch = Batch(concatenate(trajectories))
    weight = 1.0 - np.asarray(batch.trajectory.timestep.first[1:])
    _, aux = gradients(state, batch)
    assert len(ratios) == weight.shape[1]
    found = sorted(ratios, key=lambda x: x.round(3).tolist())
    expected = sorted(weight.T, key=lambda x: x.tolist())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(aux["importance_ratio"] / aux["steps"], 1.0, atol=1e-5)
    assert weight.sum() > 0


class Masked(gym.Env):
    """Walks along a line and may not leave it; a forbidden action is an error."""

    observation_space = spaces.Dict({"position": spaces.Discrete(4)})
    action_space = spaces.Discrete(3, start=-1)

    def _seen(self):
        mask = np.array([self.position > 0, True, self.position < 3], np.int8)
        return {"position": self.position}, {"action_mask": mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.steps = int(self.np_random.integers(4)), 0
        return self._seen()

    def step(self, action):
        self.position += int(action)
        self.steps += 1
        assert 0 <= self.position < 4, "a masked action was taken"
        observation, info = self._seen()
        return observation, float(self.position), self.steps == 5, self.steps == 3, info


REAL = {
    "catch": ("pronk/Catch-v0", {}, {}),
    "memory_cue": ("pronk/MemoryCue-v0", {"delay": 3}, {"recurrent_core": "lstm"}),
    "pendulum": ("Pendulum-v1", {"max_episode_steps": 7}, {"recurrent_core": "gru"}),
    "pendulum_squashed": ("Pendulum-v1", {"max_episode_steps": 7}, {"squash_actions": True}),
    "masked": (Masked, {}, {"recurrent_core": "lstm"}),
}


@pytest.mark.parametrize("name", REAL)
def test_the_importance_ratio_is_one_in_real_environments(name):
    env, args, settings = REAL[name]
    spec = envs.spec_of(env, args)
    agent = agents.make("impala", impala.Config(**(SMALL | settings)), spec, horizon=HORIZON)
    state = spread(jax.jit(agent.init)(KEY))
    faults: dict[str, Any] = {} if str(env).startswith("pronk") else {"max_faults": 0}
    vector = envs.make(env, 2, seed=3, env_args=args, workers=0, **faults)
    unroller = actor(agent, vector, unroll=7)
    trajectories = [unroller.unroll(agent.behaviour(state), 0).trajectory for _ in range(3)]
    unroller.close()
    assert np.sum([t.timestep.first[1:] for t in trajectories]) > 2  # episodes did end
    assert_on_policy(*spied_gradients(agent), state, trajectories)


@every_variant
def test_same_seed_same_result(name):
    m, v = made(name), VARIANTS[name]
    again = agents.make(v.agent, v.config, v.spec, horizon=HORIZON)
    state = spread(jax.jit(again.init)(jax.random.key(0)))
    equal(state, m.state)
    other = jax.jit(m.agent.init)(jax.random.key(1))
    assert differs(spread(other).params, m.state.params)
    trajectory = actor(again, RandomEnv(v.spec, NUM_ENVS)).unroll(again.behaviour(state), 0)[0]
    equal(trajectory, m.trajectories[0])
    batch = Batch(trajectory)
    equal(m.learn(m.state, batch), m.learn(state, batch))


@every_variant
def test_save_restore_step_equals_uninterrupted(name, tmp_path):
    m = made(name)
    state, _, _ = m.learn(m.state, Batch(m.trajectories[0]))
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(7, {"learner": state}, {}, block=True)
    loaded = checkpointer.load()
    assert loaded is not None
    template = jax.jit(m.agent.init)(jax.random.key(5))
    restored = loaded.restore("learner", template)
    equal(restored, state)
    batch = Batch(m.trajectories[1])
    equal(m.learn(restored, batch), m.learn(state, batch))


@every_variant
def test_the_dummy_transition_weighs_nothing(name):
    """What was decided at the last observation of an episode never happened.

    Its action and extras may be anything, even such that the ratio overflows.
    """
    m = made(name)
    t = concatenate(m.trajectories)
    dummy = np.zeros(t.timestep.first.shape, bool)
    dummy[:-1] = t.timestep.first[1:]
    assert dummy.any()

    def scrambled(x, value):
        return np.where(dummy.reshape(dummy.shape + (1,) * (x.ndim - 2)), value, x).astype(x.dtype)

    anything = {"log_prob": -500.0, "probability": 0.0}
    extras = {
        k: x if k == "core" else scrambled(x, anything.get(k, 0.7)) for k, x in t.extras.items()
    }
    other = t._replace(action=scrambled(t.action, 0), extras=extras)
    assert differs(other.extras, t.extras)
    of = m.gradients or (lambda state, batch: m.learn(state, batch)[1:])
    before, after = of(m.state, Batch(t)), of(m.state, Batch(other))
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert np.isfinite(b).all()
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@every_variant
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(name):
    m = made(name)
    t = m.trajectories[0]
    reward = t.timestep.reward.copy()
    reward[1:][~t.timestep.first[1:]] = np.nan
    bad = Batch(t._replace(timestep=t.timestep._replace(reward=reward)))
    state, metrics, _ = m.learn(m.state, bad)
    assert not np.isfinite(metrics["gradient_norm"])
    equal(state.params, m.state.params)
    equal(state.opt_state, m.state.opt_state)
    assert state.skipped == 1
    assert differs(m.learn(state, Batch(t))[0].params, m.state.params)
    assert m.learn(state, Batch(t))[0].skipped == 1


@every_variant
def test_evaluation_does_not_explore(name):
    m = made(name)
    v = VARIANTS[name]
    ids = np.arange(NUM_ENVS)
    greedy = m.agent.initial_carry(KEY, ids, NUM_ENVS, True)
    behaviour = m.agent.behaviour(m.state)
    row = jax.tree.map(lambda x: x[0], m.trajectories[0].timestep)

    def act(carry, count):
        return jit_act(m.agent.act, behaviour, carry, row, KEY, np.uint32(count))[0]

    actions = [act(greedy, i) for i in range(5)]
    assert not any(differs(actions[0], a) for a in actions)
    exploring = m.agent.initial_carry(KEY, ids, NUM_ENVS, False)
    actions = [act(exploring, i) for i in range(20)]
    assert any(differs(actions[0], a) for a in actions)
    if v.spec.has_action_mask:
        for action in actions:
            assert row.action_mask[ids, np.asarray(action)].all()


# The actor.


@every_variant
def test_row_T_is_executed_next_and_is_row_0_of_the_next_unroll(name):
    m = made(name)
    executed = []
    for before, after in zip(m.trajectories, m.trajectories[1:], strict=False):
        last, first = (
            jax.tree.map(lambda x, i=i: x[i], (t.timestep, t.action, t.extras))
            for t, i in ((before, -1), (after, 0))
        )
        equal(last, first)
    for t in m.trajectories:
        executed.extend(t.action[:-1])
        assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(t))
    equal(executed, m.env.actions)
    assert [t.version[0] for t in m.trajectories] == [0, 1, 2, 3]


def test_rows_are_copies():
    """The environment reuses its arrays: rows must not all show the last one."""
    t = made("mlp").trajectories[0]
    assert len({row.tobytes() for row in t.timestep.observation}) == UNROLL + 1


def test_the_stored_core_is_the_one_before_row_0():
    """Unrolling act from it over the stored rows repeats the log-probabilities."""
    m = made("lstm")
    behaviour = m.agent.behaviour(m.state)
    t = m.trajectories[2]
    again = player(m.agent, NUM_ENVS)
    again.carry, again.count = again.carry._replace(core=t.core), np.uint32(2 * UNROLL)
    for i in range(UNROLL):
        row = again.act(behaviour, jax.tree.map(lambda x, i=i: x[i], t.timestep))
        equal(row.action, t.action[i])
        equal(row.extras["log_prob"], t.extras["log_prob"][i])
    equal(again.carry.core, m.trajectories[3].core)


# IMPALA by its formulas.


TABULAR = variant(spaces.Discrete(3), spaces.Discrete(2), hidden_sizes=(), reward_clip=0.0)


def tabular_batch(rng: np.random.Generator, steps=5, batch=4) -> Batch:
    shape = (steps + 1, batch)
    first = rng.uniform(size=shape) < 0.2
    terminated, truncated = (rng.uniform(size=shape) < 0.2 for _ in range(2))
    timestep = TimeStep(
        rng.integers(0, 3, shape),
        rng.normal(size=shape).astype(np.float32),
        terminated,
        truncated,
        first,
        np.zeros(shape, np.int32),
    )
    action = rng.integers(0, 2, shape).astype(np.int32)
    extras = {"log_prob": np.log(rng.uniform(0.2, 0.9, shape)).astype(np.float32)}
    agent = agents.make("impala", TABULAR.config, TABULAR.spec, horizon=HORIZON)
    core = agent.initial_carry(KEY, np.arange(batch), batch, False).core
    return Batch(Trajectory(timestep, action, extras, core, np.zeros(batch, np.int32)))


def test_the_gradient_is_the_papers():
    """Section 4.2 for a softmax over a table: ρ ∇log π (r + γ v' − V), ½ · ½ (v − V)², entropy."""
    agent = agents.make("impala", TABULAR.config, TABULAR.spec, horizon=HORIZON)
    state = spread(jax.jit(agent.init)(KEY))
    batch = tabular_batch(np.random.default_rng(0))
    got, aux = jax.jit(agent.halves.gradients)(state, batch)
    p = jax.tree.map(np.float64, state.params["params"])
    timestep, action, extras = batch.trajectory[:3]
    seen = np.eye(3)[timestep.observation]
    pi = reference.softmax(seen @ p["policy"]["kernel"] + p["policy"]["bias"])
    values = (seen @ p["value"]["kernel"] + p["value"]["bias"])[..., 0]
    d_logits, d_value, total = np.zeros_like(pi), np.zeros_like(values), 0.0
    columns = range(values.shape[1])
    for b in columns:
        weight = 1.0 - timestep.first[1:, b]
        ended = timestep.terminated[1:, b] | timestep.truncated[1:, b]
        steps = np.arange(len(weight))
        taken = pi[steps, b, action[:-1, b]]
        vtrace = reference.vtrace(
            values[:, b],
            timestep.reward[1:, b] * weight,
            0.99 * (1.0 - timestep.terminated[1:, b]),
            (1.0 - ended) * weight,
            taken / np.exp(extras["log_prob"][:-1, b]) * weight,
        )
        for t in steps:
            if not weight[t]:
                continue
            total += 1
            q = pi[t, b]
            entropy = -(q * np.log(q)).sum()
            d_logits[t, b] -= vtrace.advantages[t] * (np.eye(2)[action[t, b]] - q)
            d_logits[t, b] -= 0.01 * (-q * (np.log(q) + entropy))
            d_value[t, b] += 0.5 * (values[t, b] - vtrace.targets[t])
    expected = {
        "policy": {
            "kernel": np.einsum("tbs,tba->sa", seen, d_logits),
            "bias": d_logits.sum((0, 1)),
        },
        "value": {
            "kernel": np.einsum("tbs,tb->s", seen, d_value)[:, None],
            "bias": d_value.sum(keepdims=True)[0],
        },
    }
    assert aux["steps"] == total
    for head, leaves in expected.items():
        for leaf, value in leaves.items():
            np.testing.assert_allclose(got["params"][head][leaf], value, rtol=1e-4, atol=1e-5)


@functools.cache
def tabular(optimiser="rmsprop", anneal=False, **settings):
    config = dataclasses.replace(TABULAR.config, optimiser=optimiser, anneal=anneal, **settings)
    agent = agents.make("impala", config, TABULAR.spec, horizon=HORIZON)
    return agent, jax.jit(agent.init)(KEY), jax.jit(agent.halves.apply)


def gradient_like(params, value):
    return jax.tree.map(lambda p: jnp.full_like(p, value), params)


def test_rmsprop_is_tensorflows():
    """ε inside the root, mean square from 1: the paper's ε = 0.01 means nothing else."""
    _, before, apply = tabular()
    state, gradients = before, [0.3, -2.0]
    for g in gradients:
        aux = {"steps": jnp.float32(10), "fresh": jnp.float32(10)}
        state, _, _ = apply(state, gradient_like(state.params, g), aux)
    for old, new in zip(jax.tree.leaves(before.params), jax.tree.leaves(state.params), strict=True):
        expected = [
            reference.tf_rmsprop(x, gradients, learning_rate=6e-4, decay=0.99, epsilon=0.01)
            for x in np.float64(old).ravel()
        ]
        np.testing.assert_allclose(np.ravel(new - old), expected - np.ravel(old), rtol=2e-3)
    assert state.steps == 20


def test_gradients_are_clipped_by_their_global_norm():
    _, state, apply = tabular()
    sizes = sum(x.size for x in jax.tree.leaves(state.params))
    after, _, metrics = apply(
        state, gradient_like(state.params, 1e3), {"steps": jnp.float32(1), "fresh": jnp.float32(1)}
    )
    np.testing.assert_allclose(metrics["gradient_norm"], 1e3 * np.sqrt(sizes), rtol=1e-5)
    clipped = gradient_like(state.params, 40 / np.sqrt(sizes))
    expected, _, _ = apply(state, clipped, {"steps": jnp.float32(1), "fresh": jnp.float32(1)})
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=1e-5)


def test_the_learning_rate_anneals_to_zero_at_the_horizon():
    _, state, apply = tabular(anneal=True)
    gradients, aux = (
        gradient_like(state.params, 1.0),
        {"steps": jnp.float32(10), "fresh": jnp.float32(10)},
    )
    for steps, share in ((0, 1.0), (HORIZON // 4, 0.75), (HORIZON, 0.0), (2 * HORIZON, 0.0)):
        after, _, metrics = apply(state._replace(steps=jnp.uint32(steps)), gradients, aux)
        np.testing.assert_allclose(metrics["learning_rate"], 6e-4 * share, rtol=1e-5, atol=1e-12)
        assert differs(after.params, state.params) == (share > 0)
        assert after.steps == steps + 10
    assert apply._cache_size() == 1


@pytest.mark.parametrize("name", ["mlp", "gaussian"])
def test_hyperparameters_are_arrays(name):
    """Each changes the update, and none compiles it again: what PBT and sweeps need."""
    m = made(name)
    batch = Batch(m.trajectories[0])
    # Behaviour that the ratios' truncation notices.
    log_prob = batch.trajectory.extras["log_prob"] + np.linspace(-1, 1, NUM_ENVS, dtype=np.float32)
    extras = batch.trajectory.extras | {"log_prob": log_prob}
    batch = Batch(batch.trajectory._replace(extras=extras))
    state = m.state._replace(steps=jnp.uint32(HORIZON // 2))
    learn = jax.jit(lambda *args: m.agent.learn(*args))  # with a cache of its own
    plain, _, _ = learn(state, batch)
    unused = {"rmsprop_decay"} if name == "gaussian" else set()
    values = {"max_gradient_norm": 1e-3, "horizon": HORIZON * 2.0, "c_bar": 0.3, "rho_bar": 0.5}
    values |= {"trace_leak": 0.3}
    for hyper, value in state.hyper.items():
        assert value.shape == ()
        assert value.dtype == jnp.float32
        new = jnp.float32(values.get(hyper, 0.5 * float(value)))
        changed, _, _ = learn(state._replace(hyper=state.hyper | {hyper: new}), batch)
        assert differs(changed.params, plain.params) == (hyper not in unused), hyper
    assert learn._cache_size() == 1


def test_losses_summed_and_averaged():
    """The sum is the mean times the number of transitions; dummies are in neither."""
    batch = tabular_batch(np.random.default_rng(1))
    (total, _, summed), (mean, _, averaged) = (
        jax.jit(agent.learn)(state, batch)
        for agent, state, _ in (tabular(), tabular(loss_reduction="mean"))
    )
    count = np.sum(~batch.trajectory.timestep.first[1:])
    assert total.steps == mean.steps == summed["steps"] == averaged["steps"] == count
    np.testing.assert_allclose(
        summed["gradient_norm"], averaged["gradient_norm"] * count, rtol=1e-5
    )
    assert differs(total.params, mean.params)
    # Leaf by leaf: the mean's update is that of the summed gradient divided by the count.
    agent, state, apply = tabular()
    grads, aux = jax.jit(agent.halves.gradients)(state, batch)
    expected, _, _ = apply(state, jax.tree.map(lambda g: g / count, grads), aux)
    for a, b in zip(jax.tree.leaves(mean.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)
    for name in ("loss/value", "importance_ratio", "value_mean"):  # of a transition, in both
        np.testing.assert_allclose(summed[name], averaged[name], rtol=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_batch_of_dummies_teaches_nothing(reduction):
    batch = tabular_batch(np.random.default_rng(1))
    timestep = batch.trajectory.timestep
    timestep = timestep._replace(first=np.ones_like(timestep.first))
    agent, state, _ = tabular(loss_reduction=reduction)
    after, _, metrics = jax.jit(agent.learn)(
        state, Batch(batch.trajectory._replace(timestep=timestep))
    )
    equal(after.params, state.params)
    assert after.steps == after.skipped == 0
    for name in ("loss/policy", "loss/value", "loss/entropy", "importance_ratio", "steps"):
        assert metrics[name] == 0, name


@with_gradients
def test_gradients_of_the_parts_of_a_batch_add_up(name):
    m = made(name)
    whole = m.trajectories[0]
    parts = [columns(whole, 0, 1), columns(whole, 1, NUM_ENVS)]
    # Some distributions sample their entropy, of other numbers in a part than in the whole.
    hyper = m.state.hyper | {"entropy_cost": jnp.float32(0.0)}
    state = m.state._replace(hyper=hyper)
    sums = [m.gradients(state, Batch(t)) for t in (whole, *parts)]
    for _, aux in sums:
        del aux["loss/entropy"]
    for a, b, c in zip(*map(jax.tree.leaves, sums), strict=True):
        np.testing.assert_allclose(b + c, a, rtol=1e-3, atol=1e-4)


def test_rewards_are_scaled_then_clipped():
    """And only where they are learnt from: trajectories hold raw rewards."""
    batch = tabular_batch(np.random.default_rng(2))
    raw = batch.trajectory.timestep.reward

    def gradients(reward, **settings):
        agent, state, _ = tabular(**settings)
        timestep = batch.trajectory.timestep._replace(reward=reward)
        return jax.jit(agent.halves.gradients)(
            state, Batch(batch.trajectory._replace(timestep=timestep))
        )

    expected = gradients(np.clip(raw * 2, -0.5, 0.5))
    result = gradients(raw, reward_scale=2.0, reward_clip=0.5)
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
