"""Suite files and rows of GLUE's published form, for the tests of suites."""

import pathlib
import sys
import types
from collections.abc import Callable

import pytest
from data_files import write_json, write_jsonl

from coin_jax.data.sources import DataError
from coin_jax.robustness.suite import Suite, load_suite

ROOT = pathlib.Path(__file__).parents[1]
GLUE = ("sst2", "cola", "qqp", "mrpc", "mnli", "qnli", "rte", "wnli")
FIELDS = {
    "sst2": ["sentence"],
    "cola": ["sentence"],
    "qqp": ["question1", "question2"],
    "mnli": ["premise", "hypothesis"],
    "qnli": ["question", "sentence"],
} | {task: ["sentence1", "sentence2"] for task in ("mrpc", "rte", "wnli")}
LABELS = {
    "sst2": ["negative", "positive"],
    "cola": ["unacceptable", "acceptable"],
    "qqp": ["not_duplicate", "duplicate"],
    "mrpc": ["not_equivalent", "equivalent"],
    "mnli": ["entailment", "neutral", "contradiction"],
    "qnli": ["entailment", "not_entailment"],
    "rte": ["entailment", "not_entailment"],
    "wnli": ["not_entailment", "entailment"],
}
"""As published, in the order of the class numbers."""


def rows(task: str, count: int = 6) -> list[dict]:
    return [
        {
            "task": task,
            "inputs": {field: f"{field} {number}" for field in FIELDS[task]},
            "label": LABELS[task][number % len(LABELS[task])],
        }
        for number in range(count)
    ]


def entry(**changes) -> dict:
    """A sound task of a suite file."""
    data, answers = "sst2.dev.jsonl", {"negative": "bad", "positive": "good"}
    return {"data": data, "fields": ["sentence"], "answers": answers} | changes


def file(**changes) -> dict:
    """A sound suite file."""
    return {"tasks": {"sst2": entry()}, "prompts": {"plain": {"sst2": ["How is this? "]}}} | changes


def loader(folder: pathlib.Path) -> Callable[..., Suite]:
    """Loads a suite's content from mine.json, beside TASK.dev.jsonl of all GLUE tasks."""
    for task in GLUE:
        write_jsonl(folder / f"{task}.dev.jsonl", rows(task))
    return lambda content, **settings: load_suite(
        write_json(folder / "mine.json", content), **settings
    )


def refused(load, content, *parts):
    """The file's path and each of these parts stand in the error; returns its lines."""
    with pytest.raises(DataError) as caught:
        load(content)
    lines = str(caught.value).splitlines()
    for part in parts:
        assert any("mine.json: " in line and part in line for line in lines), lines
    return lines


def unreachable(monkeypatch) -> list[str]:
    """Neither the hub nor TFDS can be reached; returns what is asked of them."""
    asked = []

    def fail(name, *arguments, **settings):
        asked.append(name)
        raise ConnectionError("no network\nand a long story")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=fail))
    tfds = types.SimpleNamespace(load=fail, builder=fail)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", tfds)
    return asked
