"""One training step: a single jitted, sharded program from (state, batch) to (state, metrics).

Top down: `make_train_step` applies a gradient, `make_loss_and_gradient` and `make_loss` make it of
the parts of a batch, `make_part` takes rows through the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from coin_jax.config import Config, ConfigError
from coin_jax.objective import Batch, Method, head_cross_entropy, pool
from coin_jax.parallel.sharding import (
    ROW_FIELDS,
    batch_shard_count,
    batch_shardings,
    constrain,
    replicated,
)
from coin_jax.training.flops import model_flops
from coin_jax.training.optimizer import learning_rate_schedule
from coin_jax.training.state import TrainState, state_shardings

Metrics = dict[str, jax.Array]


def make_train_step(
    model: Any,
    method: Method,
    optimizer: optax.GradientTransformation,
    config: Config,
    mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step. It donates the state it is given: use only the one it returns.

    The batch has the fields ROW_FIELDS and PAIR_FIELDS of parallel/sharding.py, global arrays or
    (on one host) numpy ones. Metrics are float32 scalars, the same on every device; a step that
    went wrong shows NaN in `loss` or `gradient_norm`:

        loss, generation_loss         and what else the method reports: contrastive_loss, pairs, ..
        token_loss, token_accuracy    mean over target tokens, without smoothing and z-loss
        z_loss                        its part of generation_loss
        gradient_norm                 before clipping
        learning_rate                 of this update
        target_tokens, input_tokens   without padding
        model_flops                   floating-point operations on these, forward and backward

    Raises ConfigError when rows, accumulation and mesh do not divide.
    """
    _check_rows(config, mesh)
    loss_and_gradient = make_loss_and_gradient(model, method, config)
    schedule = learning_rate_schedule(config.optimizer, config.training.steps)
    shardings = state_shardings(model, optimizer, config, mesh)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            key = None
            if config.model.dropout_rate > 0:
                key = jax.random.fold_in(jax.random.key(config.seed, impl="rbg"), state.step)
            (_, metrics), gradients = loss_and_gradient(state.params, batch, key)
            gradients = jax.lax.with_sharding_constraint(gradients, shardings.params)
            updates, optimizer_state = optimizer.update(
                gradients, state.optimizer_state, state.params
            )
            params = optax.apply_updates(state.params, updates)
            metrics |= {
                "gradient_norm": optax.global_norm(gradients),
                "learning_rate": schedule(state.step),
            }
            state = TrainState(
                step=state.step + 1,
                params=params,
                optimizer_state=optimizer_state,
                ema=moving_average(state.ema, params, state.step, config.optimizer.ema_decay),
            )
            return state, metrics

    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_shardings(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def make_loss_step(
    model: Any, method: Method, config: Config, mesh: Mesh
) -> Callable[[Any, Batch], Metrics]:
    """The jitted loss of held-out batches: (params, batch) -> metrics, without dropout."""
    _check_rows(config, mesh)
    loss = make_loss(model, method, config)

    def loss_step(params: Any, batch: Batch) -> Metrics:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return loss(params, batch, None)[1]

    return jax.jit(loss_step, out_shardings=replicated(mesh))


def moving_average(ema: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """The next average, or None if there is none.

    In the first steps it forgets faster, by (1 + step) / (10 + step), so that a short run is not
    evaluated on its random start.
    """
    if ema is None:
        return None
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), ema, params)


def make_loss_and_gradient(model: Any, method: Method, config: Config) -> Callable:
    """(params, batch, dropout key or None) -> ((loss, metrics), gradient), of the whole batch.

    With accumulation_steps > 1 the rows go through the model in parts. A method that pools ties all
    parts together: its gradient in one part's states depends on every other's. So all parts run
    forward first and keep nothing but pooled states; the backward pass then runs each once more.
    Without pooling the parts are independent and each is differentiated at once.
    """
    loss = make_loss(model, method, config)
    steps = config.optimizer.accumulation_steps
    if steps == 1 or method.needs is not None:
        return jax.value_and_grad(loss, has_aux=True)
    part_and_gradient = jax.value_and_grad(make_part(model, method, config), has_aux=True)

    def accumulated(params: Any, batch: Batch, key: jax.Array | None):
        def add(total, part):
            result = part_and_gradient(params, *part)
            return jax.tree.map(jnp.add, total, result), None

        weights_BxT = method.token_weights(batch)
        parts = split(batch, weights_BxT, key, steps)
        first = lambda parts: part_and_gradient(params, *jax.tree.map(lambda x: x[0], parts))  # noqa: E731
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(first, parts))
        ((generation, (_, sums)), gradient), _ = jax.lax.scan(add, zeros, parts)
        combine = jax.value_and_grad(method.combine, has_aux=True)
        (total, metrics), slope = combine(generation, None, batch)
        gradient = jax.tree.map(lambda g: slope * g, gradient)
        return (total, report(total, metrics, sums, batch, config)), gradient

    return accumulated


def make_loss(model: Any, method: Method, config: Config) -> Callable:
    """(params, batch, dropout key or None) -> (loss, metrics)."""
    part_of_rows = make_part(model, method, config)
    steps = config.optimizer.accumulation_steps

    def loss(params: Any, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        # Of the whole batch: a part alone does not know how many targets the others have.
        weights_BxT = method.token_weights(batch)
        if steps == 1:
            rows = {name: batch[name] for name in ROW_FIELDS}
            generation, (pooled, sums) = part_of_rows(params, rows, weights_BxT, key)
        else:

            def add(generation, part):
                # The same key in both passes of the checkpoint, so the same units are dropped.
                more, rest = jax.checkpoint(part_of_rows)(params, *part)
                return generation + more, rest

            parts = split(batch, weights_BxT, key, steps)
            generation, (pooled, sums) = jax.lax.scan(add, jnp.zeros(()), parts)
            pooled, sums = join(pooled), jax.tree.map(lambda x: x.sum(axis=0), sums)
        if pooled is not None:
            pooled = pooled.reshape(-1, pooled.shape[-1])
        total, metrics = method.combine(generation, pooled, batch)
        return total, report(total, metrics, sums, batch, config)

    return loss


def make_part(model: Any, method: Method, config: Config) -> Callable:
    """What happens to some rows of a batch, all that does not look at other rows."""
    objective = config.objective

    def part_of_rows(params: Any, rows: Batch, weights_BxT: jax.Array, key: jax.Array | None):
        """Returns (weighted sum of losses, (pooled [B, G, D] or None, sums for the metrics))."""
        encoder_key, decoder_key = (None, None) if key is None else jax.random.split(key)
        encoder_ids_BxS, decoder_ids_BxT = rows["encoder_segment_ids"], rows["decoder_segment_ids"]
        encoded_BxSxD = model.encode(
            params, rows["encoder_tokens"], encoder_ids_BxS, dropout_key=encoder_key
        )
        hidden_BxTxD = model.decode(
            params,
            rows["decoder_inputs"],
            decoder_ids_BxT,
            encoded_BxSxD,
            encoder_ids_BxS,
            dropout_key=decoder_key,
        )
        loss, aux = head_cross_entropy(
            hidden_BxTxD,
            model.head(params),
            rows["decoder_targets"],
            weights_BxT,
            label_smoothing=objective.label_smoothing,
            z_loss=objective.z_loss,
            chunk=objective.head_chunk,
        )
        pooled_BxGxD = None
        if method.needs is not None:
            states, segment_ids = {
                "encoder": (encoded_BxSxD, encoder_ids_BxS),
                "decoder": (hidden_BxTxD, decoder_ids_BxT),
            }[method.needs]
            pooled = pool(states, segment_ids, config.batch.segments_per_row, method.pooling)
            pooled_BxGxD = pooled.reshape(len(segment_ids), -1, pooled.shape[-1])
        sums = {
            "z_loss": aux["z_loss"],
            "token_loss": aux["nll"].sum(),
            "token_accuracy": aux["correct"].sum().astype(jnp.float32),
            "weighted_tokens": (weights_BxT != 0).sum().astype(jnp.float32),
        }
        return loss, (pooled_BxGxD, sums)

    return part_of_rows


def report(total: jax.Array, metrics: Metrics, sums: Metrics, batch: Batch, config: Config):
    """The metrics of a batch, from the method's own and the sums over its rows."""
    tokens = jnp.maximum(sums["weighted_tokens"], 1)
    metrics = metrics | {
        "loss": total,
        "z_loss": sums["z_loss"],
        "token_loss": sums["token_loss"] / tokens,
        "token_accuracy": sums["token_accuracy"] / tokens,
        "target_tokens": (batch["decoder_targets"] != 0).sum(),
        "input_tokens": (batch["encoder_segment_ids"] > 0).sum(),
        "model_flops": model_flops(
            config.model,
            batch["encoder_segment_ids"],
            batch["decoder_segment_ids"],
            config.batch.segments_per_row,
        ),
    }
    return {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}


def split(batch: Batch, weights_BxT: jax.Array, key: jax.Array | None, steps: int) -> tuple:
    """(rows, weights, keys), each with a leading axis of `steps`.

    Part i takes the rows i, i + steps, i + 2 * steps, ..: every device keeps its rows and every
    part is spread over all devices.
    """

    def every(x: jax.Array) -> jax.Array:
        parts = x.reshape(-1, steps, *x.shape[1:]).swapaxes(0, 1)
        return constrain(parts, None, "batch", *[None] * (x.ndim - 1))

    rows = {name: every(batch[name]) for name in ROW_FIELDS}
    return rows, every(weights_BxT), None if key is None else jax.random.split(key, steps)


def join(parts: jax.Array | None) -> jax.Array | None:
    """The rows of parts [steps, B / steps, ..] in their order of the batch: [B, ..]."""
    if parts is None:
        return None
    return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])


def _check_rows(config: Config, mesh: Mesh) -> None:
    rows, steps = config.batch.rows, config.optimizer.accumulation_steps
    shards = batch_shard_count(mesh)
    if rows % (steps * shards):
        raise ConfigError(
            f"batch.rows = {rows} must be a multiple of optimizer.accumulation_steps x mesh.data x "
            f"mesh.fsdp = {steps} x {shards} = {steps * shards}."
        )
