"""The agents: one file per system, each with a `make(config, spec, horizon=...) -> Agent`."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from pronk.config.registry import AgentLike, agent_module, agent_name
from pronk.errors import UserError

if TYPE_CHECKING:
    from pronk.types import Agent, EnvSpec

_made: deque[tuple[tuple[Any, ...], Agent]] = deque(maxlen=16)  # the latest, with what they are of
_lock = threading.RLock()


def make(agent: AgentLike, config: Any, spec: EnvSpec, *, horizon: int) -> Agent:
    """The agent as a bundle of pure functions; its schedules end at `horizon` agent steps.

    Equal arguments give the same functions again, which share what JAX has compiled for them.
    Raises UserError for an unknown agent, one whose `make` makes none, a space that the agent can't
    handle, or a torso that is not the agent's default and convolves images where there are none.
    """
    arguments = agent_module(agent).make, config, spec, horizon
    with _lock:
        for earlier, made in _made:
            if earlier == arguments:
                return made
        _check_torso(config, spec)
        made = arguments[0](config, spec, horizon=horizon)
        from pronk.types import Agent  # slow to import

        if not isinstance(made, Agent):
            raise UserError(
                f"`make` of agent '{agent_name(agent)}' returned a {type(made).__name__}; expected"
                " a `pronk.types.Agent`. See docs/extending.md."
            )
        _made.append((arguments, made))
    return made


def _check_torso(config: Any, spec: EnvSpec) -> None:
    """Raise UserError if the user chose a torso for images and the observations have none. An
    agent's default torso is allowed, because it stays unused then."""
    from pronk.nn import networks  # slow to import

    torso = getattr(config, "torso", None)
    if torso is not None and torso != getattr(type(config), "torso", None):
        networks.check_torso(spec.observation_space, torso)
