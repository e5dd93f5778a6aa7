"""From a DataConfig to the contrastive sets it means."""

from __future__ import annotations

import pathlib

from coin_jax.config import DataConfig
from coin_jax.data.builtin import builtin_tasks
from coin_jax.data.pairs import PairSource, TaskPairs
from coin_jax.data.ready_pairs import load_ready_pairs
from coin_jax.data.sources import DataError
from coin_jax.data.tasks import load_tasks


def make_pair_source(data: DataConfig, seed: int) -> PairSource:
    """The contrastive sets of `builtin`, `tasks`, `pairs` and `set`.

    Raises: DataError for what cannot be read or used; ValueError for the source `text`, which
    holds no pairs.
    """
    if data.source == "builtin":
        tasks = builtin_tasks(data.builtin_rows, seed)
        note = f"built-in data: {len(tasks)} tasks, {len(tasks[0].training.inputs)} sentences"
        return TaskPairs(tasks, seed, [note])
    if data.source == "tasks":
        tasks, notes = load_tasks(data, seed)
        return TaskPairs(tasks, seed, notes)
    if data.source == "pairs":
        return load_ready_pairs(data, seed)
    if data.source == "set":
        from coin_jax.data.contrastive_set import load_set  # Arrow, which the others do without

        if len(data.files) != 1:
            raise DataError(
                f"data.files: source 'set' reads one folder, and these are {len(data.files)}: "
                f"{', '.join(data.files)}"
            )
        return load_set(pathlib.Path(data.files[0]), seed)
    raise ValueError(f"data.source = {data.source!r} has no contrastive sets")
