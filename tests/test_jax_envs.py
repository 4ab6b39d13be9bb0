"""Environments written in JAX: autoreset, statistics, exact continuation, and each one's rules."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import pronk.envs
from pronk.envs import (
    acrobot,
    boards,
    breakout,
    cartpole,
    cartpole_force,
    catch,
    deep_sea,
    disco_maze,
    double_pendulum,
    key_door,
    memory_cue,
    mountain_car,
    orchard,
    patience,
    random_coin,
    space_invaders,
)
from pronk.envs.jax_env import JaxEnv, JaxVectorEnv, Slots, advance, start
from pronk.errors import UserError
from pronk.types import Array, EnvSpec, Episode, TimeStep


class DiceState(NamedTuple):
    total: Array
    t: Array


def dice(stochastic: bool = True) -> JaxEnv:
    """Ends at random or truncates after 7 steps, so slots fall out of step; reward = action.

    The observation is a dict that shows the draws of reset and step, and has two ranks.
    """
    box = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    space = spaces.Dict({"draw": spaces.Box(0, 1, (), np.float32), "state": box})

    def observe(state: DiceState, draw: Array) -> dict[str, Array]:
        t = state.t.astype(jnp.float32)
        return {"draw": draw, "state": jnp.stack([state.total, t, draw])}

    def reset(key):
        state = DiceState(jnp.float32(0), jnp.int32(0))
        return state, observe(state, jax.random.uniform(jax.random.split(key, 3)[1]))

    def step(state, action, key):
        draw = jax.random.uniform(key)
        reward = action.astype(jnp.float32)
        state = DiceState(state.total + reward, state.t + 1)
        return state, observe(state, draw), reward, draw < 0.2, state.t >= 7

    def action_mask(state):
        return jnp.arange(4) <= state.t

    spec = EnvSpec("Dice", space, spaces.Discrete(4), has_action_mask=True)
    return JaxEnv(spec, reset, step, action_mask, stochastic)


def compiled(env: JaxEnv):
    @jax.jit
    def run(key, env_ids, actions):
        begin = start(env, key, env_ids)

        def body(slots, action):
            following = advance(env, slots, action)
            return following[0], following

        _, rest = jax.lax.scan(body, begin[0], actions)
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), begin, rest)

    return run


RUNS = {}  # by identity; each holds its environment, so the ids stay taken


def unroll(env: JaxEnv, key, env_ids, actions) -> tuple[Slots, TimeStep]:
    """NumPy `[T + 1, B, ...]` of slots (keys left out) and timesteps, `actions` `[T, B]`."""
    run = RUNS.setdefault(id(env), compiled(env))
    slots, timestep = run(key, jnp.asarray(env_ids), actions)
    return jax.tree.map(np.asarray, (slots._replace(key=()), timestep))


def ends(timestep: TimeStep) -> np.ndarray:
    return np.logical_or(timestep.terminated, timestep.truncated)


def random_actions(env: JaxEnv, num_steps: int, num_envs: int, seed: int = 0) -> np.ndarray:
    space, rng, shape = env.spec.action_space, np.random.default_rng(seed), (num_steps, num_envs)
    if isinstance(space, spaces.Box):
        return rng.uniform(space.low, space.high, (*shape, *space.shape)).astype(np.float32)
    assert isinstance(space, spaces.Discrete)
    return rng.integers(space.n, size=shape, dtype=np.int32)


ENVS = {
    "dice": dice(),
    "catch": catch.make(rows=4, columns=3),
    "catch_delay": catch.make(rows=3, columns=3, delay=2),
    "deep_sea": deep_sea.make(size=4, unscaled_move_cost=0.5),  # its returns are exact in float32
    "memory_cue": memory_cue.make(delay=2, cues=3),
    "cartpole": cartpole.make(max_steps=12),
    "orchard": orchard.make(rows=3, columns=3, seen=1, lives=2, falls=4),
    "breakout": breakout.make(max_steps=12),
    "space_invaders": space_invaders.make(max_steps=12),
    "balance": cartpole_force.make_balance(max_steps=12),
    "swing_up": cartpole_force.make_swing_up(max_steps=12),
    "mountain_car": mountain_car.make(max_steps=12),
    "acrobot": acrobot.make(max_steps=12),
    "double_pendulum": double_pendulum.make(max_steps=12),
    "disco_maze": disco_maze.make(size=5, max_steps=12)._replace(score=None),  # sums of rewards
    "key_door": key_door.make(size=3, max_steps=24),
    "random_coin": random_coin.make(size=5, max_steps=8),
    "patience": patience.make(delay=5),
    "board": boards.make_connect_four(width=4, height=3, in_a_row=3)._replace(score=None),
}
every_env = pytest.mark.parametrize("env", ENVS.values(), ids=ENVS.keys())


@every_env
def test_next_step_autoreset(env: JaxEnv):
    actions = random_actions(env, 60, 5)
    _, timestep = unroll(env, jax.random.key(1), range(5), actions)
    ended = ends(timestep)
    assert timestep.first[0].all()
    assert not ended[0].any()
    np.testing.assert_array_equal(timestep.first[1:], ended[:-1])
    assert ended.sum() >= 5
    assert not timestep.reward[timestep.first].any()
    assert not ended[timestep.first].any()
    assert timestep.reward.dtype == np.float32
    assert timestep.terminated.dtype == timestep.truncated.dtype == timestep.first.dtype == bool
    assert timestep.task.dtype == np.int32
    assert (timestep.action_mask is not None) == env.spec.has_action_mask
    for t, b in np.ndindex(5, 5):
        row = jax.tree.map(lambda x, t=t, b=b: x[t, b], timestep.observation)
        assert env.spec.observation_space.contains(jax.tree.map(np.asarray, row))


@every_env
def test_the_action_of_the_dummy_step_is_ignored(env: JaxEnv):
    actions = random_actions(env, 60, 5)
    key = jax.random.key(2)
    _, timestep = unroll(env, key, range(5), actions)
    space: Any = env.spec.action_space
    continuous = isinstance(space, spaces.Box)
    others = -actions if continuous else (actions + 1) % space.n
    ignored = timestep.first[1:]
    changed = np.where(ignored[..., None] if continuous else ignored, others, actions)
    assert (changed != actions).any()
    _, again = unroll(env, key, range(5), changed)
    jax.tree.map(np.testing.assert_array_equal, timestep, again)


def test_the_new_episode_is_a_new_one():
    _, timestep = unroll(dice(), jax.random.key(3), range(8), np.zeros((60, 8), np.int32))
    draws = timestep.observation["draw"]
    # Every reset and every step draws its own number: nothing is shared between slots, episodes,
    # a reset that splits its key, and the steps.
    assert np.unique(draws).size > 0.999 * draws.size
    t = timestep.observation["state"][..., 1]
    assert not t[timestep.first].any()
    assert timestep.action_mask is not None
    allowed = timestep.action_mask.sum(-1)
    np.testing.assert_array_equal(allowed, np.minimum(t + 1, 4))


def test_deterministic_environments_get_no_step_keys():
    def makes_keys(env: JaxEnv) -> bool:
        slots, _ = start(env, jax.random.key(0), jnp.arange(2))
        jaxpr = jax.make_jaxpr(partial(advance, env))(slots, jnp.zeros(2, jnp.int32))
        always = [eqn for eqn in jaxpr.eqns if eqn.primitive.name != "cond"]
        assert len(always) < len(jaxpr.eqns)
        return any("random_fold_in" in str(eqn) for eqn in always)

    assert makes_keys(dice())
    assert not makes_keys(dice(stochastic=False))
    assert makes_keys(breakout.make())
    assert not makes_keys(breakout.make(sticky=0))


@every_env
def test_running_statistics(env: JaxEnv):
    actions = random_actions(env, 60, 5)
    slots, timestep = unroll(env, jax.random.key(4), range(5), actions)
    for b in range(5):
        total, length, episode = 0.0, 0, -1
        for t in range(61):
            if timestep.first[t, b]:
                total, length, episode = 0.0, 0, episode + 1
            else:
                total, length = total + timestep.reward[t, b], length + 1
            assert slots.episode_return[t, b] == pytest.approx(total, rel=1e-6)
            assert slots.episode_length[t, b] == length
            assert slots.episode[t, b] == episode
    np.testing.assert_array_equal(slots.done, ends(timestep))


@every_env
def test_a_slot_does_not_depend_on_its_batch(env: JaxEnv):
    """Neither on its place nor on the others, in as many slots: another number compiles again."""
    actions = random_actions(env, 60, 5)
    key = jax.random.key(5)
    _, together = unroll(env, key, range(10, 15), actions)
    picked = [3, 0]
    _, apart = unroll(env, key, [13, 10, 30, 31, 32], actions[:, [*picked, 2, 1, 4]])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[:, picked], b[:, :2], rtol=1e-5, atol=1e-6),
        together,
        apart,
    )


def test_a_population_is_a_vmap():
    env, actions = dice(), random_actions(dice(), 30, 3)

    def run(key):
        def body(slots, action):
            return advance(env, slots, action)

        slots, first = start(env, key, jnp.arange(3))
        return first, jax.lax.scan(body, slots, actions)[1]

    keys = jax.random.split(jax.random.key(6), 4)
    population = jax.jit(jax.vmap(run))(keys)
    for i in range(4):
        alone = jax.jit(run)(keys[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), population, alone)


@every_env
def test_advance_compiles_once(env: JaxEnv):
    """What it returns has the types of what it takes, those that are weak included."""
    slots, _ = jax.eval_shape(partial(start, env), jax.random.key(7), jnp.arange(3))
    following, _ = jax.eval_shape(partial(advance, env), slots, random_actions(env, 1, 3)[0])

    def types(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)

    assert types(following) == types(slots)


# The vector environment of the local runtime


@every_env
def test_vector_env_agrees_with_the_fused_functions(env: JaxEnv):
    actions = random_actions(env, 60, 5)
    _, expected = unroll(env, jax.random.key(8), range(20, 25), actions)
    envs = JaxVectorEnv(env, 5, seed=8, first_env_id=20)
    rows = [envs.reset()] + [envs.step(action) for action in actions]
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(rows))
    actual = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), actual, expected)

    reported, noted = envs.episodes(), episodes_of(actual, first_env_id=20)
    assert envs.episodes() == []
    expected_returns = [episode.episode_return for episode in noted]
    assert [episode.episode_return for episode in reported] == pytest.approx(expected_returns)
    assert [e._replace(episode_return=0) for e in reported] == [
        e._replace(episode_return=0) for e in noted
    ]
    envs.close()
    envs.close()


def test_equal_vectors_share_what_is_compiled():
    """Also of environments made anew, if their arguments are equal; spaces stay their own."""

    def made(**env_args):
        return pronk.envs.make("pronk/MemoryCue-v0", 2, seed=3, env_args=env_args)

    first, again, other = made(delay=2), made(delay=2), made(delay=3)
    assert first._advance is again._advance
    assert first._advance is not other._advance
    assert first.spec == again.spec
    assert first.spec.observation_space is not again.spec.observation_space
    action = np.zeros(2, np.int32)
    lengths = []
    for env in (first, other):
        env.reset()
        rows = [env.step(action) for _ in range(8)]
        lengths.append(int(np.argmax([ends(row)[0] for row in rows])))
    assert lengths[0] + 1 == lengths[1]


def episodes_of(timestep: TimeStep, first_env_id: int) -> list[Episode]:
    """What a person with a pencil would have noted."""
    found, total, length = [], np.zeros(timestep.first.shape[1]), np.zeros(timestep.first.shape[1])
    for t in range(len(timestep.first)):
        first = timestep.first[t]
        total = np.where(first, 0, total + timestep.reward[t])
        length = np.where(first, 0, length + 1)
        for b in np.flatnonzero(ends(timestep)[t]):
            found.append(Episode(float(total[b]), int(length[b]), first_env_id + int(b)))
    return found


@every_env
def test_restore_continues_exactly(env: JaxEnv):
    actions = random_actions(env, 60, 5)
    original = JaxVectorEnv(env, 5, seed=9)
    original.reset()
    for action in actions[:17]:
        original.step(action)
    saved = original.state()
    assert all(type(leaf) is np.ndarray for leaf in saved.values())
    copies = {name: leaf.copy() for name, leaf in saved.items()}
    original.episodes()

    restored = JaxVectorEnv(env, 5, seed=123)
    restored.reset()
    restored.restore(saved)
    for action in actions[17:]:
        a, b = original.step(action), restored.step(action)
        jax.tree.map(np.testing.assert_array_equal, a, b)
    finished = original.episodes()
    assert len(finished) >= 8
    assert finished == restored.episodes()
    jax.tree.map(np.testing.assert_array_equal, original.state(), restored.state())
    jax.tree.map(np.testing.assert_array_equal, saved, copies)


def test_reset_gives_up_unfinished_episodes():
    envs = JaxVectorEnv(catch.make(rows=4), 16, seed=1)
    once = np.array(envs.reset().observation)
    envs.step(np.ones(16, np.int64))
    again = envs.reset()
    assert again.first.all()
    assert (again.observation != once).any()
    assert (again.observation[:, 0].sum(-1) == 1).all()
    ended = [envs.step(np.ones(16, np.int64)).terminated.all() for _ in range(3)]
    assert ended == [False, False, True]
    assert {episode.length for episode in envs.episodes()} == {3}


def test_vector_env_refuses_what_cannot_work():
    with pytest.raises(UserError, match="num_envs"):
        JaxVectorEnv(catch.make(), 0, seed=0)
    two, three = (JaxVectorEnv(catch.make(), n, seed=0) for n in (2, 3))
    with pytest.raises(UserError, match="does not fit 3 environments 'pronk/Catch-v0'"):
        three.restore(two.state())
    with pytest.raises(UserError, match="does not fit"):
        JaxVectorEnv(cartpole.make(), 2, seed=0).restore(two.state())


# Catch


def test_catch_by_hand():
    env = catch.make(rows=3, columns=3)
    state = catch.State(jnp.int32(0), jnp.int32(2), jnp.int32(1))
    key = jax.random.key(0)
    state, board, reward, terminated, truncated = env.step(state, jnp.int32(2), key)
    np.testing.assert_array_equal(board, [[0, 0, 0], [0, 0, 1], [0, 0, 1]])
    assert (reward, terminated, truncated) == (0, False, False)
    right = env.step(state, jnp.int32(2), key)  # against the wall
    np.testing.assert_array_equal(right[1], [[0, 0, 0], [0, 0, 0], [0, 0, 1]])
    assert right[2:] == (1, True, False)
    left = env.step(state, jnp.int32(0), key)
    np.testing.assert_array_equal(left[1], [[0, 0, 0], [0, 0, 0], [0, 1, 1]])
    assert left[2:] == (-1, True, False)


def test_catch_is_won_by_following_the_ball():
    envs = JaxVectorEnv(catch.make(), 32, seed=2)
    timestep = envs.reset()
    np.testing.assert_array_equal(timestep.observation[:, -1].argmax(-1), 2)
    balls = timestep.observation[:, 0].argmax(-1)
    assert set(balls) == set(range(5))
    for _ in range(9):
        paddle = timestep.observation[:, -1].argmax(-1)
        timestep = envs.step(1 + np.sign(balls - paddle))
    assert [episode[:2] for episode in envs.episodes()] == [(1.0, 9)] * 32


def test_catch_by_chance():
    env = catch.make()
    actions = random_actions(env, 200, 256)
    _, timestep = unroll(env, jax.random.key(3), range(256), actions)
    # The ball is uniform over 5 columns and independent of the paddle: 2/5 - 1, ± 0.011.
    returns = timestep.reward[timestep.terminated]
    assert returns.size == 256 * 20
    assert set(returns) == {-1.0, 1.0}
    assert abs(returns.mean() + 0.6) < 0.045


def test_a_delayed_catch_by_hand():
    env = catch.make(rows=3, columns=3, delay=2)
    state, _ = env.reset(jax.random.key(0))
    state = state._replace(ball_row=jnp.int32(1), ball_column=jnp.int32(0))
    left, right, key = jnp.int32(0), jnp.int32(2), jax.random.key(0)

    def play(state, *actions):
        rows = []
        for action in actions:
            state, board, *rest = env.step(state, action, key)
            assert not board[:2].any()  # the ball has vanished
            assert env.render is not None
            picture = env.render(jax.tree.map(np.asarray, state))[::24, ::24]
            np.testing.assert_array_equal((picture != 30).any(-1), board)
            rows.append((int(board[2].argmax()), int(board[2].sum()), *map(float, rest)))
        return rows

    caught = play(state, left, right, right)
    assert caught == [(0, 1, 0, 0, 0), (1, 1, 0, 0, 0), (2, 1, 1, 1, 0)]
    missed = play(state, right, left, left)
    assert missed == [(2, 1, 0, 0, 0), (1, 1, 0, 0, 0), (0, 1, -1, 1, 0)]


@pytest.mark.parametrize("delay", [1, 4])
def test_a_delay_changes_only_when_catch_pays(delay: int):
    """The same balls, the same screens while they fall, the same rewards, but later."""
    actions = random_actions(catch.make(), 9 + delay, 64)
    _, plain = unroll(catch.make(), jax.random.key(6), range(64), actions[:9])
    _, late = unroll(catch.make(delay=delay), jax.random.key(6), range(64), actions)
    np.testing.assert_array_equal(late.observation[:9], plain.observation[:9])
    np.testing.assert_array_equal(late.observation[9:, :, :-1], 0)
    np.testing.assert_array_equal(late.observation[9:].sum((2, 3)), 1)
    np.testing.assert_array_equal(late.reward[-1], plain.reward[-1])
    assert set(plain.reward[-1]) == {-1, 1}
    assert not late.reward[:-1].any()
    np.testing.assert_array_equal(late.terminated.T, [np.arange(10 + delay) == 9 + delay] * 64)


# DeepSea

# What bsuite draws for a size of 5 and a mapping seed of 7: which action leads to the right.
BSUITE = [[0, 1, 0, 1, 1], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 1, 0], [1, 1, 0, 1, 1]]


@pytest.mark.parametrize("mapped", [True, False])
def test_deep_sea_dives_as_in_bsuite(mapped: bool):
    """Every way down, in two episodes: in the second the actions mean the same."""
    env = deep_sea.make(size=5, mapping_seed=7, randomize_actions=mapped)
    mapping = np.array(BSUITE) if mapped else np.ones((5, 5))
    ways = (np.arange(32) >> np.arange(5)[:, None]) & 1
    actions = np.concatenate([ways, ways[:1], ways]).astype(np.int32)
    _, timestep = unroll(env, jax.random.key(7), range(32), actions)
    for begin, b in ((begin, b) for begin in (0, 6) for b in range(32)):
        row, column, total = 0, 0, 0.0
        for action in ways[:, b]:
            screen = np.zeros((5, 5))
            screen[row, column] = 1
            np.testing.assert_array_equal(timestep.observation[begin + row, b], screen)
            reward = 0.0
            if action == mapping[row, column]:
                reward = (1 if (row, column) == (4, 4) else 0) - 0.01 / 5
                column = min(column + 1, 4)
            else:
                column = max(column - 1, 0)
            row, total = row + 1, total + reward
            assert timestep.reward[begin + row, b] == pytest.approx(reward)
            assert timestep.terminated[begin + row, b] == (row == 5)
        assert not timestep.observation[begin + 5, b].any()
    assert not timestep.truncated.any()


def test_deep_sea_pays_on_one_way_only():
    env = deep_sea.make()
    ways = ((np.arange(256) >> np.arange(8)[:, None]) & 1).astype(np.int32)
    slots, timestep = unroll(env, jax.random.key(8), range(256), ways)
    assert timestep.terminated[-1].all()
    returns = np.sort(slots.episode_return[-1])
    np.testing.assert_allclose(returns[-1], 0.99, rtol=1e-6)
    np.testing.assert_allclose(returns[0], -0.01 * 7 / 8, rtol=1e-6)
    assert (returns[:-1] <= 0).all()
    best = slots.episode_return[-1].argmax()
    np.testing.assert_array_equal(timestep.observation[:8, best], np.eye(8)[:, None] * np.eye(8))
    assert 0 < ways[:, best].sum() < 8  # neither action is always the right one


def test_deep_seas_mapping_is_its_seeds():
    key, actions = jax.random.key(9), random_actions(deep_sea.make(), 8, 64)
    a, again, other = (
        unroll(deep_sea.make(mapping_seed=seed), key, range(64), actions)[1].observation
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(a, again)
    assert (a != other).any()


# MemoryCue


@pytest.mark.parametrize("delay", [1, 5])
def test_memory_cue_shows_once_asks_once_and_pays_once(delay: int):
    env, num_envs = memory_cue.make(delay=delay, cues=3), 30
    actions = random_actions(env, delay + 1, num_envs)
    _, timestep = unroll(env, jax.random.key(4), range(num_envs), actions)
    shown, query = timestep.observation[..., :3], timestep.observation[..., 3]
    np.testing.assert_array_equal(shown[0].sum(-1), 1)
    assert not shown[1:].any()
    np.testing.assert_array_equal(query.all(1), np.arange(delay + 2) == delay)
    np.testing.assert_array_equal(query.any(1), np.arange(delay + 2) == delay)
    np.testing.assert_array_equal(timestep.terminated.all(1), np.arange(delay + 2) == delay + 1)
    assert not timestep.terminated[:-1].any()
    assert not timestep.truncated.any()
    assert not timestep.reward[:-1].any()
    cue = shown[0].argmax(-1)
    assert set(cue) == {0, 1, 2}
    np.testing.assert_array_equal(timestep.reward[-1], actions[-1] == cue)


# Orchard


def orchard_state(env, *, fruits, picker, t=0, lives=3):
    state, _ = env.reset(jax.random.key(0))
    return state._replace(
        t=jnp.int32(t), fruits=jnp.array(fruits), picker=jnp.int32(picker), lives=jnp.int32(lives)
    )


def test_orchard_by_hand():
    env = orchard.make(rows=3, columns=4, seen=1, lives=2, falls=2)
    key, right, stay = jax.random.key(0), jnp.int32(2), jnp.int32(1)
    state = orchard_state(env, fruits=[0, 3], picker=2, lives=2)
    state, board, reward, terminated, truncated = env.step(state, right, key)
    np.testing.assert_array_equal(board, [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])  # unseen
    assert (reward, terminated, truncated) == (0, False, False)
    state, board, reward, terminated, truncated = env.step(state, right, key)  # against the wall
    assert (reward, terminated, truncated) == (10, False, False)
    assert (int(state.lives), bool(state.lost)) == (2, False)
    assert sorted(board[0][board[0] > 0]) == [0.5, 1]  # the next two, and never in one place
    np.testing.assert_array_equal(board[2], [0, 0, 0, 1])
    common = state._replace(fruits=jnp.array([3, 0]), t=jnp.int32(3))
    state, _, *rest = env.step(common, stay, key)
    assert rest == [1, False, True]  # the last fall
    nothing = common._replace(fruits=jnp.array([1, 0]))
    state, _, *rest = env.step(nothing, stay, key)
    assert (*rest, bool(state.lost)) == (0, False, True, True)
    state, _, *rest = env.step(nothing._replace(lives=jnp.int32(1)), stay, key)
    assert (*rest, bool(state.lost)) == (0, True, False, True)  # the end, not the limit


def test_orchards_fruits_never_share_a_column():
    env = orchard.make(columns=3)
    state, _ = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 600))
    pairs, counts = np.unique(np.asarray(state.fruits), axis=0, return_counts=True)
    assert len(pairs) == 6
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert counts.min() > 60


@pytest.mark.parametrize("rows", [8, 2])
@pytest.mark.parametrize("life_loss", [True, "roll"])
def test_a_lost_life_ends_the_return(life_loss, rows):
    """The games are the same; only what is said of them differs, as with Atari's."""
    plain, lives = (orchard.make(rows=rows, life_loss=kind) for kind in (False, life_loss))
    key, actions = jax.random.key(1), random_actions(plain, 150, 16)
    slots, a = unroll(plain, key, range(16), actions)
    _, b = unroll(lives, key, range(16), actions)
    lost = slots.state.lost & ~a.first
    assert (lost & ~a.terminated).any()
    np.testing.assert_array_equal(a.observation, b.observation)
    np.testing.assert_array_equal(b.terminated, a.terminated | lost)
    np.testing.assert_array_equal(b.truncated, a.truncated)
    follows = np.concatenate([np.zeros_like(lost[:1]), lost[:-1]]) & (life_loss is True)
    np.testing.assert_array_equal(b.first, a.first | follows)
    np.testing.assert_array_equal(b.reward, np.where(b.first, 0, a.reward))
    # Where every step is a fall, there is a reward on the very next row.
    assert (b.first & (a.reward > 0)).any() == (life_loss is True and rows == 2)
    played = [JaxVectorEnv(env, 16, seed=4) for env in (plain, lives)]
    for env in played:
        env.reset()
        for action in actions:
            env.step(action)
    whole, counted = (env.episodes() for env in played)
    assert whole == counted
    assert len(whole) > 16


def test_a_lost_life_is_restored():
    env = orchard.make(lives=50, life_loss=True)
    a, b = (JaxVectorEnv(env, 8, seed=1) for _ in range(2))
    a.reset()
    while not a.step(np.ones(8, np.int32)).terminated.any():
        pass
    b.restore(a.state())
    after = a.step(np.ones(8, np.int32))
    assert after.first.any()
    jax.tree.map(np.testing.assert_array_equal, after, b.step(np.ones(8, np.int32)))


def test_a_lost_life_does_not_end_an_episode_in_evaluation():
    args = {"life_loss": True}
    scored = pronk.envs.make("pronk/Orchard-v0", 8, env_args=args, evaluate=True)
    taught = pronk.envs.make("pronk/Orchard-v0", 8, env_args=args)
    ends = {scored: 0, taught: 0}
    for env in ends:
        env.reset()
        for _ in range(60):
            ends[env] += int(env.step(np.ones(8, np.int32)).terminated.sum())
        assert len(env.episodes()) * (1 if env is scored else 2) <= ends[env]
    assert ends[scored] < ends[taught]


# CartPole


@pytest.mark.parametrize("max_steps", [500, 13])
def test_cartpole_is_gymnasiums(max_steps: int):
    reference = gym.make("CartPole-v1", max_episode_steps=max_steps)
    env = cartpole.make(max_steps=max_steps)
    assert env.spec.observation_space == reference.observation_space
    assert env.spec.action_space == reference.action_space
    step = jax.jit(env.step)
    outcomes = []
    for seed in range(12):
        observation, _ = reference.reset(seed=seed)
        state = cartpole.State(jnp.asarray(observation), jnp.int32(0))
        rng = np.random.default_rng(seed)
        end = (False, False)
        while not any(end):
            action = rng.integers(2)
            expected, reward, *end, _ = reference.step(action)
            state, actual, *rest = step(state, action, jax.random.key(0))
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
            assert [float(rest[0]), bool(rest[1]), bool(rest[2])] == [reward, *end]
        outcomes.append(tuple(end))
    assert ((False, True) in outcomes) == (max_steps == 13)
    assert (True, False) in outcomes


def test_cartpole_can_fall_at_the_time_limit():
    env = cartpole.make(max_steps=1)
    state = cartpole.State(jnp.array([2.39, 3, 0, 0], jnp.float32), jnp.int32(0))
    *_, reward, terminated, truncated = env.step(state, jnp.int32(1), jax.random.key(0))
    assert (reward, terminated, truncated) == (1, True, True)


def test_cartpole_without_velocities():
    whole, hidden = cartpole.make(), cartpole.make(hide_velocities=True)
    assert hidden.spec.observation_space.shape == (2,)
    actions = random_actions(whole, 30, 4)
    _, a = unroll(whole, jax.random.key(5), range(4), actions)
    _, b = unroll(hidden, jax.random.key(5), range(4), actions)
    np.testing.assert_allclose(a.observation[..., [0, 2]], b.observation, rtol=1e-5, atol=1e-6)
    assert (np.abs(a.observation[0]) <= 0.05).all()
    assert np.unique(a.observation[0]).size == 16


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (catch.make, {"rows": 1}),
        (catch.make, {"columns": 0}),
        (catch.make, {"delay": -1}),
        (deep_sea.make, {"size": 0}),
        (deep_sea.make, {"unscaled_move_cost": -0.1}),
        (deep_sea.make, {"unscaled_move_cost": float("nan")}),
        (deep_sea.make, {"mapping_seed": -1}),
        (deep_sea.make, {"mapping_seed": 2**32}),
        (memory_cue.make, {"delay": 0}),
        (memory_cue.make, {"cues": 1}),
        (orchard.make, {"rows": 1}),
        (orchard.make, {"columns": 1}),
        (orchard.make, {"seen": 9}),
        (orchard.make, {"lives": 0}),
        (orchard.make, {"falls": 0}),
        (orchard.make, {"life_loss": "rol"}),
        (orchard.make, {"life_loss": 1}),
        (cartpole.make, {"max_steps": 0}),
        (cartpole_force.make_balance, {"max_steps": 0}),
        (cartpole_force.make_swing_up, {"max_steps": -1}),
        (mountain_car.make, {"max_steps": 0}),
        (acrobot.make, {"max_steps": 0}),
        (double_pendulum.make, {"max_steps": 0}),
        (breakout.make, {"sticky": -0.1}),
        (breakout.make, {"max_steps": 0}),
        (space_invaders.make, {"sticky": 1.1}),
        (space_invaders.make, {"sticky": float("nan")}),
        (space_invaders.make, {"max_steps": 0}),
    ],
)
def test_bad_values_are_named(make, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=f"{name}={value!r}"):
        make(**wrong)


@pytest.mark.parametrize("name", pronk.envs._JAX)
def test_each_id_makes_its_environment(name: str):
    env = pronk.envs.jax_env_of(name)
    assert env is not None
    assert env.spec.name == name
    assert name in pronk.envs.names()
    if env.render is None:
        assert name == "pronk/MemoryCue-v0"
        return
    made = JaxVectorEnv(env, 1, seed=3)
    timestep = made.reset()
    pictures = [np.asarray(env.render(made.first_state()))]
    while not made.episodes() or len(pictures) < 4:  # also of the terminal state
        action = np.zeros((1, *(env.spec.action_space.shape or ())), np.int32)
        if timestep.action_mask is not None:
            action = timestep.action_mask.argmax(-1)
        timestep = made.step(action)
        pictures.append(np.asarray(env.render(made.first_state())))
    assert {(p.dtype, p.ndim, p.shape[2]) for p in pictures} == {(np.dtype(np.uint8), 3, 3)}
    assert len({p.shape for p in pictures}) == 1
    assert len({p.tobytes() for p in pictures}) > 2
