"""What training carries from step to step, and where each piece of it lives on the mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from coin_jax.config import Config
from coin_jax.parallel.sharding import parameter_shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A pytree. Random numbers need no place in it: step N's keys come from (seed, N)."""

    step: jax.Array
    """Updates made, int32."""
    params: Any
    """Nested dict of float32 arrays."""
    optimizer_state: Any
    ema: Any
    """Moving average of `params`, or None where the run keeps none."""

    @property
    def evaluation_params(self) -> Any:
        """What evaluation and export use: the average where there is one."""
        return self.params if self.ema is None else self.ema


def new_state(params: Any, optimizer: optax.GradientTransformation, config: Config) -> TrainState:
    """The state before the first step, from its parameters. The average starts at them."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay else None,
    )


def abstract_state(model: Any, optimizer: optax.GradientTransformation, config: Config) -> Any:
    """The state's tree with a ShapeDtypeStruct in the place of each array; computes nothing."""
    return jax.eval_shape(
        lambda params: new_state(params, optimizer, config), model.abstract_parameters()
    )


def state_shardings(
    model: Any, optimizer: optax.GradientTransformation, config: Config, mesh: Mesh
) -> Any:
    """The state's tree with a NamedSharding in the place of each array."""
    abstract = abstract_state(model, optimizer, config)
    axes = _axes_by_parameter(abstract, model.logical_axes())
    return parameter_shardings(mesh, axes, abstract)


def create_state(
    model: Any,
    optimizer: optax.GradientTransformation,
    config: Config,
    mesh: Mesh,
    params: Any = None,
) -> TrainState:
    """A new state, every piece made where it belongs; no device ever holds all of it.

    params: pretrained parameters (numpy arrays do); None draws them from `config.seed`.
    """
    shardings = state_shardings(model, optimizer, config, mesh)
    if params is None:
        make = jax.jit(
            lambda key: new_state(model.init(key), optimizer, config), out_shardings=shardings
        )
        return make(jax.random.key(config.seed))
    # Not device_put, which compares the arrays of all processes first.
    params = jax.tree.map(
        lambda array, sharding: jax.make_array_from_callback(
            array.shape, sharding, lambda index: array[index]
        ),
        params,
        shardings.params,
    )
    make = jax.jit(
        lambda params: new_state(params, optimizer, config),
        in_shardings=(shardings.params,),
        out_shardings=shardings,
    )
    return make(params)


def _axes_by_parameter(abstract: Any, logical_axes: Any) -> Any:
    """The logical axes of every array of a state, found by the parameter whose path ends its own.

    Optimizers keep trees of the parameters' form, so the second moment of `params/encoder/wi` is
    found at `optimizer_state/1/nu/encoder/wi`; Adafactor's stand one level deeper, at `wi/row`.

    Raises ValueError for an array that belongs to no parameter: it would be replicated in silence.
    """
    is_names = lambda node: isinstance(node, tuple)  # noqa: E731
    by_path = dict(jax.tree_util.tree_leaves_with_path(logical_axes, is_leaf=is_names))

    def axes_of(path: tuple[Any, ...], array: jax.ShapeDtypeStruct) -> tuple[str | None, ...]:
        if not array.shape:
            return ()
        for start in range(len(path)):
            end = path[start:]
            if end in by_path:
                return by_path[end]
            if end[:-1] in by_path:
                names = by_path[end[:-1]]
                kinds = {"row": names[:-1], "column": names[:-2] + names[-1:], "full": names}
                return kinds[end[-1].key]
        where = jax.tree_util.keystr(path)
        raise ValueError(f"No parameter belongs to the state's {where} of shape {array.shape}.")

    return jax.tree_util.tree_map_with_path(axes_of, abstract)
