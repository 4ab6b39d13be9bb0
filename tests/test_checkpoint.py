"""Checkpoints: nothing is lost, nothing damaged is believed, nothing good is thrown away."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from pronk.errors import UserError
from pronk.storage import checkpoint
from pronk.storage.checkpoint import Checkpointer, digest

ARRAYS, MANIFEST = "arrays.safetensors", "manifest.json"


class Point(NamedTuple):
    x: Any
    y: Any = None


def everything() -> dict[str, Any]:
    """A tree with every kind of node and leaf that a checkpoint promises to hold."""
    return {
        "params": {
            "bfloat16": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3) / 3,
            "float32": jnp.linspace(0, 1, 7),
            "uint32": np.array([0, 2**32 - 1], np.uint32),
            "bool": np.array([True, False, True]),
            "int64": np.array([-(2**63), 2**63 - 1]),
            "float16": np.array([1.5, np.nan, np.inf], np.float16),
            "complex64": np.array([1 + 2j], np.complex64),
        },
        "zero_size": np.zeros((3, 0, 2), np.uint8),
        "scalar": jnp.float32(3.25),
        "python": (3, 2.5, True),
        "none": None,
        "nothing": Point(None, ()),
        "point": Point(np.arange(3), [np.float64(1), {"deep": np.ones((2, 2), np.int8)}]),
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(8, impl="rbg"), 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "strided": np.arange(10)[::3],
        "big_endian": np.arange(3, dtype=">f4"),
        "ints": {1: np.ones(1), 20: np.zeros(1), -3: np.ones(2)},
    }


def assert_same(left: Any, right: Any) -> None:
    """Equal structures whose leaves have equal dtypes (but for byte order), shapes and bytes."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            assert a.dtype == b.dtype
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype.name == b.dtype.name
        assert a.shape == b.shape
        assert a.astype(a.dtype.newbyteorder("=")).tobytes() == b.tobytes()


def save_some(directory: Path, *all_steps: int) -> Checkpointer:
    saver = Checkpointer(directory, keep=10)
    for steps in all_steps:
        trees = {"learner": {"w": np.full((2, 3), steps, np.float32), "n": np.int32(steps)}}
        saver.save(steps, trees, {"steps": steps, "note": "a/b é"})
    saver.close()
    return saver


def load(directory: Path) -> checkpoint.Loaded:
    loaded = Checkpointer(directory).load()
    assert loaded is not None
    return loaded


def assert_is(loaded: checkpoint.Loaded, steps: int) -> None:
    assert loaded.steps == loaded.meta["steps"] == steps
    template = {"w": np.zeros((2, 3), np.float32), "n": np.int32(0)}
    tree = loaded.restore("learner", template)
    assert (tree["w"] == steps).all()
    assert tree["n"] == steps


# -- Round trips


def test_everything_comes_back_in_its_own_structure(tmp_path: Path) -> None:
    tree = everything()
    Checkpointer(tmp_path).save(5, {"learner": tree}, {}, block=True)
    assert_same(tree, load(tmp_path).restore("learner", tree))


def test_shape_templates_serve_as_well_as_arrays(tmp_path: Path) -> None:
    def init() -> dict[str, Any]:
        return {"w": jnp.ones((2, 3)), "key": jax.random.key(3), "h": jnp.zeros(4, jnp.bfloat16)}

    tree = init()
    Checkpointer(tmp_path).save(5, {"learner": tree}, {}, block=True)
    restored = load(tmp_path).restore("learner", jax.eval_shape(init))
    assert_same(tree, restored)
    assert isinstance(restored["w"], np.ndarray)
    assert jax.random.uniform(restored["key"]) == jax.random.uniform(tree["key"])


def test_tree_without_template(tmp_path: Path) -> None:
    state = {"a": Point(np.arange(2), [np.ones(1), None]), "b/%2F": {7: np.zeros(2)}, "c": {}}
    trees = {"env/0": state, "env": None, "bare": np.arange(3), "key": jax.random.key(1)}
    Checkpointer(tmp_path).save(5, trees, {}, block=True)
    loaded = load(tmp_path)
    tree = loaded.tree("env/0")
    assert tree is not None
    assert tree.keys() == {"a", "b/%2F", "c"}
    assert tree["a"].keys() == {"x", "y"}
    assert tree["a"]["y"].keys() == {"0", "1"}
    assert tree["a"]["y"]["1"] is None
    assert tree["c"] == {}
    np.testing.assert_array_equal(tree["b/%2F"][7], np.zeros(2))
    assert loaded.tree("env") is None
    assert loaded.tree("never saved") is None
    np.testing.assert_array_equal(loaded.tree("bare"), np.arange(3))
    np.testing.assert_array_equal(loaded.tree("key"), jax.random.key_data(jax.random.key(1)))
    assert loaded.names == ["bare", "env", "env/0", "key"]


def test_restored_arrays_are_ours_to_change(tmp_path: Path) -> None:
    save_some(tmp_path, 4)
    loaded = load(tmp_path)
    loaded.tree("learner")["w"] += 1
    loaded.restore("learner", {"w": np.zeros((2, 3), np.float32), "n": np.int32(0)})["w"] += 1
    assert_is(loaded, 4)


def test_meta_comes_back(tmp_path: Path) -> None:
    meta = {"a": [1, None, "é\u2028"], "b": {"10": 1, "9": 2}, "f": 0.1, "inf": float("inf")}
    Checkpointer(tmp_path).save(5, {}, meta | {"np": np.int64(3), "p": Path("x/y")}, block=True)
    assert load(tmp_path).meta == meta | {"np": 3, "p": "x/y"}


def test_integer_keys_in_meta_do_not_read_as_damage(tmp_path: Path) -> None:
    Checkpointer(tmp_path).save(5, {}, {"returns": {10: 1, 9: 2}}, block=True)
    assert load(tmp_path).meta == {"returns": {"10": 1, "9": 2}}


@pytest.mark.parametrize(
    "tree",
    [
        {"a/b": np.zeros(1), "a": {"b": np.ones(1)}},
        {"a%2Fb": np.zeros(1), "a/b": np.ones(1), "a%252Fb": np.ones(2)},
        OrderedDict([(1, np.zeros(1)), ("1", np.ones(1)), ("%int1", np.ones(2))]),
        {"": np.zeros(1), "/": np.ones(1)},
    ],
)
def test_names_do_not_collide(tmp_path: Path, tree: Any) -> None:
    Checkpointer(tmp_path).save(5, {"t": tree, "t/a": tree}, {}, block=True)
    loaded = load(tmp_path)
    assert_same(tree, loaded.restore("t", tree))
    assert_same(tree, loaded.restore("t/a", tree))


@pytest.mark.parametrize("leaf", ["text", 2**100, object(), np.zeros(1, np.complex128)])
def test_what_cannot_be_saved_is_named_at_once(tmp_path: Path, leaf: Any) -> None:
    with pytest.raises(TypeError, match="env/rng"):
        Checkpointer(tmp_path).save(5, {"env": {"rng": leaf}}, {})
    assert not list(tmp_path.iterdir())


def test_nothing_saved_is_none_and_creates_nothing(tmp_path: Path) -> None:
    assert Checkpointer(tmp_path / "absent").load() is None
    assert not (tmp_path / "absent").exists()
    assert Checkpointer(tmp_path).load() is None


def test_only_numpy_and_json_on_disk(tmp_path: Path) -> None:
    Checkpointer(tmp_path).save(5, {"learner": everything()}, {}, block=True)
    directory = tmp_path / "000000000005"
    assert sorted(p.name for p in directory.iterdir()) == [ARRAYS, MANIFEST]
    manifest = json.loads((directory / MANIFEST).read_text())
    assert manifest["schema"] == checkpoint.SCHEMA
    assert manifest["bytes"] == (directory / ARRAYS).stat().st_size
    entry = manifest["arrays"]["learner/params/bfloat16"]
    assert entry == {"shape": [2, 3], "dtype": "bfloat16"}


# -- Asynchrony


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Holds back every write until it is set."""
    event = threading.Event()
    write = checkpoint.write_and_sync

    def held(path: Path, data: bytes) -> None:
        assert event.wait(20)
        write(path, data)

    monkeypatch.setattr(checkpoint, "write_and_sync", held)
    return event


def test_later_changes_do_not_reach_the_checkpoint(tmp_path: Path, gate: threading.Event) -> None:
    w = np.full((2, 3), 7, np.float32)
    donated = jnp.full((1000,), 7.0)
    meta: dict[str, Any] = {"list": [1]}
    saver = Checkpointer(tmp_path)
    saver.save(7, {"learner": {"w": w, "d": donated}}, meta)
    w[:] = -1
    meta["list"].append(2)
    jax.jit(lambda x: x * -1, donate_argnums=0)(donated).block_until_ready()
    assert donated.is_deleted()
    gate.set()
    saver.close()
    loaded = load(tmp_path)
    tree = loaded.tree("learner")
    assert tree is not None
    assert (tree["w"] == 7).all()
    assert (tree["d"] == 7).all()
    assert loaded.meta == {"list": [1]}


def test_save_returns_before_the_write_and_one_write_at_a_time(
    tmp_path: Path, gate: threading.Event
) -> None:
    saver = Checkpointer(tmp_path)
    saver.save(1, {"t": np.ones(1)}, {})
    assert not (tmp_path / "000000000001").exists()
    second = threading.Thread(target=saver.save, args=(2, {"t": np.ones(1)}, {}))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    gate.set()
    second.join(20)
    assert (tmp_path / "000000000001").exists()
    saver.close()
    saver.close()
    assert load(tmp_path).steps == 2


def test_load_waits_for_the_write_in_flight(tmp_path: Path, gate: threading.Event) -> None:
    saver = Checkpointer(tmp_path)
    saver.save(1, {"t": np.ones(1)}, {})
    threading.Timer(0.1, gate.set).start()
    loaded = saver.load()
    assert loaded is not None
    assert loaded.steps == 1


# -- Which are kept


def test_the_last_k_are_kept(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path, keep=2)
    for steps in (9, 10, 100, 2000):
        saver.save(steps, {"t": np.ones(1)}, {})
    saver.close()
    assert [p.name for p in sorted(tmp_path.glob("[!.]*"))] == ["000000000100", "000000002000"]


def test_nothing_is_deleted_before_the_new_one_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Checkpointer(tmp_path, keep=1)
    saver.save(1, {"t": np.ones(1)}, {}, block=True)
    seen = []
    remove = checkpoint._remove

    def watched(path: Path) -> None:
        seen.append((tmp_path / "000000000002").exists())
        remove(path)

    monkeypatch.setattr(checkpoint, "_remove", watched)
    saver.save(2, {"t": np.ones(1)}, {}, block=True)
    assert seen
    assert all(seen)
    assert not (tmp_path / "000000000001").exists()


def test_saving_after_going_back_keeps_the_new_one(tmp_path: Path) -> None:
    save_some(tmp_path, 100, 200, 300)
    (tmp_path / "000000000300" / ARRAYS).write_bytes(b"")
    saver = Checkpointer(tmp_path, keep=1)
    trees = {"learner": {"w": np.full((2, 3), 250, np.float32), "n": np.int32(250)}}
    saver.save(250, trees, {"steps": 250}, block=True)
    assert not (tmp_path / "000000000200").exists()
    assert_is(load(tmp_path), 250)


def test_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path)
    saver.save(1, {"t": np.zeros(1)}, {"try": 1}, block=True)
    saver.save(1, {"t": np.ones(1)}, {"try": 2}, block=True)
    assert load(tmp_path).meta == {"try": 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "000000000001"]


def test_killed_between_the_renames_of_a_replacement(tmp_path: Path) -> None:
    save_some(tmp_path, 1, 2)
    (tmp_path / "000000000002").rename(tmp_path / ".old-000000000002")
    (tmp_path / ".tmp-000000000002-abcd").mkdir()
    assert_is(load(tmp_path), 2)
    assert not list(tmp_path.glob(".tmp-*"))
    save_some(tmp_path, 3)
    shutil.copytree(tmp_path / "000000000002", tmp_path / ".old-000000000003")
    assert_is(load(tmp_path), 3)
    assert not list(tmp_path.glob(".old-*"))


def test_stale_temporaries_are_removed_but_not_a_living_writer_s(
    tmp_path: Path, gate: threading.Event
) -> None:
    saver = Checkpointer(tmp_path)
    saver.save(1, {"t": np.ones(1)}, {})
    while not list(tmp_path.glob(".tmp-*")):
        time.sleep(0.01)
    Checkpointer(tmp_path)  # a reader, such as `pronk inspect`, while training goes on
    assert list(tmp_path.glob(".tmp-*"))
    gate.set()
    saver.close()
    stale = tmp_path / ".tmp-000000000009-dead"
    stale.mkdir()
    (stale / ARRAYS).write_bytes(b"half")
    assert load(tmp_path).steps == 1
    assert not stale.exists()


# -- Damage

OFFSETS = [0, 1, 3, 7, 8, 9, 40, -1, -2, -5, -13, -24] + [
    random.Random(1).randrange(10_000) for _ in range(30)
]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pristine")
    save_some(directory, 100, 200)
    return directory


@pytest.fixture
def saved(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "checkpoints"))


def assert_falls_back(directory: Path, reason: str = "") -> None:
    loaded = load(directory)
    assert_is(loaded, 100)
    assert len(loaded.warnings) == 1
    assert "000000000200" in loaded.warnings[0]
    assert reason in loaded.warnings[0]


@pytest.mark.faults
@pytest.mark.parametrize("file", [ARRAYS, MANIFEST])
@pytest.mark.parametrize("bit", [0, 5, 7])
def test_a_flipped_bit_is_noticed_anywhere(saved: Path, file: str, bit: int) -> None:
    path = saved / "000000000200" / file
    intact = path.read_bytes()
    for offset in OFFSETS:
        damaged = bytearray(intact)
        damaged[offset % len(intact)] ^= 1 << bit
        path.write_bytes(damaged)
        assert_falls_back(saved, file)
    path.write_bytes(intact)
    assert_is(load(saved), 200)


def test_every_bit_of_the_manifest(saved: Path) -> None:
    path = saved / "000000000200"
    intact = (path / MANIFEST).read_bytes()
    for offset in range(len(intact)):
        damaged = bytearray(intact)
        damaged[offset] ^= 1 << (offset % 8)
        (path / MANIFEST).write_bytes(damaged)
        with pytest.raises(checkpoint._Invalid):
            checkpoint._read(path)


@pytest.mark.faults
@pytest.mark.parametrize("file", [ARRAYS, MANIFEST])
def test_a_truncated_or_longer_file_is_noticed(saved: Path, file: str) -> None:
    path = saved / "000000000200" / file
    intact = path.read_bytes()
    for length in [*range(0, len(intact), 17), len(intact) - 1]:
        path.write_bytes(intact[:length])
        assert_falls_back(saved, file)
    path.write_bytes(intact + b"\0")
    assert_falls_back(saved, file)
    path.unlink()
    assert_falls_back(saved, f"{file} is missing")
    os.mkfifo(path)  # reading one would wait for ever
    assert_falls_back(saved, f"{file} is not a regular file")


def test_a_changed_manifest_is_noticed(saved: Path) -> None:
    path = saved / "000000000200" / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["meta"]["steps"] = 999
    path.write_text(json.dumps(manifest, sort_keys=True, indent=1) + "\n")
    assert_falls_back(saved, "damaged")
    path.write_bytes(b"[" * 200_000)
    assert_falls_back(saved, "damaged")


def reseal(directory: Path, data: bytes | None = None, **changes: Any) -> None:
    """Change a checkpoint as somebody would who knows the format, all its hashes included."""
    manifest = json.loads((directory / MANIFEST).read_text())
    if data is not None:
        (directory / ARRAYS).write_bytes(data)
        sha256 = checkpoint.hashlib.sha256(data).hexdigest()
        manifest |= {"bytes": len(data), "sha256": sha256}
    (directory / MANIFEST).write_bytes(checkpoint._render(manifest | changes))


def header(text: str, claimed: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text.encode()


@pytest.mark.faults
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        header("{}", claimed=2**63),
        header("{}", claimed=50_000_000_000),
        header('{"learner/w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'),
        header('{"learner/w":{"dtype":"F32","shape":[4000000000],"data_offsets":[0,16000000000]}}'),
        header('{"learner/w":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],'
               '"data_offsets":[0,0]}}'),
        header('{"learner/w":{"dtype":"F32","shape":[2,3],"data_offsets":[24,0]}}') + b"\0" * 24,
        header("[]"),
        header("\xff"),
        safetensors.numpy.save({}),
        safetensors.numpy.save({"learner/w": np.zeros((2, 3), np.float32)}),
        safetensors.numpy.save({"learner/w": np.zeros((3, 2), np.float32),
                                "learner/n": np.zeros((), np.int32)}),
        safetensors.numpy.save({"learner/w": np.zeros((2, 3), np.int32),
                                "learner/n": np.zeros((), np.int32)}),
        safetensors.numpy.save({"learner/w": np.zeros((2, 3), np.float32), "x": np.zeros(1),
                                "learner/n": np.zeros((), np.int32)}),
    ],
)  # fmt: skip
def test_a_hostile_file_with_right_hashes_is_refused(saved: Path, data: bytes) -> None:
    reseal(saved / "000000000200", data)
    assert_falls_back(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"schema": "1"},
        {"steps": 300},
        {"steps": "200"},
        {"bytes": 10**15},
        {"bytes": None},
        {"arrays": []},
        {"arrays": {"learner/w": 3}},
        {"arrays": {"learner/w": {"shape": [2, 3], "dtype": "float32"}}},
        {"sha256": 3},
    ],
)
def test_a_foreign_manifest_with_right_hash_is_refused(saved: Path, changes: Any) -> None:
    reseal(saved / "000000000200", **changes)
    assert_falls_back(saved, "schema" if "schema" in changes else "")


def test_sizes_are_compared_before_anything_is_read(saved: Path) -> None:
    path = saved / "000000000200" / ARRAYS
    with open(path, "r+b") as file:
        file.truncate(1 << 42)  # sparse; reading it would need 4 TiB
    assert_falls_back(saved, "4,398,046,511,104 bytes")
    with open(saved / "000000000200" / MANIFEST, "r+b") as file:
        file.truncate(1 << 42)
    assert_falls_back(saved, "at most")


def test_all_damaged_is_an_error_and_never_a_new_start(saved: Path) -> None:
    for path in saved.glob(f"*/{ARRAYS}"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"000000000200.*000000000100.*put back"):
        Checkpointer(saved).load()
    assert len(list(saved.glob(f"*/{ARRAYS}"))) == 2


def test_other_files_are_left_alone(saved: Path) -> None:
    (saved / "000000000999").write_text("a file")
    (saved / "notes").mkdir()
    assert_is(load(saved), 200)
    assert (saved / "notes").exists()


# -- A killed process

# Imports jax once; then at each line read a child of it begins to save and must be killed.
SAVER = """
import os, sys, numpy as np
from pathlib import Path
from pronk.storage.checkpoint import Checkpointer
for _ in sys.stdin:
    child = os.fork()
    if child:
        print(child, flush=True)
        os.waitpid(child, 0)
        print("dead", flush=True)
        continue
    saver = Checkpointer(Path(sys.argv[1]), keep=2)
    loaded = saver.load()
    steps = loaded.steps if loaded else 0
    while os.getppid() != 1:
        steps += 1
        w, n = np.full(200_000, steps), np.full((), steps)
        saver.save(steps, {"t": {"w": w, "n": n}}, {"s": steps})
"""


@pytest.mark.faults
def test_kill_9_in_mid_save(tmp_path: Path) -> None:
    rng = random.Random(0)
    before = interrupted = 0
    process = subprocess.Popen(
        [sys.executable, "-c", SAVER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(checkpoint.__file__).parents[1])},
        text=True,
        bufsize=1,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(20):
            process.stdin.write("again\n")
            child = int(process.stdout.readline())
            time.sleep(0.05 + rng.random() / 10)
            os.kill(child, signal.SIGKILL)
            assert process.stdout.readline() == "dead\n"
            interrupted += bool(list(tmp_path.glob(".tmp-*")))
            loaded = Checkpointer(tmp_path).load()
            assert not list(tmp_path.glob(".tmp-*"))
            if loaded is None:  # killed before its first save was complete
                assert before == 0
                continue
            assert loaded.warnings == []
            tree = loaded.tree("t")
            assert tree is not None
            assert (tree["w"] == loaded.steps).all()
            assert tree["n"] == loaded.meta["s"] == loaded.steps >= before
            before = loaded.steps
        process.stdin.close()
    assert before > 10
    assert interrupted, "no kill came during a write: this test has shown nothing"


# At each line read, a child saves once more and is killed at so many-eth file operation.
AT_EACH = """
import os, signal, sys, numpy as np
from pathlib import Path
from pronk.storage.checkpoint import Checkpointer
path = sys.argv[1]
for line in sys.stdin:
    if child := os.fork():
        print(os.waitpid(child, 0)[1], flush=True)
        continue
    saver = Checkpointer(Path(path), keep=1)
    steps = saver.load().steps + 1
    left = int(line)
    def count(event, args):
        global left
        ours = event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
        if ours and path in str(args):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    saver.save(steps, {"t": {"n": np.full(1000, steps)}}, {}, block=True)
    os._exit(0)
"""


@pytest.mark.faults
def test_kill_9_at_every_file_operation_of_a_save(tmp_path: Path) -> None:
    Checkpointer(tmp_path).save(1, {"t": {"n": np.full(1000, 1)}}, {}, block=True)
    process = subprocess.Popen(
        [sys.executable, "-c", AT_EACH, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(checkpoint.__file__).parents[1])},
        text=True,
        bufsize=1,
    )
    before, operation, kept = 1, 0, 0
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        while True:
            operation += 1
            process.stdin.write(f"{operation}\n")
            status = int(process.stdout.readline())
            loaded = Checkpointer(tmp_path).load()
            assert loaded is not None
            assert loaded.warnings == []
            assert loaded.steps in (before, before + 1)
            tree = loaded.tree("t")
            assert tree is not None
            assert (tree["n"] == loaded.steps).all()
            kept += loaded.steps == before
            before = loaded.steps
            if status == 0:
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
        process.stdin.close()
    assert operation > 6
    assert 3 < kept < operation  # killed before the new one was in place, and after


# -- Writes that fail


@pytest.mark.faults
@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_failed_write_is_told_and_leaves_the_previous(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    saver = save_some(tmp_path, 100)

    def fail(*args: Any, **options: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if call == "fsync" else (Path, call)), fail)
        saver.save(200, {"learner": np.ones(1)}, {})
        with pytest.raises(UserError) as raised:
            saver.save(300, {"learner": np.ones(1)}, {})
        assert not list(tmp_path.glob(".tmp-*"))
    assert str(tmp_path) in str(raised.value)
    assert os.strerror(code) in str(raised.value)
    assert "--run-dir" in str(raised.value)
    saver.wait()  # told once
    assert_is(load(tmp_path), 100)
    save_some(tmp_path, 200)  # and it goes on when there is room again
    assert_is(load(tmp_path), 200)


def test_a_failed_replacement_leaves_the_one_it_would_replace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = save_some(tmp_path, 100)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.startswith(".tmp-"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(UserError):
        saver.save(100, {"learner": np.ones(1)}, {}, block=True)
    assert_is(load(tmp_path), 100)


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    saver = Checkpointer(tmp_path / "checkpoints")
    saver.save(1, {"t": np.ones(1)}, {})
    with pytest.raises(UserError, match="move away the file"):
        saver.close()
    assert (tmp_path / "checkpoints").read_text() == "in the way"


@pytest.mark.faults
def test_a_really_full_disk(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small tmpfs cannot be mounted here")
    try:
        saver = save_some(small / "checkpoints", 100)
        with pytest.raises(UserError, match="free some space"):
            saver.save(200, {"learner": np.ones(100_000)}, {}, block=True)
        assert not list(small.glob("checkpoints/.tmp-*"))
        assert_is(load(small / "checkpoints"), 100)
    finally:
        subprocess.run(["umount", str(small)], check=True)


# -- Templates that don't fit


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"n": 0, "w": np.zeros((2, 3))}, r"learner/n` it holds int32\[\] where int64\[\]"),
        (
            {"n": np.int32(0), "w": np.zeros((3, 2), np.float32)},
            r"learner/w` it holds float32\[2, 3\] where float32\[3, 2\] is expected",
        ),
        ({"n": np.int32(0)}, r"learner/w` it holds float32\[2, 3\] where nothing is expected"),
        (
            {"n": np.int32(0), "w": np.zeros((2, 3), np.float32), "b": np.zeros(2)},
            r"learner/b` it holds nothing where float64\[2\] is expected",
        ),
        ({"n": jax.random.key(0), "w": 0}, r"learner/n` it holds int32\[\] where key<fry>\[\]"),
    ],
)
def test_a_template_that_does_not_fit(tmp_path: Path, template: Any, message: str) -> None:
    save_some(tmp_path, 100)
    with pytest.raises(UserError, match=message):
        load(tmp_path).restore("learner", template)


def test_keys_fit_only_keys_of_their_kind(tmp_path: Path) -> None:
    Checkpointer(tmp_path).save(1, {"k": jax.random.key(0)}, {}, block=True)
    for template in (np.zeros(2, np.uint32), jax.random.key(0, impl="rbg")):
        with pytest.raises(UserError, match="`k` it holds key<fry>"):
            load(tmp_path).restore("k", template)


def test_an_unknown_tree_is_named(tmp_path: Path) -> None:
    save_some(tmp_path, 100)
    with pytest.raises(UserError, match="holds no `lerner`; it holds learner"):
        load(tmp_path).restore("lerner", {})


# -- Digests


def test_digest_survives_a_round_trip(tmp_path: Path) -> None:
    tree = everything()
    Checkpointer(tmp_path).save(5, {"learner": tree}, {}, block=True)
    loaded = load(tmp_path)
    assert digest(tree) == digest(loaded.restore("learner", tree)) == digest(loaded.tree("learner"))


def test_digest_does_not_depend_on_order_or_memory_layout() -> None:
    a, b = np.arange(6).reshape(2, 3), np.ones(2)
    left, right = OrderedDict(a=a, b=b), OrderedDict(b=b, a=np.asfortranarray(a))
    assert digest(left) == digest(right) == digest({"b": b[::-1], "a": a})


@pytest.mark.parametrize(
    "other",
    [
        {"a": np.zeros((2, 3), np.float32), "c": np.zeros(0)},
        {"a": np.zeros((3, 2), np.float32), "b": np.zeros(0)},
        {"a": np.zeros((2, 3), np.int32), "b": np.zeros(0)},
        {"a": np.full((2, 3), -0.0, np.float32), "b": np.zeros(0)},
        {"a": np.zeros((2, 3), np.float32)},
        {"a": np.zeros((2, 3), np.float32), "b": np.zeros((0, 1))},
    ],
)
def test_digest_tells_any_difference(other: Any) -> None:
    assert digest({"a": np.zeros((2, 3), np.float32), "b": np.zeros(0)}) != digest(other)
