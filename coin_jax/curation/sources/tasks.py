"""Task files with instruction templates: rows {"task", "inputs": {field: text}, "label"}."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from coin_jax.config import TaskConfig
from coin_jax.curation.config import SourceConfig
from coin_jax.curation.source import Instance
from coin_jax.curation.sources.files import resolve_files
from coin_jax.curation.sources.records import Records
from coin_jax.curation.sources.selection import Answers, Selection, full_name
from coin_jax.data.set_format import InstructionTask, Wording
from coin_jax.data.sources import DataError, TaskRow, attempt, task_row
from coin_jax.data.templates import (
    ANSWER,
    OPTIONS,
    TemplatePair,
    asking_templates,
    parse_template,
    read_templates,
)


class TaskSource:
    """Instances of task files, asked in the wordings of template files, named LIST/NUMBER.

    How a task's rows fit its templates is its TaskConfig's to say, as in training on task files.
    Without `answers` there, labels that are few and repeat are a closed set and any others free.

    records: rows of that form from elsewhere, instead of config.files.
    Raises: DataError for a file or template that cannot be used, and for a task without rows,
      templates or a wording that asks for its answer.
    """

    def __init__(self, config: SourceConfig, seed: int, records: Records | None = None):
        self._config = config
        field = f"files of the source of kind {config.kind!r}"
        self._records = Records(resolve_files(config.files, field)) if records is None else records
        templates = read_templates(
            resolve_files(config.template_files, f"template_{field}", (".json",))
        )
        fields, answers, numbers = self._scan()
        if not fields:
            raise DataError("; ".join([f"{field}: no usable row", *self._first_fault()]))
        configs = config.tasks or tuple(TaskConfig(name) for name in fields)
        missing = {task.name for task in configs} - fields.keys()
        if missing:
            raise DataError(
                f"no row of task {min(missing)!r} in the {field}; the tasks there are "
                + ", ".join(map(repr, fields))
            )
        self._fits = {
            full_name(config, task.name): _Fit(
                config, task, templates, fields[task.name], answers[task.name].closed()
            )
            for task in configs
        }
        self.tasks: Mapping[str, InstructionTask] = {
            name: fit.task for name, fit in self._fits.items()
        }
        self._selection = _select(numbers, list(fields), configs, config, seed)
        self.notes = tuple(self._notes(fields, answers))

    def __len__(self) -> int:
        return len(self._selection)

    def task_of(self, index: int) -> str:
        return self._selection.task_of(index)

    def instance(self, index: int) -> Instance | DataError:
        row = attempt(task_row, *self._records.record(self._selection.row(index)))
        if isinstance(row, DataError):
            return row
        return self._fits[full_name(self._config, row.task)].instance(row)

    def _scan(self) -> tuple[dict[str, set[str]], dict[str, Answers], np.ndarray]:
        """(input fields by task, answers by task, each row's number of its task or -1)."""
        fields: dict[str, set[str]] = {}
        answers: dict[str, Answers] = {}
        numbers: dict[str, int] = {}
        number_of_row = np.full(len(self._records), -1, np.int32)
        for row, columns in enumerate(self._records.scan("task", "inputs", "label")):
            if isinstance(columns, DataError):
                continue
            task, inputs, label = columns
            if isinstance(task, str) and task.strip() and isinstance(inputs, dict):
                number_of_row[row] = numbers.setdefault(task, len(numbers))
                fields.setdefault(task, set()).update(inputs)
                answers.setdefault(task, Answers()).add(str(label))
        return fields, answers, number_of_row

    def _first_fault(self) -> list[str]:
        rows = range(min(1, len(self._records)))
        return [str(attempt(task_row, *self._records.record(row))) for row in rows]

    def _notes(self, fields: Mapping[str, set[str]], answers: Mapping[str, Answers]) -> list[str]:
        notes = []
        for name, fit in self._fits.items():
            kinds = f"{len(fit.task.answers)} answers" if fit.task.answers else "free answers"
            notes.append(
                f"{name}: {self._selection.counts[name]} instances, {kinds}, "
                f"{len(fit.task.wordings)} wordings, {fit.left_out} templates left out that do not "
                "ask for the answer"
                + (f", and others that need {', '.join(fit.unknown)}" if fit.unknown else "")
            )
        used = {fit.config.name for fit in self._fits.values()}
        unused = fields.keys() - used
        if unused:
            rows = sum(answers[task].rows for task in unused)
            notes.append(f"{rows} rows of tasks that are not used: {', '.join(sorted(unused))}")
        return notes


class _Fit:
    """How the rows of a task become instances of it."""

    def __init__(
        self,
        config: SourceConfig,
        task: TaskConfig,
        templates: Mapping[str, Sequence[TemplatePair]],
        fields: set[str],
        labels: Sequence[str],
    ):
        self.config = task
        list_name = task.templates or task.name
        if list_name not in templates:
            raise DataError(
                f"task {task.name!r}: no templates named {list_name!r} in template_files; there "
                f"are {', '.join(sorted(templates))}. TaskConfig.templates names others"
            )
        entries = templates[list_name]
        renamed = {task.fields.get(field, field) for field in fields}
        named = itertools.chain.from_iterable(_placeholders(entry) for entry in entries)
        asking, self.left_out = asking_templates(entries, sorted(renamed.union(named)), list_name)
        # FLAN's bool_q has templates with a {title}, which SuperGLUE's BoolQ lacks.
        self.unknown = sorted(
            frozenset().union(*(wording.placeholders for wording in asking)) - renamed - {OPTIONS}
        )
        asking = [one for one in asking if one.placeholders.isdisjoint(self.unknown)]
        self._answers = task.answers or {label: label for label in labels}
        if not self._answers:  # nothing that could be listed as options
            listing = [wording for wording in asking if OPTIONS in wording.placeholders]
            asking = [wording for wording in asking if wording not in listing]
            self.left_out += len(listing)
        if not asking:
            raise DataError(
                f"task {task.name!r}: no template of {list_name!r} asks for its answer with the "
                f"fields {', '.join(sorted(renamed))}"
                + (f"; some need {', '.join(self.unknown)}" if self.unknown else "")
            )
        wordings = tuple(Wording(wording.name, wording.source) for wording in asking)
        self._needed = [wording.placeholders for wording in wordings]
        self.task = InstructionTask(
            full_name(config, task.name),
            tuple(sorted(frozenset().union(*self._needed))),
            wordings,
            tuple(dict.fromkeys(self._answers.values())),
            config.licence,
        )

    def instance(self, row: TaskRow) -> Instance | DataError:
        names = self.config.fields
        renamed = {names.get(field, field): text for field, text in row.inputs.items()}
        inputs = {field: renamed[field] for field in self.task.fields if field in renamed}
        if not any(needed <= inputs.keys() for needed in self._needed):
            missing = min((needed - inputs.keys() for needed in self._needed), key=len)
            return DataError(
                f"{row.where}: no field {min(missing)!r}, which the templates of task {row.task!r} "
                f"need; its fields are {', '.join(sorted(row.inputs))}"
            )
        if self._answers and row.label not in self._answers:
            return DataError(
                f"{row.where}: label {row.label!r} of task {row.task!r} is none of "
                f"{', '.join(map(repr, self._answers))}"
            )
        return Instance(self.task.name, inputs, self._answers.get(row.label, row.label), row.where)


def _placeholders(entry: TemplatePair) -> frozenset[str]:
    texts = (parse_template(text, entry.where) for text in (entry.input, entry.target))
    return frozenset().union(*(text.placeholders for text in texts)) - {OPTIONS, ANSWER}


def _select(
    numbers: np.ndarray,
    found: Sequence[str],
    used: Sequence[TaskConfig],
    config: SourceConfig,
    seed: int,
) -> Selection:
    """The rows of the tasks that are used, in their order."""
    new = np.full(len(found) + 1, len(used), np.int32)
    new[-1] = -1
    for number, task in enumerate(used):
        new[found.index(task.name)] = number
    names = [full_name(config, task.name) for task in used]
    return Selection(new[numbers], names, config.rows_per_task, seed)
