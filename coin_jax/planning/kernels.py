"""What the project's own kernels cost: the compiler gives no estimate of them within a program.

It does schedule them, instruction by instruction, and these are the lengths of its
schedules of model/fused_attention.py: 512 x 512 and 96 x 512 positions, two heads of 64, bfloat16,
with dropout and (the first) a bias, by libtpu 0.0.52; `benchmarks/kernel_schedule.py` prints them.
"""

from __future__ import annotations

from coin_jax.planning.chips import Chip
from coin_jax.planning.hlo import Kernel

BUNDLES = {
    "TPU v4": {"attention": (38.9, 313), "attention_backward": (49.2, 925)},
    "TPU v5e": {"attention": (8.0, 379), "attention_backward": (15.3, 1214)},
    "TPU v5p": {"attention": (8.2, 451), "attention_backward": (15.2, 1230)},
    "TPU v6e": {"attention": (7.0, 401), "attention_backward": (11.8, 1115)},
}
"""Cycles for 1024 scores, and for each program. v4 has no product of 32-bit integers, of which the
pattern of dropout takes two a score."""
CORES = {"TPU v4": 2, "TPU v5p": 2}
"""Of a chip, which share a kernel's programs."""


def cycles(chip: Chip, kernel: Kernel) -> float:
    """Of the chip; 0 for a kernel that is not known here."""
    per_register, per_program = BUNDLES.get(chip.kind, {}).get(kernel.name, (0.0, 0.0))
    total = kernel.scores / 1024 * per_register + kernel.programs * per_program
    return total / CORES.get(chip.kind, 1)
