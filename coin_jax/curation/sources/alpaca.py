"""Instructions in the form of Alpaca (Taori et al. 2023), as hub:tatsu-lab/alpaca has them."""

from __future__ import annotations

import dataclasses

from coin_jax.curation.config import SourceConfig
from coin_jax.curation.source import Source
from coin_jax.curation.sources.columns import read_columns

COLUMNS = {"instruction": "instruction", "input": "input", "target": "output"}


def read_alpaca(config: SourceConfig, seed: int) -> Source:
    """Rows {"instruction", "input", "output"}, of which `input` may be blank; see Columns."""
    columns = {**COLUMNS, **config.columns}
    return read_columns(dataclasses.replace(config, columns=columns), seed)
