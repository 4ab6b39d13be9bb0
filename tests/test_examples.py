"""The examples run, as programs and by the commands in their docstrings; see also `example` in
test_agents.py's table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import pronk
from examples import custom_agent, custom_environment, custom_network, minimal
from pronk import cli, envs
from pronk.run.inspect import inspect

AGENT = "examples.custom_agent"
TINY = ["--unroll", "4", "--batch-size", "4", "--hidden-sizes", "8", "--quiet"]


def lines(path: str) -> list[str]:
    return (Path(minimal.__file__).parent / path).read_text().splitlines()


def test_minimal(capsys: pytest.CaptureFixture[str]) -> None:
    mean_return = minimal.train(steps=3000)
    assert -1 <= mean_return <= 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"mean return {mean_return:.2f}" in last
    assert "21 updates" in last  # of 20 steps of 8 environments, of which a tenth are dummies


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two deterministic runs of the agent: `whole`, and `parts`, which paused."""
    place = tmp_path_factory.mktemp("runs")
    for name, pauses in (("whole", [[]]), ("parts", [["--stop-after", "300"], []])):
        for pause in pauses:
            command = ["train", AGENT, "CartPole-v1", "--steps", "600", "--deterministic", *TINY]
            cli.main([*command, "--run-dir", str(place / name), *pause])
    return place


def test_the_agent_resumes_bit_for_bit(runs: Path) -> None:
    whole, parts = inspect(runs / "whole"), inspect(runs / "parts")
    assert whole["learner_sha256"] == parts["learner_sha256"]
    for name in ("agent_steps", "updates", "episodes"):
        assert whole[name] == parts[name] > 0
    assert whole["config"]["run"]["architecture"] == "sync-unroll"  # the agent's own default
    assert whole["skipped_updates"] == 0


def test_the_agent_is_evaluated_exported_and_loaded(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["eval", str(runs / "whole"), "--episodes", "2", "--json"])
    played = json.loads(capsys.readouterr().out)
    file = tmp_path / "policy.safetensors"
    cli.main(["export", str(runs / "whole"), str(file)])
    policy = pronk.load(file, agent=custom_agent)
    assert policy.evaluate(episodes=2).mean_return == played["mean_return"] > 0
    observation = np.zeros(4, np.float32)
    ours, _ = policy.act(observation, policy.initial_carry())
    theirs, _ = (run := pronk.load(runs / "whole")).act(observation, run.initial_carry())
    assert ours == theirs
    jax.tree.map(np.testing.assert_array_equal, policy.behaviour, run.behaviour)


def test_the_agent_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["list", AGENT])
    shown = capsys.readouterr().out
    assert f"{AGENT}:" in shown
    assert "default, m16" in shown
    assert "learning_rate=0.0001:0.01, entropy_cost=0.0001:0.1" in shown


def test_the_agent_starts_from_another_run(runs: Path, tmp_path: Path) -> None:
    init = ["--init-from", str(runs / "whole"), "--run-dir", str(tmp_path)]
    cli.main(["train", AGENT, "CartPole-v1", "--steps", "100", "--actors", "1", *TINY, *init])
    assert inspect(tmp_path)["updates"] > 0


@pytest.mark.extended
def test_a_population_of_the_agent(tmp_path: Path) -> None:
    """In one program, tuning what the agent's fields say."""
    sizes = ["--population", "2", "--ready-steps", "100", "--steps", "200"]
    cli.main(["pbt", AGENT, "pronk/Catch-v0", *sizes, *TINY, "--run-dir", str(tmp_path)])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert set(summary["best_hyper"]) == {"learning_rate", "entropy_cost"}
    assert (tmp_path / "population").exists()  # and not a run for each member


def test_the_agent_with_gradients_from_actors(tmp_path: Path) -> None:
    """Its `halves` serve A3C, M16's own architecture."""
    a3c: dict[str, Any] = {"architecture": "async-gradients", "actors": 1, "quiet": True}
    tiny = {"unroll": 4, "batch_size": 4, "hidden_sizes": (8,)}
    summary = pronk.train(custom_agent, "CartPole-v1", steps=100, run_dir=tmp_path, **a3c, **tiny)
    assert summary["status"] == "finished"


def test_the_environment() -> None:
    """It is Gymnasium's, repeats itself, shows no forbidden move, and works in another process."""
    check_env(custom_environment.Grid(3), skip_render_check=True)
    vector = envs.make(custom_environment.Grid, 2, env_args={"size": 2}, workers=1, max_faults=0)
    try:
        timestep = vector.reset()
        assert vector.spec.has_action_mask
        for _ in range(40):
            ended = timestep.terminated | timestep.truncated
            np.testing.assert_array_equal(timestep.action_mask.sum(-1)[~ended], 2)
            timestep = vector.step(np.argmax(timestep.action_mask, axis=-1))
        assert {episode.length for episode in vector.episodes()} <= {*range(1, 17)}
    finally:
        vector.close()


@pytest.mark.extended
def test_the_environment_from_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mean_return = custom_environment.main(steps=500, run_dir=tmp_path)
    assert -3.2 <= mean_return <= 1
    assert f"mean return {mean_return:.2f}" in capsys.readouterr().out
    assert lines("custom_environment.py")[-2:] == ['if __name__ == "__main__":', "    main()"]


def test_the_environment_by_its_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = ["examples.custom_environment:Grid-v0", "--env-arg", "size=3"]
    cli.main(["train", "impala", *env, "--steps", "100", *TINY, "--run-dir", str(tmp_path / "run")])
    film = tmp_path / "film.gif"
    cli.main(["record", str(tmp_path / "run"), "--output", str(film), "--max-steps", "5"])
    assert film.stat().st_size > 0


def test_the_network_acts_as_it_learns() -> None:
    """Row by row, and all rows at once; an episode begins in the middle."""
    steps, batch = 6, 2
    core = custom_network.Traces(3)
    inputs = jax.random.normal(jax.random.key(0), (steps, batch, 4))
    first = jnp.zeros((steps, batch), bool).at[3, 0].set(True)
    state = core.initial_state(batch)
    (expected, after), params = core.init_with_output(jax.random.key(1), inputs, first, state)
    outputs = []
    for t in range(steps):
        rows = slice(t, t + 1)
        output, state = core.apply(params, inputs[rows], first[rows], state)
        outputs.append(output)
    np.testing.assert_allclose(jnp.concatenate(outputs), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state, after, rtol=1e-5)
    fresh, _ = core.apply(params, inputs[3:], first[3:], core.initial_state(batch))
    np.testing.assert_allclose(expected[3:, 0], fresh[:, 0], rtol=1e-5, atol=1e-6)
    assert (np.abs(expected[3:, 1] - fresh[:, 1]) > 1e-4).any()


@pytest.mark.extended
def test_the_network_in_a_run(tmp_path: Path) -> None:
    tiny = {"unroll": 5, "batch_size": 4, "hidden_sizes": (8,), "recurrent_units": 4, "quiet": True}
    run: dict[str, Any] = {"steps": 200, "env_args": {"delay": 2}, "run_dir": tmp_path, **tiny}
    pronk.train(custom_network, "pronk/MemoryCue-v0", **run)
    policy = pronk.load(tmp_path)
    decay = policy.behaviour.params["params"]["core"]["decay"]
    assert (np.asarray(decay) != np.linspace(0, 6, 4, dtype=np.float32)).any()  # it was learnt
    assert 0 <= policy.evaluate(episodes=2).mean_return <= 1
