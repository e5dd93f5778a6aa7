"""Attention with a relative bias over packed rows as one kernel, for TPUs.

The plain path (attention.py) writes the scores of all heads to memory and reads them again: for
flan-t5-xl on 16 v5e chips more than half of what its products take. Here a program of the grid
holds the scores of two heads of a row on the chip and nothing of that size leaves it. The relative
bias stays there too, while the rows pass by, and so does its gradient, which is their sum.

Lengths are those of T5, hundreds of positions, so that a query's scores fit at once and no running
softmax is needed. The numbers are the plain path's, dropout included: which weights are dropped is
a function of key and index.

Letters as in attention.py; W = N * H, C queries of a chunk.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from coin_jax.model.dropout import kept_of_all, mixed
from coin_jax.parallel.sharding import BATCH_AXES, batch_shard_count, constrain, device_kind

LANES = 128
"""Of a TPU's vector register; blocks are whole multiples of it, or all of an axis."""
MASKED = -1e9
"""Added to a score that must not count. Finite, so that a row in which everything is masked gives
a uniform distribution and not NaN; float32 exp() of anything near it is exactly 0."""
MEMORY = 48 << 20
"""Bytes on the chip that a kernel may ask for, below what any of the larger chips has."""
LARGEST = 2 * 1024 * 1024
"""Scores of one program, all its heads: 31 MB by the compiler."""
LARGEST_IN_16_MB = 2 * 512 * 512
SMALL_CHIPS = ("TPU v2", "TPU v3", "TPU v4")


@dataclasses.dataclass(frozen=True)
class _Options:
    heads: int
    """Of the model, on all devices."""
    size: int
    """Of a head."""
    width: int
    """Heads of one program."""
    chunk: int
    causal: bool
    dropout_rate: float
    interpret: Any


def fits(rows: int, query_length: int, key_length: int, heads: int, size: int) -> bool:
    """Whether the kernel takes such arrays, on the ambient mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    tensor = 1 if mesh.empty else mesh.shape["tensor"]
    if heads % tensor or rows % batch_shard_count() or query_length % 16 or key_length % 16:
        return False
    width = _width(heads // tensor, size)
    largest = LARGEST_IN_16_MB if device_kind() in SMALL_CHIPS else LARGEST
    return heads // tensor % width == 0 and width * query_length * key_length <= largest


def _width(heads: int, size: int) -> int:
    """Heads that make whole registers; all where none do."""
    return next((n for n in range(1, heads) if n * size % LANES == 0), heads)


def attend(
    query_BxTxW: jax.Array,
    key_BxSxW: jax.Array,
    value_BxSxW: jax.Array,
    bias_XxNxTxS: jax.Array | None,
    query_segments_BxT: jax.Array,
    key_segments_BxS: jax.Array,
    *,
    heads: int,
    causal: bool,
    dropout_rate: float = 0.0,
    dropout_seed: jax.Array | None = None,
    interpret: Any = False,
) -> jax.Array:
    """softmax(query . key + bias + mask) . value for each head: [B, T, W].

    bias: float32, once for each of the X batch shards (see `spread`): so its gradient is summed
        over devices once, and not in every layer. None: there is none.
    segments: int32; a position sees the keys of its own segment, and if causal none behind it.
    dropout_seed: uint32, dropout.hashed_key's. None: nothing is dropped.
    interpret: as `pallas_call` takes it, for tests where there is no TPU.
    """
    if dropout_seed is None:
        dropout_rate, dropout_seed = 0.0, jnp.uint32(0)
    mesh = jax.sharding.get_abstract_mesh()
    tensor = 1 if mesh.empty else mesh.shape["tensor"]
    size, T = query_BxTxW.shape[2] // heads, query_BxTxW.shape[1]
    chunk = max(size for size in range(16, 257, 16) if T % size == 0)
    width = _width(heads // tensor, size)
    options = _Options(heads, size, width, chunk, causal, dropout_rate, interpret)
    arrays = (query_BxTxW, key_BxSxW, value_BxSxW, query_segments_BxT, key_segments_BxS)
    is_alone = mesh.empty or mesh.size == 1

    def one_device(seed, arrays, bias):
        row, head = 0, 0
        if not is_alone:
            row = jax.lax.axis_index(BATCH_AXES) * len(arrays[0])
            head = jax.lax.axis_index("tensor") * (heads // tensor)
        scalars = jnp.stack([seed.view(jnp.int32), jnp.int32(row), jnp.int32(head)])
        query, key, value, *segments = arrays
        segments = tuple(one[:, None] for one in segments)
        bias = None if bias is None else bias[0]
        return _attend(options, query, key, value, bias, segments, scalars)

    if is_alone:
        return one_device(dropout_seed, arrays, bias_XxNxTxS)
    states, rows = PartitionSpec(BATCH_AXES, None, "tensor"), PartitionSpec(BATCH_AXES)
    biases = PartitionSpec(BATCH_AXES, "tensor")
    return jax.shard_map(
        one_device,
        in_specs=(PartitionSpec(), (states,) * 3 + (rows,) * 2, biases),
        out_specs=states,
        check_vma=False,  # kernels say nothing of it
    )(dropout_seed, arrays, bias_XxNxTxS)


def spread(bias: jax.Array) -> jax.Array:
    """[1, N, T, S] -> [X, N, T, S]: a copy for each batch shard."""
    copies = jnp.broadcast_to(bias, (batch_shard_count(), *bias.shape[1:]))
    return constrain(copies, "batch", "heads", None, None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(options, query, key, value, bias, segments, scalars):
    """The arrays of one device; segments [B, 1, T] and [B, 1, S]; bias [N, T, S] or None."""
    call = _Call(options, query, key, bias, segments)
    out = jax.ShapeDtypeStruct(query.shape, query.dtype)
    return call(_forward_kernel, 2, scalars, (query, key, value), [(call.queries, out)])[0]


def _attend_forward(options, query, key, value, bias, segments, scalars):
    out = _attend(options, query, key, value, bias, segments, scalars)
    return out, (query, key, value, bias, segments, scalars)


def _attend_backward(options, saved, grad):
    query, key, value, bias, segments, scalars = saved
    call = _Call(options, query, key, bias, segments)
    outputs = [
        (place, jax.ShapeDtypeStruct(array.shape, array.dtype))
        for place, array in ((call.queries, query), (call.keys, key), (call.keys, value))
    ]
    if bias is not None:
        outputs.append((call.bias, jax.ShapeDtypeStruct(bias.shape, jnp.float32)))
    grads = call(_backward_kernel, 7, scalars, (query, key, value, grad), outputs)
    bias_grad = grads[3] if bias is not None else None
    return *grads[:3], bias_grad, None, None


_attend.defvjp(_attend_forward, _attend_backward)


class _Call:
    """A pallas_call over the grid (groups of heads, rows): rows pass by under a bias that stays."""

    def __init__(self, options: _Options, query, key, bias, segments):
        self.options, self.bias_array, self.segments = options, bias, segments
        B, T, local = query.shape
        S, width = key.shape[1], options.width * options.size
        self.shape = B, local // options.size, T, S
        self.grid = (local // width, B)
        at = lambda head, row, _: (row, 0, head)  # noqa: E731
        self.queries = pl.BlockSpec((1, T, width), at)
        self.keys = pl.BlockSpec((1, S, width), at)
        self.bias = pl.BlockSpec((options.width, T, S), lambda head, row, _: (head, 0, 0))
        self.rows = [
            pl.BlockSpec((1, 1, length), lambda head, row, _: (row, 0, 0)) for length in (T, S)
        ]

    def __call__(self, kernel, products: int, scalars, arrays, outputs) -> list[jax.Array]:
        """products: matrix products of [T, H] x [H, S] that the kernel does for each head."""
        B, N, T, S = self.shape
        options, with_bias = self.options, self.bias_array is not None
        places = [self.queries, self.keys, self.keys, self.queries][: len(arrays)]
        bias = [self.bias_array] if with_bias else []
        is_backward = kernel is _backward_kernel
        cost = pl.CostEstimate(
            flops=2 * products * B * N * T * S * options.size,
            transcendentals=B * N * T * S,
            bytes_accessed=sum(a.size * a.dtype.itemsize for a in (*arrays, *bias))
            + sum(math.prod(out.shape) * out.dtype.itemsize for _, out in outputs),
        )
        return pl.pallas_call(
            functools.partial(kernel, options, with_bias),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=self.grid,
                in_specs=[*self.rows, *places, *[self.bias] * with_bias],
                out_specs=[place for place, _ in outputs],
            ),
            out_shape=[out for _, out in outputs],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=MEMORY
            ),
            cost_estimate=cost,
            interpret=options.interpret,
            name="attention_backward" if is_backward else "attention",
        )(scalars, *self.segments, *arrays, *bias)


def _forward_kernel(options: _Options, with_bias: bool, scalars, *refs):
    query_segments, key_segments, query, key, value, *bias, out = refs
    program = _Program(options, scalars, query_segments, key_segments, bias if with_bias else None)
    for head, lanes in program.heads():
        keys, values = key[0, :, lanes], value[0, :, lanes]
        for chunk in program.chunks():
            raised, total = program.raised(head, chunk, query[0, chunk, lanes], keys)
            dropped = jnp.where(program.keep(head, chunk), raised, 0.0).astype(values.dtype)
            # Divided at last: there are fewer values than weights.
            scale = program.scale / total
            out[0, chunk, lanes] = (_product(dropped, values) * scale).astype(out.dtype)


def _backward_kernel(options: _Options, with_bias: bool, scalars, *refs):
    query_segments, key_segments, query, key, value, grad, *bias = refs[: 6 + with_bias]
    query_grad, key_grad, value_grad, *bias_grad = refs[6 + with_bias :]
    program = _Program(options, scalars, query_segments, key_segments, bias if with_bias else None)
    for head, lanes in program.heads():
        keys, values = key[0, :, lanes], value[0, :, lanes]
        keys_sum, values_sum = 0.0, 0.0
        for chunk in program.chunks():
            queries, out_grad = query[0, chunk, lanes], grad[0, chunk, lanes]
            raised, total = program.raised(head, chunk, queries, keys)
            weights, keep = raised * (1 / total), program.keep(head, chunk)
            dropped = jnp.where(keep, weights * program.scale, 0.0).astype(values.dtype)
            values_sum += _product(dropped, out_grad, (0, 0))
            weights_grad = _product(out_grad, values, (1, 1))
            weights_grad = jnp.where(keep, weights_grad * program.scale, 0.0)
            share = jnp.sum(weights * weights_grad, axis=-1, keepdims=True)
            scores_grad = weights * (weights_grad - share)
            if with_bias:
                _add(bias_grad[0], (head, chunk), scores_grad)
            scores_grad = scores_grad.astype(queries.dtype)
            query_grad[0, chunk, lanes] = _product(scores_grad, keys).astype(query_grad.dtype)
            keys_sum += _product(scores_grad, queries, (0, 0))
        key_grad[0, :, lanes] = keys_sum.astype(key_grad.dtype)
        value_grad[0, :, lanes] = values_sum.astype(value_grad.dtype)


def _add(ref, place, change):
    """Adds to what the rows before have left there; the first row finds nothing."""
    is_first = pl.program_id(1) == 0

    @pl.when(is_first)
    def _():
        ref[place] = change

    @pl.when(jnp.logical_not(is_first))
    def _():
        ref[place] += change


def _product(left, right, contracted=(1, 0)):
    """float32, of inputs in their own dtype; in float32 with all their digits."""
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(
        left, right, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


class _Program:
    """What forward and backward share: a group of heads of one row."""

    def __init__(self, options: _Options, scalars, query_segments, key_segments, bias):
        self.options, self.scalars, self.bias = options, scalars, bias
        self.T, self.S = query_segments.shape[-1], key_segments.shape[-1]
        self.query_segments, self.key_segments = query_segments, key_segments
        self.masks: dict[int, Any] = {}

    def heads(self):
        size = self.options.size
        for head in range(self.options.width):
            yield head, slice(head * size, (head + 1) * size)

    def chunks(self):
        for start in range(0, self.T, self.options.chunk):
            yield slice(start, start + self.options.chunk)

    def mask(self, chunk: slice):
        """[C, S], what segment_mask gives; the same for all heads."""
        if chunk.start in self.masks:
            return self.masks[chunk.start]
        # A column of the row's segments: transposed in whole registers.
        row = self.query_segments[0, :, chunk].astype(jnp.float32)
        column = jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, :1]
        allowed = column == self.key_segments[0].astype(jnp.float32)
        if self.options.causal:
            shape = allowed.shape
            queries = chunk.start + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
            allowed &= queries >= jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        self.masks[chunk.start] = jnp.where(allowed, 0.0, MASKED)
        return self.masks[chunk.start]

    def raised(self, head: int, chunk: slice, queries, keys):
        """exp(scores - their maximum) and its sum over keys: float32 [C, S] and [C, 1]."""
        scores = _product(queries, keys, (1, 1))
        if self.bias is not None:
            scores += self.bias[0][head, chunk]
        scores += self.mask(chunk)
        raised = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
        return raised, jnp.sum(raised, axis=-1, keepdims=True)

    def keep(self, head: int, chunk: slice):
        """[C, S], or True: where dropout.dropout of [B, N, T, S] keeps a weight."""
        options, scalars = self.options, self.scalars
        if options.dropout_rate == 0:
            return True
        row = scalars[1] + pl.program_id(1)
        head = scalars[2] + pl.program_id(0) * options.width + head
        first = ((row * options.heads + head) * self.T + chunk.start) * self.S
        shape = (chunk.stop - chunk.start, self.S)
        index = jax.lax.broadcasted_iota(jnp.int32, shape, 0) * self.S
        index += jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        bits = mixed((index + first) ^ scalars[0])
        # int32 throughout; with its highest bit turned, a uint32 compares like an int32.
        return (bits ^ np.int32(-(2**31))) < np.int32(kept_of_all(options.dropout_rate) - 2**31)

    @property
    def scale(self) -> float:
        rate = self.options.dropout_rate
        return 2**32 / kept_of_all(rate) if rate > 0 else 1.0
