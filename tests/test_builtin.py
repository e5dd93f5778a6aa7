"""The built-in data: what its sentences say, its wordings, and that it can be told apart."""

import collections
import itertools
import re

import pytest

from coin_jax.config import BatchConfig, DataConfig, TokenizerConfig
from coin_jax.data.builtin import builtin_tasks, grammar
from coin_jax.data.builtin.wordings import WORDINGS
from coin_jax.data.collection import make_pair_source
from coin_jax.data.pairs import TokenizedPairs, training_texts
from coin_jax.data.tokenizer import make_tokenizer


@pytest.fixture(scope="module")
def tasks():
    return builtin_tasks(1600, 0)


def sentences(task, part):
    return [row["sentence"] for row in getattr(task, part).inputs]


def test_there_are_eight_tasks_with_ten_and_six_wordings(tasks):
    assert len(tasks) == len(WORDINGS) == 8
    for task in tasks:
        assert (len(task.training_wordings), len(task.held_out_wordings)) == (10, 6)
        assert 2 <= len(task.answers) <= 8
        assert len(task.training.labels) == 200


def test_every_wording_is_its_own_and_holds_the_sentence_once(tasks):
    wordings = [wording for task in tasks for wording in task.wordings]
    assert len({" ".join(wording.source.lower().split()) for wording in wordings}) == 8 * 16
    for wording in wordings:
        fields = [name for _, name in wording.parts if name]
        assert fields.count("sentence") == 1
        assert set(fields) <= {"sentence", "options_"}


def test_some_wordings_of_each_task_list_the_options_and_the_sentence_stands_anywhere(tasks):
    for task in tasks:
        listing = [wording for wording in task.wordings if "options_" in wording.placeholders]
        assert 0 < len(listing) < len(task.wordings)
        sources = [wording.source for wording in task.wordings]
        assert any(source.startswith("{sentence}") for source in sources)
        assert any(source.endswith("{sentence}") for source in sources)
        assert any(not source.startswith("{") and "{sentence} " in source for source in sources)


def test_the_same_sentences_are_asked_every_question(tasks):
    for part in ("training", "evaluation"):
        assert len({tuple(sentences(task, part)) for task in tasks}) == 1
    for row in range(20):
        answers = {task.answers[task.training.labels[row]] for task in tasks}
        assert len(answers) == 8  # only the instruction tells which of them is meant


def test_sentences_are_short_and_different(tasks):
    for part in ("training", "evaluation"):
        texts = sentences(tasks[0], part)
        assert len(set(texts)) == len(texts)
        assert all(8 <= len(text.split()) <= 18 for text in texts)
        assert sum(len(text.split()) for text in texts) / len(texts) < 15


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)])
def test_training_and_evaluation_sentences_are_disjoint_whatever_the_seeds(seeds):
    training, evaluation = (
        {scene["sentence"] for scene in grammar.scenes(2000, seed, held_out)}
        for seed, held_out in zip(seeds, (False, True), strict=True)
    )
    assert len(training) == len(evaluation) == 2000
    assert not training & evaluation


def test_the_data_is_a_pure_function_of_the_seed():
    first, again, other, more = (
        sentences(builtin_tasks(rows, seed)[0], "training")
        for rows, seed in ((400, 1), (400, 1), (400, 2), (800, 1))
    )
    assert first == again == more[:50]
    assert not set(first) & set(other)


def test_the_first_sentences_stay_what_they_are():
    """Published numbers of the quickstart rest on them."""
    assert [scene["sentence"] for scene in itertools.islice(grammar.scenes(9, 0, False), 2)] == [
        "At sunset six green pears will be found by a smiling baker on the beach.",
        "At sunset five white plums are bought by a frightened doctor in the school yard.",
    ]


def test_answers_can_be_read_off_the_sentence():
    """The sentence's own words decide each answer: found here by looking for them."""
    said = {
        "person": {person: (person,) for person in grammar.PERSONS},
        "colour": {colour: (colour,) for colour in grammar.COLOURS},
        "count": {count: (count,) for count in grammar.COUNTS},
        "feeling": grammar.FEELINGS,
        "time": grammar.TIMES,
        "place": grammar.PLACES,
        "kind": grammar.KINDS,
    }
    for scene in grammar.scenes(300, 0, held_out=False):
        text = " " + scene["sentence"].lower().replace(",", "").replace(".", "") + " "
        for task, signs in said.items():
            meant = [
                answer
                for answer, phrases in signs.items()
                if any(f" {phrase} " in text for phrase in phrases)
            ]
            assert meant == [scene[task]], (task, text)
        assert (" will " in text) == (scene["tense"] == "future")
        past = {"was", "were", *(past for past, *_ in grammar.VERBS)}
        is_passive = re.search(f" by (a|the) [a-z]+ ({'|'.join(grammar.PERSONS)}) ", text)
        words = set(text.split())
        if is_passive:
            words -= {participle for *_, participle in grammar.VERBS}
        assert bool(words & past) == (scene["tense"] == "past"), text


def test_answers_are_spread_evenly(tasks):
    for task in builtin_tasks(16000, 0):
        counts = collections.Counter(task.training.labels.tolist())
        assert len(counts) == len(task.answers)
        assert max(counts.values()) < 1.2 * 2000 / len(task.answers)


def test_seen_wordings_are_the_training_ones_and_evaluation_sentences_are_new(tasks):
    source = make_pair_source(DataConfig(builtin_rows=1600), 0)
    items = source.evaluation_items(3)
    assert len(items) == 8 * 3 * 16
    assert collections.Counter(item.seen for item in items) == {True: 240, False: 144}
    trained = set(sentences(tasks[0], "training"))
    for item in items:
        (sentence,) = (piece.text for piece in item.prompt.pieces if piece.is_field)
        assert sentence not in trained
        assert item.seen == ("training" in item.wording)


def test_a_small_vocabulary_of_its_own_covers_it():
    source = make_pair_source(DataConfig(builtin_rows=4000), 0)
    config = TokenizerConfig("sentencepiece", "", 1000)
    tokenizer = make_tokenizer(config, training_texts(source, 0))
    pairs = TokenizedPairs(source, tokenizer, BatchConfig(encoder_length=96, decoder_length=8))
    tokens = [pairs.tokenized(index, 0) for index in range(0, 4000, 9)]
    assert sum(item.cut for item in tokens) == 0
    assert max(len(ids) for item in tokens for ids in item.decoder) == 2  # a word is a piece
    items = source.evaluation_items(2)
    held_out = [tokenizer.encode(item.prompt.text) for item in items if not item.seen]
    assert not any(2 in ids for ids in held_out)
