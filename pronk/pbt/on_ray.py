"""Members' lives as tasks on the machines of a Ray cluster that share the directory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
import ray
from ray import exceptions

from pronk.config.spec import Plan
from pronk.errors import Diverged, UserError
from pronk.pbt.lives import DIVERGED, GONE, LOST, MISTAKE, Legacy
from pronk.run import train as training
from pronk.runtime.places.ray import Cluster, Needs


class RayLife:
    """A member's life on some machine of the cluster, once there is a place."""

    def __init__(self, reference: Any):
        self._reference = reference
        self.words = ""

    @property
    def over(self) -> bool:
        """Whether it has come to its end, or is lost."""
        return bool(ray.wait([self._reference], timeout=0)[0])

    def stop(self) -> None:
        """Have it pause, saved."""
        ray.cancel(self._reference, recursive=False)  # SIGINT, which training hears

    def end(self) -> int:
        """Wait for its end; the exit status that a process would have."""
        try:
            status, self.words = ray.get(self._reference)
            return status
        except exceptions.TaskCancelledError:
            return 0  # before it began
        except exceptions.RayTaskError as error:
            self.words = str(error).strip().splitlines()[-1]
            return 1
        except exceptions.NodeDiedError:
            return GONE
        except exceptions.RayError as error:
            self.words = str(error).strip().splitlines()[0]
            return LOST


class OnRay:
    """Where lives are tasks; each reserves what an actor of a single run would."""

    def __init__(self, plan: Plan, workers: int):
        config = plan.run
        assert config.ray is not None
        needs = Needs(config.actor_cpus, config.actor_gpus, config.actor_resource)
        self._cluster = Cluster(config.ray, needs, workers)
        kept = ("num_cpus", "num_gpus", "scheduling_strategy", "resources")
        self._options = {k: v for k, v in needs.options().items() if k in kept}

    def start(self, plan: Plan, env: Any, legacy: Legacy) -> RayLife:
        """Begin a life as soon as there is a place."""
        task = _LIVE.options(**self._options, max_retries=0)
        return RayLife(task.remote(plan, env, legacy, metadata.version("pronk")))

    def wait(self, lives: Sequence[RayLife], timeout: float) -> None:
        """Until one of them is over, or so many seconds."""
        ray.wait([life._reference for life in lives], timeout=timeout)

    def close(self) -> None:
        """Leave the cluster."""
        self._cluster.close()


def live(plan: Plan, env: Any, legacy: Legacy, version: str) -> tuple[int, str]:
    """A life, on the other machine; its exit status, and what it said."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if not ray.get_gpu_ids():
        jax.config.update("jax_platforms", "cpu")
    theirs = metadata.version("pronk")
    if theirs != version:
        return MISTAKE, (
            f"a machine of the cluster has pronk {theirs}, and here it is {version}; install the"
            " same version everywhere."
        )
    if not (plan.run_dir.parents[1] / "journal.jsonl").exists():
        return MISTAKE, (
            f"a machine of the cluster does not see '{plan.run_dir.parents[1]}'; give a --run-dir"
            " that all of them share."
        )
    try:
        training.run(plan, env, change=legacy.take_up)
    except UserError as error:
        return DIVERGED if isinstance(error, Diverged) else MISTAKE, str(error)
    return 0, ""


_LIVE: Any = ray.remote(live)
