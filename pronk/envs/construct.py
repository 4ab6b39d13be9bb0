"""Making one Gymnasium environment, with what a simulator or a missing package needs."""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym

from pronk.errors import UserError

Factory = Callable[[], gym.Env]

_EXTRAS = {"mujoco": "MuJoCo"}  # packages that an extra of pronk's installs, and their names


def described(error: BaseException) -> str:
    """The error's class and text."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def construct(factory: Factory, name: str) -> gym.Env:
    """Make the environment; raises UserError with the reason if that fails."""
    _quiet_mujoco(name)
    try:
        env = factory()
    except UserError:
        raise
    except (ImportError, gym.error.DependencyNotInstalled) as e:
        missing = getattr(e if isinstance(e, ImportError) else e.__cause__, "name", None)
        if missing in _EXTRAS:
            raise UserError(
                f"`env` '{name}' needs {_EXTRAS[missing]}, which is not installed:"
                f" pip install 'pronk[{missing}]'."
            ) from e
        raise UserError(f"`env` '{name}' needs a package that is not installed: {e}") from e
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # also a SystemExit, which would end the run as if it were complete
        if isinstance(e, TypeError) and "unexpected keyword argument" in str(e):
            raise UserError(f"`env` '{name}' does not accept these `env_args`: {e}") from e
        raise UserError(f"`env` '{name}' cannot be created: {described(e)}") from e
    _report_instability(env)
    return env


def _quiet_mujoco(name: str) -> None:
    """Make MuJoCo's warnings Python's, which are shown once; leave out those of deprecated
    attributes, which Gymnasium's models have.

    By itself, MuJoCo prints each warning, and writes it to a file in the current directory. A
    handler that the user has set stays.
    """
    spec = gym.registry.get(name)
    if spec is None or not str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
        return
    with contextlib.suppress(ImportError):  # `construct` says what is missing
        mujoco: Any = importlib.import_module("mujoco")  # its stubs lack the handlers
        if mujoco.get_mju_user_warning() is None:
            mujoco.set_mju_user_warning(_warn)


def _warn(message: str) -> None:
    if "is deprecated" not in message:
        warnings.warn(f"MuJoCo: {message}", RuntimeWarning, stacklevel=2)


def _report_instability(env: gym.Env) -> None:
    """Let an unstable simulation of MuJoCo return NaN, which ends the episode as a fault.

    By itself, MuJoCo resets such a simulation to its initial state, and the episode goes on.
    """
    mujoco = sys.modules.get("mujoco")
    model: Any = getattr(getattr(env, "unwrapped", None), "model", None)
    if mujoco is not None and isinstance(model, mujoco.MjModel):
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
