"""More wordings by paraphrasers: of a task's templates, or of what each instance has of its own.

A template is reworded once, for all instances of its task. Where an instance has an instruction of
its own (`InstructionTask.own_instruction`), or nothing but finished prompts are known, that is
reworded instance by instance, and the rewordings are inputs of the instance.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from coin_jax.curation.config import SetConfig
from coin_jax.curation.filters import Candidate, Encode, wording_faults
from coin_jax.curation.paraphrasers import (
    Paraphraser,
    Request,
    has_words,
)
from coin_jax.curation.source import Instance
from coin_jax.data.ready_pairs import shared_fields
from coin_jax.data.set_format import InstructionTask, Wording
from coin_jax.progress import Progress, progress_bar


class Rewording:
    """Asks the paraphrasers, filters what they say, and counts.

    Args:
      similarity: texts -> unit vectors, for FilterConfig.least_similarity.
    """

    def __init__(
        self,
        config: SetConfig,
        paraphrasers: Sequence[Paraphraser],
        similarity: Encode | None,
        console: Console,
    ):
        self._settings, self._most = config.filters, config.paraphrase.wordings
        self._paraphrasers, self._similarity = paraphrasers, similarity
        self._console = console

    def with_new_wordings(
        self, tasks: Sequence[InstructionTask], faults: Sequence[collections.Counter]
    ) -> list[InstructionTask]:
        """The tasks with rewordings of their training wordings, and with places for those of what
        their instances have of their own. `faults` count, by task, what each filter left out."""
        wordings = [list(task.wordings) for task in tasks]
        asked = [
            (number, wording)
            for number, task in enumerate(tasks)
            if not own_fields(task)
            for wording in task.wordings
            if not wording.held_out and has_words(wording.template)
        ]
        for paraphraser in self._paraphrasers:
            requests = [
                Request(tasks[number].name, wording.name, wording.template, tasks[number].answers)
                for number, wording in asked
            ]
            with progress_bar(self._console, f"Wordings by {paraphraser.name}") as progress:
                rewordings = paraphraser.reword(requests, progress)
            self._say_notes(paraphraser)
            candidates = [
                [
                    Candidate(str(number), wording.template, text, tasks[number].answers)
                    for text in texts
                ]
                for (number, wording), texts in zip(asked, rewordings, strict=True)
            ]
            taken = {
                str(number): [wording.template for wording in known]
                for number, known in enumerate(wordings)
            }
            kept = self._passing(
                paraphraser, candidates, taken, [faults[number] for number, _ in asked]
            )
            for (number, wording), texts in zip(asked, kept, strict=True):
                wordings[number] += (
                    Wording(
                        f"{wording.name}/{paraphraser.name}/{place}",
                        text,
                        paraphraser.origin,
                        wording.name,
                    )
                    for place, text in enumerate(texts, start=1)
                )
        return [
            self._with_places(dataclasses.replace(task, wordings=tuple(known)))
            for task, known in zip(tasks, wordings, strict=True)
        ]

    def with_new_inputs(
        self,
        task: InstructionTask,
        instances: Sequence[Instance],
        faults: collections.Counter,
        progress: Progress,
    ) -> list[Instance]:
        """The instances with rewordings of what each has of its own. `faults` count what each
        filter left out."""
        fields = own_fields(task)
        if not fields or not self._paraphrasers:
            return list(instances)
        originals = [_Own.of(instance, fields) for instance in instances]
        inputs = [dict(instance.inputs) for instance in instances]
        for paraphraser in self._paraphrasers:
            requests = [
                Request(task.name, "", own.text, (*task.answers, *own.content)) for own in originals
            ]
            rewordings = paraphraser.reword(requests, progress)
            self._say_notes(paraphraser)
            candidates = [
                [
                    Candidate(
                        str(number), own.text, text, task.answers, own.content, instance.target
                    )
                    for text in texts
                ]
                for number, (own, instance, texts) in enumerate(
                    zip(originals, instances, rewordings, strict=True)
                )
            ]
            taken = {
                str(number): [
                    _escaped(known[field]) for field in (*fields, *self._places) if field in known
                ]
                for number, known in enumerate(inputs)
            }
            kept = self._passing(paraphraser, candidates, taken, [faults] * len(instances))
            for known, texts in zip(inputs, kept, strict=True):
                known |= zip(self._places_of(paraphraser), map(_unescaped, texts), strict=False)
        return [
            instance._replace(inputs=known)
            for instance, known in zip(instances, inputs, strict=True)
        ]

    def record(self) -> dict[str, Any]:
        """What each paraphraser did, for the manifest."""
        return {
            paraphraser.name: dataclasses.asdict(paraphraser.usage)
            for paraphraser in self._paraphrasers
        }

    def _passing(
        self,
        paraphraser: Paraphraser,
        candidates: Sequence[Sequence[Candidate]],
        taken: dict[str, list[str]],
        faults: Sequence[collections.Counter],
    ) -> list[list[str]]:
        """Of each list the first that pass every filter, as many as the config asks for."""
        settings = self._settings
        if paraphraser.origin == "rule":  # a typing error is meant to be a small change
            settings = dataclasses.replace(settings, least_edit_distance=0.0)
        together = [each for several in candidates for each in several]
        found = iter(wording_faults(together, settings, self._similarity, taken))
        kept = []
        for several, counter in zip(candidates, faults, strict=True):
            passing = []
            for candidate in several:
                fault = next(found)
                if fault is not None:
                    counter[fault.filter] += 1
                elif len(passing) < self._most:
                    passing.append(candidate.text)
            kept.append(passing)
        return kept

    def _with_places(self, task: InstructionTask) -> InstructionTask:
        """The task with an input, and wordings, for every rewording that an instance may get."""
        fields = own_fields(task)
        if not fields or not self._paraphrasers:
            return task
        # The places of a finished prompt stand for whichever of them an instance has.
        reworded = [
            wording
            for wording in task.wordings
            if fields[0] in wording.placeholders and not wording.held_out
        ]
        wordings = [
            Wording(
                f"{wording.name}/{place}",
                wording.template.replace(f"{{{fields[0]}}}", f"{{{place}}}"),
                paraphraser.origin,
                wording.name,
            )
            for paraphraser in self._paraphrasers
            for place in self._places_of(paraphraser)
            for wording in reworded
        ]
        return dataclasses.replace(
            task, fields=(*task.fields, *self._places), wordings=(*task.wordings, *wordings)
        )

    @property
    def _places(self) -> list[str]:
        return [place for each in self._paraphrasers for place in self._places_of(each)]

    def _places_of(self, paraphraser: Paraphraser) -> list[str]:
        """Names of the inputs that hold its rewordings."""
        return [f"reworded_{paraphraser.name}_{place}" for place in range(1, self._most + 1)]

    def _say_notes(self, paraphraser: Paraphraser) -> None:
        for note in paraphraser.notes:
            self._console.print(note, markup=False, highlight=False)
        paraphraser.notes.clear()


@dataclasses.dataclass(frozen=True)
class _Own:
    """What an instance has of its own to reword."""

    text: str
    """As a template, in which braces are doubled."""
    content: tuple[str, ...]
    """Texts in it that are no instruction and stay: what it shares with another finished prompt."""

    @classmethod
    def of(cls, instance: Instance, fields: Sequence[str]) -> _Own:
        texts = [instance.inputs[field] for field in fields if field in instance.inputs]
        if not texts:
            return cls("", ())
        shared = shared_fields(*texts[:2]) if len(texts) > 1 else []
        return cls(_escaped(texts[0]), tuple(texts[0][start:end] for start, end in shared))


def own_fields(task: InstructionTask) -> tuple[str, ...]:
    """The inputs that hold an instance's own instruction, the best to reword first: its
    `own_instruction`, or the finished prompts where the task has no template."""
    if task.own_instruction:
        return (task.own_instruction,)
    if not all(wording.is_finished for wording in task.wordings):
        return ()
    return tuple(min(wording.placeholders) for wording in task.wordings if not wording.held_out)


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _unescaped(template: str) -> str:
    return template.replace("{{", "{").replace("}}", "}")
