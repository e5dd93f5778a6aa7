"""How long the TPU compiler's schedules of the attention kernel are: the numbers in
coin_jax/planning/kernels.py.

Nothing runs. Each chip's compiler writes the instructions it has scheduled for one program of the
grid, two heads of 64 of one row; their number is the kernel's cycles as long as memory keeps up.

    pip install libtpu
    python -m benchmarks.kernel_schedule --chips v4 v5e v5p v6e
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
SHAPES = ((512, 512, True), (96, 512, False))
"""Queries, keys, with a bias: the encoder's, and from the decoder to the encoder."""
HEADS, SIZE = 8, 64


def compile_kernels(chip: str, shape: tuple[int, int, bool]) -> None:
    """Forward and backward; libtpu writes its schedules where LIBTPU_INIT_ARGS says."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from coin_jax.config import MeshConfig
    from coin_jax.model import fused_attention
    from coin_jax.parallel.mesh import make_mesh
    from coin_jax.planning.chips import parse_topology

    topology = parse_topology(TOPOLOGIES[chip])
    mesh = make_mesh(MeshConfig(1, -1, 1), topology.devices())
    T, S, with_bias = shape
    rows = topology.size

    def loss(query, key, value, bias, query_segments, key_segments, seed):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            context = fused_attention.attend(
                query, key, value, bias, query_segments, key_segments, heads=HEADS, causal=False,
                dropout_rate=0.1, dropout_seed=seed,
            )  # fmt: skip
            return (context.astype(jnp.float32) ** 2).sum()

    def described(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    spread, whole = PartitionSpec("fsdp"), PartitionSpec()
    states = [described((rows, n, HEADS * SIZE), jnp.bfloat16, spread) for n in (T, S, S)]
    bias = described((rows, HEADS, T, S), jnp.float32, spread) if with_bias else None
    segments = [described((rows, n), jnp.int32, spread) for n in (T, S)]
    seed = described((), jnp.uint32, whole)
    arguments = (*states, bias, *segments, seed)
    inputs = (0, 1, 2, 3) if with_bias else (0, 1, 2)
    jax.jit(jax.grad(loss, inputs)).lower(*arguments).compile()


def schedules(chip: str, shape: tuple[int, int, bool]) -> dict[str, int]:
    """{kernel: bundles of instructions for one program}"""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "LIBTPU_INIT_ARGS": flags}
        number = str(SHAPES.index(shape))
        subprocess.run(
            [sys.executable, "-m", "benchmarks.kernel_schedule", "--chips", chip, "--only", number],
            env=environment, check=True, capture_output=True,
        )  # fmt: skip
        found = {}
        for path in pathlib.Path(folder).glob("*schedule-analysis_final_bundles.txt"):
            name = re.search(r"-(attention(?:_backward)?)[.\d]*-\d+-schedule", path.name)
            bundles = re.search(r"total scheduled bundles:\s*(\d+)", path.read_text())
            if name and bundles:
                found[name[1]] = int(bundles[1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--chips", nargs="+", default=list(TOPOLOGIES), choices=list(TOPOLOGIES))
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        compile_kernels(options.chips[0], SHAPES[options.only])
        return
    for chip in options.chips:
        large, small = (schedules(chip, shape) for shape in SHAPES)
        for name in sorted(large):
            tiles = [T * S * 2 / 1024 for T, S, _ in SHAPES]
            slope = (large[name] - small[name]) / (tiles[0] - tiles[1])
            fixed = small[name] - slope * tiles[1]
            print(
                f"{chip:4} {name:19} {large[name]:6,} and {small[name]:6,} bundles: "
                f"{slope:.1f} for 1024 scores, {fixed:,.0f} for a program",
                flush=True,
            )


if __name__ == "__main__":
    main()
