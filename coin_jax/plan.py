"""Whether a run fits machines that are not here, how fast it would be, and on which mesh.

    python -m coin_jax.plan --config configs/flan_t5.py:xxl --topology v5e:16x16

compiles the real train step ahead of time for that topology. No weights are read and no device is
needed; `pip install libtpu` brings the compiler. Every field of the config can be set after it, as
in `coin_jax.train`. docs/plan.md says what the numbers mean.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from rich.console import Console

from coin_jax.config import Config, ConfigError


def main(arguments: Sequence[str] | None = None) -> int:
    options, rest = parser().parse_known_args(arguments)
    errors = Console(stderr=True, highlight=False, markup=False)
    use_host_devices(options.topology)
    # These import jax, which reads the environment that the line above writes.
    from coin_jax.config_files import load

    try:
        config = load(["--config", options.config, *rest], "python -m coin_jax.plan")
        return run(config, options, Console())
    except ConfigError as error:
        errors.print(str(error), style="red", soft_wrap=True)
        return 1


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m coin_jax.plan",
        description=__doc__.partition("\n")[0],
        epilog="What else is given is laid over the config: --batch.rows 128 --mesh.fsdp 8 ..",
        allow_abbrev=False,
    )
    made.add_argument("--config", required=True, metavar="FILE[:ARGUMENT]")
    made.add_argument("--topology", required=True, help="v5e:4x4, v4:2x2x1, h100:8, cpu:8, ..")
    made.add_argument(
        "--compile",
        type=int,
        default=2,
        metavar="N",
        help="meshes and remat policies of the table that the compiler is asked about, the most "
        "promising first; the others are weighed by arithmetic (default: 2)",
    )
    made.add_argument(
        "--only", action="store_true", help="the config as it is: no table, no largest batch"
    )
    made.add_argument(
        "--fast",
        action="store_true",
        help="stop a TPU's compiler half way, for the config itself too: no estimate of time of "
        "its own, and a tenth of the waiting",
    )
    made.add_argument(
        "--thorough",
        action="store_true",
        help="let it come to its estimate for the table and the batches, too",
    )
    made.add_argument(
        "--arithmetic", action="store_true", help="ask no compiler: rough, and within seconds"
    )
    made.add_argument(
        "--markdown", action="store_true", help="one line of the tables in docs/plan.md, no more"
    )
    made.add_argument(
        "--cache",
        type=pathlib.Path,
        default=pathlib.Path("runs/plans"),
        help="folder of what was compiled before (default: runs/plans)",
    )
    return made


def use_host_devices(topology: str) -> None:
    """Makes JAX, not loaded yet, run on the host with as many CPU devices as are asked for."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    name, _, count = topology.partition(":")
    if name == "cpu" and count.isdecimal():
        flag = f"--xla_force_host_platform_device_count={count}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


def run(config: Config, options: argparse.Namespace, console: Console) -> int:
    """Prints the plan; returns 1 where `config` does not fit as it is."""
    from coin_jax.planning import search, tables
    from coin_jax.planning.arithmetic import plan_by_arithmetic
    from coin_jax.planning.chips import parse_topology
    from coin_jax.planning.program import plan_by_compiling

    topology = parse_topology(options.topology)

    def arithmetic(one: Config):
        return plan_by_arithmetic(one, topology)

    def compile_one(one: Config, to_the_end: bool = options.thorough):
        if options.arithmetic or not topology.is_compiled:
            return arithmetic(one)
        mesh = f"{one.mesh.data} x {one.mesh.fsdp} x {one.mesh.tensor}"
        with console.status(f"compiling {mesh}, {one.batch.rows} rows, remat {one.model.remat}"):
            return plan_by_compiling(one, topology, options.cache, to_the_end)

    plan = compile_one(config, not options.fast)
    if options.markdown:
        print(tables.markdown_row(config.name, plan))
        return 0 if plan.fits else 1
    tables.describe(plan, topology, console)
    if options.only:
        return 0 if plan.fits else 1

    plans = search.table(config, topology, arithmetic, compile_one, options.compile)
    heading = f"Meshes and remat policies for {config.batch.rows} rows on {topology.name}"
    console.print(tables.choices_table(plans, search.best(plans), heading))
    largest, tried = search.largest_batch(config, topology, arithmetic, compile_one)
    heading = f"Batches on mesh {' x '.join(map(str, plan.mesh))}, remat {plan.remat}"
    console.print(tables.choices_table(tried, largest, heading))
    if largest is None:
        console.print("No batch fits on this mesh.", style="red")
    return 0 if plan.fits else 1


if __name__ == "__main__":
    sys.exit(main())
