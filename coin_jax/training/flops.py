"""How many floating-point operations a batch asks for, for model FLOP/s and utilization."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from coin_jax.config import ModelConfig


def model_flops(
    config: ModelConfig, encoder_segment_ids_BxS: Any, decoder_segment_ids_BxT: Any, segments: int
) -> Any:
    """Operations of the matrix products on real tokens, forward and backward: a float32 scalar.

    A multiply-add counts 2. The backward pass has two products for each of the forward pass, so
    all is counted three times (Chowdhery et al. 2022, appendix B; Kaplan et al. 2020, section 2.1).
    Counted: projections, feed-forward, scores and weighted values inside each segment (the causal
    half of them in decoder self-attention), the head at every decoder position. Not counted:
    padding, masked scores, recomputation, norms, softmax, the optimizer. This is work that the
    model needs, and not what a program happens to execute.
    """
    numbers = jnp.arange(1, segments + 1)[:, None]
    source_BxG = (encoder_segment_ids_BxS[:, None, :] == numbers).sum(-1).astype(jnp.float32)
    target_BxG = (decoder_segment_ids_BxT[:, None, :] == numbers).sum(-1).astype(jnp.float32)
    source, target = source_BxG.sum(), target_BxG.sum()

    inner = config.num_heads * config.d_kv
    projection = config.d_model * inner  # multiply-adds a token, one of query, key, value, out
    matrices = 3 if config.feed_forward.startswith("gated-") else 2
    feed_forward = matrices * config.d_model * config.d_ff

    def attention(score_count: Any) -> Any:
        return 2 * inner * score_count  # scores, and values weighted by them

    encoder = (4 * projection + feed_forward) * source + attention((source_BxG**2).sum())
    decoder = (
        (6 * projection + feed_forward) * target  # self-attention, and cross-attention's query, out
        + 2 * projection * source  # cross-attention's key and value
        + attention((target_BxG * (target_BxG + 1) / 2).sum())
        + attention((source_BxG * target_BxG).sum())
    )
    head = config.d_model * config.vocabulary_size * target
    forward = 2 * (config.num_layers * encoder + config.num_decoder_layers * decoder + head)
    return 3 * forward
