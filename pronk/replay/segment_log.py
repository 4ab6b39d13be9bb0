"""A replay on disk: a log of segments, each of which is written once.

    DIRECTORY/00000012-1f2e3d4c.safetensors    the 13th part that was saved

A thread writes new contents whenever there are enough for a segment, so that a checkpoint takes
little time. A segment is on disk before the checkpoint that names it, with its SHA-256, is written;
segments that no checkpoint names, because the process was killed between the two, are never read. A
segment is deleted when none of its contents is needed and no checkpoint that is kept can name it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.numpy

from pronk.errors import UserError
from pronk.replay.parts import Part
from pronk.replay.replay import Replay
from pronk.storage.files import cannot_write, fsync_directory, write_and_sync
from pronk.types import PyTree

FORMAT = 2  # of what `save` returns and of the segments
_NAME = re.compile(r"([0-9]{8})-[0-9a-f]{8}")
_POLL = 1.0  # seconds between checks for a full part


class SegmentLog:
    """The segments of one run's `replay`, for its last `keep` checkpoints."""

    def __init__(self, replay: Replay, directory: Path, keep: int):
        self.replay, self.directory = replay, directory
        self._sums: dict[str, np.ndarray] = {}  # SHA-256 of the segments needed, by name
        # The segments that the last checkpoints name; the newest may not be on disk yet.
        self._named: deque[set[str]] = deque(maxlen=keep + 2)
        self._lock = threading.Lock()  # held while writing
        # True while the replay counts parts as saved that are not written yet: no checkpoint may
        # follow if writing fails.
        self._incomplete = False
        self._failure: BaseException | None = None
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._run, name="replay-log", daemon=True)
        self._writer.start()

    def save(self) -> PyTree:
        """Write what is not written yet; returns the state for the checkpoint. Raises UserError if
        this or an earlier segment could not be written."""
        with self._lock:
            if self._incomplete:
                raise UserError(
                    f"an earlier part of the replay could not be written to `{self.directory}`"
                    f" ({self._failure or 'interrupted'}); the last checkpoint stands."
                )
            try:
                self._incomplete = True
                tree, parts, needed = self.replay.save()
                for part in parts:
                    self._write(part)
                self._incomplete = False
                self._sums = {k: v for k, v in self._sums.items() if _number(k) in needed}
                self._named.append(set(self._sums))
                self._delete_unneeded()
            except OSError as error:
                self._failure = error
                raise cannot_write(self.directory, error) from error
            return tree | {"segments": dict(self._sums), "format": np.int64(FORMAT)}

    def restore(self, tree: PyTree, *, episodes: bool) -> None:
        """Fill an empty replay with what `save` returned; see `Replay.restore`.

        Raises UserError, before anything is changed, if a segment is missing or damaged.
        """
        if tree.get("format") != FORMAT:
            raise UserError("it was saved by another version of pronk")
        sums = dict(tree["segments"])
        with self._lock:
            for name, expected in sums.items():
                self._read(name, expected)  # all of them, before anything is changed
            self.replay.restore(tree, self._parts(sums), episodes=episodes)
            self._sums = sums
            self._named.append(set(sums))

    def close(self) -> None:
        """Stop writing."""
        self._closing.set()
        self._writer.join()

    def _run(self) -> None:
        try:
            while not self._closing.wait(_POLL):
                while not self._closing.is_set() and self._write_full():
                    pass
        except BaseException as error:
            self._failure = error  # the next `save` raises it

    def _write_full(self) -> bool:
        """Write a segment if there is a full part; returns whether there was."""
        with self._lock:
            if self._incomplete:
                return False
            self._incomplete = True
            part = self.replay.full_part()
            if part is not None:
                self._write(part)
            self._incomplete = False
        return part is not None

    def _write(self, part: Part) -> None:
        arrays = {f"{part.store}/places": part.places} | {
            f"{part.store}/{k}": v for k, v in part.contents.items()
        }
        data = safetensors.numpy.save(arrays)
        name = f"{part.segment:08d}-{secrets.token_hex(4)}"
        self.directory.mkdir(parents=True, exist_ok=True)
        write_and_sync(self._path(name), data)
        fsync_directory(self.directory)
        self._sums[name] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)

    def _parts(self, sums: dict[str, np.ndarray]) -> Iterator[Part]:
        for name in sorted(sums):
            arrays = safetensors.numpy.load(self._read(name, sums[name]))
            (store,) = {k.partition("/")[0] for k in arrays}
            contents = {k.partition("/")[2]: v for k, v in arrays.items()}
            yield Part(_number(name), store, contents.pop("places"), contents)

    def _read(self, name: str, expected: np.ndarray) -> bytes:
        path = self._path(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read `{path}`: {error.strerror}") from error
        if hashlib.sha256(data).digest() != expected.tobytes():
            raise UserError(f"`{path}` is damaged: its SHA-256 is not that in the checkpoint")
        return data

    def _delete_unneeded(self) -> None:
        """Delete segments that no checkpoint names, once it is known what each of them names."""
        if len(self._named) < (self._named.maxlen or 0):
            return
        named = set().union(*self._named)
        for path in self.directory.glob("*.safetensors"):
            if _NAME.fullmatch(path.stem) and path.stem not in named:
                path.unlink()

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.safetensors"


def _number(name: str) -> int:
    return int(name.partition("-")[0])
