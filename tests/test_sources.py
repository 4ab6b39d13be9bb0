"""A run without a directory of its own is found by a name that stands for one thing only."""

from __future__ import annotations

import functools
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import pronk
from pronk.config.json_files import read_object
from pronk.config.pbt import PBTConfig
from pronk.config.sources import check_named, sources
from pronk.config.spec import Plan
from pronk.errors import UserError
from pronk.pbt import set_up
from pronk.run.resolve import resolve
from pronk.storage.files import write_json_atomically

SMALL: dict[str, Any] = {"hidden_sizes": (8,), "quiet": True}


def make_env(reward: float = 1.0) -> gym.Env:
    raise AssertionError("it is not made")


class Maker:
    """Of environments, by two kinds of method, and by being called."""

    def method(self) -> None: ...

    @staticmethod
    def static() -> None: ...

    def __call__(self) -> None: ...


def nested() -> Any:
    def make() -> None: ...

    return make


def of_the_program() -> None: ...


of_the_program.__module__ = "__main__"


NAMELESS = {
    "lambda": lambda: make_env(1.0),
    "partial": functools.partial(make_env, -7.0),
    "nested": nested(),
    "method": Maker().method,
    "object": Maker(),
    "notebook": of_the_program,
    "built-in": dict,
}


@pytest.mark.parametrize("kind", NAMELESS)
def test_a_function_whose_name_says_too_little_needs_a_directory(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"its name alone does not say .* Give `run_dir`; or"):
        pronk.train("impala", NAMELESS[kind], **SMALL)
    assert not list(tmp_path.iterdir())
    # With a directory there is no question: what is wrong is said by the environment.
    if kind == "lambda":
        with pytest.raises(UserError, match="it is not made"):
            pronk.train("impala", NAMELESS[kind], run_dir=tmp_path / "run", **SMALL)


def test_functions_and_classes_of_modules_have_names() -> None:
    for env in (make_env, Maker, Maker.static):
        check_named(env)
    (name,) = sources("impala", f"{make_env.__module__}.make_env()")
    assert name.rpartition(".")[2] == "test_sources"


ENV = """
import gymnasium as gym
import numpy as np


class Pays(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 1.0, True, False, {}


if "Pays-v0" not in gym.registry:
    gym.register("Pays-v0", entry_point=Pays)
"""
AGENT = """
from pronk.agents.impala_config import Config
from pronk.agents.impala import make
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with `paying`, a package with it, and `my_impala`; the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "paying.py").write_text(ENV)
    (tmp_path / "my_impala.py").write_text(AGENT)
    (tmp_path / "pays" / "inner").mkdir(parents=True)
    (tmp_path / "pays" / "__init__.py").write_text("from pays.inner.core import Pays")
    (tmp_path / "pays" / "inner" / "__init__.py").write_text("")
    (tmp_path / "pays" / "inner" / "core.py").write_text(ENV)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("paying", "pays", "my_impala"):
            del sys.modules[name]


def saved(plan: Plan) -> None:
    """What a run of the plan leaves behind, as far as another one looks at it."""
    (plan.directory / "checkpoints").mkdir(parents=True)
    (plan.directory / "checkpoints" / "000000000010.safetensors").touch()
    write_json_atomically(plan.directory / "config.json", plan.described())


def factory(name: str) -> Any:
    return importlib.import_module(name).Pays


@pytest.mark.parametrize(
    ("agent", "env", "edited"),
    [
        ("impala", "factory of paying", "paying.py"),
        ("impala", "factory of pays", "pays/inner/core.py"),
        ("impala", "paying:Pays-v0", "paying.py"),
        ("impala", "paying:Pays-v0,CartPole-v1", "paying.py"),
        ("my_impala", "CartPole-v1", "my_impala.py"),
    ],
)
def test_edited_sources_are_another_run(agent: str, env: str, edited: str, modules: Path) -> None:
    made = factory(env.rpartition(" ")[2]) if env.startswith("factory") else env
    plan = resolve(agent, made, **SMALL)
    assert plan.run_dir.parent == Path("runs")
    saved(plan)
    assert plan.check_same(plan.directory) == []  # the same again: it resumes
    path = modules / edited
    path.write_text(path.read_text() + "\n# another reward\n")
    with pytest.raises(UserError, match=r"the source of \S+ has changed since. Give `--run-dir"):
        plan.check_same(plan.directory)
    # Who names the directory means that run, and is told.
    named = resolve(agent, made, run_dir=plan.run_dir, **SMALL)
    assert named.check_same(named.directory) == [edited.partition("/")[0].removesuffix(".py")]


def test_a_population_is_another_one_too(modules: Path) -> None:
    plan = resolve("impala", factory("paying"), **SMALL)
    setup = set_up(plan, PBTConfig(population=2), factory("paying"))
    assert setup.directory.name.startswith("pbt-impala-paying.Pays")
    (setup.directory / "population").mkdir(parents=True)
    (setup.directory / "population" / "000000000010.safetensors").touch()
    (setup.directory / "journal.jsonl").touch()
    write_json_atomically(setup.directory / "pbt.json", {"plan": setup.plan.described()})
    set_up(plan, PBTConfig(population=2), factory("paying"))
    (modules / "paying.py").write_text(ENV + "\n")
    with pytest.raises(UserError, match="the source of paying has changed"):
        set_up(plan, PBTConfig(population=2), factory("paying"))


def test_runs_from_before_are_resumed(modules: Path) -> None:
    """Whose `config.json` has neither sources, versions nor a preset."""
    plan = resolve("impala", "paying:Pays-v0", **SMALL)
    saved(plan)
    config = read_object(plan.directory / "config.json")
    for name in ("sources", "versions", "preset"):
        del config[name]
    (plan.directory / "config.json").write_text(json.dumps(config))
    (modules / "paying.py").write_text(ENV + "\n")
    assert plan.check_same(plan.directory) == []
    assert Plan.load(plan.directory).agent_config == plan.agent_config
