"""Gymnasium environments as pronk steps them: autoreset, faults, processes, exact replay."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from pronk import envs
from pronk.envs.episodes import episode_seed
from pronk.envs.gym_env import SerialVectorEnv
from pronk.envs.process_env import ProcessVectorEnv
from pronk.envs.slot import gym_spec
from pronk.errors import Diverged, UserError
from pronk.maths.spaces import random_actions
from pronk.types import EnvSpec, Episode


class Counting(gym.Env):
    """Counts its steps; ends after `length` of them; `trouble` happens at step `at`."""

    def __init__(
        self, length: int = 5, trouble: str = "", at: int = 3, truncates: bool = False
    ) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = spaces.Discrete(3, start=-1)
        self.length, self.trouble, self.at, self.truncates = length, trouble, at, truncates
        self.count = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if self.trouble == "reset":
            raise RuntimeError("no reset today")
        self.count = 0
        self.salt = self.np_random.random()
        return np.array([0.0, self.salt]), {}

    def step(self, action: int) -> tuple[Any, Any, bool, bool, dict]:
        assert isinstance(action, int)
        self.count += 1
        observation: Any = np.array([self.count, self.salt])
        reward: Any = float(action)
        if self.count == self.at:
            if self.trouble == "raise":
                raise RuntimeError("broken joint")
            if self.trouble == "exit":
                os._exit(3)
            if self.trouble == "sys.exit":
                sys.exit()
            if self.trouble == "interrupt":
                raise KeyboardInterrupt
            if self.trouble == "hang":
                time.sleep(600)
            if self.trouble == "nan":
                observation = np.array([np.nan, 0.0])
            if self.trouble == "shape":
                observation = np.zeros(3)
            if self.trouble == "reward":
                reward = float("inf")
            if self.trouble == "vector reward":
                reward = np.zeros(1)
        over = self.count >= self.length
        return observation, reward, over and not self.truncates, over and self.truncates, {}


class Composite(gym.Env):
    """Dict and Tuple observations of all leaf kinds; a mask that forbids the last action."""

    observation_space = spaces.Dict(
        {
            "image": spaces.Box(0, 255, (4, 3), np.uint8),
            "pair": spaces.Tuple([spaces.Discrete(9), spaces.MultiBinary(3)]),
        }
    )
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.count = 0
        return self._say()

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self.count += 1
        observation, info = self._say()
        over = self.count == 3
        return observation, 1.0, over, False, {} if over else info

    def _say(self) -> tuple[Any, dict]:
        c = self.count
        observation = {
            "image": np.full((4, 3), c, np.uint8),
            "pair": (c, np.array([c % 2, 1, 0], np.int8)),
        }
        return observation, {"action_mask": np.array([1, c % 2, 0], np.int8)}


class Amnesiac(Counting):
    """Ignores its seed, and so can't be replayed."""

    salts: ClassVar[list[int]] = [0]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset()
        self.salts[0] += 1
        self.salt = float(self.salts[0])
        return np.array([0.0, self.salt]), {}


class Shapes(gym.Env):
    """Remembers its action in its observation, in the action's own dtype."""

    def __init__(self, space: gym.Space) -> None:
        self.action_space = space
        self.observation_space = spaces.Box(-9, 9, space.shape, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        return np.zeros(self.action_space.shape, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        return action.astype(np.float32), 0.0, False, False, {}


class Bare(gym.Env):
    """Declares nothing."""


class Returns(gym.Env):
    """Returns what it is given."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space: gym.Space = spaces.Discrete(2)
    good = np.zeros(2, np.float32)

    def __init__(self, reset: Any = (good, {}), step: Any = (good, 1.0, False, False, {})) -> None:
        self.results = reset, step

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.results[0]

    def step(self, action: Any) -> Any:
        return self.results[1]


class Masked(gym.Env):
    """Gives masks in one of several ways, and counts actions that they forbid."""

    forbidden = 0

    def __init__(self, where: str, multi: bool = False) -> None:
        self.where = where
        self.action_space = spaces.MultiDiscrete([2, 3]) if multi else spaces.Discrete(5, start=2)
        self.observation_space: gym.Space = spaces.Box(0, 1, (1,), np.float32)
        if where == "observation":
            part = spaces.Box(0, 1, (5,), np.int8)
            self.observation_space = spaces.Dict(
                {"observation": self.observation_space, "action_mask": part}
            )
        if where == "method":
            self.action_masks = lambda: self.mask.astype(bool)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.say("reset")

    def step(self, action: Any) -> Any:
        hot = [action - 2] if isinstance(action, int) else [action[0], 2 + action[1]]
        type(self).forbidden += not self.mask[hot].all()
        observation, info = self.say("step")
        return observation, 0.0, False, False, info

    def say(self, at: str) -> tuple[Any, dict]:
        self.mask = np.zeros(5, np.int8)
        self.mask[[self.np_random.integers(2), 2 + self.np_random.integers(3)]] = 1
        observation: Any = np.zeros(1, np.float32)
        if self.where == "observation":
            observation = {"observation": observation, "action_mask": self.mask}
        return observation, {"action_mask": self.mask} if self.where in (at, "info") else {}


def counting_slowly() -> gym.Env:
    class Slow(Counting):
        def step(self, action: int) -> Any:
            time.sleep(0.002)
            return super().step(action)

    return Slow()


class Simulated(Counting):
    """In a worker, starts a program and a process, which it ends in `close` unless `forgotten`."""

    def __init__(self, pids: str, forgotten: bool = False) -> None:
        super().__init__()
        self.forgotten = forgotten or multiprocessing.parent_process() is None
        if multiprocessing.parent_process() is None:
            return
        self.program = subprocess.Popen(["sleep", "1000"])
        self.process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
        self.process.start()
        with open(pids, "a") as file:
            file.write(f"{self.program.pid} {self.process.pid} ")

    def close(self) -> None:
        if not self.forgotten:
            self.program.terminate()
            self.process.terminate()
            self.program.wait()
            self.process.join()


def dies_at_three() -> gym.Env:
    return Counting(trouble="exit")


def never_made() -> gym.Env:
    raise RuntimeError("out of tigers")


def serial(factory: Any, num_envs: int = 2, **options: Any) -> SerialVectorEnv:
    return SerialVectorEnv(factory, gym_spec(factory, "test"), num_envs, **options)


def trace(env: Any, steps: int, seed: int = 0, reset: bool = True) -> list[Any]:
    """Every field of every row under random actions."""
    rng = np.random.default_rng(seed)
    space = env.spec.action_space
    rows = [env.reset()] if reset else []
    out = [[np.copy(leaf) for leaf in rows[0][:5]]] if reset else []
    for _ in range(steps):
        if isinstance(space, spaces.Discrete):
            action = rng.integers(0, space.n, env.num_envs)
        else:
            action = rng.uniform(-1, 1, (env.num_envs, *space.shape)).astype(space.dtype)
        out.append([np.copy(leaf) for leaf in env.step(action)[:5]])
    return out


def same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(x, y) and x.dtype == y.dtype
        for row_a, row_b in zip(a, b, strict=True)
        for x, y in zip(row_a, row_b, strict=True)
    )


def shared_blocks(pid: int | None = None) -> list[str]:
    owner = f"pronk-{os.getpid() if pid is None else pid}-"
    return [name for name in os.listdir("/dev/shm") if name.startswith(owner)]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def pids(env: ProcessVectorEnv) -> list[int]:
    return [worker.pid for worker in env._processes.workers]  # type: ignore[misc]


# --- rows


@pytest.mark.parametrize("truncates", [False, True])
def test_an_end_is_a_row_and_the_next_row_begins_an_episode_whatever_the_action(truncates):
    env = serial(lambda: Counting(2, truncates=truncates), 1)
    t = env.reset()
    assert t.first[0]
    assert t.reward[0] == 0
    rows = []
    for _ in range(4):
        t = env.step([2])
        rows.append((t.observation[0, 0], t.reward[0], t.terminated[0], t.truncated[0], t.first[0]))
    end = (not truncates, truncates)
    assert rows == [
        (1, 1, False, False, False),
        (2, 1, *end, False),
        (0, 0, False, False, True),
        (1, 1, False, False, False),
    ]
    assert env.episodes() == [Episode(2.0, 2, 0)]
    assert env.episodes() == []
    assert t.observation.dtype == t.reward.dtype == np.float32
    assert env.spec.observation_space == spaces.Box(-np.inf, np.inf, (2,), np.float32)


def test_a_time_limit_truncates():
    env = envs.make("CartPole-v1", 1, env_args={"max_episode_steps": 3}, workers=0)
    env.reset()
    rows = [env.step([k % 2]) for k in range(3)]
    assert not rows[-1].terminated[0]
    assert rows[-1].truncated[0]
    assert env.step([0]).first[0]
    assert env.episodes()[0].length == 3


def test_every_episode_of_every_environment_has_its_own_seed():
    seeds = {episode_seed(s, e, k) for s in range(5) for e in range(20) for k in range(20)}
    assert len(seeds) == 5 * 20 * 20
    assert all(0 <= s < 2**31 for s in seeds)
    env = serial(lambda: Counting(1), 2, seed=4, first_env_id=7)
    salts = [env.reset().observation[:, 1].copy()]
    for _ in range(4):
        env.step([0, 0])
        salts.append(env.step([0, 0]).observation[:, 1].copy())
    assert len(np.unique(salts)) == 10
    expected = np.random.Generator(np.random.PCG64(episode_seed(4, 8, 0))).random()
    assert salts[0][1] == np.float32(expected)


def test_a_slot_does_not_depend_on_the_others():
    both = serial(lambda: Counting(3), 2, first_env_id=5)
    alone = serial(lambda: Counting(3), 1, first_env_id=6)
    both.reset()
    alone.reset()
    for k in range(9):
        a, b = both.step([k % 3, k % 2]), alone.step([k % 2])
        assert np.array_equal(a.observation[1:], b.observation)
        assert np.array_equal(a.reward[1:], b.reward)


@pytest.mark.parametrize("workers", [0, 1])
def test_dict_and_tuple_observations_and_masks(workers):
    env = envs.make(Composite, 3, workers=workers)
    try:
        assert env.spec.has_action_mask
        t = env.reset()
        assert t.action_mask.tolist() == [[True, False, False]] * 3
        for count in (1, 2, 3, 0, 1):
            t = env.step([0, 0, 0])
            assert t.observation["image"].dtype == np.uint8
            assert t.observation["image"].shape == (3, 4, 3)
            assert (t.observation["image"] == count).all()
            digit, bits = t.observation["pair"]
            assert digit.tolist() == [count] * 3
            assert bits.tolist() == [[count % 2, 1, 0]] * 3
            # The last observation of an episode needs no mask, and nothing is forbidden there.
            mask = [True] * 3 if count == 3 else [True, count % 2 == 1, False]
            assert t.action_mask.tolist() == [mask] * 3
    finally:
        env.close()


def test_no_mask_without_one():
    env = envs.make("CartPole-v1", 1, workers=0)
    assert not env.spec.has_action_mask
    assert env.reset().action_mask is None


@pytest.mark.parametrize(
    ("space", "action"),
    [
        (spaces.MultiDiscrete([3, 4]), [[1, 2]]),
        (spaces.MultiDiscrete([3, 4], start=[2, 3]), [[1, 2]]),
        (spaces.MultiBinary(3), [[1, 0, 1]]),
        (spaces.Box(-1, 1, (2,), np.float32), np.array([[0.5, -0.25]], np.float32)),
        (spaces.Box(-1, 1, (2,), np.float64), np.array([[0.5, -0.25]], np.float32)),
    ],
)
def test_actions_arrive_in_the_dtype_of_their_space(space, action):
    env = serial(lambda: Shapes(space), 1)
    env.reset()
    t = env.step(action)
    assert not t.first[0]  # it would be, had the environment's assertion failed
    start = getattr(space, "start", 0)
    assert np.array_equal(t.observation, np.asarray(action) + start)


def test_actions_of_another_shape_or_kind_are_refused():
    env = serial(Counting, 2)
    env.reset()
    with pytest.raises(ValueError, match="shape"):
        env.step(0)
    with pytest.raises(TypeError):
        env.step([0.5, 0.5])


# --- faults


@pytest.mark.parametrize(
    ("trouble", "cause"),
    [
        ("raise", "RuntimeError: broken joint"),
        ("nan", "not finite"),
        ("shape", r"shape \(3,\), expected \(2,\)"),
        ("reward", "reward is inf"),
        ("vector reward", "reward is array"),
        ("sys.exit", "SystemExit"),
    ],
)
def test_after_a_fault_the_next_episode_begins_and_it_is_logged(trouble, cause, tmp_path):
    log = tmp_path / "faults.log"
    env = serial(lambda: Counting(5, trouble), 1, first_env_id=4, fault_log=log, max_faults=2)
    env.reset()
    for _ in range(2):
        env.step([2])
        salt = env.step([2]).observation[0, 1]
        t = env.step([2])
        assert (t.first[0], t.terminated[0], t.truncated[0], t.reward[0]) == (True, False, False, 0)
        assert t.observation[0, 0] == 0
        assert t.observation[0, 1] != salt  # a new episode, a new seed
    assert env.episodes() == []
    text = log.read_text()
    assert text.count("environment 4") == 2
    assert "episode 0, step 3" in text
    assert "episode 1, step 3" in text
    assert "Traceback" in text
    env.step([2])
    env.step([2])
    with pytest.raises(UserError, match=cause) as e:
        env.step([2])
    for part in ("'test'", "slot 0", "episode 2, step 3", "`--max-env-faults` is 2", str(log)):
        assert part in str(e.value)


def test_one_faulty_slot_leaves_the_others_alone():
    made = iter([Counting(), Counting(9, "raise", 2), Counting(9)])  # the first is gym_spec's

    def factory() -> gym.Env:
        return next(made, None) or Counting(9)

    env = serial(factory, 2)
    env.reset()
    env.step([0, 0])
    t = env.step([0, 0])
    assert t.first.tolist() == [True, False]
    assert t.observation[:, 0].tolist() == [0, 2]


def test_an_environment_that_cannot_reset_uses_up_the_budget():
    spec = gym_spec(Counting, "test")
    env = SerialVectorEnv(lambda: Counting(trouble="reset"), spec, 1, max_faults=4)
    with pytest.raises(UserError, match="no reset today"):
        env.reset()


def test_a_reset_that_fails_once_is_tried_again():
    spec = gym_spec(Counting, "test")
    made = iter(["reset", "", ""])
    env = SerialVectorEnv(lambda: Counting(trouble=next(made)), spec, 1)
    t = env.reset()
    assert t.first[0]
    assert not t.truncated[0]


@pytest.mark.parametrize("mask", [None, [0, 0, 0], [1, 1]])
def test_a_bad_mask_is_a_fault(mask):
    class Bad(Composite):
        def step(self, action: int) -> Any:
            rest = super().step(action)[:4]
            return *rest, {} if mask is None else {"action_mask": np.array(mask)}

    env = serial(Bad, 1)
    env.reset()
    assert env.step([0]).first[0]


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("where", ["info", "observation", "method"])
def test_masks_are_found_wherever_environments_give_them(where, multi):
    env = envs.make(lambda: Masked(where, multi), 2, workers=0, max_faults=0)
    assert env.spec.has_action_mask
    timestep, rng = env.reset(), np.random.default_rng(0)
    Masked.forbidden = 0
    for _ in range(20):
        assert timestep.action_mask.shape == (2, 5)
        assert timestep.action_mask.sum() == 4
        timestep = env.step(random_actions(env.spec.action_space, 2, rng, timestep.action_mask))
    assert not Masked.forbidden


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mask_that_comes_unexpectedly_stops_the_run(workers):
    """Without restarts: the actions before it were chosen without a mask."""
    env = envs.make(Masked, 1, env_args={"where": "step"}, workers=workers)
    try:
        env.reset()
        with pytest.raises(UserError, match=r"gives info\['action_mask'\] in step 1.*first reset"):
            env.step([0])
    finally:
        env.close()
    box = serial(lambda: Returns(step=(np.zeros(2), 0.0, False, False, {"action_mask": [1]})), 1)
    box.reset()
    with pytest.raises(UserError, match="there was none in its first reset"):
        box.step([0])


def test_a_mask_of_the_reset_alone_is_a_fault():
    env = serial(lambda: Masked("reset"), 1, max_faults=0)
    env.reset()
    with pytest.raises(UserError, match=r"no info\['action_mask'\], and there was one"):
        env.step([0])


GOOD = np.zeros(2, np.float32)


@pytest.mark.parametrize(
    ("step", "cause"),
    [
        ((GOOD, 1.0, False, {}), "step() returned 4 values, expected (observation, reward, term"),
        (None, "step() returned a NoneType"),
        ((GOOD, 1.0, False, False, "x"), "the last value of step() is a str, expected a dict"),
        ((GOOD, 1.0, None, False, {}), "`terminated` is None, expected True or False"),
        ((GOOD, 1.0, False, "no", {}), "`truncated` is 'no', expected True or False"),
        ((GOOD, 1.0, np.array([True, True]), False, {}), "`terminated` is array("),
        ((GOOD, 1e39, False, False, {}), "the reward is 1e+39, which is beyond the range of"),
        ((GOOD + np.nan, 1.0, False, False, {}), "observation is not finite"),
    ],
)
def test_results_that_are_not_gymnasiums_are_named(step, cause):
    env = serial(lambda: Returns(step=step), 1, max_faults=0)
    env.reset()
    with pytest.raises(UserError, match="ValueError: " + re.escape(cause)):
        env.step([0])


@pytest.mark.parametrize(
    "step",
    [
        (GOOD, 1.0, False, True, None),
        [[0, 0.0], np.float64(1), np.bool_(False), 1, {"weird": object(), 3: "x"}],
        (GOOD, np.array(1), np.array([0]), np.array(True), {}),
    ],
)
def test_results_that_mean_the_same_are_taken(step):
    env = serial(lambda: Returns(reset=(GOOD, None), step=step), 1, max_faults=0)
    env.reset()
    t = env.step([0])
    assert (t.reward[0], t.terminated[0], t.truncated[0]) == (1.0, False, True)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_exit_is_a_fault(workers):
    """Otherwise it would end the run, with status 0."""
    env = envs.make(Counting, 1, env_args={"trouble": "sys.exit", "at": 1}, workers=workers)
    try:
        env.reset()
        assert env.step([0]).first[0]
        (warning,) = env.warnings()
        assert "SystemExit; restarted" in warning
    finally:
        env.close()


def test_numbers_outside_their_bounds_are_used_and_said_once():
    step = (np.full(2, 7.0, np.float32), 1.0, False, False, {})
    env = serial(lambda: Returns(step=step), 2)
    env.reset()
    assert env.warnings() == []
    for _ in range(3):
        assert env.step([0, 0]).observation[0, 0] == 7
    (warning,) = env.warnings()
    assert "observation has the value 7, outside the bounds of Box" in warning


def test_actions_are_inside_their_space_or_refused():
    env = serial(lambda: Shapes(spaces.Box(-0.1, 0.1, (1,), np.float64)), 1, max_faults=0)
    env.reset()
    assert env.step(np.full((1, 1), 0.1, np.float32)).observation[0, 0] == np.float32(0.1)
    with pytest.raises(Diverged, match="not finite"):
        env.step(np.full((1, 1), np.nan, np.float32))
    env = serial(Counting, 1)
    env.reset()
    with pytest.raises(UserError, match="agent's actions are"):
        env.step([3])


# --- processes


def test_processes_do_what_the_serial_form_does():
    a = envs.make("CartPole-v1", 3, seed=5, workers=0)
    b = envs.make("CartPole-v1", 3, seed=5, workers=2)
    try:
        rows = trace(a, 150)
        assert same(rows, trace(b, 150))
        assert any(row[2].any() for row in rows)
        finished = a.episodes()
        assert finished
        assert finished == b.episodes()
        assert b.placement == "stepped in 2 worker processes"
    finally:
        b.close()


def test_close_leaves_no_process_and_no_memory():
    env = envs.make("CartPole-v1", 2, workers=2)
    t = env.reset()
    workers = pids(env)  # type: ignore[arg-type]
    assert len(shared_blocks()) == 1
    start = time.monotonic()
    env.close()
    env.close()
    assert time.monotonic() - start < 5
    assert not shared_blocks()
    assert all(gone(pid) for pid in workers)
    assert np.isfinite(t.observation).all()  # what was handed out outlives it


def test_garbage_and_exit_leave_no_process_and_no_memory(tmp_path):
    env = envs.make("CartPole-v1", 2, workers=1)
    workers = pids(env)  # type: ignore[arg-type]
    del env
    gc.collect()
    assert not shared_blocks()
    assert all(gone(pid) for pid in workers)
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from pronk import envs\n"
        "if __name__ == '__main__':\n"
        "    env = envs.make('CartPole-v1', 2, workers=1)\n"
        "    env.reset()\n"
        "    print(os.getpid())\n"
        "    raise SystemExit(7)\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (7, "")  # the resource tracker has nothing to say
    assert not shared_blocks(int(done.stdout))


@pytest.mark.faults
def test_workers_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal\n"
        "from pronk import envs\n"
        "if __name__ == '__main__':\n"
        "    env = envs.make('CartPole-v1', 2, workers=1)\n"
        "    print(os.getpid(), *[w.pid for w in env._processes.workers], flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=60, check=False,
    )  # fmt: skip
    parent, *workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 1
    deadline = time.monotonic() + 10
    while shared_blocks(parent) or not all(map(gone, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.faults
def test_a_killed_worker_is_replaced_and_its_environments_begin_anew():
    env = envs.make(Counting, 4, workers=2, max_faults=1)
    try:
        env.reset()
        env.step([0] * 4)
        before = env.step([0] * 4)
        observation = before.observation.copy()
        first, second = pids(env)  # type: ignore[arg-type]
        os.kill(first, signal.SIGINT)  # Ctrl-C is the parent's
        os.kill(second, signal.SIGKILL)
        t = env.step([0] * 4)
        assert t.first.tolist() == [False, False, True, True]
        assert not t.truncated.any()
        assert t.observation[:, 0].tolist() == [3, 3, 0, 0]
        assert (t.observation[2:, 1] != observation[2:, 1]).all()  # a new episode, a new seed
        assert t.reward.tolist() == [-1, -1, 0, 0]
        assert pids(env)[0] == first  # type: ignore[arg-type]
        for _ in range(2):
            t = env.step([0] * 4)
        assert t.observation[:, 0].tolist() == [5, 5, 2, 2]
        assert [e.env_id for e in env.episodes()] == [0, 1]
        os.kill(pids(env)[0], signal.SIGKILL)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="exit code -9"):
            env.step([0] * 4)
    finally:
        env.close()


@pytest.mark.faults
def test_a_worker_that_hangs_is_killed_and_replaced():
    args = {"trouble": "hang", "at": 2}
    env = envs.make(Counting, 2, workers=2, max_faults=4, env_args=args, hang_after=4.0)
    try:
        before = pids(env)  # type: ignore[arg-type]
        env.reset()
        assert not env.step([0] * 2).first.any()
        t = env.step([0] * 2)
        assert t.first.all()
        assert not set(pids(env)) & set(before)  # type: ignore[arg-type]
        (one, _) = env.warnings()
        assert "their worker process did not answer for 4 s and was killed" in one
        assert not env.step([0] * 2).first.any()
    finally:
        env.close()


def test_a_worker_killed_between_episodes_begins_the_next():
    env = envs.make("CartPole-v1", 2, workers=1, env_args={"max_episode_steps": 2})
    try:
        env.reset()
        env.step([0, 0])
        assert env.step([0, 0]).truncated.all()
        os.kill(pids(env)[0], signal.SIGKILL)  # type: ignore[arg-type]
        t = env.step([0, 0])
        assert t.first.all()
        assert not t.truncated.any()
        assert np.isfinite(t.observation).all()
        assert len(env.episodes()) == 2
    finally:
        env.close()


@pytest.mark.parametrize("forgotten", [False, True])
def test_what_environments_start_ends_with_their_worker(forgotten, tmp_path):
    """Ignored signals would be inherited: `terminate` had no effect, and `close` never returned."""
    file = tmp_path / "pids"
    args = {"pids": str(file), "forgotten": forgotten}
    env = envs.make(Simulated, 1, workers=1, env_args=args)
    env.reset()
    start = time.monotonic()
    env.close()
    if not forgotten:
        assert time.monotonic() - start < 2
    started = [int(pid) for pid in file.read_text().split()]
    assert len(started) == 2
    deadline = time.monotonic() + 10
    while not all(map(gone, started)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("workers", [0, 1])
def test_sys_exit_in_an_environment_is_a_fault(workers):
    args = {"trouble": "sys.exit"}
    env = envs.make(Counting, 1, workers=workers, max_faults=1, env_args=args)
    try:
        env.reset()
        for _ in range(3):
            t = env.step([0])
        assert t.first.all()
        (one,) = env.warnings()
        assert "step 3: SystemExit; restarted" in one
        env.step([0])
        env.step([0])
        with pytest.raises(UserError, match=r"failed 2 times.*SystemExit"):
            env.step([0])
    finally:
        env.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_interrupt_in_an_environment_is_the_users(workers):
    env = envs.make(Counting, 1, workers=workers, env_args={"trouble": "interrupt"})
    try:
        env.reset()
        env.step([0])
        env.step([0])
        with pytest.raises(KeyboardInterrupt):
            env.step([0])
    finally:
        env.close()


def leaves() -> gym.Env:
    sys.exit("no display")


def test_sys_exit_in_a_constructor_is_a_users_mistake():
    with pytest.raises(UserError, match="cannot be created: SystemExit: no display"):
        envs.make(leaves, 1)


def test_an_environment_belongs_to_the_thread_that_steps_it():
    made: list[int] = []

    def factory() -> gym.Env:
        made.append(threading.get_ident())
        return Counting()

    env = envs.make(factory, 2, workers=0)
    here = len(made)
    thread = threading.Thread(target=env.reset)
    thread.start()
    thread.join()
    assert made[here:] == [thread.ident] * 2


def test_an_environment_is_looked_at_once():
    made: list[int] = []

    def factory(length: int = 5) -> gym.Env:
        made.append(length)
        return Counting(length)

    with envs.looked_at_once():
        for length in (5, 5, 6):
            envs.spec_of(factory, {"length": length})
            envs.make(factory, 2, env_args={"length": length})
            assert envs.construction_seconds(factory, {"length": length}) > 0
    assert made == [5, 5, 6, 6]  # once for the spaces, once for the speed
    envs.spec_of(factory)
    envs.spec_of(factory)
    assert made == [5, 5, 6, 6, 5, 5]


SCRIPT = """
import os, time, gymnasium as gym, numpy as np
from pronk import envs

class Slow(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        time.sleep(0.002)
        return np.zeros(2, np.float32), 1.0, False, False, {}

print("begins", flush=True)
for made, workers in ((Slow, None), ("CartPole-v1", 1), (Slow, 1)):
    try:
        env = envs.make(made, 2, workers=workers)
        env.reset()
        print(env.placement, flush=True)
        env.close()
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize("place", ["script", "stdin", "guarded"])
def test_a_script_without_a_guard_runs_once(place, tmp_path):
    """What it defines is stepped in the actor's thread, and what others define by processes."""
    root = Path(__file__).parents[1]
    path, command, text = tmp_path / "script.py", [sys.executable, "-"], SCRIPT
    if place != "stdin":
        head, _, rest = SCRIPT.partition('print("begins"')
        rest = 'print("begins"' + rest
        if place == "guarded":
            rest = 'if __name__ == "__main__":\n' + textwrap.indent(rest, "    ")
        path.write_text(head + rest)
        command, text = [sys.executable, str(path)], ""
    done = subprocess.run(
        command, input=text, env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    begins, auto, process, asked = done.stdout.splitlines()
    assert begins == "begins"
    assert process == "stepped in 1 worker process"
    if place == "guarded":
        assert auto.startswith("stepped in 2 worker processes (")
        assert asked == "stepped in 1 worker process"
    else:
        why = "notebook or console" if place == "stdin" else "would run again"
        assert re.match(r"stepped in the actor's thread \(.* ms a step; not in .*" + why, auto)
        assert re.match(r"UserError .*" + why + ".*`--env-workers 0`, from Python", asked)
    assert not done.stderr


def test_an_environment_that_workers_cannot_make_is_stepped_in_the_thread(monkeypatch):
    def fails(*_: Any, **__: Any) -> Any:
        raise UserError("a worker process ended while starting")

    monkeypatch.setattr(envs, "ProcessVectorEnv", fails)
    env = envs.make(counting_slowly, 2)
    assert isinstance(env, SerialVectorEnv)
    assert env.placement.endswith("faster: a worker process ended while starting)")


def test_faults_are_counted_over_all_workers():
    env = envs.make(dies_at_three, 2, workers=2, max_faults=1)
    env.reset()
    env.step([0, 0])
    env.step([0, 0])
    with pytest.raises(UserError, match=r"2 times, and `--max-env-faults` is 1.*exit code 3"):
        env.step([0, 0])
    assert not shared_blocks()


def test_a_slow_environment_gets_processes_and_a_fast_one_does_not(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    slow = envs.make(counting_slowly, 2)
    try:
        assert isinstance(slow, ProcessVectorEnv)
        assert slow.placement.startswith("stepped in 1 worker process (")
        assert slow.placement.endswith(" ms a step)")
    finally:
        slow.close()
    fast = envs.make(Counting, 2)
    assert isinstance(fast, SerialVectorEnv)
    assert fast.placement.startswith("stepped in the actor's thread (0.")


def test_workers_do_not_import_jax():
    code = "import sys, pronk.envs, pronk.envs.process_env; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- exact continuation


@pytest.mark.parametrize("name", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1"])
def test_restore_continues_exactly_through_the_end_of_an_episode(name):
    args = {"max_episode_steps": 60}

    def make() -> Any:
        return envs.make(name, 3, seed=2, env_args=args, workers=0, replayable=True)

    a, b = make(), make()
    trace(a, 45)
    state = a.state()
    a.episodes()
    b.restore(state)
    assert b.warnings() == []
    rows = trace(a, 80, seed=1, reset=False)
    assert any(row[4].any() for row in rows)
    assert same(rows, trace(b, 80, seed=1, reset=False))
    assert a.episodes() == b.episodes() != []


def test_restore_between_two_episodes_and_across_placements():
    a = envs.make(Counting, 3, env_args={"length": 4}, workers=0, replayable=True)
    b = envs.make(Counting, 3, env_args={"length": 4}, workers=1, replayable=True)
    try:
        trace(a, 4)
        b.reset()
        b.restore(a.state())
        rows = trace(a, 1, reset=False)
        assert rows[0][4].all()
        assert same(rows, trace(b, 1, reset=False))
        a.restore(b.state())
        assert same(trace(a, 9, reset=False), trace(b, 9, reset=False))
    finally:
        b.close()


def test_state_is_numpy_and_survives_a_fault():
    env = serial(lambda: Counting(5, "raise"), 1, replayable=True)
    trace(env, 3)
    state = env.state()
    assert (state["slot_0"]["episode"], len(state["slot_0"]["actions"])) == (1, 0)
    assert all(isinstance(v, np.ndarray | np.generic | dict) for v in state["slot_0"].values())
    other = serial(lambda: Counting(5, "raise"), 1, replayable=True)
    other.restore(state)
    assert same(trace(env, 2, reset=False), trace(other, 2, reset=False))


def test_an_inexact_replay_warns_and_begins_a_new_episode():
    env = serial(Amnesiac, 2, replayable=True)
    trace(env, 3)
    other = serial(Amnesiac, 2, replayable=True)
    other.restore(env.state())
    warnings = other.warnings()
    assert len(warnings) == 2
    assert "environment 1 of 'test' did not replay exactly" in warnings[1]
    assert other.warnings() == []
    t = other.step([0, 0])
    assert t.first.all()
    for _ in range(5):
        other.step([1, 1])
    assert [e.length for e in other.episodes()] == [5, 5]


def test_state_needs_a_declaration_and_restore_the_same_number():
    assert serial(Counting).state() is None
    state = serial(Counting, 2, replayable=True).state()
    with pytest.raises(UserError, match=r"2 environments.*--envs-per-actor 2"):
        serial(Counting, 3, replayable=True).restore(state)


# --- what can't be made


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"env": "CartPol-v1"}, "'CartPol-v1' is not registered; did you mean 'CartPole-v1'?"),
        ({"env": "pronk/Ctch-v0"}, "did you mean 'pronk/Catch-v0'?"),
        (
            {"env": "no_such_module:Env-v0"},
            "there is no module 'no_such_module'",
        ),
        ({"env_args": {"tilt": 1}}, "'CartPole-v1' does not accept these `env_args`.*tilt"),
        ({"env": "pronk/Catch-v0", "env_args": {"tilt": 1}}, "does not accept.*tilt"),
        ({"num_envs": 0}, "`num_envs` is 0, expected at least 1"),
        ({"workers": -1}, "`workers` is -1"),
        ({"seed": -1}, "`seed` is -1"),
        ({"env": never_made}, "'never_made' cannot be created: RuntimeError: out of tigers"),
        ({"env": lambda: 3}, "returned a int, expected a gymnasium.Env"),
        ({"env": int}, "factory 'int' returned a int, expected a gymnasium.Env"),
        ({"env": lambda: sys.exit(1)}, "cannot be created: SystemExit: 1"),
        ({"env": Counting(2)}, "is an environment .Counting.*expected an id, or a class"),
        ({"env": gym.make("CartPole-v1")}, "is an environment .CartPoleEnv.*'CartPole-v1', or"),
        ({"env": [Counting]}, "`env` is a list; expected an id, or a class or function"),
        ({"env": lambda: gym.make_vec("CartPole-v1", 2)}, "returned a CartPoleVectorEnv, expected"),
        ({"env": lambda: Bare()}, "has no `observation_space`"),
        ({"env": lambda: Returns(reset=np.zeros(2))}, r"reset\(\) returned a ndarray, expected"),
        ({"env": lambda: Returns(reset=(None, {}))}, r"first reset: .*has shape \(\), expected"),
        (
            {"env": lambda: Returns(reset=(Returns.good, {"action_mask": [1]}))},
            "first reset: ValueError: the action mask is .1., expected 2 booleans",
        ),
        ({"env": lambda: Counting(trouble="reset")}, "first reset: RuntimeError: no reset today"),
        (
            {"env": lambda: Counting(), "workers": 1},
            "cannot be pickled.*top level.*--env-workers 0",
        ),
        ({"env": lambda: Shapes(spaces.Text(3)), "workers": 0}, "not supported"),
    ],
)
def test_errors_of_make(given, message):
    with pytest.raises(UserError, match=message):
        envs.make(**{"env": "CartPole-v1", "num_envs": 2, **given})


def test_a_missing_package_is_named(monkeypatch):
    def absent(*args: Any, **kwargs: Any) -> gym.Env:
        raise gym.error.DependencyNotInstalled('run `pip install "gymnasium[mujoco]"`')

    monkeypatch.setattr(gym, "make", absent)
    with pytest.raises(UserError, match=r"package that is not installed.*gymnasium\[mujoco\]"):
        envs.make("Ant-v5", 1)


def test_a_worker_that_cannot_make_its_environment_says_so():
    with pytest.raises(UserError, match="out of tigers"):
        ProcessVectorEnv(never_made, gym_spec(Counting, "test"), 2, workers=1)
    gc.collect()
    assert not shared_blocks()


def test_names_and_specs():
    names = envs.names()
    assert {"pronk/Catch-v0", "ALE/Pong-v5", "CartPole-v1"} <= set(names)
    assert len(names) == len(set(names))
    spec = envs.spec_of("CartPole-v1")
    assert isinstance(spec, EnvSpec)
    assert (spec.name, spec.frames_per_step) == ("CartPole-v1", 1)


def test_pronks_own_environments():
    assert envs.jax_env_of("CartPole-v1") is None
    assert envs.jax_env_of(Counting) is None
    own = envs.jax_env_of("pronk/Catch-v0", {"rows": 6})
    assert own is not None
    assert own.spec.observation_space.shape == (6, 5)
    assert envs.spec_of("pronk/Catch-v0").name == "pronk/Catch-v0"
    env = envs.make("pronk/Catch-v0", 2)
    assert env.reset().first.all()
    assert env.placement
