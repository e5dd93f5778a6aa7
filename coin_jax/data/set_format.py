"""What a contrastive set is on disk: Parquet shards and a manifest.

A row is an instance, not a prompt: the values of its task's fields, once. The wordings that ask it
stand in the manifest, so ten wordings cost no more than two and prompts are made when they are
trained on. Where only finished prompts are known, each one is a field of its own and its wording
nothing but that placeholder.

The rows of a task are neighbours, in the order of the manifest's tasks, so that a task is a range
of row numbers in its split.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

from coin_jax.data.templates import OPTIONS, parse_template

FORMAT = "coin_jax contrastive set"
VERSION = 1
MANIFEST = "manifest.json"
SPLITS = ("train", "evaluation")

COLUMNS = {
    "task": "int32",  # number in the manifest's tasks
    "inputs": "list<string>",  # one for each of the task's fields; null where it has none
    "target": "string",
    "answer": "int32",  # number in the task's answers; -1 for free answers
    "content": "int32",  # pairs.content_hash of the inputs and the target
    "negatives": "list<int64>",  # row numbers in the same split, best first; may be empty
}
"""Arrow types of a shard's columns."""

Origin = Literal["source", "template", "rule", "model", "chat"]
"""Who wrote a wording: the collection itself, a template file, or a paraphraser."""


@dataclasses.dataclass(frozen=True)
class Wording:
    """One way to ask for a task's answer."""

    name: str
    """Unique in its task, as `flan/3`."""
    template: str
    """Text with placeholders in single braces, `{options_}` among them."""
    origin: Origin = "source"
    of: str = ""
    """The wording that it rewords, for paraphrases."""
    held_out: bool = False
    """Kept from training, to measure on."""

    @property
    def placeholders(self) -> frozenset[str]:
        return parse_template(self.template, self.name).placeholders - {OPTIONS}

    @property
    def is_finished(self) -> bool:
        """Whether it is a whole finished prompt, with the instance's text inside."""
        parts = parse_template(self.template, self.name).parts
        return len(parts) == 1 and not parts[0][0] and bool(self.placeholders)


@dataclasses.dataclass(frozen=True)
class InstructionTask:
    """A task: what its instances may have, and how they can be asked."""

    name: str
    fields: tuple[str, ...]
    """Names of the inputs that its instances may have."""
    wordings: tuple[Wording, ...]
    """An instance can be asked in those whose placeholders it has."""
    answers: tuple[str, ...] = ()
    """The closed set of answers, in the order in which options are listed; empty: free answers."""
    licence: str = ""
    """Of its data, as far as its source says."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """One Parquet file of a split."""

    file: str
    rows: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Split:
    """The rows of training, or those of evaluation."""

    shards: tuple[Shard, ...]
    rows_of_task: tuple[int, ...]
    """Rows of each of the manifest's tasks."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a set holds and how it was made."""

    tasks: tuple[InstructionTask, ...]
    splits: Mapping[str, Split]
    content_hash: str
    """Of the tasks and the shards: two sets with the same hold the same."""
    record: Mapping[str, Any]
    """How it was made, for people: seed, config, versions, counts by task and filter, licences."""


def manifest_json(manifest: Manifest) -> str:
    """The text of manifest.json."""
    content = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(manifest)}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
