"""What several processes hold of one run: their rows of each batch, and what all of them know."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from coin_jax.config import ConfigError
from coin_jax.parallel.distributed import is_main
from coin_jax.parallel.mesh import AXES
from coin_jax.parallel.sharding import (
    PAIR_FIELDS,
    batch_shard_count,
    batch_shardings,
    replicated,
)


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of each global batch that this process reads, and how the parts become one batch.

    Processes that hold the same rows (where `tensor` spans them) read the same part.
    """

    mesh: Mesh
    index: int
    """Of the part."""
    count: int
    """Parts there are."""
    blocks: tuple[int, ...]
    """The part's rows on the mesh, in units of a device's rows."""
    readers: tuple[int, ...]
    """For each part, a process that reads it."""

    @classmethod
    def of(cls, mesh: Mesh) -> Share:
        """Raises ConfigError where the rows of two processes overlap without being the same."""
        rows = batch_shardings(mesh, ["encoder_tokens"])["encoder_tokens"]
        held: dict[int, set[int]] = {}
        for device, (part,) in rows.devices_indices_map((batch_shard_count(mesh),)).items():
            held.setdefault(device.process_index, set()).add(part.start or 0)
        parts = sorted({tuple(sorted(blocks)) for blocks in held.values()})
        flat = [block for part in parts for block in part]
        if len(flat) != len(set(flat)) or len({len(part) for part in parts}) > 1:
            raise ConfigError(
                f"mesh {dict(mesh.shape)} cuts the batch across the {len(held)} processes so that "
                "some share a part of their rows: let mesh.tensor divide a process's "
                f"{jax.local_device_count()} devices, or be a multiple of them"
            )
        mine = tuple(sorted(held[jax.process_index()]))
        readers = tuple(
            min(process for process, blocks in held.items() if tuple(sorted(blocks)) == part)
            for part in parts
        )
        return cls(mesh, parts.index(mine), len(parts), mine, readers)

    def place(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Global arrays from each process's part: rows where they belong, pair tables everywhere.

        Every process calls this together.
        """
        shardings = batch_shardings(self.mesh)
        if jax.process_count() == 1:
            return {name: jax.device_put(array, shardings[name]) for name, array in batch.items()}
        rows = len(batch["encoder_tokens"])
        placed = {
            name: jax.make_array_from_process_local_data(
                shardings[name], array, (rows * self.count, *array.shape[1:])
            )
            for name, array in batch.items()
            if name not in PAIR_FIELDS
        }
        columns = [
            self._on_the_mesh(batch["pair_members"], rows),
            batch["pair_sets"][:, None],
            batch["pair_contents"][:, None],
        ]
        tables = self._join(_one_a_device(self.mesh, np.concatenate(columns, axis=1)))
        return placed | dict(zip(PAIR_FIELDS, tables, strict=True))

    def gather(self, array: np.ndarray) -> np.ndarray:
        """[parts, ..]: an array of 32 bits of each part. Every process calls this together."""
        gathered = multihost_utils.process_allgather(array) if jax.process_count() > 1 else [array]
        return np.asarray([gathered[process] for process in self.readers])

    def total(self, statistics: Mapping[str, float]) -> dict[str, float]:
        """Of all parts: a pipeline's counts are summed, its shares of padding averaged."""
        values = np.fromiter(statistics.values(), np.float32)
        sums = dict(zip(statistics, self.gather(values).sum(axis=0).tolist(), strict=True))
        counted = ("sets", "pairs", "sequences", "cut", "encoder_tokens", "decoder_tokens")
        return {n: int(s) if n in counted else s / self.count for n, s in sums.items()}

    def _on_the_mesh(self, members_Px2: np.ndarray, rows: int) -> np.ndarray:
        """The slots of pairs, counted where their rows are on the mesh: a part's rows need not be
        neighbours there, as on a slice whose hosts are squares of chips."""
        segments = 2 * len(members_Px2) // rows
        local = members_Px2 - self.index * rows * segments
        block = rows // len(self.blocks)
        places = (np.asarray(self.blocks)[:, None] * block + np.arange(block)).reshape(-1)
        moved = places[local // segments % rows] * segments + local % segments
        return np.where(members_Px2 < 0, members_Px2, moved)

    @functools.cached_property
    def _join(self) -> Callable[[jax.Array], tuple[jax.Array, ...]]:
        """[devices, P, 4] -> the pair tables of all parts, on every device."""
        processes = [device.process_index for device in self.mesh.devices.flat]
        firsts = np.array([processes.index(reader) for reader in self.readers])

        def join(stacked: jax.Array) -> tuple[jax.Array, ...]:
            table = stacked[firsts].reshape(-1, 4)
            return table[:, :2], table[:, 2], table[:, 3]

        return jax.jit(join, out_shardings=replicated(self.mesh))


class Agreement:
    """One process's wish to stop becomes the decision of all, at the same step."""

    def __init__(self, mesh: Mesh):
        self._mesh, self._pending = mesh, None
        self._alone = jax.process_count() == 1
        self._highest = jax.jit(lambda wishes: wishes.max(), out_shardings=replicated(mesh))

    def __call__(self, wish: int) -> int:
        """The signal that the processes stop for, or 0; every process calls this at every step.

        Of several processes the answer is that to the call before: it is there without waiting for
        the step that the devices are at.
        """
        if self._alone:
            return wish
        before, self._pending = self._pending, self._highest(_one_a_device(self._mesh, wish))
        return 0 if before is None else int(before)


def _one_a_device(mesh: Mesh, value: Any) -> jax.Array:
    """int32 [devices, ..], in the order of the mesh, with this process's value on each of its."""
    value = np.asarray(value, np.int32)[None]
    sharding = NamedSharding(mesh, PartitionSpec(AXES))
    shape = (mesh.size, *value.shape[1:])
    return jax.make_array_from_callback(shape, sharding, lambda index: value)


def tell(content: bytes | None) -> bytes | None:
    """What process 0 says, in every process. They call this together."""
    size = -1 if content is None else len(content)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(size)))
    if size < 0:
        return None
    said = np.zeros(1 << max(10, size.bit_length()), np.uint8)  # of few sizes: each is a program
    if is_main():
        said[:size] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(said))[:size].tobytes()
