"""The progress of a run: its display on the terminal, and the log files in its directory.

`metrics.jsonl` has one JSON object per line, each with `steps` (agent steps); `tensorboard/` has
the same numbers as scalars; `summary.json` is written at the end.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pronk.errors import printable, show_all_characters
from pronk.storage.files import (
    cannot_write,
    is_number,
    read_lines,
    to_json,
    without_nan,
    write_atomically,
    write_json_atomically,
)
from pronk.types import Alert

# Beside `mean_return`, where environments explore at different rates.
LEAST_EXPLORING = "mean_return_least_exploring"
_MAX_LOSSES = 6  # shown, so that the panel stays within a small terminal
_MAX_TASKS = 8  # of a suite
# Seconds, or the part of the run, after which its average speed is known.
_SETTLED, _SETTLED_PART = 20.0, 0.05
# Normalised scores of a suite.
_SCORES = {"score/mean": "score (mean)", "score/median": "score (median)"}
# Shown once they are above zero.
_FAULTS = {
    "skipped_updates": "skipped updates",
    "lost_actors": "lost actors",
    "dropped_unrolls": "dropped unrolls",
}


class Monitor:
    """Logs and displays the progress of one run; also a context manager.

    On a terminal it shows one panel in place, elsewhere one line per record; with `quiet` only
    messages. resume_steps: agent steps at which a resumed run continues; the records of later
    steps, which it will log again, are removed from `metrics.jsonl` and hidden in TensorBoard. Of a
    new run (None) earlier records are removed altogether. alerts: warnings about metrics. Raises
    UserError where `run_dir` cannot be written to.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        total_steps: int,
        frames_per_step: int,
        title: str,
        quiet: bool = False,
        resume_steps: int | None = None,
        alerts: Sequence[Alert] = (),
        console: Console | None = None,
    ) -> None:
        self._run_dir = Path(run_dir)
        self._total_steps = total_steps
        self._frames_per_step = frames_per_step
        self._title = printable(title)
        self._quiet = quiet
        self._start = resume_steps or 0
        self._first_step = 0 if resume_steps is None else resume_steps + 1
        self._alerts = list(alerts)  # that were not shown yet
        self._record: Mapping[str, Any] = {}
        self._first_record: Mapping[str, Any] | None = None
        self._tensorboard: _TensorBoard | None = None
        path = self._run_dir / "metrics.jsonl"
        try:
            self._run_dir.mkdir(parents=True, exist_ok=True)
            if path.exists():
                lines = read_lines(path)
                kept = b"".join(line for line, r in lines if r["steps"] < self._first_step)
                write_atomically(path, kept)
            self._metrics = open(path, "ab")  # noqa: SIM115 (closed by `close`)
        except OSError as error:
            raise cannot_write(path, error) from error
        show_all_characters(sys.stdout, sys.stderr)
        self.console = console or Console()
        self._live: Live | None = None
        if self.console.is_terminal and not quiet:
            self._live = Live(
                self._panel(),
                console=self.console,
                auto_refresh=False,
                redirect_stderr=sys.stderr.isatty(),  # `2> file` still receives its lines
            )
            self._live.start(refresh=True)
        atexit.register(self.close)  # shows the cursor again, however the process ends

    def log(self, record: Mapping[str, Any], *, line: bool = True) -> None:
        """Append `record`, which has at least `steps`, to the files and display it: on the panel,
        or in a line where there is none and `line` is set.

        NaN and infinities are written as null. Raises UserError where the write fails.
        """
        values = without_nan(record)
        steps = int(values["steps"])
        try:
            self._metrics.write(json.dumps(values, default=to_json).encode() + b"\n")
            self._metrics.flush()
            if self._tensorboard is None:
                self._tensorboard = _TensorBoard(self._run_dir / "tensorboard", self._first_step)
            self._tensorboard.add(values, steps)
        except OSError as error:
            raise cannot_write(self._run_dir, error) from error
        # Numbers of some records only, such as an evaluation's, stay on the panel.
        self._record = {**self._record, **values}
        self._first_record = self._first_record or values
        if self._live is not None:
            self._live.update(self._panel(), refresh=True)
        elif line and not self._quiet:
            self._print(self._line(values))
        self._warn(values)

    def message(self, text: str) -> None:
        """Print `text` above the panel, also when `quiet`."""
        self._print(printable(text))

    def summary(self, record: Mapping[str, Any]) -> None:
        """Write `summary.json`; raises UserError where the write fails."""
        write_json_atomically(self._run_dir / "summary.json", without_nan(record))

    def close(self) -> None:
        """Restore the terminal and close the files; safe to call twice."""
        atexit.unregister(self.close)
        if self._live is not None:
            self._live.stop()
            self._live = None
        # All records were flushed by `log`, which raised any error.
        with contextlib.suppress(OSError):
            self._metrics.close()
        if self._tensorboard is not None:
            with contextlib.suppress(OSError):
                self._tensorboard.close()
            self._tensorboard = None

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _warn(self, record: Mapping[str, Any]) -> None:
        """Show the alerts that apply to a record, each once."""
        for alert in list(self._alerts):
            value = record.get(alert.metric)
            if value is not None and value > alert.above:
                self._alerts.remove(alert)
                self.message(f"warning: {alert.message.format(value=value)}")

    def _print(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)

    def _line(self, record: Mapping[str, Any]) -> str:
        steps = record["steps"]
        parts = [f"{steps:,} steps", f"{100 * self._fraction(steps):.1f}%"]
        if record.get("steps_per_second") is not None:
            parts.append(f"{_number(record['steps_per_second'])} steps/s")
        if record.get("mean_return") is None:
            parts.append("no finished episode yet")
        else:
            parts.append(f"mean return {_number(record['mean_return'])} ({_averaged(record)})")
        if record.get(LEAST_EXPLORING) is not None:
            parts.append(f"{_number(record[LEAST_EXPLORING])} where least exploring")
        if record.get("score/median") is not None:
            parts.append(f"median score {_number(record['score/median'])}")
        if record.get("eval/mean_return") is not None:
            parts.append(f"evaluation {_number(record['eval/mean_return'])}")
        if record.get("policy_lag") is not None:
            parts.append(f"policy lag {_number(record['policy_lag'])} updates")
        if record.get("bound_by"):
            parts.append(f"bound by: {record['bound_by']}")
        parts.append(f"{self._time_left(record)} left")
        return "  " + "  ".join(parts)

    def _panel(self) -> Panel:
        record = self._record
        steps = record.get("steps", self._start)
        bar = Table.grid(expand=True, padding=(0, 1))
        bar.add_column(ratio=1)
        bar.add_column(justify="right", no_wrap=True)
        left = f"{self._time_left(record)} left" if record else "starting"
        bar.add_row(
            ProgressBar(total=max(self._total_steps, 1), completed=min(steps, self._total_steps)),
            Text(f"{100 * self._fraction(steps):.1f}%  {left}"),
        )
        table = Table.grid(expand=True, padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, justify="right", ratio=1)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, justify="right", min_width=8)
        pairs = zip_longest(self._left_column(), self._right_column(), fillvalue=("", ""))
        for (name, value), (other_name, other_value) in pairs:
            table.add_row(
                Text(name, "dim"), Text(value), Text(other_name, "dim"), Text(other_value)
            )
        content = Table.grid(expand=True)
        content.add_row(bar)
        content.add_row("")
        content.add_row(table)
        # The terminal echoes `^C` into the margin at the right; at the very edge it would begin a
        # new line, and the panel would then be redrawn one line too low.
        return Panel(
            content,
            title=Text(self._title, "bold"),
            title_align="left",
            width=max(20, min(self.console.width - 8, 100)),
        )

    def _left_column(self) -> list[tuple[str, str]]:
        record = self._record
        lag = record.get("policy_lag")
        steps = record.get("steps", self._start)
        return [
            ("agent steps", f"{steps:,}"),
            ("frames", f"{record.get('frames') or steps * self._frames_per_step:,}"),
            ("steps per second", _number(record.get("steps_per_second"))),
            ("updates", _number(record.get("updates"))),
            ("policy lag", "–" if lag is None else f"{_number(lag)} updates"),
            ("bound by", str(record.get("bound_by") or "–")),
            *((name, _number(record[key])) for key, name in _FAULTS.items() if record.get(key)),
        ]

    def _right_column(self) -> list[tuple[str, str]]:
        record = self._record
        name = f"mean return ({'of tasks' if _tasks(record) else 'last 100'})"
        rows = [(name, _number(record.get("mean_return")))]
        if LEAST_EXPLORING in record:
            rows.append(("where least exploring", _number(record[LEAST_EXPLORING])))
        if (best := best_mixture(record)) is not None:
            rows.append(("best mixture", str(best)))
        rows.append(("episodes", _number(record.get("episodes"))))
        if "eval/mean_return" in record:
            rows.append(("evaluation return", _number(record["eval/mean_return"])))
        rows += [
            (name, _number(record[key]))
            for key, name in _SCORES.items()
            if record.get(key) is not None
        ]
        names = _tasks(record)[:_MAX_TASKS]
        rows += [
            (_tail(printable(name.removeprefix("return/"))), _number(record[name]))
            for name in names
        ]
        losses = [name for name in record if name.startswith("loss/")][:_MAX_LOSSES]
        rows += [
            (f"{printable(name.removeprefix('loss/'))} loss", _number(record[name]))
            for name in losses
        ]
        if "gradient_norm" in record:
            rows.append(("gradient norm", _number(record["gradient_norm"])))
        return rows

    def _fraction(self, steps: int) -> float:
        return min(1.0, steps / max(self._total_steps, 1))

    def _time_left(self, record: Mapping[str, Any]) -> str:
        speed = self._average_speed(record)
        if speed is None:
            return "–"
        seconds = round(max(0, self._total_steps - record["steps"]) / speed)
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"

    def _average_speed(self, record: Mapping[str, Any]) -> float | None:
        """Agent steps per second since the first record, in which evaluation and saving count.

        None at first, because the speed of the first seconds differs from that of the run.
        """
        first = self._first_record
        if first is None or "wall_seconds" not in first or "wall_seconds" not in record:
            return None
        steps = record["steps"] - first["steps"]
        seconds = record["wall_seconds"] - first["wall_seconds"]
        if steps <= 0 or seconds <= 0:
            return None
        enough = seconds >= _SETTLED or steps >= _SETTLED_PART * self._total_steps
        return steps / seconds if enough else None


class _TensorBoard:
    """Writes scalars for TensorBoard in the caller's thread.

    tensorboardX's own `SummaryWriter` passes every scalar to a thread through a short queue; after
    a full disk has killed that thread, the training loop would wait at the queue for ever.
    """

    def __init__(self, directory: Path, first_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # takes half a second
        from tensorboardX.proto import event_pb2, summary_pb2

        # `Any`: the message classes are created at import time, unknown to a type checker.
        self._events: Any = event_pb2
        self._summaries: Any = summary_pb2
        directory.mkdir(parents=True, exist_ok=True)
        # tensorboardX names the file by the second, so a quick restart would overwrite it.
        suffix = f".{os.getpid()}.{secrets.token_hex(4)}"
        self._writer = EventsWriter(str(directory / "events"), filename_suffix=suffix)
        # Hides what an earlier process wrote for this step and later ones.
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        self._write(first_step, session_log=start)

    def add(self, values: Mapping[str, Any], steps: int) -> None:
        """Write the numbers of a record as scalars of step `steps`."""
        scalars = [
            self._summaries.Summary.Value(tag=tag, simple_value=value)
            for tag, value in values.items()
            if tag != "steps" and isinstance(value, (int, float))
        ]
        self._write(steps, summary=self._summaries.Summary(value=scalars))

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._events.Event(wall_time=time.time(), step=step, **content))
        self._writer.flush()


def _number(value: Any) -> str:
    """A number in about three significant digits, without an exponent where possible."""
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if not math.isfinite(value):
        return str(value)
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def best_mixture(record: Mapping[str, Any]) -> int | None:
    """The mixture with the highest mean return, of a record with `mixture/return/j`; None where
    none has returned anything, and for agents without mixtures."""
    prefix = "mixture/return/"
    means = {
        name.removeprefix(prefix): value
        for name, value in record.items()
        if name.startswith(prefix) and is_number(value)
    }
    best = max(means, key=lambda j: means[j], default="")
    return int(best) if best.isdecimal() else None


def _tasks(record: Mapping[str, Any]) -> list[str]:
    """The names of a record's returns of single tasks, in a suite."""
    return [name for name in record if name.startswith("return/")]


def _tail(name: str, width: int = 24) -> str:
    """The end of a long name; there the names of tasks differ."""
    return name if len(name) <= width else f"…{name[-width + 1 :]}"


def _averaged(record: Mapping[str, Any]) -> str:
    """What the mean return of a record is the mean of."""
    if _tasks(record):
        return "mean of tasks"
    count = min(100, int(record.get("episodes") or 0))
    return "1 episode" if count == 1 else f"last {count} episodes"
