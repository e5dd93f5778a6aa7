"""One state a sequence, out of packed rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from coin_jax.config import Pooling
from coin_jax.parallel.sharding import constrain


def pool(
    hidden_BxTxD: jax.Array, segment_ids_BxT: jax.Array, segments: int, kind: Pooling
) -> jax.Array:
    """The first, last or mean state of each segment of each row.

    hidden_BxTxD: encoder or decoder states, as `kind` begins; any float dtype.
    segment_ids_BxT: 0 is padding, 1..segments the segment in the row.
    segments: G, the segments a row may hold.

    Returns float32 [B * G, D], slot = row * G + (segment - 1); zeros for segments that a row lacks.
    A product with a 0/1 matrix instead of a gather, so that rows stay on their devices.
    """
    member_BxGxT = segment_ids_BxT[:, None, :] == jnp.arange(1, segments + 1)[:, None]
    member_BxGxT = constrain(member_BxGxT, "batch", None, None)
    count_BxGx1 = member_BxGxT.sum(axis=-1, keepdims=True)
    rank_BxGxT = jnp.cumsum(member_BxGxT, axis=-1)  # 1 at a segment's first position
    match kind.split("_")[-1]:
        case "mean":
            chosen_BxGxT, divisor = member_BxGxT, jnp.maximum(count_BxGx1, 1)
        case "first":
            chosen_BxGxT, divisor = member_BxGxT & (rank_BxGxT == 1), 1
        case "last":
            chosen_BxGxT, divisor = member_BxGxT & (rank_BxGxT == count_BxGx1), 1
        case _:
            raise ValueError(f"Pooling {kind!r} ends in none of _first, _last, _mean.")
    # 0 and 1 are exact in bfloat16; HIGHEST keeps a TPU from rounding float32 states to it.
    pooled_BxGxD = jnp.einsum(
        "bgt,btd->bgd",
        chosen_BxGxT.astype(hidden_BxTxD.dtype),
        hidden_BxTxD,
        preferred_element_type=jnp.float32,
        precision=jax.lax.Precision.HIGHEST,
    )
    return (pooled_BxGxD / divisor).reshape(-1, hidden_BxTxD.shape[-1])
