"""Instructions in the form of Alpaca (Taori et al. 2023): instruction, input, output."""

from __future__ import annotations

import dataclasses

from coin_jax.curation.config import SourceConfig
from coin_jax.curation.source import Source
from coin_jax.curation.sources.columns import read_columns

FILES = ("hub:tatsu-lab/alpaca",)
"""Where the config names none."""
COLUMNS = {"instruction": "instruction", "input": "input", "target": "output"}


def read_alpaca(config: SourceConfig, seed: int) -> Source:
    """Rows {"instruction", "input", "output"}, of which `input` may be blank; see Columns."""
    columns = {**COLUMNS, **config.columns}
    config = dataclasses.replace(config, files=config.files or FILES, columns=columns)
    return read_columns(config, seed)
