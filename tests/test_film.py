"""Films of environments that render in every way that they might, without writing any."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from pronk.envs import film
from pronk.envs.film import as_frame
from pronk.errors import UserError
from pronk.run.record import _fitted, _resized

COLOUR = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


class Scene(gym.Env):
    """Renders `picture`, at `rate` frames per second."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(
        self, picture: Any = COLOUR, rate: Any = 10, render_mode: str | None = None
    ) -> None:
        self.picture, self.render_mode = picture, render_mode
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": rate}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 1.0, False, False, {}

    def render(self) -> Any:
        if isinstance(self.picture, Exception):
            raise self.picture
        return self.picture


class AlwaysRenders(Scene):
    """Has no argument for it."""

    def __init__(self) -> None:
        super().__init__(render_mode="rgb_array")


def never_renders() -> gym.Env:
    return Scene()


@pytest.mark.parametrize(
    "picture",
    [
        COLOUR,
        [COLOUR + 1, COLOUR],
        COLOUR.astype(np.int64),
        np.dstack([COLOUR, np.full((2, 4), 9, np.uint8)]),
        COLOUR / 255.0,
    ],
)
def test_pictures_in_colour(picture: Any) -> None:
    frame = as_frame(picture)
    assert frame.dtype == np.uint8
    assert np.array_equal(frame, COLOUR)


@pytest.mark.parametrize("picture", [np.eye(3) > 0, np.eye(3), np.eye(3)[..., None].astype("f4")])
def test_grey_pictures(picture: Any) -> None:
    assert np.array_equal(as_frame(picture), np.dstack([np.eye(3, dtype=np.uint8) * 255] * 3))


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (None, "returned a NoneType, expected an array"),
        ("text", "returned a str"),
        ([], "returned float64"),
        (np.zeros((2, 3, 5), np.uint8), r"returned uint8 \(2, 3, 5\)"),
        (np.zeros((0, 3, 3), np.uint8), "returned uint8"),
        (np.full((2, 2, 3), 300), "returned int64 from 300 to 300, expected uint8, or floats"),
        (np.full((2, 2, 3), np.nan), "from nan to nan"),
        (np.full((2, 2, 3), -0.5), "from -0.5"),
    ],
)
def test_what_is_no_picture_is_named(picture: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_frame(picture)


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(10, 10), (None, 30), (0, 30), (-1, 30), ("fast", 30), (float("inf"), 30)],
)
def test_a_film_has_a_rate(rate: Any, expected: float) -> None:
    made = film.make(Scene, env_args={"rate": rate})
    assert made.frames_per_second == expected
    made.env.reset()
    assert np.array_equal(made.picture(), COLOUR)


def test_environments_are_asked_for_pictures_if_they_can_be() -> None:
    made = film.make(AlwaysRenders)
    assert np.array_equal(made.picture(), COLOUR)
    with pytest.raises(UserError, match=r"never_renders.*takes no `render_mode`, and makes no"):
        film.make(never_renders)
    for picture, message in (
        (None, "Scene.*cannot be filmed: render.. returned a NoneType, expected an array"),
        (KeyError("x"), "cannot be filmed: render.. failed: KeyError: 'x'"),
    ):
        with pytest.raises(UserError, match=message):
            film.make(Scene, env_args={"picture": picture}).picture()


@pytest.mark.parametrize("shape", [(300, 1), (61, 83), (2, 1), (1, 300), (20, 20)])
def test_frames_have_even_sizes(shape: tuple[int, int]) -> None:
    frame = _resized(np.ones((*shape, 3), np.uint8))
    assert not any(n % 2 for n in frame.shape[:2])
    assert min(frame.shape) > 1


def test_frames_of_another_size_are_fitted_to_the_film() -> None:
    assert _fitted(COLOUR, COLOUR.shape) is COLOUR
    assert np.array_equal(_fitted(COLOUR.repeat(3, 0).repeat(2, 1), COLOUR.shape), COLOUR)
    assert _fitted(COLOUR, (6, 2, 3)).shape == (6, 2, 3)
