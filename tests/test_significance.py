"""Differences between models: by hand, by exact distributions, by simulation and beside SciPy."""

import math
import time

import numpy as np
import pytest

from coin_jax.robustness import significance
from coin_jax.robustness.significance import compare, compare_average, holm

Z = 1.959963984540054


def outcomes(better, worse, same):
    """Two models under one wording that differ on `better` + `worse` of the items."""
    a = [1] * better + [0] * worse + [1] * same
    b = [0] * better + [1] * worse + [1] * same
    return np.array([a]), np.array([b])


def correlated(random, items, wordings, shift=0.0):
    """Two models whose wordings of one item are alike; B is `shift` worse in truth."""
    skill = random.beta(1, 1, items)
    own = random.random((2, 1, items)) < 0.6  # the item decides for all wordings, or each its own
    one, each = random.random((2, 1, items)), random.random((2, wordings, items))
    draw = np.where(own, one, each)
    return draw[0] < shift + (1 - shift) * skill, draw[1] < (1 - shift) * skill


def test_the_difference_and_the_smallest_resolvable_one_are_what_is_worked_out_by_hand():
    result = compare(*outcomes(better=30, worse=10, same=60))
    assert (result.difference, result.items, result.resolvable) == (0.2, 100, True)
    assert result.smallest == pytest.approx(Z * math.sqrt((0.4 - 0.2**2) / 100))
    result = compare(*outcomes(better=10, worse=14, same=76))
    assert (result.difference, result.resolvable) == (-0.04, False)
    assert result.smallest == pytest.approx(Z * math.sqrt((0.24 - 0.04**2) / 100))
    assert {type(value) for value in result} == {float, bool, int}  # ready for JSON


def test_p_is_twice_the_exact_chance_that_resampling_turns_the_sign():
    better, worse, same = 14, 6, 20
    items = better + worse + same
    chance = sum(  # of as many draws of worse items as of better ones, or more
        math.factorial(items)
        / (math.factorial(x) * math.factorial(y) * math.factorial(items - x - y))
        * (better / items) ** x
        * (worse / items) ** y
        * (same / items) ** (items - x - y)
        for y in range(items + 1)
        for x in range(min(y, items - y) + 1)
    )
    result = compare(*outcomes(better, worse, same), resamples=100_000)
    assert result.p == pytest.approx(2 * chance, abs=6 * math.sqrt(2 * chance / 100_000))
    assert 0.03 < result.p < 0.1  # where it matters
    assert result.p == pytest.approx(compare(*outcomes(worse, better, same)).p, abs=0.01)


def test_the_sample_at_hand_counts_as_a_resample():
    assert compare(*outcomes(50, 0, 10), resamples=99).p == 2 / 100


def test_few_items_are_never_significant_however_clear_they_are():
    result = compare(*outcomes(better=5, worse=0, same=0))
    assert (result.difference, result.p, result.resolvable) == (1, 2**-4, False)
    result = compare(*outcomes(better=6, worse=0, same=0))
    assert (result.p, result.resolvable) == (2**-5, True)
    # Differing on 5 of many items is no more to go by.
    result = compare(*outcomes(better=5, worse=0, same=995))
    assert (result.p, result.resolvable) == (2**-4, False)
    assert result.smallest == 6 / 1000
    # Six items count for less where they differ in one of four wordings only.
    a, b = np.ones((2, 4, 6))
    b[0] = 0
    result = compare(a, b)
    assert (result.difference, result.smallest, result.p) == (0.25, 0.25, 2**-5)
    assert result.resolvable


def test_models_that_agree_on_every_item_are_not_told_apart():
    result = compare(*outcomes(better=0, worse=0, same=60))
    assert result[:4] == (0, 0, 0, 1)
    assert not result.resolvable
    assert result.smallest == 6 / 60


def test_wordings_of_an_item_are_no_more_items():
    a, b = outcomes(better=14, worse=6, same=20)
    assert compare(np.repeat(a, 12, axis=0), np.repeat(b, 12, axis=0)) == compare(a, b)


def test_seeds_are_averaged_and_wordings_need_not_be_as_many():
    random = np.random.default_rng(0)
    a, b = random.random((3, 4, 50)) < 0.7, random.random((2, 5, 50)) < 0.6
    result = compare(a, b)
    assert result.difference == pytest.approx(a.mean() - b.mean())
    assert compare(a.reshape(12, 50), b.reshape(10, 50)) == result
    assert compare(a[0], b[0]) == compare(a[:1], b[:1])


def test_neither_the_order_of_items_nor_the_chunks_change_anything(monkeypatch):
    random = np.random.default_rng(1)
    a, b = random.random((2, 3, 40)) < 0.6
    result, order = compare(a, b, seed=3), random.permutation(40)
    assert compare(a[:, order], b[:, order], seed=3) == pytest.approx(result)
    monkeypatch.setattr(significance, "DRAWS_AT_ONCE", 1000)
    assert compare(a, b, seed=3) == result
    assert compare(a, b, seed=4) != result


def test_interval_and_error_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    a, b = correlated(np.random.default_rng(2), items=150, wordings=6, shift=0.05)
    of_items = a.mean(axis=0) - b.mean(axis=0)
    theirs = stats.bootstrap(
        (of_items,), np.mean, n_resamples=50_000, method="percentile", rng=5, vectorized=True
    )
    ours = compare(a, b, resamples=50_000)
    error = theirs.standard_error
    # A quantile of 50,000 draws scatters by about 0.012 standard errors.
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.08 * error)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.08 * error)
    assert ours.smallest == pytest.approx(Z * error, rel=0.02)


def test_rejections_and_coverage_are_as_rare_and_as_sure_as_claimed():
    random = np.random.default_rng(4)
    runs, items, wordings, shift = 500, 80, 5, 0.1
    false, covered, naive = 0, 0, 0
    for _ in range(runs):
        a, b = correlated(random, items, wordings)
        false += compare(a, b, resamples=500).p <= 0.05
        naive += compare(a.reshape(1, -1), b.reshape(1, -1), resamples=500).p <= 0.05
        result = compare(*correlated(random, items, wordings, shift), resamples=500)
        covered += result.low <= shift <= result.high
    # Binomial standard deviation at 5%: 1%.
    assert 0.02 <= false / runs <= 0.085
    assert 0.915 <= covered / runs <= 0.98
    assert naive / runs > 0.1  # what taking each wording for an item of its own would do


def test_the_average_counts_every_task_alike_and_resamples_each_by_itself():
    random = np.random.default_rng(5)
    tasks = [correlated(random, items, 4, 0.1) for items in (30, 200)]
    result = compare_average(tasks, resamples=20_000)
    of_items = [a.mean(axis=0) - b.mean(axis=0) for a, b in tasks]
    means = [d[random.integers(0, len(d), (20_000, len(d)))].mean(axis=1) for d in of_items]
    drawn = np.mean(means, axis=0)
    assert result.difference == pytest.approx(np.mean([d.mean() for d in of_items]))
    assert result.low == pytest.approx(np.quantile(drawn, 0.025), abs=0.1 * drawn.std())
    assert result.high == pytest.approx(np.quantile(drawn, 0.975), abs=0.1 * drawn.std())
    assert result.items == 230
    of_each = [compare(*task).smallest for task in tasks]
    assert result.smallest == pytest.approx(math.hypot(*of_each) / 2)


def test_ten_thousand_resamples_of_a_thousand_items_take_well_under_a_second():
    random = np.random.default_rng(6)
    a, b = random.random((2, 3, 18, 1000)) < 0.6
    began = time.perf_counter()
    compare(a, b, resamples=10_000)
    assert time.perf_counter() - began < 0.5


def test_holm_is_what_is_worked_out_by_hand():
    # In order .01 x 3, .03 x 2, .04 x 1, and none below the one before.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.4, 0.5]) == pytest.approx([0.8, 0.8])
    assert holm([0.7, 0.7]).tolist() == [1, 1]
    assert holm([0.02]) == pytest.approx([0.02])
    assert holm([]).shape == (0,)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="same items in both"):
        compare(np.ones((2, 5)), np.ones((2, 6)))
    for wrong in (np.ones(5), np.ones((2, 0)), np.ones((1, 1, 1, 5))):
        with pytest.raises(ValueError, match="wordings, items"):
            compare(wrong, wrong)
    with pytest.raises(ValueError, match="one task"):
        compare_average([])
