"""What `coin_jax.plan` promises: read from the compiler's text, by arithmetic, and end to end."""

import dataclasses
import importlib.util
import io
import math
import os
import pathlib

import jax
import numpy as np
import pytest
from rich.console import Console

from coin_jax import plan as command
from coin_jax.config import (
    BatchConfig,
    Config,
    ConfigError,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TokenizerConfig,
)
from coin_jax.config_files import to_json
from coin_jax.planning import hlo, search, tables
from coin_jax.planning.arithmetic import plan_by_arithmetic
from coin_jax.planning.chips import CHIPS, GIB, parse_topology
from coin_jax.planning.program import (
    Collective,
    Plan,
    abstract_batch,
    known_before,
    out_of_memory,
    plan_by_compiling,
)
from coin_jax.training.throughput import PEAK_FLOPS

ROOT = pathlib.Path(__file__).parent.parent
TINY = Config(
    name="tiny",
    model=ModelConfig(
        init_from="somebody/weights",
        vocabulary_size=256,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_heads=4,
        num_layers=3,
        num_decoder_layers=3,
        scan_unroll=1,
        remat="full",
    ),
    tokenizer=TokenizerConfig(kind="bytes"),
    batch=BatchConfig(rows=16, encoder_length=32, decoder_length=16, segments_per_row=4),
    optimizer=OptimizerConfig(name="adamw"),
    mesh=MeshConfig(data=2, fsdp=2, tensor=2),
)

PROGRAM = """HloModule step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%gather_a_layer (p: bf16[1,16,64], q: bf16[8,64]) -> (bf16[1,64,64], bf16[8,64]) {
  %p = bf16[1,16,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %q = bf16[8,64]{1,0} parameter(1)
  %all-gather.3 = bf16[1,64,64]{2,1,0:T(8,128)S(1)} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={1}
  ROOT %both = (bf16[1,64,64]{2,1,0}, bf16[8,64]{1,0}) tuple(%all-gather.3, %q)
}

%scatter_gradients (g: f32[64,64]) -> f32[16,64] {
  %g = f32[64,64]{1,0} parameter(0)
  %all-reduce-scatter.1 = f32[16,64]{1,0} reduce-scatter(%g), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, to_apply=%add
  ROOT %copy = f32[16,64]{1,0} copy(%all-reduce-scatter.1)
}

%body (carry: (s32[], bf16[6,8,64], f32[6,16,64], bf16[1,16,64])) -> (s32[], bf16[6,8,64], f32[6,16,64], bf16[1,16,64]) {
  %carry = (s32[]{:T(128)}, bf16[6,8,64]{2,1,0}, f32[6,16,64]{2,1,0}, bf16[1,16,64]{2,1,0}) parameter(0)
  %piece = bf16[1,16,64]{2,1,0} get-tuple-element(%carry), index=3
  %rows = bf16[8,64]{1,0} custom-call(%carry), custom_call_target="slice"
  %async_collective_fusion.1 = (bf16[1,64,64]{2,1,0}, bf16[8,64]{1,0}) fusion(%piece, %rows), kind=kCustom, calls=%gather_a_layer, metadata={op_name="jit(train_step)/transpose(jvp())/while/body/closed_call/dot_general"}, backend_config={"window_config":{"estimated_cycles":"100"}}
  %async_collective_fusion.2 = (bf16[1,64,64]{2,1,0}, bf16[8,64]{1,0}) fusion(%piece, %rows), kind=kCustom, calls=%gather_a_layer, metadata={op_name="jit(train_step)/transpose(jvp())/while/body/closed_call/mul"}
  %whole = bf16[64,64]{1,0} bitcast(%async_collective_fusion.1)
  %product = bf16[8,64]{1,0} convolution(%rows, %whole), dim_labels=bf_io->bf, metadata={op_name="jit(train_step)/transpose(jvp())/while/body/closed_call/dot_general"}, backend_config={"window_config":{"estimated_cycles":"1000"}}
  ROOT %next = (s32[]{:T(128)}, bf16[6,8,64]{2,1,0}, f32[6,16,64]{2,1,0}, bf16[1,16,64]{2,1,0}) tuple(%carry)
}

%condition (carry: (s32[], bf16[6,8,64], f32[6,16,64], bf16[1,16,64])) -> pred[] {
  %carry.1 = (s32[]{:T(128)}, bf16[6,8,64]{2,1,0}, f32[6,16,64]{2,1,0}, bf16[1,16,64]{2,1,0}) parameter(0)
  %count = s32[]{:T(128)} constant(6)
  %counter = s32[]{:T(128)} get-tuple-element(%carry.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%counter, %count), direction=LT
}

ENTRY %main (first: (s32[], bf16[6,8,64], f32[6,16,64], bf16[1,16,64]), g: f32[64,64]) -> f32[16,64] {
  %first = (s32[]{:T(128)}, bf16[6,8,64]{2,1,0}, f32[6,16,64]{2,1,0}, bf16[1,16,64]{2,1,0}) parameter(0)
  %g.1 = f32[64,64]{1,0} parameter(1)
  %while.1 = (s32[]{:T(128)}, bf16[6,8,64]{2,1,0}, f32[6,16,64]{2,1,0}, bf16[1,16,64]{2,1,0}) while(%first), condition=%condition, body=%body, metadata={op_name="jit(train_step)/transpose(jvp())/while"}
  %all-reduce.1 = f32[64,64]{1,0} all-reduce(%g.1), channel_id=11, replica_groups=mesh['data'=2,'fsdp'=4] {'data'}, to_apply=%add, metadata={op_name="jit(train_step)/reduce_sum"}
  ROOT %scattered = f32[16,64]{1,0} fusion(%all-reduce.1), kind=kCustom, calls=%scatter_gradients, metadata={op_name="jit(train_step)/add"}, backend_config={"window_config":{"estimated_cycles":"50"}}
}
"""  # noqa: E501


def summary():
    return hlo.summarize(PROGRAM, devices=8, layers=6, parameters=frozenset({6 * 16 * 64}))


def of_kind(kind):
    return [one for one in summary().collectives if one.kind == kind]


def test_a_loop_s_cycles_count_as_often_as_it_runs():
    assert summary().cycles == 6 * (100 + 1000) + 50


def test_a_loop_s_products_count_as_often_as_it_runs():
    assert summary().flops == 6 * 2 * 8 * 64 * 64


def test_the_operations_that_take_longest_come_first():
    source, part = summary().slowest[0]
    assert source.endswith("dot_general")
    assert part == pytest.approx(6600 / 6650)


def test_a_collective_spread_over_two_fusions_counts_once():
    (gather,) = of_kind("all-gather")
    assert (gather.bytes, gather.group, gather.times) == (64 * 64 * 2, 4, 6)
    assert gather.is_async
    assert gather.wire_bytes == 6 * 64 * 64 * 2 * 3 / 4


def test_a_reduce_scatter_has_the_bytes_that_go_in():
    (scatter,) = of_kind("reduce-scatter")
    assert (scatter.bytes, scatter.group, scatter.times) == (64 * 64 * 4, 4, 1)
    assert not scatter.is_async


def test_an_all_reduce_travels_twice():
    (reduce,) = of_kind("all-reduce")
    assert (reduce.group, reduce.wire_bytes) == (2, 2 * 64 * 64 * 4 / 2)


def test_activations_are_what_the_backward_loop_gets_and_no_parameter():
    assert summary().kept == 6 * 8 * 64 * 2


TRAFFIC = """
%update_one_layer (p: f32[6,8,64], q: s32[], r: f32[8,64]) -> f32[6,8,64] {
  %p = f32[6,8,64]{2,1,0} parameter(0)
  %q = s32[] parameter(1)
  %r = f32[8,64]{1,0} parameter(2)
  %one = f32[1,8,64]{2,1,0} bitcast(%r)
  ROOT %updated = f32[6,8,64]{2,1,0} dynamic-update-slice(%p, %one, %q)
}

%read_one_layer (p: f32[6,8,64], q: s32[]) -> f32[1,8,64] {
  %p.1 = f32[6,8,64]{2,1,0} parameter(0)
  %q.1 = s32[] parameter(1)
  ROOT %layer = f32[1,8,64]{2,1,0} dynamic-slice(%p.1, %q.1), dynamic_slice_sizes={1,8,64}
}

ENTRY %main (a: f32[6,8,64], i: s32[]) -> f32[6,8,64] {
  %a = f32[6,8,64]{2,1,0:T(8,128)} parameter(0)
  %i = s32[]{:T(128)S(6)} parameter(1)
  %read = f32[1,8,64]{2,1,0:T(8,128)S(1)} fusion(%a, %i), kind=kLoop, calls=%read_one_layer
  %here = f32[8,64]{1,0:T(8,128)S(1)} bitcast(%read)
  ROOT %written = f32[6,8,64]{2,1,0:T(8,128)} fusion(%a, %i, %here), calls=%update_one_layer
}
"""


def test_memory_traffic_is_the_slices_that_fusions_touch_outside_of_the_chip():
    work = hlo.summarize(TRAFFIC, devices=1).work
    assert [one.moved for one in work] == [8 * 64 * 4, 8 * 64 * 4]


COUNTED_BY_TWO = """
%body (c: (u32[], f32[2])) -> (u32[], f32[2]) {
  %two = u32[]{:T(128)} constant(2)
  %c = (u32[]{:T(128)}, f32[2]{0}) parameter(0)
  %counter = u32[]{:T(128)} get-tuple-element(%c), index=0
  %x = f32[2]{0} get-tuple-element(%c), index=1
  %more = u32[]{:T(128)} add(%counter, %two)
  %product = f32[2,2]{1,0} dot(%x, %x), lhs_contracting_dims={}
  ROOT %next = (u32[]{:T(128)}, f32[2]{0}) tuple(%more, %x)
}

%condition (c: (u32[], f32[2])) -> pred[] {
  %eight = u32[]{:T(128)} constant(8)
  %c.1 = (u32[]{:T(128)}, f32[2]{0}) parameter(0)
  %counter.1 = u32[]{:T(128)} get-tuple-element(%c.1), index=0
  ROOT %lt = pred[] compare(%counter.1, %eight), direction=LT
}

ENTRY %main (c: (u32[], f32[2])) -> (u32[], f32[2]) {
  %c.2 = (u32[]{:T(128)}, f32[2]{0}) parameter(0)
  ROOT %while = (u32[]{:T(128)}, f32[2]{0}) while(%c.2), condition=%condition, body=%body
}
"""


def test_a_loop_that_counts_by_two_runs_half_as_often():
    assert hlo.summarize(COUNTED_BY_TWO, devices=1).flops == 4 * 2 * 4


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups={{0,2,4},{1,3,5}}", 3),
        ("replica_groups={}", 8),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", 4),
    ],
)
def test_groups_are_read_in_each_way_they_are_written(written, size):
    assert hlo.group_size(written, devices=8) == size


def products(instruction, operands):
    text = "ENTRY %main (a: f32[1]) -> f32[1] {\n"
    text += "".join(f"  %{name} = {shape} parameter(0)\n" for name, shape in operands.items())
    return hlo.summarize(f"{text}  ROOT %r = {instruction}\n}}\n", devices=1).flops


def test_a_batched_product_written_as_a_convolution_counts_as_a_product():
    """A TPU writes the batch as a window: position b of the kernel meets position b alone."""
    flops = products(
        "f32[3,5,7]{2,1,0} convolution(%a, %b), window={size=3 stride=2 pad=2_2 lhs_dilate=3}, "
        "dim_labels=0bf_0oi->0bf",
        {"a": "f32[3,5,11]{2,1,0}", "b": "f32[3,7,11]{2,1,0}"},
    )
    assert flops == 2 * 3 * 5 * 7 * 11


def test_a_dot_counts_its_contracted_sizes():
    flops = products(
        "f32[4,5,7]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, "
        "rhs_batch_dims={0}, rhs_contracting_dims={1}",
        {"a": "f32[4,5,6]{2,1,0}", "b": "f32[4,6,7]{2,1,0}"},
    )
    assert flops == 2 * 4 * 5 * 6 * 7


def test_the_compiler_s_refusal_is_read():
    base = dataclasses.replace(some_plan(), parameters=GIB, optimizer=GIB)
    said = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required (67.00G) exceeds available HBM (15.75G).\nSee the page."
    )
    fields = out_of_memory(said, base)
    assert not fields["fits"]
    assert fields["memory"] == 67 * GIB
    assert "15.75G" in fields["problem"]
    assert "See" not in fields["problem"]


def some_plan(**fields):
    plan = Plan(
        topology="v5e:4x4",
        mesh=(1, 16, 1),
        rows=64,
        remat="full",
        accumulation_steps=1,
        method="compiled",
        fits=True,
        parameters=2.0 * GIB,
        optimizer=1.0 * GIB,
        activations=3.0 * GIB,
        temporaries=4.0 * GIB,
        memory=10.0 * GIB,
        limit=15.75 * GIB,
        model_flops=1e15,
        tokens=1000.0,
        compute_seconds=0.5,
        roofline_seconds=0.3,
        collective_seconds=0.35,
        exposed_seconds=0.1,
        peak_flops=16 * 197e12,
        collectives=(Collective("all-gather", 5e6, 4e6, 3.0, True, "jit(f)/jvp()/while/body/dot"),),
    )
    return dataclasses.replace(plan, **fields)


def test_overlapping_collectives_cost_nothing_until_there_are_too_many():
    assert some_plan().seconds == pytest.approx(0.6)
    assert some_plan().bound == pytest.approx(0.4)
    assert some_plan(collective_seconds=2.0).seconds == 2.0
    assert some_plan().utilization == pytest.approx(1e15 / 0.6 / (16 * 197e12))


def printed(*things):
    file = io.StringIO()
    console = Console(file=file, width=160)
    for thing in things:
        console.print(thing)
    return file.getvalue()


def test_the_best_that_fits_is_marked():
    plans = [
        some_plan(remat="none", fits=False, roofline_seconds=0.1),
        some_plan(remat="minimal", roofline_seconds=0.2),
        some_plan(remat="full"),
    ]
    text = printed(tables.choices_table(plans, search.best(plans), "Choices"))
    (marked,) = [line for line in text.splitlines() if "->" in line]
    assert "minimal" in marked


def test_a_description_names_memory_by_kind_collectives_and_utilization():
    file = io.StringIO()
    topology = parse_topology("v5e:4x4")
    tables.describe(some_plan(), topology, Console(file=file, width=160))
    text = file.getvalue()
    for words in ("parameters", "optimizer", "activations", "temporaries", "5.75 GiB are left"):
        assert words in text
    assert "all-gather" in text
    assert "forward/loop/dot" in text
    assert f"{some_plan().utilization:.1%}" in text


def test_what_does_not_fit_is_said_with_how_much():
    text = tables.verdict(some_plan(fits=False, memory=20.75 * GIB))
    assert "5.00 GiB too much" in text


def test_a_topology_says_what_is_allowed():
    assert parse_topology("v5p:4x4x4").size == 64
    for wrong in ("v9:2x2", "v5e", "v5e:4x", "v5e:0x4"):
        with pytest.raises(ConfigError, match="v5e:4x4"):
            parse_topology(wrong)


@pytest.mark.parametrize(
    ("name", "links"),
    [("v5e:4x4", 2), ("v5e:16x16", 4), ("v4:2x2x1", 2), ("v5p:4x4x4", 6), ("v6e:4x4", 2)],
)
def test_only_wired_rings_have_two_links_a_dimension(name, links):
    topology = parse_topology(name)
    assert topology.link_bandwidth == links * topology.chip.link_bandwidth


def test_peaks_are_those_that_training_measures_against():
    for chip in CHIPS.values():
        assert chip.kind == "CPU" or PEAK_FLOPS[chip.kind] == chip.peak_flops


def test_the_state_s_bytes_follow_from_the_shardings():
    plan = known_before(TINY, parse_topology("cpu:8"))
    model = TINY.model
    inner = model.num_heads * model.d_kv
    matrices = 3 * (4 * model.d_model * inner + 3 * model.d_model * model.d_ff)
    matrices += 3 * (8 * model.d_model * inner + 3 * model.d_model * model.d_ff)
    split = 4 * (matrices + 2 * model.vocabulary_size * model.d_model) / 4  # fsdp 2, tensor 2
    norms = 4 * model.d_model * (3 * 2 + 3 * 3 + 2)
    biases = 4 * 2 * 32 * model.num_heads / 2
    assert plan.parameters == split + norms + biases
    assert plan.optimizer == pytest.approx(2 * plan.parameters, abs=64)


def test_arithmetic_sees_what_remat_and_rows_cost():
    topology = parse_topology("h100:8")

    def memory(remat, rows):
        return plan_by_arithmetic(search.with_choice(TINY, remat=remat, rows=rows), topology).memory

    assert memory("none", 64) > memory("minimal", 64) > memory("full", 64) > memory("full", 16)


def test_candidates_divide_the_rows_heads_and_devices():
    found = list(search.candidates(TINY, parse_topology("cpu:8")))
    meshes = {dataclasses.astuple(one.mesh) for one in found}
    assert len(found) == 3 * len(meshes)
    assert (1, 8, 1) in meshes
    assert (1, 2, 4) in meshes
    assert all(math.prod(mesh) == 8 and mesh[2] <= 4 for mesh in meshes)


def fits_up_to(limit):
    def weigh(config):
        rows = config.batch.rows
        return some_plan(rows=rows, fits=rows <= limit)

    return weigh


@pytest.mark.parametrize("guess", [4, 16, 32, 64, 4096])
def test_the_largest_batch_is_found_from_any_first_guess(guess):
    largest, tried = search.largest_batch(
        TINY, parse_topology("cpu:8"), fits_up_to(guess), fits_up_to(32)
    )
    assert largest.rows == 32
    assert [plan.rows for plan in tried] == sorted(plan.rows for plan in tried)


def test_no_batch_may_fit():
    largest, _ = search.largest_batch(TINY, parse_topology("cpu:8"), fits_up_to(64), fits_up_to(0))
    assert largest is None


def test_a_candidate_that_the_compiler_refuses_gives_its_place_to_the_next():
    asked = []

    def compile_one(config):
        asked.append(config)
        return some_plan(fits=len(asked) > 1)

    search.table(TINY, parse_topology("cpu:8"), lambda _: some_plan(), compile_one, compiled=2)
    assert len(asked) == 3


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The tiny step for eight CPU devices, and the folder that remembers it."""
    folder = tmp_path_factory.mktemp("plans")
    return plan_by_compiling(TINY, parse_topology("cpu:8"), folder), folder


def test_the_real_step_is_compiled_without_weights_or_devices(compiled):
    plan, _ = compiled
    assert plan.method == "compiled"
    assert plan.fits
    assert plan.activations > 0
    assert plan.temporaries > 0
    parts = (plan.parameters, plan.optimizer, plan.activations, plan.temporaries)
    assert plan.memory == pytest.approx(sum(parts))
    assert plan.seconds == 0  # XLA's CPU compiler estimates no time


def test_the_program_s_products_are_the_model_s_and_the_recomputed_ones(compiled):
    plan, _ = compiled
    assert 1.1 < plan.program_flops * 8 / plan.model_flops < 2.5


def test_a_sharded_step_talks_in_every_layer(compiled):
    plan, _ = compiled
    kinds = {one.kind for one in plan.collectives}
    assert {"all-gather", "all-reduce"} <= kinds
    assert any(one.times >= 3 for one in plan.collectives)


def test_what_was_compiled_once_is_read(compiled, monkeypatch):
    plan, folder = compiled
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *_, **__: pytest.fail("compiled"))
    assert plan_by_compiling(TINY, parse_topology("cpu:8"), folder) == plan


def test_the_batch_has_the_pipeline_s_shapes():
    shapes = {name: array.shape for name, array in abstract_batch(TINY).items()}
    assert shapes["encoder_tokens"] == (16, 32)
    assert shapes["decoder_targets"] == (16, 16)
    assert shapes["pair_members"] == (32, 2)


def test_the_command_plans_for_cpus_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
    (tmp_path / "tiny.json").write_text(to_json(TINY))
    arguments = ["--config", str(tmp_path / "tiny.json"), "--topology", "cpu:2", "--only"]
    arguments += ["--cache", str(tmp_path / "plans"), "--mesh.data", "1", "--mesh.tensor", "1"]
    arguments += ["--objective.method", "cross_entropy", "--model.num-layers", "1"]
    assert command.main([*arguments, "--model.num-decoder-layers", "1", "--batch.rows", "4"]) == 0
    text = capsys.readouterr().out
    assert "cpu:2, mesh 1 x 2 x 1, 4 rows" in text
    assert "Collectives" in text
    assert list((tmp_path / "plans").glob("tiny-cpu-2-*.gz"))


def test_the_command_compares_meshes_and_batches(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "150")
    (tmp_path / "tiny.json").write_text(to_json(TINY))
    arguments = ["--config", str(tmp_path / "tiny.json"), "--topology", "h100:8"]
    assert command.main(arguments) == 0
    text = capsys.readouterr().out
    assert "Meshes and remat policies for 16 rows on h100:8" in text
    assert "Batches on mesh 2 x 2 x 2, remat full" in text
    assert text.count("->") == 2


MACHINES = {
    "v4-8": "v4:2x2x1",
    "v5e-16": "v5e:4x4",
    "v5e-256": "v5e:16x16",
    "v5p-128": "v5p:4x4x4",
    "v6e-16": "v6e:4x4",
    "h100-8": "h100:8",
}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("size", ["small", "base", "large", "xl", "xxl"])
def test_flan_t5_fits_every_machine_that_its_config_names(machine, size, capsys):
    config = f"{ROOT / 'configs' / 'flan_t5.py'}:{size},{machine}"
    arguments = ["--config", config, "--topology", MACHINES[machine], "--arithmetic"]
    assert command.main([*arguments, "--only", "--markdown"]) == 0
    assert f"| flan_t5_{size}_{machine} | {MACHINES[machine]} | 1 x " in capsys.readouterr().out


def test_a_machine_that_is_not_planned_for_is_refused(capsys):
    config = f"{ROOT / 'configs' / 'flan_t5.py'}:xl,v9-8"
    assert command.main(["--config", config, "--topology", "h100:8"]) == 1
    assert "there is no machine 'v9-8'; machines: v4-8, " in capsys.readouterr().err


def test_a_topology_that_is_none_ends_in_one_sentence(tmp_path, capsys):
    (tmp_path / "tiny.json").write_text(to_json(TINY))
    assert command.main(["--config", str(tmp_path / "tiny.json"), "--topology", "abacus:2"]) == 1
    assert "must be CHIP:SHAPE" in capsys.readouterr().err


def test_without_the_tpu_compiler_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install libtpu"):
        parse_topology("v5e:2x2").devices()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler, libtpu, is not installed"
)
def test_a_tpu_that_is_not_here_is_compiled_for():
    plan = plan_by_compiling(
        dataclasses.replace(TINY, mesh=MeshConfig(data=1, fsdp=4)), parse_topology("v5e:2x2"), None
    )
    assert plan.fits
    assert plan.compute_seconds > 0
    assert 0 < plan.utilization < 1
    assert plan.collectives
    assert np.isfinite(plan.memory)
