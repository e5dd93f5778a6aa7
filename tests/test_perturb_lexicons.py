"""Where replacements come from: embeddings, infilling, WordNet's files."""

import zipfile

import numpy as np
import pytest

from coin_jax.robustness.perturb import (
    PERTURBATIONS,
    EmbeddingLexicon,
    InfillingLexicon,
    PerturbationError,
    Site,
    WordNetLexicon,
    wordnet,
)


def test_embedding_neighbours_come_by_cosine():
    # Cosines with `film` (1, 0): movie 0.8, Film 1, cinema 0.6, car 0, anti -1; length is nothing
    words = ["film", "movie", "Film", "cinema", "car", "anti", "nothing"]
    vectors = np.array([[1, 0], [4, 3], [2, 0], [0.6, 0.8], [0, 9], [-1, 0], [0, 0]], np.float32)
    lexicon = EmbeddingLexicon(words, vectors)
    assert lexicon.synonyms("film", "", 0, 0)[:2] == ["movie", "cinema"]
    assert lexicon.synonyms("FILM", "", 0, 0)[:2] == ["movie", "cinema"]
    assert lexicon.synonyms("unknown", "", 0, 0) == []
    few = EmbeddingLexicon(words, vectors, count=1)
    assert few.synonyms("film", "", 0, 0) == ["movie"]
    near = EmbeddingLexicon(words, vectors, least_cosine=0.7)
    assert near.synonyms("film", "", 0, 0) == ["movie"]


def test_infilling_asks_with_a_sentinel_in_the_words_place_and_takes_single_words():
    asked = []

    def generate(prompts):
        asked.extend(prompts)
        answers = ["<pad><extra_id_0> good<extra_id_1></s>", "Good", "very fine", "", "{text}"]
        return [[*answers, "fine.", "<extra_id_0><extra_id_1> odd", "bad"]]

    lexicon = InfillingLexicon(generate)
    assert lexicon.synonyms("bad", "a bad {text}", 2, 5) == ["good", "fine", "odd"]
    assert asked == ["a <extra_id_0> {text}"]


def test_a_replacement_that_names_an_answer_or_a_stop_word_is_dropped():
    lexicon = InfillingLexicon(lambda prompts: [["Negative", "not", "poor"]])
    perturbation = PERTURBATIONS["bertattack"]
    site, random, labels = Site(2, 5), np.random.default_rng(0), ("positive", "negative")
    assert perturbation.variants("A bad one", site, random, lexicon, labels) == ["A poor one"]


def test_vectors_that_do_not_fit_the_words_are_refused():
    with pytest.raises(PerturbationError, match=r"1 words.*\(2, 3\)"):
        EmbeddingLexicon(["a"], np.zeros((2, 3)))


def test_a_folder_without_wordnet_is_named(tmp_path):
    with pytest.raises(PerturbationError, match=f"no WordNet in {tmp_path}: index.noun"):
        WordNetLexicon(tmp_path)


def test_where_wordnet_is_missing_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(wordnet, "_open", lambda folder: None)
    with pytest.raises(PerturbationError, match=r"wordnet-base.*nltk.*WNSEARCHDIR"):
        WordNetLexicon()


@pytest.fixture
def database(tmp_path):
    """A WordNet of a few synsets in its own format, wndb(5WN)."""
    synsets = {
        "noun": [["movie", "film", "motion_picture"], ["film", "plastic_film"], ["Film", "foil"]],
        "verb": [["film", "shoot", "record"], ["stop", "finish", "try", "co-opt"]],
        "adj": [["good", "able(p)"]],
        "adv": [],
    }
    exceptions = {"noun": "", "verb": "shot shoot\n", "adj": "better good\n", "adv": ""}
    folder = tmp_path / "wordnet"
    folder.mkdir()
    for part, groups in synsets.items():
        data, index = b"  1 a licence that is indented\n", {}
        for words in groups:
            listed = " ".join(f"{word} 0" for word in words)
            for word in words:
                index.setdefault(word.partition("(")[0].lower(), []).append(len(data))
            line = f"{len(data):08d} 10 {part[0]} {len(words):02x} {listed} 001 @ 00000000 n 0000"
            data += f"{line} | what it means  \n".encode()
        lines = ["  1 a licence that is indented"]
        for word, offsets in sorted(index.items()):
            places = " ".join(f"{offset:08d}" for offset in offsets)
            count, tagged = len(offsets), 7 if part == "noun" else 2
            lines.append(f"{word} {part[0]} {count} 2 @ ~ {count} {tagged} {places}  ")
        (folder / f"data.{part}").write_bytes(data)
        (folder / f"index.{part}").write_text("\n".join(lines) + "\n")
        (folder / f"{part}.exc").write_text(exceptions[part])
    return folder


def synonyms(lexicon, word):
    return lexicon.synonyms(word, word, 0, len(word))


def test_wordnet_gives_the_commonest_sense_of_the_commonest_part_of_speech_first(database):
    lexicon = WordNetLexicon(database)
    assert synonyms(lexicon, "Film") == ["movie", "shoot", "record", "foil"]
    assert synonyms(lexicon, "good") == ["able"]
    assert synonyms(lexicon, "unheard") == []


def test_wordnet_follows_regular_inflections_and_leaves_irregular_ones(database):
    lexicon = WordNetLexicon(database)
    assert synonyms(lexicon, "films") == ["movies", "records", "foils"]  # shoot is irregular
    assert synonyms(lexicon, "filming") == ["recording"]
    assert synonyms(lexicon, "tried") == ["stopped", "finished"]
    assert synonyms(lexicon, "stopping") == ["finishing", "trying"]
    assert synonyms(lexicon, "shot") == []


@pytest.mark.parametrize(
    ("lemma", "forms"),
    [
        ("review", "reviews reviewed reviewing"),
        ("judge", "judges judged judging"),
        ("classify", "classifies classified classifying"),
        ("play", "plays played playing"),
        ("pass", "passes passed passing"),
        ("plan", "plans planned planning"),
        ("agree", "agrees agreed agreeing"),
        ("tie", "ties tied tying"),
        ("fix", "fixes fixed fixing"),
    ],
)
def test_regular_forms(lemma, forms):
    assert " ".join(wordnet.inflect(lemma, suffix) for suffix in ("s", "ed", "ing")) == forms
    assert wordnet.inflect(lemma, "") == lemma


def test_wordnet_is_found_where_it_is_installed_packed_or_not(database, tmp_path, monkeypatch):
    monkeypatch.setenv("WNSEARCHDIR", str(database))
    assert synonyms(WordNetLexicon(), "movie") == ["film"]
    monkeypatch.delenv("WNSEARCHDIR")
    packed = tmp_path / "nltk" / "corpora" / "wordnet.zip"
    packed.parent.mkdir(parents=True)
    with zipfile.ZipFile(packed, "w") as archive:
        for file in database.iterdir():
            archive.write(file, f"wordnet/{file.name}")
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "nltk"))
    assert synonyms(WordNetLexicon(), "movie") == ["film"]
    assert synonyms(WordNetLexicon(packed), "movie") == ["film"]


def test_the_real_wordnet_knows_the_words_of_instructions():
    try:
        lexicon = WordNetLexicon()
    except PerturbationError as error:
        pytest.skip(str(error))
    assert "film" in synonyms(lexicon, "movie")
    assert "films" in synonyms(lexicon, "movies")
    assert "sorted" in synonyms(lexicon, "classified")
