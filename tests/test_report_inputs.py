"""What `pronk report` is given: tables by hand, damaged runs, a run twice, outputs over inputs."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pronk import cli, report
from pronk.errors import UserError, counted
from pronk.experiments.reproduce import common
from pronk.report import references
from pronk.report.long_csv import read
from pronk.storage import files
from tests.report_runs import FEW, fails, flat, make_run, printed, row, run_report

HEADER = "agent,env,seed,step,metric,score"


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in (HEADER, *lines)))
    return path


def message(path: Path) -> str:
    """Why a CSV is refused."""
    with pytest.raises(UserError) as caught:
        read(path)
    return str(caught.value)


# Tables.


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a,b,0,1,training,1,5", "has 7 cells, and the table 6 columns; expected a cell for each"),
        ('a,b,0,1,training,"1,5"', "has the score '1,5'; expected a finite number, with a decimal"),
        ("a,b,0,10.5,training,1", "has the step '10.5'; expected a whole number, at least 0"),
        ("a,b,0,-1,training,1", "has the step '-1'; expected a whole number, at least 0"),
        ("a,,0,1,training,1", "has no env; expected its name"),
        (" ,b,0,1,training,1", "has no agent; expected its name"),
    ],
)
def test_a_line_of_a_csv_that_is_wrong(tmp_path: Path, line: str, says: str) -> None:
    file = write(tmp_path / "x.csv", "# a comment", "a,b,0,0,training,1", "", line)
    assert f"line 5 of '{file}' {says}" in message(file)


def test_a_line_of_a_csv_after_a_quoted_line_end(tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", 'a,"b\nc",0,0,training,1', "a,b,0,0.5,training,1")
    assert f"line 4 of '{file}' has the step '0.5'" in message(file)


def test_a_column_that_is_named_twice(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text(f"# by hand\n{HEADER},score\na,b,0,1,training,1,2\n")
    assert f"line 2 of '{file}' names the column 'score' 2 times" in message(file)
    file.write_text(f"task,random,reference,random\n{'a,0,1,2'}\n")
    with pytest.raises(UserError, match="names the column 'random' 2 times"):
        references.load(str(file))


def test_whole_numbers_as_people_write_them(tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", "a,b,0,1e6,training,1", "a,b,0,2000000.0,training,1")
    assert [row.step for row in read(file)[0].rows] == [10**6, 2 * 10**6]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (("Pong,0,1", "Pong,0,2"), "line 3 of '{0}' has references for 'Pong', and so has line 2"),
        (("Pong,0,1", "ALE/Pong-v5,0,2"), "has references for 'ALE/Pong-v5', and so has line 2"),
        (("Pong,0,1,5",), "line 2 of '{0}' has 4 cells, and the table 3 columns"),
        ((",0,1",), "line 2 of '{0}' has no task"),
    ],
)
def test_references_that_are_refused(tmp_path: Path, lines: Sequence[str], says: str) -> None:
    file = tmp_path / "refs.csv"
    file.write_text("\n".join(["task,random,reference", *lines]) + "\n")
    with pytest.raises(UserError) as caught:
        references.load(str(file))
    assert says.format(file) in str(caught.value)


def test_a_reference_below_random(tmp_path: Path) -> None:
    file = tmp_path / "refs.csv"
    file.write_text("task,random,reference\na,0,1\nb,5,2\nc,5,\n")
    table = references.load(str(file))
    assert table is not None
    assert table.of(["a", "c"], {"a": 3.0, "c": 6.0}) == {"a": (0.0, 1.0), "c": (5.0, 6.0)}
    with pytest.raises(UserError) as caught:
        table.of(["a", "b", "c"], {"a": 3.0, "b": 7.0, "c": 4.0})
    says = "of 'b' (random play 5, reference 2), 'c' (random play 5, best group 4); expected a ref"
    assert says in str(caught.value)


def test_references_of_published_tables_are_above_random() -> None:
    for name in ("muzero-s1", "agent57", "dqn-zoo", "duan2016"):
        table = references.load(name)
        assert table is not None
        assert all(one > random for random, one in table.table.values() if one is not None)


# A run that is given twice.


def runs_of(*paths: Path) -> list[report.Run]:
    return report.read(paths)


def test_a_csv_that_was_written_from_a_run_is_that_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(Path("runs") / "a", evaluations=(1.0, 2.0, 3.0), status="paused")
    printed(capsys, run, *FEW, "--csv", "z.csv")
    printed(capsys, run, *FEW, "--metric", "training", "--csv", "t.csv")
    make_run(Path("other"), seed=1, evaluations=(1.0, 2.0, 3.0))
    for inputs in ((run, "z.csv"), ("z.csv", tmp_path / run), ("z.csv", "t.csv", run)):
        out = printed(capsys, *inputs, "other", *FEW)
        assert row(out, "ALE/Pong", "impala")[2] == "2", inputs
        assert "duplicate" not in out
    (merged,) = runs_of(Path("z.csv"), Path("t.csv"))
    assert len({(found.metric, found.step) for found in merged.rows}) == 6
    out = printed(capsys, "z.csv", run, "--by", "learning_rate", *FEW)
    assert row(out, "ALE/Pong", "learning_rate=0.01")[2] == "1"


def test_the_same_csv_twice(tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", "a,b,0,1,evaluation,1", "a,b,1,1,evaluation,1")
    copy = tmp_path / "copy.csv"
    shutil.copy(file, copy)
    assert len(runs_of(file, file)) == 2
    assert len(runs_of(file, tmp_path / "." / "x.csv", copy)) == 2


def test_runs_that_differ_are_not_one(tmp_path: Path) -> None:
    one = write(tmp_path / "1.csv", "a,b,0,1,evaluation,1")
    assert len(runs_of(one, write(tmp_path / "2.csv", "a,b,0,1,evaluation,2"))) == 2
    assert len(runs_of(one, write(tmp_path / "3.csv", "a,b,0,2,evaluation,1"))) == 2
    make_run(tmp_path / "runs" / "a")
    make_run(tmp_path / "runs" / "b")
    assert len(runs_of(tmp_path / "runs")) == 2


# Damaged runs.


def damage(run: Path, how: str) -> str:
    """Damage a run; returns what is said of it."""
    metrics = run / "metrics.jsonl"
    if how == "line":
        metrics.write_text('{"steps": 1}\n{"st\n{"steps": 2}\n')
        return f"line 2 of `{metrics}` is not a record of a run"
    if how == "nan":
        metrics.write_text('{"steps": 1, "mean_return": NaN, "episodes": 3}\n')
        return f"`{metrics}` has `mean_return` nan at 1 steps"
    (run / f"{how}.json").write_text("{")
    return f"{how}.json` can't be read"


@pytest.mark.parametrize("how", ["line", "nan", "summary", "config"])
def test_a_damaged_run_among_others_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    runs = [make_run(tmp_path / str(seed), seed=seed) for seed in range(3)]
    says = damage(runs[1], how)
    out = flat(printed(capsys, tmp_path, *FEW, "--csv", tmp_path / "x.csv"))
    assert f"warning (left out): '{runs[1]}': " in out
    assert says in out
    assert "2 in 1 group," in out
    assert run_report(tmp_path, *FEW, "--strict") == 1
    capsys.readouterr()
    assert says in fails(capsys, runs[1])
    for run in (runs[0], runs[2]):
        damage(run, how)
    assert "all 3 runs are damaged, one so: " in fails(capsys, tmp_path)


def test_a_population_without_a_best_member_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run")
    make_run(tmp_path / "pop" / "members" / "00")
    (tmp_path / "pop" / "pbt.json").write_text("{}")
    out = flat(printed(capsys, tmp_path, *FEW))
    assert "holds a population without a best member" in out


def test_missing_tasks_are_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c"):
        make_run(tmp_path / name, agent=name, env=f"ALE/{name.upper()}-v5")
    out = flat(printed(capsys, tmp_path, *FEW))
    assert out.count("warning (missing tasks)") == 1
    assert "a has no score for ALE/B, ALE/C; b has no score for ALE/A, ALE/C; c has no" in out


# Outputs.


def test_an_output_that_is_an_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    file = write(tmp_path / "rw.csv", "a,b,0,1,training,1", "a,b,0,2,evaluation,1")
    (tmp_path / "refs.csv").write_text("task,random,reference\nb,0,1\n")
    (tmp_path / "link.csv").symlink_to(file)
    before = file.read_bytes()
    for flag in ("--csv", "--md", "--png"):
        for spelled in ("rw.csv", "./sub/../rw.csv", file, "link.csv"):
            assert f"`{flag}` is" in fails(capsys, "rw.csv", flag, spelled), (flag, spelled)
            assert file.read_bytes() == before
    says = "which is the input 'refs.csv' and would be overwritten"
    assert says in fails(capsys, "rw.csv", "--normalise", "refs.csv", "--md", "refs.csv")
    says = "`--csv` and `--md` are both 'sub/x'"
    assert says in fails(capsys, "rw.csv", "--csv", "sub/x", "--md", "sub/x")


def test_an_output_among_the_files_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "runs" / "a")
    before = (run / "metrics.jsonl").read_bytes()
    says = f"a file of the run '{run.resolve()}', which is an input"
    assert says in fails(capsys, run.parent, "--csv", run / "metrics.jsonl")
    assert (run / "metrics.jsonl").read_bytes() == before
    for _ in range(2):  # an own file there is written again
        printed(capsys, run.parent, *FEW, "--csv", run / "x.csv", "--md", run.parent / "x.md")


@pytest.mark.parametrize("flag", ["--csv", "--md"])
@pytest.mark.parametrize("name", [".", "", "/", "..", "sub"])
def test_an_output_that_is_a_directory(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flag: str,
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    file = write(Path("x.csv"), "a,b,0,1,training,1")
    says = f"cannot write `{Path(name)}`: it is a directory; expected the name of a file"
    assert says in fails(capsys, file, flag, name)
    with pytest.raises(UserError, match=r"it is a directory; .* choose another `--md`"):
        files.write_atomically(Path(name), b"", flag="--md")


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_tables_and_figures_of_experiments_survive_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, picture = tmp_path / "t.csv", tmp_path / "f.png"
    figure, axes = common.panels(1, 1, 2.0, 2.0)
    axes[0, 0].plot([0, 1], label="x")
    common.write_csv(table, ["a", "b"], [[1, "é"]])
    common.save(figure, picture, "note")
    assert table.read_bytes() == "a,b\r\n1,é\r\n".encode()
    before = table.read_bytes(), picture.read_bytes()
    assert before[1].startswith(b"\x89PNG")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match=r"No space left on device; .* with `--results`"):
        common.write_csv(table, ["a"], [[2]])
    with pytest.raises(UserError, match="No space left on device"):
        common.save(figure, picture, "other")
    assert (table.read_bytes(), picture.read_bytes()) == before
    assert len(list(tmp_path.iterdir())) == 2


# Plots, and words.


def test_a_plot_names_damaged_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"st\n[]\n')
    cli.main(["plot", str(run), "--output", str(tmp_path / "x.png")])
    captured = capsys.readouterr()
    says = f"pronk: warning: line 4 of `{run / 'metrics.jsonl'}` is not a record of a run ("
    assert captured.err.startswith(says)
    assert "it is left out, and 1 further line too: the file was damaged" in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("value", ["NaN", '"text"', "-Infinity"])
def test_a_plot_of_what_is_no_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text(f'{{"steps": 1, "mean_return": {value}}}\n')
    with pytest.raises(SystemExit):
        cli.main(["plot", str(run), "--output", str(tmp_path / "x.png")])
    says = f"no finite number for `mean_return`, but {value} in 1 record"
    assert says in capsys.readouterr().err


def test_numbers_of_things() -> None:
    assert counted(1, "episode") == "1 episode"
    assert [counted(n, "step") for n in (0, 2000)] == ["0 steps", "2,000 steps"]
