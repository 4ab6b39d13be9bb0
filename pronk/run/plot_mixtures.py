"""The panel of a run's plot that shows which mixtures acted, and which one returned most."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, takewhile
from typing import Any, NamedTuple

import numpy as np

from pronk.run.monitor import best_mixture
from pronk.storage.files import is_number

_SHARES = "Blues"  # a colour map, from 0 to the largest share
_BEST = "#D55E00"


class Mixtures(NamedTuple):
    """What R records say of N mixtures."""

    x: np.ndarray  # [R]
    shares: np.ndarray  # [R, N], of the recent transitions
    best: np.ndarray  # [R], the mixture that returned most; NaN where none has returned anything


def read(records: Sequence[dict[str, Any]], x: str) -> Mixtures | None:
    """The mixtures in records that have metric `x`, in their order; None where none has two or
    more, as with a single one there is nothing to compare."""

    def shares(record: dict[str, Any]) -> list[Any]:
        values = (record.get(f"mixture/share/{j}") for j in count())
        return list(takewhile(is_number, values))

    found = [(record, shares(record)) for record in records]
    mixtures = max((len(parts) for _, parts in found), default=0)
    found = [(record, parts) for record, parts in found if parts and len(parts) == mixtures]
    if mixtures < 2 or not found:
        return None
    best = [best_mixture(record) for record, _ in found]
    return Mixtures(
        np.array([record[x] for record, _ in found], float),
        np.array([parts for _, parts in found], float),
        np.array([np.nan if j is None else j for j in best], float),
    )


def draw(figure: Any, axes: Any, mixtures: Mixtures) -> None:
    """Draw the mixtures on matplotlib `axes`: a row of colours for each, and a line for the best
    one."""
    from matplotlib.ticker import MaxNLocator  # slow to import

    middles, number = mixtures.x, mixtures.shares.shape[1]
    between = (middles[1:] + middles[:-1]) / 2
    edges = np.concatenate([middles[:1], between, middles[-1:]])
    if edges[0] == edges[-1]:  # a single record
        edges = edges + np.linspace(-0.5, 0.5, len(edges))
    rows = np.arange(number + 1) - 0.5
    colours = axes.pcolormesh(
        edges, rows, mixtures.shares.T, cmap=_SHARES, vmin=0.0, rasterized=True
    )
    if np.isfinite(mixtures.best).any():
        marker = "o" if len(middles) == 1 else None
        style = {"color": _BEST, "linewidth": 1.8, "marker": marker, "label": "best mixture"}
        axes.plot(middles, mixtures.best, drawstyle="steps-mid", **style)
        axes.legend(frameon=True, framealpha=0.8, fontsize="small", loc="upper right")
    axes.set_ylim(-0.5, number - 0.5)
    axes.set_ylabel("mixture")
    axes.yaxis.set_major_locator(MaxNLocator(9, integer=True))
    bar = figure.colorbar(colours, ax=axes, location="bottom", aspect=60, fraction=0.04)
    bar.set_label("share of the recent agent steps", fontsize="small")
    bar.ax.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    bar.ax.tick_params(labelsize="small")
    bar.outline.set_visible(False)
