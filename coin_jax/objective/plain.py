"""Cross-entropy alone: pretraining by span corruption, and plain fine-tuning."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from coin_jax.config import ObjectiveConfig
from coin_jax.objective.method import Batch


class PlainCrossEntropy:
    """The mean over all target tokens of the batch."""

    needs = None
    pooling = None

    def __init__(self, config: ObjectiveConfig):
        del config  # label smoothing and z-loss are head_cross_entropy's

    def token_weights(self, batch: Batch) -> jax.Array:
        is_target_BxT = batch["decoder_targets"] != 0
        return is_target_BxT / jnp.maximum(is_target_BxT.sum(), 1).astype(jnp.float32)

    def combine(
        self, generation_loss: jax.Array, pooled_SxD: jax.Array | None, batch: Batch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        return generation_loss, {"generation_loss": generation_loss}
