"""Benchmarks that a user can run: `pronk bench NAME`, or `run(name, settings)`."""

from __future__ import annotations

import importlib
from typing import Any


def run(name: str, settings: Any) -> dict[str, Any]:
    """Measure; `settings` is the class of that name in `pronk.experiments.bench.settings`."""
    return importlib.import_module(f"pronk.experiments.bench.{name}").measure(settings)


def table(result: dict[str, Any]) -> str:
    """A result for people: a line for each figure, and one for each of the `rows`."""
    scalars = {k.replace("_", " "): v for k, v in result.items() if k != "rows"}
    width = max(map(len, scalars), default=0)
    lines = [f"{name:{width}}  {_shown(value)}" for name, value in scalars.items()]
    rows = result.get("rows", [])
    if rows:
        columns = list(dict.fromkeys(k for row in rows for k in row))  # some rows lack some
        cells = [[k.replace("_", " ") for k in columns]]
        cells += [[_shown(row.get(k, "")) for k in columns] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += [
            "  ".join(
                f"{cell:>{width}}" if i else f"{cell:{width}}"
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in cells
        ]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if type(value) is int else str(value)
