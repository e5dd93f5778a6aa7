"""Super-NaturalInstructions (Wang et al. 2022): a task a file, with a definition and examples.

A file tasks/NAME.json of github.com/allenai/natural-instructions is one object: `Definition` (a
text, in newer files a list of them), `Positive Examples` and `Negative Examples` [{"input",
"output", "explanation"}], `Instances` [{"id", "input", "output": [texts]}], `Input_language`,
`Output_language`, `Categories` and more; newer files have `Instance License`.
"""

from __future__ import annotations

import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from coin_jax.curation.config import SourceConfig
from coin_jax.curation.source import Instance
from coin_jax.curation.sources.files import resolve_files
from coin_jax.curation.sources.selection import Answers, drawn, full_name
from coin_jax.data.draws import draw_order
from coin_jax.data.set_format import InstructionTask, Wording
from coin_jax.data.sources import DataError, checked_text
from coin_jax.untrusted import (
    LARGEST_JSON,
    UntrustedError,
    check_values,
    parse_json,
    read_json,
    unpack,
)

SUFFIXES = (".json", ".json.gz")
EXAMPLES = 2
"""Of a kind in a wording that shows examples, as Wang et al. train."""
DRAWS = 3
"""Wordings with the definition and positive examples: their first two, and two draws of others."""


class NaturalInstructions:
    """Instances of task files, in the wordings in which Wang et al. 2022 encode them.

    An instance is asked with the definition; with positive examples; with both, whose examples are
    the first ones or drawn by seed and task; and with both and negative examples or explanations.
    The layout is that of the reference code, less its stray blanks and the full stops it adds. The
    first output is the target. Of config.tasks only the names count.

    One file is in memory at a time, so instances are read fast in the order of their numbers.

    Raises: DataError where no file is a task file, or a task that config.tasks names has none.
    """

    def __init__(self, config: SourceConfig, seed: int):
        field = "files of the source of kind 'natural_instructions'"
        wanted = {task.name for task in config.tasks}
        self.tasks: dict[str, InstructionTask] = {}
        self._files: list[_File] = []
        self._open: tuple[pathlib.Path | None, Sequence[Any]] = (None, ())
        faults, foreign = [], 0
        for path in resolve_files(config.files, field, SUFFIXES):
            name = path.name.removesuffix(".gz").removesuffix(".json")
            if wanted and name not in wanted:
                continue
            try:
                content = _read(path)
                task = _task(content, full_name(config, name), config, seed)
            except DataError as error:
                faults.append(error)
                continue
            if task.name in self.tasks:
                raise DataError(f"{path}: there is another file of task {name!r}")
            languages = {*_listed(content, "Input_language"), *_listed(content, "Output_language")}
            foreign += bool(languages - {"English"})
            self.tasks[task.name] = task
            count = len(content["Instances"])
            self._files.append(
                _File(path, task.name, drawn(count, config.rows_per_task, seed, task.name))
            )
        missing = wanted - {path.task.removeprefix(full_name(config, "")) for path in self._files}
        if missing or not self._files:
            what = f"no file of task {min(missing)!r}" if missing else "no task file"
            raise DataError("; ".join([f"{field}: {what}", *map(str, faults[:1])]))
        self._ends = np.cumsum([len(file.instances) for file in self._files])
        self.notes = (
            f"{len(self._files)} tasks with {len(self)} instances, {foreign} of the tasks in other "
            "languages than English",
            *([f"{len(faults)} files left out, the first: {faults[0]}"] if faults else []),
        )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def task_of(self, index: int) -> str:
        return self._files[self._file_of(index)].task

    def instance(self, index: int) -> Instance | DataError:
        number = self._file_of(index)
        file = self._files[number]
        place = int(file.instances[index - self._ends[number]])  # from the end: negative
        opened, entries = self._open
        if opened != file.path:
            entries = _read(file.path)["Instances"]
            self._open = file.path, entries
        entry = entries[place]
        where = f"{file.path}, instance {place + 1}"
        if not isinstance(entry, dict):
            return DataError(f"{where}: must be a JSON object, and is {entry!r:.80}")
        where += f" ({entry['id']!s:.80})" if "id" in entry else ""
        try:
            text = checked_text(where, "input", entry.get("input")).strip()
            return Instance(file.task, {"input": text}, _target(where, entry), where)
        except DataError as error:
            return error

    def _file_of(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, "right"))


class _File(NamedTuple):
    path: pathlib.Path
    task: str
    instances: np.ndarray
    """Numbers of those that are used [n] int64."""


def _read(path: pathlib.Path) -> dict[str, Any]:
    """Raises: DataError for a file that is no task file."""
    try:
        if path.suffix == ".gz":
            with unpack(path) as stream:
                text = stream.read(LARGEST_JSON)
            check_values(text)
            content = parse_json(text)
        else:
            content = read_json(path)
    except (OSError, EOFError, zlib.error, UntrustedError) as error:
        raise DataError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: a task file is a JSON object")
    if not _listed(content, "Definition"):
        raise DataError(f"{path}: no `Definition`")
    if not isinstance(content.get("Instances"), list) or not content["Instances"]:
        raise DataError(f"{path}: `Instances` must be a list of them")
    return content


def _target(where: str, entry: Mapping[str, Any]) -> str:
    outputs = entry.get("output")
    if not isinstance(outputs, list) or not outputs:
        raise DataError(f"{where}: `output` must be a list of texts, and is {outputs!r:.80}")
    return checked_text(where, "output", outputs[0]).strip()


def _task(
    content: Mapping[str, Any], name: str, config: SourceConfig, seed: int
) -> InstructionTask:
    answers = Answers()
    for entry in content["Instances"]:
        try:
            answers.add(_target("", entry))
        except (DataError, AttributeError):
            continue  # told when the instance is read
    wordings = {}
    for wording in _wordings(content, name, seed):
        if len(wording.template) <= config.longest_wording:
            wordings.setdefault(wording.template, wording)
    if not wordings:
        raise DataError(
            f"task {name!r}: its definition alone is longer than the {config.longest_wording} "
            "characters of longest_wording"
        )
    licence = ", ".join(_listed(content, "Instance License")) or config.licence
    return InstructionTask(name, ("input",), tuple(wordings.values()), answers.closed(), licence)


def _wordings(content: Mapping[str, Any], name: str, seed: int) -> Iterator[Wording]:
    heads = [f"Definition: {_literal(text)}\n\n" for text in _listed(content, "Definition")]
    positive, negative = (_examples(content, kind) for kind in ("Positive", "Negative"))
    ask = "Now complete the following example -\nInput: {input}\nOutput:"
    for number, head in enumerate(heads, start=1):
        yield Wording("definition" if number == 1 else f"definition/{number}", head + ask)
    if not positive:
        return
    head = heads[0]
    first = _shown("Positive", positive[:EXAMPLES])
    yield Wording("positive", first + ask)
    yield Wording("definition+positive", head + first + ask)
    for draw in range(2, DRAWS + 1):
        order = draw_order(len(positive), seed, "examples", name, draw)
        others = _shown("Positive", [positive[number] for number in order[:EXAMPLES]])
        yield Wording(f"definition+positive/{draw}", head + others + ask)
    if negative:
        shown = first + _shown("Negative", negative[:EXAMPLES])
        yield Wording("definition+positive+negative", head + shown + ask)
    explained = _shown("Positive", positive[:EXAMPLES], explain=True)
    yield Wording("definition+positive+explanation", head + explained + ask)


def _examples(content: Mapping[str, Any], kind: str) -> list[Mapping[str, str]]:
    """Those that are there: some files write a dash where they have none."""
    return [
        example
        for example in content.get(f"{kind} Examples") or ()
        if isinstance(example, dict)
        and _said(example.get("input"))
        and _said(example.get("output"))
    ]


def _shown(kind: str, examples: Sequence[Mapping[str, str]], explain: bool = False) -> str:
    lines = []
    for number, example in enumerate(examples, start=1):
        lines.append(f"{kind} Example {number} -\nInput: {_literal(example['input'])}\n")
        lines.append(f"Output: {_literal(example['output'])}\n")
        if explain and _said(example.get("explanation")):
            lines.append(f"Explanation: {_literal(example['explanation'])}\n")
        lines.append("\n")
    return "".join(lines)


def _listed(content: Mapping[str, Any], name: str) -> list[str]:
    """The texts of a field that is a text or a list of texts."""
    value = content.get(name)
    return [text for text in (value if isinstance(value, list) else [value]) if _said(text)]


def _said(text: object) -> bool:
    return isinstance(text, str) and text.strip() not in ("", "-")


def _literal(text: str) -> str:
    """Text for a template, its braces no placeholders."""
    return text.strip().replace("{", "{{").replace("}", "}}")
