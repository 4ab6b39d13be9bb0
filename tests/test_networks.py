"""Networks: every kind of observation, the torsos, and cores that are reset at the right moment."""

from __future__ import annotations

from collections import OrderedDict

import flax.linen as nn
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from pronk import agents
from pronk.agents.impala_config import Config
from pronk.errors import UserError
from pronk.maths import spaces as pronk_spaces
from pronk.maths.spaces import as_vector, leaf_spaces
from pronk.nn import cores, networks
from pronk.types import EnvSpec

KEY = jax.random.key(0)
PICTURE = spaces.Box(0, 255, (12, 10, 3), np.uint8)


def batch_of(space: gym.Space, n: int):
    space.seed(0)
    return jax.tree.map(lambda *x: np.stack(x), *[space.sample() for _ in range(n)])


def encoder(space: gym.Space, torso: str = "auto", hidden_sizes=(6,)) -> networks.Encoder:
    return networks.Encoder(space=space, torso=torso, hidden_sizes=hidden_sizes, activation="tanh")


SPACES = {
    "float": spaces.Box(-1, 1, (3,)),
    "float64": spaces.Box(-1, 1, (3,), np.float64),
    "scalar": spaces.Box(-1, 1, ()),
    "matrix": spaces.Box(-1, 1, (2, 3)),
    "float_image": spaces.Box(0, 1, (5, 5, 2)),
    "image_hwc": PICTURE,
    "image_chw": spaces.Box(0, 255, (3, 12, 10), np.uint8),
    "atari_sized": spaces.Box(0, 255, (4, 36, 40), np.uint8),
    "tiny_image": spaces.Box(0, 255, (9, 3, 9), np.uint8),
    "ram": spaces.Box(0, 255, (16,), np.uint8),
    "discrete": spaces.Discrete(4, start=-2),
    "multi_discrete": spaces.MultiDiscrete([2, 3], start=[1, -1]),
    "multi_discrete_matrix": spaces.MultiDiscrete([[2, 3], [4, 2]]),
    "multi_binary": spaces.MultiBinary((2, 2)),
    "nested": spaces.Dict(
        {
            "z": PICTURE,
            "a": spaces.Tuple([spaces.Discrete(3), spaces.Dict({"x": spaces.MultiBinary(2)})]),
            "m": spaces.Box(-1, 1, (2,)),
        }
    ),
}


@pytest.mark.parametrize("name", SPACES)
def test_every_leaf_of_an_observation_matters(name):
    """Shape, and that each leaf of the observation reaches the features."""
    space = SPACES[name]
    module = encoder(space)
    x = batch_of(space, 2)
    params = jax.jit(module.init)(KEY, x)
    apply = jax.jit(module.apply)
    y = apply(params, x)
    assert y.shape == (2, 6)
    assert np.isfinite(y).all()
    leaves, tree = jax.tree.flatten(x)
    for i, space_i in enumerate(leaf_spaces(space)):
        assert space_i.shape == leaves[i].shape[1:]
        other = list(leaves)
        rng = np.random.default_rng(0)
        while (other[i] == leaves[i]).all():
            other[i] = batch_of(space_i, 40)[rng.choice(40, 2)]
        changed = apply(params, tree.unflatten(other))
        assert np.abs(changed - y).max() > 1e-6


@pytest.mark.parametrize("xp", [np, jnp])
def test_one_hot_starts_where_the_space_does(xp):
    x = np.array([-2, 1])
    np.testing.assert_array_equal(
        as_vector(spaces.Discrete(4, start=-2), x, xp), [[1, 0, 0, 0], [0, 0, 0, 1]]
    )
    space = spaces.MultiDiscrete([2, 3], start=[1, -1])
    np.testing.assert_array_equal(
        as_vector(space, np.array([[1, -1], [2, 1]]), xp), [[1, 0, 1, 0, 0], [0, 1, 0, 0, 1]]
    )


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("shape", [(16,), (6, 6), (4, 9, 3)])
def test_bytes_are_scaled(shape, xp):
    space = spaces.Box(0, 255, shape, np.uint8)
    x = batch_of(space, 2)
    np.testing.assert_allclose(as_vector(space, x, xp), x.reshape(2, -1) / 255.0, rtol=1e-6)


def test_dict_order_does_not_matter():
    """Environments may list their keys in any order; jax sorts them, and so do the spaces."""
    a, b = spaces.Discrete(3), spaces.Box(-1, 1, (3,))
    module = encoder(spaces.Dict(OrderedDict([("b", b), ("a", a)])))
    x = {"b": np.ones((2, 3), np.float32), "a": np.array([0, 2])}
    params = jax.jit(module.init)(KEY, x)
    y = module.apply(params, x)
    np.testing.assert_array_equal(module.apply(params, dict(reversed(x.items()))), y)
    other = encoder(spaces.Dict({"a": a, "b": b}))
    np.testing.assert_array_equal(other.apply(params, x), y)
    assert leaf_spaces(spaces.Dict(OrderedDict([("b", b), ("a", a)]))) == [a, b]


@pytest.mark.parametrize("size", [(7, 7), (36, 44)])
def test_channels_first_is_channels_last(size):
    last = spaces.Box(0, 255, (*size, 3), np.uint8)
    first = spaces.Box(0, 255, (3, *size), np.uint8)
    x = batch_of(last, 2)
    module = encoder(last)
    params = jax.jit(module.init)(KEY, x)
    y = jax.jit(encoder(first).apply)(params, np.moveaxis(x, -1, 1))
    np.testing.assert_allclose(jax.jit(module.apply)(params, x), y, atol=1e-5)


@pytest.mark.parametrize("torso", ["shallow", "deep", "mlp"])
def test_torsos(torso):
    x = batch_of(PICTURE, 2)
    params, y = jax.jit(encoder(PICTURE, torso).init_with_output)(KEY, x)[::-1]
    assert y.shape == (2, 6)
    flat = {"/".join(p.key for p in k) for k, _ in jax.tree.flatten_with_path(params)[0]}
    kernels = [name for name in flat if "kernel" in name and "dense" not in name]
    assert len(kernels) == {"shallow": 2, "deep": 15, "mlp": 0}[torso]
    # Pixels are scaled to [0, 1].
    scaled = np.float32(x) / 255
    if torso == "mlp":
        floats = spaces.Box(0, 1, PICTURE.shape, np.float32)
        z = encoder(floats, torso).apply(params, scaled)
    else:
        module = networks.Deep() if torso == "deep" else networks.Shallow()
        inner = {"params": params["params"]["torso0"]}
        z, y = (jax.jit(module.apply)(inner, x) for x in (scaled, x))
    np.testing.assert_allclose(y, z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [12, 36])
def test_brightness_does_not_matter(size):
    """Pixels are centred: all of them brighter by the same amount is the same picture."""
    x = np.random.default_rng(0).integers(0, 200, (2, size, size, 3)).astype(np.uint8)
    module = networks.Shallow()
    params, y = jax.jit(module.init_with_output)(KEY, x)[::-1]
    np.testing.assert_allclose(module.apply(params, x + np.uint8(50)), y, atol=1e-4)
    assert np.abs(module.apply(params, x[::-1]) - y).max() > 1e-2


def test_paper_sized_shallow_torso():
    """Figure 3, left: 16 8×8 stride 4, 32 4×4 stride 2: 84 × 84 becomes 9 × 9 × 32."""
    shape = jax.eval_shape(
        lambda: networks.Shallow().init_with_output(KEY, jnp.zeros((1, 84, 84, 4), jnp.uint8))
    )
    assert shape[0].shape == (1, 9 * 9 * 32)
    shape = jax.eval_shape(
        lambda: networks.Deep().init_with_output(KEY, jnp.zeros((1, 84, 84, 4), jnp.uint8))
    )
    assert shape[0].shape == (1, 11 * 11 * 32)


@pytest.mark.parametrize(
    "space", [spaces.Text(4), spaces.Dict({"a": spaces.Sequence(spaces.Discrete(2))})]
)
def test_unsupported_spaces_are_named(space):
    with pytest.raises(UserError, match="the observation space"):
        leaf_spaces(space)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_core_is_reset_at_first(kind):
    """Two episodes in one sequence equal each alone, whatever state came before."""
    size, batch, split, steps = 3, 2, 3, 7
    core = cores.make_core(kind, size)
    x = jax.random.normal(KEY, (steps, batch, 4))
    first = np.zeros((steps, batch), bool)
    first[0] = True
    first[split, 0] = True  # only in one column
    zero = core.initial_state(batch)
    params = jax.jit(core.init)(KEY, x, first, zero)
    apply = jax.jit(core.apply)
    stale = jax.tree.map(lambda s: s + 5.0, zero)
    together, state = apply(params, x, first, stale)
    assert together.shape == (steps, batch, size)
    clean, middle = apply(params, x[:split], np.zeros((split, batch), bool), zero)
    np.testing.assert_allclose(together[:split], clean, atol=1e-6)
    unset = np.zeros((steps - split, batch), bool)
    fresh, after = apply(params, x[split:], unset, zero)
    on, _ = apply(params, x[split:], unset, middle)
    np.testing.assert_allclose(together[split:, 0], fresh[:, 0], atol=1e-6)
    np.testing.assert_allclose(together[split:, 1], on[:, 1], atol=1e-6)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(a[0], b[0], atol=1e-6)
    assert np.abs(on[:, 0] - fresh[:, 0]).max() > 1e-3  # the test can tell them apart
    # No gradient crosses the boundary either.
    crossing = jax.grad(lambda x: apply(params, x, first, stale)[0][split:, 0].sum())(x)
    assert not crossing[:split].any()


def test_reset_leaves_other_slots_alone():
    state = (jnp.ones((3, 2)), jnp.ones((3, 2, 2)), jnp.ones(3))
    for leaf in cores.reset(state, jnp.array([True, False, True])):
        assert not leaf[::2].any()
        assert leaf[1].all()


@pytest.mark.parametrize(("core", "separate"), [("none", True), ("lstm", False), ("gru", True)])
def test_actor_critic(core, separate):
    """Acting row by row equals one pass; a separate value function shares no parameter."""
    space = spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(-1, 1, (2,))})
    module = networks.ActorCritic(
        space=space,
        num_params=5,
        torso="auto",
        hidden_sizes=(6,),
        activation="relu",
        core=cores.make_core(core, 4),
        separate_value=separate,
    )
    steps, batch = 3, 2
    x = jax.tree.map(
        lambda x: x.reshape(steps, batch, *x.shape[1:]), batch_of(space, steps * batch)
    )
    reward = jax.random.normal(KEY, (steps, batch))
    last_action = jax.random.normal(KEY, (steps, batch, 3))
    first = jnp.zeros((steps, batch), bool).at[1, 0].set(True)
    state = cores.initial_state(module.core, batch)
    params = jax.jit(module.init)(KEY, x, reward, last_action, first, state)
    apply = jax.jit(module.apply)
    policy, value, end, _ = apply(params, x, reward, last_action, first, state)
    assert policy.shape == (steps, batch, 5)
    assert value.shape == (steps, batch, 1)
    for t in range(steps):
        row = jax.tree.map(lambda x, t=t: x[t : t + 1], (x, reward, last_action, first))
        p, v, state, _ = apply(params, *row, state)
        np.testing.assert_allclose(p[0], policy[t], atol=1e-6)
        np.testing.assert_allclose(v[0], value[t], atol=1e-6)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(end), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)

    @jax.jit
    def gradients(p):
        _, pullback = jax.vjp(lambda p: apply(p, x, reward, last_action, first, end)[:2], p)
        nothing = jnp.zeros_like(policy), jnp.zeros_like(value)
        ones = jnp.ones_like(policy), jnp.ones_like(value)
        return [
            pullback(seed)[0]["params"] for seed in ((ones[0], nothing[1]), (nothing[0], ones[1]))
        ]

    touched = [
        {name for name, g in gradient.items() if any(x.any() for x in jax.tree.leaves(g))}
        for gradient in gradients(params)
    ]
    shared = touched[0] & touched[1]
    assert shared == (set() if separate else {"encoder"} | ({"core"} if core == "lstm" else set()))


@pytest.mark.parametrize("core", ["none", "lstm", "gru"])
def test_a_separate_value_sees_what_the_core_remembers(core):
    """Of an earlier row, until an episode begins; without a core it sees its own row only."""
    module = networks.ActorCritic(
        space=spaces.Box(-1, 1, (2,)),
        num_params=3,
        torso="auto",
        hidden_sizes=(6,),
        activation="tanh",
        core=cores.make_core(core, 4),
        separate_value=True,
    )
    steps, batch = 4, 2
    x = jax.random.normal(KEY, (steps, batch, 2))
    reward, last_action = jnp.zeros((steps, batch)), jnp.zeros((steps, batch, 3))
    first = jnp.zeros((steps, batch), bool).at[2, 1].set(True)  # of the second environment
    state = cores.initial_state(module.core, batch)
    params = jax.jit(module.init)(KEY, x, reward, last_action, first, state)
    apply = jax.jit(module.apply)

    def values(x):
        return apply(params, x, reward, last_action, first, state).values[..., 0]

    change = np.abs(values(x.at[0].add(1.0)) - values(x)) > 1e-6
    remembers = core != "none"
    np.testing.assert_array_equal(change[:, 0], [True, remembers, remembers, remembers])
    np.testing.assert_array_equal(change[:, 1], [True, remembers, False, False])


class Accumulator(nn.Module):
    """A core from outside the package: the sum of its inputs since the episode's beginning."""

    width: int

    def __call__(self, inputs, first, state):
        def step(total, x):
            total = cores.reset(total, x[1]) + x[0]
            return total, total

        state, outputs = jax.lax.scan(step, state, (inputs, first))
        return outputs, state

    @nn.nowrap
    def initial_state(self, batch):
        return jnp.zeros((batch, self.width))


@pytest.mark.parametrize("network", [networks.ActorCritic, networks.DuelingQ])
def test_a_custom_core(network):
    """Without parameters; the output depends on the rows of the episode so far, and no other."""
    space = spaces.Box(-1, 1, (2,))
    core = Accumulator(6 + 1 + 3)  # features, reward, last action
    heads = {"num_actions": 3, "head_units": 0}
    if network is networks.ActorCritic:
        heads = {"num_params": 3}
    module = network(
        space=space, torso="auto", hidden_sizes=(6,), activation="tanh", core=core, **heads
    )
    steps, batch = 4, 2
    x = jax.random.normal(KEY, (steps, batch, 2))
    reward, last_action = jnp.zeros((steps, batch)), jnp.zeros((steps, batch, 3))
    first = jnp.zeros((steps, batch), bool).at[2, 0].set(True)
    state = cores.initial_state(module.core, batch)
    params = jax.jit(module.init)(KEY, x, reward, last_action, first, state)
    assert "core" not in params["params"]
    apply = jax.jit(module.apply)
    before, after = (
        apply(params, y, reward, last_action, first, state)[0] for y in (x, x.at[1].add(1))
    )
    changed = np.abs(after - before).max(-1) > 1e-6
    np.testing.assert_array_equal(changed, [[0, 0], [1, 1], [0, 1], [0, 1]])


class Brightness(nn.Module):
    """A torso from outside the package: the mean of each channel, times a weight."""

    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return x.astype(self.dtype).mean(axis=(1, 2)) * scale


def test_a_custom_torso():
    """For images alone; other leaves stay vectors."""
    space = spaces.Dict({"picture": PICTURE, "speed": spaces.Box(-1, 1, (2,))})
    encoder = networks.Encoder(space, Brightness, (), "relu")
    space.seed(0)
    x = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], dict(space.sample()))
    features, variables = encoder.init_with_output(KEY, x)
    assert variables["params"]["torso0"]["scale"].shape == (PICTURE.shape[-1],)
    means = np.asarray(x["picture"], np.float64).mean(axis=(1, 2))
    np.testing.assert_allclose(features, np.concatenate([means, x["speed"]], axis=-1), rtol=1e-5)


def test_leaves_and_back():
    """In the order of `jax.tree`, also of keys that are not sorted."""
    nested = spaces.Dict(
        OrderedDict([("b", PICTURE), ("a", spaces.Tuple([SPACES["ram"], PICTURE]))])
    )
    nested.seed(0)
    value = nested.sample()
    leaves = pronk_spaces.leaf_values(nested, value)
    assert [leaf.shape for leaf in leaves] == [s.shape for s in leaf_spaces(nested)]
    jax.tree.map(np.testing.assert_array_equal, leaves, jax.tree.leaves(dict(value)))
    back = pronk_spaces.from_leaves(nested, leaves)
    jax.tree.map(np.testing.assert_array_equal, back, dict(value))


ODD_IMAGES = {
    "float": spaces.Box(0, 1, (12, 12, 3), np.float32),
    "stack": spaces.Box(0, 255, (4, 12, 12, 3), np.uint8),
    "matrix": spaces.Box(0, 255, (12, 12), np.uint8),
    "planes": spaces.Box(0, 1, (12, 12, 4), np.int8),
    "vector": spaces.Box(-1, 1, (3,)),
}


@pytest.mark.parametrize("name", ODD_IMAGES)
def test_a_torso_of_images_without_images_is_refused(name):
    """Where it is asked for; what is not convolved is said."""
    spec = EnvSpec("test", ODD_IMAGES[name], spaces.Discrete(2))
    for torso in ("minatar", "deep"):
        with pytest.raises(UserError, match=rf"torso is {torso}.*--torso auto"):
            agents.make("impala", Config(torso=torso), spec, horizon=1)  # type: ignore[arg-type]
    x = batch_of(spec.observation_space, 1)
    with pytest.raises(UserError, match=r"torso is Brightness, which convolves images"):
        encoder(spec.observation_space, Brightness).init(KEY, x)  # type: ignore[arg-type]
    agents.make("impala", Config(), spec, horizon=1)
    said = networks.describe(spec.observation_space, "auto")
    assert "convolved" not in said
    assert "numbers" in said


def test_what_the_network_makes_of_each_observation_is_said():
    space = spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (4, 84, 84), np.uint8),
            "rgb": spaces.Box(0, 1, (8, 9, 3), np.float32),
            "goal": spaces.Tuple([spaces.Discrete(5), spaces.Box(-1, 1, (2,))]),
        }
    )
    said = networks.describe(space, "auto")
    assert said == (
        "network input: observation['camera'] (4 x 84 x 84) is images of 84 x 84 pixels with 4"
        " channels, first, convolved by the torso shallow; observation['goal'][0] is one-hot, 5"
        " numbers; observation['goal'][1] is 2 numbers; observation['rgb'] (8 x 9 x 3, float32) is"
        " flattened to 216 numbers: only uint8 with three axes, of at least 5 x 5 pixels, is an"
        " image"
    )
    assert "216 numbers" in networks.describe(space, "mlp")
    assert "torso Brightness" in networks.describe(space, Brightness)
    assert networks.describe(spaces.Box(-1, 1, ()), "auto").endswith("observation is 1 number")


@pytest.mark.parametrize(
    ("shape", "first"),
    [
        ((84, 84, 3), False), ((4, 84, 84), True), ((210, 160, 3), False), ((3, 210, 160), True),
        ((8, 8, 12), False), ((8, 8, 119), False), ((12, 8, 8), True), ((9, 9, 9), False),
    ],
)  # fmt: skip
def test_the_two_equal_axes_of_an_image_are_its_height_and_width(shape, first):
    assert pronk_spaces.channels_first(shape) == first
