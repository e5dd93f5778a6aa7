"""Which templates of finished prompts ask about the same instances, and which ask the same.

Rows of prompts name neither their data set nor their task, so both are found:

1. Templates may belong to one data set when the first words of their names are the same, as in
   `glue_mrpc_equivalent` and `glue_qqp_answer`.
2. They do when the same row numbers hold the same instances. A prompt's words are compared less
   those of its template and of the other's, which are the ones in more than half of a template's
   prompts: at least half of those of the shorter prompt must stand in the other, in 4 of 5 rows.
   Whoever is linked through a third template belongs, too. What the names share names the data
   set. Templates of one publication whose row numbers differ are different data sets.
3. Templates of a data set are one task when their targets, by row, agree far beyond chance: by a
   Cohen's kappa of at least 0.6, "substantial" to Landis and Koch (1977), with each other template
   of the task (Cohen 1960). Agreement alone would not do: where nine answers of ten are No, any two
   questions agree on most rows. Where fewer than 10 rows are shared, or all have one target, chance
   cannot be told, and agreement in most rows is enough.
"""

from __future__ import annotations

import collections
import itertools
import re
import string
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from coin_jax.curation.sources.records import Records
from coin_jax.data.draws import stable_hash
from coin_jax.data.sources import DataError

SAMPLE = 64
"""Rows that tell whether two templates share theirs, and prompts that tell a template's words."""
SHARED_WORDS, SHARED_ROWS = 0.5, 0.8
FEWEST_WORDS = 3
"""Of an instance's own, to tell it by; where there are fewer, all words of the prompt count."""
KAPPA = 0.6
FEWEST_ROWS = 10
"""Shared ones that tell anything of chance."""


class TemplateRows(NamedTuple):
    """The prompts of one template, in the order of `keys`; a row's first one where it has more."""

    name: str
    keys: np.ndarray
    """[prompts] uint64, hashes of the row numbers, ascending: the first ones are a fair sample, and
    the same of all templates."""
    targets: np.ndarray
    """[prompts] uint64, hashes of the normalised targets."""
    records: np.ndarray
    """[prompts] where the prompts stand."""


class Dataset(NamedTuple):
    name: str
    members: tuple[int, ...]
    """Numbers of its templates."""


def normalised(target: str) -> str:
    """A target for comparison: without its case, double blanks and final punctuation."""
    text = " ".join(target.casefold().split())
    return text.rstrip(string.punctuation + " ") or text


def read_rows(records: Records) -> tuple[list[TemplateRows], np.ndarray]:
    """(the templates by name, the numbers of the records without a template, row or target)."""
    numbers: dict[str, int] = {}
    codes = np.full(len(records), -1, np.int32)
    keys, targets = np.zeros((2, len(records)), np.uint64)
    for place, columns in enumerate(records.scan("template", "row", "target")):
        if isinstance(columns, DataError):
            continue
        template, row, target = columns
        texts = isinstance(template, str) and isinstance(target, str)
        if texts and template.strip() and target.strip() and isinstance(row, int | str):
            codes[place] = numbers.setdefault(template, len(numbers))
            keys[place] = stable_hash(str(row))
            targets[place] = stable_hash(normalised(target))
    order = np.lexsort((keys, codes)).astype(np.min_scalar_type(len(records)))
    bounds = np.searchsorted(codes[order], np.arange(-1, len(numbers) + 1))
    templates = []
    for name, number in sorted(numbers.items()):
        places = order[bounds[number + 1] : bounds[number + 2]]
        rows, first = np.unique(keys[places], return_index=True)
        places = places[first]
        templates.append(TemplateRows(name, rows, targets[places], places))
    return templates, order[: bounds[1]]


def find_datasets(templates: Sequence[TemplateRows], prompt: Callable[[int], str]) -> list[Dataset]:
    """The data sets, in the order of their first templates. prompt: the text of a record."""
    families = collections.defaultdict(list)
    for number, template in enumerate(templates):
        families[re.search(r"[^\W_]*", template.name)[0]].append(number)
    groups: list[list[int]] = []
    for family in families.values():
        words = _Words(templates, prompt)
        found: list[list[int]] = []
        for number in family:
            linked = [g for g in found if any(words.share_rows(number, other) for other in g)]
            found = [group for group in found if group not in linked]
            found.append(sorted([number, *itertools.chain.from_iterable(linked)]))
        groups += found
    names = collections.Counter[str]()
    datasets = []
    for group in sorted(groups):
        name = _shared_name([templates[number].name for number in group])
        names[name] += 1
        datasets.append(Dataset(f"{name}_{names[name]}" if names[name] > 1 else name, tuple(group)))
    return datasets


def find_tasks(templates: Sequence[TemplateRows], dataset: Dataset) -> list[tuple[int, ...]]:
    """The templates of a data set that ask the same, task by task."""
    tasks: list[list[int]] = []
    for number in dataset.members:
        for task in tasks:
            if all(_ask_the_same(templates[number], templates[one]) for one in task):
                task.append(number)
                break
        else:
            tasks.append([number])
    return [tuple(task) for task in tasks]


def _ask_the_same(one: TemplateRows, other: TemplateRows) -> bool:
    shared, here, there = np.intersect1d(one.keys, other.keys, True, return_indices=True)
    if not len(shared):
        return False
    targets, numbers = np.unique([one.targets[here], other.targets[there]], return_inverse=True)
    first, second = numbers.reshape(2, -1)
    agreement = float(np.mean(first == second))
    shares = [np.bincount(part, minlength=len(targets)) / len(shared) for part in (first, second)]
    chance = float(shares[0] @ shares[1])
    if len(shared) < FEWEST_ROWS or len(targets) == 1:
        return agreement > 0.5
    return agreement - chance >= KAPPA * (1 - chance)


def _shared_name(names: Sequence[str]) -> str:
    """What names have in common, up to the end of a word; a single name is its own."""
    if len(names) == 1:
        return names[0]
    same = (len(set(letters)) == 1 for letters in zip(*names, strict=False))
    prefix = names[0][: sum(itertools.takewhile(bool, same))]
    ends = [match.start() for match in re.finditer(r"[\W_]+", prefix)]
    return prefix[: ends[-1]] if ends else prefix


class _Words:
    """Compares the prompts of the templates of one family."""

    def __init__(self, templates: Sequence[TemplateRows], prompt: Callable[[int], str]):
        self._templates, self._prompt = templates, prompt
        self._read: dict[int, frozenset[str]] = {}
        self._own: dict[int, frozenset[str]] = {}

    def share_rows(self, one: int, other: int) -> bool:
        """Whether the same rows of two templates hold the same instances."""
        templates = self._templates[one], self._templates[other]
        rows, *places = np.intersect1d(
            templates[0].keys, templates[1].keys, True, return_indices=True
        )
        places = [
            template.records[place[:SAMPLE]]
            for template, place in zip(templates, places, strict=True)
        ]
        own = self._words_of_template(one) | self._words_of_template(other)
        hits = sum(self._same(*map(self._words, pair), own) for pair in zip(*places, strict=True))
        return bool(len(rows)) and hits >= SHARED_ROWS * min(len(rows), SAMPLE)

    @staticmethod
    def _same(one: frozenset[str], other: frozenset[str], own: frozenset[str]) -> bool:
        bare = one - own, other - own
        if min(map(len, bare)) >= FEWEST_WORDS:
            one, other = bare
        return len(one & other) >= SHARED_WORDS * min(len(one), len(other))

    def _words_of_template(self, number: int) -> frozenset[str]:
        if number not in self._own:
            places = self._templates[number].records[:SAMPLE]
            counts = collections.Counter(itertools.chain.from_iterable(map(self._words, places)))
            self._own[number] = frozenset(
                word for word, count in counts.items() if count * 2 > len(places)
            )
        return self._own[number]

    def _words(self, place: int) -> frozenset[str]:
        if place not in self._read:
            self._read[place] = frozenset(re.findall(r"\w+", self._prompt(place).casefold()))
        return self._read[place]
