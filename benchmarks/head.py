"""Vocabulary head and loss: fused and chunked (ours) against all logits at once (optax).

Loss and both gradients of packed target positions, of which a share is padding. The two are timed
in turn in one run, so that whatever else the machine does hits both; memory is what XLA plans for
the compiled program beyond its inputs and outputs.

    python -m benchmarks.head --vocabularies 32128 250112
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from coin_jax.objective.cross_entropy import head_cross_entropy


def full_logits(hidden_BxTxD, kernel_DxV, targets_BxT, weights_BxT):
    logits_BxTxV = (hidden_BxTxD @ kernel_DxV).astype(jnp.float32)
    nll_BxT = optax.softmax_cross_entropy_with_integer_labels(logits_BxTxV, targets_BxT)
    return (weights_BxT * nll_BxT).sum()


def fused(chunk: int) -> Callable:
    return lambda *arguments: head_cross_entropy(*arguments, chunk=chunk)[0]


def measure(losses: dict[str, Callable], arguments: tuple, repeats: int) -> dict[str, tuple]:
    """{name: (median seconds, bytes of temporaries, loss)}"""
    programs = {
        name: jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments).compile()
        for name, loss in losses.items()
    }
    seconds = {name: [] for name in programs}
    values = {}
    for repeat in range(repeats + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            values[name] = float(jax.block_until_ready(program(*arguments))[0])
            if repeat:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    return {
        name: (
            float(np.median(seconds[name])),
            program.memory_analysis().temp_size_in_bytes,
            values[name],
        )
        for name, program in programs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32128, 250112])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=48, help="target positions a row")
    parser.add_argument("--filled", type=float, default=0.8, help="share that carries a target")
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--chunks", type=int, nargs="+", default=[256])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    random = np.random.default_rng(0)
    shape = options.rows, options.length
    weights_BxT = (random.uniform(size=shape) < options.filled).astype(np.float32)
    weights_BxT /= weights_BxT.sum()
    targets = np.count_nonzero(weights_BxT)
    print(f"{jax.devices()[0].device_kind}, {options.dtype}, d_model {options.d_model}")
    print(f"{targets} targets in {weights_BxT.size} positions")
    for V in options.vocabularies:
        arguments = (
            jnp.asarray(random.normal(size=(*shape, options.d_model)), options.dtype),
            jnp.asarray(0.05 * random.standard_normal((options.d_model, V), np.float32)),
            jnp.asarray(random.integers(0, V, shape), jnp.int32),
            jnp.asarray(weights_BxT),
        )
        losses = {"all logits": full_logits}
        losses |= {f"chunks of {chunk}": fused(chunk) for chunk in options.chunks}
        measured = measure(losses, arguments, options.repeats)
        base_seconds, base_bytes, _ = measured["all logits"]
        for name, (seconds, size, loss) in measured.items():
            print(
                f"V {V:6d}  {name:13s}  {seconds:7.3f} s, ratio {seconds / base_seconds:4.2f}  "
                f"{size / 2**20:6.0f} MiB, ratio {size / base_bytes:4.2f}  loss {loss:.5f}"
            )


if __name__ == "__main__":
    main()
