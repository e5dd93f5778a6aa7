"""GLUE and SuperGLUE by their TensorFlow Datasets names, in FLAN-style templates."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence

from coin_jax.config import TaskConfig
from coin_jax.curation.config import SourceConfig
from coin_jax.curation.sources.records import PlacedRow, Records
from coin_jax.curation.sources.tasks import TaskSource
from coin_jax.data.sources import DataError
from coin_jax.robustness.instances import MissingDataError, remote_rows

LABEL = "label"
_YES_NO = {"entailment": "yes", "not_entailment": "no"}
_NO_YES = {"not_entailment": "no", "entailment": "yes"}
_PAIR = {"sentence1": "premise", "sentence2": "hypothesis"}

FLAN = {
    config.name: config
    for config in (
        TaskConfig("glue/sst2", "sst2", {}, {"negative": "negative", "positive": "positive"}),
        TaskConfig(
            "glue/cola", "cola", {}, {"unacceptable": "unacceptable", "acceptable": "acceptable"}
        ),
        TaskConfig("glue/mrpc", "glue_mrpc", {}, {"not_equivalent": "no", "equivalent": "yes"}),
        TaskConfig("glue/qqp", "glue_qqp", {}, {"not_duplicate": "no", "duplicate": "yes"}),
        TaskConfig(
            "glue/mnli",
            "mnli",
            {},
            {"entailment": "yes", "neutral": "it is not possible to tell", "contradiction": "no"},
        ),
        TaskConfig("glue/qnli", "qnli", {}, _YES_NO),
        TaskConfig("glue/rte", "rte", _PAIR, _YES_NO),
        TaskConfig("glue/wnli", "wnli", {}, _NO_YES),
        TaskConfig("super_glue/rte", "rte", {}, _YES_NO),
        TaskConfig(
            "super_glue/cb",
            "cb",
            {},
            {"entailment": "Yes", "contradiction": "No", "neutral": "It's impossible to say"},
        ),
        TaskConfig(
            "super_glue/boolq", "bool_q", {"passage": "text"}, {"False": "no", "True": "yes"}
        ),
        TaskConfig(
            "super_glue/wic",
            "wic",
            {},
            {"False": "different meanings", "True": "the same meaning"},
        ),
    )
}
"""How these data sets fit the templates of FLAN (Wei et al. 2021): its names of template lists and
fields, and its answers for the labels, in its order."""


class TfdsSource(TaskSource):
    """Data sets with a class label, as `files` names them: "glue/sst2", "super_glue/boolq".

    A data set is a task of that name. `tasks` says how it fits its templates; those that FLAN has
    templates for need no saying (see FLAN). Rows are put away once in a temporary file.

    Raises: DataError as TaskSource does; MissingDataError, which is one, for a data set that is
      not on this machine and cannot be fetched: it names what to put where.
    """

    def __init__(self, config: SourceConfig, seed: int):
        given = {task.name: task for task in config.tasks}
        unknown = given.keys() - set(config.files)
        if unknown:
            raise DataError(
                f"source of kind 'tfds': task {min(unknown)!r} is no data set of its `files`: "
                f"{', '.join(map(repr, config.files))}"
            )
        tasks = tuple(given.get(name) or FLAN.get(name, TaskConfig(name)) for name in config.files)
        config = dataclasses.replace(config, tasks=tasks)
        super().__init__(config, seed, Records(rows=_rows(config.files, config.split)))


def _rows(names: Sequence[str], split: str) -> Iterator[PlacedRow]:
    for name in names:
        try:
            rows = remote_rows(f"tfds:{name}", name, split, LABEL)
        except MissingDataError as reason:
            folder = os.environ.get("TFDS_DATA_DIR", os.path.join("~", "tensorflow_datasets"))
            raise MissingDataError(
                f"source of kind 'tfds': {name!r} ({split}) is not on this machine and cannot be "
                f"fetched ({reason}). Where there is a network, run tensorflow_datasets.load("
                f"{name!r}), and put the folder {name} that it makes into {folder} here; or put "
                f'rows {{"task": "{name}", "inputs": {{field: text}}, "label": label}} into a '
                "JSON lines file, and name that in the `files` of a source of kind 'tasks'"
            ) from reason
        for row in rows:
            if isinstance(row, DataError):
                yield str(row), row
            else:
                yield row.where, {"task": row.task, "inputs": row.inputs, "label": row.label}
