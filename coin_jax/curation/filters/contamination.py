"""What of the training data stands in the evaluation: prompts and instances of robustness suites.

Texts are compared by `robustness.suite.words`: case, punctuation and white space do not count. The
evaluation's runs of words are a hash table; training rows stream past it. A hash only finds
candidates: every hit is verified on the words themselves.

Scripts written without spaces are compared by what stands between punctuation marks.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from coin_jax.curation.config import FilterConfig
from coin_jax.data.templates import parse_template
from coin_jax.robustness.suite import Suite, load_suite, template_words, wording_words, words

SHORTEST_RUN = 8
"""Words. Shorter runs are shared by chance (Brown et al. 2020, appendix C, has 8 to 13)."""

Words = tuple[str, ...]


class Hit(NamedTuple):
    """A place in the training data that has something of the evaluation."""

    kind: str
    """`prompt` or `instance`: what of the evaluation it has."""
    how: str
    """`equal`; `contained`, which a short text is as a whole; `run` of consecutive words."""
    suite: str
    condition: str
    """Of a prompt; an instance is in all of them."""
    task: str
    name: str
    """Number of the prompt in its condition, or the key of the instance."""
    training_task: str
    place: str
    """The wording, or the file and row."""
    field: str
    """Of the training instance, where the words stand; empty for wordings and for equal ones."""
    words: str
    """What both have, the longest stretch of it."""


class _Entry(NamedTuple):
    """A prompt or instance of the evaluation."""

    kind: str
    suite: str
    condition: str
    task: str
    name: str
    texts: tuple[Words, ...]
    """An instance's fields, or what of a prompt stands around its placeholders."""


class Contamination:
    """Finds evaluation prompts and instances in training data, and remembers every hit.

    An instance is found in a training instance
    - that shares `overlapping_words` consecutive words with one of its fields;
    - or, where no field has so many: that has the longest field, of SHORTEST_RUN words or more, and
      all others, each in one piece;
    - or that has the same texts for fields, in whatever order.
    A prompt is found in a wording, or in the finished prompt of a training instance, in the same
    way; placeholders part its texts, and do not count where the rest is equal.

    All instances of a suite's data count, sampled or not. Memory: 2 kB for an evaluation instance
    of 40 words, beside the suite itself; nothing for training rows but the hits.

    Raises: ValueError for `overlapping_words` below 2.
    """

    def __init__(self, suites: Sequence[Suite], settings: FilterConfig):
        self._size = settings.overlapping_words
        if self._size < 2:
            raise ValueError(
                f"filters.overlapping_words is {self._size}; allowed: 2 or more consecutive words"
            )
        self._suites = suites
        self._index = _Index(self._size)
        for suite in suites:
            for wording in suite.wordings:
                name = (wording.condition, wording.task, str(wording.index))
                entry = _Entry("prompt", suite.name, *name, _around_placeholders(wording.text))
                self._index.add(entry, wording_words(wording))
            for task in suite.tasks:
                for instance in itertools.chain(task.instances, task.attack_instances):
                    texts = tuple(
                        tuple(map(sys.intern, words(text))) for text in instance.inputs.values()
                    )
                    entry = _Entry("instance", suite.name, "", task.name, instance.key, texts)
                    self._index.add(entry, [_whole(texts)])
        self._hits: list[Hit] = []
        self._checked = {"wordings": 0, "instances": 0}

    @classmethod
    def load(cls, settings: FilterConfig) -> Contamination:
        """Of the suites that the settings name. DataError for one that cannot be read."""
        folder = settings.suite_data or None
        return cls([load_suite(path, data_folder=folder) for path in settings.suites], settings)

    def wording(self, template: str, task: str, name: str) -> Hit | None:
        """Whether a training wording has an evaluation prompt; the hit with the most words."""
        self._checked["wordings"] += 1
        texts = dict.fromkeys(_around_placeholders(template), "")
        found = self._index.find(texts, template_words(template))
        return self._record((each for each in found if each[0].kind == "prompt"), task, name)

    def instance(self, inputs: Mapping[str, str], task: str, where: str) -> Hit | None:
        """Whether a training instance has an evaluation instance or, being a finished prompt, an
        evaluation prompt; the hit with the most words."""
        self._checked["instances"] += 1
        fields = {words(text): field for field, text in inputs.items()}
        return self._record(self._index.find(fields, _whole(fields)), task, where)

    def _record(self, found: Iterable[_Found], task: str, place: str) -> Hit | None:
        hits = [
            Hit(entry.kind, how, *entry[1:5], task, place, field, " ".join(shared))
            for entry, how, field, shared in found
        ]
        self._hits += hits
        return max(hits, key=lambda hit: len(hit.words), default=None)

    def summary(self) -> dict[str, Any]:
        """What was compared and how much was found."""
        return {
            "overlapping_words": self._size,
            "suites": [
                {
                    "name": suite.name,
                    "file": suite.path.name,
                    "prompts": len(suite.wordings),
                    "instances": {
                        task.name: len(task.instances) + len(task.attack_instances)
                        for task in suite.tasks
                    },
                    "notes": list(suite.notes),
                }
                for suite in self._suites
            ],
            "checked": dict(self._checked),
            "hits": {
                kind: sum(hit.kind == kind for hit in self._hits) for kind in ("prompt", "instance")
            },
        }

    def report(self) -> dict[str, Any]:
        """The summary, and every hit by name."""
        return self.summary() | {"found": [hit._asdict() for hit in self._hits]}


_Found = tuple[_Entry, str, str, Words]
"""What was found, how, in which field, and the words that both have."""


class _Index:
    """Texts of the evaluation by their runs of words."""

    def __init__(self, size: int):
        self._size = size
        self._short = min(SHORTEST_RUN, size)
        # A run of `size` words holds one of `short` words that begins at a multiple of this.
        self._step = size - self._short + 1
        self._entries: list[_Entry] = []
        self._equal: dict[Words, tuple[int, ...]] = {}
        # By the hash of `short` words. Most are of one entry, which has one tuple for all.
        self._runs: dict[int, tuple[int, ...]] = {}

    def add(self, entry: _Entry, equals: Iterable[Words]) -> None:
        """`equals`: what a whole text must be to be this one."""
        alone = (len(self._entries),)
        self._entries.append(entry)
        longest = max(entry.texts, key=len, default=())
        keys = {
            key
            for text in (entry.texts if len(longest) >= self._size else [longest[: self._short]])
            for key in _hashes(text, self._short, self._step)
        }
        for table, found in ((self._runs, keys), (self._equal, set(filter(None, equals)))):
            for key in found:
                table[key] = table[key] + alone if key in table else alone

    def find(self, fields: Mapping[Words, str], whole: Words) -> Iterator[_Found]:
        """Every entry that these texts have, each once; `fields` names the texts."""
        seen = set(self._equal.get(whole, ()))
        for number in sorted(seen):
            entry = self._entries[number]
            yield entry, "equal", "", max(entry.texts, key=len)
        for text, field in fields.items():
            found = (self._runs.get(key, ()) for key in _hashes(text, self._short))
            for number in sorted(set(itertools.chain.from_iterable(found)) - seen):
                entry = self._entries[number]
                longest = max(entry.texts, key=len)
                if len(longest) >= self._size:
                    how, shared = "run", _longest_run(text, entry.texts, self._size)
                else:
                    is_whole = all(
                        any(_has(each, other) for each in fields) for other in entry.texts
                    )
                    how, shared = "contained", longest if is_whole and _has(text, longest) else ()
                if shared:
                    seen.add(number)
                    yield entry, how, field, shared


def _around_placeholders(template: str) -> tuple[Words, ...]:
    parts = parse_template(template, "prompt").parts
    return tuple(text for literal, _ in parts if (text := words(literal)))


def _whole(texts: Iterable[Words]) -> Words:
    """An instance as one text, whatever the order of its fields; no prompt is the same."""
    texts = sorted(set(texts) - {()})
    return tuple(itertools.chain.from_iterable((*text, "\n") for text in texts))


def _hashes(text: Words, size: int, step: int = 1) -> Iterator[int]:
    """Of runs of `size` words, of every `step`-th one."""
    return (hash(text[start : start + size]) for start in range(0, len(text) - size + 1, step))


def _has(text: Words, part: Words) -> bool:
    """Whether `part` stands in `text` in one piece."""
    return any(
        text[start : start + len(part)] == part for start in range(len(text) - len(part) + 1)
    )


def _longest_run(text: Words, others: Iterable[Words], size: int) -> Words:
    """The longest run of words, of `size` or more, that `text` has with one of the others."""
    theirs = {
        other[start : start + size] for other in others for start in range(len(other) - size + 1)
    }
    best: Words = ()
    begin = None
    for start in range(len(text) - size + 2):
        if text[start : start + size] in theirs:  # at the end a shorter slice, which is not
            begin = start if begin is None else begin
        elif begin is not None:
            best = max(best, text[begin : start + size - 1], key=len)
            begin = None
    return best
