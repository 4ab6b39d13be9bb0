"""What all tests share: a compilation cache on disk, workers, and a floor under their number."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[1]
COUNT = Path(__file__).with_name("count.txt")
DEFAULT_MARKERS = "not extended"  # of pyproject.toml

# Before jax is imported, and inherited by the processes that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# Compiling is most of the suite's time, and LLVM's slowest passes a quarter of that. XLA's own
# passes, which decide what is computed, are those of every run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# A terminal's width, as `COLUMNS` or of the terminal itself, must not decide what is printed.
os.environ["COLUMNS"], os.environ["LINES"] = "100", "40"

# Ray reads them when it is imported, and remembers the mode.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

# The same examples every time: a red build is a change's fault, and can be repeated.
settings.register_profile("pronk", deadline=None, derandomize=True)
settings.load_profile("pronk")


# Files whose tests take long and share little: each test goes to the worker that is free. Those
# of another file run in one worker, one after the other, and share what it has compiled; those of
# the conformance table share what a variant, their parameter, has compiled.
SPREAD = {"test_train", "test_pbt", "test_checkpoint", "test_reproduce", "test_faults"}
BY_PARAMETER = {"test_agents"}


def group_of(nodeid: str) -> str:
    """What one worker runs: the same for all tests that share what they compile."""
    file, _, test = nodeid.partition("::")
    if Path(file).stem in SPREAD:
        return nodeid
    return file + test.partition("[")[2] if Path(file).stem in BY_PARAMETER else file


class _Scheduler(LoadScopeScheduling):
    """Sends tests that share what they compile to one worker.

    Not by marks of xdist's groups: it writes them into the names of tests, which pytest 9.2 does
    not let it do, and tests were dealt out one by one.
    """

    def _split_scope(self, nodeid: str) -> str:  # which xdist's documentation has overridden
        return group_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Scheduler | None:
    return _Scheduler(config, log) if config.getvalue("dist") == "loadscope" else None


# Further cases of tests with many parameters that take long, marked `extended`: one node id a line.
FURTHER_CASES = Path(__file__).with_name("extended.txt")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the further cases; of tests that go to any worker, begin with those that take longest:
    the last ones would keep a single worker."""
    further = set(FURTHER_CASES.read_text().splitlines())
    for item in items:
        if item.nodeid in further:
            item.add_marker(pytest.mark.extended)
    items.sort(key=lambda x: x.path.stem not in SPREAD or x.get_closest_marker("slow") is None)
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        _check_further_cases(further, {item.nodeid for item in items})


def _check_further_cases(further: set[str], collected: set[str]) -> None:
    """Raise UsageError for a further case that is not there, or of a test that has no other."""
    functions = {node.partition("[")[0] for node in collected - further}
    alone = sorted(node for node in further if node.partition("[")[0] not in functions)
    if missing := sorted(further - collected) or alone:
        raise pytest.UsageError(
            f"tests/{FURTHER_CASES.name} names {missing[0]}: there is no such test, or all of its"
            " cases are named; remove the line, or mark the test itself."
        )


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Forget what a file has compiled after its last test: kept, it would grow to 6 GB a worker."""
    if "jax" in sys.modules and (nextitem is None or nextitem.path != item.path):
        sys.modules["jax"].clear_caches()


class _Counter:
    """Counts the test functions that ran, in the process that gathers the results (xdist's
    controller); a function with many parameters counts once. Fails, too, if a group of tests was
    run by several workers: they would compile the same several times."""

    def __init__(self, floor: int):
        self.floor = floor
        self.ran: set[str] = set()
        self.workers: dict[str, set[str]] = {}  # of each group

    @property
    def split(self) -> list[str]:
        return sorted(group for group, workers in self.workers.items() if len(workers) > 1)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        worker = getattr(report, "worker_id", "the only one")
        self.workers.setdefault(group_of(report.nodeid), set()).add(worker)
        # A skipped test has no call phase or a skipped one; an expected failure did run.
        if report.when == "call" and (not report.skipped or hasattr(report, "wasxfail")):
            self.ran.add(report.nodeid.partition("[")[0])

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if (len(self.ran) < self.floor or self.split) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        fewer = len(self.ran) < self.floor
        terminalreporter.write_line(
            f"{len(self.ran)} test functions ran (floor {self.floor})"
            + (": too few; if that is intended, lower the floor in count.txt" if fewer else ""),
            red=fewer,
        )
        if self.split:
            terminalreporter.write_line(
                f"{len(self.split)} groups of tests were run by several workers, such as"
                f" {self.split[0]}: the scheduler in conftest.py is not used",
                red=True,
            )


def pytest_configure(config: pytest.Config) -> None:
    """Count only where the whole suite was asked for."""
    chosen = config.args_source is not pytest.Config.ArgsSource.TESTPATHS or any(
        config.getoption(option, None)
        for option in (
            *("keyword", "deselect", "ignore", "ignore_glob", "lf", "stepwise"),
            *("collectonly", "showfixtures", "show_fixtures_per_test"),
        )
    )
    chosen |= config.getoption("markexpr") != DEFAULT_MARKERS
    if not chosen and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Counter(int(COUNT.read_text())), "pronk-counter")
