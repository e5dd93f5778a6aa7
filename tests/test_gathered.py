"""Weights in pieces: gathered for a product, and its gradient scattered back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from coin_jax.config import MeshConfig
from coin_jax.parallel import gathered
from coin_jax.parallel.mesh import make_mesh
from coin_jax.parallel.sharding import partition_spec


@pytest.mark.parametrize("names", [("embed", "mlp"), ("mlp", "embed")])
@pytest.mark.parametrize("counts", [(1, 8, 1), (2, 4, 1), (1, 4, 2), (2, 2, 2)])
@pytest.mark.parametrize("stages", [None, (2, 2), (2, 4), (4, 2)])
def test_a_product_and_its_gradients_are_those_of_one_device(names, counts, stages, monkeypatch):
    if stages is not None:
        if stages[0] * stages[1] != counts[1]:
            pytest.skip("other stages")
        monkeypatch.setattr(gathered, "stages_of", lambda count, kind: stages)
    mesh = make_mesh(MeshConfig(*counts), jax.devices()[:8])
    draw = np.random.default_rng(0)
    x = draw.normal(size=(32, 16)).astype(np.float32)
    kernel = draw.normal(size=(16, 24)).astype(np.float32)
    weights = draw.normal(size=(32, 24)).astype(np.float32)

    def loss(x, kernel):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return (gathered.multiply(x, kernel, names) * weights).sum()

    places = (
        NamedSharding(mesh, PartitionSpec(("data", "fsdp"))),
        NamedSharding(mesh, partition_spec(mesh, names, kernel.shape)),
    )
    step = jax.jit(
        jax.value_and_grad(loss, (0, 1)), in_shardings=places, out_shardings=(None, places)
    )
    value, (x_grad, kernel_grad) = step(x, kernel)
    wide = [array.astype(np.float64) for array in (x, kernel, weights)]
    np.testing.assert_allclose(value, ((wide[0] @ wide[1]) * wide[2]).sum(), atol=1e-3)
    np.testing.assert_allclose(x_grad, wide[2] @ wide[1].T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(kernel_grad, wide[0].T @ wide[2], rtol=1e-4, atol=1e-5)


def test_rows_or_features_that_do_not_divide_are_multiplied_plainly():
    mesh = make_mesh(MeshConfig(1, 8, 1), jax.devices()[:8])
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        for rows, features in ((3, 16), (8, 12)):
            x, kernel = jnp.ones((rows, features)), jnp.ones((features, 5))
            jaxpr = jax.make_jaxpr(lambda x, w: gathered.multiply(x, w, ("embed", "mlp")))(
                x, kernel
            )
            assert "shard_map" not in str(jaxpr)


@pytest.mark.parametrize(
    ("count", "kind", "stages"),
    [
        (16, "TPU v5 lite", (4, 4)),
        (32, "TPU v6 lite", (4, 8)),
        (256, "TPU v5 lite", (16, 16)),
        (64, "TPU v5", (16, 4)),
        (128, "TPU v5p", (16, 8)),
        (16, "TPU v4", (4, 4)),
        (4, "TPU v4", (4,)),
        (17, "TPU v5 lite", (17,)),
        (64, "NVIDIA H100", (64,)),
        (8, "cpu", (8,)),
    ],
)
def test_stages_follow_the_torus(count, kind, stages):
    assert gathered.stages_of(count, kind) == stages
