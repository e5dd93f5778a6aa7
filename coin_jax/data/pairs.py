"""Contrastive sets: an instance in two wordings, beside another instance with another answer.

The anchor and the positive are the same instance under two wordings; the hard negative is another
instance of the task, with another answer, under the same two wordings (Yan et al. 2024, section
3). Which wordings and which negative an epoch shows is a pure function of (seed, epoch, index).
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np

from coin_jax.config import BatchConfig
from coin_jax.data.draws import draw_order, mix, stable_hash
from coin_jax.data.order import shuffled
from coin_jax.data.packing import TokenizedSet
from coin_jax.data.sources import DataError
from coin_jax.data.templates import Prompt, Template, render_options
from coin_jax.data.tokenizer import Tokenizer, encode_prompts

MOST_SKIPPED = 100
"""Neighbouring rows of a task that may be too long."""
_BLOCK = 1 << 16
"""Positions shuffled at a time."""


class ContrastiveSet(NamedTuple):
    sequences: tuple[Prompt, ...]
    """Anchor, positive, and the same of the hard negative."""
    contents: tuple[int, ...]
    """`content_hash` of each pair."""


class EvaluationItem(NamedTuple):
    """One held-out instance in one wording."""

    task: str
    instance: int
    wording: str
    seen: bool
    """Whether training shows this wording."""
    prompt: Prompt
    answers: tuple[str, ...]
    """All that could be answered; `prompt.answer` is number `label_index` of them."""
    label_index: int


class PairSource(Protocol):
    """Random access to contrastive sets."""

    notes: tuple[str, ...]
    """What was read, left out and held out, in sentences for the log."""
    tasks: Mapping[str, range]
    """The sets of each task: ranges of indices that follow one another and cover all."""

    def __len__(self) -> int:
        """Contrastive sets per epoch."""

    def get(self, index: int, epoch: int) -> ContrastiveSet: ...

    def single(self, index: int, epoch: int, turn: int | None = None) -> Prompt:
        """The instance that leads the set, in one of its training wordings (`draw_wording`).

        Without a turn, it has a wording of its own in every epoch, none twice before the others.
        With one, all instances of a task have the same: number `turn` of the task's own cycle
        through its wordings, or the next that can ask the instance.
        """

    def evaluation_items(self, instances_per_task: int) -> list[EvaluationItem]:
        """Every wording of some held-out instances of each task that has a fixed set of answers.

        The labels have the same shares in any number of instances, as far as it divides.
        """

    def tightest(self) -> Iterator[tuple[str, Prompt]]:
        """(place, prompt) of all that may be too long even with its input fields cut."""

    def without(self, places: set[str]) -> PairSource:
        """The source less these rows."""


class Instances(NamedTuple):
    """Rows of one task."""

    inputs: Sequence[Mapping[str, str]]
    """By template placeholder."""
    labels: np.ndarray
    """[rows] int32, indices into the task's answers."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A task with definite answers, its rows and its wordings."""

    name: str
    answers: tuple[str, ...]
    training_wordings: tuple[Template, ...]
    held_out_wordings: tuple[Template, ...]
    training: Instances
    evaluation: Instances

    @property
    def wordings(self) -> tuple[Template, ...]:
        return self.training_wordings + self.held_out_wordings


class TaskPairs:
    """Contrastive sets of tasks: one set per training instance and epoch.

    An instance is shown in each ordered choice of two training wordings once before one returns.

    Raises: DataError for a task whose rows all have the same answer, and for two of one name.
    """

    def __init__(self, tasks: Sequence[Task], seed: int, notes: Sequence[str] = ()):
        self.definitions = tuple(tasks)
        self.notes = tuple(notes)
        self._seed = seed
        self._options = [render_options(task.answers) for task in tasks]
        self._others = [OtherAnswer(task.training.labels, task.name) for task in tasks]
        self._contents = [
            [
                content_hash(row.values(), task.answers[label])
                for row, label in zip(*task.training, strict=True)
            ]
            for task in tasks
        ]
        self._starts = list(
            itertools.accumulate((len(task.training.inputs) for task in tasks), initial=0)
        )
        self.tasks = {}
        for task, (start, end) in zip(tasks, itertools.pairwise(self._starts), strict=True):
            if task.name in self.tasks:
                raise DataError(f"two tasks are called {task.name!r}: give each its own rows")
            self.tasks[task.name] = range(start, end)

    def __len__(self) -> int:
        return self._starts[-1]

    def get(self, index: int, epoch: int) -> ContrastiveSet:
        number, task, row = self._locate(index)
        wordings = draw_wordings(len(task.training_wordings), epoch, mix(self._seed, index))
        negative = self._others[number].draw(row, mix(self._seed, index, epoch))
        return ContrastiveSet(
            tuple(
                self._render(number, task.training_wordings[wording], task.training, member)
                for member in (row, negative)
                for wording in wordings
            ),
            tuple(self._contents[number][member] for member in (row, negative)),
        )

    def single(self, index: int, epoch: int, turn: int | None = None) -> Prompt:
        number, task, row = self._locate(index)
        if turn is None:
            turn, key = epoch, mix(self._seed, index)
        else:
            key = stable_hash(self._seed, "wording of a batch", task.name)
        wording = task.training_wordings[draw_wording(len(task.training_wordings), turn, key)]
        return self._render(number, wording, task.training, row)

    def _locate(self, index: int) -> tuple[int, Task, int]:
        """(number of the task, the task, the row in it)."""
        number = bisect.bisect_right(self._starts, index) - 1
        return number, self.definitions[number], index - self._starts[number]

    def _render(self, number: int, wording: Template, instances: Instances, row: int) -> Prompt:
        answer = self.definitions[number].answers[instances.labels[row]]
        return wording.render(instances.inputs[row], self._options[number], answer)

    def evaluation_items(self, instances_per_task: int) -> list[EvaluationItem]:
        return [
            EvaluationItem(
                task.name,
                row,
                wording.name,
                place < len(task.training_wordings),
                self._render(number, wording, task.evaluation, row),
                task.answers,
                int(task.evaluation.labels[row]),
            )
            for number, task in enumerate(self.definitions)
            for row in stratified(task.evaluation.labels, self._seed, task.name)[
                :instances_per_task
            ]
            for place, wording in enumerate(task.wordings)
        ]

    def tightest(self) -> Iterator[tuple[str, Prompt]]:
        for task, options in zip(self.definitions, self._options, strict=True):
            for wording, answer in itertools.product(task.wordings, task.answers):
                empty = dict.fromkeys(wording.placeholders, "")
                yield (
                    f"task {task.name!r}, wording {wording.name}",
                    wording.render(empty, options, answer),
                )

    def without(self, places: set[str]) -> PairSource:
        if places:  # a wording that never fits is a fault of the config, not of a row
            raise DataError(f"{min(places)}: too long for the batch even with its fields cut")
        return self


class OtherAnswer:
    """Draws rows of a task that have another answer, in constant time."""

    def __init__(self, labels: np.ndarray, task: str):
        self._by_label = np.argsort(labels, kind="stable")
        in_order = labels[self._by_label]
        self._starts = np.searchsorted(in_order, labels, "left")
        self._counts = np.searchsorted(in_order, labels, "right") - self._starts
        if len(labels) == 0 or self._counts[0] == len(labels):
            raise DataError(
                f"task {task!r}: its {len(labels)} training rows have fewer than two different "
                "answers, so that no hard negative can be drawn"
            )

    def draw(self, row: int, random: int) -> int:
        """A row with another answer than `row`, each equally likely."""
        start, count = int(self._starts[row]), int(self._counts[row])
        place = random % (len(self._by_label) - count)
        return int(self._by_label[place if place < start else place + count])


def draw_wordings(count: int, epoch: int, key: int) -> tuple[int, int]:
    """Two different ones of `count` wordings; none of the ordered choices comes twice in
    count * (count - 1) successive epochs."""
    first, second = divmod(draw_wording(count * (count - 1), epoch, key), count - 1)
    return first, second + (second >= first)


def draw_wording(count: int, turn: int, key: int) -> int:
    """One of `count` wordings; `count` successive turns have each once."""
    steps = _full_steps(count)
    return (key + turn * steps[mix(key) % len(steps)]) % count


@functools.cache
def _full_steps(size: int) -> list[int]:
    """Steps that come to every place of a ring before they return."""
    return [step for step in range(1, size + 1) if math.gcd(step, size) == 1]


def content_hash(texts: Iterator[str] | Sequence[str], answer: str) -> int:
    """31 bits of an input instance and its answer: pairs with the same are no negatives of each
    other."""
    return stable_hash(*texts, answer) & 0x7FFFFFFF


def stratified(labels: np.ndarray, seed: int, name: str) -> list[int]:
    """All rows in an order drawn by seed and name, whose every beginning has the labels in the
    shares that they have in all."""
    by_label: dict[int, list[int]] = {}
    for row in draw_order(len(labels), seed, "evaluation", name):
        by_label.setdefault(int(labels[row]), []).append(row)
    places = [
        ((rank + 0.5) / len(rows), label, row)
        for label, rows in by_label.items()
        for rank, row in enumerate(rows)
    ]
    return [row for _, _, row in sorted(places)]


def training_texts(source: PairSource, seed: int) -> Iterator[str]:
    """Prompts and answers of training, shuffled, for a tokenizer to be trained on."""
    for start in range(0, len(source), _BLOCK):
        positions = np.arange(start, min(start + _BLOCK, len(source)))
        for index in shuffled(positions, len(source), seed)[1].tolist():
            for prompt in source.get(index, 0).sequences[:2]:
                yield prompt.text
            yield prompt.answer


class TokenizedPairs:
    """Contrastive sets as ids: what the pipeline packs. See pipeline.TokenizedSource.

    Args:
      batch: its encoder_length and decoder_length bound every sequence.
      bad_rows: what a prompt does that is too long even with its fields cut, or an answer that is
        too long. With "skip" its row is left out where `source.tightest` tells it beforehand; else,
        in a source too large to be looked through, the next row of its task stands for it.

    Raises: DataError for such a prompt, with its place.
    """

    def __init__(
        self,
        source: PairSource,
        tokenizer: Tokenizer,
        batch: BatchConfig,
        bad_rows: Literal["error", "skip"] = "error",
    ):
        self._tokenizer = tokenizer
        self._lengths = (batch.encoder_length, batch.decoder_length)
        self._skips = bad_rows == "skip"
        too_long = set()
        for where, error in self._misfits(source.tightest()):
            if bad_rows == "error":
                raise DataError(f"{where}: {error}")
            too_long.add(where)
        self.source = source.without(too_long)
        ranges = sorted(filter(len, self.source.tasks.values()), key=lambda task: task.start)
        self._ranges, self._starts = ranges, [task.start for task in ranges]

    def _misfits(self, prompts: Iterator[tuple[str, Prompt]]) -> Iterator[tuple[str, DataError]]:
        """(place, error) of the prompts that do not fit."""
        while chunk := list(itertools.islice(prompts, 1024)):
            ids = self._tokenizer.encode_batch([prompt.text for _, prompt in chunk])
            for (where, prompt), tokens in zip(chunk, ids, strict=True):
                # A token is at least a byte, or the blank that some tokenizers put in front.
                sizes = len(tokens) + 1, len(prompt.answer.encode("utf-8")) + 2
                if any(size > limit for size, limit in zip(sizes, self._lengths, strict=True)):
                    try:
                        encode_prompts(self._tokenizer, [prompt], *self._lengths)
                    except DataError as error:
                        yield where, error

    def __len__(self) -> int:
        return len(self.source)

    def tokenized(self, index: int, epoch: int) -> TokenizedSet:
        return self._first_fitting(index, lambda row: self._set(row, epoch))

    def _first_fitting(self, index: int, make: Callable[[int], TokenizedSet]) -> TokenizedSet:
        """make(index), or that of the next row of its task that fits, where rows may be skipped."""
        if not self._skips:
            return make(index)
        task = self._ranges[bisect.bisect_right(self._starts, index) - 1]
        error = None
        for step in range(MOST_SKIPPED):
            try:
                return make(task.start + (index - task.start + step) % len(task))
            except DataError as found:
                error = error or found
        raise DataError(f"{error}; nor do the {MOST_SKIPPED} rows after it fit") from None

    def _set(self, index: int, epoch: int) -> TokenizedSet:
        content = self.source.get(index, epoch)
        encoded = encode_prompts(self._tokenizer, content.sequences, *self._lengths)
        return TokenizedSet(
            [prompt.input for prompt in encoded],
            [prompt.target for prompt in encoded],
            content.contents,
            sum(prompt.was_cut for prompt in encoded),
        )


class TokenizedInstances(TokenizedPairs):
    """Each set's leading instance alone, as ids: what the batch modes without pairs pack."""

    def tokenized(self, index: int, epoch: int, turn: int | None = None) -> TokenizedSet:
        return self._first_fitting(index, lambda row: self._instance(row, epoch, turn))

    def _instance(self, index: int, epoch: int, turn: int | None) -> TokenizedSet:
        prompt = self.source.single(index, epoch, turn)
        (encoded,) = encode_prompts(self._tokenizer, [prompt], *self._lengths)
        return TokenizedSet([encoded.input], [encoded.target], cut=int(encoded.was_cut))
