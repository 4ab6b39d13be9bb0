"""Breakout and Space Invaders: the rules one object at a time, and games recorded from MinAtar."""

from __future__ import annotations

import hashlib
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pronk.envs import breakout, space_invaders
from pronk.envs.jax_env import JaxEnv, advance, start
from pronk.maths.spaces import is_image

Cell = tuple[int, int]  # row, column


# The rules, slowly


def wall() -> set[Cell]:
    return {(row, column) for row in (1, 2, 3) for column in range(10)}


class Breakout:
    """One ball, one paddle and a set of bricks."""

    actions, channels = 3, 4

    def __init__(self, right: int = 1):
        self.paddle, self.bricks, self.struck = 4, wall(), False
        self.ball = self.trail = (3, 0 if right == 1 else 9)
        self.heading = (1, right)

    @classmethod
    def somewhere(cls, rng: np.random.Generator) -> Breakout:
        """In any position, also in many that play never leads to."""
        game = cls()
        row, column = int(rng.integers(9)), int(rng.integers(10))
        game.ball, game.trail = (row, column), (int(rng.integers(9)), int(rng.integers(10)))
        game.heading = (int(rng.choice([-1, 1])), int(rng.choice([-1, 1])))
        game.paddle = int(np.clip(column + rng.integers(-2, 3), 0, 9))
        share = rng.choice([0, 0.1, 0.8])
        game.bricks = {brick for brick in wall() if rng.random() < share}
        game.struck = bool(rng.integers(2))
        return game

    def step(self, action: int) -> tuple[int, bool]:
        if action == 1 and self.paddle > 0:
            self.paddle -= 1
        if action == 2 and self.paddle < 9:
            self.paddle += 1
        row, column = self.ball
        down, right = self.heading
        next_row, next_column = row + down, column + right
        reward, over, struck = 0, False, False
        if next_column not in range(10):
            next_column, right = column, -right
        if next_row == -1:
            next_row, down = row, 1
        elif (next_row, next_column) in self.bricks:
            struck = True
            if not self.struck:
                self.bricks.remove((next_row, next_column))
                reward = 1
                next_row, down = row, -down
        elif next_row == 9:
            if not self.bricks:
                self.bricks = wall()
            if self.paddle == column:
                next_row, down = row, -1
            elif self.paddle == next_column:
                next_row, down, right = row, -1, -right
            else:
                over = True
        self.trail, self.ball = self.ball, (next_row, next_column)
        self.heading, self.struck = (down, right), struck
        return reward, over

    def screen(self) -> np.ndarray:
        return painted({(9, self.paddle)}, {self.ball}, {self.trail}, self.bricks)

    def state(self) -> breakout.State:
        scalars = (self.paddle, *self.ball, *self.heading, *self.trail)
        numbers = [jnp.int32(x) for x in scalars]
        bricks, struck = jnp.array(columns(self.bricks)), jnp.bool_(self.struck)
        return breakout.State(*numbers, bricks, struck, jnp.int32(0), jnp.int32(0))


def wave() -> set[Cell]:
    return {(row, column) for row in range(4) for column in range(2, 8)}


class SpaceInvaders:
    """A cannon, and sets of aliens, bullets and bombs."""

    actions, channels = 4, 6

    def __init__(self, ramping: bool = True):
        self.ramping = ramping
        self.cannon, self.heading = 5, -1
        self.aliens, self.bullets, self.bombs = wave(), set[Cell](), set[Cell]()
        self.interval = self.until_move = 12
        self.until_bomb, self.until_shot = 10, 0

    @classmethod
    def somewhere(cls, rng: np.random.Generator, ramping: bool) -> SpaceInvaders:
        """In any position, also in many that play never leads to; one in three has few aliens."""

        def cells(share: float) -> set[Cell]:
            return {(row, column) for row, column in np.ndindex(10, 10) if rng.random() < share}

        game = cls(ramping)
        game.cannon, game.heading = int(rng.integers(10)), int(rng.choice([-1, 1]))
        game.aliens = cells(rng.choice([0.01, 0.1, 0.3])) or {(int(rng.integers(10)), 5)}
        game.bullets, game.bombs = cells(rng.choice([0.1, 0.4])), cells(0.03)
        game.interval, game.until_bomb = int(rng.integers(6, 13)), int(rng.integers(10))
        game.until_move, game.until_shot = int(rng.integers(6)), int(rng.integers(5))
        return game

    def step(self, action: int) -> tuple[int, bool]:
        if action == 1 and self.cannon > 0:
            self.cannon -= 1
        if action == 2 and self.cannon < 9:
            self.cannon += 1
        if action == 3 and self.until_shot == 0:
            self.bullets.add((9, self.cannon))
            self.until_shot = 5
        cannon = (9, self.cannon)
        self.bullets = {(row - 1, column) for row, column in self.bullets if row > 0}
        self.bombs = {(row + 1, column) for row, column in self.bombs if row < 9}
        over = cannon in self.bombs or cannon in self.aliens
        if self.until_move == 0:
            self.until_move = min(len(self.aliens), self.interval)
            ahead = 0 if self.heading == -1 else 9
            if any(column == ahead for _, column in self.aliens):
                self.heading = -self.heading
                over = over or any(row == 9 for row, _ in self.aliens)
                self.aliens = {((row + 1) % 10, column) for row, column in self.aliens}
            else:
                self.aliens = {(row, column + self.heading) for row, column in self.aliens}
            over = over or cannon in self.aliens
        if self.until_bomb == 0:
            self.until_bomb = 10
            nearest = min((abs(column - self.cannon), column) for _, column in self.aliens)[1]
            lowest = max(row for row, column in self.aliens if column == nearest)
            self.bombs.add((lowest, nearest))
        killed = self.aliens & self.bullets
        self.aliens -= killed
        self.bullets -= killed
        self.until_shot = max(0, self.until_shot - 1)
        self.until_move -= 1
        self.until_bomb -= 1
        if not self.aliens:
            if self.ramping and self.interval > 6:
                self.interval -= 1
            self.aliens = wave()
        return len(killed), over

    def screen(self) -> np.ndarray:
        left = self.aliens if self.heading == -1 else set()
        right = self.aliens if self.heading == 1 else set()
        return painted({(9, self.cannon)}, self.aliens, left, right, self.bullets, self.bombs)

    def state(self) -> space_invaders.State:
        sets = [jnp.array(columns(x)) for x in (self.aliens, self.bullets, self.bombs)]
        scalars = (self.heading, self.interval, self.until_move, self.until_bomb, self.until_shot)
        numbers = [jnp.int32(x) for x in scalars]
        return space_invaders.State(
            jnp.int32(self.cannon), *sets, *numbers, jnp.int32(0), jnp.int32(0)
        )


def painted(*channels: set[Cell]) -> np.ndarray:
    screen = np.zeros((10, 10, len(channels)), np.uint8)
    for i, cells in enumerate(channels):
        for row, column in cells:
            screen[row, column, i] = 255
    return screen


def columns(cells: set[Cell]) -> np.ndarray:
    """As the environments keep them: an integer per column, a bit per row."""
    numbers = np.zeros(10, np.int32)
    for row, column in cells:
        numbers[column] += 2**row
    return numbers


# name, environment without sticky actions, its slow twin from anywhere, and from the beginning
GAMES = {
    "breakout": (
        breakout.make(sticky=0),
        Breakout.somewhere,
        lambda i: Breakout(1 if i % 2 else -1),
    ),
    "invaders": (
        space_invaders.make(sticky=0),
        partial(SpaceInvaders.somewhere, ramping=True),
        lambda i: SpaceInvaders(),
    ),
    "invaders-steady": (
        space_invaders.make(sticky=0, ramping=False),
        partial(SpaceInvaders.somewhere, ramping=False),
        lambda i: SpaceInvaders(ramping=False),
    ),
}
every_game = pytest.mark.parametrize("name", GAMES)
NEVER = jax.random.key(0)  # where nothing may be drawn from it


@cache
def compiled(step):
    @jax.jit
    def run(states, actions):
        def body(states, action):
            states, *rest = jax.vmap(step, in_axes=(0, 0, None))(states, action, NEVER)
            return states, rest

        return jax.lax.scan(body, states, actions)[1]

    return run


def played(env: JaxEnv, games: list, actions: np.ndarray, **changes: int):
    """Observations, rewards, terminated and truncated, NumPy `[T, B, ...]`; nothing is reset."""
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[game.state() for game in games])
    states = states._replace(**{k: jnp.full(len(games), v) for k, v in changes.items()})
    return jax.tree.map(np.asarray, compiled(env.step)(states, actions))


def agree(env: JaxEnv, games: list, actions: np.ndarray) -> tuple[float, int]:
    """Asserts that each of `games` goes on as `env` does; the sum of rewards, and the ends."""
    screens, rewards, terminated, truncated = played(env, games, actions)
    total, ends = 0.0, 0
    for b, game in enumerate(games):
        for t, action in enumerate(actions[:, b]):
            reward, over = game.step(int(action))
            where = f"game {b}, step {t}"
            np.testing.assert_array_equal(screens[t, b], game.screen(), where)
            assert (rewards[t, b], terminated[t, b]) == (reward, over), where
            assert not truncated[t, b]
            total, ends = total + reward, ends + over
            if over:
                break
    return total, ends


@every_game
def test_rules_from_anywhere(name: str):
    env, somewhere, _ = GAMES[name]
    rng = np.random.default_rng(1)
    games = [somewhere(rng) for _ in range(600)]
    actions = rng.integers(games[0].actions, size=(16, len(games)), dtype=np.int32)
    total, ends = agree(env, games, actions)
    assert total > 300
    assert 100 < ends < 600


def flat(state) -> tuple:
    return tuple(np.concatenate([np.ravel(leaf) for leaf in state]).tolist())


@every_game
def test_rules_from_the_beginning(name: str):
    env, _, begin = GAMES[name]
    rng = np.random.default_rng(2)
    games = [begin(i) for i in range(40)]
    keys = jax.random.split(jax.random.key(1), 20)
    states, screens = jax.tree.map(np.asarray, jax.vmap(env.reset)(keys))
    rows = [jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in range(20)]
    drawn = {flat(row): screen.tobytes() for row, screen in zip(rows, screens, strict=True)}
    assert drawn == {flat(game.state()): game.screen().tobytes() for game in games}
    actions = rng.integers(games[0].actions, size=(120, len(games)), dtype=np.int32)
    actions[:, ::2] = actions[:, ::2] * (rng.random((120, 20)) < 0.2)  # many no-ops
    _, ends = agree(env, games, actions)
    assert ends > 20


# Games of MinAtar 1.0.15 with `sticky_action_prob=0`, from reset to the terminal step: the actions
# as places in its minimal action set, two bits each; then their number, the return, and the digest
# of every observation (`packbits` of the bool array) followed by the rewards (0 first, a byte each)
# as in `digest`. Bricks are rebuilt at step 396 and 414 of the first two. The third is left to the
# aliens until they move down from the bottom row. In the fourth a 2nd to 4th wave comes faster and
# faster, in the fifth at the same pace.
RECORDED = {
    "breakout-left": (
        "breakout",
        "4a0aa155552aaaa155552aaaa155552aaaa455552aaaa455552aaaa54a15554aaaa855554a8aa950"
        "554aaaa9552aa155552aaaa455552aaaa552a855554aaaa945554aaaa855559aaaa152a155552aaa"
        "a155552aaaa554552aaaa155552aaaa455552aa2a505552aaaa554552aaaa155552aa2",
        (460, 36, "b66cc03b2c1cbf43"),
    ),
    "breakout-right": (
        "breakout",
        "a50552aaa2955654aaaa155552aaaa155552aaaa155552aaaa455552aaaa52855554aaaa952a1555"
        "52aaaa545552aaaa556aa55554aaaa915554aaaa954554aaaa855554aaaa945554aaaa855554aaaa"
        "615554aaaa954554aaaa952a155552aaaa155552aaaa554552aaaa155552aaaa1555526aa0",
        (466, 35, "9ad3a440b9ca760d"),
    ),
    "invaders-landed": (
        "invaders",
        "00000001000010000100004000040000000000000000000080000000000000000000000200002000"
        "0400008000040000800c0800002000100001000016000040000800010c0010000000000000000000"
        "0000000000000000400000004000000000020000",
        (397, 2, "efa19f9276dcd61a"),
    ),
    "invaders": (
        "invaders",
        "fffd4afbfdf7d5fffdfffacff7feea77fccaebfecdff06f8c3ff4f35ddfbfc3bbab1dd5f4c0a8fff"
        "d7fcfebe0fddfffbefff1df7fefff7fffc017b5fc2effbfbaffeab81fff05d5ff7beeeaaf7dfc5fc"
        "fffcfdfdb2dda83ddf73f0bcccff95ee3d5fbb7eb3bcbf803f7ffabf5fff3c1ddf0eaffeff3c555d"
        "f37fe2fffbfdf3faffcbfce9eacc78175ff08350",
        (558, 86, "278869277e67f767"),
    ),
    "invaders-steady": (
        "invaders-steady",
        "f9733301ffffdfdbefffa7efeffe5df3fc3babff3aaffcf5cf75f77ffcdfdc0a9eebaabff77ed7cc"
        "eae7baba7ff7dff7f75dc3ffccf353cfffaff5cfffbeebabf6f70c3febe89dffc33ff15fcffffbbf"
        "fffbffe5777efbb7dceeffd57ffc07ccfaefaffffafabff100",
        (417, 69, "0f9401f1fc484197"),
    ),
}


def digest(observations: np.ndarray, rewards: np.ndarray) -> str:
    bits = np.packbits(observations > 0).tobytes()
    return hashlib.sha256(bits + rewards.astype(np.uint8).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("recording", RECORDED)
def test_games_recorded_from_minatar(recording: str):
    name, packed, (steps, total, expected) = RECORDED[recording]
    env, _, begin = GAMES[name]
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(packed), np.uint8)).reshape(-1, 2)
    actions = np.zeros((600, 1), np.int32)  # one length, one compilation
    actions[:steps, 0] = 2 * bits[:steps, 0] + bits[:steps, 1]
    game = begin(1 if recording == "breakout-left" else 0)
    screens, rewards, terminated, _ = (x[:steps, 0] for x in played(env, [game], actions))
    assert terminated[-1]
    assert not terminated[:-1].any()
    assert rewards.sum() == total
    whole = np.concatenate([game.screen()[None], screens])
    assert digest(whole, np.append(0, rewards)) == expected


# What pronk adds


def test_the_ball_starts_on_either_side():
    state, _ = jax.vmap(breakout.make().reset)(jax.random.split(jax.random.key(2), 2000))
    assert abs(np.mean(state.column == 0) - 0.5) < 0.045  # 4 standard deviations
    np.testing.assert_array_equal(state.right, np.where(state.column == 0, 1, -1))


def unrolled(env: JaxEnv, actions: np.ndarray):
    """The first slots, and slots and timesteps `[T, B, ...]` after each of the actions."""
    begin, _ = start(env, jax.random.key(0), jnp.arange(actions.shape[1]))

    def body(slots, action):
        slots, timestep = advance(env, slots, action)
        return slots, (slots, timestep)

    slots, timestep = jax.jit(partial(jax.lax.scan, body))(begin, actions)[1]
    return begin, slots, timestep


MAKERS = {"breakout": breakout.make, "invaders": space_invaders.make}
every_maker = pytest.mark.parametrize("name", MAKERS)


@every_maker
def test_sticky_actions_repeat_what_was_executed(name: str):
    env, sticky = MAKERS[name](), 0.1
    count = env.spec.action_space.n  # type: ignore[attr-defined]
    given = np.random.default_rng(3).integers(count, size=(60, 256), dtype=np.int32)
    begin, slots, timestep = unrolled(env, given)
    executed, first = np.asarray(slots.state.action), np.asarray(timestep.first)
    before = np.concatenate([np.asarray(begin.state.action)[None], executed[:-1]])
    assert first.any()
    assert not executed[first].any()
    tells = ~first & (given != before)
    repeats = executed == before
    assert ((executed == given) | repeats)[tells].all()
    deviation = (sticky * (1 - sticky) / tells.sum()) ** 0.5
    assert abs(repeats[tells].mean() - sticky) < 4 * deviation
    # Each slot and each step draws for itself.
    some, every = (tells & repeats), (~tells | repeats)
    assert (some.any(1) & ~every.all(1)).all()
    assert (some.any(0) & ~every.all(0)).mean() > 0.9
    # What is executed is what moves.
    mover = "paddle" if name == "breakout" else "cannon"
    place = np.asarray(getattr(slots.state, mover))
    came = np.concatenate([np.asarray(getattr(begin.state, mover))[None], place[:-1]])
    moved = np.clip(came + (executed == 2) - (executed == 1), 0, 9)
    np.testing.assert_array_equal(place[~first], moved[~first])
    np.testing.assert_array_equal(slots.state.t, slots.episode_length)


@every_maker
def test_without_sticky_actions_nothing_is_drawn(name: str):
    assert not MAKERS[name](sticky=0).stochastic
    assert MAKERS[name](sticky=0.01).stochastic


def test_where_every_action_repeats_none_is_executed():
    screens, *_ = played(breakout.make(sticky=1), [Breakout()], np.ones((3, 1), np.int32))
    assert (screens[:, 0, 9, 4, 0] == 255).all()


@every_maker
def test_an_episode_is_truncated_at_its_limit(name: str):
    game = Breakout() if name == "breakout" else SpaceInvaders()
    nothing = np.zeros((3, 1), np.int32)
    *_, truncated = played(MAKERS[name](sticky=0, max_steps=3), [game], nothing)
    np.testing.assert_array_equal(truncated[:, 0], [False, False, True])
    *_, truncated = played(GAMES[name][0], [game], nothing, t=997)
    np.testing.assert_array_equal(truncated[:, 0], [False, False, True])


@every_maker
def test_the_end_is_the_end_also_at_the_limit(name: str):
    if name == "breakout":
        game = Breakout()
        game.ball, game.paddle = (8, 1), 3
    else:
        game = SpaceInvaders()
        game.bombs = {(8, 5)}
    actions = np.array([[0, 1]], np.int32)  # the second game is saved
    *_, terminated, truncated = played(GAMES[name][0], [game, game], actions, t=999)
    np.testing.assert_array_equal(terminated[0], [True, False])
    np.testing.assert_array_equal(truncated[0], [False, True])


@every_maker
def test_observations_are_images_with_a_picture(name: str):
    env = MAKERS[name]()
    assert is_image(env.spec.observation_space)
    game = Breakout() if name == "breakout" else SpaceInvaders()
    colours = (breakout if name == "breakout" else space_invaders).COLOURS
    if name == "breakout":
        game.ball, game.trail = (6, 5), (5, 4)
    else:
        game.bullets, game.bombs, game.heading = {(6, 5)}, {(7, 1)}, 1
    assert env.render is not None
    picture = env.render(jax.tree.map(np.asarray, game.state()))
    assert (picture.dtype, picture.shape) == (np.uint8, (240, 240, 3))
    expected = np.full((10, 10, 3), 30)
    for row, column, channel in np.argwhere(game.screen()):
        expected[row, column] = colours[channel]
    np.testing.assert_array_equal(picture, expected.repeat(24, 0).repeat(24, 1))
    assert len(np.unique(expected.reshape(-1, 3), axis=0)) == 5
