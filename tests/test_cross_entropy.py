"""The fused head: values and gradients against float64 numpy, and what it leaves out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coin_jax.config import MeshConfig
from coin_jax.objective.cross_entropy import head_cross_entropy
from coin_jax.parallel.mesh import make_mesh

B, T, D, V = 4, 6, 8, 40
SMOOTHINGS_AND_Z = [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (0.2, 1e-2)]


def make_case(seed=0, padding=0.4, rows=B, length=T, vocabulary=V):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.1, 1, (rows, length)) * (rng.uniform(size=(rows, length)) > padding)
    return {
        "hidden": rng.normal(size=(rows, length, D)).astype(np.float32),
        "kernel": rng.normal(size=(D, vocabulary)).astype(np.float32),
        "targets": rng.integers(0, vocabulary, (rows, length)).astype(np.int32),
        "weights": weights.astype(np.float32),
    }


def reference(case, smoothing=0.0, z_loss=0.0):
    """Float64, position by position, from the textbook definition."""
    hidden, kernel = case["hidden"].astype(np.float64), case["kernel"].astype(np.float64)
    logits = hidden @ kernel
    vocabulary = kernel.shape[1]
    total, z_total = 0.0, 0.0
    nll, correct = np.zeros(logits.shape[:2]), np.zeros(logits.shape[:2], bool)
    for place in np.ndindex(*logits.shape[:2]):
        target, weight = case["targets"][place], float(case["weights"][place])
        probabilities = np.exp(logits[place]) / np.exp(logits[place]).sum()
        wanted = np.full(vocabulary, smoothing / vocabulary)
        wanted[target] += 1 - smoothing
        z = z_loss * np.log(np.exp(logits[place]).sum()) ** 2
        total += weight * (-(wanted * np.log(probabilities)).sum() + z)
        z_total += weight * z
        if weight:
            nll[place] = -np.log(probabilities[target])
            correct[place] = np.argmax(logits[place]) == target
    return total, {"nll": nll, "correct": correct, "z_loss": z_total}


def numeric_gradient(function, x, step=1e-5):
    """Central differences of a float64 function."""
    gradient = np.zeros(x.shape)
    for place in np.ndindex(*x.shape):
        up, down = x.astype(np.float64), x.astype(np.float64)
        up[place] += step
        down[place] -= step
        gradient[place] = (function(up) - function(down)) / (2 * step)
    return gradient


def ours(case, smoothing=0.0, z_loss=0.0, chunk=5):
    """(loss, aux), (d hidden, d kernel)"""

    def loss(hidden, kernel):
        return head_cross_entropy(
            hidden,
            kernel,
            case["targets"],
            case["weights"],
            label_smoothing=smoothing,
            z_loss=z_loss,
            chunk=chunk,
        )

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(
        jnp.asarray(case["hidden"]), jnp.asarray(case["kernel"])
    )


@pytest.mark.parametrize(("smoothing", "z_loss"), SMOOTHINGS_AND_Z)
def test_loss_and_reports_equal_the_float64_definition(smoothing, z_loss):
    case = make_case()
    expected, expected_aux = reference(case, smoothing, z_loss)
    (loss, aux), _ = ours(case, smoothing, z_loss)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(aux["nll"], expected_aux["nll"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(aux["correct"], expected_aux["correct"])
    np.testing.assert_allclose(aux["z_loss"], expected_aux["z_loss"], rtol=1e-5)


@pytest.mark.parametrize(("smoothing", "z_loss"), SMOOTHINGS_AND_Z)
def test_gradients_equal_finite_differences(smoothing, z_loss):
    case = make_case(1)
    _, (d_hidden, d_kernel) = ours(case, smoothing, z_loss)
    for name, gradient in (("hidden", d_hidden), ("kernel", d_kernel)):
        expected = numeric_gradient(
            lambda x, name=name: reference(case | {name: x}, smoothing, z_loss)[0], case[name]
        )
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 3, 7, 24, 1000])
def test_the_chunk_changes_nothing(chunk):
    case = make_case(2)
    expected = reference(case)[0]
    (loss, _), gradients = ours(case, chunk=chunk)
    _, whole = ours(case, chunk=B * T)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradients, whole
    )


@pytest.mark.parametrize("padding", [-1.0, 0.95])
def test_full_and_almost_empty_batches_are_right(padding):
    case = make_case(3, padding)
    (loss, aux), _ = ours(case)
    expected, expected_aux = reference(case)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(aux["nll"], expected_aux["nll"], rtol=1e-4, atol=1e-5)


def test_no_weighted_position_gives_zero_loss_and_zero_gradients():
    case = make_case() | {"weights": np.zeros((B, T), np.float32)}
    (loss, aux), gradients = ours(case, 0.1, 1e-2)
    assert loss == 0
    for part in (*jax.tree.leaves(aux), *gradients):
        np.testing.assert_array_equal(part, np.zeros(part.shape))


def test_what_stands_at_a_position_of_weight_zero_does_not_matter():
    case = make_case(4)
    padded = case["weights"] == 0
    other = case | {
        "hidden": np.where(padded[..., None], np.float32(np.inf), case["hidden"]),
        "targets": np.where(padded, 0, case["targets"]),
    }
    (loss, _), (d_hidden, d_kernel) = ours(other)
    np.testing.assert_allclose(loss, reference(case)[0], rtol=1e-5)
    assert np.isfinite(d_kernel).all()
    np.testing.assert_array_equal(d_hidden[padded], 0)


def test_evaluating_without_a_gradient_gives_the_same_loss_and_reports():
    case = make_case(5)
    with_gradient, _ = ours(case, 0.1, 1e-2)
    alone = head_cross_entropy(**_arguments(case), label_smoothing=0.1, z_loss=1e-2, chunk=5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), alone, with_gradient
    )


def test_the_gradient_scales_with_what_the_loss_is_multiplied_by():
    case = make_case(6)
    tied = jnp.asarray(case["kernel"].T)

    def total(embedding, factor):
        arguments = _arguments(case) | {"kernel_DxV": embedding.T}
        return factor * head_cross_entropy(**arguments, chunk=4)[0] + embedding[0, 0]

    _, (_, d_kernel) = ours(case)
    expected = -2.5 * d_kernel.T
    expected = expected.at[0, 0].add(1)
    np.testing.assert_allclose(jax.grad(total)(tied, -2.5), expected, rtol=1e-4, atol=1e-6)


def test_reports_carry_no_gradient():
    case = make_case(7)

    def reported(hidden):
        arguments = _arguments(case) | {"hidden_BxTxD": hidden}
        aux = head_cross_entropy(**arguments, z_loss=1e-2)[1]
        return aux["nll"].sum() + aux["z_loss"]

    np.testing.assert_array_equal(jax.grad(reported)(jnp.asarray(case["hidden"])), 0)


def test_huge_logits_stay_finite():
    case = make_case(8)
    case["hidden"] *= 1e4
    (loss, _), gradients = ours(case)
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in gradients)


def test_bfloat16_states_give_float32_losses_near_the_float64_ones():
    case = make_case(9)
    rounded = case | {"hidden": jnp.asarray(case["hidden"], jnp.bfloat16)}
    (loss, aux), (d_hidden, d_kernel) = ours(rounded)
    _, (expected_d_hidden, expected_d_kernel) = ours(case)
    assert (loss.dtype, aux["nll"].dtype) == (jnp.float32, jnp.float32)
    assert (d_hidden.dtype, d_kernel.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(loss, reference(case)[0], rtol=2e-2)
    np.testing.assert_allclose(d_hidden.astype(np.float32), expected_d_hidden, atol=0.1)
    np.testing.assert_allclose(d_kernel, expected_d_kernel, atol=0.1)


@pytest.mark.parametrize("shape", [(4, 2, 1), (2, 2, 2), (1, 1, 8), (1, 8, 1)])
def test_every_mesh_gives_what_one_device_gives(shape):
    case = make_case(10, rows=8)
    expected = reference(case, 0.1, 1e-2)[0]
    (_, one_aux), one_device = ours(case, 0.1, 1e-2, chunk=2)
    with jax.set_mesh(make_mesh(MeshConfig(*shape))):
        (loss, aux), gradients = ours(case, 0.1, 1e-2, chunk=2)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(aux["nll"], one_aux["nll"], rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradients, one_device
    )


def test_a_mesh_whose_shards_do_not_divide_the_rows_is_right_too():
    case = make_case(11, rows=3)
    with jax.set_mesh(make_mesh(MeshConfig(4, 2, 1))):
        (loss, _), _ = ours(case)
    np.testing.assert_allclose(loss, reference(case)[0], rtol=1e-5)


def test_shapes_that_do_not_agree_are_refused():
    case = make_case()
    with pytest.raises(ValueError, match="must agree"):
        ours(case | {"weights": case["weights"][:, 1:]})
    with pytest.raises(ValueError, match="chunk = 0"):
        ours(case, chunk=0)


def _arguments(case):
    return {
        "hidden_BxTxD": jnp.asarray(case["hidden"]),
        "kernel_DxV": jnp.asarray(case["kernel"]),
        "targets_BxT": jnp.asarray(case["targets"]),
        "weights_BxT": jnp.asarray(case["weights"]),
    }
