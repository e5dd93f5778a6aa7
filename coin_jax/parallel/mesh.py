"""The device mesh: three axes, `data x fsdp x tensor`.

Rows of a batch are spread over `data` and `fsdp` together. Parameters and optimizer state are
replicated over `data`, cut into pieces over `fsdp` (gathered where they are used) and split over
`tensor` so that each device computes its share of heads, feed-forward features and vocabulary.
Keep `tensor` inside one host: it talks most.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils

from coin_jax.config import ConfigError, MeshConfig
from coin_jax.parallel.gathered import route

AXES = ("data", "fsdp", "tensor")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Lays out `devices` (all of them when None) as `config` says; an axis of -1 takes the rest.

    Devices are ordered so that neighbours on the last axes are neighbours on the wire; there `fsdp`
    stands as the grid that parallel/gathered.py works on. Every axis is `Auto`: XLA's partitioner
    chooses whatever `constrain` does not pin down.

    Raises ConfigError when the axes do not multiply to the number of devices, or these are of
    several TPU slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = resolve(config, len(devices))
    slices = {getattr(device, "slice_index", 0) for device in devices}
    if len(slices) > 1:
        raise ConfigError(f"mesh: {len(slices)} TPU slices were found; one mesh is laid over one.")
    grid = (shape[0], *route(shape[1], devices[0].device_kind).torus, shape[2])
    # Not jax.make_mesh: it knows no grid, and refuses most meshes that split a torus' dimension.
    laid_out = mesh_utils.create_device_mesh(grid, devices, allow_split_physical_axes=True)
    automatic = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.sharding.Mesh(laid_out.reshape(shape), AXES, axis_types=automatic)


def resolve(config: MeshConfig, device_count: int) -> tuple[int, int, int]:
    """The counts along `AXES`, with -1 replaced by what is left of `device_count`."""
    counts = [config.data, config.fsdp, config.tensor]
    written = ", ".join(f"mesh.{axis} = {count}" for axis, count in zip(AXES, counts, strict=True))
    if counts.count(-1) > 1:
        raise ConfigError(f"{written}: at most one axis may be -1 (all devices that are left).")
    if any(count == 0 or count < -1 for count in counts):
        raise ConfigError(
            f"{written}: an axis is a positive number of devices, or -1 for the rest."
        )
    known = 1
    for count in counts:
        known *= 1 if count == -1 else count
    if -1 in counts and device_count % known == 0:
        counts[counts.index(-1)] = device_count // known
    elif known != device_count or -1 in counts:
        remedy = "must divide" if -1 in counts else "must be"
        raise ConfigError(
            f"{written}: the fixed axes multiply to {known}, which {remedy} the number of devices, "
            f"{device_count}. Set one axis to -1 to let it take what is left."
        )
    return tuple(counts)
