"""What is read from the text of a compiled program, on short programs written by hand."""

import pytest

from coin_jax.planning import hlo, kernels, program
from coin_jax.planning.chips import CHIPS

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


KERNELS = """
ENTRY %main (q: bf16[8,512,256]) -> bf16[8,512,256] {
  %q = bf16[8,512,256]{2,1,0} parameter(0)
  %attention.3 = bf16[8,512,256]{2,1,0} custom-call(%q, %q, %q), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"TUzvUg==","cost_estimate":{"flops":"4000","transcendentals":"8388608","bytes_accessed":"7","remote_bytes_transferred":"0"}}}
  ROOT %attention_backward.7 = (bf16[8,512,256]{2,1,0}, f32[4,512,512]{2,1,0}) custom-call(%attention.3), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"bytes_accessed":"9","flops":"9000","remote_bytes_transferred":"0","transcendentals":"8388608"}}}
}
"""  # noqa: E501


def test_kernels_tell_their_scores_and_programs_in_any_order():
    work = hlo.summarize(KERNELS, devices=1).work
    assert [one.kernel for one in work] == [
        hlo.Kernel("attention", 8 * 4 * 512 * 512, 8 * 2),
        hlo.Kernel("attention_backward", 8 * 4 * 512 * 512, 8 * 2),
    ]
    assert [one.flops for one in work] == [4000, 9000]


def test_a_kernel_takes_what_its_schedule_says_shared_by_the_cores_of_a_chip():
    kernel = hlo.Kernel("attention", 10 * 1024, 3)
    assert kernels.cycles(CHIPS["v5e"], kernel) == pytest.approx(10 * 8.0 + 3 * 379)
    assert kernels.cycles(CHIPS["v5p"], kernel) == pytest.approx((10 * 8.2 + 3 * 451) / 2)
    assert kernels.cycles(CHIPS["v5e"], kernel._replace(name="another")) == 0


PERMUTED = """
ENTRY %main (a: bf16[1000,1]) -> bf16[1000,1] {
  %a = bf16[1000,1]{1,0} parameter(0)
  %first = (bf16[1000,1]{1,0}, bf16[1000,1]{1,0}, u32[], u32[]) collective-permute-start(%a), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %second = (bf16[1000,1]{1,0}, bf16[1000,1]{1,0}, u32[], u32[]) collective-permute-start(%a), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %work = bf16[1000,1]{1,0} multiply(%a, %a), backend_config={"estimated_cycles":"3000"}
  %got = bf16[1000,1]{1,0} collective-permute-done(%first)
  %unknown = bf16[1000,1]{1,0} negate(%a), backend_config={"estimated_cycles":"9223372036854775807"}
  ROOT %other = bf16[1000,1]{1,0} collective-permute-done(%second)
}
"""  # noqa: E501


def test_a_schedule_waits_for_what_it_sent_too_late():
    summary = hlo.summarize(PERMUTED, devices=2)
    assert summary.cycles == 3000
    assert sum(one.wire_bytes for one in summary.collectives) == 4000
    ((times, events),) = summary.schedules
    assert times == 1
    # 2000 bytes each: one after the other they arrive after 2 and 4 seconds; 3 are computed in.
    assert program.waits(events, clock=1000.0, rate=1000.0) == pytest.approx(1.0)
    assert program.waits(events, clock=100.0, rate=1000.0) == 0
