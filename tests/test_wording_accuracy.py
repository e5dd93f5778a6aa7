"""Accuracy over wordings, by numbers worked out by hand."""

import json
import math

import numpy as np
import pytest

from coin_jax.data.pairs import EvaluationItem
from coin_jax.data.templates import Piece, Prompt
from coin_jax.robustness import metrics
from coin_jax.robustness.scoring import wording_accuracy

ANSWERS = {"mood": ("good", "bad"), "topic": ("sport", "food", "art")}


def item(task: str, instance: int, wording: str, seen: bool, label: int) -> EvaluationItem:
    answers = ANSWERS[task]
    prompt = Prompt((Piece(f"{task} {instance} {wording}", False),), answers[label])
    return EvaluationItem(task, instance, wording, seen, prompt, answers, label)


class Told:
    """A scorer that gives the predictions it was told, as scores of -1 against -2."""

    def __init__(self, predictions: list[int]):
        self.predictions = predictions

    def score(self, prompts, answers, length_normalized=False):
        assert len(prompts) == len(answers) == len(self.predictions)
        scores = np.full((len(prompts), max(map(len, answers))), -np.inf, np.float32)
        for row, (entry, prediction) in enumerate(zip(answers, self.predictions, strict=True)):
            scores[row, : len(entry)] = -2
            scores[row, prediction] = -1
        return scores


# Task, wording, seen, the labels of instances 0.., and what is predicted for them.
ASKED = [
    ("mood", "m1", True, [0, 0, 0, 1], [0, 0, 0, 1]),  # 1.00
    ("mood", "m2", True, [0, 0, 0, 1], [0, 0, 0, 0]),  # 0.75
    ("mood", "m3", True, [0, 0, 0, 1], [1, 1, 0, 0]),  # 0.25
    ("mood", "m4", False, [0, 0, 0, 1], [1, 0, 0, 0]),  # 0.50
    ("topic", "t1", True, [0, 1], [0, 1]),  # 1.00
    ("topic", "t2", False, [0, 1], [0, 0]),  # 0.50
    ("topic", "t3", False, [0, 1], [2, 0]),  # 0.00
]


def asked():
    items, predictions = [], []
    for task, wording, seen, labels, predicted in ASKED:
        items += [item(task, i, wording, seen, label) for i, label in enumerate(labels)]
        predictions += predicted
    return items, predictions


def test_statistics_are_taken_within_a_task_and_then_averaged_over_tasks():
    items, predictions = asked()
    result = wording_accuracy(Told(predictions), items)
    # mood, seen: 1, 3/4, 1/4: mean 2/3, variance (1/9 + 1/144 + 25/144) / 3 = 7/72.
    # mood, unseen: 1/2. topic, seen: 1. topic, unseen: 1/2 and 0: mean 1/4, deviation 1/4.
    expected = {
        "evaluation/seen/mean": (2 / 3 + 1) / 2,
        "evaluation/seen/worst": (1 / 4 + 1) / 2,
        "evaluation/seen/std": math.sqrt(7 / 72) / 2,
        "evaluation/seen/majority": (3 / 4 + 1 / 2) / 2,
        "evaluation/unseen/mean": (1 / 2 + 1 / 4) / 2,
        "evaluation/unseen/worst": (1 / 2 + 0) / 2,
        "evaluation/unseen/std": (0 + 1 / 4) / 2,
        "evaluation/unseen/majority": (3 / 4 + 1 / 2) / 2,
    }
    assert result.metrics() == pytest.approx(expected)
    assert set(result.metrics("test")) == {key.replace("evaluation", "test") for key in expected}


def test_the_table_has_a_row_for_each_task_and_group():
    items, predictions = asked()
    rows = wording_accuracy(Told(predictions), items).rows()
    assert [(row["task"], row["group"]) for row in rows] == [
        ("mood", "seen"),
        ("mood", "unseen"),
        ("topic", "seen"),
        ("topic", "unseen"),
    ]
    mood, topic = rows[0], rows[3]
    assert mood == pytest.approx(
        {
            "task": "mood",
            "group": "seen",
            "instances": 4,
            "wordings": 3,
            "mean": 2 / 3,
            "worst": 0.25,
            "std": math.sqrt(7 / 72),
            "worst_wording": "m3",
            "majority": 0.75,
        }
    )
    assert (topic["instances"], topic["wordings"], topic["worst_wording"]) == (2, 2, "t3")


def test_the_order_of_items_changes_nothing():
    items, predictions = asked()
    order = np.random.default_rng(0).permutation(len(items))
    shuffled = wording_accuracy(Told([predictions[i] for i in order]), [items[i] for i in order])
    in_order = wording_accuracy(Told(predictions), items)
    assert shuffled.metrics() == pytest.approx(in_order.metrics())


def test_predictions_are_plain_values_that_tell_the_whole_story():
    items, predictions = asked()
    result = wording_accuracy(Told(predictions), items)
    rows = json.loads(json.dumps(result.predictions))
    assert rows[3 * 4 + 0] == {
        "task": "mood",
        "instance": 0,
        "wording": "m4",
        "group": "unseen",
        "prediction": 1,
        "label": 0,
        "answers": ["good", "bad"],
        "scores": [-2.0, -1.0],
    }
    assert [row["prediction"] for row in rows] == predictions


def test_without_held_out_wordings_there_are_no_numbers_for_them():
    items = [item("mood", 0, "m1", True, 0)]
    names = set(wording_accuracy(Told([0]), items).metrics())
    assert names == {f"evaluation/seen/{name}" for name in ("mean", "worst", "std", "majority")}


def test_a_model_that_gives_nan_is_not_taken_for_one_that_is_wrong():
    class Diverged:
        def score(self, prompts, answers, length_normalized=False):
            return np.array([[-1, -2], [np.nan, np.nan]], np.float32)

    items = [item("mood", 0, "m1", True, 0), item("mood", 7, "m1", True, 0)]
    with pytest.raises(ValueError, match="NaN for task 'mood', instance 7, wording 'm1'"):
        wording_accuracy(Diverged(), items)


def test_nothing_to_evaluate_and_labels_that_differ_between_wordings_are_refused():
    with pytest.raises(ValueError, match="nothing to evaluate"):
        wording_accuracy(Told([]), [])
    items = [item("mood", 3, "m1", True, 0), item("mood", 3, "m2", True, 1)]
    with pytest.raises(ValueError, match="task 'mood', instance 3"):
        wording_accuracy(Told([0, 0]), items)


def test_the_formulas_give_what_is_worked_out_by_hand():
    assert metrics.accuracy([0, 1, 2, 1], [0, 1, 1, 0]) == 0.5
    # Deviations -2, 0, 2 (in tenths): the population's is sqrt(8 / 3), the sample's would be 2.
    spread = metrics.spread([0.3, 0.5, 0.7])
    assert spread == pytest.approx((0.5, 0.3, math.sqrt(8 / 3) / 10))
    assert metrics.spread([0.4]) == (0.4, 0.4, 0.0)
    average = metrics.macro_average([metrics.Spread(0.2, 0.1, 0.0), metrics.Spread(0.8, 0.5, 0.4)])
    assert average == pytest.approx((0.5, 0.3, 0.2))
    assert metrics.majority_rate([2, 0, 2, 2, 1]) == 0.6
    for formula in (metrics.spread, metrics.macro_average, metrics.majority_rate):
        with pytest.raises(ValueError, match="one"):
            formula([])
    with pytest.raises(ValueError, match="nothing"):
        metrics.accuracy([], [])
