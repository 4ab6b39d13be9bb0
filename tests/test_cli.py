"""The command line as a user types it: what it prints, what it leaves behind, bad input."""

from __future__ import annotations

import ctypes
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest

from pronk import cli
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


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_record(catch: Path, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"film{suffix}"
    pronk("record", catch, "--output", output, "--episodes", 2)
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
    # [10 × 5] -> 8 -> 3 actions and a value
    assert found["parameters"] == 50 * 8 + 8 + 8 * 3 + 3 + 8 + 1
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


def test_an_unknown_flag_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        pronk("train", "impala", "CartPole-v1", "--learning-rat", "1")
    assert exit_.value.code == 2
    assert "--learning-rate" in capsys.readouterr().err


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
