"""What all tests share: a compilation cache on disk, and a floor under the number of tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]
COUNT = Path(__file__).with_name("count.txt")

# Before jax is imported, and inherited by the processes that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# Compiling is most of the suite's time, and LLVM's slowest passes a quarter of that. XLA's own
# passes, which decide what is computed, are those of every run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# The same examples every time: a red build is a change's fault, and can be repeated.
settings.register_profile("pronk", deadline=None, derandomize=True)
settings.load_profile("pronk")


class _Counter:
    """Counts the tests that ran, in the process that gathers the results (xdist's controller)."""

    def __init__(self, floor: int):
        self.floor = floor
        self.ran = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A skipped test has no call phase or a skipped one; an expected failure did run.
        if report.when == "call" and (not report.skipped or hasattr(report, "wasxfail")):
            self.ran += 1

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.ran < self.floor and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        fewer = self.ran < self.floor
        terminalreporter.write_line(
            f"{self.ran} tests ran (floor {self.floor})"
            + (f": too few; if that is meant, lower the floor in {COUNT.name}" if fewer else ""),
            red=fewer,
        )


def pytest_configure(config: pytest.Config) -> None:
    """Count only where the whole suite was asked for."""
    chosen = config.args_source is not pytest.Config.ArgsSource.TESTPATHS or any(
        config.getoption(option, None)
        for option in (
            *("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf", "stepwise"),
            *("collectonly", "showfixtures", "show_fixtures_per_test"),
        )
    )
    if not chosen and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Counter(int(COUNT.read_text())), "pronk-counter")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the marker `chaos` out unless markers were chosen with -m."""
    if config.getoption("markexpr"):
        return
    left_out = [item for item in items if item.get_closest_marker("chaos")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
