"""Relative positions, masks, softmax and dropout, against plain definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coin_jax.model.attention import (
    attend,
    biased_softmax,
    dropout,
    multiplied_bias,
    relative_bias,
    relative_buckets,
    segment_mask,
    shifted_bias,
)


def test_near_keys_have_buckets_of_their_own_and_far_ones_share():
    # 32 buckets, 128 positions: T5's own setting. By hand from Raffel et al. 2020, section 2.1:
    # exact up to half of the buckets of a direction, then logarithmic, the last from 128 on.
    decoder = relative_buckets(
        np.array([0, -1, -15, -16, -17, -127, -128, -9999, 3]), False, 32, 128
    )
    assert decoder.tolist() == [0, 1, 15, 16, 16, 31, 31, 31, 0]
    encoder = relative_buckets(np.array([0, -1, -7, -8, -128, 1, 7, 8, 127, 128]), True, 32, 128)
    assert encoder.tolist() == [0, 1, 7, 8, 15, 17, 23, 24, 31, 31]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("lengths", [(5, 5), (4, 7), (7, 4), (1, 6), (6, 1)])
def test_the_bias_of_a_query_and_a_key_is_that_of_their_offset(bidirectional, lengths):
    table = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    bias = relative_bias(jnp.asarray(table), *lengths, bidirectional, 6)
    assert bias.shape == (1, 3, *lengths)
    for query in range(lengths[0]):
        for key in range(lengths[1]):
            bucket = relative_buckets(np.array(key - query), bidirectional, 8, 6)
            np.testing.assert_array_equal(bias[0, :, query, key], table[bucket])


@pytest.mark.parametrize("lengths", [(5, 5), (4, 7), (7, 4), (1, 6)])
def test_accelerators_make_the_bias_and_its_gradient_that_cpus_make(lengths):
    random = np.random.default_rng(0)
    table = jnp.asarray(random.standard_normal((8, 3)), jnp.float32)
    weights = random.standard_normal((3, *lengths)).astype(np.float32)
    buckets = random.integers(0, 8, sum(lengths))
    buckets = np.array([[buckets[s - t] for s in range(lengths[1])] for t in range(lengths[0])])
    bias, gradient = {}, {}
    for way in (shifted_bias, multiplied_bias):
        bias[way], pull = jax.vjp(lambda table, way=way: way(buckets, table), table)
        gradient[way] = pull(jnp.asarray(weights))[0]
    np.testing.assert_array_equal(bias[shifted_bias], bias[multiplied_bias])
    np.testing.assert_allclose(gradient[shifted_bias], gradient[multiplied_bias], rtol=1e-5)


def test_a_position_sees_its_segment_only_and_nothing_after_itself():
    segments = np.array([[1, 1, 2, 0]])
    seen = np.asarray(segment_mask(segments, segments, causal=False))[0, 0] == 0
    same = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert seen.astype(int).tolist() == same
    seen = np.asarray(segment_mask(segments, segments, causal=True))[0, 0] == 0
    assert seen.astype(int).tolist() == np.tril(same).tolist()


@pytest.mark.parametrize("with_bias", [True, False])
def test_the_softmax_gradient_is_that_of_float64_arithmetic(with_bias):
    random = np.random.default_rng(0)
    scores, direction = random.standard_normal((2, 3, 2, 4, 5))
    bias = random.standard_normal((1, 2, 4, 5)) * with_bias
    mask = np.where(np.arange(5) < np.array([5, 3, 1])[:, None], 0.0, -1e9)[:, None, None]

    powers = np.exp(scores + bias) * (mask == 0.0)
    weights = powers / powers.sum(-1, keepdims=True)
    # d/ds_j sum_i c_i w_i = w_j (c_j - sum_i c_i w_i)
    scores_grad = weights * (direction - np.sum(direction * weights, -1, keepdims=True))
    expected = [scores_grad, scores_grad.sum(0, keepdims=True)]

    def objective(scores, bias):
        return jnp.sum(direction * biased_softmax(scores, bias, mask))

    narrow = [jnp.asarray(x, jnp.float32) for x in (scores, bias, direction, mask)]
    scores, bias, direction, mask = narrow
    np.testing.assert_allclose(biased_softmax(scores, bias, mask), weights, rtol=1e-5, atol=1e-7)
    if with_bias:
        gradients = jax.jit(jax.grad(objective, (0, 1)))(scores, bias)
    else:
        gradients = [jax.jit(jax.grad(objective))(scores, None)]
    for gradient, values in zip(gradients, expected, strict=False):
        np.testing.assert_allclose(gradient, values, rtol=1e-4, atol=1e-6)


def test_attention_does_not_scale_its_scores():
    random = np.random.default_rng(0)
    query, key, value = random.standard_normal((3, 1, 2, 4, 3))
    scores = np.einsum("bnth,bnsh->bnts", query, key)
    powers = np.exp(scores)
    expected = np.einsum("bnts,bnsh->bnth", powers / powers.sum(-1, keepdims=True), value)
    arrays = [jnp.asarray(x, jnp.float32) for x in (query, key, value)]
    result = attend(*arrays, None, jnp.zeros((1, 1, 4, 4)))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_dropout_zeroes_its_share_and_keeps_the_mean(implementation):
    key = jax.random.key(0, impl=implementation)
    dropped = np.asarray(dropout(jnp.ones((400, 500)), 0.1, key))
    assert np.mean(dropped == 0.0) == pytest.approx(0.1, abs=0.003)
    assert np.max(dropped) == pytest.approx(1 / 0.9, rel=1e-4)
    assert np.mean(dropped) == pytest.approx(1.0, abs=0.003)


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_dropout_masks_of_neighbours_and_of_other_keys_are_unrelated(implementation):
    raw = [jax.random.key(seed, impl=implementation) for seed in range(3)]
    keys = [*raw, *jax.random.split(raw[0], 3)]
    masks = np.stack([np.asarray(dropout(jnp.ones((256, 512)), 0.5, key)) > 0 for key in keys])
    signs = np.where(masks, 1.0, -1.0).reshape(len(keys), -1)
    count = signs.shape[1]
    # Sums of `count` independent signs have a standard deviation of sqrt(count).
    between_keys = signs @ signs.T / np.sqrt(count)
    assert np.max(np.abs(np.triu(between_keys, 1))) < 4
    for lag in (1, 2, 3, 4, 8, 16, 511, 512, 513, 1024):
        related = np.sum(signs[:, lag:] * signs[:, :-lag], axis=1) / np.sqrt(count - lag)
        assert np.max(np.abs(related)) < 4, lag
    # Shares of rows and columns scatter as a coin's do.
    assert np.var(masks.mean(axis=1)) == pytest.approx(0.25 / 256, rel=0.15)
    assert np.var(masks.mean(axis=2)) == pytest.approx(0.25 / 512, rel=0.15)
