"""Perturbations: bounded as their sources say, seeded, and never in a frozen span."""

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coin_jax.data.templates import parse_template
from coin_jax.robustness.perturb import (
    PERTURBATIONS,
    EmbeddingLexicon,
    ParaphrasingLexicon,
    PerturbationError,
    Site,
    find_perturbation,
    frozen_spans,
    perturb,
)
from coin_jax.robustness.perturb.words import STOP_WORDS, word_sites

INSTRUCTION = (
    "As a sentiment classifier, determine whether the Following REVIEW reads positive or negative."
    "\nReview: {sentence}\nAnswer:"
)
LABELS = ("positive", "negative")


class Reversing:
    """A lexicon that knows every word, and an answer and a repetition besides."""

    def synonyms(self, word, text, start, end):
        assert text[start:end] == word
        backwards = word.lower()[::-1]
        return [backwards, "negative", word, word + "like", backwards]


def levenshtein(first, second):
    """Insertions, deletions and substitutions; Wagner and Fischer 1974."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, start=1):
        previous, row[0] = row[0], i
        for j, right in enumerate(second, start=1):
            costs = row[j] + 1, row[j - 1] + 1, previous + (left != right)
            previous, row[j] = row[j], min(costs)
    return row[-1]


def seeded(seed=0):
    return np.random.default_rng(seed)


def variants_of(method, word, lexicon=None, seeds=200):
    """What the word alone can become, over many draws."""
    found = set()
    for seed in range(seeds):
        found |= set(
            PERTURBATIONS[method].variants(word, Site(0, len(word)), seeded(seed), lexicon)
        )
    return found


# --- frozen spans -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words", "frozen"),
    [
        ("Is {text} good?", [], ["{text}"]),
        ("a {{literal}} b", [], ["{{", "}}"]),
        ("Good or bad, GOOD!", ["good"], ["Good", "GOOD"]),
        ("goods and goodness", ["good"], []),
        ("not  Entailment, entailment", ["entailment", "not entailment"], None),
        ("not_entailment", ["entailment"], ["entailment"]),
        ("it costs $5 (a lot)", ["$5", "(a"], ["$5", "(a"]),
        ("été or Été", ["été"], ["été", "Été"]),
        ("nothing", ["", " "], []),
    ],
)
def test_frozen_are_placeholders_braces_and_whole_named_words(text, words, frozen):
    found = [text[start:end] for start, end in frozen_spans(text, words)]
    assert found == (["not  Entailment", "entailment"] if frozen is None else frozen)


WORDS = st.sampled_from(
    [
        *("The", "review", "Sentence", "NASA", "is", "iPhone", "naïve", "cafe\u0301", "नमस्ते"),
        *("Straße", "don't", "teacher’s", "x", "I", "gpt4", "2024", "İstanbul", "日本語", "🙂"),
    ]
)
FROZEN = st.sampled_from(
    ["{sentence}", "{options_}", "{{", "}}", "positive", "Negative", "NOT entailment", "positive's"]
)
GAPS = st.sampled_from([" ", "\n", ": ", ", ", "? ", " '", "' ", "-"])
PIECES = st.lists(st.tuples(st.one_of(WORDS, WORDS, FROZEN), GAPS), max_size=12)
ANSWERS = ("positive", "negative", "not entailment")


EDITING = sorted(set(PERTURBATIONS) - {"semantic"})  # which rewords everything


def placeholders(text):
    return sorted(name for _, name in parse_template(text, "test").parts if name)


@settings(max_examples=150, deadline=None)
@given(PIECES, st.sampled_from(sorted(PERTURBATIONS)), st.integers(0, 2**32 - 1))
def test_a_variant_differs_at_its_site_alone_and_no_site_is_frozen(pieces, method, seed):
    text = "".join(piece + gap for piece, gap in pieces)
    perturbation = PERTURBATIONS[method]
    spans = frozen_spans(text, ANSWERS)
    for site in perturbation.sites(text, ANSWERS):
        variants = perturbation.variants(text, site, seeded(seed), Reversing(), ANSWERS)
        assert text not in variants
        assert len(set(variants)) == len(variants)
        if method != "semantic":
            assert not any(span.start < site.end and site.start < span.end for span in spans)
        for variant in variants:
            assert variant.startswith(text[: site.start])
            assert variant.endswith(text[site.end :])
            assert len(variant) >= site.start + len(text) - site.end
            assert placeholders(variant) == placeholders(text)


@settings(max_examples=150, deadline=None)
@given(PIECES, st.sampled_from(EDITING), st.integers(0, 2**32 - 1))
def test_a_copy_keeps_every_frozen_text_in_order_and_depends_on_the_seed_alone(
    pieces, method, seed
):
    text = "".join(piece + gap for piece, gap in pieces)
    once, twice = (
        perturb(text, method, frozen=ANSWERS, random=seeded(seed), share=1, lexicon=Reversing())
        for _ in range(2)
    )
    assert once == twice
    frozen = [re.escape(text[start:end]) for start, end in frozen_spans(text, ANSWERS)]
    assert re.fullmatch(".*".join(["", *frozen, ""]), once, re.DOTALL)
    assert placeholders(once) == placeholders(text)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.sampled_from(sorted(PERTURBATIONS)))
def test_any_text_at_all_is_perturbed_without_an_error(text, method):
    perturb(text, method, frozen=ANSWERS, random=seeded(), lexicon=Reversing())


@pytest.mark.parametrize("method", sorted(PERTURBATIONS))
@pytest.mark.parametrize("text", ["", " \n "])
def test_a_blank_text_stays(text, method):
    assert perturb(text, method, frozen=(), random=seeded(), lexicon=Reversing()) == text


@pytest.mark.parametrize("method", ["deepwordbug", "textbugger", "textfooler", "bertattack"])
@pytest.mark.parametrize("text", ["Is it not?", "{sentence} positive", "12 gpt4 x", "🙂 ... §"])
def test_a_text_without_a_changeable_word_stays(text, method):
    assert PERTURBATIONS[method].sites(text, LABELS) == []
    assert perturb(text, method, frozen=LABELS, random=seeded(), lexicon=Reversing()) == text


def test_sites_are_content_words_in_the_order_of_the_text():
    sites = word_sites(INSTRUCTION, LABELS)
    found = " ".join(INSTRUCTION[start:end] for start, end in sites)
    assert found == "sentiment classifier determine Following REVIEW reads Review Answer"
    assert {"the", "not", "whether", "don't"} <= STOP_WORDS


def test_a_site_moves_with_what_was_changed_before_it():
    text = "one two"
    assert Site(4, 7).moved(Site(0, 3), len("three") - len("one")) == Site(6, 9)
    assert Site(0, 3).moved(Site(4, 7), 2) == Site(0, 3)
    assert text.replace("one", "three")[6:9] == "two"


# --- perturb ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EDITING)
def test_other_seeds_give_other_copies(method):
    copies = {
        perturb(INSTRUCTION, method, frozen=LABELS, random=seeded(seed), lexicon=Reversing())
        for seed in range(20)
    }
    assert len(copies) >= 3
    assert INSTRUCTION not in copies


@pytest.mark.parametrize(("share", "changed"), [(0.01, 1), (0.3, 3), (0.5, 5), (1.0, 10)])
def test_the_share_of_words_is_changed(share, changed):
    text = "alpha beta gamma delta epsilon zeta theta kappa lambda sigma"
    copy = perturb(text, "textfooler", frozen=(), random=seeded(), share=share, lexicon=Reversing())
    pairs = zip(text.split(), copy.split(), strict=True)
    assert sum(before != after for before, after in pairs) == changed


def test_bertattack_changes_two_fifths_of_the_words_at_most():
    text = "alpha beta gamma delta epsilon zeta theta kappa lambda sigma"
    copy = perturb(text, "bertattack", frozen=(), random=seeded(), share=1, lexicon=Reversing())
    pairs = zip(text.split(), copy.split(), strict=True)
    assert sum(before != after for before, after in pairs) == 4


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(PerturbationError, match="share must be"):
        perturb("some words", "deepwordbug", frozen=(), random=seeded(), share=share)


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(PerturbationError, match=r"'typos'.*deepwordbug.*semantic"):
        perturb("some words", "typos", frozen=(), random=seeded())


@pytest.mark.parametrize(
    ("method", "remedy"),
    [
        ("textfooler", "WordNetLexicon"),
        ("bertattack", "InfillingLexicon"),
        ("semantic", "ParaphrasingLexicon"),
    ],
)
def test_a_method_without_its_lexicon_says_what_to_give(method, remedy):
    with pytest.raises(PerturbationError, match=f"{method} needs a .*{remedy}"):
        perturb("some words", method, frozen=(), random=seeded())


def test_every_perturbation_cites_its_source_and_says_where_it_departs():
    levels = {name: method.level for name, method in PERTURBATIONS.items()}
    assert levels == {
        "deepwordbug": "character",
        "textbugger": "character",
        "textfooler": "word",
        "bertattack": "word",
        "checklist": "sentence",
        "stresstest": "sentence",
        "semantic": "semantic",
    }
    for name, method in PERTURBATIONS.items():
        assert find_perturbation(name) is method
        assert re.search(r"et al\. 20\d\d, .*arXiv \d{4}\.\d{5}", method.source)
        assert method.departures


# --- character level --------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.text("abcdeXYZéß", min_size=2, max_size=10), st.integers(0, 2**32 - 1))
def test_deepwordbug_stays_within_two_edits_of_a_word(word, seed):
    for variant in PERTURBATIONS["deepwordbug"].variants(word, Site(0, len(word)), seeded(seed)):
        assert 1 <= levenshtein(word, variant) <= 2


def test_deepwordbug_stays_within_thirty_edits_of_a_text():
    text = " ".join(f"Word{chr(97 + i % 26)}ing" for i in range(60))
    for seed in range(8):
        copy = perturb(text, "deepwordbug", frozen=(), random=seeded(seed), share=1)
        assert 15 <= levenshtein(text, copy) <= 30


def test_deepwordbug_swaps_substitutes_deletes_and_inserts():
    found = variants_of("deepwordbug", "abcd", seeds=600)
    swapped = {"bacd", "acbd", "abdc"}
    deleted = {"bcd", "acd", "abd", "abc"}
    inserted = {variant for variant in found if len(variant) == 5}
    substituted = {variant for variant in found if len(variant) == 4} - swapped
    assert swapped | deleted <= found
    assert all(levenshtein("abcd", variant) == 1 for variant in inserted | substituted)
    places = [{variant[i] for variant in substituted} for i in range(4)]
    assert all(len(place) > 15 for place in places)
    assert {variant[0] for variant in inserted} == {"a"}  # its first letter stays in front
    assert found == swapped | deleted | inserted | substituted


def test_textbugger_makes_the_four_bugs_of_its_paper():
    look_alike = {"tаble", "tabIe", "tab1e", "tablе"}
    assert variants_of("textbugger", "table") >= {
        *("t able", "ta ble", "tab le", "tabl e"),
        *("tble", "tale", "tabe"),
        *("tbale", "talbe"),
    }
    made = {v for v in variants_of("textbugger", "table") if len(v) == 5}
    assert made - {"tbale", "talbe"} <= look_alike
    assert made - {"tbale", "talbe"}


def test_textbugger_keeps_the_ends_splits_short_words_only_and_swaps_long_ones_only():
    for variant in variants_of("textbugger", "problems"):
        assert (variant[0], variant[-1]) == ("p", "s") or not variant.isascii()
        assert " " not in variant
    assert not {"wrod", "owrd", "wodr"} & variants_of("textbugger", "word")
    assert variants_of("textbugger", "of") >= {"o f"}


def test_textbugger_takes_the_five_nearest_words_of_a_lexicon():
    near = EmbeddingLexicon(list("abcdefgh"), np.eye(8, 2) + 1)
    near.synonyms = lambda *_: ["one", "two", "three", "four", "five", "six"]
    found = variants_of("textbugger", "Number", near)
    assert found >= {"One", "Two", "Three", "Four", "Five"}
    assert not found & {"Six", "six"}


def test_look_alikes_are_other_letters_that_normalisation_does_not_undo():
    from coin_jax.robustness.perturb.character import LOOK_ALIKES

    for letter, look_alike in LOOK_ALIKES.items():
        assert letter.isascii()
        assert len(look_alike) == 1
        assert unicodedata.normalize("NFKC", look_alike) not in (letter, letter.swapcase())


def test_marks_stay_with_their_letters():
    for word in ("cafe\u0301s", "नमस्ते"):
        whole = set(re.findall(r"[^\W_](?:[^\w\s])*", word))
        for variant in variants_of("deepwordbug", word, seeds=60):
            assert set(re.findall(r"[^\W_](?:[^\w\s])*", variant)) <= whole


# --- capitals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["deepwordbug", "textfooler", "bertattack"])
def test_capitalisation_is_kept(method):
    for word, pattern in [("Team", "[A-Z][a-z]*"), ("TEAM", "[A-Z]+"), ("team", "[a-z]+")]:
        for variant in variants_of(method, word, Reversing()):
            assert re.fullmatch(pattern, variant), (word, variant)


# --- sentence and semantic level --------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "before"),
    [
        (INSTRUCTION, "positive or negative."),
        ("Answer yes or no: {sentence}", "Answer yes or no:"),
        ("Decide.\n{premise}\n{hypothesis}\n{options_}", "Decide."),
        ("Decide.\nQuestion: {premise}\nA sentence: {hypothesis}\nAnswer:", "Decide."),
        ("{premise}\nDoes it follow that {hypothesis}?\n{options_}", "{hypothesis}?"),
        ('Does "{premise}" imply "{hypothesis}"?', '"{hypothesis}"?'),
        ("Premise: {premise}\nHypothesis: {hypothesis}\nIs it so?", "Is it so?"),
        ("Is it so?  \n", "Is it so?"),
        ("{sentence}", "{sentence}"),
    ],
)
@pytest.mark.parametrize("method", ["checklist", "stresstest"])
def test_sentences_are_appended_to_the_instruction(text, before, method):
    (site,) = PERTURBATIONS[method].sites(text, LABELS)
    assert site.start == site.end
    assert text[: site.start].endswith(before)
    if text is INSTRUCTION:
        assert text[site.end :] == "\nReview: {sentence}\nAnswer:"


def test_checklist_appends_ten_random_letters_and_digits():
    found = variants_of("checklist", "", seeds=1)
    forms = r" (|@|https://t\.co/)[A-Za-z0-9]{10}"
    assert len(found) == 12
    assert {re.fullmatch(forms, variant)[1] for variant in found} == {"", "@", "https://t.co/"}


def test_stresstest_appends_tautologies_once_or_five_times():
    perturbation = PERTURBATIONS["stresstest"]
    (site,) = perturbation.sites("Judge:{text}", ())
    once = "Judge: and true is true {text}"
    assert perturbation.variants("Judge:{text}", site, seeded()) == [
        once,
        "Judge: and false is not true {text}",
        "Judge: and true is true and true is true and true is true and true is true and true is "
        "true {text}",
    ]


def test_rewordings_that_lose_a_placeholder_or_a_label_are_dropped():
    text = "Is {text} good or bad?"
    rewordings = [
        text,
        "Good or bad: {text}",
        "Is it good or bad?",
        "Is {text} fine or bad?",
        "Is {text} good or bad, good?",
        " ",
    ]
    paraphraser = ParaphrasingLexicon(lambda asked: rewordings if asked == text else [])
    arguments = {"frozen": ("good", "bad"), "random": seeded(), "lexicon": paraphraser}
    (site,) = PERTURBATIONS["semantic"].sites(text, ())
    assert PERTURBATIONS["semantic"].variants(text, site, **arguments) == ["Good or bad: {text}"]
    assert perturb(text, "semantic", **arguments) == "Good or bad: {text}"
