"""The batches that training reads: order, resume, hosts, errors, threads."""

import collections
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from coin_jax.config import BatchConfig
from coin_jax.data.packing import TokenizedSet
from coin_jax.data.pipeline import BatchPipeline

SMALL = BatchConfig(
    rows=8, encoder_length=32, decoder_length=12, segments_per_row=4, window=8, shards=4
)
EOS = 1


class Source:
    """Sets of 2 or 4 sequences that tell in their tokens which set, epoch and member they are."""

    def __init__(self, size=50, fails_at=None):
        self.size, self.fails_at = size, fails_at
        self.error = KeyError("line 7 of some file")

    def __len__(self):
        return self.size

    def tokenized(self, index, epoch):
        if index == self.fails_at:
            raise self.error
        pairs = 1 + index % 2
        random = np.random.default_rng(index)
        lengths = random.integers(2, 14, 2 * pairs)

        def sequence(member, length):
            name = 1000 * epoch + 10 * index + member + 2
            return np.array([name] * (length - 1) + [EOS], np.int32)

        return TokenizedSet(
            [sequence(member, length) for member, length in enumerate(lengths)],
            [sequence(member, 2) for member in range(2 * pairs)],
            tuple(index for _ in range(pairs)),
            cut=int(index == 3),
        )


def sets_of(batch):
    """(epoch, index) -> members found in the batch; each sequence is checked to be whole."""
    found = collections.defaultdict(list)
    for row, segments in zip(batch["encoder_tokens"], batch["encoder_segment_ids"], strict=True):
        for number in range(1, segments.max() + 1):
            tokens = row[segments == number]
            name = int(tokens[0]) - 2
            assert tokens[-1] == EOS
            assert len(tokens) == 1 or set(tokens[:-1].tolist()) == {name + 2}
            found[divmod(name // 10, 100)].append(name % 10)
    return found


def take(count, **arguments):
    config = arguments.pop("config", SMALL)
    source = arguments.pop("source", None) or Source()
    with BatchPipeline(source, config, arguments.pop("seed", 5), **arguments) as pipeline:
        batches, states = [], []
        for _ in range(count):
            batches.append(next(pipeline))
            states.append(pipeline.state())
    return batches, states


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.fixture(scope="module")
def straight():
    return take(30)


def test_batches_have_the_shapes_and_types_of_the_contract(straight):
    shapes = {
        "encoder_tokens": (8, 32),
        "encoder_segment_ids": (8, 32),
        "decoder_inputs": (8, 12),
        "decoder_targets": (8, 12),
        "decoder_segment_ids": (8, 12),
        "pair_members": (16, 2),
        "pair_sets": (16,),
        "pair_contents": (16,),
    }
    for batch in straight[0]:
        assert {name: array.shape for name, array in batch.items()} == shapes
        assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}


def test_all_sequences_of_a_set_stand_in_the_same_batch(straight):
    for batch in straight[0]:
        for (_, index), members in sets_of(batch).items():
            assert sorted(members) == list(range(2 + 2 * (index % 2)))


def test_no_set_is_lost_or_doubled_within_an_epoch(straight):
    counts = collections.Counter(key for batch in straight[0] for key in sets_of(batch))
    assert set(counts.values()) == {1}
    state = straight[1][-1]
    epochs_done = min(state[f"position_{shard}"] * 4 + shard for shard in range(4)) // 50
    assert epochs_done >= 3
    for epoch in range(epochs_done):
        assert {index for e, index in counts if e == epoch} == set(range(50))


def test_pairs_are_slots_of_one_set_in_its_order(straight):
    for batch in straight[0]:
        members = batch["pair_members"]
        used = members[:, 0] >= 0
        assert (used == (batch["pair_sets"] >= 0)).all()
        assert (used == (batch["pair_contents"] >= 0)).all()
        slots = members[used]
        assert len(np.unique(slots)) == slots.size
        rows, segments = np.divmod(slots, 4)
        owners = np.empty_like(slots)
        for at in np.ndindex(*slots.shape):
            in_row = batch["encoder_segment_ids"][rows[at]] == segments[at] + 1
            owners[at] = batch["encoder_tokens"][rows[at]][in_row][0] - 2
        assert (owners[:, 1] - owners[:, 0] == 1).all()
        assert (owners // 10 == owners[:, :1] // 10).all()
        assert (owners[:, 0] // 10 % 100 == batch["pair_contents"][used]).all()
        # Equal set numbers mean one set, and its pairs stand next to each other.
        for number in np.unique(batch["pair_sets"][used]):
            places = np.flatnonzero(batch["pair_sets"] == number)
            assert len(places) == places[-1] - places[0] + 1 <= 2
            owned = owners[np.isin(np.flatnonzero(used), places)] // 10
            assert len(np.unique(owned)) == 1
        sets = len(np.unique(owners // 10))
        assert sets == len(np.unique(batch["pair_sets"][used]))


def test_the_same_seed_gives_the_same_batches_and_another_one_others(straight):
    again, states = take(30)
    for one, other in zip(straight[0], again, strict=True):
        assert_same(one, other)
    assert states == straight[1]
    assert sets_of(take(1, seed=6)[0][0]).keys() != sets_of(straight[0][0]).keys()


@pytest.mark.parametrize("step", range(0, 27, 3))
def test_a_run_stopped_after_any_step_goes_on_with_the_same_batches(straight, step):
    saved = json.loads(json.dumps(straight[1][step]))
    assert all(type(value) is int for value in saved.values())
    resumed, states = take(3, start_state=saved)
    for number in range(3):
        assert_same(resumed[number], straight[0][step + 1 + number])
        assert states[number] == straight[1][step + 1 + number]


def test_the_state_belongs_to_the_batch_handed_out_however_many_are_prefetched():
    states = {}
    for prefetch in (1, 16):
        config = SMALL.__class__(**(vars(SMALL) | {"prefetch": prefetch}))
        with BatchPipeline(Source(), config, 5) as pipeline:
            before = pipeline.state()
            next(pipeline)
            threading.Event().wait(0.2)  # time for the prefetching to run ahead
            states[prefetch] = (before, pipeline.state())
    assert states[1] == states[16]
    assert states[1][0] != states[1][1]


@pytest.mark.parametrize("hosts", [2, 4])
def test_any_number_of_hosts_makes_the_same_global_batches(straight, hosts):
    parts = [take(5, host_index=host, host_count=hosts) for host in range(hosts)]
    for step in range(5):
        batches = [part[0][step] for part in parts]
        joined = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
        assert_same(joined, straight[0][step])
        union = {}
        for part in parts:
            union |= part[1][step]
        assert union == straight[1][step]
    # The joined state fits another number of hosts.
    other, _ = take(1, host_index=1, host_count=2, start_state=union)
    for name, array in other[0].items():
        half = len(array)
        np.testing.assert_array_equal(array, straight[0][5][name][half:])


def test_hosts_can_exchange_their_states_so_that_each_knows_all(straight):
    sent = []

    def first_host(array):
        assert array.dtype == np.int32  # jax would cut wider ones
        sent.append(array)
        return np.stack([array, array])

    take(5, host_index=0, host_count=2, gather=first_host)
    received = iter(sent)
    _, states = take(
        5,
        host_index=1,
        host_count=2,
        gather=lambda array: np.stack([next(received), array]),
    )
    assert states == straight[1][:5]


@pytest.mark.parametrize("size", [1, 3, 7])
def test_fewer_sets_than_a_batch_or_than_shards_are_repeated_by_epochs(size):
    batches, _ = take(6, source=Source(size))
    counts = collections.Counter(key for batch in batches for key in sets_of(batch))
    assert set(counts.values()) == {1}
    assert {index for _, index in counts} == set(range(size))
    for batch in batches:
        assert np.count_nonzero(batch["encoder_tokens"]) > 0.5 * batch["encoder_tokens"].size


def test_the_start_token_begins_every_target():
    batch = take(1, decoder_start_token_id=999)[0][0]
    segments = batch["decoder_segment_ids"]
    begins = (np.diff(segments, axis=1, prepend=0) > 0) & (segments > 0)
    assert ((batch["decoder_inputs"] == 999) == begins).all()
    within = (segments > 0) & ~begins
    np.testing.assert_array_equal(
        batch["decoder_inputs"][within], np.roll(batch["decoder_targets"], 1, axis=1)[within]
    )
    assert not batch["decoder_inputs"][segments == 0].any()


def test_statistics_count_what_was_handed_out():
    with BatchPipeline(Source(), SMALL, 5) as pipeline:
        assert pipeline.statistics()["batches"] == 0
        batches = [next(pipeline) for _ in range(12)]
        statistics = pipeline.statistics()
    found = [sets_of(batch) for batch in batches]
    assert statistics["batches"] == 12
    assert statistics["sets"] == sum(map(len, found))
    assert statistics["sequences"] == sum(len(m) for sets in found for m in sets.values())
    assert statistics["pairs"] == statistics["sequences"] // 2
    assert statistics["cut"] == sum(index == 3 for sets in found for _, index in sets)
    for side, length in (("encoder", 32), ("decoder", 12)):
        filled = sum(np.count_nonzero(batch[f"{side}_segment_ids"]) for batch in batches)
        assert statistics[f"{side}_tokens"] == filled
        assert statistics[f"{side}_padding"] == pytest.approx(1 - filled / (12 * 8 * length))
    # The shard that is furthest behind tells the epoch.
    assert 0 < statistics["epoch"] <= statistics["sets"] / 50


def test_an_error_of_the_source_comes_out_as_it_is_after_the_batches_before_it():
    source = Source(fails_at=20)
    with BatchPipeline(source, SMALL, 5) as pipeline:
        with pytest.raises(KeyError) as raised:
            list(pipeline)
        assert raised.value is source.error
        assert pipeline.statistics()["batches"] >= 1
        with pytest.raises(KeyError):
            next(pipeline)


def test_a_set_that_fits_no_batch_is_named():
    class Long(Source):
        def tokenized(self, index, epoch):
            item = super().tokenized(index, epoch)
            long = [np.ones(40, np.int32)] * len(item.encoder)
            return item._replace(encoder=long) if index == 20 else item

    with (
        BatchPipeline(Long(), SMALL, 5) as pipeline,
        pytest.raises(ValueError, match=r"item 20 of the data in epoch 0: .*40 input"),
    ):
        list(pipeline)


@pytest.mark.parametrize(
    ("changes", "hosts", "message"),
    [
        ({"rows": 10}, 1, "batch.rows = 10 .* batch.shards = 4"),
        ({}, 3, "batch.shards = 4 .* number of hosts, 3"),
        ({"window": 65}, 1, "batch.window = 65"),
        ({"rows": 4, "segments_per_row": 3}, 1, "batch.segments_per_row = 3"),
    ],
)
def test_configs_that_make_no_batches_are_refused(changes, hosts, message):
    config = BatchConfig(**(vars(SMALL) | changes))
    with pytest.raises(ValueError, match=message):
        BatchPipeline(Source(), config, 5, host_count=hosts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 6}, "seed = 5, now it is 6"),
        ({"source": Source(51)}, "sets = 50, now it is 51"),
        ({"host_index": 1, "host_count": 2}, r"shards \[2, 3\]"),
    ],
)
def test_a_position_in_another_order_of_data_is_refused(arguments, message):
    state = take(1, host_index=0, host_count=2)[1][0]
    with pytest.raises(ValueError, match=message):
        take(1, start_state=state, **arguments)


def test_a_closed_pipeline_is_over_and_leaves_no_thread_in_python():
    source = Source()
    asked = []
    tokenized = source.tokenized
    source.tokenized = lambda index, epoch: asked.append(index) or tokenized(index, epoch)
    pipeline = BatchPipeline(source, SMALL, 5)
    next(pipeline)
    pipeline.close()
    pipeline.close()
    assert list(pipeline) == []
    threading.Event().wait(0.1)
    count = len(asked)
    threading.Event().wait(0.2)
    assert len(asked) == count


SCRIPT = """
    import sys, time
    import coin_jax.data.packing, coin_jax.data.pipeline
    assert "tensorflow" not in sys.modules, "TensorFlow is to be imported when a pipeline starts"
    sys.path.insert(0, {folder!r})
    from test_pipeline import SMALL, Source
    source = Source()
    tokenized = source.tokenized
    source.tokenized = lambda *where: time.sleep(0.01) or tokenized(*where)
    pipeline = coin_jax.data.pipeline.BatchPipeline(source, SMALL, 5)
    next(pipeline)
    assert not sys.modules["tensorflow"].config.get_visible_devices("GPU")
    print("first batch", flush=True)
"""


def start_script(more="", first=""):
    here = pathlib.Path(__file__).parent
    script = first + textwrap.dedent(SCRIPT.format(folder=str(here))) + more
    hidden = {"TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS"}
    return subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=here.parent,
        env={name: value for name, value in os.environ.items() if name not in hidden},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process, timeout=60):
    try:
        return process.communicate(timeout=timeout)
    finally:
        process.kill()


def test_a_program_that_forgets_to_close_ends_cleanly_and_quietly():
    process = start_script()
    assert finished(process) == ("first batch\n", "")
    assert process.returncode == 0


def test_ctrl_c_ends_a_program_that_waits_for_batches():
    # Set by hand because a shell's background jobs are started with Ctrl-C ignored.
    python_s_own = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    process = start_script("while True: next(pipeline)\n", first=python_s_own)
    assert process.stdout.readline() == "first batch\n"
    process.send_signal(signal.SIGINT)
    _, errors = finished(process)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode in (1, 130, -signal.SIGINT)


def test_the_batch_that_was_waited_for_at_a_ctrl_c_comes_next(straight):
    goes_on = threading.Event()

    class Waiting(Source):
        def tokenized(self, index, epoch):
            goes_on.wait()
            return super().tokenized(index, epoch)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    with BatchPipeline(Waiting(), SMALL, 5) as pipeline:
        main_thread = threading.get_ident()
        threading.Timer(0.2, signal.pthread_kill, (main_thread, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            next(pipeline)
        signal.signal(signal.SIGINT, handler)
        goes_on.set()
        for expected in straight[0][:3]:
            assert_same(next(pipeline), expected)
