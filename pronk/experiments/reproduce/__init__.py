"""Experiments of the papers at a size for one machine: `pronk reproduce NAME`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from pronk.storage.files import cannot_write


def run(name: str, settings: Any) -> str:
    """Do the parts of an experiment that are missing and draw; returns the report to print.

    settings: of the experiment's class in `pronk.experiments.reproduce.settings`. Raises UserError
    where its folders can't be written.
    """
    flags = [flag for flag in ("output", "results") if hasattr(settings, flag)]
    folders = {flag: getattr(settings, flag) or Path("runs") / name for flag in flags}
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    try:
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        return module.run(settings, **folders)
    except OSError as error:
        at = Path(error.filename) if isinstance(error.filename, str | Path) else None
        for flag, folder in folders.items():
            if at and (at.is_relative_to(folder) or folder.is_relative_to(at)):
                raise cannot_write(at, error, f"--{flag}") from None
        raise
