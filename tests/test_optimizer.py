"""Optimizers, schedules, and the state they keep, against float64 numpy and hand-made numbers."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from coin_jax.config import Config, MeshConfig, OptimizerConfig
from coin_jax.parallel.mesh import make_mesh
from coin_jax.training.optimizer import is_decayed, learning_rate_schedule, make_optimizer
from coin_jax.training.state import abstract_state, create_state, state_shardings
from coin_jax.training.step import moving_average

AXES = {
    "embedding": ("vocab", "embed"),
    "layers": {"wi": ("layers", "embed", "mlp"), "norm": ("layers", "norm")},
    "relative_bias": ("buckets", "heads"),
}


def tree(seed, wi=(2, 8, 16), vocabulary=32):
    random = np.random.default_rng(seed)
    make = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "embedding": make(vocabulary, wi[1]),
        "layers": {"wi": make(*wi), "norm": make(wi[0], wi[1])},
        "relative_bias": make(8, 4),
    }


def run(config, gradients, params, steps=10):
    optimizer = make_optimizer(config, steps, AXES)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = jax.jit(optimizer.update)(gradient, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        # peak 2, final fraction 0.1, 12 steps; the rates of updates 0, 1, 4, 8 and 12
        ("constant", 0, [2, 2, 2, 2, 2]),
        ("constant", 4, [0.5, 1, 2, 2, 2]),
        ("linear", 0, [2, 1.85, 1.4, 0.8, 0.2]),
        ("linear", 4, [0.5, 1, 2, 1.1, 0.2]),
        ("cosine", 4, [0.5, 1, 2, 1.1, 0.2]),
        ("cosine", 0, [2, 0.2 + 0.9 * (1 + math.cos(math.pi / 12)), 1.55, 0.65, 0.2]),
        (
            "inverse_square_root",
            4,
            [0.5, 1, 2 * (4 / 5) ** 0.5, 2 * (4 / 9) ** 0.5, 2 * (4 / 13) ** 0.5],
        ),
        ("inverse_square_root", 0, [2, 2 / 2**0.5, 2 / 5**0.5, 2 / 3, 2 / 13**0.5]),
    ],
)
def test_schedules_have_the_rates_worked_out_by_hand(schedule, warmup, expected):
    config = OptimizerConfig(
        learning_rate=2.0,
        schedule=schedule,
        warmup_steps=warmup,
        final_learning_rate_fraction=0.1,
    )
    rate = learning_rate_schedule(config, 12)
    np.testing.assert_allclose([rate(step) for step in (0, 1, 4, 8, 12)], expected, rtol=1e-6)
    assert rate(jnp.int32(3)).dtype == jnp.float32


def test_matrices_are_decayed_and_norms_and_relative_biases_are_not():
    assert is_decayed(("vocab", "embed"))
    assert is_decayed(("layers", "embed", "heads"))
    assert not is_decayed(("norm",))
    assert not is_decayed(("layers", "norm"))
    assert not is_decayed(("buckets", "heads"))
    assert not is_decayed(("layers", "buckets", "heads"))


def test_adamw_is_the_published_update():
    """Loshchilov and Hutter 2019, algorithm 2, after clipping to a global norm of 1; in float64."""
    config = OptimizerConfig(learning_rate=0.01, schedule="linear", weight_decay=0.1, clip_norm=1.0)
    gradients, params = [tree(1), tree(2), tree(3)], tree(0)
    actual = run(config, gradients, params)

    flat = [[np.float64(x) for x in jax.tree.leaves(gradient)] for gradient in gradients]
    expected = [np.float64(x) for x in jax.tree.leaves(params)]
    is_matrix = [True, False, True, False]  # embedding, norm, wi, relative_bias
    first, second = [[np.zeros_like(x) for x in expected] for _ in range(2)]
    for t, gradient in enumerate(flat, start=1):
        norm = math.sqrt(sum((g**2).sum() for g in gradient))
        assert norm > 1
        rate = 0.01 * (1 - (t - 1) / 10)
        for i, g in enumerate(gradient):
            g = g / norm
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g**2
            update = first[i] / (1 - 0.9**t) / (np.sqrt(second[i] / (1 - 0.999**t)) + 1e-8)
            expected[i] = expected[i] - rate * (update + 0.1 * is_matrix[i] * expected[i])
    for a, e in zip(jax.tree.leaves(actual), expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)


def test_adafactor_is_the_published_update_layer_by_layer():
    """Shazeer and Stern 2018, algorithms 4 and 5, each layer as a matrix of its own; in float64."""
    config = OptimizerConfig(
        name="adafactor", learning_rate=0.01, schedule="constant", weight_decay=0.1, clip_norm=0
    )
    shape = {"wi": (2, 128, 160), "vocabulary": 192}
    gradients, params = [tree(1, **shape), tree(2, **shape)], tree(0, **shape)
    gradients[1] = jax.tree.map(lambda g: 4 * g, gradients[1])  # so that the clipping has work
    actual = run(config, gradients, params)

    def one(x, gradients, factored, decayed):
        x = np.float64(x)
        v, row, column, clipped = 0, 0, 0, False
        for t, g in enumerate(np.float64(gradients), start=1):
            beta = 1 - t**-0.8
            square = g**2 + 1e-30
            v = beta * v + (1 - beta) * square
            row = beta * row + (1 - beta) * square.sum(-1, keepdims=True)
            column = beta * column + (1 - beta) * square.sum(0, keepdims=True)
            estimate = row @ column / row.sum() if factored else v
            update = g / np.sqrt(estimate)
            rms = math.sqrt((update**2).mean())
            clipped |= rms > 1.01
            update = update / max(1, rms) * max(1e-3, math.sqrt((x**2).mean()))
            x = x - 0.01 * (update + 0.1 * decayed * x)
        return x, clipped

    def check(path, factored, decayed):
        pick = lambda t: path(t)  # noqa: E731
        expected, clipped = one(pick(params), [pick(g) for g in gradients], factored, decayed)
        assert clipped
        np.testing.assert_allclose(pick(actual), expected, rtol=2e-5, atol=1e-6)

    check(lambda t: t["embedding"], True, True)
    check(lambda t: t["relative_bias"], False, False)
    for layer in (0, 1):
        check(lambda t, i=layer: t["layers"]["wi"][i], True, True)
        check(lambda t, i=layer: t["layers"]["norm"][i], False, False)


def test_adafactor_keeps_a_row_and_a_column_of_large_matrices():
    optimizer = make_optimizer(OptimizerConfig(name="adafactor", clip_norm=0), 1, AXES)
    moments = optimizer.init(tree(0, wi=(2, 128, 160), vocabulary=100))[0].moments
    shapes = jax.tree.map(lambda x: x.shape, moments)
    assert shapes["layers"]["wi"] == {"row": (2, 128), "column": (2, 160)}
    assert shapes["layers"]["norm"] == {"full": (2, 128)}
    assert shapes["embedding"] == {"full": (100, 128)}


def test_a_gradient_below_the_clipping_norm_is_left_alone():
    small = jax.tree.map(lambda x: 1e-3 * x, tree(1))
    results = [
        run(OptimizerConfig(clip_norm=norm, schedule="constant", epsilon=1.0), [small], tree(0))
        for norm in (0.0, 1.0)
    ]
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_the_average_starts_fast_and_ends_at_its_decay():
    old, new = {"x": jnp.array([1.0])}, {"x": jnp.array([3.0])}
    # decays (1 + 0) / (10 + 0) = 0.1 and min(0.99, 9001 / 9010) = 0.99
    assert moving_average(old, new, jnp.int32(0), 0.99)["x"][0] == pytest.approx(2.8)
    assert moving_average(old, new, jnp.int32(9000), 0.99)["x"][0] == pytest.approx(1.02, rel=1e-5)
    assert moving_average(None, new, jnp.int32(0), 0.0) is None


class Model:
    """What the state asks of a model."""

    def __init__(self, **shape):
        self.shape = shape

    def logical_axes(self):
        return AXES

    def init(self, key):
        shapes = tree(0, **self.shape)
        keys = iter(jax.random.split(key, 4))
        return jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape), shapes)

    def abstract_parameters(self):
        return jax.eval_shape(self.init, jax.random.key(0))


def shard_shapes(x):
    return {shard.data.shape for shard in x.addressable_shards}


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_parameters_moments_and_average_are_born_in_pieces(name):
    """On 2 x 2 x 2: embed over fsdp, vocab and mlp over tensor; nothing is whole on a device."""
    config = Config(optimizer=OptimizerConfig(name=name, ema_decay=0.9))
    optimizer = make_optimizer(config.optimizer, 10, AXES)
    mesh = make_mesh(MeshConfig(2, 2, 2))
    model = Model(wi=(2, 128, 256), vocabulary=512)
    state = create_state(model, optimizer, config, mesh)
    for params in (state.params, state.ema):
        assert shard_shapes(params["layers"]["wi"]) == {(2, 64, 128)}
        assert shard_shapes(params["embedding"]) == {(256, 64)}
    if name == "adamw":
        for moment in (state.optimizer_state[1].mu, state.optimizer_state[1].nu):
            assert shard_shapes(moment["layers"]["wi"]) == {(2, 64, 128)}
            assert shard_shapes(moment["embedding"]) == {(256, 64)}
    else:
        moments = state.optimizer_state[1].moments
        assert shard_shapes(moments["layers"]["wi"]["row"]) == {(2, 64)}
        assert shard_shapes(moments["layers"]["wi"]["column"]) == {(2, 128)}
        assert shard_shapes(moments["embedding"]["row"]) == {(256,)}
    assert shard_shapes(state.step) == {()}


def test_a_start_does_not_depend_on_the_mesh_and_may_be_given():
    config = Config()
    optimizer = make_optimizer(config.optimizer, 10, AXES)
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    eight = make_mesh(MeshConfig(2, 2, 2))
    alone = create_state(Model(), optimizer, config, one)
    spread = create_state(Model(), optimizer, config, eight)
    given = create_state(Model(), optimizer, config, eight, params=jax.device_get(alone.params))
    for other in (spread, given):
        jax.tree.map(np.testing.assert_array_equal, alone.params, other.params)
    jax.tree.map(
        lambda x, sharding: x.sharding.is_equivalent_to(sharding, x.ndim) or pytest.fail(str(x)),
        given,
        state_shardings(Model(), optimizer, config, eight),
    )


def test_state_that_belongs_to_no_parameter_is_an_error_and_not_replicated():
    config = Config()
    stray = optax.GradientTransformation(lambda params: {"stray": jnp.zeros(5)}, None)
    mesh = make_mesh(MeshConfig())
    with pytest.raises(ValueError, match="stray"):
        state_shardings(Model(), stray, config, mesh)


def test_the_average_is_kept_only_where_it_is_asked_for():
    config = Config()
    optimizer = make_optimizer(config.optimizer, 10, AXES)
    state = abstract_state(Model(), optimizer, config)
    assert state.ema is None
    assert state.evaluation_params is state.params
    config = dataclasses.replace(config, optimizer=OptimizerConfig(ema_decay=0.5))
    state = abstract_state(Model(), optimizer, config)
    assert state.evaluation_params is state.ema
