"""T5's attention: bucketed relative positions, segment masks, and the projections around them.

Letters: B rows, T query length, S key length, D model, N heads, H head size. Scores are not scaled
by H^-0.5; the initialization takes care of that (Raffel et al. 2020, and their code).
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from coin_jax.config import ConfigError, ModelConfig
from coin_jax.model import fused_attention
from coin_jax.model.dropout import dropout, hashed_key
from coin_jax.model.fused_attention import MASKED
from coin_jax.parallel.gathered import multiply
from coin_jax.parallel.sharding import constrain, is_for_tpu

CONTEXT, WIDE, NARROW = "context", "wide product", "narrow product"
"""What jax.checkpoint calls what the kernel gives, the products that have a feed-forward layer's
width, and the others: see `remat_policy`."""


def parameter(rngs: nnx.Rngs, shape: tuple[int, ...], scale: float, *axes: str) -> nnx.Param:
    """A float32 matrix drawn from N(0, scale^2), with a logical name for each of its axes."""
    return nnx.Param(scale * jax.random.normal(rngs.params(), shape, jnp.float32), axes=axes)


def dense(x: jax.Array, kernel: nnx.Param) -> jax.Array:
    """x [..., F] times kernel [F, K], in the dtype of x.

    The rows are flattened first: XLA on CPU computes the weight gradient of the plain product of
    two matrices a quarter faster than that of [B, T, F] with [F, K].
    """
    flat = multiply(x.reshape(-1, x.shape[-1]), kernel[...].astype(x.dtype), kernel.axes)
    flat = checkpoint_name(flat, WIDE if kernel.axes[1] == "mlp" else NARROW)
    return flat.reshape(*x.shape[:-1], flat.shape[-1])


def split_key(key: jax.Array | None, count: int):
    """`count` keys, or as many None."""
    return (None,) * count if key is None else jax.random.split(key, count)


def relative_buckets(
    offsets: np.ndarray, bidirectional: bool, num_buckets: int, max_distance: int
) -> np.ndarray:
    """The bucket of each offset, key position minus query position: int32, the same shape.

    Half of the buckets are for exact distances, the others grow logarithmically up to
    `max_distance`; beyond it all share the last. A bidirectional table has one half for keys
    before the query and one for keys after it. Raffel et al. 2020, section 2.1.
    """
    offsets = np.asarray(offsets)
    first = np.zeros_like(offsets)
    if bidirectional:
        num_buckets //= 2
        first = np.where(offsets > 0, num_buckets, 0)
        distance = np.abs(offsets)
    else:
        distance = np.maximum(-offsets, 0)
    exact = num_buckets // 2
    # In float32 as in the code that the published weights were trained with: in exact arithmetic a
    # distance on the boundary between two buckets could fall on the other side.
    growth = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    growth = growth / np.float32(math.log(max_distance / exact)) * np.float32(num_buckets - exact)
    far = np.minimum(exact + growth.astype(np.int32), num_buckets - 1)
    return (first + np.where(distance < exact, distance, far)).astype(np.int32)


def relative_bias(
    table_KxN: jax.Array, query_length: int, key_length: int, bidirectional: bool, max_distance: int
) -> jax.Array:
    """The bias of scores between all positions, float32 [1, N, T, S].

    Two ways to the same numbers. On CPU, T + S rows are looked up and shifted; the TPU compiler has
    no good reshapes for that (docs/plan.md) and gets a product. Neither looks up T * S rows, whose
    gradient would be a slow scatter.
    """
    offsets = np.arange(key_length)[None, :] - np.arange(query_length)[:, None]
    buckets_TxS = relative_buckets(offsets, bidirectional, len(table_KxN), max_distance)
    ways = {"cpu": shifted_bias, "default": multiplied_bias}
    ways = {platform: functools.partial(way, buckets_TxS) for platform, way in ways.items()}
    return jax.lax.platform_dependent(table_KxN.astype(jnp.float32), **ways)[None]


def multiplied_bias(buckets_TxS: np.ndarray, table_KxN: jax.Array) -> jax.Array:
    """[N, T, S]: the table times a 0/1 matrix, which is made where it is used."""
    is_bucket_KxTxS = jnp.arange(len(table_KxN))[:, None, None] == buckets_TxS
    # HIGHEST: accelerators would round the table to bfloat16.
    return jnp.einsum(
        "kn,kts->nts",
        table_KxN,
        is_bucket_KxTxS.astype(table_KxN.dtype),
        precision=jax.lax.Precision.HIGHEST,
    )


def shifted_bias(buckets_TxS: np.ndarray, table_KxN: jax.Array) -> jax.Array:
    """[N, T, S], of which entry (t, s) depends on s - t alone.

    So one vector of length T + S holds all values; repeated T times and read in rows shorter by
    one, it shifts right by one a row.
    """
    query_length, key_length = buckets_TxS.shape
    heads, length = table_KxN.shape[1], query_length + key_length
    # Offsets 0, 1, .. to the right of the diagonal, one that is never read, then from the left end.
    unread = buckets_TxS[0, :1]
    buckets_O = np.concatenate([buckets_TxS[0], unread, buckets_TxS[:0:-1, 0]])
    by_offset_NxO = table_KxN[buckets_O].T
    repeated = jnp.broadcast_to(by_offset_NxO[:, None], (heads, query_length, length))
    shifted = repeated.reshape(heads, -1)[:, : query_length * (length - 1)]
    return shifted.reshape(heads, query_length, length - 1)[..., :key_length]


def segment_mask(
    query_segments_BxT: jax.Array, key_segments_BxS: jax.Array, causal: bool
) -> jax.Array:
    """What to add to scores so that a position sees its own segment only: float32 [B, 1, T, S].

    Padding is segment 0 and sees padding, which nobody reads. With `causal`, keys after the query
    are masked too.
    """
    allowed = query_segments_BxT[:, :, None] == key_segments_BxS[:, None, :]
    if causal:
        allowed &= np.tri(query_segments_BxT.shape[1], key_segments_BxS.shape[1], dtype=bool)
    return jnp.where(allowed, 0.0, MASKED).astype(jnp.float32)[:, None]


@dataclasses.dataclass(frozen=True)
class Mask:
    """Who sees whom, in the form that the chosen way of attending wants."""

    query_segments: jax.Array
    """[B, T]"""
    key_segments: jax.Array
    """[B, S]"""
    causal: bool
    is_fused: bool
    """Whether the kernel of fused_attention.py takes it."""
    added: jax.Array | None
    """What `segment_mask` gives, where it does not."""


def make_mask(
    config: ModelConfig, query_segments_BxT: jax.Array, key_segments_BxS: jax.Array, causal: bool
) -> Mask:
    is_fused = config.attention == "fused" or (config.attention == "auto" and is_for_tpu())
    is_fused = is_fused and fused_attention.fits(
        *query_segments_BxT.shape, key_segments_BxS.shape[1], config.num_heads, config.d_kv
    )
    added = None if is_fused else segment_mask(query_segments_BxT, key_segments_BxS, causal)
    return Mask(query_segments_BxT, key_segments_BxS, causal, is_fused, added)


@jax.custom_vjp
def biased_softmax(scores: jax.Array, bias: jax.Array | None, mask: jax.Array) -> jax.Array:
    """softmax(scores + bias + mask) over keys, float32 [B, N, T, S]; no gradient for the mask.

    The gradient is written out for XLA on CPU, which otherwise takes 2.5 times as long for all of
    attention's backward pass: it sums the bias' gradient over rows element by element, where as a
    product with a vector of ones it costs nothing.
    """
    return jax.nn.softmax((scores if bias is None else scores + bias) + mask, axis=-1)


def _biased_softmax_forward(scores, bias, mask):
    weights = biased_softmax(scores, bias, mask)
    return weights, (weights, None if bias is None else ())  # static: a structure without leaves


def _biased_softmax_backward(saved, grad):
    weights, with_bias = saved
    scores_grad = weights * (grad - jnp.sum(weights * grad, axis=-1, keepdims=True))
    rows = jnp.ones(len(weights), weights.dtype)
    if with_bias is None:
        return scores_grad, None, None
    return scores_grad, jnp.einsum("b,bnts->nts", rows, scores_grad)[None], None


biased_softmax.defvjp(_biased_softmax_forward, _biased_softmax_backward)


def attend(
    query_BxNxTxH: jax.Array,
    key_BxNxSxH: jax.Array,
    value_BxNxSxH: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """softmax(query . key + bias + mask) . value: [B, N, T, H]. The softmax is in float32.

    bias [1, N, T, S] or None and mask [B, 1, T, S] stay apart until they meet the scores, so that
    neither exists as [B, N, T, S].
    """
    scores = jnp.einsum(
        "bnth,bnsh->bnts", query_BxNxTxH, key_BxNxSxH, preferred_element_type=jnp.float32
    )
    weights = biased_softmax(scores, bias, mask).astype(value_BxNxSxH.dtype)
    weights = dropout(weights, dropout_rate, dropout_key)
    return jnp.einsum("bnts,bnsh->bnth", weights, value_BxNxSxH)


def check_fused(config: ModelConfig) -> None:
    """Compares the kernel with the plain path on a device, where `config` leaves it to be chosen.

    A few seconds at the start of a run, since kernels are at the mercy of each version of the
    compiler. Raises ConfigError where values or gradients differ by more than bfloat16 explains.
    """
    if config.attention != "auto" or not is_for_tpu():
        return
    B, T, N = 2, 128, 2 * fused_attention.LANES // math.gcd(config.d_kv, fused_attention.LANES)
    shape, key = (B, T, N * config.d_kv), jax.random.key(0, impl="rbg")
    draw = lambda number, shape: jax.random.normal(jax.random.key(number), shape)  # noqa: E731
    query, keys, value, slope = (draw(number, shape).astype(jnp.bfloat16) for number in range(4))
    query = query * config.d_kv**-0.5
    segments = jnp.sort(jax.random.randint(jax.random.key(5), (B, T), 0, 4), axis=1)

    def plain(query, keys, value, bias):
        split = lambda x: x.reshape(B, T, N, -1).transpose(0, 2, 1, 3)  # noqa: E731
        mask = segment_mask(segments, segments, causal=True)
        context = attend(split(query), split(keys), split(value), bias, mask, 0.1, key)
        return context.transpose(0, 2, 1, 3).reshape(shape)

    def fused(query, keys, value, bias):
        return fused_attention.attend(
            query, keys, value, bias, segments, segments, heads=N, causal=True,
            dropout_rate=0.1, dropout_seed=hashed_key(key),
            interpret=jax.default_backend() != "tpu",
        )  # fmt: skip

    def results(way):
        loss = lambda *inputs: (way(*inputs) * slope).astype(jnp.float32).sum()  # noqa: E731
        inputs = (query, keys, value, draw(6, (1, N, T, T)))
        return jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*inputs)

    for name, found, expected in zip(
        ("query", "key", "value", "bias"), results(fused), results(plain), strict=True
    ):
        found, expected = found.astype(jnp.float32), expected.astype(jnp.float32)
        error = float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))
        if not error < 0.03:
            raise ConfigError(
                f"model.attention = 'auto': on {jax.devices()[0].device_kind} the fused kernel's "
                f"gradient of the {name} differs from the plain path's by {error:.0%}. Set "
                "model.attention to 'plain', and please report it with the versions of jax and "
                "libtpu"
            )


class Attention(nnx.Module):
    """Multi-head attention; self-attention where queries and keys come from the same states."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, relative: bool = False):
        """relative: with a relative bias table of its own (umT5)."""
        model, inner = config.d_model, config.num_heads * config.d_kv
        # The query's scale makes up for scores that are not divided by sqrt(H).
        self.query = parameter(
            rngs, (model, inner), (model * config.d_kv) ** -0.5, "embed", "heads"
        )
        self.key = parameter(rngs, (model, inner), model**-0.5, "embed", "heads")
        self.value = parameter(rngs, (model, inner), model**-0.5, "embed", "heads")
        self.out = parameter(rngs, (inner, model), inner**-0.5, "heads", "embed")
        if relative:
            self.relative_bias = bias_table(config, rngs)
        self.heads = config.num_heads
        self.dropout_rate = config.dropout_rate

    def split_heads(self, x_BxTxD: jax.Array, kernel: nnx.Param) -> jax.Array:
        """The states projected and cut into heads: [B, N, T, H]."""
        projected = dense(x_BxTxD, kernel).reshape(*x_BxTxD.shape[:2], self.heads, -1)
        return constrain(projected.transpose(0, 2, 1, 3), "batch", "heads", None, "kv")

    def keys_and_values(self, states_BxSxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.split_heads(states_BxSxD, self.key), self.split_heads(states_BxSxD, self.value)

    def join_heads(self, context_BxNxTxH: jax.Array) -> jax.Array:
        rows, _, length, _ = context_BxNxTxH.shape
        return dense(context_BxNxTxH.transpose(0, 2, 1, 3).reshape(rows, length, -1), self.out)

    def __call__(
        self,
        x_BxTxD: jax.Array,
        states_BxSxD: jax.Array,
        bias: jax.Array | None,
        mask: Mask,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Queries from x, keys and values from states: [B, T, D]."""
        if mask.is_fused:
            context_BxTxW = fused_attention.attend(
                dense(x_BxTxD, self.query),
                dense(states_BxSxD, self.key),
                dense(states_BxSxD, self.value),
                bias,
                mask.query_segments,
                mask.key_segments,
                heads=self.heads,
                causal=mask.causal,
                dropout_rate=self.dropout_rate,
                dropout_seed=None if dropout_key is None else hashed_key(dropout_key),
                interpret=not is_for_tpu(),
            )
            return dense(checkpoint_name(context_BxTxW, CONTEXT), self.out)
        query = self.split_heads(x_BxTxD, self.query)
        key, value = self.keys_and_values(states_BxSxD)
        context = attend(query, key, value, bias, mask.added, self.dropout_rate, dropout_key)
        return self.join_heads(context)


def bias_table(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Param:
    """Relative bias: a number for each bucket and head."""
    shape = (config.relative_attention_num_buckets, config.num_heads)
    return parameter(rngs, shape, config.d_model**-0.5, "buckets", "heads")
