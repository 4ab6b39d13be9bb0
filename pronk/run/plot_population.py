"""A population as a picture: scores, who copied whom, and hyperparameters over time.

As the papers draw it (Jaderberg et al. 2017, figures 4 and 6; Espeholt et al. 2018, figure F.1).
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pronk.config.fields import near_one
from pronk.config.registry import agent_module
from pronk.errors import UserError
from pronk.storage.files import cannot_write, write_atomically
from pronk.storage.journal import events_of

_FORMATS = (".png", ".pdf", ".svg")
_ANCESTRY, _LINK, _OTHERS = "#D55E00", "#0072B2", "#8c8c8c"
_COLUMNS = 2  # of panels of hyperparameters


@dataclass
class Line:
    """What a member did, a point each time that it was ready and one at the end."""

    member: int
    steps: list[int] = field(default_factory=list)  # agent steps
    scores: list[float] = field(default_factory=list)  # NaN where it had none yet
    donors: list[int | None] = field(default_factory=list)  # whom it copied at that point
    # The donor's agent steps then: members that are ready together need not have made as many.
    donor_steps: list[int | None] = field(default_factory=list)
    # What it went on with from its start, and from each point on but the end.
    hyper: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Segment:
    """A part of a lineage: what `member` did from one number of steps to another."""

    member: int
    begin: int
    end: int


def lines_of(events: Sequence[dict[str, Any]]) -> dict[int, Line]:
    """The members' lines, by member."""
    lines: dict[int, Line] = {}
    for event in events:
        member = event["member"]
        if event["event"] == "start":
            lines[member] = Line(member, hyper=[event["hyper"]])
            continue
        line = lines[member]
        line.steps.append(event["steps"])
        line.scores.append(math.nan if event["score"] is None else event["score"])
        line.donors.append(event.get("donor"))
        line.donor_steps.append(event.get("donor_steps"))
        if event["event"] == "ready":
            line.hyper.append(event["after"])
    return lines


def best_of(lines: dict[int, Line]) -> int | None:
    """The member whose last score is the best; None where none has a score."""
    scored = {m: line.scores[-1] for m, line in lines.items() if line.scores}
    scored = {m: score for m, score in scored.items() if not math.isnan(score)}
    return max(scored, key=lambda m: scored[m]) if scored else None


def ancestry(lines: dict[int, Line], member: int) -> list[Segment]:
    """Where what `member` has learnt comes from, the oldest part first."""
    segments: list[Segment] = []
    end = lines[member].steps[-1]
    while True:
        line = lines[member]
        # What a donor itself copied at its `end` came after: all copy what the others were before.
        copies = zip(line.steps, line.donors, line.donor_steps, strict=True)
        copied = [copy for copy in copies if copy[1] is not None and copy[0] < end]
        begin, donor, donor_steps = copied[-1] if copied else (0, None, None)
        segments.insert(0, Segment(member, begin, end))
        if donor is None or donor_steps is None:
            return segments
        member, end = donor, donor_steps


def draw(run_dir: Path, output: Path, *, title: str | None = None) -> Path:
    """Draw the population in `run_dir` to `output` (PNG, PDF or SVG) and return it.

    Above, the score of every member each time that it was ready, with a link from the donor's point
    to the copy; below, the value of each hyperparameter; thick in both, the ancestry of the member
    that is best in the end. Raises UserError where there is no journal, or nothing in it to draw.
    """
    if output.suffix.lower() not in _FORMATS:
        raise UserError(f"`{output}` is no picture; expected a name ending {', '.join(_FORMATS)}")
    lines = lines_of(events_of(Path(run_dir)))
    if not any(line.steps for line in lines.values()):
        raise UserError(f"no member of the population in `{run_dir}` has been ready yet; wait")
    if title is None:
        title = _title(Path(run_dir), len(lines))
    picture = picture_of(lines, title, output.suffix.lower()[1:], _near_one(Path(run_dir)))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(output, error) from error
    write_atomically(output, picture)
    return output


def _title(run_dir: Path, size: int) -> str:
    try:
        plan = json.loads((run_dir / "pbt.json").read_text())["plan"]
        return f"{plan['agent']} on {plan['env']}, population of {size}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"population of {size}"


def _near_one(run_dir: Path) -> frozenset[str]:
    """The hyperparameters of which 1 − x is drawn; none where the agent is not known any more."""
    try:
        agent = json.loads((run_dir / "pbt.json").read_text())["plan"]["agent"]
        return near_one(agent_module(agent).config)
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return frozenset()


def picture_of(
    lines: dict[int, Line],
    title: str,
    file_format: str = "png",
    near_one: frozenset[str] = frozenset(),
) -> bytes:
    """The picture, as a file's content."""
    from matplotlib.figure import Figure  # slow to import
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    names = sorted({name for line in lines.values() for name in line.hyper[0]})
    rows = -(-len(names) // _COLUMNS)
    figure = Figure(
        figsize=(9, 4.6 + 2.3 * rows), dpi=130, layout=ConstrainedLayoutEngine(h_pad=0.08)
    )
    grid = figure.add_gridspec(1 + rows, _COLUMNS, height_ratios=[2.0, *[1.0] * rows])
    best = best_of(lines)
    segments = [] if best is None else ancestry(lines, best)
    axes = figure.add_subplot(grid[0, :])
    draw_scores(axes, lines, segments)
    axes.set_title(title)
    for i, name in enumerate(names):
        last = i == len(names) - 1 and i % _COLUMNS == 0  # alone in its row
        where = grid[1 + i // _COLUMNS, :] if last else grid[1 + i // _COLUMNS, i % _COLUMNS]
        draw_hyper(figure.add_subplot(where), lines, segments, name, name in near_one)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=file_format)
    return buffer.getvalue()


def draw_scores(axes: Any, lines: dict[int, Line], segments: Sequence[Segment]) -> None:
    """Scores over agent steps on matplotlib `axes`, copies as links."""
    from matplotlib.collections import LineCollection

    for i, line in enumerate(lines.values()):
        label = "a member" if i == 0 else None
        axes.plot(
            line.steps, line.scores, color=_OTHERS, linewidth=0.7, alpha=0.6, zorder=1, label=label
        )
    links = []
    for line in lines.values():
        for i, (donor, steps) in enumerate(zip(line.donors, line.donor_steps, strict=True)):
            if donor is not None and steps is not None:
                links.append([_point(lines[donor], steps), (line.steps[i], line.scores[i])])
    links = [link for link in links if not np.isnan(np.array(link, float)).any()]
    if links:
        made = LineCollection(links, colors=_LINK, linewidths=0.6, alpha=0.35, zorder=2)
        made.set_label("copied, from the donor's score to one's own")
        axes.add_collection(made)
        x, y = np.array([link[1] for link in links], float).T
        axes.scatter(x, y, s=5, color=_LINK, alpha=0.5, linewidths=0, zorder=2)
    x, y = _path(lines, segments)
    if len(x):
        axes.plot(x, y, color=_ANCESTRY, linewidth=2.0, zorder=3, label="ancestry of the best")
        axes.plot(x[-1:], y[-1:], "o", color=_ANCESTRY, markersize=5, zorder=4)
    _finish(axes)
    axes.set_ylabel("score since last ready")
    axes.legend(frameon=False, fontsize="small", loc="best")


def _point(line: Line, steps: int) -> tuple[float, float]:
    """Where a member was when it had last been ready, after so many steps."""
    earlier = [i for i, s in enumerate(line.steps) if s <= steps]
    return (line.steps[earlier[-1]], line.scores[earlier[-1]]) if earlier else (steps, math.nan)


def _path(lines: dict[int, Line], segments: Sequence[Segment]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and scores along a lineage."""
    points = [
        (steps, score)
        for s in segments
        for steps, score in zip(lines[s.member].steps, lines[s.member].scores, strict=True)
        if s.begin < steps <= s.end and not math.isnan(score)
    ]
    return tuple(np.array(points, float).reshape(-1, 2).T)  # type: ignore[return-value]


def draw_hyper(
    axes: Any, lines: dict[int, Line], segments: Sequence[Segment], name: str, near_one: bool
) -> None:
    """One hyperparameter over agent steps on matplotlib `axes`; 1 − x where it is `near_one`."""
    for line in lines.values():
        axes.plot(*_stairs(line, name, near_one), color=_OTHERS, linewidth=0.7, alpha=0.5, zorder=1)
    parts = [_stairs(lines[s.member], name, near_one, s.begin, s.end) for s in segments]
    x, y = np.concatenate([np.zeros((2, 0)), *map(np.array, parts)], axis=1)
    axes.plot(x, y, color=_ANCESTRY, linewidth=1.8, zorder=3)
    values = [_shown(hyper[name], near_one) for line in lines.values() for hyper in line.hyper]
    if min(values) > 0 and max(values) > 1.5 * min(values):
        axes.set_yscale("log")
    _finish(axes)
    title = name.replace("_", " ")
    axes.set_title(f"1 − {title}" if near_one else title, fontsize="medium")


def _shown(value: float, near_one: bool) -> float:
    return 1.0 - value if near_one else value


def _stairs(
    line: Line, name: str, near_one: bool, begin: int = 0, end: float = math.inf
) -> tuple[list[float], list[float]]:
    """The corners of what a member's hyperparameter was from `begin` to `end`: two for each
    value."""
    x: list[float] = []
    y: list[float] = []
    ends = [0, *line.steps]
    for i, hyper in enumerate(line.hyper[: len(line.steps)]):
        left, right = max(begin, ends[i]), min(end, ends[i + 1])
        if left < right:
            x += [left, right]
            y += [_shown(hyper[name], near_one)] * 2
    return x, y


def _finish(axes: Any) -> None:
    axes.set_xlabel("agent steps of a member")
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    axes.margins(x=0.02)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _short(value: float) -> str:
    """12000000 as 12M."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"
