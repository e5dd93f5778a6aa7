"""Metrics of robustness to wording, each with its formula and source. Pure numpy.

Letters: W wordings, I instances, A answers.
"""

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


class CellMetrics(NamedTuple):
    """One run on one task under one condition: W wordings, each asked of the same I instances.

    With c_wi = 1 where wording w gets instance i right, else 0, and a_w = (1/I) sum_i c_wi:

        mean, std, worst   of a_w, as in `Spread`
        best       = max_w a_w
        spread     = best - worst                 (the performance spread of Sclar et al. 2024)
        item_worst = (1/I) sum_i min_w c_wi       instances right in every wording; never above
                                                  worst (Cao et al. 2024, worst prompt performance)
        invalid    share of all W x I predictions that are none of the answers; they count as wrong
        majority   accuracy of always giving the commonest label: `majority_rate`

    The others have functions of their own. posix and ece are None without scores, posix also
    without lengths of the answers. Nothing varies over a single wording: std, spread, sensitivity
    and posix are then 0 and consistency is 1.
    """

    mean: float
    std: float
    best: float
    worst: float
    spread: float
    item_worst: float
    sensitivity: float
    consistency: float
    posix: float | None
    ece: float | None
    invalid: float
    majority: float
    wordings: int
    instances: int


def cell_metrics(
    predictions_WxI: np.ndarray,
    labels_I: np.ndarray,
    scores_WxIxA: np.ndarray | None = None,
    answer_tokens_A: Sequence[int] | None = None,
    *,
    answers: int,
) -> CellMetrics:
    """All metrics of one cell.

    predictions_WxI: indices into the answers, -1 where what was generated is none of them.
    labels_I: indices into the answers.
    scores_WxIxA: log-likelihoods of the whole answers, not divided by their length; None where
        predictions were generated. With them every prediction is one of the answers.
    answer_tokens_A: tokens that each likelihood is a product over.
    answers: A. Generated predictions have one class more, the invalid ones, in `sensitivity`.

    ValueError for shapes that do not fit, indices out of range and scores that are not finite.
    """
    predictions_WxI, labels_I = np.asarray(predictions_WxI), np.asarray(labels_I)
    lowest = -1 if scores_WxIxA is None else 0
    if predictions_WxI.ndim != 2 or not predictions_WxI.size:
        raise ValueError(f"predictions are [wordings, instances], not {predictions_WxI.shape}")
    if labels_I.shape != predictions_WxI.shape[1:]:
        raise ValueError(f"{labels_I.shape} labels for {predictions_WxI.shape[1]} instances")
    for name, values, low in (("prediction", predictions_WxI, lowest), ("label", labels_I, 0)):
        if values.min() < low or values.max() >= answers:
            raise ValueError(
                f"a {name} lies in {values.min()}..{values.max()}; allowed: {low}..{answers - 1}"
            )
    posix = ece = None
    correct_WxI = predictions_WxI == labels_I
    if scores_WxIxA is not None:
        scores_WxIxA = np.asarray(scores_WxIxA, np.float64)
        if scores_WxIxA.shape != (*predictions_WxI.shape, answers):
            raise ValueError(
                f"scores are {scores_WxIxA.shape}; allowed: {(*predictions_WxI.shape, answers)}"
            )
        if not np.isfinite(scores_WxIxA).all():
            raise ValueError("a score is not finite: the model may have diverged")
        ece = calibration_error(confidence(scores_WxIxA, predictions_WxI), correct_WxI)
        if answer_tokens_A is not None:
            posix = prompt_sensitivity_index(scores_WxIxA, predictions_WxI, answer_tokens_A)
    accuracy_W = correct_WxI.mean(axis=1)
    best, worst = float(accuracy_W.max()), float(accuracy_W.min())
    return CellMetrics(
        mean=float(accuracy_W.mean()),
        std=float(accuracy_W.std()),
        best=best,
        worst=worst,
        spread=best - worst,
        item_worst=float(correct_WxI.all(axis=0).mean()),
        sensitivity=sensitivity(predictions_WxI, answers - lowest),
        consistency=consistency(predictions_WxI),
        posix=posix,
        ece=ece,
        invalid=float((predictions_WxI < 0).mean()),
        majority=majority_rate(labels_I),
        wordings=len(predictions_WxI),
        instances=len(labels_I),
    )


def performance_drop_rate(clean: float, attacked: float) -> float | None:
    """PDR = 1 - attacked / clean (Zhu et al. 2023, PromptBench, section 3), of two accuracies.

    The share of the clean accuracy that is lost: 1 where nothing is left, below 0 where the attack
    helped. None where the clean accuracy is 0: there is nothing that could be lost.
    """
    return None if clean == 0 else 1 - attacked / clean


def sensitivity(predictions_WxI: np.ndarray, classes: int) -> float:
    """How widely the prediction for an instance scatters over wordings, 0 (never) to 1.

    (1/I) sum_i -sum_c p_ic log p_ic / log C, with p_ic the share of wordings that predict class c
    for instance i (Errica et al. 2024, "What Did I Do Wrong?", sensitivity, with one prediction a
    wording). Labels do not enter. Invalid predictions, -1, are a class of their own and must be
    counted in `classes`, C, wherever they may occur. With fewer wordings than classes 1 cannot be
    reached. 0 for a single class.
    """
    if classes < 2:
        return 0.0
    share_CxI = _class_counts(predictions_WxI) / len(predictions_WxI)
    entropy_I = -(share_CxI * np.log(np.where(share_CxI > 0, share_CxI, 1))).sum(axis=0)
    return float(entropy_I.mean() / np.log(classes))


def consistency(predictions_WxI: np.ndarray) -> float:
    """How often two wordings agree on an instance: 1 if always, also for a single wording.

    (1/I) sum_i |{v < w: y_vi = y_wi}| / (W (W - 1) / 2): agreement over unordered pairs of
    wordings, averaged over instances; two invalid predictions agree. This is the observed agreement
    of Fleiss (1971), wordings as raters. It is not the consistency of Errica et al. 2024, which
    compares *instances* of one class: 1 less the total variation distance between their
    distributions of predictions over wordings, averaged over pairs of instances.
    """
    W = len(predictions_WxI)
    if W == 1:
        return 1.0
    counts_CxI = _class_counts(predictions_WxI)
    return float((counts_CxI * (counts_CxI - 1)).sum(axis=0).mean() / (W * (W - 1)))


def prompt_sensitivity_index(
    scores_WxIxA: np.ndarray, predictions_WxI: np.ndarray, answer_tokens_A: Sequence[int]
) -> float:
    """POSIX (Chatterjee et al. 2024, equation 1), averaged over instances; 0 for a single wording.

    psi = 1 / (N (N - 1)) sum_i sum_{j != i} |log P(y_j | x_i) - log P(y_j | x_j)| / L_j, where x_1
    to x_N are an instance's wordings, y_j is the response to x_j and L_j its tokens. In nats a
    token, 0 or more. Departure: y_j is the answer chosen among the task's fixed ones instead of
    free text, so that the scores of these answers are all it takes.
    """
    scores_WxIxA, tokens_A = np.asarray(scores_WxIxA, np.float64), np.asarray(answer_tokens_A)
    W, _, A = scores_WxIxA.shape
    if tokens_A.shape != (A,) or tokens_A.min() < 1:
        raise ValueError(f"answer tokens {answer_tokens_A}; allowed: {A} counts of 1 or more")
    total = 0.0
    for j, response_I in enumerate(np.asarray(predictions_WxI)):  # W x I x W would be large
        likelihood_WxI = np.take_along_axis(scores_WxIxA, response_I[None, :, None], 2)[..., 0]
        change_I = np.abs(likelihood_WxI - likelihood_WxI[j]).sum(axis=0)
        total += float((change_I / tokens_A[response_I]).mean())
    return total / max(W * (W - 1), 1)


def confidence(scores_WxIxA: np.ndarray, predictions_WxI: np.ndarray) -> np.ndarray:
    """Probability of each prediction among the answers, [W, I]: softmax of their scores."""
    scores = scores_WxIxA - scores_WxIxA.max(axis=-1, keepdims=True)
    probability = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    return np.take_along_axis(probability, predictions_WxI[..., None], axis=-1)[..., 0]


def calibration_error(confidences: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3), over all predictions together.

    sum_m (|B_m| / n) |accuracy(B_m) - mean confidence(B_m)|, B_m the predictions with a confidence
    in ((m - 1) / M, m / M], M = 15 as there. `confidences` in 0..1 and `correct` of one shape.
    """
    confidences, correct = np.ravel(confidences), np.ravel(correct)
    edges = np.arange(1, bins) / bins
    places = np.searchsorted(edges, confidences, side="left")
    gaps = np.bincount(places, weights=correct - confidences, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidences))


def _class_counts(predictions_WxI: np.ndarray) -> np.ndarray:
    """How many wordings predict each class that occurs, [classes, I]."""
    return np.stack([(predictions_WxI == c).sum(axis=0) for c in np.unique(predictions_WxI)])
