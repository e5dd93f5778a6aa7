"""The real train step, compiled ahead of time for a topology, and what the compiler says of it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import pathlib
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from coin_jax.config import Config
from coin_jax.model.t5 import T5
from coin_jax.objective import make_method
from coin_jax.parallel.mesh import AXES, make_mesh, resolve
from coin_jax.parallel.sharding import PAIR_FIELDS, ROW_FIELDS
from coin_jax.planning import hlo
from coin_jax.planning.chips import GIB, Topology
from coin_jax.training.flops import model_flops
from coin_jax.training.optimizer import make_optimizer
from coin_jax.training.state import abstract_state, state_shardings
from coin_jax.training.step import make_train_step

FORMAT = 1
"""Of the results on disk; a new one makes the old ones be measured again."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind that belong together, in one step, of one device."""

    kind: str
    bytes: float
    """Of the arrays, all runs together."""
    wire_bytes: float
    times: float
    is_async: bool
    source: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """One configuration on one topology. Bytes and FLOPs of one device, seconds of one step."""

    topology: str
    mesh: tuple[int, int, int]
    rows: int
    remat: str
    accumulation_steps: int
    method: str
    """`compiled`, or `arithmetic`."""
    fits: bool
    parameters: float
    optimizer: float
    """Its moments, and the moving average where there is one."""
    activations: float
    """What the layers keep from the forward for the backward pass."""
    temporaries: float
    """Everything else that lives within a step, gradients among them, and the program itself."""
    memory: float
    limit: float
    model_flops: float
    """Of the whole batch; see training/flops.py."""
    tokens: float
    """Of the whole batch, encoder and decoder."""
    program_flops: float = 0.0
    """Of the matrix products that one device really executes."""
    compute_seconds: float = 0.0
    collective_seconds: float = 0.0
    exposed_seconds: float = 0.0
    """Part of collective_seconds that nothing is computed in."""
    peak_flops: float = 0.0
    """Of all devices together."""
    collectives: tuple[Collective, ...] = ()
    slowest: tuple[tuple[str, float], ...] = ()
    problem: str = ""
    """What the compiler said where it does not fit."""
    compile_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Collectives that overlap with computing cost nothing until there are too many."""
        return max(self.compute_seconds + self.exposed_seconds, self.collective_seconds)

    @property
    def utilization(self) -> float:
        """Model FLOPs a second against the peak; 0 where no time is known."""
        if not (self.seconds and self.peak_flops):
            return 0.0
        return self.model_flops / self.seconds / self.peak_flops


def plan_by_compiling(config: Config, topology: Topology, cache: pathlib.Path | None) -> Plan:
    """Compiles the step of `config`, or reads from `cache` what an earlier compilation gave.

    The cache goes by the program itself, as it is before the compiler sees it, and by the versions
    of the compiler: whatever changes the program makes it be compiled anew.
    """
    config = at_this_scale(config, topology)
    mesh = make_mesh(config.mesh, topology.devices())
    model = T5(config.model)
    optimizer = make_optimizer(config.optimizer, config.training.steps, model.logical_axes())
    step = make_train_step(model, make_method(config.objective), optimizer, config, mesh)
    lowered = step.lower(abstract_state(model, optimizer, config), abstract_batch(config))

    path = None
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        parts = (str(FORMAT), topology.name, *compiler_versions(topology), lowered.as_text())
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
        path = cache / f"{config.name}-{topology.name.replace(':', '-')}-{digest}.json"
        if path.is_file():
            return from_json(path.read_text())

    start = time.perf_counter()
    base = known_before(config, topology)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        plan = dataclasses.replace(base, **out_of_memory(str(error), base))
    else:
        plan = dataclasses.replace(base, **measured(compiled, config, topology, base))
    plan = dataclasses.replace(plan, compile_seconds=time.perf_counter() - start)
    if path is not None:
        path.write_text(json.dumps(dataclasses.asdict(plan), indent=1))
    return plan


def at_this_scale(config: Config, topology: Topology) -> Config:
    """As it will run there: no weights are read, and layers are a loop except on CPU."""
    unroll = config.model.scan_unroll or (0 if topology.chip.kind == "CPU" else 1)
    model = dataclasses.replace(config.model, init_from="", scan_unroll=unroll)
    return dataclasses.replace(config, model=model)


def abstract_batch(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes that the data pipeline gives; see data/packing.py."""
    batch = config.batch
    pairs = batch.rows * batch.segments_per_row // 2
    shape = {
        name: (batch.rows, getattr(batch, f"{name[:7]}_length")) for name in ROW_FIELDS
    } | dict.fromkeys(PAIR_FIELDS, (pairs,))
    shape["pair_members"] = (pairs, 2)
    return {name: jax.ShapeDtypeStruct(sizes, jnp.int32) for name, sizes in shape.items()}


def known_before(config: Config, topology: Topology) -> Plan:
    """What follows from shapes alone: the state's bytes and the work that the model needs."""
    shape = resolve(config.mesh, topology.size)
    mesh = AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    model = T5(config.model)
    optimizer = make_optimizer(config.optimizer, config.training.steps, model.logical_axes())
    state = abstract_state(model, optimizer, config)
    shardings = state_shardings(model, optimizer, config, mesh)

    def held(part: Any, sharding: Any) -> float:
        pieces = jax.tree.map(
            lambda array, where: math.prod(where.shard_shape(array.shape)) * array.dtype.itemsize,
            part,
            sharding,
        )
        return float(sum(jax.tree.leaves(pieces)))

    batch = config.batch
    # Full rows, of segments of one length: padding takes its share off the utilization.
    segments = {
        side: np.sort(np.arange(length) % batch.segments_per_row)[None] + 1
        for side, length in (("encoder", batch.encoder_length), ("decoder", batch.decoder_length))
    }
    flops = model_flops(
        config.model, segments["encoder"], segments["decoder"], batch.segments_per_row
    )
    return Plan(
        topology=topology.name,
        mesh=shape,
        rows=batch.rows,
        remat=config.model.remat,
        accumulation_steps=config.optimizer.accumulation_steps,
        method="compiled",
        fits=False,
        parameters=held(state.params, shardings.params),
        optimizer=held(state.optimizer_state, shardings.optimizer_state)
        + held(state.ema, shardings.ema),
        activations=0.0,
        temporaries=0.0,
        memory=0.0,
        limit=topology.chip.memory,
        model_flops=float(flops) * batch.rows,
        tokens=float(batch.rows * (batch.encoder_length + batch.decoder_length)),
        peak_flops=topology.chip.peak_flops * topology.size,
    )


def measured(compiled: Any, config: Config, topology: Topology, base: Plan) -> dict[str, Any]:
    """The fields of a plan that a compiled step gives."""
    statistics = compiled.memory_analysis()
    summary = hlo.summarize(
        compiled.as_text(), topology.size, config.model.num_layers, stacked_sizes(config, topology)
    )
    inside = statistics.temp_size_in_bytes
    kept = min(summary.kept, inside)
    rest = inside - kept + statistics.generated_code_size_in_bytes
    rest += statistics.output_size_in_bytes - statistics.alias_size_in_bytes
    rest += max(statistics.argument_size_in_bytes - base.parameters - base.optimizer, 0)
    memory = base.parameters + base.optimizer + kept + rest
    return {
        "fits": memory <= base.limit,
        "activations": float(kept),
        "temporaries": float(rest),
        "memory": float(memory),
        "program_flops": summary.flops,
        "collectives": grouped(summary.collectives),
        "slowest": summary.slowest,
    } | times(summary, topology)


def times(summary: hlo.Summary, topology: Topology) -> dict[str, float]:
    chip = topology.chip
    if not chip.clock:
        return {}
    rate = topology.link_bandwidth
    wire = sum(one.wire_bytes for one in summary.collectives)
    exposed = sum(one.wire_bytes for one in summary.collectives if not one.is_async)
    return {
        "compute_seconds": summary.cycles / chip.clock,
        "collective_seconds": wire / rate if rate else 0.0,
        "exposed_seconds": exposed / rate if rate else 0.0,
    }


def stacked_sizes(config: Config, topology: Topology) -> frozenset[int]:
    """Elements of each parameter that has a layer axis: a device's piece, and gathered."""
    mesh = AbstractMesh(
        resolve(config.mesh, topology.size), AXES, axis_types=(AxisType.Auto,) * len(AXES)
    )
    model = T5(config.model)
    optimizer = make_optimizer(config.optimizer, config.training.steps, model.logical_axes())
    shardings = state_shardings(model, optimizer, config, mesh).params
    sizes = set()
    for array, where in zip(
        jax.tree.leaves(model.abstract_parameters()), jax.tree.leaves(shardings), strict=True
    ):
        piece = math.prod(where.shard_shape(array.shape))
        sizes |= {piece * count for count in (1, mesh.shape["fsdp"])}
    return frozenset(sizes)


def grouped(collectives: tuple[hlo.Collective, ...]) -> tuple[Collective, ...]:
    """One entry for each kind and operation of the model, the heaviest first."""
    groups: dict[tuple, Collective] = {}
    for one in collectives:
        key = one.kind, one.is_async, one.source
        old = groups.get(key) or Collective(one.kind, 0.0, 0.0, 0.0, one.is_async, one.source)
        groups[key] = dataclasses.replace(
            old,
            bytes=old.bytes + one.bytes * one.times,
            wire_bytes=old.wire_bytes + one.wire_bytes,
            times=old.times + one.times,
        )
    return tuple(sorted(groups.values(), key=lambda group: -group.wire_bytes))


def out_of_memory(message: str, base: Plan) -> dict[str, Any]:
    """The fields of a plan whose step the compiler refused."""
    units = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
    amounts = [
        float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([KMGT])\b", message)
    ]
    state = base.parameters + base.optimizer
    memory = max(amounts, default=math.inf)
    said = next((line for line in message.splitlines() if "emory" in line), message[:200])
    return {
        "fits": False,
        "memory": memory,
        "temporaries": max(memory - state, 0.0),
        "problem": said.strip(),
    }


def compiler_versions(topology: Topology) -> list[str]:
    names = ["jax", "jaxlib", *(["libtpu"] if topology.is_tpu else [])]
    return [f"{name} {importlib.metadata.version(name)}" for name in names]


def from_json(text: str) -> Plan:
    fields = json.loads(text)
    fields["mesh"] = tuple(fields["mesh"])
    fields["collectives"] = tuple(Collective(**one) for one in fields["collectives"])
    fields["slowest"] = tuple(tuple(one) for one in fields["slowest"])
    return Plan(**fields)
