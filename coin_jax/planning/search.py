"""Which mesh, batch and remat policy: all are weighed by arithmetic, the best ones are compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import get_args, get_type_hints

from coin_jax.config import Config, MeshConfig, ModelConfig
from coin_jax.parallel.mesh import resolve
from coin_jax.planning.chips import Topology
from coin_jax.planning.program import Plan

REMAT = get_args(get_type_hints(ModelConfig)["remat"])
LARGEST_TENSOR = 8
"""Of the tensor axis: it talks in every layer and should stay within one host."""

Weigh = Callable[[Config], Plan]


def candidates(config: Config, topology: Topology) -> Iterator[Config]:
    """`config` on every mesh of powers of two that divides it, with every remat policy."""
    model = config.model
    tensor = 1
    while tensor <= min(LARGEST_TENSOR, topology.size):
        if topology.size % tensor == 0 and model.num_heads % tensor == 0:
            shards = topology.size // tensor
            for fsdp in (2**power for power in range(shards.bit_length())):
                is_whole = shards % fsdp == 0 and model.d_model % fsdp == 0
                if is_whole and divides(config, shards):
                    mesh = MeshConfig(shards // fsdp, fsdp, tensor)
                    for remat in REMAT:
                        yield with_choice(config, mesh=mesh, remat=remat)
        tensor *= 2


def divides(config: Config, shards: int) -> bool:
    return config.batch.rows % (shards * config.optimizer.accumulation_steps) == 0


def with_choice(
    config: Config,
    mesh: MeshConfig | None = None,
    remat: str | None = None,
    rows: int | None = None,
) -> Config:
    model = config.model if remat is None else dataclasses.replace(config.model, remat=remat)
    batch = config.batch if rows is None else dataclasses.replace(config.batch, rows=rows)
    return dataclasses.replace(config, model=model, batch=batch, mesh=mesh or config.mesh)


def best(plans: list[Plan]) -> Plan | None:
    """Of those that fit, the one that uses the chips best; None where no time is known.

    What was compiled goes before what arithmetic says, which is always the faster of the two.
    """
    fitting = [plan for plan in plans if plan.fits and plan.bound]
    compiled = [plan for plan in fitting if plan.method == "compiled"]
    return max(compiled or fitting, key=lambda plan: plan.utilization_bound, default=None)


def table(
    config: Config, topology: Topology, arithmetic: Weigh, compile_one: Weigh, compiled: int
) -> list[Plan]:
    """A plan for every candidate; the best `compiled` of them as the compiler sees them.

    A candidate that the compiler finds too large gives its place to the next one.
    """
    weighed = [(one, arithmetic(one)) for one in candidates(config, topology)]
    weighed.sort(key=lambda pair: (pair[1].fits, pair[1].utilization_bound), reverse=True)
    plans = []
    for one, plan in weighed:
        if compiled > 0 and plan.fits:
            plan = compile_one(one)
            compiled -= plan.fits
        plans.append(plan)
    return plans


def largest_batch(
    config: Config, topology: Topology, arithmetic: Weigh, compile_one: Weigh
) -> tuple[Plan | None, list[Plan]]:
    """(the plan with the most rows that fit, in powers of two a shard; every plan compiled).

    Arithmetic says where to begin; from there the compiler is asked up or down.
    """
    data, fsdp, _ = resolve(config.mesh, topology.size)
    unit = data * fsdp * config.optimizer.accumulation_steps
    sizes = [unit * 2**power for power in range(11)]

    def at(rows: int) -> Config:
        return with_choice(config, rows=rows)

    start = sum(arithmetic(at(rows)).fits for rows in sizes[1:])
    tried = {start: compile_one(at(sizes[start]))}
    place = start
    while tried[place].fits and place + 1 < len(sizes) and place + 1 not in tried:
        place += 1
        tried[place] = compile_one(at(sizes[place]))
    while not tried[place].fits and place > 0 and place - 1 not in tried:
        place -= 1
        tried[place] = compile_one(at(sizes[place]))
    fitting = [number for number, plan in tried.items() if plan.fits]
    largest = tried[max(fitting)] if fitting else None
    return largest, [tried[number] for number in sorted(tried)]
