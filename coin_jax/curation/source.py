"""What a collection of instructions is, whatever it was read from.

An instance has named input texts and an answer. A wording is a template over those names, so that
every wording of a task whose placeholders an instance has can ask it. Where only finished prompts
are known, each one is an input of its own and its wording nothing but that placeholder
(`Wording.is_finished`): rows of one instance under four templates are one instance with four
inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

from coin_jax.data.sources import DataError
from coin_jax.data.templates import OPTIONS, parse_template

Origin = Literal["source", "template", "rule", "model", "chat"]
"""Who wrote a wording: the collection itself, a template file, or a paraphraser."""


@dataclasses.dataclass(frozen=True)
class Wording:
    """One way to ask for a task's answer."""

    name: str
    """Unique in its task, as `flan/3`."""
    template: str
    """Text with placeholders in single braces, `{options_}` among them."""
    origin: Origin = "source"
    of: str = ""
    """The wording that it rewords, for paraphrases."""
    held_out: bool = False
    """Kept from training, to measure on."""

    @property
    def placeholders(self) -> frozenset[str]:
        return parse_template(self.template, self.name).placeholders - {OPTIONS}

    @property
    def is_finished(self) -> bool:
        """Whether it is a whole finished prompt, with the instance's text inside."""
        template = parse_template(self.template, self.name)
        return len(template.parts) == 1 and not template.parts[0][0] and bool(template.placeholders)


@dataclasses.dataclass(frozen=True)
class SourceTask:
    """What is known of one task of a collection."""

    name: str
    fields: tuple[str, ...]
    """Names of the inputs that its instances may have."""
    wordings: tuple[Wording, ...]
    answers: tuple[str, ...] = ()
    """The closed set of answers, in the order in which options are listed; empty: free answers."""
    licence: str = ""
    """Of its data, as far as its source says."""


class Instance(NamedTuple):
    """One instance of a task."""

    task: str
    inputs: Mapping[str, str]
    """By field; an instance need not have every field of its task."""
    target: str
    """The answer, as a model should write it."""
    where: str
    """File and line, or what else leads a person to it."""


class Source(Protocol):
    """A collection: random access, so that nothing but the instance at hand is in memory."""

    tasks: Mapping[str, SourceTask]
    """By name. What they say is final once the source is made."""
    notes: tuple[str, ...]
    """What was read and left out, in sentences for the log."""

    def __len__(self) -> int:
        """Instances, unreadable ones included."""

    def task_of(self, index: int) -> str:
        """The task of an instance, cheaper than the instance; empty where it cannot be told."""

    def instance(self, index: int) -> Instance | DataError:
        """The instance, or what is wrong with it, with its place."""
