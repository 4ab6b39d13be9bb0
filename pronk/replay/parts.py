"""The contents of a replay's stores, in parts for a log that has each content once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np

from pronk.replay.places import Places
from pronk.types import Array

# Contents are saved in parts of this many places, so that no large copy of them is made.
PLACES_PER_PART = 1 << 12


class Part(NamedTuple):
    """Contents of a store for one segment of the log."""

    segment: int
    store: str
    places: Array  # int32 [n]
    contents: dict[str, Array]


class Store(Protocol):
    """Contents by place."""

    places: Places

    def contents(self, places: Array, /) -> dict[str, Array]:
        """The arrays to save."""
        ...

    def load(self, places: Array, contents: dict[str, Array], /) -> None:
        """The inverse of `contents`."""
        ...


class Parts:
    """Divides the contents of stores into parts, and counts these."""

    def __init__(self, stores: dict[str, Store]):
        self._stores = stores
        self.next_segment = 0

    def full(self) -> Part | None:
        """New contents, if one store has enough for a whole part.

        Contents that were saved and have been revised since wait for `rest`: they may change many
        times between two checkpoints.
        """
        for name, store in self._stores.items():
            new = store.places.unsaved(revised=False)
            if len(new) >= PLACES_PER_PART:
                return self._part(name, new[:PLACES_PER_PART])
        return None

    def rest(self) -> list[Part]:
        """All contents that are in no segment yet, or have been revised since."""
        parts = []
        for name, store in self._stores.items():
            new = store.places.unsaved(revised=True)
            for begin in range(0, len(new), PLACES_PER_PART):
                parts.append(self._part(name, new[begin : begin + PLACES_PER_PART]))
        return parts

    def needed(self) -> set[int]:
        """The segments that have contents of held places, after `rest`."""
        segments: set[int] = set()
        for store in self._stores.values():
            held = store.places.held > 0
            segments |= set(np.unique(store.places.segment[held]).tolist())
        return segments

    def load(self, parts: Iterable[Part]) -> None:
        """Load parts in the order of their segments: a later one has the newer contents."""
        for part in parts:
            store = self._stores[part.store]
            store.load(part.places, part.contents)
            store.places.segment[part.places] = part.segment

    def _part(self, name: str, places: Array) -> Part:
        store = self._stores[name]
        part = Part(self.next_segment, name, places, store.contents(places))
        store.places.segment[places] = part.segment
        self.next_segment += 1
        return part
