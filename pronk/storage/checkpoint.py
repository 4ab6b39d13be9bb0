"""Checkpoints: all that a run needs to continue, saved atomically and in the background.

A checkpoint is one file named by its agent steps, `DIRECTORY/000001234560.safetensors`: the arrays
of every tree, and the JSON `meta` in its header (see `array_file`). It is written under a temporary
name, forced to disk and renamed into place, so that a file with a proper name is complete whenever
the process or the machine stops. Damage done later is detected by its SHA-256, and the previous
checkpoint is used.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pronk.config.json_files import UnreadableJSON, parse_object
from pronk.errors import UserError
from pronk.storage.array_file import ArrayFile, HostTrees, UnreadableFile, encode, to_host
from pronk.storage.files import cannot_write, to_json, write_atomically
from pronk.types import PyTree

SCHEMA = 2

_NAME = re.compile(r"[0-9]{12}\.safetensors")


class Checkpointer:
    """Saves and loads the checkpoints of one run, keeping the last `keep` of them.

    Only one process may save to a directory at a time; any number may load.
    """

    def __init__(self, directory: Path, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least one checkpoint must be kept")
        self.directory = Path(directory)
        self.keep = keep
        # One thread for all writes: memory that a thread has freed is kept for that thread, so that
        # with new ones a run would grow by a checkpoint's size each time.
        self._writer = ThreadPoolExecutor(1, "pronk-checkpoint")
        self._writing: Future[None] | None = None

    def save(
        self,
        steps: int,
        trees: Mapping[str, PyTree],
        meta: Mapping[str, Any],
        *,
        block: bool = False,
    ) -> None:
        """Save `trees` and the JSON `meta` as the checkpoint of `steps` agent steps.

        Everything is copied to the host before this returns, so buffers may be donated or changed
        at once; the file is written in the background, one at a time, unless `block`. Raises
        UserError if this write (with `block`) or an earlier one failed, and as `to_host`.
        """
        if not 0 <= steps < 10**12:
            raise ValueError(f"steps is {steps}; expected 0 <= steps < 10^12")
        host = to_host(trees)
        manifest = {"schema": SCHEMA, "pronk": _version(), "steps": steps, "meta": dict(meta)}
        texts = {"checkpoint": json.dumps(manifest, default=to_json)}
        self.wait()
        self._writing = self._writer.submit(self._write, steps, host, texts)
        if block:
            self.wait()

    def wait(self) -> None:
        """Wait until the write in progress is on disk; raises UserError if it failed."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Finish the write in progress; safe to call twice. Raises as `wait` does."""
        self.wait()

    def load(self) -> Loaded | None:
        """The newest valid checkpoint, or None where there are none at all.

        Damaged ones are skipped and named in `Loaded.warnings`. Raises UserError if there are
        checkpoints but none is valid: starting from nothing would throw the run away.
        """
        self.wait()
        unreadable: list[UnreadableFile] = []
        for path in reversed(self._saved()):
            try:
                loaded = _read(path)
            except UnreadableFile as error:
                unreadable.append(error)
                continue
            for error in unreadable:
                loaded.warnings.append(f"checkpoint {error}; using that of step {loaded.steps:,}")
            return loaded
        if unreadable:
            raise UserError(
                f"`{self.directory}` holds checkpoints but none can be used"
                f" ({'; '.join(map(str, unreadable))}); put back a copy of one, or start a new run"
                " in another directory"
            )
        if any(self.directory.glob("[0-9]*/manifest.json")):
            raise UserError(
                f"`{self.directory}` holds checkpoints of schema 1, written by an earlier pronk;"
                f" this pronk reads schema {SCHEMA}: continue with the version that wrote them, or"
                " start a new run in another directory"
            )
        return None

    def _saved(self) -> list[Path]:
        try:
            return sorted(p for p in self.directory.iterdir() if _NAME.fullmatch(p.name))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(f"cannot read `{self.directory}`: {error.strerror}") from error

    def _write(self, steps: int, host: HostTrees, texts: dict[str, str]) -> None:
        path = self.directory / f"{steps:012d}.safetensors"
        # Those of a process that was killed while it wrote.
        for temporary in self.directory.glob(".tmp-*"):
            with contextlib.suppress(OSError):
                temporary.unlink()
        write_atomically(path, *encode(host, texts))
        # Later checkpoints are those that `load` skipped: neither counted nor deleted, since
        # another version of pronk may be able to read them.
        earlier = [saved for saved in self._saved() if saved.name <= path.name]
        try:
            for saved in earlier[: -self.keep]:
                saved.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.directory, error) from error


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that has passed every check, in host memory."""

    path: Path
    steps: int  # agent steps
    meta: dict[str, Any]
    warnings: list[str]  # one for each newer checkpoint that could not be used
    _file: ArrayFile = field(repr=False)

    @property
    def names(self) -> list[str]:
        """The names of its trees."""
        return self._file.names

    def restore(self, name: str, template: PyTree) -> PyTree:
        """The tree `name` in the structure of `template`; see `ArrayFile.restore`."""
        return self._file.restore(name, template)

    def tree(self, name: str) -> PyTree | None:
        """The tree `name` as nested dicts, or None; see `ArrayFile.tree`."""
        return self._file.tree(name)


def _read(path: Path) -> Loaded:
    """One checkpoint; raises UnreadableFile unless all of it is as written."""
    file = ArrayFile(path)
    try:
        manifest = parse_object(file.meta["checkpoint"], f"{path}: checkpoint")
        if manifest["schema"] != SCHEMA:
            raise UnreadableFile(
                path,
                f"was written by pronk {manifest.get('pronk')} with schema {manifest['schema']},"
                f" and this pronk reads schema {SCHEMA}: continue with that version",
            )
        if f"{manifest['steps']:012d}" != path.stem:
            raise UnreadableFile(path, f"is misnamed: it is of step {manifest['steps']}")
        if not isinstance(manifest["meta"], dict):
            raise TypeError("its counters are not a JSON object")
        return Loaded(path, manifest["steps"], manifest["meta"], [], file)
    except UnreadableJSON as error:
        raise UnreadableFile(path, f"is not a checkpoint of pronk: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnreadableFile(path, f"is not a checkpoint of pronk: {error!r}") from error


def _version() -> str:
    try:
        return version("pronk")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
