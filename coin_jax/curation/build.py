"""Builds a contrastive set: sources, more wordings, filters, hard negatives, shards and manifest.

Instances stream from their sources to the shards, a task at a time. What is decided about an
instance depends on its content and the seed alone, so that the same config gives the same set.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import importlib.metadata
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from coin_jax.curation.config import SetConfig
from coin_jax.curation.filters import Contamination, DuplicateFinder
from coin_jax.curation.negatives import Embed, hardest, other_instruction
from coin_jax.curation.paraphrasers import Paraphraser
from coin_jax.curation.rewording import Rewording
from coin_jax.curation.source import Instance, Source
from coin_jax.curation.sources import make_source
from coin_jax.curation.writer import Row, SetWriter
from coin_jax.data.draws import draw_order, stable_hash
from coin_jax.data.order import shuffled
from coin_jax.data.set_format import SPLITS, InstructionTask, Manifest
from coin_jax.data.sources import DataError
from coin_jax.progress import Count, progress_bar

FEWEST_TO_HOLD_OUT = 4
"""Wordings of a task of which some are kept from training: with fewer too little would be left."""
MOST_HELD_OUT = 500
"""Instances of a task kept for evaluation, about, at most."""
FEWEST_INSTANCES_TO_HOLD_OUT = 10
"""Of fewer instances than this none are kept."""
CHUNK = 2048
"""Instances that filters and paraphrasers see at a time."""
ONE_ANSWER = 10_000
"""Instances of a task in which a second answer must appear."""
DECONTAMINATION = "decontamination.json"


@dataclasses.dataclass
class _Entry:
    """A task of the set to be, and where its instances are."""

    task: InstructionTask
    source: Source
    indices: np.ndarray
    """Of its instances in the source, int64, in the order in which they are taken."""
    left_out: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    """Instances by the filter that left them out."""
    wordings_left_out: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    rows: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    """Written, by split."""
    most: int | None = None
    """Training rows at most."""


def build(
    config: SetConfig,
    output: pathlib.Path,
    *,
    paraphrasers: Sequence[Paraphraser] = (),
    similarity: Embed | None = None,
    negatives: Embed | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> Manifest:
    """Builds the set that the config describes into the folder `output`.

    Nothing stands there before the set is whole. What a chat endpoint answered is kept in its
    cache, so a build that was interrupted asks only for the rest when it is repeated.

    Args:
      similarity: texts -> unit vectors, by `filters.similarity_checkpoint`.
      negatives: the same by `negatives.checkpoint`.

    Raises: DataError for what cannot be read or used, or an output that is there already.
    """
    console = console or Console(quiet=True)
    builder = _Builder(config, paraphrasers, similarity, negatives, console)
    return builder.build(output, overwrite)


class _Builder:
    def __init__(self, config, paraphrasers, similarity, negatives, console):
        self._config, self._embed, self._console = config, negatives, console
        self._sources: list[dict[str, Any]] = []
        self._contamination = Contamination.load(config.filters) if config.filters.suites else None
        self._rewording = Rewording(config, paraphrasers, similarity, console)
        self._first_unreadable = ""

    def build(self, output: pathlib.Path, overwrite: bool) -> Manifest:
        # Before anything is read: an output that is there already is refused at once.
        SetWriter.check(output, overwrite)
        entries = self._entries()
        self._set_quotas(entries)
        for entry in entries:
            self._drop_evaluation_wordings(entry)
            self._hold_out_wordings(entry)
        tasks = self._rewording.with_new_wordings(
            [entry.task for entry in entries], [entry.wordings_left_out for entry in entries]
        )
        for entry, task in zip(entries, tasks, strict=True):
            entry.task = task
        with SetWriter(output, tasks, self._config.rows_per_shard, overwrite) as writer:
            with progress_bar(self._console, "Instances") as progress:
                bar = Count(progress, sum(len(entry.indices) for entry in entries))
                for number, entry in enumerate(entries):
                    bar.note, begun = entry.task.name, bar.done
                    self._write_task(writer, number, entry, bar)
                    bar.add(len(entry.indices) - (bar.done - begun))  # it may have needed fewer
            self._add_negatives(writer, entries)
            if self._contamination:
                report = json.dumps(self._contamination.report(), indent=2, ensure_ascii=False)
                (writer.folder / DECONTAMINATION).write_text(report + "\n", encoding="utf-8")
            return writer.finish(self._record(entries))

    # --- tasks and their wordings ---------------------------------------------------------

    def _entries(self) -> list[_Entry]:
        entries: dict[str, _Entry] = {}
        for number, settings in enumerate(self._config.sources):
            self._console.print(
                f"Reading {settings.kind} {settings.name or number}", style="dim", markup=False
            )
            source = make_source(settings, self._config.seed)
            for note in source.notes:
                self._console.print(f"  {note}", style="dim", markup=False, highlight=False)
            names = list(source.tasks)
            nobodys, *of_task = _indices_by_task(source, names)
            self._refuse_or_keep(source.instance(int(nobodys[0])) if len(nobodys) else None)
            skipped = []
            for name, indices in zip(names, of_task, strict=True):
                task = source.tasks[name]
                if self._config.definite_answers_only and not task.answers:
                    skipped.append(name)
                    continue
                if name in entries:
                    raise DataError(
                        f"sources.{number}: task {name!r} is in an earlier source as well; give "
                        "one of the two a `name`, which is put before its tasks"
                    )
                task = dataclasses.replace(task, licence=task.licence or settings.licence)
                entries[name] = _Entry(task, source, indices)
            self._sources.append(
                {
                    "kind": settings.kind,
                    "name": settings.name,
                    "files": list(settings.files),
                    "licence": settings.licence,
                    "notes": list(source.notes),
                    "instances": len(source),
                    "unreadable_without_a_task": len(nobodys),
                    "tasks_with_free_answers_left_out": skipped,
                }
            )
        if not entries:
            raise DataError("no task is left: the sources have none, or none with definite answers")
        return list(entries.values())

    def _set_quotas(self, entries: Sequence[_Entry]) -> None:
        """Shares `pairs` out evenly; what a small task leaves goes to the larger ones."""
        left = self._config.pairs
        if not left:
            return
        in_order = sorted(entries, key=lambda entry: len(entry.indices))
        for number, entry in enumerate(in_order):
            entry.most = min(len(entry.indices), left // (len(in_order) - number))
            left -= entry.most
            key = stable_hash(self._config.seed, "instances", entry.task.name)
            places = np.arange(len(entry.indices))
            if len(places):
                entry.indices = entry.indices[shuffled(places, len(places), key)[1]]

    def _drop_evaluation_wordings(self, entry: _Entry) -> None:
        if self._contamination is None:
            return
        hits = [
            self._contamination.wording(wording.template, entry.task.name, wording.name)
            for wording in entry.task.wordings
        ]
        entry.wordings_left_out["evaluation prompt"] += sum(hit is not None for hit in hits)
        kept = (w for w, hit in zip(entry.task.wordings, hits, strict=True) if hit is None)
        entry.task = dataclasses.replace(entry.task, wordings=tuple(kept))

    def _hold_out_wordings(self, entry: _Entry) -> None:
        """Before any is reworded, so that nothing of a held-out one is trained on."""
        wordings, most = entry.task.wordings, self._config.held_out_wordings
        if len(wordings) < FEWEST_TO_HOLD_OUT:
            return
        order = draw_order(len(wordings), self._config.seed, "held-out wordings", entry.task.name)
        held_out = set(order[: min(most, len(wordings) - 2)])
        wordings = (
            dataclasses.replace(wording, held_out=number in held_out)
            for number, wording in enumerate(wordings)
        )
        entry.task = dataclasses.replace(entry.task, wordings=tuple(wordings))

    # --- instances ------------------------------------------------------------------------

    def _write_task(self, writer: SetWriter, number: int, entry: _Entry, bar: Count) -> None:
        """Writes the rows of a task; none where all have one answer, which has no negatives."""
        waiting: list[tuple[str, Row]] = []
        answers: set[str] = set()
        for split, row in self._rows(entry, bar):
            if len(answers) < 2:
                waiting.append((split, row))
                answers |= {row.target} if split == "train" else set()
                if len(waiting) == ONE_ANSWER:
                    break
            if len(answers) == 2:
                for earlier in waiting or [(split, row)]:
                    writer.write(earlier[0], number, earlier[1])
                waiting = []
        if waiting:
            entry.left_out["one answer in the task"] += len(waiting)
            entry.rows.clear()

    def _rows(self, entry: _Entry, bar: Count) -> Iterator[tuple[str, Row]]:
        """The rows of a task, with their splits."""
        duplicates = DuplicateFinder(self._config.filters)
        for indices in _chunked(entry.indices, CHUNK):
            instances = list(self._readable(entry, indices))
            # With another answer it is no copy but a hard negative.
            are_new = duplicates.are_new([(each.target, each.inputs) for each in instances])
            entry.left_out["near-duplicate"] += are_new.count(False)
            chosen = self._in_splits(entry, itertools.compress(instances, are_new))
            reworded = self._rewording.with_new_inputs(
                entry.task,
                [instance for _, instance in chosen],
                entry.wordings_left_out,
                functools.partial(bar.show_part, len(indices)),
            )
            for (split, _), instance in zip(chosen, reworded, strict=True):
                if _is_askable(entry.task, instance):
                    entry.rows[split] += 1
                    yield split, Row(instance.inputs, instance.target)
                else:
                    entry.left_out["fewer than two wordings"] += 1
            if entry.rows["train"] == entry.most:
                return
            bar.add(len(indices))

    def _in_splits(
        self, entry: _Entry, instances: Iterable[Instance]
    ) -> list[tuple[str, Instance]]:
        """The instances with their splits, no more of them than the task's quota still takes.

        Equal inputs are in the same split, whatever their answers.
        """
        count = len(entry.indices)
        share = min(self._config.held_out_share, MOST_HELD_OUT / max(1, count))
        share *= count >= FEWEST_INSTANCES_TO_HOLD_OUT
        chosen, left = [], float("inf")
        if entry.most is not None:
            left = entry.most - entry.rows["train"]
        for instance in instances:
            key = repr(sorted(instance.inputs.items()))
            is_held_out = stable_hash(self._config.seed, "held out", key) < share * 2**64
            if not is_held_out and not left:
                break
            left -= not is_held_out
            chosen.append(("evaluation" if is_held_out else "train", instance))
        return chosen

    def _readable(self, entry: _Entry, indices: np.ndarray) -> Iterator[Instance]:
        """The instances that can be used and are none of the evaluation's."""
        task = entry.task
        for index in indices.tolist():
            instance = entry.source.instance(index)
            if isinstance(instance, DataError):
                self._refuse_or_keep(instance)
                entry.left_out["unreadable"] += 1
            elif task.answers and instance.target not in task.answers:
                entry.left_out["answer outside the closed set"] += 1
            elif self._contamination and self._contamination.instance(
                instance.inputs, task.name, instance.where
            ):
                entry.left_out["evaluation instance"] += 1
            else:
                yield instance

    def _refuse_or_keep(self, fault: Instance | DataError | None) -> None:
        """Raises the error, or keeps the first one for the manifest."""
        if isinstance(fault, DataError):
            if self._config.bad_rows == "error":
                raise fault
            self._first_unreadable = self._first_unreadable or str(fault)

    # --- negatives, record ----------------------------------------------------------------

    def _add_negatives(self, writer: SetWriter, entries: Sequence[_Entry]) -> None:
        settings, seed = self._config.negatives, self._config.seed
        tasks = [entry.task for entry in entries]
        if settings.kind == "hardest":
            with progress_bar(self._console, "Hardest negatives") as progress:
                bar = Count(progress, sum(entry.rows["train"] for entry in entries))

                def embed(texts: Sequence[str]) -> np.ndarray:
                    bar.add(len(texts))
                    return self._embed(texts)

                writer.add_negatives(
                    "train", lambda shards: hardest(shards, tasks, embed, settings, seed)
                )
        elif settings.kind == "other_instruction":
            writer.add_negatives(
                "train", lambda shards: other_instruction(shards, tasks, settings.keep)
            )

    def _record(self, entries: Sequence[_Entry]) -> dict[str, Any]:
        totals: collections.Counter = collections.Counter()
        for entry in entries:
            totals.update(entry.left_out)
        return {
            "seed": self._config.seed,
            "language": self._config.filters.language,
            "config": dataclasses.asdict(self._config),
            "versions": _versions(),
            "sources": self._sources,
            "tasks": {
                entry.task.name: {
                    "instances": len(entry.indices),
                    **{split: entry.rows[split] for split in SPLITS},
                    "left_out": dict(+entry.left_out),
                    "wordings_left_out": dict(+entry.wordings_left_out),
                }
                for entry in entries
            },
            "left_out": dict(+totals),
            "first_unreadable": self._first_unreadable,
            "paraphrasers": self._rewording.record(),
            "decontamination": self._contamination.summary() if self._contamination else {},
        }


def _indices_by_task(source: Source, names: Sequence[str]) -> list[np.ndarray]:
    """The instances whose task cannot be told, then those of each task, int64, in the order of the
    source."""
    numbers = {name: number for number, name in enumerate(names)}
    of = np.fromiter(
        (numbers.get(source.task_of(index), -1) for index in range(len(source))),
        np.int32,
        len(source),
    )
    order = np.argsort(of, kind="stable")
    return np.split(order, np.searchsorted(of[order], np.arange(len(names))))


def _is_askable(task: InstructionTask, instance: Instance) -> bool:
    """Whether training can ask it in two wordings."""
    possible = (
        wording
        for wording in task.wordings
        if not wording.held_out and wording.placeholders <= instance.inputs.keys()
    )
    return len(list(itertools.islice(possible, 2))) == 2


def _chunked(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def _versions() -> dict[str, str]:
    names = ("coin-jax", "numpy", "pyarrow", "rensa")
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
