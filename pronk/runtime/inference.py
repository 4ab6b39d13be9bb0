"""Central inference with dynamic batching: one call of the network acts for many actors.

The rows "dyn. batch" of IMPALA's throughput table, as in its released code's batcher: a batch is
taken when `minimum` requests wait or the oldest has waited for `timeout`, and holds at most
`maximum`. The newest parameters act, so they may change within an unroll: the log-probabilities
stored beside the actions are of those that acted.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pronk.runtime.actor import Player, Row
from pronk.runtime.cpus import pin_threads
from pronk.types import Agent, Array, Carry, Key, PyTree, TimeStep


class _Request(NamedTuple):
    """One actor's rows, and the queue for its answer."""

    leaves: list[Array]  # of its timestep and recurrent state, all `[B, ...]`
    structure: Any
    slots: Array  # int32 [B], where its private states are kept
    answer: queue.SimpleQueue[_Answer]
    asked: float


class _Answer(NamedTuple):
    """The decisions for a whole batch, of which a request's rows begin at `start`."""

    leaves: list[Array]
    structure: Any
    start: int


class Batching(NamedTuple):
    """When the server acts, in requests; a request has all of an actor's environments."""

    minimum: int
    maximum: int
    timeout: float  # seconds


class InferenceServer:
    """A thread that acts for all actors, with the behaviour that `latest` returns.

    Actors do in their own threads what they can: the server only joins the rows of a batch, acts,
    and hands each of them the whole answer.
    """

    def __init__(
        self,
        agent: Agent,
        key: Key,
        latest: Callable[[], PyTree],
        batching: Batching,
        actor_cores: int | None = None,
    ):
        self._act = agent.act
        self._key = key
        self._latest = latest
        self._batching = batching
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._private: PyTree = ()  # of all slots, `[N, ...]`: it does not travel
        self._slots: dict[int, Array] = {}  # by the first environment's id
        self._lock = threading.Lock()  # on the two
        self._begin = pin_threads(actor_cores)
        self._closed = False
        self._error: BaseException | None = None
        self.batches = self.requests = 0  # answered
        self._thread = threading.Thread(target=self._serve, name="inference", daemon=True)
        self._thread.start()

    def register(self, env_ids: Array, private: PyTree) -> Array:
        """Keep an actor's private states; returns their slots, int32 `[B]`. An actor that is
        restarted gets the same slots again."""
        with self._lock:
            slots = self._slots.get(int(env_ids[0]))
            if slots is None:
                begin = sum(map(len, self._slots.values()))
                slots = np.arange(begin, begin + len(env_ids), dtype=np.int32)
                if not self._slots:
                    self._private = private
                else:
                    self._private = jax.tree.map(
                        lambda xs, x: jnp.concatenate([xs, x]), self._private, private
                    )
                self._slots[int(env_ids[0])] = slots
            else:
                self._private = jax.tree.map(
                    lambda xs, x: xs.at[slots].set(x), self._private, private
                )
        return slots

    def act(
        self, timestep: TimeStep, core: PyTree, slots: Array
    ) -> tuple[Array, PyTree, dict[str, Array]]:
        """`Agent.act` for one actor's rows `[B, ...]`, together with other waiting rows; returns
        the action, the recurrent state and the extras."""
        leaves, structure = jax.tree.flatten((timestep, core))
        reply: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        self._requests.put(_Request(leaves, structure, slots, reply, time.monotonic()))
        while True:
            try:
                answer = reply.get(timeout=0.2)
                break
            except queue.Empty:
                if self._closed:
                    error = self._error or RuntimeError("the inference server was closed")
                    raise error from None
        rows = slice(answer.start, answer.start + timestep.reward.shape[0])
        return answer.structure.unflatten([x[rows] for x in answer.leaves])

    def failed(self) -> bool:
        """Whether it ended by an error, which `act` raises."""
        return self._error is not None

    def close(self) -> None:
        """Stop serving; waiting actors get an error. Safe to call twice."""
        self._requests.put(None)
        self._thread.join(timeout=60)

    def _serve(self) -> None:
        try:
            self._begin()
            while requests := self._next():
                self._answer(requests)
        except BaseException as error:  # `act` raises it
            self._error = error
        self._closed = True

    def _next(self) -> list[_Request]:
        """The requests to answer now, waiting for them; none once closed."""
        minimum, maximum, timeout = self._batching
        request = self._requests.get()
        requests: list[_Request] = []
        while request is not None:
            requests.append(request)
            if len(requests) == maximum:
                return requests
            left = requests[0].asked + timeout - time.monotonic()
            wait = len(requests) < minimum and left > 0
            try:
                request = self._requests.get(wait, left if wait else None)
            except queue.Empty:
                return requests
        return []

    def _answer(self, requests: list[_Request]) -> None:
        # Compiled for few sizes only: what is missing is filled with the first request.
        room = min(_size(len(requests)), self._batching.maximum)
        filled = requests + requests[:1] * (room - len(requests))
        joined = [np.concatenate(x) for x in zip(*[r.leaves for r in filled], strict=True)]
        timestep, core = requests[0].structure.unflatten(joined)
        # Rows that only fill the batch belong to no slot.
        missing = np.full(len(timestep.reward), np.iinfo(np.int32).max, np.int32)
        slots = np.concatenate([r.slots for r in requests])
        slots = np.concatenate([slots, missing[len(slots) :]])
        behaviour, count = self._latest(), np.uint32(self.batches)
        with self._lock:
            *answer, self._private = _act_on_slots(
                self._act, behaviour, core, self._private, slots, timestep, self._key, count
            )
        leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, answer))
        self.batches += 1
        self.requests += len(requests)
        width = timestep.reward.shape[0] // room
        for i, request in enumerate(requests):
            request.answer.put(_Answer(leaves, structure, i * width))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _act_on_slots(
    act: Any,
    behaviour: PyTree,
    core: PyTree,
    private: PyTree,
    slots: Array,
    timestep: TimeStep,
    key: Key,
    count: Array,
) -> tuple[Array, PyTree, dict[str, Array], PyTree]:
    """`act` for rows `[B]` whose private states are `private[slots]`, updated in place."""
    own = jax.tree.map(lambda x: x.at[slots].get(mode="clip"), private)
    action, carry, extras = act(
        behaviour, Carry(core, own), timestep, jax.random.fold_in(key, count)
    )
    private = jax.tree.map(lambda xs, x: xs.at[slots].set(x, mode="drop"), private, carry.private)
    return action, carry.core, extras, private


def _size(count: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16 … that is not below `count`."""
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if power > 2 and count <= power * 3 // 4 else power


class CentralPlayer(Player):
    """Keeps its slots' recurrent states, and asks the server what to do."""

    def __init__(
        self, server: InferenceServer, agent: Agent, key: Key, env_ids: Array, num_envs: int
    ):
        super().__init__(agent, key, env_ids, num_envs)
        self._server = server
        self._slots = server.register(env_ids, self.carry.private)
        self.carry = Carry(self.carry.core)  # its private part is the server's

    def act(self, behaviour: PyTree, timestep: TimeStep) -> Row:
        """Decide what to do at `timestep`, by the server's parameters."""
        core = self.carry.core
        action, new_core, extras = self._server.act(timestep, core, self._slots)
        self.carry = Carry(new_core)
        return Row(timestep, action, extras, core)
