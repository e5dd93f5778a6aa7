"""The small interface through which robustness asks a model, and accuracy over wordings with it.

Nothing here knows which model answers: `coin_jax.predictor.Predictor` is one, any object with the
two methods of `AnswerScorer` is another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from coin_jax.robustness.metrics import Spread, accuracy, macro_average, majority_rate, spread

if TYPE_CHECKING:
    from coin_jax.data.pairs import EvaluationItem

GROUPS = {True: "seen", False: "unseen"}
"""Names of the two groups of wordings, by whether they were trained on."""


class AnswerScorer(Protocol):
    """A model under test. Prompts are text, token ids, or `coin_jax.data.templates.Prompt`."""

    def score(
        self,
        prompts: Sequence[Any],
        answers: Sequence[str] | Sequence[Sequence[str]],
        length_normalized: bool = False,
    ) -> np.ndarray:
        """Log-likelihood of answers, float32 [prompts, answers].

        `answers` is one list for all prompts, or a list a prompt; where those differ in length,
        the missing ones score -inf. `length_normalized` divides by the answer's tokens.
        """
        ...

    def generate(self, prompts: Sequence[Any], **settings: Any) -> list[str]:
        """One answer a prompt, in the order of the prompts."""
        ...


@dataclasses.dataclass(frozen=True)
class TaskAccuracy:
    """One task in one group of wordings."""

    task: str
    group: str
    """`seen` or `unseen`: whether the wordings were trained on."""
    instances: int
    by_wording: dict[str, float]
    majority: float
    """Accuracy of always giving the commonest label."""

    @property
    def spread(self) -> Spread:
        return spread(self.by_wording.values())


@dataclasses.dataclass(frozen=True)
class WordingAccuracy:
    """Accuracy of one model over the wordings of each task."""

    tasks: tuple[TaskAccuracy, ...]
    """In the order in which the items name them, seen wordings before unseen ones."""
    predictions: tuple[dict[str, Any], ...]
    """One a question: task, instance, wording, group, prediction and label (indices into answers),
    answers, scores. Plain values, ready for JSON."""

    def group(self, name: str) -> tuple[TaskAccuracy, ...]:
        return tuple(task for task in self.tasks if task.group == name)

    def metrics(self, prefix: str = "evaluation") -> dict[str, float]:
        """{prefix/seen/mean, worst, std, majority, and the same for unseen}.

        Within each task over its wordings first, then averaged over tasks (`macro_average`). A
        group without wordings has no entries.
        """
        metrics = {}
        for name in GROUPS.values():
            tasks = self.group(name)
            if not tasks:
                continue
            average = macro_average(task.spread for task in tasks)
            for statistic, value in average._asdict().items():
                metrics[f"{prefix}/{name}/{statistic}"] = value
            metrics[f"{prefix}/{name}/majority"] = float(np.mean([task.majority for task in tasks]))
        return metrics

    def rows(self) -> list[dict[str, Any]]:
        """One a task and group for tables: task, group, instances, wordings, mean, worst,
        worst_wording, std, majority."""
        return [
            {
                "task": task.task,
                "group": task.group,
                "instances": task.instances,
                "wordings": len(task.by_wording),
                **task.spread._asdict(),
                "worst_wording": min(task.by_wording, key=task.by_wording.__getitem__),
                "majority": task.majority,
            }
            for task in self.tasks
        ]


def wording_accuracy(
    scorer: AnswerScorer, items: Sequence[EvaluationItem], length_normalized: bool = False
) -> WordingAccuracy:
    """Asks every item in one call, takes the likeliest answer, and counts by task and wording.

    Of answers that score alike the first is taken. ValueError where a score is NaN, naming the
    item: a model that has diverged must not pass for one that is wrong.
    """
    if not items:
        raise ValueError("there is nothing to evaluate: no evaluation items were given")
    scores = np.asarray(
        scorer.score(
            [item.prompt for item in items],
            [list(item.answers) for item in items],
            length_normalized=length_normalized,
        )
    )
    if np.isnan(scores).any():
        item = items[int(np.argwhere(np.isnan(scores))[0, 0])]
        raise ValueError(
            f"the model gives NaN for task {item.task!r}, instance {item.instance}, wording "
            f"{item.wording!r}: its parameters may have diverged"
        )
    predictions = [
        {
            "task": item.task,
            "instance": item.instance,
            "wording": item.wording,
            "group": GROUPS[bool(item.seen)],
            "prediction": int(row[: len(item.answers)].argmax()),
            "label": int(item.label_index),
            "answers": list(item.answers),
            "scores": [float(score) for score in row[: len(item.answers)]],
        }
        for item, row in zip(items, scores, strict=True)
    ]
    cells: dict[str, dict[str, dict[str, list[dict]]]] = {}
    for name in GROUPS.values():
        for row in predictions:
            wordings = cells.setdefault(row["task"], {}).setdefault(name, {})
            if row["group"] == name:
                wordings.setdefault(row["wording"], []).append(row)
    tasks = [
        TaskAccuracy(
            task=task,
            group=name,
            instances=len(labels := _label_of_instance(task, wordings)),
            by_wording={
                wording: accuracy([r["prediction"] for r in rows], [r["label"] for r in rows])
                for wording, rows in wordings.items()
            },
            majority=majority_rate(list(labels.values())),
        )
        for task, groups in cells.items()
        for name, wordings in groups.items()
        if wordings
    ]
    return WordingAccuracy(tuple(tasks), tuple(predictions))


def _label_of_instance(task: str, wordings: dict[str, list[dict]]) -> dict[Any, int]:
    """Each instance once, however many wordings it was asked in."""
    labels: dict[Any, int] = {}
    for rows in wordings.values():
        for row in rows:
            if labels.setdefault(row["instance"], row["label"]) != row["label"]:
                raise ValueError(
                    f"task {task!r}, instance {row['instance']}: its label differs between "
                    "wordings; answers must stand in the same order in each"
                )
    return labels
