"""The devices that a run's settings name."""

from __future__ import annotations

import jax
import numpy as np

from pronk.config.spec import Plan
from pronk.errors import UserError
from pronk.runtime.api import Devices
from pronk.types import Device


def choose_devices(plan: Plan) -> Devices:
    """The plan's devices; raises UserError where there are none such."""
    config = plan.run
    if config.learners > 1:
        if plan.agent_config.batch_size % jax.device_count():
            raise UserError(
                f"`--batch-size` is {plan.agent_config.batch_size}, and the {config.learners}"
                f" learners have {jax.device_count()} devices; expected a number that can be"
                " divided among them."
            )
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        return Devices(jax.local_devices()[0], replicated)
    actor = None
    if config.actor_device is not None:
        actor = find_device("--actor-device", config.actor_device)
    if config.learner_device is None:
        return Devices(actor)
    chosen = [find_device("--learner-device", name) for name in config.learner_device.split(",")]
    if len(chosen) == 1:
        return Devices(actor, chosen[0])
    if len(set(chosen)) < len(chosen):
        raise UserError(
            f"`--learner-device` is {config.learner_device}; expected different devices."
        )
    mesh = jax.sharding.Mesh(np.array(chosen), ("data",))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return Devices(chosen[0] if actor is None else actor, replicated)


def find_device(flag: str, name: str) -> Device:
    """The device that a user calls `cpu`, `gpu` or `gpu:1`; raises UserError if there is none."""
    platform, _, index = name.partition(":")
    try:
        return jax.devices(platform)[int(index or 0)]
    except (RuntimeError, ValueError, IndexError):
        known = [f"{d.platform}:{d.id}" for d in jax.devices()]
        if jax.default_backend() != "cpu":
            known += [f"cpu:{i}" for i in range(len(jax.devices("cpu")))]
        raise UserError(
            f"`{flag}` is '{name}'; expected a device that JAX sees here: {', '.join(known)}."
        ) from None
