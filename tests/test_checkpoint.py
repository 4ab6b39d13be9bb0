"""Checkpoints: nothing is lost, nothing damaged is loaded, nothing valid is thrown away."""

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
import safetensors
import safetensors.numpy

from pronk.errors import UserError
from pronk.storage import array_file, checkpoint, files
from pronk.storage.array_file import HostTrees, UnreadableFile, digest
from pronk.storage.checkpoint import Checkpointer


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
    state = {"a": Point(np.arange(2), [np.ones(1), None]), "b/c": {7: np.zeros(2)}, "d": {}}
    trees = {"env0": state, "none": None, "bare": np.arange(3), "key": jax.random.key(1)}
    Checkpointer(tmp_path).save(5, trees, {}, block=True)
    loaded = load(tmp_path)
    tree = loaded.tree("env0")
    assert tree is not None
    assert tree.keys() == {"a", "b", "d"}
    assert tree["a"].keys() == {"x", "y"}
    assert tree["a"]["y"].keys() == {"0", "1"}
    assert tree["a"]["y"]["1"] is None
    assert tree["d"] == {}
    np.testing.assert_array_equal(tree["b"]["c"]["7"], np.zeros(2))
    assert loaded.tree("none") is None
    assert loaded.tree("never saved") is None
    np.testing.assert_array_equal(loaded.tree("bare"), np.arange(3))
    np.testing.assert_array_equal(loaded.tree("key"), jax.random.key_data(jax.random.key(1)))
    assert loaded.names == ["bare", "env0", "key", "none"]


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
        {"a/b": np.zeros(1), "a": {"c": np.ones(1)}},
        {"a%2Fb": np.zeros(1), "a/b": np.ones(1), "": np.ones(2)},
        {1: np.zeros(1), 20: np.ones(1)},
    ],
)
def test_any_dict_keys_come_back_by_template(tmp_path: Path, tree: Any) -> None:
    Checkpointer(tmp_path).save(5, {"t": tree, "ta": tree}, {}, block=True)
    loaded = load(tmp_path)
    assert_same(tree, loaded.restore("t", tree))
    assert_same(tree, loaded.restore("ta", tree))


@pytest.mark.parametrize(
    "trees",
    [
        {"t": {"a/b": np.zeros(1), "a": {"b": np.ones(1)}}},
        {"t": OrderedDict([(1, np.zeros(1)), ("1", np.ones(1))])},
        {"t/a": np.zeros(1)},
    ],
)
def test_names_that_collide_are_refused_at_once(tmp_path: Path, trees: Any) -> None:
    with pytest.raises(ValueError, match=r"both called `t/(a/b|1)`|cannot be named 't/a'"):
        Checkpointer(tmp_path).save(5, trees, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("leaf", ["text", 2**100, object(), np.zeros(1, np.complex128)])
def test_what_cannot_be_saved_is_named_at_once(tmp_path: Path, leaf: Any) -> None:
    with pytest.raises(TypeError, match="env/rng"):
        Checkpointer(tmp_path).save(5, {"env": {"rng": leaf}}, {})
    assert not list(tmp_path.iterdir())


def test_nothing_saved_is_none_and_creates_nothing(tmp_path: Path) -> None:
    assert Checkpointer(tmp_path / "absent").load() is None
    assert not (tmp_path / "absent").exists()
    assert Checkpointer(tmp_path).load() is None


def test_an_array_in_two_trees_is_stored_once(tmp_path: Path) -> None:
    w, key = jnp.ones((100, 100)), jax.random.key(3)
    trees = {"learner": {"w": w, "key": key}, "behaviour": [w, key, w + 1]}
    Checkpointer(tmp_path).save(5, trees, {}, block=True)
    assert (tmp_path / "000000000005.safetensors").stat().st_size < 3 * w.nbytes
    loaded = load(tmp_path)
    assert_same(trees["learner"], loaded.restore("learner", trees["learner"]))
    behaviour = loaded.restore("behaviour", trees["behaviour"])
    assert_same(trees["behaviour"], behaviour)
    behaviour[0] += 1
    assert_same(trees["learner"], loaded.restore("learner", trees["learner"]))


def test_a_checkpoint_is_one_safetensors_file(tmp_path: Path) -> None:
    Checkpointer(tmp_path).save(5, {"learner": {"w": np.ones((2, 3))}}, {"a": 1}, block=True)
    (path,) = tmp_path.iterdir()
    assert path.name == "000000000005.safetensors"
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)["learner/w"], np.ones((2, 3)))
    with safetensors.safe_open(path, "numpy") as file:
        manifest = json.loads(file.metadata()["checkpoint"])
    assert manifest["schema"] == checkpoint.SCHEMA
    assert (manifest["steps"], manifest["meta"]) == (5, {"a": 1})


def test_checkpoints_of_the_first_schema_are_refused(tmp_path: Path) -> None:
    (tmp_path / "000000000005").mkdir()
    (tmp_path / "000000000005" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"schema 1, written by an earlier pronk; .* new run"):
        Checkpointer(tmp_path).load()


# -- Asynchrony


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Holds back every write until it is set."""
    event = threading.Event()
    write = files.write_and_sync

    def held(path: Path, *parts: Any) -> None:
        path.touch()
        assert event.wait(20)
        write(path, *parts)

    monkeypatch.setattr(files, "write_and_sync", held)
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
    assert not (tmp_path / "000000000001.safetensors").exists()
    second = threading.Thread(target=saver.save, args=(2, {"t": np.ones(1)}, {}))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    gate.set()
    second.join(20)
    assert (tmp_path / "000000000001.safetensors").exists()
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
    assert sorted(p.stem for p in tmp_path.iterdir()) == ["000000000100", "000000002000"]


def test_nothing_is_deleted_before_the_new_one_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Checkpointer(tmp_path, keep=1)
    saver.save(1, {"t": np.ones(1)}, {}, block=True)
    in_place = []
    unlink = Path.unlink

    def watched(self: Path, missing_ok: bool = False) -> None:
        in_place.append((tmp_path / "000000000002.safetensors").exists())
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    saver.save(2, {"t": np.ones(1)}, {}, block=True)
    assert in_place
    assert all(in_place)
    assert not (tmp_path / "000000000001.safetensors").exists()


def test_saving_after_going_back_keeps_the_new_one(tmp_path: Path) -> None:
    save_some(tmp_path, 100, 200, 300)
    (tmp_path / "000000000300.safetensors").write_bytes(b"")
    saver = Checkpointer(tmp_path, keep=1)
    trees = {"learner": {"w": np.full((2, 3), 250, np.float32), "n": np.int32(250)}}
    saver.save(250, trees, {"steps": 250}, block=True)
    assert not (tmp_path / "000000000200.safetensors").exists()
    assert_is(load(tmp_path), 250)


def test_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path)
    saver.save(1, {"t": np.zeros(1)}, {"try": 1}, block=True)
    saver.save(1, {"t": np.ones(1)}, {"try": 2}, block=True)
    assert load(tmp_path).meta == {"try": 2}
    assert [p.stem for p in tmp_path.iterdir()] == ["000000000001"]


def test_temporaries_of_a_killed_writer_are_removed_by_the_next_save(
    tmp_path: Path, gate: threading.Event
) -> None:
    stale = tmp_path / ".tmp-000000000009.safetensors-1"
    stale.write_bytes(b"half")
    saver = Checkpointer(tmp_path)
    saver.save(1, {"t": np.ones(1)}, {})
    while stale.exists() or not list(tmp_path.glob(".tmp-*")):
        time.sleep(0.01)
    assert Checkpointer(tmp_path).load() is None  # a reader, such as `pronk inspect`
    assert list(tmp_path.glob(".tmp-*"))  # which leaves the file in progress alone
    gate.set()
    saver.close()
    assert [p.stem for p in tmp_path.iterdir()] == ["000000000001"]


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


@pytest.fixture
def newest(saved: Path) -> Path:
    return saved / "000000000200.safetensors"


def assert_falls_back(directory: Path, reason: str = "") -> None:
    loaded = load(directory)
    assert_is(loaded, 100)
    assert len(loaded.warnings) == 1
    assert "000000000200" in loaded.warnings[0]
    assert reason in loaded.warnings[0]


@pytest.mark.faults
@pytest.mark.parametrize("bit", [0, 5, 7])
def test_a_flipped_bit_is_detected_anywhere(saved: Path, newest: Path, bit: int) -> None:
    intact = newest.read_bytes()
    for offset in OFFSETS:
        damaged = bytearray(intact)
        damaged[offset % len(intact)] ^= 1 << bit
        newest.write_bytes(damaged)
        assert_falls_back(saved)
    newest.write_bytes(intact)
    assert_is(load(saved), 200)


def test_every_byte_of_the_file(newest: Path) -> None:
    intact = newest.read_bytes()
    for offset in range(len(intact)):
        damaged = bytearray(intact)
        damaged[offset] ^= 1 << (offset % 8)
        newest.write_bytes(damaged)
        with pytest.raises(UnreadableFile):
            checkpoint._read(newest)


@pytest.mark.faults
def test_a_truncated_or_longer_file_is_detected(saved: Path, newest: Path) -> None:
    intact = newest.read_bytes()
    for length in [*range(0, len(intact), 17), len(intact) - 1]:
        newest.write_bytes(intact[:length])
        assert_falls_back(saved)
    newest.write_bytes(intact + b"\0")
    assert_falls_back(saved)
    newest.unlink()
    os.mkfifo(newest)  # reading one would wait for ever
    assert_falls_back(saved, "is not a regular file")


def reseal(path: Path, **changes: Any) -> None:
    """Change the manifest of a checkpoint as somebody would who knows the format, hash included."""
    with safetensors.safe_open(path, "numpy") as file:
        meta = file.metadata()
    manifest = json.loads(meta["checkpoint"]) | changes
    meta |= {"checkpoint": json.dumps(manifest)}
    arrays = safetensors.numpy.load_file(path)
    path.write_bytes(b"".join(array_file.encode(HostTrees(arrays, {}, {}), meta)))


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
        b"".join(array_file.encode(HostTrees({}, {}, {}), {})),
        b"".join(array_file.encode(HostTrees({}, {}, {}), {"checkpoint": "["})),
        b"".join(array_file.encode(HostTrees({}, {}, {}), {"checkpoint": "[" * 200_000})),
    ],
)  # fmt: skip
def test_a_foreign_file_is_refused(saved: Path, newest: Path, data: bytes) -> None:
    newest.write_bytes(data)
    assert_falls_back(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 3, "pronk": "9.1"},
        {"schema": "2"},
        {"steps": 300},
        {"steps": "200"},
        {"steps": None},
    ],
)
def test_a_foreign_manifest_with_right_hash_is_refused(
    saved: Path, newest: Path, changes: Any
) -> None:
    reseal(newest, **changes)
    assert_falls_back(saved, "schema" if "schema" in changes else "")
    if "pronk" in changes:
        assert_falls_back(saved, "by pronk 9.1 with schema 3, and this pronk reads schema 2")


def test_sizes_are_compared_before_anything_is_read(saved: Path, newest: Path) -> None:
    with open(newest, "r+b") as file:
        file.truncate(1 << 42)  # sparse; reading it would need 4 TiB
    assert_falls_back(saved, "is not a safetensors file")


def test_all_damaged_is_an_error_and_never_a_new_start(saved: Path) -> None:
    for path in saved.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"000000000200.*000000000100.*put back"):
        Checkpointer(saved).load()
    assert len(list(saved.iterdir())) == 2


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
        env=os.environ | {"PYTHONPATH": str(Path(checkpoint.__file__).parents[2])},
        text=True,
        bufsize=1,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(20):
            assert len(list(tmp_path.glob(".tmp-*"))) <= 1
            process.stdin.write("again\n")
            child = int(process.stdout.readline())
            time.sleep(0.05 + rng.random() / 10)
            os.kill(child, signal.SIGKILL)
            assert process.stdout.readline() == "dead\n"
            interrupted += bool(list(tmp_path.glob(".tmp-*")))
            loaded = Checkpointer(tmp_path).load()
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
        env=os.environ | {"PYTHONPATH": str(Path(checkpoint.__file__).parents[2])},
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
    assert operation > 3
    assert 1 < kept < operation  # killed before the new one was in place, and after


# -- Writes that fail


@pytest.mark.faults
@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_failed_write_is_reported_and_leaves_the_previous(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    saver = save_some(tmp_path, 100)

    def fail(*args: Any, **options: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, call, fail)
        saver.save(200, {"learner": np.ones(1)}, {})
        with pytest.raises(UserError) as raised:
            saver.save(300, {"learner": np.ones(1)}, {})
        assert not list(tmp_path.glob(".tmp-*"))
    assert str(tmp_path) in str(raised.value)
    assert os.strerror(code) in str(raised.value)
    assert "--run-dir" in str(raised.value)
    saver.wait()  # reported once
    assert_is(load(tmp_path), 100)
    save_some(tmp_path, 200)  # and it goes on when there is room again
    assert_is(load(tmp_path), 200)


def test_a_failed_replacement_leaves_the_one_it_would_replace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = save_some(tmp_path, 100)

    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "replace", fail)
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
        ({"n": jax.random.key(0), "w": 0}, r"learner/n` it holds int32\[\] where uint32\[2\]"),
    ],
)
def test_a_template_that_does_not_fit(tmp_path: Path, template: Any, message: str) -> None:
    save_some(tmp_path, 100)
    with pytest.raises(UserError, match=message):
        load(tmp_path).restore("learner", template)


def test_keys_fit_only_keys_of_their_kind(tmp_path: Path) -> None:
    Checkpointer(tmp_path).save(1, {"k": jax.random.key(0)}, {}, block=True)
    for template in (np.zeros(2, np.int32), jax.random.key(0, impl="rbg")):
        with pytest.raises(UserError, match=r"`k` it holds uint32\[2\] where"):
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
def test_digest_changes_with_any_difference(other: Any) -> None:
    assert digest({"a": np.zeros((2, 3), np.float32), "b": np.zeros(0)}) != digest(other)
