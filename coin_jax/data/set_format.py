"""What a contrastive set is on disk: Parquet shards and a manifest.

A row is an instance, not a prompt: the values of its task's fields, once. The wordings that ask it
stand in the manifest, so ten wordings cost no more than two and prompts are made when they are
trained on. Where only finished prompts are known, each one is a field of its own and its wording
nothing but that placeholder.

The rows of a task are neighbours, in the order of the manifest's tasks, so that a task is a range
of row numbers in its split.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import pydantic

from coin_jax.data.sources import DataError
from coin_jax.data.templates import OPTIONS, parse_template
from coin_jax.type_errors import readable_faults
from coin_jax.untrusted import (
    LARGEST_MANIFEST,
    MOST_FAULTS,
    UntrustedError,
    check_values,
    is_name,
    parse_json,
    public,
    read_bytes,
    shown,
    steers_terminal,
)

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
    own_instruction: str = ""
    """The input that holds the instruction, where every instance has its own: paraphrasers reword
    it. Empty where the wordings say what to do, or are finished prompts."""


def needed_fields(task: InstructionTask, wording: Wording) -> list[int]:
    """Numbers of the fields that an instance must have to be asked so, ascending."""
    needed = wording.placeholders
    return [number for number, field in enumerate(task.fields) if field in needed]


@dataclasses.dataclass(frozen=True)
class Shard:
    """One Parquet file of a split."""

    file: str
    """Its name in the set's folder."""
    rows: int
    bytes: int
    sha256: str
    """Of the file."""


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
    """`set_hash` of the tasks and the splits: two sets with the same hold the same."""
    record: Mapping[str, Any]
    """How it was made, for people: seed, config, versions, counts by task and filter, licences."""


def manifest_json(manifest: Manifest) -> str:
    """The text of manifest.json, whose record repeats no password of an address in the config."""
    content = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(manifest)}
    content["record"] = public(content["record"])
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def set_hash(tasks: Sequence[InstructionTask], splits: Mapping[str, Split]) -> str:
    """SHA-256 of what a set holds, without the record of how it was made."""
    content = {
        "tasks": [dataclasses.asdict(task) for task in tasks],
        "splits": {name: dataclasses.asdict(split) for name, split in splits.items()},
    }
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def read_manifest(folder: pathlib.Path) -> Manifest:
    """The manifest of the set in a folder, checked against itself and the shards' sizes.

    Raises: DataError for a folder without one, another format or version, fields that are missing,
    ill-typed or contradict each other, and for shards that are missing or of another size.
    """
    path = pathlib.Path(folder) / MANIFEST
    try:
        text = read_bytes(path, LARGEST_MANIFEST)
        check_values(text)
        content = parse_json(text)
    except OSError as error:
        raise DataError(
            f"{folder}: no contrastive set here: {path.name} cannot be read "
            f"({error.strerror}); python -m coin_jax.paraphrase builds sets"
        ) from None
    except UntrustedError as error:
        raise DataError(f"{path}: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f'{path}: not the manifest of a set, which has "format": "{FORMAT}"')
    if content.get("version") != VERSION:
        raise DataError(
            f"{path}: version {shown(content.get('version'))} of the format; this program reads "
            f"version {VERSION}. Build the set again, or read it with the program that built it"
        )
    try:
        manifest = pydantic.TypeAdapter(Manifest).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        if error.error_count() > MOST_FAULTS:
            raise DataError(f"{path}: {error.error_count()} values of another type") from None
        faults = [f"{field:.200}: {reason:.200}" for field, reason in readable_faults(error)]
    else:
        faults = list(itertools.islice(_faults(manifest), 6))
        faults = faults or list(itertools.islice(_shard_faults(manifest, path.parent), 6))
    if faults:
        more = ["and more"] if len(faults) > 5 else []
        raise DataError("\n".join(f"{path}: {fault}" for fault in faults[:5] + more))
    return manifest


def _faults(manifest: Manifest) -> Iterator[str]:
    """Where a manifest contradicts itself, as `field: reason`."""
    if not manifest.tasks:
        yield "tasks: there are none"
    yield from _repeated("tasks", [task.name for task in manifest.tasks])
    for number, task in enumerate(manifest.tasks):
        where = f"tasks.{number} ({task.name!r})"
        yield from _repeated(f"{where}.fields", task.fields)
        yield from _repeated(f"{where}.answers", task.answers, are_names=False)
        yield from _repeated(f"{where}.wordings", [wording.name for wording in task.wordings])
        known = {*task.fields, OPTIONS} if task.answers else {*task.fields}
        for wording in task.wordings:
            if steers_terminal(wording.template):
                yield f"{where}.wordings: {wording.name!r} has control characters"
            try:
                unknown = parse_template(wording.template, wording.name).placeholders - known
            except DataError as error:
                yield f"{where}.wordings: {error}"
                continue
            if unknown:
                yield (
                    f"{where}.wordings: {wording.name!r} has the placeholder {{{min(unknown)}}}; "
                    f"the task has {', '.join(sorted(known))}"
                )
    if manifest.splits.keys() != set(SPLITS):
        yield f"splits: must be {' and '.join(SPLITS)}, not {', '.join(manifest.splits) or 'none'}"
        return
    for name, split in manifest.splits.items():
        where = f"splits.{name}"
        if len(split.rows_of_task) != len(manifest.tasks):
            yield (
                f"{where}.rows_of_task: {len(split.rows_of_task)} numbers for "
                f"{len(manifest.tasks)} tasks"
            )
        counts = (*split.rows_of_task, *(shard.rows for shard in split.shards))
        if not all(0 <= count < 2**48 for count in counts):
            yield f"{where}: a number of rows that cannot be"
            continue
        rows = sum(shard.rows for shard in split.shards)
        if sum(split.rows_of_task) != rows:
            yield f"{where}: {rows} rows in the shards, {sum(split.rows_of_task)} in the tasks"
    shards = [shard.file for split in manifest.splits.values() for shard in split.shards]
    yield from _repeated("splits", shards)
    for file in shards:
        if file in ("", ".", "..") or any(mark in file for mark in "/\\\0"):
            yield f"splits: {file!r} is not the name of a file in the set's folder"
    if manifest.content_hash != set_hash(manifest.tasks, manifest.splits):
        yield "content_hash: does not fit the tasks and splits, which were changed after building"


def _shard_faults(manifest: Manifest, folder: pathlib.Path) -> Iterator[str]:
    for split in manifest.splits.values():
        for shard in split.shards:
            path = folder / shard.file
            try:
                size = path.stat().st_size
            except OSError as error:
                yield f"shard {shard.file}: {error.strerror}; is the copy complete?"
                continue
            if not path.is_file() or not _stays_in(folder, path):
                yield (
                    f"shard {shard.file}: is no file, or a link out of the set's folder; put the "
                    "file itself there (the hub's snapshot_download does with local_dir)"
                )
                continue
            if size != shard.bytes:
                yield (
                    f"shard {shard.file}: {size} bytes instead of {shard.bytes}; is the copy "
                    "complete?"
                )


def _stays_in(folder: pathlib.Path, path: pathlib.Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _repeated(field: str, names: Sequence[str], are_names: bool = True) -> Iterator[str]:
    if len(set(names)) < len(names):
        name, count = collections.Counter(names).most_common(1)[0]
        yield f"{field}: {shown(name)} stands there {count} times"
    if not all(names):
        yield f"{field}: an empty name"
    if bad := [name for name in names if are_names and not is_name(name)]:
        yield f"{field}: {shown(bad[0])} is too long, or has characters that steer a terminal"
