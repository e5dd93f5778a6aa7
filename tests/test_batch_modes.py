"""Batches without pairs, with a wording of each instance's own or one for the whole batch, and
batches of mixtures: what they hold, and that they go on exactly."""

import dataclasses
import functools
import itertools
import json

import numpy as np
import pytest
from data_files import pair_rows, write_csv
from rich.console import Console

from coin_jax.config import BatchConfig, Config, DataConfig, TokenizerConfig
from coin_jax.data.builtin import builtin_tasks
from coin_jax.data.collection import make_pair_source
from coin_jax.data.mixture import Mixture
from coin_jax.data.packing import TokenizedSet
from coin_jax.data.pairs import TaskPairs, TokenizedInstances, TokenizedPairs
from coin_jax.data.pipeline import BatchPipeline
from coin_jax.data.sources import DataError
from coin_jax.data.tokenizer import ByteTokenizer
from coin_jax.train import build_data

EOS = 1
MODES = ("pairs", "mixed_wordings", "one_wording")
SMALL = BatchConfig(
    rows=8, encoder_length=32, decoder_length=12, segments_per_row=4, window=8, shards=4
)


@pytest.fixture(scope="module")
def builtin():
    return TaskPairs(builtin_tasks(160, 0), 0)


# Single instances


def wording_of(task, prompt) -> str:
    """The name of the training wording that the prompt is in."""
    (sentence,) = (piece.text for piece in prompt.pieces if piece.is_field)
    literals = tuple(piece.text for piece in prompt.pieces if not piece.is_field)
    options = "OPTIONS:\n- " + "\n- ".join(task.answers)
    (name,) = (
        wording.name
        for wording in task.training_wordings
        if wording.render({"sentence": sentence}, options, "").text == prompt.text
        and all(literal in wording.source or literal == options for literal in literals)
    )
    return name


def test_an_instance_alone_has_each_training_wording_once_before_one_returns(builtin):
    for name, members in builtin.tasks.items():
        task = next(task for task in builtin.definitions if task.name == name)
        for index in members[:3]:
            prompts = [builtin.single(index, epoch) for epoch in range(20)]
            names = [wording_of(task, prompt) for prompt in prompts]
            assert set(names[:10]) == {wording.name for wording in task.training_wordings}
            assert names[10:] == names[:10]
            leading = builtin.get(index, 0).sequences[0]
            assert {prompt.answer for prompt in prompts} == {leading.answer}
    first = {wording_of(task, builtin.single(index, 0)) for index in members}
    assert len(first) > 3  # in one epoch the instances of a task are asked differently


def test_all_instances_of_a_task_have_the_wording_of_the_turn(builtin):
    for name, members in builtin.tasks.items():
        task = next(task for task in builtin.definitions if task.name == name)
        cycle = []
        for turn in range(10):
            (wording,) = {
                wording_of(task, builtin.single(index, epoch, turn))
                for index, epoch in itertools.product(members[::7], range(3))
            }
            cycle.append(wording)
        assert set(cycle) == {wording.name for wording in task.training_wordings}


def test_ready_pairs_give_their_columns_as_wordings(tmp_path):
    # Rows of two tasks, in turns: their indices are neighbours all the same.
    both = (pair_rows(10), pair_rows(10, ("a", "b"), "letters"))
    rows = [row for rows in zip(*both, strict=True) for row in rows]
    file = str(write_csv(tmp_path / "pairs.csv", rows))
    held_out = str(write_csv(tmp_path / "held_out.csv", pair_rows(2)))
    data = DataConfig(source="pairs", files=(file,), evaluation_files=(held_out,))
    source = make_pair_source(data, 0)
    assert source.tasks == {"weather": range(10), "letters": range(10, 20)}
    for index in range(20):
        both = [source.single(index, epoch) for epoch in range(4)]
        assert {both[0].text[:2], both[1].text[:2]} == {"Is", "Te"}
        assert both[2:] == both[:2]
        assert (both[0].answer in "ab") == (index >= 10)
    for turn, members in itertools.product(range(2), source.tasks.values()):
        assert len({source.single(index, 0, turn).text[:2] for index in members}) == 1
    assert source.single(0, 0, 0).text[:2] != source.single(0, 0, 1).text[:2]
    assert len({source.single(index, 0).text[:2] for index in range(20)}) == 2


@pytest.mark.parametrize(("mode", "sets"), [("pairs", 10), ("mixed_wordings", 20)])
def test_without_pairs_hard_negatives_of_a_file_are_instances_like_others(tmp_path, mode, sets):
    file = str(write_csv(tmp_path / "pairs.csv", pair_rows(20)))
    data = DataConfig("pairs", (file,), (file,), odd_rows_are_hard_negatives=True)
    config = Config(
        output=str(tmp_path),
        data=data,
        tokenizer=TokenizerConfig(kind="bytes"),
        batch=BatchConfig(mode=mode),
    )
    _, source, _, _ = build_data(config, None, Console(quiet=True), lambda text: None)
    assert len(source) == sets


def test_tokenized_instances_are_single_sequences_that_form_no_pairs(builtin):
    instances = TokenizedInstances(builtin, ByteTokenizer(), BatchConfig())
    assert len(instances) == len(builtin)
    for arguments in ((7, 2), (7, 2, 5)):
        prompt, tokens = builtin.single(*arguments), instances.tokenized(*arguments)
        (encoder,), (decoder,) = tokens.encoder, tokens.decoder
        assert encoder.tolist() == [byte + 3 for byte in prompt.text.encode()] + [EOS]
        assert decoder.tolist() == [byte + 3 for byte in prompt.answer.encode()] + [EOS]
        assert tokens.contents == ()
        assert tokens.cut == 0
    short = TokenizedInstances(builtin, ByteTokenizer(), BatchConfig(encoder_length=200))
    cut = [short.tokenized(index, 0) for index in range(len(short))]
    assert all(len(tokens.encoder[0]) <= 200 for tokens in cut)


# Batches


class Source:
    """Sequences that tell in their tokens which index, epoch and turn they are."""

    def __init__(self, size=50):
        self.size = size

    def __len__(self):
        return self.size

    def tokenized(self, index, epoch, turn=-1):
        # Another wording has another length.
        length = int(np.random.default_rng((index, turn + 1)).integers(4, 14))
        sequence = np.array([index + 2, epoch + 2, turn + 2] + [2] * (length - 4) + [EOS], np.int32)
        return TokenizedSet([sequence], [sequence[[0, -1]]])


def found_in(batch) -> list[tuple[int, int, int]]:
    """(index, epoch, turn) of the batch's sequences, each checked to have its own target."""
    found = []
    for row, segments in enumerate(batch["encoder_segment_ids"]):
        for number in range(1, segments.max() + 1):
            tokens = batch["encoder_tokens"][row][segments == number]
            target = batch["decoder_targets"][row][batch["decoder_segment_ids"][row] == number]
            assert tokens[[0, -1]].tolist() == target.tolist()
            found.append(tuple((tokens[:3] - 2).tolist()))
    return found


def mixture() -> Mixture:
    return Mixture({"a": range(40), "b": range(40, 50)}, {"a": 1, "b": 1}, 3)


CASES = {
    "mixed": ({"mode": "mixed_wordings"}, None),
    "one": ({"mode": "one_wording"}, None),
    "one, one shard": ({"mode": "one_wording", "shards": 1}, None),
    "mixture": ({"mode": "mixed_wordings"}, mixture()),
    "mixture, one": ({"mode": "one_wording", "shards": 2}, mixture()),
}


def take(count, case, **arguments):
    changes, order = CASES[case]
    config = dataclasses.replace(SMALL, **changes)
    with BatchPipeline(Source(), config, 5, mixture=order, **arguments) as pipeline:
        batches, states = [], []
        for _ in range(count):
            batches.append(next(pipeline))
            states.append(pipeline.state())
    return batches, states


@functools.cache
def straight(case):
    return take(20, case)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_every_instance_comes_once_in_its_epoch_and_forms_no_pair(case):
    batches, _ = straight(case)
    for batch in batches:
        for name in ("pair_members", "pair_sets", "pair_contents"):
            assert (batch[name] == -1).all()
    found = [entry[:2] for batch in batches for entry in found_in(batch)]
    assert len(set(found)) == len(found) > 300
    if "mixture" not in case:
        assert {index for index, epoch in found if epoch == 2} == set(range(50))
    else:
        assert abs(sum(index < 40 for index, _ in found) / len(found) - 0.5) < 0.05


@pytest.mark.parametrize("case", ["one", "one, one shard", "mixture, one"])
def test_the_whole_global_batch_has_the_turn_of_its_number(case):
    for number, batch in enumerate(straight(case)[0]):
        assert {turn for _, _, turn in found_in(batch)} == {number}


def test_without_one_wording_no_turn_is_given():
    assert {turn for batch in straight("mixed")[0] for _, _, turn in found_in(batch)} == {-1}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("step", [0, 3, 10, 16])
def test_a_run_stopped_after_any_step_goes_on_with_the_same_batches(case, step):
    batches, states = straight(case)
    saved = json.loads(json.dumps(states[step]))
    assert saved["batch"] == step + 1
    resumed, resumed_states = take(3, case, start_state=saved)
    for number in range(3):
        assert_same(resumed[number], batches[step + 1 + number])
    assert resumed_states == states[step + 1 : step + 4]


@pytest.mark.parametrize("case", ["one", "mixture, one"])
def test_any_number_of_hosts_makes_the_same_global_batches(case):
    batches, states = straight(case)
    parts = [take(4, case, host_index=host, host_count=2) for host in range(2)]
    for step in range(4):
        here = [part[0][step] for part in parts]
        assert_same({n: np.concatenate([b[n] for b in here]) for n in here[0]}, batches[step])
        assert parts[0][1][step] | parts[1][1][step] == states[step]


def test_a_position_of_before_batches_were_counted_goes_on():
    batches, states = straight("mixed")
    saved = dict(states[4])
    del saved["batch"]
    assert_same(take(1, "mixed", start_state=saved)[0][0], batches[5])


@pytest.mark.parametrize(("saved", "now"), [("mixed", "mixture"), ("mixture", "mixed")])
def test_a_position_under_another_mixture_is_refused(saved, now):
    with pytest.raises(DataError, match=r"under another mixture of tasks .*data\.mixture_weights"):
        take(1, now, start_state=straight(saved)[1][3])


@pytest.mark.parametrize("mode", MODES)
def test_padding_stays_low_in_every_mode(mode, builtin):
    config = BatchConfig(encoder_length=512, decoder_length=64, mode=mode)
    tokenized = TokenizedPairs if mode == "pairs" else TokenizedInstances
    with BatchPipeline(tokenized(builtin, ByteTokenizer(), config), config, 0) as pipeline:
        for _ in range(20):
            next(pipeline)
        statistics = pipeline.statistics()
    assert statistics["encoder_padding"] < 0.10
    assert (statistics["pairs"] > 0) == (mode == "pairs")
