"""Gymnasium's MuJoCo environments; all but the first test need MuJoCo."""

from __future__ import annotations

import sys

import gymnasium as gym
import numpy as np
import pytest

import pronk
from pronk import envs
from pronk.errors import UserError

ACTION = np.zeros((1, 6), np.float32)


def test_the_extra_is_named_where_mujoco_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)  # importing it raises ImportError
    monkeypatch.delitem(sys.modules, "gymnasium.envs.mujoco.mujoco_env", raising=False)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.mujoco.half_cheetah_v5", raising=False)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.mujoco", raising=False)
    with pytest.raises(UserError) as caught:
        envs.make("HalfCheetah-v5", 1)
    assert str(caught.value) == (
        "`env` 'HalfCheetah-v5' needs MuJoCo, which is not installed: pip install 'pronk[mujoco]'."
    )


@pytest.mark.parametrize("name", ["HalfCheetah-v4", "HalfCheetah-v5"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_few_updates(name, tmp_path):
    pytest.importorskip("mujoco")
    summary = pronk.train(
        agent="impala",
        env=name,
        steps=200,
        run_dir=tmp_path,
        preset="continuous",
        hidden_sizes=(8,),
        actors=1,
        envs_per_actor=4,
    )
    assert summary["agent_steps"] >= 200


def test_an_unstable_simulation_is_a_fault(tmp_path):
    """MuJoCo itself would go on from its initial state, as if that followed from the action."""
    pytest.importorskip("mujoco")
    made = []

    def cheetah() -> gym.Env:
        made.append(gym.make("HalfCheetah-v5"))
        return made[-1]

    log = tmp_path / "faults.log"
    vector = envs.make(cheetah, 1, workers=0, fault_log=log)
    vector.reset()
    for _ in range(3):
        assert not vector.step(ACTION).first.any()
    made[-1].unwrapped.data.qvel[2] = np.nan
    following = vector.step(ACTION)
    assert following.first.all()
    assert np.isfinite(following.observation).all()
    assert not following.reward.any()
    assert not vector.step(ACTION).first.any()
    assert "expected a finite number" in log.read_text()
    vector.close()


def test_its_warnings_are_shown_once_and_leave_no_file(tmp_path, monkeypatch, capfd):
    mujoco = pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    mujoco.set_mju_user_warning(None)
    for _ in range(2):
        envs.make("HalfCheetah-v5", 1).reset()
    assert "deprecated" not in "".join(capfd.readouterr())
    assert not any(tmp_path.iterdir())
    with pytest.warns(RuntimeWarning, match="MuJoCo: the simulation is unstable"):
        mujoco.get_mju_user_warning()("the simulation is unstable")


def test_a_users_handler_of_warnings_stays():
    mujoco = pytest.importorskip("mujoco")
    messages = []
    mujoco.set_mju_user_warning(messages.append)
    try:
        envs.make("HalfCheetah-v5", 1).reset()
    finally:
        mujoco.set_mju_user_warning(None)
    assert "deprecated" in messages[0]
