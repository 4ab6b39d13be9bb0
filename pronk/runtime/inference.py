"""Central inference with dynamic batching: one call of the network acts for many actors.

The rows "dyn. batch" of IMPALA's throughput table, as in its released code's batcher: a batch is
taken when `minimum` requests wait or the oldest has waited for `timeout`, and holds at most
`maximum`. The newest parameters act, so they may change within an unroll: the log-probabilities
stored beside the actions are of those that acted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from pronk.runtime.actor import Player, Row, jit_act
from pronk.types import Agent, Array, Carry, Key, PyTree, TimeStep


class _Request:
    """One actor's question, and room for the answer."""

    def __init__(self, timestep: TimeStep, carry: Carry):
        self.timestep, self.carry = timestep, carry
        self.asked = time.monotonic()
        self.answered = threading.Event()
        self.answer: tuple[Array, Carry, dict[str, Array]] | None = None


class Batching(NamedTuple):
    """When the server acts, in requests; each is of all of an actor's environments."""

    minimum: int
    maximum: int
    timeout: float  # seconds


class InferenceServer:
    """A thread that acts for all actors, with the parameters that `latest` returns."""

    def __init__(self, agent: Agent, key: Key, latest: Callable[[], PyTree], batching: Batching):
        self._act = agent.act
        self._key = key
        self._latest = latest
        self._batching = batching
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None
        self.batches = self.requests = 0  # answered
        self._thread = threading.Thread(target=self._serve, name="inference", daemon=True)
        self._thread.start()

    def act(self, timestep: TimeStep, carry: Carry) -> tuple[Array, Carry, dict[str, Array]]:
        """`Agent.act` for one actor's rows `[B, ...]`, together with others' that wait now."""
        request = _Request(timestep, carry)
        with self._changed:
            if not self._closed:
                self._waiting.append(request)
                self._changed.notify()
        while not request.answered.wait(0.2):
            if self._closed:
                break
        if request.answer is None:
            raise self._error or RuntimeError("the inference server was closed")
        return request.answer

    def close(self) -> None:
        """Stop serving; whoever waits gets an error. Safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=60)

    def _serve(self) -> None:
        try:
            while requests := self._next():
                self._answer(requests)
        except BaseException as error:  # whoever asks is told
            self._error = error
            self._closed = True

    def _next(self) -> list[_Request]:
        """The requests to answer now, waiting for them; none once closed."""
        minimum, maximum, timeout = self._batching
        with self._changed:
            while not self._closed:
                if len(self._waiting) >= minimum:
                    break
                left = None  # nobody waits: sleep until somebody does
                if self._waiting:
                    left = self._waiting[0].asked + timeout - time.monotonic()
                    if left <= 0:
                        break
                self._changed.wait(left)
            else:
                return []
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), maximum))]

    def _answer(self, requests: list[_Request]) -> None:
        # Compiled for powers of two only: what is missing is filled with the first request.
        room = min(1 << (len(requests) - 1).bit_length(), self._batching.maximum)
        filled = requests + requests[:1] * (room - len(requests))
        timestep, carry = jax.tree.map(
            lambda *x: np.concatenate(x), *[(r.timestep, r.carry) for r in filled]
        )
        answer = jit_act(
            self._act, self._latest(), carry, timestep, self._key, np.uint32(self.batches)
        )
        answer = jax.tree.map(np.asarray, answer)
        self.batches += 1
        self.requests += len(requests)
        width = timestep.reward.shape[0] // room
        for i, request in enumerate(requests):
            request.answer = jax.tree.map(lambda x, i=i: x[i * width : (i + 1) * width], answer)
            request.answered.set()


class CentralPlayer(Player):
    """Remembers its slots' carry, and asks the server what to do."""

    def __init__(
        self, server: InferenceServer, agent: Agent, key: Key, env_ids: Array, num_envs: int
    ):
        super().__init__(agent, key, env_ids, num_envs)
        self._server = server

    def act(self, behaviour: PyTree, timestep: TimeStep) -> Row:
        """Decide what to do at `timestep`, by the server's parameters."""
        core = self.carry.core
        action, self.carry, extras = self._server.act(timestep, self.carry)
        return Row(timestep, action, extras, core)
