"""The FLAN collection (Wei et al. 2021) as finished prompts: rows {"inputs", "targets", "task"}.

That is how hub:Muennighoff/flan publishes it: each instance in one of its task's ten templates, as
train/cola_10templates_train.jsonl. With the templates at hand, the fields are read out of the
prompts again, so that all wordings of a task can ask each of its instances.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from coin_jax.config import TaskConfig
from coin_jax.curation.config import SourceConfig
from coin_jax.curation.source import Instance
from coin_jax.curation.sources.files import resolve_files
from coin_jax.curation.sources.matching import PromptReader
from coin_jax.curation.sources.records import Records
from coin_jax.curation.sources.selection import Answers, Selection, full_name
from coin_jax.data.set_format import InstructionTask, Wording
from coin_jax.data.sources import DataError, attempt, checked_text
from coin_jax.data.templates import OPTIONS, TemplatePair, read_templates, render_options

SUFFIX = "_10templates"
"""Of the task names there; ours go without."""
COLUMNS = ("inputs", "targets", "task")
PROMPT = "prompt"
"""Field of a finished prompt."""
LISTED = "listed_options"
"""Field of a prompt's list of options in tasks where each instance has a list of its own."""


class FlanCollection:
    """FLAN's instances: by their fields where their task has templates, else as whole prompts.

    A task's templates are those of its name or of the longest beginning of it (`anli` serves
    anli_r1), unless its TaskConfig names others. Prompts that none of them made, and those of
    templates that turn the task round, are left out and counted.

    Raises: DataError for files that cannot be had or read, and for a task or templates that are
    named and not there.
    """

    def __init__(self, config: SourceConfig, seed: int):
        field = f"files of the source of kind {config.kind!r}"
        self._records = Records(resolve_files(config.files, field, split=config.split))
        templates = {}
        if config.template_files:
            files = resolve_files(config.template_files, f"template_{field}", (".json",))
            templates = read_templates(files)
        answers, numbers = self._scan()
        if not answers:
            raise DataError(f"{field}: no row with the texts `inputs`, `targets` and `task`")
        wanted = {task.name.removesuffix(SUFFIX): task for task in config.tasks}
        missing = wanted.keys() - answers.keys()
        if missing:
            raise DataError(
                f"no row of task {min(missing)!r} in the {field}; the tasks there are "
                + ", ".join(answers)
            )
        used = [name for name in answers if not wanted or name in wanted]
        self._tasks = {
            full_name(config, name): _Task(
                full_name(config, name),
                _reader(name, wanted.get(name, TaskConfig()).templates, templates),
                answers[name],
                wanted.get(name, TaskConfig()).answers,
                config.licence,
            )
            for name in used
        }
        names = list(self._tasks)
        new = np.full(len(answers) + 1, len(names), np.int32)  # beyond: left out
        new[-1] = -1
        new[[list(answers).index(name) for name in used]] = np.arange(len(names))
        drawn = Selection(new[numbers], names, config.rows_per_task, seed)
        self._selection = Selection(self._read_prompts(drawn), names, 0, seed)
        counts = self._selection.counts
        self.tasks = {name: task.task() for name, task in self._tasks.items() if counts[name]}
        self.notes = tuple(task.note(counts[name]) for name, task in self._tasks.items())
        unused = answers.keys() - set(used)
        if unused:
            rows = sum(answers[name].rows for name in unused)
            self.notes += (f"{rows} rows of tasks that are not used: {', '.join(sorted(unused))}",)

    def __len__(self) -> int:
        return len(self._selection)

    def task_of(self, index: int) -> str:
        return self._selection.task_of(index)

    def instance(self, index: int) -> Instance | DataError:
        task = self._tasks.get(self.task_of(index))
        where, record = self._records.record(self._selection.row(index))
        return attempt(task.instance if task else _texts, where, record)

    def _scan(self) -> tuple[dict[str, Answers], np.ndarray]:
        """(targets by task, each row's number of its task or -1)."""
        answers: dict[str, Answers] = {}
        places: dict[str, int] = {}
        numbers = np.full(len(self._records), -1, np.int32)
        for row, columns in enumerate(self._records.scan(*COLUMNS)):
            if isinstance(columns, DataError) or not all(map(_is_text, columns)):
                continue
            name = columns[2].removesuffix(SUFFIX)
            numbers[row] = places.setdefault(name, len(places))
            answers.setdefault(name, Answers()).add(columns[1])
        return answers, numbers

    def _read_prompts(self, drawn: Selection) -> np.ndarray:
        """Each row's number of its task, but for those drawn whose prompt can be used."""
        number_of = {name: number for number, name in enumerate((*self._tasks, ""))}
        numbers = np.full(len(self._records), len(self._tasks), np.int32)
        for index in range(len(drawn)):
            row, name = drawn.row(index), drawn.task_of(index)
            if not name:
                numbers[row] = -1
            elif self._tasks[name].take(self._records, row):
                numbers[row] = number_of[name]
        return numbers


class _Task:
    """How the prompts of a task become instances of it.

    answers: what its rows' targets are, where they are not read.
    labels: TaskConfig.answers.
    """

    def __init__(
        self,
        name: str,
        reader: PromptReader | None,
        answers: Answers,
        labels: Mapping[str, str],
        licence: str,
    ):
        self._name, self._reader, self._labels, self._licence = name, reader, labels, licence
        self._answers = Answers() if reader else answers
        self._list: tuple[str, ...] = ()
        """Of options, where all prompts have the same."""
        self._own_lists = False
        self._left_out: collections.Counter[str] = collections.Counter()

    def take(self, records: Records, row: int) -> bool:
        """Learns from a row; whether it can be used."""
        if not self._reader:
            return True
        texts = attempt(_texts, *records.record(row))
        if isinstance(texts, DataError):
            return True  # for `instance` to say so
        prompt, target = texts
        reading = self._reader.read(prompt)
        if isinstance(reading, str):
            self._left_out[reading] += 1
            return False
        self._answers.add(target)
        if reading.options and reading.options != self._list:
            # FLAN's later versions shuffle the list.
            self._own_lists |= bool(self._list) and set(reading.options) != set(self._list)
            self._list = tuple(sorted(reading.options)) if self._list else reading.options
        return True

    def task(self) -> InstructionTask:
        answers = tuple(dict.fromkeys(self._labels.values()))
        if not answers and not self._own_lists:
            answers = self._list or self._answers.closed()
        self._known = frozenset(self._labels or answers)
        wordings = (Wording(PROMPT, f"{{{PROMPT}}}"),)
        if self._reader:
            wordings = tuple(
                Wording(wording.name, self._with_own_lists(wording.source), "template")
                for wording in self._reader.wordings
                if answers or self._own_lists or OPTIONS not in wording.placeholders
            )
        fields = frozenset().union(*(wording.placeholders for wording in wordings))
        return InstructionTask(self._name, tuple(sorted(fields)), wordings, answers, self._licence)

    def instance(self, where: str, record: Mapping[str, Any]) -> Instance:
        prompt, target = _texts(where, record)
        if self._known and target not in self._known:
            raise DataError(
                f"{where}: target {target!r} of task {self._name!r} is none of "
                + ", ".join(map(repr, sorted(self._known)))
            )
        target = self._labels.get(target, target)
        if not self._reader:
            return Instance(self._name, {PROMPT: prompt}, target, where)
        inputs, options = self._reader.read(prompt)
        if self._own_lists and options:
            inputs[LISTED] = render_options(options)
        return Instance(self._name, inputs, target, where)

    def note(self, instances: int) -> str:
        if not self._reader:
            return f"{self._name}: {instances} finished prompts; there are no templates of it"
        left_out = "".join(
            f"; {count} prompts left out that {reason}" for reason, count in self._left_out.items()
        )
        return (
            f"{self._name}: {instances} instances, {len(self._reader.wordings)} wordings{left_out}"
        )

    def _with_own_lists(self, template: str) -> str:
        return template.replace(f"{{{OPTIONS}}}", f"{{{LISTED}}}") if self._own_lists else template


def _reader(
    task: str, name: str, lists: Mapping[str, Sequence[TemplatePair]]
) -> PromptReader | None:
    """Of the templates `name`, or of those that a task's own name finds."""
    if name and name not in lists:
        raise DataError(
            f"task {task!r}: no templates named {name!r} in template_files; there are "
            + ", ".join(sorted(lists))
        )
    found = [key for key in lists if task == key or task.startswith(f"{key}_")]
    name = name or max(found, key=len, default="")
    return PromptReader(lists[name], name) if name else None


def _texts(where: str, record: Mapping[str, Any]) -> tuple[str, str]:
    """(prompt, target)"""
    for name in COLUMNS:
        checked_text(where, name, record.get(name))
    return record["inputs"], record["targets"]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
