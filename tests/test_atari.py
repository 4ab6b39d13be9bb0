"""Atari games: settings, ends, lost lives, exact replay; and what pronk relies on in ale_py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces

from pronk import envs
from pronk.envs.atari import AtariEnvs, atari_ids
from pronk.errors import UserError
from pronk.types import Episode

FIRE = 1


def breakout(num_envs: int = 2, **options: Any) -> AtariEnvs:
    return AtariEnvs("ALE/Breakout-v5", num_envs, **{"life_loss": False, **options})


def play(env: AtariEnvs, steps: int, seed: int = 0) -> list[list[np.ndarray]]:
    """Every field of every row under random actions that keep serving the ball."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(steps):
        action = rng.integers(0, 4, env.num_envs)
        if k % 4 == 0:
            action[:] = FIRE
        rows.append([np.copy(leaf) for leaf in env.step(action)[:5]])
    return rows


def same(a: list[list[np.ndarray]], b: list[list[np.ndarray]]) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(x, y)
        for row_a, row_b in zip(a, b, strict=True)
        for x, y in zip(row_a, row_b, strict=True)
    )


def test_the_papers_settings():
    spec = envs.spec_of("ALE/Breakout-v5")
    assert spec.observation_space == spaces.Box(0, 255, (4, 84, 84), np.uint8)
    assert spec.action_space == spaces.Discrete(4)
    assert spec.frames_per_step == 4
    env = envs.make("ALE/Breakout-v5", 3, threads=2)
    t = env.reset()
    assert t.observation.shape == (3, 4, 84, 84)
    assert t.observation.dtype == np.uint8
    assert t.first.all()
    assert env.placement == "stepped by 2 ALE threads"
    assert env.state() is None
    whole = {"full_action_space": True, "frameskip": 2, "stack_num": 1, "img_height": 20}
    spec = envs.spec_of("ALE/Breakout-v5", whole)
    assert spec.observation_space.shape == (1, 20, 84)
    assert spec.action_space == spaces.Discrete(18)
    assert spec.frames_per_step == 2


def test_rewards_are_raw():
    env = AtariEnvs("ALE/MsPacman-v5", 2)
    env.reset()
    rng = np.random.default_rng(0)
    rewards = np.stack([env.step(rng.integers(0, 9, 2)).reward for _ in range(80)])
    assert rewards.dtype == np.float32
    assert rewards.max() >= 10


@pytest.mark.parametrize("replayable", [False, True])
def test_a_time_limit_truncates_and_the_next_row_begins_a_game(replayable):
    env = breakout(2, replayable=replayable, max_num_frames_per_episode=40)
    env.reset()
    for k in range(24):
        t = env.step(np.full(2, FIRE))
        assert not t.terminated.any()
        assert t.truncated.all() == t.truncated.any() == (k in (9, 20))
        assert t.first.all() == t.first.any() == (k in (10, 21))
    assert [e.length for e in env.episodes()] == [10] * 4


@pytest.mark.parametrize("replayable", [False, True])
def test_lost_lives_end_the_return_but_not_the_game(replayable):
    plain = breakout(2, seed=3, replayable=replayable)
    lives = breakout(2, seed=3, replayable=replayable, life_loss=True)
    assert np.array_equal(plain.reset().observation, lives.reset().observation)
    lost = np.zeros(2, int)
    followed = np.zeros(2, bool)
    for a, b in zip(play(plain, 330), play(lives, 330), strict=True):
        assert np.array_equal(a[0], b[0])  # the game is the same
        extra = b[2] & ~a[2]
        assert np.array_equal(b[4], a[4] | followed)  # `first` after every end
        assert not b[1][b[4]].any()  # and no reward there
        assert np.array_equal(a[1][~b[4]], b[1][~b[4]])
        assert not (extra & a[4]).any()
        lost += extra
        followed = extra | a[2]
    games = plain.episodes()
    assert games
    assert games == lives.episodes()  # whole games, rewards of `first` rows included
    assert (lost >= 4).all()  # five lives, of which the last is the game's end


def test_a_lost_life_may_end_the_return_alone():
    """`roll`: the next row is an ordinary one, so recurrent states and rewards go on."""
    plain, lives = breakout(2, seed=3), breakout(2, seed=3, life_loss="roll")
    plain.reset(), lives.reset()
    lost = 0
    for a, b in zip(play(plain, 330), play(lives, 330), strict=True):
        for i in (0, 1, 3, 4):
            assert np.array_equal(a[i], b[i])
        lost += (b[2] & ~a[2]).sum()
        assert not (a[2] & ~b[2]).any()
    assert lost >= 8


def test_a_reward_on_the_row_after_a_lost_life_counts_for_the_game_alone(monkeypatch):
    env = breakout(1, life_loss=True)
    env.reset()
    no = np.zeros(1, bool)
    observation = np.zeros((1, 4, 84, 84), np.uint8)
    #       reward, terminated, lives
    script = iter([(1, no, 4), (2, no, 4), (0, no, 3), (5, ~no, 4), (0, no, 3), (0, no, 3)])

    def step(action: Any) -> tuple[Any, ...]:
        reward, terminated, lives = next(script)
        return observation, np.array([reward]), terminated, no, np.array([lives])

    monkeypatch.setattr(env._games, "step", step)
    rows = [env.step(np.zeros(1, int)) for _ in range(6)]
    seen = [(t.reward[0], bool(t.terminated[0]), bool(t.first[0])) for t in rows]
    assert seen == [
        (1, True, False),  # a life
        (0, False, True),
        (0, True, False),  # another
        (0, True, True),  # the game ends on the very next row
        (0, False, True),  # the dummy, whatever the lives
        (0, False, False),
    ]
    assert env.episodes() == [Episode(8.0, 4, 0)]


def test_evaluation_plays_whole_games():
    env = envs.make("ALE/Breakout-v5", 1, env_args={"life_loss": True}, evaluate=True)
    env.reset()
    ends = sum(row[2].sum() for row in play(env, 150))  # type: ignore[arg-type]
    assert ends == len(env.episodes())


@pytest.mark.parametrize("replayable", [False, True])
def test_games_are_seeded_by_seed_and_environment(replayable):
    def start(seed: int, first_env_id: int) -> np.ndarray:
        env = AtariEnvs(
            "ALE/Seaquest-v5", 3, seed=seed, first_env_id=first_env_id, replayable=replayable
        )
        return env.reset().observation

    a = start(1, 0)
    assert np.array_equal(a, start(1, 0))
    assert np.array_equal(a[1:], start(1, 1)[:2])
    assert not np.array_equal(a, start(2, 0))
    assert len(np.unique(a.reshape(3, -1), axis=0)) > 1


@pytest.mark.parametrize("settings", [{}, {"life_loss": True, "repeat_action_probability": 0.25}])
def test_restore_continues_exactly_through_the_end_of_a_game(settings):
    a = breakout(2, seed=1, replayable=True, num_threads=2, **settings)
    b = breakout(2, seed=1, replayable=True, **settings)
    a.reset()
    play(a, 130)
    a.episodes()
    state = a.state()
    assert all(state[f"slot_{i}"]["actions"].dtype == np.int32 for i in range(2))
    b.restore(state)
    assert b.warnings() == []
    rows = play(a, 260, seed=1)
    assert any(row[4].any() for row in rows)
    assert same(rows, play(b, 260, seed=1))
    assert a.episodes() == b.episodes() != []


def test_restore_right_after_an_end_and_right_after_a_lost_life():
    a = breakout(1, replayable=True, life_loss=True)
    a.reset()
    checked = set()
    for k in range(400):
        t = a.step(np.array([FIRE if k % 4 == 0 else 0]))
        kind = "game" if a._over[0] else "life"
        if t.terminated[0] and kind not in checked:
            checked.add(kind)
            b = breakout(1, replayable=True, life_loss=True)
            b.restore(a.state())
            rows = play(b, 1)
            assert rows[0][4][0]
            assert same(play(a, 1), rows)
            assert same(play(a, 20), play(b, 20))
    assert checked == {"life", "game"}


def test_an_inexact_replay_warns_and_begins_a_new_game():
    a = breakout(2, replayable=True)
    a.reset()
    play(a, 20)
    state: Any = a.state()
    state["slot_1"]["observation"][0, 0, 0] ^= 1
    b = breakout(2, replayable=True)
    b.restore(state)
    (warning,) = b.warnings()
    assert "environment 1 of 'ALE/Breakout-v5' did not replay exactly" in warning
    t = b.step(np.zeros(2, int))
    assert t.first.tolist() == [False, True]
    with pytest.raises(UserError, match="replayable=True"):
        breakout(2).restore(state)


@pytest.mark.parametrize("replayable", [False, True])
@pytest.mark.parametrize("action", [[4], [-1], [0.5], [0, 0]])
def test_an_action_that_does_not_exist_is_refused(replayable, action):
    env = breakout(1, replayable=replayable)
    env.reset()
    with pytest.raises(ValueError):
        env.step(np.array(action))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"env": "ALE/Pnog-v5"},
            "`env` 'ALE/Pnog-v5' is not registered; did you mean 'ALE/Pong-v5'?",
        ),
        ({"env": "ALE/mspacman-v5"}, "did you mean 'ALE/MsPacman-v5'"),
        ({"env_args": {"life_los": True}}, "no 'life_los'; did you mean 'life_loss'?"),
        ({"env_args": {"life_loss": "rol"}}, "life_loss='rol'; expected true, false or roll"),
        ({"env_args": {"frameskip": 0}}, "Invalid frameskip of 0"),
    ],
)
def test_errors_of_make(given, message):
    with pytest.raises(UserError) as e:
        envs.make(**{"env": "ALE/Pong-v5", "num_envs": 1, **given})
    assert message in str(e.value)


def test_every_registered_game_has_its_rom():
    import gymnasium as gym

    registered = {name for name in gym.registry if name.startswith("ALE/")}
    assert registered
    assert registered <= set(atari_ids())
    assert "ALE/TicTacToe3D-v5" in atari_ids()


def test_ale_py_returns_fresh_arrays_and_its_dummy_step_has_neither_reward_nor_end():
    vector = AtariVectorEnv("pong", 1, reward_clipping=False, use_fire_reset=False)
    vector.reset(seed=np.array([1]))
    noop = np.zeros(1, np.int32)
    before, *_ = vector.step(noop)
    kept = before.copy()
    for _ in range(30):
        after, *_ = vector.step(noop)
    assert np.array_equal(before, kept)
    assert not np.shares_memory(before, after)
    ended = False
    while not ended:
        _, reward, terminated, _, info = vector.step(noop)
        ended = terminated[0]
    assert reward[0] == -1
    _, reward, terminated, truncated, info = vector.step(noop)
    assert (reward[0], terminated[0], truncated[0]) == (0, False, False)
    assert info["episode_frame_number"][0] <= 30
