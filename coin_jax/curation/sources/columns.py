"""Any table, by what its columns mean."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from coin_jax.curation.config import SourceConfig
from coin_jax.curation.source import Instance, Source
from coin_jax.curation.sources.files import resolve_files
from coin_jax.curation.sources.records import PlacedRow, Records
from coin_jax.curation.sources.selection import Answers, Selection, full_name
from coin_jax.curation.sources.tasks import TaskSource
from coin_jax.data.draws import stable_hash
from coin_jax.data.set_format import InstructionTask, Wording
from coin_jax.data.sources import DataError, attempt, checked_text

TARGET, TASK, INSTRUCTION = "target", "task", "instruction"
"""Meanings of columns; all others are input fields."""

OWN_TASK = 8
"""Rows with an input that an instruction needs to be a task of its own."""

_LEFT_OUT = np.iinfo(np.int32).max
"""Number of a row whose task is not used."""


def read_columns(config: SourceConfig, seed: int) -> Source:
    """A table whose columns the config explains as {meaning: column}.

    `target` is the answer. `task` names a row's task; without it all rows are of one, named by the
    only TaskConfig or after the kind of the source. Columns of any other meaning are input fields;
    a blank cell is a field that the instance lacks.

    With template files the fields fill the templates of the task's list; else see `Columns`.

    Raises: DataError for files that cannot be had or read, for columns, tasks or templates that are
    named and not there, and where no row can be used.
    """
    field = f"files of the source of kind {config.kind!r}"
    table = Table(Records(resolve_files(config.files, field, split=config.split)), config)
    if config.template_files:
        return TaskSource(config, seed, Records(rows=table.task_rows()))
    return Columns(table, config, seed)


class Table:
    """Rows by the meanings of their columns.

    Raises: DataError for columns that are not explained as they must be.
    """

    def __init__(self, records: Records, config: SourceConfig):
        columns = config.columns
        if TARGET not in columns or not columns.keys() - {TARGET, TASK}:
            raise DataError(
                "columns must name the column of the `target` and that of an `instruction` or an "
                f"input, as {{meaning: column}}, and is {columns}"
            )
        wrong = [meaning for meaning in columns if not meaning.isidentifier()]
        if wrong:
            raise DataError(f"columns: a meaning is a plain name, not {wrong[0]!r}")
        self.records, self.columns = records, columns
        self._task = config.tasks[0].name if len(config.tasks) == 1 else config.kind
        self._needed = {TARGET, TASK, INSTRUCTION} & columns.keys()

    def scan(self) -> Iterator[dict[str, str] | None]:
        """The texts of each row, `task` among them; None of a row that has not what it must."""
        for row in self.records.scan(*self.columns.values()):
            texts = None if isinstance(row, DataError) else self._texts(row)
            is_whole = texts and self._needed <= texts.keys()
            yield texts if is_whole and all(isinstance(t, str) for t in texts.values()) else None

    def texts(self, where: str, record: Mapping[str, Any]) -> dict[str, str]:
        """The texts of a row.

        Raises: DataError that names the column.
        """
        texts = self._texts([record.get(column) for column in self.columns.values()])
        for meaning, column in self.columns.items():
            if meaning in texts or meaning in self._needed:
                checked_text(where, column, texts.get(meaning))
        return texts

    def task_rows(self) -> Iterator[PlacedRow]:
        """The rows as task files have them."""
        for index in range(len(self.records)):
            where, record = self.records.record(index)
            texts = attempt(self.texts, where, record)
            if not isinstance(texts, DataError):
                task, label = texts.pop(TASK), texts.pop(TARGET)
                texts = {"task": task, "inputs": texts, "label": label}
            yield where, texts

    def _texts(self, cells: Sequence[Any]) -> dict[str, Any]:
        texts = {TASK: self._task}
        for meaning, cell in zip(self.columns, cells, strict=True):
            if isinstance(cell, int | float) and not isinstance(cell, bool):
                cell = str(cell)
            if cell is None or (isinstance(cell, str) and not cell.strip()):
                texts.pop(meaning, None)
            else:
                texts[meaning] = cell
        return texts


class _Group(NamedTuple):
    """The rows that make a task."""

    task: str
    """As the table names it."""
    instruction: str = ""
    """Of a task that is one instruction."""
    has_input: bool = True


class Columns:
    """A table that holds its wordings itself.

    With `instruction`: the row's instruction and its input fields, laid out in three ways. An
    instruction that at least OWN_TASK rows with an input share is a task of its own, with the
    instruction in its wordings, where paraphrasers can reword it; of other rows it is a field.
    Without: every field is a finished prompt, so a row is asked in as many wordings as it has.
    """

    def __init__(self, table: Table, config: SourceConfig, seed: int):
        self._table, self._config = table, config
        self._fields = tuple(
            meaning for meaning in table.columns if meaning not in (TARGET, TASK, INSTRUCTION)
        )
        self._labels = {task.name: task.answers for task in config.tasks}
        answers, numbers = self._scan(self._shared_instructions())
        missing = self._labels.keys() - {group.task for group in answers}
        if missing:
            raise DataError(f"no row of task {min(missing)!r} in the {self._of_kind}")
        tasks = [self._task(group, found) for group, found in answers.items()]
        self.tasks = {task.name: task for task in tasks}
        self._needed = {
            task.name: [wording.placeholders for wording in task.wordings] for task in tasks
        }
        self._selection = Selection(numbers, list(self.tasks), config.rows_per_task, seed)
        self.notes = tuple(self._notes(answers, numbers))

    def __len__(self) -> int:
        return len(self._selection)

    def task_of(self, index: int) -> str:
        return self._selection.task_of(index)

    def instance(self, index: int) -> Instance | DataError:
        where, record = self._table.records.record(self._selection.row(index))
        texts = attempt(self._table.texts, where, record)
        if isinstance(texts, DataError):
            return texts
        task = self.tasks[self.task_of(index)]
        inputs = {field: texts[field] for field in task.fields if field in texts}
        labels, target = self._labels.get(texts[TASK]), texts[TARGET]
        if not any(needed <= inputs.keys() for needed in self._needed[task.name]):
            missing = ", ".join(
                self._table.columns[field] for field in set(task.fields) - inputs.keys()
            )
            return DataError(f"{where}: nothing in the columns {missing}")
        if labels and target not in labels:
            allowed = ", ".join(map(repr, labels))
            return DataError(
                f"{where}: target {target!r} of task {texts[TASK]!r} is none of {allowed}"
            )
        return Instance(task.name, inputs, labels[target] if labels else target, where)

    @property
    def _of_kind(self) -> str:
        return f"files of the source of kind {self._config.kind!r}"

    def _shared_instructions(self) -> frozenset[int]:
        """Hashes of the instructions that are tasks of their own."""
        if INSTRUCTION not in self._table.columns or not self._fields:
            return frozenset()
        hashes = np.zeros(len(self._table.records), np.uint64)
        for row, texts in enumerate(self._table.scan()):
            if texts and self._has_input(texts):
                hashes[row] = _instruction_hash(texts)
        values, counts = np.unique(hashes[hashes > 0], return_counts=True)
        return frozenset(values[counts >= OWN_TASK].tolist())

    def _scan(self, shared: frozenset[int]) -> tuple[dict[_Group, Answers], np.ndarray]:
        """(targets by task, each row's number of its task, -1 or _LEFT_OUT).

        Raises: DataError for a column that no row has.
        """
        answers: dict[_Group, Answers] = {}
        places: dict[_Group, int] = {}
        numbers = np.full(len(self._table.records), -1, np.int32)
        empty = dict(self._table.columns)
        for row, texts in enumerate(self._table.scan()):
            if not texts:
                continue
            for meaning in empty.keys() & texts.keys():
                del empty[meaning]
            if self._labels and texts[TASK] not in self._labels:
                numbers[row] = _LEFT_OUT
                continue
            group = self._group(texts, shared)
            numbers[row] = places.setdefault(group, len(places))
            answers.setdefault(group, Answers()).add(texts[TARGET])
        if empty:
            raise self._nothing_in(empty)
        return answers, numbers

    def _nothing_in(self, columns: Mapping[str, str]) -> DataError:
        if not len(self._table.records):
            return DataError(f"{self._of_kind}: there are no rows")
        where, record = self._table.records.record(0)
        if isinstance(record, DataError):
            return record
        name = next((name for name in columns.values() if name not in record), None)
        name = name or next(iter(columns.values()))
        return DataError(
            f"{where}: nothing in the column {name!r} here and in all other rows; the columns are "
            + ", ".join(map(repr, record))
        )

    def _has_input(self, texts: Mapping[str, str]) -> bool:
        return any(field in texts for field in self._fields)

    def _group(self, texts: Mapping[str, str], shared: frozenset[int]) -> _Group:
        if INSTRUCTION not in self._table.columns:
            return _Group(texts[TASK])
        if not self._has_input(texts):
            return _Group(texts[TASK], has_input=False)
        is_shared = _instruction_hash(texts) in shared
        return _Group(texts[TASK], texts[INSTRUCTION] if is_shared else "")

    def _task(self, group: _Group, answers: Answers) -> InstructionTask:
        name, own_instruction = group.task, ""
        if INSTRUCTION not in self._table.columns:
            wordings = tuple(Wording(field, f"{{{field}}}") for field in self._fields)
        elif group.instruction:
            name += f"/{_slug(group.instruction)}"
            text = group.instruction.replace("{", "{{").replace("}", "}}")
            wordings = _layouts(text, self._fields)
        else:
            own_instruction = INSTRUCTION
            if self._fields and not group.has_input:
                name += "_without_input"
            wordings = _layouts(f"{{{INSTRUCTION}}}", self._fields if group.has_input else ())
        labels = self._labels.get(group.task)
        return InstructionTask(
            full_name(self._config, name),
            tuple(sorted(frozenset().union(*(wording.placeholders for wording in wordings)))),
            wordings,
            tuple(dict.fromkeys(labels.values())) if labels else answers.closed(),
            self._config.licence,
            own_instruction,
        )

    def _notes(self, answers: Mapping[_Group, Answers], numbers: np.ndarray) -> Iterator[str]:
        own = sum(bool(group.instruction) for group in answers)
        note = (
            f"{np.count_nonzero((numbers >= 0) & (numbers < _LEFT_OUT))} rows, {len(answers)} tasks"
        )
        yield note + (f", {own} of them single instructions" if own else "")
        left_out = np.count_nonzero(numbers == _LEFT_OUT)
        if left_out:
            yield f"{left_out} rows of tasks that are not used"


def _layouts(instruction: str, fields: Sequence[str]) -> tuple[Wording, ...]:
    """Three ways to put an instruction and its input together."""
    if not fields:
        return (
            Wording("alone", instruction),
            Wording("labelled", f"Instruction: {instruction}\nAnswer:"),
            Wording("answer", f"{instruction}\n\nAnswer:"),
        )
    labelled = "\n".join(f"{field.replace('_', ' ').capitalize()}: {{{field}}}" for field in fields)
    content = f"{{{fields[0]}}}" if len(fields) == 1 else labelled
    return (
        Wording("instruction_first", f"{instruction}\n\n{content}"),
        Wording("input_first", f"{content}\n\n{instruction}"),
        Wording("labelled", f"Instruction: {instruction}\n{labelled}\nAnswer:"),
    )


def _instruction_hash(texts: Mapping[str, str]) -> int:
    return stable_hash(texts[TASK], texts[INSTRUCTION])


def _slug(instruction: str) -> str:
    """A name for an instruction: its first words, and a hash to tell it from others."""
    words = re.sub(r"\W+", "-", instruction.lower())[:40].strip("-")
    return f"{words}-{stable_hash(instruction):016x}"[: len(words) + 9]
