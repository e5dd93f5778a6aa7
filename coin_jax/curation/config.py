"""The configuration of building a contrastive set: frozen dataclasses, like those of training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Literal

from coin_jax.config import ConfigError, TaskConfig
from coin_jax.type_errors import type_errors


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One collection to read."""

    kind: Literal[
        "tasks",
        "tfds",
        "flan",
        "natural_instructions",
        "prompts",
        "coin",
        "alpaca",
        "columns",
    ] = "tasks"
    """`tasks` rows and templates; `tfds` GLUE and SuperGLUE with templates; `flan` the FLAN
    collection's inputs, targets, task; `natural_instructions` Super-NaturalInstructions task files;
    `prompts` finished prompts where several templates share rows; `coin` the pairs of the CoIN
    paper's CSV; `alpaca` instruction, input, output; `columns` any table, through `columns`."""
    name: str = ""
    """Put before the names of its tasks, as NAME/TASK; empty: their own names."""
    files: tuple[str, ...] = ()
    """Files, folders, glob patterns, gs:// or https:// addresses, or hub:OWNER/NAME[/PATTERN]."""
    template_files: tuple[str, ...] = ()
    """JSON {task: [{"input", "target"}]}."""
    tasks: tuple[TaskConfig, ...] = ()
    """Tasks to use and how they fit their templates; empty: every task there is."""
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    """Meaning -> column of a table, as {"instruction": "question", "target": "y"}: `target` the
    answer, `instruction`, `task`, and any other name an input field."""
    split: str = "train"
    """Of a TFDS or hub data set."""
    rows_per_task: int = 0
    """At most so many instances of each task, the first after a shuffle; 0: all."""
    longest_wording: int = 2000
    """For `natural_instructions`: characters of a wording's own text, the definition and the
    examples; longer ones are left out, since they would leave no room for the input."""
    licence: str = ""
    """Of the collection, for the manifest, where its files do not say."""


@dataclasses.dataclass(frozen=True)
class ChatConfig:
    """A chat endpoint that speaks OpenAI's protocol."""

    base_url: str = "https://api.openai.com/v1"
    """A local vLLM serves as well: http://localhost:8000/v1."""
    model: str = "gpt-4o-mini"
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; it may be unset for a local server."""
    temperature: float = 0.9
    concurrency: int = 8
    """Requests under way at a time."""
    requests_per_minute: float = 0.0
    """0: as many as the endpoint takes."""
    attempts: int = 6
    """Tries of one request before it counts as failed."""
    timeout: float = 60.0
    """Seconds that one try may take."""
    cache: str = "~/.cache/coin_jax/chat"
    """Folder of answers by content; a second run asks nothing again."""
    dollars_per_million_input_tokens: float = 0.0
    dollars_per_million_output_tokens: float = 0.0


@dataclasses.dataclass(frozen=True)
class ParaphraseConfig:
    """Where more wordings come from, besides those that the sources have."""

    methods: tuple[Literal["rules", "model", "chat"], ...] = ()
    wordings: int = 4
    """New wordings by each method of each instruction."""
    rules: tuple[str, ...] = ("deepwordbug", "checklist")
    """Perturbations (docs/suites.md) that make the rules' wordings, in turn."""
    share: float = 0.3
    """Of a text's words that a rule changes."""
    checkpoint: str = ""
    """For `model`: a T5 that paraphrases, a run of ours or from the hub."""
    chat: ChatConfig = ChatConfig()


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """What a wording or an instance must pass; each filter counts in the manifest."""

    language: str = "en"
    """Of new wordings, as ISO 639-1; empty: any."""
    length_ratio: float = 3.0
    """New wordings at most so many times as long, or as short, as what they reword."""
    least_edit_distance: float = 0.05
    """Of a new wording to what it rewords and to the task's other wordings, as a share of the
    longer one's characters; below, it is a copy. Case and punctuation do not count."""
    near_duplicate: float = 0.9
    """Instances of a task with the same answer, whose word 5-grams overlap by this Jaccard
    similarity in every field, are one; 1: only those with the same inputs; 0: all stay."""
    least_similarity: float = 0.0
    """Cosine of the pooled states, of `similarity_checkpoint`, of a wording and what it rewords."""
    similarity_checkpoint: str = ""
    """A T5 (ours or from the hub) whose mean encoder states measure similarity."""
    suites: tuple[str, ...] = ()
    """Robustness suites (docs/suites.md) whose prompts and instances must not be trained on."""
    suite_data: str = ""
    """Folder of the suites' task files, where they name none."""
    overlapping_words: int = 13
    """An instance that shares so many consecutive words with an evaluation instance is left out
    (Brown et al. 2020, appendix C); shorter ones when they are equal, or stand in it as a whole
    and have eight words at least. Wordings are held to evaluation prompts in the same way."""


@dataclasses.dataclass(frozen=True)
class NegativeConfig:
    """What stands against a pair."""

    kind: Literal["other_answer", "hardest", "other_instruction"] = "other_answer"
    """`other_answer`: the same wordings on another instance with another answer, drawn anew each
    epoch; `hardest`: of those, the most similar by pooled states of `checkpoint`;
    `other_instruction`: the same input under an instruction that has another answer."""
    checkpoint: str = ""
    """For `hardest`: a T5, ours or from the hub."""
    candidates: int = 256
    """For `hardest`: instances of the task that each one is compared with."""
    keep: int = 4
    """For `hardest` and `other_instruction`: negatives kept of each instance, best first."""


@dataclasses.dataclass(frozen=True)
class SetConfig:
    """One contrastive set, whole."""

    seed: int = 0
    sources: tuple[SourceConfig, ...] = ()
    definite_answers_only: bool = False
    """Leave out tasks with free answers, as the CoIN paper does."""
    pairs: int = 0
    """At most so many instances in all, shared out over the tasks; 0: all."""
    held_out_wordings: int = 2
    """Wordings of each task kept from training, where it has at least four."""
    held_out_share: float = 0.05
    """Of each task's instances, for evaluation; at most 500."""
    bad_rows: Literal["error", "skip"] = "skip"
    """What an unreadable row does: end the run with file and line, or be counted and left out."""
    rows_per_shard: int = 100_000
    paraphrase: ParaphraseConfig = ParaphraseConfig()
    filters: FilterConfig = FilterConfig()
    negatives: NegativeConfig = NegativeConfig()


def problems(config: SetConfig) -> Iterator[str]:
    """Yields one line for every value of `config` that no set can be built with."""
    if wrong := type_errors(config):
        yield from (f"{path}: {reason}" for path, reason in wrong)
        return  # comparisons below would fail on values of the wrong type
    if not config.paraphrase.chat.cache:
        yield "paraphrase.chat.cache = '': must name a folder"
    if not config.sources:
        yield "sources: must name at least one; a config file in configs/data does"
    for number, source in enumerate(config.sources):
        if not source.files:
            yield f"sources.{number}.files = (): must name files, folders or data sets"
        if source.kind in ("tasks", "tfds") and not source.template_files:
            yield f"sources.{number}.template_files = (): {source.kind} need instruction templates"
        if source.rows_per_task < 0:
            yield f"sources.{number}.rows_per_task = {source.rows_per_task}: must be at least 0"
    paraphrase, filters, negatives = config.paraphrase, config.filters, config.negatives
    chat = paraphrase.chat
    bounds = (
        ("seed", config.seed, 0, math.inf),
        ("pairs", config.pairs, 0, math.inf),
        ("held_out_wordings", config.held_out_wordings, 0, math.inf),
        ("held_out_share", config.held_out_share, 0, 0.9),
        ("rows_per_shard", config.rows_per_shard, 1, math.inf),
        ("paraphrase.wordings", paraphrase.wordings, 1, 100),
        ("paraphrase.share", paraphrase.share, 0.01, 1),
        ("paraphrase.chat.temperature", chat.temperature, 0, 10),
        ("paraphrase.chat.concurrency", chat.concurrency, 1, 1000),
        ("paraphrase.chat.requests_per_minute", chat.requests_per_minute, 0, math.inf),
        ("paraphrase.chat.attempts", chat.attempts, 1, 100),
        ("paraphrase.chat.timeout", chat.timeout, 0.01, math.inf),
        ("filters.length_ratio", filters.length_ratio, 1, math.inf),
        ("filters.least_edit_distance", filters.least_edit_distance, 0, 0.99),
        ("filters.near_duplicate", filters.near_duplicate, 0, 1),
        ("filters.least_similarity", filters.least_similarity, 0, 1),
        ("filters.overlapping_words", filters.overlapping_words, 2, math.inf),
        ("negatives.candidates", negatives.candidates, 2, math.inf),
        ("negatives.keep", negatives.keep, 1, 1000),
    )
    for name, value, least, most in bounds:
        if not least <= value <= most:  # nor is NaN
            allowed = f"at least {least}" + (f" and at most {most}" if most < math.inf else "")
            yield f"{name} = {value}: must be {allowed}"
    for name, value, needed, why in (
        ("paraphrase.checkpoint", paraphrase.checkpoint, "model" in paraphrase.methods, "model"),
        (
            "filters.similarity_checkpoint",
            filters.similarity_checkpoint,
            filters.least_similarity > 0,
            "filters.least_similarity",
        ),
        ("negatives.checkpoint", negatives.checkpoint, negatives.kind == "hardest", "hardest"),
    ):
        if needed and not value:
            yield f"{name} = '': must name a T5, ours or from the hub, for {why}"


def validate(config: SetConfig) -> SetConfig:
    """Returns `config`, or raises ConfigError with every fault that it has."""
    if faults := list(problems(config)):
        raise ConfigError("No set can be built with this:\n  " + "\n  ".join(faults))
    return config
