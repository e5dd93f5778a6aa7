"""One state a segment, against plain loops over packed rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coin_jax.config import MeshConfig
from coin_jax.objective.pooling import pool
from coin_jax.parallel.mesh import make_mesh

SEGMENTS = 4
SEGMENT_IDS = np.array(
    [
        [1, 1, 1, 2, 2, 3, 4, 4],  # full
        [1, 2, 2, 2, 0, 0, 0, 0],  # segments 3 and 4 empty, padding
        [1, 1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0, 0],  # nothing
    ],
    np.int32,
)
KINDS = ["decoder_last", "decoder_first", "decoder_mean", "encoder_mean", "encoder_last"]


def make_hidden(seed=0):
    return np.random.default_rng(seed).normal(size=(*SEGMENT_IDS.shape, 5)).astype(np.float32)


def reference(hidden, kind):
    pooled = np.zeros((len(SEGMENT_IDS) * SEGMENTS, hidden.shape[-1]))
    for row, ids in enumerate(SEGMENT_IDS):
        for segment in range(1, SEGMENTS + 1):
            states = hidden[row].astype(np.float64)[ids == segment]
            if len(states):
                state = {"first": states[0], "last": states[-1], "mean": states.mean(axis=0)}
                pooled[row * SEGMENTS + segment - 1] = state[kind.split("_")[1]]
    return pooled


@pytest.mark.parametrize("kind", KINDS)
def test_each_segment_gives_its_state_and_an_empty_one_zeros(kind):
    hidden = make_hidden()
    pooled = jax.jit(pool, static_argnums=(2, 3))(hidden, SEGMENT_IDS, SEGMENTS, kind)
    assert pooled.dtype == jnp.float32
    np.testing.assert_allclose(pooled, reference(hidden, kind), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_chosen_positions_and_no_others(kind):
    hidden = make_hidden(1)
    direction = np.random.default_rng(2).normal(size=(len(SEGMENT_IDS) * SEGMENTS, 5))
    gradient = jax.grad(lambda x: (pool(x, SEGMENT_IDS, SEGMENTS, kind) * direction).sum())(hidden)
    # Pooling is linear, so one basis vector at a time gives the derivative exactly.
    expected = np.zeros(hidden.shape)
    for place in np.ndindex(*hidden.shape):
        basis = np.zeros(hidden.shape)
        basis[place] = 1
        expected[place] = (reference(basis, kind) * direction).sum()
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_a_bfloat16_mean_is_summed_in_float32():
    hidden = np.ones((1, 1024, 1), np.float32)  # bfloat16 counts to 256 only
    pooled = pool(jnp.asarray(hidden, jnp.bfloat16), jnp.ones((1, 1024), int), 1, "encoder_mean")
    assert pooled.dtype == jnp.float32
    np.testing.assert_array_equal(pooled, [[1.0]])


def test_a_mesh_gives_what_one_device_gives():
    hidden = make_hidden(3)
    with jax.set_mesh(make_mesh(MeshConfig(2, 2, 2))):
        pooled = jax.jit(pool, static_argnums=(2, 3))(hidden, SEGMENT_IDS, SEGMENTS, "decoder_mean")
    np.testing.assert_allclose(pooled, reference(hidden, "decoder_mean"), rtol=1e-6, atol=1e-7)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="decoder_median"):
        pool(make_hidden(), SEGMENT_IDS, SEGMENTS, "decoder_median")
