"""Contrastive sets of a set on disk (`set_format`), at any size.

A row is an instance, and each epoch asks it in two training wordings of those that it has the
fields for, beside a hard negative: one of the row's own where the set names some, otherwise another
row of the task with another answer, drawn anew. All of it is a pure function of (seed, epoch, row).
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from coin_jax.data.draws import mix, stable_hash
from coin_jax.data.mapped_rows import MappedRows, Row, open_rows
from coin_jax.data.pairs import (
    ContrastiveSet,
    EvaluationItem,
    draw_wording,
    draw_wordings,
    stratified,
)
from coin_jax.data.ready_pairs import PairPrompt
from coin_jax.data.set_format import SPLITS, InstructionTask, needed_fields, read_manifest
from coin_jax.data.sources import DataError
from coin_jax.data.templates import Prompt, parse_template, render_options

DRAWS = 32
"""Rows of the task that are drawn before a hard negative is looked for in another way."""
_SEARCHED = 1024
"""Rows of a task with free answers that are looked through then."""


def load_set(folder: pathlib.Path, seed: int) -> ContrastiveSets:
    """The set in a folder, to train on; the first time, its memory map is made.

    Raises: DataError for a folder without a set, or with one that is damaged.
    """
    folder = pathlib.Path(folder)
    manifest = read_manifest(folder)
    rows = open_rows(manifest, folder)
    counts = [f"{len(rows[split]):,} {name}" for split, name in zip(SPLITS, _NAMES, strict=True)]
    unpaired = rows["train"].facts.unpaired
    notes = [
        f"set {manifest.content_hash[:12]} of {folder}: {len(manifest.tasks)} tasks, "
        f"{' and '.join(counts)} rows"
    ]
    if len(unpaired):
        notes.append(f"{len(unpaired)} training rows left out that fewer than two wordings can ask")
    counts = {split: manifest.splits[split].rows_of_task for split in SPLITS}
    none = np.empty(0, np.int64)
    dropped = {"train": unpaired, "evaluation": none}
    return ContrastiveSets(manifest.tasks, counts, rows, dropped, seed, notes)


_NAMES = ("training", "held-out")


class ContrastiveSets:
    """One contrastive set per training row and epoch; see pairs.PairSource.

    Args:
      counts: rows of each task in each split.
      dropped: rows of each split that are not used, ascending int64.
    """

    def __init__(
        self,
        tasks: Sequence[InstructionTask],
        counts: Mapping[str, Sequence[int]],
        rows: Mapping[str, MappedRows],
        dropped: Mapping[str, np.ndarray],
        seed: int,
        notes: Sequence[str] = (),
    ):
        self.notes = tuple(notes)
        self._counts, self._rows, self._dropped, self._seed = counts, rows, dropped, seed
        self._tasks = [_Task(task, seed) for task in tasks]
        self._bounds = {
            split: list(itertools.accumulate(counts[split], initial=0)) for split in SPLITS
        }
        self._train = rows["train"]
        # How many used rows stand before each dropped one: an index leads to its row in log time.
        self._gaps = memoryview(dropped["train"] - np.arange(len(dropped["train"])))
        self._gone = {split: memoryview(dropped[split]) for split in SPLITS}
        starts = [
            bound - bisect.bisect_left(self._gone["train"], bound)
            for bound in self._bounds["train"]
        ]
        self.tasks = {
            task.name: range(*bounds)
            for task, bounds in zip(self._tasks, itertools.pairwise(starts), strict=True)
        }
        self._length = starts[-1]
        self._one_answer: set[int] = set()
        self._possible = functools.lru_cache(1 << 16)(self._possible)

    def __len__(self) -> int:
        return self._length

    def get(self, index: int, epoch: int) -> ContrastiveSet:
        row, number = self._locate(index)
        anchor = self._train[row]
        wordings = self._draw(row, number, anchor, epoch)
        other_row, other_number = self._negative(row, number, anchor, wordings, epoch)
        other, other_wordings = self._train[other_row], wordings
        if other_number != number or not self._asked_by(number, other, wordings):
            other_wordings = self._draw(other_row, other_number, other, epoch)
        return ContrastiveSet(
            self._tasks[number].pair(anchor, wordings)
            + self._tasks[other_number].pair(other, other_wordings),
            (anchor.content, other.content),
        )

    def single(self, index: int, epoch: int, turn: int | None = None) -> Prompt:
        row, number = self._locate(index)
        task, anchor = self._tasks[number], self._train[row]
        possible = self._possible(number, anchor.present)
        if turn is None:
            place = draw_wording(len(possible), epoch, mix(self._seed, row))
        else:
            count = len(task.training)
            first = draw_wording(count, turn, task.key)
            cycle = (task.training[(first + step) % count] for step in range(count))
            place = possible.index(next(wording for wording in cycle if wording in possible))
        return task.ask(anchor, possible[place], possible[place - 1])

    def _locate(self, index: int) -> tuple[int, int]:
        """(row, number of its task) of a set."""
        row = index + bisect.bisect_right(self._gaps, index)
        return row, self._task_of(row)

    def _task_of(self, row: int) -> int:
        return bisect.bisect_right(self._bounds["train"], row) - 1

    def _possible(self, number: int, present: int) -> tuple[int, ...]:
        """The training wordings that can ask a row of the task; cached."""
        task = self._tasks[number]
        return tuple(w for w in task.training if not task.needs[w] & ~present)

    def _asked_by(self, number: int, row: Row, wordings: Sequence[int]) -> bool:
        present = row.present
        return not any(self._tasks[number].needs[wording] & ~present for wording in wordings)

    def _draw(self, row: int, number: int, content: Row, epoch: int) -> tuple[int, int]:
        possible = self._possible(number, content.present)
        first, second = draw_wordings(len(possible), epoch, mix(self._seed, row))
        return possible[first], possible[second]

    def _is_used(self, row: int, split: str = "train") -> bool:
        gone = self._gone[split]
        place = bisect.bisect_left(gone, row)
        return place == len(gone) or gone[place] != row

    def _negative(
        self, row: int, number: int, anchor: Row, wordings: Sequence[int], epoch: int
    ) -> tuple[int, int]:
        """(row, number of its task) of the hard negative."""
        given = [negative for negative in anchor.negatives if self._is_used(negative)]
        if given:
            chosen = given[epoch % len(given)]
            return chosen, self._task_of(chosen)
        key = mix(self._seed, row, epoch)
        spare = None
        if number not in self._one_answer:
            for candidate in self._drawn(number, key):
                other = self._train[candidate]
                if self._answers_differ(number, anchor, other):
                    if self._asked_by(number, other, wordings):
                        return candidate, number
                    spare = candidate
            if spare is None:
                spare = self._search(number, anchor, key)
            if spare is not None:
                return spare, number
            if self._tasks[number].answers:  # all were looked at, so it holds for every epoch
                self._one_answer.add(number)
        return self._elsewhere(number, anchor, key)

    def _members(self, number: int) -> range:
        return range(*self._bounds["train"][number : number + 2])

    def _drawn(self, number: int, key: int) -> Iterator[int]:
        """Used rows among DRAWS random ones of a task."""
        members = self._members(number)
        draws = (members[mix(key, turn) % len(members)] for turn in range(DRAWS if members else 0))
        return filter(self._is_used, draws)

    def _answers_differ(self, number: int, row: Row, other: Row) -> bool:
        if self._tasks[number].answers:
            return row.answer != other.answer
        return row.target != other.target

    def _search(self, number: int, anchor: Row, key: int) -> int | None:
        """The next row with another answer after a random one; None where there is none."""
        members = self._members(number)
        first = members[mix(key) % len(members)]
        if self._tasks[number].answers:
            found = self._train.with_other_answer(members, first, anchor.answer)
        else:
            after = itertools.chain(range(first, members.stop), range(members.start, first))
            found = (
                row
                for row in itertools.islice(after, _SEARCHED)
                if self._train[row].target != anchor.target
            )
        return next(filter(self._is_used, found), None)

    def _elsewhere(self, number: int, anchor: Row, key: int) -> tuple[int, int]:
        """A row of another task with another answer, for tasks whose rows all have the same."""
        for step in range(1, len(self._tasks)):
            other = (number + step) % len(self._tasks)
            for candidate in self._drawn(other, key):
                if self._train[candidate].target != anchor.target:
                    return candidate, other
        raise DataError(
            f"task {self._tasks[number].name!r}: no hard negative of the answer "
            f"{anchor.target!r:.80} was found in this or another task"
        )

    def evaluation_items(self, instances_per_task: int) -> list[EvaluationItem]:
        items = []
        rows, gone = self._rows["evaluation"], self._dropped["evaluation"]
        for task, bounds in zip(
            self._tasks, itertools.pairwise(self._bounds["evaluation"]), strict=True
        ):
            if not task.answers:
                continue
            used = np.setdiff1d(np.arange(*bounds), gone, assume_unique=True)
            labels = rows.answers(range(*bounds))[used - bounds[0]]
            for place in stratified(labels, self._seed, task.name)[:instances_per_task]:
                number = int(used[place])
                for wording, prompt in task.all_prompts(rows[number]):
                    items.append(
                        EvaluationItem(
                            task.name,
                            number - bounds[0],
                            task.definition.wordings[wording].name,
                            not task.definition.wordings[wording].held_out,
                            prompt,
                            task.answers,
                            int(labels[place]),
                        )
                    )
        return items

    def tightest(self) -> Iterator[tuple[str, Prompt]]:
        """Each wording with empty fields, each closed answer, and of finished prompts and free
        answers the longest rows: to look at all would be to tokenise the whole set."""
        for task in self._tasks:
            for answer in task.answers:
                yield task.answers_place, Prompt((), answer)
            for number, template in enumerate(task.templates):
                if not task.finished[number]:
                    empty = dict.fromkeys(template.placeholders, "")
                    yield task.place(number), template.render(empty, task.options, "")
        for split, rows in self._rows.items():
            used = functools.partial(self._is_used, split=split)
            for row in filter(used, rows.facts.longest_targets.tolist()):
                yield _row_place(split, row), Prompt((), rows[row].target)
            for row in filter(used, rows.facts.longest_prompts.tolist()):
                number = bisect.bisect_right(self._bounds[split], row) - 1
                for _, prompt in self._tasks[number].all_prompts(rows[row]):
                    yield _row_place(split, row), prompt

    def without(self, places: set[str]) -> ContrastiveSets:
        """Less these rows, wordings and tasks; rows go with them that two wordings no longer ask.

        Raises: DataError where nothing is left to train on.
        """
        if not places:
            return self
        dropped: dict[str, list] = {split: [self._dropped[split]] for split in SPLITS}
        for place in places:
            if match := _ROW_PLACE.fullmatch(place):
                dropped[match["split"]].append([int(match["row"])])
        tasks = []
        for number, task in enumerate(self._tasks):
            kept = [
                wording
                for place, wording in enumerate(task.definition.wordings)
                if task.place(place) not in places
            ]
            if task.answers_place in places:
                kept = []
            tasks.append(dataclasses.replace(task.definition, wordings=tuple(kept)))
            if len(kept) < len(task.definition.wordings):
                few = self._train.asked_by_fewer_than_two(self._members(number), tasks[-1])
                dropped["train"].append(few)
        merged = {split: np.unique(np.concatenate(rows)) for split, rows in dropped.items()}
        merged = {split: rows.astype(np.int64) for split, rows in merged.items()}
        gone = len(merged["train"]) - len(self._dropped["train"])
        note = (
            f"{gone} training rows skipped, as these are too long for the batch: "
            f"{'; '.join(sorted(places)[:3])}{' ...' if len(places) > 3 else ''}"
        )
        if gone == len(self):
            raise DataError(f"nothing is left to train on: {note}")
        return ContrastiveSets(
            tasks, self._counts, self._rows, merged, self._seed, [*self.notes, note]
        )


_ROW_PLACE = re.compile(r"row (?P<row>\d+) of (?P<split>\w+)")


def _row_place(split: str, row: int) -> str:
    return f"row {row} of {split}"


class _Task:
    """A task's wordings, ready to ask rows with."""

    def __init__(self, definition: InstructionTask, seed: int):
        wordings = definition.wordings
        self.definition, self.name, self.answers = definition, definition.name, definition.answers
        self.options = render_options(definition.answers)
        self.templates = [parse_template(wording.template, wording.name) for wording in wordings]
        self.finished = [wording.is_finished for wording in wordings]
        fields = [needed_fields(definition, wording) for wording in wordings]
        self.needs = [sum(1 << field for field in needed) for needed in fields]
        """The fields of each wording as bits, like Row.present."""
        self._inputs = [[(definition.fields[f], f) for f in needed] for needed in fields]
        held_out = [wording.held_out for wording in wordings]
        self.training = [w for w, is_held_out in enumerate(held_out) if not is_held_out]
        self.order = sorted(range(len(wordings)), key=held_out.__getitem__)
        """All wordings, those of training first."""
        self.key = stable_hash(seed, "wording of a batch", definition.name)
        self.answers_place = f"task {self.name!r}, its answers"

    def place(self, wording: int) -> str:
        return f"task {self.name!r}, wording {self.templates[wording].name}"

    def pair(self, row: Row, wordings: tuple[int, int]) -> tuple[Prompt, Prompt]:
        first, second = wordings
        return self.ask(row, first, second), self.ask(row, second, first)

    def ask(self, row: Row, wording: int, other: int) -> Prompt:
        """A row in a wording. Of a finished prompt, the fields are what `other` has too."""
        if self.finished[wording]:
            texts = (self._render(row, number).text for number in (wording, other))
            return PairPrompt(*texts, row.target)
        return self._render(row, wording)

    def _render(self, row: Row, wording: int) -> Prompt:
        inputs = {name: row.text(field) for name, field in self._inputs[wording]}
        return self.templates[wording].render(inputs, self.options, row.target)

    def all_prompts(self, row: Row) -> Iterator[tuple[int, Prompt]]:
        """(wording, a row in it) for all that can ask it, those of training first."""
        present = row.present
        possible = [wording for wording in self.order if not self.needs[wording] & ~present]
        for place, wording in enumerate(possible):
            yield wording, self.ask(row, wording, possible[place - 1])
