"""What the sources share: which rows are instances, and whether a task's answers are a closed set.

All tasks are told from one pass over the rows, with 4 or 8 bytes kept of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from coin_jax.curation.config import SourceConfig
from coin_jax.data.draws import stable_hash
from coin_jax.data.order import shuffled
from coin_jax.data.ready_pairs import MOST_ANSWERS


class Answers:
    """The different answers of a task, as long as they may be a closed set."""

    def __init__(self):
        self.rows = 0
        self._different: set[str] = set()

    def add(self, target: str) -> None:
        self.rows += 1
        if len(self._different) <= MOST_ANSWERS:
            self._different.add(target)

    def closed(self) -> tuple[str, ...]:
        """The answers, sorted, where they are few and repeat (see `is_closed`); else none."""
        return tuple(sorted(self._different)) if is_closed(len(self._different), self.rows) else ()


def is_closed(different: int, rows: int) -> bool:
    """Whether so many different answers of so many rows are a set to choose from: of many free
    answers each comes once, a closed set repeats its own."""
    return 2 <= different <= MOST_ANSWERS and different * 2 <= rows


def full_name(config: SourceConfig, task: str) -> str:
    """A task's name with that of its source before it."""
    return f"{config.name}/{task}" if config.name else task


def drawn(count: int, most: int, seed: int, task: str) -> np.ndarray:
    """The numbers, in order, of at most `most` of a task's `count` instances, drawn by seed and
    name; 0: of all. int64."""
    if not most or count <= most:
        return np.arange(count)
    _, places = shuffled(np.arange(most), count, stable_hash(seed, "rows", task))
    return np.sort(places)


class Selection:
    """Which rows are instances of which task; those of a task are neighbours, in the rows' order.

    task_numbers: of each row its task's number in `tasks`; -1 for a row whose task cannot be told:
      these come last. Rows of a number beyond `tasks` are left out.
    most, seed: see `drawn`.
    """

    def __init__(
        self, task_numbers: Sequence[int] | np.ndarray, tasks: Sequence[str], most: int, seed: int
    ):
        numbers = np.asarray(task_numbers)
        smallest = np.min_scalar_type(max(len(numbers), 1))
        order = np.argsort(numbers, kind="stable").astype(smallest)
        bounds = np.searchsorted(numbers[order], np.arange(-1, len(tasks) + 1))
        unknown, *starts = bounds
        parts = []
        for number, task in enumerate(tasks):
            rows = order[starts[number] : starts[number + 1]]
            parts.append(rows[drawn(len(rows), most, seed, task)])
        parts.append(order[unknown : starts[0]])
        self.names = (*tasks, "")
        self._rows = np.concatenate(parts)
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> int:
        """The row that an instance is."""
        return int(self._rows[index])

    def task_of(self, index: int) -> str:
        return self.names[int(np.searchsorted(self._ends, index, "right"))]

    @property
    def counts(self) -> Mapping[str, int]:
        """Instances of each task; "" those whose task cannot be told."""
        return dict(zip(self.names, np.diff(self._ends, prepend=0).tolist(), strict=True))
