"""The real train step, compiled ahead of time for a topology, and what the compiler says of it."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import importlib.metadata
import json
import math
import multiprocessing
import pathlib
import re
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from coin_jax.config import Config, ModelConfig, OptimizerConfig
from coin_jax.model.t5 import T5
from coin_jax.objective import make_method
from coin_jax.parallel.mesh import AXES, make_mesh, resolve
from coin_jax.parallel.sharding import PAIR_FIELDS, ROW_FIELDS
from coin_jax.planning import hlo, kernels
from coin_jax.planning.chips import GIB, Topology
from coin_jax.training.flops import model_flops
from coin_jax.training.optimizer import make_optimizer
from coin_jax.training.state import abstract_state, state_shardings
from coin_jax.training.step import make_train_step

PRODUCT_EFFICIENCY = 0.88
"""Of the peak, that the TPU compiler itself expects of an 8192 x 8192 product on v5e."""
MEMORY_EFFICIENCY = 0.83
"""Of the published bandwidth, that it expects of a copy there."""


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
    """By the compiler's cycles; 0 where it gives none or was not let come to them."""
    roofline_seconds: float = 0.0
    """Each instruction at its products' or its memory traffic's pace, whichever is slower."""
    collective_seconds: float = 0.0
    exposed_seconds: float = 0.0
    """Part of collective_seconds that nothing is computed in."""
    peak_flops: float = 0.0
    """Of all devices together."""
    collectives: tuple[Collective, ...] = ()
    slowest: tuple[tuple[str, float], ...] = ()
    problem: str = ""
    """What the compiler said where it does not fit."""

    @property
    def seconds(self) -> float:
        """As the compiler estimates it, or else the bound."""
        return self._with_collectives(self.compute_seconds or self.roofline_seconds)

    @property
    def bound(self) -> float:
        """The roofline: no step is faster."""
        return self._with_collectives(self.roofline_seconds)

    @property
    def utilization(self) -> float:
        """Model FLOPs a second against the peak; 0 where no time is known."""
        return self._share(self.seconds)

    @property
    def utilization_bound(self) -> float:
        return self._share(self.bound)

    def _with_collectives(self, computing: float) -> float:
        """Collectives that overlap with computing cost nothing until there are too many."""
        if not computing:
            return 0.0
        return max(computing + self.exposed_seconds, self.collective_seconds)

    def _share(self, seconds: float) -> float:
        return self.model_flops / seconds / self.peak_flops if seconds else 0.0


def plan_by_compiling(
    config: Config, topology: Topology, cache: pathlib.Path | None, to_the_end: bool = True
) -> Plan:
    """Compiles the step of `config`, or reads from `cache` what an earlier compilation gave.

    to_the_end: with machine code, which takes most of the time and gives the compiler's estimate of
        cycles. Otherwise a TPU's compiler is stopped once it has planned the memory.

    The cache goes by the program itself, as it is before the compiler sees it, and by the versions
    of the compiler: whatever changes the program makes it be compiled anew.
    """
    config = at_this_scale(config, topology)
    to_the_end = to_the_end or not topology.is_tpu
    lowered = lower(config, topology)
    parts = (topology.name, *compiler_versions(topology), lowered.as_text())
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
    name = f"{config.name}-{topology.name.replace(':', '-')}-{digest}"
    paths = [] if cache is None else [cache / f"{name}.gz", cache / f"{name}.memory.gz"]
    known = [path for path in (paths[:1] if to_the_end else paths) if path.is_file()]
    if known:
        program = Program(*json.loads(gzip.decompress(known[0].read_bytes())))
    else:
        if not to_the_end:
            program = memory_planned(config, topology)
        elif not topology.is_tpu:
            program = compiled_to_the_end(lowered)
        else:
            with tempfile.TemporaryDirectory() as folder:
                program = compiled_to_the_end(lowered, folder)
        if paths:
            cache.mkdir(parents=True, exist_ok=True)
            packed = gzip.compress(json.dumps(program).encode())
            paths[0 if to_the_end else 1].write_bytes(packed)
    base = known_before(config, topology)
    if program.problem:
        return dataclasses.replace(base, **out_of_memory(program.problem, base))
    return dataclasses.replace(base, **measured(program, config, topology, base))


class Program(NamedTuple):
    """What a compiler left."""

    text: str
    memory: float = 0.0
    """All that a device holds at the fullest moment."""
    problem: str = ""
    """The compiler's own words, where the program does not fit."""


def lower(config: Config, topology: Topology) -> jax.stages.Lowered:
    """The step as train.py makes it, for the compiler of `topology`."""
    mesh = make_mesh(config.mesh, topology.devices())
    model = T5(config.model)
    optimizer = make_optimizer(config.optimizer, config.training.steps, model.logical_axes())
    step = make_train_step(model, make_method(config.objective), optimizer, config, mesh)
    return step.lower(abstract_state(model, optimizer, config), abstract_batch(config))


def compiled_to_the_end(lowered: jax.stages.Lowered, folder: str = "") -> Program:
    """folder: where a TPU's compiler writes what it makes, when it makes it.

    Its last text is read from there: JAX's own copy of XLA does not read each version's programs.
    """
    options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True} if folder else None
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return Program("", problem=str(error))
        raise
    found = compiled.memory_analysis()
    memory = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    memory += found.temp_size_in_bytes + found.generated_code_size_in_bytes
    written = _written(folder, "after_codegen.txt") if folder else []
    return Program(written[-1].read_text() if written else compiled.as_text(), float(memory))


def memory_planned(config: Config, topology: Topology) -> Program:
    """What a TPU's compiler writes down half way, when it has scheduled the program.

    It can be stopped with its process alone, so it gets one of its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        child = multiprocessing.get_context("spawn").Process(
            target=_compile_into, args=(config, topology, folder), daemon=True
        )
        child.start()
        try:
            while child.is_alive() and not _written(folder, "after_buffer_assignment.txt"):
                child.join(0.5)
        finally:
            child.kill()
            child.join()
        for problem in _written(folder, "problem"):
            return Program("", problem=problem.read_text())
        texts = _written(folder, "after_optimizations.txt")
        reports = _written(folder, "memory-usage-report.txt")
        if not (texts and reports):
            raise RuntimeError(f"The TPU compiler ended without a word (status {child.exitcode}).")
        found = re.search(r"\(color=0\)\s+Total bytes: (\d+)", reports[0].read_text())
        return Program(texts[0].read_text(), float(found[1]))


def _written(folder: str, ending: str) -> list[pathlib.Path]:
    return sorted(pathlib.Path(folder).glob(f"*{ending}"))


def _compile_into(config: Config, topology: Topology, folder: str) -> None:
    program = compiled_to_the_end(lower(config, topology), folder)
    if program.problem:
        (pathlib.Path(folder) / "problem").write_text(program.problem)


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


@functools.lru_cache
def described(model: ModelConfig, optimizer: OptimizerConfig, steps: int):
    """(T5, its optimizer, the state's shapes); they depend on no mesh and no remat policy."""
    made = T5(model)
    update = make_optimizer(optimizer, steps, made.logical_axes())
    config = Config(model=model, optimizer=optimizer)
    return made, update, abstract_state(made, update, config)


def shapes_and_shardings(config: Config, topology: Topology) -> tuple[Any, Any]:
    """The state's shapes, and where its pieces lie on a mesh that need not be there."""
    architecture = dataclasses.replace(config.model, remat="none", scan_unroll=0, init_from="")
    model, optimizer, state = described(architecture, config.optimizer, config.training.steps)
    mesh = AbstractMesh(
        resolve(config.mesh, topology.size), AXES, axis_types=(AxisType.Auto,) * len(AXES)
    )
    return state, state_shardings(model, optimizer, config, mesh)


def known_before(config: Config, topology: Topology) -> Plan:
    """What follows from shapes alone: the state's bytes and the work that the model needs."""
    state, shardings = shapes_and_shardings(config, topology)

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
        mesh=resolve(config.mesh, topology.size),
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


def measured(program: Program, config: Config, topology: Topology, base: Plan) -> dict[str, Any]:
    """The fields of a plan that a compiled step gives."""
    summary = hlo.summarize(
        program.text, topology.size, config.model.num_layers, stacked_sizes(config, topology)
    )
    inside = max(program.memory - base.parameters - base.optimizer, 0.0)
    kept = min(float(summary.kept), inside)
    return {
        "fits": program.memory <= base.limit,
        "activations": kept,
        "temporaries": inside - kept,
        "memory": program.memory,
        "program_flops": summary.flops,
        "collectives": grouped(summary.collectives),
        "slowest": summary.slowest,
    } | times(summary, topology)


def times(summary: hlo.Summary, topology: Topology) -> dict[str, float]:
    chip = topology.chip
    if not chip.clock:
        return {}
    rate = topology.link_bandwidth
    products = chip.peak_flops * PRODUCT_EFFICIENCY
    memory = chip.memory_bandwidth * MEMORY_EFFICIENCY
    wire = sum(one.wire_bytes for one in summary.collectives)
    exposed = sum(one.wire_bytes for one in summary.collectives if not one.is_async)
    waiting = 0.0
    if summary.cycles and rate:
        waiting = sum(
            count * waits(events, chip.clock, rate) for count, events in summary.schedules
        )
    in_kernels = [kernels.cycles(chip, one.kernel) if one.kernel else 0 for one in summary.work]
    counted = sum(one.times * cycles for one, cycles in zip(summary.work, in_kernels, strict=True))
    return {
        "compute_seconds": (summary.cycles + counted) / chip.clock if summary.cycles else 0.0,
        "roofline_seconds": sum(
            one.times * max(one.flops / products, one.moved / memory, cycles / chip.clock)
            for one, cycles in zip(summary.work, in_kernels, strict=True)
        ),
        "collective_seconds": wire / rate if rate else 0.0,
        "exposed_seconds": exposed / rate + waiting if rate else 0.0,
    }


def waits(events: Sequence[hlo.Event], clock: float, rate: float) -> float:
    """Seconds that a schedule waits for what it sends in the background, one after the other."""
    now, is_free, waited = 0.0, 0.0, 0.0
    arrives: dict[str, float] = {}
    for event in events:
        match event.kind:
            case "compute":
                now += event.amount / clock
            case "start":
                is_free = max(now, is_free) + event.amount / rate
                arrives[event.name] = is_free
            case "done":
                wait = max(arrives.get(event.name, now) - now, 0.0)
                waited, now = waited + wait, now + wait
    return waited


def stacked_sizes(config: Config, topology: Topology) -> frozenset[int]:
    """Elements of each parameter that has a layer axis: a device's piece, and gathered."""
    state, shardings = shapes_and_shardings(config, topology)
    fsdp = resolve(config.mesh, topology.size)[1]
    arrays, places = jax.tree.leaves(state.params), jax.tree.leaves(shardings.params)
    pieces = [
        math.prod(where.shard_shape(array.shape))
        for array, where in zip(arrays, places, strict=True)
    ]
    return frozenset(piece * count for piece in pieces for count in (1, fsdp))


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
