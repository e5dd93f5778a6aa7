"""Products with weights of which each device of the `fsdp` axis has a piece.

Said outright instead of left to XLA's partitioner. For TPUs that multiplies with one piece after
another and adds up partial results, more than half of a step of flan-t5-xl on 16 chips. And what
gathers or scatters over a whole torus at once becomes an all-reduce there, which sends twice as
much; over one dimension of it after the other it does not (docs/plan.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from coin_jax.parallel.sharding import BATCH_AXES, batch_shard_count, device_kind

TORUS_DIMENSIONS = {"TPU v4": 3, "TPU v5": 3, "TPU v5p": 3}
"""Of TPUs by device kind; the others are wired in two."""


class Route(NamedTuple):
    """How the devices of the fsdp axis are seen as grids. In a stage those exchange that differ in
    one coordinate alone."""

    torus: tuple[int, ...]
    """As they are wired; make_mesh lays them out so."""
    gather: tuple[int, ...]
    scatter: tuple[int, ...]
    """Empty: one reduce-scatter does it all."""


def route(count: int, device_kind: str) -> Route:
    """For `count` devices. On TPUs a gather goes over one dimension of the torus after the other
    (over 16 at once it stays a gather), and a scatter in steps of four.

    Tori are as square as they can be, with the longest dimension last.
    """
    alone = Route((count,), (count,), ())
    if not device_kind.startswith("TPU") or count < 16:
        return alone
    root = count ** (1 / TORUS_DIMENSIONS.get(device_kind, 2))
    inner = next(size for size in range(math.ceil(root - 1e-9), count + 1) if count % size == 0)
    torus = (count // inner, inner)
    steps: tuple[int, ...] = ()
    while count % 4 == 0:
        steps, count = (4, *steps), count // 4
    if inner == math.prod(torus) or count > 3:
        return alone
    steps = steps if count == 1 else (count, *steps)
    return Route(torus, torus if math.prod(torus) > 16 else (math.prod(torus),), steps)


def multiply(x_RxF: jax.Array, kernel_FxK: jax.Array, names: tuple[str, str]) -> jax.Array:
    """x @ kernel: [R, K]. The kernel is gathered for it, and its gradient scattered back.

    names: the kernel's logical axes; the one called `embed` is cut over `fsdp`. Rows are spread
    over the batch's axes. A gathered kernel is not kept for the backward pass, whatever the remat
    policy. Without an ambient mesh, or where it does not divide, this is the plain product.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["fsdp"] == 1 or len(x_RxF) % batch_shard_count(mesh):
        return x_RxF @ kernel_FxK
    place = names.index("embed")
    if kernel_FxK.shape[place] % mesh.shape["fsdp"]:
        return x_RxF @ kernel_FxK
    way = route(mesh.shape["fsdp"], device_kind())
    rows = PartitionSpec(BATCH_AXES)
    pieces = PartitionSpec(*("fsdp" if axis == place else None for axis in (0, 1)))
    return jax.shard_map(
        functools.partial(_multiply, place, way),
        in_specs=(rows, pieces),
        out_specs=rows,
        axis_names=set(BATCH_AXES),
        check_vma=False,  # it knows no groups
    )(x_RxF, kernel_FxK)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _multiply(place: int, way: Route, x: jax.Array, piece: jax.Array) -> jax.Array:
    """What one device does. place: the axis along which its piece is cut off."""
    return x @ _gather(piece, place, way)


def _forward(place, way, x, piece):
    return _multiply(place, way, x, piece), (x, piece)


def _backward(place, way, saved, grad):
    x, piece = saved
    x_grad = grad @ _gather(piece, place, way).T
    # Scattered along the major axis: along the minor one TPUs fall back to all-reduce.
    mine = _scattered_product(*((x, grad) if place == 0 else (grad, x)), way)
    return x_grad, mine if place == 0 else mine.T


_multiply.defvjp(_forward, _backward)


def _groups(grid: tuple[int, ...], stage: int) -> np.ndarray:
    """The devices that exchange in a stage: [groups, members]."""
    devices = np.arange(math.prod(grid)).reshape(grid)
    return np.moveaxis(devices, stage, -1).reshape(-1, grid[stage])


def _gather(piece: jax.Array, place: int, way: Route) -> jax.Array:
    for stage in reversed(range(len(way.gather))):
        groups = _groups(way.gather, stage).tolist() if len(way.gather) > 1 else None
        piece = jax.lax.all_gather(piece, "fsdp", axis=place, tiled=True, axis_index_groups=groups)
    return piece


def _scattered_product(left: jax.Array, right: jax.Array, way: Route) -> jax.Array:
    """left.T @ right, summed over devices; each gets its piece along the first axis."""
    if not way.scatter:
        return jax.lax.psum_scatter(left.T @ right, "fsdp", scatter_dimension=0, tiled=True)
    size = left.shape[1] // way.scatter[0]

    def product(member: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(left, member * size, size, axis=1).T @ right

    piece = _exchange(product, _groups(way.scatter, 0))
    for stage in range(1, len(way.scatter)):
        parts = piece.reshape(way.scatter[stage], -1, piece.shape[1])
        piece = _exchange(
            functools.partial(jax.lax.dynamic_index_in_dim, parts, keepdims=False),
            _groups(way.scatter, stage),
        )
    return piece


def _exchange(part_of: Callable, groups: np.ndarray) -> jax.Array:
    """A reduce-scatter within each group, of which member m gets the sum of all `part_of(m)`.

    Made of permutations, since TPUs compute beside these and wait for a reduce-scatter. The sum is
    in float32.
    """
    count = groups.shape[1]
    members = np.zeros(groups.size, np.int32)
    members[groups] = np.arange(count)
    member = jnp.asarray(members)[jax.lax.axis_index("fsdp")]
    received = []
    for shift in range(1, count):
        pairs = np.stack([groups, np.roll(groups, -shift, axis=1)], axis=-1).reshape(-1, 2)
        received.append(jax.lax.ppermute(part_of((member + shift) % count), "fsdp", pairs.tolist()))
    mine = part_of(member)
    total = mine.astype(jnp.float32)
    for part in received:
        total += part.astype(jnp.float32)
    return total.astype(mine.dtype)
