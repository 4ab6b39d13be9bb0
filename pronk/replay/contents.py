"""What a replay holds: rows, and the sequences of rows that can be drawn."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pronk.errors import UserError
from pronk.replay.items import Drawn, Items
from pronk.replay.parts import Part, Parts, Store
from pronk.replay.sequences import Cut, Source, is_padding
from pronk.replay.store import Rows
from pronk.types import Array, Feedback, PyTree, Sequences, TimeStep, Trajectory


class Contents:
    """Rows and items, which hold rows; see `Replay` for the arguments. Not thread-safe."""

    def __init__(
        self, spec: Sequences, example: tuple[TimeStep, PyTree, dict[str, PyTree]], core: PyTree
    ):
        self._capacity = spec.capacity
        self.cut = Cut(spec.burn_in, spec.length, spec.length - spec.overlap, spec.tails)
        self.rows = Rows(spec.capacity, example, spec.compress)
        self.items = Items(spec, self.cut, core)
        stores: dict[str, Store] = {"rows": self.rows, "items": self.items}
        self.parts = Parts(stores | {f"frames{i}": x for i, x in self.rows.stacks.items()})

    def make_room(self, rows: int, continues: dict[int, Array]) -> None:
        """Evict sequences until `rows` rows and their frames can be reserved."""
        while count := self.rows.shortage(rows, continues, self.cut.rows):
            if len(self.items) == 0:
                raise UserError(
                    f"`--replay-capacity` is {self._capacity}, and the running episodes of all"
                    " environments alone need more rows; give a larger one, or fewer environments."
                )
            evicted = self.items.evict(min(count, len(self.items)))
            self.rows.release(evicted.reshape(-1))

    def insert(self, source: Source, trajectory: Trajectory, places: Array) -> int:
        """Insert the sequences that held rows at `places` `[T, B]` complete; returns their number.
        Rows that are no longer needed are released."""
        count = 0
        for column, new, unused in source.cut(trajectory, places):
            if len(new.rows):
                self.rows.places.hold(new.rows.reshape(-1))
                priorities = self.rows.priorities(new.rows[:, self.cut.burn_in])
                evicted = self.items.insert(new, int(trajectory.version[column]), priorities)
                self.rows.release(evicted.reshape(-1))
                count += len(new.rows)
            self.rows.release(unused)
        return count

    def mask_padding(self, timestep: TimeStep, drawn: Drawn) -> TimeStep:
        """Give the rows that follow an episode's end no weight: they are `first`."""
        after = is_padding(drawn.rows, drawn.transitions, self.cut.burn_in)[1].T
        return timestep._replace(
            first=timestep.first | after,
            terminated=timestep.terminated & ~after,
            truncated=timestep.truncated & ~after,
            reward=np.where(after, 0, timestep.reward),
        )

    def revise(self, keys: Array, feedback: Feedback) -> int:
        """See `Replay.revise`; leaves are NumPy. Returns the number of evicted sequences."""
        slots, present = self.items.find(keys)
        slots = slots[present]
        if feedback.priorities is not None:
            self.items.prioritise(slots, feedback.priorities[present])
        if feedback.extras:
            rows = self.items.rows[slots]
            before, after = is_padding(rows, self.items.transitions(slots), self.cut.burn_in)
            real = ~before & ~after
            for name, x in feedback.extras.items():
                if x.shape[:2] != (self.cut.rows, len(keys)):
                    raise ValueError(
                        f"feedback's extras '{name}' have shape {x.shape}; expected"
                        f" {(self.cut.rows, len(keys))} and more, as drawn."
                    )
            values = {k: x.swapaxes(0, 1)[present][real] for k, x in feedback.extras.items()}
            self.rows.revise(rows[real], values)
        return len(keys) - len(slots)

    def save(self) -> tuple[dict[str, PyTree], list[Part], set[int]]:
        """The state without arrays by place; the parts of those that are in no segment yet; and
        the segments that are still needed."""
        parts = self.parts.rest()
        numbers = {"next_segment": np.int64(self.parts.next_segment)}
        return self.items.save() | numbers, parts, self.parts.needed()

    def restore(self, tree: PyTree, parts: Iterable[Part], sources: Iterable[Source]) -> None:
        """Set the state that `save` returned; `sources` hold rows, too."""
        self.parts.load(parts)
        self.parts.next_segment = int(tree["next_segment"])
        self.items.restore(tree)
        held = np.zeros(self.rows.places.capacity, np.int32)
        np.add.at(held, self.items.rows[tree["slots"]].reshape(-1), 1)
        for source in sources:
            np.add.at(held, source.rows(), 1)
        self.rows.restore(held)
