"""A plan without a compiler: for GPUs that are not here, and to know what is worth compiling.

Counted are the large things alone. Letters as in model/t5.py; `shards` are the devices that share
the rows. docs/plan.md sets its answers beside the compiler's.
"""

from __future__ import annotations

import dataclasses

from coin_jax.config import Config
from coin_jax.planning import kernels
from coin_jax.planning.chips import Topology
from coin_jax.planning.hlo import Kernel
from coin_jax.planning.program import (
    MEMORY_EFFICIENCY,
    PRODUCT_EFFICIENCY,
    Plan,
    known_before,
)

SCORE_BYTES = {"forward": 12, "backward": 20}
"""Read and written a score: float32 out of the product, through the softmax, bfloat16 after it."""


def plan_by_arithmetic(config: Config, topology: Topology) -> Plan:
    base = known_before(config, topology)
    data, fsdp, tensor = base.mesh
    model, batch, chip = config.model, config.batch, topology.chip
    remat = model.remat
    passes = config.optimizer.accumulation_steps
    rows = batch.rows / (data * fsdp)  # of a device in a step
    part = rows / passes  # of a device at a time
    S, T, D, V = batch.encoder_length, batch.decoder_length, model.d_model, model.vocabulary_size
    inner, F = model.num_heads * model.d_kv / tensor, model.d_ff / tensor
    N, L, K = model.num_heads / tensor, model.num_layers, model.num_decoder_layers
    matrices = 3 if model.feed_forward.startswith("gated-") else 2
    width = {"float32": 4, "bfloat16": 2}[model.compute_dtype]

    # A layer's products, multiply-adds of one row on one device.
    encoder_layer = S * D * (4 * inner + matrices * F)
    decoder_layer = T * D * (6 * inner + matrices * F) + 2 * S * D * inner
    encoder_scores, decoder_scores = N * S * S, N * T * (T + S)
    attention = 2 * model.d_kv * (L * encoder_scores + K * decoder_scores)
    dense = L * encoder_layer + K * decoder_layer
    head = T * D * V / tensor
    is_fused = topology.is_tpu and model.attention != "plain"
    narrow = L * 4 * S * D * inner + K * (6 * T + 2 * S) * D * inner
    scored = 0 if is_fused else attention  # the kernel's results are kept
    again = {
        "none": 0, "minimal": scored, "wide": scored + narrow, "full": attention + dense
    }[remat]  # fmt: skip
    again *= 1 if passes == 1 else 2
    extra = 0 if passes == 1 else attention + dense  # the forward pass that keeps pooled states
    flops = 2 * rows * (3 * (dense + attention + head) + again + extra)

    scores = rows * (L * encoder_scores + K * decoder_scores)
    forwards = 1 + (remat != "none") + (passes > 1)
    score_bytes = scores * (SCORE_BYTES["backward"] + forwards * SCORE_BYTES["forward"])
    in_kernels = 0.0
    if is_fused:
        score_bytes = 0
        programs = rows * N / 2 * (L + 2 * K)
        runs = {"attention": 1 + (remat == "full") + (passes > 1), "attention_backward": 1}
        for name, count in runs.items():
            in_kernels += count * kernels.cycles(chip, Kernel(name, scores, programs))
    token_values = rows * (L * S + K * T) * (12 * D + (matrices + 1) * F + 6 * inner)
    token_bytes = token_values * width * (2 + forwards)
    state_bytes = 8 * base.parameters + 2 * base.optimizer
    traffic = score_bytes + token_bytes + state_bytes

    # What is kept for the backward pass.
    kept = width * D * (L * S + K * T) * part
    if remat != "full":
        kept += width * part * (L * S + K * T) * (matrices - 1) * F
        kept += width * part * (L * S + 2 * K * T) * inner * is_fused
    if remat in ("none", "minimal"):
        kept += width * part * L * S * (3 * inner + 2 * D)
        kept += width * part * K * (T * (4 * inner + 3 * D) + 2 * S * inner)
    if remat == "none":
        kept += 0 if is_fused else (4 + 2 * width) * scores / passes
        kept += width * part * (L * S + K * T) * (8 * D + 2 * F)
    working = part * max(
        (0 if is_fused else 12) * encoder_scores + width * S * (6 * inner + 6 * D),
        width * S * (4 * F + 6 * D),
    )
    layer = (4 * D * inner + matrices * D * F) * width
    gradients = base.parameters * (1 if passes == 1 else 2)
    vocabulary = D * V * (4 + width + 4) / tensor + 2 * 4 * D * V / tensor
    temporaries = working + 2 * layer + gradients + vocabulary

    # What travels. The weights a device computes with, gathered over fsdp in each pass; gradients
    # scattered back; over data they are summed; over tensor, activations are.
    weights = (L + K) * layer + 2 * D * inner * K * width + 2 * 4 * D * V / tensor
    rounds = (forwards + 1 + 1) * passes
    over_fsdp = weights * (fsdp - 1) / fsdp * rounds
    over_data = 2 * base.parameters * (data - 1) / data
    sums = rows * width * D * (2 * L * S + 3 * K * T) * (1 + forwards)
    over_tensor = 2 * sums * (tensor - 1) / tensor
    received = over_fsdp + over_data + over_tensor

    memory = base.parameters + base.optimizer + kept + temporaries
    plan = dataclasses.replace(
        base,
        method="arithmetic",
        fits=memory <= base.limit,
        activations=kept,
        temporaries=temporaries,
        memory=memory,
        program_flops=flops,
    )
    if not (chip.peak_flops and topology.link_bandwidth):
        return plan
    return dataclasses.replace(
        plan,
        roofline_seconds=flops / chip.peak_flops / PRODUCT_EFFICIENCY
        + traffic / chip.memory_bandwidth / MEMORY_EFFICIENCY
        + (in_kernels / chip.clock if in_kernels else 0.0),
        collective_seconds=received / topology.link_bandwidth,
        exposed_seconds=(over_tensor + over_data) / topology.link_bandwidth,
    )
