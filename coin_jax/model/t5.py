"""T5 in Flax NNX, run functionally: an encoder and a decoder over packed rows.

One architecture with a few switches covers T5 1.0 (Raffel et al. 2020), T5 1.1, Flan-T5, mT5, ByT5,
UL2 and umT5; see `ModelConfig`. `T5` splits the NNX module once and keeps its graph definition, so
that parameters are a plain nested dict of float32 arrays that jit, grad, optax and orbax all take:

    embedding               [V, D]
    encoder, decoder
        layers              every array with a leading axis L
            self_attention  norm.scale [D], attention {query, key, value [D, N*H], out [N*H, D]}
            cross_attention the same, in the decoder
            feed_forward    norm.scale [D], wi and, if gated, wi_gate [D, F], wo [F, D]
        relative_bias       [buckets, N]; for umT5 in each layer's self_attention.attention instead
        norm.scale          [D]
    head                    [D, V]; absent where it is tied to the embedding

Letters: B rows, S encoder length, T decoder length, K beams or answers of a row, D model, N heads,
H head size, F feed-forward, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from coin_jax.config import ModelConfig
from coin_jax.model import fused_attention
from coin_jax.model.attention import (
    CONTEXT,
    NARROW,
    WIDE,
    Attention,
    attend,
    bias_table,
    dense,
    make_mask,
    parameter,
    relative_bias,
    split_key,
)
from coin_jax.model.dropout import dropout
from coin_jax.model.fused_attention import MASKED
from coin_jax.parallel.sharding import constrain

Params = dict[str, Any]

ACTIVATIONS: dict[str, Callable] = {
    "relu": jax.nn.relu,
    "gated-gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "gated-silu": jax.nn.silu,
}


class Norm(nnx.Module):
    """Root mean square layer norm without mean and bias, in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, config: ModelConfig):
        self.scale = nnx.Param(jnp.ones(config.d_model, jnp.float32), axes=("norm",))
        self.epsilon = config.layer_norm_epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return (wide * inverse * self.scale[...]).astype(x.dtype)


class AttentionBlock(nnx.Module):
    """norm, attention, dropout, residual."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, relative: bool = False):
        self.norm = Norm(config)
        self.attention = Attention(config, rngs, relative)

    def __call__(self, x, states, bias, mask, dropout_key):
        """states None: self-attention. Returns [B, T, D]."""
        weights_key, output_key = split_key(dropout_key, 2)
        normed = self.norm(x)
        keys_from = normed if states is None else states
        change = self.attention(normed, keys_from, bias, mask, weights_key)
        x = x + dropout(change, self.attention.dropout_rate, output_key)
        return constrain(x, "batch", None, "activation_embed")


class FeedForward(nnx.Module):
    """norm, two or three matrices, dropout, residual. Gated: Shazeer 2020."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        model, inner = config.d_model, config.d_ff
        self.norm = Norm(config)
        self.gated = config.feed_forward.startswith("gated-")
        if self.gated:
            self.wi_gate = parameter(rngs, (model, inner), model**-0.5, "embed", "mlp")
        self.wi = parameter(rngs, (model, inner), model**-0.5, "embed", "mlp")
        self.wo = parameter(rngs, (inner, model), inner**-0.5, "mlp", "embed")
        self.activation = config.feed_forward
        self.dropout_rate = config.dropout_rate

    def __call__(self, x: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        inner_key, output_key = split_key(dropout_key, 2)
        activation = ACTIVATIONS[self.activation]
        normed = self.norm(x)
        inner = dense(normed, self.wi)
        gate = activation(dense(normed, self.wi_gate) if self.gated else inner)
        inner = gate * inner if self.gated else gate
        inner = constrain(dropout(inner, self.dropout_rate, inner_key), "batch", None, "mlp")
        x = x + dropout(dense(inner, self.wo), self.dropout_rate, output_key)
        return constrain(x, "batch", None, "activation_embed")


class Layer(nnx.Module):
    """One layer of the encoder, or with `cross` of the decoder."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, cross: bool):
        self.self_attention = AttentionBlock(config, rngs, config.relative_bias_every_layer)
        if cross:
            self.cross_attention = AttentionBlock(config, rngs)
        self.feed_forward = FeedForward(config, rngs)

    def __call__(self, x, bias, mask, states, cross_mask, dropout_key):
        self_key, cross_key, inner_key = split_key(dropout_key, 3)
        x = self.self_attention(x, None, bias, mask, self_key)
        if states is not None:
            x = self.cross_attention(x, states, None, cross_mask, cross_key)
        return self.feed_forward(x, inner_key)


class Stack(nnx.Module):
    """Encoder or decoder: L layers, stacked, then a norm."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, decoder: bool):
        count = config.num_decoder_layers if decoder else config.num_layers
        self.layers = stacked(lambda keys: Layer(config, keys, decoder), count, rngs)
        if not config.relative_bias_every_layer:
            self.relative_bias = bias_table(config, rngs)
        self.norm = Norm(config)
        self.layer_count = count
        self.decoder = decoder
        self.config = config

    def bias(self, layer: Layer | None, query_length: int, key_length: int) -> jax.Array:
        """[1, N, T, S] from the layer's own table, or with None from the shared one."""
        table = (
            self.relative_bias if layer is None else layer.self_attention.attention.relative_bias
        )
        maximum = self.config.relative_attention_max_distance
        return relative_bias(table[...], query_length, key_length, not self.decoder, maximum)

    def __call__(self, x_BxTxD, mask, states=None, cross_mask=None, dropout_key=None) -> jax.Array:
        """Embedded tokens -> normed states: [B, T, D]."""
        input_key, layers_key, output_key = split_key(dropout_key, 3)
        keys = None if layers_key is None else jax.random.split(layers_key, self.layer_count)
        length, rate, own = x_BxTxD.shape[1], self.config.dropout_rate, self.own_bias
        # The kernel wants a bias for each batch shard.
        form = fused_attention.spread if mask.is_fused else lambda bias: bias
        shared = None if own else form(self.bias(None, length, length))
        layer_graph, layer_params = nnx.split(self.layers)

        def apply(x, layer_params_and_key):
            params, key = layer_params_and_key
            layer = nnx.merge(layer_graph, params)
            bias = form(self.bias(layer, length, length)) if own else shared
            return layer(x, bias, mask, states, cross_mask, key), None

        x = dropout(x_BxTxD, rate, input_key)
        x, _ = scan_layers(apply, x, (layer_params, keys), self.layer_count, self.config)
        return dropout(self.norm(x), rate, output_key)

    @property
    def own_bias(self) -> bool:
        return self.config.relative_bias_every_layer

    def init_cache(self, states_BxSxD, segment_ids_BxS, length: int, width: int) -> Params:
        """See `T5.init_cache`."""
        rows, config = states_BxSxD.shape[0], self.config
        layer_graph, layer_params = nnx.split(self.layers)

        def project(_, params):
            layer = nnx.merge(layer_graph, params)
            bias = self.bias(layer, length, length) if self.own_bias else None
            return None, (*layer.cross_attention.attention.keys_and_values(states_BxSxD), bias)

        _, (cross_key, cross_value, own) = jax.lax.scan(project, None, layer_params)
        shape = (self.layer_count, rows, width, config.num_heads, length, config.d_kv)
        return {
            "self_key": jnp.zeros(shape, states_BxSxD.dtype),
            "self_value": jnp.zeros(shape, states_BxSxD.dtype),
            "cross_key": cross_key,
            "cross_value": cross_value,
            "cross_mask": jnp.where(segment_ids_BxS > 0, 0.0, MASKED)[:, None, None],
            "bias": own if self.own_bias else self.bias(None, length, length)[None],
        }

    def decode_step(self, x_BxKxD, cache: Params, position) -> tuple[jax.Array, Params]:
        """See `T5.decode_step`."""
        rows, width, model = x_BxKxD.shape
        layer_graph, layer_params = nnx.split(self.layers)
        length = cache["self_key"].shape[-2]
        mask = jnp.where(jnp.arange(length) <= position, 0.0, MASKED)[None, None, None]
        bias = jax.lax.dynamic_slice_in_dim(cache["bias"], position, 1, axis=-2)

        def apply(carry, inputs):
            x, keys, values = carry
            index, params, cross_key, cross_value = inputs
            layer = nnx.merge(layer_graph, params)
            block = layer.self_attention
            attention, normed = block.attention, block.norm(x).reshape(-1, 1, model)
            query = attention.split_heads(normed, attention.query)
            own_bias = bias[index] if self.own_bias else bias[0]
            keys, values = (
                # In place, where the cache is donated or carried by a loop.
                jax.lax.dynamic_update_slice(
                    old, new.reshape(1, rows, width, *new.shape[1:]), (index, 0, 0, 0, position, 0)
                )
                for old, new in zip((keys, values), attention.keys_and_values(normed), strict=True)
            )
            key, value = (old[index].reshape(-1, *old.shape[3:]) for old in (keys, values))
            context = attend(query, key, value, own_bias, mask)
            x = x + attention.join_heads(context).reshape(x.shape)
            block = layer.cross_attention
            # The K beams of a row stand where a sequence's positions would: one key matrix for all.
            query = block.attention.split_heads(block.norm(x), block.attention.query)
            context = attend(query, cross_key, cross_value, None, cache["cross_mask"])
            x = x + block.attention.join_heads(context)
            return (layer.feed_forward(x, None), keys, values), None

        carry = (x_BxKxD, cache["self_key"], cache["self_value"])
        inputs = (jnp.arange(self.layer_count), layer_params)
        inputs = (*inputs, cache["cross_key"], cache["cross_value"])
        (x, keys, values), _ = jax.lax.scan(apply, carry, inputs)
        return self.norm(x), cache | {"self_key": keys, "self_value": values}


class Transformer(nnx.Module):
    """All parameters of a T5."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        shape = (config.vocabulary_size, config.d_model)
        self.embedding = parameter(rngs, shape, 1.0, "vocab", "embed")
        self.encoder = Stack(config, rngs, decoder=False)
        self.decoder = Stack(config, rngs, decoder=True)
        if not config.tie_word_embeddings:
            self.head = parameter(rngs, shape[::-1], config.d_model**-0.5, "embed", "vocab")

    def embed(self, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
        embedded = self.embedding[...][tokens].astype(dtype)
        return constrain(embedded, "batch", None, "activation_embed")


class T5:
    """The functions of a T5 over a plain tree of parameters.

    Dropout is on where `dropout_key` is given, and is a function of that key alone. Tokens,
    segment ids: int32; hidden states: `config.compute_dtype`. Segment 0 is padding; the segments of
    a row are contiguous.
    """

    def __init__(self, config: ModelConfig):
        self.config = config
        self.dtype = jnp.dtype(config.compute_dtype)
        abstract = nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0)))
        self.graph, self.state = nnx.split(abstract)

    def init(self, key: jax.Array) -> Params:
        """Random parameters, float32. Each matrix is scaled so that, at unit variance in, the
        variance coming out is 1: the scheme of Mesh TensorFlow's T5 and of T5X."""
        return nnx.to_pure_dict(nnx.state(Transformer(self.config, nnx.Rngs(params=key))))

    def abstract_parameters(self) -> Params:
        """The tree of ShapeDtypeStructs."""
        return nnx.to_pure_dict(self.state)

    def logical_axes(self) -> Params:
        """The same tree with tuples of the names that `parallel.sharding.RULES` knows."""

        def names(path, variable: nnx.Param) -> tuple[str, ...]:
            is_stacked = any(getattr(entry, "key", None) == "layers" for entry in path)
            return ("layers", *variable.axes) if is_stacked else variable.axes

        is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
        tree = jax.tree_util.tree_map_with_path(names, self.state, is_leaf=is_variable)
        return nnx.to_pure_dict(tree)

    def encode(self, params: Params, tokens_BxS, segment_ids_BxS, *, dropout_key=None) -> jax.Array:
        """Encoder states after the last norm: [B, S, D]. What stands at padding means nothing."""
        model: Transformer = nnx.merge(self.graph, params)
        mask = make_mask(self.config, segment_ids_BxS, segment_ids_BxS, causal=False)
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, 0)
        return model.encoder(model.embed(tokens_BxS, self.dtype), mask, dropout_key=key)

    def decode(
        self,
        params: Params,
        inputs_BxT,
        segment_ids_BxT,
        encoded_BxSxD,
        encoder_segment_ids_BxS,
        *,
        cross_segment_ids_BxT=None,
        dropout_key=None,
    ) -> jax.Array:
        """Decoder states after the last norm and before the head's scale: [B, T, D].

        A position sees the positions before it in its segment, and the encoder's positions of the
        segment of the same number; or of `cross_segment_ids`, with which several answers packed
        into one row share one encoded prompt.
        """
        model: Transformer = nnx.merge(self.graph, params)
        mask = make_mask(self.config, segment_ids_BxT, segment_ids_BxT, causal=True)
        cross = segment_ids_BxT if cross_segment_ids_BxT is None else cross_segment_ids_BxT
        cross_mask = make_mask(self.config, cross, encoder_segment_ids_BxS, causal=False)
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, 1)
        x = model.embed(inputs_BxT, self.dtype)
        return model.decoder(x, mask, encoded_BxSxD.astype(self.dtype), cross_mask, key)

    def head(self, params: Params) -> jax.Array:
        """The output matrix, float32 [D, V], T5 1.0's scale of d_model^-0.5 folded into it."""
        tied = self.config.tie_word_embeddings
        kernel_DxV = params["embedding"].T if tied else params["head"]
        scale = self.config.d_model**-0.5 if self.config.scale_decoder_outputs else 1.0
        return kernel_DxV * scale if scale != 1.0 else kernel_DxV

    def logits(self, params: Params, hidden_BxTxD: jax.Array) -> jax.Array:
        """Float32 [..., V], for generation; training uses `head` and `objective.cross_entropy`."""
        hidden, kernel = hidden_BxTxD.astype(self.dtype), self.head(params).astype(self.dtype)
        flat = hidden.reshape(-1, hidden.shape[-1])
        logits = jnp.dot(flat, kernel, preferred_element_type=jnp.float32)
        return logits.reshape(*hidden.shape[:-1], -1)

    def init_cache(
        self, params: Params, encoded_BxSxD, segment_ids_BxS, max_length: int, width: int = 1
    ) -> Params:
        """What `decode_step` needs: the encoder's keys and values, and room for the decoder's.

        Returns a dict of arrays: self_key, self_value [L, B, K, N, max_length, H] (zeros), K =
        `width`; cross_key, cross_value [L, B, N, S, H], which the K answers of a row share;
        cross_mask [B, 1, 1, S]; bias. `segment_ids` are 0 at padding; one prompt a row.
        """
        model: Transformer = nnx.merge(self.graph, params)
        encoded = encoded_BxSxD.astype(self.dtype)
        return model.decoder.init_cache(encoded, segment_ids_BxS, max_length, width)

    def decode_step(
        self, params: Params, cache: Params, tokens_BxK, position
    ) -> tuple[jax.Array, Params]:
        """One decoder position: what `decode` gives there, [B, K, D], and the cache with it inside.

        tokens: the inputs at `position` (int32 scalar, from 0, the same for all). Positions from
        there on in the cache are not read.
        """
        model: Transformer = nnx.merge(self.graph, params)
        return model.decoder.decode_step(model.embed(tokens_BxK, self.dtype), cache, position)


def reorder_cache(cache: Params, source_BxK: jax.Array) -> Params:
    """The cache in which answer k of row b goes on from what was answer source[b, k]: for beams."""
    index = source_BxK[None, :, :, None, None, None]
    moved = {
        name: jnp.take_along_axis(cache[name], index, axis=2) for name in ("self_key", "self_value")
    }
    return cache | moved


def stacked(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` independently drawn modules as one, each array with a leading axis of that length."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def draw(key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(params=key))))

    return nnx.merge(graph, jax.vmap(draw)(jax.random.split(rngs.params(), count)))


def scan_layers(apply: Callable, carry: Any, inputs: Any, count: int, config: ModelConfig) -> Any:
    """jax.lax.scan over the layers, with the config's remat policy and unroll.

    On CPU a loop costs a fifth of the time, so there all layers are laid out by default; elsewhere
    compiling one layer instead of all of them matters more.
    """
    unroll = config.scan_unroll or (count if jax.default_backend() == "cpu" else 1)
    if config.remat != "none":
        policy = remat_policy(config.remat)
        # Inside a loop nothing can be shared between the passes; laid out, it must be prevented.
        apply = jax.checkpoint(apply, policy=policy, prevent_cse=unroll > 1)
    return jax.lax.scan(apply, carry, inputs, unroll=min(unroll, count))


def remat_policy(kind: str) -> Callable:
    """What jax.checkpoint keeps of a layer where not everything is kept; see ModelConfig.remat.

    `wide` is for where memory is small or slow beside the products: a v5e takes about as long to
    store a narrow product in the loop's stack and to read it back as to compute it anew.
    """
    if kind == "full":
        return jax.checkpoint_policies.nothing_saveable
    names = {"minimal": (CONTEXT, WIDE, NARROW), "wide": (CONTEXT, WIDE)}[kind]
    return jax.checkpoint_policies.save_only_these_names(*names)
