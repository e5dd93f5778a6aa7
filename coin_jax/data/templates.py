"""Instruction templates: the wordings in which the instances of a task are asked.

A template is text with placeholders in single braces: the fields of the task's rows, `{options_}`
for the list of answers as FLAN prints it (Wei et al. 2021, appendix G), and `{answer}`. Two
templates of one task are two wordings of the same instruction.
"""

from __future__ import annotations

import dataclasses
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from coin_jax.data.draws import draw_order
from coin_jax.data.sources import DataError
from coin_jax.untrusted import UntrustedError, is_name, read_json, shown, steers_terminal

OPTIONS = "options_"
ANSWER = "answer"


class Piece(NamedTuple):
    text: str
    is_field: bool
    """Whether it comes from a row's input, which truncation may shorten; instructions and options
    stay whole."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One instance in one wording, and the answer a model should give."""

    pieces: tuple[Piece, ...]
    answer: str

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


@dataclasses.dataclass(frozen=True)
class Template:
    """One wording, parsed: literal texts, each followed by a placeholder (or none, at the end)."""

    name: str
    source: str
    """The text as written, which tells duplicates."""
    parts: tuple[tuple[str, str], ...]

    @property
    def placeholders(self) -> frozenset[str]:
        return frozenset(name for _, name in self.parts if name)

    def render(self, inputs: Mapping[str, str], options: str, answer: str) -> Prompt:
        """Fills the placeholders; braces inside the values are text like any other."""
        pieces = []
        for literal, name in self.parts:
            if literal:
                pieces.append(Piece(literal, False))
            if name == OPTIONS:
                pieces.append(Piece(options, False))
            elif name:
                pieces.append(Piece(inputs[name], True))
        return Prompt(tuple(pieces), answer)


def render_options(answers: Sequence[str]) -> str:
    """FLAN's list of answers: `OPTIONS:`, then one `- answer` a line."""
    return "\n- ".join(("OPTIONS:", *answers))


def parse_template(text: str, name: str, where: str = "") -> Template:
    """Reads a template; `{{` and `}}` stand for literal braces.

    Raises: DataError, with `where`, for braces that do not match and for anything but a plain name
    between them.
    """
    where = where or name
    parts = []
    try:
        for literal, placeholder, specification, conversion in string.Formatter().parse(text):
            if placeholder is not None and (
                not placeholder.isidentifier() or specification or conversion
            ):
                raise ValueError(
                    f"a placeholder is a plain name, not {{{shown(placeholder)[1:-1]}}}"
                )
            parts.append((literal, placeholder or ""))
    except ValueError as error:
        raise DataError(f"{where}: {error}: {shown(text)}") from None
    return Template(name, text, tuple(parts))


class TemplatePair(NamedTuple):
    """A template as its file has it: an input, a target, and the place to name in errors."""

    input: str
    target: str
    where: str


def read_templates(files: Sequence[str | pathlib.Path]) -> dict[str, list[TemplatePair]]:
    """Reads JSON files {task: [{"input", "target"}]}; a later file replaces an earlier one's task.

    Raises: DataError naming the file, the task and the template's number, counted from 1.
    """
    templates = {}
    for file in files:
        try:
            content = read_json(file)
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from None
        except UntrustedError as error:
            raise DataError(f"{file}: {error}") from None
        if not isinstance(content, dict):
            raise DataError(f'{file}: expected {{task: [{{"input", "target"}}]}}')
        for task, entries in content.items():
            if not is_name(task):
                raise DataError(f"{file}: {shown(task)} is no name of a task")
            if not isinstance(entries, list):
                raise DataError(f"{file}: task {task!r}: expected a list of templates")
            templates[task] = [
                _read_entry(entry, f"{file}: task {task!r}, template {number}")
                for number, entry in enumerate(entries, start=1)
            ]
    return templates


def _read_entry(entry: object, where: str) -> TemplatePair:
    texts = (entry.get("input"), entry.get("target")) if isinstance(entry, dict) else (None, None)
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{where}: expected non-empty texts `input` and `target`")
    if any(map(steers_terminal, texts)):
        raise DataError(f"{where}: a control character that no instruction needs")
    return TemplatePair(*texts, where)


def asking_templates(
    entries: Sequence[TemplatePair], fields: Sequence[str], name: str
) -> tuple[list[Template], int]:
    """The distinct wordings that ask for the answer, and how many entries ask something else.

    FLAN also holds templates that turn the task round ("Write a {answer} movie review."): their
    target is not the answer, so they are left out. Entries with the same input are one wording.

    Raises: DataError for a placeholder that is neither a field, `options_` nor `answer`.
    """
    wordings: dict[str, Template] = {}
    left_out = 0
    for number, entry in enumerate(entries, start=1):
        template = parse_template(entry.input, f"{name}/{number}", entry.where)
        target = parse_template(entry.target, name, entry.where)
        unknown = (template.placeholders | target.placeholders) - {*fields, OPTIONS, ANSWER}
        if unknown:
            raise DataError(
                f"{entry.where}: unknown placeholder {{{min(unknown)}}}; the fields are "
                f"{', '.join(sorted(fields))}, besides {OPTIONS} and {ANSWER}"
            )
        asks = entry.target.strip() == f"{{{ANSWER}}}" and ANSWER not in template.placeholders
        if asks and template.placeholders - {OPTIONS}:
            wordings.setdefault(entry.input, template)
        else:
            left_out += 1
    return list(wordings.values()), left_out


def split_wordings(
    wordings: Sequence[Template], held_out: int, seed: int, name: str
) -> tuple[tuple[Template, ...], tuple[Template, ...]]:
    """(training wordings, wordings kept for evaluation), chosen by seed and `name` alone.

    `name` is that of the template list, so tasks that share one hold out the same wordings.

    Raises: DataError where fewer than two would be left to train on.
    """
    if len(wordings) - held_out < 2:
        raise DataError(
            f"templates {name!r}: {len(wordings)} different wordings ask for the answer and "
            f"data.held_out_wordings keeps {held_out} of them; training needs at least 2"
        )
    order = draw_order(len(wordings), seed, "held-out wordings", name)
    kept = set(order[:held_out])
    return (
        tuple(wording for number, wording in enumerate(wordings) if number not in kept),
        tuple(wording for number, wording in enumerate(wordings) if number in kept),
    )
