"""Whether two models differ by more than the choice of test items: a paired bootstrap. Pure numpy.

Items are resampled, each with all its wordings and seeds: answers to one item under many wordings
are not independent, and taking them for so many observations would make chance look like progress.
The wordings, seeds and tasks at hand are not resampled, so nothing is said about others.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

LEVEL = 0.05
"""Of the test, and of what an interval leaves out."""
FEWEST = 6
"""Items that must differ for anything to be significant: the least m with 2^(1 - m) <= LEVEL."""
TIE = 1e-9
"""Differences of accuracy below it are rounding."""
DRAWS_AT_ONCE = 1 << 20
"""Resampled counts held at a time: 8 MiB."""


class Difference(NamedTuple):
    """Mean accuracy of A less that of B, over the same items."""

    difference: float
    low: float
    """With `high` the percentile interval, 95%."""
    high: float
    p: float
    """Two-sided, of no difference; not corrected for other tests, see `holm`."""
    resolvable: bool
    """Whether the difference is at least `smallest` and enough items show one; if not, the test set
    is too small to tell it from none."""
    smallest: float
    """The smallest difference that this many items resolve between models as alike as these; above
    1 where they are too few for any."""
    items: int


def compare(
    correct_a: np.ndarray, correct_b: np.ndarray, *, resamples: int = 10_000, seed: int = 0
) -> Difference:
    """A paired bootstrap over items (Koehn 2004), all wordings of an item together.

    correct_a, correct_b: 0/1 or bool [W, I], or [R, W, I] for R seeds of a method, whose accuracies
        are averaged; wordings and seeds need not be as many in both, items are the same in order.

    With d_i the accuracy of A on item i over wordings and seeds less that of B, and d*_r the mean
    over I items drawn with replacement, r = 1..N:

        difference = mean d_i
        low, high  = the 2.5% and 97.5% quantiles of d*
        p          = max(2 (1 + min(#{d* <= 0}, #{d* >= 0})) / (N + 1), 2^(1 - m)), at most 1
        smallest   = max(1.96 s, 6 u / I), s = sqrt(mean (d_i - difference)^2 / I) the standard
                     error that resampling has, u the smallest |d_i| that is not 0, 1 if all are

    The +1 counts the sample at hand as a resample (Davison and Hinkley 1997, section 4.2). m is the
    number of items with d_i != 0: no test that flips their signs could give less than 2^(1 - m), so
    that where the models differ on fewer than 6 items nothing is significant, which resampling a
    handful of equal differences could not know.

    ValueError for shapes that do not fit.
    """
    return compare_average([(correct_a, correct_b)], resamples=resamples, seed=seed)


def compare_average(
    tasks: Sequence[tuple[np.ndarray, np.ndarray]], *, resamples: int = 10_000, seed: int = 0
) -> Difference:
    """`compare` for the average over tasks, every task alike whatever its size.

    Each task, a pair as `compare` takes, is resampled by itself, so that each resample has as many
    items of each as there are; s is the root of the tasks' summed s^2, over their number T, and 6
    items weigh 6 u / (T I) where u / I is least.
    """
    if not tasks or resamples < 1:
        raise ValueError("a comparison needs one task and one resample at least")
    random = np.random.default_rng(seed)
    differences = [item_differences(*task) for task in tasks]
    drawn = np.mean([_resampled_means(d, resamples, random) for d in differences], axis=0)
    difference = float(np.mean([d.mean() for d in differences]))
    low, high = (float(q) for q in np.quantile(drawn, [LEVEL / 2, 1 - LEVEL / 2]))
    fewest = min(np.count_nonzero(drawn <= TIE), np.count_nonzero(drawn >= -TIE))
    error = float(np.sqrt(np.sum([d.var() / len(d) for d in differences]))) / len(tasks)
    weights = np.concatenate([np.abs(d[d != 0]) / len(d) for d in differences]) / len(tasks)
    least_weight = min(weights, default=1 / max(map(len, differences)) / len(tasks))
    smallest = float(max(NormalDist().inv_cdf(1 - LEVEL / 2) * error, FEWEST * least_weight))
    p = max(2 * (1 + fewest) / (resamples + 1), 2.0 ** (1 - len(weights)))
    return Difference(
        difference,
        low,
        high,
        p=float(min(p, 1)),
        resolvable=len(weights) >= FEWEST and abs(difference) >= smallest - TIE,
        smallest=smallest,
        items=sum(map(len, differences)),
    )


def item_differences(correct_a: np.ndarray, correct_b: np.ndarray) -> np.ndarray:
    """Accuracy of A less that of B on each item, over its wordings and seeds: [I]."""
    correct_a, correct_b = np.asarray(correct_a), np.asarray(correct_b)
    shapes = f"{correct_a.shape} and {correct_b.shape}"
    if not {correct_a.ndim, correct_b.ndim} <= {2, 3} or not correct_a.size or not correct_b.size:
        raise ValueError(f"a comparison takes [wordings, items] or [seeds, ..], not {shapes}")
    if correct_a.shape[-1] != correct_b.shape[-1]:
        raise ValueError(f"a paired comparison needs the same items in both, not {shapes}")
    a, b = (np.atleast_3d(c.T).T.astype(np.int64) for c in (correct_a, correct_b))
    # In whole numbers first, so that equal differences are equal and those of nothing are 0.
    of_a, of_b = a.shape[0] * a.shape[1], b.shape[0] * b.shape[1]
    return (a.sum(axis=(0, 1)) * of_b - b.sum(axis=(0, 1)) * of_a) / (of_a * of_b)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Adjusted for testing all of them at once (Holm 1979), in the given order.

    Of m values in ascending order the k-th becomes max_{j <= k} min(1, (m - j + 1) p_j). To reject
    those that are at most 0.05 keeps the chance of one false rejection or more below that.
    """
    p_values = np.asarray(p_values, np.float64)
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted


def _resampled_means(
    differences_I: np.ndarray, resamples: int, random: np.random.Generator
) -> np.ndarray:
    """Means of items drawn with replacement, [resamples].

    Items take few values, so how often each value is drawn stands for which items are: the
    multinomial counts of the distinct values have the same distribution, at a fraction of the work.
    """
    values, counts = np.unique(differences_I, return_counts=True)
    size, step = len(differences_I), max(1, DRAWS_AT_ONCE // len(values))
    return np.concatenate(
        [
            random.multinomial(size, counts / size, min(step, resamples - begin)) @ values / size
            for begin in range(0, resamples, step)
        ]
    )
