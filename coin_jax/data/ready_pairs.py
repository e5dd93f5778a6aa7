"""Contrastive sets from files of ready pairs: an instance already written in two wordings."""

from __future__ import annotations

import collections
import difflib
import functools
import itertools
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from coin_jax.config import DataConfig
from coin_jax.data.draws import mix, stable_hash
from coin_jax.data.pairs import (
    ContrastiveSet,
    EvaluationItem,
    OtherAnswer,
    content_hash,
    draw_wording,
    stratified,
)
from coin_jax.data.sources import DataError, PairRow, collect, expand_files, read_pair_rows
from coin_jax.data.tasks import bad_row_notes, held_out
from coin_jax.data.templates import Piece, Prompt
from coin_jax.untrusted import shown

MOST_ANSWERS = 20
"""Different answers that a task may have for its answers to be a closed set to choose from."""

FIELD_WORDS = 8
"""Words that an instruction hardly shares with its paraphrase by chance."""
MOST_COMPARISONS = 20_000_000
"""Pairs of equal words looked at to find what two wordings share: some seconds. Two wordings around
one document of 10,000 words need a tenth; short texts that repeat a few words, a thousand times."""
_WORD = re.compile(
    r"(?P<options>^[ \t]*options?:.*(?:\n[ \t]*-.*)*)|\w(?:\S*\w)?", re.IGNORECASE | re.MULTILINE
)

Unit = tuple[PairRow, ...]
"""One pair, or a pair and the hard negative that its file gives it."""


class PairPrompt(Prompt):
    """A Prompt whose input fields are not marked: they are what both wordings share.

    They are looked for only where truncation asks.
    """

    text = ""  # given here, where a Prompt puts it together from its pieces

    def __init__(self, text: str, other: str, answer: str):
        vars(self).update(text=text, answer=answer, _other=other)

    @functools.cached_property
    def pieces(self) -> tuple[Piece, ...]:
        pieces, end = [], 0
        for start, stop in shared_fields(self.text, self._other):
            pieces += [Piece(self.text[end:start], False), Piece(self.text[start:stop], True)]
            end = stop
        pieces.append(Piece(self.text[end:], False))
        return tuple(piece for piece in pieces if piece.text)


def shared_fields(text: str, other: str) -> list[tuple[int, int]]:
    """Where in `text` the fields stand that both wordings share, in order.

    They are the longest run of words in common and every other of at least FIELD_WORDS words.
    Lists of options are no fields, and words count as equal whatever the case and the punctuation
    around them.

    Raises: DataError where that takes more than MOST_COMPARISONS.
    """
    words, others = _words(text), _words(other)
    keys, other_keys = [key for key, _, _ in words], [key for key, _, _ in others]
    blocks = _Matcher(keys, other_keys).get_matching_blocks()
    longest = max(block.size for block in blocks)
    return [
        (words[block.a][1], words[block.a + block.size - 1][2])
        for block in blocks
        if block.size and block.size >= min(longest, FIELD_WORDS)
    ]


class _Matcher(difflib.SequenceMatcher):
    """A SequenceMatcher that gives up on texts made to keep it busy."""

    def __init__(self, words: list[object], others: list[object]):
        super().__init__(None, words, others, autojunk=False)
        counts = collections.Counter(others)
        self._pairs_before = list(itertools.accumulate((counts[w] for w in words), initial=0))
        self._left = MOST_COMPARISONS

    def find_longest_match(self, start: int, stop: int, *others: int) -> difflib.Match:
        self._left -= self._pairs_before[stop] - self._pairs_before[start]
        if self._left < 0:
            raise DataError(
                "two wordings that are too long and repeat too much to find what they share: "
                + shown(" ".join(map(str, self.a)))
            )
        return super().find_longest_match(start, stop, *others)


def _words(text: str) -> list[tuple[object, int, int]]:
    """(what is compared, start, end) of each word; a list of options is a word like no other."""
    words: list[tuple[object, int, int]] = []
    for match in _WORD.finditer(text):
        start, end = match.span()
        if match["options"]:
            words.append((object(), start, end))
        else:
            words.append((match.group().lower(), start, end))
    return words


class ReadyPairs:
    """Contrastive sets of ready pairs: one set per pair and epoch.

    Where the file gives no hard negatives, another pair of the task with another answer is drawn
    for each epoch.

    Raises: DataError for a task whose rows all have the same answer.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        evaluation: Sequence[Unit],
        seed: int,
        notes: Sequence[str] = (),
    ):
        self.notes = tuple(notes)
        self._evaluation, self._seed = list(evaluation), seed
        members = _rows_by_task(unit[0] for unit in units)
        self._units = [units[number] for numbers in members.values() for number in numbers]
        self.tasks: dict[str, range] = {}
        self._others: dict[str, OtherAnswer] = {}
        end = 0
        for task, numbers in members.items():
            start, end = end, end + len(numbers)
            self.tasks[task] = range(start, end)
            if any(len(unit) == 1 for unit in self._units[start:end]):
                targets = [unit[0].target for unit in self._units[start:end]]
                labels = np.unique(targets, return_inverse=True)[1]
                self._others[task] = OtherAnswer(labels, task)

    def __len__(self) -> int:
        return len(self._units)

    def get(self, index: int, epoch: int) -> ContrastiveSet:
        unit = self._units[index]
        if len(unit) == 1:
            task = unit[0].task
            start = self.tasks[task].start
            place = self._others[task].draw(index - start, mix(self._seed, index, epoch))
            unit += self._units[start + place][:1]
        return ContrastiveSet(
            tuple(prompt for row in unit for prompt in _prompts(row)),
            tuple(content_hash([row.original], row.target) for row in unit),
        )

    def single(self, index: int, epoch: int, turn: int | None = None) -> PairPrompt:
        row = self._units[index][0]
        if turn is None:
            turn, key = epoch, mix(self._seed, index)
        else:
            key = stable_hash(self._seed, "wording of a batch", row.task)
        return _prompts(row)[draw_wording(2, turn, key)]

    def evaluation_items(self, instances_per_task: int) -> list[EvaluationItem]:
        """Items of the tasks with a closed set of answers; both columns' wordings count as seen,
        since the rows do not tell which wording of which template they hold."""
        rows = [row for unit in self._evaluation for row in unit]
        trained = [row for unit in self._units for row in unit]
        items = []
        answers_of = {
            task: sorted({trained[number].target for number in members})
            for task, members in _rows_by_task(trained).items()
            # Of many free answers each comes once; a closed set repeats its own.
            if len({trained[number].target for number in members}) * 2 <= len(members)
        }
        for task, members in _rows_by_task(rows).items():
            answers = tuple(answers_of.get(task, ()))
            known = [number for number in members if rows[number].target in answers]
            if not 2 <= len(answers) <= MOST_ANSWERS:
                continue
            labels = np.array([answers.index(rows[number].target) for number in known])
            for place in stratified(labels, self._seed, task)[:instances_per_task]:
                prompts = _prompts(rows[known[place]])
                items += [
                    EvaluationItem(
                        task, known[place], wording, True, prompt, answers, int(labels[place])
                    )
                    for wording, prompt in zip(("original", "paraphrased"), prompts, strict=True)
                ]
        return items

    def tightest(self) -> Iterator[tuple[str, PairPrompt]]:
        for unit in itertools.chain(self._units, self._evaluation):
            for row in unit:
                for prompt in _prompts(row):
                    yield row.where, prompt

    def without(self, places: set[str]) -> ReadyPairs:
        if not places:
            return self
        kept = (
            [unit for unit in units if places.isdisjoint(row.where for row in unit)]
            for units in (self._units, self._evaluation)
        )
        note = f"{len(places)} rows skipped that are too long, the first: {min(places)}"
        return ReadyPairs(*kept, self._seed, [*self.notes, note])


def load_ready_pairs(data: DataConfig, seed: int) -> ReadyPairs:
    """Reads the files of the config; without evaluation files some pairs of each task are kept.

    Raises: DataError for a file or row that cannot be used.
    """
    units, bad = _read_units(data, data.files, "data.files")
    evaluation: list[Unit] = []
    if data.evaluation_files:
        evaluation, more = _read_units(data, data.evaluation_files, "data.evaluation_files")
        bad += more
    if not units:
        raise DataError("; ".join(["data.files: no usable pair", *bad_row_notes(bad)]))
    if not evaluation:
        for members in _rows_by_task(unit[0] for unit in units).values():
            kept = held_out((units[number][0].original for number in members), seed)
            evaluation += [units[number] for number in np.array(members)[kept]]
        gone = {id(unit) for unit in evaluation}
        units = [unit for unit in units if id(unit) not in gone]
    note = f"{len(units)} training and {len(evaluation)} held-out pairs"
    return ReadyPairs(units, evaluation, seed, [note, *bad_row_notes(bad)])


def _read_units(
    data: DataConfig, patterns: Sequence[str], field: str
) -> tuple[list[Unit], list[DataError]]:
    units, bad = [], []
    for file in expand_files(patterns, field):
        more, errors = collect(_units_of(file, data.odd_rows_are_hard_negatives), data.bad_rows)
        units += more
        bad += errors
    return units, bad


def _units_of(file: pathlib.Path, negatives_below: bool) -> Iterator[Unit | DataError]:
    rows = read_pair_rows([file])
    if not negatives_below:
        for row in rows:
            yield row if isinstance(row, DataError) else (row,)
        return
    for row in rows:
        negative = next(rows, None)
        if isinstance(row, DataError):
            yield row
        elif isinstance(negative, DataError):
            yield negative
        elif negative is None:
            yield DataError(f"{row.where}: the last row, and its hard negative is missing below it")
        elif (negative.task, negative.target != row.target) != (row.task, True):
            yield DataError(
                f"{negative.where}: cannot be the hard negative of the row above it: that needs "
                "the same task and another answer (data.odd_rows_are_hard_negatives)"
            )
        else:
            yield row, negative


def _prompts(row: PairRow) -> tuple[PairPrompt, PairPrompt]:
    return (
        PairPrompt(row.original, row.paraphrased, row.target),
        PairPrompt(row.paraphrased, row.original, row.target),
    )


def _rows_by_task(rows: Iterable[PairRow]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.task, []).append(number)
    return groups
