"""Benchmarks that a user can run: `pronk bench NAME`, or `run(name, settings)`."""

from __future__ import annotations

import importlib
from typing import Any


def run(name: str, settings: Any) -> dict[str, Any]:
    """Run a benchmark; `settings` is its class in `pronk.experiments.bench.settings`."""
    return importlib.import_module(f"pronk.experiments.bench.{name}").measure(settings)


def table(result: dict[str, Any]) -> str:
    """A result as text: one line per scalar, then `rows` as a table."""
    scalars = {k.replace("_", " "): v for k, v in result.items() if k != "rows"}
    width = max(map(len, scalars), default=0)
    lines = [f"{name:{width}}  {_format(value)}" for name, value in scalars.items()]
    if rows := result.get("rows"):
        columns = list(dict.fromkeys(k for row in rows for k in row))  # not every row has all
        cells = [[k.replace("_", " ") for k in columns]]
        cells += [[_format(row.get(k, "")) for k in columns] for row in rows]
        first, *others = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for head, *tail in cells:
            right = [f"{cell:>{width}}" for cell, width in zip(tail, others, strict=True)]
            lines.append("  ".join([f"{head:{first}}", *right]))
    return "\n".join(lines)


def _format(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if type(value) is int else str(value)
