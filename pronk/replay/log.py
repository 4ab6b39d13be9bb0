"""A replay on disk: a log of segments, each of which is written once.

    DIRECTORY/000012-0003-1f2e3d4c.safetensors    part 3 of what was new at the 13th save

A segment is forced to disk before the checkpoint that names it, with its SHA-256, is written: what
is there under no checkpoint's name, from a save that was cut short, is never read. A segment of
which nothing is needed any more is deleted when no checkpoint that is kept can name it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.numpy

from pronk.errors import UserError
from pronk.files import cannot_write, fsync_directory, write_and_sync
from pronk.replay.replay import Part, Replay
from pronk.types import PyTree

_NAME = re.compile(r"([0-9]{6})-[0-9]{4}-[0-9a-f]{8}")


class SegmentLog:
    """The segments of one run's replay; `keep`, the number of checkpoints that are kept."""

    def __init__(self, directory: Path, keep: int):
        self.directory = directory
        self._sums: dict[str, np.ndarray] = {}  # SHA-256 of the segments needed, by name
        self._named: deque[set[str]] = deque(maxlen=keep + 1)  # by the last checkpoints

    def save(self, replay: Replay) -> PyTree:
        """Write what is new; returns what the checkpoint must hold. Raises UserError."""
        tree, parts, needed = replay.save()
        epoch = int(tree["epoch"]) - 1
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            for i, part in enumerate(parts):
                arrays = {f"{part.store}/places": part.places} | {
                    f"{part.store}/{k}": v for k, v in part.contents.items()
                }
                data = safetensors.numpy.save(arrays)
                name = f"{epoch:06d}-{i:04d}-{secrets.token_hex(4)}"
                write_and_sync(self._path(name), data)
                self._sums[name] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
            fsync_directory(self.directory)
            self._sums = {k: v for k, v in self._sums.items() if _epoch(k) in needed}
            self._named.append(set(self._sums))
            self._clean()
        except OSError as error:
            raise cannot_write(self.directory, error) from error
        return tree | {"segments": dict(self._sums)}

    def restore(self, replay: Replay, tree: PyTree, *, episodes: bool) -> None:
        """Fill an empty replay with what `save` returned; see `Replay.restore`.

        Raises UserError, having changed nothing, where a segment is missing or damaged.
        """
        sums = dict(tree["segments"])
        for name, expected in sums.items():
            self._read(name, expected)  # all of them, before anything is changed
        replay.restore(tree, self._parts(sums), episodes=episodes)
        self._sums = sums
        self._named.append(set(sums))

    def _parts(self, sums: dict[str, np.ndarray]) -> Iterator[tuple[int, Part]]:
        for name in sorted(sums):
            arrays = safetensors.numpy.load(self._read(name, sums[name]))
            (store,) = {k.partition("/")[0] for k in arrays}
            contents = {k.partition("/")[2]: v for k, v in arrays.items()}
            yield _epoch(name), Part(store, contents.pop("places"), contents)

    def _read(self, name: str, expected: np.ndarray) -> bytes:
        path = self._path(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read `{path}`: {error.strerror}") from error
        if hashlib.sha256(data).digest() != expected.tobytes():
            raise UserError(f"`{path}` is not what was written: its SHA-256 differs")
        return data

    def _clean(self) -> None:
        """Delete what no checkpoint can name, once it is known what each of them names."""
        if len(self._named) < (self._named.maxlen or 0):
            return
        named = set().union(*self._named)
        for path in self.directory.glob("*.safetensors"):
            if _NAME.fullmatch(path.stem) and path.stem not in named:
                path.unlink()

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.safetensors"


def _epoch(name: str) -> int:
    return int(name.partition("-")[0])
