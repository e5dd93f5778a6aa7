"""Where a model puts the instances of a suite: paraphrases beside hard negatives, and a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, get_args

import numpy as np

from coin_jax.config import Pooling
from coin_jax.robustness.states import CosineGap, cosine_gap, principal_components
from coin_jax.robustness.suite import Suite, prompt

POOLINGS: tuple[Pooling, ...] = get_args(Pooling)

MAP_POOLING: Pooling = "decoder_first"
"""What is mapped: the state that the first answer token is chosen from, which has read the prompt
and no part of an answer."""
MAP_INSTANCES = 12
"""Over all tasks together, one of each task at least."""
GAP_INSTANCES = 48
"""Of each task."""
WORDINGS = 8
"""Of each task, prompts that people wrote; perturbed ones are left out."""


class StatefulModel(Protocol):
    """A model that shows its hidden states."""

    def pooled_states(
        self, prompts: Sequence[Any], answers: Sequence[str], kinds: Sequence[Pooling]
    ) -> dict[Pooling, np.ndarray]:
        """float32 [prompts, D] by kind of pooling."""
        ...


def compare_states(
    model: StatefulModel, suite: Suite
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(a row a pooling point: pooling, positive, negative, gap, averaged over tasks; points of the
    map: x, y, task, instance, condition, label)."""
    gaps: dict[Pooling, list[CosineGap]] = {pooling: [] for pooling in POOLINGS}
    points: list[dict[str, Any]] = []
    states: list[np.ndarray] = []
    shown = -(-MAP_INSTANCES // len(suite.tasks))
    for task in suite.tasks:
        written = [w for w in suite.wordings if w.task == task.name and w.origin is None]
        wordings, instances = written[:WORDINGS], task.instances[:GAP_INSTANCES]
        pooled = model.pooled_states(
            [prompt(task, wording, instance) for instance in instances for wording in wordings],
            [task.answers[instance.label] for instance in instances for _ in wordings],
            POOLINGS,
        )
        labels = np.array([instance.label for instance in instances])
        by_instance = {
            pooling: array.reshape(len(instances), len(wordings), -1)
            for pooling, array in pooled.items()
        }
        for pooling, states_IxWxD in by_instance.items():
            gaps[pooling].append(cosine_gap(states_IxWxD, labels))
        for number, instance in enumerate(instances[:shown]):
            states.extend(by_instance[MAP_POOLING][number])
            points.extend(
                {
                    "task": task.name,
                    "instance": number,
                    "condition": wording.condition,
                    "label": task.answers[instance.label],
                }
                for wording in wordings
            )
    rows = [{"pooling": pooling} | _mean(values) for pooling, values in gaps.items()]
    plane = principal_components(np.stack(states)).tolist()
    return rows, [point | {"x": x, "y": y} for point, (x, y) in zip(points, plane, strict=True)]


def _mean(gaps: Sequence[CosineGap]) -> dict[str, float | None]:
    """Over tasks that have such pairs."""
    return {
        name: float(np.mean(values)) if (values := _known(gaps, name)) else None
        for name in CosineGap._fields
    }


def _known(gaps: Sequence[CosineGap], name: str) -> list[float]:
    return [value for gap in gaps if (value := getattr(gap, name)) is not None]
