"""Logical axis names -> mesh axes: the one table, and the helpers that apply it.

A parameter carries one name per dimension (`("layers", "embed", "heads")`); an activation is named
where it is made: `constrain(hidden_BxSxD, "batch", None, "activation_embed")`. Nothing else in the
project writes a PartitionSpec.

A dimension that its mesh axes do not divide is replicated instead (umT5's 6 heads on 4 devices),
and so is one whose mesh axis an earlier dimension of the same array has taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

BATCH_AXES = ("data", "fsdp")

RULES: dict[str, tuple[str, ...]] = {
    "batch": BATCH_AXES,  # rows of a batch, also flattened with their lengths
    "vocab": ("tensor",),
    "embed": ("fsdp",),  # d_model of a parameter
    "activation_embed": (),  # d_model of an activation: whole on each device
    "heads": ("tensor",),  # heads, also flattened with their head size
    "kv": (),
    "mlp": ("tensor",),
    "norm": (),
    "buckets": (),
    "layers": (),
}

ROW_FIELDS = (
    "encoder_tokens",
    "encoder_segment_ids",
    "decoder_inputs",
    "decoder_targets",
    "decoder_segment_ids",
)
PAIR_FIELDS = ("pair_members", "pair_sets", "pair_contents")


def partition_spec(
    mesh: Mesh | AbstractMesh, names: Iterable[str | None], shape: tuple[int, ...]
) -> PartitionSpec:
    """The spec of an array of `shape` whose dimensions are called `names` (None: not sharded).

    Raises ValueError for an unknown name, or names that do not match the rank.
    """
    names = tuple(names)
    if len(names) != len(shape):
        raise ValueError(f"{len(names)} logical axes {names} for an array of shape {shape}.")
    taken: set[str] = set()
    entries: list[tuple[str, ...] | str | None] = []
    for name, size in zip(names, shape, strict=True):
        if name is not None and name not in RULES:
            raise ValueError(f"Unknown logical axis {name!r}; RULES has {', '.join(RULES)}.")
        axes = () if name is None else RULES[name]
        axes = tuple(axis for axis in axes if mesh.shape[axis] > 1)
        count = math.prod(mesh.shape[axis] for axis in axes)
        if not axes or taken.intersection(axes) or size % count:
            entries.append(None)
        else:
            taken.update(axes)
            entries.append(axes if len(axes) > 1 else axes[0])
    return PartitionSpec(*entries)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Pins the layout of an activation inside a jitted program; a no-op without an ambient mesh.

    The ambient mesh is `jax.set_mesh(mesh)`'s, or the one the train step enters while it is traced.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(mesh, names, x.shape))


def device_kind() -> str:
    """Of what will run the program being traced: the ambient mesh's devices, or JAX's own."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return device.device_kind if device else jax.devices()[0].device_kind


def is_for_tpu() -> bool:
    return device_kind().startswith("TPU")


def batch_shard_count(mesh: Mesh | AbstractMesh | None = None) -> int:
    """Parts the rows of a batch are cut into on `mesh` (the ambient one when None); 1 without."""
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def parameter_shardings(mesh: Mesh, logical_axes: Any, abstract: Any) -> Any:
    """A NamedSharding per array of `abstract` (ShapeDtypeStructs or arrays).

    logical_axes: the same tree, with a tuple of names in the place of each array.
    """
    return jax.tree.map(
        lambda array, names: NamedSharding(mesh, partition_spec(mesh, names, array.shape)),
        abstract,
        logical_axes,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shardings(
    mesh: Mesh, fields: Iterable[str] = ROW_FIELDS + PAIR_FIELDS
) -> dict[str, NamedSharding]:
    """Rows of tokens over `data` and `fsdp`; the small pair_* tables whole on every device."""
    rows = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    return {name: replicated(mesh) if name in PAIR_FIELDS else rows for name in fields}
