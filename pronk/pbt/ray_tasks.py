"""Runs of members as tasks on the machines of a Ray cluster that share the directory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
import ray
from ray import exceptions

from pronk.config.spec import Plan
from pronk.pbt.member_run import LOST, MACHINE_LEFT, USER_ERROR, Inheritance, Launcher
from pronk.runtime.places.ray import Cluster, Needs
from pronk.storage.journal import JOURNAL


class RayRun:
    """A run on some machine of the cluster, once one has room."""

    def __init__(self, reference: Any):
        self.reference = reference
        self.error_text = ""

    @property
    def finished(self) -> bool:
        """Whether the task has ended or is lost."""
        return bool(ray.wait([self.reference], timeout=0)[0])

    def stop(self) -> None:
        """Send SIGINT, on which training saves and pauses."""
        ray.cancel(self.reference, recursive=False)

    def wait(self) -> int:
        """Wait for the task; the exit status that a process would have."""
        try:
            status, self.error_text = ray.get(self.reference)
            return status
        except exceptions.TaskCancelledError:
            return 0  # before it started
        except exceptions.RayTaskError as error:
            self.error_text = str(error).strip().splitlines()[-1]
            return 1
        except exceptions.NodeDiedError:
            return MACHINE_LEFT
        except exceptions.RayError as error:
            self.error_text = str(error).strip().splitlines()[0]
            return LOST


class RayLauncher(Launcher):
    """Runs members as Ray tasks, each of which reserves as much as an actor of a single run."""

    def __init__(self, plan: Plan, parallel_members: int):
        config = plan.run
        assert config.ray is not None
        needs = Needs(config.actor_cpus, config.actor_gpus, config.actor_resource)
        self._cluster = Cluster(config.ray, needs, parallel_members)
        kept = ("num_cpus", "num_gpus", "scheduling_strategy", "resources")
        self._options = {k: v for k, v in needs.options().items() if k in kept}

    def start(self, plan: Plan, env: Any, inheritance: Inheritance) -> RayRun:
        """Submit a task, which starts when the cluster has room."""
        task = _TRAIN.options(**self._options, max_retries=0)
        return RayRun(task.remote(plan, env, inheritance, metadata.version("pronk")))

    def wait(self, runs: Sequence[Any], timeout: float) -> None:
        """Wait for one of the tasks."""
        ray.wait([run.reference for run in runs], timeout=timeout)

    def close(self) -> None:
        """Leave the cluster."""
        self._cluster.close()


def train(plan: Plan, env: Any, inheritance: Inheritance, version: str) -> tuple[int, str]:
    """The task of a `RayRun`: its exit status, and the error's text."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if not ray.get_gpu_ids():
        jax.config.update("jax_platforms", "cpu")
    theirs = metadata.version("pronk")
    if theirs != version:
        return USER_ERROR, (
            f"a machine of the cluster has pronk {theirs}, and here it is {version}; install the"
            " same version everywhere."
        )
    population = plan.run_dir.parents[1]
    if not (population / JOURNAL).exists():
        return USER_ERROR, (
            f"a machine of the cluster does not see '{population}'; give a --run-dir that all of"
            " them share."
        )
    return inheritance.train(plan, env)


_TRAIN: Any = ray.remote(train)
