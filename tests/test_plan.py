"""What `coin_jax.plan` promises: by arithmetic, compiled, and end to end."""

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
from coin_jax.planning import search, tables
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
        some_plan(remat="wide", roofline_seconds=0.1, method="arithmetic"),
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

    assert memory("none", 64) > memory("minimal", 64) > memory("wide", 64)
    assert memory("wide", 64) > memory("full", 64) > memory("full", 16)


def test_candidates_divide_the_rows_heads_and_devices():
    found = list(search.candidates(TINY, parse_topology("cpu:8")))
    meshes = {dataclasses.astuple(one.mesh) for one in found}
    assert len(found) == 4 * len(meshes)
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
