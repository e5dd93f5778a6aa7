"""The order of the data: a pure function of (seed, position), without state and without memory.

Each epoch is a permutation of its own, computed for one position at a time by a Feistel network
(Luby & Rackoff 1988) with cycle walking (Black & Rogaway 2002), so a shuffle of a billion rows
costs as little as one of ten, and any position can be asked first.
"""

from __future__ import annotations

import numpy as np

_ROUNDS = 8


def shuffled(
    positions, size: int | np.ndarray, seed: int | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where the endless shuffled stream over `size` items stands at `positions`.

    positions: integers >= 0 [n]; size and seed may be arrays [n], for positions in n streams, and
    seeds are uint64 then. Returns (epochs, indices), int64 [n]: the positions
    [e * size, (e + 1) * size) are a permutation of all indices, a different one for every e.
    """
    positions = np.atleast_1d(np.asarray(positions, np.int64))
    size = np.broadcast_to(np.asarray(size, np.int64), positions.shape)
    if size.min(initial=1) < 1:
        raise ValueError("there is nothing to shuffle: the data source is empty")
    seed = seed if isinstance(seed, np.ndarray) else np.array([seed % 2**64], np.uint64)
    epochs, places = np.divmod(positions, size)
    keys = _mix(epochs.astype(np.uint64) ^ _mix(seed))
    bits = np.maximum(1, np.frexp((size - 1).astype(np.float64))[1]).astype(np.uint64)
    indices = places.astype(np.uint64)
    walking = np.arange(len(indices))
    # The network permutes [0, 2^bits), less than twice `size`: whoever lands outside walks on
    # along his cycle, which must come back inside.
    while len(walking):
        indices[walking] = _feistel(indices[walking], keys[walking], bits[walking])
        walking = walking[indices[walking] >= size[walking].astype(np.uint64)]
    return epochs, indices.astype(np.int64)


def random_bits(count: int, *numbers: int) -> np.ndarray:
    """uint64 [count] of random-looking bits, a pure function of the numbers, in any version."""
    key = np.zeros(1, np.uint64)
    for number in numbers:
        key = _mix(key ^ np.uint64(number % 2**64))
    return _mix(key + np.arange(count, dtype=np.uint64))


def _feistel(values: np.ndarray, keys: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Permutes [0, 2^bits); the halves may differ by a bit, so they take turns instead of swapping.

    Each half-step adds to one half a hash of the other, which can be undone: a bijection.
    """
    one = np.uint64(1)
    low_bits = bits >> one
    low_mask = (one << low_bits) - one
    high_mask = (one << (bits - low_bits)) - one
    low, high = values & low_mask, values >> low_bits
    for turn in range(_ROUNDS):
        round_keys = _mix(keys + np.uint64(turn))
        if turn % 2:
            low = low ^ (_mix(high ^ round_keys) & low_mask)
        else:
            high = high ^ (_mix(low ^ round_keys) & high_mask)
    return (high << low_bits) | low


def _mix(values: np.ndarray) -> np.ndarray:
    """A 64-bit hash, elementwise on uint64 arrays: the finalizer of SplitMix64 (Steele 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
