"""Text in, answers and scores out: a model, its parameters and its tokenizer, batched well.

Prompts are sorted by length, filled up to one of few lengths and few batch sizes so that few
programs are compiled, and answered in the order in which they came. What comes out does not depend
on how prompts fall into batches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from coin_jax.config import Pooling, TokenizerConfig
from coin_jax.data.templates import Prompt
from coin_jax.data.tokenizer import Tokenizer, encode_prompts, make_tokenizer
from coin_jax.model.attention import check_fused
from coin_jax.model.generation import Generated, GenerationSettings, generate, score_answers
from coin_jax.model.t5 import T5
from coin_jax.objective.pooling import pool
from coin_jax.parallel.sharding import batch_shard_count, batch_shardings, replicated
from coin_jax.untrusted import UntrustedError, read_json

ANSWER_ROW = 64
"""Answer tokens packed into one decoder row, unless one answer alone is longer. Attention between
the answers of a row is computed and masked away, so longer rows waste more."""


def bucket(length: int) -> int:
    """The smallest of 8, 16, 24, 32, 48, 64, 96, 128, ... that holds `length`."""
    size = max(8, 1 << (length - 1).bit_length())
    return size * 3 // 4 if size >= 32 and length <= size * 3 // 4 else size


class Predictor:
    """Answers and scores prompts; an `AnswerScorer` of coin_jax.robustness.scoring.

    A prompt is text, a `coin_jax.data.templates.Prompt` (whose input fields are cut where it is too
    long, never the instruction), or token ids that end with end-of-sequence.

    With a `mesh`, rows of a batch are spread over its data axes, and `params` may be sharded.
    Where several hosts share it, each must make the same calls.
    """

    def __init__(
        self,
        model: T5,
        params: Any,
        tokenizer: Tokenizer,
        *,
        batch_size: int = 64,
        max_input_length: int = 512,
        mesh: jax.sharding.Mesh | None = None,
    ):
        """`batch_size`: prompts at a time at most, rounded up to what the mesh divides.
        `max_input_length`: tokens a prompt is cut to, end-of-sequence included."""
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; allowed: 1 or more")
        if max_input_length < 2:
            raise ValueError(f"max_input_length is {max_input_length}; allowed: 2 or more")
        if tokenizer.vocabulary_size > model.config.vocabulary_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocabulary_size} tokens and the model "
                f"{model.config.vocabulary_size}: they do not belong together"
            )
        self.model, self.params, self.tokenizer = model, params, tokenizer
        self.max_input_length, self.mesh = max_input_length, mesh
        self._shards = 1 if mesh is None else batch_shard_count(mesh)
        self.batch_size = self._shards * -(-batch_size // self._shards)

    @classmethod
    def from_checkpoint(cls, checkpoint: str | pathlib.Path, **settings: Any) -> Predictor:
        """Loads a run of ours (its newest checkpoint, or RUN/checkpoints/STEP), or a Hugging Face
        folder or name such as google/flan-t5-base.

        `settings` as for the constructor. ValueError where there is none, with what was looked for.
        """
        folder = pathlib.Path(checkpoint).expanduser()
        if folder.is_dir() and not _is_huggingface(folder):
            from coin_jax.training.checkpoint import CheckpointError, load_parameters

            try:
                config, params = load_parameters(folder)
            except CheckpointError as error:
                raise ValueError(str(error)) from error
            model_config = config.model
            run = folder if (folder / "tokenizer").is_dir() else folder.absolute().parents[1]
            choice = dataclasses.replace(config.tokenizer, path=str(run / "tokenizer"))
            settings.setdefault("max_input_length", config.batch.encoder_length)
        else:
            from coin_jax.model import huggingface

            folder = huggingface.find(checkpoint)
            model_config, params = huggingface.load(folder)
            choice = TokenizerConfig(kind="huggingface", path=str(folder))
        params = jax.tree.map(jnp.asarray, params)
        check_fused(model_config)
        return cls(T5(model_config), params, make_tokenizer(choice), **settings)

    @functools.cached_property
    def identity(self) -> str:
        """Tells its parameters, architecture and tokenizer from all others."""
        leaves = jax.tree_util.tree_leaves_with_path(self.params)
        return fingerprint(
            repr((self.model.config, self.max_input_length)),
            ((jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in leaves),
            self.tokenizer.save,
        )

    # --- what it is asked -----------------------------------------------------------------

    def score(
        self,
        prompts: Sequence[Any],
        answers: Sequence[str] | Sequence[Sequence[str]],
        length_normalized: bool = False,
    ) -> np.ndarray:
        """Log-likelihood of answers to prompts, float32 [prompts, answers].

        `answers`: one list for all prompts, or one a prompt; where those are of different lengths
        the missing ones score -inf. The likelihood is that of the whole answer, end-of-sequence
        included. `length_normalized` divides it by the number of tokens it sums over.
        """
        if not len(answers) or not all(len(entry) for entry in answers):
            raise ValueError("score needs at least one answer, and none of them empty")
        if not len(prompts):
            return np.zeros((0, len(answers) if isinstance(answers[0], str) else 0), np.float32)
        if isinstance(answers[0], str):
            lists = [tuple(answers)]
        else:
            lists = [tuple(entry) for entry in answers]
            if len(lists) != len(prompts):
                raise ValueError(f"{len(prompts)} prompts, but {len(lists)} lists of answers")
            if all(entry == lists[0] for entry in lists):
                lists = lists[:1]
        packed_LxCxT, most = self._pack(lists)

        def run(chosen: np.ndarray, tokens: Any, segments: Any) -> Any:
            shared = len(lists) == 1
            decoder = [field if shared else field[chosen] for field in packed_LxCxT]
            decoder = [jnp.asarray(a) if shared else self._put(a) for a in decoder]
            return score_answers(self.model, self.params, tokens, segments, *decoder, answers=most)

        result = np.full((len(prompts), most), -np.inf, np.float32)
        for chosen, scores in self._batches(self._encode(prompts), run):
            likelihood, tokens = scores
            result[chosen] = likelihood / np.maximum(tokens, 1) if length_normalized else likelihood
        return result

    def generate(
        self, prompts: Sequence[Any], *, seed: int = 0, first: int = 0, **settings: Any
    ) -> list[str]:
        """One answer a prompt: the best or first of `candidates`."""
        many = self.candidates(prompts, seed=seed, first=first, **settings)
        return [answers[0] for answers in many]

    def candidates(
        self, prompts: Sequence[Any], *, seed: int = 0, first: int = 0, **settings: Any
    ) -> list[list[str]]:
        """Several answers a prompt; `settings` are the fields of `GenerationSettings`.

        What is drawn for a prompt depends on `seed` and its number, which counts from `first`: a
        long list handed over in parts is answered as if it came whole.
        """
        settings = GenerationSettings(**settings)
        base = jax.random.key(seed)
        fold = jax.vmap(jax.random.fold_in, (None, 0))

        def run(chosen: np.ndarray, tokens: Any, segments: Any) -> Generated:
            keys = fold(base, jnp.asarray(chosen + first, jnp.uint32))
            return generate(self.model, self.params, tokens, segments, keys, settings=settings)

        result: list[list[str]] = [[] for _ in prompts]
        for chosen, (tokens_BxCxT, _) in self._batches(self._encode(prompts), run):
            for index, tokens_CxT in zip(chosen, tokens_BxCxT, strict=True):
                result[index] = [self._text(tokens) for tokens in tokens_CxT]
        return result

    def pooled_states(
        self,
        prompts: Sequence[Any],
        answers: Sequence[str],
        kinds: Sequence[Pooling] = get_args(Pooling),
    ) -> dict[str, np.ndarray]:
        """The states that the contrastive term compares: {kind: float32 [prompts, D]}.

        `answers`: one a prompt, given to the decoder as in training.
        """
        if len(answers) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts, but {len(answers)} answers")
        result = {
            kind: np.zeros((len(prompts), self.model.config.d_model), np.float32) for kind in kinds
        }
        if not len(prompts):
            return result
        (inputs_Nx1xT, _, segments_Nx1xT), _ = self._pack([(answer,) for answer in answers])

        def run(chosen: np.ndarray, tokens: Any, segments: Any) -> Any:
            decoder = [self._put(a[chosen, 0]) for a in (inputs_Nx1xT, segments_Nx1xT)]
            return _pooled(self.model, self.params, tokens, segments, *decoder, kinds=tuple(kinds))

        for chosen, states in self._batches(self._encode(prompts), run):
            for kind, states_BxD in states.items():
                result[kind][chosen] = states_BxD
        return result

    def answer_lengths(self, answers: Sequence[str]) -> list[int]:
        """Tokens that the likelihood of each answer is a product over, end-of-sequence included."""
        return [len(ids) + 1 for ids in self.tokenizer.encode_batch(list(answers))]

    # --- between text and batches ---------------------------------------------------------

    def _encode(self, prompts: Sequence[Any]) -> list[Sequence[int]]:
        """Ids of each prompt, end-of-sequence included; each kind of prompt in one go."""
        texts = [index for index, prompt in enumerate(prompts) if isinstance(prompt, str)]
        parted = [index for index, prompt in enumerate(prompts) if isinstance(prompt, Prompt)]
        encoded: list[Any] = list(prompts)
        ids = self.tokenizer.encode_batch([prompts[index] for index in texts])
        for index, tokens in zip(texts, ids, strict=True):
            encoded[index] = [*tokens[: self.max_input_length - 1], self.tokenizer.eos_id]
        parts = [prompts[index] for index in parted]
        ids = encode_prompts(self.tokenizer, parts, self.max_input_length, sys.maxsize)
        for index, prompt in zip(parted, ids, strict=True):
            encoded[index] = prompt.input
        return encoded

    def _text(self, tokens: np.ndarray) -> str:
        ends = np.flatnonzero(tokens == self.model.config.eos_token_id)
        kept = tokens[: ends[0]] if len(ends) else tokens
        # Models have more rows than their tokenizer has tokens; chance can choose such a row.
        return self.tokenizer.decode([int(t) for t in kept if t < self.tokenizer.vocabulary_size])

    def _pack(self, lists: Sequence[tuple[str, ...]]) -> tuple[list[np.ndarray], int]:
        """Inputs, targets and segment ids [lists, C, T] of each list's answers, and the longest
        list's length. Answer a is segment a + 1; rows are filled in order."""
        start, eos = self.model.config.decoder_start_token_id, self.tokenizer.eos_id
        ids: dict[str, list[int]] = {}
        for text in dict.fromkeys(answer for entry in lists for answer in entry):
            ids[text] = [*self.tokenizer.encode(text), eos]
        width = bucket(max(map(len, ids.values())))
        totals = [sum(len(ids[answer]) for answer in entry) for entry in lists]
        width = max(width, min(ANSWER_ROW, bucket(max(totals))))
        places: list[list[tuple[int, int]]] = []  # of each answer: its row and where it begins
        for entry in lists:
            row = column = 0
            places.append([])
            for answer in entry:
                if column + len(ids[answer]) > width:
                    row, column = row + 1, 0
                places[-1].append((row, column))
                column += len(ids[answer])
        rows = 1 + max(row for entry in places for row, _ in entry)
        fields = [np.zeros((len(lists), rows, width), np.int32) for _ in range(3)]
        inputs, targets, segments = fields
        for number, (entry, where) in enumerate(zip(lists, places, strict=True)):
            for segment, (answer, (row, column)) in enumerate(zip(entry, where, strict=True), 1):
                span = (number, row, slice(column, column + len(ids[answer])))
                targets[span] = ids[answer]
                inputs[span] = [start, *ids[answer][:-1]]
                segments[span] = segment
        return fields, max(map(len, lists))

    def _put(self, array: np.ndarray) -> jax.Array:
        """Rows over the data axes of the mesh."""
        if self.mesh is None:
            return jnp.asarray(array)
        rows = batch_shardings(self.mesh, ["encoder_tokens"])["encoder_tokens"]
        # Not device_put, which compares the arrays of all processes first.
        return jax.make_array_from_callback(array.shape, rows, lambda index: array[index])

    def _batches(
        self, encoded: list[Sequence[int]], run: Callable[[np.ndarray, Any, Any], Any]
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """(indices of prompts, what `run` gave for them as numpy), longest prompts first.

        A batch that is not full repeats its last prompt, so that no search goes on for its sake.
        The next batch is dispatched before the last one's results are waited for.
        """
        if not encoded:
            return
        order = np.argsort([-len(ids) for ids in encoded], kind="stable")
        rows = min(self.batch_size, 1 << (len(encoded) - 1).bit_length())
        rows = self._shards * -(-rows // self._shards)
        waiting = None
        for begin in range(0, len(order), rows):
            chosen = order[begin : begin + rows]
            filled = np.concatenate([chosen, np.repeat(chosen[-1:], rows - len(chosen))])
            length = bucket(len(encoded[chosen[0]]))
            tokens = np.zeros((rows, length), np.int32)
            segments = np.zeros((rows, length), np.int32)
            for row, index in enumerate(filled):
                tokens[row, : len(encoded[index])] = encoded[index]
                segments[row, : len(encoded[index])] = 1
            with jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext():
                output = run(filled, self._put(tokens), self._put(segments))
                if self.mesh is not None:
                    output = _replication(self.mesh)(output)
            if waiting is not None:
                yield self._fetch(*waiting)
            waiting = chosen, output
        yield self._fetch(*waiting)

    @staticmethod
    def _fetch(chosen: np.ndarray, output: Any) -> tuple[np.ndarray, Any]:
        return chosen, jax.tree.map(lambda array: np.asarray(array)[: len(chosen)], output)


def fingerprint(
    architecture: str, parameters: Iterable[tuple[str, Any]], save_tokenizer: Callable[[str], Any]
) -> str:
    """A digest of all that a model's answers depend on."""
    digest = hashlib.sha256(architecture.encode())
    for name, array in parameters:
        array = np.ascontiguousarray(array)
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(folder)
        for file in sorted(pathlib.Path(folder).rglob("*")):
            if file.is_file():
                digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


@functools.partial(jax.jit, static_argnames=("model", "kinds"))
def _pooled(
    model: T5,
    params: Any,
    encoder_tokens_BxS: jax.Array,
    encoder_segment_ids_BxS: jax.Array,
    decoder_inputs_BxT: jax.Array,
    decoder_segment_ids_BxT: jax.Array,
    *,
    kinds: tuple[Pooling, ...],
) -> dict[str, jax.Array]:
    """{kind: float32 [B, D]}, of one prompt and one answer a row."""
    encoded_BxSxD = model.encode(params, encoder_tokens_BxS, encoder_segment_ids_BxS)
    hidden_BxTxD = model.decode(
        params, decoder_inputs_BxT, decoder_segment_ids_BxT, encoded_BxSxD, encoder_segment_ids_BxS
    )
    states = {
        "encoder": (encoded_BxSxD, encoder_segment_ids_BxS),
        "decoder": (hidden_BxTxD, decoder_segment_ids_BxT),
    }
    return {kind: pool(*states[kind.split("_")[0]], 1, kind) for kind in kinds}


@functools.lru_cache(maxsize=8)
def _replication(mesh: jax.sharding.Mesh) -> Callable[[Any], Any]:
    """Puts results on every device, so that each host can read all of them."""
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def _is_huggingface(folder: pathlib.Path) -> bool:
    """Whether a folder's config.json is one that transformers wrote."""
    try:
        config = read_json(folder / "config.json")
    except (OSError, UntrustedError):
        return False
    return isinstance(config, dict) and not config.keys().isdisjoint(
        ("model_type", "architectures")
    )
