"""A strip below the frames of a film that shows the intrinsic reward of each step."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pronk.types import Array

# What is shown of `extras`, and as what; see `pronk.agents.novelty`.
_REWARD = "intrinsic_reward"
_LABELS = {_REWARD: "rⁱ", "alpha": "α", "mixture": "mixture"}
_FONT_SIZE, _LINE, _MARGIN = 12, 18, 6  # pixels
_GRAPH, _STEP = 24, 2  # height of the graph, and width of a step in it
_BACKGROUND, _BORDER, _TEXT = (24, 24, 24), (110, 110, 110), (235, 235, 235)
_COLUMN = (230, 159, 0)


@functools.cache
def _font() -> Any:
    import matplotlib  # slow to import; it has a font with Greek letters
    from PIL import ImageFont

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(path), _FONT_SIZE)


class NoveltyStrip:
    """The strip of a film of this width, even and in pixels.

    It has the numbers of the step, and a graph of the intrinsic rewards of the last steps, on the
    right the newest; the highest column is the largest of them.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._rewards: deque[float] = deque(maxlen=max(1, width // _STEP))

    def below(self, frame: Array, extras: Mapping[str, Array]) -> Array:
        """A frame, uint8 `[H, W, 3]`, with the strip below it, for the `extras` of one slot; the
        frame itself where there is no intrinsic reward among them."""
        found = {name: np.asarray(extras[name]) for name in _LABELS if name in extras}
        shown = {name: value.item() for name, value in found.items() if value.size == 1}
        reward = shown.get(_REWARD)
        if not isinstance(reward, float):
            return frame
        self._rewards.append(reward if np.isfinite(reward) else 0.0)
        texts = [f"{_LABELS[name]} {value:.3g}" for name, value in shown.items()]
        return np.concatenate([frame, self._text(texts), self._graph()])

    def _text(self, texts: list[str]) -> Array:
        """The texts side by side, as many in a line as fit."""
        from PIL import Image, ImageDraw

        font = _font()
        column = max(1, int(font.getlength("mixture 00") + 2 * _MARGIN))
        across = max(1, self._width // column)
        lines = -(-len(texts) // across)
        image = Image.new("RGB", (self._width, lines * _LINE), _BACKGROUND)
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, 0, self._width, 1), _BORDER)
        for i, text in enumerate(texts):
            at = (i % across * column + _MARGIN, i // across * _LINE + 3)
            draw.text(at, text, _TEXT, font)
        return np.asarray(image)

    def _graph(self) -> Array:
        rewards = np.array(self._rewards)
        scale = max(float(rewards.max()), 1e-9)
        heights = np.ceil((_GRAPH - 2) * np.clip(rewards / scale, 0.0, 1.0)).repeat(_STEP)
        heights = heights[-self._width :]
        graph = np.full((_GRAPH, self._width, 3), _BACKGROUND, np.uint8)
        filled = np.arange(_GRAPH)[::-1, None] < heights
        graph[:, self._width - len(heights) :][filled] = _COLUMN
        return graph
