"""Environments for exploration: rules, mazes, what experts reach, and what chance reaches."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from pronk.envs import disco_maze, jax_suite, key_door, maze, patience, random_coin
from pronk.envs.grid import DOWN, LEFT, MOVES, RIGHT, UP
from pronk.envs.jax_env import JaxEnv, JaxVectorEnv, advance, start
from pronk.envs.suite import Task
from pronk.errors import UserError

KEY = jax.random.key(0)


def play(env: JaxEnv, policy, num_steps: int, num_envs: int, seed: int = 0):
    """Returns and lengths of the finished first episodes; policy: (state, key) -> action."""

    @jax.jit
    def run(key):
        def body(slots, key):
            keys = jax.random.split(key, num_envs)
            slots, _ = advance(env, slots, jax.vmap(policy)(slots.state, keys))
            return slots, (slots.done, slots.episode_return, slots.episode_length)

        slots, _ = start(env, key, jnp.arange(num_envs))
        return jax.lax.scan(body, slots, jax.random.split(key, num_steps))[1]

    done, returns, lengths = map(np.asarray, run(jax.random.key(seed)))
    first, slots = done.argmax(0), np.arange(num_envs)
    assert done.any(0).all(), "an episode did not end"
    return returns[first, slots], lengths[first, slots]


def jitted(env: JaxEnv) -> JaxEnv:
    """The environment, with functions that are compiled as a whole."""
    return env._replace(reset=jax.jit(env.reset), step=jax.jit(env.step))


def uniform(env: JaxEnv, state, key):
    del state
    space = env.spec.action_space
    assert isinstance(space, spaces.Discrete)
    return jax.random.randint(key, (), 0, space.n)


def by(expert):
    return lambda state, key: expert(state)


# Mazes


def reachable(free: np.ndarray, start: tuple[int, int]) -> set[tuple[int, int]]:
    found, waiting = {start}, [start]
    while waiting:
        row, column = waiting.pop()
        for down, right in MOVES:
            cell = (row + int(down), column + int(right))
            if free[cell] and cell not in found:
                found.add(cell)
                waiting.append(cell)
    return found


def mazes(side: int, count: int) -> np.ndarray:
    keys = jax.random.split(jax.random.key(side), count)
    return np.asarray(jax.jit(jax.vmap(partial(maze.generate, side=side)))(keys))


@pytest.mark.parametrize("side", [2, 3, 10])
def test_mazes_are_perfect(side: int):
    for free in mazes(side, 20):
        assert free.shape == (2 * side + 1, 2 * side + 1)
        assert free[1::2, 1::2].all()
        assert not free[::2, ::2].any()
        assert not np.concatenate([free[0], free[-1], free[:, 0], free[:, -1]]).any()
        # As many passages as a tree has, and all rooms connected: a tree.
        assert free.sum() == 2 * side**2 - 1
        assert len(reachable(free, (1, 1))) == free.sum()


def test_mazes_are_kruskals():
    side, key = 5, jax.random.key(3)
    weights = np.asarray(jax.jit(partial(maze._weights, side=side))(key))
    expected = np.zeros((2 * side + 1, 2 * side + 1), bool)
    expected[1::2, 1::2] = True
    group = list(range(side * side))
    for flat in weights.argsort(None)[: 2 * side * (side - 1)]:
        room, downward = divmod(int(flat), 2)
        other = room + (side if downward else 1)
        if group[room] != group[other]:
            group = [group[room] if g == group[other] else g for g in group]
            row, column = 2 * (room // side) + 1, 2 * (room % side) + 1
            expected[row + downward, column + 1 - downward] = True
    np.testing.assert_array_equal(jax.jit(partial(maze.generate, side=side))(key), expected)


def test_all_mazes_occur():
    def counts(side: int, drawn: int) -> np.ndarray:
        return np.unique(mazes(side, drawn).reshape(drawn, -1), axis=0, return_counts=True)[1]

    four = counts(2, 800)
    assert len(four) == 4
    assert four.min() > 150  # equally likely by symmetry, 200 ± 12
    assert len(counts(3, 4000)) == 192  # the spanning trees of 3 × 3 points


# Random Disco Maze


def disco(size: int = 7, **kwargs):
    env = jitted(disco_maze.make(size, **kwargs))
    state, board = env.reset(KEY)
    return env, state, np.asarray(board)


visited_share = jax.jit(disco_maze.visited_share)


def test_disco_maze_by_hand():
    env, state, _ = disco(7, max_steps=3)
    free = np.zeros((7, 7), bool)
    free[1, 1:4] = free[2, 1] = True
    state = state._replace(free=free)
    seen = []
    for action in (RIGHT, LEFT, RIGHT):
        state, board, *rest = env.step(state, np.int32(action), KEY)
        green = np.argwhere((np.asarray(board) == [0, 255, 0]).all(-1)).tolist()
        seen.append((green, *map(float, rest)))
        assert float(visited_share(state)) == 2 / 4
    assert seen == [([[1, 2]], 0, 0, 0), ([[1, 1]], 0, 0, 0), ([[1, 2]], 0, 0, 1)]
    moves = np.asarray(jax.jit(disco_maze.free_moves)(state))
    np.testing.assert_array_equal(moves, [False, True, False, True])
    state, board, *rest = env.step(state, np.int32(DOWN), KEY)
    assert rest == [0, True, False]  # the end, not the limit
    np.testing.assert_array_equal(np.asarray(board)[2, 2], [0, 255, 0])  # the agent in the wall
    assert float(visited_share(state)) == 2 / 4


def test_disco_maze_shows_paths_agent_and_walls_of_five_colours():
    env, state, board = disco(21)
    boards = [board]
    for i in range(40):
        boards.append(np.asarray(env.step(state, np.int32(UP), jax.random.key(i))[1]))
    free = np.asarray(state.free)
    start, rest = boards[0], np.stack(boards[1:])
    np.testing.assert_array_equal(start[1, 1], [0, 255, 0])
    others = free.copy()
    others[1, 1] = False
    assert not start[others].any()
    assert not rest[:, free].any()
    inner = ~free
    inner[0, 1] = False  # where the agent is now
    colours, counts = np.unique(rest[:, inner].reshape(-1, 3), axis=0, return_counts=True)
    assert len(colours) == 5
    assert counts.sum() == 40 * (21 * 21 - 200)
    np.testing.assert_allclose(counts / counts.sum(), 0.2, atol=0.02)  # 5 standard errors
    # Drawn independently: two steps agree in a fifth of the cells, and so do two neighbours.
    same = (rest[1:, inner] == rest[:-1, inner]).all(-1).mean()
    assert abs(same - 0.2) < 0.02
    edge = rest[:, 20]
    assert abs((edge[:, 1:] == edge[:, :-1]).all(-1).mean() - 0.2) < 0.07


def test_disco_mazes_return_is_the_share_visited():
    env = disco_maze.make(5, max_steps=12)
    vector = JaxVectorEnv(env, 8, seed=3)
    timestep = vector.reset()
    rng = np.random.default_rng(0)
    episodes = []
    cells = [{(1, 1)} for _ in range(8)]
    position = np.ones((8, 2), int)
    expected = []
    while len(episodes) < 30:
        free = np.asarray(vector._slots.state.free)
        action = rng.integers(4, size=8)
        was = timestep.terminated | timestep.truncated
        timestep = vector.step(action)
        assert not timestep.reward.any()
        for b in range(8):
            if was[b]:
                cells[b], position[b] = {(1, 1)}, 1
                continue
            position[b] += MOVES[action[b]]
            if free[b][tuple(position[b])]:
                cells[b].add((int(position[b][0]), int(position[b][1])))
            if timestep.terminated[b] or timestep.truncated[b]:
                expected.append(len(cells[b]) / 7)
        episodes += vector.episodes()
    assert [e.episode_return for e in episodes] == pytest.approx(expected)
    assert len(set(expected)) > 2


def test_disco_mazes_return_is_scaled_by_a_suite():
    env = disco_maze.make(5, max_steps=12)
    task = Task("maze", "pronk/RandomDiscoMaze-v0", reward_scale=0.5)
    suite = jax_suite.make("one", (task,), (env,))
    score = suite.envs[0].score
    assert score is not None
    assert float(jax.jit(lambda key: score(env.reset(key)[0]))(KEY)) == pytest.approx(0.5 / 7)


def test_depth_first_visits_everything():
    lengths = []
    for free in mazes(10, 100):
        actions = disco_maze.depth_first(free)
        position, seen, last = np.array([1, 1]), {(1, 1)}, 0
        for action in actions:
            assert tuple(position) in seen
            last = len(seen)
            position = position + MOVES[action]
            assert free[tuple(position)]
            seen.add((int(position[0]), int(position[1])))
        assert len(seen) == 199
        assert last == 198  # it stops with the last cell
        lengths.append(len(actions))
    assert max(lengths) <= 396
    assert abs(np.mean(lengths) - 385) < 4  # standard error 0.8


def test_depth_first_in_the_environment():
    env, state, _ = disco(9)
    shares = [float(visited_share(state))]
    for action in disco_maze.depth_first(np.asarray(state.free)):
        state, _, _, ended, _ = env.step(state, np.int32(action), KEY)
        assert not ended
        shares.append(float(visited_share(state)))
    assert shares[0] == pytest.approx(1 / 31)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert shares[-2] < 1


def test_disco_maze_by_chance():
    env = disco_maze.make()
    shares, lengths = play(env, partial(uniform, env), 40, 512)
    assert abs(shares.mean() - 0.0075) < 0.0006
    assert abs(lengths.mean() - 1.7) < 0.2


def test_disco_maze_by_avoiding_walls():
    def avoid(state, key):
        return jax.random.categorical(key, jnp.where(disco_maze.free_moves(state), 0.0, -jnp.inf))

    shares, lengths = play(disco_maze.make(), avoid, 500, 64)
    assert (lengths == 500).all()
    assert abs(shares.mean() - 0.21) < 0.03


# KeyDoor


@cache
def transitions(step):
    """For batched states: next states, rewards and ends, with a leading axis of actions."""

    @jax.jit
    def found(states):
        def each(action):
            state, _, reward, ended, _ = jax.vmap(lambda s: step(s, action, KEY))(states)
            return state, reward, ended

        return jax.vmap(each)(np.arange(4, dtype=np.int32))

    return lambda states: jax.tree.map(np.asarray, found(states))


def key_door_table(env: JaxEnv, state):
    """`next[action, n]` and `won[action, n]`, where n numbers (has_key, row, column)."""
    shape = env.spec.observation_space.shape[:2]  # type: ignore[index]
    has_key, row, column = (x.ravel() for x in np.indices((2, *shape)))
    count = has_key.size
    states = jax.tree.map(lambda x: np.broadcast_to(x, (count, *np.shape(x))), state)
    position = np.clip(np.stack([row, column], -1), 1, np.array(shape) - 2).astype(np.int32)
    states = states._replace(position=position, has_key=has_key > 0)
    after, reward, ended = transitions(env.step)(states)
    np.testing.assert_array_equal(reward, ended)
    cell = after.position[..., 0] * shape[1] + after.position[..., 1]
    return cell + after.has_key * shape[0] * shape[1], ended


def number(env: JaxEnv, state) -> int:
    columns = env.spec.observation_space.shape[1]  # type: ignore[index]
    return int(state.position[0]) * columns + int(state.position[1])


def shortest(env: JaxEnv, state) -> int:
    """Breadth first over the environment's own transitions."""
    following, won = key_door_table(env, state)
    front, seen, steps = {number(env, state)}, set(), 0
    while front:
        steps += 1
        if any(won[a, n] for n in front for a in range(4)):
            return steps
        seen |= front
        front = {int(following[a, n]) for n in front for a in range(4)} - seen
    raise AssertionError("no way to the goal")


@pytest.mark.parametrize(("size", "steps"), [(5, 42), (3, 24), (4, None)])
def test_key_door_is_solved_by_the_shortest_way(size: int, steps: int | None):
    env = jitted(key_door.make(size))
    returns, lengths = play(env, by(key_door.expert), 80, 1)
    assert returns == [1]
    assert lengths == [shortest(env, env.reset(KEY)[0])]
    assert steps is None or lengths == [steps]
    with pytest.raises(UserError, match=f"max_steps={lengths[0] - 3}"):
        key_door.make(size, max_steps=int(lengths[0]) - 3)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_key_door_of_random_layout_is_solved(size: int):
    # No layout needs more steps than the least limit allows.
    limit = key_door._longest_way(size)
    env = key_door.make(size, max_steps=limit, random_layout=True)
    returns, lengths = play(env, by(key_door.expert), limit + 1, 256)
    assert (returns == 1).all()
    assert len(set(lengths)) > 5
    states = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(1), 400))[0]
    states = jax.tree.map(np.asarray, states)
    for cell, rows, columns in (
        (states.key, (1, size), (1, size)),
        (states.doorway, (1, size), (size + 1, size + 1)),
        (states.door, (1, size), (2 * size + 2, 2 * size + 2)),
        (states.goal, (1, size), (2 * size + 3, 3 * size + 2)),
    ):
        assert (cell[:, 0].min(), cell[:, 0].max()) == rows
        assert (cell[:, 1].min(), cell[:, 1].max()) == columns
    step = jax.jit(lambda state: env.step(state, key_door.expert(state), KEY))
    for i in range(4):
        state = first = jax.tree.map(lambda x, i=i: x[i], states)
        ended = False
        while not ended:
            state, _, _, ended, _ = step(state)
        assert int(state.t) == shortest(env, first)


def test_key_door_by_hand():
    env = jitted(key_door.make(3, max_steps=30))
    state, board = env.reset(KEY)
    board = np.asarray(board)
    assert board.shape == (5, 13, 5)
    walls = ["#############", "#K..#...D...#", "#...#.A.#...#", "#.......#..G#", "#############"]
    marks = {"#": 0, "A": 1, "K": 2, "D": 3, "G": 4}
    expected = np.zeros_like(board)
    for row, column in np.ndindex(5, 13):
        if (mark := walls[row][column]) in marks:
            expected[row, column, marks[mark]] = 255
    np.testing.assert_array_equal(board, expected)

    def go(state, text):
        board, rest = None, []
        for move in text:
            state, board, *rest = env.step(state, np.int32("URDL".index(move)), KEY)
            assert rest[0] == (rest[1] & 1)
        return state, np.asarray(board), rest

    state, board, _ = go(state, "URRR")  # the door is closed
    assert tuple(np.argwhere(board[..., 1])[0]) == (1, 7)
    state, board, _ = go(state, "DDLLLLUULL")  # through the doorway to the key, and against a wall
    assert tuple(np.argwhere(board[..., 1])[0]) == (1, 1)
    assert not board[..., 2:4].any()
    state, board, rest = go(state, "DDRRRRUURRRRRR")
    assert tuple(np.argwhere(board[..., 1])[0]) == (1, 11)
    assert (int(state.t), rest) == (28, [0, False, False])
    state, _, rest = go(state, "D")
    assert rest == [0, False, False]
    assert go(state, "D")[2] == [1, True, False]  # the end, not the limit
    assert go(state, "U")[2] == [0, False, True]


def test_key_door_pays_once_where_the_goal_ends_nothing():
    env = jitted(key_door.make(3, max_steps=30, goal_ends=False))
    state, _ = env.reset(KEY)
    for move in "URRRDDLLLLUULLDDRRRRUURRRRRRD":
        state, board, *rest = env.step(state, np.int32("URDL".index(move)), KEY)
        assert rest == [0, False, False]
    assert np.asarray(board)[..., 4].any()
    state = state._replace(t=np.int32(26))
    found = []
    for move in "DUDU":  # into the goal, and again
        state, board, *rest = env.step(state, np.int32("URDL".index(move)), KEY)
        assert not np.asarray(board)[..., 4].any()
        found.append(rest)
    assert found == [[1, False, False], [0, False, False], [0, False, False], [0, False, True]]


def test_key_door_by_chance():
    env = jitted(key_door.make())
    state, _ = env.reset(KEY)
    following, won = key_door_table(env, state)
    alive = np.zeros(following.shape[1])
    alive[number(env, state)] = 1
    chance = 0.0
    for _ in range(150):
        chance += (won * alive).sum() / 4
        passed = np.where(won, 0.0, alive / 4)
        alive = np.bincount(following.ravel(), passed.ravel(), alive.size)
    assert chance + alive.sum() == pytest.approx(1)
    assert chance == pytest.approx(2.4e-5, rel=0.02)


# RandomCoin


def test_random_coin_by_hand():
    env = jitted(random_coin.make(5, max_steps=8))
    state = random_coin.State(np.array([0, 3], np.int32), np.array([1, 4], np.int32), np.int32(5))
    state, board, *rest = env.step(state, np.int32(UP), KEY)  # against the wall
    np.testing.assert_array_equal(np.argwhere(np.asarray(board)), [[0, 3, 0], [1, 4, 1]])
    assert rest == [0, False, False]
    state, board, *rest = env.step(state, np.int32(RIGHT), KEY)
    np.testing.assert_array_equal(np.argwhere(np.asarray(board)), [[0, 4, 0], [1, 4, 1]])
    assert env.step(state, np.int32(RIGHT), KEY)[2:] == (0, False, True)
    assert env.step(state, np.int32(DOWN), KEY)[2:] == (1, True, False)


def test_random_coins_expert():
    returns, lengths = play(random_coin.make(max_steps=28), by(random_coin.expert), 28, 1024)
    assert (returns == 1).all()
    assert abs(lengths.mean() - 2 / 3 * 15) < 0.6  # standard error 0.15


def test_random_coin_by_chance():
    env = random_coin.make()
    returns, lengths = play(env, partial(uniform, env), 200, 1024)
    assert set(returns) == {0, 1}
    assert (lengths[returns == 0] == 200).all()
    assert abs(returns.mean() - random_coin_chance(15, 200)) < 0.06  # 4 standard errors
    assert random_coin_chance(15, 200) == pytest.approx(0.295, abs=0.001)


def random_coin_chance(size: int, steps: int) -> float:
    """The mean over all coins and starts of the chance that a random walk finds the coin."""
    cells = size * size
    # alive[coin, agent], from a uniform start
    alive = (1 - np.eye(cells)) / (cells - 1)
    for _ in range(steps):
        room = alive.reshape(cells, size, size)
        edged = np.pad(room, ((0, 0), (1, 1), (1, 1)), mode="edge")
        moved = edged[:, :-2, 1:-1] + edged[:, 2:, 1:-1] + edged[:, 1:-1, :-2] + edged[:, 1:-1, 2:]
        alive = moved.reshape(cells, cells) / 4 * (1 - np.eye(cells))
    return 1 - float(alive.sum(1).mean())


def test_random_coins_places_are_uniform():
    reset = jax.jit(jax.vmap(random_coin.make(5).reset))
    states, _ = reset(jax.random.split(KEY, 6000))
    agent, coin = (np.asarray(x) @ [5, 1] for x in (states.position, states.coin))
    assert (agent != coin).all()
    pairs = np.bincount(25 * agent + coin, minlength=625).reshape(25, 25)
    assert (pairs > 0).sum() > 590  # 10 on average in each of 600
    assert min(pairs.sum(0).min(), pairs.sum(1).min()) > 180  # 240 ± 15


# Patience


@pytest.mark.parametrize("delay", [1, 6])
def test_patience_has_two_equal_ways(delay: int):
    env = patience.make(delay, small=1.5, large=4)
    rows = []
    for first in (0, 1):
        vector = JaxVectorEnv(env, 1, seed=0)
        steps = [vector.reset()]
        steps += [vector.step(np.array([a])) for a in [first] + [1 - first] * delay]
        assert [s.terminated[0] for s in steps] == [False] * (delay + 1) + [True]
        assert not any(s.truncated[0] for s in steps)
        assert [e.length for e in vector.episodes()] == [delay + 1]
        rows.append([(s.observation[0], float(s.reward[0])) for s in steps])
    small, large = (np.stack([row[0] for row in way]) for way in rows)
    np.testing.assert_array_equal(small[:, [0, 2]], large[:, [0, 2]])
    np.testing.assert_array_equal(small[:, 0], [1] + [0] * (delay + 1))
    np.testing.assert_array_equal(small[:, 1], 0)
    np.testing.assert_array_equal(large[:, 1], [0] + [1] * (delay + 1))
    np.testing.assert_allclose(small[:, 2], np.linspace(0, 1, delay + 2), rtol=1e-6)
    assert [row[1] for row in rows[0]] == [0, 1.5] + [0] * delay
    assert [row[1] for row in rows[1]] == [0] * (delay + 1) + [4]


def test_patience_pays_above_the_documented_discount():
    env = patience.make()

    @jax.jit
    def rewards_of(actions):
        def body(state, action):
            state, _, reward, *_ = env.step(state, action, KEY)
            return state, reward

        return jax.lax.scan(body, env.reset(KEY)[0], actions)[1]

    def value(first: int, discount: float) -> float:
        actions = np.where(np.arange(401) == 0, first, 0).astype(np.int32)
        rewards = np.asarray(rewards_of(actions))
        return float((rewards * discount ** np.arange(401)).sum())

    assert value(1, 0.99826) < value(0, 0.99826) == 1
    assert value(1, 0.99828) > value(0, 0.99828)


def test_patience_by_chance_and_by_waiting():
    env = patience.make()
    returns, lengths = play(env, by(patience.expert), 401, 4)
    assert (set(returns), set(lengths)) == ({2}, {401})
    returns, lengths = play(env, partial(uniform, env), 401, 1024)
    assert (set(returns), set(lengths)) == ({1, 2}, {401})
    assert abs(returns.mean() - 1.5) < 0.07  # 4 standard errors


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (disco_maze.make, {"size": 3}),
        (disco_maze.make, {"size": 20}),
        (disco_maze.make, {"size": 65}),
        (disco_maze.make, {"max_steps": 0}),
        (key_door.make, {"size": 2}),
        (key_door.make, {"max_steps": 41}),
        (random_coin.make, {"size": 4}),
        (random_coin.make, {"max_steps": 27}),
        (patience.make, {"delay": 0}),
        (patience.make, {"delay": 2.5}),
        (patience.make, {"small": 0}),
        (patience.make, {"small": 2.0}),
        (patience.make, {"large": float("inf")}),
        (patience.make, {"large": float("nan")}),
    ],
)
def test_bad_values_are_named(make, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=f"{name}={value!r}"):
        make(**wrong)
