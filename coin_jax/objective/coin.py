"""CoIN: generation on both wordings, and a contrastive term that is scaled to weigh as much.

Yan et al. 2024, "Contrastive Instruction Tuning", section 3.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from coin_jax.config import ObjectiveConfig
from coin_jax.objective.contrastive import contrastive_loss
from coin_jax.objective.method import Batch
from coin_jax.parallel.sharding import constrain


class CoIN:
    """L = L_gen + sg(min(lambda, L_gen / L_ctr)) L_ctr.

    L_gen is the mean over all anchors' target tokens plus the mean over all positives', each as
    head_cross_entropy computes it, label smoothing and z-loss included. While the cap lambda is not
    reached the total is twice L_gen, so the parts are reported apart. lambda = 0 is continual
    instruction tuning on the same pairs: nothing flows back through the pooled states, but the
    contrastive metrics are still reported.
    """

    def __init__(self, config: ObjectiveConfig):
        self.pooling = config.pooling
        self.needs = config.pooling.split("_")[0]
        self._weight = config.contrastive_weight
        self._temperature = config.temperature
        self._negatives = config.negatives

    def token_weights(self, batch: Batch) -> jax.Array:
        is_target_BxT = batch["decoder_targets"] != 0
        weights_BxT = jnp.zeros(is_target_BxT.shape, jnp.float32)
        for side in (0, 1):  # anchors, positives
            side_BxT = is_target_BxT & _tokens_of_slots(batch, batch["pair_members"][:, side])
            weights_BxT += side_BxT / jnp.maximum(side_BxT.sum(), 1).astype(jnp.float32)
        return weights_BxT

    def combine(
        self, generation_loss: jax.Array, pooled_SxD: jax.Array | None, batch: Batch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        if self._weight == 0:
            pooled_SxD = jax.lax.stop_gradient(pooled_SxD)
        pooled_SxD = constrain(pooled_SxD, None, None)  # one all-gather, for both members
        members_Px2 = batch["pair_members"]  # -1 takes some row; contrastive_loss leaves it out
        contrastive, metrics = contrastive_loss(
            pooled_SxD[members_Px2[:, 0]],
            pooled_SxD[members_Px2[:, 1]],
            batch["pair_sets"],
            batch["pair_contents"],
            temperature=self._temperature,
            negatives=self._negatives,
        )
        factor = contrastive_factor(generation_loss, contrastive, self._weight)
        return generation_loss + factor * contrastive, {
            "generation_loss": generation_loss,
            "contrastive_loss": contrastive,
            "contrastive_factor": factor,
            "pairs": (batch["pair_sets"] >= 0).sum().astype(jnp.float32),
            **metrics,
        }


def contrastive_factor(generation: jax.Array, contrastive: jax.Array, cap: float) -> jax.Array:
    """min(cap, generation / contrastive) without gradient; the cap where contrastive is 0."""
    generation, contrastive = jax.lax.stop_gradient((generation, contrastive))
    is_capped = generation >= cap * contrastive
    return jnp.where(is_capped, cap, generation / jnp.where(is_capped, 1, contrastive))


def _tokens_of_slots(batch: Batch, slots_P: jax.Array) -> jax.Array:
    """bool [B, T]: the token belongs to a sequence whose slot is among `slots` (-1: none)."""
    segment_ids_BxT = batch["decoder_segment_ids"]
    B, G = len(segment_ids_BxT), _segments_per_row(batch)
    # A negative index would count from the end, one past the end is dropped.
    slots_P = jnp.where(slots_P < 0, B * G, slots_P)
    chosen_BxG = jnp.zeros(B * G, bool).at[slots_P].set(True, mode="drop").reshape(B, G)
    chosen_BxT = jnp.take_along_axis(chosen_BxG, jnp.maximum(segment_ids_BxT - 1, 0), axis=1)
    return chosen_BxT & (segment_ids_BxT > 0)


def _segments_per_row(batch: Batch) -> int:
    """G, from P = B * G // 2 pair slots (for B = 1 and odd G one more, which changes nothing)."""
    B, P = len(batch["decoder_targets"]), len(batch["pair_members"])
    G = (2 * P + 1) // B
    if B * G // 2 != P:
        raise ValueError(
            f"{P} pair slots for {B} rows: pair_members must have rows * segments_per_row // 2."
        )
    return G
