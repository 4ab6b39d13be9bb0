"""What every agent promises, and IMPALA's update against its formulas (R2D2's: test_r2d2.py).

`VARIANTS` is the conformance table: add each new agent, and each kind of network or action that
takes another path through it.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from gymnasium import spaces

from examples import custom_agent
from pronk import agents, envs
from pronk.agents import impala, on_policy, r2d2, schedules, step
from pronk.agents.impala_config import Config
from pronk.config.registry import agent_module
from pronk.runtime.actor import Actor, Player, act_and_keep, act_in_place
from pronk.runtime.columns import columns
from pronk.runtime.learner import compiled
from pronk.storage.checkpoint import Checkpointer
from pronk.types import Agent, Batch, EnvSpec, Fresh, LearnerState, Replayed, TimeStep, Trajectory

UNROLL, NUM_ENVS, HORIZON = 6, 3, 10_000
KEY = jax.random.key(0)

SMALL = {"hidden_sizes": (8,), "recurrent_units": 4, "unroll": UNROLL, "batch_size": NUM_ENVS}
VECTOR = spaces.Box(-1, 1, (3,))
DISCRETE = spaces.Discrete(3)
BOX = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, np.inf], np.float32))
BOUNDED = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 5.0], np.float32))
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


REGRESSED = {"value_hidden_sizes": (6,), "value_minibatch_size": UNROLL, "value_passes": 2}
ON_POLICY = {
    "ppo": {"value_hidden_sizes": (6,), "minibatch_size": UNROLL, "passes": 2},
    **dict.fromkeys(("reinforce", "npg", "tnpg", "trpo"), REGRESSED),
    "rwr": REGRESSED | {"fit_iterations": 3},
    "reps": {"fit_iterations": 3},
}


# Those that learn action values of sequences.
OF_SEQUENCES = {
    "r2d2": REPLAYED,
    "ngu": REPLAYED
    | {"mixtures": 3, "memory_size": 7, "neighbours": 3, "intrinsic_steps": 2, "lifelong_size": 4},
}
OF_SEQUENCES["agent57"] = OF_SEQUENCES["ngu"] | {"bandit_window": 4}


# Those that search parameters by whole episodes: nothing is a gradient, and an episode's actions
# depend on what its environment keeps from one to the next.
EVOLUTION = {"cem": {"population_size": 2, "elite_fraction": 0.5}, "cma_es": {"population_size": 2}}


MODEL = {
    "unroll_steps": 2,
    "td_steps": UNROLL - 2,
    "simulations": 3,
    "model_units": 6,
    "planes": 0,
    "blocks": 0,
    "support_limit": 5.0,
    "support_bins": 11,
    "optimiser": "adam",
}


def variant(observation, action, mask=False, agent="impala", tasks=(), **settings) -> Variant:
    references = (None,) * len(tasks)
    spec = EnvSpec(
        "test", observation, action, has_action_mask=mask, tasks=tasks, references=references
    )
    small = SMALL | (ON_POLICY | EVOLUTION | OF_SEQUENCES | {"muzero": MODEL}).get(agent, {})
    config = agent_module(agent).config
    known = {f.name for f in dataclasses.fields(config)}
    small = {k: v for k, v in small.items() if k in known}
    return Variant(agent, config(**(small | settings)), spec)


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
    "ngu": variant(VECTOR, DISCRETE, agent="ngu", recurrent_core="lstm", target_every=2),
    "ngu_feed_forward": variant(
        MIXED,
        DISCRETE,
        agent="ngu",
        recurrent_core="none",
        burn_in=0,
        sequence_length=UNROLL,
        loss_reduction="mean",
        embedding="random",
    ),
    "ngu_masked": variant(
        VECTOR,
        spaces.Discrete(4, start=1),
        mask=True,
        agent="ngu",
        recurrent_core="gru",
        episodic=False,
        mixtures=2,
    ),
    "ngu_pixels": variant(
        PIXELS, DISCRETE, agent="ngu", torso="shallow", lifelong=False, mixtures=1
    ),
    "agent57": variant(VECTOR, DISCRETE, agent="agent57", recurrent_core="lstm", target_every=2),
    "agent57_feed_forward": variant(
        MIXED,
        DISCRETE,
        agent="agent57",
        recurrent_core="none",
        burn_in=0,
        sequence_length=UNROLL,
        loss_reduction="mean",
        mixing="identity",
        rescaling="none",
    ),
    "agent57_masked": variant(
        VECTOR,
        spaces.Discrete(4, start=1),
        mask=True,
        agent="agent57",
        recurrent_core="gru",
        rescaling="log",
        lifelong=False,
        mixtures=10,
        bandit_window=10,
    ),
    "r2d2_bandit": variant(
        PIXELS, DISCRETE, agent="agent57", torso="shallow", episodic=False, lifelong=False
    ),
    "muzero": variant(MIXED, DISCRETE, agent="muzero", target_every=2, temperature_moves=2),
    "muzero_gumbel": variant(
        VECTOR,
        spaces.Discrete(4, start=1),
        mask=True,
        agent="muzero",
        search="gumbel",
        reanalyze=0.5,
        rescaling="log",
        max_depth=2,
    ),
    "muzero_pixels": variant(
        PIXELS,
        DISCRETE,
        agent="muzero",
        planes=4,
        blocks=1,
        consistency=2.0,
        optimiser="sgd",
        rescaling="none",
    ),
    "ddpg": variant(VECTOR, BOUNDED, agent="ddpg"),
    "ddpg_pixels": variant(
        PIXELS,
        spaces.Box(0, 1, (1,)),
        agent="ddpg",
        torso="shallow",
        noise_correlation=0.0,
        critic_weight_decay=0.0,
        last_scale=0.0,
        reward_clip=1.0,
    ),
    "sac": variant(VECTOR, BOUNDED, agent="sac"),
    "sac_mixed": variant(
        MIXED, spaces.Box(-2, 2, (1,)), agent="sac", tasks=("a", "b"), max_gradient_norm=0.5
    ),
    "reinforce": variant(VECTOR, DISCRETE, agent="reinforce"),
    "reinforce_complete": variant(
        MIXED, BOX, agent="reinforce", episodes="complete", baseline="linear"
    ),
    "rwr": variant(MIXED, spaces.MultiDiscrete([2, 3]), agent="rwr"),
    "rwr_lstm": variant(
        VECTOR,
        spaces.Discrete(4, start=1),
        mask=True,
        agent="rwr",
        recurrent_core="lstm",
        baseline="network",
        weighting="exponential",
    ),
    "rwr_pixels": variant(PIXELS, BOX, agent="rwr", torso="shallow", baseline="network"),
    "reps": variant(MIXED, BOX, agent="reps"),
    "reps_masked": variant(
        VECTOR,
        spaces.Discrete(4, start=1),
        mask=True,
        agent="reps",
        recurrent_core="gru",
        discount=0.9,
    ),
    "npg": variant(VECTOR, spaces.MultiDiscrete([2, 3]), agent="npg"),
    "tnpg": variant(VECTOR, BOX, agent="tnpg", state_dependent_std=True, damping=1e-3),
    "tnpg_masked": variant(
        VECTOR, spaces.Discrete(4, start=1), mask=True, agent="tnpg", reject=False, fisher_every=2
    ),
    "trpo": variant(MIXED, DISCRETE, agent="trpo", value_normalisation="running"),
    "trpo_lstm": variant(
        VECTOR, spaces.Box(-2, 2, (2,)), agent="trpo", recurrent_core="lstm", squash_actions=True
    ),
    "trpo_linear": variant(VECTOR, BOX, agent="trpo", baseline="linear"),
    "trpo_pixels": variant(PIXELS, DISCRETE, agent="trpo", torso="shallow"),
    "ppo": variant(VECTOR, BOX, agent="ppo"),
    "ppo_study": variant(
        MIXED,
        spaces.Box(-2, 2, (2,)),
        agent="ppo",
        squash_actions=True,
        reciprocal_clip=True,
        recompute_advantages=True,
        advantage_normalisation="none",
        value_normalisation="running",
        reward_normalisation=False,
    ),
    "ppo_lstm": variant(
        VECTOR,
        spaces.Discrete(4, start=1),
        mask=True,
        agent="ppo",
        recurrent_core="lstm",
        objective="adaptive-kl",
        value_clip=0.2,
        stop_early=2.0,
    ),
    "ppo_shared": variant(
        PIXELS,
        spaces.MultiDiscrete([2, 3]),
        agent="ppo",
        separate_value=False,
        objective="fixed-kl",
        tasks=("a", "b"),
        advantage_normalisation="batch",
        entropy_cost=0.01,
    ),
    "cem": variant(MIXED, BOX, agent="cem", discount=0.9),
    "cem_masked": variant(
        VECTOR, spaces.Discrete(4, start=1), mask=True, agent="cem", recurrent_core="lstm"
    ),
    "cem_sampled": variant(VECTOR, BOX, agent="cem", sampled_actions=True),
    "cem_pixels": variant(PIXELS, DISCRETE, agent="cem", torso="shallow", extra_std=0.0),
    "cma_es": variant(VECTOR, spaces.MultiDiscrete([2, 3]), agent="cma_es"),
    "cma_es_separable": variant(
        VECTOR,
        spaces.Box(-2, 2, (2,)),
        agent="cma_es",
        squash_actions=True,
        recurrent_core="gru",
        covariance="separable",
    ),
    # An agent from outside the package.
    "example": Variant(
        "examples.custom_agent",
        custom_agent.Config(unroll=UNROLL, batch_size=NUM_ENVS, n_steps=2, hidden_sizes=(8,)),
        EnvSpec("test", VECTOR, BOX),
    ),
}


# Those of the default run: each kind of agent and, of IMPALA, each kind of network. The tests of a
# variant, which share what they compile, are all in one run.
DEFAULT_RUN = {
    *("mlp", "gaussian", "popart", "pixel_control", "example"),
    *("r2d2", "ngu", "agent57", "muzero", "ddpg", "sac", "cem", "cma_es"),
    *("reinforce_complete", "rwr", "reps", "trpo", "ppo", "ppo_lstm"),
}


def variants(*names: str) -> Any:
    """Runs a test for each of these variants; all tests of a variant run in one worker, which
    compiles its functions once (conftest.py)."""
    further = pytest.mark.extended
    params = [pytest.param(name, marks=() if name in DEFAULT_RUN else further) for name in names]
    return pytest.mark.parametrize("name", params)


every_variant = variants(*VARIANTS)
every_gradient = variants(*(k for k, v in VARIANTS.items() if v.agent not in EVOLUTION))
every_impala = variants(*(k for k, v in VARIANTS.items() if v.agent == "impala"))
every_on_policy = variants(*(k for k, v in VARIANTS.items() if v.agent in ON_POLICY))
every_r2d2 = variants(*(k for k, v in VARIANTS.items() if v.agent == "r2d2"))
# Those whose update is one gradient step, of sums over transitions.
with_gradients = variants(
    *(
        k
        for k, v in VARIANTS.items()
        if v.agent not in (*OF_SEQUENCES, "muzero", "ddpg", "sac", *ON_POLICY, *EVOLUTION)
        and getattr(v.config, "value_normalisation", "none") == "none"
    )
)


class RandomEnv:
    """Random observations with every kind of boundary: ends, restarts without an end before them,
    and episodes of one row. Reuses its arrays, as environments may."""

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
    on_policy = isinstance(agent.source, Fresh) and agent.source.on_policy
    return Actor(player(agent, env.num_envs), env, unroll=unroll, on_policy=on_policy)


class Made(NamedTuple):
    """An agent, a state whose policy is far from uniform, and trajectories that it acted."""

    agent: Agent
    state: LearnerState
    learn: Any  # `Agent.learn`, jitted
    trajectories: list[Trajectory]
    env: RandomEnv
    act_compilations: list[int]  # after each trajectory


def spread(state: LearnerState, seed: int = 0) -> LearnerState:
    """Parameters far from their first values, where the policy hardly depends on anything."""
    leaves, tree = jax.tree.flatten(state.params)
    rng = np.random.default_rng(seed)
    scales = [0.8 / np.sqrt(np.prod(x.shape[:-1]) or 1) for x in leaves]
    moved = [
        jnp.asarray(np.asarray(x) + np.float32(scale * rng.normal(size=x.shape)))
        for x, scale in zip(leaves, scales, strict=True)
    ]
    return state._replace(params=tree.unflatten(moved))


@functools.cache
def made(name: str) -> Made:
    v = VARIANTS[name]
    agent = agents.make(v.agent, v.config, v.spec, horizon=HORIZON)
    state = spread(jax.jit(agent.init)(KEY))
    env = RandomEnv(v.spec, NUM_ENVS)
    unroller = actor(agent, env)
    behaviour, trajectories, compilations = agent.behaviour(state), [], []
    for version in range(4):
        trajectories.append(unroller.unroll(behaviour, version).trajectory)
        compilations.append(act_in_place._cache_size())
    return Made(agent, state, jax.jit(agent.learn), trajectories, env, compilations)


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


def known(metrics):
    """Metrics without the mean returns, −∞, of mixtures of which no episode has ended yet."""
    return {k: x for k, x in metrics.items() if x != -np.inf or not k.startswith("mixture/return/")}


# The conformance table.


@every_variant
def test_pytrees_are_stable(name):
    """State and carry keep their structure, shapes and dtypes, weak types included."""
    m = made(name)
    batch = Batch(m.trajectories[0])
    after = jax.eval_shape(m.agent.learn, m.state, batch).state
    assert avals(after) == avals(m.state)
    assert not any(x.weak_type for x in jax.tree.leaves(jax.eval_shape(m.agent.init, KEY)))
    carry = m.agent.initial_carry(KEY, np.arange(NUM_ENVS), NUM_ENVS, False)
    row = jax.tree.map(lambda x: x[0], m.trajectories[0].timestep)
    action, later, extras = jax.eval_shape(m.agent.act, m.agent.behaviour(m.state), carry, row, KEY)
    assert avals(later) == avals(carry)
    assert all(x.shape[0] == NUM_ENVS for x in jax.tree.leaves((action, extras)))
    assert avals(m.trajectories[0].core) == avals(carry.core)


@every_variant
def test_learns_without_a_second_compilation(name):
    m = made(name)
    state, norms, compilations = m.state, [], []
    # Of whole episodes, one batch seldom has enough.
    evolves = VARIANTS[name].agent in EVOLUTION
    trajectories = m.trajectories[: 4 if evolves else 3]
    for trajectory in trajectories:
        state, metrics, _ = m.learn(state, Batch(trajectory))
        compilations.append(m.learn._cache_size())
        norms.append(float(metrics["gradient_norm"]))
        assert all(np.isfinite(x) for x in known(metrics).values())
        assert all(np.shape(x) == () for x in metrics.values())
    assert len(set(compilations)) == 1
    assert len(set(m.act_compilations)) == 1
    assert max(norms) > 0 if evolves else min(norms) > 0
    assert state.updates == len(trajectories)
    assert state.skipped == 0
    begin = 1 + getattr(VARIANTS[name].config, "burn_in", 0)
    end = begin + getattr(VARIANTS[name].config, "starts", UNROLL)
    weights = [1 - np.asarray(t.timestep.first[begin:end]) for t in trajectories]
    assert state.steps == np.sum(weights)
    assert differs(state.params, m.state.params)


@every_variant
def test_feedback_has_the_shapes_of_its_batch(name):
    """Priorities are one per column; the extras that it changes are some of the trajectory's."""
    m = made(name)
    trajectory = m.trajectories[0]
    feedback = jax.eval_shape(m.agent.learn, m.state, Batch(trajectory)).feedback
    source = m.agent.source
    prioritised = isinstance(source, Replayed) and source.sequences.priority_exponent > 0
    assert (feedback.priorities is not None) == prioritised
    if feedback.priorities is not None:
        assert avals(feedback.priorities) == ((NUM_ENVS,), jnp.float32)
    for key, value in (feedback.extras or {}).items():
        assert avals(value) == avals(trajectory.extras[key])


@every_impala
def test_the_importance_ratio_is_one_on_fresh_data(name):
    """In every transition, after boundaries of all kinds: act and learn agree."""
    m, v = made(name), VARIANTS[name]
    assert_on_policy(impala.build(v.config, v.spec, horizon=HORIZON), m.state, m.trajectories)


def assert_on_policy(agent: impala.Impala, state: LearnerState, trajectories) -> None:
    evaluate = jax.jit(agent.evaluate)
    weight = 0.0
    for trajectory in trajectories:
        outputs = evaluate(state.params, state.extra, state.hyper, Batch(trajectory))
        np.testing.assert_allclose(outputs.log_ratio, 0.0, atol=1e-5)
        real = 1.0 - trajectory.timestep.first[1:]
        np.testing.assert_array_equal(outputs.transitions.weight, real)
        weight += real.sum()
    assert weight > 0


@every_r2d2
def test_action_values_are_those_that_were_acted_on(name):
    """`act`, unrolled over the stored rows from the stored state, computes the values that `learn`
    computes for them after the burn-in, and the greedy slots take their maximum."""
    m, v = made(name), VARIANTS[name]
    agent = r2d2.build(v.config, v.spec)
    values: list[Any] = []

    class Recorded(r2d2.R2D2):
        def forward(self, *args):
            q, state = super().forward(*args)
            values.append(q[0])
            return q, state

    recorded = Recorded(**{f.name: getattr(agent, f.name) for f in dataclasses.fields(agent)})

    @jax.jit
    def act(*args):
        values.clear()
        return *recorded.act(*args), values[0]

    action_values = jax.jit(agent.action_values)
    start = agent.initial_carry(KEY, np.arange(NUM_ENVS), NUM_ENVS, True)
    for t in m.trajectories:
        core = t.core
        if not v.config.stored_state:
            core = core._replace(state=jax.tree.map(np.zeros_like, core.state))
        unrolled = []
        for i in range(UNROLL + 1):
            row = jax.tree.map(lambda x, i=i: x[i], t.timestep)
            carry = start._replace(core=core)
            action, carry, _, q = act(m.agent.behaviour(m.state), carry, row, KEY)
            np.testing.assert_array_equal(action, np.argmax(q, axis=-1))
            unrolled.append(q)
            taken = jax.nn.one_hot(t.action[i], agent.num_actions)
            core = carry.core._replace(last_action=taken)
        expected = action_values(m.state.params, Batch(t))
        np.testing.assert_allclose(
            np.stack(unrolled)[v.config.burn_in :], expected, rtol=1e-4, atol=1e-5
        )


@every_on_policy
def test_the_first_ratio_is_one(name):
    """Before the first gradient step, π is the policy that acted, after boundaries of all kinds,
    with standardised observations: acting and learning agree on every transition, row 0 included,
    and the divergence is 0."""
    m, v = made(name), VARIANTS[name]
    linear = getattr(v.config, "baseline", "") == "linear" or v.agent == "reps"
    shared = on_policy.make(v.config, v.spec, horizon=HORIZON, linear=linear)
    state = m.learn(
        m.state, Batch(m.trajectories[0])
    ).state  # the statistics are not the first ones
    unroller = actor(m.agent, RandomEnv(v.spec, NUM_ENVS, seed=1))
    unroller.unroll(m.agent.behaviour(m.state), 0)
    trajectory = unroller.unroll(m.agent.behaviour(state), 1).trajectory

    @jax.jit
    def ratio_and_kl(state, batch):
        data = shared.data(state.extra["statistics"], state.hyper, batch)
        model, samples = shared.model, data.samples
        output = model.forward(state.params, samples.rows, samples.last_action, samples.core)
        kl = model.distribution.kl(samples.policy, output.policy)
        return shared.log_ratio(samples, output.policy), kl * samples.weight

    log_ratio, kl = ratio_and_kl(state, Batch(trajectory))
    np.testing.assert_allclose(log_ratio, 0.0, atol=2e-5)
    np.testing.assert_allclose(kl, 0.0, atol=1e-6)
    old = m.learn(m.state, Batch(m.trajectories[1])).state
    assert np.abs(ratio_and_kl(old, Batch(trajectory))[0]).max() > 1e-3  # of another policy


class Masked(gym.Env):
    """Walks along a line and may not leave it; a forbidden action is an error."""

    observation_space = spaces.Dict({"position": spaces.Discrete(4)})
    action_space = spaces.Discrete(3, start=-1)

    def _observation(self):
        mask = np.array([self.position > 0, True, self.position < 3], np.int8)
        return {"position": self.position}, {"action_mask": mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.steps = int(self.np_random.integers(4)), 0
        return self._observation()

    def step(self, action):
        self.position += int(action)
        self.steps += 1
        assert 0 <= self.position < 4, "a masked action was taken"
        observation, info = self._observation()
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
    config = Config(**(SMALL | settings))
    agent = agents.make("impala", config, spec, horizon=HORIZON)
    state = spread(jax.jit(agent.init)(KEY))
    faults: dict[str, Any] = {} if str(env).startswith("pronk") else {"max_faults": 0}
    vector = envs.make(env, 2, seed=3, env_args=args, workers=0, **faults)
    unroller = actor(agent, vector, unroll=7)
    trajectories = [unroller.unroll(agent.behaviour(state), 0).trajectory for _ in range(3)]
    unroller.close()
    assert np.sum([t.timestep.first[1:] for t in trajectories]) > 2  # episodes did end
    assert_on_policy(impala.build(config, spec, horizon=HORIZON), state, trajectories)


@every_variant
def test_same_seed_same_result(name):
    m, v = made(name), VARIANTS[name]
    again = agents.make(v.agent, v.config, v.spec, horizon=HORIZON)
    state = spread(jax.jit(again.init)(KEY))
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
    state = m.learn(m.state, Batch(m.trajectories[0])).state
    restored = saved_and_restored(state, jax.jit(m.agent.init)(jax.random.key(5)), tmp_path)
    equal(restored, state)
    batch = Batch(m.trajectories[1])
    equal(m.learn(restored, batch), m.learn(state, batch))


def saved_and_restored(tree: Any, template: Any, directory: Path) -> Any:
    checkpointer = Checkpointer(directory)
    checkpointer.save(7, {"tree": tree}, {}, block=True)
    loaded = checkpointer.load()
    assert loaded is not None
    return loaded.restore("tree", template)


@every_variant
def test_a_restored_behaviour_plays_the_same_bits(name, tmp_path):
    """With nothing of the learner's state but `Agent.behaviour`, as an exported policy does."""
    m, v = made(name), VARIANTS[name]
    template = jax.eval_shape(lambda key: m.agent.behaviour(m.agent.init(key)), KEY)
    behaviour = saved_and_restored(m.agent.behaviour(m.state), template, tmp_path)
    unroller = actor(m.agent, RandomEnv(v.spec, NUM_ENVS))
    for version, expected in enumerate(m.trajectories[:2]):
        equal(unroller.unroll(behaviour, version).trajectory, expected)


OWN = ("updates", "steps", "skipped", "key")  # what a learner keeps, whatever it takes over


@every_variant
def test_adopt_takes_what_the_donor_has_learnt(name):
    """Behaviour and optimiser are the donor's, counters and key its own; the next update is the
    donor's where the key does not matter."""
    m = made(name)
    donor = m.learn(m.state, Batch(m.trajectories[0])).state
    own = spread(jax.jit(m.agent.init)(jax.random.key(5)), seed=1)
    own = own._replace(updates=jnp.int32(7), steps=jnp.uint32(8), skipped=jnp.int32(9))
    adopted = m.agent.adopt(own, donor)
    assert avals(adopted) == avals(own)
    for field in OWN:
        equal(getattr(adopted, field), getattr(own, field))
    equal(m.agent.behaviour(adopted), m.agent.behaviour(donor))
    equal(adopted.opt_state, donor.opt_state)
    assert differs(m.agent.behaviour(adopted), m.agent.behaviour(own))
    batch = Batch(m.trajectories[1])
    counted = {field: getattr(donor, field) for field in OWN}
    equal(m.learn(adopted._replace(**counted), batch), m.learn(donor, batch))


@every_variant
def test_warm_start_begins_with_a_behaviour(name):
    """The optimiser, hyperparameters, counters and key stay its own, and no two leaves share
    memory: the first update is donated the state."""
    m = made(name)
    behaviour = m.agent.behaviour(m.learn(m.state, Batch(m.trajectories[0])).state)
    own = jax.jit(m.agent.init)(jax.random.key(5))
    started = m.agent.warm_start(own, behaviour)
    assert avals(started) == avals(own)
    for field in (*OWN, "opt_state", "hyper"):
        equal(getattr(started, field), getattr(own, field))
    equal(m.agent.behaviour(started), behaviour)
    arrays = jax.tree.leaves((started.params, started.opt_state, started.extra))
    assert len({x.unsafe_buffer_pointer() for x in arrays}) == len(arrays)
    after, metrics, _ = m.learn(started, Batch(m.trajectories[1]))
    # The batch was acted by the behaviour before this one; evolution counts its own episodes only.
    assert differs(after.params, started.params) or VARIANTS[name].agent in EVOLUTION
    assert np.isfinite(metrics["gradient_norm"])


# Extras that say something of the observation, not of the decision: the last one of an episode
# counts.
OBSERVED = (
    *("intrinsic_reward", "alpha", "memory_filled", "mixture", "episode_return"),
    *("search_policy", "search_value"),
)


@every_variant
def test_the_dummy_transition_has_no_weight(name):
    """The action at the last observation of an episode is never executed.

    It and its extras may be anything, even such that the ratio overflows."""
    m = made(name)
    for t in m.trajectories:
        dummy = np.zeros(t.timestep.first.shape, bool)
        dummy[:-1] = t.timestep.first[1:]
        assert dummy.any()

        def scrambled(x, value, dummy=dummy):
            rows = dummy.reshape(dummy.shape + (1,) * (x.ndim - 2))
            return np.where(rows, value, x).astype(x.dtype)

        anything = {"log_prob": -500.0, "probability": 0.0}
        extras = {
            k: x if k in OBSERVED else scrambled(x, anything.get(k, 0.7))
            for k, x in t.extras.items()
        }
        other = t._replace(action=scrambled(t.action, 0), extras=extras)
        assert differs(other.extras, t.extras)
        before, after = (m.learn(m.state, Batch(x)) for x in (t, other))
        for field in ("params", "opt_state", "extra"):
            close(getattr(before.state, field), getattr(after.state, field))
        seen = known(before.metrics), known(after.metrics)
        close((seen[0], before.feedback), (seen[1], after.feedback))


def close(a, b) -> None:
    """Equal but for rounding, and finite."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.isfinite(y).all()
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@every_gradient
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
    after = m.learn(state, Batch(t)).state
    assert differs(after.params, m.state.params)
    assert after.skipped == 1


@every_variant
def test_evaluation_does_not_explore(name):
    m = made(name)
    v = VARIANTS[name]
    ids = np.arange(NUM_ENVS)
    behaviour = m.agent.behaviour(m.state)
    row = jax.tree.map(lambda x: x[0], m.trajectories[0].timestep)

    def act(carry, count):
        return act_and_keep(m.agent.act, behaviour, *carry, row, KEY, np.uint32(count))[0]

    greedy = m.agent.initial_carry(KEY, ids, NUM_ENVS, True)
    actions = [act(greedy, i) for i in range(5)]
    assert not any(differs(actions[0], a) for a in actions)
    exploring = m.agent.initial_carry(KEY, ids, NUM_ENVS, False)
    # The members of a generation are other policies; the policies themselves may not explore.
    generations = v.agent in EVOLUTION
    actions = []
    for i in range(20):
        if generations:
            behaviour = behaviour._replace(key=behaviour.key + np.uint32(1))
        actions.append(act(exploring, i))
    assert any(differs(actions[0], a) for a in actions)
    if v.spec.has_action_mask:
        for action in actions:
            assert row.action_mask[ids, np.asarray(action)].all()


@every_variant
def test_private_state_may_be_donated(name):
    """What `act` returns does not depend on whether it may overwrite the private state."""
    m = made(name)
    carry = m.agent.initial_carry(KEY, np.arange(NUM_ENVS), NUM_ENVS, False)
    carry = jax.tree.map(jnp.array, carry)
    row = jax.tree.map(lambda x: x[0], m.trajectories[0].timestep)
    args = m.agent.act, m.agent.behaviour(m.state), *carry, row, KEY, np.uint32(0)
    kept = act_and_keep(*args)
    equal(act_in_place(*args), kept)
    assert not any(x.is_deleted() for x in jax.tree.leaves(carry.core))


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
        if m.agent.source == Fresh(on_policy=True):  # decided by the next unroll's behaviour
            equal(last[0], first[0])
            equal(last[1:], jax.tree.map(lambda x: x[-2], (before.action, before.extras)))
        else:
            equal(last, first)
    for t in m.trajectories:
        executed.extend(t.action[:-1])
        assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(t))
    equal(executed, m.env.actions)
    assert [t.version[0] for t in m.trajectories] == [0, 1, 2, 3]


@variants("mlp")
def test_rows_are_copies(name):
    """The environment reuses its arrays, and rows must not all be the last one."""
    t = made(name).trajectories[0]
    assert len({row.tobytes() for row in t.timestep.observation}) == UNROLL + 1


@every_gradient
def test_the_stored_core_is_the_one_before_row_0(name):
    """Acting again from it over the stored rows repeats actions and extras."""
    m = made(name)
    behaviour = m.agent.behaviour(m.state)
    *before, t = m.trajectories[:3]
    again = player(m.agent, NUM_ENVS)
    for earlier in before:  # what slots keep for themselves is not stored
        for i in range(UNROLL):
            again.act(behaviour, jax.tree.map(lambda x, i=i: x[i], earlier.timestep))
    again.carry, again.count = again.carry._replace(core=t.core), np.uint32(2 * UNROLL)
    for i in range(UNROLL):
        row = again.act(behaviour, jax.tree.map(lambda x, i=i: x[i], t.timestep))
        equal(row.action, t.action[i])
        equal(row.extras, jax.tree.map(lambda x, i=i: x[i], t.extras))
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


def test_the_loss_and_its_gradient_are_the_papers():
    """Section 4.2 for a softmax over a table: −ρ (r + γ v' − V) log π, ½ · ½ (v − V)², entropy."""
    agent = impala.build(TABULAR.config, TABULAR.spec, horizon=HORIZON)
    state = spread(jax.jit(agent.init)(KEY))
    batch = tabular_batch(np.random.default_rng(0))
    (objective, sums), gradient = jax.jit(jax.value_and_grad(agent.loss, has_aux=True))(
        state.params, state.extra, state.hyper, batch, KEY
    )
    p = jax.tree.map(np.float64, state.params["params"])
    timestep, action, extras = batch.trajectory[:3]
    seen = np.eye(3)[timestep.observation]
    pi = reference.softmax(seen @ p["policy"]["kernel"] + p["policy"]["bias"])
    values = (seen @ p["value"]["kernel"] + p["value"]["bias"])[..., 0]
    d_logits, d_value, steps_seen = np.zeros_like(pi), np.zeros_like(values), 0.0
    loss = dict.fromkeys(("policy", "value", "entropy"), 0.0)
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
            steps_seen += 1
            q = pi[t, b]
            entropy = -(q * np.log(q)).sum()
            loss["policy"] -= vtrace.advantages[t] * np.log(taken[t])
            loss["value"] += 0.5 * (values[t, b] - vtrace.targets[t]) ** 2
            loss["entropy"] += entropy
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
    assert sums["steps"] == steps_seen
    for term, value in loss.items():
        np.testing.assert_allclose(sums[f"loss/{term}"], value, rtol=1e-5)
    total = loss["policy"] + 0.5 * loss["value"] - 0.01 * loss["entropy"]
    np.testing.assert_allclose(objective, total, rtol=1e-5)
    for head, leaves in expected.items():
        for leaf, value in leaves.items():
            np.testing.assert_allclose(gradient["params"][head][leaf], value, rtol=1e-4, atol=1e-5)


@functools.cache
def tabular(optimiser="rmsprop", anneal=False, **settings):
    config = dataclasses.replace(TABULAR.config, optimiser=optimiser, anneal=anneal, **settings)
    agent = agents.make("impala", config, TABULAR.spec, horizon=HORIZON)
    return agent, jax.jit(agent.init)(KEY), jax.jit(agent.halves.apply)


def gradient_like(params, value):
    return jax.tree.map(lambda p: jnp.full_like(p, value), params)


def test_rmsprop_is_that_of_tensorflow():
    """ε is inside the root and the mean square starts at 1: the paper's ε = 0.01 is meant so."""
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
    after, metrics, _ = apply(
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
        after, metrics, _ = apply(state._replace(steps=jnp.uint32(steps)), gradients, aux)
        np.testing.assert_allclose(metrics["learning_rate"], 6e-4 * share, rtol=1e-5, atol=1e-12)
        assert differs(after.params, state.params) == (share > 0)
        assert after.steps == steps + 10
    assert apply._cache_size() == 1


def test_a_schedule_may_be_longer_than_32_bits_count():
    """The count would wrap, and the learning rate begin again."""
    hyper = {"optimiser_epsilon": 1e-5, "max_gradient_norm": 1.0, "learning_rate": 1.0}
    hyper = {name: jnp.float32(x) for name, x in (hyper | {"horizon": 2.0**34}).items()}
    params = {"w": jnp.ones(3)}
    state = step.new_state("adam", params, hyper, jax.random.key(0), horizon=2**34)
    state = state._replace(steps=jnp.array([2**32 - 20, 0], jnp.uint32))
    descend = jax.jit(functools.partial(step.descend, "adam"))
    for low, high in ((2**32 - 10, 0), (0, 1), (10, 1)):
        state, _ = descend(state, params, jnp.float32(0), jnp.float32(10))
        assert state.steps.tolist() == [low, high]
    progress = schedules.progress(state.steps, hyper["horizon"])
    np.testing.assert_allclose(progress, 0.25, rtol=1e-6)
    short = step.new_state("adam", params, hyper, jax.random.key(0), horizon=2**31 - 1)
    assert short.steps.shape == ()


@variants("mlp", "gaussian")
def test_hyperparameters_are_arrays(name):
    """Changing one changes the update and compiles nothing, as PBT and sweeps need."""
    m = made(name)
    batch = Batch(m.trajectories[0])
    # Behaviour that the ratios' truncation notices.
    log_prob = batch.trajectory.extras["log_prob"] + np.linspace(-1, 1, NUM_ENVS, dtype=np.float32)
    extras = batch.trajectory.extras | {"log_prob": log_prob}
    batch = Batch(batch.trajectory._replace(extras=extras))
    state = m.state._replace(steps=jnp.uint32(HORIZON // 2))
    plain, _, _ = m.learn(state, batch)
    compilations = m.learn._cache_size()
    unused = {"rmsprop_decay"} if name == "gaussian" else set()
    values = {"max_gradient_norm": 1e-3, "horizon": HORIZON * 2.0, "c_bar": 0.3, "rho_bar": 0.5}
    values |= {"trace_leak": 0.3}
    for hyper, value in state.hyper.items():
        assert value.shape == ()
        assert value.dtype == jnp.float32
        new = jnp.float32(values.get(hyper, 0.5 * float(value)))
        changed, _, _ = m.learn(state._replace(hyper=state.hyper | {hyper: new}), batch)
        assert differs(changed.params, plain.params) == (hyper not in unused), hyper
    assert m.learn._cache_size() == compilations


def test_losses_are_summed_or_averaged():
    """The sum is the mean times the number of transitions, without dummies."""
    batch = tabular_batch(np.random.default_rng(1))
    (total, summed, _), (mean, averaged, _) = (
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
def test_a_batch_of_dummies_changes_nothing(reduction):
    batch = tabular_batch(np.random.default_rng(1))
    timestep = batch.trajectory.timestep
    timestep = timestep._replace(first=np.ones_like(timestep.first))
    agent, state, _ = tabular(loss_reduction=reduction)
    after, metrics, _ = jax.jit(agent.learn)(
        state, Batch(batch.trajectory._replace(timestep=timestep))
    )
    equal(after.params, state.params)
    assert after.steps == after.skipped == 0
    for name in ("loss/policy", "loss/value", "loss/entropy", "importance_ratio", "steps"):
        assert metrics[name] == 0, name


@with_gradients
def test_gradients_of_the_parts_of_a_batch_add_up(name):
    m = made(name)
    gradients = compiled(m.agent).gradients
    whole = m.trajectories[0]
    parts = [columns(whole, i, i + 1) for i in range(NUM_ENVS)]
    # Some distributions sample their entropy, of other numbers in a part than in the whole.
    hyper = m.state.hyper | {"entropy_cost": jnp.float32(0.0)}
    state = m.state._replace(hyper=hyper)
    sums = [gradients(state, Batch(t)) for t in (whole, *parts)]
    for _, reported in sums:
        del reported["loss/entropy"]
    for a, *rest in zip(*map(jax.tree.leaves, sums), strict=True):
        np.testing.assert_allclose(sum(rest), a, rtol=1e-3, atol=1e-4)


def test_rewards_are_scaled_then_clipped():
    """In the update only: trajectories hold raw rewards."""
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
