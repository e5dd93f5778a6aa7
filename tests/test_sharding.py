"""The mesh and the table of logical axes."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from coin_jax.config import ConfigError, MeshConfig
from coin_jax.parallel import mesh as mesh_lib
from coin_jax.parallel import sharding


@pytest.mark.parametrize(
    ("config", "count", "shape"),
    [
        (MeshConfig(), 8, (8, 1, 1)),
        (MeshConfig(data=2, fsdp=-1, tensor=2), 8, (2, 2, 2)),
        (MeshConfig(data=1, fsdp=1, tensor=8), 8, (1, 1, 8)),
        (MeshConfig(), 1, (1, 1, 1)),
    ],
)
def test_minus_one_takes_the_devices_that_are_left(config, count, shape):
    assert mesh_lib.resolve(config, count) == shape


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (MeshConfig(data=-1, fsdp=3), r"multiply to 3, which must divide .* 8"),
        (MeshConfig(data=2, fsdp=2, tensor=1), r"multiply to 4, which must be .* 8"),
        (MeshConfig(data=-1, fsdp=-1), "at most one axis"),
        (MeshConfig(data=0), "positive"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused_with_both_numbers(config, what):
    with pytest.raises(ConfigError, match=what):
        mesh_lib.resolve(config, 8)


@pytest.fixture
def cube():
    return mesh_lib.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


def test_logical_axes_follow_the_table(cube):
    spec = sharding.partition_spec(cube, ("layers", "embed", "heads"), (4, 16, 8))
    assert spec == PartitionSpec(None, "fsdp", "tensor")
    assert sharding.partition_spec(cube, ("batch", None), (8, 5)) == PartitionSpec(
        ("data", "fsdp"), None
    )


def test_a_dimension_that_does_not_divide_is_replicated(cube):
    assert sharding.partition_spec(cube, ("embed", "heads"), (16, 7)) == PartitionSpec("fsdp", None)


def test_a_mesh_axis_is_used_once_an_array(cube):
    assert sharding.partition_spec(cube, ("mlp", "vocab"), (8, 8)) == PartitionSpec("tensor", None)


def test_unknown_names_and_wrong_ranks_are_errors(cube):
    with pytest.raises(ValueError, match="'head'"):
        sharding.partition_spec(cube, ("head",), (8,))
    with pytest.raises(ValueError, match="2 logical axes"):
        sharding.partition_spec(cube, ("embed", "heads"), (8,))


def test_constrain_is_nothing_without_a_mesh_and_pins_the_layout_with_one(cube):
    x = jnp.ones((8, 4))
    assert sharding.constrain(x, "batch", "mlp") is x
    assert sharding.batch_shard_count() == 1
    with jax.set_mesh(cube):
        assert sharding.batch_shard_count() == 4
        y = jax.jit(lambda x: sharding.constrain(x * 2, "batch", "mlp"))(x)
    assert y.sharding.is_equivalent_to(
        NamedSharding(cube, PartitionSpec(("data", "fsdp"), "tensor")), 2
    )
    assert {shard.data.shape for shard in y.addressable_shards} == {(2, 2)}


def test_rows_are_spread_and_pair_tables_replicated(cube):
    shardings = sharding.batch_shardings(cube)
    assert shardings["encoder_tokens"].spec == PartitionSpec(("data", "fsdp"))
    assert shardings["pair_members"].spec == PartitionSpec()
    assert sharding.batch_shard_count(cube) == 4
