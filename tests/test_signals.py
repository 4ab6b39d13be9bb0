"""Ctrl-C, SIGTERM and SIGHUP: held back, never lost, and then the program's own business."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pronk.run import guard
from pronk.run.guard import Signals, catch_signals, check_signals, run_command

ENDS = {
    signal.SIGINT: (KeyboardInterrupt, ()),
    signal.SIGTERM: (SystemExit, (143,)),
    signal.SIGHUP: (SystemExit, (129,)),
}


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Those of a Python program, and afterwards those from before."""
    before = {n: signal.getsignal(n) for n in ENDS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (
        signal.SIGTERM,
        signal.SIGHUP,
    ):  # Ray handles the former, nohup ignores the latter
        signal.signal(number, signal.SIG_DFL)
    hook = sys.unraisablehook
    yield
    assert sys.unraisablehook is hook
    for number, handler in before.items():
        signal.signal(number, handler)


def end_of(body: Callable[[Signals], None]) -> BaseException | None:
    """What is raised by a context in which `body` is called."""
    try:
        with catch_signals() as signals:
            body(signals)
    except (KeyboardInterrupt, SystemExit) as error:
        return error
    return None


def wait_for_interrupt(interrupted: list[bool]) -> None:
    """Wait; append whether the wait was interrupted, rather than what came after it."""
    start = time.monotonic()
    try:
        threading.Event().wait(20)
    finally:
        interrupted.append(time.monotonic() - start < 20)


@pytest.mark.parametrize("number", ENDS, ids=lambda n: n.name)
def test_a_signal_waits_for_the_end_of_the_context(number: signal.Signals) -> None:
    saved = []

    def body(signals: Signals) -> None:
        assert not signals.is_set()
        signal.raise_signal(number)
        assert signals.is_set()
        saved.append(True)

    error = end_of(body)
    assert saved
    assert error is not None
    assert (type(error), error.args) == ENDS[number]
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def test_a_handler_of_the_program_gets_the_signal() -> None:
    got: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: got.append(number))

    def body(signals: Signals) -> None:
        signal.raise_signal(signal.SIGTERM)
        assert not got

    assert end_of(body) is None
    assert got == [signal.SIGTERM]


def test_a_start_that_is_interrupted_ends_as_the_signal_says() -> None:
    def body(signals: Signals) -> None:
        signal.raise_signal(signal.SIGTERM)
        check_signals()
        raise AssertionError

    assert isinstance(end_of(body), SystemExit)
    check_signals()  # forgotten


def test_a_second_interrupt_is_raised_at_once() -> None:
    def body(signals: Signals) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError

    assert isinstance(end_of(body), KeyboardInterrupt)


def test_sighup_stays_ignored_under_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def body(signals: Signals) -> None:
        signal.raise_signal(signal.SIGHUP)
        assert not signals.is_set()

    assert end_of(body) is None


def test_contexts_in_contexts_share_their_signals() -> None:
    def body(signals: Signals) -> None:
        with catch_signals() as inner:
            signal.raise_signal(signal.SIGINT)
        assert inner is signals

    assert isinstance(end_of(body), KeyboardInterrupt)


def test_handlers_of_libraries_are_taken_back() -> None:
    def body(signals: Signals) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray does
        check_signals()
        signal.raise_signal(signal.SIGTERM)
        assert signals.is_set()

    assert isinstance(end_of(body), SystemExit)


def test_an_interrupt_lost_in_a_callback_is_repeated() -> None:
    """Python ignores exceptions in `__del__` and in callbacks of the garbage collector."""

    class Lost:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    interrupted: list[bool] = []

    def body(signals: Signals) -> None:
        with signals.within(0):
            Lost()
            wait_for_interrupt(interrupted)

    assert isinstance(end_of(body), KeyboardInterrupt)
    assert interrupted == [True]


def test_a_start_that_asks_for_no_signals_is_interrupted() -> None:
    interrupted: list[bool] = []

    def body(signals: Signals) -> None:
        with signals.within(0.1):
            signal.raise_signal(signal.SIGINT)
            wait_for_interrupt(interrupted)

    assert isinstance(end_of(body), KeyboardInterrupt)
    assert interrupted == [True]


def test_a_command_ends_with_the_usual_status(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="130"):
        run_command(run, saves=False, own_process=False)
    assert capsys.readouterr().err == "pronk: interrupted\n"


def test_a_training_within_a_command_that_saves_nothing_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in `pronk bench`."""
    command = Signals(0)
    monkeypatch.setattr(guard, "_active", command)
    command.install()
    try:
        error = end_of(lambda _: signal.raise_signal(signal.SIGINT))
    finally:
        command.uninstall()
    assert isinstance(error, KeyboardInterrupt)


INTERRUPTED = """
import os, signal, gymnasium, numpy as np

class Interrupted(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        os.kill(os.getpid(), getattr(signal, os.environ["NUMBER"]))

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

gymnasium.register("Interrupted-v0", entry_point=Interrupted)
"""


def run_interrupted(tmp_path: Path, number: str, *command: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(root), str(tmp_path)])
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": path, "NUMBER": number},
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_command_ends_by_a_signal_that_comes_while_it_starts(
    tmp_path: Path, number: str, status: int
) -> None:
    args = ("-m", "pronk", "train", "impala", "interrupted:Interrupted-v0")
    done = run_interrupted(tmp_path, number, *args)
    assert (done.returncode, done.stderr) == (status, "pronk: interrupted\n")
    assert not (tmp_path / "runs").exists()


def test_a_program_ends_by_an_interrupt(tmp_path: Path) -> None:
    program = """
import pronk
for seed in range(3):
    print("run", seed, flush=True)
    pronk.train("impala", "interrupted:Interrupted-v0", seed=seed)
"""
    done = run_interrupted(tmp_path, "SIGINT", "-c", program)
    assert done.stdout == "run 0\n"
    assert done.stderr.strip().endswith("KeyboardInterrupt")
    assert done.returncode == -signal.SIGINT


def test_what_is_printed_after_the_terminal_is_gone_is_no_error() -> None:
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTS],
        stdin=subprocess.PIPE, stdout=theirs, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(theirs)
    os.close(ours)
    _, errors = process.communicate("go\n", timeout=60)
    assert (process.returncode, errors) == (129, "")


PRINTS: Any = """
import signal, sys
from pronk.run.guard import catch_signals
sys.stdin.readline()
with catch_signals():
    signal.raise_signal(signal.SIGHUP)
    print("saved", flush=True)
"""
