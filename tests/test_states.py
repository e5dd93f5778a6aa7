"""Cosine gaps and principal components, by hand and by plain loops."""

import itertools
import math

import numpy as np
import pytest

from coin_jax.robustness.states import cosine_gap, principal_components


def cosine(x, y):
    return x @ y / (np.linalg.norm(x) * np.linalg.norm(y))


def test_the_gap_is_what_is_worked_out_by_hand():
    states = np.array([[[2.0, 0], [0, 3]], [[1, 0], [4, 4]]])  # instance, wording
    # Paraphrases: 0 and 1 / sqrt 2. Hard negatives: 1 and 1 / sqrt 2.
    positive, negative = math.sqrt(0.5) / 2, (1 + math.sqrt(0.5)) / 2
    assert cosine_gap(states, [0, 1]) == pytest.approx((positive, negative, -0.5))


def test_the_gap_follows_its_definition_pair_by_pair():
    random = np.random.default_rng(0)
    states, labels = random.normal(size=(9, 4, 6)) + 0.5, np.array([0, 1, 2, 0, 0, 1, 2, 2, 1])
    positive = [
        cosine(states[i, v], states[i, w])
        for i in range(9)
        for v, w in itertools.combinations(range(4), 2)
    ]
    negative = [
        cosine(states[i, w], states[j, w])
        for i, j in itertools.combinations(range(9), 2)
        for w in range(4)
        if labels[i] != labels[j]
    ]
    gap = cosine_gap(states.astype(np.float32), labels)
    assert gap.positive == pytest.approx(np.mean(positive), rel=1e-5)
    assert gap.negative == pytest.approx(np.mean(negative), rel=1e-5)
    assert gap.gap == pytest.approx(np.mean(positive) - np.mean(negative), rel=1e-5)
    assert all(type(value) is float for value in gap)


def test_what_has_no_pairs_has_no_gap():
    states = np.ones((3, 2, 4))
    assert cosine_gap(states, [1, 1, 1]) == (pytest.approx(1), None, None)
    assert cosine_gap(states[:, :1], [0, 1, 1]) == (None, pytest.approx(1), None)


def test_states_without_length_have_no_direction():
    states = np.ones((2, 2, 3))
    states[0, 0] = 0
    assert cosine_gap(states, [0, 1]) == pytest.approx((0.5, 0.5, 0))


def test_points_on_a_line_keep_their_distances_on_the_first_axis():
    points = principal_components(np.array([[0, 0, 7], [3, 4, 7], [9, 12, 7]]))
    expected = [[-20 / 3, 0], [-5 / 3, 0], [25 / 3, 0]]  # 0, 5 and 15 less their mean
    np.testing.assert_allclose(points, expected, atol=1e-12)


def test_coordinates_are_those_of_the_leading_eigenvectors_of_the_covariance():
    random = np.random.default_rng(1)
    states = (random.normal(size=(40, 5)) * [1, 5, 2, 0.1, 3]) @ random.normal(size=(5, 5))
    values, vectors = np.linalg.eigh(np.cov(states.T))
    expected = (states - states.mean(axis=0)) @ vectors[:, ::-1][:, :3]
    points = principal_components(states.astype(np.float32), 3)
    np.testing.assert_allclose(np.abs(points), np.abs(expected), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(points.var(axis=0, ddof=1), values[::-1][:3], rtol=1e-4)
    assert (points.max(axis=0) > -points.min(axis=0)).all()


def test_axes_that_do_not_exist_are_zero():
    np.testing.assert_allclose(principal_components(np.array([[3.0, 4, 5]])), [[0, 0]])
    assert principal_components(np.arange(4.0)[:, None])[:, 1].tolist() == [0] * 4


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="a label an instance"):
        cosine_gap(np.ones((3, 2, 4)), [0, 1])
    with pytest.raises(ValueError, match="PCA needs"):
        principal_components(np.ones((0, 3)))
