"""The contrastive term: the same instance under two wordings is one thing, others are not.

Yan et al. 2024, "Contrastive Instruction Tuning", section 3, in the symmetric form of its reference
implementation.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

SMALLEST_SQUARED_NORM = 1e-16
"""Vectors shorter than the root of it have no direction: similarity 0, gradient 0."""


def contrastive_loss(
    anchors_PxD: jax.Array,
    positives_PxD: jax.Array,
    pair_sets_P: jax.Array,
    pair_contents_P: jax.Array,
    *,
    temperature: float,
    negatives: Literal["hard", "batch"],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean over pairs of (CE(S, i) + CE(S^T, i)) / 2; S_ij = cos(anchor_i, positive_j) / tau.

    anchors_PxD, positives_PxD: pooled states, row i of both being pair i. Computed in float32.
    pair_sets_P: int32, number of the contrastive set; -1 where there is no pair.
    pair_contents_P: int32, hash of instance and answer. Pairs of equal contents are never told
        apart: one would be a false negative of the other.
    negatives: `hard`, the other pair of the same set; `batch`, all other pairs.

    A pair without any negative has nothing to be told from: it does not count in the mean, and
    where no pair counts the loss is 0 and so is its gradient.

    Returns the float32 scalar and, over the pairs that count (float32 scalars, 0 where none does):
        cosine_positive: mean cos(anchor_i, positive_i);  cosine_negative: mean over negatives
        cosine_gap: their difference
        retrieval_accuracy: share of anchors closer to their positive than to any negative's
        contrasted_pairs: how many count.
    """
    # HIGHEST: accelerators would round the float32 products of this small matrix.
    cosine_PxP = jnp.einsum(
        "id,jd->ij", _unit(anchors_PxD), _unit(positives_PxD), precision=jax.lax.Precision.HIGHEST
    )
    is_pair_P = pair_sets_P >= 0
    negative_PxP = is_pair_P[:, None] & is_pair_P & (pair_contents_P[:, None] != pair_contents_P)
    if negatives == "hard":
        negative_PxP &= pair_sets_P[:, None] == pair_sets_P
    elif negatives != "batch":
        raise ValueError(f"negatives = {negatives!r}: 'hard' and 'batch' are known.")

    # The relation is symmetric, so the same pairs count by rows and by columns.
    counts_P = negative_PxP.any(axis=1)
    count = jnp.maximum(counts_P.sum(), 1).astype(jnp.float32)
    own_PxP = jnp.eye(len(is_pair_P), dtype=bool)
    seen_PxP = negative_PxP | own_PxP
    scores_PxP = cosine_PxP / temperature
    # jnp.diagonal's gather does not compile for v5p (libtpu 0.0.52).
    own_P = jnp.where(own_PxP, cosine_PxP, 0).sum(axis=1)
    by_anchor_P = jax.nn.logsumexp(scores_PxP, axis=1, where=seen_PxP) - own_P / temperature
    by_positive_P = jax.nn.logsumexp(scores_PxP, axis=0, where=seen_PxP) - own_P / temperature
    loss = jnp.where(counts_P, (by_anchor_P + by_positive_P) / 2, 0).sum() / count

    closest_negative_P = jnp.where(negative_PxP, cosine_PxP, -jnp.inf).max(axis=1)
    cosine_positive = jnp.where(counts_P, own_P, 0).sum() / count
    cosine_negative = jnp.where(negative_PxP, cosine_PxP, 0).sum() / jnp.maximum(
        negative_PxP.sum(), 1
    )
    aux = {
        "cosine_positive": cosine_positive,
        "cosine_negative": cosine_negative,
        "cosine_gap": cosine_positive - cosine_negative,
        "retrieval_accuracy": (counts_P & (own_P > closest_negative_P)).sum() / count,
        "contrasted_pairs": counts_P.sum().astype(jnp.float32),
    }
    return loss, jax.lax.stop_gradient(aux)


def _unit(x_PxD: jax.Array) -> jax.Array:
    """Rows at length 1, in float32; 0 and without gradient where a row has no length."""
    x_PxD = x_PxD.astype(jnp.float32)
    squared_Px1 = jnp.square(x_PxD).sum(axis=-1, keepdims=True)
    has_length_Px1 = squared_Px1 > SMALLEST_SQUARED_NORM
    return x_PxD * jnp.where(
        has_length_Px1, jax.lax.rsqrt(jnp.where(has_length_Px1, squared_Px1, 1)), 0
    )
