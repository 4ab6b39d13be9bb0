"""The agents: one file per system, each with a `make(config, spec, horizon=...) -> Agent`."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from pronk.config import fields
from pronk.config.registry import AgentLike, agent_module, agent_name
from pronk.errors import UserError

if TYPE_CHECKING:
    from pronk.types import Agent, EnvSpec

_made: deque[tuple[tuple[Any, ...], Agent]] = deque(maxlen=16)  # the latest, with what they are of
_lock = threading.RLock()


def make(agent: AgentLike, config: Any, spec: EnvSpec, *, horizon: int) -> Agent:
    """The agent as a bundle of pure functions; schedules end at `horizon` agent steps.

    The agent's own module gets a configuration of numbers only: schedules are put around it.

    Equal arguments give the same functions again, which share what JAX has compiled for them.
    Raises UserError for an unknown agent, one whose `make` makes none, a space that the agent can't
    handle, an environment with two players for an agent that plays one side, or a torso that is not
    the agent's default and convolves images where there are none.
    """
    arguments = agent_module(agent).make, config, spec, horizon
    with _lock:
        for earlier, made in _made:
            if earlier == arguments:
                return made
        _check_torso(config, spec)
        from pronk.agents import schedules  # slow to import
        from pronk.types import Agent

        numbers, changing = schedules.split(config)
        made = arguments[0](numbers, spec, horizon=horizon)

        if not isinstance(made, Agent):
            raise UserError(
                f"`make` of agent '{agent_name(agent)}' returned a {type(made).__name__}; expected"
                " a `pronk.types.Agent`. See docs/extending.md."
            )
        _check_players(agent_name(agent), made, spec)
        if changing:
            near_one = fields.near_one(type(config))
            learnt = getattr(numbers, "transitions_learnt", int)
            made = schedules.scheduled(
                made, changing, horizon=horizon, near_one=near_one, learnt=learnt
            )
        _made.append((arguments, made))
    return made


def _check_players(name: str, agent: Agent, spec: EnvSpec) -> None:
    """Raise UserError if the rewards are those of two sides, and the agent takes them for one's."""
    if spec.players > 1 and not agent.two_players:
        raise UserError(
            f"agent '{name}' learns from the rewards of one player, and in `env` '{spec.name}' it"
            " would play both sides; use muzero, or give the environment an opponent, `--env-arg"
            " opponent=random`."
        )


def _check_torso(config: Any, spec: EnvSpec) -> None:
    """Raise UserError if the user chose a torso for images and the observations have none. An
    agent's default torso is allowed, because it stays unused then."""
    from pronk.nn import networks  # slow to import

    torso = getattr(config, "torso", None)
    if torso is not None and torso != getattr(type(config), "torso", None):
        networks.check_torso(spec.observation_space, torso)
