"""Imports the modules of a user's own agents and environments, by name."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType

from pronk.errors import UserError


def search_here() -> None:
    """Append the current directory to `sys.path`, permanently.

    As an absolute path, because an environment may change the current directory.
    """
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        return
    if here not in sys.path:
        sys.path.append(here)


def exists(name: str) -> bool:
    """Whether there is a module of this name; its parents are imported. The current directory is
    searched, too."""
    if name in sys.modules and name != "__main__":
        return True
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    for search in (lambda: None, search_here):
        search()
        importlib.invalidate_caches()  # it may be new
        try:
            if importlib.util.find_spec(name) is not None:
                return True
        except ValueError:  # a module without a spec
            continue
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):
                return True  # a parent imports another one: `load` says so
        except (Exception, SystemExit):  # a parent raises: the same
            return True
    return False


def load(name: str, of: str) -> ModuleType:
    """Import a module; raises UserError, for what `of` says, where there is none or it raises."""
    if not exists(name):
        try:
            here = f"the current directory ({os.getcwd()})"
        except OSError:
            here = "the current directory (which was removed)"
        raise UserError(
            f"{of}: there is no module '{name}'; it was looked for on Python's path (PYTHONPATH,"
            f" installed packages) and in {here}."
        )
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{of}: module '{name}' can't be imported: {type(error).__name__}: {error}. Correct"
            " the module, or install what it needs."
        ) from error
