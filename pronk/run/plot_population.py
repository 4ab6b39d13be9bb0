"""Plots of a population: scores, copies between members, and hyperparameters over time.

As in Jaderberg et al. 2017, figures 4 and 6, and Espeholt et al. 2018, figure F.1.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pronk.config.fields import near_one
from pronk.config.json_files import read_object
from pronk.config.registry import agent_module
from pronk.errors import UserError
from pronk.run.plot import drawable, finish_axes, picture_format
from pronk.storage.files import write_atomically
from pronk.storage.journal import read_events

_ANCESTRY, _LINK, _OTHERS = "#D55E00", "#0072B2", "#8c8c8c"
_COLUMNS = 2  # of panels of hyperparameters
_PANELS = 100


@dataclass
class Line:
    """The history of a member: a point each time that it was ready, and one at its end."""

    member: int
    steps: list[int] = field(default_factory=list)  # agent steps
    scores: list[float] = field(default_factory=list)  # NaN before the first score
    donors: list[int | None] = field(default_factory=list)  # the member copied at that point
    # The donor's agent steps, which may differ from those of the member that copies it.
    donor_steps: list[int | None] = field(default_factory=list)
    # Hyperparameters from the start, and from each point but the end.
    hyper: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Segment:
    """A part of an ancestry: `member` from `begin` to `end` agent steps."""

    member: int
    begin: int
    end: int


def member_lines(events: Sequence[dict[str, Any]]) -> dict[int, Line]:
    """The lines of the members in a journal, by member."""
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


def best_member(lines: dict[int, Line]) -> int | None:
    """The member with the best last score; None where no member has one."""
    scored = {m: line.scores[-1] for m, line in lines.items() if line.scores}
    scored = {m: score for m, score in scored.items() if not math.isnan(score)}
    return max(scored, key=lambda m: scored[m]) if scored else None


def ancestry(lines: dict[int, Line], member: int) -> list[Segment]:
    """The segments that `member`'s parameters passed through, the oldest first."""
    segments: list[Segment] = []
    end = lines[member].steps[-1]
    copies_in_all = sum(donor is not None for line in lines.values() for donor in line.donors)
    while True:
        line = lines[member]
        # A donor's own copy at its `end` came later: all copy the members as they were before.
        copies = zip(line.steps, line.donors, line.donor_steps, strict=True)
        copied = [copy for copy in copies if copy[1] is not None and copy[0] < end]
        begin, donor, donor_steps = copied[-1] if copied else (0, None, None)
        segments.insert(0, Segment(member, begin, end))
        if donor is None or donor_steps is None or len(segments) > copies_in_all:
            return segments  # the last of these of a journal in which members copy in circles
        member, end = donor, donor_steps


def draw(run_dir: Path, output: Path, *, title: str | None = None) -> Path:
    """Plot the population in `run_dir` to `output` (PNG, PDF or SVG) and return it.

    Above, the score of every member each time that it was ready, with a link from the donor's point
    to the copy; below, the value of each hyperparameter; thick in both, the ancestry of the member
    that is best at the end. Raises UserError where there is no journal, or nothing in it to plot.
    """
    file_format = picture_format(output)
    lines = member_lines(read_events(Path(run_dir)))
    if not any(line.steps for line in lines.values()):
        raise UserError(
            f"no member of the population in `{run_dir}` has been ready yet; train it for longer"
        )
    title = _title(Path(run_dir), len(lines)) if title is None else drawable(title, formulas=True)
    content = render(lines, title, file_format, _near_one(Path(run_dir)))
    write_atomically(output, content, flag="--output")
    return output


def _title(run_dir: Path, size: int) -> str:
    try:
        plan = read_object(run_dir / "pbt.json")["plan"]
        return drawable(f"{plan['agent']} on {plan['env']}, population of {size}")
    except (UserError, KeyError, TypeError):
        return f"population of {size}"


def _near_one(run_dir: Path) -> frozenset[str]:
    """The hyperparameters of which 1 − x is drawn; none where the agent is not known any more."""
    try:
        agent = read_object(run_dir / "pbt.json")["plan"]["agent"]
        return near_one(agent_module(agent).config)
    except (UserError, KeyError, TypeError):
        return frozenset()


def render(
    lines: dict[int, Line],
    title: str,
    file_format: str = "png",
    near_one: frozenset[str] = frozenset(),
) -> bytes:
    """The content of the picture's file."""
    from matplotlib.figure import Figure  # slow to import
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    names = sorted({name for line in lines.values() for name in line.hyper[0]})
    if len(names) > _PANELS:
        raise UserError(
            f"the journal has {len(names)} hyperparameters; expected at most {_PANELS}, so that"
            " each has a panel of the picture."
        )
    rows = -(-len(names) // _COLUMNS)
    figure = Figure(
        figsize=(9, 4.6 + 2.3 * rows), dpi=130, layout=ConstrainedLayoutEngine(h_pad=0.08)
    )
    grid = figure.add_gridspec(1 + rows, _COLUMNS, height_ratios=[2.0, *[1.0] * rows])
    best = best_member(lines)
    segments = [] if best is None else ancestry(lines, best)
    axes = figure.add_subplot(grid[0, :])
    draw_scores(axes, lines, segments)
    axes.set_title(title)
    for i, name in enumerate(names):
        last = i == len(names) - 1 and i % _COLUMNS == 0  # the only one in its row
        where = grid[1 + i // _COLUMNS, :] if last else grid[1 + i // _COLUMNS, i % _COLUMNS]
        draw_hyper(figure.add_subplot(where), lines, segments, name, name in near_one)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=file_format)
    return buffer.getvalue()


def draw_scores(axes: Any, lines: dict[int, Line], segments: Sequence[Segment]) -> None:
    """Plot scores over agent steps on matplotlib `axes`, with links for copies."""
    from matplotlib.collections import LineCollection

    for i, line in enumerate(lines.values()):
        label = "one member" if i == 0 else None
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
        collection = LineCollection(links, colors=_LINK, linewidths=0.6, alpha=0.35, zorder=2)
        collection.set_label("copy, from the donor's score to the member's own")
        axes.add_collection(collection)
        x, y = np.array([link[1] for link in links], float).T
        axes.scatter(x, y, s=5, color=_LINK, alpha=0.5, linewidths=0, zorder=2)
    x, y = _path(lines, segments)
    if len(x):
        axes.plot(
            x, y, color=_ANCESTRY, linewidth=2.0, zorder=3, label="ancestry of the best member"
        )
        axes.plot(x[-1:], y[-1:], "o", color=_ANCESTRY, markersize=5, zorder=4)
    _finish(axes, lines)
    axes.set_ylabel("score since the member was last ready")
    axes.legend(frameon=False, fontsize="small", loc="best")


def _point(line: Line, steps: int) -> tuple[float, float]:
    """Steps and score of the last time that a member was ready, at `steps` agent steps."""
    earlier = [i for i, s in enumerate(line.steps) if s <= steps]
    return (line.steps[earlier[-1]], line.scores[earlier[-1]]) if earlier else (steps, math.nan)


def _path(lines: dict[int, Line], segments: Sequence[Segment]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and scores along an ancestry."""
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
    """Plot a hyperparameter over agent steps on matplotlib `axes`; 1 − x where it is `near_one`."""
    for line in lines.values():
        axes.plot(*_stairs(line, name, near_one), color=_OTHERS, linewidth=0.7, alpha=0.5, zorder=1)
    parts = [_stairs(lines[s.member], name, near_one, s.begin, s.end) for s in segments]
    x, y = np.concatenate([np.zeros((2, 0)), *map(np.array, parts)], axis=1)
    axes.plot(x, y, color=_ANCESTRY, linewidth=1.8, zorder=3)
    values = [
        _plotted(hyper[name], near_one)
        for line in lines.values()
        for hyper in line.hyper
        if name in hyper
    ]
    if min(values) > 0 and max(values) > 1.5 * min(values):
        axes.set_yscale("log")
    _finish(axes, lines)
    title = drawable(name.replace("_", " "))
    axes.set_title(f"1 − {title}" if near_one else title, fontsize="medium")


def _plotted(value: float, near_one: bool) -> float:
    return 1.0 - value if near_one else value


def _stairs(
    line: Line, name: str, near_one: bool, begin: int = 0, end: float = math.inf
) -> tuple[list[float], list[float]]:
    """The corners of a member's hyperparameter from `begin` to `end`, two for each value."""
    x: list[float] = []
    y: list[float] = []
    ends = [0, *line.steps]
    for i, hyper in enumerate(line.hyper[: len(line.steps)]):
        left, right = max(begin, ends[i]), min(end, ends[i + 1])
        if left < right:
            x += [left, right]
            y += [_plotted(hyper.get(name, math.nan), near_one)] * 2
    return x, y


def _finish(axes: Any, lines: dict[int, Line]) -> None:
    largest = max((line.steps[-1] for line in lines.values() if line.steps), default=0)
    finish_axes(axes, "agent steps of a member", largest)
