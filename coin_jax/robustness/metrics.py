"""Metrics of robustness to wording, each with its formula. Pure numpy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
    """How accuracy varies over the W wordings of one instruction, a_w the accuracy in wording w.

    mean  = (1/W) sum_w a_w
    worst = min_w a_w
    std   = sqrt((1/W) sum_w (a_w - mean)^2)     of the population: these W wordings, not an
                                                 estimate for others; 0 for a single wording
    """

    mean: float
    worst: float
    std: float


def accuracy(predictions: Sequence[int], labels: Sequence[int]) -> float:
    """Share of predictions that equal their label. ValueError where there are none."""
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or predictions.ndim != 1:
        raise ValueError(
            f"accuracy needs one prediction a label: got {predictions.shape} and {labels.shape}"
        )
    if not len(labels):
        raise ValueError("accuracy of nothing: no predictions were given")
    return float(np.mean(predictions == labels))


def spread(accuracies: Iterable[float]) -> Spread:
    """Mean, worst and population standard deviation of the accuracies, one a wording."""
    values = np.asarray(list(accuracies), np.float64)
    if not len(values):
        raise ValueError("the spread over wordings needs the accuracy in one wording at least")
    return Spread(float(values.mean()), float(values.min()), float(values.std()))


def macro_average(spreads: Iterable[Spread]) -> Spread:
    """Each statistic averaged over tasks, every task alike whatever its size.

    So `worst` is the mean over tasks of each task's worst wording, and `std` the mean over tasks
    of the deviation within the task; differences between tasks do not enter it.
    """
    table = np.asarray(list(spreads), np.float64)
    if not len(table):
        raise ValueError("the average over tasks needs one task at least")
    return Spread(*(float(value) for value in table.mean(axis=0)))


def majority_rate(labels: Sequence[int]) -> float:
    """Accuracy of always giving the commonest label of these instances: max_c n_c / n.

    `labels` holds one entry an instance, not one a wording.
    """
    if not len(labels):
        raise ValueError("the majority-class rate needs one label at least")
    counts = np.unique(np.asarray(labels), return_counts=True)[1]
    return float(counts.max() / counts.sum())
