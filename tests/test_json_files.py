"""Files that are not what they should be: each is one sentence, never a traceback."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pronk import cli
from pronk.config import json_files
from pronk.config.json_files import MissingJSON, UnreadableJSON, parse_object, read_object
from pronk.config.spec import Plan, run_of
from pronk.errors import UserError, printable
from pronk.run import plot as plots
from pronk.run import plot_population
from pronk.run.inspect import inspect
from pronk.run.resolve import resolve
from pronk.storage.array_file import ArrayFile, write_arrays
from pronk.storage.checkpoint import SCHEMA, Checkpointer
from pronk.storage.files import read_lines
from pronk.storage.journal import read_events

# -- The loader


def test_what_is_an_object_is_read(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, "é\u2028"], "b": {"c": 10**299}}
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert read_object(tmp_path / "a.json") == value
    with pytest.raises(MissingJSON, match="there is no `"):
        read_object(tmp_path / "b.json")
    with pytest.raises(MissingJSON):
        read_object(tmp_path / "a.json" / "b.json")


WRONG = {
    "empty": (b"", "not JSON"),
    "torn": (b'{"a": 1', "not JSON"),
    "list": (b"[1]", "not a JSON object"),
    "number": (b"1", "not a JSON object"),
    "latin-1": ('{"a": "é"}'.encode("latin-1"), "not UTF-8"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "byte order mark": (b"\xef\xbb\xbf{}", "not JSON"),
    "zeros": (bytes(100), "not JSON"),
    "deep": (b'{"a": ' * 70 + b"1" + b"}" * 70, "nested more than 64 deep"),
    "very deep": (b"[" * 100_000, "nested more than 64 deep"),
    "digits": (b'{"a": ' + b"9" * 301 + b"}", "more than 300 digits"),
    "many digits": (b'{"a": ' + b"9" * 10_000 + b"}", "more than 300 digits"),
    "huge": (b'{"a": "' + b"x" * 2**24 + b'"}', "more than 16,777,216 bytes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_none_is_said(name: str, tmp_path: Path) -> None:
    data, message = WRONG[name]
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(UnreadableJSON, match=rf"a\.json` can't be read \(.*{message}"):
        read_object(tmp_path / "a.json")
    with pytest.raises(UnreadableJSON, match=message):
        parse_object(data, "here")


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("directory", "Is a directory"),
        ("loop", "symbolic links"),
        ("pipe", "not a regular file"),  # and nothing waits for a writer
        ("x" * 300, "name too long"),
        ("nul\0", "null byte"),
    ):
        with pytest.raises(UnreadableJSON, match=message):
            read_object(tmp_path / name)
        assert not json_files.holds(tmp_path, name)
    with pytest.raises(UnreadableJSON, match="not a regular file"):
        read_object(Path("/dev/zero"))


def test_lines_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'{"a": 1}\n[]\n\xff\n{"a": 2}\n{"a": 3}')
    found = [value for _, value in json_files.read_lines(path)]
    assert [v for v in found if isinstance(v, dict)] == [{"a": 1}, {"a": 2}]
    assert [str(v) for v in found if not isinstance(v, dict)] == [
        "it is not a JSON object",
        "it is not UTF-8",
    ]
    monkeypatch.setattr(json_files, "MAX_BYTES", 5)
    with pytest.raises(UnreadableJSON, match="a line of more than 5 bytes"):
        list(json_files.read_lines(path))
    monkeypatch.setattr(json_files, "MAX_FILE", 5)
    with pytest.raises(UnreadableJSON, match="more than 5 bytes, the most that pronk reads"):
        list(json_files.read_lines(path))


# -- All readers, under random damage

EVENTS = [
    {"event": "start", "member": 0, "seed": 1, "hyper": {"learning_rate": 0.1, "discount": 0.9}},
    {"event": "start", "member": 1, "seed": 2, "hyper": {"learning_rate": 0.2, "discount": 0.9}},
    *(
        {
            "event": "ready",
            "generation": g + 1,
            "member": m,
            "steps": 100 * g + 100,
            "episodes": 3,
            "score": 1.5 + g,
            "error": 0.1,
            "donor": 1 - m if g == m else None,
            "donor_steps": 100 * g + 100 if g == m else None,
            "before": {},
            "after": {"learning_rate": 0.3, "discount": 0.95},
            "factors": {"learning_rate": 1.2},
            "tally": {"total": [1.0], "squares": [1.0], "count": [1]},
        }
        for g in range(3)
        for m in range(2)
    ),
    {
        "event": "end",
        "member": 0,
        "steps": 400,
        "episodes": 9,
        "score": 9.0,
        "error": None,
        "hyper": {"learning_rate": 0.3, "discount": 0.95},
    },
]
RECORDS = [
    {"steps": 100 * i, "wall_seconds": 0.5 * i, "mean_return": float(i), "bound_by": "learner"}
    for i in range(1, 6)
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that is a run and a population, as far as their readers look."""
    directory = tmp_path_factory.mktemp("whole")
    described = resolve("impala", "CartPole-v1", preset="small", run_dir=directory).described()
    files = {
        "config.json": [described],
        "metrics.jsonl": RECORDS,
        "summary.json": [{"best_run": "members/00", "wall_seconds": 1.0}],
        "pbt.json": [{"plan": described, "pbt": {}, "one_program": True}],
        "journal.jsonl": EVENTS,
    }
    for name, values in files.items():
        (directory / name).write_text("".join(json.dumps(v) + "\n" for v in values))
    (directory / "checkpoints").mkdir()
    (directory / "checkpoints" / "000000000010.safetensors").touch()
    return directory


def draw_population(directory: Path) -> None:
    """All of it but the drawing."""
    lines = plot_population.member_lines(read_events(directory))
    best = plot_population.best_member(lines)
    if best is not None:
        plot_population.ancestry(lines, best)
    plot_population._title(directory, 2)
    plot_population._near_one(directory)


def curves(directory: Path) -> None:
    runs = [plots._read(directory, x, "mean_return") for x in ("steps", "wall_seconds")]
    plots._by_settings(runs)
    plots._as_csv(runs, "mean_return")
    for run in runs:
        plots._smoothed(run.y, 3)


def check_same(directory: Path) -> None:
    plan = resolve("impala", "CartPole-v1", preset="small", run_dir=directory)
    plan.check_same(directory)


READERS: dict[str, tuple[Callable[[Path], Any], ...]] = {
    "config.json": (Plan.load, curves, check_same),
    "metrics.jsonl": (curves, lambda path: read_lines(path / "metrics.jsonl")),
    "summary.json": (run_of,),
    "pbt.json": (draw_population,),
    "journal.jsonl": (draw_population,),
}
DEEP: Any = 1
for _ in range(100):
    DEEP = [DEEP]
ODD = [
    *(None, True, 0, -1, 3, 1.5, 1e-300, 1e308, float("nan"), float("inf"), 2**64, -(10**299)),
    *("", "x", "impala", "a.b", "\x1b[2J\n\u202e", "\ud800", "é" * 5000, "$\\frac{$", "members/99"),
    *([], {}, [[]], {"": {}}, {"a": 1}, [1, "a"], DEEP),
]


def mutated(value: Any, rng: random.Random) -> Any:
    """A copy with one of its parts replaced, removed or added."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []

    def collect(inner: Any) -> None:
        keys = inner if isinstance(inner, dict) else range(len(inner))
        for key in list(keys):
            places.append((inner, key))
            if isinstance(inner[key], dict | list):
                collect(inner[key])

    collect(value)
    holder, key = rng.choice(places)
    what = rng.randrange(4)
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[rng.choice(["", "steps", "\x1b[2J", "x" * 1000])] = rng.choice(ODD)
    else:
        holder[key] = rng.choice(ODD)
    return value


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes that are cut, changed or enlarged somewhere."""
    at = rng.randrange(len(data) + 1)
    inserted = rng.choice([b"\xff", b"\0", b"\n", b"[" * 2000, b"9" * 400, b"{", b'"', b"\xed\xa0"])
    return rng.choice([data[:at], data[:at] + inserted + data[at:], data[:at] + data[at + 1 :]])


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(name: str, whole: Path) -> None:
    """200 random changes of each file: every reader copes, or raises UserError."""
    rng = random.Random(name)
    path = whole / name
    right = path.read_bytes()
    values = [json.loads(line) for line in right.splitlines()]
    refused = 0
    # Where a population is, there is no run to be compared with, and none to be found.
    moved = {"config.json": "pbt.json"}.get(name)
    if moved:
        (whole / moved).rename(whole / "moved")
    try:
        for i in range(200):
            if i % 3:
                changed = mutated(values, rng)
                data = "".join(json.dumps(v) + "\n" for v in changed).encode()
            else:
                data = damaged(right, rng)
            path.write_bytes(data)
            for read in READERS[name]:
                try:
                    read(whole)
                except UserError:
                    refused += 1
    finally:
        path.write_bytes(right)
        if moved:
            (whole / "moved").rename(whole / moved)
    assert refused > 20 or name not in ("config.json", "journal.jsonl")


def test_checkpoints_with_other_contents_are_refused(tmp_path: Path) -> None:
    """With the right checksum: what a stranger made on purpose."""
    rng = random.Random(0)
    plan = resolve("impala", "CartPole-v1", preset="small", run_dir=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(plan.described()))
    path = tmp_path / "checkpoints" / "000000000010.safetensors"
    learner = {
        "updates": np.int32(1),
        "skipped": np.int32(0),
        "params": {"w": np.zeros(3)},
        "hyper": {"learning_rate": np.float32(1)},
    }
    manifest = {
        "schema": SCHEMA,
        "pronk": "1",
        "steps": 10,
        "meta": {"episodes": 3, "wall_seconds": 1.5},
    }
    write_arrays(path, {"learner": learner}, {"checkpoint": json.dumps(manifest)})
    assert inspect(tmp_path)["episodes"] == 3
    for i in range(200):
        texts = {"checkpoint": json.dumps(manifest if i % 2 else mutated(manifest, rng))}
        trees: Any = {"learner": mutated(learner, rng) if i % 2 else learner}
        try:
            write_arrays(path, trees, texts)
        except (TypeError, ValueError, OverflowError):  # not an array, so never in such a file
            continue
        with contextlib.suppress(UserError):
            inspect(tmp_path)


@pytest.mark.parametrize("steps", ["", "x", "-1", "1.5", "9" * 30, "9" * 5000, "²"])
def test_an_exported_file_with_an_absurd_number_is_refused(steps: str, tmp_path: Path) -> None:
    from pronk.run.policy import load

    plan = resolve("impala", "CartPole-v1", preset="small").as_json()
    path = tmp_path / "a.safetensors"
    write_arrays(path, {"behaviour": {}}, {"plan": json.dumps(plan), "steps": steps})
    with pytest.raises(UserError, match="holds no policy"):
        load(path)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("hidden_sizes", [10**200]), ("unroll", 10**30), ("learning_rate", 1e300), ("seed", -1)],
)
def test_an_exported_file_with_an_absurd_setting_is_refused(
    setting: str, value: Any, tmp_path: Path
) -> None:
    from pronk.run.policy import load

    plan = resolve("impala", "CartPole-v1", preset="small").as_json()
    plan["run" if setting == "seed" else "agent_config"][setting] = value
    path = tmp_path / "a.safetensors"
    write_arrays(path, {"behaviour": {}}, {"plan": json.dumps(plan), "steps": "5"})
    flag = f"--{setting.replace('_', '-')}"
    with pytest.raises(UserError, match=rf"a.safetensors can't be used: `{flag}` is "):
        load(path)


def test_an_array_within_an_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_arrays(path, {"learner": {"a": np.zeros(1), "a/b": np.zeros(1)}}, {})
    with pytest.raises(UserError, match=r"has (both `a` and `learner/a/b`|two of `learner/a`)"):
        ArrayFile(path).tree("learner")


def test_nested_texts_of_array_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "000000000010.safetensors"
    write_arrays(path, {"learner": {}}, {"checkpoint": '{"a":' * 100_000})
    with pytest.raises(UserError, match="nested more than 64 deep"):
        Checkpointer(path.parent).load()


# -- Pictures of odd numbers and names


def test_odd_numbers_and_names_are_drawn(whole: Path, tmp_path: Path) -> None:
    records = [
        {"steps": 10**99, "mean_return": -1e99},
        {"steps": True, "mean_return": 1},
        {"steps": 5, "mean_return": 10**299},
        {"steps": 7, "mean_return": 1e-300, "$x$ \x1b": 1},
    ]
    run = tmp_path / "$\\frac{$ \x1b[2J"
    run.mkdir()
    config = {"agent": "$\\alpha$ \x1b\n" * 500, "env": [[{}]], "run": {"seed": "\ud800"}}
    (run / "config.json").write_text(json.dumps(config | {"$_^": 1}))
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    output, csv = tmp_path / "a.svg", tmp_path / "a.csv"
    for title in (
        "$\\frac{",
        "$\\undefined$",
        "$" + "{" * 5000 + "$",
        "\x1b[2J\nnext",
        "x" * 10**6,
    ):
        plots.plot([run], output, title=title, csv=csv)
        assert output.stat().st_size > 1000
    plots.plot([run, whole], output, y="mean_return", title="$\\gamma = 0.9$ é")
    with pytest.raises(UserError, match="no metric"):
        plots.plot([run], output, y="\x1b[2J")


def test_a_journal_in_circles_is_drawn(whole: Path, tmp_path: Path) -> None:
    """Members that copy one another from later than that; hyperparameters that some lack."""
    events = copy.deepcopy(EVENTS)
    for event in events:
        if event.get("donor") is not None:
            event["donor_steps"] = 400
    del events[1]["hyper"]["discount"]
    events[-1]["score"] = 1e99
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    (tmp_path / "pbt.json").write_text('{"plan": {"agent": "$\\\\frac{$", "env": [[]]}}')
    assert plot_population.draw(tmp_path, tmp_path / "a.png").stat().st_size > 1000
    plot_population.draw(whole, tmp_path / "a.png", title="$\\frac{ \x1b")
    for event in events[:2]:
        event["hyper"] = {f"h{i}": 0.5 for i in range(1000)}
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    with pytest.raises(UserError, match="1000 hyperparameters; expected at most 100"):
        plot_population.draw(tmp_path, tmp_path / "a.png")


# -- What the command line says of them


def test_commands_on_what_is_no_run(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("here")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").mkdir()
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / "config.json").write_bytes(b'{"a": "\xe9"}')
    for command in ("eval", "record", "inspect", "plot", "export"):
        for name in ("file", "loop", "odd", "latin", "none", "x" * 300, "a\nb\x1b[2J"):
            args = [command, str(tmp_path / name)]
            args += [str(tmp_path / "a.safetensors")] if command == "export" else []
            with pytest.raises(SystemExit) as caught:
                cli.main(args)
            assert caught.value.code == 2, (command, name)
            error = capsys.readouterr().err
            assert error.startswith("pronk: ")
            assert error.count("\n") == 1
            assert error[:-1].isprintable()


FOREIGN = "\x1b[2J\nfinished at 10 steps \u202e"


def test_what_a_run_says_of_itself_is_escaped(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((whole / "config.json").read_text())
    config["run"]["actor_resource"] = FOREIGN
    config["versions"] = {FOREIGN: FOREIGN}
    (tmp_path / "config.json").write_text(json.dumps(config))
    learner = {
        "updates": np.int32(1),
        "skipped": np.int32(0),
        "params": {},
        "hyper": {FOREIGN: np.float32(1)},
    }
    manifest = {"schema": SCHEMA, "pronk": "1", "steps": 10, "meta": {"episodes": 3}}
    manifest["meta"] = {"episodes": 3, "wall_seconds": 1.5}
    path = tmp_path / "checkpoints" / "000000000010.safetensors"
    write_arrays(path, {"learner": learner}, {"checkpoint": json.dumps(manifest)})
    cli.main(["inspect", str(tmp_path)])
    shown = capsys.readouterr().out
    assert not {"\x1b", "\u202e"} & set(shown)
    assert not [line for line in shown.splitlines() if line.startswith("finished")]
    assert shown.count(r"\x1b[2J\nfinished at 10 steps \u202e") >= 3
    config["agent"] = FOREIGN
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit):
        cli.main(["inspect", str(tmp_path)])
    assert r"\x1b[2J\nfinished at 10 steps \u202e" in capsys.readouterr().err


def test_printable() -> None:
    assert printable("Ünï ✓ ± 'x'") == "Ünï ✓ ± 'x'"
    assert printable("a\tb\r\n\x7f\x9b\u2028\u200f\udcff") == r"a\tb\r\n\x7f\x9b\u2028\u200f\udcff"
    assert str(UserError("a\nb")) == r"a\nb"
    assert printable(printable("\x1b")) == printable("\x1b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise RuntimeError('no\\x1b[2J')", r"RuntimeError: no\\x1b"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def", "SyntaxError"),
        ("x = undefined", "NameError"),
        ("import nothing_of_the_kind", "ModuleNotFoundError: No module named 'nothing_of"),
    ],
)
@pytest.mark.parametrize("name", ["broken", "broken.inner"])
def test_modules_that_raise(
    name: str,
    text: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "__init__.py").write_text(text)
    (tmp_path / "broken" / "inner.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for args in ([name, "CartPole-v1"], ["impala", f"{name}:A-v0"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(["train", *args, "--run-dir", str(tmp_path / "run")])
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert message.replace("\\\\", "\\") in error
        assert "can't be imported" in error
        assert error.count("\n") == 1
