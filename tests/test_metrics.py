"""The metrics of a cell, by numbers worked out by hand and by plain loops over the definitions."""

import itertools
import math

import numpy as np
import pytest

from coin_jax.robustness import metrics

LABELS = [0, 1, 0, 1]
GENERATED = [
    [0, 1, 0, 1],  # 4 of 4
    [0, 1, 1, 0],  # 2 of 4
    [0, 0, 1, -1],  # 1 of 4, one of them no answer at all
]


def test_a_cell_has_what_is_worked_out_by_hand():
    cell = metrics.cell_metrics(GENERATED, LABELS, answers=2)
    expected = {
        "mean": 7 / 12,
        # Deviations 5, -1 and -4 twelfths: variance (25 + 1 + 16) / 3 of 144ths.
        "std": math.sqrt(14) / 12,
        "best": 1.0,
        "worst": 0.25,
        "spread": 0.75,
        "item_worst": 0.25,  # the first instance alone is right in all three
        # Entropies: 0; of (2/3, 1/3) twice; of (1/3, 1/3, 1/3): each over log 3.
        "sensitivity": (3 - 4 / 3 * math.log(2, 3)) / 4,
        "consistency": (1 + 1 / 3 + 1 / 3 + 0) / 4,
        "posix": None,
        "ece": None,
        "invalid": 1 / 12,
        "majority": 0.5,
        "wordings": 3,
        "instances": 4,
    }
    assert cell._asdict() == pytest.approx(expected)


def test_invalid_predictions_are_a_class_of_their_own_where_they_may_occur():
    # The same predictions, all valid: generated, there was a third way to go.
    chosen = [[0], [1]]
    scores = np.zeros((2, 1, 2))
    assert metrics.cell_metrics(chosen, [0], scores, answers=2).sensitivity == pytest.approx(1)
    assert metrics.cell_metrics(chosen, [0], answers=2).sensitivity == pytest.approx(math.log(2, 3))
    agreeing = metrics.cell_metrics([[-1], [-1]], [0], answers=2)
    assert (agreeing.sensitivity, agreeing.consistency, agreeing.invalid) == (0, 1, 1)


def test_a_single_wording_varies_in_nothing():
    cell = metrics.cell_metrics([[0, 1]], [0, 0], np.zeros((1, 2, 2)), [1, 1], answers=2)
    assert (cell.std, cell.spread, cell.sensitivity, cell.consistency, cell.posix) == (
        0,
        0,
        0,
        1,
        0,
    )
    assert (cell.mean, cell.best, cell.worst, cell.item_worst) == (0.5, 0.5, 0.5, 0.5)


def test_numbers_are_plain_and_in_their_ranges():
    random = np.random.default_rng(0)
    for _ in range(50):
        W, I, A = random.integers(1, 6, 3)  # noqa: E741
        scores = random.normal(size=(W, I, A)) * 3
        predictions, labels = scores.argmax(axis=-1), random.integers(0, A, I)
        cell = metrics.cell_metrics(predictions, labels, scores, [3] * A, answers=int(A))
        assert all(type(value) in (float, int) for value in cell)
        assert 0 <= cell.item_worst <= cell.worst <= cell.mean <= cell.best <= 1
        assert 0 <= cell.sensitivity <= 1 + 1e-12
        assert 0 <= cell.consistency <= 1
        assert cell.posix >= 0
        assert 0 <= cell.ece <= 1


def test_the_drop_rate_is_the_share_of_the_clean_accuracy_that_is_lost():
    assert metrics.performance_drop_rate(0.8, 0.6) == pytest.approx(0.25)
    assert metrics.performance_drop_rate(0.5, 0.0) == 1
    assert metrics.performance_drop_rate(0.5, 0.6) == pytest.approx(-0.2)
    assert metrics.performance_drop_rate(0.0, 0.0) is None
    assert metrics.performance_drop_rate(0.0, 0.3) is None


def test_posix_is_what_is_worked_out_by_hand():
    scores = np.array([[[-1, -3], [-1, -5]], [[-2.5, -2], [-3, -6]]])  # wording, instance, answer
    # First instance, answers 0 and 1: (|-3 + 2| / 4 + |-2.5 + 1| / 2) / 2.
    # Second, answer 0 twice: (|-3 + 1| / 2 + |-1 + 3| / 2) / 2.
    index = metrics.prompt_sensitivity_index(scores, [[0, 0], [1, 0]], [2, 4])
    assert index == pytest.approx((0.5 + 1) / 2)
    same = metrics.prompt_sensitivity_index(scores[[0, 0, 0]], [[0, 0]] * 3, [2, 4])
    assert same == 0


def test_dispersion_follows_its_definition_pair_by_pair():
    random = np.random.default_rng(1)
    W, I, A = 5, 7, 3  # noqa: E741
    scores, tokens = random.normal(size=(W, I, A)), [1, 2, 5]
    predictions = scores.argmax(axis=-1)
    psi, agreement, entropy = [], [], []
    for i in range(I):
        for v, w in itertools.permutations(range(W), 2):
            y = predictions[w, i]
            psi.append(abs(scores[v, i, y] - scores[w, i, y]) / tokens[y])
        for v, w in itertools.combinations(range(W), 2):
            agreement.append(predictions[v, i] == predictions[w, i])
        shares = [np.mean(predictions[:, i] == c) for c in range(A)]
        entropy.append(-sum(p * math.log(p) for p in shares if p > 0) / math.log(A))
    cell = metrics.cell_metrics(predictions, [0] * I, scores, tokens, answers=A)
    assert cell.posix == pytest.approx(np.mean(psi))
    assert cell.consistency == pytest.approx(np.mean(agreement))
    assert cell.sensitivity == pytest.approx(np.mean(entropy))


def test_the_calibration_error_is_what_is_worked_out_by_hand():
    # Bins of a fifteenth: .95 | .9 | .6 twice | .3, with gaps .05, .9, |1 - 1.2| and .7.
    error = metrics.calibration_error([0.95, 0.9, 0.6, 0.6, 0.3], [1, 0, 1, 0, 1])
    assert error == pytest.approx((0.05 + 0.9 + 0.2 + 0.7) / 5)
    # A bin ends with its upper edge: 9 / 15 and what is above it are not averaged.
    assert metrics.calibration_error([0.6, 0.61], [1, 0]) == pytest.approx((0.4 + 0.61) / 2)
    assert metrics.calibration_error([1.0, 1.0, 0.0], [1, 1, 0]) == 0
    # One bin: mean accuracy against mean confidence.
    assert metrics.calibration_error([0.2, 0.9], [1, 1], bins=1) == pytest.approx(0.45)


def test_confidence_is_the_softmax_over_the_answers_in_the_one_predicted():
    scores = np.log([[[0.1, 0.3], [0.4, 0.4]]]) - 500  # likelihoods that would vanish
    np.testing.assert_allclose(metrics.confidence(scores, np.array([[1, 0]])), [[0.75, 0.5]])
    cell = metrics.cell_metrics([[1, 0]], [1, 1], scores, answers=2)
    assert cell.ece == pytest.approx((0.25 + 0.5) / 2)
    assert cell.posix is None  # the answers' lengths are not known


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[]], []), "wordings, instances"),
        (([0, 1], [0, 1]), "wordings, instances"),
        (([[0, 1]], [0]), "labels for 2 instances"),
        (([[0, 2]], [0, 1]), "a prediction lies in 0..2; allowed: -1..1"),
        (([[0, 1]], [0, -1]), "a label lies in -1..0; allowed: 0..1"),
        (([[0, -1]], [0, 1], np.zeros((1, 2, 2))), "allowed: 0..1"),
        (([[0, 1]], [0, 1], np.zeros((2, 1, 2))), "scores are"),
        (([[0, 1]], [0, 1], np.full((1, 2, 2), np.nan)), "diverged"),
        (([[0, 1]], [0, 1], np.zeros((1, 2, 2)), [1, 0]), "counts of 1 or more"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        metrics.cell_metrics(*arguments, answers=2)
