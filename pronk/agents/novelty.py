"""NGU's intrinsic reward, which is computed when acting, and the training of its networks.

Badia et al. 2020, "Never Give Up: Learning Directed Exploration Strategies", section 2. The
mathematics is `pronk.maths.intrinsic`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pronk.maths import intrinsic, weighted
from pronk.nn.novelty import Features, InverseModel
from pronk.types import Array, EnvSpec, Key, PyTree, TimeStep


class Reward(NamedTuple):
    """The intrinsic reward of slots `[B]`, and its parts."""

    intrinsic: Array  # 0 in an episode's first row
    alpha: Array  # not clipped
    filled: Array  # the fraction of the episodic memory in use

    def extras(self) -> dict[str, Array]:
        """What is stored when acting."""
        return {
            "intrinsic_reward": self.intrinsic,
            "alpha": self.alpha,
            "memory_filled": self.filled,
        }


class Samples(NamedTuple):
    """The transitions of a batch on which the networks are trained, N of them."""

    observation: PyTree  # [N, ...]
    action: Array  # [N]
    following: PyTree  # the next observation
    weight: Array  # 0 for those to leave out, else 1


@dataclass(frozen=True, eq=False)
class Novelty:
    """Intrinsic rewards for one environment.

    The learnt parameters are `embedding` (with the action prediction) and `predictor`. The fixed
    ones are `embedding`, the copy that acting uses, and `random`, the network that is predicted.
    Parts that an option switches off are missing.
    """

    config: Any
    embedding: Features
    inverse: InverseModel
    lifelong: Features  # both networks of random network distillation

    @property
    def learns_embedding(self) -> bool:
        """Whether there is an embedding, and it is not a random projection."""
        return self.config.episodic and self.config.embedding == "inverse-dynamics"

    def init(self, key: Key, row: PyTree) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
        """The parameters that are learnt, and those that are fixed; row: one observation, `[1,
        ...]`."""
        embedding_key, inverse_key, predictor_key, random_key = jax.random.split(key, 4)
        params, fixed = {}, {}
        if self.config.episodic:
            fixed["embedding"] = self.embedding.init(embedding_key, row)
        if self.learns_embedding:
            features = jnp.zeros((1, self.config.embedding_size))
            params["embedding"] = {
                "features": jax.tree.map(jnp.copy, fixed["embedding"]),
                "inverse": self.inverse.init(inverse_key, features, features),
            }
        if self.config.lifelong:
            params["predictor"] = self.lifelong.init(predictor_key, row)
            fixed["random"] = self.lifelong.init(random_key, row)
        return params, fixed

    def initial_private(self, slots: int) -> dict[str, PyTree]:
        """What each slot keeps: its episode's memory, and statistics over all its episodes."""
        config, private = self.config, {}
        if config.episodic:
            private["memory"] = intrinsic.no_memory(
                slots, config.memory_size, config.embedding_size
            )
            private["distance"] = intrinsic.no_average(slots)
        if config.lifelong:
            private["error"] = intrinsic.no_average(slots)
        return private

    def notes(self) -> tuple[str, ...]:
        """The memory that each slot needs, in words."""
        if not self.config.episodic:
            return ()
        memory = jax.eval_shape(lambda: self.initial_private(1)["memory"].rows)
        return (f"episodic memory: {memory.size * 4 / 2**20:.3g} MiB for each environment",)

    def reward(
        self,
        params: dict[str, PyTree],
        fixed: dict[str, PyTree],
        private: dict[str, PyTree],
        timestep: TimeStep,
    ) -> tuple[dict[str, PyTree], Reward]:
        """The slots' new `private`, and the reward for reaching the observations `[B, ...]`."""
        config, first, observation = self.config, timestep.first, timestep.observation
        episodic = alpha = jnp.ones(first.shape[0], jnp.float32)
        filled, private = jnp.zeros_like(alpha), dict(private)
        if config.episodic:
            embedded = self.embedding.apply(fixed["embedding"], observation)
            memory = intrinsic.remember(private["memory"], embedded, first)  # type: ignore
            distances = intrinsic.neighbours(memory, embedded, config.neighbours)  # type: ignore
            average = intrinsic.mean_distance(private["distance"], distances, config.distance_decay)
            kernel = intrinsic.Kernel(
                config.kernel_epsilon,
                config.cluster_distance,
                config.pseudo_count,
                config.max_similarity,
            )
            episodic = intrinsic.episodic_reward(distances, average.mean, kernel)
            filled = memory.count / config.memory_size
            private |= {"memory": memory, "distance": average}
        if config.lifelong:
            error = self.error(params["predictor"], fixed["random"], observation)
            average = intrinsic.update_average(
                private["error"], error, config.error_decay, jnp.ones_like(first)
            )
            alpha = intrinsic.lifelong_factor(average, error)
            private["error"] = average
        reward = intrinsic.combine(episodic, alpha, config.lifelong_limit)
        # No transition leads to an episode's first observation.
        return private, Reward(jnp.where(first, 0.0, reward), alpha, filled)

    def error(self, predictor: PyTree, random: PyTree, observation: PyTree) -> Array:
        """‖ĝ(x) − g(x)‖² for observations `[N, ...]`, `[N]`."""
        predicted, target = (self.lifelong.apply(p, observation) for p in (predictor, random))
        return jnp.sum(jnp.square(predicted - target), axis=-1)  # type: ignore[operator]

    def metrics(self, extras: dict[str, Array], weight: Array) -> dict[str, Array]:
        """Means over rows `[T, B]` of the rewards that were stored when acting."""
        names = ("intrinsic_reward", "alpha", "memory_filled")
        metrics = {name: weighted.mean(extras[name], weight) for name in names}
        clipped = jnp.clip(extras["alpha"], 1.0, self.config.lifelong_limit)
        metrics["episodic_reward"] = weighted.mean(extras["intrinsic_reward"] / clipped, weight)
        return metrics

    def samples(self, timestep: TimeStep, action: Array) -> Samples:
        """The last transitions that are not dummies of each column of rows `[T + 1, B, ...]`:
        `intrinsic_steps` of them, or all if there are fewer."""
        weight = 1.0 - timestep.first[1:].astype(jnp.float32)
        index = jnp.where(weight > 0, jnp.arange(weight.shape[0])[:, None], -1)
        last = jax.lax.top_k(index.T, self.config.intrinsic_steps)[0].T  # [n, B]
        rows = jnp.maximum(last, 0)

        def taken(x: Array, rows: Array) -> Array:
            at = rows.reshape(rows.shape + (1,) * (x.ndim - 2))
            x = jnp.take_along_axis(x, at, axis=0)
            return x.reshape(-1, *x.shape[2:])

        return Samples(
            jax.tree.map(lambda x: taken(x, rows), timestep.observation),
            taken(action, rows),
            jax.tree.map(lambda x: taken(x, rows + 1), timestep.observation),
            (last >= 0).astype(jnp.float32).reshape(-1),
        )

    def inverse_loss(self, params: PyTree, samples: Samples) -> tuple[Array, dict[str, Array]]:
        """The mean of −log p(a|f(x), f(x')) plus weight decay; also metrics."""
        before, after = (
            self.embedding.apply(params["features"], x)
            for x in (samples.observation, samples.following)
        )
        logits = self.inverse.apply(params["inverse"], before, after)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, samples.action)  # type: ignore
        loss = weighted.mean(losses, samples.weight)
        right = (jnp.argmax(logits, axis=-1) == samples.action).astype(jnp.float32)  # type: ignore
        metrics = {
            "loss/inverse": loss,
            "inverse_accuracy": weighted.mean(right, samples.weight),
        }
        squares = sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params))
        return loss + 0.5 * self.config.inverse_weight_decay * squares, metrics

    def predictor_loss(
        self, params: PyTree, random: PyTree, samples: Samples
    ) -> tuple[Array, dict[str, Array]]:
        """The mean prediction error of the observations that were reached; also metrics."""
        loss = weighted.mean(self.error(params, random, samples.following), samples.weight)
        return loss, {"loss/lifelong": loss}

    def gradients(
        self, params: dict[str, PyTree], fixed: dict[str, PyTree], samples: Samples
    ) -> tuple[dict[str, PyTree], dict[str, Array]]:
        """The gradient of each learnt part, and metrics."""
        gradients, metrics = {}, {}
        if self.learns_embedding:
            gradients["embedding"], metrics = jax.grad(self.inverse_loss, has_aux=True)(
                params["embedding"], samples
            )
        if self.config.lifelong:
            gradients["predictor"], more = jax.grad(self.predictor_loss, has_aux=True)(
                params["predictor"], fixed["random"], samples
            )
            metrics |= more
        return gradients, metrics


def build(config: Any, spec: EnvSpec, num_actions: int) -> Novelty:
    """Intrinsic rewards for environments of this `spec`."""
    network: dict[str, Any] = {
        "space": spec.observation_space,
        "torso": config.torso,
        "hidden_sizes": config.hidden_sizes,
        "activation": config.activation,
        "encoder_dtype": jnp.dtype(config.encoder_dtype),
    }
    return Novelty(
        config,
        Features(width=config.embedding_size, **network),
        InverseModel(num_actions, config.inverse_units),
        Features(width=config.lifelong_size, **network),
    )
