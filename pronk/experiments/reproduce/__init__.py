"""Experiments of the papers, at a size that anyone can run: `pronk reproduce NAME`."""

from __future__ import annotations

import importlib
from typing import Any


def run(name: str, settings: Any) -> str:
    """Do what is missing of it and draw; returns what a person is told. `settings` is the class of
    that name in `pronk.experiments.reproduce.settings`."""
    return importlib.import_module(f"pronk.experiments.reproduce.{name.replace('-', '_')}").run(
        settings
    )
