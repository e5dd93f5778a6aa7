"""What T5 promises beyond parity: packing, padding, remat, dropout, decoding step by step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coin_jax.config import ModelConfig
from coin_jax.model.t5 import T5, reorder_cache

SMALL = ModelConfig(
    vocabulary_size=40,
    d_model=16,
    d_kv=5,
    d_ff=20,
    num_heads=3,
    num_layers=2,
    num_decoder_layers=3,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=12,
    scan_unroll=1,  # compiles one layer instead of all of them
)
UMT5 = dataclasses.replace(SMALL, relative_bias_every_layer=True)
T5_1_0 = dataclasses.replace(
    SMALL, feed_forward="relu", tie_word_embeddings=True, scale_decoder_outputs=True
)


@functools.cache
def make(config=SMALL):
    """Weights from numpy: compiling `init` would take longer than all else here."""
    model, random = T5(config), np.random.default_rng(0)

    def draw(path, leaf):
        values = random.standard_normal(leaf.shape)
        if path[-1].key == "scale":
            values = 1.0 + 0.2 * values
        elif path[-1].key not in ("embedding", "relative_bias"):
            values *= leaf.shape[-2] ** -0.5
        return values.astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(draw, model.abstract_parameters())


def dropout_key(seed):
    return jax.random.key(seed, impl="rbg")  # compiles sooner than the default


def tokens(seed, *shape):
    return np.random.default_rng(seed).integers(2, SMALL.vocabulary_size, shape)


def ones(array):
    return np.ones(np.shape(array), np.int32)


@functools.partial(jax.jit, static_argnums=0)
def decode(model, params, *arguments, **options):
    return model.decode(params, *arguments, **options)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def init_cache(model, params, encoded, segments, length, width):
    return model.init_cache(params, encoded, segments, length, width)


@functools.partial(jax.jit, static_argnums=0)
def decode_step(model, params, cache, answers, position):
    return model.decode_step(params, cache, answers, position)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, batch, key=None):
    source, target = batch["segments"], batch["decoder_segments"]
    encoded = model.encode(params, batch["tokens"], source, dropout_key=key)
    decoded = model.decode(params, batch["inputs"], target, encoded, source, dropout_key=key)
    return encoded, decoded


def plain_batch(rows=2, encoder_length=11, decoder_length=5):
    batch = {"tokens": tokens(1, rows, encoder_length), "inputs": tokens(2, rows, decoder_length)}
    return batch | {
        "segments": ones(batch["tokens"]),
        "decoder_segments": ones(batch["inputs"]),
    }


@pytest.mark.parametrize("config", [SMALL, UMT5], ids=["shared bias", "umT5"])
def test_packed_rows_give_the_same_states_as_single_ones(config):
    model, params = make(config)
    batch = {}
    for name, segment_name, lengths, size in (
        ("tokens", "segments", (4, 7, 2), 16),
        ("inputs", "decoder_segments", (3, 1, 4), 10),
    ):
        parts = [tokens(size + i, length) for i, length in enumerate(lengths)]
        ids = [np.full(length, i + 1) for i, length in enumerate(lengths)]
        # Row 0: all three packed; rows 1, 2, 3: each alone, at the start of its row.
        rows = [np.concatenate(parts), *parts]
        row_ids = [np.concatenate(ids), *(np.minimum(each, 1) for each in ids)]
        batch[name] = np.stack([np.pad(row, (0, size - len(row))) for row in rows])
        batch[segment_name] = np.stack([np.pad(row, (0, size - len(row))) for row in row_ids])
    encoded, decoded = forward(model, params, batch)
    for states, ids in ((encoded, batch["segments"]), (decoded, batch["decoder_segments"])):
        for i in (1, 2, 3):
            packed, single = states[0][ids[0] == i], states[i][ids[i] == 1]
            np.testing.assert_allclose(packed, single, rtol=1e-5, atol=3e-6)


def test_answers_packed_into_one_row_share_one_prompt():
    model, params = make()
    encoded, _ = forward(model, params, plain_batch(rows=1))
    source = np.ones((1, 11), np.int32)
    answers = tokens(5, 2, 4)
    segments = np.array([[1] * 4 + [2] * 4])
    together = decode(
        model,
        params,
        answers.reshape(1, 8),
        segments,
        encoded,
        source,
        cross_segment_ids_BxT=ones(segments),
    )
    twice = (np.repeat(encoded, 2, 0), np.repeat(source, 2, 0))
    alone = decode(model, params, answers, ones(answers), *twice)
    np.testing.assert_allclose(together.reshape(alone.shape), alone, rtol=1e-5, atol=3e-6)


def test_what_stands_at_padding_and_after_a_position_changes_nothing_before_it():
    model, params = make()
    batch = plain_batch()
    batch["segments"] = batch["segments"].copy()
    batch["segments"][:, 8:] = 0
    other = batch | {"tokens": batch["tokens"].copy(), "inputs": batch["inputs"].copy()}
    other["tokens"][:, 8:] = 3
    other["inputs"][:, 3:] = 4
    encoded, decoded = forward(model, params, batch)
    other_encoded, other_decoded = forward(model, params, other)
    np.testing.assert_array_equal(encoded[:, :8], other_encoded[:, :8])
    np.testing.assert_array_equal(decoded[:, :3], other_decoded[:, :3])


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_rows_of_padding_alone_give_finite_values_and_gradients(compute_dtype):
    model, params = make(dataclasses.replace(SMALL, compute_dtype=compute_dtype))
    batch = plain_batch()
    # Row 0: nothing at all; row 1: a decoder without anything to attend to in the encoder.
    batch["segments"] = np.zeros_like(batch["segments"])
    batch["decoder_segments"] = np.array([[0] * 5, [1] * 5])

    def loss(params):
        return sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in forward(model, params, batch))

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradients)))


@pytest.fixture(scope="module")
def plain_gradients():
    return value_and_gradients(SMALL)


def value_and_gradients(config):
    model, params = make(config)
    batch = plain_batch()

    def loss(params):
        decoded = forward(model, params, batch, dropout_key(7))[1]
        return jnp.mean(jax.nn.logsumexp(model.logits(params, decoded), -1))

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
    ("remat", "scan_unroll"),
    [
        ("none", 1),
        ("none", 2),
        ("minimal", 1),
        ("minimal", 0),
        ("wide", 1),
        ("full", 1),
        ("full", 0),
    ],
)
def test_remat_and_unroll_change_neither_values_nor_gradients(remat, scan_unroll, plain_gradients):
    config = dataclasses.replace(SMALL, remat=remat, scan_unroll=scan_unroll)
    for value, expected in zip(
        jax.tree.leaves(value_and_gradients(config)), jax.tree.leaves(plain_gradients), strict=True
    ):
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-6)


def test_full_remat_keeps_fewer_bytes_for_the_backward_pass():
    batch = plain_batch(rows=4, encoder_length=64, decoder_length=64)

    def temporary_bytes(remat):
        model = T5(dataclasses.replace(SMALL, num_layers=6, remat=remat, scan_unroll=1))
        loss = lambda params: jnp.sum(forward(model, params, batch)[1] ** 2)  # noqa: E731
        compiled = jax.jit(jax.grad(loss)).lower(model.abstract_parameters()).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    sizes = [temporary_bytes(remat) for remat in ("full", "wide", "minimal", "none")]
    assert sizes == sorted(set(sizes))


def test_dropout_is_a_function_of_its_key_and_off_without_one():
    model, params = make()
    run = lambda key: forward(model, params, plain_batch(), key)[1]  # noqa: E731
    first, again, other = (run(dropout_key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.max(np.abs(first - other)) > 0.1
    without_rate = T5(dataclasses.replace(SMALL, dropout_rate=0.0))
    off = forward(without_rate, params, plain_batch(), dropout_key(1))[1]
    np.testing.assert_allclose(run(None), off, rtol=1e-6, atol=1e-6)
    # The rows of a batch have masks of their own.
    batch = jax.tree.map(lambda x: np.repeat(x[:1], 2, 0), plain_batch())
    rows = forward(model, params, batch, dropout_key(1))[1]
    assert np.max(np.abs(rows[0] - rows[1])) > 0.1


@pytest.mark.parametrize("config", [SMALL, UMT5, T5_1_0], ids=["shared bias", "umT5", "T5 1.0"])
def test_decoding_step_by_step_gives_the_states_of_decoding_at_once(config):
    model, params = make(config)
    batch = plain_batch()
    batch["segments"] = batch["segments"].copy()
    batch["segments"][1, 6:] = 0
    answers = tokens(9, 2, 3, 5)  # three answers to each of two prompts
    encoded, _ = forward(model, params, batch)
    whole = [
        decode(model, params, a, ones(a), encoded, batch["segments"])
        for a in answers.swapaxes(0, 1)
    ]
    cache = init_cache(model, params, encoded, batch["segments"], 7, 3)
    for position in range(5):
        hidden, cache = decode_step(model, params, cache, answers[:, :, position], position)
        for k in range(3):
            expected = whole[k][:, position]
            np.testing.assert_allclose(hidden[:, k], expected, rtol=1e-5, atol=3e-6)


def test_a_reordered_cache_goes_on_from_the_chosen_answers():
    model, params = make()
    batch = plain_batch()
    encoded, _ = forward(model, params, batch)
    histories, last = tokens(9, 2, 3, 2), tokens(11, 2, 3)
    cache = init_cache(model, params, encoded, batch["segments"], 7, 3)
    for position in range(2):
        _, cache = decode_step(model, params, cache, histories[:, :, position], position)
    source = np.array([[2, 2, 0], [1, 0, 1]])
    hidden, _ = decode_step(model, params, reorder_cache(cache, source), last, 2)
    for k in range(3):
        chosen = histories[np.arange(2), source[:, k]]
        answer = np.concatenate([chosen, last[:, k : k + 1], chosen], axis=1)  # the rest is unseen
        whole = decode(model, params, answer, ones(answer), encoded, batch["segments"])
        np.testing.assert_allclose(hidden[:, k], whole[:, 2], rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_the_head_is_the_embedding_where_tied_and_holds_the_scale(tied, scaled):
    config = dataclasses.replace(SMALL, tie_word_embeddings=tied, scale_decoder_outputs=scaled)
    model, params = make(config)
    assert ("head" in params) == (not tied)
    matrix = np.asarray(params["embedding"]).T if tied else np.asarray(params["head"])
    expected = matrix.astype(np.float64) * (16**-0.5 if scaled else 1.0)
    np.testing.assert_allclose(model.head(params), expected, rtol=1e-6)
    hidden = np.random.default_rng(0).standard_normal((2, 3, 16)).astype(np.float32)
    logits = model.logits(params, hidden)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, hidden.astype(np.float64) @ expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [SMALL, UMT5, T5_1_0], ids=["shared bias", "umT5", "T5 1.0"])
def test_every_array_has_a_logical_name_for_each_axis(config):
    model, params = make(config)
    abstract, axes = model.abstract_parameters(), model.logical_axes()
    is_names = lambda node: isinstance(node, tuple)  # noqa: E731
    assert jax.tree.structure(axes, is_leaf=is_names) == jax.tree.structure(params)
    named = jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_names)
    for array, shape, (path, names) in zip(
        jax.tree.leaves(params), jax.tree.leaves(abstract), named, strict=True
    ):
        assert (array.shape, array.dtype) == (shape.shape, shape.dtype)
        assert array.dtype == jnp.float32
        assert len(names) == array.ndim
        assert (names[0] == "layers") == ("layers" in jax.tree_util.keystr(path))
    assert type(params) is dict
    assert type(params["encoder"]["layers"]) is dict


def test_random_weights_have_the_published_scales():
    config = dataclasses.replace(SMALL, d_model=64, d_kv=16, d_ff=96, vocabulary_size=400)
    params = jax.jit(T5(config).init)(jax.random.key(0))
    layers = params["decoder"]["layers"]
    attention, feed_forward = layers["cross_attention"]["attention"], layers["feed_forward"]
    for array, scale in (
        (params["embedding"], 1.0),
        (params["head"], 64**-0.5),
        (attention["query"], (64 * 16) ** -0.5),
        (attention["key"], 64**-0.5),
        (attention["value"], 64**-0.5),
        (attention["out"], 48**-0.5),
        (feed_forward["wi"], 64**-0.5),
        (feed_forward["wi_gate"], 64**-0.5),
        (feed_forward["wo"], 96**-0.5),
    ):
        assert np.std(array) == pytest.approx(scale, rel=0.05)
        assert np.mean(array) == pytest.approx(0.0, abs=0.05 * scale)
    assert np.all(np.asarray(layers["feed_forward"]["norm"]["scale"]) == 1.0)
    # Layers are drawn apart, and so are the matrices of a layer.
    assert np.max(np.abs(attention["key"][0] - attention["key"][1])) > 0.1
    assert np.max(np.abs(attention["key"] - attention["value"])) > 0.1


def test_bfloat16_computes_what_float32_does_and_leaves_parameters_alone():
    model, params = make()
    narrow = T5(dataclasses.replace(SMALL, compute_dtype="bfloat16"))
    exact = forward(model, params, plain_batch())
    for value, expected in zip(forward(narrow, params, plain_batch()), exact, strict=True):
        assert value.dtype == jnp.bfloat16
        error = np.abs(value.astype(jnp.float32) - expected)
        assert np.max(error) < 0.05 * np.max(np.abs(expected))
    gradients = jax.grad(lambda p: jnp.sum(narrow.head(p)))(params)
    assert gradients["head"].dtype == jnp.float32
    assert narrow.logits(params, exact[1]).dtype == jnp.float32
