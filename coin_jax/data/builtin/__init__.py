"""Data the project makes itself, so that the quickstart needs no download."""

from __future__ import annotations

import numpy as np

from coin_jax.data.builtin import grammar
from coin_jax.data.builtin.wordings import WORDINGS
from coin_jax.data.pairs import Instances, Task
from coin_jax.data.templates import parse_template

ANSWERS = {
    "person": grammar.PERSONS,
    "feeling": tuple(grammar.FEELINGS),
    "time": tuple(grammar.TIMES),
    "place": tuple(grammar.PLACES),
    "count": grammar.COUNTS,
    "colour": grammar.COLOURS,
    "kind": tuple(grammar.KINDS),
    "tense": grammar.TENSES,
}
EVALUATION_SENTENCES = 512


def builtin_tasks(rows: int, seed: int) -> list[Task]:
    """Eight tasks of about `rows` training instances together: every sentence is asked all eight.

    Training and evaluation sentences are disjoint, and the same for the same seed.
    """
    sentences = max(2, -(-rows // len(ANSWERS)))
    training = list(grammar.scenes(sentences, seed, held_out=False))
    evaluation = list(grammar.scenes(EVALUATION_SENTENCES, seed, held_out=True))
    return [
        Task(
            name=name,
            answers=answers,
            training_wordings=tuple(
                parse_template(text, f"{name}/training {number}")
                for number, text in enumerate(WORDINGS[name].training, start=1)
            ),
            held_out_wordings=tuple(
                parse_template(text, f"{name}/held out {number}")
                for number, text in enumerate(WORDINGS[name].held_out, start=1)
            ),
            training=_instances(training, name, answers),
            evaluation=_instances(evaluation, name, answers),
        )
        for name, answers in ANSWERS.items()
    ]


def builtin_training_wordings() -> list[str]:
    """All templates that the built-in tasks are trained on."""
    return [text for wordings in WORDINGS.values() for text in wordings.training]


def _instances(scenes: list[grammar.Scene], name: str, answers: tuple[str, ...]) -> Instances:
    return Instances(
        [{"sentence": scene["sentence"]} for scene in scenes],
        np.array([answers.index(scene[name]) for scene in scenes], np.int32),
    )
