"""Our T5 against transformers' T5: activations and gradients of every kind of T5."""

import functools

import jax
import jax.numpy as jnp
import make_golden_activations as golden
import numpy as np
import pytest

from coin_jax.config import ModelConfig
from coin_jax.model import huggingface
from coin_jax.model.t5 import T5

TOLERANCE = 1e-5


@functools.cache
def stored():
    with np.load(golden.GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module", params=golden.CASES)
def ours(request, tmp_path_factory):
    """(case, activations, gradients by published name) of our model, loaded as from a hub."""
    case = golden.CASES[request.param]
    folder = golden.write(case, tmp_path_factory.mktemp(case.name))
    # One layer in a loop compiles faster; test_model_t5 holds that unrolling changes nothing.
    config, params = huggingface.load(folder, ModelConfig(scan_unroll=1))
    model, given = T5(config), golden.inputs(case)
    segments = jnp.ones_like(given["decoder_inputs"])

    def loss(params):
        encoded = model.encode(params, given["encoder_tokens"], given["encoder_segment_ids"])
        decoded = model.decode(
            params, given["decoder_inputs"], segments, encoded, given["encoder_segment_ids"]
        )
        logits = model.logits(params, decoded)
        likelihood = jnp.take_along_axis(
            jax.nn.log_softmax(logits), given["targets"][..., None], -1
        )
        activations = {"encoder": encoded, "decoder": decoded, "logits": logits}
        return -jnp.sum(given["weights"] * likelihood[..., 0]), activations

    gradients, activations = jax.jit(jax.grad(loss, has_aux=True))(params)
    named = {
        name: np.asarray(array).T if transposed else np.asarray(array)
        for name, array, transposed in huggingface.export_plan(config, gradients)
    }
    return case, activations, named


def relative_error(value, expected):
    return np.max(np.abs(value - expected)) / np.max(np.abs(expected))


def check_activations(case, activations, expected):
    valid = golden.inputs(case)["encoder_segment_ids"][..., None]
    for name, value in activations.items():
        mask = valid if name == "encoder" else 1
        assert relative_error(value * mask, expected[name] * mask) < TOLERANCE, name


def test_activations_equal_the_golden_ones_of_transformers(ours):
    case, activations, _ = ours
    names = ("encoder", "decoder", "logits")
    check_activations(case, activations, {n: stored()[f"{case.name}/{n}"] for n in names})


def test_gradients_equal_the_golden_ones_of_transformers(ours):
    case, _, gradients = ours
    prefix = f"{case.name}/gradient/"
    names = {name.removeprefix(prefix) for name in stored() if name.startswith(prefix)}
    assert names == gradients.keys()
    for name in names:
        expected = stored()[prefix + name]
        value = golden.projections(name, gradients[name], case.seed)
        assert np.max(np.abs(value - expected)) / expected[0] < TOLERANCE, name


def test_activations_and_gradients_equal_those_of_the_installed_transformers(ours):
    pytest.importorskip("torch", reason="live parity needs torch")
    case, activations, gradients = ours
    expected_activations, expected_gradients = golden.reference(case)
    check_activations(case, activations, expected_activations)
    assert expected_gradients.keys() == gradients.keys()
    for name, expected in expected_gradients.items():
        assert relative_error(gradients[name], expected) < TOLERANCE, name
