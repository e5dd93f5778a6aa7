"""Asks a model every question of a suite: each instance in each wording, scored and generated.

What is answered is kept at once, so that an interrupted evaluation goes on where it stopped and a
repeated one asks nothing again.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from coin_jax.data.draws import stable_hash
from coin_jax.data.sources import DataError
from coin_jax.robustness.answers import match
from coin_jax.robustness.attack import attack
from coin_jax.robustness.perturb import PerturbationError, perturb
from coin_jax.robustness.scoring import AnswerScorer
from coin_jax.robustness.store import Answered, PredictionStore
from coin_jax.robustness.suite import (
    AttackRequest,
    PerturbationRequest,
    Suite,
    SuiteTask,
    Wording,
    make_wording,
    prompt,
)
from coin_jax.untrusted import is_whole, steers_terminal

Scoring = Literal["likelihood", "generation"]

QUESTIONS_AT_ONCE = 2048
"""Asked in one call of the model, and kept when it returns."""


class Cell(NamedTuple):
    """One wording of a task under one way of scoring."""

    task: str
    condition: str
    index: int
    scoring: Scoring


Answers = dict[Cell, Answered]
"""All that one model said to a suite."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How models are asked."""

    scorings: tuple[Scoring, ...] = ("likelihood",)
    length_normalized: bool = False
    """Compare answers by mean instead of summed log-likelihood of their tokens."""
    max_new_tokens: int = 16
    """Of a generated answer, the end-of-sequence token included."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A model under test."""

    name: str
    scorer: AnswerScorer
    identity: str
    """Tells its parameters and tokenizer from all others; predictions are kept under it."""


def ask(
    contestant: Contestant,
    suite: Suite,
    settings: Settings,
    store: PredictionStore | None = None,
    advance: Callable[[int], None] = lambda questions: None,
) -> Answers:
    """Every wording of the suite, from the store where it is known.

    `advance` is told how many questions have been settled.
    Raises ValueError where a score is NaN, naming the question.
    """
    answers: Answers = {}
    for task, scoring in itertools.product(suite.tasks, settings.scorings):
        unknown: list[tuple[Wording, str]] = []
        for wording in suite.wordings:
            if wording.task != task.name:
                continue
            key = _key(contestant, task, wording, scoring, settings)
            known = store.read(key, len(task.instances), len(task.answers)) if store else None
            if known is None:
                unknown.append((wording, key))
            else:
                answers[Cell(task.name, wording.condition, wording.index, scoring)] = known
                advance(len(task.instances))
        for part in _parts(unknown, max(1, QUESTIONS_AT_ONCE // len(task.instances))):
            wordings = [wording for wording, _ in part]
            asked = _ask(contestant.scorer, task, wordings, scoring, settings)
            for (wording, key), answered in zip(part, asked, strict=True):
                if store:
                    store.write(key, answered)
                answers[Cell(task.name, wording.condition, wording.index, scoring)] = answered
                advance(len(task.instances))
    return answers


def expand(suite: Suite, lexicon: Callable[[str], Any] = lambda method: None) -> Suite:
    """The suite with the conditions that it declares as perturbations of others.

    lexicon: method -> what proposes its words, None where it needs none; raises PerturbationError
    where there is none to be had. Raises DataError for a perturbation that cannot be made, unless
    it is optional: then a note says so.
    """
    made: list[Wording] = []
    notes = list(suite.notes)
    for request in suite.perturbations:
        try:
            words = lexicon(request.method)
        except PerturbationError as error:
            if not request.optional:
                raise DataError(f"{suite.path}: condition {request.condition!r}: {error}") from None
            notes.append(f"condition {request.condition!r} is left out: {error}")
            continue
        for task in suite.tasks:
            made += _perturbed(suite, task, request, words)
    return dataclasses.replace(suite.with_wordings(made), notes=tuple(notes))


def _perturbed(
    suite: Suite, task: SuiteTask, request: PerturbationRequest, lexicon: Any
) -> Iterator[Wording]:
    count = itertools.count()
    for wording in suite.wordings_of(task.name, request.of):
        texts = set()
        for copy in range(request.copies):
            seed = stable_hash(suite.seed, request.condition, task.name, wording.text, copy)
            text = perturb(
                wording.text,
                request.method,
                frozen=(*task.answers, *task.frozen_words),
                random=np.random.default_rng(seed),
                lexicon=lexicon,
                **request.settings,
            )
            if text not in texts and text != wording.text:
                texts.add(text)
                yield make_wording(task, request.condition, next(count), text, wording.index)


def run_attacks(
    contestant: Contestant,
    suite: Suite,
    settings: Settings,
    store: PredictionStore,
    lexicon: Callable[[str], Any] = lambda method: None,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Suite, list[dict[str, Any]]]:
    """Carries out the attacks that the suite declares: the suite with the prompts that they found,
    and how each went: task, condition, index, text, origin, clean_accuracy, accuracy, queries.

    They search on instances that are not among the reported ones where the task has others.
    """
    made: list[Wording] = []
    records: list[dict[str, Any]] = []
    notes = list(suite.notes)
    for request in suite.attacks:
        try:
            words = lexicon(request.method)
        except PerturbationError as error:
            notes.append(f"attack {request.condition!r} is left out: {error}")
            continue
        for task in suite.tasks:
            for wording in suite.wordings_of(task.name, request.of):
                record = _attacked(
                    contestant, suite, task, wording, request, settings, store, words
                )
                made.append(
                    make_wording(
                        task, request.condition, wording.index, record["text"], wording.index
                    )
                )
                records.append(
                    {"task": task.name, "condition": request.condition, "index": wording.index}
                    | {"origin": wording.index}
                    | record
                )
                advance()
    return dataclasses.replace(suite.with_wordings(made), notes=tuple(notes)), records


def _attacked(
    contestant: Contestant,
    suite: Suite,
    task: SuiteTask,
    wording: Wording,
    request: AttackRequest,
    settings: Settings,
    store: PredictionStore,
    lexicon: Any,
) -> dict[str, Any]:
    instances = (task.attack_instances or task.instances)[: request.instances]
    key = store.key(
        model=contestant.identity,
        attack=[
            request.method,
            request.budget,
            request.settings,
            suite.seed,
            settings.length_normalized,
        ],
        task=[task.answers, task.frozen_words, [instance.key for instance in instances]],
        wording=wording.text,
    )
    record = store.read_record(key)
    if record is None or not is_end(record):
        found = attack(
            contestant.scorer,
            task,
            wording,
            instances,
            request.method,
            budget=request.budget,
            seed=suite.seed,
            lexicon=lexicon,
            condition=request.condition,
            length_normalized=settings.length_normalized,
            **request.settings,
        )
        record = {
            "text": found.wording.text,
            "clean_accuracy": found.clean_accuracy,
            "accuracy": found.accuracy,
            "queries": found.queries,
        }
        store.write_record(key, record)
    return record


def is_end(record: Mapping[str, Any]) -> bool:
    """Whether a stored record is how an attack ended."""
    match record:
        case {"text": str(text), "clean_accuracy": clean, "accuracy": accuracy, "queries": int()}:
            shares = (
                isinstance(share, int | float) and 0 <= share <= 1 for share in (clean, accuracy)
            )
            is_sound = is_whole(text) and not steers_terminal(text)
            return len(record) == 4 and all(shares) and is_sound
    return False


def _ask(
    scorer: AnswerScorer,
    task: SuiteTask,
    wordings: Sequence[Wording],
    scoring: Scoring,
    settings: Settings,
) -> Iterator[Answered]:
    prompts = [
        prompt(task, wording, instance) for wording in wordings for instance in task.instances
    ]
    size = len(task.instances)
    if scoring == "generation":
        texts = scorer.generate(prompts, max_new_tokens=settings.max_new_tokens)
        found = np.array([match(text, task.answers) for text in texts], np.int32)
        for begin in range(0, len(texts), size):
            said = np.array(texts[begin : begin + size], np.str_)
            yield Answered(found[begin : begin + size], texts=said)
        return
    scores = np.asarray(
        scorer.score(prompts, list(task.answers), length_normalized=settings.length_normalized),
        np.float32,
    )
    if np.isnan(scores).any():
        number = int(np.argwhere(np.isnan(scores))[0, 0])
        raise ValueError(
            f"the model gives NaN for task {task.name!r}, prompt {wordings[number // size].name}, "
            f"instance {task.instances[number % size].key}: its parameters may have diverged"
        )
    for begin in range(0, len(scores), size):
        part = scores[begin : begin + size]
        yield Answered(part.argmax(axis=1).astype(np.int32), part)


def _key(
    contestant: Contestant, task: SuiteTask, wording: Wording, scoring: Scoring, settings: Settings
) -> str:
    how = settings.length_normalized if scoring == "likelihood" else settings.max_new_tokens
    return PredictionStore.key(
        model=contestant.identity,
        scoring=[scoring, how],
        answers=task.answers,
        wording=[
            [piece.text, piece.is_field]
            for piece in prompt(task, wording, task.instances[0]).pieces
        ],
        instances=[instance.key for instance in task.instances],
    )


def _parts(sequence: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for begin in range(0, len(sequence), size):
        yield sequence[begin : begin + size]
