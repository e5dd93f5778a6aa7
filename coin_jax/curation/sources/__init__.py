"""Instruction collections behind one protocol (`coin_jax.curation.source`)."""

from __future__ import annotations

import importlib

from coin_jax.curation.config import SourceConfig
from coin_jax.curation.source import Source

_SOURCES = {
    "tasks": ("tasks", "TaskSource"),
    "tfds": ("tfds", "TfdsSource"),
    "flan": ("flan", "FlanCollection"),
    "natural_instructions": ("natural_instructions", "NaturalInstructions"),
    "prompts": ("prompts", "PromptCollection"),
    "coin": ("coin", "read_coin"),
    "alpaca": ("alpaca", "read_alpaca"),
    "columns": ("columns", "read_columns"),
}
"""Kind -> (module, class or function). Imported when one is made: some need heavy packages."""


def make_source(config: SourceConfig, seed: int) -> Source:
    """Reads a collection.

    Raises: DataError for files that cannot be had or read, or hold nothing to use.
    """
    module, name = _SOURCES[config.kind]
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)(config, seed)
