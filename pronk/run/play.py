"""A board game between a person and a trained agent, in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable

import jax
import numpy as np

from pronk import envs
from pronk.envs import boards
from pronk.envs.board_rules import Board
from pronk.errors import UserError
from pronk.run.policy import Policy


def play(
    policy: Policy,
    *,
    begins: bool,
    sample: bool = False,
    seed: int = 0,
    ask: Callable[[str], str] = input,
    say: Callable[[str], None] = print,
) -> float:
    """Play one game; returns the person's outcome: 1, 0 or -1.

    begins: whether the person makes the first move. sample: the agent draws its actions instead of
    taking the most likely. ask: reads a line after a prompt. say: shows a line. Raises UserError
    for a policy that was not trained on a board game, and SystemExit where the input ends.
    """
    name = policy.env
    if not envs.is_board(name):
        raise UserError(
            f"'{policy.plan.env}' is not a board game for two players; give a run of"
            f" {' or '.join(boards.NAMES)}."
        )
    board = boards.board_of(name, policy.plan.env_args)
    env = boards.make(name, board)
    assert env.action_mask is not None
    step, key = jax.jit(env.step), jax.random.key(0)
    state, observation = env.reset(key)
    carry = policy.initial_carry(seed=seed, sample=sample)
    is_person = begins
    say(f"You are {'X' if begins else 'O'}, {policy.plan.agent} is {'O' if begins else 'X'}.")
    reward = 0.0
    while not state.over:
        mask = np.asarray(env.action_mask(state))
        if is_person:
            _show(board, state, say)
            action = _ask_move(board, mask, ask, say)
        else:
            chosen, carry = policy.act(np.asarray(observation), carry, action_mask=mask)
            action = int(chosen)
            say(f"{policy.plan.agent}: {_thing(board)} {action + 1}")
        state, observation, reward, _, _ = step(state, np.int32(action), key)
        is_person = not is_person
    _show(board, state, say)
    outcome = float(reward) if not is_person else -float(reward)
    say({1: "You have won.", 0: "A draw.", -1: "You have lost."}[round(outcome)])
    return outcome


def _thing(board: Board) -> str:
    return "column" if board.gravity else "cell"


def _show(board: Board, state: boards.State, say: Callable[[str], None]) -> None:
    """The board: X are the stones of the side that began, numbers the moves."""
    own, other = ("X", "O") if state.first else ("O", "X")
    cells = np.where(np.asarray(state.own), own, np.where(np.asarray(state.other), other, "."))
    rows = cells.tolist()
    if board.gravity:
        rows.insert(0, [str(i + 1) for i in range(board.width)])
    else:
        numbered = [str(i + 1) if c == "." else c for i, c in enumerate(cells.ravel())]
        rows = [numbered[i : i + board.width] for i in range(0, board.cells, board.width)]
    width = len(str(board.actions))
    say("")
    for row in rows:
        say(" ".join(f"{cell:>{width}}" for cell in row))


def _ask_move(
    board: Board, mask: np.ndarray, ask: Callable[[str], str], say: Callable[[str], None]
) -> int:
    """A legal action; asks again until there is one."""
    thing, last = _thing(board), board.actions
    while True:
        try:
            text = ask(f"Your {thing} (1 to {last}): ").strip()
        except EOFError:
            print("\npronk: the input has ended before the game", file=sys.stderr)
            raise SystemExit(1) from None
        if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= last):
            say(f"'{text}' is not a whole number from 1 to {last}.")
        elif not mask[int(text) - 1]:
            say(f"The {thing} {int(text)} is {'full' if board.gravity else 'taken'}.")
        else:
            return int(text) - 1
