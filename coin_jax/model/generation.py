"""Answers from a trained model: greedy decoding, sampling, beam search, and scoring of given ones.

Everything here is jitted with static shapes: the encoder runs once a prompt, its cross-attention
keys and values are computed once and shared by all beams, samples or answers of the prompt, and
`lax.while_loop` ends as soon as every row has ended. Prompts are rows of `encoder_tokens`, one a
row, with `encoder_segment_ids` 1 on tokens and 0 on padding.

Letters beyond the house's: K beams or samples of a prompt, C decoder rows of a prompt, A answers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from coin_jax.model.t5 import T5, Params, reorder_cache

NEVER = -1e9
"""Score of a beam that cannot be chosen; finite, so that arithmetic on it stays free of NaN."""
LOGITS_AT_ONCE = 1 << 24
"""Logits held while scoring (64 MiB in float32), whatever the vocabulary."""

Step = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]
"""(cache, tokens_BxK, position) -> (float32 logits_BxKxV of the next token, cache)."""
Reorder = Callable[[Any, jax.Array], Any]
"""(cache, parents_BxK) -> cache whose beam k continues the beam parents[b, k]."""


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """How answers are searched for. Hashable: each value is compiled once per batch shape."""

    max_new_tokens: int = 32
    """Tokens of an answer at most, the end-of-sequence token included."""
    beams: int = 1
    """Width of the beam search; 1: none."""
    length_penalty: float = 1.0
    """Beams are ranked by log-likelihood / length^penalty; above 0 favours longer answers."""
    early_stopping: bool | Literal["never"] = False
    """When a beam search ends, see `beam_search`."""
    temperature: float = 0.0
    """0: the likeliest token; otherwise tokens are drawn from softmax(logits / temperature)."""
    top_k: int = 0
    """Draw among the k likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Draw among the fewest tokens that together hold this probability; 1: all."""
    candidates: int = 1
    """Answers returned for each prompt: the best beams, or that many samples."""

    def __post_init__(self):
        faults = []
        if self.max_new_tokens < 1:
            faults.append(f"max_new_tokens is {self.max_new_tokens}; allowed: 1 or more")
        if self.beams < 1:
            faults.append(f"beams is {self.beams}; allowed: 1 or more")
        if self.temperature < 0:
            faults.append(f"temperature is {self.temperature}; allowed: 0 (greedy) or more")
        if self.top_k < 0:
            faults.append(f"top_k is {self.top_k}; allowed: 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            faults.append(f"top_p is {self.top_p}; allowed: above 0, at most 1")
        if self.early_stopping not in (False, True, "never"):
            faults.append(
                f"early_stopping is {self.early_stopping!r}; allowed: False, True, 'never'"
            )
        if self.beams > 1 and self.temperature > 0:
            faults.append("beams and temperature are both set: search with beams, or draw samples")
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            faults.append("top_k and top_p choose what is drawn: set temperature above 0 with them")
        most = self.beams if self.temperature == 0 else None
        if self.candidates < 1 or (most is not None and self.candidates > most):
            faults.append(
                f"candidates is {self.candidates}; allowed: 1 or more, at most the beams unless "
                "temperature is above 0"
            )
        if faults:
            raise ValueError("generation settings: " + "; ".join(faults))


class Generated(NamedTuple):
    """C answers for each of B prompts, the best first where they were searched for."""

    tokens: jax.Array
    """int32 [B, C, T], without the start token, with end-of-sequence, padded behind it."""
    scores: jax.Array
    """float32 [B, C]: the log-likelihood under the model's own distribution (not the sharpened or
    cut one that samples were drawn from); for beams divided by length^penalty."""


class Ends(NamedTuple):
    """The three token ids that a search must know."""

    start: int
    eos: int
    pad: int


# --- choosing the next token ------------------------------------------------------------------


def restrict(logits_RxV: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """Logits with -inf outside the top-k tokens, then outside the nucleus (Holtzman et al. 2020).

    The nucleus is the smallest set of likeliest tokens whose probability reaches `top_p`, among
    what top-k left; it always holds one token. Tokens that tie with the last one kept are kept.
    """
    vocabulary = logits_RxV.shape[-1]
    if 0 < top_k < vocabulary:
        least = jax.lax.top_k(logits_RxV, top_k)[0][..., -1:]
        logits_RxV = jnp.where(logits_RxV >= least, logits_RxV, -jnp.inf)
    if top_p < 1:
        sorted_RxV = jnp.sort(logits_RxV, axis=-1, descending=True)
        probability_RxV = jax.nn.softmax(sorted_RxV, axis=-1)
        before_RxV = jnp.cumsum(probability_RxV, axis=-1) - probability_RxV
        # A token belongs to the nucleus while the likelier ones have not yet reached top_p.
        kept_R = jnp.maximum(jnp.sum(before_RxV < top_p, axis=-1, keepdims=True), 1)
        least = jnp.take_along_axis(sorted_RxV, kept_R - 1, axis=-1)
        logits_RxV = jnp.where(logits_RxV >= least, logits_RxV, -jnp.inf)
    return logits_RxV


def draw(logits_RxV: jax.Array, keys_R: jax.Array, settings: GenerationSettings) -> jax.Array:
    """One token a row: temperature first, then top-k, then top-p. int32 [R].

    Each row has a key of its own, so that what it draws does not depend on its neighbours.
    """
    logits_RxV = restrict(logits_RxV / settings.temperature, settings.top_k, settings.top_p)
    return jax.vmap(jax.random.categorical)(keys_R, logits_RxV).astype(jnp.int32)


def sample_or_greedy(
    step: Step, cache: Any, keys_BxK: jax.Array, ends: Ends, settings: GenerationSettings
) -> Generated:
    """K independent continuations of each prompt, token by token. `keys_BxK` are random keys."""
    B, K = keys_BxK.shape
    length = settings.max_new_tokens

    def unfinished(carry):
        position, done_BxK = carry[0], carry[3]
        return (position < length) & ~jnp.all(done_BxK)

    def body(carry):
        position, last_BxK, cache, done_BxK, tokens_BxKxT, scores_BxK = carry
        logits_BxKxV, cache = step(cache, last_BxK, position)
        if settings.temperature > 0:
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys_BxK.reshape(-1), position)
            flat = logits_BxKxV.reshape(B * K, -1)
            next_BxK = draw(flat, keys, settings).reshape(B, K)
        else:
            next_BxK = jnp.argmax(logits_BxKxV, axis=-1).astype(jnp.int32)
        chosen = jnp.take_along_axis(logits_BxKxV, next_BxK[..., None], axis=-1)[..., 0]
        gain_BxK = chosen - jax.nn.logsumexp(logits_BxKxV, axis=-1)
        next_BxK = jnp.where(done_BxK, ends.pad, next_BxK)
        scores_BxK = jnp.where(done_BxK, scores_BxK, scores_BxK + gain_BxK)
        tokens_BxKxT = tokens_BxKxT.at[:, :, position].set(next_BxK)
        done_BxK = done_BxK | (next_BxK == ends.eos)
        return position + 1, next_BxK, cache, done_BxK, tokens_BxKxT, scores_BxK

    carry = (
        jnp.int32(0),
        jnp.full((B, K), ends.start, jnp.int32),
        cache,
        jnp.zeros((B, K), bool),
        jnp.full((B, K, length), ends.pad, jnp.int32),
        jnp.zeros((B, K), jnp.float32),
    )
    *_, tokens_BxKxT, scores_BxK = jax.lax.while_loop(unfinished, body, carry)
    return Generated(tokens_BxKxT, scores_BxK)


# --- beam search ------------------------------------------------------------------------------


class _Beams(NamedTuple):
    position: jax.Array
    cache: Any
    running: jax.Array  # [B, K, T]: open hypotheses
    running_scores: jax.Array  # [B, K]: their summed log-likelihood
    ended: jax.Array  # [B, K, T]: the best hypotheses that have ended
    ended_scores: jax.Array  # [B, K]: their score, length counted in; NEVER where there is none
    open: jax.Array  # [B]: False once no better answer is to be expected


def beam_search(
    step: Step,
    reorder: Reorder,
    cache: Any,
    rows: int,
    ends: Ends,
    settings: GenerationSettings,
) -> Generated:
    """The K best hypotheses of each prompt, kept apart from those that have ended.

    The score of a hypothesis is, as in transformers' `generate`,

        sum of its tokens' log-probabilities / length ** length_penalty

    where `length` counts the generated tokens with the end-of-sequence token and without the start
    token. (Wu et al. 2016, equation 14, divide by ((5 + length) / 6) ** alpha instead.)

    Each step ranks the 2K best continuations of the K open hypotheses: at most K of them end, so K
    go on. Of the ended ones only those ranked among the first K count. At `max_new_tokens` all
    count as ended. A prompt is finished once it has K ended hypotheses and

        early_stopping = True      at once
        early_stopping = False     the best open one, taken as it is at its present length, does
                                   not beat the worst ended one
        early_stopping = "never"   as False, but at the largest length where the penalty is
                                   positive: no open one can beat it any more

    A finished prompt changes no more, so that its answer does not depend on the others of the
    batch.
    """
    B, K, T = rows, settings.beams, settings.max_new_tokens
    # In numpy, for lengths 0..T: the same rounding whatever the device's power function does.
    lengths = np.maximum(np.arange(T + 1, dtype=np.float64), 1)
    divisors = jnp.asarray(lengths**settings.length_penalty, jnp.float32)
    take = functools.partial(jnp.take_along_axis, axis=1)

    def unfinished(beams: _Beams):
        return (beams.position < T) & jnp.any(beams.open)

    def body(beams: _Beams) -> _Beams:
        position = beams.position
        last = jax.lax.dynamic_index_in_dim(beams.running, position - 1, 2, keepdims=False)
        last_BxK = jnp.where(position == 0, ends.start, last)
        logits_BxKxV, cache = step(beams.cache, last_BxK, position)
        V = logits_BxKxV.shape[-1]
        totals_BxKxV = jax.nn.log_softmax(logits_BxKxV) + beams.running_scores[..., None]
        totals_Bx2K, flat_Bx2K = jax.lax.top_k(totals_BxKxV.reshape(B, K * V), 2 * K)
        parents_Bx2K, next_Bx2K = flat_Bx2K // V, (flat_Bx2K % V).astype(jnp.int32)
        tokens_Bx2KxT = take(beams.running, parents_Bx2K[..., None])
        tokens_Bx2KxT = tokens_Bx2KxT.at[:, :, position].set(next_Bx2K)
        ends_Bx2K = (next_Bx2K == ends.eos) | (position + 1 == T)

        eligible_Bx2K = ends_Bx2K & (jnp.arange(2 * K) < K) & beams.open[:, None]
        scores_Bx2K = jnp.where(eligible_Bx2K, totals_Bx2K / divisors[position + 1], NEVER)
        merged_scores = jnp.concatenate([beams.ended_scores, scores_Bx2K], axis=1)
        merged_tokens = jnp.concatenate([beams.ended, tokens_Bx2KxT], axis=1)
        ended_scores_BxK, best_BxK = jax.lax.top_k(merged_scores, K)
        ended_BxKxT = take(merged_tokens, best_BxK[..., None])

        going_Bx2K = jnp.where(ends_Bx2K, NEVER, totals_Bx2K)
        running_scores_BxK, kept_BxK = jax.lax.top_k(going_Bx2K, K)
        running_BxKxT = take(tokens_Bx2KxT, kept_BxK[..., None])

        full_B = jnp.all(ended_scores_BxK > NEVER / 2, axis=1)
        horizon = position + 1
        if settings.early_stopping == "never" and settings.length_penalty > 0:
            horizon = T
        hope_B = running_scores_BxK[:, 0] / divisors[horizon]
        better_B = hope_B > ended_scores_BxK[:, -1]
        finished_B = full_B if settings.early_stopping is True else full_B & ~better_B
        return _Beams(
            position + 1,
            reorder(cache, take(parents_Bx2K, kept_BxK)),
            running_BxKxT,
            running_scores_BxK,
            ended_BxKxT,
            ended_scores_BxK,
            beams.open & ~finished_B,
        )

    empty_BxKxT = jnp.full((B, K, T), ends.pad, jnp.int32)
    nothing_BxK = jnp.full((B, K), NEVER, jnp.float32)
    beams = _Beams(
        position=jnp.int32(0),
        cache=cache,
        running=empty_BxKxT,
        # One open beam at the start, or all K would be the same.
        running_scores=nothing_BxK.at[:, 0].set(0.0),
        ended=empty_BxKxT,
        ended_scores=nothing_BxK,
        open=jnp.ones(B, bool),
    )
    beams = jax.lax.while_loop(unfinished, body, beams)
    C = settings.candidates
    return Generated(beams.ended[:, :C], beams.ended_scores[:, :C])


# --- with a model -----------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def generate(
    model: T5,
    params: Params,
    encoder_tokens_BxS: jax.Array,
    encoder_segment_ids_BxS: jax.Array,
    keys_B: jax.Array,
    *,
    settings: GenerationSettings = GenerationSettings(),
) -> Generated:
    """Answers for B prompts, one a row. See `GenerationSettings` for greedy, sampling and beams.

    `keys_B`: one random key a prompt (unused unless temperature > 0), so that what is drawn for a
    prompt depends on its key alone.
    """
    config = model.config
    ends = Ends(config.decoder_start_token_id, config.eos_token_id, config.pad_token_id)
    B = encoder_tokens_BxS.shape[0]
    K = settings.candidates if settings.temperature > 0 else settings.beams
    encoded_BxSxD = model.encode(params, encoder_tokens_BxS, encoder_segment_ids_BxS)
    cache = model.init_cache(
        params, encoded_BxSxD, encoder_segment_ids_BxS, settings.max_new_tokens, K
    )

    def step(cache, tokens_BxK, position):
        hidden_BxKxD, cache = model.decode_step(params, cache, tokens_BxK, position)
        return model.logits(params, hidden_BxKxD), cache

    if K > 1 and settings.temperature == 0:
        return beam_search(step, reorder_cache, cache, B, ends, settings)
    keys_BxK = jax.vmap(lambda key: jax.random.split(key, K))(keys_B)
    return sample_or_greedy(step, cache, keys_BxK, ends, settings)


class Scores(NamedTuple):
    """Of A answers to each of B prompts."""

    log_likelihood: jax.Array
    """float32 [B, A]: sum over the answer's tokens, end-of-sequence included; -inf where there is
    no answer."""
    tokens: jax.Array
    """int32 [B, A]: how many tokens that sums over."""


@functools.partial(jax.jit, static_argnames=("model", "answers"))
def score_answers(
    model: T5,
    params: Params,
    encoder_tokens_BxS: jax.Array,
    encoder_segment_ids_BxS: jax.Array,
    decoder_inputs_BxCxT: jax.Array,
    decoder_targets_BxCxT: jax.Array,
    decoder_segment_ids_BxCxT: jax.Array,
    *,
    answers: int,
) -> Scores:
    """Log-likelihood of A given answers to each of B prompts, in one teacher-forced pass.

    The answers of a prompt are packed, like training rows, into C decoder rows; answer a is the
    segment a + 1 wherever it stands. All of them read the prompt's one encoder output, which is
    computed once and copied nowhere. Answers common to all prompts come with B = 1.

    The vocabulary's logits exist for `LOGITS_AT_ONCE` at a time, never for all positions.
    """
    B = encoder_tokens_BxS.shape[0]
    encoded_BxSxD = model.encode(params, encoder_tokens_BxS, encoder_segment_ids_BxS)
    shape = (B, *decoder_inputs_BxCxT.shape[1:])
    rows_CxBxT = [
        jnp.moveaxis(jnp.broadcast_to(array, shape), 1, 0)
        for array in (decoder_inputs_BxCxT, decoder_targets_BxCxT, decoder_segment_ids_BxCxT)
    ]

    def one_row(row):
        inputs_BxT, targets_BxT, segment_ids_BxT = row
        hidden_BxTxD = model.decode(
            params,
            inputs_BxT,
            segment_ids_BxT,
            encoded_BxSxD,
            encoder_segment_ids_BxS,
            # Every answer is about segment 1, the prompt: only answers are hidden from each other.
            cross_segment_ids_BxT=(segment_ids_BxT > 0).astype(jnp.int32),
        )
        log_probability_BxT = token_log_probability(model, params, hidden_BxTxD, targets_BxT)
        of_answer_BxTxA = segment_ids_BxT[..., None] == jnp.arange(1, answers + 1)
        total_BxA = jnp.sum(jnp.where(of_answer_BxTxA, log_probability_BxT[..., None], 0.0), axis=1)
        return total_BxA, jnp.sum(of_answer_BxTxA, axis=1, dtype=jnp.int32)

    totals_CxBxA, counts_CxBxA = jax.lax.map(one_row, tuple(rows_CxBxT))
    tokens_BxA = jnp.sum(counts_CxBxA, axis=0)
    return Scores(jnp.where(tokens_BxA > 0, jnp.sum(totals_CxBxA, axis=0), -jnp.inf), tokens_BxA)


def token_log_probability(
    model: T5, params: Params, hidden_BxTxD: jax.Array, targets_BxT: jax.Array
):
    """log p(target) at each position, float32 [B, T], over slices of T so few logits exist at once.

    Slicing T and not the flattened positions leaves the batch axis to the mesh.
    """
    B, T, _ = hidden_BxTxD.shape
    width = max(1, min(T, LOGITS_AT_ONCE // (B * model.config.vocabulary_size)))
    slices = -(-T // width)
    pad = slices * width - T

    def in_slices(array):
        array = jnp.pad(array, ((0, 0), (0, pad)) + ((0, 0),) * (array.ndim - 2))
        return jnp.moveaxis(array.reshape(B, slices, width, *array.shape[2:]), 1, 0)

    def one_slice(arrays):
        hidden_BxWxD, targets_BxW = arrays
        logits_BxWxV = model.logits(params, hidden_BxWxD)
        chosen = jnp.take_along_axis(logits_BxWxV, targets_BxW[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits_BxWxV, axis=-1)

    parts = jax.lax.map(one_slice, (in_slices(hidden_BxTxD), in_slices(targets_BxT)))
    return jnp.moveaxis(parts, 0, 1).reshape(B, slices * width)[:, :T]
