"""What a training method is.

The step computes a batch in parts, and a method may tie all its sequences together, so a method
speaks twice: before the forward pass it says how much each target token weighs, and after it, with
every pooled state at hand, how the parts make the total. What happens in between (encode, decode,
head_cross_entropy with those weights, pool) is the step's and the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import jax

from coin_jax.config import ObjectiveConfig, Pooling

Batch = Mapping[str, jax.Array]


class Method(Protocol):
    """One way to train. A new one is a file with such a class and a line in METHODS."""

    needs: Literal["encoder", "decoder"] | None
    """The states that `combine` wants pooled; None: no pooling."""
    pooling: Pooling | None
    """How they are pooled."""

    def __init__(self, config: ObjectiveConfig): ...

    def token_weights(self, batch: Batch) -> jax.Array:
        """float32 [B, T]: the weight of each target token in the generation loss, 0 for padding.

        batch: the WHOLE batch, also where it is then computed in parts. decoder_targets and
        decoder_segment_ids [B, T], pair_members [P, 2]; P = B * G // 2 for G segments a row.
        """
        ...

    def combine(
        self, generation_loss: jax.Array, pooled_SxD: jax.Array | None, batch: Batch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The total loss, and float32 scalars to report.

        generation_loss: float32 scalar, the weighted sum of head_cross_entropy over the batch.
        pooled_SxD: float32 [B * G, D], one state a slot, as `needs` and `pooling` ask; else None.
        """
        ...
