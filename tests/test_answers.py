"""Generated texts are taken for the answer that they give, and for none where they give none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coin_jax.robustness.answers import INVALID, match, normalise, prefixes

SENTIMENT = ("negative", "positive")
ENTAILMENT = ("entailment", "not_entailment")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("positive", 1),
        (" Positive.\n", 1),
        ('"NEGATIVE"', 0),
        ("<pad> positive</s><pad>", 1),
        ("negative, because nobody laughs", 0),
        ("negative positive", 0),
        ("\u200b**positive**", 1),
        ("positive-ish", 1),
        ("positively", INVALID),
        ("the text is positive", INVALID),
        ("pos", INVALID),
        ("1", INVALID),
        ("", INVALID),
        ("?!", INVALID),
    ],
)
def test_a_text_gives_the_answer_that_it_begins_with(text, expected):
    assert match(text, SENTIMENT) == expected


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("not_entailment", ENTAILMENT, 1),
        ("entailment", ENTAILMENT, 0),
        ("not entailment", ENTAILMENT, INVALID),
        ("it depends on the weather", ("it depends", "it depends on the weather"), 1),
        ("it depends on me", ("it depends", "it depends on the weather"), 0),
        ("it  depends\non me", ("it depends", "no"), 0),
        ("10", ("1", "10"), 1),
        ("1.5", ("1", "2"), INVALID),
        ("1. It is", ("1", "2"), 0),
        ("unacceptable", ("Acceptable", "Unacceptable"), 1),
        ("acceptable", ("Acceptable", "Unacceptable"), 0),
        ("yes", ("Yes.", "yes"), 0),
        ("a+b", ("a", "a+b"), 1),
        ("+", ("-", "+"), 1),
        ("oui", ("non", "oui"), 1),
        ("ÉTÉ !", ("hiver", "été"), 1),
    ],
)
def test_the_longest_answer_with_whole_words_is_taken(text, answers, expected):
    assert match(text, answers) == expected


@given(st.text())
def test_normalising_twice_is_normalising_once(text):
    assert normalise(normalise(text)) == normalise(text)


@given(st.lists(st.text(min_size=1), min_size=1, unique_by=normalise), st.data())
def test_every_answer_is_matched_by_itself(answers, data):
    place = data.draw(st.integers(0, len(answers) - 1))
    assert match(answers[place], answers) == place


def test_answers_that_begin_each_other_are_found():
    assert prefixes(("yes", "no", "maybe")) == []
    assert prefixes(ENTAILMENT) == []
    assert prefixes(("unacceptable", "acceptable")) == []
    assert prefixes(("entailment", "no", "entail")) == [("entail", "entailment")]
    assert prefixes(("No", "no idea", "'no'")) == [
        ("No", "no idea"),
        ("No", "'no'"),
        ("'no'", "no idea"),
    ]
