"""`pronk report` as a user types it: tables, warnings, files, bad input."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
from PIL import Image

from pronk import cli, report
from pronk.errors import UserError
from pronk.report import plots, problems, references
from pronk.report.references import key_of, split_version
from pronk.report.runs import EVALUATION, TRAINING, Row, Run
from pronk.report.scoring import Rule, Scored
from pronk.run.plot import COLOURS
from tests.report_runs import FEW, fails, flat, make_run, printed, row, run_report

DATA = Path(__file__).with_name("data")


def make_runs(root: Path, seeds: int = 3) -> Path:
    """Two agents on two games, with evaluations."""
    rng = np.random.default_rng(0)
    for agent, better in (("impala", 0.0), ("r2d2", 1.0)):
        for env, scale in (("ALE/Pong-v5", 5.0), ("ALE/Breakout-v5", 40.0)):
            for seed in range(seeds):
                values = scale * (better + np.arange(4) + rng.normal(0, 0.3, 4))
                make_run(
                    root / f"{agent}-{env[4:-3]}-{seed}",
                    agent=agent,
                    env=env,
                    seed=seed,
                    returns=(values / 2).tolist(),
                    evaluations=values.tolist(),
                )
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory.mktemp("runs"))


# What is printed.


def test_a_report_of_a_directory_of_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, runs, "--normalise", "human", "--compare", "r2d2", "impala", *FEW)
    assert "12 in 2 groups, by agent" in out
    assert "mean return of the last evaluation at the end" in out
    assert "20 for each score" in out
    assert "muzero-s1: random and human play of Schrittwieser et al. 2020" in out
    assert "ALE/Breakout v5, ALE/Pong v5" in out
    assert "3 for each group and task: 0, 1, 2" in out
    assert "95%, stratified bootstrap of 200 repeats, seed 0" in out
    assert "warning" not in out
    last = [
        json.loads((runs / f"impala-Pong-{seed}" / "metrics.jsonl").read_text().splitlines()[-1])
        for seed in range(3)
    ]
    values = np.array([record["eval/mean_return"] for record in last])
    cells = row(out, "ALE/Pong", "impala")
    score = (values.mean() + 20.71) / (14.59 + 20.71)
    assert cells[:3] == [f"{values.mean():.4g}", f"{values.std(ddof=1):.4g}", "3"]
    assert cells[-1] == f"{100 * score:.1f}%"
    assert {"interquartile", "median", "optimality"} <= {
        line.split(" ")[0] for line in out.split("\n")
    }
    assert "percentile" not in out  # of two tasks
    assert row(out.split("compared with")[1], "ALE/Pong")[-1] == "1.00"
    assert row(out, "all:", "mean", "P(better)")[-1] == "1.00"


def test_returns_of_several_tasks_are_not_mixed(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(capsys, runs, *FEW)
    assert "Aggregates" not in out
    assert "returns of different tasks are not aggregated; --normalise makes them" in out
    only = [*runs.glob("*-Pong-*")]
    assert "Aggregates of returns over 1 task" in printed(capsys, *only, *FEW)


def test_the_same_seed_prints_the_same(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = (runs, "--normalise", "human", "--compare", "r2d2", "impala", *FEW)
    first = printed(capsys, *args)
    assert printed(capsys, *args) == first
    other = printed(capsys, *args, "--seed", 1).replace("seed 1", "seed 0")
    assert other != first


def test_a_groups_interval_does_not_depend_on_the_others(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = printed(capsys, runs, "--normalise", "human", *FEW)
    alone = printed(capsys, *sorted(runs.glob("r2d2*")), "--normalise", "human", *FEW)
    lines = [line.split("r2d2")[1] for line in both.splitlines() if "[" in line and "r2d2" in line]
    assert lines
    assert all(
        line.split() == own.split()
        for line, own in zip(
            lines, [li.split("r2d2")[1] for li in alone.splitlines() if "[" in li], strict=True
        )
    )


def test_runs_are_counted_once(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = runs / "impala-Pong-0"
    out = printed(capsys, runs, one, f"{one}/", *FEW, "--strict")
    assert "12 in 2 groups" in out
    assert row(out, "ALE/Pong", "impala")[2] == "3"


def test_arguments_of_the_environment_make_another_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a", env="pronk/Catch-v0", env_args={"delay": 5, "rows": 8})
    make_run(tmp_path / "b", env="pronk/Catch-v0")
    out = printed(capsys, tmp_path, *FEW)
    assert row(out, "pronk/Catch?delay=5&rows=8", "impala")[2] == "1"
    assert "pronk/Catch v0, pronk/Catch?delay=5&rows=8 v0" in out


@pytest.mark.parametrize("by", ["learning_rate", "agent_config.learning_rate", "learning-rate"])
def test_groups_by_a_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str], by: str) -> None:
    for i, rate in enumerate((0.1, 0.1, 0.2, 0.2)):
        make_run(tmp_path / str(i), seed=i % 2, rate=rate)
    out = printed(capsys, tmp_path, "--by", f"agent,{by}", "--strict", *FEW)
    assert "impala learning_rate=0.1" in out
    assert "impala learning_rate=0.2" in out
    assert run_report(tmp_path, "--strict", *FEW) == 1
    assert "warning (settings): impala on ALE/Pong" in capsys.readouterr().out


def test_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, make_run(tmp_path / "run"), *FEW)
    assert "intervals can't be had" in out
    assert row(out, "ALE/Pong", "impala") == ["3", "–", "1", "3", "3"]
    assert row(out, "interquartile", "mean", "impala") == ["3", "–"]


def test_a_suite_is_a_run_of_each_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(2):
        make_run(
            tmp_path / str(seed),
            env="suite/scales-v0",
            seed=seed,
            extra=lambda i: {
                "return/catch": 0.01,
                "return/orchard": 80.0 * (i + 1),
                "eval/return/catch": 0.002 * i,
                "eval/return/orchard": 1000.0 + i,
            },
        )
    out = printed(capsys, tmp_path, "--normalise", "scales", *FEW)
    assert "2 in 1 group," in out
    assert row(out, "catch", "impala") == ["0.004", "0", "2", "0.004", "0.004", "62.5%"]
    assert row(out, "orchard", "impala")[-1] == f"{100 * (1002 - 80) / (2000 - 80):.1f}%"


def test_a_population_is_its_best_member(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "pop" / "members" / "00", returns=(1.0, 1.0))
    make_run(tmp_path / "pop" / "members" / "01", returns=(2.0, 5.0))
    (tmp_path / "pop" / "pbt.json").write_text("{}")
    (tmp_path / "pop" / "summary.json").write_text('{"best_run": "members/01"}')
    for path in (tmp_path, tmp_path / "pop"):
        out = printed(capsys, path, *FEW)
        assert row(out, "ALE/Pong", "impala")[0] == "5"
        assert "warning (populations)" in out
    assert run_report(tmp_path, "--strict", *FEW) == 1


def test_a_trained_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `pronk train` writes is what a report reads."""
    arguments = (
        "train impala pronk/Catch-v0 --steps 400 --envs-per-actor 4 --batch-size 4 --unroll 5"
        " --hidden-sizes 8 --eval-every 200 --eval-episodes 2"
    )
    cli.main([*arguments.split(), "--run-dir", str(tmp_path / "run")])
    capsys.readouterr()
    out = printed(capsys, tmp_path, *FEW)
    assert "mean return of the last evaluation at the end" in out
    assert "2 for each score" in out
    assert "warning (unfinished)" not in out
    out = printed(capsys, tmp_path, "--metric", "training", *FEW)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert row(out, "pronk/Catch", "impala")[0] == f"{summary['mean_return']:.4g}"


def test_jax_is_not_imported(runs: Path) -> None:
    program = f"""
import sys
from pronk.cli import main
main(["report", {str(runs)!r}, "--bootstrap", "100"])
assert not {{"jax", "gymnasium", "matplotlib"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_documented_example(capsys: pytest.CaptureFixture[str]) -> None:
    """What the page says is printed."""
    root = DATA.parents[1]
    page = (root / "docs" / "report.md").read_text()
    (block,) = re.findall(
        r"`pronk report docs/results/report/scores.csv (.*)` prints\n\n```\n(.*?)```", page, re.S
    )
    out = printed(capsys, root / "docs" / "results" / "report" / "scores.csv", *block[0].split())
    assert out == block[1]


def test_documented_warnings_are_all_of_them() -> None:
    page = (DATA.parents[1] / "docs" / "report.md").read_text()
    section = page.split("## Warnings")[1].split("## ")[0]
    listed = re.findall(r"^\| ([a-z ]+) \| ", section, re.M)[1:]
    source = Path(problems.__file__).read_text()
    assert sorted(listed) == sorted(set(re.findall(r"Problem\(\s*\"([a-z ]+)\"", source)))


# Which score of a run counts.

TRAINED = Run(
    agent="a",
    env="e",
    version="",
    seed="0",
    rows=(
        Row(100, TRAINING, 1.0, episodes=50, total_episodes=50),
        Row(200, TRAINING, 2.0, episodes=100, total_episodes=120),
        Row(250, EVALUATION, 10.0, episodes=10),
        Row(300, TRAINING, 3.0, episodes=100, total_episodes=190),
        Row(400, TRAINING, 4.0, episodes=100, total_episodes=220),
        Row(500, EVALUATION, 20.0, episodes=30),
    ),
)


@pytest.mark.parametrize(
    ("rule", "score", "step", "episodes"),
    [
        (Rule(), 20.0, 500, 30),
        (Rule("evaluation", last=31), (10 * 10 + 30 * 20) / 40, 500, 40),
        (Rule("evaluation", last=30), 20.0, 500, 30),
        (Rule("evaluation", at=260), 10.0, 250, 10),
        (Rule("evaluation", at=240), 10.0, 250, 10),
        (Rule("evaluation", at=376), 20.0, 500, 30),
        (Rule("evaluation", at=625), 20.0, 500, 30),
        (Rule("training"), 4.0, 400, 100),
        (Rule("training", last=100), 4.0, 400, 100),
        # The record at 300 steps shares episodes with the one at 400.
        (Rule("training", last=200), 3.0, 400, 200),
        (Rule("training", last=10**6), 3.0, 400, 200),
        (Rule("training", at=349), 3.0, 300, 100),
        (Rule("auc", at=260), 10.0, 250, 10),
        (Rule("auc"), (10 * 10 + 30 * 20) / 40, 500, 40),
    ],
)
def test_the_score_of_a_run(rule: Rule, score: float, step: int, episodes: int) -> None:
    found = rule.score(TRAINED)
    assert isinstance(found, Scored)
    assert found.score == pytest.approx(score)
    assert (found.step, found.episodes) == (step, episodes)


@pytest.mark.parametrize(
    ("at", "reason"),
    [(124, "its first score is at 250 steps"), (626, "its last score is at 500 steps")],
)
def test_a_step_that_a_run_has_no_score_of(at: int, reason: str) -> None:
    assert Rule("evaluation", at=at).score(TRAINED) == reason


def test_area_under_the_curve_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A record weighs as many episodes as ended since the one before it."""
    total = (100, 300, 600)
    run = make_run(
        tmp_path / "run", returns=(1.0, 2.0, 4.0), extra=lambda i: {"episodes": total[i]}
    )
    out = printed(capsys, run, "--metric", "auc", *FEW)
    assert row(out, "ALE/Pong", "impala")[0] == f"{(100 * 1 + 200 * 2 + 300 * 4) / 600:.4g}"
    assert "area under the curve" in out
    assert "600 for each score" in out


def test_scores_at_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "long", seed=0, returns=(1.0, 2.0, 3.0, 4.0))
    make_run(tmp_path / "short", seed=1, returns=(5.0, 6.0))
    out = printed(capsys, tmp_path, "--at", 2000, *FEW)
    assert row(out, "ALE/Pong", "impala")[0] == "4"
    assert "at 2,000 steps" in out
    out = printed(capsys, tmp_path, "--at", 4000, *FEW)
    assert row(out, "ALE/Pong", "impala")[0] == "4"
    assert "its last score is at 2,000 steps" in flat(out)


# Warnings.


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("unfinished", {"status": "paused"}, "(paused)"),
        ("unfinished", {"status": None}, "(unfinished)"),
        ("environment versions", {"env": "ALE/Pong-v4"}, "v4, v5"),
        ("software", {"pronk": "0.2.0"}, "pronk 0.1.0, pronk 0.2.0"),
        ("settings", {"rate": 0.5}, "--by SETTING"),
        ("steps", {"every": 2000}, "after 3,000 to 6,000 steps"),
        ("metrics", {"evaluations": (1.0, 2.0, 3.0)}, "1 of evaluation, 2 of training"),
        ("duplicate seeds", {"seed": 1}, "(seed 1)"),
        ("left out", {"returns": (None, None, None)}, "it has no score of training yet"),
        ("missing tasks", {"agent": "r2d2", "env": "ALE/Freeway-v5"}, "ALE/Freeway"),
        ("single seed", {"agent": "r2d2"}, "r2d2 on ALE/Pong"),
        ("seeds", {"agent": "r2d2"}, "from 1 (r2d2 on ALE/Pong) to 2 (impala on ALE/Pong)"),
        ("episodes", {"extra": lambda i: {"episodes": 30}}, "30 to 100 episodes"),
    ],
)
def test_warnings(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    changes: dict[str, Any],
    says: str,
) -> None:
    """Each is named, and the exit status says so under --strict only."""
    for seed in (1, 2):
        make_run(tmp_path / f"s{seed}", seed=seed)
    assert run_report(tmp_path, "--strict", *FEW) == 0
    assert "warning" not in capsys.readouterr().out
    make_run(tmp_path / "other", **({"seed": 3} | changes))
    assert run_report(tmp_path, *FEW) == 0
    out = flat(capsys.readouterr().out)
    assert f"warning ({kind}): " in out
    assert says in out
    assert run_report(tmp_path, "--strict", *FEW) == 1


def test_scores_at_a_step_are_after_about_as_many_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a", seed=0, every=1000)
    make_run(tmp_path / "b", seed=1, every=2000)
    assert "warning (steps)" in printed(capsys, tmp_path, *FEW)
    assert "warning (steps)" not in printed(capsys, tmp_path, "--at", 3000, *FEW)


def test_aggregates_are_over_the_tasks_that_all_groups_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        make_run(tmp_path / f"a{seed}", seed=seed, returns=(14.59,))
        make_run(tmp_path / f"b{seed}", seed=seed, agent="r2d2", returns=(14.59,))
        make_run(tmp_path / f"c{seed}", seed=seed, env="ALE/Boxing-v5", returns=(0.05,))
    out = printed(capsys, tmp_path, "--normalise", "human", *FEW)
    assert "over 1 task" in out
    assert row(out, "mean", "of", "tasks", "impala")[0] == "100.0%"
    assert row(out, "ALE/Boxing", "impala")[-1] == "0.0%"


# Files.


def body(path: Path) -> list[dict[str, str]]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines))


@pytest.mark.parametrize(
    "args",
    [
        ("--normalise", "human", "--compare", "r2d2", "impala"),
        ("--metric", "training", "--last", 200),
        ("--metric", "auc"),
        ("--by", "learning_rate,agent", "--at", 3000),
    ],
    ids=lambda args: args[1],
)
def test_what_is_written_is_read_back_to_the_same_report(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: tuple[object, ...]
) -> None:
    odd = make_run(
        tmp_path / 'odd, "one"', env="ALE/Breakout-v4", seed=9, returns=(0.1, 2 / 3), status=None
    )
    file, again = tmp_path / "scores.csv", tmp_path / "again.csv"
    first = printed(capsys, runs, odd, *args, *FEW, "--csv", file)
    second = printed(capsys, file, *args, *FEW, "--csv", again)
    assert f"written: {file}" in first
    assert first.replace(str(file), "") == second.replace(str(again), "")
    assert "warning (" in first
    assert file.read_text() == again.read_text()


def test_the_long_csv(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "scores.csv"
    printed(capsys, runs, "--normalise", "human", *FEW, "--csv", file)
    head = [line for line in file.read_text().splitlines() if line.startswith("#")]
    for name in ("score", "episodes", "references", "tasks", "seeds", "intervals", "software"):
        assert any(line.startswith(f"# {name}: ") for line in head), name
    rows = body(file)
    assert len(rows) == 12 * 4
    names = "agent env version seed step wall_seconds metric score episodes total_episodes"
    assert list(rows[0])[:10] == names.split()
    (found,) = [r for r in rows if r["run"].endswith("r2d2-Pong-2") and r["step"] == "4000"]
    assert (found["agent"], found["env"], found["version"]) == ("r2d2", "ALE/Pong", "v5")
    assert (found["metric"], found["episodes"], found["seed"]) == ("evaluation", "20", "2")
    assert len(found["config_hash"]) == 8


def test_scores_of_other_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ids with versions, names of games, only the columns that are needed, and further ones."""
    file = tmp_path / "others.csv"
    file.write_text(
        "# made by hand\n"
        "agent,env,seed,step,metric,score,width\n"
        "ppo,PongNoFrameskip-v4,1,1e6,training,20,64\n"
        "\n"
        "ppo,PongNoFrameskip-v4,2,1000000,training,18.5,64\n"
        "ppo,PongNoFrameskip-v4,2,500000,training,-5,64\n"
    )
    out = printed(capsys, file, "--normalise", "human", "--by", "width", *FEW)
    assert row(out, "PongNoFrameskip", "width=64")[:3] == ["19.25", "1.061", "2"]
    assert "PongNoFrameskip v4" in out
    assert "unknown number for each score" in out


def test_markdown(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sub" / "report.md"
    out = printed(capsys, runs, "--normalise", "human", *FEW, "--md", file)
    text = file.read_text()
    assert "- intervals: 95%, stratified bootstrap of 200 repeats, seed 0" in text
    assert "| ALE/Breakout | impala |" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| interquartile mean |")]
    assert row(out, "interquartile", "mean", "impala")[0] in line


def test_pictures(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, runs, "--normalise", "human", *FEW, "--png", tmp_path / "png")
    names = {"curves.png", "iqm.png", "profiles.png", "intervals.png"}
    assert {path.name for path in (tmp_path / "png").iterdir()} == names
    for name in names:
        assert f"written: {tmp_path / 'png' / name}" in out
        path = tmp_path / "png" / name
        about = Image.open(path).text["Description"]  # type: ignore[attr-defined]
        assert "references: muzero-s1" in about
        assert "bootstrap of 200 repeats" in about
        image = imageio.imread(path)[..., :3].astype(int)
        assert min(image.shape[:2]) > 200
        for colour in COLOURS[:2]:
            wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
            assert (np.abs(image - wanted).sum(-1) < 10).sum() > 50, (name, colour)


def test_pictures_of_final_scores_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There are no curves; scores of many times the human's fit the profile's axis."""
    args = (DATA / "agent57.csv", "--normalise", "agent57", *FEW, "--png", tmp_path)
    printed(capsys, *args)
    assert {path.name for path in tmp_path.iterdir()} == {"profiles.png", "intervals.png"}


def test_pictures_of_runs_without_common_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "early", seed=0, returns=(1.0, 2.0))
    make_run(tmp_path / "late", seed=1, returns=(None,) * 4 + (3.0, 4.0))
    printed(capsys, tmp_path, *FEW, "--png", tmp_path / "png")
    assert (tmp_path / "png" / "curves.png").exists()
    assert not (tmp_path / "png" / "iqm.png").exists()


# References.


def test_names_of_games() -> None:
    names = ["ALE/MsPacman-v5", "MsPacmanNoFrameskip-v4", "ms_pacman", "MsPacman", "ALE/MsPacman"]
    assert {key_of(name) for name in names} == {"mspacman"}
    assert key_of("ALE/MsPacman-v5?life_loss=false") == "mspacman"
    assert key_of("ALE/MsPacman-v5?reward_scale=2") != "mspacman"
    assert key_of("pronk/Breakout-v0") != key_of("ALE/Breakout-v5")
    assert key_of("pronk/Catch-v0?delay=5") != key_of("pronk/Catch-v0")
    assert split_version("pronk/Catch-v0?delay=5") == ("pronk/Catch?delay=5", "v0")
    assert split_version("catch") == ("catch", "")


def test_tables_of_references() -> None:
    for name in ("muzero-s1", "agent57", "dqn-zoo"):
        table = references.load(name)
        assert table is not None
        assert len(table.table) == 57
    duan = references.load("duan2016")
    assert duan is not None
    assert duan.of(["pronk/Acrobot"], {}) == {"pronk/Acrobot": (-1904.5, -223.6)}
    zoo, agent57 = references.load("dqn-zoo"), references.load("agent57")
    assert zoo is not None
    assert agent57 is not None
    assert zoo.table["videopinball"] == (16256.9, 17667.9)
    assert agent57.table["videopinball"] == (0.0, 17667.9)
    assert agent57.table["alien"] == (227.8, 7127.7)


def test_references_of_a_file(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty reference is the best group's mean score."""
    file = tmp_path / "mine.csv"
    file.write_text("# by hand\ntask,random,reference\nALE/Pong,0,100\nBreakout,0,\n")
    out = printed(capsys, runs, "--normalise", file, *FEW)
    assert row(out, "ALE/Breakout", "impala")[-1] != "100.0%"
    lines = [line.split() for line in out.splitlines() if line.split()[:1] == ["r2d2"]]
    assert lines[0][-1] == "100.0%"  # Breakout
    assert f"{file}: the file {file}" in flat(out)


def test_random_best(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, runs, "--normalise", "random-best", *FEW)
    assert row(out, "mean", "of", "tasks", "impala")[0] != "100.0%"
    assert "1 the mean score of the best group in this report" in flat(out)
    lines = [line.split() for line in out.splitlines() if line.split()[:1] == ["r2d2"]]
    assert [line[-1] for line in lines[:2]] == ["100.0%"] * 2


# Bad input.


HEADER = "agent,env,seed,step,metric,score,episodes"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("agent,env,seed,score\na,b,0,1\n", "has no column step, metric; expected a long CSV with"),
        ("", "has no column agent, env, seed, step, metric, score"),
        (f"{HEADER}\n", "has no rows below its column names"),
        (f"{HEADER}\na,b,0,1,evaluation,nan,\n", "line 2 of '{}' has the score 'nan'"),
        (f"# x\n{HEADER}\na,b,0,1,evaluation,inf,\n", "line 3 of '{}' has the score 'inf'"),
        (f"{HEADER}\na,b,0,1,evaluation,,\n", "line 2 of '{}' has no score"),
        (f"{HEADER}\na,b,0,one,evaluation,1,\n", "line 2 of '{}' has the step 'one'"),
        (
            f"{HEADER}\na,b,0,1,evaluation,1,0\n",
            "has the episodes '0'; expected a whole number, at least 1",
        ),
        (f"{HEADER}\na,b,0,1,charts/return,1,\n", "metric 'charts/return'; expected 'evaluation'"),
        ("\x00\x01", "has no column"),
        (f"{HEADER}\n" + 2 * "a,b,7,,evaluation,1,\n", "than one evaluation at step 0 of a on b"),
    ],
)
def test_csvs_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    file = tmp_path / "scores.csv"
    file.write_text(text)
    assert says.format(file) in fails(capsys, file)


def test_nothing_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected `pronk report RUNS ...`, got nothing" in fails(capsys)
    assert "holds no run: there is no config.json in it" in fails(capsys, tmp_path)
    assert "there is no '" in fails(capsys, tmp_path / "missing")
    (tmp_path / "scores.csv").write_bytes(b"\x89PNG\xff")
    assert "is not text in UTF-8" in fails(capsys, tmp_path / "scores.csv")
    run = make_run(tmp_path / "run", returns=(None,))
    assert f"the run '{run}' has no score" in fails(capsys, run)
    (run / "metrics.jsonl").unlink()
    assert f"the run '{run}' has no score" in fails(capsys, run)
    with pytest.raises(UserError, match="there are no runs to report"):
        report.make([])


def test_damaged_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", evaluations=(1.0, None, 2.0))
    assert "`eval/mean_return` None at 2,000 steps; expected a finite" in fails(capsys, run)
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("null", "NaN"))
    assert "`eval/mean_return` nan at 2,000 steps; expected a finite" in fails(capsys, run)
    metrics.write_text('{"steps": 1}\n{"st\n{"steps": 2}\n')
    assert f"line 2 of `{metrics}` is not a record of a run" in fails(capsys, run)
    metrics.write_text('{"steps": 1, "mean_return": 2.0, "episodes": 3}\n{"steps": 2, "me')
    assert row(printed(capsys, run, *FEW), "ALE/Pong", "impala")[0] == "2"  # killed while writing
    (run / "summary.json").write_text("{")
    assert "summary.json` can't be read" in fails(capsys, run)
    (run / "config.json").write_text('{"agent": "impala", "env": "x"')
    assert "config.json` can't be read" in fails(capsys, run)
    (run / "config.json").write_text('{"agent": "impala", "env": "x"}')
    assert "is not the configuration of a run (it has no 'run')" in fails(capsys, run)
    (run / "config.json").write_text('{"agent": "a", "env": "x", "run": 3}')
    assert "is not the configuration of a run" in fails(capsys, run)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--normalise", "humna"), "`--normalise` is 'humna'; did you mean 'human'?"),
        (("--normalise", "missing.csv"), "there is no 'missing.csv'"),
        (("--normalise", "scales"), "the references scales have no row for 'ALE/Breakout'"),
        (("--compare", "impala", "r2d3"), "names the group 'r2d3'; did you mean 'r2d2'?"),
        (("--by", "lerning_rate"), "`--by` is 'lerning_rate', which is no setting"),
        (("--bootstrap", 3), "`--bootstrap` is 3; expected at least 100"),
        (("--last", 0), "`--last` is 0; expected at least 1"),
        (("--at", 10), "its first score is at 1,000 steps"),
        (("--at", 10**6), "its last score is at 4,000 steps"),
        (("--csv", "/proc/none/x.csv"), "cannot write `/proc/none/x.csv`"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_bad_arguments(
    runs: Path, capsys: pytest.CaptureFixture[str], args: tuple[object, ...], says: str
) -> None:
    assert says in fails(capsys, runs, *args)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("task,random\nALE/Pong,0\n", "have no column reference"),
        (
            "task,random,reference\nALE/Pong,a,1\n",
            "line 2 of '{}' has random 'a' and reference '1'",
        ),
        ("task,random,reference\nALE/Pong,0,nan\n", "has random '0' and reference 'nan'"),
        (
            "task,random,reference\nALE/Pong,1,1\n",
            "'ALE/Pong' (random play 1, reference 1); expected a reference above",
        ),
        ("task,random,reference\nBoxing,1,2\n", "have no row for 'ALE/Pong'"),
    ],
)
def test_references_that_cannot_be_used(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(text)
    assert says.format(file) in fails(capsys, *runs.glob("*-Pong-*"), "--normalise", file)


def test_groups_without_a_common_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", agent="r2d2", env="ALE/Boxing-v5")
    assert "no task in common" in fails(capsys, tmp_path, "--compare", "impala", "r2d2")
    out = printed(capsys, tmp_path, "--normalise", "human", *FEW)
    assert "no task is common to all groups" in out


def test_labels_that_are_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names that a terminal, Markdown or matplotlib would read as something else."""
    for i, agent in enumerate(("a|b$x_{$", "\x1b[31mred", "_hidden")):
        make_run(tmp_path / str(i), agent=agent)
    out = printed(capsys, tmp_path, *FEW, "--md", tmp_path / "r.md", "--png", tmp_path / "png")
    assert "\x1b" not in out
    text = (tmp_path / "r.md").read_text()
    assert "a\\|b$x" in text
    assert "\x1b" not in text
    made = report.make(report.read([tmp_path]), repeats=100)
    assert all(line.isprintable() for line in report.text(made).splitlines())
    assert plots._label("_hidden") == " _hidden"
    image = imageio.imread(tmp_path / "png" / "curves.png")[..., :3].astype(int)
    wanted = [int(COLOURS[2][i : i + 2], 16) for i in (1, 3, 5)]
    assert (np.abs(image - wanted).sum(-1) < 10).sum() > 50
