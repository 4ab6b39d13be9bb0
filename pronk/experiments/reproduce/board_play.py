"""How well a policy plays a solved board game: exhaustive play, games against perfect play, and the
share of moves that keep a position's value; and games of policies against each other.

Positions are stones as the side that moves sees them, bool `[n, H, W]`: its own, and the other's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from pronk.envs.board_rules import Board
from pronk.envs.board_solver import Solution
from pronk.run.policy import Policy
from pronk.types import Array, PyTree, TimeStep

BATCH = 256  # positions that a policy decides together
DRAWS = 20  # times that random positions are drawn


class Positions(NamedTuple):
    """Positions of a running game."""

    own: np.ndarray
    other: np.ndarray

    def take(self, which: Array) -> Positions:
        """Some of them."""
        return Positions(self.own[which], self.other[which])


Mover = Callable[[Positions], np.ndarray]  # the actions of n positions, int32 [n]


def mover(policy: Policy) -> Mover:
    """The moves of a policy, without exploration."""
    agent, key = policy.agent, jax.random.key(0)
    ids, no = np.arange(BATCH, dtype=np.int32), np.zeros(BATCH, bool)
    carry = agent.initial_carry(key, ids, BATCH, True)

    @jax.jit
    def act(behaviour: PyTree, observation: Array, mask: Array) -> Array:
        timestep = TimeStep(observation, no.astype(np.float32), no, no, ~no, 0 * ids, mask)
        return agent.act(behaviour, carry, timestep, key)[0]

    def moves(positions: Positions) -> np.ndarray:
        planes = np.stack(positions, axis=-1).astype(np.uint8) * 255
        mask = _legal(positions.own | positions.other, agent_actions(policy))
        actions = []
        for i in range(0, len(planes), BATCH):
            rows, allowed = planes[i : i + BATCH], mask[i : i + BATCH]
            missing = BATCH - len(rows)
            padded = np.pad(rows, ((0, missing), *((0, 0),) * 3))
            allowed = np.pad(allowed, ((0, missing), (0, 0)), constant_values=True)
            actions.append(np.asarray(act(policy.behaviour, padded, allowed))[: len(rows)])
        return np.concatenate(actions) if actions else np.zeros(0, np.int32)

    return moves


def agent_actions(policy: Policy) -> int:
    """The number of a policy's actions."""
    return int(policy.spec.action_space.n)  # type: ignore[attr-defined]


def _legal(occupied: np.ndarray, actions: int) -> np.ndarray:
    columns = occupied.shape[-1] == actions
    return ~occupied[:, 0] if columns else ~occupied.reshape(len(occupied), -1)


def play(board: Board, positions: Positions, action: np.ndarray) -> Positions:
    """The positions after legal actions, int `[n]`, as the other side sees them."""
    occupied = positions.own | positions.other
    rows, columns = np.divmod(action, board.width)
    if board.gravity:
        columns = action
        rows = (~occupied[np.arange(len(action)), :, columns]).sum(axis=-1) - 1
    own = positions.own.copy()
    own[np.arange(len(action)), rows, columns] = True
    return Positions(positions.other, own)


def outcomes(board: Board, positions: Positions) -> tuple[np.ndarray, np.ndarray]:
    """Which games have ended, bool `[n]`, and their outcome for the side that would move: −1 where
    the other side has a line, else 0."""
    flat = positions.other.reshape(len(positions.other), -1)
    lost = np.any(np.all(flat[:, board.lines()], axis=-1), axis=-1)
    full = np.all(positions.own | positions.other, axis=(1, 2))
    return np.logical_or(lost, full), np.where(lost, -1, 0)


def start(board: Board, count: int = 1) -> Positions:
    """Empty boards."""
    empty = np.zeros((count, *board.shape), bool)
    return Positions(empty, empty.copy())


class Exhaustive(NamedTuple):
    """The results of all lines of play that a policy's opponent can choose."""

    won: int
    drawn: int
    lost: int
    wins_offered: int  # positions, each once, in which the policy could force a win
    wins_kept: int  # of these, those in which its move kept the win


def exhaustive(board: Board, solution: Solution, move: Mover, *, begins: bool) -> Exhaustive:
    """Play every line against a policy: the opponent makes each of its legal moves."""
    positions, lines, moves_now = start(board), np.ones(1, np.int64), begins
    results, offered, kept = {1: 0, 0: 0, -1: 0}, 0, 0
    while len(lines):
        if moves_now:
            action = move(positions)
            value, mistakes = solution.look_up(*positions)
            winning = value == 1
            offered += int(winning.sum())
            kept += int((winning & (mistakes >> action & 1 == 0)).sum())
            positions = play(board, positions, action)
        else:
            legal = _legal(positions.own | positions.other, board.actions)
            parent, action = np.nonzero(legal)
            positions, lines = play(board, positions.take(parent), action), lines[parent]
        ended, outcome = outcomes(board, positions)
        outcome = -outcome if moves_now else outcome  # for the policy
        for result in results:
            results[result] += int(lines[ended & (outcome == result)].sum())
        positions, lines = positions.take(~ended), lines[~ended]
        if len(lines):
            positions, lines = _merged(positions, lines)
        moves_now = not moves_now
    return Exhaustive(results[1], results[0], results[-1], offered, kept)


def _merged(positions: Positions, lines: np.ndarray) -> tuple[Positions, np.ndarray]:
    """Equal positions as one, with the sum of their lines."""
    first, which = _distinct(positions)
    total = np.zeros(len(first), np.int64)
    np.add.at(total, which, lines)
    return positions.take(first), total


def _distinct(positions: Positions) -> tuple[np.ndarray, np.ndarray]:
    """Where each different position is first, and which of these every position equals."""
    rows = np.stack(positions, axis=1).reshape(len(positions.own), -1)
    _, first, which = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return first, which.ravel()


def random_positions(board: Board, count: int, rng: np.random.Generator) -> Positions:
    """Different positions of running games of random moves, after a number of moves that is drawn
    uniformly: `count` of them, or fewer where there are hardly as many."""
    different = Positions(*np.zeros((2, 0, *board.shape), bool))
    for _ in range(DRAWS):
        if len(different.own) >= count:
            break
        moves = rng.integers(0, board.cells, 4 * count)
        positions = start(board, len(moves))
        running = np.ones(len(moves), bool)
        for i in range(int(moves.max())):
            here = np.flatnonzero(running & (moves > i))
            after = play(
                board, positions.take(here), _random_moves(board, positions.take(here), rng)
            )
            positions.own[here], positions.other[here] = after
            running[here] = ~outcomes(board, after)[0]
        new = positions.take(np.flatnonzero(running))
        joined = Positions(*(np.concatenate(x) for x in zip(different, new, strict=True)))
        different = joined.take(np.sort(_distinct(joined)[0]))
    return different.take(np.arange(min(count, len(different.own))))


def _random_moves(board: Board, positions: Positions, rng: np.random.Generator) -> np.ndarray:
    legal = _legal(positions.own | positions.other, board.actions)
    return (rng.random(legal.shape) * legal).argmax(axis=-1)


def keeps_value(solution: Solution, move: Mover, positions: Positions) -> float:
    """The share of the positions in which the policy's move keeps the value."""
    mistakes = solution.look_up(*positions)[1]
    return float(np.mean(mistakes >> move(positions) & 1 == 0))


def against_perfect(
    board: Board,
    solution: Solution,
    move: Mover,
    openings: Positions,
    rng: np.random.Generator,
) -> float:
    """The share of games from the openings, in which the policy moves first, that end with the
    value of the opening, against an opponent that draws its moves from the best ones."""
    value = solution.look_up(*openings)[0].astype(int)
    positions, games = openings, np.arange(len(value))
    result, moves_now = np.zeros(len(value), int), True
    while len(games):
        if moves_now:
            action = move(positions)
        else:
            legal = _legal(positions.own | positions.other, board.actions)
            mistakes = solution.look_up(*positions)[1]
            best = legal & (mistakes[:, None] >> np.arange(board.actions) & 1 == 0)
            action = (rng.random(best.shape) * best).argmax(axis=-1)
        positions = play(board, positions, action)
        ended, outcome = outcomes(board, positions)
        result[games[ended]] = (-outcome if moves_now else outcome)[ended]
        positions, games, moves_now = positions.take(~ended), games[~ended], not moves_now
    return float(np.mean(result == value))


def tournament(board: Board, movers: Sequence[Mover], openings: Positions) -> np.ndarray:
    """The outcomes, 1, 0 or −1, for mover i of the games that it begins from each opening against
    mover j, int8 `[movers, movers, openings]`; 0 where i = j, which is not played.

    Moves depend on the position alone, so that equal positions are decided once.
    """
    shape = len(movers), len(movers), len(openings.own)
    first, second, opening = (x.ravel() for x in np.indices(shape))
    players, results = np.stack([first, second]), np.zeros(first.size, np.int8)
    games = np.flatnonzero(first != second)
    positions, turn = openings.take(opening[games]), 0
    while len(games):
        action = np.zeros(len(games), int)
        for i, move in enumerate(movers):
            here = np.flatnonzero(players[turn, games] == i)
            if len(here):
                own = positions.take(here)
                each, which = _distinct(own)
                action[here] = move(own.take(each))[which]
        positions = play(board, positions, action)
        ended, outcome = outcomes(board, positions)
        results[games[ended]] = (outcome if turn else -outcome)[ended]
        positions, games, turn = positions.take(~ended), games[~ended], 1 - turn
    return results.reshape(shape)
