"""Mixtures: the shares of tasks, and the order of the stream that they make."""

import collections
import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from coin_jax.config import DataConfig
from coin_jax.data.builtin import builtin_tasks
from coin_jax.data.mixture import Mixture, apportion, make_mixture, task_shares
from coin_jax.data.order import shuffled
from coin_jax.data.pairs import TaskPairs
from coin_jax.data.sources import DataError


def ranges(**sizes) -> dict[str, range]:
    ends = list(itertools.accumulate(sizes.values()))
    return {
        name: range(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)
    }


def owners(tasks, indices) -> list[str]:
    return [next(name for name, members in tasks.items() if i in members) for i in indices]


# Shares


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Raffel et al. 2020, section 3.5.2: min(size, cap) / sum, then to the power 1 / T.
        ({"mixture_cap": 400}, {"a": 100 / 900, "b": 400 / 900, "c": 400 / 900}),
        ({"mixture_temperature": 2.0}, {"a": 10 / 130, "b": 20 / 130, "c": 100 / 130}),
        ({"mixture_cap": 400, "mixture_temperature": 2.0}, {"a": 0.2, "b": 0.4, "c": 0.4}),
        ({"mixture_temperature": 1e9}, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}),
        ({"mixture_weights": {"c": 3, "a": 1}}, {"a": 0.25, "c": 0.75}),
        ({}, {"a": 100 / 10500, "b": 400 / 10500, "c": 10000 / 10500}),
    ],
)
def test_shares_are_those_of_the_config(settings, expected):
    shares = task_shares(ranges(a=100, b=400, empty=0, c=10000), DataConfig(**settings))
    assert shares == pytest.approx(expected)


def test_without_settings_there_is_no_mixture():
    assert make_mixture(ranges(a=3, b=4), DataConfig(), 0) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("qqpp", "no task 'qqpp'; near it are 'qqp'$"),
        ("x", "no task 'x'; the tasks are 'empty', 'mnli', 'qqp'$"),
        ("empty", "task 'empty' has no training rows"),
    ],
)
def test_a_weight_of_an_unknown_task_is_an_error_that_names_those_near(name, reason):
    data = DataConfig(mixture_weights={"mnli": 1.0, name: 2.0})
    with pytest.raises(DataError, match=rf"data\.mixture_weights: .*{reason}"):
        make_mixture(ranges(qqp=5, mnli=5, empty=0), data, 0)


@pytest.mark.parametrize(
    ("shares", "places", "expected"),
    [
        ([0.5, 0.3, 0.2], 10, [5, 3, 2]),
        ([1 / 3, 1 / 3, 1 / 3], 10, [4, 3, 3]),
        ([0.46, 0.34, 0.20], 10, [5, 3, 2]),
        ([0.46, 0.35, 0.19], 10, [5, 3, 2]),  # of 4.6, 3.5 and 1.9 the second has the least over
        ([0.97, 0.01, 0.01, 0.01], 10, [7, 1, 1, 1]),
    ],
)
def test_places_are_shared_by_largest_remainders(shares, places, expected):
    assert apportion(np.array(shares), places).tolist() == expected


@hypothesis.given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40))
@hypothesis.settings(deadline=None, max_examples=100, derandomize=True)
def test_all_places_are_given_away_and_everyone_has_one(weights):
    shares = np.array(weights) / sum(weights)
    counts = apportion(shares, 1000)
    assert counts.sum() == 1000
    assert counts.min() >= 1
    if (shares * 1000).min() >= 1:
        assert np.abs(counts - shares * 1000).max() < 1


# The stream


@pytest.mark.parametrize("count", [2, 1800])
def test_the_rate_is_kept_exactly_over_every_block(count):
    random = np.random.default_rng(0)
    sizes = random.integers(50, 30_000, count) if count > 2 else [70, 30_000]
    tasks = ranges(**{f"task_{n}": int(size) for n, size in enumerate(sizes)})
    mixture = make_mixture(tasks, DataConfig(mixture_cap=3000), 1)
    starts = np.array([members.start for members in tasks.values()])
    capped = np.minimum(sizes, 3000)
    for block in (0, 1, 17):
        positions = block * mixture.block + np.arange(mixture.block)
        owner = np.searchsorted(starts, mixture(positions)[1], side="right") - 1
        found = np.bincount(owner, minlength=count)
        assert np.abs(found - capped / capped.sum() * mixture.block).max() < 1
        assert found.min() >= 10


def test_any_stretch_of_the_stream_is_near_the_rate():
    tasks = ranges(a=900, b=100, c=50)
    mixture = Mixture(tasks, {"a": 1, "b": 2, "c": 1}, 0)
    for start in (0, 9_900, 123_456):
        found = collections.Counter(owners(tasks, mixture(start + np.arange(400))[1]))
        # Less spread than independent draws: 4 of their standard deviations.
        assert abs(found["a"] - 100) < 35
        assert abs(found["b"] - 200) < 40


@hypothesis.given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=5),
    st.integers(0, 2**31),
)
@hypothesis.settings(deadline=None, max_examples=25, derandomize=True)
def test_every_task_repeats_its_own_epochs_whole_and_in_order(parts, seed):
    tasks = ranges(**{f"t{n}": size for n, (size, _) in enumerate(parts)})
    mixture = Mixture(tasks, {f"t{n}": weight for n, (_, weight) in enumerate(parts)}, seed)
    epochs, indices = mixture(np.arange(9_000, 11_500))  # over the end of a block
    for members in tasks.values():
        mine = np.isin(indices, members)
        assert (np.diff(epochs[mine]) >= 0).all()
        for epoch in np.unique(epochs[mine])[1:-1]:
            assert sorted(indices[mine & (epochs == epoch)]) == list(members)
        begun = indices[mine & (epochs == epochs[mine][-1])]
        assert len(set(begun)) == len(begun)


def test_a_position_can_be_asked_alone_and_far_away():
    tasks = ranges(a=10**9, b=7)
    data = DataConfig(mixture_weights={"a": 5.0, "b": 1.0})
    positions = np.array([10**12 + 5, 3, 0, 10**7, 9_999, 10_000])
    together = make_mixture(tasks, data, 3)(positions)
    alone = [make_mixture(tasks, data, 3)(position) for position in positions]
    assert [int(e[0]) for e, _ in alone] == together[0].tolist()
    assert [int(i[0]) for _, i in alone] == together[1].tolist()


def test_blocks_and_seeds_are_arranged_differently():
    tasks = ranges(a=50, b=50)
    orders = {
        tuple(owners(tasks, Mixture(tasks, {"a": 1, "b": 1}, seed)(start + np.arange(200))[1]))
        for start, seed in itertools.product((0, 10_000, 20_000), range(3))
    }
    assert len(orders) == 9


def test_a_task_keeps_its_order_whatever_it_is_mixed_with():
    def stream(tasks, shares):
        epochs, indices = Mixture(tasks, shares, 4)(np.arange(3000))
        mine = np.isin(indices, tasks["a"])
        places = indices[mine] - tasks["a"].start
        return list(zip(epochs[mine].tolist(), places.tolist(), strict=True))[:500]

    expected = stream(ranges(a=90, b=50), {"a": 1, "b": 1})
    assert len(expected) == 500
    assert stream(ranges(c=10, b=70, a=90), {"b": 1, "c": 1, "a": 2}) == expected


def test_several_shuffles_at_once_are_the_same_as_each_alone():
    sizes, seeds = [1, 2, 5, 64, 65, 1000], [0, 3, 2**64 - 1, 7, 7, 2**40]
    positions = np.array([4, 3, 17, 200, 64, 12_345])
    epochs, indices = shuffled(positions, np.array(sizes), np.array(seeds, np.uint64))
    for place, one in enumerate(zip(positions, sizes, seeds, strict=True)):
        expected = shuffled(*one)
        assert (epochs[place], indices[place]) == (expected[0][0], expected[1][0])


def test_the_shuffle_of_all_sets_stays_what_it_was():
    """Checkpoints of older runs go on in their own order."""
    assert shuffled(np.arange(10), 10, 7)[1].tolist() == [2, 7, 1, 3, 4, 0, 8, 5, 6, 9]
    far = shuffled([5, 10**9 - 1, 3 * 10**9 + 12345], 10**9, 1)
    assert far[1].tolist() == [684591900, 58636507, 208971685]


def test_orders_that_differ_are_told_apart():
    tasks = ranges(a=10, b=30)
    mixtures = [
        Mixture(tasks, {"a": 1, "b": 1}, 0),
        Mixture(tasks, {"a": 1, "b": 2}, 0),
        Mixture(tasks, {"b": 1}, 0),
        Mixture(ranges(a=11, b=29), {"a": 1, "b": 1}, 0),
        Mixture(ranges(a=10, c=30), {"a": 1, "c": 1}, 0),
    ]
    assert len({mixture.fingerprint for mixture in mixtures}) == 5
    # The same shares in another unit are the same order.
    assert Mixture(tasks, {"a": 0.5, "b": 0.5}, 0).fingerprint == mixtures[0].fingerprint


def test_no_pair_comes_in_the_same_wordings_before_it_came_in_all_others():
    source = TaskPairs(builtin_tasks(32, 0), 0)
    names = list(source.tasks)
    mixture = Mixture(source.tasks, {names[0]: 9, names[3]: 1}, 0)
    shown = collections.defaultdict(list)
    for epoch, index in zip(*(part.tolist() for part in mixture(np.arange(2500))), strict=True):
        shown[index].append(tuple(p.text for p in source.get(index, epoch).sequences[:2]))
    assert len(shown) == len(source.tasks[names[0]]) + len(source.tasks[names[3]])
    choices = 10 * 9  # ordered choices of two of the ten training wordings
    longest = max(map(len, shown.values()))
    assert longest > 2 * choices
    for prompts in shown.values():
        for start in range(0, len(prompts), choices):
            cycle = prompts[start : start + choices]
            assert len(set(cycle)) == len(cycle)


def test_the_note_gives_the_shares():
    mixture = Mixture(ranges(a=10, b=30), {"a": 1, "b": 3}, 0)
    assert mixture.note == "mixture, kept in every 10,000 sets: b 75%, a 25%"
    many = Mixture(ranges(**{f"t{n}": 5 for n in range(40)}), {f"t{n}": 1 for n in range(40)}, 0)
    assert many.note.endswith("t9 2.5%, 30 others down to t39 2.5%")
