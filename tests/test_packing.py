"""The order of the data, the packing of rows and the arrays of a batch."""

import collections
import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from coin_jax.data.order import random_bits, shuffled
from coin_jax.data.packing import (
    Batch,
    PackedStream,
    PackingError,
    Room,
    TokenizedSet,
    assemble,
    place,
)


def ids(*tokens):
    return np.array(tokens, np.int32)


def flan_like(count, *, members, seed=0, longest=256):
    """Sets with lengths like FLAN's: log-normal, median 70, cut at 256; answers up to 16."""
    random = np.random.default_rng(seed)
    sets = []
    for number in range(count):
        lengths, answers = [], []
        for _ in range(members // 2):
            length = np.clip(random.lognormal(np.log(70), 0.7), 4, longest)
            other_wording = np.clip(length + random.integers(-15, 16), 4, longest)
            lengths += [int(length), int(other_wording)]
            answers += 2 * [int(np.clip(random.lognormal(np.log(5), 0.6), 2, 16))]
        sets.append(
            TokenizedSet(
                [np.full(length, number + 2, np.int32) for length in lengths],
                [np.full(length, number + 2, np.int32) for length in answers],
                tuple(range(members // 2)),
            )
        )
    return sets


# --- order


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_each_epoch_is_a_permutation(size):
    epochs, indices = shuffled(np.arange(3 * size), size, seed=7)
    assert epochs.tolist() == [epoch for epoch in range(3) for _ in range(size)]
    for epoch in range(3):
        assert sorted(indices[epochs == epoch]) == list(range(size))


def test_epochs_and_seeds_are_ordered_differently():
    orders = [
        tuple(shuffled(np.arange(100) + 100 * epoch, 100, seed)[1])
        for epoch, seed in itertools.product(range(5), range(5))
    ]
    assert len(set(orders)) == 25


def test_a_position_can_be_asked_alone_even_in_a_billion():
    size = 10**9
    together = shuffled([5, size - 1, 3 * size + 12345], size, seed=1)
    alone = [shuffled(p, size, seed=1) for p in (5, size - 1, 3 * size + 12345)]
    assert [int(e[0]) for e, _ in alone] == together[0].tolist() == [0, 0, 3]
    assert [int(i[0]) for _, i in alone] == together[1].tolist()
    assert all(0 <= i < size for i in together[1])


def test_the_shuffle_favours_no_index_and_keeps_no_neighbours():
    size, seeds = 10, 3000
    orders = np.array([shuffled(np.arange(size), size, seed)[1] for seed in range(seeds)])
    counts = np.array([np.bincount(column, minlength=size) for column in orders.T])
    expected = seeds / size
    # 10 columns of a chi-square with 9 degrees of freedom: 35 is exceeded once in 17 thousand.
    assert ((counts - expected) ** 2 / expected).sum(axis=1).max() < 35
    order = shuffled(np.arange(10_000), 10_000, seed=0)[1]
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.04
    assert np.count_nonzero(np.diff(order) == 1) < 10


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="empty"):
        shuffled([0], 0, seed=0)


def test_random_bits_never_change():
    # SplitMix64's published first outputs for the seed 1234567 pin the hash itself.
    from coin_jax.data.order import _mix

    steps = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert _mix(np.uint64(1234567) + steps).tolist() == expected
    assert random_bits(3, 1, 2).tolist() == random_bits(5, 1, 2)[:3].tolist()
    assert random_bits(1, 1, 2) != random_bits(1, 2, 1)


# --- placing sequences in rows

_SIZES = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 8)), max_size=24)


@hypothesis.given(_SIZES, st.integers(1, 5), st.integers(1, 5))
@hypothesis.settings(deadline=None, max_examples=200, derandomize=True)
def test_placed_sequences_fit_their_rows(sizes, rows, segments):
    room = Room(rows, 20, 8, segments)
    found = place(sizes, room)
    if found is None:
        # One row a sequence always works, so refusing needs more sequences than rows.
        assert len(sizes) > rows
        return
    assert len(found) == len(sizes)
    for row in range(rows):
        members = [size for size, at in zip(sizes, found, strict=True) if at == row]
        assert len(members) <= segments
        assert sum(encoder for encoder, _ in members) <= 20
        assert sum(decoder for _, decoder in members) <= 8
    assert set(found) <= set(range(rows))


def test_a_perfect_fit_is_found():
    sizes = [(5, 1), (6, 1), (4, 1), (5, 1), (7, 1), (3, 1)]
    assert place(sizes, Room(3, 10, 8, 4)) is not None
    assert place([*sizes, (1, 1)], Room(3, 10, 8, 4)) is None


@pytest.mark.parametrize(
    ("sizes", "room"),
    [
        ([(6, 1), (6, 1)], Room(1, 10, 8, 4)),
        ([(1, 5), (1, 5)], Room(1, 10, 8, 4)),
        ([(1, 1)] * 5, Room(1, 10, 8, 4)),
    ],
    ids=["encoder", "decoder", "segments"],
)
def test_each_limit_of_a_row_is_kept(sizes, room):
    assert place(sizes, room) is None
    assert place(
        sizes, Room(2, *(getattr(room, f) for f in ("encoder_length", "decoder_length")), 4)
    )


# --- the stream


class Stream:
    """fetch(position) that remembers what was asked."""

    def __init__(self, sets):
        self.sets, self.asked = sets, []

    def __call__(self, position):
        self.asked.append(position)
        item = self.sets[position % len(self.sets)]
        return item._replace(cut=position)  # the position is carried along for the tests


@pytest.mark.parametrize("members", [2, 4])
@pytest.mark.parametrize("window", [1, 16, 64])
def test_no_set_is_lost_or_doubled_and_none_waits_long(members, window):
    stream = PackedStream(Stream(flan_like(500, members=members)), Room(16, 256, 48, 8), window)
    seen = []
    while stream.position < 1500:
        first_in_turn = stream.position
        positions = [item.cut for item in stream.next_batch().sets]
        assert positions[0] == first_in_turn
        assert positions == sorted(positions)
        seen += positions
        assert max(seen) < stream.position + window
    counts = collections.Counter(seen)
    assert set(counts.values()) == {1}
    assert set(range(stream.position)) <= set(counts)
    if window == 1:
        assert seen == list(range(len(seen)))


def test_every_batch_can_be_continued_from_two_integers():
    sets, room = flan_like(300, members=4), Room(8, 256, 48, 8)
    straight = PackedStream(Stream(sets), room)
    states, batches = [], []
    for _ in range(60):
        states.append((straight.position, straight.taken))
        batches.append(straight.next_batch())
    assert any(taken for _, taken in states)
    assert all(0 <= taken < 2**63 for _, taken in states)
    for state, expected in zip(states, batches, strict=True):
        fetch = Stream(sets)
        resumed = PackedStream(fetch, room, 16, *state).next_batch()
        assert resumed.rows == expected.rows
        assert [item.cut for item in resumed.sets] == [item.cut for item in expected.sets]
        assert min(fetch.asked) == state[0]
        # Going on costs one batch and the look-ahead, however far the run had come.
        assert len(fetch.asked) < len(expected.sets) + 2 * 16


def test_what_was_fetched_ahead_can_be_fetched_again():
    fetch, room = Stream(flan_like(300, members=2)), Room(8, 256, 48, 8)
    stream, straight = PackedStream(fetch, room), PackedStream(Stream(fetch.sets), room)
    for _ in range(20):
        stream.restart()
        fetch.asked.clear()
        positions = [item.cut for item in stream.next_batch().sets]
        assert positions == [item.cut for item in straight.next_batch().sets]
        assert set(positions) <= set(fetch.asked)
        assert (stream.position, stream.taken) == (straight.position, straight.taken)


def test_going_on_with_another_window_and_other_rows_loses_nothing():
    sets, seen, state = flan_like(300, members=4), [], (0, 0)
    for rows, window in [(8, 64), (2, 1), (4, 16), (8, 64), (3, 2)] * 20:
        stream = PackedStream(Stream(sets), Room(rows, 512, 64, 8), window, *state)
        seen += [item.cut for item in stream.next_batch().sets]
        state = stream.position, stream.taken
    assert len(seen) == len(set(seen))
    assert set(range(stream.position)) <= set(seen)


@pytest.mark.parametrize(("rows", "bound"), [(8, 0.07), (16, 0.05), (64, 0.03)])
@pytest.mark.parametrize("members", [2, 4])
def test_padding_stays_below_its_bound_on_lengths_like_flans(members, rows, bound):
    room = Room(rows, 256, 48, 8)
    stream = PackedStream(Stream(flan_like(3000, members=members)), room)
    filled, batches = 0, 2400 // rows
    for _ in range(batches):
        filled += sum(len(side) for item in stream.next_batch().sets for side in item.encoder)
    assert 1 - filled / (batches * rows * 256) < bound < 0.10


def test_a_set_larger_than_a_batch_is_an_error_with_its_position_and_a_remedy():
    good = TokenizedSet([ids(2, 1)] * 2, [ids(2, 1)] * 2, (0,))
    bad = TokenizedSet([np.ones(9, np.int32)] * 4, [ids(1)] * 4, (0, 1))
    stream = PackedStream(Stream([good] * 8 + [bad]), Room(2, 10, 8, 4))
    batches = iter(stream.next_batch, None)
    assert [len(batch.sets) for batch in itertools.islice(batches, 2)] == [4, 4]
    with pytest.raises(PackingError, match=r"4 sequences \(9 input.*does not fit.*2 rows") as error:
        next(batches)
    assert error.value.position == 8


@pytest.mark.parametrize("lengths", [(11, 1), (1, 9), (0, 1), (1, 0)])
def test_a_sequence_that_fits_no_row_is_an_error(lengths):
    encoder, decoder = (np.ones(length, np.int32) for length in lengths)
    stream = PackedStream(Stream([TokenizedSet([encoder], [decoder])]), Room(2, 10, 8, 4))
    with pytest.raises(PackingError, match=f"{lengths[0]} input and {lengths[1]} target"):
        stream.next_batch()


def test_impossible_states_and_windows_are_refused():
    for window in (0, 65):
        with pytest.raises(ValueError, match="window"):
            PackedStream(Stream([]), Room(2, 10, 8, 4), window)
    for state in ((-1, 0), (0, -1), (0, 2**63)):
        with pytest.raises(ValueError, match="state"):
            PackedStream(Stream([]), Room(2, 10, 8, 4), 16, *state)


# --- the arrays


def test_the_arrays_of_a_batch_worked_out_by_hand():
    pair = TokenizedSet(
        [ids(11, 12, 1), ids(21, 1)], [ids(31, 1), ids(31, 1)], contents=(77,), cut=0
    )
    quad = TokenizedSet(
        [ids(41, 1), ids(51, 1), ids(61, 1), ids(71, 72, 73, 1)],
        [ids(81, 1), ids(81, 1), ids(91, 92, 1), ids(91, 92, 1)],
        contents=(78, 79),
    )
    room = Room(rows=3, encoder_length=6, decoder_length=6, segments=2)
    arrays = assemble(Batch([pair, quad], [1, 0, 0, 1, 2, 2]), room, decoder_start_token_id=9)
    expected = {
        "encoder_tokens": [[21, 1, 41, 1, 0, 0], [11, 12, 1, 51, 1, 0], [61, 1, 71, 72, 73, 1]],
        "encoder_segment_ids": [[1, 1, 2, 2, 0, 0], [1, 1, 1, 2, 2, 0], [1, 1, 2, 2, 2, 2]],
        "decoder_inputs": [[9, 31, 9, 81, 0, 0], [9, 31, 9, 81, 0, 0], [9, 91, 92, 9, 91, 92]],
        "decoder_targets": [[31, 1, 81, 1, 0, 0], [31, 1, 81, 1, 0, 0], [91, 92, 1, 91, 92, 1]],
        "decoder_segment_ids": [[1, 1, 2, 2, 0, 0], [1, 1, 2, 2, 0, 0], [1, 1, 1, 2, 2, 2]],
        # slots: row * 2 + segment - 1
        "pair_members": [[2, 0], [1, 3], [4, 5]],
        "pair_sets": [0, 1, 1],
        "pair_contents": [77, 78, 79],
    }
    assert arrays.keys() == expected.keys()
    for name, values in expected.items():
        assert arrays[name].dtype == np.int32, name
        assert arrays[name].tolist() == values, name


def test_slots_and_sets_are_counted_in_the_global_batch():
    pair = TokenizedSet([ids(2, 1), ids(3, 1)], [ids(4, 1)] * 2, (5,))
    room = Room(2, 4, 4, 4)
    arrays = assemble(
        Batch([pair], [0, 1]), room, decoder_start_token_id=0, first_row=10, first_set=40
    )
    assert arrays["pair_members"].tolist() == [[40, 44], [-1, -1], [-1, -1], [-1, -1]]
    assert arrays["pair_sets"].tolist() == [40, -1, -1, -1]
    assert arrays["encoder_tokens"].tolist() == [[2, 1, 0, 0], [3, 1, 0, 0]]


def test_plain_text_makes_no_pairs():
    text = TokenizedSet([ids(2, 1)], [ids(3, 1)])
    arrays = assemble(Batch([text, text], [0, 0]), Room(1, 4, 4, 4), decoder_start_token_id=0)
    for name in ("pair_members", "pair_sets", "pair_contents"):
        assert (arrays[name] == -1).all()


def test_contents_that_do_not_match_the_sequences_are_refused():
    text = TokenizedSet([ids(2, 1)], [ids(3, 1)], contents=(1,))
    with pytest.raises(PackingError, match="1 sequences"):
        assemble(Batch([text], [0]), Room(1, 4, 4, 4), decoder_start_token_id=0)


@hypothesis.given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4]))
@hypothesis.settings(deadline=None, max_examples=40, derandomize=True)
def test_every_set_can_be_read_back_from_the_arrays(seed, members):
    random = np.random.default_rng(seed)
    room = Room(6, 24, 12, 4)

    def sequence(longest):
        return random.integers(2, 99, random.integers(1, longest + 1)).astype(np.int32)

    contents = tuple(range(members // 2))
    sets = [
        TokenizedSet(
            [sequence(24) for _ in range(members)], [sequence(6) for _ in range(members)], contents
        )
        for _ in range(20)
    ]
    batch = PackedStream(Stream(sets), room).next_batch()
    arrays = assemble(batch, room, decoder_start_token_id=5)

    def segment(name, side, slot):
        row, number = divmod(slot, room.segments)
        return arrays[name][row][arrays[f"{side}_segment_ids"][row] == number + 1].tolist()

    found = collections.Counter()
    for slot in range(room.rows * room.segments):
        target = segment("decoder_targets", "decoder", slot)
        found[tuple(segment("encoder_tokens", "encoder", slot)), tuple(target)] += 1
        assert segment("decoder_inputs", "decoder", slot) == [5, *target[:-1]][: len(target)]
    del found[(), ()]
    expected = collections.Counter(
        (tuple(e.tolist()), tuple(d.tolist()))
        for item in batch.sets
        for e, d in zip(item.encoder, item.decoder, strict=True)
    )
    assert found == expected
    for side in ("encoder", "decoder"):
        for row in arrays[f"{side}_segment_ids"]:
            filled = np.count_nonzero(row)
            assert not row[filled:].any()
            assert set(np.diff(row[:filled])) <= {0, 1}
            assert row[0] in (0, 1)
    if members == 1:
        return
    slots = iter(arrays["pair_members"].tolist())
    for number, item in enumerate(batch.sets):
        for pair in range(members // 2):
            for member, slot in enumerate(next(slots)):
                expected = item.encoder[2 * pair + member].tolist()
                assert segment("encoder_tokens", "encoder", slot) == expected
            at = (members // 2) * number + pair
            assert arrays["pair_sets"][at] == number
            assert arrays["pair_contents"][at] == pair
    assert all(slot == [-1, -1] for slot in slots)
