"""The data pipeline: padding, batches and pairs a second, and how many times a CPU training step's.

Lengths are like FLAN's: log-normal, median 70, cut at 256, with answers of up to 16 tokens. First
the sequences are made of random ids, which times shuffling, packing and tf.data; then of words,
which adds prompts and tokenisation, in every batch mode and in a mixture of many tasks; with
--text also span corruption. Last, in the same run, a training step of a T5-small-like model on such
batches, and how many times as fast the data is.

    python -m benchmarks.data_pipeline --tokenizer FOLDER_OR_FILE
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import pathlib
import time

import jax
import numpy as np

from coin_jax.config import (
    BatchConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TokenizerConfig,
)
from coin_jax.data.collection import make_pair_source
from coin_jax.data.mixture import Mixture, make_mixture
from coin_jax.data.packing import TokenizedSet
from coin_jax.data.pairs import (
    ContrastiveSet,
    TokenizedInstances,
    TokenizedPairs,
    training_texts,
)
from coin_jax.data.pipeline import BatchPipeline
from coin_jax.data.sources import expand_files
from coin_jax.data.span_corruption import SpanCorruption, read_tokens
from coin_jax.data.templates import Piece, Prompt
from coin_jax.data.tokenizer import make_tokenizer
from coin_jax.model.t5 import T5
from coin_jax.objective import make_method
from coin_jax.parallel.mesh import make_mesh
from coin_jax.training.optimizer import make_optimizer
from coin_jax.training.state import create_state
from coin_jax.training.step import make_train_step

LONGEST_INPUT, LONGEST_ANSWER = 256, 16
SETS = 50_000
DIFFERENT = 5_000
"""Sets whose lengths are drawn; the others repeat them."""
TASKS = 1_800
"""In the mixture, as many as FLAN has."""


@functools.cache  # drawing them takes longer than tokenising
def flan_like_lengths(index: int, pairs: int) -> tuple[list[int], list[int]]:
    """(input, answer) lengths of a set's sequences; two wordings differ by a few tokens."""
    random = np.random.default_rng(index)
    inputs = np.clip(random.lognormal(np.log(70), 0.7, pairs), 8, LONGEST_INPUT)
    others = np.clip(inputs + random.integers(-15, 16, pairs), 8, LONGEST_INPUT)
    answers = np.clip(random.lognormal(np.log(4), 0.6, pairs), 2, LONGEST_ANSWER)
    both = np.stack([inputs, others], axis=1).astype(int).ravel().tolist()
    return both, np.repeat(answers.astype(int), 2).tolist()


class RandomIds:
    """Sequences of FLAN-like lengths that cost nothing to make."""

    def __init__(self, pairs: int):
        random = np.random.default_rng(0)
        ids = random.integers(3, 32000, LONGEST_INPUT).astype(np.int32)
        self._sets = []
        for index in range(DIFFERENT):
            inputs, answers = flan_like_lengths(index, pairs=pairs)
            cut = [[ids[-length:] for length in side] for side in (inputs, answers)]
            self._sets.append(TokenizedSet(*cut, contents=tuple(range(pairs))))

    def __len__(self) -> int:
        return SETS

    def tokenized(self, index: int, epoch: int) -> TokenizedSet:
        return self._sets[index % len(self._sets)]


class Words:
    """Prompts of words, as many as make FLAN-like numbers of tokens. See pairs.PairSource."""

    notes = ()

    def __init__(self, words: list[str], tokens_per_word: float):
        self._words, self._rate = words, tokens_per_word
        for index, pairs in itertools.product(range(DIFFERENT), (1, 2)):
            flan_like_lengths(index, pairs=pairs)
        # Sizes that fall with the rank, as those of a large collection do.
        ends = [round(SETS * (n / TASKS) ** 0.3) for n in range(TASKS + 1)]
        self.tasks = {
            f"task {n}": range(*bounds) for n, bounds in enumerate(itertools.pairwise(ends))
        }

    def __len__(self) -> int:
        return SETS

    def get(self, index: int, epoch: int) -> ContrastiveSet:
        lengths = flan_like_lengths(index % DIFFERENT, pairs=2)[0]
        prompts = tuple(self._prompt(index, length) for length in lengths)
        return ContrastiveSet(prompts, (2 * index, 2 * index + 1))

    def single(self, index: int, epoch: int, turn: int | None = None) -> Prompt:
        lengths = flan_like_lengths(index % DIFFERENT, pairs=1)[0]
        return self._prompt(index, lengths[(epoch if turn is None else turn) % 2])

    def _prompt(self, index: int, length: int) -> Prompt:
        first = index * 97 % (len(self._words) - LONGEST_INPUT)
        text = " ".join(self._words[first : first + max(1, round(length / self._rate))])
        pieces = (Piece("Answer the question: ", False), Piece(text, True))
        return Prompt(pieces, "yes" if index % 2 else "no")

    def tightest(self):
        return iter(())

    def without(self, places: set[str]) -> Words:
        return self


_RATES = ("batches", "pairs", "sequences")


def measure(
    name: str, source, batch: BatchConfig, seconds: float, mixture: Mixture | None = None
) -> float:
    """Pairs a second of the pipeline alone."""
    with BatchPipeline(source, batch, seed=0, mixture=mixture) as pipeline:
        for _ in range(batch.prefetch + 1):
            next(pipeline)  # until as many are prefetched as will be at the end
        before = pipeline.statistics()
        worst, start = 0.0, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds:
            arrays = next(pipeline)
            worst = max(
                worst,
                1
                - np.count_nonzero(arrays["encoder_segment_ids"])
                / arrays["encoder_segment_ids"].size,
            )
        after = pipeline.statistics()
    rates = {kind: (after[kind] - before[kind]) / passed for kind in _RATES}
    print(
        f"{name:34s} rows {batch.rows:4d}  padding {after['encoder_padding']:5.1%} (worst batch "
        f"{worst:5.1%})  decoder {after['decoder_padding']:5.1%}  cut "
        f"{after['cut'] / after['sequences']:4.1%}  {rates['batches']:6,.1f} batches/s  "
        f"{rates['pairs']:7,.0f} pairs/s  {rates['sequences']:7,.0f} sequences/s"
    )
    return rates["pairs"]


def step_rate(batch: BatchConfig, steps: int) -> float:
    """Pairs a second of the training step alone, T5-small shape, float32, AdamW."""
    config = Config(
        model=ModelConfig(num_heads=8, num_layers=6, num_decoder_layers=6, dropout_rate=0.0),
        optimizer=OptimizerConfig(name="adamw"),
        batch=batch,
    )
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    model, method = T5(config.model), make_method(config.objective)
    optimizer = make_optimizer(config.optimizer, config.training.steps, model.logical_axes())
    state = create_state(model, optimizer, config, mesh)
    train_step = make_train_step(model, method, optimizer, config, mesh)
    with BatchPipeline(RandomIds(pairs=2), batch, seed=0) as pipeline:
        batches = [next(pipeline) for _ in range(steps + 1)]
    state, metrics = train_step(state, batches[0])  # compiles
    jax.block_until_ready(metrics)
    start = time.perf_counter()
    for arrays in batches[1:]:
        state, metrics = train_step(state, arrays)
    jax.block_until_ready((state, metrics))
    passed = time.perf_counter() - start
    pairs = sum(np.count_nonzero(arrays["pair_sets"] >= 0) for arrays in batches[1:])
    print(
        f"training step, d 512, 6+6 layers, V {config.model.vocabulary_size}, rows {batch.rows}: "
        f"{passed / steps:.2f} s, {pairs / passed:.1f} pairs/s on {jax.devices()[0].device_kind}"
    )
    return pairs / passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", default="", help="empty: one trained on built-in text")
    parser.add_argument("--text", nargs="*", default=[], help=".txt(.gz) for span corruption")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 16, 64, 256])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--steps", type=int, default=5, help="training steps; 0: none")
    options = parser.parse_args()

    batch = BatchConfig(rows=16, encoder_length=LONGEST_INPUT, decoder_length=48)
    for pairs, rows in itertools.product((1, 2), options.rows):
        name = f"random ids, {pairs} pair(s) a set"
        measure(name, RandomIds(pairs), dataclasses.replace(batch, rows=rows), options.seconds)

    builtin = make_pair_source(DataConfig(builtin_rows=2000), seed=0)
    texts = list(itertools.islice(training_texts(builtin, seed=0), 3000))
    kind = "huggingface" if options.tokenizer.endswith(".json") else "sentencepiece"
    tokenizer = make_tokenizer(TokenizerConfig(kind=kind, path=options.tokenizer), texts)
    words = " ".join(texts).split()
    tokens_per_word = len(tokenizer.encode(" ".join(words))) / len(words)
    name = f"tokenised words ({pathlib.Path(options.tokenizer).name or 'trained'})"
    collection = Words(words, tokens_per_word)
    source = TokenizedPairs(collection, tokenizer, batch)
    alone = measure(name, source, batch, options.seconds)
    mixture = make_mixture(collection.tasks, DataConfig(mixture_cap=100), seed=0)
    measure(f"  in a mixture of {TASKS} tasks", source, batch, options.seconds, mixture)
    for mode in ("mixed_wordings", "one_wording"):
        one_mode = dataclasses.replace(batch, mode=mode)
        instances = TokenizedInstances(collection, tokenizer, one_mode)
        measure(f"  {mode}", instances, one_mode, options.seconds)
    measure("built-in tasks", TokenizedPairs(builtin, tokenizer, batch), batch, options.seconds)
    if options.text:
        tokens, _ = read_tokens(expand_files(options.text, "--text"), tokenizer)
        row = dataclasses.replace(batch, decoder_length=58)
        text = SpanCorruption(tokens, tokenizer, row, DataConfig(), seed=0)
        measure("span corruption", text, row, options.seconds)
    if options.steps:
        step = step_rate(batch, options.steps)
        # Once more, as the machine may have had other work in the meantime.
        alone = min(alone, measure(name, source, batch, options.seconds))
        print(f"the pipeline with tokenisation delivers {alone / step:.0f} times what it consumes")


if __name__ == "__main__":
    main()
