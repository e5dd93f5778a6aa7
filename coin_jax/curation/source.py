"""What a collection of instructions is, whatever it was read from.

An instance has named input texts and an answer; a wording is a template over those names
(`coin_jax.data.set_format`). Rows of one instance under four templates, where only the finished
prompts are known, are one instance with four inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from coin_jax.data.set_format import InstructionTask
from coin_jax.data.sources import DataError


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

    tasks: Mapping[str, InstructionTask]
    """By name. What they say is final once the source is made."""
    notes: tuple[str, ...]
    """What was read and left out, in sentences for the log."""

    def __len__(self) -> int:
        """Instances, unreadable ones included."""

    def task_of(self, index: int) -> str:
        """The task of an instance, cheaper than the instance; empty where it cannot be told."""

    def instance(self, index: int) -> Instance | DataError:
        """The instance, or what is wrong with it, with its place."""
