"""Losses. A training method is one file here and one line in METHODS."""

from __future__ import annotations

from coin_jax.config import ConfigError, ObjectiveConfig
from coin_jax.objective.coin import CoIN
from coin_jax.objective.cross_entropy import head_cross_entropy
from coin_jax.objective.method import Batch, Method
from coin_jax.objective.plain import PlainCrossEntropy
from coin_jax.objective.pooling import pool

METHODS: dict[str, type[Method]] = {
    "coin": CoIN,
    "cross_entropy": PlainCrossEntropy,
}


def make_method(config: ObjectiveConfig) -> Method:
    """The method that `config.method` names. Raises ConfigError with the known names."""
    if config.method not in METHODS:
        raise ConfigError(
            f"objective.method = {config.method!r}: must be one of {', '.join(METHODS)}"
        )
    return METHODS[config.method](config)


__all__ = ["METHODS", "Batch", "Method", "head_cross_entropy", "make_method", "pool"]
