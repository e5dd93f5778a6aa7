"""Weights in pieces: gathered for a product, and its gradient scattered back."""

import importlib.util
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from coin_jax.config import ConfigError, MeshConfig
from coin_jax.parallel import gathered
from coin_jax.parallel.mesh import make_mesh
from coin_jax.parallel.sharding import partition_spec
from coin_jax.planning.chips import parse_topology


@pytest.mark.parametrize("names", [("embed", "mlp"), ("mlp", "embed")])
@pytest.mark.parametrize("counts", [(1, 8, 1), (2, 4, 1), (1, 4, 2), (2, 2, 2)])
@pytest.mark.parametrize("steps", [None, (2, 2), (2, 4), (4, 2), (2, 2, 2)])
def test_a_product_and_its_gradients_are_those_of_one_device(names, counts, steps, monkeypatch):
    if steps is not None:
        if math.prod(steps) != counts[1]:
            pytest.skip("of other devices")
        way = gathered.Route(steps, steps, steps)
        monkeypatch.setattr(gathered, "route", lambda count, kind: way)
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
    ("count", "kind", "torus", "gather", "scatter"),
    [
        (16, "TPU v5 lite", (4, 4), (16,), (4, 4)),
        (32, "TPU v6 lite", (4, 8), (4, 8), (2, 4, 4)),
        (256, "TPU v5 lite", (16, 16), (16, 16), (4, 4, 4, 4)),
        (64, "TPU v5", (16, 4), (16, 4), (4, 4, 4)),
        (128, "TPU v5p", (16, 8), (16, 8), (2, 4, 4, 4)),
        (16, "TPU v4", (4, 4), (16,), (4, 4)),
        (48, "TPU v5 lite", (6, 8), (6, 8), (3, 4, 4)),
        (4, "TPU v4", (4,), (4,), ()),
        (17, "TPU v5 lite", (17,), (17,), ()),
        (22, "TPU v5 lite", (22,), (22,), ()),
        (64, "NVIDIA H100", (64,), (64,), ()),
        (8, "cpu", (8,), (8,), ()),
    ],
)
def test_a_route_follows_the_torus(count, kind, torus, gather, scatter):
    assert gathered.route(count, kind) == (torus, gather, scatter)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler")
@pytest.mark.parametrize("counts", [(1, 64, 1), (8, 8, 1), (16, 2, 2), (4, 4, 4)])
@pytest.mark.parametrize("topology", ["v5e:8x8", "v6e:8x8", "v5p:4x4x4", "v4:4x4x4"])
def test_every_mesh_can_be_laid_over_a_torus(topology, counts):
    devices = parse_topology(topology).devices()
    mesh = make_mesh(MeshConfig(*counts), devices)
    assert mesh.devices.shape == counts
    assert set(mesh.devices.flat) == set(devices)


def test_devices_of_several_slices_are_refused():
    devices = [
        types.SimpleNamespace(slice_index=number // 2, device_kind="") for number in range(4)
    ]
    with pytest.raises(ConfigError, match="2 TPU slices"):
        make_mesh(MeshConfig(), devices)
