"""Random choices that depend on names and numbers alone, the same on every machine and version."""

from __future__ import annotations

import hashlib

_MASK = (1 << 64) - 1


def stable_hash(*parts: str | int) -> int:
    """A 64-bit hash of texts and integers; unlike `hash`, the same in every process."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        content = str(part).encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(content))  # the length keeps ("ab", "c") and ("a", "bc") apart
        digest.update(content)
    return int.from_bytes(digest.digest(), "little")


def mix(*numbers: int) -> int:
    """64 random-looking bits of some integers: SplitMix64 (Steele et al. 2014), chained."""
    state = 0
    for number in numbers:
        state = ((state ^ (number & _MASK)) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def draw_order(count: int, *parts: str | int) -> list[int]:
    """A permutation of range(count) drawn by the parts."""
    key = stable_hash(*parts)
    return sorted(range(count), key=lambda number: (mix(key, number), number))
