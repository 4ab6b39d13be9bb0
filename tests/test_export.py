"""A policy in one file: what is in it, and which files are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import pronk
from pronk import agents, cli
from pronk.errors import UserError
from pronk.run.policy import export, newest
from pronk.storage.array_file import HostTrees, encode
from pronk.types import Agent, LearnerState, Learnt

TINY: dict[str, Any] = {
    "envs_per_actor": 4,
    "batch_size": 4,
    "unroll": 5,
    "hidden_sizes": (8,),
    "quiet": True,
    "runtime": "local",
    "actors": 1,
}
R2D2 = {"recurrent_units": 4, "head_units": 4, "replay_minimum": 5, "replay_saved": False}


@pytest.fixture(scope="module", params=["impala", "r2d2"])
def run(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run"
    settings = TINY | (R2D2 if request.param == "r2d2" else {})
    pronk.train(request.param, "pronk/Catch-v0", steps=600, run_dir=path, **settings)
    return path


@pytest.fixture(scope="module")
def exported(run) -> Path:
    path = run.parent / "there" / "policy.safetensors"
    cli.main(["export", str(run), str(path)])
    return path


def changed(path: Path, to: Path, change: Any, *, seal: bool = True) -> Path:
    """A copy whose arrays and texts `change` has altered, with the right hash unless not `seal`."""
    with safetensors.safe_open(path, "numpy") as file:
        meta, arrays = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    change(arrays, meta)
    empty = json.loads(meta["empty"])
    sealed = b"".join(encode(HostTrees(arrays, {}, empty), meta))
    to.write_bytes(sealed if seal else safetensors.numpy.save(arrays, meta))
    return to


def test_it_acts_as_the_run_does(run, exported, capsys):
    a, b = pronk.load(run), pronk.load(exported)
    jax.tree.map(np.testing.assert_array_equal, a.behaviour, b.behaviour)
    assert a.steps == b.steps
    assert a.evaluate(episodes=6).mean_return == b.evaluate(episodes=6).mean_return
    cli.main(["eval", str(exported), "--episodes", "4", "--json"])
    assert json.loads(capsys.readouterr().out)["steps"] == a.steps


class MeanBehaviour(NamedTuple):
    inner: Any
    mean: Any


@pytest.fixture
def centring(monkeypatch) -> None:
    """Agents subtract the mean of the observations they have learnt from."""
    make = agents.make

    def wrapped(*args: Any, **kwargs: Any) -> Agent:
        inner = make(*args, **kwargs)

        def shown(timestep: Any, mean: Any) -> Any:
            return timestep._replace(observation=timestep.observation - mean)

        def init(key: Any) -> LearnerState:
            state = inner.init(key)
            return state._replace(extra=(state.extra, jnp.float32(0)))

        def act(behaviour: MeanBehaviour, carry: Any, timestep: Any, key: Any) -> Any:
            return inner.act(behaviour.inner, carry, shown(timestep, behaviour.mean), key)

        def learn(state: LearnerState, batch: Any) -> Learnt:
            extra, mean = state.extra
            timestep = shown(batch.trajectory.timestep, mean)
            trajectory = batch.trajectory._replace(timestep=timestep)
            learnt = inner.learn(state._replace(extra=extra), batch._replace(trajectory=trajectory))
            mean = 0.9 * mean + 0.1 * batch.trajectory.timestep.observation.mean()
            return learnt._replace(state=learnt.state._replace(extra=(learnt.state.extra, mean)))

        def behaviour(state: LearnerState) -> MeanBehaviour:
            extra, mean = state.extra
            return MeanBehaviour(inner.behaviour(state._replace(extra=extra)), mean)

        return inner._replace(init=init, act=act, learn=learn, behaviour=behaviour, halves=None)

    monkeypatch.setattr(agents, "make", wrapped)


@pytest.mark.usefixtures("centring")
def test_an_exported_policy_has_all_that_acting_needs(tmp_path):
    """What acts is more than parameters here; the file plays the same actions bit for bit."""
    path = tmp_path / "policy.safetensors"
    pronk.train("impala", "pronk/Catch-v0", steps=600, run_dir=tmp_path / "run", **TINY)
    export(tmp_path / "run", path)
    ours, theirs = pronk.load(tmp_path / "run"), pronk.load(path)
    saved = newest(tmp_path / "run").tree("learner")
    assert saved is not None
    assert ours.behaviour.mean == saved["extra"]["1"] > 0
    jax.tree.map(np.testing.assert_array_equal, ours.behaviour, theirs.behaviour)
    assert jax.tree.structure(ours.behaviour) == jax.tree.structure(theirs.behaviour)
    actions = []
    for policy in (ours, theirs):
        carry, played = policy.initial_carry(seed=3, sample=True), []
        for t in range(40):
            observation = np.random.default_rng(t).random((10, 5), np.float32)
            action, carry = policy.act(observation, carry)
            played.append(int(action))
        actions.append(played)
    assert actions[0] == actions[1]
    assert len(set(actions[0])) > 1


def test_it_names_nothing_of_this_machine(run, exported):
    with safetensors.safe_open(exported, "numpy") as file:
        assert str(run.parent) not in json.dumps(file.metadata())
        assert all(name.startswith("behaviour/") for name in file.keys())  # noqa: SIM118


def test_training_can_begin_with_it(exported, tmp_path):
    plan = pronk.load(exported).plan
    settings = TINY | (R2D2 if plan.agent == "r2d2" else {}) | {"learning_rate": 1e-12}
    pronk.train(plan.agent, "pronk/Catch-v0", steps=300, run_dir=tmp_path, init_from=exported,
                **settings)  # fmt: skip
    begun, had = (pronk.load(p).behaviour for p in (tmp_path, exported))
    assert jax.tree.structure(begun) == jax.tree.structure(had)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), begun, had)


def reshape(arrays, meta):
    name = sorted(arrays)[-1]
    arrays[name] = np.zeros((3, 1), np.float32)


def add(arrays, meta):
    arrays["behaviour/more"] = np.zeros(1, np.float32)


def remove(arrays, meta):
    arrays.pop(sorted(arrays)[0])


def retype(arrays, meta):
    name = sorted(arrays)[0]
    arrays[name] = arrays[name].astype(np.float16)


def no_plan(arrays, meta):
    meta.pop("plan")


def no_number(arrays, meta):
    meta["steps"] = "many"


def bad_plan(arrays, meta):
    meta["plan"] = meta["plan"][:50]


def deep_plan(arrays, meta):
    meta["plan"] = "[" * 100_000


def no_env(arrays, meta):
    meta["plan"] = json.dumps(json.loads(meta["plan"]) | {"env": 3})


def of_a_module(arrays, meta):
    plan = json.loads(meta["plan"])
    plan["env"] = "a_module_of_mine:Catch-v0"
    meta["plan"] = json.dumps(plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (reshape, r"does not fit: at `behaviour/.*` it holds float32\[3, 1\] where float32\["),
        (add, r"`behaviour/more` it holds float32\[1\] where nothing is expected"),
        (remove, "it holds nothing where float32"),
        (retype, "it holds float16"),
        (no_plan, "holds no policy"),
        (no_number, "holds no policy"),
        (bad_plan, r"can't be read \(it is not JSON"),
        (deep_plan, r"can't be read \(it is nested more than 64 deep"),
        (no_env, "can't be read as a run's configuration"),
        (of_a_module, "asks to import the module of its environment"),
    ],
)
def test_what_does_not_fit_is_refused(exported, tmp_path, change, message):
    path = changed(exported, tmp_path / "changed.safetensors", change)
    with pytest.raises(UserError, match=message):
        pronk.load(path)


def test_a_changed_file_is_noticed(exported, tmp_path):
    path = changed(exported, tmp_path / "changed.safetensors", retype, seal=False)
    with pytest.raises(UserError, match="is damaged: its content does not match its SHA-256"):
        pronk.load(path)


def test_a_shape_beyond_the_file_is_refused_before_anything_is_made(exported, tmp_path):
    data = exported.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    name = next(k for k in header if k != "__metadata__")
    header[name]["shape"] = [1 << 40]
    text = json.dumps(header).encode()
    path = tmp_path / "huge.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    with pytest.raises(UserError, match="is not a safetensors file"):
        pronk.load(path)


@pytest.mark.parametrize("keep", [0, 5, 8, 60, -1])
def test_a_damaged_file_is_refused(exported, tmp_path, keep):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(exported.read_bytes()[:keep])
    with pytest.raises(UserError, match="is not a safetensors file"):
        pronk.load(path)


def test_a_wrong_name_is_refused(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["export", str(run), str(tmp_path / "policy.npz")])
    assert "expected a name ending .safetensors" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["export", str(tmp_path / "nowhere"), str(tmp_path / "policy.safetensors")])
    assert "holds no run" in capsys.readouterr().err


UNCHANGED = """
import ctypes, signal, sys

import jax


class Watched(ctypes.CDLL):
    def __getattr__(self, name):
        assert name != "mallopt", "the allocator was configured"
        return super().__getattr__(name)


def settings():
    return dict(jax.config.values), {n: signal.getsignal(n) for n in signal.valid_signals()}


ctypes.CDLL = Watched
before = settings()
import pronk

policy = pronk.load(sys.argv[1])
carry = policy.initial_carry()
policy.act(policy.spec.observation_space.sample(), carry)
assert settings() == before
"""


def test_loading_changes_no_setting_of_the_program(run, exported):
    """Neither JAX's configuration, nor signal handlers, nor the allocator."""
    for path in (run, exported):
        subprocess.run([sys.executable, "-c", UNCHANGED, str(path)], check=True)
