"""The pairs of the CoIN paper (Yan et al. 2024), as its repository publishes them."""

from __future__ import annotations

import dataclasses

from coin_jax.curation.config import SourceConfig
from coin_jax.curation.source import Source
from coin_jax.curation.sources.columns import Columns, Table
from coin_jax.curation.sources.files import resolve_files
from coin_jax.curation.sources.records import Records
from coin_jax.data.sources import PAIR_COLUMNS, TASK_COLUMNS, DataError

FILE = "dataset/contrastive_flan_data.csv of github.com/luka-group/CoIN"


def read_coin(config: SourceConfig, seed: int) -> Source:
    """Ready pairs, where each instance is a finished prompt in an `original` and a `paraphrased`
    wording.

    The odd rows, hard negatives of the rows above them, are instances like the others: a set draws
    its negatives itself. `config.columns` may name the columns otherwise.

    Raises: DataError for files that cannot be had, read or used.
    """
    try:
        records = Records(resolve_files(config.files, "files of the source of kind 'coin'"))
    except DataError as error:
        raise DataError(f"{error}; it needs {FILE}") from None
    first = records.record(0)[1] if len(records) else {}
    has_columns = not isinstance(first, DataError)
    task = next((name for name in TASK_COLUMNS if has_columns and name in first), TASK_COLUMNS[0])
    names = ("task", "original", "paraphrased", "target")
    columns = {**dict(zip(names, (task, *PAIR_COLUMNS), strict=True)), **config.columns}
    config = dataclasses.replace(config, columns=columns)
    return Columns(Table(records, config), config, seed)
