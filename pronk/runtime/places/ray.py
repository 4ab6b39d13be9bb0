"""Actors on the machines of a Ray cluster, each with the interface of one in this process.

The learner is the process that connects. Parameters go out through the object store, put there once
per version and fetched once per machine; trajectories come back through it as NumPy. An actor works
on one unroll at a time, so that as many are under way as there are actors.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import secrets
import socket
import stat
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ray
from ray import exceptions
from ray._private import ray_constants

from pronk.errors import UserError
from pronk.runtime.actor import Actor, Unroll
from pronk.runtime.places.supervise import ActorLost, NodeLost
from pronk.types import PyTree

psutil: Any = importlib.import_module("psutil")  # Ray brings it along

POLL = 0.5  # seconds between looks at whether a wait for another machine is still wanted
NODE_DEATH = 60.0  # seconds that the cluster may take to notice that a machine is gone
REACH = 5.0  # seconds for reaching a cluster's head
NODE_DIED = "its node has died"  # in Ray's message about an actor's death
AUTHENTICATED = ("token", "k8s")  # values of RAY_AUTH_MODE, which Ray sets itself where it can
CLOSING = 5.0  # seconds that an actor has for closing its environments
ENDING = 3.0  # seconds that Ray's own processes have for ending themselves

# Of a cluster of this machine's own, unless the user has set them: nothing is measured for others.
_QUIET = {"RAY_enable_metrics_collection": "0", "RAY_USAGE_STATS_ENABLED": "0"}


class Needs(NamedTuple):
    """The resources that each actor reserves on the cluster."""

    cpus: float = 1.0
    gpus: float = 0.0
    resource: str | None = None  # a custom resource of the machines where actors may be

    def options(self) -> dict[str, Any]:
        """Options of a Ray actor: spread over machines, and never restarted by Ray itself."""
        # A thousandth: a marker of machines, not an amount.
        marker = {} if self.resource is None else {"resources": {self.resource: 0.001}}
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "scheduling_strategy": "SPREAD",
            "max_restarts": 0,
            "max_task_retries": 0,
            **marker,
        }


class Cluster:
    """A connection to a Ray cluster, and the newest parameters in its object store.

    address: `auto`, the cluster of this machine; `local`, one of this machine's own that ends with
    the connection, with places for at least `actors`; or where its head is. Raises UserError where
    there is none, or it doesn't let us in.
    """

    def __init__(self, address: str, needs: Needs, actors: int = 0):
        self.needs = needs
        self._lock = threading.Lock()
        self._put: tuple[PyTree, Any] = (None, None)  # parameters, and where they are
        self._started: list[Any] = []  # processes of Ray
        self._ours = not ray.is_initialized()  # otherwise the user's program has connected, or we
        if not self._ours:
            return
        before = _children()
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if address == "local":
            places = max(os.cpu_count() or 1, math.ceil(actors * needs.cpus))
            quiet |= {"num_cpus": places, "include_dashboard": False}
            if needs.resource is not None:
                quiet["resources"] = {needs.resource: 1}
        wrong = f"`--ray` is '{address}', and "
        try:
            if address not in ("local", "auto"):
                host, _, port = address.rpartition(":")  # Ray itself would try for minutes
                with socket.create_connection((host, int(port)), REACH):
                    pass
        except (OSError, ValueError) as error:
            raise UserError(
                f"{wrong}nothing is to be reached there ({error}); expected 'local', 'auto', or the"
                " HOST:PORT that `ray start --head` printed."
            ) from None
        try:
            with warnings.catch_warnings(), contextlib.ExitStack() as stack:
                # Of the fork by which Ray starts other programs; nothing of JAX is used in between,
                # and nothing is computed meanwhile.
                warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
                jax.block_until_ready(jax.live_arrays())
                if address == "local":
                    stack.enter_context(_private())
                ray.init(address=address, **quiet)
        except (OSError, ValueError, RuntimeError, exceptions.RayError) as error:
            raise UserError(
                f"{wrong}no Ray cluster there lets us in ({_line(error)}). Run `ray start` on this"
                " machine first, and give it the token of the cluster's head, its"
                " ~/.ray/auth_token or RAY_AUTH_TOKEN."
            ) from None
        self._started = [process for process in _children() if process not in before]

    def warnings(self) -> list[str]:
        """Warnings about the cluster for the log."""
        if os.environ.get("RAY_AUTH_MODE", "").lower() in AUTHENTICATED:
            return []
        return [
            "warning: the Ray cluster has no token authentication: anyone who reaches it can run"
            " programs on it"
        ]

    def room(self) -> int:
        """The number of actors that its machines have places for; at least one."""
        cpus, gpus, marker = self.needs
        places = 0
        for machine in ray.nodes():
            has = machine["Resources"]
            if not machine["Alive"] or (marker is not None and marker not in has):
                continue
            fit = has.get("CPU", 0.0) // cpus
            places += int(min(fit, has.get("GPU", 0.0) // gpus) if gpus else fit)
        return max(1, places)

    def parameters(self, behaviour: PyTree) -> Any:
        """A reference to `behaviour` as NumPy in the object store; one per behaviour."""
        with self._lock:
            known, reference = self._put
            if known is not behaviour:
                # The one before is freed when the last actor that acts with it is done.
                reference = ray.put(jax.device_get(behaviour))
                self._put = (behaviour, reference)
            return reference

    def actor(self, make_actor: Callable[[], Actor], name: str) -> RayActor:
        """The actor that `make_actor` makes, on a machine that has a place for it."""
        return RayActor(self, make_actor, name)

    def close(self) -> None:
        """Leave the cluster, and end it if it is our own."""
        self._put = (None, None)
        if not self._ours:
            return
        processes = [*self._started, *_children(self._started)]
        ray.shutdown()
        _, left = psutil.wait_procs(processes, ENDING)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()


def _children(processes: Sequence[Any] | None = None) -> list[Any]:
    """The child processes of this one; or of others, with theirs."""
    found = []
    for process in [psutil.Process()] if processes is None else processes:
        with contextlib.suppress(psutil.Error):
            found += process.children(recursive=processes is not None)
    return found


@contextlib.contextmanager
def _private() -> Iterator[None]:
    """A cluster that is started within belongs to this user of this machine: it listens on the
    loopback interface only, and only the user can read its token."""
    _make_token()
    given = {name: value for name, value in _QUIET.items() if name not in os.environ}
    # Without clusters of several machines, as by default on other systems than Linux, Ray takes
    # 127.0.0.1 for the machine's address; it has no other option for that.
    several, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    os.environ.update(given)
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = several
        for name in given:
            del os.environ[name]


def _make_token() -> None:
    """Make the user's token, or see to it that only the user can read it; Ray would leave that to
    the umask."""
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    path = Path.home() / ".ray" / "auth_token"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o600)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the token of Ray's cluster, '{path}', cannot be created, or made private ({error});"
            " set HOME to a directory of your own, or RAY_AUTH_TOKEN to 64 hexadecimal digits."
        ) from None


class RayActor:
    """Calls `make_actor` on one of the cluster's machines and unrolls it there.

    Errors raised there are raised here, with their traceback; a UserError as it is.
    """

    placement = "on Ray"

    def __init__(self, cluster: Cluster, make_actor: Callable[[], Actor], name: str):
        self._cluster, self._name = cluster, name
        try:
            self._host: Any = _HOST.options(**cluster.needs.options()).remote(make_actor)
        except TypeError as error:  # it can't be pickled
            raise UserError(
                f"{name} can't be made on another machine ({_line(error)}); use an environment"
                " factory that is a function of a module."
            ) from None
        self._node: str | None = None  # it is on, once it has a place
        self._killed = ""  # why
        self._over = False
        self._asked: Any = None  # for its number of rows acted
        self._beats: int = -1

    @property
    def rows_acted(self) -> int:
        """Rows acted in, as far as is known; while it waits for a place, negative and falling."""
        if self._over:
            return self._beats
        if self._node is None:
            self._beats -= 1
            return self._beats
        if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
            with contextlib.suppress(exceptions.RayError):  # `unroll` raises it
                self._beats = ray.get(self._asked)
            self._asked = None
        if self._asked is None:
            self._asked = self._host.rows_acted.options(concurrency_group="watch").remote()
        return max(0, self._beats)

    def kill(self, cause: ActorLost) -> None:
        """End the actor at once; a waiting `unroll` raises the cause."""
        self._killed = str(cause)
        ray.kill(self._host)

    def ready(self) -> None:
        """Wait for a place. Raises as `unroll`, and UserError for another version there."""
        if self._node is not None:
            return
        node, theirs = self._of(self._host.where.remote())
        if theirs != (ours := metadata.version("pronk")):
            raise UserError(
                f"{self._name} is on a machine of the cluster that has pronk {theirs}, and here it"
                f" is {ours}; install the same version everywhere."
            )
        self._node = node

    def unroll(self, behaviour: PyTree, version: int) -> Unroll:
        """As `Actor.unroll`, on the other machine, once there is a place. Raises ActorLost if that
        has died, or NodeLost where its machine left the cluster."""
        self.ready()
        return self._of(self._host.unroll.remote(self._cluster.parameters(behaviour), version))

    def close(self) -> None:
        """Release the environments and the place; safe to call twice."""
        if self._over:
            return
        self._over = True
        if self._node is not None and not self._killed:
            with contextlib.suppress(exceptions.RayError):
                ray.wait([self._host.close.remote()], timeout=CLOSING)
        if ray.is_initialized():
            ray.kill(self._host)

    def _of(self, reference: Any) -> Any:
        """The value of `reference`, waiting for it."""
        try:
            while not ray.wait([reference], timeout=POLL)[0]:
                if self._over:
                    raise ActorLost("it was closed")
                if self._killed:
                    raise ActorLost(self._killed)  # a machine that can't be reached raises nothing
            return ray.get(reference)
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise RuntimeError(f"{self._name} failed:\n{error}") from None
        except exceptions.RayError as error:
            if self._killed:
                raise ActorLost(self._killed) from None
            if NODE_DIED in str(error) or self._has_departed():
                raise NodeLost(f"its machine left the cluster ({self._node})") from None
            raise ActorLost(f"it was lost ({_line(error)})") from None

    def _has_departed(self) -> bool:
        """Whether its machine, and not only the actor, is gone; waits until the cluster knows, so
        that it does not place the next actor there.
        """
        end = time.monotonic() + NODE_DEATH
        while self._node is not None and not self._killed and time.monotonic() < end:
            if not self._machine_is_there():
                return True
            try:
                ray.get(self._host.where.remote(), timeout=POLL)
                return False  # the connection failed
            except exceptions.ActorDiedError:
                return not self._machine_is_there()
            except exceptions.RayError:  # not known yet
                time.sleep(POLL)
        return False

    def _machine_is_there(self) -> bool:
        return any(n["NodeID"] == self._node and n["Alive"] for n in ray.nodes())


def _line(error: BaseException) -> str:
    """The relevant line of an error's message: the last of a traceback, else the first."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    made = not getattr(error, "_actor_init_failed", False)
    return lines[0 if made else -1].strip().rstrip(".:")


class Host:
    """The remote end: an actor that is made by its first unroll."""

    def __init__(self, make_actor: Callable[[], Actor]):
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        if not ray.get_gpu_ids():
            jax.config.update("jax_platforms", "cpu")
        self._make = make_actor
        self._actor: Actor | None = None

    def where(self) -> tuple[str, str]:
        """The machine's id, and the version of pronk there."""
        return ray.get_runtime_context().get_node_id(), metadata.version("pronk")

    def unroll(self, behaviour: PyTree, version: int) -> Unroll:
        """As `Actor.unroll`."""
        if self._actor is None:
            self._actor = self._make()
        return self._actor.unroll(jax.device_put(behaviour), version)

    def rows_acted(self) -> int:
        """Rows acted in; answered during an unroll, too."""
        return 0 if self._actor is None else self._actor.rows_acted

    def close(self) -> None:
        """Release the environments."""
        if self._actor is not None:
            self._actor.close()


# Beats are asked for while an unroll goes on.
_HOST: Any = ray.remote(concurrency_groups={"watch": 1})(Host)  # type: ignore[call-overload]
