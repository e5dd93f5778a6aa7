"""Where the instances of a suite's task come from: files, the built-in scenes, TFDS or the hub.

TensorFlow Datasets and `datasets` are imported where a suite names them, and nowhere else.
"""

from __future__ import annotations

import functools
import glob
import itertools
import pathlib
import re
import socket
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from coin_jax.data.builtin import ANSWERS, builtin_tasks
from coin_jax.data.pairs import Task
from coin_jax.data.sources import DataError, TaskRow, expand_files, read_task_rows

SCENES_SEED = 0x5017E
"""Of the built-in scenes: not a training seed, so that what keep-best watched is not what a suite
reports."""


MOST_ROWS = 1_000_000
"""Of a data set of TFDS or the hub, which are held in memory."""


class MissingDataError(DataError):
    """None of the places of a task's data has it."""


class Rows(NamedTuple):
    place: str
    """The files or the name of the data set that the rows come from."""
    rows: list[TaskRow | DataError]


class Reader:
    """Reads the rows of tasks. A service that once could not be reached is not asked again.

    folders: where relative file names are looked for, in order.
    """

    def __init__(self, folders: Sequence[pathlib.Path]):
        self._folders = folders
        self._unreachable: dict[str, str] = {}

    def rows(self, task: str, places: Sequence[str], split: str, label: str) -> Rows:
        """Rows of the first place that has the task's data.

        `split` and `label`, the name of the label's column, are for TFDS and the hub.
        Raises: MissingDataError naming what was looked for and which file to put where; DataError
        for a place that makes no sense.
        """
        reasons = []
        for place in places:
            try:
                return self._at(place, task, split, label)
            except MissingDataError as reason:
                reasons.append(f"{place}: {reason}")
        files = [place for place in places if place.partition(":")[0] not in ("builtin", *REMOTE)]
        raise MissingDataError(
            f"no data of task {task!r} ({'; '.join(reasons)}). Put rows "
            f'{{"task": "{task}", "inputs": {{field: text}}, "label": label}} into '
            f"{self._folders[0] / (files[0] if files else f'{task}.dev.jsonl')}"
            + ("" if files else ", and name that file in the task's data")
        )

    def _at(self, place: str, task: str, split: str, label: str) -> Rows:
        kind, _, name = place.partition(":")
        if kind == "builtin":
            return Rows(place, list(_builtin_rows(name)))
        if kind not in REMOTE:
            return self._local(place, task)
        if kind in self._unreachable:
            raise MissingDataError(self._unreachable[kind])
        try:
            rows = remote_rows(place, task, split, label)
        except MissingDataError as reason:
            if isinstance(reason.__cause__, ImportError | ConnectionError | socket.gaierror):
                self._unreachable[kind] = str(reason)
            raise
        rows = list(itertools.islice(rows, MOST_ROWS + 1))
        if len(rows) > MOST_ROWS:
            raise DataError(
                f"{place}: more than {MOST_ROWS:,} rows; take a part of it, as the split "
                f"'{split}[:10000]'"
            )
        return Rows(f"{place} ({split})", rows)

    def _local(self, pattern: str, task: str) -> Rows:
        if "**" in pattern or glob.has_magic(str(pathlib.PurePath(pattern).parent)):
            raise DataError(
                f"data {pattern!r}: * and ? may stand in a file's name; in a folder's they could "
                "look through all disks"
            )
        for folder in self._folders:
            try:
                files = expand_files([str(folder / pattern)], "data")
            except DataError:
                continue
            rows = list(read_task_rows(files))
            chosen = [row for row in rows if isinstance(row, DataError) or row.task == task]
            if rows and not chosen:
                others = sorted({row.task for row in rows})
                raise DataError(
                    f"{folder / pattern}: no row of task {task!r}; the tasks there are "
                    f"{', '.join(map(repr, others))}"
                )
            return Rows(", ".join(map(str, files)), chosen)
        raise MissingDataError("no such file")


def remote_rows(place: str, task: str, split: str, label: str) -> Iterator[TaskRow | DataError]:
    """Rows of `tfds:NAME`, `hub:NAME` or `hub:NAME:CONFIG`, one at a time.

    Raises: MissingDataError with the reason why the data set cannot be had.
    """
    kind, _, name = place.partition(":")
    try:
        records, names = REMOTE[kind](name, split, label)
    except DataError:
        raise
    except Exception as error:  # not installed, no network, no such name: each library its own
        first_line, *_ = str(error).strip().splitlines() or [""]
        raise MissingDataError(f"{type(error).__name__}: {first_line}") from error
    return _task_rows(place, task, records, label, names)


def _task_rows(
    place: str, task: str, records: Iterable[Mapping[str, Any]], label: str, names: Sequence[str]
) -> Iterator[TaskRow | DataError]:
    """Rows of records whose label is text or a number that counts in `names`."""
    for number, record in enumerate(records, start=1):
        where = f"{place}, row {number}"
        if label not in record:
            columns = ", ".join(record)
            yield DataError(f"{where}: no column {label!r} for the label; there are {columns}")
            return
        value = record[label]
        if isinstance(value, int) and 0 <= value < len(names):
            value = names[value]
        texts = {key: text for key, text in record.items() if isinstance(text, str)}
        yield TaskRow(task, texts, str(value), where)


Records = tuple[Iterable[Mapping[str, Any]], Sequence[str]]
"""Records of plain Python values, and the names of the labels, in order."""


_TFDS_NAME = re.compile(r"\w+(/[\w.+-]+)?(:[\d.*]+)?")


def _tfds_rows(name: str, split: str, label: str) -> Records:
    if not _TFDS_NAME.fullmatch(name):
        raise DataError(
            f"{name!r} is no name of TFDS as NAME, NAME/CONFIG or NAME/CONFIG:VERSION; names of "
            "other people's collections (OWNER:NAME) are not taken, since TFDS runs their code"
        )
    import tensorflow_datasets

    if not (tensorflow_datasets.builder(name).is_prepared() or urllib.request.getproxies()):
        # Without network it would try again and again, for minutes.
        socket.getaddrinfo("storage.googleapis.com", 443)
    dataset, info = tensorflow_datasets.load(name, split=split, with_info=True)
    records = (
        {
            key: value.decode("utf-8") if isinstance(value, bytes) else value.tolist()
            for key, value in record.items()
        }
        for record in dataset.as_numpy_iterator()
    )
    return records, _label_names(info.features, label)


_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:[\w.+ -]+)?")


def _hub_rows(name: str, split: str, label: str) -> Records:
    if not _HUB_NAME.fullmatch(name):
        raise DataError(f"{name!r} is no name of the hub as OWNER/NAME or OWNER/NAME:CONFIG")
    import datasets

    path, _, config = name.partition(":")
    dataset = datasets.load_dataset(path, config or None, split=split)
    return dataset, _label_names(dataset.features, label)


REMOTE = {"tfds": _tfds_rows, "hub": _hub_rows}


def _label_names(features: Any, label: str) -> Sequence[str]:
    return getattr(features[label], "names", None) or () if label in features else ()


def _builtin_rows(name: str) -> Iterator[TaskRow]:
    if name not in ANSWERS:
        raise DataError(f"builtin:{name}: the built-in tasks are {', '.join(ANSWERS)}")
    task = _builtin()[name]
    for number, (inputs, label) in enumerate(zip(*task.evaluation, strict=True), start=1):
        yield TaskRow(name, dict(inputs), task.answers[label], f"builtin:{name}, scene {number}")


@functools.cache
def _builtin() -> dict[str, Task]:
    return {task.name: task for task in builtin_tasks(1, SCENES_SEED)}


def short(faults: Sequence[Any], most: int = 3) -> str:
    """The first few of many, and how many more there are."""
    more = len(faults) - most
    return "; ".join(map(str, itertools.islice(faults, most))) + (
        f"; and {more} more" if more > 0 else ""
    )
