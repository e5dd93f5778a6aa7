"""Near-duplicate instances: MinHash to find candidates, exact Jaccard similarity to decide.

The signatures are rensa's; the index is ours, since memory shall stay flat: 8 bytes a band and
row, where rensa's own index takes 92 and that of datasketch 385 (100 and 15 thousand rows).
"""

from __future__ import annotations

import array
import collections
import itertools
import json
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from coin_jax.curation.config import FilterConfig
from coin_jax.data.draws import stable_hash
from coin_jax.data.order import random_bits

SHINGLE = 5
"""Words in a row that are compared."""
BANDS = 8
MISSED = 0.01
"""Of pairs just as similar as the threshold says, so many share no band, at most; of more similar
ones far fewer, of equal ones none."""
LEAST = 0.5
"""Thresholds below would make different texts one, and need more bands to find them."""
CANDIDATES = 32
"""Earlier rows of a band that are looked at. Instances that are alike for the most part, such as
finished prompts of one long instruction, share bands by thousands."""
COMMON_SHARE = 0.1
"""Of a task's instances; what more of them have is the task's frame: without it, instances of a few
words in a long finished prompt would all be one."""
COMMON_AT_LEAST = 16
COUNTED = 1024
"""Different instances of a task that tell what is common; a power of two."""
MOST_ROWS = 16
"""Hashes a band; more tell no more texts apart."""
_SEED = 1
_HALF, _LOWER = np.uint64(32), np.uint64(0xFFFFFFFF)

_TOKEN = re.compile(r"\w+|[^\w\s]")

Keyed = tuple[str, Mapping[str, str]]
"""An instance's answer and inputs."""


class DuplicateFinder:
    """Finds instances that repeat an earlier one of the same task, as they stream by.

    Two are one when the word 5-grams of each of their fields have the Jaccard similarity of
    `settings.near_duplicate` and their answers are the same: with another answer, a small
    difference is what a model must learn to see. Those with the same inputs are one whatever the
    answers. Punctuation marks count as words, case does not count, and a text of fewer than five
    words is a single gram. Grams that many instances of the task have, as finished prompts do, do
    not count. At 1 only the same inputs are one, at 0 none.

    What is found does not depend on how the stream is cut into batches. Memory: 81 bytes a row,
    twice that for a moment as the index grows; the texts lie in a temporary file.

    Raises: ValueError for a threshold that is neither 0 nor between LEAST and 1.
    """

    def __init__(self, settings: FilterConfig):
        self._threshold = settings.near_duplicate
        if self._threshold and not LEAST <= self._threshold <= 1:
            raise ValueError(
                f"filters.near_duplicate is {self._threshold}; allowed: {LEAST} to 1, or 0"
            )
        self._rows_of_band = _rows_of_band(self._threshold) if self._threshold else 0
        self._index = _Index()
        self._texts = _Spool()
        self._kept = bytearray()
        self._common = _CommonGrams()

    def is_new(self, answer: str, inputs: Mapping[str, str]) -> bool:
        """Whether it is one with no earlier instance that was new."""
        return self.are_new([(answer, inputs)])[0]

    def are_new(self, instances: Sequence[Keyed]) -> list[bool]:
        """`is_new` of each (answer, inputs) in turn, at a fraction of the time."""
        if not self._threshold or not instances:
            return [True] * len(instances)
        first = len(self._kept)
        if self._threshold < 1:
            grams = [{field: _grams(text) for field, text in row.items()} for _, row in instances]
        else:
            grams = [{}] * len(instances)
        keys = self._keys(instances, grams)
        self._index.add(keys, first)
        self._texts.extend(instances)
        for place, candidates in enumerate(self._index.earlier(keys, first)):
            is_one = any(
                self._kept[other] and self._is_one(instances[place], grams[place], other)
                for other in candidates
            )
            self._kept.append(not is_one)
            self._common.count(grams[place].values())
        return [bool(kept) for kept in self._kept[first:]]

    def _keys(self, instances: Sequence[Keyed], grams: Sequence[Mapping]) -> np.ndarray:
        """uint64 [rows, 1 + BANDS], of 32 bits: all are the same for equal rows, and probably one
        for similar ones.

        The first is of the whole, so that equal rows are found among any number of alike ones.
        """
        whole = [
            stable_hash(*itertools.chain.from_iterable(sorted(inputs.items())))
            for _, inputs in instances
        ]
        keys = np.array(whole, np.uint64)[:, None]
        if self._threshold < 1:
            from rensa import RMinHash

            matrix = RMinHash.digest_matrix_from_token_sets(
                [list(itertools.chain.from_iterable(row.values())) for row in grams],
                BANDS * self._rows_of_band,
                _SEED,
            )
            signatures = np.array(matrix.to_rows(), np.uint64)
            # Multilinear hashing (Carter & Wegman 1979), of each band with factors of its own.
            parts = signatures * random_bits(signatures.shape[1], _SEED)
            bands = parts.reshape(len(keys), BANDS, self._rows_of_band).sum(-1, dtype=np.uint64)
            keys = np.concatenate([keys, bands], axis=1)
        return keys >> _HALF

    def _is_one(self, instance: Keyed, grams: Mapping[str, set[str]], other: int) -> bool:
        answer, inputs = instance
        other_answer, other_inputs = self._texts[other]
        if inputs == other_inputs:
            return True
        if self._threshold == 1 or answer != other_answer or inputs.keys() != other_inputs.keys():
            return False
        return all(
            _jaccard(grams[field], _grams(text), self._common.grams) >= self._threshold
            for field, text in other_inputs.items()
        )


class _Index:
    """Rows by key: runs of uint64 (key in the upper 32 bits, row in the lower), each sorted.

    A run is merged with the one before it that is not much longer, so there are few of them.
    """

    def __init__(self):
        self._runs: list[np.ndarray] = []

    def add(self, keys: np.ndarray, first: int) -> None:
        """keys: uint64 [rows, keys] of the rows from `first` on."""
        rows = np.arange(first, first + len(keys), dtype=np.uint64)[:, None]
        run = np.sort((keys << _HALF | rows).ravel())
        while self._runs and len(self._runs[-1]) <= 4 * len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort()
        self._runs.append(run)

    def earlier(self, keys: np.ndarray, first: int) -> Iterator[list[int]]:
        """For each of these rows the rows before it that share keys: those that share the first
        key, then those that share most.

        Of each key the CANDIDATES first rows count, and as many of all.
        """
        rows = np.arange(first, first + len(keys), dtype=np.uint64)[:, None]
        starts, ends = ((keys << _HALF).ravel(), (keys << _HALF | rows).ravel())
        found = []
        for run in self._runs:
            begins = np.searchsorted(run, starts)
            counts = np.minimum(np.searchsorted(run, ends) - begins, CANDIDATES)
            asked = np.repeat(np.arange(len(starts), dtype=np.uint64), counts)
            places = np.repeat(begins - np.cumsum(counts) + counts, counts)
            found.append(asked << _HALF | run[places + np.arange(len(places))] & _LOWER)
        pairs = np.sort(np.concatenate(found))  # by key asked for, then by row
        asked = pairs >> _HALF
        rank = np.arange(len(pairs)) - np.searchsorted(asked, asked)
        pairs = pairs[rank < CANDIDATES]
        asker, key = np.divmod(pairs >> _HALF, np.uint64(keys.shape[1]))
        pairs, place = np.unique(asker << _HALF | pairs & _LOWER, return_inverse=True)
        shared = np.bincount(place, np.where(key == 0, keys.shape[1], 1))
        pairs = pairs[np.lexsort((pairs, -shared, pairs >> _HALF))]
        bounds = np.searchsorted(pairs >> _HALF, np.arange(len(keys) + 1, dtype=np.uint64))
        others = (pairs & _LOWER).tolist()
        for begin, end in itertools.pairwise(bounds.tolist()):
            yield others[begin : min(end, begin + CANDIDATES)]


class _CommonGrams:
    """Grams of a task's frame rather than of an instance, by the first different instances."""

    def __init__(self):
        self.grams: set[str] = set()
        self._counts: collections.Counter[str] = collections.Counter()
        self._seen: set[frozenset[str]] = set()
        self._is_done = False

    def count(self, of_fields: Iterable[set[str]]) -> None:
        grams = frozenset().union(*of_fields)
        if self._is_done or grams in self._seen:
            return
        self._seen.add(grams)
        self._counts.update(grams)
        seen = len(self._seen)
        if seen >= COMMON_AT_LEAST and seen.bit_count() == 1:  # 16, 32, 64, ...
            least = max(COMMON_AT_LEAST, COMMON_SHARE * seen)
            self.grams = {gram for gram, count in self._counts.items() if count >= least}
        if seen == COUNTED:
            self._is_done = True
            self._seen.clear()
            self._counts.clear()


class _Spool:
    """Instances in a temporary file, by number."""

    def __init__(self):
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  gone with this object
        self._ends = array.array("q", [0])

    def extend(self, instances: Iterable[Keyed]) -> None:
        lines = [json.dumps([answer, dict(inputs)]).encode() for answer, inputs in instances]
        self._file.seek(self._ends[-1])
        self._file.write(b"".join(lines))
        for line in lines:
            self._ends.append(self._ends[-1] + len(line))

    def __getitem__(self, number: int) -> Keyed:
        start, end = self._ends[number : number + 2]
        self._file.seek(start)
        return tuple(json.loads(self._file.read(end - start)))


def _grams(text: str) -> set[str]:
    tokens = _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())
    return {
        " ".join(tokens[start : start + SHINGLE])
        for start in range(max(1, len(tokens) - SHINGLE + 1))
    }


def _jaccard(first: set[str], second: set[str], aside: set[str]) -> float:
    """Of the grams that are not set aside; where none is left, whether all are the same."""
    both = (first | second) - aside
    return len(both & first & second) / len(both) if both else float(first == second)


def _rows_of_band(threshold: float) -> int:
    """As many hashes a band, so that few texts share one by chance, as MISSED allows."""
    rows = 1
    while (1 - threshold ** (rows + 1)) ** BANDS <= MISSED and rows < MOST_ROWS:
        rows += 1
    return rows
