"""Attention as one kernel has the numbers of the plain path, interpreted where there is no TPU."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coin_jax.config import ConfigError, MeshConfig, ModelConfig
from coin_jax.model import attention, fused_attention
from coin_jax.model.dropout import hashed_key
from coin_jax.model.t5 import T5
from coin_jax.parallel.mesh import make_mesh
from coin_jax.parallel.sharding import replicated

# rows, queries, keys, heads, head size, with a bias, causal
SHAPES = {
    "encoder": (2, 256, 256, 4, 64, True, False),
    "decoder": (3, 32, 32, 6, 64, True, True),
    "cross": (2, 32, 128, 2, 64, False, False),
    "odd heads": (2, 48, 16, 3, 8, True, False),
}


@pytest.fixture(params=SHAPES)
def case(request):
    B, T, S, N, H, with_bias, causal = SHAPES[request.param]
    draw = np.random.default_rng(7)
    normal = lambda *shape: (0.3 * draw.normal(size=shape)).astype(np.float32)  # noqa: E731
    arrays = [normal(B, T, N * H), normal(B, S, N * H), normal(B, S, N * H)]
    bias = normal(1, N, T, S) if with_bias else None
    queries = np.sort(draw.integers(0, 5, (B, T))).astype(np.int32)
    keys = queries if T == S else np.sort(draw.integers(0, 5, (B, S))).astype(np.int32)
    return arrays, bias, queries, keys, N, causal, normal(B, T, N * H)


def in_float64(query, key, value, bias, queries, keys, heads, causal):
    """Attention by its definition."""
    B, T, W = query.shape
    split = lambda x: x.astype(np.float64).reshape(B, -1, heads, W // heads)  # noqa: E731
    scores = np.einsum("btnh,bsnh->bnts", split(query), split(key))
    scores += 0 if bias is None else bias
    seen = (queries[:, :, None] == keys[:, None, :])[:, None]
    if causal:
        seen = seen & (np.arange(T)[:, None] >= np.arange(keys.shape[1]))
    weights = np.where(seen, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    total = weights.sum(-1, keepdims=True)
    weights = weights / np.where(total == 0, 1, total)
    return np.einsum("bnts,bsnh->btnh", weights, split(value)).reshape(B, T, W), seen.any(-1)


def fused(query, key, value, bias, queries, keys, heads, causal, rate=0.0, dropout_key=None):
    return fused_attention.attend(
        query,
        key,
        value,
        None if bias is None else fused_attention.spread(bias),
        queries,
        keys,
        heads=heads,
        causal=causal,
        dropout_rate=rate,
        dropout_seed=None if dropout_key is None else hashed_key(dropout_key),
        interpret=True,
    )


def plain(query, key, value, bias, queries, keys, heads, causal, rate, dropout_key):
    split = lambda x: x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)  # noqa: E731
    mask = attention.segment_mask(queries, keys, causal)
    context = attention.attend(*map(split, (query, key, value)), bias, mask, rate, dropout_key)
    return context.transpose(0, 2, 1, 3).reshape(query.shape)


def test_it_is_attention_by_its_definition(case):
    arrays, bias, queries, keys, heads, causal, _ = case
    expected, seen = in_float64(*arrays, bias, queries, keys, heads, causal)
    found = fused(*arrays, bias, queries, keys, heads, causal)
    somewhere = np.broadcast_to(seen[:, 0, :, None], expected.shape)
    np.testing.assert_allclose(found[somewhere], expected[somewhere], atol=2e-6)


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_values_and_gradients_are_the_plain_path_s_dropout_included(case, rate):
    arrays, bias, queries, keys, heads, causal, slope = case
    dropout = (rate, jax.random.key(3, impl="rbg"))
    inputs = (*arrays, *([] if bias is None else [bias]))

    def loss(attend, *inputs):
        bias = inputs[3] if len(inputs) > 3 else None
        return (attend(*inputs[:3], bias, queries, keys, heads, causal, *dropout) * slope).sum()

    gradients = [
        jax.value_and_grad(loss, tuple(range(1, 1 + len(inputs))))(attend, *inputs)
        for attend in (fused, plain)
    ]
    np.testing.assert_allclose(gradients[0][0], gradients[1][0], rtol=1e-4, atol=1e-4)
    for found, expected in zip(gradients[0][1], gradients[1][1], strict=True):
        error = np.abs(found - expected).max() / np.abs(expected).max()
        assert error < 2e-6


MODEL = ModelConfig(
    vocabulary_size=64, d_model=32, d_kv=16, d_ff=48, num_heads=4, num_layers=1,
    num_decoder_layers=1, remat="wide", scan_unroll=1,
)  # fmt: skip


@pytest.mark.parametrize("every_layer", [False, True])
@pytest.mark.parametrize("counts", [None, (1, 1, 1), (2, 2, 2), (1, 8, 1)])
def test_a_model_is_the_same_with_it_on_every_mesh(counts, every_layer):
    if counts is not None and every_layer:
        pytest.skip("said by the others")
    config = dataclasses.replace(MODEL, relative_bias_every_layer=every_layer)
    draw = np.random.default_rng(0)
    tokens = draw.integers(2, 64, (8, 16)).astype(np.int32)
    segments = np.sort(draw.integers(0, 4, (8, 16))).astype(np.int32)
    params = T5(config).init(jax.random.key(1))

    def loss(params, kind, mesh):
        model = T5(dataclasses.replace(config, attention=kind))
        key = jax.random.key(5, impl="rbg")

        def run(params):
            encoded = model.encode(params, tokens, segments, dropout_key=key)
            decoded = model.decode(
                params, tokens[:, :16], segments[:, :16], encoded, segments, dropout_key=key
            )
            return (decoded * jnp.cos(jnp.arange(32.0)) * (segments[:, :16, None] > 0)).sum()

        if mesh is None:
            return run(params)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return run(params)

    mesh = (
        None
        if counts is None
        else make_mesh(MeshConfig(*counts), jax.devices()[: math.prod(counts)])
    )
    gradient_of = functools.partial(jax.value_and_grad, argnums=0)
    expected, expected_gradient = jax.jit(gradient_of(lambda p: loss(p, "plain", None)))(params)
    places = None if mesh is None else replicated(mesh)
    step = jax.jit(gradient_of(lambda p: loss(p, "fused", mesh)), in_shardings=places)
    found, gradient = step(params)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    for one, other in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=2e-5 * float(np.abs(other).max() + 1e-3))


def test_shapes_that_it_does_not_take_are_left_to_the_plain_path(monkeypatch):
    assert fused_attention.fits(8, 512, 512, 32, 64)
    assert fused_attention.fits(8, 96, 512, 6, 64)
    assert fused_attention.fits(8, 1024, 1024, 32, 64)
    assert not fused_attention.fits(8, 1040, 1024, 32, 64), "scores beyond what the chip holds"
    assert not fused_attention.fits(8, 100, 512, 32, 64), "no whole registers"
    assert not fused_attention.fits(8, 512, 512, 3, 64), "a head too many"
    with jax.sharding.use_abstract_mesh(
        make_mesh(MeshConfig(1, 4, 2), jax.devices()[:8]).abstract_mesh
    ):
        assert not fused_attention.fits(6, 512, 512, 32, 64), "rows that do not divide"
        assert not fused_attention.fits(8, 512, 512, 7, 64), "heads that do not divide"
    monkeypatch.setattr(fused_attention, "device_kind", lambda: "TPU v4")
    assert fused_attention.fits(8, 512, 512, 32, 64)
    assert not fused_attention.fits(8, 528, 512, 32, 64), "scores beyond what an older chip holds"


def test_at_the_start_the_kernel_is_held_against_the_plain_path(monkeypatch):
    config = ModelConfig(d_kv=64)
    attention.check_fused(config)  # no TPU: nothing to check
    monkeypatch.setattr(attention, "is_for_tpu", lambda: True)
    attention.check_fused(config)
    right = fused_attention.attend
    monkeypatch.setattr(
        fused_attention, "attend", lambda *arrays, **how: right(*arrays, **how | {"causal": False})
    )
    with pytest.raises(ConfigError, match=r"gradient of the query differs .* 'plain'"):
        attention.check_fused(config)
    attention.check_fused(dataclasses.replace(config, attention="plain"))
