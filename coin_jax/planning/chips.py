"""The chips that can be planned for, and the topologies made of them."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from coin_jax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator by its maker's figures. Bandwidths are in bytes, rates per second."""

    kind: str
    """As `device_kind` and training/throughput.py call it."""
    peak_flops: float
    """Dense bfloat16 products."""
    memory: float
    """Bytes that a program can use, as the compiler says where it runs out: less than is sold."""
    memory_bandwidth: float
    link_bandwidth: float
    """Of one link to one neighbour, one way."""
    clock: float = 0.0
    """Hertz, in which the compiler's cycles are counted: the peak, divided by what the matrix units
    do in a cycle (2 x 128 x 128 each, v6e's 2 x 256 x 256). 0: it counts none."""
    wraps_at: int = 0
    """Chips along a dimension from which on its ends are wired together."""
    options: tuple[tuple[str, str], ...] = ()
    """For `get_topology_desc`."""


GIB = 2**30

# Memory, bandwidths: the vendors' system architecture pages and data sheets (ICI per chip divided
# by its number of links). v4 pairs its two cores into one device only when asked to.
CHIPS = {
    "v4": Chip(
        "TPU v4", 275e12, 30.75 * GIB, 1200e9, 50e9, 1.049e9, 4, (("chip_config_name", "megacore"),)
    ),
    "v5e": Chip("TPU v5e", 197e12, 15.75 * GIB, 800e9, 50e9, 1.503e9, 16),
    "v5p": Chip("TPU v5p", 459e12, 95.74 * GIB, 2765e9, 100e9, 1.751e9, 4),
    "v6e": Chip("TPU v6e", 918e12, 31.25 * GIB, 1600e9, 100e9, 1.751e9, 16),
    "a100": Chip("NVIDIA A100", 312e12, 79.1 * GIB, 2039e9, 300e9),
    "h100": Chip("NVIDIA H100", 989e12, 79.1 * GIB, 3350e9, 450e9),
    # No data sheet tells what a CPU reaches, so there is no time for it either.
    "cpu": Chip("CPU", 0.0, math.inf, 0.0, 0.0),
}
GPUS = ("a100", "h100")


@dataclasses.dataclass(frozen=True)
class Topology:
    """So many chips of one kind: `v5e:4x4`, `v5p:4x4x4`, `h100:8`, `cpu:8`."""

    name: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        return CHIPS[self.name.partition(":")[0]]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def is_tpu(self) -> bool:
        return self.chip.clock > 0

    @property
    def is_compiled(self) -> bool:
        """Whether the step can be compiled for it here; a GPU's compiler needs the GPU."""
        return self.name.partition(":")[0] not in GPUS

    @property
    def link_bandwidth(self) -> float:
        """Bytes a second that a chip can receive when all devices take part in a collective.

        A dimension whose ends are wired together has two links a chip; one whose ends are not is a
        line, where the chips at its ends have one.
        """
        if not self.is_tpu:
            return self.chip.link_bandwidth
        links = [2 if n % self.chip.wraps_at == 0 else 1 for n in self.shape if n > 1]
        return sum(links) * self.chip.link_bandwidth

    def devices(self) -> Sequence[jax.Device]:
        """What a mesh for it is made of. Raises ConfigError where it cannot be compiled for."""
        if not self.is_compiled:
            raise ConfigError(f"--topology {self.name}: GPUs are planned by arithmetic alone")
        if not self.is_tpu:
            if len(jax.devices("cpu")) < self.size:
                raise ConfigError(
                    f"--topology {self.name}: JAX has {len(jax.devices('cpu'))} CPU devices. "
                    f"Set XLA_FLAGS=--xla_force_host_platform_device_count={self.size} before it "
                    "starts"
                )
            return jax.devices("cpu")[: self.size]
        if importlib.util.find_spec("libtpu") is None:
            raise ConfigError(
                f"--topology {self.name}: the TPU compiler is missing. `pip install libtpu` brings "
                "it; no TPU is needed"
            )
        # It is loaded for its compiler alone: it need not look for a machine, nor lock one.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        try:
            found = topologies.get_topology_desc(
                self.name, platform="tpu", **dict(self.chip.options)
            )
        except Exception as error:  # jaxlib has a type of its own for each of its versions
            raise ConfigError(f"--topology {self.name}: {str(error).splitlines()[0]}") from error
        return found.devices


def parse_topology(name: str) -> Topology:
    """Raises ConfigError, naming what there is."""
    chip, _, shape = name.partition(":")
    parts = shape.split("x")
    if chip not in CHIPS or not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(
            f"--topology {name}: must be CHIP:SHAPE, as v5e:4x4, v4:2x2x1, v5p:4x4x4, h100:8 or "
            f"cpu:8; chips: {', '.join(CHIPS)}"
        )
    return Topology(name, tuple(map(int, parts)))
