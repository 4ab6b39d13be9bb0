"""Names of settings that were renamed or removed, and names by which other libraries call them."""

from __future__ import annotations

from collections.abc import Collection

from pronk.config.fields import flag

RENAMED = {
    "envs": "envs_per_actor",
    "keep": "keep_checkpoints",
    "head": "head_units",
    "hidden": "hidden_sizes",
    "core": "recurrent_core",
    "core_size": "recurrent_units",
    "epsilon": "optimiser_epsilon",
    "exploration": "epsilon_greedy",
    "exploration_exponent": "epsilon_alpha",
    "replay_ratio": "samples_per_insert",
    "replay_share": "replay_fraction",
    "threshold": "copy_margin",
    "sigmas": "copy_sigmas",
    "workers": "parallel_members",
}

REMOVED = {
    "actor_kind": "`--ray local` runs actors in processes, and `--env-workers` steps environments"
    " in processes",
}

ALIASES = {
    "lr": "learning_rate",
    "gamma": "discount",
    "timesteps": "steps",
    "total_timesteps": "steps",
    "num_steps": "unroll",
    "n_envs": "envs_per_actor",
    "num_envs": "envs_per_actor",
    "num_actors": "actors",
    "num_workers": "actors",
    "ent_coef": "entropy_cost",
    "vf_coef": "value_cost",
    "entropy_coef": "entropy_cost",
    "value_coef": "value_cost",
    "max_grad_norm": "max_gradient_norm",
    "buffer_size": "replay_capacity",
    "learning_starts": "replay_minimum",
    "optimizer": "optimiser",
    "device": "learner_device",
    "output_dir": "run_dir",
    "tensorboard_log": "run_dir",
    "rollout_fragment_length": "unroll",
    "train_batch_size": "batch_size",
    "entropy_coeff": "entropy_cost",
    "vf_loss_coeff": "value_cost",
    "grad_clip": "max_gradient_norm",
    "net_arch": "hidden_sizes",
    "fcnet_hiddens": "hidden_sizes",
    "num_env_runners": "actors",
    "num_envs_per_env_runner": "envs_per_actor",
    "target_update_interval": "target_every",
    "tau": "target_rate",
    "gradient_steps": "updates_per_step",
}


def hint(name: str, known: Collection[str]) -> str | None:
    """One sentence on an unknown setting, by its field's name, if it has another name now, or had
    one; `known` are the settings that there are."""
    if name in REMOVED:
        return f"`{flag(name)}` was removed: {REMOVED[name]}."
    if RENAMED.get(name) in known:
        return f"`{flag(name)}` was renamed: use `{flag(RENAMED[name])}`."
    if ALIASES.get(name) in known:
        return f"`{flag(name)}` is `{flag(ALIASES[name])}` here: use that."
    return None
