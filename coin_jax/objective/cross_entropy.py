"""The vocabulary head fused with its cross-entropy, on the positions that carry a target.

Logits are the largest array of a T5 step: 16 rows x 48 targets x 250,000 pieces are 0.8 GB in
float32, and their gradient as much again. Three things keep them small here:

- Positions of weight 0 (padding) are sorted behind the others and never reach the head. Each batch
  shard sorts its own, so on a mesh no hidden state changes device.
- The rest go through the head in chunks, in a loop whose trip count is known at run time only, so
  it costs what the real targets cost.
- Nothing differentiates through that loop. The gradient of the loss is written down, computed
  beside the loss from the logits of the moment, and scaled in the backward pass by the scalar
  cotangent: no logits are kept, none are computed twice.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from coin_jax.parallel.sharding import batch_shard_count, constrain


@dataclasses.dataclass(frozen=True)
class _Options:
    """What is known when the program is traced."""

    label_smoothing: float
    z_loss: float
    chunk: int


def head_cross_entropy(
    hidden_BxTxD: jax.Array,
    kernel_DxV: jax.Array,
    targets_BxT: jax.Array,
    weights_BxT: jax.Array,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk: int = 256,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted cross-entropy of `hidden @ kernel` against `targets`, and what to report of it.

    With logits l, Z = sum_v exp(l_v) and e = label_smoothing, a position's loss is

        log Z - (1 - e) l_target - e mean_v(l_v) + z_loss (log Z)^2

    that is, the cross-entropy with (1 - e) onehot + e / V over the whole vocabulary (Szegedy et
    al. 2016, section 7; optax's definition, while T5X spreads e over the V - 1 others and subtracts
    the entropy), plus T5X's z-loss.

    hidden_BxTxD: float32 or bfloat16; the matrix products take their inputs in this dtype. Logits,
        softmax and sums are float32. The axes before D may be any, the first is the sharded one.
    kernel_DxV: float32; a transposed view of an embedding is as good. V may be sharded.
    targets_BxT: int32 in [0, V); any value where the weight is 0.
    weights_BxT: float32; 0 leaves a position out. Takes no gradient.
    chunk: positions, of each batch shard, whose logits exist at a time.

    Returns the float32 sum over positions of weight x loss, and, without gradient,
        nll: float32 [B, T], log Z - l_target, 0 where the weight is 0
        correct: bool [B, T], the target has the highest logit (or shares it); False at weight 0
        z_loss: float32 scalar, the part of the sum that z_loss adds.
    Reverse-mode only, and once.
    """
    if chunk < 1:
        raise ValueError(f"chunk = {chunk}: the head needs at least one position at a time.")
    if targets_BxT.shape != hidden_BxTxD.shape[:-1] or weights_BxT.shape != targets_BxT.shape:
        raise ValueError(
            f"hidden {hidden_BxTxD.shape}, targets {targets_BxT.shape} and weights "
            f"{weights_BxT.shape} must agree in all axes but hidden's last."
        )
    options = _Options(float(label_smoothing), float(z_loss), int(chunk))
    return _head_cross_entropy(options, hidden_BxTxD, kernel_DxV, targets_BxT, weights_BxT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _head_cross_entropy(options, hidden, kernel, targets, weights):
    loss, aux, _, _ = _evaluate(options, hidden, kernel, targets, weights, with_gradients=False)
    return loss, aux


def _forward(options, hidden, kernel, targets, weights):
    loss, aux, d_hidden, d_kernel = _evaluate(
        options, hidden, kernel, targets, weights, with_gradients=True
    )
    return (loss, aux), (d_hidden, d_kernel)


def _backward(options, residuals, cotangents):
    d_hidden, d_kernel = residuals
    d_loss, _ = cotangents  # the rest is for reporting
    return (d_loss * d_hidden).astype(d_hidden.dtype), d_loss * d_kernel, None, None


_head_cross_entropy.defvjp(_forward, _backward)


def _evaluate(options: _Options, hidden, kernel_DxV, targets, weights, *, with_gradients: bool):
    """(loss, aux, d loss / d hidden, d loss / d kernel); the last two None where not asked for.

    X stands for batch shards, N for the positions of one, C for those of a chunk.
    """
    shape, D = targets.shape, hidden.shape[-1]
    X = batch_shard_count()
    if shape[0] % X:
        X = 1  # such a batch is not sharded either
    hidden_XxNxD = constrain(hidden.reshape(X, -1, D), "batch", None, None)
    weights_XxN = constrain(weights.reshape(X, -1).astype(jnp.float32), "batch", None)
    targets_XxN = constrain(targets.reshape(X, -1), "batch", None)
    N = targets_XxN.shape[1]
    C = min(options.chunk, N)

    # Weighted positions first, in their order; the array is padded to whole chunks.
    used_XxN = weights_XxN != 0
    order_XxN = jnp.argsort(~used_XxN, axis=1, stable=True)
    order_XxM = jnp.pad(order_XxN, ((0, 0), (0, -N % C)))
    used_X = used_XxN.sum(axis=1)
    trips = (used_X.max() + C - 1) // C

    # Gathered once, if it is sharded over D, and not once a chunk.
    kernel_DxV = constrain(kernel_DxV, None, "vocab")
    work_kernel_DxV = kernel_DxV.astype(hidden.dtype)
    vocabulary_V = jnp.arange(kernel_DxV.shape[1], dtype=jnp.int32)

    def one_chunk(index, carry):
        order_XxC = jax.lax.dynamic_slice_in_dim(order_XxM, index * C, C, axis=1)
        take = functools.partial(_take_rows, order_XxC=order_XxC)
        there_XxC = index * C + jnp.arange(C) < used_X[:, None]
        weights_XxC = jnp.where(there_XxC, take(weights_XxN), 0)
        hidden_XxCxD = jnp.where(there_XxC[..., None], take(hidden_XxNxD), 0)
        logits_XxCxV = jnp.einsum(
            "xcd,dv->xcv", hidden_XxCxD, work_kernel_DxV, preferred_element_type=jnp.float32
        )
        logits_XxCxV = constrain(logits_XxCxV, "batch", None, "vocab")
        # A comparison and a sum instead of a gather: V may be cut over devices.
        is_target_XxCxV = take(targets_XxN)[..., None] == vocabulary_V
        parts, d_logits_XxCxV = _position_losses(options, logits_XxCxV, is_target_XxCxV)
        written = {
            name: jnp.where(there_XxC, part, jnp.zeros_like(part)) for name, part in parts.items()
        }
        if with_gradients:
            d_logits_XxCxV = (weights_XxC[..., None] * d_logits_XxCxV).astype(hidden.dtype)
            d_logits_XxCxV = constrain(d_logits_XxCxV, "batch", None, "vocab")
            written["d_hidden"] = jnp.einsum("xcv,dv->xcd", d_logits_XxCxV, work_kernel_DxV)
            # Summed over the shards once, after the loop.
            d_kernel_XxDxV = carry["d_kernel"] + jnp.einsum(
                "xcd,xcv->xdv", hidden_XxCxD, d_logits_XxCxV, preferred_element_type=jnp.float32
            )
            carry = carry | {"d_kernel": constrain(d_kernel_XxDxV, "batch", None, "vocab")}
        return carry | {
            name: jax.lax.dynamic_update_slice_in_dim(carry[name], part, index * C, axis=1)
            for name, part in written.items()
        }

    M = order_XxM.shape[1]
    carry: dict[str, Any] = {
        "loss": jnp.zeros((X, M), jnp.float32),
        "nll": jnp.zeros((X, M), jnp.float32),
        "z": jnp.zeros((X, M), jnp.float32),
        "correct": jnp.zeros((X, M), bool),
    }
    if with_gradients:
        carry["d_hidden"] = jnp.zeros((X, M, D), hidden.dtype)
        carry["d_kernel"] = constrain(
            jnp.zeros((X, *kernel_DxV.shape), jnp.float32), "batch", None, "vocab"
        )
    carry = jax.lax.fori_loop(0, trips, one_chunk, carry)

    # Back to the places they came from: where each position stands in `order`.
    place_XxN = jnp.argsort(order_XxN, axis=1)
    back = {
        name: constrain(
            _take_rows(carry[name], place_XxN), "batch", *[None] * (carry[name].ndim - 1)
        )
        for name in carry
        if name != "d_kernel"
    }
    loss = (weights_XxN * back["loss"]).sum()
    aux = {
        "nll": back["nll"].reshape(shape),
        "correct": back["correct"].reshape(shape),
        "z_loss": (weights_XxN * back["z"]).sum(),
    }
    if not with_gradients:
        return loss, aux, None, None
    d_kernel_DxV = constrain(carry["d_kernel"].sum(axis=0), "embed", "vocab")
    return loss, aux, back["d_hidden"].reshape(hidden.shape), d_kernel_DxV.astype(kernel_DxV.dtype)


def _position_losses(options: _Options, logits_XxCxV: jax.Array, is_target_XxCxV: jax.Array):
    """The parts of each position's loss [X, C], and its gradient in the logits [X, C, V]."""
    V = logits_XxCxV.shape[-1]
    highest_XxC = logits_XxCxV.max(axis=-1)
    log_z_XxC = highest_XxC + jnp.log(jnp.exp(logits_XxCxV - highest_XxC[..., None]).sum(axis=-1))
    target_XxC = jnp.where(is_target_XxCxV, logits_XxCxV, 0).sum(axis=-1)
    z_XxC = options.z_loss * jnp.square(log_z_XxC)
    smoothing = options.label_smoothing
    expected_XxC = target_XxC
    if smoothing:
        expected_XxC = (1 - smoothing) * target_XxC + smoothing * logits_XxCxV.mean(axis=-1)
    parts = {
        "loss": log_z_XxC - expected_XxC + z_XxC,
        "nll": log_z_XxC - target_XxC,
        "z": z_XxC,
        "correct": target_XxC >= highest_XxC,
    }
    softmax_XxCxV = jnp.exp(logits_XxCxV - log_z_XxC[..., None])
    d_log_z_XxC = 1 + 2 * options.z_loss * log_z_XxC
    d_logits_XxCxV = d_log_z_XxC[..., None] * softmax_XxCxV - (
        (1 - smoothing) * is_target_XxCxV + smoothing / V
    )
    return parts, d_logits_XxCxV


def _take_rows(x_XxNxR: jax.Array, order_XxC: jax.Array) -> jax.Array:
    """Elements or rows of x at `order`, shard by shard."""
    index = order_XxC.reshape(order_XxC.shape + (1,) * (x_XxNxR.ndim - 2))
    return jnp.take_along_axis(x_XxNxR, index, axis=1)
