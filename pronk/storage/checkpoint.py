"""Everything needed to go on, saved atomically and in the background.

A checkpoint is a directory named by its agent steps:

    DIRECTORY/000001234560/arrays.safetensors    every array of every tree
    DIRECTORY/000001234560/manifest.json         what must be in the other file, and `meta`

It is written under a temporary name, forced to disk and renamed into place, so that a directory
with a proper name is complete whenever the process or the machine stops. The manifest holds the
size and SHA-256 of the arrays and a SHA-256 of itself: what was damaged later is noticed and the
previous checkpoint is used. Nothing is ever unpickled.

**Names.** An array is called by its tree and its path in it, `learner/params/torso/kernel`: dict
keys and fields as they are, list and tuple positions as `0`, `1`, ... In a string `%` is written
`%25` and `/` is written `%2F`; an integer dict key 7 is written `%int7`. So no two leaves share a
name, and a name says where its leaf was.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from pronk.errors import UserError
from pronk.storage.files import (
    cannot_write,
    fsync_directory,
    plain,
    write_and_sync,
    write_atomically,
)
from pronk.types import PyTree

SCHEMA = 1

_ARRAYS = "arrays.safetensors"
_MANIFEST = "manifest.json"
_MANIFEST_LIMIT = 1 << 28  # bytes; a larger one is not ours and is not read into memory
_DIRECTORY_NAME = re.compile(r"[0-9]{12}")

# What safetensors calls the dtypes it can hold.
_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}


class _Invalid(Exception):
    """Why one checkpoint cannot be used."""


class Checkpointer:
    """Saves and loads the checkpoints of one run, keeping the last `keep` of them.

    Constructing it removes what a killed process left half-written, unless another process is
    writing there now; it creates nothing, so a reader may construct one anywhere.
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
        # Cleaning is a courtesy: a directory that can only be read can still be loaded from.
        with contextlib.suppress(OSError):
            if any(self.directory.glob(".tmp-*")) or any(self.directory.glob(".old-*")):
                with self._lock(wait=False):
                    self._clean()

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
        at once; the writing goes on in the background, one checkpoint at a time, unless `block`.
        Leaves are arrays, Python numbers or typed jax keys. Raises UserError if this write (with
        `block`) or an earlier one failed, TypeError for a leaf that is none of these.
        """
        if not 0 <= steps < 10**12:
            raise ValueError(f"steps is {steps}; expected 0 <= steps < 10^12")
        arrays, described, empty = _to_host(trees)
        # Through JSON and back: a copy, with the key types and order that loading will see.
        snapshot = json.loads(json.dumps(dict(meta), default=plain))
        self.wait()
        self._writing = self._writer.submit(self._run, steps, arrays, described, empty, snapshot)
        if block:
            self.wait()

    def wait(self) -> None:
        """Wait until the write in flight is on disk; raises UserError if it could not be."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except OSError as error:
            raise cannot_write(self.directory, error) from error

    def close(self) -> None:
        """Finish the write in flight; safe to call twice. Raises as `wait` does."""
        self.wait()

    def load(self) -> Loaded | None:
        """The newest valid checkpoint, or None where there are none at all.

        Damaged ones are named in `Loaded.warnings` and passed over. Raises UserError if there are
        checkpoints but none is valid: starting from nothing would throw the run away.
        """
        self.wait()
        bad = []
        for path in reversed(self._saved()):
            try:
                manifest, arrays = _read(path)
            except _Invalid as reason:
                bad.append((path, reason))
                continue
            warnings = [
                f"checkpoint `{damaged}` cannot be used ({reason}); "
                f"going back to step {manifest['steps']:,}"
                for damaged, reason in bad
            ]
            return Loaded(path, manifest["steps"], manifest["meta"], warnings, manifest, arrays)
        if bad:
            reasons = "; ".join(f"{path.name}: {reason}" for path, reason in bad)
            raise UserError(
                f"`{self.directory}` holds checkpoints but none can be used ({reasons}); put back "
                "a copy of one, or start a new run in another directory"
            )
        return None

    def _saved(self) -> list[Path]:
        try:
            entries = list(self.directory.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(f"cannot read `{self.directory}`: {error.strerror}") from error
        return sorted(p for p in entries if _DIRECTORY_NAME.fullmatch(p.name) and p.is_dir())

    def _run(
        self,
        steps: int,
        arrays: dict[str, np.ndarray],
        described: dict[str, Any],
        empty: dict[str, str],
        meta: Any,
    ) -> None:
        data = safetensors.numpy.save(arrays)
        manifest = {
            "schema": SCHEMA,
            "steps": steps,
            "arrays": described,
            "empty": empty,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "meta": meta,
        }
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._lock(wait=True):
            self._write(steps, data, _render(manifest))

    def _write(self, steps: int, data: bytes, manifest: bytes) -> None:
        final = self.directory / f"{steps:012d}"
        temporary = self.directory / f".tmp-{final.name}-{secrets.token_hex(4)}"
        old = self.directory / f".old-{final.name}"
        try:
            temporary.mkdir()
            write_and_sync(temporary / _ARRAYS, data)
            write_and_sync(temporary / _MANIFEST, manifest)
            fsync_directory(temporary)
            if final.exists():  # a directory cannot be replaced by rename; `_clean` undoes this
                final.rename(old)
            temporary.rename(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            if old.exists() and not final.exists():
                old.rename(final)
            raise
        fsync_directory(self.directory)
        _remove(old)
        # A later one is the unusable rest of a run that went back: neither counted nor deleted,
        # for what is broken to this version of pronk need not be to another.
        before = [path for path in self._saved() if path.name <= final.name]
        for path in before[: -self.keep]:
            # Renamed first, so that a half-deleted one is never taken for a checkpoint.
            doomed = path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")
            path.rename(doomed)
            _remove(doomed)

    def _clean(self) -> None:
        for path in self.directory.glob(".tmp-*"):
            _remove(path)
        for old in self.directory.glob(".old-*"):
            final = self.directory / old.name.removeprefix(".old-")
            if final.exists():
                _remove(old)
            else:
                old.rename(final)

    @contextlib.contextmanager
    def _lock(self, *, wait: bool) -> Iterator[None]:
        """Be the only process that changes the directory; released even by `kill -9`."""
        descriptor = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that has passed every check, in host memory."""

    path: Path
    steps: int  # agent steps
    meta: dict[str, Any]
    warnings: list[str]  # one for each newer checkpoint that could not be used
    _manifest: dict[str, Any] = field(repr=False)
    _arrays: dict[str, np.ndarray] = field(repr=False)

    @property
    def names(self) -> list[str]:
        """The names of the trees it holds."""
        everything = [*self._manifest["arrays"], *self._manifest["empty"]]
        return sorted({_unescape(name.split("/")[0]) for name in everything})

    def restore(self, name: str, template: PyTree) -> PyTree:
        """The tree `name` in the structure of `template`, whose leaves may be ShapeDtypeStructs.

        Leaves are new NumPy arrays, and jax keys where keys were saved. Raises UserError naming
        the first leaf whose name, shape or dtype is not exactly that of the template.
        """
        root = _escape(name)
        if name not in self.names:
            raise UserError(
                f"checkpoint `{self.path}` holds no `{name}`; it holds {', '.join(self.names)}"
            )
        leaves, structure = jax.tree_util.tree_flatten_with_path(template)
        wanted = {_leaf_name(root, path): leaf for path, leaf in leaves}
        saved = {n for n in self._arrays if n == root or n.startswith(root + "/")}
        values = []
        for leaf_name, leaf in wanted.items():
            expected = _describe(leaf)
            if leaf_name not in saved:
                raise self._mismatch(leaf_name, "nothing", expected)
            value = self._value(leaf_name)
            if _describe(value) != expected:
                raise self._mismatch(leaf_name, _describe(value), expected)
            values.append(value)
        for leaf_name in sorted(saved - wanted.keys()):
            raise self._mismatch(leaf_name, _describe(self._value(leaf_name)), "nothing")
        return jax.tree_util.tree_unflatten(structure, values)

    def tree(self, name: str) -> PyTree | None:
        """The tree `name` as nested dicts of new NumPy arrays, or None where it wasn't saved.

        Fields become dict keys, list and tuple positions the keys "0", "1", ...; empty containers
        become {}, None stays None, and a jax key becomes its uint32 data.
        """
        root = _escape(name)
        result: dict[str | int, Any] = {}
        leaves: dict[str, Any] = {
            n: None if kind == "none" else {} for n, kind in self._manifest["empty"].items()
        }
        for leaf_name, value in (leaves | self._arrays).items():
            first, *rest = leaf_name.split("/")
            if first != root:
                continue
            node = result
            parts = [name, *map(_unescape_key, rest)]
            for part in parts[:-1]:
                node = node.setdefault(part, {})
            node[parts[-1]] = value.copy() if isinstance(value, np.ndarray) else value
        return result.get(name)

    def _value(self, leaf_name: str) -> Any:
        value = self._arrays[leaf_name].copy()
        implementation = self._manifest["arrays"][leaf_name].get("key")
        if implementation is None:
            return value
        return jax.random.wrap_key_data(jnp.asarray(value), impl=implementation)

    def _mismatch(self, leaf_name: str, found: str, expected: str) -> UserError:
        return UserError(
            f"checkpoint `{self.path}` does not fit: at `{leaf_name}` it holds {found} where "
            f"{expected} is expected; use the agent, environment and settings it was saved with, "
            "or start a new run in another directory"
        )


def write_arrays(path: Path, trees: Mapping[str, PyTree], meta: Mapping[str, str]) -> None:
    """One safetensors file of every array of `trees`, named as in checkpoints, and texts with it.

    Raises UserError where it cannot be written.
    """
    arrays, _, _ = _to_host(trees)
    write_atomically(path, safetensors.numpy.save(arrays, dict(meta)))


class ArrayFile:
    """A file of `write_arrays`, of which only the header has been read: `meta` and the arrays'
    names, dtypes and shapes. Raises UserError where there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                self.meta: dict[str, str] = file.metadata() or {}
                self._found: dict[str, str] = {}
                for name in file.keys():  # noqa: SIM118  (it is no dict)
                    entry = file.get_slice(name)
                    dtype = _DTYPES.get(entry.get_dtype(), entry.get_dtype())
                    self._found[name] = f"{dtype}{list(entry.get_shape())}"
        except OSError as error:
            raise UserError(f"cannot read `{path}`: {error.strerror or error}") from None
        except safetensors.SafetensorError as error:
            raise UserError(f"`{path}` is no safetensors file: {error}") from None

    def read(self, name: str, template: PyTree) -> PyTree:
        """The tree `name`, which must be as `template` to the last name, shape and dtype: otherwise
        UserError, before any array is made."""
        leaves, structure = jax.tree_util.tree_flatten_with_path(template)
        wanted = {_leaf_name(_escape(name), path): _describe(leaf) for path, leaf in leaves}
        for leaf in sorted(wanted.keys() | self._found.keys()):
            found, expected = self._found.get(leaf, "nothing"), wanted.get(leaf, "nothing")
            if found != expected:
                raise UserError(
                    f"`{self.path}` does not fit: at `{leaf}` it holds {found} where {expected} is"
                    " expected; it is of another network, or was changed."
                )
        arrays = safetensors.numpy.load_file(self.path)
        return jax.tree_util.tree_unflatten(structure, [arrays[leaf] for leaf in wanted])


def digest(tree: PyTree) -> str:
    """SHA-256, in hex, of the names, dtypes, shapes and bytes of all leaves in order of name.

    Equal for a tree and for what `Loaded.tree` and `Loaded.restore` make of it.
    """
    hasher = hashlib.sha256()
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {_leaf_name("", path): leaf for path, leaf in leaves}
    for name, leaf in sorted(named.items()):
        value = _host_array(name, leaf, copy=False)
        hasher.update(json.dumps([name, value.dtype.name, value.shape]).encode() + b"\n")
        hasher.update(value.reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()


def _to_host(
    trees: Mapping[str, PyTree],
) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, str]]:
    """Copies of all arrays by name, what the manifest says of each, and the empty places."""
    leaves = []
    for tree_name, tree in trees.items():
        if tree_name == "__metadata__":
            raise ValueError("`__metadata__` is safetensors' own name and cannot name a tree")
        flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_empty)[0]
        root = _escape(tree_name)
        leaves += [(_leaf_name(root, path), leaf) for path, leaf in flat]
    for _, leaf in leaves:  # let all transfers from the device overlap
        if isinstance(leaf, jax.Array) and not _is_key(leaf):
            leaf.copy_to_host_async()
    arrays: dict[str, np.ndarray] = {}
    described: dict[str, Any] = {}
    empty: dict[str, str] = {}
    for name, leaf in leaves:
        if name in arrays or name in empty:
            raise ValueError(f"two leaves are both called `{name}`")
        if _is_empty(leaf):
            empty[name] = "none" if leaf is None else "empty"
            continue
        value = arrays[name] = _host_array(name, leaf, copy=True)
        described[name] = {"shape": list(value.shape), "dtype": value.dtype.name}
        if _is_key(leaf):
            described[name]["key"] = str(jax.random.key_impl(leaf))
    return arrays, described, empty


def _host_array(name: str, leaf: Any, *, copy: bool) -> np.ndarray:
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    # On a CPU `np.asarray` of a jax array is a view of the buffer that donation hands on.
    value = np.array(leaf, copy=True, order="C") if copy else np.asarray(leaf, order="C")
    if not value.dtype.isnative:
        value = value.astype(value.dtype.newbyteorder("="))
    if value.dtype.name not in _DTYPES.values():
        raise TypeError(
            f"`{name}` is a {type(leaf).__name__} of dtype {value.dtype}, which a checkpoint "
            f"cannot hold; it can hold {', '.join(_DTYPES.values())}"
        )
    return value


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _is_empty(node: Any) -> bool:
    return node is None or (isinstance(node, (dict, list, tuple)) and not node)


def _describe(leaf: Any) -> str:
    """Dtype and shape, for example `float32[3, 4]` or `key<fry>[]`."""
    if not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    dtype = str(leaf.dtype) if _is_key(leaf) else np.dtype(leaf.dtype).name
    return f"{dtype}{list(leaf.shape)}"


def _leaf_name(root: str, path: tuple[Any, ...]) -> str:
    return "/".join([root, *map(_part, path)])


def _part(entry: Any) -> str:
    if isinstance(entry, jax.tree_util.SequenceKey):
        return str(entry.idx)
    if isinstance(entry, jax.tree_util.GetAttrKey):
        return _escape(entry.name)
    if isinstance(entry, jax.tree_util.FlattenedIndexKey):
        return str(entry.key)
    key = entry.key
    if type(key) is int:
        return f"%int{key}"
    if not isinstance(key, str):
        raise TypeError(f"dict key {key!r} is a {type(key).__name__}; expected a string or an int")
    return _escape(key)


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("/", "%2F")


def _unescape(text: str) -> str:
    return text.replace("%2F", "/").replace("%25", "%")


def _unescape_key(part: str) -> str | int:
    return int(part.removeprefix("%int")) if part.startswith("%int") else _unescape(part)


def _render(manifest: Mapping[str, Any]) -> bytes:
    """The bytes of `manifest.json`: the one way to write this content, and its own SHA-256."""
    content = {k: v for k, v in manifest.items() if k != "manifest_sha256"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    content["manifest_sha256"] = hashlib.sha256(canonical).hexdigest()
    return json.dumps(content, sort_keys=True, indent=1).encode() + b"\n"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Manifest and arrays of one checkpoint; raises `_Invalid` unless all of it is as written."""
    raw = _read_file(path / _MANIFEST, at_most=_MANIFEST_LIMIT)
    try:
        manifest = json.loads(raw)
        # Rendering again also catches changes that parse to the same, such as 1e5 for 1E5.
        intact = isinstance(manifest, dict) and _render(manifest) == raw
    except (ValueError, RecursionError):
        intact, manifest = False, {}
    if not intact:
        raise _Invalid(f"{_MANIFEST} is damaged")
    if manifest.get("schema") != SCHEMA:
        raise _Invalid(f"it has schema {manifest.get('schema')}, this pronk reads {SCHEMA}")
    try:
        if f"{manifest['steps']:012d}" != path.name:
            raise _Invalid(f"it is of step {manifest['steps']}, the directory is {path.name}")
        size = manifest["bytes"]
        data = _read_file(path / _ARRAYS, at_most=size)
        if len(data) != size:
            raise _Invalid(f"{_ARRAYS} has {len(data):,} bytes, the manifest says {size:,}")
        if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
            raise _Invalid(f"{_ARRAYS} is damaged: its SHA-256 is not the manifest's")
        return manifest, _parse(data, manifest["arrays"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _Invalid(f"{_MANIFEST} is not as pronk writes it: {error!r}") from error
    except safetensors.SafetensorError as error:
        raise _Invalid(f"{_ARRAYS} is not a safetensors file: {error}") from error


def _read_file(path: Path, *, at_most: int) -> bytes:
    """All of a regular file, whose size is checked before any of it is read."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _Invalid(f"{path.name} is not a regular file")
        if status.st_size > at_most:
            raise _Invalid(f"{path.name} has {status.st_size:,} bytes, at most {at_most:,} belong")
        with open(path, "rb") as file:
            return file.read(status.st_size)
    except FileNotFoundError as error:
        raise _Invalid(f"{path.name} is missing") from error
    except OSError as error:
        raise _Invalid(f"{path.name} cannot be read: {error.strerror}") from error


def _parse(data: bytes, described: Mapping[str, Any]) -> dict[str, np.ndarray]:
    # Not `safetensors.numpy.load`, which doesn't know bfloat16. `deserialize` checks the header's
    # offsets against the length of `data` before it allocates anything.
    arrays = {}
    for name, entry in safetensors.deserialize(data):
        shape, dtype = list(entry["shape"]), _DTYPES.get(entry["dtype"])
        expected = described.get(name, {})
        if shape != expected.get("shape") or dtype is None or dtype != expected.get("dtype"):
            raise _Invalid(f"`{name}` is {entry['dtype']}{shape}, the manifest says {expected}")
        arrays[name] = np.frombuffer(entry["data"], dtype=np.dtype(dtype)).reshape(shape)
    for name in described:
        if name not in arrays:
            raise _Invalid(f"`{name}` is missing")
    return arrays


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
