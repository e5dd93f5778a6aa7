"""From what models said to what is shown: cells, averages, comparisons, examples of what flipped.

`build` gives plain values, ready for JSON; docs/results.md names every field. Accuracies are
shares in 0..1.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from coin_jax.robustness.evaluation import Answers, Cell, Scoring
from coin_jax.robustness.metrics import cell_metrics, performance_drop_rate
from coin_jax.robustness.significance import compare, compare_average, holm
from coin_jax.robustness.suite import Suite, SuiteTask, Wording

VERSION = 1
ALL = "all"
"""The condition that stands for the wordings of all conditions together."""
AVERAGE = "average"
"""The task that stands for the mean over tasks, every task alike."""

EXAMPLES = 3
"""Flipped instances shown for each of the worst prompts."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What one model said to a suite."""

    name: str
    checkpoint: str
    group: str
    """Runs that differ by their seed alone share one."""
    suite: Suite
    """With the wordings that attacks on this model found."""
    answers: Answers
    answer_tokens: Mapping[str, Sequence[int]] | None = None
    """By task: tokens of each answer, end-of-sequence included."""

    def predictions(self, task: SuiteTask, wordings: Sequence[Wording], scoring: Scoring):
        """int32 [W, I]"""
        return np.stack([self._said(w, scoring).predictions for w in wordings])

    def scores(self, task: SuiteTask, wordings: Sequence[Wording], scoring: Scoring):
        """float32 [W, I, A], or None where answers were generated."""
        if scoring != "likelihood":
            return None
        return np.stack([self._said(w, scoring).scores for w in wordings])

    def text(self, task: SuiteTask, wording: Wording, scoring: Scoring, instance: int) -> str:
        """What was answered to one question, as text."""
        said = self._said(wording, scoring)
        chosen = int(said.predictions[instance])
        return task.answers[chosen] if chosen >= 0 else str(said.texts[instance])

    def _said(self, wording: Wording, scoring: Scoring):
        return self.answers[Cell(wording.task, wording.condition, wording.index, scoring)]


def build(
    runs: Sequence[Run],
    scorings: Sequence[Scoring],
    *,
    resamples: int = 10_000,
) -> dict[str, Any]:
    """The results of runs on the same suite; only the texts of attacked prompts may differ."""
    suite = runs[0].suite
    notes = dict.fromkeys(note for run in runs for note in run.suite.notes)
    cells = [cell for run in runs for cell in _cells(run, scorings)]
    return {
        "version": VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "suite": {
            "name": suite.name,
            "seed": suite.seed,
            "sample": suite.sample,
            "clean": suite.clean,
            "notes": list(notes),
            "conditions": list(suite.conditions),
            "origins": {made.condition: made.of for made in (*suite.perturbations, *suite.attacks)},
            "tasks": [task.name for task in suite.tasks],
            "majority": {task.name: task.majority for task in suite.tasks},
            "instances": {task.name: len(task.instances) for task in suite.tasks},
            "answers": {task.name: list(task.answers) for task in suite.tasks},
        },
        "runs": [{"name": r.name, "checkpoint": r.checkpoint, "group": r.group} for r in runs],
        "scoring": list(scorings),
        "cells": cells,
        "averages": _averages(cells),
        "prompts": [row for run in runs for row in _prompts(run, scorings)],
        "flips": [row for run in runs for row in _flips(run, scorings)],
        "comparisons": _comparisons(runs, scorings, resamples),
    }


def summary(run: Run, scoring: Scoring, prefix: str = "evaluation/suite") -> dict[str, float]:
    """{prefix/CONDITION/STATISTIC, averaged over tasks; prefix/TASK/CONDITION/mean}, for logs."""
    cells = _cells(run, [scoring])
    metrics = {f"{prefix}/{c['task']}/{c['condition']}/mean": c["mean"] for c in cells}
    for row in _averages(cells):
        for name in ("mean", "worst", "std", "item_worst", "drop_rate", "consistency"):
            if row[name] is not None:
                metrics[f"{prefix}/{row['condition']}/{name}"] = row[name]
    return metrics


def _conditions(suite: Suite) -> tuple[str, ...]:
    conditions = tuple(suite.conditions)
    return (*conditions, ALL) if len(conditions) > 1 else conditions


def _labels(task: SuiteTask) -> np.ndarray:
    return np.array([instance.label for instance in task.instances])


def _wordings(suite: Suite, task: SuiteTask, condition: str) -> list[Wording]:
    return [
        wording
        for wording in suite.wordings
        if wording.task == task.name and condition in (wording.condition, ALL)
    ]


def _cells(run: Run, scorings: Sequence[Scoring]) -> list[dict[str, Any]]:
    rows = []
    for task, scoring in itertools.product(run.suite.tasks, scorings):
        labels = _labels(task)
        tokens = (run.answer_tokens or {}).get(task.name) if scoring == "likelihood" else None
        clean = None
        for condition in _conditions(run.suite):
            wordings = _wordings(run.suite, task, condition)
            if not wordings:
                continue
            metrics = cell_metrics(
                run.predictions(task, wordings, scoring),
                labels,
                run.scores(task, wordings, scoring),
                tokens,
                answers=len(task.answers),
            )
            if condition == run.suite.clean:
                clean = metrics.mean
            rows.append(
                {"run": run.name, "task": task.name, "condition": condition, "scoring": scoring}
                | metrics._asdict()
                | {"drop_rate": _drop_rate(clean, metrics.mean, condition, run.suite)}
            )
    return rows


def _drop_rate(clean: float | None, mean: float, condition: str, suite: Suite) -> float | None:
    if clean is None or condition == suite.clean:
        return None
    return performance_drop_rate(clean, mean)


def _averages(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every statistic averaged over tasks, those where it is defined."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["run"], cell["condition"], cell["scoring"]), []).append(cell)
    rows = []
    for (run, condition, scoring), members in groups.items():
        row: dict[str, Any] = {"run": run, "condition": condition, "scoring": scoring}
        for name in members[0].keys() - {"run", "task", "condition", "scoring"}:
            values = [cell[name] for cell in members if cell[name] is not None]
            row[name] = float(np.mean(values)) if values else None
        rows.append(row | {"tasks": len(members)})
    return rows


def _prompts(run: Run, scorings: Sequence[Scoring]) -> list[dict[str, Any]]:
    rows = []
    for task, scoring in itertools.product(run.suite.tasks, scorings):
        for wording in _wordings(run.suite, task, ALL):
            predictions = run.predictions(task, [wording], scoring)[0]
            rows.append(
                {
                    "run": run.name,
                    "task": task.name,
                    "condition": wording.condition,
                    "index": wording.index,
                    "text": wording.text,
                    "origin": wording.origin,
                    "scoring": scoring,
                    "accuracy": float(np.mean(predictions == _labels(task))),
                    "invalid": float(np.mean(predictions < 0)),
                }
            )
    return rows


def _flips(run: Run, scorings: Sequence[Scoring]) -> list[dict[str, Any]]:
    """For each task's worst prompt in each condition: instances that the best clean prompt gets
    right and this one wrong."""
    rows = []
    for task, scoring in itertools.product(run.suite.tasks, scorings):
        right = {
            wording: run.predictions(task, [wording], scoring)[0] == _labels(task)
            for wording in _wordings(run.suite, task, ALL)
        }
        clean = [wording for wording in right if wording.condition == run.suite.clean]
        if not clean:
            continue
        best = max(clean, key=lambda wording: right[wording].mean())
        for condition in run.suite.conditions:
            members = [wording for wording in right if wording.condition == condition]
            if not members:
                continue
            worst = min(members, key=lambda wording: right[wording].mean())
            for instance in np.flatnonzero(right[best] & ~right[worst])[:EXAMPLES]:
                rows.append(
                    {
                        "run": run.name,
                        "task": task.name,
                        "condition": condition,
                        "index": worst.index,
                        "scoring": scoring,
                        "instance": task.instances[instance].key,
                        "input": dict(task.instances[instance].inputs),
                        "label": task.answers[task.instances[instance].label],
                        "clean_prediction": run.text(task, best, scoring, instance),
                        "prediction": run.text(task, worst, scoring, instance),
                    }
                )
    return rows


def _comparisons(
    runs: Sequence[Run], scorings: Sequence[Scoring], resamples: int
) -> list[dict[str, Any]]:
    """The first group against each other one, in every cell and averaged over tasks.

    Holm's correction runs over the cells of a pair of groups under one way of scoring; the
    averages are a family of their own.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    (first, *others), rows = groups, []
    for other, scoring in itertools.product(others, scorings):
        suite = runs[0].suite
        average, single = [], []
        for condition in _conditions(suite):
            names = {"condition": condition, "scoring": scoring, "a": first, "b": other}
            correct = {
                task.name: tuple(
                    np.stack([_correct(run, task, condition, scoring) for run in groups[group]])
                    for group in (first, other)
                )
                for task in suite.tasks
                if _wordings(suite, task, condition)
            }
            for task, pair in correct.items():
                difference = compare(*pair, resamples=resamples, seed=suite.seed)
                single.append({"task": task} | names | difference._asdict())
            if len(correct) > 1:
                pairs = list(correct.values())
                difference = compare_average(pairs, resamples=resamples, seed=suite.seed)
                average.append({"task": AVERAGE} | names | difference._asdict())
        for family in (average, single):
            for row, adjusted in zip(family, holm([row["p"] for row in family]), strict=True):
                rows.append(row | {"p_holm": float(adjusted)})
    return rows


def _correct(run: Run, task: SuiteTask, condition: str, scoring: Scoring) -> np.ndarray:
    """bool [W, I]"""
    wordings = _wordings(run.suite, task, condition)
    return run.predictions(task, wordings, scoring) == _labels(task)


def prediction_rows(run: Run, scorings: Sequence[Scoring]) -> list[dict[str, Any]]:
    """Every prediction of a run, for tables: one row a question and way of scoring."""
    rows = []
    for task, scoring in itertools.product(run.suite.tasks, scorings):
        for wording in _wordings(run.suite, task, ALL):
            predictions = run.predictions(task, [wording], scoring)[0]
            scores = run.scores(task, [wording], scoring)
            for number, instance in enumerate(task.instances):
                rows.append(
                    {
                        "run": run.name,
                        "group": run.group,
                        "task": task.name,
                        "condition": wording.condition,
                        "prompt": wording.index,
                        "prompt_text": wording.text,
                        "instance": instance.key,
                        "label": task.answers[instance.label],
                        "scoring": scoring,
                        "prediction": run.text(task, wording, scoring, number),
                        "valid": bool(predictions[number] >= 0),
                        "correct": bool(predictions[number] == instance.label),
                        "scores": None if scores is None else scores[0, number].tolist(),
                    }
                )
    return rows
