"""Trees of arrays in one checksummed safetensors file.

An array is named by its tree and its path in it, `learner/params/torso/kernel`: dict keys and field
names as they are, list and tuple positions as `0`, `1`, ... The header's metadata holds the SHA-256
of the whole file, computed with zeros in its own place. JAX random keys are stored as their uint32
data, and an array that occurs in several places once. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from pronk.config.json_files import UnreadableJSON, parse_object
from pronk.errors import UserError
from pronk.storage.files import write_atomically
from pronk.types import PyTree

# NumPy's names of the dtypes that safetensors can hold.
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
_NO_SHA256 = "0" * 64


class UnreadableFile(UserError):
    """A file that cannot be read as an array file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"`{path}` {reason}")


class ArrayFile:
    """The content of a file of `write_arrays`, in host memory, and its texts `meta`.

    Raises UnreadableFile where there is no such file, or where a single bit of it has changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.exists() and not path.is_file():
                raise UnreadableFile(path, "is not a regular file")  # a pipe would block
            # Compares the header with the file's size, before anything is read into memory.
            with safetensors.safe_open(path, framework="numpy") as file:
                self.meta: dict[str, str] = file.metadata() or {}
            data = path.read_bytes()
            if "sha256" not in self.meta:
                raise UnreadableFile(path, "has no SHA-256: this version of pronk did not write it")
            if _sha256(data, self.meta["sha256"]) != self.meta["sha256"]:
                raise UnreadableFile(path, "is damaged: its content does not match its SHA-256")
            self._arrays = _parse(data)
            self._empty = parse_object(self.meta["empty"], f"{path}: empty")
            for name, first in parse_object(self.meta["same"], f"{path}: same").items():
                self._arrays[name] = self._arrays[first]
        except OSError as error:
            raise UnreadableFile(path, f"cannot be read: {error.strerror or error}") from None
        except MemoryError:
            raise UnreadableFile(path, "is larger than this machine's memory") from None
        except UnreadableJSON as error:
            raise UnreadableFile(path, f"is not a safetensors file of pronk: {error}") from None
        except (
            safetensors.SafetensorError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ) as error:
            raise UnreadableFile(path, f"is not a safetensors file of pronk: {error}") from None

    @property
    def names(self) -> list[str]:
        """The names of its trees."""
        return sorted({name.split("/")[0] for name in [*self._arrays, *self._empty]})

    def restore(self, name: str, template: PyTree) -> PyTree:
        """The tree `name` in the structure of `template`, whose leaves may be ShapeDtypeStructs.

        Leaves are new NumPy arrays, and JAX random keys where the template has keys. Raises
        UserError naming the first leaf whose name, shape or dtype differs from the template's.
        """
        if name not in self.names:
            raise UserError(f"`{self.path}` holds no `{name}`; it holds {', '.join(self.names)}")
        leaves, structure = jax.tree_util.tree_flatten_with_path(template)
        wanted = {_leaf_name(name, path): leaf for path, leaf in leaves}
        expected = {leaf_name: _describe(leaf) for leaf_name, leaf in wanted.items()}
        saved = {n: _describe(value) for n, value in self._arrays.items() if _is_in(n, name)}
        for leaf_name in sorted(expected.keys() | saved.keys()):
            ours = expected.get(leaf_name, "nothing")
            theirs = saved.get(leaf_name, "nothing")
            if ours != theirs:
                raise UserError(
                    f"`{self.path}` does not fit: at `{leaf_name}` it holds {theirs} where {ours}"
                    " is expected; use the agent, environment and settings it was saved with."
                )
        values = [_restored(self._arrays[n], leaf) for n, leaf in wanted.items()]
        return jax.tree_util.tree_unflatten(structure, values)

    def tree(self, name: str) -> PyTree | None:
        """The tree `name` as nested dicts of new NumPy arrays, or None where there is none.

        Fields become dict keys, list and tuple positions the keys "0", "1", ...; a key that has a
        "/" in it becomes nested dicts, an empty container {}, and a JAX key its uint32 data.
        """
        result: dict[str, Any] = {}
        leaves: dict[str, Any] = {n: None if k == "none" else {} for n, k in self._empty.items()}
        for leaf_name, value in (leaves | self._arrays).items():
            if not _is_in(leaf_name, name):
                continue
            *parts, last = leaf_name.split("/")
            node = result
            for part in parts:
                node = node.setdefault(part, {})
                if not isinstance(node, dict):
                    raise UnreadableFile(self.path, f"has both `{part}` and `{leaf_name}`")
            if last in node:
                raise UnreadableFile(self.path, f"has two of `{leaf_name}`")
            node[last] = value.copy() if isinstance(value, np.ndarray) else value
        return result.get(name)


def write_arrays(
    path: Path, trees: Mapping[str, PyTree], meta: Mapping[str, str], flag: str = "--run-dir"
) -> None:
    """Write `trees` and the texts `meta` to `path`, atomically.

    Raises UserError where the write fails; `flag` is the flag that chose `path`.
    """
    write_atomically(path, *encode(to_host(trees), meta), flag=flag)


class HostTrees(NamedTuple):
    """The leaves of trees by name, copied to the host."""

    arrays: dict[str, np.ndarray]
    same: dict[str, str]  # names of leaves that are the very object of one in `arrays`: its name
    empty: dict[str, str]  # "none" for None and "dict" for an empty container


def to_host(trees: Mapping[str, PyTree]) -> HostTrees:
    """Copies of the leaves of `trees`, arrays, Python numbers or typed JAX keys.

    Raises TypeError for a leaf that cannot be saved, ValueError for two leaves of one name.
    """
    leaves = []
    for tree_name, tree in trees.items():
        if "/" in tree_name or tree_name == "__metadata__":
            raise ValueError(f"a tree cannot be named '{tree_name}'")
        flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_empty)[0]
        leaves += [(_leaf_name(tree_name, path), leaf) for path, leaf in flat]
    for _, leaf in leaves:  # let all transfers from the device overlap
        if isinstance(leaf, jax.Array) and not is_key(leaf):
            leaf.copy_to_host_async()
    host = HostTrees({}, {}, {})
    names: dict[int, str] = {}  # by the identity of the leaf
    for name, leaf in leaves:
        if any(name in part for part in host):
            raise ValueError(f"two leaves are both called `{name}`")
        if _is_empty(leaf):
            host.empty[name] = "none" if leaf is None else "dict"
        elif id(leaf) in names:
            host.same[name] = names[id(leaf)]
        else:
            names[id(leaf)] = name
            host.arrays[name] = _to_numpy(name, leaf, copy=True)
    return host


def encode(host: HostTrees, meta: Mapping[str, str]) -> tuple[bytes, memoryview]:
    """The bytes of an array file of these trees and texts, in two parts."""
    notes = {"empty": json.dumps(host.empty), "same": json.dumps(host.same)}
    data = safetensors.numpy.save(host.arrays, {**meta, **notes, "sha256": _NO_SHA256})
    size = _header_size(data)
    header = data[:size].replace(_field(_NO_SHA256), _field(_sha256(data, _NO_SHA256)))
    return header, memoryview(data)[size:]


def digest(tree: PyTree) -> str:
    """SHA-256, in hex, of the names, dtypes, shapes and bytes of all leaves in order of name.

    Equal for a tree and for what `ArrayFile.tree` and `ArrayFile.restore` return for it.
    """
    hasher = hashlib.sha256()
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {_leaf_name("", path): leaf for path, leaf in leaves}
    for name, leaf in sorted(named.items()):
        value = _to_numpy(name, leaf, copy=False)
        hasher.update(json.dumps([name, value.dtype.name, value.shape]).encode() + b"\n")
        hasher.update(value.reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()


def is_key(leaf: Any) -> bool:
    """Whether `leaf`, an array or a ShapeDtypeStruct, holds typed JAX random keys."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _sha256(data: bytes, stored: str) -> str:
    """SHA-256 of a file's content with zeros in place of its `stored` SHA-256."""
    size = _header_size(data)
    hasher = hashlib.sha256(data[:size].replace(_field(stored), _field(_NO_SHA256)))
    hasher.update(memoryview(data)[size:])
    return hasher.hexdigest()


def _field(sha256: str) -> bytes:
    """The SHA-256 in a header; no other text can look like it, since JSON escapes its quotes."""
    return f'"sha256":"{sha256}"'.encode()


def _header_size(data: bytes) -> int:
    """Bytes before the arrays: the header's length as a uint64, and the header."""
    return 8 + int.from_bytes(data[:8], "little")


def _parse(data: bytes) -> dict[str, np.ndarray]:
    # `safetensors.numpy.load` does not know bfloat16.
    return {
        name: np.frombuffer(entry["data"], np.dtype(_DTYPES[entry["dtype"]])).reshape(
            entry["shape"]
        )
        for name, entry in safetensors.deserialize(data)
    }


def _to_numpy(name: str, leaf: Any, *, copy: bool) -> np.ndarray:
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    # On a CPU `np.asarray` of a jax array is a view of the buffer that donation hands on.
    value = np.array(leaf, copy=True, order="C") if copy else np.asarray(leaf, order="C")
    if not value.dtype.isnative:
        value = value.astype(value.dtype.newbyteorder("="))
    if value.dtype.name not in _DTYPES.values():
        raise TypeError(
            f"`{name}` is a {type(leaf).__name__} of dtype {value.dtype}, which cannot be saved;"
            f" expected one of {', '.join(_DTYPES.values())}"
        )
    return value


def _restored(value: np.ndarray, leaf: Any) -> Any:
    """A copy of `value`; a random key of the kind of the template's `leaf` where that is a key."""
    if not is_key(leaf):
        return value.copy()
    implementation = jax.random.key_impl(jnp.empty((), leaf.dtype))
    return jax.random.wrap_key_data(jnp.asarray(value), impl=implementation)


def _describe(leaf: Any) -> str:
    """Dtype and shape, for example `float32[3, 4]`; of keys those of their data."""
    if is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    if not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _leaf_name(tree_name: str, path: tuple[Any, ...]) -> str:
    parts = jax.tree_util.keystr(path, simple=True, separator="/")
    return f"{tree_name}/{parts}" if path else tree_name


def _is_in(leaf_name: str, tree_name: str) -> bool:
    return leaf_name.split("/", 1)[0] == tree_name


def _is_empty(node: Any) -> bool:
    return node is None or (isinstance(node, (dict, list, tuple)) and not node)
