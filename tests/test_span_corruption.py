"""Span corruption of plain text."""

import collections
import dataclasses
import gzip
import os

import numpy as np
import pytest

from coin_jax.config import BatchConfig, DataConfig
from coin_jax.data.pipeline import BatchPipeline
from coin_jax.data.sources import DataError
from coin_jax.data.span_corruption import (
    SpanCorruption,
    noise_counts,
    noise_mask,
    raw_length,
    read_tokens,
)

EOS = 1
SENTINELS = tuple(range(299, 199, -1))
BATCH = BatchConfig(rows=4, encoder_length=64, decoder_length=20, segments_per_row=2)
DATA = DataConfig(source="text")


class Letters:
    """Code points + 3, lines ended by token 2; ids from 200 on are sentinels."""

    vocabulary_size = 300
    pad_id, eos_id, sentinel_ids = 0, EOS, SENTINELS

    def __init__(self):
        self.calls = 0

    def encode(self, text):
        return [2 if letter == "\n" else ord(letter) + 3 for letter in text]

    def encode_batch(self, texts):
        self.calls += 1
        return [self.encode(text) for text in texts]


def source(length=5000, batch=BATCH, data=DATA, seed=3, tokenizer=None):
    # Every token says where in the text it stands, so nothing can be mistaken.
    tokens = np.arange(1000, 1000 + length, dtype=np.uint32)
    return SpanCorruption(tokens, tokenizer or Letters(), batch, data, seed)


def restored(item):
    """The text of a window, put together from input and target as a reader would."""
    (inputs,), (targets,) = item.encoder, item.decoder
    assert inputs[-1] == targets[-1] == EOS
    spans, number = collections.defaultdict(list), None
    for token in targets[:-1].tolist():
        if token in SENTINELS:
            number = token
            assert number not in spans
            spans[number] = []
        else:
            spans[number].append(token)
    text = []
    for token in inputs[:-1].tolist():
        text += spans.pop(token) if token in SENTINELS else [token]
    assert not spans
    return text


def test_input_and_target_restore_the_text():
    windows = source()
    for index in range(len(windows)):
        text = np.array(restored(windows.tokenized(index, 0))) - 1000
        assert len(text) == windows.raw_length
        np.testing.assert_array_equal(text, (text[0] + np.arange(len(text))) % 5000)


def test_sentinels_come_in_order_one_a_span():
    item = source().tokenized(0, 0)
    for side in (item.encoder[0], item.decoder[0]):
        found = [token for token in side.tolist() if token in SENTINELS]
        assert found == list(SENTINELS[: len(found)])
        assert len(found) >= 2
    assert item.decoder[0][0] == SENTINELS[0]
    assert item.contents == ()


def test_an_epoch_covers_the_text_once_and_the_next_one_begins_elsewhere():
    windows = source(length=1010)
    starts = []
    for epoch in range(3):
        texts = [restored(windows.tokenized(index, epoch)) for index in range(len(windows))]
        tokens = [token for text in texts for token in text]
        assert len(tokens) == len(set(tokens)) > 1010 - windows.raw_length
        starts.append(texts[0][0])
    assert len(set(starts)) == 3


def test_masks_are_a_pure_function_of_seed_epoch_and_index():
    draws = {}
    for seed in (3, 4):
        for epoch in range(2):
            for index in range(2):
                item = source(seed=seed).tokenized(index, epoch)
                again = source(seed=seed).tokenized(index, epoch)
                assert item.encoder[0].tolist() == again.encoder[0].tolist()
                assert item.decoder[0].tolist() == again.decoder[0].tolist()
                # Where the sentinels stand, whatever the text
                draws[seed, epoch, index] = tuple(np.isin(item.encoder[0], SENTINELS).tolist())
    assert len(set(draws.values())) == 8


def test_windows_are_as_long_as_t5s():
    # T5's own numbers for inputs of 512: 568 tokens of text, 114 of target.
    assert raw_length(512, 114, 0.15, 3.0) == 568
    assert raw_length(512, 113, 0.15, 3.0) < 568
    assert raw_length(3, 3, 0.15, 3.0) == 2


@pytest.mark.parametrize("density", [0.01, 0.15, 0.5, 0.9])
@pytest.mark.parametrize("mean_span", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("shape", [(64, 20), (512, 114), (20, 64), (3, 3)])
def test_no_row_is_exceeded_and_no_longer_window_would_fit(shape, density, mean_span):
    batch = dataclasses.replace(BATCH, encoder_length=shape[0], decoder_length=shape[1])
    data = dataclasses.replace(DATA, noise_density=density, mean_noise_span_length=mean_span)
    many = Letters()
    many.sentinel_ids = tuple(range(999, 0, -1))
    windows = source(batch=batch, data=data, tokenizer=many)
    item = windows.tokenized(0, 0)
    lengths = len(item.encoder[0]), len(item.decoder[0])
    assert lengths[0] <= shape[0]
    assert lengths[1] <= shape[1]
    # One token more of text is one more on one of the sides, and up to two sentinels.
    noise, spans = noise_counts(windows.raw_length + 1, density, mean_span)
    longer = windows.raw_length + 1 - noise + spans + 1, noise + spans + 1
    assert longer[0] > shape[0] or longer[1] > shape[1]


def test_masks_have_the_density_and_span_length_of_the_paper():
    # T5's code: 568 tokens, 15% noise -> round(85.2) = 85 masked tokens in round(28.33) = 28 spans.
    assert noise_counts(568, 0.15, 3.0) == (85, 28)
    masks = np.array([noise_mask(568, 85, 28, 0, number) for number in range(400)])
    assert (masks.sum(axis=1) == 85).all()
    begins = masks & ~np.roll(masks, 1, axis=1)
    assert (begins.sum(axis=1) == 28).all()
    assert not masks[:, 0].any()
    assert masks[:, -1].all()
    # Away from the fixed ends every place is masked equally often: 15%, +- 5 standard errors.
    middle = masks[:, 60:-60].mean(axis=0)
    assert abs(middle.mean() - 85 / 568) < 0.005
    assert np.abs(middle - 85 / 568).max() < 5 * np.sqrt(0.15 * 0.85 / 400)
    # A sum of 85 in 28 positive parts drawn uniformly: a part is 1 with probability 27/84, by
    # stars and bars C(83, 26) / C(84, 27).
    lengths = np.diff(np.flatnonzero(np.diff(masks.ravel(), prepend=False, append=False)))[::2]
    assert lengths.mean() == pytest.approx(85 / 28)
    assert (lengths == 1).mean() == pytest.approx(27 / 84, abs=0.02)


@pytest.mark.parametrize("length", [2, 3, 10, 40])
def test_a_text_shorter_than_a_window_is_one_window(length):
    windows = source(length=length)
    assert len(windows) == 1
    for epoch in range(5):
        text = restored(windows.tokenized(0, epoch))
        assert sorted(text) == list(range(1000, 1000 + length))


@pytest.mark.parametrize("length", [0, 1])
def test_a_text_of_nothing_is_refused(length):
    with pytest.raises(DataError, match=f"{length} tokens of text"):
        source(length=length)


def test_rows_and_sentinels_that_allow_no_window_are_refused():
    with pytest.raises(DataError, match="decoder_length = 2"):
        source(batch=dataclasses.replace(BATCH, decoder_length=2))
    few = Letters()
    few.sentinel_ids = SENTINELS[:2]
    with pytest.raises(DataError, match="only 2 sentinels"):
        source(tokenizer=few)


def test_batches_hold_no_pairs_and_hardly_any_padding():
    batch_config = dataclasses.replace(BATCH, decoder_length=14)
    with BatchPipeline(source(batch=batch_config), batch_config, 0) as pipeline:
        for _ in range(10):
            batch = next(pipeline)
            for name in ("pair_members", "pair_sets", "pair_contents"):
                assert (batch[name] == -1).all()
            assert batch["encoder_segment_ids"].max() == 1
        statistics = pipeline.statistics()
    assert statistics["encoder_padding"] < 0.1
    assert statistics["decoder_padding"] < 0.1
    assert (statistics["pairs"], statistics["sequences"]) == (0, 40)


# --- reading


@pytest.fixture
def files(tmp_path):
    plain, packed = tmp_path / "a.txt", tmp_path / "b.txt.gz"
    plain.write_text("one\n\ntwo\n", encoding="utf-8")
    packed.write_bytes(gzip.compress(b"three\n"))
    return [plain, packed]


WORDS = Letters().encode("one\ntwo\nthree\n")


def test_text_files_become_one_row_of_tokens(files):
    tokens, errors = read_tokens(files, Letters())
    assert tokens.tolist() == WORDS
    assert tokens.dtype == np.uint16
    assert errors == []
    wide = Letters()
    wide.vocabulary_size = 65537
    assert read_tokens(files, wide)[0].dtype == np.uint32


def test_a_second_run_reads_the_tokens_from_the_cache(files, tmp_path):
    first, second, third = Letters(), Letters(), Letters()
    folder = tmp_path / "cache" / "tokens"
    for tokenizer in (first, second):
        tokens, _ = read_tokens(files, tokenizer, cache_folder=folder)
        assert tokens.tolist() == WORDS
        assert isinstance(tokens, np.memmap)
    assert (first.calls, second.calls) == (1, 0)
    # A changed text or tokenizer is another one.
    files[0].write_text("one\ntwos\n", encoding="utf-8")
    assert read_tokens(files, third, cache_folder=folder)[0].tolist() != WORDS
    other = Letters()
    other.encode = lambda text: [5]
    assert read_tokens(files, other, cache_folder=folder)[0].tolist() == [5, 5, 5]
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("left", [0, 7])
def test_a_cache_that_was_cut_short_is_made_anew(files, tmp_path, left):
    folder = tmp_path / "tokens"
    read_tokens(files, Letters(), cache_folder=folder)
    (cache,) = folder.iterdir()
    os.truncate(cache, left)
    for calls in (1, 0):
        tokenizer = Letters()
        assert read_tokens(files, tokenizer, cache_folder=folder)[0].tolist() == WORDS
        assert tokenizer.calls == calls
    assert list(folder.iterdir()) == [cache]


@pytest.mark.parametrize("cached", [False, True])
def test_bad_lines_end_the_run_or_are_reported_each_time(files, tmp_path, cached):
    files[0].write_bytes(b"one\n\xff\ntwo\n")
    folder = tmp_path / "cache" if cached else None
    with pytest.raises(DataError, match=r"a\.txt:2"):
        read_tokens(files, Letters(), cache_folder=folder)
    for _ in range(2):
        tokens, errors = read_tokens(files, Letters(), bad_rows="skip", cache_folder=folder)
        assert tokens.tolist() == WORDS
        assert [str(error).count("a.txt:2") for error in errors] == [1]
    assert not cached or list(folder.iterdir()) == []


def test_empty_files_hold_no_tokens(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    for folder in (None, tmp_path / "cache"):
        tokens, _ = read_tokens([empty], Letters(), cache_folder=folder)
        assert tokens.shape == (0,)
