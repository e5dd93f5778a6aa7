"""Task files and instruction templates, brought together as tasks with definite answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from coin_jax.config import DataConfig, TaskConfig
from coin_jax.data.draws import draw_order, stable_hash
from coin_jax.data.pairs import Instances, Task
from coin_jax.data.sources import DataError, TaskRow, collect, expand_files, read_task_rows
from coin_jax.data.templates import (
    TemplatePair,
    asking_templates,
    read_templates,
    split_wordings,
)

HELD_OUT_SHARE = 0.05
HELD_OUT_MOST = 500
"""Of a task's training rows, kept for evaluation where no file has evaluation rows of it."""
HELD_OUT_FEWEST = 10
"""Of fewer rows than this none are kept."""


def load_tasks(data: DataConfig, seed: int) -> tuple[list[Task], list[str]]:
    """Reads the rows and templates that the config names; the notes say what was left out.

    A task without rows in the evaluation files keeps some of its training rows for evaluation;
    which ones depends on the seed and on a row's inputs, so that equal rows are never parted.

    Raises: DataError for a file, row, template or task that cannot be used.
    """
    templates = read_templates(expand_files(data.template_files, "data.template_files"))
    training, bad = collect(read_task_rows(expand_files(data.files, "data.files")), data.bad_rows)
    evaluation: list[TaskRow] = []
    if data.evaluation_files:
        files = expand_files(data.evaluation_files, "data.evaluation_files")
        evaluation, more = collect(read_task_rows(files), data.bad_rows)
        bad += more
    training_of, evaluation_of = _by_task(training), _by_task(evaluation)
    if not training_of:
        raise DataError("; ".join(["data.files: no usable row", *bad_row_notes(bad)]))
    configs = data.tasks or tuple(TaskConfig(name) for name in training_of)
    tasks, notes = [], []
    for config in configs:
        name = config.templates or config.name
        if config.name not in training_of:
            raise DataError(
                f"data.tasks: no row of task {config.name!r} in data.files; the tasks there are "
                f"{', '.join(map(repr, training_of))}"
            )
        if name not in templates:
            raise DataError(
                f"task {config.name!r}: no templates named {name!r} in data.template_files; there "
                f"are {', '.join(sorted(templates))}. TaskConfig.templates names others"
            )
        builder = _TaskBuilder(config, data, seed, templates[name], training_of[config.name])
        task, note = builder.build(evaluation_of.get(config.name, []))
        bad += builder.bad
        tasks.append(task)
        notes.append(note)
    unused = training_of.keys() - {config.name for config in configs}
    if unused:
        rows = sum(len(training_of[name]) for name in unused)
        notes.append(
            f"{rows} rows of tasks that data.tasks leaves out: {', '.join(sorted(unused))}"
        )
    return tasks, notes + bad_row_notes(bad)


def bad_row_notes(bad: Sequence[DataError]) -> list[str]:
    """What is said of skipped rows: how many, and the first."""
    return [f"{len(bad)} unreadable rows skipped, the first: {bad[0]}"] if bad else []


def held_out(keys: Iterable[str], seed: int) -> np.ndarray:
    """Which rows are kept for evaluation [rows] bool; rows with equal keys share their fate."""
    hashes = np.array([stable_hash(seed, "held out", key) for key in keys], np.uint64)
    if len(hashes) < HELD_OUT_FEWEST:
        return np.zeros(len(hashes), bool)
    count = min(HELD_OUT_MOST, math.ceil(len(hashes) * HELD_OUT_SHARE))
    return hashes <= np.sort(hashes)[count - 1]


def _by_task(rows: Iterable[TaskRow]) -> dict[str, list[TaskRow]]:
    groups: dict[str, list[TaskRow]] = {}
    for row in rows:
        groups.setdefault(row.task, []).append(row)
    return groups


class _TaskBuilder:
    """Builds one task; `bad` collects the rows that do not fit it."""

    def __init__(
        self,
        config: TaskConfig,
        data: DataConfig,
        seed: int,
        templates: Sequence[TemplatePair],
        rows: Sequence[TaskRow],
    ):
        self._config, self._data, self._seed = config, data, seed
        self.bad: list[DataError] = []
        rows = [self._renamed(row) for row in rows]
        fields = sorted({field for row in rows for field in row.inputs})
        set_name = config.templates or config.name
        wordings, self._left_out = asking_templates(templates, fields, set_name)
        self._training_wordings, self._held_out_wordings = split_wordings(
            wordings, data.held_out_wordings, seed, set_name
        )
        placeholders = {name for wording in wordings for name in wording.placeholders}
        self._needed = placeholders.intersection(fields)
        self._labels = config.answers or {
            label: label for label in sorted({row.label for row in rows})
        }
        self._rows = self._usable(rows)

    def build(self, evaluation: Sequence[TaskRow]) -> tuple[Task, str]:
        config, rows = self._config, self._rows
        answers = tuple(dict.fromkeys(self._labels.values()))
        if evaluation:
            evaluation = self._usable(map(self._renamed, evaluation))
        else:
            keys = (repr(sorted(row.inputs.items())) for row in rows)
            kept = held_out(keys, self._seed).tolist()
            evaluation = [row for row, is_kept in zip(rows, kept, strict=True) if is_kept]
            rows = [row for row, is_kept in zip(rows, kept, strict=True) if not is_kept]
        if self._data.rows_per_task:
            order = draw_order(len(rows), self._seed, "rows", config.name)
            rows = [rows[number] for number in order[: self._data.rows_per_task]]
        task = Task(
            config.name,
            answers,
            self._training_wordings,
            self._held_out_wordings,
            self._instances(rows, answers),
            self._instances(evaluation, answers),
        )
        note = (
            f"{config.name}: {len(rows)} training and {len(evaluation)} held-out rows; "
            f"{len(task.training_wordings)} training and {len(task.held_out_wordings)} held-out "
            f"wordings, {self._left_out} templates left out that do not ask for the answer"
        )
        return task, note

    def _renamed(self, row: TaskRow) -> TaskRow:
        names = self._config.fields
        return row._replace(inputs={names.get(key, key): row.inputs[key] for key in row.inputs})

    def _usable(self, rows: Iterable[TaskRow]) -> list[TaskRow]:
        good, bad = collect(map(self._checked, rows), self._data.bad_rows)
        self.bad += bad
        return good

    def _checked(self, row: TaskRow) -> TaskRow | DataError:
        missing = self._needed - row.inputs.keys()
        if missing:
            return DataError(
                f"{row.where}: no field {min(missing)!r}, which the templates of task "
                f"{row.task!r} need; its fields are {', '.join(sorted(row.inputs))}"
            )
        if row.label not in self._labels:
            return DataError(
                f"{row.where}: label {row.label!r} of task {row.task!r} is none of "
                f"{', '.join(map(repr, self._labels))}"
            )
        return row

    def _instances(self, rows: Sequence[TaskRow], answers: Sequence[str]) -> Instances:
        return Instances(
            [row.inputs for row in rows],
            np.array([answers.index(self._labels[row.label]) for row in rows], np.int32),
        )
