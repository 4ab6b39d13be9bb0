"""Digests of the source of the modules that define a run's agent and environments.

Without `run_dir`, names say which run to resume. An id stands for one environment, and a module's
name for the source in its file; a function that no module has by its name could be any function.
Imports neither jax nor an environment.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pronk.config.registry import AGENTS
from pronk.errors import UserError


def check_named(env: Any) -> None:
    """Raise UserError for a function or class whose name does not identify it: its name does not
    import it, or it is defined in the program's main module."""
    module, name = getattr(env, "__module__", None), getattr(env, "__qualname__", None)
    found = None
    if isinstance(module, str) and isinstance(name, str) and module != "__main__":
        found = sys.modules.get(module)
        for part in name.split("."):
            found = getattr(found, part, None)
    if found is env and _source(f"{module}.{name}") is not None:
        return
    what = f"'{name or type(env).__name__}' of {module or 'no module'}"
    raise UserError(
        f"`env` is {what}, and its name alone does not say which environment it makes: without a"
        " `run_dir`, another one of that name would be taken for it. Give `run_dir`; or give a"
        " function or class of a module that can be imported, with what varies in `env_args`."
    )


def sources(agent: str, env: str) -> dict[str, str]:
    """SHA-256 of the source of each module or package that the names of an agent and of
    environments import, by its name; without pronk's own, and those that can't be found."""
    names = [] if agent in AGENTS else [agent]
    for task in env.split(","):
        name = task.strip().partition("?")[0]
        if name.endswith("()"):  # of a function; see `spec.env_name`
            names.append(name)
        elif ":" in name:
            names.append(name.rpartition(":")[0])
    found = [_source(name) for name in names]
    return dict(each for each in found if each is not None)


def changed(before: Any, now: Mapping[str, str]) -> list[str]:
    """The modules whose source is another one than `before`, what `sources` once returned."""
    before = before if isinstance(before, dict) else {}
    return [name for name, sha256 in now.items() if before.get(name, sha256) != sha256]


def refuse_changed(directory: Path, modules: list[str]) -> None:
    """Raise UserError if there are such modules of the run in `directory`, which was not named."""
    if modules:
        raise UserError(
            f"'{directory}' holds a run of this name, but the source of {', '.join(modules)} has"
            f" changed since. Give `--run-dir {directory}` to continue that run, or another"
            " --run-dir to start a new one; nothing was changed."
        )


def _source(name: str) -> tuple[str, str] | None:
    """The package, or else the module, at the beginning of a dotted name, and the SHA-256 of its
    source; None for pronk's and Python's own, and where there is no file."""
    parts = name.split(".")
    if parts[0] in sys.stdlib_module_names or parts[0] in ("pronk", "__main__"):
        return None
    for i in range(1, len(parts) + 1):
        module = ".".join(parts[:i])
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError, AttributeError):
            return None
        if spec is None:
            return None
        if spec.origin is None:
            continue  # a directory without `__init__.py`: what is below it need not belong together
        hasher = hashlib.sha256()
        for path in _files(Path(spec.origin), spec.submodule_search_locations is not None):
            try:
                data = path.read_bytes()
            except OSError:
                return None
            hasher.update(hashlib.sha256(data).digest())
        return module, hasher.hexdigest()
    return None


def _files(origin: Path, is_package: bool) -> Iterator[Path]:
    """A module's file, or all Python files of a package and those in it, in a fixed order."""
    if not is_package:
        yield origin
        return
    for place, directories, names in os.walk(origin.parent):
        directories[:] = sorted(d for d in directories if Path(place, d, "__init__.py").is_file())
        yield from (Path(place, name) for name in sorted(names) if name.endswith(".py"))
