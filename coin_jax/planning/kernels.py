"""What the project's own kernels cost: the compiler gives no estimate of them within a program.

It does schedule them, instruction by instruction, and these are the lengths of its
schedules of model/fused_attention.py: 512 x 512 and 96 x 512 positions, two heads of 64, bfloat16,
with dropout and (the first) a bias, by libtpu 0.0.52; `benchmarks/kernel_schedule.py` prints them.
"""

from __future__ import annotations

from coin_jax.planning.chips import Chip
from coin_jax.planning.hlo import Kernel

BUNDLES = {
    "TPU v4": {"attention": (67.9, 326), "attention_backward": (76.9, 930)},
    "TPU v5e": {"attention": (10.5, 425), "attention_backward": (17.2, 1240)},
    "TPU v5p": {"attention": (10.5, 539), "attention_backward": (16.8, 1290)},
    "TPU v6e": {"attention": (9.2, 429), "attention_backward": (13.7, 1096)},
}
"""Cycles for 1024 scores, and for each program. v4 multiplies no 32-bit integers, of which the
pattern of dropout takes two for each score."""
CORES = {"TPU v4": 2, "TPU v5p": 2}
"""Of a chip, which share a kernel's programs."""


def cycles(chip: Chip, kernel: Kernel) -> float:
    """Of the chip; 0 for a kernel that is not known here."""
    per_register, per_program = BUNDLES.get(chip.kind, {}).get(kernel.name, (0.0, 0.0))
    total = kernel.scores / 1024 * per_register + kernel.programs * per_program
    return total / CORES.get(chip.kind, 1)
