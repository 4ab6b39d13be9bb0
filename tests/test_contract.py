"""An agent whose functions return the wrong thing is refused before anything is trained."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

import pronk
from examples import custom_agent
from pronk.errors import UserError
from pronk.run.contract import check_agent
from pronk.run.resolve import resolve
from pronk.run.setup import build
from pronk.types import Agent

TINY: dict[str, Any] = {"unroll": 4, "batch_size": 4, "hidden_sizes": (8,), "quiet": True}


def after(name: str, change: Callable[[Any], Any]) -> Callable[[Agent], Any]:
    """An agent, of which what the function `name` returns is changed."""

    def broken(agent: Agent) -> Agent:
        function = getattr(agent, name)
        return agent._replace(**{name: lambda *args: change(function(*args))})

    return broken


WRONG: dict[str, tuple[Callable[[Agent], Any], str]] = {
    "make": (lambda agent: None, r"`make` of agent 'wrong' returned a NoneType; expected a"),
    "init": (
        after("init", lambda s: s.params),
        r"`init` is a dict of .*; expected a `LearnerState`",
    ),
    "updates": (
        after("init", lambda s: s._replace(updates=jnp.zeros(()))),
        r"`init\(\).updates` is float32\[\]; expected int32\[\]",
    ),
    "hyper": (
        after("init", lambda s: s._replace(hyper={"learning_rate": jnp.zeros(2)})),
        r"`init\(\).hyper\['learning_rate'\]` is float32\[2\]; expected float32\[\]",
    ),
    "carry": (
        after("initial_carry", lambda c: None),
        "`initial_carry` is None; expected a `Carry`",
    ),
    "carry rows": (
        after("initial_carry", lambda c: c._replace(core=jnp.zeros(7))),
        r"`initial_carry` is float32\[7\]; expected arrays \[B, ...\] \(here B = 3\)",
    ),
    "act": (after("act", lambda a: a[0]), r"`act` is int32\[3\]; expected the tuple"),
    "action": (
        after("act", lambda a: (a[0][:, None], *a[1:])),
        r"`act` is int32\[3, 1\]; expected an action of shape \(3,\)",
    ),
    "act's carry": (
        after("act", lambda a: (a[0], a[1]._replace(core=jnp.zeros(3)), a[2])),
        "`act` is a Carry; expected the structure, shapes and dtypes of the carry",
    ),
    "extras": (
        after("act", lambda a: (*a[:2], {"raw_action": jnp.zeros(())})),
        r"`act` is float32\[\]; expected extras for each environment",
    ),
    "explores": (
        lambda agent: agent._replace(explores=lambda env_ids, num_envs: env_ids / num_envs),
        r"`explores` is float64\[3\]; expected a bool \[3\]",
    ),
    "learn": (after("learn", lambda learnt: learnt.state), "`learn` is a LearnerState; expected"),
    "learn's state": (
        after("learn", lambda x: x._replace(state=x.state._replace(updates=jnp.zeros(())))),
        r"`learn.updates` is float32\[\]; expected int32\[\], as in the state",
    ),
    "metrics": (
        after("learn", lambda x: x._replace(metrics={"steps": jnp.zeros(())})),
        r"`learn\(\).metrics` is a dict of steps; expected `gradient_norm` in it",
    ),
    "vectors": (
        after("learn", lambda x: x._replace(metrics=x.metrics | {"loss": jnp.zeros(4)})),
        r"`learn\(\).metrics\['loss'\]` is float32\[4\]; expected a scalar",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_function_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = WRONG[name]
    module = types.ModuleType("wrong")
    module.__spec__ = importlib.machinery.ModuleSpec("wrong", None)
    module.__dict__.update(
        Config=custom_agent.Config,
        RUN_DEFAULTS=custom_agent.RUN_DEFAULTS,
        make=lambda *args, **kwargs: change(custom_agent.make(*args, **kwargs)),
    )
    monkeypatch.setitem(sys.modules, "wrong", module)
    with pytest.raises(UserError, match=message):
        pronk.train(module, "CartPole-v1", steps=100, run_dir=tmp_path / "run", **TINY)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "pronk/MemoryCue-v0"])
def test_right_agents_pass(env: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So do those with a replay, whose batches have other rows."""
    plan = resolve(custom_agent, env, **TINY)
    check_agent(plan, build(plan, env)[1], build(plan, env)[0])
    if env != "Pendulum-v1":
        plan = resolve("r2d2", env, hidden_sizes=(8,), recurrent_units=8, quiet=True)
        spec, agent = build(plan, env)
        monkeypatch.setattr("pronk.run.contract.AGENTS", ())
        check_agent(plan, agent, spec)
