"""What pooled hidden states tell: how close paraphrases lie, and a map of them. Pure numpy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class CosineGap(NamedTuple):
    """Mean cosines; None where there is no such pair."""

    positive: float | None
    """Of paraphrases: one instance under two wordings."""
    negative: float | None
    """Of hard negatives: two instances with different labels under one wording."""
    gap: float | None
    """positive - negative: what the contrastive term widens."""


def cosine_gap(states_IxWxD: np.ndarray, labels_I: np.ndarray) -> CosineGap:
    """How much closer paraphrases lie than hard negatives (Yan et al. 2024, section 3).

    positive = mean of cos(h_iv, h_iw) over instances i and pairs of wordings v < w
    negative = mean of cos(h_iw, h_jw) over wordings w and pairs i < j with different labels

    The loss contrasts the anchor with the positive of the hard negative's pair, which has the other
    wording, so its negatives lie somewhat further apart than these. States without length have
    cosine 0 with all.
    """
    labels_I = np.asarray(labels_I)
    states_IxWxD = np.asarray(states_IxWxD, np.float64)
    if states_IxWxD.ndim != 3 or labels_I.shape != states_IxWxD.shape[:1]:
        raise ValueError(
            "the cosine gap needs states [instances, wordings, D] and a label an instance, not "
            f"{states_IxWxD.shape} and {labels_I.shape}"
        )
    norms_IxWx1 = np.linalg.norm(states_IxWxD, axis=-1, keepdims=True)
    unit_IxWxD = states_IxWxD / np.where(norms_IxWx1 > 0, norms_IxWx1, 1)
    I, W, _ = unit_IxWxD.shape  # noqa: E741

    # The sum of all products of two different vectors is |their sum|^2 less their own squares: no
    # matrix of all pairs is needed.
    own = np.square(unit_IxWxD).sum()
    within = np.square(unit_IxWxD.sum(axis=1)).sum() - own
    of_label_CxWxD = np.stack(
        [unit_IxWxD[labels_I == label].sum(axis=0) for label in np.unique(labels_I)]
    )
    across = np.square(unit_IxWxD.sum(axis=0)).sum() - np.square(of_label_CxWxD).sum()
    counts = np.unique(labels_I, return_counts=True)[1]
    pairs = I * W * (W - 1), W * (I**2 - np.square(counts).sum())
    positive, negative = (
        float(total / count) if count else None
        for total, count in zip((within, across), pairs, strict=True)
    )
    gap = None if positive is None or negative is None else positive - negative
    return CosineGap(positive, negative, gap)


def principal_components(states_NxD: np.ndarray, components: int = 2) -> np.ndarray:
    """Coordinates of states along the axes on which they vary most, float64 [N, components].

    PCA: the centred states are U S V^T, the coordinates the first columns of U S. The sign of each
    axis, which is free, is such that its farthest point is on the positive side; axes beyond the
    rank are 0.
    """
    states_NxD = np.asarray(states_NxD, np.float64)
    if states_NxD.ndim != 2 or not len(states_NxD):
        raise ValueError(f"PCA needs states [N, D], not {states_NxD.shape}")
    left, scale, _ = np.linalg.svd(states_NxD - states_NxD.mean(axis=0), full_matrices=False)
    points = (left * scale)[:, :components]
    farthest = points[np.abs(points).argmax(axis=0), np.arange(points.shape[1])]
    points = points * np.where(farthest < 0, -1, 1)
    return np.pad(points, ((0, 0), (0, components - points.shape[1])))
