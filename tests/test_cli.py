"""The command line as a user types it: what it prints, what it leaves behind, bad input."""

from __future__ import annotations

import contextlib
import ctypes
import io
import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest

from pronk import cli
from pronk.config.arguments import TrainArguments
from pronk.run.command import plan_of
from pronk.run.stdout import others_to_stderr

TINY = [
    "--envs-per-actor",
    "4",
    "--batch-size",
    "4",
    "--unroll",
    "5",
    "--hidden-sizes",
    "8",
    "--log-every",
    "0.01",
]


def pronk(*args: object) -> None:
    cli.main([str(a) for a in args])


@pytest.fixture(scope="module")
def catch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, made by the command line."""
    run_dir = tmp_path_factory.mktemp("runs") / "catch"
    pronk("train", "impala", "pronk/Catch-v0", "--steps", 2000, "--run-dir", run_dir, *TINY)
    return run_dir


def test_train_leaves_everything_behind(catch: Path) -> None:
    config = json.loads((catch / "config.json").read_text())
    assert config["env"] == "pronk/Catch-v0"
    assert config["run"]["steps"] == 2000
    assert config["agent_config"]["unroll"] == 5
    summary = json.loads((catch / "summary.json").read_text())
    names = "agent_steps frames wall_seconds steps_per_second mean_return episodes policy_lag"
    assert set(names.split()) | {"bound_by"} <= summary.keys()
    assert summary["agent_steps"] >= 2000
    assert summary["frames"] == summary["agent_steps"]
    records = [json.loads(line) for line in (catch / "metrics.jsonl").open()]
    assert records[-1]["steps"] == summary["agent_steps"]
    assert {"loss/policy", "loss/value", "loss/entropy", "gradient_norm"} <= records[-1].keys()
    assert list((catch / "tensorboard").glob("events*"))
    assert list((catch / "checkpoints").glob("0*"))


def test_eval(catch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pronk("eval", catch, "--episodes", 5)
    assert "mean ± standard error of 5 episodes, greedy" in capsys.readouterr().out
    pronk("eval", catch, "--episodes", 1)
    out = capsys.readouterr().out
    assert re.search(r": -?1\.00 \(1 episode, greedy, [0-9]+ steps long\)", out)
    pronk("eval", catch, "--episodes", 5, "--json")
    greedy = json.loads(capsys.readouterr().out)
    assert greedy["episodes"] == 5
    assert -1 <= greedy["mean_return"] <= 1
    pronk("eval", catch, "--episodes", 5, "--json")
    assert json.loads(capsys.readouterr().out) == greedy  # the same seed, the same games
    pronk("eval", catch, "--episodes", 200, "--sample", "--json")
    assert json.loads(capsys.readouterr().out)["minimum"] == -1


def test_what_environments_print_is_no_part_of_json(capfd: pytest.CaptureFixture[str]) -> None:
    """Neither what Python prints, nor what processes and libraries in C write."""
    assert sys.__stdout__ is not None
    with others_to_stderr():
        print("from Python")
        sys.__stdout__.write("by an old reference\n")
        subprocess.run(["echo", "from a process"], check=True)
        ctypes.CDLL(None).puts(b"from C")
    print("{}")
    with others_to_stderr(active=False):
        print("[]")
    said = capfd.readouterr()
    assert said.out == "{}\n[]\n"
    for text in ("from Python", "by an old reference", "from a process", "from C"):
        assert text in said.err


FORKS: list[None] = []
os.register_at_fork(before=lambda: FORKS.append(None))


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_record(catch: Path, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"film{suffix}"
    forks = len(FORKS)
    pronk("record", catch, "--output", output, "--episodes", 2)
    assert len(FORKS) == forks  # JAX's threads may not survive one
    frames = imageio.mimread(output)
    assert len(frames) >= 18  # two games of nine steps; GIF merges equal frames
    assert frames[0].std() > 0
    assert any((a != b).any() for a, b in itertools.pairwise(frames))


def test_record_atari_shows_the_game_in_colour(tmp_path: Path) -> None:
    run = tmp_path / "pong"
    flags = [
        "--envs-per-actor",
        2,
        "--batch-size",
        2,
        "--unroll",
        2,
        "--actors",
        1,
        "--hidden-sizes",
        8,
    ]
    pronk("train", "impala", "ALE/Pong-v5", "--steps", 4, "--run-dir", run, *flags)
    pronk("record", run, "--max-steps", 12, "--output", tmp_path / "film.gif")
    frames = imageio.mimread(tmp_path / "film.gif")
    assert np.asarray(frames[0]).shape[:2] == (210, 160)
    red, green, blue = (np.asarray(frames[0])[..., i].astype(int) for i in range(3))
    assert (abs(red - green) + abs(green - blue)).max() > 50


def test_plot(catch: Path, tmp_path: Path) -> None:
    pronk("plot", catch, "--output", tmp_path / "p.png", "--csv", tmp_path / "p.csv")
    assert imageio.imread(tmp_path / "p.png").std() > 0
    assert (tmp_path / "p.csv").read_text().count("\n") > 2


def test_inspect(catch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pronk("inspect", catch, "--json")
    found = json.loads(capsys.readouterr().out)
    assert len(found["learner_sha256"]) == 64
    # [10 × 5] -> 8 -> 3 actions, and again -> 8 -> a value
    assert found["parameters"] == 2 * (50 * 8 + 8) + 8 * 3 + 3 + 8 + 1
    assert found["agent_steps"] >= 2000
    assert found["config"]["run"]["steps"] == 2000
    pronk("inspect", catch)
    assert found["learner_sha256"] in capsys.readouterr().out


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    pronk("list")
    shown = capsys.readouterr().out
    for word in ("impala:", "pronk/Catch-v0", "ALE/Pong-v5", "CartPole-v1"):
        assert word in shown
    pronk("list", "catch", "--json")
    assert json.loads(capsys.readouterr().out)["environments"] == ["pronk/Catch-v0"]


MISTAKES = {
    "no such command": (["trian"], "did you mean 'train'?"),
    "no such agent": (["train", "impla", "CartPole-v1"], "did you mean 'impala'?"),
    "no such environment": (["train", "impala", "CartPol-v1"], "did you mean 'CartPole-v1'?"),
    "no such game": (["train", "impala", "ALE/Pnog-v5"], "did you mean 'ALE/Pong-v5'?"),
    "no such preset": (
        ["train", "impala", "CartPole-v1", "--preset", "papr"],
        "did you mean 'paper'?",
    ),
    "zero steps": (["train", "impala", "CartPole-v1", "--steps", "0"], "`--steps` is 0"),
    "negative rate": (
        ["train", "impala", "CartPole-v1", "--learning-rate", "-1"],
        "`--learning-rate` is -1",
    ),
    "discount": (["train", "impala", "CartPole-v1", "--discount", "1.5"], "from 0 to 1"),
    "trace": (["train", "impala", "CartPole-v1", "--trace-lambda", "1.2"], "from 0 to 1"),
    "environment argument": (
        ["train", "impala", "pronk/MemoryCue-v0", "--env-arg", "dela=3"],
        "does not accept",
    ),
    "argument form": (
        ["train", "impala", "pronk/MemoryCue-v0", "--env-arg", "delay"],
        "expected NAME=VALUE",
    ),
    "fused without jax": (
        ["train", "impala", "CartPole-v1", "--runtime", "fused"],
        "use --runtime local",
    ),
    "rounds": (
        [
            "train",
            "impala",
            "CartPole-v1",
            "--deterministic",
            "--envs-per-actor",
            "3",
            "--actors",
            "1",
        ],
        "must be a multiple of `--batch-size`",
    ),
    "no run": (["eval", "nowhere"], "holds no run"),
    "film type": (["record", "nowhere"], "holds no run"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_paragraph_and_status_2(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    args, expected = MISTAKES[name]
    with pytest.raises(SystemExit) as exit_:
        pronk(*args)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert expected in error
    assert "Traceback" not in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "shown"),
    [
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.\nmore"), "8 bytes)"),
        (MemoryError(), "(an allocation failed)"),
        (RuntimeError("another"), None),
    ],
)
def test_a_lack_of_memory_is_one_paragraph(
    raised: Exception,
    shown: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command(_: list[str]) -> None:
        raise raised

    monkeypatch.setitem(cli.COMMANDS, "list", command)
    with pytest.raises(SystemExit if shown else RuntimeError) as caught:
        pronk("list")
    error = capsys.readouterr().err
    if shown:
        assert isinstance(caught.value, SystemExit)
        assert caught.value.code == 2
        assert error.count("\n") == 1
        assert "too little free memory" in error
        assert shown in error


def test_an_unknown_flag_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--learning-rat", "--learning_rat=1", "--lr", "--no-aneal"):
        with pytest.raises(SystemExit) as exit_:
            pronk("train", "impala", "CartPole-v1", flag, "1")
        assert exit_.value.code == 2
        error = capsys.readouterr().err
        assert ("--anneal" if "no" in flag else "--learning-rate") in error
        assert error.count("\n") == 1


def test_integers_may_be_written_in_short() -> None:
    flags = ["--steps", "1e2", "--seed", "1_0", "--hidden-sizes", "8", "1e1", "--actors", "1e0"]
    parsed = plan_of(
        "train", TrainArguments, ["impala", "pronk/Catch-v0", *flags], contextlib.ExitStack()
    )
    assert parsed is not None
    run, config = parsed[0].run, parsed[0].agent_config
    assert (run.steps, run.seed, run.actors, config.hidden_sizes) == (100, 10, 1, (8, 10))
    for text in ("1.5", "inf", "x", "1e400"):
        flags = ["impala", "pronk/Catch-v0", "--steps", text]
        with pytest.raises(SystemExit):
            plan_of("train", TrainArguments, flags, contextlib.ExitStack())


def test_spaces_the_agent_cannot_handle(tmp_path: Path) -> None:
    import gymnasium as gym

    import pronk as library
    from pronk.errors import UserError

    class Odd(gym.Env):
        observation_space = gym.spaces.Text(5)
        action_space = gym.spaces.Discrete(2)

        def reset(self, **_: object) -> tuple[str, dict]:
            return "here", {}

    with pytest.raises(UserError, match="space"):
        library.train("impala", Odd, run_dir=tmp_path / "a", steps=10)

    class Matrix(gym.Env):
        observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
        action_space = gym.spaces.Box(0, 1, (2, 2), np.float32)

        def reset(self, **_: object) -> tuple[np.ndarray, dict]:
            return np.zeros(2, np.float32), {}

    with pytest.raises(UserError, match="action space"):
        library.train("impala", Matrix, run_dir=tmp_path / "b", steps=10)


def test_flags_may_come_before_the_environment(tmp_path: Path) -> None:
    pronk("train", "impala", "--steps", 100, "--run-dir", tmp_path, *TINY, "pronk/Catch-v0")
    assert json.loads((tmp_path / "summary.json").read_text())["agent_steps"] >= 100


def test_help_answers_at_once_and_reads_well() -> None:
    for args in (["--help"], ["train", "impala", "--help"], ["eval", "--help"]):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "pronk.cli", *args], capture_output=True, text=True, check=True
        )
        assert "usage: pronk" in done.stdout
        assert time.perf_counter() - started < 30  # hung, not slow: speed is measured elsewhere
        assert max(map(len, done.stdout.splitlines())) <= 110


def help_of(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The help that a command prints, in one line."""
    with pytest.raises(SystemExit) as exit_:
        pronk(*args)
    assert not exit_.value.code
    return " ".join(re.sub("[│╭╰─╮╯]", " ", capsys.readouterr().out).split())


HELP = {
    "CartPole-v1": ("small", "Learning rate at the start. [preset small] (default: 0.002)"),
    "ALE/Pong-v5": ("atari", "Learning rate at the start. [preset atari] (default: 0.0008)"),
    "Pendulum-v1": ("continuous", "γ. [preset continuous] (default: 0.9)"),
    "CartPole-v1 --preset paper": ("paper", "at the start. [E18, table G.1] (default: 0.0006)"),
}


@pytest.mark.parametrize("env", HELP)
def test_help_shows_what_an_environment_gets(env: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And cites the paper where the value is the paper's only."""
    preset, shown = HELP[env]
    for args in ([*env.split(), "--help"], ["-h", *env.split()]):
        found = help_of(capsys, "train", "impala", *args)
        assert shown in found
        assert f"those for {env.split()[0]}: of preset {preset}" in found
        assert "RMSProp's mean square. [E18, table G.1] (default: 0.99)" in found
        assert "small: batch_size 8, optimiser adam, learning_rate 0.002" in found


def test_help_says_which_values_are_the_agents_own(capsys: pytest.CaptureFixture[str]) -> None:
    found = help_of(capsys, "train", "impala", "--help")
    assert "give ENV as well as --help" in found
    assert "atari: batch_size 8" in found
    assert "[E18, table G.1] (default: 0.0006)" in found
    found = help_of(capsys, "pbt", "r2d2", "ALE/Pong-v5", "--help")
    assert "Arguments of the environment: life_loss=False." in found
    assert "[preset atari] (default: 400000)" in found
    found = help_of(capsys, "train", "examples.custom_agent", "CartPole-v1", "--help")
    assert "[default of examples.custom_agent] (default: sync-unroll)" in found


def test_a_run_says_with_what_it_was_carried_out(catch: Path) -> None:
    config = json.loads((catch / "config.json").read_text())
    assert config["preset"] == "small"
    assert config["resolved"] == {"runtime": "fused", "envs": 4}
    assert {"python", "jax", "numpy", "gymnasium"} <= config["versions"].keys()
    assert config["sources"] == {}


# Where the command runs.


def test_without_a_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pronk.run import setup

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert setup._cache_directory() is None
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert setup._cache_directory() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert setup._cache_directory() == tmp_path / "cache" / "pronk" / "jax"


def test_an_output_that_lacks_characters(catch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        pronk("eval", catch, "--episodes", 2)
        with pytest.raises(SystemExit):
            pronk("train", "impala", "--help")
    stream.flush()
    shown = stream.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert " +- " in shown
    assert "usage: pronk train impala" in shown


WANDERER = """
import os

import gymnasium as gym
import numpy as np

import tiny_helper  # found beside it


class Wanderer(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    faults = 0

    def __init__(self):
        os.chdir("/")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        os.chdir("/")
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        if self.t == 7 and not Wanderer.faults:
            Wanderer.faults += 1
            raise ValueError("a fault, which is logged")
        return np.zeros(2, np.float32), 1.0, self.t >= 10, False, {}


gym.register("Wanderer-v0", entry_point=Wanderer)
"""


def test_an_environment_that_changes_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written elsewhere, and its module is found where the command was given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    (tmp_path / "wandering.py").write_text(WANDERER)
    (tmp_path / "tiny_helper.py").write_text("")
    flags = ["--envs-per-actor", "4", "--batch-size", "4", "--unroll", "5", "--hidden-sizes", "8"]
    flags += ["--steps", "200", "--actors", "1", "--env-workers", "0", "--max-env-faults", "999"]
    pronk("train", "impala", "wandering:Wanderer-v0", *flags, "--run-dir", "runs/here")
    shown = capsys.readouterr().out
    assert "finished at" in shown
    assert shown.rstrip().endswith(": runs/here")
    monkeypatch.chdir(tmp_path)
    for name in ("config.json", "metrics.jsonl", "summary.json", "env_faults.log"):
        assert (tmp_path / "runs" / "here" / name).exists(), name
    assert json.loads(Path("runs/here/config.json").read_text())["run"]["run_dir"] == "runs/here"
    resolved = json.loads(Path("runs/here/config.json").read_text())["resolved"]
    assert (resolved["runtime"], resolved["actors"], resolved["envs_per_actor"]) == ("local", 1, 4)
    for command in (["inspect"], ["plot", "--output", "a.png"]):
        pronk(command[0], "runs/here", *command[1:])
        monkeypatch.chdir(tmp_path)
    assert (tmp_path / "a.png").exists()
    for name in ("wandering", "tiny_helper"):
        sys.modules.pop(name)


def test_a_module_that_is_not_found_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for args in (["impala", "nowhere.at_all:A-v0"], ["nowhere.at_all", "CartPole-v1"]):
        with pytest.raises(SystemExit):
            pronk("train", *args)
        error = capsys.readouterr().err
        assert "nowhere.at_all" in error
        assert "current directory" in error
        assert "PYTHONPATH" in error


def test_a_file_in_the_way_of_the_run_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(SystemExit) as exit_:
        pronk("train", "impala", "pronk/Catch-v0", "--run-dir", tmp_path / "file" / "run")
    assert exit_.value.code == 2
    assert "cannot write" in capsys.readouterr().err


def test_a_full_disk_stops_the_run_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from pronk.storage import files

    write = files.write_and_sync

    def full(path: Path, *parts: bytes) -> None:
        if "safetensors" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, *parts)

    monkeypatch.setattr(files, "write_and_sync", full)
    with pytest.raises(SystemExit) as exit_:
        pronk("train", "impala", "pronk/Catch-v0", "--steps", 400, "--run-dir", tmp_path, *TINY)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "Traceback" not in error
    assert not list((tmp_path / "checkpoints").glob("0*"))
