"""An environment of one's own: Gymnasium's interface, a dictionary observation, an action mask.

    pronk train impala examples.custom_environment:Grid-v0 --env-arg size=4 --steps 100000
    python examples/custom_environment.py

The part before the colon is a module that registers the environment when it is imported; Python
must be able to find it (the current directory is searched, too).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

import pronk

MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])  # up, down, left, right


class Grid(gym.Env):
    """Walk from a random cell to another one, the goal, on a grid of `size` × `size` cells.

    Reward 1 at the goal and -0.1 for every other step. All randomness is `self.np_random`, so that
    an episode can be repeated from its seed and actions: `--deterministic` runs resume that way.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012

    def __init__(self, size: int = 5, render_mode: str | None = None):
        # `--env-arg size=4` arrives here; `pronk record` passes `render_mode="rgb_array"`.
        if size < 2:
            raise ValueError(f"`size` is {size}; expected at least 2")
        self.size, self.render_mode = size, render_mode
        # Integers become one-hot inputs, images pass through convolutions, other numbers are taken
        # as they are: scale them to about ±1.
        cell = spaces.MultiDiscrete([size, size])
        self.observation_space = spaces.Dict({"agent": cell, "goal": cell})
        self.action_space = spaces.Discrete(4)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        cells = self.np_random.choice(self.size**2, 2, replace=False)
        self.agent, self.goal = (np.array(divmod(int(cell), self.size)) for cell in cells)
        self.steps = 0
        return self._observation(), self._info()

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.agent = np.clip(self.agent + MOVES[action], 0, self.size - 1)
        self.steps += 1
        terminated = bool((self.agent == self.goal).all())
        # A time limit is a truncation: the agent learns that the episode could have gone on.
        truncated = self.steps >= 8 * self.size
        reward = 1.0 if terminated else -0.1
        return self._observation(), reward, terminated, truncated, self._info()

    def _observation(self) -> dict[str, np.ndarray]:
        return {"agent": self.agent.copy(), "goal": self.goal.copy()}

    def _info(self) -> dict[str, Any]:
        """True for the actions allowed now, those that stay on the grid; in every step."""
        after = self.agent + MOVES
        return {"action_mask": ((after >= 0) & (after < self.size)).all(axis=1)}

    def render(self) -> np.ndarray | None:
        if self.render_mode != "rgb_array":
            return None
        picture = np.full((self.size, self.size, 3), 30, np.uint8)
        picture[tuple(self.goal)] = (80, 200, 120)
        picture[tuple(self.agent)] = (240, 140, 40)
        return picture.repeat(32, axis=0).repeat(32, axis=1)


gym.register(id="Grid-v0", entry_point=f"{__name__}:Grid")


def main(steps: int = 100_000, run_dir: str | Path = "runs/grid") -> float:
    """Train from Python, and evaluate; returns the evaluation's mean return."""
    # `env` is a factory, called with `env_args` for every environment. It need not be registered.
    pronk.train("impala", Grid, env_args={"size": 4}, steps=steps, run_dir=run_dir)
    # A factory has no name by which it could be found again, so that it is given again.
    result = pronk.load(run_dir, env=Grid).evaluate(episodes=100).as_json()
    print(f"mean return {result['mean_return']:.2f}")
    return result["mean_return"]


# Slow environments are stepped in worker processes. Each of them imports this file to find `Grid`;
# without the guard it would start to train as well.
if __name__ == "__main__":
    main()
