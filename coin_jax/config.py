"""The configuration of a run: frozen dataclasses that are the schema and its documentation.

`config_files` reads and writes them; `validate` refuses what no run can use, before anything is
compiled.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterator
from typing import Any, Literal

from coin_jax.type_errors import type_errors

Pooling = Literal["decoder_last", "decoder_first", "decoder_mean", "encoder_mean", "encoder_last"]


class ConfigError(ValueError):
    """A configuration that cannot be run: one line a fault, each naming field, value and remedy."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The T5 architecture. Field names follow T5's own config.json where it has them."""

    init_from: str = ""
    """Hugging Face name or local folder of pretrained weights; its config.json then overrides the
    architecture fields below. Empty: random weights."""
    vocabulary_size: int = 32128
    """Rows of the embedding, at least the tokenizer's size."""
    d_model: int = 512
    d_kv: int = 64
    """Size of one attention head; heads x head size need not equal d_model."""
    d_ff: int = 1024
    num_heads: int = 6
    num_layers: int = 8
    num_decoder_layers: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    relative_bias_every_layer: bool = False
    """umT5: each layer has a relative bias of its own; elsewhere the first layer's is shared."""
    feed_forward: Literal["relu", "gated-gelu", "gated-silu"] = "gated-gelu"
    tie_word_embeddings: bool = False
    """T5 1.0: the head is the embedding, transposed."""
    scale_decoder_outputs: bool = False
    """T5 1.0: decoder outputs are multiplied by d_model^-0.5 before the head."""
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and matrix products. Parameters, softmax, norms and losses stay float32.
    float16 is not offered: T5's activations overflow in it."""
    remat: Literal["none", "minimal", "wide", "full"] = "none"
    """What the backward pass recomputes: nothing; all but matrix products; these too, but for the
    `wide` ones of feed-forward layers; everything."""
    attention: Literal["auto", "plain", "fused"] = "auto"
    """`fused`: one kernel for TPUs that keeps the scores on the chip; elsewhere it is interpreted,
    which only tests want. `auto`: that on TPUs, where lengths and heads fit, else `plain`."""
    scan_unroll: int = 0
    """Layers unrolled in the scan over them; 0: all of them on CPU, where it saves 20%, else 1."""


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """What turns text into ids."""

    kind: Literal["huggingface", "sentencepiece", "bytes"] = "huggingface"
    """`sentencepiece` with an empty path trains a model on the run's own training text."""
    path: str = ""
    """Hugging Face name, folder, tokenizer.json, or SentencePiece .model file."""
    vocabulary_size: int = 4000
    """Pieces of a SentencePiece model that the run trains."""


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """How the rows of one task fit its instruction templates."""

    name: str = ""
    """As in the rows' `task`."""
    templates: str = ""
    """Its name in the template file; empty: the same."""
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    """Row field -> template placeholder, where they differ."""
    answers: dict[str, str] = dataclasses.field(default_factory=dict)
    """Label -> answer text, in the order in which options are listed; empty: the labels as they
    are, sorted."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where training text comes from and which pairs are made of it."""

    source: Literal["builtin", "tasks", "pairs", "set", "text"] = "builtin"
    """`builtin` generated sentences; `tasks` rows and templates; `pairs` ready pairs; `set` a
    contrastive set that `coin_jax.paraphrase` built; `text` plain text for span corruption."""
    files: tuple[str, ...] = ()
    """Training files or glob patterns: JSONL rows for `tasks`; CSV, JSONL or Parquet for `pairs`
    (original_instruction, paraphrased_instruction, targets, task); the folder of a `set`; .txt or
    .txt.gz for `text`."""
    evaluation_files: tuple[str, ...] = ()
    """Rows held out for evaluation, of the same form. A task without any keeps 5% of its training
    rows for it, at most 500."""
    template_files: tuple[str, ...] = ()
    """JSON {task: [{"input", "target"}]}; for source `tasks`."""
    tasks: tuple[TaskConfig, ...] = ()
    """Tasks to use and how they fit their templates; empty: every task of the files, as it is."""
    held_out_wordings: int = 2
    """Templates of each task kept from training, for the accuracy on unseen wordings."""
    rows_per_task: int = 0
    """At most so many training rows of each task, the first ones after a shuffle; 0: all."""
    bad_rows: Literal["error", "skip"] = "error"
    """What an unreadable row does: end the run with file and line, or be counted and left out."""
    odd_rows_are_hard_negatives: bool = False
    """For `pairs`: every odd row is the hard negative of the row above it. Otherwise hard
    negatives are drawn from the same task and wording."""
    mixture_weights: dict[str, float] = dataclasses.field(default_factory=dict, hash=False)
    """Task -> its share of the sets, in any unit; a task that is not named has none. Empty: shares
    by size, through the next two."""
    mixture_cap: int = 0
    """No task counts as larger than this (Raffel et al. 2020, section 3.5.2); 0: no cap."""
    mixture_temperature: float = 1.0
    """Shares are proportional to size^(1 / temperature): 1 by size, large: nearly equal."""
    builtin_rows: int = 20000
    """Training instances of the built-in generator."""
    noise_density: float = 0.15
    """For `text`: share of tokens that are masked (Raffel et al. 2020, section 3.1.4)."""
    mean_noise_span_length: float = 3.0
    """For `text`: mean tokens of a masked span."""


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """The shape of one global batch: rows that hold several packed sequences each."""

    mode: Literal["pairs", "mixed_wordings", "one_wording"] = "pairs"
    """`pairs`: every instance in two wordings, beside its hard negative. `mixed_wordings`: every
    instance once, in a wording of its own. `one_wording`: the same, with one wording of each task
    in a batch. The last two hold no pairs: for objective.method `cross_entropy`."""
    rows: int = 16
    encoder_length: int = 256
    """Tokens a row on the encoder side; longer inputs are cut to it."""
    decoder_length: int = 48
    """Target tokens a row."""
    segments_per_row: int = 8
    """Sequences a row holds at most."""
    window: int = 16
    """Sets (pairs with their hard negatives) that a batch's last gaps are filled from, 1 to 64: so
    far may packing leave the shuffled order. More than 16 gains nothing."""
    shards: int = 1
    """Independent streams the batch is made of; a multiple of the number of hosts. The order of
    data depends on this number and not on the hosts."""
    prefetch: int = 4
    """Batches prepared ahead."""


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The loss. `method` names a file of coin_jax/objective through its registry."""

    method: str = "coin"
    """`coin`, or `cross_entropy` for pretraining and plain fine-tuning."""
    contrastive_weight: float = 1000.0
    """CoIN's lambda: the cap of the contrastive term's factor. 0 is continual instruction tuning
    on the same pairs, the reference baseline."""
    temperature: float = 0.05
    negatives: Literal["hard", "batch"] = "hard"
    """What an anchor is told apart from: its hard negative, or every pair of the global batch."""
    pooling: Pooling = "decoder_last"
    """Which hidden states stand for a sequence."""
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    """Weight of log(Z)^2, which keeps logits from drifting (1e-4 in T5X)."""
    head_chunk: int = 256
    """Target positions whose logits exist at a time."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    name: Literal["adamw", "adafactor"] = "adamw"
    learning_rate: float = 1e-3
    """The peak of the schedule."""
    schedule: Literal["constant", "linear", "cosine", "inverse_square_root"] = "cosine"
    warmup_steps: int = 0
    final_learning_rate_fraction: float = 0.0
    """Of the peak, where linear and cosine end at the last step."""
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    """Applied to matrices; never to norms and relative biases."""
    clip_norm: float = 1.0
    """Largest global gradient norm; 0: no clipping."""
    accumulation_steps: int = 1
    """Parts a batch is computed in, one after the other. The gradient stays that of the whole
    batch, contrastive term included."""
    ema_decay: float = 0.0
    """Decay of a moving average of the parameters, which evaluation then uses; 0: none."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; one axis may be -1, for all that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    every: int = 0
    """Steps between evaluations; 0: only at the end."""
    instances_per_task: int = 64
    """Held-out instances of each task, each asked in every wording."""
    batch_size: int = 64
    """Prompts scored at a time."""
    length_normalized: bool = False
    """Compare answers by mean instead of summed log-likelihood of their tokens."""
    suite: str = ""
    """File of a robustness suite (docs/suites.md) to evaluate in the same steps; empty: none. Its
    attacks are left to `coin_jax.evaluate`."""
    suite_data: str = ""
    """Folder of the suite's task files, where it names none."""
    suite_sample: int = 32
    """Instances of each of the suite's tasks."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = 0
    """Steps between checkpoints; 0: only at the end."""
    keep_last: int = 2
    keep_best: bool = False
    """Keep the checkpoint with the best `best_metric` beside the last ones."""
    best_metric: str = "evaluation/unseen/mean"
    """Any that evaluation writes, as evaluation/suite/character/worst with a suite."""
    best_is_highest: bool = True


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    steps: int = 1000
    log_every: int = 10
    tensorboard: bool = True
    wandb_project: str = ""
    """Weights & Biases project to log to; empty: none. The package `wandb` is installed apart."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One run, whole."""

    name: str = "coin"
    output: str = "runs"
    """Folder of runs; this one's is `output/name`. A run that finds its own checkpoint there goes
    on from it."""
    seed: int = 0
    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    batch: BatchConfig = BatchConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    training: TrainingConfig = TrainingConfig()

    @property
    def run_directory(self) -> pathlib.Path:
        return pathlib.Path(self.output) / self.name


def problems(config: Config) -> Iterator[str]:
    """Yields one line for every value of `config` that no run can use."""

    def value(path: str) -> Any:
        found: Any = config
        for part in path.split("."):
            found = getattr(found, part)
        return found

    def refuse_unless(holds: bool, path: str, allowed: str) -> Iterator[str]:
        if not holds or (isinstance(value(path), float) and not math.isfinite(value(path))):
            yield f"{path} = {value(path)!r}: must be {allowed}"

    if wrong := type_errors(config):
        yield from (f"{path}: {reason}" for path, reason in wrong)
        return  # comparisons below would fail on values of the wrong type

    for path in (
        "model.vocabulary_size",
        "model.d_model",
        "model.d_kv",
        "model.d_ff",
        "model.num_heads",
        "model.num_layers",
        "model.num_decoder_layers",
        "batch.rows",
        "batch.encoder_length",
        "batch.decoder_length",
        "batch.segments_per_row",
        "batch.window",
        "batch.shards",
        "batch.prefetch",
        "objective.head_chunk",
        "optimizer.accumulation_steps",
        "evaluation.instances_per_task",
        "evaluation.batch_size",
        "evaluation.suite_sample",
        "checkpoint.keep_last",
        "training.steps",
        "training.log_every",
        "data.builtin_rows",
    ):
        yield from refuse_unless(value(path) >= 1, path, "at least 1")
    for path in (
        "model.scan_unroll",
        "model.pad_token_id",
        "model.eos_token_id",
        "model.decoder_start_token_id",
        "data.held_out_wordings",
        "data.rows_per_task",
        "data.mixture_cap",
        "objective.contrastive_weight",
        "objective.z_loss",
        "optimizer.warmup_steps",
        "optimizer.weight_decay",
        "optimizer.clip_norm",
        "evaluation.every",
        "checkpoint.every",
        "seed",
    ):
        yield from refuse_unless(value(path) >= 0, path, "at least 0")
    for path in (
        "data.mixture_temperature",
        "objective.temperature",
        "optimizer.learning_rate",
        "optimizer.epsilon",
        "model.layer_norm_epsilon",
    ):
        yield from refuse_unless(value(path) > 0, path, "greater than 0")
    for path in (
        "model.dropout_rate",
        "objective.label_smoothing",
        "optimizer.b1",
        "optimizer.b2",
        "optimizer.ema_decay",
    ):
        yield from refuse_unless(0 <= value(path) < 1, path, "at least 0 and below 1")
    yield from refuse_unless(
        0 <= config.optimizer.final_learning_rate_fraction <= 1,
        "optimizer.final_learning_rate_fraction",
        "between 0 and 1",
    )
    yield from refuse_unless(0 < config.data.noise_density < 1, "data.noise_density", "in (0, 1)")
    yield from refuse_unless(
        config.data.mean_noise_span_length >= 1, "data.mean_noise_span_length", "at least 1"
    )

    buckets, distance = (
        config.model.relative_attention_num_buckets,
        config.model.relative_attention_max_distance,
    )
    yield from refuse_unless(
        buckets >= 4 and buckets % 2 == 0,
        "model.relative_attention_num_buckets",
        "even and at least 4",
    )
    yield from refuse_unless(
        distance > buckets // 2,
        "model.relative_attention_max_distance",
        f"greater than half the number of buckets ({buckets // 2})",
    )
    for axis in ("data", "fsdp", "tensor"):
        yield from refuse_unless(
            value(f"mesh.{axis}") == -1 or value(f"mesh.{axis}") >= 1,
            f"mesh.{axis}",
            "at least 1, or -1 for all devices that are left",
        )
    if [config.mesh.data, config.mesh.fsdp, config.mesh.tensor].count(-1) > 1:
        yield "mesh: only one of data, fsdp and tensor may be -1"

    yield from refuse_unless(bool(config.name.strip()), "name", "a folder name, not empty")
    yield from refuse_unless(
        pathlib.PurePath(config.name).name == config.name and config.name not in (".", ".."),
        "name",
        "a single folder name, without separators (the folder it lies in is `output`)",
    )
    yield from refuse_unless(
        "://" not in config.output,
        "output",
        "a folder of the file system; mount a bucket to write to it",
    )
    for path in ("batch.shards", "optimizer.accumulation_steps"):
        yield from refuse_unless(
            value(path) < 1 or config.batch.rows % value(path) == 0,  # below 1 is said above
            path,
            f"a divisor of batch.rows ({config.batch.rows})",
        )
    shard_rows = config.batch.rows // max(1, config.batch.shards)
    yield from refuse_unless(config.batch.window <= 64, "batch.window", "at most 64")
    yield from refuse_unless(config.seed < 2**31, "seed", "below 2**31")
    for token in ("pad", "eos", "decoder_start"):
        yield from refuse_unless(
            value(f"model.{token}_token_id") < config.model.vocabulary_size,
            f"model.{token}_token_id",
            f"below model.vocabulary_size ({config.model.vocabulary_size})",
        )
    yield from refuse_unless(config.batch.encoder_length >= 8, "batch.encoder_length", "at least 8")
    if config.data.source != "builtin":
        yield from refuse_unless(
            bool(config.data.files),
            "data.files",
            f"given: source {config.data.source!r} reads files (as in --data.files 'data/*.jsonl')",
        )
    if config.data.source == "tasks":
        yield from refuse_unless(
            bool(config.data.template_files),
            "data.template_files",
            "given: rows become prompts through templates",
        )
    yield from refuse_unless(
        all(0 < weight < math.inf for weight in config.data.mixture_weights.values()),
        "data.mixture_weights",
        "positive numbers by task; a task that is not named has no share",
    )
    for field, none in (("mixture_cap", 0), ("mixture_temperature", 1.0)):
        yield from refuse_unless(
            not config.data.mixture_weights or value(f"data.{field}") == none,
            f"data.{field}",
            f"{none}: data.mixture_weights say the shares already",
        )
    if config.batch.mode != "pairs":
        yield from refuse_unless(
            config.objective.method != "coin" and config.data.source != "text",
            "batch.mode",
            "'pairs' for objective.method 'coin', and for data.source 'text', without wordings",
        )
    if config.data.source == "text":
        for field, none in (("weights", {}), ("cap", 0), ("temperature", 1.0)):
            path = f"data.mixture_{field}"
            yield from refuse_unless(value(path) == none, path, f"{none}: plain text has no tasks")
        yield from refuse_unless(
            config.objective.method != "coin",
            "objective.method",
            "'cross_entropy': plain text holds no pairs (data.source = 'text')",
        )
    elif config.objective.method == "coin" and shard_rows * config.batch.segments_per_row < 4:
        yield (
            f"batch.rows x batch.segments_per_row = {config.batch.rows} x "
            f"{config.batch.segments_per_row} in {config.batch.shards} shards: each shard must "
            "hold the 4 sequences of a contrastive set"
        )
    if config.batch.shards > 1:
        yield from refuse_unless(
            shard_rows * config.batch.segments_per_row % 2 == 0,
            "batch.segments_per_row",
            f"even, where a shard has an odd number of rows ({shard_rows})",
        )
    if config.checkpoint.keep_best:
        yield from refuse_unless(
            config.data.source != "text" or config.evaluation.suite != "",
            "checkpoint.keep_best",
            "False for data.source = 'text' without evaluation.suite: nothing is evaluated",
        )
        yield from refuse_unless(
            config.checkpoint.best_metric.startswith("evaluation/"),
            "checkpoint.best_metric",
            "a metric of the evaluation, as 'evaluation/unseen/mean'",
        )
    yield from refuse_unless(
        config.tokenizer.kind != "huggingface" or bool(config.tokenizer.path),
        "tokenizer.path",
        "a Hugging Face name, folder or tokenizer.json (or set tokenizer.kind to 'sentencepiece' "
        "or 'bytes')",
    )
    yield from refuse_unless(
        config.tokenizer.kind != "sentencepiece"
        or config.tokenizer.path != ""
        or config.tokenizer.vocabulary_size + 100 <= config.model.vocabulary_size,
        "tokenizer.vocabulary_size",
        f"at most {config.model.vocabulary_size - 100}: model.vocabulary_size "
        f"({config.model.vocabulary_size}) less 100 sentinels",
    )


def validate(config: Config) -> Config:
    """Returns `config`, or raises ConfigError with every fault that it has."""
    if faults := list(problems(config)):
        raise ConfigError("This configuration cannot be run:\n  " + "\n  ".join(faults))
    return config
