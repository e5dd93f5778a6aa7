"""Mixtures of tasks: how often each comes, and the order of the stream that they make.

The stream is cut into blocks in which every task has the same number of places, so its rate is
kept to the unit over each of them. A block is arranged by a shuffle of its own; a task counts its
places through all blocks, and these are its positions in its own shuffled epochs. So the order is a
pure function of (seed, position), and each task repeats only what it has shown whole.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping

import numpy as np

from coin_jax.config import DataConfig
from coin_jax.data.draws import stable_hash
from coin_jax.data.order import shuffled
from coin_jax.data.sources import DataError

BLOCKS = (10_000, 100_000, 1_000_000)
"""Positions of a block: the first of these in which the rarest task has FEWEST_PLACES."""
FEWEST_PLACES = 10
_CACHED = 4_000_000
"""Positions of arranged blocks that are kept, 8 bytes each: shards look at several blocks."""
_NAMED = 10
"""Tasks that the note names."""


def make_mixture(tasks: Mapping[str, range], data: DataConfig, seed: int) -> Mixture | None:
    """The mixture that the config asks for; None where it asks for none: one shuffle of all.

    Raises: DataError for weights of tasks that the data does not have.
    """
    if not data.mixture_weights and not data.mixture_cap and data.mixture_temperature == 1:
        return None
    return Mixture(tasks, task_shares(tasks, data), seed)


def task_shares(tasks: Mapping[str, range], data: DataConfig) -> dict[str, float]:
    """Task -> share, all together 1: the config's weights, or min(size, cap)^(1 / temperature).

    The latter is examples-proportional mixing with a limit and temperature-scaled mixing (Raffel et
    al. 2020, section 3.5.2). Tasks without a share are left out.
    """
    for name in data.mixture_weights:
        if not tasks.get(name):
            raise DataError(f"data.mixture_weights: {_missing(name, tasks)}")
    cap = data.mixture_cap or max(map(len, tasks.values()), default=0)
    weights = data.mixture_weights or {
        name: min(len(members), cap) ** (1 / data.mixture_temperature)
        for name, members in tasks.items()
        if members
    }
    total = sum(weights.values())
    return {name: weights[name] / total for name in tasks if name in weights}


def _missing(name: str, tasks: Mapping[str, range]) -> str:
    """Says that there is no such task, and which were perhaps meant."""
    if name in tasks:
        return f"task {name!r} has no training rows"
    near = difflib.get_close_matches(name, tasks, n=3, cutoff=0.5)
    known = near or sorted(tasks)[:_NAMED]
    others = ", ..." if len(known) < len(tasks) and not near else ""
    return (
        f"the data has no task {name!r}; {'near it are' if near else 'the tasks are'} "
        f"{', '.join(map(repr, known))}{others}"
    )


class Mixture:
    """The endless stream of tasks in given shares.

    Args:
      tasks: the indices of each task.
      shares: of the tasks that take part, positive, in any unit.
    """

    def __init__(self, tasks: Mapping[str, range], shares: Mapping[str, float], seed: int):
        names = list(shares)
        rates = np.array([shares[name] for name in names]) / sum(shares.values())
        self.block = next((n for n in BLOCKS if n * rates.min() >= FEWEST_PLACES), BLOCKS[-1])
        """Positions over which the rates are kept to the unit."""
        self.places = dict(zip(names, apportion(rates, self.block).tolist(), strict=True))
        """Positions of each task in every block."""
        self._places = np.array(list(self.places.values()))
        self._ends = np.cumsum(self._places)
        self._begins = np.array([tasks[name].start for name in names])
        self._sizes = np.array([len(tasks[name]) for name in names])
        # By name, so that a task keeps its order whatever it is mixed with.
        self._keys = np.array([stable_hash(seed, "task", name) for name in names], np.uint64)
        self._seed = stable_hash(seed, "blocks of a mixture")
        kept = max(2, _CACHED // self.block)
        self._arranged = functools.lru_cache(kept)(self._arrange)
        parts = (self._places, self._begins, self._sizes, self._keys)
        self.fingerprint = stable_hash(*(str(part.tolist()) for part in parts)) & 0x7FFFFFFF
        """Tells one order of data from another."""

    @property
    def note(self) -> str:
        """The shares, in a sentence for the log."""
        shares = [
            f"{name} {100 * places / self.block:.3g}%"
            for name, places in sorted(self.places.items(), key=lambda item: -item[1])
        ]
        if len(shares) > _NAMED:
            others = len(shares) - _NAMED
            shares = [*shares[:_NAMED], f"{others} others down to {shares[-1]}"]
        return f"mixture, kept in every {self.block:,} sets: {', '.join(shares)}"

    def __call__(self, positions) -> tuple[np.ndarray, np.ndarray]:
        """Where the stream stands at `positions`, integers >= 0 [n]: (epochs, indices), int64 [n].

        The epochs are those of the index's own task.
        """
        blocks, places = np.divmod(np.atleast_1d(np.asarray(positions, np.int64)), self.block)
        tasks, ranks = np.empty_like(blocks), np.empty_like(blocks)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            tasks[here], ranks[here] = (part[places[here]] for part in self._arranged(block))
        in_task = blocks * self._places[tasks] + ranks
        epochs, indices = shuffled(in_task, self._sizes[tasks], self._keys[tasks])
        return epochs, indices + self._begins[tasks]

    def _arrange(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """(task, how many of the task stand before in the block) of each place, int32 [block]."""
        _, order = shuffled(block * self.block + np.arange(self.block), self.block, self._seed)
        tasks = np.searchsorted(self._ends, order, side="right").astype(np.int32)
        by_task = np.argsort(tasks, kind="stable")
        ranks = np.empty(self.block, np.int32)
        ranks[by_task] = np.arange(self.block) - np.repeat(self._ends - self._places, self._places)
        return tasks, ranks


def apportion(shares: np.ndarray, places: int) -> np.ndarray:
    """`places` divided in these shares by largest remainders, but at least one each, int64 [n].

    shares: positive, together 1. Where all have a place by their share, none is a whole place off.
    """
    exact = shares * places
    counts = np.maximum(np.floor(exact).astype(np.int64), 1)
    left = places - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[: max(0, left)]] += 1
    for _ in range(-left):  # what was given to the rarest, those have too much that lose least
        counts[np.argmax(np.where(counts > 1, counts - exact, -np.inf))] -= 1
    return counts
