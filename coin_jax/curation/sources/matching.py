"""Reads the fields out of prompts again, given the templates that made them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from coin_jax.data.templates import (
    ANSWER,
    OPTIONS,
    Template,
    TemplatePair,
    asking_templates,
    parse_template,
)

UNKNOWN = "match none of the templates"
TURNED = "ask for something else than the answer"
AMBIGUOUS = "can be read in more than one way"
"""Why a prompt has no reading, as it is said of several."""

# A field begins and ends with what is no blank, so that the blanks around it are the template's.
_SHORTEST, _LONGEST = r"\s*(?P<{}>\S(?:.*?\S)??)\s*", r"\s*(?P<{}>\S(?:.*\S)?)\s*"
_RUNS = re.compile(r"\s+|\S+")
_LIST = r"\s*(?P<options_>OPTIONS:(?:\s*\n- [^\n]*)+)\s*"


class Reading(NamedTuple):
    """What a prompt says beside its wording."""

    inputs: dict[str, str]
    """By field."""
    options: tuple[str, ...]
    """Of its list of options, in order; empty where it has none."""


class PromptReader:
    """Finds the template of a prompt and what stood in its place holders.

    The template with the most text of its own is taken of those that match. Where the texts of the
    fields hold words of the template, so that they could be parted in several ways, nothing is
    guessed. Runs of blanks count as one, with or without a line's
    end, and those around a prompt do not count.

    Args:
      entries: of one task; those whose target is not the answer are known too, and not read.
      name: of the wordings, as name/number.

    Raises: DataError for a template that is none.
    """

    def __init__(self, entries: Sequence[TemplatePair], name: str):
        texts = [text for entry in entries for text in (entry.input, entry.target)]
        fields = {field for text in texts for field in parse_template(text, name).placeholders} - {
            OPTIONS,
            ANSWER,
        }
        self.wordings, self.left_out = asking_templates(entries, sorted(fields), name)
        asking = {wording.source for wording in self.wordings}
        turned = [
            parse_template(entry.input, name) for entry in entries if entry.input not in asking
        ]
        shapes = [_Shape(wording, True) for wording in self.wordings]
        shapes += [_Shape(template, False) for template in turned]
        self._shapes = sorted(shapes, key=lambda shape: -shape.own_text)

    def read(self, prompt: str) -> Reading | str:
        """The fields of a prompt, or UNKNOWN, TURNED or AMBIGUOUS."""
        text = prompt.strip()
        for shape in self._shapes:
            reading = shape.read(text)
            if reading is not None:
                return reading
        return UNKNOWN


class _Shape:
    """A template as the pattern of its prompts."""

    def __init__(self, template: Template, asks: bool):
        self._asks = asks
        words = [literal.split() for literal, _ in template.parts]
        self.own_text = sum(map(len, (word for literal in words for word in literal)))
        self._words = sorted({word for literal in words for word in literal}, key=len)[-3:]
        self._shortest, self._longest = (
            re.compile(_pattern(template, field), re.DOTALL) for field in (_SHORTEST, _LONGEST)
        )

    def read(self, text: str) -> Reading | str | None:
        if not all(word in text for word in self._words):  # cheaper than the pattern
            return None
        match = self._shortest.fullmatch(text)
        if not match:
            return None
        if not self._asks:
            return TURNED
        if self._longest.fullmatch(text).groupdict() != match.groupdict():
            return AMBIGUOUS
        inputs = match.groupdict()
        options = inputs.pop(OPTIONS, "")
        return Reading(inputs, tuple(re.findall(r"\n- ([^\n]*)", options)))


def _blanks(run: str) -> str:
    return r"\s*\n\s*" if "\n" in run else r"[^\S\n]+"


def _pattern(template: Template, field: str) -> str:
    parts, seen = [], set()
    last = len(template.parts) - 1
    for number, (literal, name) in enumerate(template.parts):
        if number == 0:
            literal = literal.lstrip()
        if number == last and not name:
            literal = literal.rstrip()
        parts += [
            _blanks(run) if run.isspace() else re.escape(run) for run in _RUNS.findall(literal)
        ]
        if name in seen:
            parts.append(rf"\s*(?P={name})\s*")
        elif name:
            parts.append(_LIST if name == OPTIONS else field.format(name))
        seen.add(name)
    return "".join(parts)
