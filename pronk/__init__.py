"""pronk: distributed deep reinforcement learning, IMPALA and its family on one runtime.

import pronk
pronk.train(agent="impala", env="CartPole-v1", steps=200_000)
policy = pronk.load("runs/impala-CartPole-v1-0")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pronk.run.policy import Policy, load
    from pronk.run.train import train

__all__ = ["Policy", "load", "train"]

_HOMES = {"train": "pronk.run.train", "load": "pronk.run.policy", "Policy": "pronk.run.policy"}


def __getattr__(name: str) -> Any:
    # Lazy, so that `import pronk` and `pronk --help` don't wait for jax.
    if name not in _HOMES:
        raise AttributeError(f"module 'pronk' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
