"""Logging and display: files that survive a kill, and the panel on a terminal."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pronk.errors import UserError
from pronk.run.monitor import Monitor
from pronk.storage import files
from pronk.storage.files import read_lines, write_json_atomically
from pronk.types import Alert


def record(steps: int, **more: Any) -> dict[str, Any]:
    return {
        "steps": steps,
        "frames": 4 * steps,
        "updates": steps // 640,
        "wall_seconds": steps / 2412,
        "steps_per_second": 2412.0,
        "mean_return": 13.2,
        "episodes": 250,
        "policy_lag": 1.3,
        "bound_by": "learner",
        "loss/policy": -0.0123,
        "loss/value": 12.3,
        "gradient_norm": 4.0,
    } | more


def plain_console() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=80)


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=80, height=24)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def monitor(run_dir: Path, console: Console | None = None, **more: Any) -> Monitor:
    return Monitor(
        run_dir,
        total_steps=10_000_000,
        frames_per_step=4,
        **{"title": "impala ALE/Pong-v5 [seed=1]", **more},
        console=console or plain_console(),
    )


def scalars(run_dir: Path) -> list[list[tuple[int, str, float]]]:
    """All (step, tag, value) of each event file, and (step, "START", 0) where a session starts."""
    from tensorboardX.proto import event_pb2

    sessions = []
    for path in sorted((run_dir / "tensorboard").iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data, entries = path.read_bytes(), []
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])  # type: ignore[attr-defined]
            data = data[16 + length :]
            if event.HasField("session_log"):
                entries.append((event.step, "START", 0))
            entries += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
        sessions.append(entries)
    return sessions


def steps_of(run_dir: Path) -> list[int]:
    return [
        json.loads(line)["steps"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()
    ]


# -- Files


def test_each_record_is_a_line_at_once(tmp_path: Path) -> None:
    with monitor(tmp_path / "new" / "run") as m:
        m.log(record(100, mean_return=float("nan"), policy_lag=np.float32(2), x=float("inf")))
        lines = (tmp_path / "new" / "run" / "metrics.jsonl").read_text().splitlines()
        m.log(record(200))

    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    (line,) = [json.loads(line, parse_constant=no_constants) for line in lines]
    assert line["mean_return"] is None
    assert line["x"] is None
    assert line["policy_lag"] == 2
    assert line["bound_by"] == "learner"
    assert steps_of(tmp_path / "new" / "run") == [100, 200]


def test_tensorboard_has_the_numbers_at_once(tmp_path: Path) -> None:
    with monitor(tmp_path) as m:
        m.log(record(100, mean_return=float("nan")))
        (entries,) = scalars(tmp_path)
    assert (100, "frames", 400) in entries
    assert (100, "loss/policy", np.float32(-0.0123)) in entries
    assert not {"mean_return", "bound_by", "steps"} & {tag for _, tag, _ in entries}


def test_resuming_removes_records_that_will_be_repeated(tmp_path: Path) -> None:
    with monitor(tmp_path) as m:
        for steps in (100, 200, 300):
            m.log(record(steps))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"steps": 150, "mean_ret')  # killed in mid-write
    with monitor(tmp_path, resume_steps=200) as m:
        assert steps_of(tmp_path) == [100, 200]
        m.log(record(250))
    assert steps_of(tmp_path) == [100, 200, 250]
    first, second = scalars(tmp_path)
    assert first[0] == (0, "START", 0)
    assert second[0] == (201, "START", 0)  # hides 201 and later, not 200
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_new_run_in_an_old_directory_starts_afresh(tmp_path: Path) -> None:
    for _ in range(2):  # within one second: TensorBoard files must not overwrite each other
        with monitor(tmp_path) as m:
            m.log(record(100))
    assert steps_of(tmp_path) == [100]
    assert len(scalars(tmp_path)) == 2


@pytest.mark.parametrize("torn", [b'{"steps": 3', b'{"steps": 3}', b"\xff\xfe\n", b"3\n", b"{}\n"])
def test_torn_lines_are_left_out(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"steps": 1}\n{"steps": 2}\n' + torn)
    assert [r["steps"] for _, r in read_lines(path)] == [1, 2]


def test_a_failed_rewrite_leaves_the_old_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"steps": 1}\n{"steps": 2}\n')

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fail)
        with pytest.raises(UserError, match="No space left on device; free some space"):
            monitor(tmp_path, resume_steps=1)
    assert path.read_text() == '{"steps": 1}\n{"steps": 2}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_full_disk_while_logging(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with monitor(tmp_path) as m:
        m._metrics.close()
        m._metrics = open("/dev/full", "ab")  # noqa: SIM115
        with pytest.raises(UserError, match="No space left on device"):
            m.log(record(1))


def test_a_file_in_place_of_the_run_directory(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(UserError, match="move away the file"):
        monitor(tmp_path / "run")


def test_summary_is_json(tmp_path: Path) -> None:
    with monitor(tmp_path) as m:
        m.summary({"steps": np.int64(5), "mean_return": float("nan"), "bound_by": "actors"})
    written = (tmp_path / "summary.json").read_text()
    assert json.loads(written) == {"steps": 5, "mean_return": None, "bound_by": "actors"}
    assert "\n  " in written


def test_json_is_replaced_wholly_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    write_json_atomically(path, {"run_dir": Path("a/b"), "epsilon": float("inf")})
    assert json.loads(path.read_text()) == {"run_dir": "a/b", "epsilon": float("inf")}

    def fail(*args: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(UserError, match=r"config\.json.*Read-only file system.*--run-dir"):
        write_json_atomically(path, {})
    assert json.loads(path.read_text())["run_dir"] == "a/b"
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    with pytest.raises(TypeError):
        write_json_atomically(path, {"x": object()})


# -- Display


def test_a_plain_line_per_record(tmp_path: Path) -> None:
    console = plain_console()
    with monitor(tmp_path, console) as m:
        m.log(record(1_234_560))
        m.log(record(20, mean_return=float("nan"), episodes=0, steps_per_second=0))
        m.log(record(10_000_000, episodes=1, bound_by="", **{"eval/mean_return": 20.5}))
    assert text(console).splitlines() == [
        "  1,234,560 steps  12.3%  2,412 steps/s  mean return 13.2 (last 100 episodes)"
        "  policy lag 1.3 updates  bound by: learner  – left",
        "  20 steps  0.0%  0 steps/s  no finished episode yet  policy lag 1.3 updates"
        "  bound by: learner  – left",
        "  10,000,000 steps  100.0%  2,412 steps/s  mean return 13.2 (1 episode)  evaluation 20.5"
        "  policy lag 1.3 updates  0:00:00 left",
    ]


def test_the_time_left_is_that_at_the_average_speed(tmp_path: Path) -> None:
    """It does not jump with the speed of the last record, evaluation counts, and none is shown
    before the average is one."""
    console = plain_console()
    with monitor(tmp_path, console, resume_steps=1_000_000) as m:
        for steps, seconds, speed in (
            (1_001_000, 60, 1000),
            (1_002_000, 65, 200),
            (1_003_000, 79, 9e9),
            (2_001_000, 1060, 5),
            (2_002_000, 1061, 9e9),
        ):
            m.log(record(steps, wall_seconds=seconds, steps_per_second=speed))
    times = [line.rsplit("  ", 1)[1] for line in text(console).splitlines()]
    assert times == ["– left", "– left", "– left", "2:13:19 left", "2:13:18 left"]


def test_a_short_run_has_a_time_left_after_a_part_of_it(tmp_path: Path) -> None:
    console = plain_console()
    with Monitor(tmp_path, total_steps=100, frames_per_step=1, title="", console=console) as m:
        for steps in (10, 14, 15, 20):
            m.log(record(steps, wall_seconds=steps / 10))
    times = [line.rsplit("  ", 1)[1] for line in text(console).splitlines()]
    assert times == ["– left", "– left", "0:00:08 left", "0:00:08 left"]


def test_records_between_lines_are_in_the_files_only(tmp_path: Path) -> None:
    console = plain_console()
    with monitor(tmp_path, console) as m:
        m.log(record(1), line=False)
        m.log(record(2))
    assert steps_of(tmp_path) == [1, 2]
    assert len(text(console).splitlines()) == 1


def test_a_fast_run_is_recorded_by_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    from pronk.config.run import RunConfig
    from pronk.run import meter as module

    now = 0.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    meter, run = module.Meter(995), RunConfig(steps=1000)
    assert not meter.is_due(run, 1000)  # too soon
    now = 1.0
    assert not meter.is_due(run, 999)
    assert meter.is_due(run, 1000)
    assert not module.Meter(1000).is_due(run, 1010)


# -- What an environment or an agent says


FOREIGN = "\x1b[2Jfinished\nwarning: forged \u202eabc \x9b31m"


def test_what_is_not_ours_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    """Neither control sequences, nor lines that look like ours."""
    for console in (plain_console(), terminal()):
        with monitor(tmp_path, console, title=FOREIGN) as m:
            m.message(FOREIGN)
            m.log(record(10, **{f"loss/{FOREIGN}": 1.0, f"return/{FOREIGN}": 1.0}))
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text(console).replace("\x1b[2J", "CLEARED"))
        assert "CLEARED" not in shown
        assert not {"\x1b", "\x9b", "\u202e"} & set(shown)
        assert not [line for line in shown.splitlines() if line.startswith("warning")]
        assert r"\x1b[2Jfinished\nwarning: forged \u202eabc" in shown


def test_characters_that_the_output_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python, too, and in the panel."""
    for options in ({}, {"force_terminal": True}):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", stream)
        console = Console(file=stream, width=80, **options)
        with monitor(tmp_path, console) as m:
            m.message("1 ± 2 × 3 – Ünï")
            m.log(record(10))
        stream.flush()
        shown = stream.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
        assert r"1 +- 2 x 3 - \xdcn\xef" in shown


def test_quiet_prints_messages_only(tmp_path: Path) -> None:
    for console in (plain_console(), terminal()):
        with monitor(tmp_path, console, quiet=True) as m:
            m.log(record(1))
            m.message("saved [red]as is[/red] " + "x" * 100)
        assert text(console) == "saved [red]as is[/red] " + "x" * 100 + "\n"


def test_the_panel(tmp_path: Path) -> None:
    console = terminal()
    with monitor(tmp_path, console, resume_steps=1000) as m:
        assert "1,000" in text(console)
        assert "starting" in text(console)
        m.log(record(1_234_560, **{"eval/mean_return": 20.5}))
        m.log(record(1_234_570))
        m.message("a message")
    shown = text(console)
    last = shown[shown.rindex("a message") :]
    numbers = ("1,234,570", "4,938,280", "2,412", "13.2", "250", "-0.0123", "20.5")
    words = ("impala ALE/Pong-v5 [seed=1]", "policy loss", "learner", "evaluation", "12.3%")
    for part in (*numbers, *words, "– left"):
        assert part in last, part
    assert "…" not in last
    assert shown.endswith("\x1b[?25h")  # the cursor is shown again
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", last).splitlines()[1:]
    assert max(map(len, lines)) == 72  # leaves room for a `^C` within 80 columns


def test_the_cursor_is_shown_again_without_close() -> None:
    program = """
import tempfile
from pathlib import Path
from rich.console import Console
from pronk.run.monitor import Monitor
import sys
assert "jax" not in sys.modules
Monitor(Path(tempfile.mkdtemp()), total_steps=1, frames_per_step=1, title="t",
        console=Console(force_terminal=True))
raise KeyboardInterrupt
"""
    environment = os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert "KeyboardInterrupt" in done.stderr
    assert "\x1b[?25l" in done.stdout
    assert done.stdout.rindex("\x1b[?25h") > done.stdout.rindex("\x1b[?25l")


def test_close_twice_and_after_no_record(tmp_path: Path) -> None:
    m = monitor(tmp_path, terminal())
    m.close()
    m.close()
    assert not (tmp_path / "tensorboard").exists()


def test_a_suites_tasks_are_shown(tmp_path: Path) -> None:
    """Each by the end of its name, where tasks differ; and not more than fit."""
    console = Console(file=io.StringIO(), width=100)
    returns = {f"return/pronk/Catch-v0?delay={i}&reward_scale=100": float(i) for i in range(12)}
    record = {"steps": 10, "mean_return": 5.5, "episodes": 7, "score/median": 0.25, **returns}
    with Monitor(tmp_path, total_steps=100, frames_per_step=1, title="x", console=console) as m:
        m.log(record)
        console.print(m._panel())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "mean return 5.5 (mean of tasks)" in shown
    assert "median score 0.25" in shown
    assert "…elay=3&reward_scale=100" in shown
    assert "elay=9" not in shown


@pytest.mark.parametrize("console", [plain_console(), terminal()])
def test_alerts_are_shown_once(console: Console, tmp_path: Path) -> None:
    alerts = [Alert("share", 0.1, "{value:.0%} is too much"), Alert("other", 1.0, "never {value}")]
    with monitor(tmp_path, console, alerts=alerts, quiet=True) as m:
        for steps, share in enumerate((0.1, np.nan, None, 0.25, 0.5)):
            more = {} if share is None else {"share": share}
            assert "warning" not in text(console) or steps > 3
            m.log(record(steps, **more))
    assert text(console).count("warning: 25% is too much") == 1
    assert text(console).count("warning") == 1
