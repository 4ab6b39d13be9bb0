"""A learnt model and a search in it: what agents that plan share.

[S20] Schrittwieser et al. 2020, "Mastering Atari, Go, chess and shogi by planning with a learned
model" (arXiv:1911.08265), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp

from pronk.agents.muzero_config import Config
from pronk.errors import UserError
from pronk.maths import search, transforms
from pronk.maths.categorical import Support
from pronk.maths.search import Prediction, Root, SearchResult
from pronk.maths.spaces import channels_first, leaf_spaces
from pronk.nn.model import Model
from pronk.types import Alert, Array, EnvSpec, Key, PyTree, TimeStep


@dataclass(frozen=True, eq=False)
class Planner:
    """A model of one environment, and how to search in it."""

    config: Config
    spec: EnvSpec
    model: Model
    support: Support
    settings: search.Settings
    horizon: int = 0  # agent steps at which schedules end

    @property
    def discount(self) -> float:
        """γ, or −γ where the next state's value is the other side's."""
        return -self.config.discount if self.spec.players == 2 else self.config.discount

    @property
    def num_actions(self) -> int:
        """Discrete actions."""
        return self.model.num_actions

    def represent(self, params: PyTree, observation: PyTree) -> Array:
        """The states of observations `[N, ...]`."""
        return self.model.apply(params, observation, method="represent")  # type: ignore[return-value]

    def step(self, params: PyTree, state: Array, action: Array) -> tuple[Array, Array]:
        """The states `[N, ...]` after actions, int32 `[N]`, and the rewards' logits `[N, bins]`."""
        return self.model.apply(params, state, action, method="step")  # type: ignore[return-value]

    def predict(self, params: PyTree, state: Array) -> tuple[Array, Array]:
        """The logits of policies `[N, A]` and values `[N, bins]` in states `[N, ...]`."""
        return self.model.apply(params, state, method="predict")  # type: ignore[return-value]

    def root(self, params: PyTree, observation: PyTree) -> Root:
        """What the model says of observations `[B, ...]`."""
        state = self.represent(params, observation)
        logits, value = self.predict(params, state)
        return Root(state, logits, self.support.decode(value))

    def similarity(self, params: PyTree, state: Array, observation: PyTree) -> Array:
        """The cosine `[N]` between predicted states `[N, ...]` and the states of observations
        `[N, ...]`, both projected; the latter have no gradient (Ye et al. 2021, EfficientZero,
        section 4.1)."""

        def project(state: Array, predict: bool) -> Array:
            return self.model.apply(params, state, predict, method="project")  # type: ignore[return-value]

        x = project(state, True)
        y = jax.lax.stop_gradient(project(self.represent(params, observation), False))
        norms = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
        return jnp.sum(x * y, axis=-1) / jnp.maximum(norms, 1e-6)

    def search(
        self,
        params: PyTree,
        root: Root,
        mask: Array | None,
        key: Key,
        explores: Array,
        temperature: Array | float = 1.0,
        simulations: int | None = None,
    ) -> SearchResult:
        """A search in the model from each root; see `pronk.maths.search`. simulations: instead of
        the configuration's number."""

        def model(state: PyTree, action: Array) -> Prediction:
            after, reward = self.step(params, state, action)
            logits, value = self.predict(params, after)
            decode = self.support.decode
            return Prediction(after, decode(reward), logits, decode(value))

        options: dict[str, Any] = {"mask": mask, "explores": explores, "temperature": temperature}
        settings = self.settings
        if simulations is not None:
            settings = settings._replace(simulations=simulations)
        return search.search(settings, model, root, self.discount, key, **options)

    def searched(self, params: PyTree, timestep: TimeStep, key: Key) -> Array:
        """Policies `[T, B, A]` of rows `[T, B]`, by a search that explores as that of acting does:
        without noise at its root, a new search would confirm the network's policy, and the policy
        become certain before anything is learnt."""
        shape = timestep.first.shape
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), timestep)
        root = self.root(params, flat.observation)
        explores = jnp.ones(root.value.shape, bool)
        result = self.search(params, root, flat.action_mask, key, explores)
        return result.policy.reshape(*shape, -1)

    def values(self, params: PyTree, timestep: TimeStep) -> Array:
        """The model's values `[T, B]` of rows `[T, B]`."""
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), timestep.observation)
        return self.root(params, flat).value.reshape(timestep.first.shape)


def clipping(config: Config) -> Alert:
    """The warning that the support is too small for the targets, in the metric
    `clipped_targets`."""
    return Alert(
        "clipped_targets",
        0.01,
        "{value:.0%} of the targets of rewards and values (`clipped_targets`) are beyond the"
        " support, and are learnt as if they were its ends:"
        f" `--support-limit` is {config.support_limit:g}, after `--rescaling` {config.rescaling}."
        " Expected at most 1%: give a larger limit, and `--support-bins` in proportion.",
    )


def parts(config: Config, spec: EnvSpec) -> tuple[Any, Any, Any, Any, Any]:
    """The first fields of a `Planner`, configuration and spec among them.

    Raises UserError for actions that are not discrete, for a discount between the moves of two
    players, and for planes where observations are not images.
    """
    space: Any = spec.action_space
    if not isinstance(space, gym.spaces.Discrete):
        raise UserError(
            f"muzero's search has a branch for each action, and the actions of '{spec.name}' are"
            f" {space}; expected Discrete: use another agent, such as ppo."
        )
    if spec.players == 2 and config.discount != 1:
        raise UserError(
            f"`--discount` is {config.discount}, and '{spec.name}' is a game of two players, whose"
            " outcome counts the same after any number of moves: expected 1, as in the preset"
            " board."
        )
    _check_planes(config, spec)
    model = Model(
        space=spec.observation_space,
        num_actions=int(space.n),
        bins=config.support_bins,
        torso=config.torso,
        hidden_sizes=config.hidden_sizes,
        units=config.model_units,
        planes=config.planes,
        blocks=config.blocks,
        projection=config.model_units if config.consistency else 0,
    )
    rescaling = transforms.by_name(config.rescaling, config.rescaling_epsilon)
    settings = search.Settings(
        algorithm=config.search,
        simulations=config.simulations,
        max_depth=config.max_depth,
        dirichlet_alpha=config.dirichlet_alpha,
        dirichlet_fraction=config.dirichlet_fraction,
        value_bound=config.value_bound,
        considered=config.considered_actions,
        value_scale=config.value_scale,
    )
    support = Support(config.support_limit, config.support_bins, rescaling)
    return config, spec, model, support, settings


def _check_planes(config: Config, spec: EnvSpec) -> None:
    """Raise UserError where states are images and a part of the observation is not, or is one of
    another size."""
    shapes = [space.shape or () for space in leaf_spaces(spec.observation_space)]
    images = all(len(shape) == 3 for shape in shapes)
    sizes = {shape[1:] if channels_first(shape) else shape[:2] for shape in shapes if images}
    if config.planes and not (images and len(sizes) == 1):
        raise UserError(
            f"`--planes` is {config.planes}, so that the model's states are images, and the"
            f" observations of '{spec.name}' are {spec.observation_space}; expected images of one"
            " size, and nothing beside them: give `--planes 0`, as all presets but paper have it."
        )
