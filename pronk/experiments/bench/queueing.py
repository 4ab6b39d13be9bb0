"""A queueing model of the architectures: simulated in virtual time, from what the parts cost.

Environments wait, everything else is work on `cores` processors that are shared fairly; queues are
those of the runtimes. What the model leaves out is what a difference from a measurement means:
Python's lock, caches, and the operating system.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from pronk.envs.waiting import Pace


class Costs(NamedTuple):
    """Seconds of one core."""

    step: float  # one environment's step and inference, its waiting left out
    step_all: float  # the same for all environments together
    batch: float  # central inference, per batch
    request: float  # central inference, per request
    assemble: float  # of a batch of one trajectory per environment
    update: float  # from such a batch
    speedup: float  # of an update on all cores
    gradient: float  # from one environment's trajectory
    apply: float  # a gradient, and the snapshot for actors


class Wait(NamedTuple):
    """Yielded by a process that sleeps."""

    seconds: float


class Work(NamedTuple):
    """Yielded by a process that computes, on `width` cores at most; `acts` on actors' cores."""

    seconds: float
    width: float = 1.0
    acts: bool = False


class Get(NamedTuple):
    """Yielded by a process that wants an item; what is yielded back is the item."""

    store: Store


class Put(NamedTuple):
    """Yielded by a process that has an item, and waits until there is room."""

    store: Store
    item: Any


Process = Generator[Any, Any, None]


class Store:
    """A bounded queue."""

    def __init__(self, capacity: int = 1 << 30):
        self.capacity = capacity
        self.items: deque[Any] = deque()
        self.getters: deque[Process] = deque()
        self.putters: deque[tuple[Process, Any]] = deque()


class _Jobs:
    """Jobs of one width, each of which gets the same share of the processors."""

    def __init__(self) -> None:
        self.served = 0.0  # seconds of work done on each job that was there all the time
        self.ends: list[tuple[float, int, Process]] = []  # a heap, by `served` when done

    def __len__(self) -> int:
        return len(self.ends)


class Simulation:
    """Runs processes in virtual time; processors are shared fairly among those that compute.

    All that acts has at most `actor_cores` of them together.
    """

    def __init__(self, cores: int, actor_cores: int | None = None):
        self.now = 0.0
        self._cores = cores
        self._actor_cores = cores if actor_cores is None else actor_cores
        self._sleeping: list[tuple[float, int, Process]] = []
        self._jobs: dict[tuple[float, bool], _Jobs] = {}  # by width, and whether they act
        self._ready: deque[tuple[Process, Any]] = deque()
        self._order = itertools.count()

    def start(self, process: Process) -> None:
        """Begin a process."""
        self._ready.append((process, None))

    def run(self, until: float) -> None:
        """Let virtual time pass."""
        while self.now < until:
            while self._ready:
                self._advance(*self._ready.popleft())
            rates = self._rates()
            then = min(until, self._sleeping[0][0]) if self._sleeping else until
            for jobs, rate in rates:
                then = min(then, self.now + (jobs.ends[0][0] - jobs.served) / rate)
            for jobs, rate in rates:
                jobs.served += rate * (then - self.now)
                while jobs.ends and jobs.ends[0][0] <= jobs.served + 1e-12:
                    self._ready.append((heapq.heappop(jobs.ends)[2], None))
            self.now = then
            while self._sleeping and self._sleeping[0][0] <= self.now:
                self._ready.append((heapq.heappop(self._sleeping)[2], None))

    def _rates(self) -> list[tuple[_Jobs, float]]:
        """Cores that each job has: equal shares, and what one can't use is the others'."""
        most = []
        for (width, acts), jobs in self._jobs.items():
            if jobs.ends:
                most.append((min(width, self._actor_cores / len(jobs)) if acts else width, jobs))
        rates, cores, left = [], float(self._cores), sum(len(jobs) for _, jobs in most)
        for limit, jobs in sorted(most, key=lambda entry: entry[0]):
            rate = min(limit, cores / left)
            rates.append((jobs, rate))
            cores, left = cores - rate * len(jobs), left - len(jobs)
        return rates

    def _advance(self, process: Process, value: Any) -> None:
        try:
            asked = process.send(value)
        except StopIteration:
            return
        if isinstance(asked, Wait):
            entry = (self.now + asked.seconds, next(self._order), process)
            heapq.heappush(self._sleeping, entry)
        elif isinstance(asked, Work):
            jobs = self._jobs.setdefault((asked.width, asked.acts), _Jobs())
            end = jobs.served + asked.seconds
            heapq.heappush(jobs.ends, (end, next(self._order), process))
        elif isinstance(asked, Get):
            asked.store.getters.append(process)
            self._match(asked.store)
        else:
            asked.store.putters.append((process, asked.item))
            self._match(asked.store)

    def _match(self, store: Store) -> None:
        while True:
            if store.putters and len(store.items) < store.capacity:
                process, item = store.putters.popleft()
                store.items.append(item)
                self._ready.append((process, None))
            elif store.getters and store.items:
                self._ready.append((store.getters.popleft(), store.items.popleft()))
            else:
                return


def predict(
    architecture: str,
    task: str,
    costs: Costs,
    *,
    cores: int,
    envs: int,
    unroll: int,
    actor_cores: int | None = None,
    batch: int | None = None,
    seconds: float = 60.0,
) -> float:
    """Agent steps per second of `envs` environments that wait, one per actor.

    batch: trajectories that IMPALA's update learns from, of which `costs` are; as many as there
    are environments if not given. seconds: virtual, and a sixth of them before to warm up.
    """
    simulation = Simulation(cores, actor_cores)
    model = _Model(architecture, task, costs, simulation, envs, unroll, batch or envs)
    model.run(seconds / 6)
    before, start = model.steps, model.simulation.now
    model.run(seconds / 6 + seconds)
    return (model.steps - before) / (model.simulation.now - start)


class _Model:
    def __init__(
        self,
        architecture: str,
        task: str,
        costs: Costs,
        simulation: Simulation,
        envs: int,
        unroll: int,
        batch: int,
    ):
        self.costs, self.envs, self.unroll, self.batch = costs, envs, unroll, batch
        self.task = task
        self.steps = 0  # learnt from
        self.simulation = simulation
        self.requests = Store()  # to the inference server: where to answer
        self.unrolls = Store(1)  # agent steps of each
        self.batches = Store(1)
        self.rounds: list[Store] = []
        central = architecture.endswith("dynamic-batch")
        decide = self.ask if central else self.infer
        processes: list[Process] = [self.serve()] if central else []
        if architecture == "sync-step":
            processes.append(self.step_together())
        elif architecture.startswith("a2c"):
            self.rounds = [Store() for _ in range(envs)]
            self.unrolls = Store()
            processes += [self.act(i, decide, self.rounds[i]) for i in range(envs)]
            processes.append(self.learn_in_rounds())
        elif architecture == "async-gradients":
            processes += [self.act(i, decide, gradient=costs.gradient) for i in range(envs)]
            processes.append(self.apply())
        else:
            processes += [self.act(i, decide) for i in range(envs)]
            processes += [self.assemble(), self.learn()]
        for process in processes:
            self.simulation.start(process)

    def run(self, until: float) -> None:
        self.simulation.run(until)

    def act(
        self,
        index: int,
        decide: Callable[[], Process],
        go: Store | None = None,
        gradient: float = 0.0,
    ) -> Process:
        """An actor with one environment; `go` says when to unroll."""
        pace = Pace(self.task, 1, [0, index])
        while True:
            if go is not None:
                yield Get(go)
            steps = 0
            for _ in range(self.unroll):
                seconds, begins, _ = pace.next()
                yield Wait(float(seconds[0]))
                yield from decide()
                steps += not begins[0]
            if gradient:
                yield Work(gradient)
            yield Put(self.unrolls, steps)

    def infer(self) -> Process:
        yield Work(self.costs.step, acts=True)

    def ask(self) -> Process:
        answer = Store()
        yield Put(self.requests, answer)
        yield Get(answer)

    def serve(self) -> Process:
        while True:
            asked = [(yield Get(self.requests))]
            while self.requests.items:
                asked.append(self.requests.items.popleft())
            yield Work(self.costs.batch + len(asked) * self.costs.request, acts=True)
            for answer in asked:
                yield Put(answer, None)

    def step_together(self) -> Process:
        pace = Pace(self.task, self.envs, [0])
        while True:
            steps = 0
            for _ in range(self.unroll):
                seconds, begins, _ = pace.next()
                yield Wait(float(seconds.max()))
                yield Work(self.costs.step_all, acts=True)
                steps += int((~begins).sum())
            yield from self.update(steps)

    def learn_in_rounds(self) -> Process:
        while True:
            for go in self.rounds:
                yield Put(go, None)
            steps = 0
            for _ in self.rounds:
                steps += yield Get(self.unrolls)
            yield Work(self.costs.assemble)
            yield from self.update(steps)

    def assemble(self) -> Process:
        while True:
            steps = 0
            for _ in range(self.batch):
                steps += yield Get(self.unrolls)
            yield Work(self.costs.assemble)
            yield Put(self.batches, steps)

    def learn(self) -> Process:
        while True:
            steps = yield Get(self.batches)
            yield from self.update(steps)

    def update(self, steps: int) -> Process:
        yield Work(self.costs.update, self.costs.speedup)
        self.steps += steps

    def apply(self) -> Process:
        while True:
            steps = yield Get(self.unrolls)
            yield Work(self.costs.apply)
            self.steps += steps
