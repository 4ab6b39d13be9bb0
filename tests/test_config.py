"""Settings and their fields, agents from outside the tree, formats of saved runs."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys
import types
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import pytest

import pronk
from pronk import agents, cli, envs
from pronk.agents import impala_config
from pronk.config import fields, names
from pronk.config.fields import choice, fraction, number, widths
from pronk.config.pbt import PBTConfig
from pronk.config.registry import AGENTS, agent_module
from pronk.config.run import FREE, RunConfig
from pronk.config.spec import FORMAT, Plan
from pronk.errors import UserError
from pronk.run.resolve import resolve

# Fields.


@dataclasses.dataclass(frozen=True)
class Settings:
    """Some of each kind."""

    rate: float = number(0.1, above=0, source="a paper, table 1", tune=(0.01, 1.0))
    """A rate that is described
    in two lines."""
    discount: float = fraction(0.9, near_one=True)
    count: int | None = number(None, at_least=1, below=10)
    sizes: tuple[int, ...] = widths((4,))
    kind: Literal["one", "two"] = choice("one", source="a paper")
    plain: bool = False
    """No metadata."""
    place: Path | None = None
    options: dict[str, int] = dataclasses.field(default_factory=dict)
    other: float = number(1.0, tune=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 0}, "`--rate` is 0; expected a number above zero."),
        ({"rate": float("nan")}, "`--rate` is nan; expected a number above zero."),
        ({"rate": "1"}, "`--rate` is '1'; expected float."),
        ({"rate": True}, "`--rate` is True; expected float."),
        ({"discount": 1.5}, "`--discount` is 1.5; expected a number from 0 to 1."),
        ({"count": 0}, "`--count` is 0; expected at least 1 and below 10."),
        ({"count": 1.0}, "`--count` is 1.0; expected int or nothing."),
        ({"sizes": ()}, "`--sizes` is (); expected one or more numbers."),
        ({"sizes": (4, 0)}, "`--sizes` is (4, 0); expected only numbers of at least 1."),
        ({"sizes": 4}, "`--sizes` is 4; expected a list of int."),
        ({"sizes": (1.5,)}, "`--sizes` is (1.5,); expected a list of int."),
        ({"kind": "tow"}, "`--kind` is 'tow'; expected one of one, two; did you mean 'two'?"),
        ({"plain": 1}, "`--plain` is 1; expected bool."),
        ({"place": 1}, "`--place` is 1; expected Path or nothing."),
    ],
)
def test_values_of_another_type_or_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        fields.check(Settings(**settings))


def test_values_that_are_right() -> None:
    fields.check(Settings())
    fields.check(Settings(rate=1, count=9, sizes=[1, 2], place="here", discount=1))  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Numbers with and without limits of their own."""

    rate: float = number(0.1, above=0)
    size: int = number(1, above=0)
    steps: int = number(1, above=0, limit=10**12)
    norm: float = number(1.0, above=0, limit=float("inf"))
    free: float = 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"rate": float("inf")},
            "`--rate` is inf; expected a number above zero and at most 1e+06.",
        ),
        ({"rate": 1e7}, "`--rate` is 10000000.0; expected a number above zero and at most 1e+06."),
        ({"rate": 1e-50}, "`--rate` is 1e-50; expected a number above zero and at least 1.2e-38"),
        ({"rate": 10**400}, "expected a number above zero and at most 1e+06."),
        ({"size": 10**7}, "`--size` is 10000000; expected a number above zero and at most 1e+06."),
        ({"steps": 10**13}, "expected a number above zero and at most 1e+12."),
        ({"norm": float("nan")}, "`--norm` is nan; expected a number above zero."),
        ({"norm": float("-inf")}, "expected a number above zero"),
    ],
)
def test_absurd_values_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        fields.check(Limits(**settings))


def test_infinity_where_it_means_no_limit() -> None:
    fields.check(Limits(norm=float("inf"), steps=10**12, free=float("inf")))
    settings = {"rho_bar": float("inf"), "max_gradient_norm": float("inf"), "hang_after": 1e9}
    plan = resolve("impala", "pronk/Catch-v0", **settings)
    assert plan.agent_config.rho_bar == float("inf")
    for name, value in (
        ("learning_rate", 100.0),
        ("entropy_cost", float("inf")),
        ("reward_scale", 1e30),
        ("initial_std", 1e10),
        ("unroll", 10**9),
        ("hidden_sizes", (8, 10**9)),
        ("steps", 10**13),
        ("actors", 10**9),
    ):
        with pytest.raises(UserError, match=f"`--{name.replace('_', '-')}` is .* at most 1"):
            resolve("impala", "pronk/Catch-v0", **{name: value})


def test_numbers_of_other_libraries_and_whole_floats() -> None:
    """They become Python's, so that the same settings are the same run."""
    settings: dict[str, Any] = {
        "steps": 3e5,
        "seed": np.int64(3),
        "log_every": np.float32(0.5),
        "learning_rate": np.float64(1e-3),
        "batch_size": np.array(8),
        "hidden_sizes": np.array([8, 16]),
        "discount": jnp.float32(0.5),
        "anneal": np.bool_(False),
        "unroll": jnp.int32(5),
        "optimiser": np.str_("adam"),
    }
    plan = resolve("impala", "pronk/Catch-v0", **settings)
    run, config = plan.run, plan.agent_config
    found = [run.steps, run.seed, run.log_every, config.learning_rate, config.batch_size]
    found += [config.hidden_sizes, config.discount, config.anneal, config.unroll, config.optimiser]
    assert found == [300_000, 3, 0.5, 1e-3, 8, (8, 16), 0.5, False, 5, "adam"]
    kinds = [int, int, float, float, int, tuple, float, bool, int, str]
    assert [type(value) for value in found] == kinds
    assert json.loads(json.dumps(plan.as_json()))["run"]["steps"] == 300_000
    assert resolve("impala", "pronk/Catch-v0", hidden_sizes=[8.0]).agent_config.hidden_sizes == (8,)
    scalars: dict[str, Any] = {"population": np.int64(4), "copy_margin": np.float32(0.5)}
    assert PBTConfig(**scalars) == PBTConfig(population=4, copy_margin=0.5)
    for wrong in ({"steps": 3.5}, {"steps": np.array([1, 2])}, {"anneal": np.int64(1)}):
        with pytest.raises(UserError, match="expected"):
            resolve("impala", "pronk/Catch-v0", **wrong)


@pytest.mark.parametrize(
    ("text", "value"),
    [("300000", 300_000), ("300_000", 300_000), ("3e5", 300_000), ("3E+5", 300_000), ("-1", -1)],
)
def test_integers_as_people_write_them(text: str, value: int) -> None:
    assert fields.integer(text) == value


@pytest.mark.parametrize("text", ["", "x", "1.5", "inf", "nan", "1e400", "1e20", "1e-3"])
def test_what_is_no_integer(text: str) -> None:
    with pytest.raises(ValueError):
        fields.integer(text)


def test_a_field_carries_its_description_and_what_pbt_does() -> None:
    texts = fields.descriptions(Settings)
    assert texts["rate"] == "A rate that is described in two lines. [a paper, table 1]"
    assert texts["kind"] == "[a paper]"
    assert texts["plain"] == "No metadata."
    assert texts["place"] == ""
    texts = fields.descriptions(Settings, Settings(rate=0.2, plain=True), "preset fast")
    assert texts["rate"] == "A rate that is described in two lines. [preset fast]"
    assert texts["kind"] == "[a paper]"
    assert texts["plain"] == "No metadata. [preset fast]"
    assert fields.tuned(Settings) == ("rate=0.01:1", "other")
    assert fields.near_one(Settings) == {"discount"}


def test_what_pbt_tunes_by_default() -> None:
    """In the order in which first values are drawn."""
    assert fields.tuned(agent_module("impala").config) == (
        "learning_rate=5e-06:0.005",
        "entropy_cost=5e-05:0.01",
        "optimiser_epsilon=1e-07:0.1",
        "max_gradient_norm",
    )
    assert fields.tuned(agent_module("r2d2").config) == (
        "learning_rate=1e-05:0.01",
        "optimiser_epsilon",
        "max_gradient_norm",
    )


@pytest.mark.parametrize("kind", [RunConfig, PBTConfig, *(agent_module(a).config for a in AGENTS)])
def test_every_setting_is_described_and_its_default_right(kind: type) -> None:
    assert all(fields.descriptions(kind).values())
    fields.check(kind())


def test_numbers_have_a_range() -> None:
    for kind in (RunConfig, PBTConfig, *(agent_module(a).config for a in AGENTS)):
        for f in dataclasses.fields(kind):
            if f.type in ("int", "float", "int | None", "float | None"):
                assert fields.rules(kind)[f.name].range, f"{kind.__name__}.{f.name}"


def test_free_settings_exist() -> None:
    assert set(FREE) <= {f.name for f in dataclasses.fields(RunConfig)}


# Names.


def test_old_names_lead_to_settings_that_exist() -> None:
    kinds = (RunConfig, PBTConfig, *(agent_module(a).config for a in AGENTS))
    known = {f.name for kind in kinds for f in dataclasses.fields(kind)}
    assert set(names.RENAMED.values()) | set(names.ALIASES.values()) <= known
    assert not (names.RENAMED.keys() | names.ALIASES.keys() | names.REMOVED.keys()) & known


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("envs", "`--envs` was renamed: use `--envs-per-actor`."),
        ("epsilon", "`--epsilon` was renamed: use `--optimiser-epsilon`."),
        ("lr", "`--lr` is `--learning-rate` here: use that."),
        ("actor_kind", "`--actor-kind` was removed: `--ray local` runs"),
    ],
)
def test_an_old_name_gives_a_hint(
    name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        resolve("impala", "pronk/Catch-v0", **{name: 1})
    for form in ([f"--{name.replace('_', '-')}", "1"], [f"--{name}=1"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(["train", "impala", "pronk/Catch-v0", *form])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err


def test_another_agents_name_is_no_hint() -> None:
    """`--exploration` was R2D2's."""
    with pytest.raises(UserError, match="`exploration` is not a setting of impala"):
        resolve("impala", "pronk/Catch-v0", exploration=1)
    with pytest.raises(UserError, match="use `--epsilon-greedy`"):
        resolve("r2d2", "pronk/Catch-v0", exploration=1)


# Formats.


def test_a_run_of_an_earlier_format_is_refused_in_a_sentence(tmp_path: Path) -> None:
    saved = resolve("impala", "pronk/Catch-v0").as_json()
    assert saved["format"] == FORMAT
    assert Plan.parse(json.dumps(saved), "here").as_json() == saved
    for change, wrote in (
        ({"format": 3, "pronk": "9.0"}, "pronk 9.0, in format 3"),
        ({"format": None}, "a version of pronk from before format 2"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**saved, **change}))
        with pytest.raises(UserError, match=f"written by {wrote}.* reads format 2: train again"):
            Plan.load(tmp_path)


# Agents from outside the tree.

AGENT = '''
"""An agent of one's own: IMPALA with three settings."""

from dataclasses import dataclass

from pronk.config.fields import number


@dataclass(frozen=True)
class Config:
    unroll: int = number(5, above=0)
    batch_size: int = number(4, above=0)
    learning_rate: float = number(1e-3, above=0, tune=(1e-4, 1e-2), source="a guess")
    """How fast."""


PRESETS = {"fast": {"learning_rate": 1e-2}}
RUN_DEFAULTS = {"quiet": True, "envs_per_actor": 4}
CAPABILITIES = {"actions": "all of impala's"}


def make(config, spec, *, horizon):
    from pronk.agents import impala

    settings = {"unroll": config.unroll, "batch_size": config.batch_size}
    settings |= {"learning_rate": config.learning_rate, "hidden_sizes": (8,)}
    return impala.make(impala.Config(**settings), spec, horizon=horizon)
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `own_agents.mine`, and in it a run of 200 steps."""
    place = tmp_path_factory.mktemp("place")
    (place / "own_agents").mkdir()
    (place / "own_agents" / "mine.py").write_text(AGENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        args = ["--steps", "200", "--run-dir", "run", "--stop-after", "100"]
        cli.main(["train", "own_agents.mine", "pronk/Catch-v0", *args])
    return place


@pytest.fixture
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def test_it_trains_and_resumes(there: Path) -> None:
    saved = json.loads(Path("run/config.json").read_text())
    assert saved["agent"] == "own_agents.mine"
    assert saved["run"]["envs_per_actor"] == 4  # its own default
    assert saved["run"]["quiet"] is True
    assert json.loads(Path("run/summary.json").read_text())["status"] == "paused"
    mine = importlib.import_module("own_agents.mine")
    summary = pronk.train(mine, "pronk/Catch-v0", run_dir=Path("run"), steps=200)
    assert summary["status"] == "finished"
    assert summary["agent"] == "own_agents.mine"
    assert pronk.load("run").evaluate(episodes=2).episodes == 2


def test_its_flags_are_shown_and_its_presets_known(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "own_agents.mine", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "--learning-rate FLOAT How fast. [a guess] (default: 0.001)" in shown
    cli.main(["list", "own_agents.mine"])
    shown = capsys.readouterr().out
    assert "own_agents.mine:" in shown
    assert "all of impala's" in shown
    assert "learning_rate=0.0001:0.01" in shown
    plan = resolve("own_agents.mine", "pronk/Catch-v0", preset="fast", envs_per_actor=2)
    assert (plan.agent_config.learning_rate, plan.run.envs_per_actor) == (1e-2, 2)


def test_a_population_of_it(there: Path) -> None:
    args = ["--population", "2", "--ready-steps", "100", "--steps", "200", "--run-dir", "pbt"]
    cli.main(["pbt", "own_agents.mine", "pronk/Catch-v0", *args])
    assert json.loads(Path("pbt/summary.json").read_text())["status"] == "finished"


def test_an_exported_one_is_imported_only_if_it_is_trusted(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["export", "run", "policy.safetensors"])
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "own_agents.mine")
        with pytest.raises(UserError, match=r"If you trust that module.*agent='own_agents.mine'"):
            pronk.load("policy.safetensors")
        assert "own_agents.mine" not in sys.modules
        with pytest.raises(SystemExit):
            cli.main(["eval", "policy.safetensors"])
        assert "asks to import the module of its agent" in capsys.readouterr().err
        cli.main(["eval", "policy.safetensors", "--agent", "own_agents.mine", "--episodes", "1"])
        assert "own_agents.mine on pronk/Catch-v0" in capsys.readouterr().out
        policy = pronk.load("policy.safetensors", agent="own_agents.mine")
        assert policy.plan.agent == "own_agents.mine"
        with pytest.raises(UserError, match=r"`agent` is 'impala'"):
            pronk.load("run", agent="impala")
        patch.setitem(sys.modules, "own_agents.mine", sys.modules["own_agents.mine"])


WRONG_AGENTS = {
    "nothing": ("", ["`make(config, spec, *, horizon) -> Agent` is missing", "`Config`, a frozen"]),
    "thawed": (
        AGENT.replace("(frozen=True)", ""),
        ["module 'thawed' is not an agent: `Config` is not frozen."],
    ),
    "no_unroll": (
        AGENT.replace("    unroll: int = number(5, above=0)\n", "    size: int\n"),
        ["`Config` has no `unroll`", "`Config.size` has no default"],
    ),
    "shadow": (
        AGENT.replace("learning_rate: float =", "seed: int = 1; learning_rate: float ="),
        ["`Config.seed` is also a setting of a run"],
    ),
    "presets": (
        AGENT.replace('{"learning_rate": 1e-2}', '{"rate": 1}'),
        ["`PRESETS['fast']` has `rate`, which is no setting"],
    ),
    "defaults": (AGENT.replace('"quiet"', '"silent"'), ["`RUN_DEFAULTS` has `silent`"]),
    "broken": ("import nothing_of_the_kind", ["'broken' can't be imported: ModuleNotFoundError"]),
}


@pytest.mark.parametrize("name", WRONG_AGENTS)
def test_a_module_that_is_no_agent(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, parts = WRONG_AGENTS[name]
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with pytest.raises(UserError) as caught:
            agent_module(name)
    finally:
        sys.modules.pop(name, None)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_a_run_whose_agent_is_gone_is_named(there: Path, tmp_path: Path) -> None:
    saved = json.loads((there / "run" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(saved | {"agent": "gone.agent"}))
    with pytest.raises(UserError, match=r"config.json. needs an agent .*'gone.agent' is unknown"):
        Plan.load(tmp_path)


def test_what_is_given_as_an_agent() -> None:
    with pytest.raises(UserError, match=r"or a module in the current directory or on PYTHONPATH"):
        agent_module("nowhere.my_agent")
    with pytest.raises(UserError, match=r"a file's name; give the module's, own.my_agent,"):
        agent_module("./own/my_agent.py")
    with pytest.raises(UserError, match=r"expected one of impala, r2d2, .*, or a module"):
        agent_module(3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the program itself"):
        agent_module(sys.modules["__main__"])
    with pytest.raises(UserError, match="not what that name imports"):
        agent_module(types.ModuleType("made_here"))
    from pronk.agents import impala

    assert agent_module(impala).name == "impala"


def test_equal_agents_are_the_same_functions() -> None:
    """So that they share what JAX has compiled."""
    small = {"hidden_sizes": (8,), "unroll": 3}

    def make(horizon: int = 10, env: str = "CartPole-v1", **settings: Any) -> Any:
        config = impala_config.Config(**small, **settings)
        return agents.make("impala", config, envs.spec_of(env), horizon=horizon)

    agent = make()
    assert make() is agent
    for other in (make(horizon=11), make(discount=0.5), make(env="Acrobot-v1")):
        assert other is not agent
    assert make() is agent
    for i in range(100):
        make(horizon=100 + i)
    assert make() is not agent  # the list is bounded
