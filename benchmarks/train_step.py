"""Training throughput on this machine: our packed step beside transformers' PyTorch T5.

    python -m benchmarks.train_step [--rounds 5] [--rows 20] [--dropout 0.1] ...

Both train a T5-small shape in float32 with CoIN and AdamW on the same sequences: contrastive sets
(a pair and its hard negative: two pairs, four sequences) of FLAN-like lengths.

    coin_jax       the real train step on really packed batches: one forward pass over rows that
                   hold several sequences each.
    transformers   the reference recipe: a forward pass over the anchors and one over the positives,
                   each batch padded to its longest sequence; pooled last decoder states; hard
                   negatives; one backward pass; fused AdamW.

They take turns, batch by batch, so that whatever else the machine does hits both. What is compared
is pairs per second: the ratio of the medians. Making batches is outside of the clock on both sides.
On a busy machine torch's threads wait for each other longer than XLA's: pin the run to one core
(`taskset -c 0 python -m ...`) and read the CPU seconds, which others' work hardly changes.
Without torch and transformers only our own figures are shown.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from coin_jax.config import BatchConfig, Config, ModelConfig, OptimizerConfig
from coin_jax.data.packing import PackedStream, Room, TokenizedSet, assemble
from coin_jax.model.t5 import T5
from coin_jax.objective import make_method
from coin_jax.parallel.mesh import make_mesh
from coin_jax.training.optimizer import make_optimizer
from coin_jax.training.state import create_state
from coin_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured."""

    rounds: int = 5
    """Turns that count, of one step each on the same batch; one more goes before for warming up."""
    batches: int = 4
    """Different batches, taken in a circle. Each is seen before the clock runs."""
    rows: int = 20
    """Rows of a packed batch. 20 of 256 tokens hold about 34 pairs (68 sequences)."""
    encoder_length: int = 256
    decoder_length: int = 48
    segments_per_row: int = 8
    dropout: float = 0.1
    """The same in both."""
    layers: int = 6
    """Of the encoder, and as many of the decoder."""
    heads: int = 8
    median_length: float = 70
    """Of inputs: log-normal with sigma 0.7, from 4 to `longest`. Wordings differ by up to 15."""
    longest: int = 128
    longest_answer: int = 16
    """Answers: log-normal with median 5 and sigma 0.6, at least 2."""
    torch: bool = True
    """Measure transformers' T5 as well, where it is installed."""
    torch_attention: Literal["sdpa", "eager"] = "eager"
    """With dropout and biases, eager is the faster one on CPU."""
    threads: int = 0
    """torch's threads; 0: one for each core, what XLA takes as well."""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Work:
    """One batch: its sequences, and the packed arrays of them."""

    sets: list[TokenizedSet]
    packed: dict[str, np.ndarray]

    @property
    def pairs(self) -> int:
        return sum(len(item.contents) for item in self.sets)

    @property
    def tokens(self) -> int:
        """Of inputs and targets, without padding."""
        return sum(len(ids) for item in self.sets for ids in (*item.encoder, *item.decoder))


def config_of(options: Options) -> Config:
    return Config(
        seed=options.seed,
        model=ModelConfig(
            d_model=512,
            d_kv=64,
            d_ff=1024,
            num_heads=options.heads,
            num_layers=options.layers,
            num_decoder_layers=options.layers,
            dropout_rate=options.dropout,
        ),
        batch=BatchConfig(
            rows=options.rows,
            encoder_length=options.encoder_length,
            decoder_length=options.decoder_length,
            segments_per_row=options.segments_per_row,
        ),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-4, weight_decay=0.01),
    )


def synthetic_set(position: int, options: Options, vocabulary: int) -> TokenizedSet:
    """A pair and its hard negative, as random tokens of realistic lengths."""
    random = np.random.default_rng((options.seed, position))

    def sequence(length: float, shortest: int, longest: int) -> np.ndarray:
        tokens = random.integers(2, vocabulary, int(np.clip(length, shortest, longest)))
        tokens[-1] = 1  # eos
        return tokens.astype(np.int32)

    encoder, decoder = [], []
    for _ in range(2):
        length = random.lognormal(np.log(options.median_length), 0.7)
        answer = sequence(random.lognormal(np.log(5), 0.6), 2, options.longest_answer)
        for difference in (0, random.integers(-15, 16)):
            encoder.append(sequence(length + difference, 4, options.longest))
            decoder.append(answer)
    return TokenizedSet(encoder, decoder, (2 * position, 2 * position + 1))


def make_work(options: Options, config: Config) -> list[Work]:
    shape = config.batch
    room = Room(shape.rows, shape.encoder_length, shape.decoder_length, shape.segments_per_row)
    stream = PackedStream(
        lambda position: synthetic_set(position, options, config.model.vocabulary_size),
        room,
        shape.window,
    )
    batches = [stream.next_batch() for _ in range(options.batches)]
    return [Work(batch.sets, assemble(batch, room, decoder_start_token_id=0)) for batch in batches]


class OurStep:
    """coin_jax as `coin_jax.train` runs it."""

    def __init__(self, config: Config):
        mesh = make_mesh(config.mesh)
        model = T5(config.model)
        optimizer = make_optimizer(config.optimizer, config.training.steps, model.logical_axes())
        self._step = make_train_step(model, make_method(config.objective), optimizer, config, mesh)
        self._state = create_state(model, optimizer, config, mesh)

    def __call__(self, work: Work) -> float:
        self._state, metrics = self._step(self._state, work.packed)
        jax.block_until_ready((self._state, metrics))
        return float(metrics["loss"])

    @staticmethod
    def padding(work: Work) -> float:
        used = np.count_nonzero(work.packed["encoder_segment_ids"])
        return 1 - used / work.packed["encoder_tokens"].size


class TransformersStep:
    """The reference recipe on transformers' T5ForConditionalGeneration."""

    def __init__(self, config: Config, options: Options):
        import torch
        import transformers

        self._torch = torch
        torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
        torch.manual_seed(options.seed)
        model, optimizer = config.model, config.optimizer
        self._model = transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=model.vocabulary_size,
                d_model=model.d_model,
                d_kv=model.d_kv,
                d_ff=model.d_ff,
                num_heads=model.num_heads,
                num_layers=model.num_layers,
                num_decoder_layers=model.num_decoder_layers,
                dropout_rate=model.dropout_rate,
                feed_forward_proj=model.feed_forward,
                tie_word_embeddings=False,
                decoder_start_token_id=0,
                use_cache=False,
                attn_implementation=options.torch_attention,
            )
        ).train()
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(),
            lr=optimizer.learning_rate,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )
        self._temperature = config.objective.temperature
        self._weight = config.objective.contrastive_weight
        self._clip_norm = config.optimizer.clip_norm

    def __call__(self, work: Work) -> float:
        generation, pooled = zip(*(self._forward(work, side) for side in (0, 1)), strict=True)
        generation = sum(generation)
        contrastive = self._contrastive(*pooled)
        factor = (generation / contrastive).detach().clamp(max=self._weight)
        loss = generation + factor * contrastive
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip_norm)
        self._optimizer.step()
        return loss.item()

    def _forward(self, work: Work, side: int):
        """(cross-entropy, last decoder states) of the anchors (side 0) or positives (side 1)."""
        torch = self._torch
        inputs = padded([ids for item in work.sets for ids in item.encoder[side::2]], 0)
        labels = padded([ids for item in work.sets for ids in item.decoder[side::2]], -100)
        input_ids, labels = torch.from_numpy(inputs), torch.from_numpy(labels)
        output = self._model(
            input_ids=input_ids,
            attention_mask=(input_ids != 0).long(),
            labels=labels,
            output_hidden_states=True,
        )
        last = (labels != -100).sum(dim=1) - 1
        return output.loss, output.decoder_hidden_states[-1][torch.arange(len(last)), last]

    def _contrastive(self, anchors, positives):
        """Each anchor tells its positive from that of its hard negative, which stands beside it."""
        functional = self._torch.nn.functional
        anchors, positives = (
            functional.normalize(x, dim=-1).reshape(-1, 2, x.shape[-1])
            for x in (anchors, positives)
        )
        scores = anchors @ positives.transpose(1, 2) / self._temperature
        own = self._torch.arange(2).repeat(len(scores))
        return (
            functional.cross_entropy(scores.reshape(-1, 2), own)
            + functional.cross_entropy(scores.transpose(1, 2).reshape(-1, 2), own)
        ) / 2

    @staticmethod
    def padding(work: Work) -> float:
        sides = [[ids for item in work.sets for ids in item.encoder[side::2]] for side in (0, 1)]
        arrays = [padded(side, 0) for side in sides]
        return 1 - sum(map(np.count_nonzero, arrays)) / sum(array.size for array in arrays)


def padded(sequences: Sequence[np.ndarray], filler: int) -> np.ndarray:
    """int64 [sequences, longest]."""
    array = np.full((len(sequences), max(map(len, sequences))), filler, np.int64)
    for row, ids in zip(array, sequences, strict=True):
        row[: len(ids)] = ids
    return array


Seconds = dict[str, list[float]]
"""Of every turn, per pair, by contestant."""


def measure(contestants: dict[str, Any], work: list[Work], rounds: int) -> tuple[Seconds, Seconds]:
    """By the clock, and of CPU time in all threads."""
    seconds: Seconds = {name: [] for name in contestants}
    cpu_seconds: Seconds = {name: [] for name in contestants}
    for step in contestants.values():
        for item in work:
            step(item)
    for turn in track(range(rounds), "measuring", transient=True):
        item = work[turn % len(work)]
        for name, step in contestants.items():
            began, cpu_began = time.perf_counter(), time.process_time()
            loss = step(item)
            seconds[name].append((time.perf_counter() - began) / item.pairs)
            cpu_seconds[name].append((time.process_time() - cpu_began) / item.pairs)
            if not np.isfinite(loss):
                raise RuntimeError(f"{name} computed a loss of {loss}: nothing to measure")
    return seconds, cpu_seconds


def report(
    console: Console,
    options: Options,
    work: list[Work],
    contestants: dict[str, Any],
    seconds: Seconds,
    cpu_seconds: Seconds,
) -> None:
    pairs = statistics.mean(item.pairs for item in work)
    tokens = statistics.mean(item.tokens / item.pairs for item in work)
    title = f"training on {cpu()}, {pairs:.0f} pairs a batch"
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    columns = ("pairs/s", "tokens/s", "s/100", "range", "CPU s/100", "padding")
    for column in columns:
        table.add_column(column, justify="right")
    for name, step in contestants.items():
        middle = statistics.median(seconds[name])
        table.add_row(
            name,
            f"{1 / middle:.2f}",
            f"{tokens / middle:,.0f}",
            f"{100 * middle:.2f}",
            f"{100 * min(seconds[name]):.1f}..{100 * max(seconds[name]):.1f}",
            f"{100 * statistics.median(cpu_seconds[name]):.1f}",
            f"{statistics.mean(map(step.padding, work)):.1%}",
        )
    console.print(table)
    if len(contestants) == 2:
        ours, theirs = (seconds[name] for name in contestants)
        ratio = statistics.median(theirs) / statistics.median(ours)
        turns = sorted(b / a for a, b in zip(ours, theirs, strict=True))
        console.print(
            f"coin_jax trains [bold]{ratio:.2f}[/bold] times as many pairs per second "
            f"(turn by turn {turns[0]:.2f} to {turns[-1]:.2f})"
        )
    length = f"{options.encoder_length} input and {options.decoder_length} target tokens"
    console.print(
        f"T5 d 512, {options.layers}+{options.layers} layers, {options.heads} heads of 64, "
        f"gated-gelu 1024, vocabulary 32128, untied; float32, AdamW, dropout {options.dropout}, "
        f"CoIN with hard negatives. Rows of {length}; s/100: seconds per 100 pairs. "
        + versions(contestants),
        style="dim",
        highlight=False,
    )


def cpu() -> str:
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg()[:1])
    return f"{len(os.sched_getaffinity(0))} cores of {platform.machine()} (load {load})"


def versions(contestants) -> str:
    names = ["jax", "flax"] + (["torch", "transformers"] if len(contestants) > 1 else [])
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names) + "."


def main(options: Options) -> None:
    console = Console()
    config = config_of(options)
    work = make_work(options, config)
    contestants: dict[str, Any] = {}
    with console.status("compiling"):
        contestants["coin_jax"] = OurStep(config)
        contestants["coin_jax"](work[0])
        if options.torch:
            try:
                contestants["transformers"] = TransformersStep(config, options)
            except ImportError as error:
                console.print(f"Only ours, without a comparison: {error}.")
    report(console, options, work, contestants, *measure(contestants, work, options.rounds))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
