"""Schedules of hyperparameters: grammar, values, ranges, and any agent under them."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pronk
from pronk import agents, cli, envs
from pronk.agents import schedules as agents_schedules
from pronk.agents import step
from pronk.agents.schedules import progress, scheduled, split
from pronk.config import fields, schedules
from pronk.config.fields import fraction, number
from pronk.config.schedules import parse
from pronk.errors import UserError
from pronk.run.inspect import inspect
from pronk.run.resolve import resolve
from pronk.run.setup import build
from pronk.runtime import fused
from pronk.runtime.actor import Actor, Player
from pronk.runtime.population import Population
from pronk.types import Agent, Batch, Carry, LearnerState, Learnt

KEY = jax.random.key(0)
HORIZON = 1000
TINY: dict[str, Any] = {
    "hidden_sizes": (8,),
    "preset": "small",
    "unroll": 5,
    "batch_size": 4,
    "quiet": True,
}


# The grammar


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("linear:3e-4:0", "linear:0.0003:0"),
        (" cosine:1:0.10 ", "cosine:1:0.1"),
        ("exponential:-1:-1e-3", "exponential:-1:-0.001"),
        ("piecewise:3e-4@0,1e-4@1e6", "piecewise:0.0003@0,0.0001@1000000"),
        ("piecewise:1@0", "piecewise:1@0"),
        ("linear:0@0,1@10,0.5@20", "linear:0@0,1@10,0.5@20"),
    ],
)
def test_a_schedule_has_one_text(text: str, canonical: str) -> None:
    assert parse(text).text == canonical
    assert parse(canonical) == parse(text)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("lin:1:2", "'lin' is none of linear, cosine, exponential, piecewise"),
        ("linear:1", "linear has 1 number instead of two"),
        ("cosine:1:2:3", "cosine has 3 numbers instead of two"),
        ("linear:1:x", "'x' is not a finite number"),
        ("linear:1:inf", "'inf' is not a finite number"),
        ("linear:1:nan", "'nan' is not a finite number"),
        ("exponential:1:0", "two numbers of one sign"),
        ("exponential:1:-1", "two numbers of one sign"),
        ("cosine:1@0,2@5", "cosine has no steps"),
        ("piecewise:1:2", "'1:2' has no step"),
        ("piecewise:1@0,2", "'2' has no step"),
        ("piecewise:1@5,2@7", "its first step is 5 instead of 0"),
        ("piecewise:1@0,2@7,3@7", "its steps do not increase"),
        ("piecewise:1@0,2@7.5", "'7.5' is not a number of steps"),
        ("piecewise:1@0,2@1e13", "'1e13' is not a number of steps"),
        ("linear:1@0,2@-3", "'-3' is not a number of steps"),
    ],
)
def test_what_is_no_schedule_is_explained(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=re.escape(wrong)):
        parse(text)
    message = f"`--learning-rate` is '{text}', which is no schedule: .*{re.escape(wrong)}"
    with pytest.raises(UserError, match=message):
        resolve("impala", "pronk/Catch-v0", learning_rate=text)


# Values


def agent_of(**hyper: float) -> Agent:
    """An agent that learns nothing, and reports the hyperparameters that it saw."""

    def init(key):
        values = {name: jnp.float32(value) for name, value in hyper.items()}
        values |= {"optimiser_epsilon": jnp.float32(1), "max_gradient_norm": jnp.float32(1)}
        return step.new_state("adam", {"w": jnp.ones(2)}, values, key)

    def learn(state, batch):
        seen = {f"saw/{name}": value for name, value in state.hyper.items()}
        state = state._replace(steps=state.steps + batch, updates=state.updates + 1)
        return Learnt(state, seen)

    def nothing(*_: Any) -> Any:
        return Carry((), ())

    return Agent(init, lambda s: s.params, nothing, nothing, learn, step.adopt, nothing)


def value_at(text: str, steps: int, *, words: int = 1, horizon: int = HORIZON, **changed) -> float:
    """What the agent sees of `x` after so many steps."""
    schedule = parse(text)
    agent = scheduled(agent_of(x=0.5), {"x": schedule}, horizon=horizon, **changed)
    state = agent.init(KEY)
    count = np.array(divmod(steps, 2**32)[::-1], np.uint32)
    learnt = agent.learn(state._replace(steps=jnp.asarray(count if words == 2 else count[0])), 7)
    assert learnt.metrics["x"] == learnt.metrics["saw/x"]
    assert learnt.state.hyper["x"] == np.float32(schedule.first)  # as it was
    return float(learnt.metrics["x"])


@pytest.mark.parametrize("words", [1, 2])
@pytest.mark.parametrize(
    ("text", "expected"),  # at 0, 250, 500, 1000 and 5000 of 1000 steps
    [
        ("linear:3e-4:0", [3e-4, 2.25e-4, 1.5e-4, 0, 0]),
        ("linear:0.1:0.5", [0.1, 0.2, 0.3, 0.5, 0.5]),
        ("linear:0:4", [0, 1, 2, 4, 4]),
        ("cosine:3:1", [3, 1 + (1 + math.sqrt(0.5)), 2, 1, 1]),
        ("exponential:1:1e-4", [1, 0.1, 0.01, 1e-4, 1e-4]),
        ("piecewise:1@0,2@250,3@501", [1, 2, 2, 3, 3]),
        ("piecewise:7@0", [7, 7, 7, 7, 7]),
        ("linear:0@0,1@500,0.5@2500", [0, 0.5, 1, 0.875, 0.5]),
        ("linear:5@0", [5, 5, 5, 5, 5]),
    ],
)
def test_values_from_the_start_to_after_the_end(text, expected, words):
    found = [value_at(text, steps, words=words) for steps in (0, 250, 500, 1000, 5000)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    values = np.float32(parse(text).values)
    assert found[0] == values[0]
    assert found[-1] == values[-1]  # exactly


def test_steps_beyond_32_bits_and_beyond_float32s_integers():
    start = 2**33 + 5
    text = f"piecewise:1@0,2@{start}"
    at = functools.partial(value_at, text, words=2, horizon=2**35)
    assert [at(start - 1), at(start), at(2**34)] == [1, 2, 2]
    text = f"piecewise:1@0,2@{2**24 + 1}"
    assert [value_at(text, 2**24), value_at(text, 2**24 + 1)] == [1, 2]
    assert value_at(f"piecewise:1@0,2@{2**35}", 2**31) == 1
    half = value_at("linear:1:0", 2**33, words=2, horizon=2**34)
    assert half == pytest.approx(0.5)


def test_the_state_is_the_agents_own_but_for_the_schedules_first_values():
    plain = agent_of(x=0.5, y=2.0)
    agent = scheduled(plain, {"x": parse("linear:0.25:0")}, horizon=HORIZON)
    before, state = plain.init(KEY), agent.init(KEY)
    assert state.hyper == before.hyper | {"x": np.float32(0.25), "horizon": np.float32(HORIZON)}
    learn = jax.jit(agent.learn)
    for _ in range(3):
        learnt = learn(state, jnp.uint32(10))
        assert learnt.metrics["saw/y"] == 2
        state = learnt.state
    assert learn._cache_size() == 1
    assert (int(state.updates), int(state.steps)) == (3, 30)
    assert learnt.metrics["x"] == pytest.approx(0.25 * 0.98)
    # Changed without a new compilation.
    other = learn(state._replace(hyper=state.hyper | {"x": jnp.float32(0.5)}), jnp.uint32(10))
    assert other.metrics["x"] == pytest.approx(0.5 * 0.97)
    assert learn._cache_size() == 1


def test_what_learning_itself_makes_of_hyperparameters_is_kept():
    def learn(state, batch):
        learnt = plain.learn(state, batch)
        return learnt._replace(state=state._replace(hyper=state.hyper | {"y": jnp.float32(9)}))

    plain = agent_of(x=1.0, y=2.0)
    agent = scheduled(plain._replace(learn=learn), {"x": parse("linear:1:0")}, horizon=100)
    state = agent.init(KEY)._replace(steps=jnp.uint32(50))
    after = agent.learn(state, jnp.uint32(1)).state.hyper
    assert (after["x"], after["y"]) == (1, 9)


@pytest.mark.parametrize("near_one", [False, True])
@pytest.mark.parametrize(
    "text",
    ["linear:0.5:0.25", "cosine:0.5:0.75", "piecewise:0.5@0,0.7@200,0.9@400", "linear:0.5:0"],
)
def test_a_changed_first_value_scales_the_schedule(text, near_one):
    """As `starting_at` says, which is what PBT checks."""
    names = {"x"} if near_one else set()
    agent = scheduled(agent_of(x=0.5), {"x": parse(text)}, horizon=HORIZON, near_one=names)
    shifted = parse(text).starting_at(0.6, near_one=near_one)
    other = scheduled(agent_of(x=0.5), {"x": shifted}, horizon=HORIZON)
    state = agent.init(KEY)
    state = state._replace(hyper=state.hyper | {"x": jnp.float32(0.6)})
    for steps in (0, 300, 700, 2000):
        a, b = (
            made.learn(s._replace(steps=jnp.uint32(steps)), jnp.uint32(1)).metrics["x"]
            for made, s in ((agent, state), (other, other.init(KEY)))
        )
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert shifted.first == 0.6
    if near_one and text.startswith("linear:0.5:0.25"):
        assert shifted.values[1] == pytest.approx(1 - 0.75 * 0.8)


def test_a_first_value_of_zero_has_no_factor():
    assert parse("linear:0:4").starting_at(1).values == (1, 4)
    assert parse("linear:1:0.5").starting_at(0.9, near_one=True).values == (0.9, 0.5)
    agent = scheduled(agent_of(x=1.0), {"x": parse("linear:1:0.5")}, horizon=4, near_one={"x"})
    learnt = agent.learn(agent.init(KEY)._replace(steps=jnp.uint32(2)), jnp.uint32(1))
    assert learnt.metrics["x"] == 0.75


# Settings


@dataclasses.dataclass(frozen=True)
class Settings:
    unroll: int = number(5, above=0)
    rate: float = number(0.1, above=0)
    epsilon: float = number(0.1, at_least=0.01)
    discount: float = fraction(0.9)
    free: float = 1.0
    maybe: float | None = None
    kind: str = "a"

    def hyper_names(self) -> tuple[str, ...]:
        return ("rate", "discount", "epsilon", "maybe")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"rate": "linear:1:-1"},
            "`--rate` is 'linear:1:-1', with the value -1; expected a number",
        ),
        (
            {"rate": "linear:1e9:1"},
            "with the value 1e\\+09; expected a number above zero and at most",
        ),
        ({"discount": "linear:0.9:1.5"}, "value 1.5; expected a number from 0 to 1 throughout."),
        (
            {"discount": "piecewise:0@0,-0.5@9"},
            "with the value -0.5; expected a number from 0 to 1",
        ),
        ({"epsilon": "linear:1:0"}, "with the value 0; expected at least 0.01 throughout."),
        ({"unroll": "linear:1:2"}, "`--unroll` is 'linear:1:2'; expected int: it has no schedule."),
        ({"free": "linear:1:2"}, "`--free` is 'linear:1:2'; expected a number: the agent reads it"),
        ({"free": "linear:1:2"}, "It can have schedules of discount, epsilon, maybe, rate."),
    ],
)
def test_schedules_that_a_field_refuses(settings, message):
    with pytest.raises(UserError, match=message):
        fields.check(Settings(**settings), schedules=True)


def test_schedules_that_a_field_allows():
    right = Settings(rate="linear:1e-3:0", discount="cosine:0:1", maybe="linear:1:2", kind="x:y")  # type: ignore[arg-type]
    fields.check(right, schedules=True)
    assert fields.plain(right).rate == "linear:0.001:0"
    assert fields.plain(right).kind == "x:y"
    for name in ("rate", "discount"):
        with pytest.raises(UserError, match="expected float"):
            fields.check(dataclasses.replace(Settings(), **{name: "linear:0.1:0.2"}))


def test_the_run_itself_has_no_schedules(capsys):
    for name in ("log_every", "inference_timeout"):
        with pytest.raises(UserError, match="expected float"):
            resolve("impala", "pronk/Catch-v0", **{name: "linear:1:2"})
    for flags in (
        ["--unroll", "linear:1:2"],
        ["--learning-rate", "linear:1"],
        ["--log-every", "linear:1:2"],
    ):
        with pytest.raises(SystemExit) as exit_:
            cli.main(["train", "impala", "pronk/Catch-v0", *flags])
        assert exit_.value.code == 2
        error = capsys.readouterr().err
        assert flags[1] in error
        assert "Traceback" not in error


def test_an_agent_that_is_made_with_a_number_says_so():
    """Of an agent without `hyper_names`, it is seen when the agent is made."""
    with pytest.raises(UserError, match="`--z` is linear:1:2, and the agent reads it only when"):
        scheduled(agent_of(x=1.0), {"z": parse("linear:1:2")}, horizon=10)
    with pytest.raises(
        UserError, match="Schedules are for max_gradient_norm, optimiser_epsilon, x"
    ):
        scheduled(agent_of(x=1.0), {"z": parse("linear:1:2")}, horizon=10)


def test_agents_get_numbers():
    config = Settings(rate="linear:0:2", discount="linear:0.9:1", kind="x:y")  # type: ignore[arg-type]
    numbers, found = split(config)
    assert (numbers.rate, numbers.discount, numbers.kind) == (2, 0.9, "x:y")
    assert found == {"rate": parse("linear:0:2"), "discount": parse("linear:0.9:1")}
    assert split(Settings()) == (Settings(), {})


def test_a_learning_rate_with_a_schedule_is_not_annealed_as_well():
    spec = envs.spec_of("pronk/Catch-v0")
    config = resolve("impala", "pronk/Catch-v0", learning_rate="piecewise:1@0").agent_config
    assert not config.anneal
    state = jax.jit(agents.make("impala", config, spec, horizon=10).init)(KEY)
    assert state.hyper["learning_rate"] == 1


# Training


def train(run_dir: Path, agent: Any = "impala", env: str = "pronk/Catch-v0", **settings):
    return pronk.train(agent, env, run_dir=run_dir, **{**TINY, **settings})


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_anneal_is_a_schedule(tmp_path):
    """The same bits as a schedule of that text."""
    common = {"runtime": "fused", "steps": 400, "learning_rate": 1e-3, "seed": 2}
    train(tmp_path / "a", **common)
    train(tmp_path / "b", **{**common, "learning_rate": "linear:1e-3:0"})
    train(tmp_path / "c", **common, anneal=False)
    digests = [inspect(tmp_path / name)["learner_sha256"] for name in ("a", "b", "c")]
    assert digests[0] == digests[1] != digests[2]


def test_current_values_are_logged_and_the_text_is_saved(tmp_path, capsys):
    schedule = {"entropy_cost": "linear:0.1:0.5", "discount": "cosine:0.5:0.9"}
    train(tmp_path / "run", runtime="fused", steps=400, log_every=1e-6, **schedule)
    rows = metrics(tmp_path / "run")
    for row in rows:
        # Means over a call's updates, each before its own steps.
        assert 0.1 <= row["entropy_cost"] < 0.5
        assert 0.5 <= row["discount"] < 0.9
    costs = [row["entropy_cost"] for row in rows]
    assert len(costs) > 3
    assert costs == sorted(costs)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["agent_config"]
    assert saved["entropy_cost"] == "linear:0.1:0.5"
    cli.main(["inspect", str(tmp_path / "run")])
    assert "cosine:0.5:0.9" in capsys.readouterr().out
    # The same settings are the same run, however the schedule is written.
    schedule["discount"] = "cosine:.5:9e-1"
    again = train(tmp_path / "run", runtime="fused", steps=400, log_every=1e-6, **schedule)
    assert again["status"] == "finished"
    with pytest.raises(UserError, match="another run"):
        train(tmp_path / "run", runtime="fused", steps=400, log_every=1e-6, entropy_cost=0.1)


def test_help_shows_a_presets_schedule(tmp_path, monkeypatch, capsys):
    source = (
        "from pronk.agents.r2d2 import *\n"
        "from pronk.agents import r2d2, r2d2_config\n"
        "Config = r2d2_config.Config\n"
        "PRESETS = {'slow': {'learning_rate': 'exponential:1e-3:1e-5'}}\n"
    )
    (tmp_path / "own_scheduled.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        cli.main(["train", "own_scheduled", "pronk/Catch-v0", "--preset", "slow", "--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert "exponential:1e-3:1e-5" in shown
    assert "linear:3e-4:0 (docs/schedules.md)" in re.sub(r"\s+", " ", shown)
    sys.modules.pop("own_scheduled", None)


def test_an_agent_from_outside_gets_schedules_for_free(tmp_path):
    """examples/custom_agent.py knows nothing of them, and has halves."""
    schedule = {"learning_rate": "linear:1e-2:0", "entropy_cost": "piecewise:0.1@0,0@100"}
    train(
        tmp_path,
        agent="examples.custom_agent",
        steps=400,
        runtime="local",
        preset="default",
        log_every=1e-6,
        actors=2,
        envs_per_actor=2,
        **schedule,
    )
    rows = [row for row in metrics(tmp_path) if "learning_rate" in row]
    assert rows[0]["learning_rate"] > rows[-1]["learning_rate"]
    assert {0.0} == {row["entropy_cost"] for row in rows if row["steps"] > 200}


def test_members_of_a_population_follow_their_own_schedules():
    plan = resolve("impala", "pronk/Catch-v0", **TINY, learning_rate="linear:1e-3:0", steps=400)
    _, agent = build(plan, plan.env)
    env = envs.jax_env_of(plan.env)
    assert env is not None
    shape = {"unroll": 5, "num_envs": 4}
    population = Population(agent, env, shape, updates=3, in_turn=False)  # type: ignore[arg-type]
    keys = jax.random.split(KEY, 2)
    rates = np.float32([1e-3, 2e-3])
    runs, _ = population.advance(population.begin(keys, keys, {"learning_rate": rates}))
    np.testing.assert_array_equal(runs.learner.hyper["learning_rate"], rates)
    init, update = map(jax.jit, fused.build(agent, env, **shape))
    for i in range(2):
        state: LearnerState = agent.init(keys[i])
        state = state._replace(hyper=state.hyper | {"learning_rate": rates[i]})
        run = init(state, keys[i])
        for _ in range(3):
            run, outcome = update(run)
        np.testing.assert_allclose(
            outcome.metrics["learning_rate"],
            rates[i] * (1 - float(run.learner.steps - outcome.steps) / 400),
            rtol=1e-5,
        )
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-6),
            runs.learner.params,
            run.learner.params,
        )


def test_halves_are_the_whole():
    """`learn` is `apply` of `gradients`, with the same current values in both."""
    spec = envs.spec_of("pronk/Catch-v0")
    changes = {"learning_rate": "cosine:1e-3:0", "entropy_cost": "linear:0.1:0.2"}
    plan = resolve("impala", "pronk/Catch-v0", **TINY, **changes, steps=400)
    agent = agents.make("impala", plan.agent_config, spec, horizon=400)
    assert agent.halves is not None
    vector = envs.make("pronk/Catch-v0", 4)
    player = Player(agent, KEY, np.arange(4, dtype=np.int32), num_envs=4)
    unroll = Actor(player, vector, unroll=5).unroll(agent.behaviour(jax.jit(agent.init)(KEY)), 0)
    batch = Batch(jax.tree.map(jnp.asarray, unroll.trajectory))
    state = jax.jit(agent.init)(KEY)._replace(steps=jnp.uint32(100))
    a = jax.jit(agent.learn)(state, batch)
    grads = jax.jit(agent.halves.gradients)(state, batch)
    b = jax.jit(agent.halves.apply)(state, *grads)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7),
        (a.state._replace(key=0), a.metrics),
        (b.state._replace(key=0), b.metrics),
    )
    assert a.metrics["entropy_cost"] == pytest.approx(0.125)
    assert agents_schedules.progress(state.steps, jnp.float32(400)) == 0.25


def test_progress_ends_at_one():
    assert progress(jnp.uint32(5), jnp.float32(10)) == 0.5
    assert progress(jnp.uint32(50), jnp.float32(10)) == 1
    assert schedules.KINDS == ("linear", "cosine", "exponential", "piecewise")


def test_a_schedule_as_a_default_causes_no_warning(recwarn, capsys):
    with pytest.raises(SystemExit):  # of --help
        cli.main(["train", "ppo", "Pendulum-v1", "--help"])
    assert "linear:3e-4:0" in capsys.readouterr().out
    assert not [str(w.message) for w in recwarn if "annotated" in str(w.message)]
