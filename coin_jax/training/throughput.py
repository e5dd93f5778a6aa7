"""How fast a run is, and how much of its devices that uses."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

# Dense bfloat16 matrix products, operations per second of one chip, as its maker states it.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(dtype: str) -> tuple[float, str]:
    """(operations per second of one device, where the figure comes from).

    A device that is not in the table is measured with a matrix product, at a second's cost: on a
    CPU no data sheet tells what a few of its cores reach.
    """
    kind = jax.devices()[0].device_kind
    for name in sorted(PEAK_FLOPS, key=len, reverse=True):
        if kind.startswith(name):
            return PEAK_FLOPS[name], f"{name}, data sheet, bfloat16"
    # Large enough that an accelerator's launches cost nothing, small enough for a few cores.
    size = 1024 if jax.default_backend() == "cpu" else 8192
    square = jnp.ones((size, size), dtype)
    multiply = jax.jit(lambda a, b: a @ b)
    multiply(square, square).block_until_ready()
    fastest = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        multiply(square, square).block_until_ready()
        fastest = min(fastest, time.perf_counter() - start)
    # The devices of a host platform share its cores, so together they reach the same.
    shared = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    return 2 * size**3 / fastest / shared, f"{kind}, measured with {dtype} matrix products"


class Throughput:
    """Rates since the last time it was asked."""

    def __init__(self, peak_flops_per_device: float):
        self._peak = peak_flops_per_device * jax.device_count()
        self._start = time.perf_counter()
        self._tokens = self._pairs = self._flops = self._steps = 0.0

    def add(self, metrics: dict[str, float]) -> None:
        """Counts a step by its metrics input_tokens, target_tokens, pairs and model_flops."""
        self._tokens += metrics["input_tokens"] + metrics["target_tokens"]
        self._pairs += metrics.get("pairs", 0.0)
        self._flops += metrics["model_flops"]
        self._steps += 1

    def restart(self) -> None:
        """Begins the time here, as after compilation."""
        self._start = time.perf_counter()

    def pause(self, seconds: float) -> None:
        """Leaves out `seconds` that went into something else than steps."""
        self._start += seconds

    def rates(self) -> dict[str, float]:
        """{steps, tokens, pairs, model_flops}_per_second and utilization; counts anew from here."""
        now = time.perf_counter()
        seconds = max(now - self._start, 1e-9)
        rates = {
            "steps_per_second": self._steps / seconds,
            "tokens_per_second": self._tokens / seconds,
            "pairs_per_second": self._pairs / seconds,
            "model_flops_per_second": self._flops / seconds,
            "utilization": self._flops / seconds / self._peak,
        }
        self._start = now
        self._tokens = self._pairs = self._flops = self._steps = 0.0
        return rates
