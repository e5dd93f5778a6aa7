"""Suites: tasks, prompts by condition, and what is to be done to them, from a JSON file.

docs/suites.md describes the file, coin_jax/robustness/suite_file.py is its schema.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from coin_jax.data.draws import stable_hash
from coin_jax.data.sources import DataError, TaskRow
from coin_jax.data.templates import (
    ANSWER,
    OPTIONS,
    Prompt,
    Template,
    parse_template,
    render_options,
)
from coin_jax.robustness.answers import prefixes
from coin_jax.robustness.instances import MissingDataError, Reader, short
from coin_jax.robustness.metrics import majority_rate
from coin_jax.robustness.perturb import PERTURBATIONS
from coin_jax.robustness.suite_file import (
    GLUE,
    OTHER_TASKS,
    AttackRequest,
    PerturbationRequest,
    SuiteFile,
    TaskEntry,
    place,
    read_suite_file,
    unknown,
)

CONTENT = "content"
"""The placeholder for all fields of an instance at once."""
CUE = " Answer:"
"""Stands after an instance's text that is appended to a prompt."""
MOST_TOLD = 50
"""Faults of one suite file, about."""

_WORD = re.compile(r"[^\W_]+")
_PLACEHOLDER = re.compile(r"\{\w*\}")

# --- what a suite is ----------------------------------------------------------------------


class Instance(NamedTuple):
    key: str
    """The task and a hash of inputs and answer: the same wherever the row stands."""
    inputs: Mapping[str, str]
    """By field."""
    label: int
    """Index into the task's answers."""


@dataclasses.dataclass(frozen=True)
class SuiteTask:
    """A task and the instances drawn for it."""

    name: str
    fields: tuple[str, ...]
    answers: tuple[str, ...]
    instances: tuple[Instance, ...]
    frozen_words: tuple[str, ...] = ()
    """What perturbations must not touch, besides answers and placeholders."""
    attack_instances: tuple[Instance, ...] = ()
    """Those of the data that the sample left over, in the order of a next sample: an attack
    searches on them, so that it is not reported on what it was fitted to. Empty without sample."""
    content: str = ""
    """How all fields are laid out where a prompt has no places for them; a template."""

    @property
    def majority(self) -> float:
        """Accuracy of always giving the commonest answer of `instances`."""
        return majority_rate([instance.label for instance in self.instances])

    @functools.cached_property
    def content_parts(self) -> tuple[tuple[str, str], ...]:
        return parse_template(self.content or _default_content(self.fields), self.name).parts


@dataclasses.dataclass(frozen=True)
class Wording:
    """A prompt of a task."""

    task: str
    condition: str
    index: int
    """From 0, within the condition and task."""
    template: Template
    origin: int | None = None
    """Index of the wording in the base condition that this one was made from."""

    @property
    def name(self) -> str:
        return f"{self.condition}/{self.index}"

    @property
    def text(self) -> str:
        """As written: what is perturbed. `make_wording` turns the result into a wording again."""
        return self.template.source


@dataclasses.dataclass(frozen=True)
class Suite:
    """Tasks, their wordings by condition, and the perturbations and attacks to be carried out."""

    name: str
    path: pathlib.Path
    seed: int
    sample: int | None
    """Instances of each task at most; None: all."""
    clean: str
    """The condition that others are compared with."""
    tasks: tuple[SuiteTask, ...]
    wordings: tuple[Wording, ...]
    perturbations: tuple[PerturbationRequest, ...] = ()
    attacks: tuple[AttackRequest, ...] = ()
    read: tuple[str, ...] = ()
    """What was read, in sentences."""
    notes: tuple[str, ...] = ()
    """What was left out and whatever else the results must be read with, in sentences."""

    @property
    def conditions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(wording.condition for wording in self.wordings))

    def task(self, name: str) -> SuiteTask:
        for task in self.tasks:
            if task.name == name:
                return task
        raise ValueError(f"suite {self.name!r}: {unknown('task', name, self._task_names)}")

    @property
    def _task_names(self) -> list[str]:
        return [task.name for task in self.tasks]

    def wordings_of(self, task: str, condition: str) -> tuple[Wording, ...]:
        return tuple(
            wording
            for wording in self.wordings
            if (wording.task, wording.condition) == (task, condition)
        )

    def with_wordings(self, extra: Iterable[Wording]) -> Suite:
        return dataclasses.replace(self, wordings=(*self.wordings, *extra))


# --- prompts ------------------------------------------------------------------------------


def make_wording(
    task: SuiteTask,
    condition: str,
    index: int,
    text: str,
    origin: int | None = None,
    where: str = "",
) -> Wording:
    """Reads a prompt; of a perturbed one too, whose placeholders are whole.

    Every field has its placeholder in it, or `{content}` stands for all of them. A prompt with no
    placeholder ends where the instance's text begins, which is appended with "Answer:" after it, as
    PromptBench does (Zhu et al. 2023).

    Raises: DataError, with `where`, for braces that do not match, an unknown placeholder, and a
    field without a place.
    """
    where = where or f"task {task.name!r}, prompt {condition}/{index}"
    template = parse_template(text, f"{condition}/{index}", where)
    names = template.placeholders
    whole = CONTENT in names and CONTENT not in task.fields
    allowed = (*task.fields, OPTIONS, CONTENT)
    if foreign := names.difference(allowed):
        raise DataError(f"{where}: {unknown('placeholder', min(foreign), allowed)}: {text!r}")
    missing = [field for field in task.fields if field not in names]
    if names and missing and not whole:
        raise DataError(
            f"{where}: no place for {', '.join(f'{{{field}}}' for field in missing)}; a prompt has "
            f"places for all fields, or {{{CONTENT}}}, or no placeholder at all: {text!r}"
        )
    if whole:
        parts = tuple(
            part
            for literal, name in template.parts
            for part in (
                ((literal, ""), *task.content_parts) if name == CONTENT else ((literal, name),)
            )
        )
    elif not names:
        joint = "" if text[-1:].isspace() else " "
        parts = (*template.parts, (joint, ""), *task.content_parts, (CUE, ""))
    else:
        parts = template.parts
    return Wording(task.name, condition, index, dataclasses.replace(template, parts=parts), origin)


def prompt(task: SuiteTask, wording: Wording, instance: Instance) -> Prompt:
    """What the model is asked, and the answer it should give."""
    options = render_options(task.answers)
    return wording.template.render(instance.inputs, options, task.answers[instance.label])


def overlaps(suite: Suite, training_templates: Iterable[str]) -> list[str]:
    """A sentence for each of the suite's prompts that stands among the training templates.

    Prompts are the same when their words are: white space, case, punctuation and placeholders do
    not count, nor does the text appended to a prompt without placeholders.
    """
    trained = {template_words(template): template for template in training_templates}
    trained.pop((), None)
    found = []
    for wording in suite.wordings:
        template = next(filter(None, map(trained.get, wording_words(wording))), None)
        if template is not None:
            found.append(
                f"task {wording.task!r}, prompt {wording.name} was trained on: {wording.text!r} is "
                f"the training template {template!r}"
            )
    return found


def words(text: str) -> tuple[str, ...]:
    """The words by which texts are compared: without case, punctuation and variants of letters."""
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def template_words(template: str) -> tuple[str, ...]:
    """`words` of a template, without its placeholders."""
    return words(_PLACEHOLDER.sub(" ", template))


def wording_words(wording: Wording) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`words` of a prompt as written, and with the text that is appended to it."""
    asked = "".join(literal + " {} " for literal, _ in wording.template.parts)
    return template_words(wording.text), template_words(asked)


def _default_content(fields: Sequence[str]) -> str:
    """The text alone for one field; `Sentence 1: {sentence1} Sentence 2: {sentence2}` for more."""
    if len(fields) == 1:
        return f"{{{fields[0]}}}"
    titles = (re.sub(r"(?<=\D)(?=\d)|_", " ", field).capitalize() for field in fields)
    return " ".join(f"{title}: {{{field}}}" for title, field in zip(titles, fields, strict=True))


# --- from the file ------------------------------------------------------------------------


def load_suite(
    path: str | pathlib.Path,
    *,
    sample: int | None = None,
    seed: int | None = None,
    data_folder: str | pathlib.Path | None = None,
) -> Suite:
    """Reads a suite and the instances of its tasks.

    `sample` and `seed` replace the file's. Relative names of data files are looked for in
    `data_folder`, then beside the suite.

    Raises: DataError with a line for each fault, naming the file and the place in it.
    """
    path = pathlib.Path(path)
    if sample is not None and sample < 1:
        raise ValueError(f"sample is {sample}; allowed: 1 or more instances a task")
    if data_folder is not None and not pathlib.Path(data_folder).is_dir():
        raise DataError(f"{path}: the data folder {data_folder} is no folder")
    return _Loading(path, read_suite_file(path), sample, seed, data_folder).suite()


class _Loading:
    """Builds a suite from its file, collecting every fault on the way."""

    def __init__(
        self,
        path: pathlib.Path,
        file: SuiteFile,
        sample: int | None,
        seed: int | None,
        data_folder: str | pathlib.Path | None,
    ):
        self._path, self._file = path, file
        self._sample = file.sample if sample is None else sample
        self._seed = file.seed if seed is None else seed
        folders = [path.parent] if data_folder is None else [pathlib.Path(data_folder), path.parent]
        self._reader = Reader(folders)
        self._faults: list[str] = []
        self._read: list[str] = []
        self._notes: list[str] = []

    def suite(self) -> Suite:
        file, first = self._file, next(iter(self._file.prompts))
        clean = file.clean or first
        if clean not in file.prompts:
            self._fault("clean", unknown("condition", clean, file.prompts))
        entries = self._entries(clean)
        outlines = {name: self._outline(name, entry) for name, entry in entries.items()}
        wordings = self._wordings({name: task for name, task in outlines.items() if task})
        tasks = [
            task
            for name, outline in outlines.items()
            if outline and (task := self._filled(outline, entries[name]))
        ]
        perturbations, attacks = (
            tuple(self._request(request, kind, number, clean) for number, request in listed)
            for kind, listed in (
                ("perturbations", enumerate(file.perturbations)),
                ("attacks", enumerate(file.attacks)),
            )
        )
        names = [*file.prompts, *(request.condition for request in perturbations + attacks)]
        for name in sorted({name for name in names if names.count(name) > 1}):
            self._fault("condition", f"{name!r} is made twice; each needs a name of its own")
        if not tasks and not self._faults:
            self._fault("tasks", "; ".join(["none is left", *self._notes]))
        if self._faults:
            raise DataError("\n".join(self._faults))
        kept = {task.name for task in tasks}
        return Suite(
            file.name or self._path.stem,
            self._path,
            self._seed,
            self._sample,
            clean,
            tuple(tasks),
            tuple(wording for wording in wordings if wording.task in kept),
            perturbations,
            attacks,
            tuple(self._read),
            tuple(self._notes),
        )

    def _fault(self, where: str, reason: str) -> None:
        self._faults.append(f"{self._path}: {where}: {reason}")
        if len(self._faults) > MOST_TOLD:  # finding what each was meant to be takes a while
            raise DataError("\n".join([*self._faults, "and perhaps more"]))

    def _entries(self, clean: str) -> dict[str, TaskEntry]:
        """The tasks of the file, and those of GLUE that its prompts name besides."""
        entries = dict(self._file.tasks)
        known = {*entries, *GLUE}
        for condition, prompts in self._file.prompts.items():
            for name in prompts:
                if name in GLUE:
                    entries.setdefault(name, GLUE[name])
                elif name in OTHER_TASKS and name not in entries:
                    self._note_once(f"LEFT OUT: {name}: it is none of GLUE")
                elif name not in entries:
                    self._fault(
                        place("prompts", condition, name), unknown("task", name, sorted(known))
                    )
        compared = self._file.prompts.get(clean, entries)
        for name in sorted(entries.keys() - compared.keys()):
            self._fault(f"tasks.{name}", f"no prompt in the clean condition, {clean!r}")
        return entries

    def _note_once(self, note: str) -> None:
        if note not in self._notes:
            self._notes.append(note)

    def _outline(self, name: str, entry: TaskEntry) -> SuiteTask | None:
        """The task without its instances; None where its entry makes no sense."""
        before = len(self._faults)
        fields = tuple(dict.fromkeys(entry.fields.values()))
        for field in fields:
            if not field.isidentifier() or field in (OPTIONS, ANSWER):
                self._fault(f"tasks.{name}.fields", f"{field!r} cannot be a placeholder")
        if len(fields) < len(entry.fields):
            self._fault(f"tasks.{name}.fields", "two columns have the same name in prompts")
        answers = tuple(dict.fromkeys(entry.answers.values()))
        if len(answers) < 2:
            self._fault(f"tasks.{name}.answers", f"needs two answers or more, has {answers}")
        for shorter, longer in prefixes(answers):
            self._fault(
                f"tasks.{name}.answers",
                f"{shorter!r} begins {longer!r}: what a model generates could not be told apart",
            )
        task = SuiteTask(name, fields, answers, (), tuple(entry.frozen), (), entry.content)
        try:
            places = {field for _, field in task.content_parts if field}
            if places != set(fields):
                self._fault(f"tasks.{name}.content", f"must hold {', '.join(fields)} and no more")
        except DataError as error:
            self._fault(f"tasks.{name}.content", str(error))
        return task if len(self._faults) == before else None

    def _wordings(self, tasks: Mapping[str, SuiteTask]) -> list[Wording]:
        wordings = []
        for condition, prompts in self._file.prompts.items():
            for task in (tasks[name] for name in prompts if name in tasks):
                seen: dict[str, int] = {}
                for index, text in enumerate(prompts[task.name]):
                    where = place("prompts", condition, task.name, index)
                    if (first := seen.setdefault(text, index)) != index:
                        self._fault(where, f"the same prompt as number {first}: {text!r}")
                    try:
                        where = f"{self._path}: {where}"
                        wordings.append(make_wording(task, condition, index, text, where=where))
                    except DataError as error:
                        self._faults.append(str(error))
        return wordings

    def _filled(self, task: SuiteTask, entry: TaskEntry) -> SuiteTask | None:
        """The task with its instances; None where they are missing or at fault."""
        where = f"tasks.{task.name}.data"
        try:
            source, rows = self._reader.rows(task.name, entry.data, entry.split, entry.label)
        except MissingDataError as error:
            if entry.optional:
                self._notes.append(f"LEFT OUT: {error}")
            else:
                self._fault(where, str(error))
            return None
        except DataError as error:
            self._fault(where, str(error))
            return None
        instances, faults = _instances(task, entry, rows)
        if not rows:
            faults = [f"{source}: no row of task {task.name!r}"]
        if faults:
            self._fault(where, short(faults))
            return None
        ordered = _balanced(instances, self._seed)
        size = self._sample or len(ordered)
        self._read.append(
            f"{task.name}: {min(size, len(ordered))} of {len(ordered)} instances, {source}"
        )
        return dataclasses.replace(
            task, instances=tuple(ordered[:size]), attack_instances=tuple(ordered[size:])
        )

    def _request(self, request: Any, kind: str, number: int, clean: str) -> Any:
        if request.method not in PERTURBATIONS:
            self._fault(
                f"{place(kind, number)}.method", unknown("method", request.method, PERTURBATIONS)
            )
        base = request.of or clean
        if base not in self._file.prompts:
            self._fault(f"{place(kind, number)}.of", unknown("condition", base, self._file.prompts))
        return dataclasses.replace(request, of=base)


def _instances(
    task: SuiteTask, entry: TaskEntry, rows: Iterable[TaskRow | DataError]
) -> tuple[list[Instance], list[str]]:
    """(each different instance once, what is wrong with rows, the first row of each kind)."""
    found: dict[str, Instance] = {}
    faults: list[str] = []
    unmapped: dict[str, TaskRow] = {}
    for row in rows:
        if isinstance(row, DataError):
            faults.append(str(row))
        elif missing := entry.fields.keys() - row.inputs.keys():
            there = ", ".join(sorted(row.inputs))
            faults.append(f"{row.where}: no field {min(missing)!r}; there are {there}")
        elif row.label not in entry.answers:
            unmapped.setdefault(row.label, row)
        else:
            inputs = {name: row.inputs[column] for column, name in entry.fields.items()}
            answer = entry.answers[row.label]
            key = f"{task.name}/{stable_hash(*inputs.values(), answer):016x}"
            found[key] = Instance(key, inputs, task.answers.index(answer))
    faults += [
        f"{row.where}: label {label!r} is none of {', '.join(map(repr, entry.answers))}"
        for label, row in unmapped.items()
    ]
    return list(found.values()), faults


def _balanced(instances: Iterable[Instance], seed: int) -> list[Instance]:
    """In an order drawn by seed, whose every beginning has the labels in the shares that they have
    in all. A row's place in its file plays no part."""
    by_label: dict[int, list[Instance]] = {}
    for instance in sorted(instances, key=lambda one: (stable_hash(seed, one.key), one.key)):
        by_label.setdefault(instance.label, []).append(instance)
    places = [
        ((rank + 0.5) / len(alike), label, instance)
        for label, alike in by_label.items()
        for rank, instance in enumerate(alike)
    ]
    return [instance for *_, instance in sorted(places, key=lambda place: place[:2])]
