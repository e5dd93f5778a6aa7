"""Products with weights of which each device of the `fsdp` axis has a piece.

Said outright instead of left to XLA's partitioner. For TPUs that multiplies with one piece after
another and adds up partial results, more than half of a step of flan-t5-xl on 16 chips. And what
gathers or scatters over a whole torus at once becomes an all-reduce there, which sends twice as
much; over one dimension of it after the other it does not (docs/plan.md).
"""

from __future__ import annotations

import functools
import math

import jax
from jax.sharding import PartitionSpec

from coin_jax.parallel.sharding import BATCH_AXES, batch_shard_count

TORUS_DIMENSIONS = {"TPU v4": 3, "TPU v5": 3, "TPU v5p": 3}
"""Of TPUs by device kind; the others are wired in two."""


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
    device = mesh.abstract_device
    stages = stages_of(mesh.shape["fsdp"], device.device_kind if device else "")
    rows = PartitionSpec(BATCH_AXES)
    pieces = PartitionSpec(*("fsdp" if axis == place else None for axis in (0, 1)))
    return jax.shard_map(
        functools.partial(_multiply, place, stages),
        in_specs=(rows, pieces),
        out_specs=rows,
        axis_names=set(BATCH_AXES),
        check_vma=False,  # it knows no groups
    )(x_RxF, kernel_FxK)


def stages_of(count: int, device_kind: str) -> tuple[int, ...]:
    """(outer, inner): the fsdp axis of `count` devices as a grid, whose lines lie along a dimension
    of the TPU's torus; (count,) where one collective does it all.

    Tori are as square as they can be, with the longest dimension last.
    """
    if not device_kind.startswith("TPU") or count < 16:
        return (count,)
    root = count ** (1 / TORUS_DIMENSIONS.get(device_kind, 2))
    inner = next(size for size in range(math.ceil(root - 1e-9), count + 1) if count % size == 0)
    return (count,) if inner == count else (count // inner, inner)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _multiply(place: int, stages: tuple[int, ...], x: jax.Array, piece: jax.Array) -> jax.Array:
    """What one device does. place: the axis along which its piece is cut off."""
    return x @ _gather(piece, place, stages)


def _forward(place, stages, x, piece):
    return _multiply(place, stages, x, piece), (x, piece)


def _backward(place, stages, saved, grad):
    x, piece = saved
    x_grad = grad @ _gather(piece, place, stages).T
    # Scattered along the major axis: along the minor one TPUs fall back to all-reduce.
    whole = x.T @ grad if place == 0 else grad.T @ x
    mine = _scatter(whole, stages)
    return x_grad, mine if place == 0 else mine.T


_multiply.defvjp(_forward, _backward)


def _groups(stages: tuple[int, ...]) -> list[list[list[int]] | None]:
    """The devices that exchange in each stage, the outer one first."""
    if len(stages) == 1:
        return [None]
    outer, inner = stages
    columns = [[i * inner + j for i in range(outer)] for j in range(inner)]
    lines = [[i * inner + j for j in range(inner)] for i in range(outer)]
    return [columns, lines]


def _gather(piece: jax.Array, place: int, stages: tuple[int, ...]) -> jax.Array:
    for groups in reversed(_groups(stages)):
        piece = jax.lax.all_gather(piece, "fsdp", axis=place, tiled=True, axis_index_groups=groups)
    return piece


def _scatter(whole: jax.Array, stages: tuple[int, ...]) -> jax.Array:
    """The sum over devices of `whole`, of which each gets its piece along the first axis."""
    for groups in _groups(stages):
        whole = jax.lax.psum_scatter(
            whole, "fsdp", scatter_dimension=0, tiled=True, axis_index_groups=groups
        )
    return whole
