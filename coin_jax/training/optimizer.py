"""AdamW and Adafactor, learning-rate schedules, and what may be decayed.

Layers are stacked on a leading axis, so the rank of an array does not tell a matrix from a norm
scale ([L, D]): everything here goes by the parameters' logical axis names instead.

The chain, for both optimizers: clip by global norm -> precondition -> decoupled weight decay ->
times minus the learning rate. Decay is thus `learning_rate * weight_decay * parameter` a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from coin_jax.config import OptimizerConfig

LAYERS = "layers"
RELATIVE_BIAS = "buckets"


def learning_rate_schedule(
    config: OptimizerConfig, steps: int
) -> Callable[[jax.Array | int], jax.Array]:
    """The rate of the update that comes after `step` updates, float32; `step` runs from 0.

    With W = warmup_steps, N = `steps`, f = final_learning_rate_fraction and n = step + 1, it is the
    peak times min(1, n / W) times

        constant             1
        linear               1 - (1 - f) * x         x = (step - W) / (N - W) within [0, 1]
        cosine               f + (1 - f) * (1 + cos(pi * x)) / 2
        inverse_square_root  sqrt(W / max(n, W)), where W counts as 1 if it is 0

    So the rate is never 0: update W is the first at the peak, and f is what the update after the
    last one would have. T5 (Raffel et al. 2020, section 3.1.2) pretrains with 1 / sqrt(max(n, W)),
    W = 10^4: the inverse square root here with a peak of 0.01, but for the ramp, which T5 leaves
    out.
    """
    warmup, final = config.warmup_steps, config.final_learning_rate_fraction

    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        number = step + 1
        progress = jnp.clip((step - warmup) / max(steps - warmup, 1), 0, 1)
        decay = {
            "constant": lambda: 1.0,
            "linear": lambda: 1 - (1 - final) * progress,
            "cosine": lambda: final + (1 - final) * (1 + jnp.cos(jnp.pi * progress)) / 2,
            "inverse_square_root": lambda: jnp.sqrt(max(warmup, 1) / jnp.maximum(number, warmup)),
        }[config.schedule]()
        ramp = jnp.minimum(1, number / warmup) if warmup else 1.0
        return jnp.asarray(config.learning_rate * ramp * decay, jnp.float32)

    return schedule


def is_decayed(names: tuple[str | None, ...]) -> bool:
    """Whether weight decay applies: to matrices, embeddings included; not to norms or biases."""
    return sum(name != LAYERS for name in names) >= 2 and RELATIVE_BIAS not in names


def make_optimizer(
    config: OptimizerConfig, steps: int, logical_axes: Any
) -> optax.GradientTransformation:
    """The whole update rule of `config`, for a run of `steps` updates.

    logical_axes: the parameters' tree with a tuple of names in the place of each array.
    """
    is_names = lambda node: isinstance(node, tuple)  # noqa: E731
    parts = [clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.name == "adamw":
        parts.append(optax.scale_by_adam(config.b1, config.b2, config.epsilon))
    else:
        parts.append(scale_by_adafactor(logical_axes))
    if config.weight_decay:
        mask = jax.tree.map(is_decayed, logical_axes, is_leaf=is_names)
        parts.append(optax.add_decayed_weights(config.weight_decay, mask))
    parts.append(optax.scale_by_learning_rate(learning_rate_schedule(config, steps)))
    return optax.chain(*parts)


def clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """Scales gradients by largest / max(largest, their global norm).

    As optax's, but as one multiplication: XLA on CPU fuses that into what comes after, while it
    writes the quotients of optax's form to memory first, one more copy of all gradients.
    """

    def clip(gradients: Any, _: Any) -> Any:
        scale = largest / jnp.maximum(largest, optax.global_norm(gradients))
        return jax.tree.map(lambda gradient: gradient * scale, gradients)

    return optax.stateless(clip)


class AdafactorState(NamedTuple):
    count: jax.Array
    """Updates made, int32."""
    moments: Any
    """In the place of each parameter {"row", "column"}: second moments averaged over its last and
    its last but one dimension; or {"full"}, where it is too small to be worth it."""


def scale_by_adafactor(
    logical_axes: Any,
    *,
    decay_exponent: float = 0.8,
    squared_gradient_floor: float = 1e-30,
    scale_floor: float = 1e-3,
    clip_threshold: float = 1.0,
    smallest_factored: int = 128,
) -> optax.GradientTransformation:
    """Adafactor without momentum (Shazeer and Stern 2018, algorithms 4 and 5) as T5 uses it.

    The update U = G / sqrt(V) is divided by max(1, RMS(U) / clip_threshold) and multiplied by
    max(scale_floor, RMS(parameter)); V decays by 1 - n^-decay_exponent at update n = 1, 2, ...

    Where it departs from the paper, as T5 does: the step size is the schedule's instead of the
    built-in min(10^-2, 1 / sqrt(n)), and only matrices whose both sides reach `smallest_factored`
    are factored. RMS and factors are each layer's own, though layers are stacked in one array.
    """

    def is_factored(names: tuple[str | None, ...], shape: tuple[int, ...]) -> bool:
        return len(shape) >= 2 and LAYERS not in names[-2:] and min(shape[-2:]) >= smallest_factored

    def init_one(names: tuple[str | None, ...], parameter: jax.Array) -> dict[str, jax.Array]:
        shape = parameter.shape
        if is_factored(names, shape):
            return {"row": jnp.zeros(shape[:-1]), "column": jnp.zeros(shape[:-2] + shape[-1:])}
        return {"full": jnp.zeros(shape)}

    def update_one(gradient, moments, parameter, names, decay):
        square = jnp.square(gradient) + squared_gradient_floor
        means = {"row": lambda: square.mean(-1), "column": lambda: square.mean(-2)}
        moments = {
            kind: decay * old + (1 - decay) * means.get(kind, lambda: square)()
            for kind, old in moments.items()
        }
        if "full" in moments:
            update = gradient * jax.lax.rsqrt(moments["full"])
        else:
            row, column = moments["row"], moments["column"]
            row = jax.lax.rsqrt(row / row.mean(-1, keepdims=True))
            update = gradient * row[..., None] * jax.lax.rsqrt(column)[..., None, :]
        inside_layer = tuple(axis for axis, name in enumerate(names) if name != LAYERS)

        def rms(x: jax.Array) -> jax.Array:
            return jnp.sqrt(jnp.mean(jnp.square(x), axis=inside_layer, keepdims=True))

        scale = jnp.maximum(scale_floor, rms(parameter))
        return update * (scale / jnp.maximum(1, rms(update) / clip_threshold)), moments

    def init(parameters: Any) -> AdafactorState:
        moments = jax.tree.map(lambda p, names: init_one(names, p), parameters, logical_axes)
        return AdafactorState(jnp.zeros((), jnp.int32), moments)

    def update(gradients: Any, state: AdafactorState, parameters: Any = None):
        if parameters is None:
            raise ValueError("Adafactor scales its step by the parameters: pass them to update().")
        decay = 1 - (state.count + 1).astype(jnp.float32) ** -decay_exponent
        leaves, tree = jax.tree.flatten(gradients)
        others = (tree.flatten_up_to(t) for t in (state.moments, parameters, logical_axes))
        results = [update_one(*one, decay) for one in zip(leaves, *others, strict=True)]
        updates, moments = zip(*results, strict=True)
        return tree.unflatten(updates), AdafactorState(state.count + 1, tree.unflatten(moments))

    return optax.GradientTransformation(init, update)
