"""Board games: rules, solver, opponents, evaluation, and play in a terminal."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pronk import envs
from pronk.envs import board_solver, boards
from pronk.envs.board_opponents import Opponent
from pronk.envs.board_rules import Board
from pronk.envs.jax_env import JaxEnv, advance, start
from pronk.envs.suite import tasks_of
from pronk.errors import UserError

KEY = jax.random.key(0)
TIC_TAC_TOE = Board(3, 3, 3, gravity=False)
SMALL = Board(4, 4, 4, gravity=True)
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))


class Reference:
    """The rules, one game, in plain Python; 1 and -1 are the stones of the two sides."""

    def __init__(self, board: Board) -> None:
        self.board, self.mover, self.reward, self.over = board, 1, 0, False
        self.grid = [[0] * board.width for _ in range(board.height)]

    def cell(self, action: int) -> tuple[int, int] | None:
        if not self.board.gravity:
            row, column = divmod(action, self.board.width)
            return None if self.grid[row][column] else (row, column)
        free = [r for r in range(self.board.height) if not self.grid[r][action]]
        return (free[-1], action) if free else None

    def legal(self) -> list[bool]:
        return [self.over or self.cell(a) is not None for a in range(self.board.actions)]

    def step(self, action: int) -> None:
        cell = self.cell(action)
        if cell is None:
            self.reward, self.over = -1, True
        else:
            self.grid[cell[0]][cell[1]] = self.mover
            self.reward = int(self.is_line(*cell))
            self.over = self.reward == 1 or all(all(row) for row in self.grid)
        self.mover = -self.mover

    def count(self, row: int, column: int, down: int, right: int) -> int:
        """Stones of the cell's own side from its neighbour on."""
        side, n = self.grid[row][column], 0
        while True:
            row, column = row + down, column + right
            inside = 0 <= row < self.board.height and 0 <= column < self.board.width
            if not inside or self.grid[row][column] != side:
                return n
            n += 1

    def is_line(self, row: int, column: int) -> bool:
        return any(
            1 + self.count(row, column, down, right) + self.count(row, column, -down, -right)
            >= self.board.in_a_row
            for down, right in DIRECTIONS
        )

    def stones(self, side: int) -> np.ndarray:
        return np.array(self.grid) == side

    def observation(self) -> np.ndarray:
        return np.stack([self.stones(self.mover), self.stones(-self.mover)], -1)


@functools.cache
def functions(board: Board) -> tuple[Any, ...]:
    """Reset, step, mask and score of self-play, each vmapped and jitted."""
    env = boards.make("board", board)
    assert env.action_mask is not None
    assert env.score is not None
    step = jax.vmap(lambda state, action: env.step(state, action, KEY))
    whole = (jax.vmap(env.reset), step, jax.vmap(env.action_mask), jax.vmap(env.score))
    return tuple(map(jax.jit, whole))


def play(board: Board, *games: list[int]) -> tuple[Any, ...]:
    """The last result of each game: state, observation, reward, terminated, truncated."""
    reset, step, *_ = functions(board)
    results = []
    for game in games:
        state = reset(jax.random.split(KEY, 1))[0]
        for action in game:
            result = step(state, np.array([action], np.int32))
            state = result[0]
        results.append(jax.tree.map(lambda x: np.asarray(x)[0], result))
    return tuple(results)


# Rules


@pytest.mark.parametrize(
    "board",
    [TIC_TAC_TOE, Board(6, 7, 4, True), Board(2, 5, 3, True), Board(4, 3, 2, False)],
    ids=str,
)
@pytest.mark.parametrize("illegal", [False, True])
def test_random_games_follow_the_rules(board: Board, illegal: bool) -> None:
    """Also with actions that ignore the mask."""
    games, rng = 50, np.random.default_rng(0)
    reset, step, mask_of, score_of = functions(board)
    state, observation = reset(jax.random.split(KEY, games))
    references = [Reference(board) for _ in range(games)]
    outcomes = np.zeros(games)
    for ply in range(board.cells):
        mask = np.asarray(mask_of(state))
        drawn = rng.random(mask.shape)
        action = np.where(mask | illegal, drawn, -1).argmax(-1).astype(np.int32)
        running = [not r.over for r in references]
        for i in np.flatnonzero(running):
            assert mask[i].tolist() == references[i].legal()
            np.testing.assert_array_equal(observation[i], 255 * references[i].observation())
            references[i].step(int(action[i]))
            outcomes[i] = references[i].reward * (-1) ** ply
        state, observation, reward, terminated, truncated = step(state, action)
        assert not np.asarray(truncated).any()
        expected = [(r.reward, r.over) for r in references]
        found = list(zip(reward.tolist(), terminated.tolist(), strict=True))
        assert [e for e, on in zip(expected, running, strict=True) if on] == [
            f for f, on in zip(found, running, strict=True) if on
        ]
        for i in np.flatnonzero(running):
            np.testing.assert_array_equal(observation[i], 255 * references[i].observation())
            if references[i].over:
                assert float(score_of(state)[i]) == outcomes[i]
                assert np.asarray(mask_of(state))[i].all()  # whatever is drawn is ignored
    assert all(r.over for r in references)
    assert {-1, 1} <= set(outcomes) or board.in_a_row == 2


@pytest.mark.parametrize(
    ("game", "row"),
    [
        ([0, 3, 1, 4, 2], "row"),
        ([0, 1, 3, 2, 6], "column"),
        ([0, 1, 4, 2, 8], "diagonal down"),
        ([2, 0, 4, 1, 6], "diagonal up"),
    ],
)
def test_lines_of_tic_tac_toe(game: list[int], row: str) -> None:
    before, after = play(TIC_TAC_TOE, game[:-1], game)
    assert (before[2], before[3]) == (0, False)
    assert (after[2], after[3], after[0].outcome) == (1, True, 1), row


def test_lines_of_connect_four() -> None:
    board = Board(6, 7, 4, gravity=True)
    row, column = [0, 0, 1, 1, 2, 2, 3], [6, 0, 6, 1, 6, 2, 6]
    up, down = [0, 1, 1, 2, 2, 3, 2, 3, 3, 6, 3], [6, 5, 5, 4, 4, 3, 4, 3, 3, 0, 3]
    for result in play(board, row, column, up, down):
        assert (result[2], result[3], result[0].outcome) == (1, True, 1)
    lost = [4, *row[:-1], 5, 3]  # the second side has the row
    (result,) = play(board, [6, 0, 6, 1, 5, 2, 5, 3])
    assert (result[2], result[3], result[0].outcome) == (1, True, -1), lost


def test_stones_fall_and_are_those_of_the_mover() -> None:
    (result,) = play(SMALL, [2, 2, 0])
    own = np.zeros((4, 4), bool)
    own[2, 2] = True  # the second side's stone, on the first one's
    other = np.zeros((4, 4), bool)
    other[3, 2] = other[3, 0] = True
    np.testing.assert_array_equal(result[1], 255 * np.stack([own, other], -1))
    assert result[1].dtype == np.uint8


def test_a_full_board_without_a_line_is_a_draw() -> None:
    (result,) = play(TIC_TAC_TOE, [0, 1, 2, 4, 3, 5, 7, 6, 8])
    assert (result[2], result[3], result[0].outcome) == (0, True, 0)


def test_a_line_on_the_last_free_cell_wins() -> None:
    (result,) = play(TIC_TAC_TOE, [0, 1, 2, 3, 5, 4, 7, 6, 8])
    assert (result[2], result[3], result[0].outcome) == (1, True, 1)


@pytest.mark.parametrize("outside", [-1, 4, 7])
def test_an_illegal_action_loses_and_puts_no_stone(outside: int) -> None:
    before, full, unknown = play(SMALL, [0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, outside])
    for result in (full, unknown):
        assert (result[2], result[3], result[0].outcome) == (-1, True, -1)
        np.testing.assert_array_equal(result[0].own, before[0].other)
        np.testing.assert_array_equal(result[0].other, before[0].own)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"width": 0}, "width=0"),
        ({"height": -1}, "height=-1"),
        ({"in_a_row": 0}, "in_a_row=0"),
        ({"in_a_row": 8}, "in_a_row=8"),
        ({"height": 101}, "height=101, in_a_row=4; expected whole numbers from 1 to 100"),
        ({"width": [7]}, r"width=\[7\]; expected one number or word"),
        ({"width": 5.5}, "width=5.5"),
        ({"width": True}, "width=True"),
        ({"height": "six"}, "height='six'"),
        ({"opponent": "perfekt"}, "opponent='perfekt'"),
        ({"opponent": 3}, "opponent=3"),
        ({"opponent": "perfect"}, "use a smaller board"),
        ({"side": "first"}, "without an opponent"),
        ({"side": "third", "opponent": "random"}, "side='third'"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        envs.spec_of("pronk/ConnectFour-v0", wrong)
    with pytest.raises(UserError, match="does not accept"):
        envs.spec_of("pronk/TicTacToe-v0", {"width": 3})


def test_specs_name_the_players() -> None:
    assert envs.spec_of("pronk/TicTacToe-v0").players == 2
    assert envs.spec_of("pronk/TicTacToe-v0", {"opponent": "random"}).players == 1
    assert envs.spec_of("pronk/Catch-v0").players == 1
    both = "pronk/TicTacToe-v0,pronk/ConnectFour-v0"
    assert tasks_of(both)
    assert envs.spec_of(both).players == 2
    with pytest.raises(UserError, match=r"opponent=random"):
        envs.spec_of("pronk/TicTacToe-v0,pronk/Catch-v0")
    assert envs.spec_of("pronk/TicTacToe-v0?opponent=random,pronk/Catch-v0").players == 1


# The solver


@pytest.mark.parametrize(
    ("board", "count", "value"),
    [
        (TIC_TAC_TOE, 5_478, 0),
        (SMALL, 161_029, 0),
        (Board(3, 3, 3, True), 694, None),
        pytest.param(Board(5, 4, 4, True), 1_706_255, 0, marks=pytest.mark.extended),
        pytest.param(Board(4, 5, 4, True), 3_945_711, 0, marks=pytest.mark.extended),
    ],
    ids=str,
)
def test_the_solver_counts_positions(board: Board, count: int, value: int | None) -> None:
    """The counts of positions are those of Tromp's table (tromp.github.io/c4/c4.html)."""
    solution = board_solver.solve(board)
    assert len(solution.keys) == count
    empty = np.zeros(board.shape, bool)
    assert value is None or solution.look_up(empty, empty)[0] == value
    assert board_solver.solve(Board(*board)) is solution


def minimax(game: Reference) -> int:
    """The value for the side that moves."""
    if game.over:
        return -game.reward
    return max(-minimax(after(game, a)) for a in np.flatnonzero(game.legal()))


def after(game: Reference, action: int) -> Reference:
    copy = Reference(game.board)
    copy.grid, copy.mover = [list(row) for row in game.grid], game.mover
    copy.step(int(action))
    return copy


@pytest.mark.parametrize(
    ("board", "plies"),
    [(TIC_TAC_TOE, 3), (SMALL, 8), (Board(3, 4, 3, True), 4), (Board(2, 5, 2, True), 0)],
    ids=str,
)
def test_the_solver_agrees_with_minimax(board: Board, plies: int) -> None:
    """On random positions with at least so many stones."""
    rng = np.random.default_rng(0)
    solution, positions = board_solver.solve(board), 0
    while positions < 40:
        game = Reference(board)
        for _ in range(rng.integers(plies, board.cells + 1)):
            if not game.over:
                game = after(game, rng.choice(np.flatnonzero(game.legal())))
        if np.count_nonzero(game.grid) < plies:
            continue
        value, mistakes = solution.look_up(game.stones(game.mover), game.stones(-game.mover))
        assert value == minimax(game)
        actions = [] if game.over else np.flatnonzero(game.legal())
        worse = [a for a in actions if -minimax(after(game, a)) < value]
        assert mistakes == sum(1 << a for a in worse)
        positions += 1


@pytest.mark.parametrize(
    "board",
    [Board(6, 7, 4, True), Board(3, 7, 4, True), Board(2, 9, 4, True), Board(3, 4, 3, False)],
    ids=str,
)
def test_the_solver_refuses_large_boards(board: Board) -> None:
    assert not board_solver.can_solve(board)
    with pytest.raises(UserError, match="too many positions"):
        board_solver.solve(board)


def test_unreachable_positions_are_refused() -> None:
    full = np.ones((3, 3), bool)
    with pytest.raises(ValueError, match="cannot be reached"):
        board_solver.solve(TIC_TAC_TOE).look_up(full, ~full)


# Opponents


def first_games(env: JaxEnv, policy: Any, num_envs: int, plies: int) -> Any:
    """The rows [T + 1, B] of the first episode of each slot, and whether they belong to it.

    policy: (observation, mask, key) -> action.
    """

    @jax.jit
    def run(key: Any) -> Any:
        def body(carry: Any, key: Any) -> Any:
            slots, row = carry
            keys = jax.random.split(key, num_envs)
            action = jax.vmap(policy)(row.observation, row.action_mask, keys)
            slots, row = advance(env, slots, action)
            return (slots, row), (row, slots.episode_return)

        begun = start(env, key, jnp.arange(num_envs))
        rows = jax.lax.scan(body, begun, jax.random.split(key, plies))[1]
        return begun[1], *rows

    begun, rows, returns = jax.tree.map(np.asarray, run(jax.random.key(1)))
    ended = rows.terminated
    assert ended.any(0).all()
    last = ended.argmax(0)
    return begun, rows, last, returns[last, np.arange(num_envs)]


def anything(observation: Any, mask: Any, key: Any) -> Any:
    return jnp.argmax(jnp.where(mask, jax.random.uniform(key, mask.shape), -1)).astype(jnp.int32)


def test_a_random_opponent() -> None:
    """The shares of won and lost games are those of random play, 58.5 % and 28.8 %."""
    env = boards.make_tic_tac_toe("random")
    assert env.stochastic
    assert env.score is None
    games = 4000
    begun, rows, last, returns = first_games(env, anything, games, 5)
    stones = (begun.observation > 0).sum((1, 2))
    second = stones[:, 1] == 1
    assert not stones[:, 0].any()
    assert second.mean() == pytest.approx(0.5, abs=0.03)
    for moves, won, lost in ((~second, 0.585, 0.288), (second, 0.288, 0.585)):
        assert (returns[moves] == 1).mean() == pytest.approx(won, abs=0.04)
        assert (returns[moves] == -1).mean() == pytest.approx(lost, abs=0.04)
    reward = rows.reward[last, np.arange(games)]
    np.testing.assert_array_equal(reward, returns)
    # The agent's stones come first, in the terminal observation too, and the mask fits them.
    for t in range(5):
        on = t < last
        own, other = (rows.observation[t] > 0).sum((1, 2)).T
        np.testing.assert_array_equal(own[on], t + 1)
        np.testing.assert_array_equal(other[on], t + 1 + second[on])
        free = ~(rows.observation[t] > 0).any(-1).reshape(games, 9)
        np.testing.assert_array_equal(rows.action_mask[t][on], free[on])
        assert not rows.reward[t][on].any()


@pytest.mark.parametrize("side", ["first", "second"])
def test_the_side_can_be_chosen(side: str) -> None:
    env = boards.make_tic_tac_toe("random", side)
    _, observation = jax.jit(jax.vmap(env.reset))(jax.random.split(KEY, 20))
    stones = (np.asarray(observation) > 0).sum((1, 2))
    assert stones.tolist() == [[0, int(side == "second")]] * 20


@pytest.mark.parametrize("in_a_row", [None, 3, pytest.param(4, marks=pytest.mark.extended)])
def test_a_perfect_opponent_never_loses(in_a_row: int | None) -> None:
    """Where the game is a draw; on a board of width 4 and height 4 with lines of 3, the side that
    begins wins, so the opponent always does."""
    if in_a_row is None:
        env, plies = boards.make_tic_tac_toe("perfect"), 5
    else:
        side = "second" if in_a_row == 3 else "random"
        env, plies = boards.make_connect_four(4, 4, in_a_row, "perfect", side), 8
    begun, _, _, returns = first_games(env, anything, 500, plies)
    assert returns.max() == (-1 if in_a_row == 3 else 0)
    assert (returns == -1).mean() > 0.5
    if in_a_row is None:  # among equally good openings, any
        openings = begun.observation[..., 1].reshape(500, 9).any(0)
        assert openings.all()


def test_perfect_players_draw() -> None:
    from pronk.envs.board_opponents import perfect

    env = boards.make_tic_tac_toe("perfect")
    assert not first_games(env, perfect(TIC_TAC_TOE), 200, 5)[3].any()


def test_an_opponent_may_be_a_function() -> None:
    def leftmost(observation: Any, mask: Any, key: Any) -> Any:
        assert (observation.shape, mask.shape) == ((4, 4, 2), (4,))
        return jnp.argmax(mask)

    env = boards.make_connect_four(4, 4, opponent=leftmost, side="second")
    begun, rows, last, returns = first_games(env, lambda *_: jnp.int32(3), 2, 8)
    assert (begun.observation[:, 3, 0, 1] == 255).all()
    assert last.tolist() == [2, 2]  # four stones in the left column
    assert returns.tolist() == [-1, -1]
    assert (rows.observation[2, :, :, 0, 1] == 255).all()


def test_an_opponent_that_moves_illegally_loses() -> None:
    env = boards.make_tic_tac_toe(lambda *_: jnp.int32(0), "first")
    assert first_games(env, lambda *_: jnp.int32(0), 2, 1)[3].tolist() == [1, 1]


def test_an_opponent_has_a_memory() -> None:
    """It counts its moves, from 0 in each episode."""
    counting = Opponent(
        lambda key: jnp.int32(0), lambda memory, observation, mask, key: (memory, memory + 1)
    )
    env = boards.make_tic_tac_toe(counting, "second")
    slots, row = start(env, KEY, jnp.arange(1))
    step = jax.jit(functools.partial(advance, env))
    for _ in range(2):
        assert row.observation[0, ..., 1].ravel().tolist() == [255, 0, 0, 0, 0, 0, 0, 0, 0]
        for action in (3, 4):
            slots, row = step(slots, jnp.full(1, action))
        assert row.observation[0, ..., 1].ravel().tolist() == [255, 255, 255, 0, 0, 0, 0, 0, 0]
        assert float(row.reward[0]) == -1
        slots, row = step(slots, jnp.zeros(1, int))
